package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// DefaultMemory is what a run may take if Options do not say.
const DefaultMemory = 256 << 20

// DefaultChunkBytes is how much of the source one destination transaction
// takes. Below a megabyte the round trips of a transaction show; above four,
// a handful of workers finish too unevenly and memory grows without gain.
const DefaultChunkBytes = 2 << 20

// Run converts src into dst. It takes neither of them over: the caller closes
// both.
//
// The report is never nil and is filled as far as the run came. Errors that a
// caller may want to tell apart: *dest.RefusedError and *source.DamageError
// (nothing was written, or the run can be continued), *dest.RejectedError (all
// is written but records were rejected), context.Canceled (interrupted, the
// run can be continued with Options.Incremental).
func Run(ctx context.Context, src source.Source, dst dest.Destination, opts Options) (*Report, error) {
	if opts.Workers < 1 {
		opts.Workers = 1
	}
	if opts.Memory == 0 {
		opts.Memory = DefaultMemory
	}
	if opts.ChunkBytes == 0 {
		opts.ChunkBytes = DefaultChunkBytes
	}
	if opts.Blobs == "" {
		opts.Blobs = dest.Inline
	}
	r := &run{src: src, dst: dst, opts: opts, events: NewEvents(opts.Progress), report: &Report{Destination: dst.Name(), DryRun: opts.DryRun}}
	err := r.run(ctx)
	r.report.PeakMemory = peakMemory()
	return r.report, err
}

// run is the state of one call of Run.
type run struct {
	src    source.Source
	dst    dest.Destination
	opts   Options
	report *Report
	events *Events

	phaseStart time.Time

	mu    sync.Mutex // guards phase and Report.Notes
	phase Phase
	tally atomic.Pointer[tally] // of the running phase; nil while nothing is written
	// missing are the blobs that an interrupted start did not find.
	missing map[revision]bool
}

func (r *run) run(ctx context.Context) error {
	state, err := r.dst.State(ctx, r.writers())
	if err != nil {
		return err
	}
	r.report.Found = state.Condition
	for _, n := range state.Notes {
		r.note(n)
	}
	if err := r.admit(state); err != nil {
		return err
	}
	if err := r.admitManifest(state); err != nil {
		return err
	}
	var until int64
	if r.continues(state) {
		until = state.Run.Source.End
		r.opts.ChunkBytes = state.Run.Options.ChunkBytes
		r.report.Resumed = true
	}
	info, err := r.scan(ctx, until)
	if err != nil {
		return err
	}
	if r.opts.DryRun {
		defer r.endPhase(info.Bytes)
		return r.dryRun(ctx, info)
	}
	return r.convert(ctx, info)
}

// writers is how many connections are used at a time beside the one that holds the
// run: one worker, too, compares a table through one and writes through another.
func (r *run) writers() int {
	if _, ok := r.src.(source.Table); ok && r.opts.Incremental {
		return max(r.opts.Workers, 2)
	}
	return r.opts.Workers
}

func (r *run) continues(s *dest.State) bool {
	return r.opts.Incremental && s.Condition == dest.Interrupted
}

// admit refuses what the destination's condition and the options do not allow
// together, before the source is read.
func (r *run) admit(s *dest.State) error {
	if r.opts.Incremental || r.opts.Clear || r.opts.DryRun {
		return nil
	}
	switch s.Condition {
	case dest.Interrupted:
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s holds an unfinished conversion that was started %s on %s (pid %d)",
				r.dst.Name(), s.Run.Started.Format(time.DateTime), s.Run.Host, s.Run.PID),
			Hint: "continue it with --incremental, or undo it with --abort",
		}
	case dest.Filled:
		if s.RootOnly {
			return &dest.RefusedError{
				Reason: fmt.Sprintf("%s is not empty: it holds a root object and nothing else, as a site makes one when it is started on a new database", r.dst.Name()),
				Hint:   "stop the site and use --clear to start from an empty database",
			}
		}
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s already holds %d objects in %d transactions", r.dst.Name(), s.Objects, s.Transactions),
			Hint:   "use --incremental to add what is newer in the source, or --clear to empty it first",
		}
	}
	return nil
}

