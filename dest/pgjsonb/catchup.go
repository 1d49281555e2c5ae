package pgjsonb

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// stageTable takes the records of a group of chunks before they replace rows. A
// record without class is a deletion or a reject.
const stageTable = "pg_temp.zodb_convert_stage"

const stageColumns = "(seq, zoid, tid, class_mod, class_name, state, state_size, refs)"

// follower writes what came after the load, oldest first. A group of chunks
// that ends with a transaction is one transaction of PostgreSQL, so that at any
// moment the destination is the source as it was at some earlier time. Its
// commits wait for the disk: what is acknowledged is never written again.
type follower struct {
	groupWriter

	// The open group.
	open   bool
	chunks int
	from   int64
	seq    int64
	above  int64 // transactions with a tid above last
	result dest.Result
	maxOID int64
	// last is the highest tid that is committed; maxTID that of the group.
	last, maxTID zodb.TID
}

// Follower opens the writer that catches up.
func (s *session) Follower(ctx context.Context, src source.Log) (dest.Writer, error) {
	s.source.set(src)
	if err := s.startUploads(ctx); err != nil {
		return nil, err
	}
	f := &follower{groupWriter: groupWriter{s: s, role: "follow", rows: newRecordRows(s.dest, src)}, maxOID: s.record.MaxOID}
	if err := f.connect(ctx); err != nil {
		return nil, err
	}
	var last *int64
	if err := f.conn.QueryRow(ctx, `SELECT max(tid) FROM `+s.layout.name(transactionLog)).Scan(&last); err != nil {
		f.Close()
		return nil, fmt.Errorf("find the last transaction: %w", err)
	}
	if last != nil {
		f.last = zodb.TID(*last)
	}
	if f.last != s.upTo {
		f.Close()
		return nil, fmt.Errorf("%s has got the transaction %v since it was loaded or compared; stop the site", s.dest.Name(), f.last)
	}
	return f, nil
}

// createStage makes the stage, in each transaction anew: behind a pooler the
// next one may be another session's.
const createStage = `CREATE TEMPORARY TABLE zodb_convert_stage (seq bigint, zoid bigint, tid bigint, class_mod text,
	class_name text, state jsonb, state_size integer, refs bigint[]) ON COMMIT DROP`

// Write stages a chunk, and commits if a transaction of the source ends with it.
func (f *follower) Write(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	if err := f.fits(c); err != nil {
		return nil, err
	}
	f.rows.start(c, f.s.plan.Options.HistoryPreserving)
	defer f.rows.stop()
	for {
		if err := f.s.uploadsFailed(); err != nil {
			return nil, err
		}
		result, err := f.attempt(ctx, c)
		if err == nil {
			f.s.tellUploads()
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !lost(err) && !f.conn.IsClosed() {
			return nil, f.s.fenced(stopped(c, err))
		}
		if f.chunks > 1 {
			// Earlier chunks of the group are gone with the connection, and their
			// memory is the source's again.
			return nil, fmt.Errorf("the connection to PostgreSQL was lost within a transaction of the source (%s); go on with --incremental", sentence(err.Error()))
		}
		result, err = f.settle(ctx, c, err)
		if result != nil || err != nil {
			return result, err
		}
	}
}

// fits refuses numbers that the columns cannot hold, and a history without
// order.
func (f *follower) fits(c *source.Chunk) error {
	highest := f.last
	if f.open {
		highest = max(highest, f.maxTID)
	}
	for i := range c.Transactions {
		t := &c.Transactions[i]
		if t.TID <= highest && f.s.plan.Options.HistoryPreserving {
			return &dest.RefusedError{
				Reason: fmt.Sprintf("the tids of the source fall: transaction %v at %d stands behind %v, so its history has no order", t.TID, t.Pos, highest),
				Hint:   "convert it without history, or pack it first",
			}
		}
		highest = max(highest, t.TID)
		if t.TID >= zodb.Limit {
			return &dest.RefusedError{Reason: fmt.Sprintf("the source has a transaction with tid %v at %d, which a bigint column cannot hold with room for new ones", t.TID, t.Pos)}
		}
	}
	for i := range c.Records {
		if r := &c.Records[i]; r.OID >= zodb.Limit {
			return &dest.RefusedError{Reason: fmt.Sprintf("the source has an object with oid %v at %d, which a bigint column cannot hold with room for new ones", r.OID, r.Pos)}
		}
	}
	return nil
}

// settle connects again and finds out whether the group was committed.
func (f *follower) settle(ctx context.Context, c *source.Chunk, cause error) (*dest.Result, error) {
	old := f.conn.PgConn().PID()
	closeQuietly(f.conn)
	f.open = false
	if err := f.connect(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the connection to PostgreSQL was lost (%s): %w; go on with --incremental", sentence(cause.Error()), err)
	}
	if err := watermark.Terminate(ctx, f.conn, f.s.record.ID, old); err != nil && !lost(err) {
		return nil, err
	}
	if err := f.s.withControl(ctx, func(conn *pgx.Conn) error { return conn.Ping(ctx) }); err != nil {
		return nil, err
	}
	result, err := f.s.tables.ChunkResult(ctx, f.conn, watermark.Follow, c.Range)
	if lost(err) {
		return nil, nil
	}
	if err != nil {
		return nil, f.s.fenced(err)
	}
	if result != nil {
		f.committed()
	}
	return result, nil
}

func (f *follower) committed() {
	f.open = false
	f.last = max(f.last, f.maxTID)
	f.s.record.MaxOID = max(f.s.record.MaxOID, f.maxOID)
}

func (f *follower) attempt(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	clear(f.rows.refused)
	if !f.open {
		fault.Point("follow.begin")
		f.chunks, f.from, f.seq, f.above = 0, c.Range.From, 0, 0
		f.result, f.maxTID = dest.Result{}, 0
		if err := f.exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", f.s.tables.Fence(f.s.record, dest.CatchingUp), "SET LOCAL synchronous_commit = on", createStage); err != nil {
			return nil, err
		}
		f.open = true
	}
	f.chunks++
	if err := f.take(ctx, func() error { return f.stage(ctx, c) }); err != nil {
		return nil, err
	}
	fault.Point("follow.copied")
	if !c.EndsTransaction {
		return f.rows.result, nil
	}
	return f.rows.result, f.commit(ctx, source.Range{From: f.from, To: c.Range.To})
}

