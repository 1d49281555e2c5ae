package relstorage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/source/blobdir"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Blobs are rows of blob_chunk, whatever the configuration says, and files of the
// blob directory where there is no row. A configuration of RelStorage 2 that does
// not say shared-blob-dir meant the files, a later one the rows; a site that was
// switched from one to the other may have both.

// chunkTable is the table that holds blobs.
const chunkTable = "blob_chunk"

// tablePlace is where a blob is that has a row there, for messages.
const tablePlace = "the table " + chunkTable

// blobKey names the blob of a revision.
type blobKey struct{ zoid, tid int64 }

func keyOf(r *source.Record) blobKey { return blobKey{int64(r.OID), int64(r.TID)} }

func (k blobKey) compare(o blobKey) int {
	if c := cmp.Compare(k.zoid, o.zoid); c != 0 {
		return c
	}
	return cmp.Compare(k.tid, o.tid)
}

func (k blobKey) bad(path, problem string, missing bool) *source.BlobError {
	return &source.BlobError{OID: zodb.OID(k.zoid), TID: zodb.TID(k.tid), Path: path, Missing: missing, Problem: problem}
}

// blobs is what a Source knows of blobs beside its view.
type blobs struct {
	mu sync.Mutex
	// known are the blobs of chunks that are not yet released; nil for one without
	// a row.
	known map[blobKey]*rowBlob
	// dir is nil if there are no files; noDir is why, as the error of a blob that is
	// looked for there.
	dir   *blobdir.Dir
	noDir *source.BlobError
	// trusted: the server lets this role read large objects although it does not
	// look so.
	trusted bool
}

// rowBlob is a blob that has rows in blob_chunk.
type rowBlob struct {
	storedBlob
	// problem is empty or why it cannot be read, as the rest of a sentence about the
	// table; missing tells that its bytes are not there.
	problem string
	missing bool
	// Of a scan: record tells that the blob belongs to a record, current that this is
	// the newest of its object.
	record, current bool
}

func (b *rowBlob) key() blobKey { return blobKey{b.zoid, b.tid} }

// err is why the blob cannot be read, or nil.
func (b *rowBlob) err() *source.BlobError {
	if b.problem == "" {
		return nil
	}
	return b.key().bad(tablePlace, b.problem, b.missing)
}

// What a server says instead of a size.
const (
	noObject = -1 // there is no such large object
	noRight  = -2 // this role may not read it
)

// What is said then.
const (
	notReadable = "names a large object that this role may not read"
	notThere    = "names a large object that does not exist"
)

// add takes the next row of the blob.
func (b *rowBlob) add(c blobChunk) {
	switch {
	case b.problem != "":
		return
	case c.num != int64(len(b.chunks)):
		b.problem = fmt.Sprintf("has a chunk %d of it and no chunk %d", c.num, len(b.chunks))
	case c.size == noObject:
		b.problem, b.missing = fmt.Sprintf("%s (%d)", notThere, c.object), true
	case c.size == noRight:
		b.problem = fmt.Sprintf("%s (%d)", notReadable, c.object)
	}
	c.off = b.size
	b.size += max(c.size, 0)
	b.chunks = append(b.chunks, c)
}

// chunkColumns are the columns of a row of blob_chunk, named b.
func (s *Source) chunkColumns() string {
	d := s.engine.dialect()
	object, size := "0", d.size("b.chunk")
	if d.largeObject != nil && s.tables[chunkTable]["chunk"] == "oid" {
		object, size = d.largeObject("b.chunk", s.trusts())
	}
	return "b.zoid, b.tid, b.chunk_num, " + object + ", " + size
}

func (s *Source) trusts() bool {
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	return s.blobs.trusted
}

// readChunk reads those columns.
func readChunk(r row) (k blobKey, c blobChunk, err error) {
	for i, to := range []*int64{&k.zoid, &k.tid, &c.num, &c.object, &c.size} {
		if *to, err = r.int(i); err != nil {
			return k, c, err
		}
	}
	return k, c, nil
}

// rowBlobs asks for the rows of blob_chunk that meet a condition and calls fn for
// each blob, by zoid and tid. A scan asks for two more columns: whether there is a
// record, and whether it is the current one.
func (s *Source) rowBlobs(ctx context.Context, c conn, columns, join, condition string, fn func(*rowBlob) error) error {
	var open *rowBlob
	q := "SELECT " + s.chunkColumns() + columns + " FROM " + chunkTable + " b" + join + where(condition) + " ORDER BY b.zoid, b.tid, b.chunk_num"
	err := c.query(ctx, q, func(r row) error {
		k, chunk, err := readChunk(r)
		if err != nil {
			return err
		}
		if open == nil || open.key() != k {
			if open != nil {
				if err := fn(open); err != nil {
					return err
				}
			}
			open = &rowBlob{storedBlob: storedBlob{zoid: k.zoid, tid: k.tid}}
			if columns != "" {
				if err := open.ofRecord(r); err != nil {
					return err
				}
			}
		}
		open.add(chunk)
		return nil
	})
	if err == nil && open != nil {
		err = fn(open)
	}
	return s.failed("look for the rows of blobs", err)
}