// scan reads the structure of the source and refuses what cannot be converted.
func (r *run) scan(ctx context.Context, until int64) (*source.Info, error) {
	r.startPhase(Scanning, until)
	info, err := r.src.Scan(ctx, source.ScanOptions{
		Until:     until,
		History:   r.dst.HistoryPreserving(),
		MaxSeen:   max(r.opts.Memory-overheadMemory, 1),
		LargeBlob: r.largeBlob(),
		Progress:  r.events.Scanned,
	})
	if err != nil {
		return nil, err
	}
	r.report.Source = *info
	r.endPhase(info.Bytes)
	for _, w := range info.Warnings {
		r.note(w)
	}
	if info.Tail != "" {
		r.note(info.Tail)
	}
	if !info.HasRoot && info.Transactions > 0 {
		r.note("the source has no root object (oid 0): the application will make a new, empty one")
	}
	if now := zodb.TIDAt(time.Now().Add(time.Minute)); info.MaxTID > now {
		r.note(fmt.Sprintf("the highest transaction %v lies in the future (%s): every new commit will get a tid above it",
			info.MaxTID, info.MaxTID.Time().Format(time.DateTime)))
	}
	return info, r.fits(info)
}

// fits refuses a source whose set of seen oids does not fit into the memory.
func (r *run) fits(info *source.Info) error {
	// A set that grows has its old half beside it for a moment.
	need := info.SeenBytes*3/2 + overheadMemory
	if need <= r.opts.Memory {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("the set of the source's %d object ids takes %d MB, which does not fit into the %d MB of --memory",
			info.Objects, info.SeenBytes>>20, r.opts.Memory>>20),
		Hint: fmt.Sprintf("use --memory %dMB or more", need>>20+1),
	}
}

