package jsonb

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// Reader turns states in JSONB back into ZODB records, byte by byte as
// zodb-pgjsonb with the released codec (zodb-json-codec 1.7.0) does on a load.
// It tells what the application will see, and refuses what fails there: an error
// means that the object cannot be loaded.
//
// The reader of the codec has two ways through the JSON that treat dicts which
// look like markers differently. It starts in the direct one; below certain
// markers it goes on in the general one. Both are reproduced here, with their
// limits on depth.
//
// A Reader keeps its buffers between calls; the zero value is ready. It is not
// for several goroutines at once. Measured on one core of a 2-core machine with
// rows of 3 KB: 160 MB/s of JSON for small dicts, 250 MB/s for BTrees, 780 MB/s
// for a page of text, and no allocation.
type Reader struct {
	doc     document
	out     []byte
	depth   int  // objects and lists that are open
	generic bool // inside a reference of a general form: no short forms there
	dropped int  // > 0: what is read will be thrown away
}

// AppendRecord appends the record that a load of the row gives: module and name
// are the class columns, state is the text of the state column. The steps are
// those of the storage: JSON is parsed, {"@ns": ...} becomes the string it
// stands for wherever it is, the rest is up to the codec.
//
// When the state cannot be read, the error tells why and dst is returned as it
// was.
func (r *Reader) AppendRecord(dst []byte, module, name string, state []byte) ([]byte, error) {
	r.doc.resolve, r.doc.deepest = true, maxLoadNesting
	return r.appendRecord(dst, module, name, state)
}

// AppendUnsanitized is the codec's part of AppendRecord alone: the record for a
// state in which the storage has resolved every {"@ns": ...} already.
func (r *Reader) AppendUnsanitized(dst []byte, module, name string, state []byte) ([]byte, error) {
	r.doc.resolve, r.doc.deepest = false, maxNesting
	return r.appendRecord(dst, module, name, state)
}

// AppendRecord is Reader.AppendRecord for callers with a single row.
func AppendRecord(dst []byte, module, name string, state []byte) ([]byte, error) {
	return new(Reader).AppendRecord(dst, module, name, state)
}

func (r *Reader) appendRecord(dst []byte, module, name string, state []byte) ([]byte, error) {
	if err := r.doc.parse(state); err != nil {
		return dst, err
	}
	r.depth, r.generic, r.dropped = 0, false, 0
	r.out = appendClassPickle(dst, module, name)
	r.out = append(r.out, protocol2...)
	var err error
	if shape := shapeOf(module, name); shape != shapeless {
		err = r.btreeState(0, shape, direct)
	} else {
		err = r.value(0, direct)
	}
	out := append(r.out, opStop)
	r.out, r.doc.source = nil, nil // both belong to the caller
	if err != nil {
		return dst, err
	}
	return out, nil
}

// direct stands in for a depth while the direct way is taken. In the general
// way the depth counts from the marker that led there: the codec builds a tree
// of pickle values below it, and limits the depth of that tree too.
const direct = -1

// maxCodecDepth limits the nesting of dicts and lists as well as the depth of
// a tree of values.
const maxCodecDepth = 1000

var errDepth = errors.New("maximum nesting depth exceeded")

// below is the depth of what stands n levels deeper.
func below(depth, n int) int {
	if depth == direct {
		return direct
	}
	return depth + n
}

// limit checks the depth of a value in the tree of values. The codec does so
// when it writes the tree, hence not for a value that it drops before.
func (r *Reader) limit(depth int) error {
	if depth > maxCodecDepth && r.dropped == 0 {
		return errDepth
	}
	return nil
}

// enter counts an open dict or list.
func (r *Reader) enter() error {
	if r.depth >= maxCodecDepth {
		return errDepth
	}
	r.depth++
	return nil
}

func (r *Reader) leave() { r.depth-- }

