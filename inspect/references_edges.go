package inspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"
)

const (
	// edgeBlock is how much a writer collects before it writes.
	edgeBlock = 256 << 10
	// announcedEdgeBytes is what an object is expected to take in the temporary file:
	// it is 6 in small sites and 14 in one of a million objects with three references
	// each. Each reference takes two or three bytes, so that 70 is possible, too.
	announcedEdgeBytes = 20
)

// edges is what the temporary file holds of one object, as varints: its oid, its
// class, its size, and the oids that it refers to, each as the difference to the one
// before it, the first to its own.
type edges struct {
	oid    uint64
	class  uint32
	size   uint64
	strong []uint64
	weak   []uint64
}

// maxCompacted is up to which number references are sorted, which makes them
// shorter and each come once.
const maxCompacted = 1 << 16

func compacted(oids []uint64) []uint64 {
	if len(oids) < 2 || len(oids) > maxCompacted {
		return oids
	}
	slices.Sort(oids)
	return slices.Compact(oids)
}

func appendEdges(b []byte, e *edges) []byte {
	b = binary.AppendUvarint(b, e.oid)
	b = binary.AppendUvarint(b, uint64(e.class))
	b = binary.AppendUvarint(b, e.size)
	count := uint64(len(e.strong)) << 1
	if len(e.weak) > 0 {
		count |= 1
	}
	b = binary.AppendUvarint(b, count)
	b = appendDifferences(b, e.oid, e.strong)
	if len(e.weak) > 0 {
		b = binary.AppendUvarint(b, uint64(len(e.weak)))
		b = appendDifferences(b, e.oid, e.weak)
	}
	return b
}

func appendDifferences(b []byte, last uint64, oids []uint64) []byte {
	for _, oid := range oids {
		b = binary.AppendVarint(b, int64(oid-last))
		last = oid
	}
	return b
}

// varints reads what appendEdges has written. Behind the end of b it stays at it.
type varints struct {
	b    []byte
	pos  int
	over bool
}

func (v *varints) next() uint64 {
	if v.pos < len(v.b) && v.b[v.pos] < 0x80 {
		v.pos++
		return uint64(v.b[v.pos-1])
	}
	x, n := binary.Uvarint(v.b[v.pos:])
	if n <= 0 {
		v.over = true
		return 0
	}
	v.pos += n
	return x
}

func (v *varints) differences(to []uint64, last, n uint64) []uint64 {
	if n > uint64(len(v.b)-v.pos) { // each has a byte at least
		v.over = true
		return to
	}
	for range n {
		x := v.next()
		last += x>>1 ^ -(x & 1)
		to = append(to, last)
	}
	return to
}

// read reads the edges of one object at the start of b and returns their length, 0
// if they go on behind its end.
func (e *edges) read(b []byte) int {
	v := varints{b: b}
	e.oid, e.class, e.size = v.next(), uint32(v.next()), v.next()
	count := v.next()
	e.strong, e.weak = v.differences(e.strong[:0], e.oid, count>>1), e.weak[:0]
	if count&1 != 0 {
		e.weak = v.differences(e.weak, e.oid, v.next())
	}
	if v.over {
		return 0
	}
	return v.pos
}

// edgeFile is the temporary file. Several writers append to it.
type edgeFile struct {
	file *os.File
	// left is the path of the file if the system does not let go of the name of a
	// file that is open.
	left string

	mu     sync.Mutex
	size   int64
	failed error
}

func createEdgeFile(dir string) (*edgeFile, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.CreateTemp(dir, "zodb-convert-references-*.tmp") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("create a temporary file for references in %s: %w; name another folder with --temp-dir, or leave out what needs it with --no-reachability", dir, err)
	}
	e := &edgeFile{file: f}
	if err := os.Remove(f.Name()); err != nil {
		e.left = f.Name()
	}
	return e, nil
}

// append adds a block.
func (e *edgeFile) append(block []byte) error {
	e.mu.Lock()
	at := e.size
	e.size += int64(len(block))
	err := e.failed
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if at+int64(len(block)) > maxOffset {
		err = errors.New("they are more than a terabyte")
	} else {
		_, err = e.file.WriteAt(block, at)
	}
	if err != nil {
		err = fmt.Errorf("references cannot be written to the temporary file %s at %d MB: %w; name a folder with more room with --temp-dir, or leave out what needs it with --no-reachability",
			e.file.Name(), at>>20, err)
		e.mu.Lock()
		e.failed = err
		e.mu.Unlock()
	}
	return err
}

// empty gives the room back that a file takes which nobody will read: whoever else
// uses the disk needs it.
func (e *edgeFile) empty() { _ = e.file.Truncate(0) }

func (e *edgeFile) close() error {
	err := e.file.Close()
	if e.left != "" {
		err = errors.Join(err, os.Remove(e.left))
	}
	if err != nil {
		return fmt.Errorf("remove the temporary file for references: %w", err)
	}
	return nil
}

const (
	// nearEdges is how far apart objects may lie in the file to be read at one go.
	nearEdges = 64 << 10
	// edgeWindow is how much is read then, farEdges how much otherwise.
	edgeWindow = 256 << 10
	farEdges   = 4 << 10
)

// edgeReader reads edges at ascending places.
type edgeReader struct {
	from   *edgeFile
	window []byte
	at     int64 // where the window is
	edges  edges
}

// read reads the edges at a place into r.edges and tells where the next ones are.
// next is the place that is asked for after this one.
func (r *edgeReader) read(at, next int64) (end int64, err error) {
	if at >= r.at && at < r.at+int64(len(r.window)) {
		if n := r.edges.read(r.window[at-r.at:]); n > 0 {
			return at + int64(n), nil
		}
	}
	size := farEdges
	if next-at <= nearEdges {
		size = edgeWindow
	}
	for ; ; size *= 4 {
		left := r.from.size - at
		if err := r.fill(at, int(min(int64(size), left, math.MaxInt32))); err != nil {
			return 0, err
		}
		if n := r.edges.read(r.window); n > 0 {
			return at + int64(n), nil
		}
		if int64(size) >= left {
			return 0, r.fail(errDamagedEdges)
		}
	}
}

func (r *edgeReader) fill(at int64, size int) error {
	if cap(r.window) < size || cap(r.window) > max(4*size, 2*edgeWindow) {
		r.window = make([]byte, max(size, edgeWindow))
	}
	r.at, r.window = at, r.window[:size]
	n, err := r.from.file.ReadAt(r.window, at)
	if n == size {
		return nil
	}
	r.window = r.window[:n]
	if err == io.EOF {
		err = errDamagedEdges
	}
	return r.fail(err)
}

func (r *edgeReader) fail(err error) error {
	return fmt.Errorf("references cannot be read from the temporary file %s: %w", r.from.file.Name(), err)
}
