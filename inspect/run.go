package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// overheadMemory is what the process takes besides what grows with the source:
	// the Go runtime, connections, the counts of each class.
	overheadMemory = 64 << 20
	// workerMemory is what one takes besides its chunk: a block of references, what
	// it has counted, and the buffers of its encoder.
	workerMemory = 1 << 20
	// chunkBytes is how much of the source a worker takes at a time.
	chunkBytes = 1 << 20
)

// run is the state of one call of Run.
type run struct {
	src    source.Source
	opts   Options
	report *Report
	info   *source.Info

	// revisions counts those of each object, references what they refer to.
	counting   sync.Mutex
	revisions  *revisions
	references *references

	// found is what workers have handed over.
	merging sync.Mutex
	found   *counts

	// damage is the first record whose data is damaged, of so many.
	damage struct {
		sync.Mutex
		first   *source.DamageError
		records int64
	}

	events *pipeline.Events
}

func (r *run) run(ctx context.Context) (err error) {
	damaged, err := r.scan(ctx)
	if err != nil {
		return err
	}
	r.describe()
	r.fitWorkers()
	r.revisions = newRevisions(r.share())
	if r.references, err = newReferences(referenceOptions{
		Reachability: r.opts.Reachability, TempDir: r.opts.TempDir, Memory: r.share(), Raise: r.raise, Objects: r.info.Objects,
		Announce: func(n int64) {
			r.events.Send(pipeline.Event{Kind: pipeline.Note,
				Text: fmt.Sprintf("the references between objects take about %d MB in %s meanwhile; --no-reachability does without", n>>20+1, r.opts.TempDir)})
		},
	}); err != nil {
		return err
	}
	defer func() {
		if bad := r.references.Close(); bad != nil {
			r.note(bad.Error())
		}
	}()
	r.events.Begin(pipeline.Inspecting, r.info.Bytes)
	began := time.Now()
	found, err := r.read(ctx)
	if found != nil {
		r.conclude(found)
	}
	if err != nil {
		return err
	}
	more, err := r.references.findings(ctx)
	if err != nil {
		return err
	}
	r.report.Notable = append(r.report.Notable, more...)
	r.report.Notes = append(r.report.Notes, r.references.notes()...)
	if damaged != nil {
		return damaged
	}
	if r.damage.first != nil {
		return r.damage.first
	}
	r.report.Estimate = r.estimate(found, time.Since(began))
	return nil
}

// scan reads the structure of the source. Of a damaged one, what stands before
// the damage is scanned once more, to be read; damaged is the damage then.
func (r *run) scan(ctx context.Context) (damaged *source.DamageError, err error) {
	info, err := r.scanUntil(ctx, 0)
	if errors.As(err, &damaged) {
		r.report.Source.Name = damaged.Path
		if damaged.Until == 0 {
			return nil, err
		}
		if info, err = r.scanUntil(ctx, damaged.Until); ctx.Err() != nil {
			return nil, ctx.Err() // the damage would hide that nothing was counted
		} else if err != nil {
			return nil, errors.Join(damaged, err)
		}
		r.note(fmt.Sprintf("everything is about the part of the source before the damage: %d transactions; more may stand behind it", info.Transactions))
	}
	if err != nil {
		return nil, err
	}
	r.info = info
	if need := info.SeenBytes*3/2 + overheadMemory; need > r.opts.Memory {
		return damaged, &dest.RefusedError{
			Reason: fmt.Sprintf("the set of the source's %d object ids takes %d MB, which does not fit into the %d MB of --memory",
				info.Objects, info.SeenBytes>>20, r.opts.Memory>>20),
			Hint: fmt.Sprintf("use --memory %dMB or more", need>>20+1),
		}
	}
	return damaged, nil
}

func (r *run) scanUntil(ctx context.Context, until int64) (*source.Info, error) {
	r.events.Begin(pipeline.Scanning, until)
	return r.src.Scan(ctx, source.ScanOptions{
		Until: until, History: true, MaxSeen: max(r.opts.Memory-overheadMemory, 1),
		Progress: r.events.Scanned,
	})
}

// share is a quarter of the memory that is left beside the set of oids: for
// chunks, for the counts of revisions, for references. The last quarter is what
// the garbage collector lets the heap grow by.
func (r *run) share() int64 { return max(r.spare()/shares, 8<<20) }

