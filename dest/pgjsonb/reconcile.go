package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Tables of the transaction that reconciles. The first has the name of the one
// that a follower stages in. A record without class is a deletion or a reject.
const (
	removedTable    = "pg_temp.zodb_convert_removed"
	removedLogTable = "pg_temp.zodb_convert_removed_log"

	differenceColumns = "(current, zoid, tid, class_mod, class_name, state, state_size, refs)"
)

// createDifferences makes them. On the server a difference of any size takes no
// memory.
var createDifferences = []string{
	`CREATE TEMPORARY TABLE zodb_convert_stage (current boolean, zoid bigint, tid bigint, class_mod text,
		class_name text, state jsonb, state_size integer, refs bigint[]) ON COMMIT DROP`,
	`CREATE TEMPORARY TABLE zodb_convert_removed (zoid bigint, tid bigint) ON COMMIT DROP`,
	`CREATE TEMPORARY TABLE zodb_convert_removed_log (tid bigint) ON COMMIT DROP`,
}

// reconciler makes the destination what one view of a table is. All of it is one
// transaction of PostgreSQL, whose commit waits for the disk: at any moment the
// destination is what the view is, or what it was before.
type reconciler struct {
	groupWriter

	// The open transaction.
	open   bool
	result dest.Result
	maxOID int64
	// added counts new transactions, above those with a tid above the highest that
	// was there.
	added, above int64
	// sent tells that COMMIT was sent; last is then what the last chunk is told.
	sent bool
	last *dest.Result
	id   source.Range
}

// Reconciler opens the writer of what Table.Differences gives. Blobs that were
// missing when an earlier start reconciled are looked for again.
func (s *session) Reconciler(ctx context.Context, src source.Table) (dest.Writer, error) {
	s.source.set(src)
	if s.seen == nil {
		return nil, errors.New("the destination was not looked at before it is reconciled")
	}
	if s.record.Generation > 1 {
		if err := s.lookAgain(ctx, src, dest.CatchingUp); err != nil {
			return nil, err
		}
	}
	if err := s.startUploads(ctx); err != nil {
		return nil, err
	}
	// Its note is found by a number that no other has: a view has none.
	id := rand.Int64()
	r := &reconciler{
		groupWriter: groupWriter{s: s, role: "reconcile", rows: newRecordRows(s.dest, src)},
		maxOID:      s.record.MaxOID, id: source.Range{From: id, To: id},
	}
	return r, r.connect(ctx)
}

// Write stages a chunk; the last one is committed with all before it.
func (r *reconciler) Write(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	if err := r.fits(c); err != nil {
		return nil, err
	}
	r.rows.start(c, r.s.plan.Options.HistoryPreserving)
	defer r.rows.stop()
	if err := r.s.uploadsFailed(); err != nil {
		return nil, err
	}
	result, err := r.attempt(ctx, c)
	if err == nil {
		if c.EndsTransaction {
			r.s.tellUploads()
		}
		return result, nil
	}
	switch gone := lost(err) || r.conn.IsClosed(); {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case gone && r.sent:
		return r.settle(ctx, err)
	case gone && !isElsewhere(err):
		return nil, r.s.unchanged(err)
	case code(err) != "" && code(err)[:2] == "53":
		return nil, fmt.Errorf("PostgreSQL has run out of a resource: %s; nothing was changed: make room and go on with --incremental", serverMessage(err))
	}
	return nil, r.s.fenced(fmt.Errorf("make %s equal to the source: %w", r.s.dest.Name(), err))
}

// fits refuses numbers that the columns cannot hold.
func (r *reconciler) fits(c *source.Chunk) error {
	for i := range c.Transactions {
		if tid := c.Transactions[i].TID; tid >= zodb.Limit {
			return &dest.RefusedError{Reason: fmt.Sprintf("the source has a transaction with tid %v, which a bigint column cannot hold with room for new ones", tid)}
		}
	}
	for i := range c.Records {
		if oid := c.Records[i].OID; oid >= zodb.Limit {
			return &dest.RefusedError{Reason: fmt.Sprintf("the source has an object with oid %v, which a bigint column cannot hold with room for new ones", oid)}
		}
	}
	return nil
}

