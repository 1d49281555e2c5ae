package verify

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Readers is how many readers of a destination Run wants for so many workers.
func Readers(workers int) int { return max(workers, 1) + 1 }

// Run compares src with what a destination holds, which was opened for
// Readers(opts.Workers). It takes neither of them over.
//
// The result is never nil. An error means that they could not be compared;
// differences are no error.
func Run(ctx context.Context, src source.Source, content dest.Content, opts Options) (*Result, error) {
	opts.Workers = max(opts.Workers, 1)
	if opts.Memory == 0 {
		opts.Memory = DefaultMemory
	}
	r := &run{src: src, content: content, opts: opts, events: pipeline.NewEvents(opts.Progress), result: &Result{HistoryPreserving: content.HistoryPreserving()}, otherKeys: map[string]bool{}}
	r.tally = newTally(r.result, &opts)
	err := r.run(ctx)
	r.tally.finish()
	return r.result, err
}

// run is the state of one call of Run.
type run struct {
	src     source.Source
	content dest.Content
	opts    Options
	result  *Result
	tally   *tally
	reader  dest.ContentReader // for what no worker does
	info    *source.Info

	// common is the highest tid that both sides have, last the highest of the
	// destination. What is above common there, and is not above last, a site has
	// written.
	common, last zodb.TID
	log          bool // the source is a Log, which is read up to common

	// What the workers have found in the destination.
	states, revisions, blobs, transactions buckets

	// otherKeys are those by which rows name objects in S3 that are not the blob's own.
	otherKeys map[string]bool

	// large lets one large record be compared at a time.
	large sync.Mutex

	// given counts what the source has given or left out, to compare it with what the
	// scan has found.
	given struct{ records, transactions atomic.Int64 }

	events *pipeline.Events
}

func (r *run) run(ctx context.Context) (err error) {
	if r.reader, err = r.content.Reader(ctx); err != nil {
		return err
	}
	defer r.reader.Close()
	if err := r.align(ctx); err != nil {
		return err
	}
	highest := r.info.MaxOID
	if r.ahead() {
		highest = 0 // it may be that of an object that is not converted yet
	}
	faults, err := r.content.Schema(ctx, highest)
	if err != nil {
		return err
	}
	for _, f := range faults {
		if err := r.tally.differ(Difference{Kind: SchemaFault, Path: f.Kind + " " + f.Name, Reason: f.Kind + " " + f.Name + " " + f.Problem}); err != nil {
			return err
		}
	}
	r.events.Begin(pipeline.Comparing, r.info.Bytes)
	if err := r.compare(ctx); err != nil {
		return err
	}
	if r.result.LeftOut > 0 && r.result.Records == 0 {
		r.result.Notes = append(r.result.Notes, "no object was compared: all are left out")
	}
	if err := r.extra(ctx); err != nil {
		return err
	}
	return r.listObjects(ctx)
}

// site tells whether a row of the destination is one that a site has written
// since the conversion.
func (r *run) site(tid zodb.TID) bool { return tid > r.common && tid <= r.last }

// ahead tells whether the source is a Table that has changed since: what it has
// above common is left out, and with it what it does not have any more.
func (r *run) ahead() bool { return !r.log && r.result.NotConverted > 0 }

// align finds out up to where both sides can be compared.
func (r *run) align(ctx context.Context) (err error) {
	if r.info, err = r.scan(ctx, 0); err != nil {
		return err
	}
	r.result.Source = r.info.Identity.Name
	if r.info.Blobs > 0 && r.info.BlobDir == "" {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s has %d blob records, and it is not said where their files are", r.info.Identity.Name, r.info.Blobs),
			Hint:   "name the blob directory: blob-dir in [source]",
		}
	}
	if r.last, err = r.content.LastTID(ctx); err != nil {
		return err
	}
	_, r.log = r.src.(source.Log)
	if r.last == r.info.MaxTID && len(r.info.Falling) == 0 {
		r.common = r.last
		return nil
	}
	end, err := r.findCommon(ctx)
	if err != nil {
		return err
	}
	if r.common == 0 && (r.last != 0 || r.info.Transactions > 0) {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("the destination has no transaction of %s", r.info.Identity.Name),
			Hint:   "nothing was converted into it, it was converted from another source, or a site has packed away all that came from it",
		}
	}
	if !r.log {
		return nil
	}
	if end < r.info.Identity.End {
		if r.info, err = r.scan(ctx, end); err != nil {
			return err
		}
	}
	// All that is left has to be there, also a transaction whose tid is above that
	// of the last one.
	r.common = r.info.MaxTID
	return nil
}

