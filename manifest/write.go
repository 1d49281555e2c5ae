package manifest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/zodb-convert/zodb-convert/internal/fault"
)

// Lines calls add for each line of a manifest, by oid and tid.
type Lines func(add func(Line) error) error

// Encode writes lines to w.
func Encode(w io.Writer, lines Lines) (Total, error) {
	out := bufio.NewWriterSize(w, 64<<10)
	e := encoder{out: out}
	if err := lines(e.add); err != nil {
		return e.total, err
	}
	return e.total, out.Flush()
}

// Write writes the manifest at path, in the place of one that is there: to a
// temporary file beside it, which takes its name when it is whole and on the
// disk. Whatever goes wrong before leaves path as it was.
func Write(path string, lines Lines) (Total, error) {
	return replace(path, func(f io.Writer) (Total, error) { return Encode(f, lines) })
}

// Update is Write that keeps the lines of the manifest at path, if there is
// one: each once, without those whose key gone tells to be replaced or deleted.
// Where both have a line for the same key, that of lines counts.
func Update(path string, gone func(key string) bool, lines Lines) (Total, error) {
	earlier, err := openEarlier(path)
	if err != nil {
		return Total{}, err
	}
	defer earlier.close()
	return replace(path, func(f io.Writer) (Total, error) {
		return Encode(f, func(add func(Line) error) error { return merge(earlier, gone, lines, add) })
	})
}

// encoder writes and counts lines.
type encoder struct {
	out   *bufio.Writer
	total Total
	text  []byte
}

func (e *encoder) add(l Line) (err error) {
	if e.text, err = l.AppendText(e.text[:0]); err != nil {
		return err
	}
	e.total.Lines++
	e.total.Bytes += l.Size
	_, err = e.out.Write(e.text)
	return err
}

// merge gives the lines of both in order. Both are sorted.
func merge(old *earlier, gone func(string) bool, lines Lines, add func(Line) error) error {
	have, more, err := old.next()
	if err != nil {
		return err
	}
	keep := func() error {
		if gone != nil && gone(have.Key()) {
			return nil
		}
		return add(have)
	}
	// pass gives what is left of the earlier lines before l, and drops equal ones.
	pass := func(l *Line) error {
		for ; more && (l == nil || compare(have, *l) <= 0); have, more, err = old.next() {
			if l != nil && compare(have, *l) == 0 {
				continue
			}
			if err := keep(); err != nil {
				return err
			}
		}
		return err
	}
	if err := lines(func(l Line) error {
		if err := pass(&l); err != nil {
			return err
		}
		return add(l)
	}); err != nil {
		return err
	}
	return pass(nil)
}

// earlier gives the lines of an existing manifest by oid and tid, each once.
// Those that are written here are sorted, and then they need not be in memory
// together.
type earlier struct {
	file   *os.File
	in     *Reader
	sorted []Line // of a manifest that is not sorted: what is left
	last   *Line
}

func openEarlier(path string) (*earlier, error) {
	inOrder, last := true, (*Line)(nil)
	err := Each(path, func(l Line) error {
		inOrder = inOrder && (last == nil || compare(*last, l) <= 0)
		last = &l
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return &earlier{}, nil
	}
	if err != nil {
		return nil, err
	}
	e := &earlier{}
	if !inOrder {
		err := Each(path, func(l Line) error {
			e.sorted = append(e.sorted, l)
			return nil
		})
		slices.SortStableFunc(e.sorted, compare)
		return e, err
	}
	if e.file, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open the manifest: %w", err)
	}
	e.in = NewReader(e.file, path)
	return e, nil
}

func (e *earlier) next() (Line, bool, error) {
	for {
		l, ok, err := e.any()
		if err != nil || !ok {
			return Line{}, false, err
		}
		if e.last != nil && compare(*e.last, l) == 0 {
			continue
		}
		e.last = &l
		return l, true, nil
	}
}

func (e *earlier) any() (Line, bool, error) {
	if e.in == nil {
		if len(e.sorted) == 0 {
			return Line{}, false, nil
		}
		l := e.sorted[0]
		e.sorted = e.sorted[1:]
		return l, true, nil
	}
	l, err := e.in.Next()
	if errors.Is(err, io.EOF) {
		return Line{}, false, nil
	}
	return l, err == nil, err
}

func (e *earlier) close() {
	if e.file != nil {
		e.file.Close()
	}
}

// replace lets write fill a file that then takes the name path.
func replace(path string, write func(io.Writer) (Total, error)) (total Total, err error) {
	f, err := createBeside(path)
	if err != nil {
		return total, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if total, err = write(f); err != nil {
		return total, err
	}
	fault.Point("manifest.written")
	if err = f.Sync(); err != nil {
		return total, err
	}
	if err = f.Close(); err != nil {
		return total, err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return total, err
	}
	fault.Point("manifest.renamed")
	// From here on path is what it should be; what may be lost by a crash of the
	// machine is its name only, and that is an error, too.
	if e := syncDir(filepath.Dir(path)); e != nil {
		return total, fmt.Errorf("bring the name of %s to the disk: %w", path, e)
	}
	return total, nil
}

// createBeside makes a file in the folder of path, with the rights that any new
// file gets: somebody else may do the upload.
func createBeside(path string) (*os.File, error) {
	for {
		name := fmt.Sprintf("%s.%08x.tmp", path, rand.Uint32())
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}

func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil // a folder cannot be opened for that there
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