func (r *reconciler) attempt(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	clear(r.rows.refused)
	if !r.open {
		fault.Point("reconcile.begin")
		begin := append([]string{
			"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", r.s.tables.Fence(r.s.record, dest.CatchingUp),
			"SET LOCAL synchronous_commit = on", patience,
		}, createDifferences...)
		if err := r.exec(ctx, begin...); err != nil {
			return nil, err
		}
		r.open = true
	}
	if err := r.take(ctx, func() error { return r.stage(ctx, c) }); err != nil {
		return nil, err
	}
	fault.Point("reconcile.copied")
	if c.EndsTransaction {
		if err := r.commit(ctx); err != nil {
			return nil, err
		}
	}
	return r.rows.result, nil
}

// stage copies what a chunk holds.
func (r *reconciler) stage(ctx context.Context, c *source.Chunk) error {
	r.rows.reset()
	if err := r.sparing(ctx, func() error { return r.copyChunk(ctx, c) }); err != nil {
		return err
	}
	r.rows.total()
	r.result.Add(r.rows.result)
	r.maxOID = max(r.maxOID, r.rows.maxOID)
	r.added += int64(len(c.Transactions))
	for i := range c.Transactions {
		if c.Transactions[i].TID > r.s.seen.last {
			r.above++
		}
	}
	return nil
}

func (r *reconciler) copyChunk(ctx context.Context, c *source.Chunk) error {
	copyInto := func(table, columns string, rows int, next func() error) error {
		if rows == 0 {
			return nil
		}
		return r.rows.copy(ctx, r.conn, "COPY "+table+" "+columns+" FROM STDIN (FORMAT binary)", next)
	}
	err := copyInto(r.s.layout.name(transactionLog), "(tid, username, description, extension)", len(c.Transactions), r.rows.transactions())
	if code(err) == "23505" {
		return fmt.Errorf("the source has a transaction that is in the destination already: %s", serverMessage(err))
	}
	if err != nil {
		return err
	}
	if err := copyInto(stageTable, differenceColumns, len(c.Records), r.staged(ctx)); err != nil {
		return err
	}
	if err := copyInto(r.s.tables.Reject, watermark.RejectColumns, len(r.rows.rejects), r.rows.rejected(ctx)); err != nil {
		return err
	}
	if err := copyInto(removedTable, "(zoid, tid)", len(c.Gone), r.removed(c)); err != nil {
		return err
	}
	if err := copyInto(removedLogTable, "(tid)", len(c.GoneTransactions), r.removedLog(c)); err != nil {
		return err
	}
	if err := r.newBlobs(ctx); err != nil {
		return err
	}
	return r.rows.copyBlobs(ctx, r.s, r.conn)
}

// staged gives the rows of the stage.
func (r *reconciler) staged(ctx context.Context) func() error {
	i := 0
	return func() error {
		if i == len(r.rows.chunk.Records) {
			return io.EOF
		}
		index := i
		i++
		return r.stageRecord(ctx, index)
	}
}

