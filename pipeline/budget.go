package pipeline

import (
	"context"

	"golang.org/x/sync/semaphore"

	"github.com/zodb-convert/zodb-convert/source"
)

// overheadMemory is what a process takes besides the chunks in flight and the
// sets of oids: the Go runtime, connection buffers, and what the decoders of a
// few workers keep between records. Measured at 40 to 60 MB with 8 workers.
const overheadMemory = 64 << 20

// blobMemory is what uploads to S3 take, whatever the number and the size of
// the blobs (package s3blob); streaming them to PostgreSQL takes less.
const blobMemory = 32 << 20

// inFlight is how many bytes of chunks may be in flight within a memory of
// total bytes when the set of seen oids takes seen bytes and the source has so
// many blobs. Half of what is left
// after the fixed part goes to chunks, because the garbage collector lets the
// heap grow before it collects.
func inFlight(total, seen, blobs int64) int64 {
	if blobs > 0 {
		seen += blobMemory
	}
	return max((total-overheadMemory-seen)/2, 8<<20)
}

// budget is a weighted semaphore over bytes. A request above the whole waits
// until it is alone and then takes everything.
type budget struct {
	all int64
	sem *semaphore.Weighted
}

func newBudget(n int64) *budget {
	return &budget{all: n, sem: semaphore.NewWeighted(n)}
}

func (b *budget) Acquire(ctx context.Context, n int64) error {
	return b.sem.Acquire(ctx, min(n, b.all))
}

func (b *budget) Release(n int64) { b.sem.Release(min(n, b.all)) }

// NewBudget returns a budget of n bytes for whoever reads a source by itself.
func NewBudget(n int64) source.Budget { return newBudget(n) }
