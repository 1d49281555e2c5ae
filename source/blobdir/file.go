package blobdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// staleTries is how often a file whose handle is stale is opened.
const staleTries = 3

// File is the blob whose bytes are the file at path. The file is opened and
// closed again, so that one that cannot be read is found before its bytes are
// wanted. Errors are those of Dir.Find.
func File(oid zodb.OID, tid zodb.TID, path string) (*source.Blob, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("blob oid %v, tid %v: %w", oid, tid, err)
	}
	x := &file{oid: oid, tid: tid, path: path}
	f, size, err := x.open()
	if err != nil {
		return nil, err
	}
	f.Close()
	x.size = size
	return &source.Blob{OID: oid, TID: tid, Size: size, Path: path, Open: x.reader}, nil
}

// file is the file of one blob.
type file struct {
	oid  zodb.OID
	tid  zodb.TID
	path string
	size int64
}

// open opens the file, and again if its handle was stale. Without O_NONBLOCK a
// pipe would wait for a writer.
func (x *file) open() (f *os.File, size int64, err error) {
	for range staleTries {
		f, err = os.OpenFile(x.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			err = x.classify(err)
		} else if size, err = x.regular(f); err == nil {
			return f, size, nil
		} else {
			f.Close()
		}
		if !errors.Is(err, syscall.ESTALE) {
			break
		}
	}
	return nil, 0, err
}

// regular gives the size of a regular file.
func (x *file) regular(f *os.File) (int64, error) {
	stat, err := f.Stat()
	if err != nil {
		return 0, x.classify(err)
	}
	if !stat.Mode().IsRegular() {
		return 0, x.unreadable(fmt.Sprintf("is no regular file (%v)", stat.Mode().Type()))
	}
	return stat.Size(), nil
}

func (x *file) unreadable(problem string) error {
	return &source.BlobError{OID: x.oid, TID: x.tid, Path: x.path, Problem: problem}
}

// classify tells errors that concern this file only from those that will meet
// every other one, too: no more file handles, no memory, no server.
func (x *file) classify(err error) error {
	if known := (*source.BlobError)(nil); errors.As(err, &known) {
		return err // of opening it once more
	}
	cause := err
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		cause = path.Err
	}
	switch {
	case is(err, syscall.ENOENT, syscall.ENOTDIR):
		return &source.BlobError{OID: x.oid, TID: x.tid, Path: x.path, Missing: true, Problem: "does not exist"}
	case is(err, syscall.EACCES, syscall.EPERM):
		return x.unreadable(fmt.Sprintf("may not be read by this user (uid %d): %v", os.Geteuid(), cause))
	case is(err, syscall.EIO, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.ENXIO, syscall.EISDIR, syscall.EBADMSG):
		return x.unreadable(fmt.Sprintf("cannot be read: %v", cause))
	}
	return fmt.Errorf("blob oid %v, tid %v: %w", x.oid, x.tid, err)
}

func is(err error, causes ...error) bool {
	for _, cause := range causes {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// reader is the Open of a source.Blob.
func (x *file) reader(ctx context.Context) (source.BlobReader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, size, err := x.open()
	if err != nil {
		return nil, err
	}
	if err := x.check(size); err != nil {
		f.Close()
		return nil, err
	}
	return &reader{file: x, files: []*os.File{f}}, nil
}

// check compares the size with the one that the blob had when it was found.
func (x *file) check(size int64) error {
	if size == x.size {
		return nil
	}
	return x.unreadable(fmt.Sprintf("has %d bytes by now, it had %d when it was found; the file of a committed blob never changes", size, x.size))
}

// reader reads the file and checks that it keeps its size.
type reader struct {
	*file
	mu    sync.Mutex
	files []*os.File // the last is in use; stale ones may be by other readers
}

// ReadAt implements io.ReaderAt for the bytes before the blob's size.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("blob oid %v, tid %v: read at offset %d", r.oid, r.tid, off)
	}
	want := p[:max(0, min(int64(len(p)), r.size-off))]
	n, err := r.readAt(want, off)
	switch {
	case n == len(want):
	case err == io.EOF || err == nil:
		return n, r.unreadable(fmt.Sprintf("can be read up to byte %d only, it had %d when it was found; the file of a committed blob never changes", off+int64(n), r.size))
	default:
		return n, r.classify(err)
	}
	if off+int64(n) == r.size {
		if err := r.end(); err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// end checks that nothing follows the last byte.
func (r *reader) end() error {
	var b [1]byte
	n, err := r.readAt(b[:], r.size)
	if n > 0 {
		return r.unreadable(fmt.Sprintf("has more than the %d bytes that it had when it was found; the file of a committed blob never changes", r.size))
	}
	if err != nil && err != io.EOF {
		return r.classify(err)
	}
	return nil
}

// readAt reads, and opens the file again if its handle is stale.
func (r *reader) readAt(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	f := r.current()
	for range staleTries {
		n, err = f.ReadAt(p, off)
		if !errors.Is(err, syscall.ESTALE) {
			return n, err
		}
		if f, err = r.reopen(f); err != nil {
			return 0, err
		}
	}
	return n, err
}

func (r *reader) current() *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files[len(r.files)-1]
}

// reopen replaces the stale file, unless another reader has done so already.
func (r *reader) reopen(stale *os.File) (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[len(r.files)-1]; f != stale {
		return f, nil
	}
	f, size, err := r.open()
	if err != nil {
		return nil, err
	}
	r.files = append(r.files, f)
	return f, r.check(size)
}

// Close closes the file.
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first error
	for _, f := range r.files {
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
