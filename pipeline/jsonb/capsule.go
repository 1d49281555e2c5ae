package jsonb

import (
	"compress/zlib"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// A capsule is a state that is a pickle in a call:
//
//	functools.partial(pickle.loads, buffers=[hole, ...])(blob)
//
// The blob is the record's own pickle, opcode by opcode, but that it takes every
// class and every persistent object from the list of holes, which are ordinary
// JSON: so ZODB looks up the classes, loads the objects as ghosts, and finds the
// references. It holds whatever a pickle can say: cycles, sharing, depth. SQL
// sees nothing of it but classes and references.
//
// Both releases of the codec read it, because it is made of calls alone. That
// the unpickler does not ask what kind of thing a buffer is, is not documented,
// but true of CPython's unpicklers, the one in C and the one in Python, since 3.8
// brought protocol 5.
const (
	capsuleHead = `{"@reduce":{"callable":{"@reduce":{"callable":{"@cls":["copyreg","__newobj_ex__"]},"args":{"@t":[` +
		`{"@cls":["functools","partial"]},{"@t":[{"@cls":["pickle","loads"]}]},{"buffers":[`
	capsuleMiddle = `]}]}}},"args":{"@t":[`
	capsuleTail   = `]}}}`
	inflateHead   = `{"@reduce":{"callable":{"@cls":["zlib","decompress"]},"args":{"@t":[`
	inflateTail   = `]}}}`

	// holeDepth is how many arrays and objects are open around a hole.
	holeDepth = 8
)

// otherwise settles a record whose direct form has ended in a panic: by a
// capsule, if it can be one.
func (e *Encoder) otherwise(p any) (row *Row, err error) {
	cause := e.rejected(p)
	if cause.capsule == 0 {
		return nil, cause
	}
	row, err = e.capsule(cause.capsule)
	if err == nil || cause.capsule != CapsuleShared {
		return row, err
	}
	return e.copied()
}

// copied writes a state whose sharing cannot be preserved.
func (e *Encoder) copied() (row *Row, err error) {
	defer func() {
		if p := recover(); p != nil {
			row, err = nil, e.rejected(p)
		}
	}()
	e.again()
	return e.direct(e.root), nil
}

// capsule writes the state of the record as a capsule.
func (e *Encoder) capsule(form Form) (row *Row, err error) {
	defer func() {
		if p := recover(); p != nil {
			row, err = nil, e.rejected(p)
		}
	}()
	e.again()
	e.row.Forms[form] = 1
	e.checkNodes()
	extract := e.machine.AppendExtract(e.blob[:0])
	e.blob = extract.Pickle
	e.row.Forms[Python2Text] += extract.Texts
	e.row.Forms[Python2Bytes] += extract.Bytes
	e.out = append(e.out, capsuleHead...)
	e.out = e.holes(e.out, extract.Holes)
	e.out = append(e.out, capsuleMiddle...)
	e.out = e.pickled(e.out)
	e.row.State = e.out
	return &e.row, nil
}

// again forgets what was made of the state so far.
func (e *Encoder) again() {
	e.restart()
	e.preserving = false
	e.nodes = e.machine.Nodes()
	for i := range e.nodes {
		e.nodes[i].Flags &^= pickle.Seen
	}
	e.out = e.out[:0]
	e.row.Refs, e.row.Loose, e.row.NewCodec = e.row.Refs[:0], e.row.Loose[:0], false
	e.row.Forms = Counts{Python2Class: e.row.Forms[Python2Class]}
}

// checkNodes rejects what Python itself does not read, and finds the strings of
// Python 2 that are bytes whatever is in them: the payload of dates. Those in
// persistent ids and in the class pickle are dropped by the blob; they are
// marked, too, so that they are not counted.
func (e *Encoder) checkNodes() {
	for i := range e.nodes {
		switch n := &e.nodes[i]; n.Kind {
		case pickle.Py2Str:
			if int(n.Pos) < e.stateAt {
				e.markBytes([]pickle.Ref{pickle.Ref(i)})
			}
		case pickle.Str:
			if n.Flags&pickle.Invalid != 0 {
				e.reject(n, "a text is not UTF-8")
			}
		case pickle.LongText:
			e.checkDigits(n)
		case pickle.Call:
			args, callable := &e.nodes[n.B], &e.nodes[n.A]
			if args.Kind == pickle.Tuple && args.B > 0 && callable.Kind == pickle.Global &&
				string(e.machine.Data(&e.nodes[callable.A])) == "datetime" {
				e.markBytes(e.machine.Kids(args)[:1])
			}
		case pickle.PersID:
			e.markID(pickle.Ref(n.A), 2)
		}
	}
}

// markID marks the strings in a persistent id, which are within two levels.
func (e *Encoder) markID(r pickle.Ref, levels int) {
	e.markBytes([]pickle.Ref{r})
	n := &e.nodes[r]
	// More parts than ZODB's ids have would only cost time, again for each use.
	if n.Kind != pickle.Tuple && n.Kind != pickle.List || n.B > 6 || levels == 0 {
		return
	}
	for _, kid := range e.machine.Kids(n) {
		e.markID(kid, levels-1)
	}
}

// markBytes marks strings of Python 2 that nothing else refers to.
func (e *Encoder) markBytes(refs []pickle.Ref) {
	for _, r := range refs {
		if n := &e.nodes[r]; n.Kind == pickle.Py2Str && n.Flags&pickle.Shared == 0 {
			n.Flags |= pickle.Seen
		}
	}
}

// holes writes what the blob takes from outside.
func (e *Encoder) holes(b []byte, holes []pickle.Ref) []byte {
	e.indirect = true
	for i, r := range holes {
		if i > 0 {
			b = append(b, ',')
		}
		n := &e.nodes[r]
		if n.Kind == pickle.PersID {
			e.checkID(pickle.Ref(n.A), 0)
			b = e.persistent(b, n, holeDepth)
		} else {
			b = e.global(b, n, holeDepth)
		}
		if len(b) > e.limit {
			e.reject(n, "written out, its classes and references are longer than %d bytes of JSON", e.limit)
		}
	}
	e.indirect = false
	return b
}

// maxIDParts bounds a persistent id. ZODB's have six parts at most.
const maxIDParts = 1000

// checkID rejects a persistent id that may have been changed after it was used:
// a node tells only how its value was in the end.
func (e *Encoder) checkID(r pickle.Ref, parts int) int {
	n := &e.nodes[r]
	if parts++; parts > maxIDParts {
		e.reject(n, "a persistent id has more than %d parts", maxIDParts)
	}
	if n.Kind >= pickle.List && n.Flags&pickle.Changed != 0 {
		e.reject(n, "a persistent id has a %v in it that is changed elsewhere", n.Kind)
	}
	switch n.Kind {
	case pickle.Tuple, pickle.List, pickle.Dict, pickle.Set, pickle.FrozenSet:
		parts = e.checkIDs(e.machine.Kids(n), parts)
	case pickle.Call:
		parts = e.checkIDs([]pickle.Ref{pickle.Ref(n.A), pickle.Ref(n.B)}, parts)
		if state, ok := n.State(); ok {
			parts = e.checkID(state, parts)
		}
		parts = e.checkIDs(e.machine.Items(n), parts)
		parts = e.checkIDs(e.machine.Appends(n), parts)
	case pickle.Built:
		e.reject(n, "a persistent id has an object in it that gets a state")
	}
	return parts
}

func (e *Encoder) checkIDs(refs []pickle.Ref, parts int) int {
	for _, r := range refs {
		parts = e.checkID(r, parts)
	}
	return parts
}

// pickled writes the blob, compressed if jsonb does not hold it otherwise, and
// ends the capsule.
func (e *Encoder) pickled(b []byte) []byte {
	from := len(b)
	if size := base64.StdEncoding.EncodedLen(len(e.blob)); size < e.most {
		b = slices.Grow(b, size+64)
		b = append(b, `{"@b":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.blob)
		b = append(b, `"}`+capsuleTail...)
		if e.sizeProblem(b) == "" {
			return b
		}
	}
	b = append(b[:from], inflateHead+`{"@b":"`...)
	b = e.deflated(b)
	b = append(b, `"}`+inflateTail+capsuleTail...)
	if problem := e.sizeProblem(b); problem != "" {
		panic(&RejectError{Reason: problem})
	}
	return b
}

// deflated writes the blob compressed.
func (e *Encoder) deflated(b []byte) []byte {
	out := &boundedText{text: b, most: e.most}
	text := base64.NewEncoder(base64.StdEncoding, out)
	w := zlib.NewWriter(text)
	_, err := w.Write(e.blob)
	if err = errors.Join(err, w.Close(), text.Close()); err != nil {
		panic(&RejectError{Reason: fmt.Sprintf("its %d bytes are more than jsonb holds, compressed, too", len(e.blob))})
	}
	return out.text
}

// boundedText takes what jsonb may hold.
type boundedText struct {
	text []byte
	most int
}

var errFull = errors.New("more than jsonb holds")

func (t *boundedText) Write(p []byte) (int, error) {
	if len(t.text)+len(p) > t.most {
		return 0, errFull
	}
	t.text = append(t.text, p...)
	return len(p), nil
}