// stage copies a chunk's transactions, records, rejects and blobs.
func (f *follower) stage(ctx context.Context, c *source.Chunk) error {
	r, seq := &f.rows, f.seq
	r.reset()
	if err := f.sparing(ctx, func() error { return f.copyChunk(ctx, c) }); err != nil {
		f.seq = seq
		return err
	}
	r.total()
	f.result.Add(r.result)
	f.maxOID = max(f.maxOID, r.maxOID)
	for i := range c.Transactions {
		tid := c.Transactions[i].TID
		if tid > f.last {
			f.above++
		}
		f.maxTID = max(f.maxTID, tid)
	}
	return nil
}

func (f *follower) copyChunk(ctx context.Context, c *source.Chunk) error {
	r, l, seq := &f.rows, f.s.layout, f.seq
	if len(c.Transactions) > 0 {
		err := r.copy(ctx, f.conn, "COPY "+l.name(transactionLog)+" (tid, username, description, extension) FROM STDIN (FORMAT binary)", r.transactions())
		if code(err) == "23505" {
			return fmt.Errorf("the source has a transaction that is in the destination already: %s", serverMessage(err))
		}
		if err != nil {
			return err
		}
	}
	if err := r.copy(ctx, f.conn, "COPY "+stageTable+" "+stageColumns+" FROM STDIN (FORMAT binary)", f.staged(ctx)); err != nil {
		return err
	}
	if len(r.rejects) > 0 {
		if err := r.copy(ctx, f.conn, "COPY "+f.s.tables.Reject+" "+watermark.RejectColumns+" FROM STDIN (FORMAT binary)", r.rejected(ctx)); err != nil {
			return err
		}
	}
	if f.chunks > 1 {
		if err := f.exec(ctx, f.again(seq)...); err != nil {
			return err
		}
	}
	return r.copyBlobs(ctx, f.s, f.conn)
}

// again removes what earlier chunks of the group have written for blobs of which
// this one, that begins with seq, has a later record of the same transaction.
func (f *follower) again(seq int64) []string {
	same := func(table, oid string) string {
		return fmt.Sprintf("DELETE FROM %s b USING %s n WHERE b.%s = n.zoid AND b.tid = n.tid AND n.seq >= %d", table, stageTable, oid, seq)
	}
	return []string{same(f.s.layout.name(blobState), "zoid"), same(f.s.tables.Owed, "oid"), same(f.s.tables.Missing, "oid")}
}