// ofRecord reads the two columns of a scan.
func (b *rowBlob) ofRecord(r row) error {
	record, err := r.int(5)
	if err != nil {
		return err
	}
	current, err := r.int(6)
	b.record, b.current = record != 0, current != 0
	return err
}

// findRow finds the rows of a blob; nil if there are none.
func (s *Source) findRow(ctx context.Context, k blobKey) (b *rowBlob, err error) {
	if !s.has(chunkTable) {
		return nil, nil
	}
	s.blobs.mu.Lock()
	b, known := s.blobs.known[k]
	s.blobs.mu.Unlock()
	if known {
		return b, nil
	}
	err = s.borrowBlob(ctx, func(c conn) error {
		return s.rowBlobs(ctx, c, "", "", fmt.Sprintf("b.zoid = %d AND b.tid = %d", k.zoid, k.tid), func(found *rowBlob) error {
			b = found
			return nil
		})
	})
	return b, err
}

// locateBlobs finds the rows of all blobs among some records with one query, so
// that Blob need not ask for each. forget is called when they will not be asked
// for any more.
func (s *Source) locateBlobs(ctx context.Context, c conn, records []source.Record) (forget func(), err error) {
	var keys []blobKey
	if s.has(chunkTable) {
		for i := range records {
			if !records[i].Deleted && isBlob(records[i].Raw) {
				keys = append(keys, keyOf(&records[i]))
			}
		}
	}
	if len(keys) == 0 {
		return func() {}, nil
	}
	found := make(map[blobKey]*rowBlob, len(keys))
	for part := range slices.Chunk(keys, maxKeys) {
		for _, k := range part {
			found[k] = nil
		}
		if err := s.rowBlobs(ctx, c, "", "", among(part), func(b *rowBlob) error {
			if _, wanted := found[b.key()]; wanted {
				found[b.key()] = b
			}
			return nil
		}); err != nil {
			return func() {}, err
		}
	}
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	if s.blobs.known == nil {
		s.blobs.known = map[blobKey]*rowBlob{}
	}
	for k, b := range found {
		s.blobs.known[k] = b
	}
	return func() {
		s.blobs.mu.Lock()
		defer s.blobs.mu.Unlock()
		for k, b := range found {
			if s.blobs.known[k] == b {
				delete(s.blobs.known, k)
			}
		}
	}, nil
}

// maxKeys is for how many blobs a query asks.
const maxKeys = 1000

// among is a condition that all of the keys meet, and few others. Not all servers
// find pairs by their index.
func among(keys []blobKey) string {
	list := func(id func(blobKey) int64) string {
		ids := make([]int64, 0, len(keys))
		for _, k := range keys {
			ids = append(ids, id(k))
		}
		slices.Sort(ids)
		text := make([]string, 0, len(ids))
		for _, n := range slices.Compact(ids) {
			text = append(text, strconv.FormatInt(n, 10))
		}
		return strings.Join(text, ", ")
	}
	return "b.zoid IN (" + list(func(k blobKey) int64 { return k.zoid }) + ") AND b.tid IN (" + list(func(k blobKey) int64 { return k.tid }) + ")"
}

// forgetBlobs forgets what an earlier view had.
func (s *Source) forgetBlobs() {
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	clear(s.blobs.known)
}

// borrowBlob is borrow that goes on in the next view if that of the last scan ends
// meanwhile: uploads in the background do not wait for scans. The bytes of a blob
// are never changed.
func (s *Source) borrowBlob(ctx context.Context, fn func(conn) error) error {
	for {
		err := s.borrow(ctx, fn)
		if !errors.Is(err, errIdle) {
			return err
		}
	}
}

// Blob implements source.Source.
func (s *Source) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := s.findRow(ctx, keyOf(r))
	switch {
	case err != nil:
		return nil, err
	case b == nil:
		blob, err := s.findFile(ctx, keyOf(r))
		if bad := (*source.BlobError)(nil); errors.As(err, &bad) && bad.Missing {
			return nil, s.gone(ctx, keyOf(r), bad)
		}
		return blob, err
	}
	return s.openable(b)
}

