// Package filestorage reads Data.fs, the append-only log in which ZODB's
// FileStorage keeps a database. Files that Python 3 wrote (FS30) and those of
// Python 2 (FS21) have the same layout.
//
// # Format
//
// All integers are big-endian. Four bytes of magic are followed by transactions:
//
//	 0  8  tid
//	 8  8  length of the transaction minus 8
//	16  1  status: ' ' committed, 'p' packed, 'c' being committed, 'u' undone
//	17  6  lengths of user, description and extension, two bytes each
//	23     user, description, extension, then data records back to back
//	 -  8  the length once more
//
// and each data record is
//
//	 0  8  oid
//	 8  8  tid
//	16  8  offset of the previous record of the oid (not reliable, not used)
//	24  8  offset of its transaction
//	32  2  length of a version name (0 since ZODB 3.9)
//	34  8  length of the data
//	42     the data, or, if its length is 0, an 8 byte back pointer: the offset
//	       of the record that holds the data, or 0 if there is none (the object
//	       was deleted, or its creation undone)
//
// The layout is a fact of the files that ZODB has written since 2002. What the
// reader does where they break it differs from ZODB's own iterator, which ends
// without an error at most kinds of damage and so loses the rest of the file.
//
// # Guarantees
//
// Nothing is written, locked or repaired; the file is opened read-only, and its
// index, lock and temporary files are not looked at. A database that a server
// is appending to can be read: the end is fixed by Scan, and an unfinished last
// transaction is left out. Scan checks every length against its copy and the
// size of the file before anything is allocated or skipped by it, so that Read
// meets only what was checked; Read checks again all that memory safety depends
// on.
//
// # Chunks
//
// Scan walks all headers once, forwards, and notes a place to cut about every
// quarter of a megabyte or eight blobs, always before a data record or a
// transaction. Read groups these into chunks, so that a chunk is a range of file
// offsets which depends on the file and on ReadOptions.ChunkBytes only. A transaction may
// span chunks. For a ChunkBytes below the grid (tests), the ranges between two
// places are cut finer while reading.
//
// # Blobs
//
// A record is that of a blob if its class is ZODB.blob.Blob. Its bytes are a file
// in the blob directory (package blobdir), under the oid of the record and the
// tid of its transaction, also if the record is a back pointer: an undo copies
// the file. Where that copy is missing, the file that it was made of is taken.
// Scan looks for each file, and counts those that no record refers to; files
// with a newer tid than the last transaction belong to transactions that are
// being committed.
//
// # Memory
//
// A chunk takes its range in bytes, RecordCost for each of its records,
// and DecodeFactor times its largest record for what decoding and writing need;
// this is what it acquires from the Budget. The table of places takes 40 bytes
// per quarter of a megabyte (16 MB for 100 GB), the set of seen oids a bit or so
// for each oid that ZODB allocated in sequence and 20 to 40 bytes for each that
// was scattered over all numbers (Info.SeenBytes); while it grows, half as much
// again.
package filestorage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobdir"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Kind is the Identity.Kind of this source.
const Kind = "filestorage"

const (
	// DecodeFactor is how many times the size of its largest record a chunk
	// takes from the budget beside the chunk itself: the value tree and the
	// JSON text of one record at a time.
	DecodeFactor = 5
	// RecordCost is what one record takes in memory beside its bytes: its
	// source.Record and its place in the reader's lists.
	RecordCost = 96
)

// Source is an open FileStorage. It implements source.Log.
type Source struct {
	path string
	f    *os.File
	stat fs.FileInfo

	blobs *blobdir.Dir // nil if none was given

	scan *scan // what was scanned so far; nil before the first Scan

	segments  sync.Pool // *segment
	inflaters sync.Pool // *inflater
}

var _ source.Log = (*Source)(nil)

// ChangedError tells that a file is not the one that an earlier scan saw, or no
// longer: it was packed, truncated or replaced.
type ChangedError struct {
	Path    string
	End     int64 // where the earlier scan ended
	Problem string
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s: is not the database that was read up to offset %d before: %s; it was packed, truncated or replaced meanwhile", e.Path, e.End, e.Problem)
}

// Options control Open.
type Options struct {
	// BlobDir is the blob directory of the database, "" if it has none.
	BlobDir string
}

// Open opens a Data.fs for reading. An empty file is an empty database, as it
// is for ZODB; Scan says so in a warning.
func Open(ctx context.Context, path string, opts Options) (*Source, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	// Looked at before opening, because opening a pipe would wait for a writer.
	if stat, err := os.Stat(path); err != nil {
		return nil, openError(path, err)
	} else if err := checkType(path, stat); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(path, err)
	}
	s := &Source{path: path, f: f}
	if s.stat, err = f.Stat(); err == nil {
		err = checkType(path, s.stat)
	}
	if err == nil {
		_, err = s.magic()
	}
	if err == nil && opts.BlobDir != "" {
		s.blobs, err = blobdir.Open(ctx, opts.BlobDir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no such file; give the path of an existing Data.fs (none was created): %w", path, fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: this user (uid %d) may not read it; run as the user of the ZODB server, or grant read access: %w", path, os.Geteuid(), fs.ErrPermission)
	}
	return fmt.Errorf("open FileStorage: %w", err)
}

func checkType(path string, stat fs.FileInfo) error {
	switch mode := stat.Mode(); {
	case mode.IsRegular(), mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		return nil
	case mode.IsDir():
		return fmt.Errorf("%s: is a directory; give the Data.fs in it, usually %s", path, filepath.Join(path, "Data.fs"))
	default:
		return fmt.Errorf("%s: is neither a file nor a block device (%v)", path, mode.Type())
	}
}

// magic reads the first four bytes. It tells whether Python 2 wrote the file;
// that of an empty file is unknown.
func (s *Source) magic() (python2 bool, err error) {
	var m [4]byte
	n, err := s.f.ReadAt(m[:], 0)
	if err != nil && err != io.EOF {
		return false, openError(s.path, err)
	}
	switch {
	case n == 0:
		return false, nil
	case n < len(m):
		return false, fmt.Errorf("%s: is not a FileStorage: it has only %d bytes, a Data.fs starts with the 4 bytes FS30 or FS21", s.path, n)
	case string(m[:]) == "FS30":
		return false, nil
	case string(m[:]) == "FS21":
		return true, nil
	}
	return false, fmt.Errorf("%s: is not a FileStorage: it starts with %q, a Data.fs with FS30 or FS21", s.path, m[:])
}

// size is how long the file is now.
func (s *Source) size() (int64, error) {
	if s.stat.Mode().IsRegular() {
		stat, err := s.f.Stat()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", s.path, err)
		}
		return stat.Size(), nil
	}
	n, err := s.f.Seek(0, io.SeekEnd) // the only use of the file position
	if err != nil {
		return 0, fmt.Errorf("%s: size of the device: %w", s.path, err)
	}
	return n, nil
}

// Close closes the file.
func (s *Source) Close() error { return s.f.Close() }

func (s *Source) damage(pos int64, last zodb.TID, f *fault) error {
	return &source.DamageError{Path: s.path, Pos: pos, LastTID: last, Problem: f.problem, Hint: f.hint}
}

// errNotScanned is a mistake of the caller.
var errNotScanned = errors.New("filestorage: Scan must succeed before the file is read")

func (s *Source) scanned() (*scan, error) {
	if s.scan == nil || s.scan.broken {
		return nil, errNotScanned
	}
	return s.scan, nil
}
