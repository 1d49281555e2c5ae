package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
)

// worker inspects chunks.
type worker struct {
	*run
	counts  *counts
	encoder *jsonb.Encoder
	refs    *referenceWriter
	scratch []byte // pickles that are not in the chunk
	text    []byte
}

func (r *run) worker() *worker {
	encoder := jsonb.NewEncoder(jsonb.Options{PreserveSharing: r.opts.PreserveSharing})
	return &worker{run: r, counts: newCounts(), refs: r.references.writer(encoder), encoder: encoder}
}

// keepBuffer is up to which size a buffer is kept for the next chunk.
const keepBuffer = 1 << 20

// chunk inspects what a chunk holds.
func (w *worker) chunk(ctx context.Context, c *source.Chunk) error {
	for i := range c.Transactions {
		w.transaction(&c.Transactions[i])
	}
	w.counting.Lock()
	for i := range c.Records {
		w.revisions.add(c.Records[i].OID)
	}
	w.revisions.check()
	w.counting.Unlock()
	for i := range c.Records {
		if err := w.record(ctx, &c.Records[i]); err != nil {
			return err
		}
	}
	if w.counts.crowded() {
		w.handOver()
	}
	w.encoder.Trim()
	if cap(w.scratch) > keepBuffer {
		w.scratch = nil
	}
	return nil
}

// handOver gives what was counted to the sum of all workers: with as many sums of
// classes as workers, memory would grow with both.
func (w *worker) handOver() {
	w.merging.Lock()
	defer w.merging.Unlock()
	w.run.found.merge(w.counts)
	w.counts = newCounts()
}

func (w *worker) transaction(t *source.Transaction) {
	w.counts.hf.Transactions++
	w.counts.hp.Transactions++
	w.counts.logBytes += int64(len(t.User) + len(t.Description) + len(t.Extension))
	if w.escaped(t.User) || w.escaped(t.Description) {
		w.counts.found[causeEscaped].add(uint64(t.TID), 1)
	}
}

// escaped tells whether the destination holds another text.
func (w *worker) escaped(text []byte) (escaped bool) {
	if utf8.Valid(text) && bytes.IndexByte(text, 0) < 0 {
		return false
	}
	w.text, escaped = dest.AppendEscaped(w.text[:0], text)
	return escaped
}

// record inspects a revision.
func (w *worker) record(ctx context.Context, rec *source.Record) error {
	c := w.counts
	if rec.Back != 0 {
		c.back++
	}
	if zrecord.Is(rec.Raw) {
		c.compressed++
	}
	if !rec.Current && (rec.Deleted || !w.opts.HistoryPreserving) {
		c.hp.Revisions++
		return nil
	}
	row, data, rejected, err := w.encode(ctx, rec)
	switch {
	case err != nil && w.broken(err):
		if rec.Current {
			w.refs.addUnread(rec.OID)
		}
		return nil
	case err != nil:
		return err
	case rejected != nil:
		w.reject(rec, rejected, data)
	case row == nil && rec.Current:
		c.deleted++
		c.hf.Deleted++
		c.hp.Deleted++
	case row == nil:
		c.hp.Revisions++
	case rec.Current:
		c.hf.Objects++
		c.hp.Objects++
		return w.current(ctx, rec, row, int64(len(data)))
	default:
		c.hp.Revisions++
		class := w.class(row.Module, row.Name)
		w.forms(rec, row, class, int64(len(data)))
		c.older.weigh(row)
		return w.blob(ctx, rec, row, class, int64(len(data)))
	}
	return nil
}

// encode turns a record into a row, as a conversion does. There is neither a row
// nor a reject for a deletion.
func (w *worker) encode(ctx context.Context, rec *source.Record) (row *jsonb.Row, data []byte, rejected *jsonb.RejectError, err error) {
	if rec.Deleted {
		return nil, nil, nil, nil
	}
	defer func() {
		if p := recover(); p != nil {
			row, err = nil, nil
			rejected = &jsonb.RejectError{Reason: fmt.Sprintf("reading it failed, which is a mistake in this program: %v", p)}
		}
	}()
	data, err = w.src.Data(ctx, rec, &w.scratch)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read oid %v, tid %v: %w", rec.OID, rec.TID, err)
	}
	if data == nil {
		return nil, nil, nil, nil
	}
	w.counts.dataBytes += int64(len(data))
	if rec.Current {
		w.counts.protocols[protocol(data)]++
	}
	if row, err = w.encoder.Encode(data); err != nil {
		rejected, err = asReject(err)
		return nil, data, rejected, err
	}
	return row, data, nil, nil
}

