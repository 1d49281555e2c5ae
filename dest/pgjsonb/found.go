package pgjsonb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
)

// lookBatch is for how many missing blobs are looked for in one transaction.
const lookBatch = 200

// lookAgain looks once more for the blobs that were missing. Those that are
// there by now get their rows and leave the table of missing ones, in one
// transaction with a correction of the totals.
func (s *session) lookAgain(ctx context.Context, src source.Source, phase dest.Phase) error {
	s.passing = 0
	var missing int64
	err := s.withControl(ctx, func(conn *pgx.Conn) error {
		c, err := s.tables.CountBlobs(ctx, conn)
		missing = c.Missing
		return err
	})
	if err != nil || missing == 0 {
		return err
	}
	w := &writer{s: s, role: "found", rows: newRecordRows(s.dest, src)}
	if err := w.open(ctx); err != nil {
		return err
	}
	defer w.Close()
	var after *source.Record
	for again := false; ; {
		next, err := w.lookBehind(ctx, after, phase)
		switch {
		case err == nil && next == after:
			return s.readTotals(ctx)
		case err == nil:
			after, again = next, false
			continue
		case again || ctx.Err() != nil || !lost(err) && !w.conn.IsClosed():
			return s.fenced(err)
		}
		// What was committed has left the table.
		again = true
		closeQuietly(w.conn)
		if err := w.open(ctx); err != nil {
			return err
		}
	}
}

// readTotals brings the totals of the run up to date.
func (s *session) readTotals(ctx context.Context) error {
	return s.withControl(ctx, func(conn *pgx.Conn) error {
		r, err := s.tables.Read(ctx, conn)
		if err == nil && r != nil && r.ID == s.record.ID {
			s.record.Totals = r.Totals
		}
		return err
	})
}

// lookBehind looks for the next missing blobs behind that of a record and returns
// the last one's.
func (w *writer) lookBehind(ctx context.Context, after *source.Record, phase dest.Phase) (last *source.Record, err error) {
	records, err := w.s.tables.MissingAfter(ctx, w.conn, after, lookBatch)
	if err != nil || len(records) == 0 {
		return after, err
	}
	last = &records[len(records)-1]
	r := &w.rows
	r.start(&source.Chunk{Records: records}, w.s.plan.Options.HistoryPreserving)
	defer r.stop()
	for {
		r.reset()
		for i := range records {
			r.blobs.records = append(r.blobs.records, i)
		}
		if err := r.findBlobs(ctx, w.s.dest); err != nil {
			return after, err
		}
		if len(r.blobs.found) == 0 {
			w.s.passing += r.blobs.gone()
			return last, nil
		}
		err := w.writeFound(ctx, phase)
		if err == nil {
			w.s.passing += r.blobs.gone()
			return last, nil
		}
		if !w.conn.IsClosed() && w.conn.PgConn().TxStatus() != 'I' {
			_ = w.exec(context.WithoutCancel(ctx), "ROLLBACK")
		}
		r.blobs.takeBack(w.s.plan.BlobBytes)
		again, e := r.unreadableBlob(ctx, err)
		if err = errors.Join(err, e); !again {
			return after, err
		}
	}
}

// writeFound writes the rows of the blobs that were found, and anew those of the
// others: why they are missing may have changed.
func (w *writer) writeFound(ctx context.Context, phase dest.Phase) error {
	r, s := &w.rows, w.s
	n := len(r.chunk.Records)
	positions, oids, tids := make([]int64, n), make([]int64, n), make([]int64, n)
	for i := range r.chunk.Records {
		record := &r.chunk.Records[i]
		positions[i], oids[i], tids[i] = record.Pos, int64(record.OID), int64(record.TID)
	}
	// Nothing looks for them once more: what is found must not be forgotten.
	if err := w.exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on; "+s.tables.Fence(s.record, phase)); err != nil {
		return err
	}
	tag, err := w.conn.Exec(ctx, `DELETE FROM `+s.tables.Missing+` m USING unnest($1::int8[], $2::int8[], $3::int8[]) d (pos, oid, tid)
		WHERE m.pos = d.pos AND m.oid = d.oid AND m.tid = d.tid`, positions, oids, tids)
	if err != nil {
		return fmt.Errorf("note which blobs were found: %w", err)
	}
	if err := r.copyBlobs(ctx, s, w.conn); err != nil {
		return err
	}
	r.result.MissingBlobs -= tag.RowsAffected()
	correction, err := s.tables.CorrectionSQL(r.result)
	if err != nil {
		return err
	}
	fault.Point("blob.found")
	if err := committed(w.conn.PgConn().Exec(ctx, correction+"; COMMIT")); err != nil {
		return err
	}
	fault.Point("blob.added")
	s.tellUploads()
	return nil
}
