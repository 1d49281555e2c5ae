// Package staging keeps the bytes of blobs that a source has in no file until
// somebody uploads them: a manifest lists files.
//
// # Format
//
// Below the directory there is one for each database, named by its identity, which
// holds
//
//	000000000000002a-03f8654c26666666.blob             a blob: its oid, its tid
//	000000000000002a-03f8654c26666666.blob.1234.tmp    one that is being written
//	source.json                                        which database that is
//
// # Guarantees
//
// A file NAME.blob is whole and on the disk. It is written under its temporary
// name, which it loses only then; so whatever is there after a kill may be used,
// or written once more. What a killed process has left half written is removed by
// the next one. Oids and tids name a blob in one database only, so each has its
// own directory, which one process uses at a time.
//
// Nothing removes a blob. Whoever has uploaded all of them removes the directory.
package staging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// ownerName is the file that says of which database the blobs are. It is locked
// as long as the directory is used.
const ownerName = "source.json"

// copyBuffer is how much is read at once.
const copyBuffer = 256 << 10

var (
	staged = regexp.MustCompile(`^[0-9a-f]{16}-[0-9a-f]{16}\.blob$`)
	half   = regexp.MustCompile(`^[0-9a-f]{16}-[0-9a-f]{16}\.blob\.[0-9]+\.tmp$`)
)

// Dir is a staging directory that this process uses. Put is safe for concurrent
// use.
type Dir struct {
	path  string
	owner *os.File
}

// InUseError is a directory that another process uses.
type InUseError struct{ Path string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("the staging directory %s is used by another conversion", e.Path)
}

// Open takes the directory of a database below path, and makes both if they are
// not there.
func Open(path string, id source.Identity) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("staging directory: %w", err)
	}
	own := filepath.Join(path, below(id))
	for _, p := range []string{path, own} {
		if err := makeDir(p); err != nil {
			return nil, err
		}
	}
	owner, err := os.OpenFile(filepath.Join(own, ownerName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("take the staging directory: %w", err)
	}
	d := &Dir{path: own, owner: owner}
	if err := d.own(id); err != nil {
		owner.Close()
		return nil, err
	}
	return d, nil
}

// below is the name of the directory of a database.
func below(id source.Identity) string {
	sum := sha256.Sum256([]byte(id.Kind + "\x00" + id.Digest))
	return id.Kind + "-" + hex.EncodeToString(sum[:8])
}

// makeDir makes the directory and brings its name to the disk.
func makeDir(path string) error {
	stat, err := os.Stat(path)
	switch {
	case err == nil && !stat.IsDir():
		return fmt.Errorf("%s: is no directory, so no blobs can be put there", path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("staging directory: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the staging directory: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// own makes sure that nobody else uses the directory, says whose it is, and removes
// what was left half written.
func (d *Dir) own(id source.Identity) error {
	if err := lock(d.owner); err != nil {
		if errors.Is(err, errLocked) {
			return &InUseError{d.path}
		}
		return fmt.Errorf("take the staging directory %s: %w", d.path, err)
	}
	id.End = 0 // it grows
	text, err := json.Marshal(id)
	if err == nil {
		err = d.owner.Truncate(0)
	}
	if err == nil {
		_, err = d.owner.WriteAt(append(text, '\n'), 0)
	}
	if err == nil {
		err = d.owner.Sync()
	}
	if err == nil {
		err = syncDir(d.path)
	}
	if err != nil {
		return fmt.Errorf("note of which database the staged blobs are: %w", err)
	}
	return d.each(d.removeHalf)
}

func (d *Dir) removeHalf(e fs.DirEntry) error {
	if !half.MatchString(e.Name()) {
		return nil
	}
	if err := os.Remove(filepath.Join(d.path, e.Name())); err != nil {
		return fmt.Errorf("remove what was left half written: %w", err)
	}
	return nil
}

// each calls fn for everything in the directory.
func (d *Dir) each(fn func(fs.DirEntry) error) error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("list the staging directory: %w", err)
	}
	defer f.Close()
	for {
		list, err := f.ReadDir(512)
		for _, e := range list {
			if err := fn(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the staging directory: %w", err)
		}
	}
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Staged is how many blobs there are, and their bytes.
func (d *Dir) Staged() (n source.BlobCount, err error) {
	err = d.each(func(e fs.DirEntry) error {
		if !staged.MatchString(e.Name()) {
			return nil
		}
		stat, err := e.Info()
		if err != nil {
			return fmt.Errorf("list the staging directory: %w", err)
		}
		n.Blobs++
		n.Bytes += stat.Size()
		return nil
	})
	return n, err
}

// Free is how many bytes this user may still write there; known tells whether the
// system says.
func (d *Dir) Free() (n int64, known bool, err error) {
	n, known, err = free(d.path)
	if err != nil {
		return 0, false, fmt.Errorf("ask for the free space of the staging directory %s: %w", d.path, err)
	}
	return n, known, nil
}

// Put writes the bytes of a blob and returns the path of the file, which is on
// the disk; only its name is not before Sync. A *source.BlobError says that the
// blob cannot be read. told is told of the bytes; what it was told of in vain is
// taken back.
func (d *Dir) Put(ctx context.Context, b *source.Blob, told func(n int64)) (path string, err error) {
	path = filepath.Join(d.path, name(b.OID, b.TID))
	f, err := os.CreateTemp(d.path, filepath.Base(path)+".*.tmp")
	if err != nil {
		return "", d.failed(b, err)
	}
	var written int64
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name()) // or the next one does
			told(-written)
		}
	}()
	err = d.copy(ctx, f, b, func(n int64) {
		written += n
		told(n)
	})
	if err != nil {
		return "", err
	}
	fault.Point("blob.staged")
	if err := f.Sync(); err != nil {
		return "", d.failed(b, err)
	}
	if err := f.Close(); err != nil {
		return "", d.failed(b, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", d.failed(b, err)
	}
	return path, nil
}

// copy writes the bytes of a blob, exactly as many as it says to have.
func (d *Dir) copy(ctx context.Context, to io.Writer, b *source.Blob, told func(int64)) error {
	from, err := b.Open(ctx)
	if err != nil {
		return err
	}
	defer from.Close()
	buffer := make([]byte, max(min(copyBuffer, b.Size+1), 1))
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.ReadAt(buffer, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		at += int64(n)
		if at > b.Size || err != nil && at < b.Size {
			return &source.BlobError{OID: b.OID, TID: b.TID, Path: b.Place(),
				Problem: fmt.Sprintf("gives %d bytes, it had %d when it was found", at, b.Size)}
		}
		if _, e := to.Write(buffer[:n]); e != nil {
			return d.failed(b, e)
		}
		told(int64(n))
		if err != nil {
			return nil
		}
	}
}

func (d *Dir) failed(b *source.Blob, err error) error {
	return fmt.Errorf("stage blob oid %v, tid %v: %w", b.OID, b.TID, err)
}

// Sync brings the names of all blobs that were put to the disk.
func (d *Dir) Sync() error { return syncDir(d.path) }

// Close lets others use the directory.
func (d *Dir) Close() error { return d.owner.Close() }

func name(oid zodb.OID, tid zodb.TID) string {
	return fmt.Sprintf("%016x-%016x.blob", uint64(oid), uint64(tid))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err == nil {
		err = f.Sync()
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("bring a directory to the disk: %w", err)
	}
	return nil
}
