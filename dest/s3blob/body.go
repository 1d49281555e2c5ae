package s3blob

import (
	"errors"
	"io"
	"sync"

	"github.com/zodb-convert/zodb-convert/source"
)

// readError is a blob's file that cannot be read, found while it was sent.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// body is what one request sends: bytes that can be read again. It tells a
// watch about progress, and remembers what reading has failed with, because an
// HTTP client may tell another error instead.
type body struct {
	mu     sync.Mutex
	reader io.ReadSeeker // nil: let go
	watch  *watch
	failed error
}

var errLetGo = errors.New("the request is over")

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reader == nil {
		return 0, errLetGo
	}
	// A slow file is not the server's fault.
	b.watch.timer.Stop()
	n, err := b.reader.Read(p)
	b.watch.timer.Reset(b.watch.stall)
	if err != nil && err != io.EOF {
		b.failed = err
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reader == nil {
		return 0, errLetGo
	}
	return b.reader.Seek(offset, whence)
}

// letGo takes the reader away: after a request that has failed the HTTP client
// may still be reading for a while. It gives what reading has failed with.
func (b *body) letGo() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reader = nil
	return b.failed
}

// blobReader reads all of a blob, not less: a file that ends early is an error
// of the blob.
type blobReader struct {
	blob *source.Blob
	at   source.BlobReader
}

func (r *blobReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.at.ReadAt(p, off)
	if err == io.EOF && off+int64(n) < r.blob.Size {
		err = r.problem("has become shorter while it was read")
	}
	return n, err
}

func (r *blobReader) problem(text string) error {
	return &source.BlobError{OID: r.blob.OID, TID: r.blob.TID, Path: r.blob.Place(), Problem: text}
}

func (r *blobReader) section(off, n int64) *io.SectionReader { return io.NewSectionReader(r, off, n) }
