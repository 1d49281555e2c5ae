package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// rowBatch is how many keys are looked up at a time.
const rowBatch = 2000

// worker compares chunks.
type worker struct {
	*run
	reader  dest.ContentReader
	judge   jsonb.Judge
	encoder *jsonb.Encoder // tells which records a conversion rejects
	scratch []byte
	tids    []zodb.TID
	keys    []source.Key
	marks   []mark
	blobs   []blobPair
	counts  Result // of the batch
}

// mark is what is known of a record.
type mark uint8

const (
	foundState    mark = 1 << iota // its object has a row of state, of whatever tid
	foundRevision                  // it has a row of history
	changed                        // a site has changed the object since
	settled                        // nothing of it is missing
	skipped                        // it is not to be compared
)

func (r *run) worker(ctx context.Context) (*worker, error) {
	reader, err := r.content.Reader(ctx)
	if err != nil {
		return nil, err
	}
	return &worker{run: r, reader: reader, judge: jsonb.Judge{MaxMemory: smallGraphs(r.opts.Memory, r.info.SeenBytes, r.opts.Workers)}, encoder: jsonb.NewEncoder(jsonb.Options{})}, nil
}

func (w *worker) close() { _ = w.reader.Close() }

// chunk compares what a chunk holds.
func (w *worker) chunk(ctx context.Context, c *source.Chunk) error {
	if err := w.compareTransactions(ctx, c.Transactions); err != nil {
		return err
	}
	for from := 0; from < len(c.Records); from += rowBatch {
		if err := w.compareRecords(ctx, c.Records[from:min(from+rowBatch, len(c.Records))]); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) compareTransactions(ctx context.Context, all []source.Transaction) error {
	for len(all) > 0 {
		batch := all[:min(len(all), tidBatch)]
		all = all[len(batch):]
		w.tids = w.tids[:0]
		for i := range batch {
			w.tids = append(w.tids, batch[i].TID)
		}
		found := make([]int, len(batch))
		err := w.reader.Transactions(ctx, w.tids, func(i int, row *dest.TransactionRow) error {
			if row.TID < w.opts.Since {
				found[i]++
				return nil
			}
			w.transactions.add(uint64(row.TID), row.TID)
			if found[i]++; found[i] > 1 {
				return w.tally.differ(Difference{Kind: DuplicateRow, TID: row.TID.String(), tid: row.TID, Path: "transaction_log", Reason: "the transaction has several rows"})
			}
			return w.compareTransaction(&batch[i], row)
		})
		if err != nil {
			return err
		}
		compared := int64(0)
		for i := range batch {
			switch t := &batch[i]; {
			case t.TID < w.opts.Since || t.TID > w.common:
			case found[i] == 0:
				if err := w.tally.differ(Difference{Kind: MissingTransaction, TID: t.TID.String(), tid: t.TID,
					Source: "by user " + short(t.User) + ": " + short(t.Description)}); err != nil {
					return err
				}
				fallthrough
			default:
				compared++
			}
		}
		w.tally.count(func(r *Result) { r.Transactions += compared })
	}
	return nil
}

// compareRecords compares records with their rows.
func (w *worker) compareRecords(ctx context.Context, records []source.Record) error {
	w.keys, w.blobs = w.keys[:0], w.blobs[:0]
	w.marks = append(w.marks[:0], make([]mark, len(records))...)
	var index []int // of the records that are looked up
	for i := range records {
		rec := &records[i]
		if !w.wanted(rec.OID, rec.TID) {
			w.marks[i] |= skipped
			continue
		}
		index = append(index, i)
		w.keys = append(w.keys, source.Key{OID: rec.OID, TID: rec.TID, Current: w.isCurrent(rec)})
	}
	err := w.reader.Rows(ctx, w.keys, func(i int, row *dest.Row) error {
		return w.compareRow(ctx, &records[index[i]], &w.marks[index[i]], row)
	})
	if err == nil && w.ahead() && w.content.HistoryPreserving() {
		err = w.compareReplaced(ctx, records)
	}
	if err != nil {
		return err
	}
	for i := range records {
		if err := w.settle(ctx, &records[i], w.marks[i]); err != nil {
			return err
		}
	}
	w.tally.count(func(r *Result) {
		r.Records += w.counts.Records
		r.Deleted += w.counts.Deleted
		r.LeftOut += w.counts.LeftOut
		r.NotConvertedRecords += w.counts.NotConvertedRecords
	})
	w.counts = Result{}
	return w.compareBlobs(ctx)
}

// compareReplaced compares revisions that are in no row of history because what
// has replaced them in the source is not converted yet: they are the state there.
func (w *worker) compareReplaced(ctx context.Context, records []source.Record) error {
	w.keys = w.keys[:0]
	var index []int
	for i := range records {
		if rec := &records[i]; w.marks[i]&(skipped|foundRevision) == 0 && !rec.Current && rec.TID <= w.common {
			index = append(index, i)
			w.keys = append(w.keys, source.Key{OID: rec.OID, TID: rec.TID, Current: true})
		}
	}
	if len(index) == 0 {
		return nil
	}
	return w.reader.Rows(ctx, w.keys, func(i int, row *dest.Row) error {
		rec, m := &records[index[i]], &w.marks[index[i]]
		if !row.Key.Current || row.Key.TID != rec.TID || *m&foundRevision != 0 {
			return nil // the newest record of the object has accounted for it
		}
		*m |= foundRevision
		return w.compareState(ctx, rec, m, row)
	})
}

// compareRow compares a record with one of its rows.
func (w *worker) compareRow(ctx context.Context, rec *source.Record, m *mark, row *dest.Row) error {
	if w.site(row.Key.TID) {
		if *m&foundState == 0 {
			*m |= foundState | changed
			w.tally.count(func(r *Result) { r.SiteChanged++ })
		}
		return nil
	}
	sum, bit, table := &w.states, foundState, "object_state"
	if !row.Key.Current {
		sum, bit, table = &w.revisions, foundRevision, "object_history"
	}
	if row.Key.TID >= w.opts.Since {
		sum.add(uint64(row.Key.OID), row.Key.TID)
	}
	if *m&bit != 0 {
		return w.tally.differ(w.difference(DuplicateRow, rec, row, Difference{Path: table, Reason: "it has several rows"}))
	}
	*m |= bit
	if rec.TID > w.common {
		if row.Key.TID <= w.common {
			return nil // not yet converted: the row is an older one
		}
		return w.tally.differ(w.difference(OtherTID, rec, row, Difference{Path: "tid", Source: rec.TID.String(), Destination: row.Key.TID.String(),
			Reason: "there is no such transaction in the destination"}))
	}
	return w.compareState(ctx, rec, m, row)
}

// compareState compares a record with a row that has to be its own.
func (w *worker) compareState(ctx context.Context, rec *source.Record, m *mark, row *dest.Row) error {
	table := "object_state"
	if !row.Key.Current {
		table = "object_history"
	}
	data, failed, err := w.data(ctx, rec, &w.scratch)
	switch {
	case err != nil:
		return err
	case failed != "" && row.State == nil:
		*m |= settled
		return w.tally.declare(w.difference(Rejected, rec, row, Difference{Reason: failed}))
	case failed != "":
		return w.tally.differ(w.difference(NotCompared, rec, row, Difference{Reason: failed}))
	case data == nil && row.Key.Current:
		return w.tally.differ(w.difference(NotDeleted, rec, row, Difference{Source: "deleted by " + rec.TID.String(), Destination: "there since " + row.Key.TID.String()}))
	case data == nil && row.State != nil:
		return w.tally.differ(w.difference(NotDeleted, rec, row, Difference{Path: table, Source: "a deletion", Destination: "a state"}))
	case data == nil:
		return nil
	case row.Key.TID != rec.TID:
		return w.tally.differ(w.difference(OtherTID, rec, row, Difference{Path: "tid", Source: rec.TID.String(), Destination: row.Key.TID.String()}))
	case row.State == nil:
		if reason, class := w.rejects(data); reason != "" {
			*m |= settled
			return w.tally.declare(w.difference(Rejected, rec, row, Difference{Class: class, Reason: reason}))
		}
	}
	if !row.Key.Current && w.isCurrent(rec) && *m&changed == 0 {
		// Storages before 1.15 kept the newest revision in both tables.
		if err := w.tally.declare(w.difference(HistoryOverlap, rec, row, Difference{})); err != nil {
			return err
		}
	}
	return w.compareValue(rec, row, data)
}

// compareValue lets the judge speak.
func (w *worker) compareValue(rec *source.Record, row *dest.Row, data []byte) error {
	v := w.verdict(data, &jsonb.Stored{Module: row.Module, Name: row.Name, State: row.State, Refs: row.Refs})
	d := Difference{Path: v.Path, Source: v.Source, Destination: v.Stored}
	if v.Err != nil {
		d.Reason = v.Err.Error()
	}
	switch v.Outcome {
	case jsonb.Same:
	case jsonb.Deviating:
		for _, form := range v.Deviations {
			if err := w.tally.declare(w.difference(form.String(), rec, row, Difference{})); err != nil {
				return err
			}
		}
	case jsonb.Unknown:
		return w.tally.differ(w.difference(NotCompared, rec, row, d))
	default:
		kind := map[string]string{"class": OtherClass, "refs": OtherRefs, "unreadable": Unreadable}[v.What]
		if kind == "" {
			kind = OtherValue
		}
		return w.tally.differ(w.difference(kind, rec, row, d))
	}
	if row.Size != int64(len(data)) {
		return w.tally.differ(w.difference(OtherSize, rec, row, Difference{Path: "state_size",
			Source: fmt.Sprint(len(data)), Destination: fmt.Sprint(row.Size)}))
	}
	return nil
}

// verdict compares small records side by side and large ones one at a time.
func (w *worker) verdict(data []byte, row *jsonb.Stored) jsonb.Verdict {
	if len(data) <= smallRecord && len(row.State) <= 4*smallRecord {
		if v := w.judge.Compare(data, row); v.Outcome != jsonb.Unknown {
			return v
		}
	}
	w.large.Lock()
	defer w.large.Unlock()
	alone := jsonb.Judge{}
	return alone.Compare(data, row)
}

// data gives the pickles of a record. failed is not empty if this program fails on
// them, for which a conversion rejects the record.
func (r *run) data(ctx context.Context, rec *source.Record, scratch *[]byte) (data []byte, failed string, err error) {
	defer func() {
		if p := recover(); p != nil {
			data, failed, err = nil, fmt.Sprintf("reading it failed, which is a mistake in this program: %v", p), nil
		}
	}()
	data, err = r.src.Data(ctx, rec, scratch)
	return data, "", err
}

// difference fills in what a difference says of a record and its row.
func (w *worker) difference(kind string, rec *source.Record, row *dest.Row, d Difference) Difference {
	d.Kind, d.OID, d.TID, d.oid, d.tid = kind, rec.OID.String(), rec.TID.String(), rec.OID, rec.TID
	if row != nil && d.Class == "" {
		d.Class = strings.Trim(string(row.Module)+"."+string(row.Name), ".")
	}
	return d
}

// rejects tells why a conversion does not store a record, "" if it does.
func (w *worker) rejects(data []byte) (reason, class string) {
	var e *jsonb.RejectError
	if _, err := w.encoder.Encode(data); errors.As(err, &e) {
		return e.Reason, e.Class
	}
	return "", ""
}

// settle looks at what is missing, after all rows of a record were seen, and
// notes its blob.
func (w *worker) settle(ctx context.Context, rec *source.Record, m mark) error {
	if m&skipped != 0 {
		w.counts.LeftOut++
		return nil
	}
	if rec.TID > w.common {
		w.counts.NotConvertedRecords++
		return nil
	}
	data, failed, err := w.data(ctx, rec, &w.scratch)
	if err != nil {
		return err
	}
	w.counts.Records++
	if failed == "" && data == nil {
		w.counts.Deleted++
	}
	history := w.content.HistoryPreserving()
	there := m&foundState != 0 && w.isCurrent(rec)
	if history && (!w.isCurrent(rec) || data == nil || m&changed != 0) {
		there = m&foundRevision != 0
	}
	switch {
	case there || m&settled != 0:
	case failed != "":
		if err := w.tally.declare(w.difference(Rejected, rec, nil, Difference{Reason: failed})); err != nil {
			return err
		}
	case data != nil || history:
		if err := w.missing(rec, data, m); err != nil {
			return err
		}
	}
	if data != nil && blobclass.Is(data) && (m&changed == 0 || history) {
		w.blobs = append(w.blobs, blobPair{rec: rec})
	}
	return nil
}

// missing is a record without a row.
func (w *worker) missing(rec *source.Record, data []byte, m mark) error {
	d := w.difference(MissingObject, rec, nil, Difference{})
	if w.content.HistoryPreserving() && (!w.isCurrent(rec) || m&foundState != 0 || data == nil) {
		d.Kind = MissingRevision
	}
	if data == nil {
		d.Source = "a deletion"
		return w.tally.differ(d)
	}
	reason, class := w.rejects(data)
	if reason != "" {
		d.Kind, d.Reason, d.Class = Rejected, reason, class
		return w.tally.declare(d)
	}
	module, name := w.judge.Class(data)
	d.Class = strings.Trim(module+"."+name, ".")
	return w.tally.differ(d)
}
