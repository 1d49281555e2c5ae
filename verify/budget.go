package verify

import (
	"context"

	"golang.org/x/sync/semaphore"
)

const (
	// overheadMemory is what the process takes besides chunks and what comparing a
	// record takes: the Go runtime, connections, the buckets.
	overheadMemory = 80 << 20
	// smallRecord is up to which size records are compared side by side; larger
	// ones are compared one at a time, because their graphs take many times their
	// size.
	smallRecord = 128 << 10
	// maxSmallGraphs is what the graphs of a small record and its row may take before
	// they are compared alone, too. With minSmallGraphs nearly none has to.
	maxSmallGraphs, minSmallGraphs = 32 << 20, 8 << 20
	// chunkBytes is how much of the source a worker takes at a time.
	chunkBytes = 1 << 20
)

// inFlight is how many bytes of chunks may be in flight.
func inFlight(memory, seen int64) int64 {
	return max((memory-overheadMemory-seen)/4, 8<<20)
}

// smallGraphs is how much of the memory each worker may use for graphs.
func smallGraphs(memory, seen int64, workers int) int64 {
	return min(max((memory-overheadMemory-seen)/2/int64(workers), minSmallGraphs), maxSmallGraphs)
}

// budget is a weighted semaphore over bytes. A request above the whole waits
// until it is alone.
type budget struct {
	all int64
	sem *semaphore.Weighted
}

func newBudget(n int64) *budget { return &budget{all: n, sem: semaphore.NewWeighted(n)} }

func (b *budget) Acquire(ctx context.Context, n int64) error {
	return b.sem.Acquire(ctx, min(n, b.all))
}

func (b *budget) Release(n int64) { b.sem.Release(min(n, b.all)) }