func (r *reconciler) stageRecord(ctx context.Context, index int) error {
	rows := &r.rows
	record := &rows.chunk.Records[index]
	rows.maxOID = max(rows.maxOID, int64(record.OID))
	row, size, bad, err := rows.encode(ctx, record, index)
	if err != nil {
		return err
	}
	// Without history every record is the newest of its object.
	current := record.Current || !rows.history
	b := appendBoolean(appendInt16(rows.stream.head, 8), current)
	if row != nil {
		rows.count(row, size, current)
		if isBlob(row) {
			rows.blobs.records = append(rows.blobs.records, index)
		}
		rows.stream.head = appendObjectFields(b, record, row)
		rows.stream.tail = appendObjectTail(rows.stream.tail, size, row.Refs)
		rows.stream.emit(row.State)
		return nil
	}
	switch {
	case bad != nil:
		rows.rejects = append(rows.rejects, *bad)
		rows.result.Rejected++
	case current:
		rows.result.Deleted++
	default:
		rows.result.Revisions++
	}
	b = appendBigint(b, int64(record.OID))
	b = appendBigint(b, int64(record.TID))
	for range 5 {
		b = appendNull(b)
	}
	rows.stream.head = b
	rows.stream.emit(nil)
	return nil
}

// removed gives the keys that go.
func (r *reconciler) removed(c *source.Chunk) func() error {
	i := 0
	return func() error {
		if i == len(c.Gone) {
			return io.EOF
		}
		k := &c.Gone[i]
		i++
		b := appendInt16(r.rows.stream.head, 2)
		b = appendBigint(b, int64(k.OID))
		r.rows.stream.head = appendBigint(b, int64(k.TID))
		r.rows.stream.emit(nil)
		return nil
	}
}

// removedLog gives the transactions that go.
func (r *reconciler) removedLog(c *source.Chunk) func() error {
	i := 0
	return func() error {
		if i == len(c.GoneTransactions) {
			return io.EOF
		}
		b := appendInt16(r.rows.stream.head, 1)
		r.rows.stream.head = appendBigint(b, int64(c.GoneTransactions[i]))
		i++
		r.rows.stream.emit(nil)
		return nil
	}
}

// newBlobs leaves out the blobs whose rows are there: a revision that was current
// and is history now is given once more, and its blob stays where it is. What was
// noted as missing is noted anew.
func (r *reconciler) newBlobs(ctx context.Context) error {
	b := &r.rows.blobs
	if len(b.records) == 0 {
		return nil
	}
	oids, tids := make([]int64, len(b.records)), make([]int64, len(b.records))
	for i, index := range b.records {
		record := &r.rows.chunk.Records[index]
		oids[i], tids[i] = int64(record.OID), int64(record.TID)
	}
	var there []bool
	err := r.conn.QueryRow(ctx, `SELECT array_agg(EXISTS (SELECT FROM `+r.s.layout.name(blobState)+` b WHERE b.zoid = k.oid AND b.tid = k.tid) ORDER BY k.n)
		FROM unnest($1::int8[], $2::int8[]) WITH ORDINALITY k (oid, tid, n)`, oids, tids).Scan(&there)
	if err != nil {
		return fmt.Errorf("look for blobs that are there: %w", err)
	}
	kept := b.records[:0]
	for i, index := range b.records {
		if !there[i] {
			kept = append(kept, index)
		}
	}
	b.records = kept
	tag, err := r.conn.Exec(ctx, `DELETE FROM `+r.s.tables.Missing+` m USING unnest($1::int8[], $2::int8[]) k (oid, tid)
		WHERE m.oid = k.oid AND m.tid = k.tid`, oids, tids)
	if err != nil {
		return fmt.Errorf("note which missing blobs are given again: %w", err)
	}
	r.rows.result.MissingBlobs -= tag.RowsAffected()
	return nil
}

// commit applies what is staged and commits.
func (r *reconciler) commit(ctx context.Context) error {
	applied, err := r.apply(ctx)
	if err != nil {
		return err
	}
	fault.Point("reconcile.applied")
	r.result.Add(applied)
	r.rows.result.Add(applied)
	note, err := r.s.tables.ChunkSQL(watermark.Follow, r.id, r.maxOID, &r.result)
	if err != nil {
		return err
	}
	fault.Point("reconcile.commit")
	r.last, r.sent = r.rows.result, true
	answer := r.conn.PgConn().Exec(ctx, note+"; COMMIT")
	fault.Point("reconcile.sent")
	if err := committed(answer); err != nil {
		return err
	}
	r.committed()
	fault.Point("reconcile.committed")
	return nil
}

