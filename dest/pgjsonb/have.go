package pgjsonb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// fetchRows is how many keys are read from a cursor at once.
const fetchRows = 10_000

// What stands where a key was found, in the order in which one key has several.
const (
	inState   = 1
	inHistory = 2
	inRejects = 3
)

// held is what the destination held when Have looked at it.
type held struct {
	transactions int64
	last         zodb.TID
}

// holdings reads what the destination holds through cursors of one transaction,
// which all see the same state. The two sequences take turns on its connection.
type holdings struct {
	s   *session
	ctx context.Context // that of Have: a sequence has none

	mu   sync.Mutex // held for one fetch, never while a key is handed out
	conn *pgx.Conn
}

// Have gives what is there to Table.Differences.
func (s *session) Have(ctx context.Context) (*source.Have, func(), error) {
	conn, err := s.dest.connect.reopen(ctx, s.application("have"), s.dest.config.Wait)
	if err != nil {
		return nil, nil, s.dest.plain(err)
	}
	h := &holdings{s: s, ctx: ctx, conn: conn}
	if err := h.begin(ctx); err != nil {
		h.close()
		return nil, nil, err
	}
	return &source.Have{Transactions: h.transactions, Keys: h.keys}, h.close, nil
}

// patience lets the server wait for the next statement of a transaction as long
// as it takes, whatever is set for the role. Behind a pooler, what a session has
// set may be another one's. Not every release knows all of them.
const patience = `SELECT set_config(name, '0', true) FROM pg_catalog.pg_settings
	WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout') AND setting <> '0'`

// begin takes the view and opens the cursors in it.
func (h *holdings) begin(ctx context.Context) error {
	s, log := h.s, h.s.layout.name(transactionLog)
	keys := fmt.Sprintf("SELECT zoid, tid, %d::int2 AS place FROM %s", inState, s.layout.name(objectState))
	if s.plan.Options.HistoryPreserving {
		keys += fmt.Sprintf(" UNION ALL SELECT zoid, tid, %d::int2 FROM %s", inHistory, s.layout.name(objectHistory))
	}
	keys += fmt.Sprintf(" UNION ALL SELECT oid, tid, %d::int2 FROM %s", inRejects, s.tables.Reject)
	_, err := h.conn.PgConn().Exec(ctx, strings.Join([]string{
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", patience,
		"SET LOCAL cursor_tuple_fraction = 1", // all of them are read
		"DECLARE zodb_convert_tids NO SCROLL CURSOR FOR SELECT tid FROM " + log + " ORDER BY tid",
		"DECLARE zodb_convert_keys NO SCROLL CURSOR FOR " + keys + " ORDER BY zoid, tid, place",
	}, "; ")).ReadAll()
	if err != nil {
		return s.unchanged(fmt.Errorf("look at what the destination holds: %w", err))
	}
	var seen held
	var last int64
	if err := h.conn.QueryRow(ctx, `SELECT count(*), coalesce(max(tid), 0) FROM `+log).Scan(&seen.transactions, &last); err != nil {
		return s.unchanged(fmt.Errorf("look at what the destination holds: %w", err))
	}
	seen.last = zodb.TID(last)
	s.seen = &seen
	if err := s.untouched(&seen); err != nil || !s.plan.Info.Undescribed {
		return err
	}
	return h.undescribed(ctx, log)
}

// undescribed refuses a database with transactions that cannot be the source's. A
// site gives nearly all of its own a user or a description; what came from the
// source and is gone there has none.
func (h *holdings) undescribed(ctx context.Context, log string) error {
	var n, first int64
	err := h.conn.QueryRow(ctx, `SELECT count(*), coalesce(min(tid), 0) FROM `+log+` WHERE username <> '' OR description <> ''`).Scan(&n, &first)
	if err != nil {
		return h.s.unchanged(fmt.Errorf("look at what the destination holds: %w", err))
	}
	if n == 0 {
		return nil
	}
	return &source.ForeignError{TID: zodb.TID(first), Problem: fmt.Sprintf("has %s with a user or a description (the first is %v), which the source does not keep: somebody else has written to it",
		count(n, "transaction"), zodb.TID(first))}
}