// asReject tells a reject from other errors.
func asReject(err error) (*jsonb.RejectError, error) {
	if rejected := (*jsonb.RejectError)(nil); errors.As(err, &rejected) {
		return rejected, nil
	}
	return nil, err
}

// protocol is that of a record's pickles, which one pickler has written. Before
// protocol 2 nothing names it; the class is stored in the memo then, by an opcode
// of the protocol.
func protocol(record []byte) int {
	if len(record) > 1 && record[0] == 0x80 {
		return min(int(record[1]), protocols-1)
	}
	rest := bytes.TrimLeft(record, "(")
	if len(rest) > 0 && (rest[0] == 'U' || rest[0] == 'T' || rest[0] == 'X') {
		return 1 // the class by its names, as ZODB wrote it once, in opcodes of protocol 1
	}
	for range 2 { // the class: module and name
		line := bytes.IndexByte(rest, '\n')
		if line < 0 {
			return 0
		}
		rest = rest[line+1:]
	}
	if len(rest) > 0 && (rest[0] == 'q' || rest[0] == 'r') {
		return 1
	}
	return 0
}

func (w *worker) reject(rec *source.Record, e *jsonb.RejectError, data []byte) {
	c := w.counts
	c.hp.Rejected++
	class := c.named(e.Class)
	c.find(causeRejected, class, rec, int64(len(data)), 1)
	c.reason(e.Reason)
	if !rec.Current {
		return
	}
	c.hf.Rejected++
	w.object(rec, class, int64(len(data)))
	w.refs.addRejected(rec.OID, e.Class, data)
}

// object counts a current object.
func (w *worker) object(rec *source.Record, class *class, size int64) {
	class.objects++
	class.bytes += size
	w.counts.large(rec, class, size)
}

func (w *worker) class(module, name []byte) *class {
	w.text = append(append(append(w.text[:0], module...), '.'), name...)
	return w.counts.class(w.text)
}

// current inspects the state of an object.
func (w *worker) current(ctx context.Context, rec *source.Record, row *jsonb.Row, size int64) error {
	class := w.class(row.Module, row.Name)
	w.object(rec, class, size)
	if row.Forms[jsonb.Python2Text]+row.Forms[jsonb.Python2Bytes] > 0 {
		w.counts.oldStrings++
	}
	if row.Forms[jsonb.Python2Class] > 0 {
		w.counts.oldClasses++
	}
	w.forms(rec, row, class, size)
	w.counts.states.weigh(row)
	w.refs.add(rec.OID, row, size)
	return w.blob(ctx, rec, row, class, size)
}

// forms counts what is special in a row.
func (w *worker) forms(rec *source.Record, row *jsonb.Row, class *class, size int64) {
	for form, n := range row.Forms {
		if n > 0 {
			w.counts.find(form, class, rec, size, n)
		}
	}
	if row.NewCodec {
		w.counts.find(causeNewCodec, class, rec, size, 1)
	}
}

// blob looks for the bytes of a blob.
func (w *worker) blob(ctx context.Context, rec *source.Record, row *jsonb.Row, class *class, size int64) error {
	if string(row.Module) != "ZODB.blob" || string(row.Name) != "Blob" {
		return nil
	}
	c := w.counts
	if rec.Current {
		c.blobs++
	}
	if w.info.BlobDir == "" {
		c.find(causeMissingBlob, class, rec, size, 1)
		return nil
	}
	blob, err := w.src.Blob(ctx, rec)
	var lost *source.BlobError
	switch {
	case errors.As(err, &lost):
		c.find(causeMissingBlob, class, rec, size, 1)
		return nil
	case err != nil:
		return err
	}
	c.hp.Blobs++
	c.hp.BlobBytes += blob.Size
	if rec.Current {
		c.hf.Blobs++
		c.hf.BlobBytes += blob.Size
	}
	beyond := w.opts.LargestBlob > 0 && blob.Size > w.opts.LargestBlob
	switch {
	case w.opts.S3 && (beyond || blob.Size >= w.opts.BlobThreshold):
		c.s3Bytes += blob.Size
	case beyond:
		c.find(causeBlobTooLarge, class, rec, size, 1)
	default:
		c.inRow += blob.Size
		c.inRowBlobs++
	}
	return nil
}