// revision is what there is one row for.
type revision struct {
	oid zodb.OID
	tid zodb.TID // 0 where there is no history
}

// staged gives the rows of the stage: of several records for one row the last.
func (f *follower) staged(ctx context.Context) func() error {
	r := &f.rows
	newest := make(map[zodb.OID]int, len(r.chunk.Records))
	last := make(map[revision]int, len(r.chunk.Records))
	for i := range r.chunk.Records {
		record := &r.chunk.Records[i]
		newest[record.OID] = i
		last[f.revision(record)] = i
	}
	i := 0
	return func() error {
		for i < len(r.chunk.Records) {
			index := i
			i++
			record := &r.chunk.Records[index]
			if later := last[f.revision(record)]; later != index {
				if r.chunk.Records[later].TID == record.TID {
					r.result.Dropped++
				} else {
					r.result.Superseded++
				}
				continue
			}
			return f.stageRecord(ctx, index, newest[record.OID] == index)
		}
		return io.EOF
	}
}

func (f *follower) revision(record *source.Record) revision {
	if !f.rows.history {
		return revision{oid: record.OID}
	}
	return revision{record.OID, record.TID}
}

func (f *follower) stageRecord(ctx context.Context, index int, newest bool) error {
	r := &f.rows
	record := &r.chunk.Records[index]
	r.maxOID = max(r.maxOID, int64(record.OID))
	row, size, bad, err := r.encode(ctx, record, index)
	if err != nil {
		return err
	}
	b := appendBigint(appendInt16(r.stream.head, 8), f.seq)
	f.seq++
	if row != nil {
		r.count(row, size, newest)
		if isBlob(row) {
			r.blobs.records = append(r.blobs.records, index)
		}
		r.stream.head = appendObjectFields(b, record, row)
		r.stream.tail = appendObjectTail(r.stream.tail, size, row.Refs)
		r.stream.emit(row.State)
		return nil
	}
	switch {
	case bad != nil:
		r.rejects = append(r.rejects, *bad)
		r.result.Rejected++
	case newest:
		r.result.Deleted++
	default:
		r.result.Revisions++
	}
	b = appendBigint(b, int64(record.OID))
	b = appendBigint(b, int64(record.TID))
	for range 5 {
		b = appendNull(b)
	}
	r.stream.head = b
	r.stream.emit(nil)
	return nil
}

// commit applies the group and commits.
func (f *follower) commit(ctx context.Context, group source.Range) error {
	if err := f.apply(ctx); err != nil {
		return err
	}
	fault.Point("follow.applied")
	note, err := f.s.tables.ChunkSQL(watermark.Follow, group, f.maxOID, &f.result)
	if err != nil {
		return err
	}
	fault.Point("follow.commit")
	answer := f.conn.PgConn().Exec(ctx, note+"; COMMIT")
	fault.Point("follow.sent")
	if err := committed(answer); err != nil {
		return err
	}
	f.committed()
	fault.Point("follow.committed")
	return nil
}

// apply replaces rows by the staged ones, under the lock that the site takes
// to commit.
func (f *follower) apply(ctx context.Context) error {
	statements := []string{
		"ANALYZE " + stageTable + " (seq, zoid, tid)",
		"SELECT pg_advisory_xact_lock(0)",
	}
	if err := f.exec(ctx, statements...); err != nil {
		return err
	}
	if err := f.alone(ctx); err != nil {
		return err
	}
	state, old := f.s.layout.name(objectState), f.s.layout.name(objectHistory)
	if f.rows.history {
		if err := f.exec(ctx, f.older()...); err != nil {
			return err
		}
		// What is current now, and what becomes neither current nor is dropped,
		// must stand in the history before it is replaced.
		if err := f.kept(ctx, state+" r WHERE zoid IN (SELECT zoid FROM "+stageTable+")", old); err != nil {
			return err
		}
		if err := f.kept(ctx, stageTable+" r WHERE class_mod IS NULL OR "+superseded, old); err != nil {
			return err
		}
	}
	if !f.rows.history {
		if err := f.dropBlobs(ctx); err != nil {
			return err
		}
	}
	if err := f.exec(ctx, append(f.current(), f.s.layout.raiseSequence(f.maxOID))...); err != nil {
		return err
	}
	return f.kept(ctx, newestStaged+" r WHERE class_mod IS NOT NULL", state)
}