// next is the node behind node i and everything below it.
func (r *Reader) next(i uint32) uint32 { return i + r.doc.nodes[i].span }

// text is the string or number at node i.
func (r *Reader) text(i uint32) []byte { return r.doc.bytes(&r.doc.nodes[i]) }

func (r *Reader) is(i uint32, kind jsonKind) bool { return r.doc.nodes[i].kind == kind }

// isList tells whether node i is an array of so many elements.
func (r *Reader) isList(i, size uint32) bool {
	return r.is(i, jsonArray) && r.doc.nodes[i].size == size
}

// member finds a member of the object at node i; 0, the root, stands for none.
func (r *Reader) member(i uint32, key string) uint32 {
	at := i + 1
	for range r.doc.nodes[i].size {
		if string(r.text(at)) == key {
			return at + 1
		}
		at = r.next(at + 1)
	}
	return 0
}

// value writes node i and everything below it.
func (r *Reader) value(i uint32, depth int) error {
	if err := r.limit(depth); err != nil {
		return err
	}
	switch n := &r.doc.nodes[i]; n.kind {
	case jsonNull:
		r.out = append(r.out, opNone)
	case jsonTrue:
		r.out = append(r.out, opTrue)
	case jsonFalse:
		r.out = append(r.out, opFalse)
	case jsonString:
		r.out = appendRecordText(r.out, r.doc.bytes(n))
	case jsonInt:
		return r.integer(r.doc.bytes(n))
	case jsonFloat:
		return r.float(r.doc.bytes(n))
	case jsonArray:
		if err := r.enter(); err != nil {
			return err
		}
		defer r.leave()
		return r.list(i, below(depth, 1))
	case jsonObject:
		if err := r.enter(); err != nil {
			return err
		}
		defer r.leave()
		return r.object(i, depth)
	}
	return nil
}

func (r *Reader) integer(text []byte) error {
	if v, ok := smallInteger(text); ok {
		r.out = appendRecordInt(r.out, v)
		return nil
	}
	return r.bigInteger(text)
}

func (r *Reader) bigInteger(text []byte) error {
	v, err := parseInteger(text)
	if err != nil {
		return err
	}
	r.out = appendRecordBig(r.out, v)
	return nil
}

// smallInteger is the value of the text of a JSON integer that fits 64 bits.
func smallInteger(text []byte) (int64, bool) {
	if len(text) < 19 {
		negative := text[0] == '-'
		if negative {
			text = text[1:]
		}
		var v int64
		for _, c := range text {
			v = v*10 + int64(c-'0')
		}
		if negative {
			v = -v
		}
		return v, true
	}
	v, err := strconv.ParseInt(string(text), 10, 64)
	return v, err == nil
}

func (r *Reader) float(text []byte) error {
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) { // a huge one is infinite, as in Python
		return err
	}
	r.out = append(r.out, opBinFloat)
	r.out = binary.BigEndian.AppendUint64(r.out, math.Float64bits(v))
	return nil
}

// list writes the array at node i as a list whose elements have the given depth.
func (r *Reader) list(i uint32, depth int) error {
	r.out = append(r.out, opEmptyList)
	return r.appends(i, depth)
}

// appends writes the elements of the array at node i into the list or object
// that is on the stack.
func (r *Reader) appends(i uint32, depth int) error {
	if r.doc.nodes[i].size == 0 {
		return nil
	}
	r.out = append(r.out, opMark)
	if err := r.elements(i, depth); err != nil {
		return err
	}
	r.out = append(r.out, opAppends)
	return nil
}

func (r *Reader) elements(i uint32, depth int) error {
	at := i + 1
	for range r.doc.nodes[i].size {
		if err := r.value(at, depth); err != nil {
			return err
		}
		at = r.next(at)
	}
	return nil
}

