package filestorage

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// blobLookers look for the files of blobs at once while a file is scanned. A
// disk of this machine would do with fewer; over NFS each waits for the server.
const blobLookers = 16

// blobRef is a record whose blob is to be looked for.
type blobRef struct {
	oid         zodb.OID
	tid, stored zodb.TID // of the transaction, and in the record
	pos         int64
	tpos, limit int64 // of its transaction
}

// blobScan is what scans found of the blobs that records refer to. It holds
// none of them but the large ones.
type blobScan struct {
	here txnSet // the blobs of the transaction that is being scanned

	mu      sync.Mutex
	bytes   int64
	found   int64
	missing int64
	first   []source.LostBlob // of the missing ones
	own     int64             // files, each counted for one record only
	layout  int64             // found in the other layout
	moved   int64             // found under another tid

	largeFrom int64
	large     []largeBlob
	newest    map[zodb.OID]int64 // transactions that wrote the large ones last
	marked    int64              // up to where newest is known

	files map[zodb.TID]int64 // blob files up to a tid
	// unlisted directories when files was counted.
	unlisted int64
}

type largeBlob struct {
	source.LargeBlob
	pos, tpos int64
}

// runBlobs scans the records, looks for the files of the blobs among them, and
// counts the files in the blob directory, all at once.
func (sc *scanner) runBlobs(ctx context.Context, size int64) error {
	bounds, err := sc.likelyTIDs(size)
	if err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	sc.ctx = inner
	refs := make(chan blobRef, 4*blobLookers)
	sc.refs = refs
	group.Go(func() error {
		defer close(refs)
		return sc.run()
	})
	for range blobLookers {
		group.Go(func() error { return sc.lookUp(inner, refs) })
	}
	if len(bounds) > 0 {
		group.Go(func() error { return sc.countFiles(inner, bounds) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	sc.ctx = ctx
	// The tid was guessed wrong: a torn end, or tids that fall.
	if _, known := sc.blobs.files[sc.info.MaxTID]; !known && sc.info.MaxTID != 0 {
		if err := sc.countFiles(ctx, []zodb.TID{sc.info.MaxTID}); err != nil {
			return err
		}
	}
	return sc.markNewest(ctx)
}

// wanted hands a record to those who look for its blob. Of several records of
// an oid in one transaction, which share one file, only the first is.
func (sc *scanner) wanted(t *txn, r *rec) error {
	if sc.refs == nil {
		return nil
	}
	if sc.blobs.here.enter(t.pos); !sc.blobs.here.addNew(r.oid) {
		return nil
	}
	select {
	case sc.refs <- blobRef{oid: r.oid, tid: t.tid, stored: r.tid, pos: r.pos, tpos: t.pos, limit: t.next()}:
		return nil
	case <-sc.ctx.Done():
		return sc.ctx.Err()
	}
}

// lookUp looks for blobs until there are no more.
func (sc *scanner) lookUp(ctx context.Context, refs <-chan blobRef) error {
	for ref := range refs {
		b, under, err := sc.s.findBlob(ctx, ref.oid, ref.tid, ref.pos, ref.limit)
		var bad *source.BlobError
		if err != nil && !errors.As(err, &bad) {
			return err
		}
		if bad != nil {
			sc.blobs.miss(&ref, bad)
			continue
		}
		sc.blobs.add(&ref, b, under)
	}
	return nil
}

// miss counts a blob that is missing or cannot be read, and keeps the first.
func (x *blobScan) miss(ref *blobRef, e *source.BlobError) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.missing++
	at, _ := slices.BinarySearchFunc(x.first, ref.pos, func(l source.LostBlob, pos int64) int { return cmp.Compare(l.Pos, pos) })
	if at < maxNamed {
		x.first = slices.Insert(x.first, at, source.LostBlob{BlobError: e, Pos: ref.pos})
		x.first = x.first[:min(len(x.first), maxNamed)]
	}
}

// add counts a blob that was found.
func (x *blobScan) add(ref *blobRef, b *source.Blob, under zodb.TID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if under == ref.tid || under == ref.stored {
		x.own++
	}
	switch {
	case under != ref.tid:
		x.moved++
	case b.Note != "":
		x.layout++
	}
	x.found++
	x.bytes += b.Size
	if x.largeFrom > 0 && b.Size >= x.largeFrom {
		x.large = append(x.large, largeBlob{
			LargeBlob: source.LargeBlob{OID: b.OID, TID: b.TID, Size: b.Size, Path: b.Path}, pos: ref.pos, tpos: ref.tpos})
	}
}

// countFiles counts the files in the blob directory whose tid is not above each
// of the bounds. A newer one belongs to a transaction that is not in the scanned
// range, or not yet committed.
func (sc *scanner) countFiles(ctx context.Context, bounds []zodb.TID) error {
	counts := make([]atomic.Int64, len(bounds))
	unlisted, err := sc.s.blobs.Walk(ctx, func(_ zodb.OID, tid zodb.TID, _ string) error {
		for i, bound := range bounds {
			if tid <= bound {
				counts[i].Add(1)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	sc.blobs.files = make(map[zodb.TID]int64)
	for i, bound := range bounds {
		sc.blobs.files[bound] = counts[i].Load()
	}
	sc.blobs.unlisted = unlisted
	return nil
}

// likelyTIDs are the highest tids that this scan, and one that looks at the
// whole file after it, will find; none if that is known already. So the blob
// directory can be walked while the file is scanned, and only once.
func (sc *scanner) likelyTIDs(size int64) (list []zodb.TID, err error) {
	ends := []int64{sc.w.limit}
	if size != sc.w.limit {
		ends = append(ends, size)
	}
	for i, end := range ends {
		tid, err := sc.tidBefore(end, size)
		if err != nil {
			return nil, err
		}
		tid = max(tid, sc.info.MaxTID)
		if _, known := sc.blobs.files[tid]; known && i == 0 {
			return nil, nil
		}
		if tid != 0 {
			list = append(list, tid)
		}
	}
	return slices.Compact(list), nil
}

// tidBefore is the tid of the transaction that ends at end, if one does.
func (sc *scanner) tidBefore(end, size int64) (zodb.TID, error) {
	w := &window{r: sc.s.f, limit: size}
	var b [txnFixed]byte
	if end-trailer < firstPos+txnFixed {
		return 0, nil
	}
	if err := w.small(b[:trailer], end-trailer); err != nil {
		return 0, sc.s.growthError(err)
	}
	tlen := binary.BigEndian.Uint64(b[:])
	if tlen > uint64(end-trailer-firstPos) {
		return 0, nil
	}
	pos := end - trailer - int64(tlen)
	if err := w.small(b[:], pos); err != nil {
		return 0, sc.s.growthError(err)
	}
	t := parseTxn(b[:], pos)
	if t.tlen != tlen || !knownStatus(t.status) {
		return 0, nil
	}
	return t.tid, nil
}

// markNewest finds out which of the large blobs are current: one more walk over
// the headers from the first of them on, only if there are any.
func (sc *scanner) markNewest(ctx context.Context) error {
	x := sc.blobs
	if len(x.large) == 0 {
		return nil
	}
	sort.Slice(x.large, func(i, k int) bool { return x.large[i].pos < x.large[k].pos })
	if x.newest == nil {
		x.newest, x.marked = make(map[zodb.OID]int64), x.large[0].tpos
	}
	for _, b := range x.large {
		x.newest[b.OID] = max(x.newest[b.OID], b.tpos)
	}
	err := sc.s.eachTxn(ctx, x.marked, sc.end, func(w *window, t *txn) error {
		for pos := t.pos + t.header(); pos < t.end() && t.status != undone; {
			r, err := sc.s.recordAt(w, t, pos)
			if err != nil {
				return err
			}
			if _, large := x.newest[r.oid]; large {
				x.newest[r.oid] = t.pos
			}
			pos = r.end()
		}
		return nil
	})
	if err != nil {
		return err
	}
	x.marked = sc.end
	for i := range x.large {
		b := &x.large[i]
		b.Current = x.newest[b.OID] == b.tpos
	}
	return nil
}

// lowers tells whether a scan asks for blobs that the ones before did not note.
func (x *blobScan) lowers(large int64) bool {
	return large > 0 && (x.largeFrom == 0 || large < x.largeFrom)
}

// report fills in what an Info tells about the blobs.
func (sc *scanner) report(info *source.Info, large int64) {
	x := sc.blobs
	info.BlobDir = sc.s.blobs.Path()
	info.BlobBytes, info.BlobFiles, info.MissingBlobs = x.bytes, x.found, x.missing
	info.FirstMissing = slices.Clone(x.first)
	info.OrphanBlobs = max(0, x.files[info.MaxTID]-x.own)
	for _, b := range x.large {
		if large > 0 && b.Size >= large {
			info.LargeBlobs = append(info.LargeBlobs, b.LargeBlob)
		}
	}
	add := func(format string, args ...any) { info.Warnings = append(info.Warnings, fmt.Sprintf(format, args...)) }
	if w := sc.s.blobs.Warning(); w != "" {
		add("%s", w)
	}
	if x.found == 0 && x.missing > 0 {
		add("none of the %d blobs was found in %s; is it the blob directory of this database, and is it mounted?", x.missing, sc.s.blobs.Path())
	}
	if x.layout > 0 {
		add("%d blobs lie in the layout that is not the one of the blob directory (%v); they are taken from there", x.layout, sc.s.blobs.Layout())
	}
	if x.moved > 0 {
		add("%d blobs have no file of their own revision; that of the revision that they were undone to is taken", x.moved)
	}
	if x.unlisted > 0 {
		add("%d directories of blobs cannot be listed; files in them that no record refers to are not counted", x.unlisted)
	}
}