// untouched refuses a database that somebody else has written to since this run
// loaded it. A tid alone would not tell: those of the source may have gone on
// beyond it.
func (s *session) untouched(seen *held) error {
	t := &s.record.Totals
	written := t.Transactions - t.GoneTransactions
	if !s.bare.Loads || seen.transactions == written {
		return nil
	}
	return &source.ForeignError{Problem: fmt.Sprintf("has %s, of which this conversion has written %d: a site has written to it, or packed it, since",
		count(seen.transactions, "transaction"), written)}
}

// unchanged gives the loss of a connection before anything was committed its
// sentence.
func (s *session) unchanged(err error) error {
	if !lost(err) {
		return s.fenced(err)
	}
	return fmt.Errorf("the connection to PostgreSQL was lost while %s was compared with the source (%s); nothing was changed by that: go on with --incremental",
		s.dest.Name(), sentence(err.Error()))
}

func (h *holdings) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	closeQuietly(h.conn)
	h.conn = nil
}

// entry is a row of a cursor: tid alone, or oid, tid and place.
type entry struct {
	first, second int64
	place         int16
}

// fetch reads the next rows of a cursor into batch. None are left if it is empty.
func (h *holdings) fetch(cursor string, batch []entry) ([]entry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	batch = batch[:0]
	if h.conn == nil {
		return nil, errors.New("what the destination holds is read after it was let go")
	}
	binaryFormat := []int16{1}
	rows := h.conn.PgConn().ExecParams(h.ctx, fmt.Sprintf("FETCH %d FROM %s", fetchRows, cursor), nil, nil, nil, binaryFormat)
	for rows.NextRow() {
		v := rows.Values()
		e := entry{first: int64(binary.BigEndian.Uint64(v[0]))}
		if len(v) == 3 {
			e.second, e.place = int64(binary.BigEndian.Uint64(v[1])), int16(binary.BigEndian.Uint16(v[2]))
		}
		batch = append(batch, e)
	}
	if _, err := rows.Close(); err != nil {
		if h.ctx.Err() != nil {
			return nil, h.ctx.Err()
		}
		return nil, h.s.unchanged(fmt.Errorf("read what the destination holds: %w", err))
	}
	return batch, nil
}

// each calls fn for every row of a cursor until it returns false.
func (h *holdings) each(cursor string, fn func(entry) bool) error {
	batch := make([]entry, 0, fetchRows)
	for {
		var err error
		if batch, err = h.fetch(cursor, batch); err != nil || len(batch) == 0 {
			return err
		}
		for _, e := range batch {
			if !fn(e) {
				return nil
			}
		}
	}
}

func (h *holdings) transactions(yield func(zodb.TID, error) bool) {
	stopped := false
	err := h.each("zodb_convert_tids", func(e entry) bool {
		stopped = !yield(zodb.TID(e.first), nil)
		return !stopped
	})
	if err != nil && !stopped {
		yield(0, err)
	}
}

// keys gives each key once: a reject has a row in the history, too, and nothing
// but good manners keeps others from writing a current row there.
func (h *holdings) keys(yield func(source.Key, error) bool) {
	var last source.Key
	some, stopped := false, false
	err := h.each("zodb_convert_keys", func(e entry) bool {
		k := source.Key{OID: zodb.OID(e.first), TID: zodb.TID(e.second), Current: e.place == inState, Rejected: e.place == inRejects}
		if some && k.OID == last.OID && k.TID == last.TID {
			last.Rejected = last.Rejected || k.Rejected
			return true
		}
		if some && !yield(last, nil) {
			stopped = true
			return false
		}
		last, some = k, true
		return true
	})
	switch {
	case stopped:
	case err != nil:
		yield(source.Key{}, err)
	case some:
		yield(last, nil)
	}
}

// Foreign is what a run is told whose destination holds what the source cannot
// have given. One that has only compared has changed nothing, so that nothing is
// left to go on with.
func (s *session) Foreign(ctx context.Context, e *source.ForeignError) error {
	refused := &dest.RefusedError{
		Reason: s.dest.Name() + " " + e.Problem,
		Hint:   "it cannot be made equal to the source; converting again with --clear would destroy what a site has written to it",
		Cause:  e,
	}
	if !s.opened {
		return refused
	}
	return errors.Join(refused, s.Complete(ctx))
}