func (r *reconciler) committed() {
	r.open, r.sent = false, false
	r.s.opened = false
	r.s.record.MaxOID = max(r.s.record.MaxOID, r.maxOID)
}

// void is how the note of a transaction is marked that will never be committed.
const void = 1

// settle connects again and finds out whether the transaction was committed. Its
// note under a key of its own is what only one of the two can write: where this
// one succeeds, the other never will.
func (r *reconciler) settle(ctx context.Context, cause error) (*dest.Result, error) {
	old := r.conn.PgConn().PID()
	closeQuietly(r.conn)
	instead := r.id
	instead.ToSub = void
	note, err := r.s.tables.ChunkSQL(watermark.Follow, instead, 0, new(dest.Result))
	if err != nil {
		return nil, err
	}
	var mark int64
	err = r.s.withControl(ctx, func(conn *pgx.Conn) error {
		if err := watermark.Terminate(ctx, conn, r.s.record.ID, old); err != nil {
			return err
		}
		err := r.s.fencedTx(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on")
			if err == nil {
				_, err = tx.Exec(ctx, note)
			}
			return err
		})
		if err != nil && code(err) != "23505" {
			return err
		}
		return conn.QueryRow(ctx, `SELECT to_sub FROM `+r.s.tables.Chunk+` WHERE kind = $1::text AND range_from = $2::int8 AND from_sub = $3::int8`,
			string(watermark.Follow), r.id.From, r.id.FromSub).Scan(&mark)
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("the connection to PostgreSQL was lost (%s): %w; go on with --incremental", sentence(cause.Error()), err)
	case mark == void:
		return nil, r.s.unchanged(cause)
	}
	r.committed()
	return r.last, nil
}

// What the statements below ask of a row x of object_state or object_history.
const (
	// replaced: the stage has the object's newest revision.
	replaced = "EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = x.zoid AND n.current AND n.class_mod IS NOT NULL)"
	// gone: the source has no such revision any more.
	gone = "EXISTS (SELECT FROM " + removedTable + " g WHERE g.zoid = x.zoid AND g.tid = x.tid)"
	// outdated: the stage has a newest revision of the object, or that it does not
	// exist any more, and the source still has this one.
	outdated = "EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = x.zoid AND n.tid <> x.tid AND n.current) AND NOT " + gone
	// Rows of the stage that belong to object_state, and those of the history.
	stagedCurrent = stageTable + " r WHERE current AND class_mod IS NOT NULL"
	stagedOlder   = stageTable + " r WHERE NOT current OR class_mod IS NULL"
)

// assignments are those of an upsert.
const assignments = "class_mod = EXCLUDED.class_mod, class_name = EXCLUDED.class_name, state = EXCLUDED.state, state_size = EXCLUDED.state_size, refs = EXCLUDED.refs"

// apply makes the tables what the source is, under the lock that the site takes to
// commit.
func (r *reconciler) apply(ctx context.Context) (*dest.Result, error) {
	result := new(dest.Result)
	err := r.exec(ctx,
		"ANALYZE "+stageTable+" (current, zoid, tid)", "ANALYZE "+removedTable, "ANALYZE "+removedLogTable,
		"SELECT pg_advisory_xact_lock(0)")
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, *dest.Result) error{
		r.alone, r.count, r.forget, r.dropBlobs, r.older, r.current, r.dropTransactions, r.left,
	} {
		if err := step(ctx, result); err != nil {
			return nil, err
		}
	}
	return result, r.exec(ctx, r.s.layout.raiseSequence(r.maxOID))
}

