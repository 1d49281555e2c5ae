package filestorage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// blobClass is how much of a record's data the test for blobs looks at. The
	// class pickle of a blob takes about 25 bytes, as a pair 36.
	blobClass = blobPrefix
	// blobPrefix is what of the stored form is read for the test. A compressed
	// record that is longer is no blob: zc.zlibstorage leaves blob records as
	// they are, because compression would make their 25 bytes longer.
	blobPrefix = 128
)

func isCompressed(data []byte) bool { return len(data) >= 2 && data[0] == '.' && data[1] == 'z' }

// isBlob tells whether the record of size bytes whose stored data starts with
// prefix is that of a blob: its first pickle is the class ZODB.blob.Blob, alone
// or in the pair (class, None). Something that merely refers to a blob does not
// count.
//
// ZODB itself writes the class alone, and takes nothing else for a blob when it
// copies a database. zodb-pgjsonb gives (("ZODB.blob", "Blob"), None), so a
// FileStorage that was copied out of one has the pair.
func (z *inflater) isBlob(prefix []byte, size uint64) bool {
	if uint64(len(prefix)) > size {
		prefix = prefix[:size]
	}
	if isCompressed(prefix) {
		if size > blobPrefix || z.reset(prefix[2:]) != nil {
			return false
		}
		plain := z.head[:]
		n, _ := io.ReadFull(z.zr, plain)
		prefix = plain[:n]
	}
	return isBlobClass(prefix)
}

const blobModule, blobName = "ZODB.blob", "Blob"

// classItem is what the machine below knows of a value.
type classItem struct {
	text  string // of a string
	class bool   // the class of blobs, or the pair of its names
	mark  bool
}

// isBlobClass runs the first pickle of a record as far as class pickles go. It
// knows strings, globals, tuples and the memo's stores; anything else is not
// the class pickle of a blob.
func isBlobClass(p []byte) bool {
	var stack []classItem
	for len(p) > 0 && len(stack) < 8 {
		op := p[0]
		if op == '.' {
			return len(stack) == 1 && stack[0].class
		}
		var n int
		var ok bool
		if n = passed(p); n == 0 {
			if stack, n, ok = classStep(stack, p); !ok {
				return false
			}
		}
		if n > len(p) {
			return false
		}
		p = p[n:]
	}
	return false
}

// passed is the length of an instruction that changes nothing here, else 0.
func passed(p []byte) int {
	switch p[0] {
	case 0x80, 'q': // PROTO, BINPUT
		return 2
	case 0x95: // FRAME
		return 9
	case 0x94: // MEMOIZE
		return 1
	case 'r': // LONG_BINPUT
		return 5
	case 'p': // PUT
		return bytes.IndexByte(p, '\n') + 1
	}
	return 0
}

// classStep runs the instruction at the start of p and gives its length.
func classStep(stack []classItem, p []byte) (after []classItem, n int, ok bool) {
	switch p[0] {
	case 'c': // GLOBAL
		names := bytes.SplitN(p[1:], []byte("\n"), 3)
		if len(names) < 3 {
			return nil, 0, false
		}
		class := string(names[0]) == blobModule && string(names[1]) == blobName
		return append(stack, classItem{class: class}), 3 + len(names[0]) + len(names[1]), true
	case 'N', ')': // NONE, EMPTY_TUPLE
		return append(stack, classItem{}), 1, true
	case '(': // MARK
		return append(stack, classItem{mark: true}), 1, true
	case 0x93: // STACK_GLOBAL
		return classPair(stack, len(stack)-2)
	case 0x86: // TUPLE2
		return classPair(stack, len(stack)-2)
	case 't': // TUPLE
		i := len(stack) - 3
		if i < 0 || !stack[i].mark {
			return nil, 0, false
		}
		stack = append(stack[:i], stack[i+1:]...)
		return classPair(stack, i)
	}
	text, n, ok := pickledText(p)
	return append(stack, classItem{text: text}), n, ok
}

