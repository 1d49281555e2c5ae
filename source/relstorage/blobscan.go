package relstorage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// blobLookers look for the files of blobs at once: over NFS each waits for the
	// server.
	blobLookers = 16
	// maxNamed is how many blobs are listed by name.
	maxNamed = 10
)

// blobScan counts the blobs of a view.
type blobScan struct {
	s    *Source
	view *view
	opts source.ScanOptions
	// all tells that every revision is looked at, not only the current ones of a
	// schema with history.
	all bool

	mu sync.Mutex
	blobTally
}

// blobTally is what a scan has found. It holds no blobs but the large ones.
type blobTally struct {
	count    int64
	bytes    int64
	found    int64
	lost     int64
	orphans  int64
	fileless [64]source.BlobCount
	large    []source.LargeBlob
	oids     []int64           // the first, ascending
	missing  []source.LostBlob // the first

	files int64 // blobs that were found as files
	moved int64 // of them in the other layout

	refused      int64 // blobs whose large objects this role may not read
	firstRefused *rowBlob
}

// countBlobs fills in what Info tells of blobs. It is called at the end of a
// scan, with its view open.
func (s *Source) countBlobs(ctx context.Context, v *view, opts source.ScanOptions, info *source.Info) error {
	s.forgetBlobs()
	warning, err := s.openFiles(ctx)
	if err != nil {
		return err
	}
	if warning != "" {
		info.Warnings = append(info.Warnings, warning)
	}
	sc := &blobScan{s: s, view: v, opts: opts, all: opts.History || !s.history}
	if s.has(chunkTable) {
		if err := sc.countRows(ctx); err != nil {
			return err
		}
	}
	if err := sc.countOthers(ctx); err != nil {
		return err
	}
	if err := sc.countFiles(ctx, info); err != nil {
		return err
	}
	sc.report(info)
	return nil
}

// countRows counts the blobs that have rows, with the sizes that the server tells.
func (sc *blobScan) countRows(ctx context.Context) error {
	return sc.view.do(ctx, func(c conn) error {
		if err := sc.rows(ctx, c); err != nil || sc.refused == 0 {
			return err
		}
		// Whether this role may not read them only the server knows.
		b := sc.firstRefused
		var one [1]byte
		_, err := c.readBlob(ctx, &storedBlob{chunks: []blobChunk{{object: b.chunks[len(b.chunks)-1].object, size: 1}}}, one[:], 0)
		if bad := brokenBy(err); bad != nil {
			return sc.refuse(bad)
		}
		if err != nil {
			return err
		}
		sc.s.blobs.mu.Lock()
		sc.s.blobs.trusted = true
		sc.s.blobs.mu.Unlock()
		sc.blobTally = blobTally{}
		return sc.rows(ctx, c)
	})
}

// refuse says that the rights on blobs are missing: rights on the table are not
// enough.
func (sc *blobScan) refuse(bad *brokenBlob) error {
	return &plainError{err: bad, text: fmt.Sprintf("%s: %s %s; of the %d blobs there it may not read %d; "+
		"let a superuser give the right to all, new ones included, with ALTER ROLE ... SET lo_compat_privileges = on, "+
		"or to those that there are, with GRANT SELECT ON LARGE OBJECT for each; or connect as the role of the site, which owns them",
		sc.s.engine.name(), tablePlace, bad.problem, sc.count, sc.refused)}
}

// rows goes through blob_chunk and looks which record each blob belongs to.
func (sc *blobScan) rows(ctx context.Context, c conn) error {
	size := sc.s.engine.dialect().size("o.state")
	columns := ", CASE WHEN o.zoid IS NULL OR COALESCE(" + size + ", 0) = 0 THEN 0 ELSE 1 END"
	join := " LEFT JOIN object_state o ON o.zoid = b.zoid AND o.tid = b.tid"
	if sc.s.history {
		columns += ", CASE WHEN c.zoid IS NULL THEN 0 ELSE 1 END"
		join += " LEFT JOIN current_object c ON c.zoid = b.zoid AND c.tid = b.tid"
	} else {
		columns += ", 1"
	}
	return sc.s.rowBlobs(ctx, c, columns, join, sc.until("b.tid"), func(b *rowBlob) error {
		switch {
		case !b.record:
			sc.orphans++
		case sc.all || b.current:
			sc.row(b)
		}
		return nil
	})
}