// alone makes sure that nobody has written since Have looked.
func (r *reconciler) alone(ctx context.Context, _ *dest.Result) error {
	var all, above int64
	err := r.conn.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE tid > $1::int8) FROM `+r.s.layout.name(transactionLog), int64(r.s.seen.last)).Scan(&all, &above)
	if err != nil {
		return fmt.Errorf("look for other writers: %w", err)
	}
	want := r.s.seen.transactions + r.added
	if all == want && above == r.above {
		return nil
	}
	return fmt.Errorf("it has changed while it was compared: there are %s instead of %d; nothing was changed by this run: stop the site", count(all, "transaction"), want)
}

// count counts the revisions that go. Without history, one that another one
// replaces does not.
func (r *reconciler) count(ctx context.Context, result *dest.Result) error {
	state, old := r.s.layout.name(objectState), r.s.layout.name(objectHistory)
	sql := "SELECT count(*) FROM " + state + " x WHERE " + gone + " AND NOT " + replaced
	if r.rows.history {
		sql = "SELECT count(*) FROM " + removedTable + " k WHERE EXISTS (SELECT FROM " + state + " x WHERE x.zoid = k.zoid AND x.tid = k.tid) OR EXISTS (SELECT FROM " +
			old + " x WHERE x.zoid = k.zoid AND x.tid = k.tid)"
	}
	if err := r.conn.QueryRow(ctx, sql).Scan(&result.Gone); err != nil {
		return fmt.Errorf("count what the source does not have any more: %w", err)
	}
	return nil
}

// forget removes the rejects of revisions that are not wanted any more.
func (r *reconciler) forget(ctx context.Context, result *dest.Result) error {
	sql := "DELETE FROM " + r.s.tables.Reject + " j WHERE EXISTS (SELECT FROM " + removedTable + " g WHERE g.zoid = j.oid AND g.tid = j.tid)"
	if !r.rows.history {
		sql += " OR EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = j.oid AND n.tid <> j.tid)"
	}
	tag, err := r.conn.Exec(ctx, sql)
	if err != nil {
		return fmt.Errorf("forget the rejects that the source does not have any more: %w", err)
	}
	result.Rejected -= tag.RowsAffected()
	return nil
}

// dropBlobs removes the rows of the blobs of revisions that go, and what is noted
// of them. Without history those go that are replaced, too. The objects in S3 that
// they name are removed after the commit, see SettleBlobs; until then their keys
// are kept.
func (r *reconciler) dropBlobs(ctx context.Context, result *dest.Result) error {
	dropped := func(oid string) string {
		c := "EXISTS (SELECT FROM " + removedTable + " g WHERE g.zoid = b." + oid + " AND g.tid = b.tid)"
		if !r.rows.history {
			c += " OR EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = b." + oid + " AND (n.class_mod IS NULL OR n.tid <> b.tid))"
		}
		return c
	}
	t := r.s.tables
	err := r.exec(ctx,
		// The uploader notes what is done meanwhile. Both lock the owed rows first,
		// in one order, so that they cannot wait for each other.
		"SELECT count(*) FROM (SELECT FROM "+t.Owed+" b WHERE "+dropped("oid")+" ORDER BY oid, tid FOR UPDATE) locked",
		"DELETE FROM "+t.Owed+" b WHERE "+dropped("oid"),
		"WITH old AS (DELETE FROM "+r.s.layout.name(blobState)+" b WHERE "+dropped("zoid")+" RETURNING b.zoid, b.tid, b.s3_key) INSERT INTO "+t.Gone+
			" (oid, tid, key) SELECT zoid, tid, s3_key FROM old WHERE s3_key <> '' ON CONFLICT (oid, tid) DO UPDATE SET key = EXCLUDED.key")
	if err != nil {
		return err
	}
	tag, err := r.conn.Exec(ctx, "DELETE FROM "+t.Missing+" b WHERE "+dropped("oid"))
	if err != nil {
		return fmt.Errorf("note which missing blobs were replaced: %w", err)
	}
	result.MissingBlobs -= tag.RowsAffected()
	return nil
}

// older brings the history up to date, as long as object_state holds what was.
func (r *reconciler) older(ctx context.Context, _ *dest.Result) error {
	if !r.rows.history {
		return nil
	}
	state, old := r.s.layout.name(objectState), r.s.layout.name(objectHistory)
	err := r.exec(ctx,
		"DELETE FROM "+old+" x WHERE "+gone,
		"INSERT INTO "+old+" ("+columnList+") SELECT "+columnList+" FROM "+state+" x WHERE "+outdated+" ON CONFLICT (zoid, tid) DO NOTHING",
		"INSERT INTO "+old+" ("+columnList+") SELECT zoid, tid, coalesce(class_mod, ''), coalesce(class_name, ''), state, "+
			"coalesce(state_size, 0), coalesce(refs, '{}') FROM "+stagedOlder+" ON CONFLICT (zoid, tid) DO UPDATE SET "+assignments,
		// What is current by now was history there.
		"DELETE FROM "+old+" x USING "+stageTable+" n WHERE n.zoid = x.zoid AND n.tid = x.tid AND n.current AND n.class_mod IS NOT NULL")
	if err != nil {
		return err
	}
	if err := r.kept(ctx, state+" x WHERE "+outdated, old); err != nil {
		return err
	}
	return r.kept(ctx, stagedOlder, old)
}

// current makes object_state what the source's newest revisions are.
func (r *reconciler) current(ctx context.Context, _ *dest.Result) error {
	state := r.s.layout.name(objectState)
	err := r.exec(ctx,
		"DELETE FROM "+state+" x WHERE "+gone+" AND NOT "+replaced,
		// An object that does not exist any more, and a revision that is history.
		"DELETE FROM "+state+" x USING "+stageTable+" n WHERE n.zoid = x.zoid AND (n.current AND n.class_mod IS NULL OR NOT n.current AND n.tid = x.tid) AND NOT "+
			replaced,
		"INSERT INTO "+state+" ("+columnList+") SELECT "+columnList+" FROM "+stagedCurrent+" ON CONFLICT (zoid) DO UPDATE SET tid = EXCLUDED.tid, "+assignments)
	if err != nil {
		return err
	}
	return r.kept(ctx, stagedCurrent, state)
}

// dropTransactions removes the transactions that the source has not any more.
func (r *reconciler) dropTransactions(ctx context.Context, result *dest.Result) error {
	tag, err := r.conn.Exec(ctx, "DELETE FROM "+r.s.layout.name(transactionLog)+" t USING "+removedLogTable+" g WHERE g.tid = t.tid")
	if code(err) == "23503" {
		return fmt.Errorf("objects belong to a transaction that the source does not have any more: %s; this is a defect of zodb-convert, please report it", serverMessage(err))
	}
	if err != nil {
		return fmt.Errorf("remove the transactions that the source does not have any more: %w", err)
	}
	result.GoneTransactions = tag.RowsAffected()
	return nil
}

// left makes sure that nothing is left of what was to go: somebody else's trigger
// may have kept a row.
func (r *reconciler) left(ctx context.Context, _ *dest.Result) error {
	of := func(table string) string {
		return "SELECT 1 FROM " + removedTable + " g JOIN " + table + " x ON x.zoid = g.zoid AND x.tid = g.tid"
	}
	sql := "SELECT count(*) FROM (" + of(r.s.layout.name(objectState))
	if r.rows.history {
		sql += " UNION ALL " + of(r.s.layout.name(objectHistory))
	}
	sql += " UNION ALL SELECT 1 FROM " + removedLogTable + " g JOIN " + r.s.layout.name(transactionLog) + " t ON t.tid = g.tid) kept"
	var n int64
	if err := r.conn.QueryRow(ctx, sql).Scan(&n); err != nil {
		return fmt.Errorf("look for rows that were to be removed: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("PostgreSQL has kept %s that were to be removed: a trigger keeps them; disable it for the conversion", count(n, "row"))
	}
	return nil
}