// raise is by how much the memory has to grow for a share of need.
func (r *run) raise(need int64) int64 { return shares*need - r.spare() }

const shares = 4

// spare is the memory that is left for them.
func (r *run) spare() int64 { return r.opts.Memory - overheadMemory - r.info.SeenBytes*3/2 }

// read lets the workers share the chunks of the source.
func (r *run) read(ctx context.Context) (*counts, error) {
	group, ctx := errgroup.WithContext(ctx)
	chunks := make(chan *source.Chunk)
	group.Go(func() error {
		defer close(chunks)
		return r.src.Read(ctx, source.ReadOptions{History: true, ChunkBytes: chunkBytes, Budget: pipeline.NewBudget(r.share())}, func(c *source.Chunk) error {
			select {
			case chunks <- c:
				return nil
			case <-ctx.Done():
				c.Release()
				return ctx.Err()
			}
		})
	})
	r.found = newCounts()
	workers := make([]*worker, r.opts.Workers)
	for i := range workers {
		w := r.worker()
		workers[i] = w
		group.Go(func() error {
			for c := range chunks {
				err := w.chunk(ctx, c)
				r.events.Read(c.Bytes, int64(len(c.Records)))
				c.Release()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	for _, w := range workers {
		w.handOver()
	}
	return r.found, err
}

// fitWorkers lets no more workers decode than the memory is enough for. What chunks
// take comes from a budget that all share.
func (r *run) fitWorkers() {
	if n := int(max(r.share()/workerMemory, 1)); n < r.opts.Workers {
		r.note(fmt.Sprintf("%s decoded, not the %d of --workers: more do not fit into --memory; raise it by %d MB for these",
			progress.Plural(int64(n), "worker"), r.opts.Workers, r.raise(int64(r.opts.Workers)*workerMemory)>>20+1))
		r.opts.Workers = n
	}
}

// broken notes a record whose data is damaged, and lets the inspection go on.
func (r *run) broken(err error) bool {
	damage := (*source.DamageError)(nil)
	if !errors.As(err, &damage) {
		return false
	}
	r.damage.Lock()
	defer r.damage.Unlock()
	if r.damage.records++; r.damage.first == nil || cmp.Or(cmp.Compare(damage.Pos, r.damage.first.Pos), strings.Compare(damage.Problem, r.damage.first.Problem)) < 0 {
		r.damage.first = damage
	}
	return true
}

func (r *run) note(text string) { r.report.Notes = append(r.report.Notes, text) }

// describe fills in what the scan has found.
func (r *run) describe() {
	info, s := r.info, &r.report.Source
	s.Name, s.Kind, s.Bytes = info.Identity.Name, info.Identity.Kind, info.Bytes
	s.Transactions, s.Records, s.Objects = info.Transactions, info.Records, info.Objects
	if info.Transactions > 0 {
		s.First, s.FirstTime = info.FirstTID.String(), info.FirstTID.Time()
		s.Last, s.LastTime = info.LastTID.String(), info.LastTID.Time()
	}
	if info.Records > 0 {
		s.HighestOID = info.MaxOID.String()
	}
	s.Python2, s.Tail, s.Falling = info.Python2, info.Tail, info.FallingTIDs
	switch {
	case info.Packed > 0:
		s.Packed, s.PackedTIDs = "yes", info.Packed
	case info.Packed == 0 && info.Transactions > 0:
		s.Packed = "no"
	}
	s.Blobs = Blobs{Place: info.BlobDir, Records: info.Blobs}
	if info.BlobDir != "" {
		s.Blobs.Bytes, s.Blobs.Missing, s.Blobs.Orphaned = info.BlobBytes, info.MissingBlobs, info.OrphanBlobs
		s.Blobs.Found = info.Blobs - info.MissingBlobs
	}
	for _, w := range info.Warnings {
		r.note(w)
	}
	if now := zodb.TIDAt(time.Now().Add(time.Minute)); info.MaxTID > now {
		r.note(fmt.Sprintf("the highest transaction %v lies in the future (%s): every new commit will get a tid above it",
			info.MaxTID, info.MaxTID.Time().Format(time.DateTime)))
	}
}