// alone makes sure that the site has not written meanwhile.
func (f *follower) alone(ctx context.Context) error {
	var n int64
	err := f.conn.QueryRow(ctx, `SELECT count(*) FROM `+f.s.layout.name(transactionLog)+` WHERE tid > $1::int8`, int64(f.last)).Scan(&n)
	if err != nil {
		return fmt.Errorf("look for other writers: %w", err)
	}
	if n != f.above {
		return fmt.Errorf("%s has changed while it was caught up: it has %s more than the source gave; stop the site", f.s.dest.Name(), count(n-f.above, "transaction"))
	}
	return nil
}

// dropBlobs removes, where there is no history, the rows of the blobs that are
// replaced or deleted, and what is noted of them. The objects in S3 that they
// name are removed after the commit, see SettleBlobs; until then their keys are
// kept.
func (f *follower) dropBlobs(ctx context.Context) error {
	old := func(table, oid string) string {
		return "DELETE FROM " + table + " b USING " + newestStaged + " n WHERE b." + oid + " = n.zoid AND (n.class_mod IS NULL OR b.tid <> n.tid)"
	}
	t := f.s.tables
	err := f.exec(ctx,
		// The uploader notes what is done meanwhile. Both lock the owed rows first,
		// in one order, so that they cannot wait for each other.
		"SELECT count(*) FROM (SELECT FROM "+t.Owed+" b WHERE EXISTS (SELECT FROM "+stageTable+" n WHERE n.zoid = b.oid) ORDER BY oid, tid FOR UPDATE) locked",
		old(t.Owed, "oid"),
		"WITH old AS ("+old(f.s.layout.name(blobState), "zoid")+" RETURNING b.zoid, b.tid, b.s3_key) INSERT INTO "+t.Gone+
			" (oid, tid, key) SELECT zoid, tid, s3_key FROM old WHERE s3_key <> '' ON CONFLICT (oid, tid) DO UPDATE SET key = EXCLUDED.key")
	if err != nil {
		return err
	}
	tag, err := f.conn.Exec(ctx, old(t.Missing, "oid"))
	if err != nil {
		return fmt.Errorf("note which missing blobs were replaced: %w", err)
	}
	f.result.MissingBlobs -= tag.RowsAffected()
	return nil
}

const (
	columnList = "zoid, tid, class_mod, class_name, state, state_size, refs"
	// newestStaged are the staged rows that become current. Rows of one oid that
	// several chunks of a group staged differ in seq.
	newestStaged = "(SELECT DISTINCT ON (zoid) * FROM " + stageTable + " ORDER BY zoid, seq DESC)"
)

// superseded is a staged row r that another one of the group replaces.
const superseded = "EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = r.zoid AND n.seq > r.seq)"

// current replaces the rows of object_state.
func (f *follower) current() []string {
	state := f.s.layout.name(objectState)
	return []string{
		"DELETE FROM " + state + " o USING " + newestStaged + " n WHERE o.zoid = n.zoid AND n.class_mod IS NULL",
		"INSERT INTO " + state + " (" + columnList + ") SELECT " + columnList + " FROM " + newestStaged + " n WHERE class_mod IS NOT NULL " +
			"ON CONFLICT (zoid) DO UPDATE SET tid = EXCLUDED.tid, class_mod = EXCLUDED.class_mod, class_name = EXCLUDED.class_name, " +
			"state = EXCLUDED.state, state_size = EXCLUDED.state_size, refs = EXCLUDED.refs",
	}
}

// older adds to object_history what is about to be replaced, and what the group
// itself replaces or deletes.
func (f *follower) older() []string {
	state, old := f.s.layout.name(objectState), f.s.layout.name(objectHistory)
	return []string{
		// Of several records of one oid in one transaction the last counts.
		"DELETE FROM " + stageTable + " a USING " + stageTable + " b WHERE a.zoid = b.zoid AND a.tid = b.tid AND a.seq < b.seq",
		"INSERT INTO " + old + " (" + columnList + ") SELECT " + columnList + " FROM " + state +
			" WHERE zoid IN (SELECT zoid FROM " + stageTable + ") ON CONFLICT (zoid, tid) DO NOTHING",
		"INSERT INTO " + old + " (" + columnList + ") SELECT zoid, tid, coalesce(class_mod, ''), coalesce(class_name, ''), state, " +
			"coalesce(state_size, 0), coalesce(refs, '{}') FROM " + stageTable + " r WHERE class_mod IS NULL OR " + superseded +
			" ON CONFLICT (zoid, tid) DO NOTHING",
	}
}
