package pipeline

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// tally counts what the writers of a phase have done.
type tally struct {
	run            *run
	phase          Phase
	earlier, total int64
	blobTotal      int64
	keys           bool // done and total are keys, not bytes

	mu    sync.Mutex
	done  int64
	blobs atomic.Int64
	told  atomic.Int64 // nanoseconds since 1970 of the last event for blobs
}

// blobEvery is how often blobs are told of. They come in pieces, thousands of
// them a second, and from every goroutine that moves some.
const blobEvery = 100 * time.Millisecond

func (t *tally) write(ctx context.Context, w dest.Writer, c *source.Chunk) error {
	bytes := c.Bytes
	result, err := w.Write(ctx, c)
	c.Release()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.keys {
		t.done += bytes
	}
	t.run.report.Totals.Add(result)
	if t.run.opts.Blobs == dest.Deferred && t.run.report.Source.Fileless == ([64]source.BlobCount{}) {
		// Nothing else will tell of them; those that are staged are told of as they
		// are written.
		t.blobs.Add(result.S3Bytes)
	}
	t.tell()
	return nil
}

// compared is told how many keys are.
func (t *tally) compared(done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done, t.total = done, total
	t.tell()
}

// tell is called with the lock held.
func (t *tally) tell() {
	totals := &t.run.report.Totals
	t.run.events.Send(Event{
		Kind: Progress, Phase: t.phase,
		Done: t.done, Total: t.total, Keys: t.keys, Earlier: t.earlier,
		Objects: totals.Objects + totals.Revisions, Rejected: totals.Rejected,
		BlobBytes: t.blobs.Load(), BlobTotal: t.blobTotal,
	})
}

// blob counts bytes of a blob. Mostly that is one addition.
func (t *tally) blob(n int64) {
	t.blobs.Add(n)
	last, now := t.told.Load(), time.Now().UnixNano()
	if now-last < int64(blobEvery) || !t.told.CompareAndSwap(last, now) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
}

// blobBytes is told by the destination. Uploads in the background also go on
// while nothing is written; the phase of uploads counts those.
func (r *run) blobBytes(n int64) {
	if t := r.tally.Load(); t != nil {
		t.blob(n)
	}
}
