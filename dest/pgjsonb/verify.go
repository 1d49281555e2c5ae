package pgjsonb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// sourceTable holds the tids and positions of the source while it is compared:
// a table, because it takes no memory here whatever the source's size, and
// because the tids of a source need not ascend.
const sourceTable = "pg_temp.zodb_convert_source"

// position is a transaction of the source, as the destination knows it.
type position struct {
	tid               zodb.TID
	pos, next         int64
	user, description string
}

// Verify checks that the destination holds nothing that the source does not,
// and returns where the source goes on behind it: every tid there must be one
// of the source's, and the last one must be the same transaction in both.
//
// Blobs that were missing when an earlier start caught up are looked for again.
func (s *session) Verify(ctx context.Context, src source.Log) (from int64, err error) {
	s.source.set(src)
	err = s.withControl(ctx, func(conn *pgx.Conn) error {
		// In one transaction: behind a pooler the next one may be another session's.
		tx, err := conn.Begin(ctx)
		if err != nil {
			return fmt.Errorf("compare the transactions: %w", err)
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE zodb_convert_source (tid bigint, pos bigint, next bigint) ON COMMIT DROP`); err != nil {
			return fmt.Errorf("compare the transactions: %w", err)
		}
		if err := copyTransactions(ctx, conn, src); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `ANALYZE `+sourceTable); err != nil {
			return fmt.Errorf("compare the transactions: %w", err)
		}
		from, err = s.compare(ctx, conn, src)
		return err
	})
	if refused := (*dest.RefusedError)(nil); s.opened && errors.As(err, &refused) {
		// Nothing was changed, so nothing is left to go on with.
		return 0, errors.Join(err, s.Complete(ctx))
	}
	if err != nil {
		return 0, err
	}
	return from, s.lookAgain(ctx, src, dest.CatchingUp)
}

// copyTransactions sends tid, start and end of every transaction of the source.
func copyTransactions(ctx context.Context, conn *pgx.Conn, src source.Log) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		out := bufio.NewWriterSize(w, 64<<10)
		var row []byte
		_, err := out.WriteString(copyHeader)
		if err == nil {
			err = src.Transactions(ctx, func(t *source.Transaction) error {
				row = appendInt16(row[:0], 3)
				row = appendBigint(row, int64(t.TID))
				row = appendBigint(row, t.Pos)
				row = appendBigint(row, t.End)
				_, err := out.Write(row)
				return err
			})
		}
		if err == nil {
			_, err = out.WriteString(copyTrailer)
		}
		if err == nil {
			err = out.Flush()
		}
		w.CloseWithError(err) // nil is io.EOF
		read <- err
	}()
	_, err := conn.PgConn().CopyFrom(ctx, r, `COPY `+sourceTable+` FROM STDIN (FORMAT binary)`)
	r.CloseWithError(io.ErrClosedPipe)
	cancel()
	if e := <-read; e != nil && !errors.Is(e, io.ErrClosedPipe) && !errors.Is(e, context.Canceled) {
		return elsewhere(fmt.Errorf("read the source's transactions: %w", e))
	}
	if err != nil {
		return fmt.Errorf("compare the transactions: %w", err)
	}
	return nil
}

func (s *session) compare(ctx context.Context, conn *pgx.Conn, src source.Log) (from int64, err error) {
	log := s.layout.name(transactionLog)
	if err := s.aliens(ctx, conn, log); err != nil {
		return 0, err
	}
	var last position
	var tid int64
	err = conn.QueryRow(ctx, `SELECT tid, s.pos, s.next, coalesce(username, ''), coalesce(description, '')
		FROM `+sourceTable+` s JOIN `+log+` USING (tid) ORDER BY s.next DESC LIMIT 1`).
		Scan(&tid, &last.pos, &last.next, &last.user, &last.description)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.fromStart(ctx, conn)
	}
	if err != nil {
		return 0, fmt.Errorf("find the last common transaction: %w", err)
	}
	last.tid = zodb.TID(tid)
	if err := s.holes(ctx, conn, log, &last); err != nil {
		return 0, err
	}
	if err := s.sameMetadata(ctx, src, &last); err != nil {
		return 0, err
	}
	if err := s.sameObjects(ctx, conn, src, &last); err != nil {
		return 0, err
	}
	if err := conn.QueryRow(ctx, `SELECT max(tid) FROM `+log).Scan(&tid); err != nil {
		return 0, fmt.Errorf("find the highest transaction: %w", err)
	}
	s.upTo = zodb.TID(tid)
	return last.next, nil
}

// holes refuses a destination that lacks transactions below its last one: what
// they wrote may be missing too.
func (s *session) holes(ctx context.Context, conn *pgx.Conn, log string, last *position) error {
	var n, tid int64
	err := conn.QueryRow(ctx, `SELECT count(*) OVER (), s.tid FROM `+sourceTable+` s
		WHERE s.pos < $1::int8 AND NOT EXISTS (SELECT FROM `+log+` t WHERE t.tid = s.tid) ORDER BY s.tid LIMIT 1`, last.pos).Scan(&n, &tid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare the transactions: %w", err)
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s lacks %s of the source before its last one, the first is %v of %s",
			s.dest.Name(), count(n, "transaction"), zodb.TID(tid), at(zodb.TID(tid))),
		Hint: "it was not loaded completely: convert again with --clear",
	}
}

// aliens refuses transactions that the source does not have.
func (s *session) aliens(ctx context.Context, conn *pgx.Conn, log string) error {
	var n, tid int64
	var user string
	err := conn.QueryRow(ctx, `SELECT count(*) OVER (), tid, coalesce(username, '') FROM `+log+` t
		WHERE NOT EXISTS (SELECT FROM `+sourceTable+` s WHERE s.tid = t.tid) ORDER BY tid LIMIT 1`).Scan(&n, &tid, &user)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare the transactions: %w", err)
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s has %s that the source does not have, the first is %v of %s by user %q",
			s.dest.Name(), count(n, "transaction"), zodb.TID(tid), at(zodb.TID(tid)), user),
		Hint: "the site has written to it, or the source was packed since; converting again with --clear would destroy what the site has written",
	}
}

func at(t zodb.TID) string { return t.Time().Format(time.DateTime) + " UTC" }

// fromStart is where to follow from if the destination has no transaction.
func (s *session) fromStart(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var some bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+s.layout.name(objectState)+`)`).Scan(&some); err != nil {
		return 0, fmt.Errorf("look for objects: %w", err)
	}
	if some {
		return 0, &dest.RefusedError{Reason: fmt.Sprintf("%s has objects but no transactions", s.dest.Name()), Hint: "convert again with --clear"}
	}
	var first *int64
	if err := conn.QueryRow(ctx, `SELECT min(pos) FROM `+sourceTable).Scan(&first); err != nil {
		return 0, fmt.Errorf("find the first transaction: %w", err)
	}
	if first == nil {
		return s.plan.Info.Identity.End, nil
	}
	return *first, nil
}

var errFound = errors.New("found")

// sameMetadata compares user and description as they are stored.
func (s *session) sameMetadata(ctx context.Context, src source.Log, last *position) error {
	var user, description []byte
	err := src.Transactions(ctx, func(t *source.Transaction) error {
		if t.Pos != last.pos {
			return nil
		}
		user, _ = dest.AppendEscaped(nil, t.User)
		description, _ = dest.AppendEscaped(nil, t.Description)
		return errFound
	})
	if err != nil && !errors.Is(err, errFound) {
		return elsewhere(fmt.Errorf("read the source's transactions: %w", err))
	}
	what := ""
	switch {
	case string(user) != last.user:
		what = fmt.Sprintf("was made by user %q there and %q in the source", last.user, user)
	case string(description) != last.description:
		what = fmt.Sprintf("of user %q is described as %q there and %q in the source", last.user, last.description, description)
	default:
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("transaction %v of %s, the last of %s, %s", last.tid, at(last.tid), s.dest.Name(), what),
		Hint:   "it is not a conversion of this source: convert again with --clear",
	}
}

// sameObjects compares which objects the last transaction wrote. Without
// history an object that it deleted leaves no row.
func (s *session) sameObjects(ctx context.Context, conn *pgx.Conn, src source.Log, last *position) error {
	want, err := src.OIDs(ctx, last.pos)
	if err != nil {
		return elsewhere(fmt.Errorf("read which objects transaction %v wrote: %w", last.tid, err))
	}
	query := `SELECT zoid FROM ` + s.layout.name(objectState) + ` WHERE tid = $1::int8`
	if s.plan.Options.HistoryPreserving {
		query += ` UNION SELECT zoid FROM ` + s.layout.name(objectHistory) + ` WHERE tid = $1::int8`
	}
	rows, err := conn.Query(ctx, query+` ORDER BY zoid`, int64(last.tid))
	if err != nil {
		return fmt.Errorf("read which objects transaction %v wrote: %w", last.tid, err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("read which objects transaction %v wrote: %w", last.tid, err)
	}
	for _, zoid := range have {
		if _, ok := slices.BinarySearch(want, zodb.OID(zoid)); !ok {
			return s.otherObjects(last, fmt.Sprintf("wrote object %v there, which it did not in the source", zodb.OID(zoid)))
		}
	}
	if s.plan.Options.HistoryPreserving && len(have) < len(want) {
		return s.otherObjects(last, fmt.Sprintf("wrote %s there and %d in the source", count(int64(len(have)), "object"), len(want)))
	}
	return nil
}

func (s *session) otherObjects(last *position, what string) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("transaction %v of %s by user %q, the last of %s, %s", last.tid, at(last.tid), last.user, s.dest.Name(), what),
		Hint:   "it is not a conversion of this source: convert again with --clear",
	}
}