func (r *run) scan(ctx context.Context, until int64) (*source.Info, error) {
	r.events.Begin(pipeline.Scanning, until)
	info, err := r.src.Scan(ctx, source.ScanOptions{
		Until: until, History: r.content.HistoryPreserving(), MaxSeen: max(r.opts.Memory-overheadMemory, 1),
		Progress: r.events.Scanned,
	})
	if err != nil {
		return nil, err
	}
	if need := info.SeenBytes*3/2 + overheadMemory; need > r.opts.Memory {
		return nil, &dest.RefusedError{
			Reason: fmt.Sprintf("the set of the source's %d object ids takes %d MB, which does not fit into the %d MB of --memory",
				info.Objects, info.SeenBytes>>20, r.opts.Memory>>20),
			Hint: fmt.Sprintf("use --memory %dMB or more", need>>20+1),
		}
	}
	return info, nil
}

// tidBatch is how many transactions are looked up at a time.
const tidBatch = 5000

// findCommon finds the last transaction of the source that the destination has,
// sets common, and counts those behind it. end is where it ends, in a Log.
func (r *run) findCommon(ctx context.Context) (end int64, err error) {
	type header struct {
		tid zodb.TID
		end int64
	}
	var batch []header
	var tids []zodb.TID
	var above int64 // since the last that was found, or above the highest
	flush := func() error {
		found := make([]bool, len(batch))
		err := r.reader.Transactions(ctx, tids, func(i int, _ *dest.TransactionRow) error {
			found[i] = true
			return nil
		})
		for i, h := range batch {
			switch {
			case found[i] && (r.log || h.tid > r.common):
				r.common, end, above = max(r.common, h.tid), h.end, 0
			case found[i]:
			default:
				above++
			}
		}
		batch, tids = batch[:0], tids[:0]
		return err
	}
	err = r.src.Transactions(ctx, func(t *source.Transaction) error {
		batch, tids = append(batch, header{t.TID, t.End}), append(tids, t.TID)
		if len(batch) == tidBatch {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	r.result.NotConverted = above
	return end, err
}

// compare lets the workers share the chunks of the source.
func (r *run) compare(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	chunks := make(chan *source.Chunk)
	group.Go(func() error {
		defer close(chunks)
		return r.read(ctx, func(c *source.Chunk) error {
			r.given.records.Add(int64(len(c.Records)) + c.Superseded + c.Dropped)
			r.given.transactions.Add(int64(len(c.Transactions)))
			select {
			case chunks <- c:
				return nil
			case <-ctx.Done():
				c.Release()
				return ctx.Err()
			}
		})
	})
	var without atomic.Int64 // workers that got no connection
	for range r.opts.Workers {
		group.Go(func() error {
			w, err := r.worker(ctx)
			if err != nil {
				return r.spare(ctx, &without, err)
			}
			defer w.close()
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
	if err := group.Wait(); err != nil {
		return err
	}
	return r.whole()
}

// whole makes sure that the source has given all that it has: what it keeps back
// neither a conversion nor a comparison can miss.
func (r *run) whole() error {
	for _, n := range []struct {
		what        string
		given, want int64
	}{
		{"transaction", r.given.transactions.Load(), r.info.Transactions},
		{"record", r.given.records.Load(), r.info.Records},
	} {
		if n.given != n.want {
			return fmt.Errorf("%s has %d %ss, and %d were read: this is a mistake in this program or a source that has changed", r.info.Identity.Name, n.want, n.what, n.given)
		}
	}
	return nil
}

// spare is what becomes of a worker that got no connection: a server or a pooler
// may have no room for all of them, and the others do the work as well.
func (r *run) spare(ctx context.Context, without *atomic.Int64, err error) error {
	n := without.Add(1)
	if ctx.Err() != nil || n == int64(r.opts.Workers) {
		return err
	}
	if n == 1 {
		r.events.Send(pipeline.Event{Kind: pipeline.Note, Text: "comparing with fewer workers than were asked for: " + err.Error()})
	}
	return nil
}

func (r *run) read(ctx context.Context, emit func(*source.Chunk) error) error {
	return r.src.Read(ctx, source.ReadOptions{
		History: r.content.HistoryPreserving(), ChunkBytes: chunkBytes,
		Budget: newBudget(inFlight(r.opts.Memory, r.info.SeenBytes)),
	}, emit)
}

// wanted tells whether a revision is among what is compared.
func (r *run) wanted(oid zodb.OID, tid zodb.TID) bool {
	return tid >= r.opts.Since && inSample(oid, r.opts.Percent)
}

// extra finds what the destination has and no record of the source has led to.
func (r *run) extra(ctx context.Context) error {
	states, revisions := new(buckets), new(buckets)
	siteRows := int64(0)
	err := r.content.Keys(ctx, func(k source.Key) error {
		switch {
		case !r.wanted(k.OID, k.TID):
		case r.site(k.TID):
			siteRows++
		case k.Current:
			states.add(uint64(k.OID), k.TID)
		default:
			revisions.add(uint64(k.OID), k.TID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.result.SiteRows = siteRows
	blobs := new(buckets)
	err = r.content.Blobs(ctx, func(b *dest.BlobRow) error {
		if b.S3Key != "" && b.S3Key != objectKey(b.Key.OID, b.Key.TID) && len(r.otherKeys) < maxOtherKeys {
			r.otherKeys[b.S3Key] = true
		}
		if r.wanted(b.Key.OID, b.Key.TID) && !r.site(b.Key.TID) {
			blobs.add(uint64(b.Key.OID), b.Key.TID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	e := extras{run: r, states: r.states.differing(states), revisions: r.revisions.differing(revisions), blobs: r.blobs.differing(blobs)}
	if err := e.name(ctx); err != nil {
		return err
	}
	if err := r.named("object_state and object_history", r.states.above(states)+r.revisions.above(revisions), e.named); err != nil {
		return err
	}
	return r.extraTransactions(ctx)
}

// named makes sure that each row that no record has led to was named.
func (r *run) named(where string, above, named int64) error {
	if named >= above {
		return nil
	}
	return r.tally.differ(Difference{Kind: NotCompared, Path: where,
		Reason: fmt.Sprintf("%d rows belong to records of the source and were not found by them: this is a mistake in this program", above-named)})
}

// extras names rows that are too much.
type extras struct {
	*run
	states, revisions, blobs map[int]bool
	named                    int64 // rows of objects
}

// knownKeys bounds how many keys of the source are held at a time.
func (r *run) knownKeys() uint64 {
	const keyCost = 64
	return uint64(max((r.opts.Memory-overheadMemory-r.info.SeenBytes)/4/keyCost, 10_000))
}

func (e *extras) name(ctx context.Context) error {
	all := map[int]bool{}
	for _, m := range []map[int]bool{e.states, e.revisions, e.blobs} {
		for i := range m {
			all[i] = true
		}
	}
	sizes := new(buckets)
	for i := range sizes.counts {
		sizes.counts[i].Store(e.run.states.counts[i].Load() + e.run.revisions.counts[i].Load() + e.run.blobs.counts[i].Load())
	}
	for _, part := range sizes.portions(all, e.knownKeys()) {
		if err := e.part(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// part names those of some buckets: it collects the keys that the source leads to
// in them, and looks at those of the destination once more.
func (e *extras) part(ctx context.Context, part map[int]bool) error {
	current, revisions, blobs := map[zodb.OID]bool{}, map[source.Key]bool{}, map[source.Key]bool{}
	replaced := map[zodb.OID]bool{}  // by what is not converted yet
	older := map[zodb.OID]zodb.TID{} // those that Since leaves out
	var scratch []byte
	err := e.read(ctx, func(c *source.Chunk) error {
		defer c.Release()
		for i := range c.Records {
			rec := &c.Records[i]
			if !part[bucketOf(uint64(rec.OID))] || !inSample(rec.OID, e.opts.Percent) {
				continue
			}
			if rec.TID < e.opts.Since {
				if e.isCurrent(rec) && uint64(len(older)) < e.knownKeys() {
					older[rec.OID] = rec.TID
				}
				continue
			}
			key := source.Key{OID: rec.OID, TID: rec.TID}
			if e.isCurrent(rec) {
				current[rec.OID] = true
				// Of a source with history all revisions are read, if they are asked for.
				replaced[rec.OID] = rec.TID > e.common && (e.info.Undescribed || !e.content.HistoryPreserving())
			}
			revisions[key] = true
			data, _, err := e.data(ctx, rec, &scratch)
			if err != nil {
				return err
			}
			if blobclass.Is(data) {
				blobs[key] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = e.content.Keys(ctx, func(k source.Key) error {
		i := bucketOf(uint64(k.OID))
		if !part[i] || !e.wanted(k.OID, k.TID) || e.site(k.TID) {
			return nil
		}
		d := Difference{OID: k.OID.String(), TID: k.TID.String(), oid: k.OID, tid: k.TID}
		tid, known := older[k.OID]
		switch {
		case !k.Current && replaced[k.OID] && k.TID <= e.common:
			e.named++
			return nil
		case k.Current && known:
			d.Kind, d.TID, d.tid, d.Path, d.Source, d.Destination = OtherTID, tid.String(), tid, "tid", tid.String(), k.TID.String()
		case k.Current && !current[k.OID]:
			d.Kind, d.Reason = ExtraObject, "the source has no such object"
			if e.opts.Since > 0 {
				d.Reason += " of " + e.opts.Since.String() + " or later"
			}
		case !k.Current && !revisions[source.Key{OID: k.OID, TID: k.TID}]:
			d.Kind, d.Reason = ExtraRevision, "the source has no such revision"
		default:
			return nil
		}
		e.named++
		return e.tally.differ(d)
	})
	if err != nil {
		return err
	}
	return e.content.Blobs(ctx, func(b *dest.BlobRow) error {
		k := b.Key
		if !part[bucketOf(uint64(k.OID))] || !e.wanted(k.OID, k.TID) || e.site(k.TID) || blobs[source.Key{OID: k.OID, TID: k.TID}] ||
			replaced[k.OID] && k.TID <= e.common {
			return nil
		}
		return e.tally.differ(Difference{Kind: ExtraBlob, OID: k.OID.String(), TID: k.TID.String(), oid: k.OID, tid: k.TID,
			Reason: "the source has no such blob"})
	})
}

// isCurrent tells whether the state of an object is looked up by a record.
func (r *run) isCurrent(rec *source.Record) bool {
	return rec.Current || !r.content.HistoryPreserving()
}

// extraTransactions does the same with transactions.
func (r *run) extraTransactions(ctx context.Context) error {
	there := new(buckets)
	site := int64(0)
	err := r.content.TIDs(ctx, func(tid zodb.TID) error {
		switch {
		case tid < r.opts.Since:
		case r.site(tid):
			site++
		default:
			there.add(uint64(tid), tid)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.result.SiteTransactions = site
	if r.ahead() && r.info.Undescribed {
		// A source without history does not have a transaction any more whose objects
		// have all changed since. Of any other its objects tell.
		if site > 0 {
			r.result.Notes = append(r.result.Notes, "the source keeps no history and has changed since: transactions of it whose objects have all changed are counted as a site's")
		}
		return nil
	}
	named := int64(0)
	for _, part := range r.transactions.portions(r.transactions.differing(there), r.knownKeys()) {
		known := map[zodb.TID]bool{}
		err := r.src.Transactions(ctx, func(t *source.Transaction) error {
			if part[bucketOf(uint64(t.TID))] {
				known[t.TID] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = r.content.TIDs(ctx, func(tid zodb.TID) error {
			if !part[bucketOf(uint64(tid))] || tid < r.opts.Since || r.site(tid) || known[tid] {
				return nil
			}
			named++
			return r.tally.differ(Difference{Kind: ExtraTransaction, TID: tid.String(), tid: tid, Reason: "the source has no such transaction"})
		})
		if err != nil {
			return err
		}
	}
	return r.named("transaction_log", r.transactions.above(there), named)
}
