package relstorage

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// blobSlice is how much of a blob is asked for at once. A connection is busy
	// with it for about a millisecond, and readers take 32 KiB at a time.
	blobSlice = 256 << 10
	// keepParts is how many parts a reader keeps: one that uploads several parts
	// of a blob at once reads at several places.
	keepParts = 5
)

// blobReader reads the bytes of a blob from the database, slice by slice. It holds
// a connection only while one is fetched.
type blobReader struct {
	s    *Source
	ctx  context.Context // of Open: ReadAt has none
	blob *rowBlob

	mu     sync.Mutex
	parts  []*blobPart // the one that was used last comes last
	closed bool
}

// blobPart is a part of a blob.
type blobPart struct {
	n    int64 // the first byte is n*blobSlice
	once sync.Once
	data []byte
	err  error
}

// ReadAt implements io.ReaderAt for the bytes before the blob's size.
func (r *blobReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("blob oid %v, tid %v: read at offset %d", zodb.OID(r.blob.zoid), zodb.TID(r.blob.tid), off)
	}
	want := p[:max(0, min(int64(len(p)), r.blob.size-off))]
	for n < len(want) {
		at := off + int64(n)
		s, err := r.part(at / blobSlice)
		if err != nil {
			return n, err
		}
		s.once.Do(func() { s.data, s.err = r.fetch(s.n * blobSlice) })
		if s.err != nil {
			r.drop(s)
			return n, s.err
		}
		n += copy(want[n:], s.data[at-s.n*blobSlice:])
		if off+int64(n) == s.n*blobSlice+int64(len(s.data)) {
			r.drop(s) // most read on behind it
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// part gives a part, which may still have to be fetched.
func (r *blobReader) part(n int64) (*blobPart, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, os.ErrClosed
	}
	for i, s := range r.parts {
		if s.n == n {
			r.parts = append(append(r.parts[:i], r.parts[i+1:]...), s)
			return s, nil
		}
	}
	s := &blobPart{n: n}
	r.parts = append(r.parts, s)
	if len(r.parts) > keepParts {
		r.parts = append(r.parts[:0], r.parts[1:]...)
	}
	return s, nil
}

func (r *blobReader) drop(s *blobPart) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.parts {
		if r.parts[i] == s {
			r.parts = append(r.parts[:i], r.parts[i+1:]...)
			return
		}
	}
}

// fetch reads a slice from the database. The errors of a blob are not those of the
// connection.
func (r *blobReader) fetch(off int64) ([]byte, error) {
	data := make([]byte, min(blobSlice, r.blob.size-off))
	var n int
	var bad *brokenBlob
	err := r.s.borrowBlob(r.ctx, func(c conn) (err error) {
		n, err = c.readBlob(r.ctx, &r.blob.storedBlob, data, off)
		if bad = brokenBy(err); bad != nil {
			return nil
		}
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read blob oid %v, tid %v: %w", zodb.OID(r.blob.zoid), zodb.TID(r.blob.tid), err)
	case bad != nil:
		return nil, r.blob.key().bad(tablePlace, bad.problem, bad.missing)
	case n < len(data):
		return nil, r.blob.key().bad(tablePlace, fmt.Sprintf("gives %d bytes of it, it had %d when it was found", off+int64(n), r.blob.size), false)
	}
	return data, nil
}

// Close lets nobody read any more.
func (r *blobReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts, r.closed = nil, true
	return nil
}