// convert claims the destination and takes the run through the phases that are
// left.
func (r *run) convert(ctx context.Context, info *source.Info) (err error) {
	r.startPhase(Preparing, 0)
	session, err := r.dst.Begin(ctx, &dest.Plan{
		Info:               info,
		Source:             r.src,
		Options:            dest.Options{HistoryPreserving: r.dst.HistoryPreserving(), ChunkBytes: r.opts.ChunkBytes},
		Workers:            r.opts.Workers,
		Tool:               r.opts.Tool,
		Continue:           r.opts.Incremental,
		Clear:              r.opts.Clear,
		AcceptRejects:      r.opts.Rejects != "",
		AcceptMissingBlobs: r.opts.AllowMissingBlobs,
		Blobs:              r.opts.Blobs,
		StagingDir:         r.opts.StagingDir,
		Manifest:           r.opts.Manifest,
		BlobBytes:          r.blobBytes,
		Log: func(s dest.Step) {
			r.events.Send(Event{Kind: StepEvent, Phase: r.current(), Step: s})
		},
		Note: r.note,
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := session.Close(); err == nil && e != nil {
			err = fmt.Errorf("close the run: %w", e)
		}
	}()
	r.report.Totals = session.Run().Totals
	r.endPhase(0)
	if err := r.rememberMissing(ctx, session); err != nil {
		return err
	}

	following := session.Run().Phase == dest.CatchingUp
	if session.Run().Phase == dest.Loading {
		if err := r.load(ctx, session, info); err != nil {
			return err
		}
	}
	if !following {
		r.startPhase(Finishing, 0)
		if err := session.Finish(ctx); err != nil {
			return err
		}
		r.endPhase(0)
	}
	if r.opts.Incremental {
		if err := r.catchUp(ctx, session, info, following); err != nil {
			return err
		}
	}
	if err := r.settleRejects(ctx, session); err != nil {
		return err
	}
	if err := r.settleBlobs(ctx, session); err != nil {
		return err
	}
	if err := session.Complete(ctx); err != nil {
		return err
	}
	return r.lookAgain(ctx)
}

// load writes all chunks that are not done.
func (r *run) load(ctx context.Context, session dest.Session, info *source.Info) error {
	done := session.Run().Done
	earlier := session.Run().Totals.SourceBytes
	r.startPhase(Loading, info.Bytes)
	open := func(ctx context.Context) (dest.Writer, error) { return session.Writer(ctx, r.src) }
	if err := r.share(ctx, info, earlier, done, r.opts.Workers, open); err != nil {
		return err
	}
	err := session.Loaded(ctx, r.src)
	// Uploads in the background go on reading blobs as this view has them.
	if t, ok := r.src.(source.Table); ok && r.opts.Blobs != dest.Background {
		t.Idle()
	}
	r.endPhase(info.Bytes - earlier)
	rejected := (*dest.RejectedError)(nil)
	if err == nil || errors.As(err, &rejected) {
		r.correctTotals(session)
	}
	if rejected != nil {
		return errors.Join(err, r.listFaults(ctx, session))
	}
	return err
}

// dryRun decodes everything and writes nothing. Of missing blobs it tells what
// the scan found. In the end it refuses what a real run refuses at its beginning.
func (r *run) dryRun(ctx context.Context, info *source.Info) error {
	for _, l := range info.FirstMissing {
		r.report.MissingBlobs = append(r.report.MissingBlobs, dest.MissingBlob{OID: l.OID, TID: l.TID, Pos: l.Pos, Path: l.Path, Reason: l.Problem})
	}
	r.startPhase(Loading, info.Bytes)
	err := r.share(ctx, info, 0, nil, r.opts.Workers, func(context.Context) (dest.Writer, error) {
		return r.dst.DryWriter(r.src), nil
	})
	if err != nil {
		return err
	}
	return r.dst.CheckSource(info)
}

// share lets one reader give chunks to the writers until all are written.
//
// The reader takes memory before it reads a chunk; a writer gives it back when
// its transaction is committed. So the budget, not the length of the channel,
// bounds what is in flight.
func (r *run) share(ctx context.Context, info *source.Info, earlier int64, done []source.Range, workers int,
	open func(context.Context) (dest.Writer, error)) error {

	group, ctx := errgroup.WithContext(ctx)
	chunks := make(chan *source.Chunk)
	group.Go(func() error {
		defer close(chunks)
		return r.src.Read(ctx, r.readOptions(info, done), func(c *source.Chunk) error {
			select {
			case chunks <- c:
				return nil
			case <-ctx.Done():
				c.Release()
				return ctx.Err()
			}
		})
	})
	totals := &r.report.Totals
	tally := &tally{run: r, phase: Loading, done: earlier, earlier: earlier, total: info.Bytes,
		blobTotal: max(info.BlobBytes-totals.BlobBytes-totals.S3Bytes, 0)}
	r.tally.Store(tally)
	defer r.tally.Store(nil)
	for range workers {
		group.Go(func() error {
			w, err := open(ctx)
			if err != nil {
				return err
			}
			defer w.Close()
			for c := range chunks {
				if err := tally.write(ctx, w, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (r *run) readOptions(info *source.Info, done []source.Range) source.ReadOptions {
	return source.ReadOptions{
		History:    r.dst.HistoryPreserving(),
		ChunkBytes: r.opts.ChunkBytes,
		Done:       done,
		Budget:     newBudget(inFlight(r.opts.Memory, info.SeenBytes, info.Blobs)),
	}
}

// catchUp writes what the source has and the destination has not.
func (r *run) catchUp(ctx context.Context, session dest.Session, loaded *source.Info, verify bool) error {
	info, err := r.scan(ctx, 0)
	if err != nil {
		return err
	}
	// What came since may be of a kind that the part before was not.
	if err := r.dst.CheckSource(info); err != nil {
		return err
	}
	switch src := r.src.(type) {
	case source.Log:
		return r.follow(ctx, session, src, loaded, info, verify)
	case source.Table:
		return r.reconcile(ctx, session, src, info)
	}
	return fmt.Errorf("%T is neither a log nor a table", r.src)
}

// reconcile compares a table with the destination and makes them equal.
func (r *run) reconcile(ctx context.Context, session dest.Session, src source.Table, info *source.Info) error {
	r.startPhase(CatchingUp, 0) // how many keys there are, the comparison tells
	err := r.compare(ctx, session, src, info)
	r.endPhase(0)
	// By now nothing reads the destination any more.
	if foreign := (*source.ForeignError)(nil); errors.As(err, &foreign) {
		err = session.Foreign(ctx, foreign)
	}
	return r.payAnyway(ctx, session, err)
}

func (r *run) compare(ctx context.Context, session dest.Session, src source.Table, info *source.Info) error {
	have, free, err := session.Have(ctx)
	if err != nil {
		return err
	}
	defer free()
	w, err := session.Reconciler(ctx, src)
	if err != nil {
		return err
	}
	defer w.Close()
	r.correctTotals(session)
	before := r.report.Totals.Transactions
	// The keys that are compared are counted, not the bytes of those that differ.
	tally := &tally{run: r, phase: CatchingUp, total: info.Records, keys: true}
	r.tally.Store(tally)
	defer r.tally.Store(nil)
	err = src.Differences(ctx, have, source.DifferenceOptions{
		ReadOptions: r.readOptions(info, nil),
		Progress:    tally.compared,
	}, func(c *source.Chunk) error {
		return tally.write(ctx, w, c)
	})
	r.report.CaughtUp = r.report.Totals.Transactions - before
	return err
}

// follow writes what came after the part of a log that is loaded. A run that
// loaded in this call knows where that part ends; one that did not asks the
// destination.
func (r *run) follow(ctx context.Context, session dest.Session, src source.Log, loaded, info *source.Info, verify bool) (err error) {
	from := loaded.Identity.End
	if verify {
		if from, err = session.Verify(ctx, src); err != nil {
			return r.payAnyway(ctx, session, err)
		}
		r.correctTotals(session)
	}
	end := info.Identity.End
	if from >= end {
		return nil
	}
	r.startPhase(CatchingUp, end-from)
	w, err := session.Follower(ctx, src)
	if err != nil {
		return err
	}
	defer w.Close()
	before := r.report.Totals.Transactions
	tally := &tally{run: r, phase: CatchingUp, total: end - from, blobTotal: max(info.BlobBytes-loaded.BlobBytes, 0)}
	r.tally.Store(tally)
	defer r.tally.Store(nil)
	err = src.Follow(ctx, from, r.readOptions(info, nil), func(c *source.Chunk) error {
		return tally.write(ctx, w, c)
	})
	r.report.CaughtUp = r.report.Totals.Transactions - before
	r.endPhase(end - from)
	return err
}

// lookAgain tells what the source got since its end was fixed.
func (r *run) lookAgain(ctx context.Context) error {
	growth, err := r.src.Growth(ctx)
	if err != nil {
		// The conversion is complete; a source that cannot be looked at again
		// is no reason to call it failed.
		r.note(fmt.Sprintf("the source could not be looked at again: %v", err))
		return nil
	}
	r.report.Growth = growth
	r.startPhase(Finished, 0)
	return nil
}

func (r *run) startPhase(p Phase, total int64) {
	r.mu.Lock()
	r.phase = p
	r.mu.Unlock()
	r.phaseStart = time.Now()
	r.events.Begin(p, total)
}

func (r *run) endPhase(bytes int64) {
	r.report.Phases = append(r.report.Phases, PhaseTime{Phase: r.phase, Took: time.Since(r.phaseStart), Bytes: bytes})
}

// current is the phase that the run is in.
func (r *run) current() Phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase
}

// note tells the listener and keeps the text for the report. It may be called
// from any goroutine.
func (r *run) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, have := range r.report.Notes {
		if have == text {
			return // a continued run scans twice
		}
	}
	r.report.Notes = append(r.report.Notes, text)
	r.events.Send(Event{Kind: Note, Phase: r.phase, Text: text})
}