// classPair makes one of the two items at the end, which start at i: the names
// of the class are the class, and so are the class and what makes it.
func classPair(stack []classItem, i int) (after []classItem, n int, ok bool) {
	if i < 0 || stack[i].mark || stack[i+1].mark {
		return nil, 0, false
	}
	a, b := stack[i], stack[i+1]
	class := a.class && !b.class && b.text == "" || a.text == blobModule && b.text == blobName
	return append(stack[:i], classItem{class: class}), 1, true
}

// pickledText reads an instruction that gives a string.
func pickledText(p []byte) (text string, n int, ok bool) {
	var size uint64
	switch {
	case (p[0] == 0x8c || p[0] == 'U') && len(p) >= 2: // SHORT_BINUNICODE, SHORT_BINSTRING
		size, n = uint64(p[1]), 2
	case (p[0] == 'X' || p[0] == 'T') && len(p) >= 5: // BINUNICODE, BINSTRING
		size, n = uint64(binary.LittleEndian.Uint32(p[1:])), 5
	default:
		return "", 0, false
	}
	if size > uint64(len(p)-n) {
		return "", 0, false
	}
	n += int(size)
	return string(p[n-int(size) : n]), n, true
}

// Blob implements source.Source. A blob that a back record stands for may lie
// under the tid of the record that the back pointer leads to: ZODB copies the
// file at an undo, but not every tool does.
func (s *Source) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	sc, err := s.scanned()
	if err != nil {
		return nil, err
	}
	b, _, err := s.findBlob(ctx, r.OID, r.TID, r.Pos, sc.end)
	return b, err
}

// findBlob finds the blob of the record at pos, which stands before limit. It
// also returns the tid under which the file lies.
func (s *Source) findBlob(ctx context.Context, oid zodb.OID, tid zodb.TID, pos, limit int64) (b *source.Blob, found zodb.TID, err error) {
	if s.blobs == nil {
		return nil, 0, &source.BlobError{OID: oid, TID: tid, Path: s.path, Missing: true, Problem: "has blobs, but no blob directory was given"}
	}
	b, err = s.blobs.Find(ctx, oid, tid)
	var missing *source.BlobError
	if !errors.As(err, &missing) || !missing.Missing {
		return b, tid, err
	}
	for _, other := range s.otherTIDs(oid, tid, pos, limit) {
		b, err := s.blobs.Find(ctx, oid, other)
		if err == nil {
			return under(b, tid), other, nil
		}
		if again := (*source.BlobError)(nil); !errors.As(err, &again) {
			return nil, 0, err
		}
	}
	return nil, 0, missing
}

// under is the blob of the revision tid whose file was found under another tid.
func under(b *source.Blob, tid zodb.TID) *source.Blob {
	c := *b
	c.TID = tid
	c.Note = fmt.Sprintf("its file lies under tid %v, from which it was copied", b.TID)
	if b.Note != "" {
		c.Note += "; " + b.Note
	}
	return &c
}

// otherTIDs are those under which the blob of a record may lie, too: the tid in
// the record if it differs from that of its transaction, and for a back record
// the first and the last that its chain of back pointers leads to. Nothing, if
// no such record stands at pos.
func (s *Source) otherTIDs(oid zodb.OID, tid zodb.TID, pos, limit int64) (list []zodb.TID) {
	add := func(t zodb.TID) {
		if t != 0 && t != tid && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	if pos < firstPos+txnFixed {
		return nil
	}
	w := &window{r: s.f, limit: limit}
	r, problem, err := readTarget(w, pos, limit)
	if err != nil || problem != "" || r.oid != oid {
		return nil
	}
	add(r.tid)
	var b [8]byte
	if r.plen > 0 || w.small(b[:], pos+recHeader) != nil {
		return list
	}
	var first int64
	last, err := follow(w, s.path, &r, binary.BigEndian.Uint64(b[:]), func(pos int64) bool {
		first = max(first, pos) // each target stands before the last
		return true
	})
	if err != nil || last.plen == 0 {
		return list
	}
	if first != 0 {
		if r, problem, err := readTarget(w, first, pos); err == nil && problem == "" {
			add(r.tid)
		}
	}
	add(last.tid)
	return list
}