// tuple writes the array at node i as a tuple.
func (r *Reader) tuple(i uint32, depth int) error {
	size := int(r.doc.nodes[i].size)
	r.openTuple(size)
	if err := r.elements(i, depth); err != nil {
		return err
	}
	r.closeTuple(size)
	return nil
}

// openTuple begins a tuple of so many elements, closeTuple ends it.
func (r *Reader) openTuple(size int) {
	if size > 3 {
		r.out = append(r.out, opMark)
	}
}

func (r *Reader) closeTuple(size int) {
	switch size {
	case 0:
		r.out = append(r.out, opEmptyTuple)
	case 1:
		r.out = append(r.out, opTuple1)
	case 2:
		r.out = append(r.out, opTuple2)
	case 3:
		r.out = append(r.out, opTuple3)
	default:
		r.out = append(r.out, opTuple)
	}
}

// dict writes the object at node i as a dict.
func (r *Reader) dict(i uint32, depth int) error {
	r.out = append(r.out, opEmptyDict)
	size := r.doc.nodes[i].size
	if size == 0 {
		return nil
	}
	r.out = append(r.out, opMark)
	at := i + 1
	for range size {
		if err := r.limit(depth); err != nil {
			return err
		}
		if err := r.key(r.text(at)); err != nil {
			return err
		}
		if err := r.value(at+1, depth); err != nil {
			return err
		}
		at = r.next(at + 1)
	}
	r.out = append(r.out, opSetItems)
	return nil
}

// keyPrefix begins a key that is written in base64, because it holds NUL or
// begins with the prefix itself.
const keyPrefix = "@ns:"

func (r *Reader) key(text []byte) error {
	if len(text) < len(keyPrefix) || string(text[:len(keyPrefix)]) != keyPrefix {
		r.out = appendRecordText(r.out, text)
		return nil
	}
	return r.encodedText(text[len(keyPrefix):])
}

// encodedText writes the string that base64 text stands for.
func (r *Reader) encodedText(text []byte) error {
	from := len(r.out)
	r.out = append(r.out, opBinUnicode, 0, 0, 0, 0)
	var err error
	if r.out, err = appendBase64(r.out, text); err != nil {
		return fmt.Errorf("@ns: %w", err)
	}
	decoded := r.out[from+5:]
	if !utf8.Valid(decoded) {
		return errors.New("@ns does not decode to UTF-8")
	}
	binary.LittleEndian.PutUint32(r.out[from+1:], uint32(len(decoded)))
	return nil
}

// pairs writes an array of [key, value] into the dict or object that is on the
// stack. Elements of another shape are skipped, or refused when strict.
func (r *Reader) pairs(i uint32, strict bool, depth int) error {
	from := len(r.out)
	r.out = append(r.out, opMark)
	at, found := i+1, false
	for range r.doc.nodes[i].size {
		if r.isList(at, 2) {
			found = true
			if err := r.elements(at, depth); err != nil {
				return err
			}
		} else if strict {
			return errors.New("items must be a list of [key, value] pairs")
		}
		at = r.next(at)
	}
	if !found {
		r.out = r.out[:from]
		return nil
	}
	r.out = append(r.out, opSetItems)
	return nil
}

// oid writes an oid that is given in hex.
func (r *Reader) oid(text []byte) error {
	var oid [8]byte
	if len(text) != 2*len(oid) {
		return fmt.Errorf("@ref: an oid has 16 hex digits, this has %d characters", len(text))
	}
	if _, err := hex.Decode(oid[:], text); err != nil {
		return fmt.Errorf("@ref: %w", err)
	}
	r.out = append(r.out, opShortBinBytes, byte(len(oid)))
	r.out = append(r.out, oid[:]...)
	return nil
}

// base64 writes the bytes that base64 text stands for.
func (r *Reader) base64(text []byte) error {
	from := len(r.out)
	var err error
	if r.out, err = appendBase64(r.out, text); err != nil {
		return err
	}
	r.out = appendRecordBytes(r.out, from)
	return nil
}