func (sc *blobScan) until(column string) string {
	if sc.opts.Until == 0 {
		return ""
	}
	return fmt.Sprintf("%s <= %d", column, sc.opts.Until)
}

// row counts a blob that has rows.
func (sc *blobScan) row(b *rowBlob) {
	sc.name(b.key())
	if strings.HasPrefix(b.problem, notReadable) {
		sc.refused++
		sc.firstRefused = cmp.Or(sc.firstRefused, b)
	}
	if bad := b.err(); bad != nil {
		sc.miss(b.key(), bad)
		return
	}
	sc.add(b.key(), b.size, "", b.current)
	n := &sc.fileless[bits.Len64(uint64(b.size))]
	n.Blobs++
	n.Bytes += b.size
}

// name counts a blob and keeps the first oids.
func (t *blobTally) name(k blobKey) {
	t.count++
	if i, known := slices.BinarySearch(t.oids, k.zoid); !known && i < maxNamed {
		t.oids = slices.Insert(t.oids, i, k.zoid)
		t.oids = t.oids[:min(len(t.oids), maxNamed)]
	}
}

// add counts a blob whose bytes are there.
func (sc *blobScan) add(k blobKey, size int64, path string, current bool) {
	sc.found++
	sc.bytes += size
	if sc.opts.LargeBlob > 0 && size >= sc.opts.LargeBlob {
		sc.large = append(sc.large, source.LargeBlob{OID: zodb.OID(k.zoid), TID: zodb.TID(k.tid), Size: size, Path: path, Current: current})
	}
}

// miss counts a blob that is missing or cannot be read, and keeps the first in
// reading order.
func (sc *blobScan) miss(k blobKey, bad *source.BlobError) {
	sc.lost++
	at, _ := slices.BinarySearchFunc(sc.missing, k, func(l source.LostBlob, k blobKey) int {
		have := blobKey{int64(l.OID), int64(l.TID)}
		if sc.opts.History {
			return cmp.Or(cmp.Compare(have.tid, k.tid), cmp.Compare(have.zoid, k.zoid))
		}
		return have.compare(k)
	})
	if at < maxNamed {
		sc.missing = slices.Insert(sc.missing, at, source.LostBlob{BlobError: bad})
		sc.missing = sc.missing[:min(len(sc.missing), maxNamed)]
	}
}

// fileRef is a record of a blob without rows.
type fileRef struct {
	blobKey
	current bool
}

