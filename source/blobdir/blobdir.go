// Package blobdir reads the directory in which ZODB keeps the bytes of blobs:
// one file for each revision of each blob, named by its oid and tid.
//
// # Format
//
// The file .layout in the directory says how the others are arranged. Below,
// an id is written as 0x and its bytes in lower-case hexadecimal, without the
// leading zero bytes, but with one byte at least:
//
//	bushy  0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x02/0x040d2886fae38355.blob
//	       one directory for each byte of the oid, then the tid
//	lawn   0x02/0x040d2886fae38355.blob
//	       one directory for each oid, then the tid
//
// Directories without .layout are found, too: ZODB takes them for lawn as soon
// as there is anything in them, writes that down for good, and finds no blob
// any more if they were bushy (a copy that left out hidden files). So here the
// names on disk count for more than .layout does, and a blob is looked for in
// both places before it is called missing.
//
// The layout "zeocache" is that of a client's cache, which holds what happened
// to be used. It is refused, as is any other.
//
// Everything else is ignored: tmp with what was not committed, savepoints,
// locks, names that are not written as above.
//
// # Guarantees
//
// Nothing is written, locked or renamed, so the directory may be a read-only
// snapshot. A file that is there but cannot be read is never called missing. A
// directory that has disappeared as a whole (unmounted, replaced) is an error
// of its own, not that of its blobs. On NFS a handle that became stale is
// opened again.
//
// The names are facts of the directories that ZODB has written since 3.8.
package blobdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Dir is a blob directory. It is safe for concurrent use.
type Dir struct {
	path    string
	stat    fs.FileInfo
	layout  Layout // where a blob is looked for first
	warning string
}

// Open looks at the blob directory at path: what .layout says, and what is
// really there.
func Open(ctx context.Context, path string) (*Dir, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("blob directory: %w", err)
	}
	stat, err := os.Stat(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if !stat.IsDir() {
		return nil, fmt.Errorf("%s: is no directory; give the blob directory of the database, usually named blobstorage", path)
	}
	d := &Dir{path: path, stat: stat}
	marker, err := d.marker()
	if err != nil {
		return nil, err
	}
	found, err := d.sniff(ctx)
	if err != nil {
		return nil, err
	}
	return d, d.choose(marker, found)
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no such blob directory (none was created): %w", path, fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: this user (uid %d) may not read the blob directory; run as the user of the ZODB server, or grant read access: %w", path, os.Geteuid(), fs.ErrPermission)
	}
	return fmt.Errorf("open blob directory: %w", err)
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Layout is where a blob is looked for first.
func (d *Dir) Layout() Layout { return d.layout }

// Warning is empty or says in one sentence what is odd about the directory.
func (d *Dir) Warning() string { return d.warning }

// Find finds the file of a blob. A *source.BlobError says that there is none or
// that it cannot be read; any other error does not concern this blob alone.
func (d *Dir) Find(ctx context.Context, oid zodb.OID, tid zodb.TID) (*source.Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := File(oid, tid, d.join(d.layout, oid, tid))
	var first *source.BlobError
	if !errors.As(err, &first) || !first.Missing {
		return b, err
	}
	other := d.layout.other()
	b, err = File(oid, tid, d.join(other, oid, tid))
	switch missing := (*source.BlobError)(nil); {
	case err == nil:
		b.Note = fmt.Sprintf("it lies in the layout %s, while the directory has the layout %s", other, d.layout)
		return b, nil
	case !errors.As(err, &missing) || !missing.Missing:
		return nil, err
	}
	if err := d.present(); err != nil {
		return nil, err
	}
	return nil, first
}

func (d *Dir) join(l Layout, oid zodb.OID, tid zodb.TID) string {
	return filepath.Join(d.path, l.name(oid, tid))
}

// present tells whether the directory is still the one that was opened. Else
// every blob would seem to be missing.
func (d *Dir) present() error {
	stat, err := os.Stat(d.path)
	switch {
	case err != nil:
		return fmt.Errorf("the blob directory cannot be reached any more: %w", err)
	case !os.SameFile(stat, d.stat):
		return fmt.Errorf("%s: is another directory than the one that was opened; was the blob directory unmounted or replaced meanwhile?", d.path)
	}
	return nil
}