// gone notes about a missing blob whether its record is one of an earlier view:
// files belong to none, and a pack removes them together with the records.
func (s *Source) gone(ctx context.Context, k blobKey, bad *source.BlobError) error {
	s.mu.Lock()
	sc := s.scan
	s.mu.Unlock()
	if sc == nil || sc.q.until == 0 {
		return bad // the record is one of the view
	}
	table := "object_state"
	if s.history && !sc.history {
		table = "current_object"
	}
	there := false
	err := s.borrowBlob(ctx, func(c conn) error {
		return c.query(ctx, fmt.Sprintf("SELECT 1 FROM %s WHERE zoid = %d AND tid = %d", table, k.zoid, k.tid), func(row) error {
			there = true
			return nil
		})
	})
	if err != nil {
		return s.failed("look for the record of a blob", err)
	}
	told := *bad
	told.Gone = !there
	return &told
}

// openable is the blob of some rows.
func (s *Source) openable(b *rowBlob) (*source.Blob, error) {
	if err := b.err(); err != nil {
		return nil, err
	}
	return &source.Blob{OID: zodb.OID(b.zoid), TID: zodb.TID(b.tid), Size: b.size, Open: func(ctx context.Context) (source.BlobReader, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return &blobReader{s: s, ctx: ctx, blob: b}, nil
	}}, nil
}

// files is the blob directory, nil if there is none.
func (s *Source) files() *blobdir.Dir {
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	return s.blobs.dir
}

// findFile finds the file of a blob without rows.
func (s *Source) findFile(ctx context.Context, k blobKey) (*source.Blob, error) {
	s.blobs.mu.Lock()
	dir, noDir := s.blobs.dir, s.blobs.noDir
	s.blobs.mu.Unlock()
	if dir == nil {
		switch {
		case noDir != nil:
			return nil, k.bad(noDir.Path, noDir.Problem, noDir.Missing)
		case !s.has(chunkTable):
			return nil, k.bad(s.engine.name(), "has no table "+chunkTable+", and no blob directory was given", true)
		}
		return nil, k.bad(tablePlace, "has no row of it", true)
	}
	b, err := dir.Find(ctx, zodb.OID(k.zoid), zodb.TID(k.tid))
	if missing := (*source.BlobError)(nil); errors.As(err, &missing) && missing.Missing && s.has(chunkTable) {
		return nil, k.bad(missing.Path, missing.Problem+", and "+tablePlace+" has no row of it", true)
	}
	return b, err
}

// openFiles looks at the blob directory. A warning is a sentence, or empty. An
// error is only that of a directory which the configuration says to be the one
// place of the blobs.
func (s *Source) openFiles(ctx context.Context) (warning string, err error) {
	path := s.opts.BlobDir
	if path == "" {
		return "", nil
	}
	dir, err := blobdir.Open(ctx, path)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	var cache *blobdir.CacheError
	shared := s.opts.SharedBlobDir
	var noDir *source.BlobError
	switch {
	case err == nil:
		warning = dir.Warning()
	case errors.As(err, &cache):
		noDir = &source.BlobError{Path: tablePlace, Problem: "has no row of it, and " + path + " is only the blob cache of a client", Missing: true}
		if shared != nil && *shared {
			warning = fmt.Sprintf("%s: the configuration says that it is the shared blob directory, but it is the blob cache of a client; it is not read", path)
		}
	case shared != nil && *shared:
		return "", err
	case errors.Is(err, fs.ErrNotExist):
		noDir = &source.BlobError{Path: path, Problem: "does not exist, and " + tablePlace + " has no row of it", Missing: true}
	default:
		noDir = &source.BlobError{Path: path, Problem: fmt.Sprintf("cannot be looked into (%v), and %s has no row of it", err, tablePlace)}
	}
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	s.blobs.dir, s.blobs.noDir = dir, noDir
	return warning, nil
}

// isBlob tells by the bytes of a record, as stored, whether it is that of a blob.
func isBlob(raw []byte) bool {
	if len(raw) > blobclass.MaxRecord {
		return false
	}
	if stream, compressed := bytes.CutPrefix(raw, []byte(".z")); compressed {
		return isCompressedBlob(stream)
	}
	return blobclass.Is(raw)
}

// isCompressedBlob is isBlob for a stream of zlib. Records of blobs are too short
// to become shorter by it, so nearly nothing is inflated here.
func isCompressedBlob(stream []byte) bool {
	z, err := zlib.NewReader(bytes.NewReader(stream))
	if err != nil {
		return false
	}
	defer z.Close()
	var plain [blobclass.MaxRecord]byte
	n := 0
	for n < len(plain) {
		k, err := z.Read(plain[n:])
		n += k
		if err != nil {
			break
		}
	}
	return blobclass.Is(plain[:n])
}