// countOthers counts the blobs that have no rows, and looks for their files while
// the server looks for them.
func (sc *blobScan) countOthers(ctx context.Context) error {
	group, inner := errgroup.WithContext(ctx)
	refs := make(chan fileRef, 4*blobLookers)
	group.Go(func() error {
		defer close(refs)
		return sc.others(inner, func(ref fileRef) error {
			select {
			case refs <- ref:
				return nil
			case <-inner.Done():
				return inner.Err()
			}
		})
	})
	for range blobLookers {
		group.Go(func() error {
			for ref := range refs {
				if err := sc.lookUp(inner, ref); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// others calls fn for each record of a blob that has no rows. The server picks out
// the small records that name the class, or may do so when they are inflated.
func (sc *blobScan) others(ctx context.Context, fn func(fileRef) error) error {
	d := sc.s.engine.dialect()
	columns, join := "o.zoid, o.tid, o.state", ""
	conditions := []string{
		fmt.Sprintf("CASE WHEN %s > %d THEN 0 WHEN %s THEN 1 WHEN %s THEN 1 ELSE 0 END = 1", d.size("o.state"), blobclass.MaxRecord,
			d.contains("o.state", []byte(blobclass.Module)), d.contains("o.state", []byte(".z"))),
		sc.until("o.tid"),
	}
	switch {
	case sc.s.history && sc.all:
		columns += ", CASE WHEN c.zoid IS NULL THEN 0 ELSE 1 END"
		join = " LEFT JOIN current_object c ON c.zoid = o.zoid AND c.tid = o.tid"
	case sc.s.history:
		columns += ", 1"
		join = " JOIN current_object c ON c.zoid = o.zoid AND c.tid = o.tid"
	default:
		columns += ", 1"
	}
	if sc.s.has(chunkTable) {
		conditions = append(conditions, "NOT EXISTS (SELECT 1 FROM "+chunkTable+" b WHERE b.zoid = o.zoid AND b.tid = o.tid)")
	}
	return sc.view.do(ctx, func(c conn) error {
		err := c.query(ctx, "SELECT "+columns+" FROM object_state o"+join+where(conditions...), func(r row) error {
			if !isBlob(r.bytes(2)) {
				return nil
			}
			var ref fileRef
			var current int64
			for i, to := range map[int]*int64{0: &ref.zoid, 1: &ref.tid, 3: &current} {
				var err error
				if *to, err = r.int(i); err != nil {
					return err
				}
			}
			ref.current = current != 0
			return fn(ref)
		})
		return sc.s.failed("look for blobs that have no rows", err)
	})
}

// lookUp looks for the file of a blob.
func (sc *blobScan) lookUp(ctx context.Context, ref fileRef) error {
	b, err := sc.s.findFile(ctx, ref.blobKey)
	var bad *source.BlobError
	if err != nil && !errors.As(err, &bad) {
		return err
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.name(ref.blobKey)
	if bad != nil {
		sc.miss(ref.blobKey, bad)
		return nil
	}
	sc.add(ref.blobKey, b.Size, b.Path, ref.current)
	sc.files++
	if b.Note != "" {
		sc.moved++
	}
	return nil
}

// countFiles counts the files that no record refers to. A newer one belongs to a
// transaction that is not in the view, or not yet committed. Where older revisions
// are not looked at, nobody knows which files are theirs.
func (sc *blobScan) countFiles(ctx context.Context, info *source.Info) error {
	dir := sc.s.files()
	if dir == nil || !sc.all {
		return nil
	}
	var n atomic.Int64
	unlisted, err := dir.Walk(ctx, func(_ zodb.OID, tid zodb.TID, _ string) error {
		if tid <= info.MaxTID {
			n.Add(1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sc.orphans += max(0, n.Load()-sc.files)
	if unlisted > 0 {
		info.Warnings = append(info.Warnings, fmt.Sprintf("%d directories of blobs cannot be listed; files in them that no record refers to are not counted", unlisted))
	}
	return nil
}

// report fills in the Info.
func (sc *blobScan) report(info *source.Info) {
	var places []string
	if sc.s.has(chunkTable) {
		places = append(places, tablePlace)
	}
	dir := sc.s.files()
	if dir != nil {
		places = append(places, dir.Path())
	}
	info.Blobs = sc.count
	for _, oid := range sc.oids {
		info.BlobOIDs = append(info.BlobOIDs, zodb.OID(oid))
	}
	if sc.s.opts.BlobDir == "" && sc.found == 0 && sc.lost > 0 {
		// They are in a directory that was not named. The table, which each database
		// of RelStorage has, is then not the place to look for them.
		return
	}
	if info.BlobDir = strings.Join(places, " and "); info.BlobDir == "" {
		return
	}
	info.BlobBytes, info.BlobFiles, info.MissingBlobs, info.OrphanBlobs = sc.bytes, sc.found, sc.lost, sc.orphans
	info.FirstMissing, info.Fileless = sc.missing, sc.fileless
	slices.SortFunc(sc.large, func(a, b source.LargeBlob) int {
		return cmp.Or(cmp.Compare(a.OID, b.OID), cmp.Compare(a.TID, b.TID))
	})
	info.LargeBlobs = sc.large
	if sc.found == 0 && sc.lost > 0 {
		info.Warnings = append(info.Warnings, fmt.Sprintf("none of the %d blobs was found in %s; are they in another blob directory, and is it mounted?", sc.lost, info.BlobDir))
	}
	if sc.moved > 0 {
		info.Warnings = append(info.Warnings, fmt.Sprintf("%d blobs lie in the layout that is not the one of the blob directory (%v); they are taken from there", sc.moved, dir.Layout()))
	}
}
