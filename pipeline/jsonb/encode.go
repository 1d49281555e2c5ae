package jsonb

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// Options control an Encoder. The zero value has sane limits.
type Options struct {
	// MaxExpanded is the longest JSON text of one state in bytes; 0 for 512 MiB.
	// Whatever it is, the text of a state is never much longer than
	// expandedBase + expandedFactor times the record: parts that a record shares
	// are written out each time, so a few bytes can stand for gigabytes.
	MaxExpanded int
	// PreserveSharing writes a record with shared mutable parts as a capsule, so
	// that they stay shared. Without it they become copies.
	PreserveSharing bool
}

const (
	defaultMaxExpanded = 512 << 20
	expandedBase       = 8 << 20
	expandedFactor     = 32
	// maxDepth bounds the nesting of the JSON. Python parses and walks a state
	// with about one frame for each level on top of the caller's, of 1000 in all.
	maxDepth = 600
	// maxClassName bounds module and name of a class together: an entry of the
	// index on them has to fit into a third of a page, 2704 bytes.
	maxClassName = 2600
	// maxLongBytes bounds a binary integer, because the decimal text that JSON
	// wants takes a time that grows faster than its length.
	maxLongBytes = 64 << 10
	// maxLongDigits bounds an integer that is text already in the same way.
	maxLongDigits = 160_000
	// keepText is how much of the text buffer is kept after a large record.
	keepText = 1 << 20
)

// Encoder turns records into rows. It is used by one goroutine at a time; its
// buffers are used again for each record.
type Encoder struct {
	options Options
	machine pickle.Machine
	nodes   []pickle.Node
	stateAt int        // where the state begins
	root    pickle.Ref // the state
	row     Row
	out     []byte
	blob    []byte // the pickle in a capsule
	limit   int
	most    int // maxJSONB, less in tests
	// indirect tells that the reader handles what is being written after it was
	// converted (the value of @reduce, @d, @set and so on). There it takes more
	// dicts for markers.
	indirect bool
	// inRef tells that a persistent id is being written.
	inRef bool
	// copying counts the open parts that are written not for the first time.
	copying int
	// callable counts the open callables: their references are not found by the
	// Python codec.
	callable int
	// preserving tells that a shared mutable part ends the direct form.
	preserving bool
}

// NewEncoder returns an Encoder.
func NewEncoder(opts Options) *Encoder {
	if opts.MaxExpanded <= 0 {
		opts.MaxExpanded = defaultMaxExpanded
	}
	return &Encoder{options: opts, most: maxJSONB}
}

// Row is what is stored of a record. Its slices belong to the Encoder.
type Row struct {
	// Module and Name are the class of the record.
	Module, Name []byte
	// State is JSON text in UTF-8 that PostgreSQL takes as jsonb.
	State []byte
	// Refs are the oids of the objects that the state refers to, one for each
	// reference.
	Refs []int64
	// Loose are the other references, which the destination keeps in State alone.
	Loose []Reference
	// Forms counts what is special in State.
	Forms Counts
	// NewCodec tells that zodb-json-codec before 1.7.0 does not read State.
	NewCodec bool
}

// RejectError is a record that has no form in the destination.
type RejectError struct {
	Reason string
	// Offset is where in the record the reason was met.
	Offset int
	// Class is "module.name", empty if the record did not get that far.
	Class string
	// Stack is where the Encoder itself failed, nil otherwise.
	Stack []byte
	// capsule is the form under which the state may be stored as a capsule; its
	// zero value, which is none, means that it may not.
	capsule Form
}

func (e *RejectError) Error() string {
	class := e.Class
	if class == "" {
		class = "a record of unknown class"
	}
	return fmt.Sprintf("%s has no form as JSONB: %s (at byte %d of the record)", class, e.Reason, e.Offset)
}

// Encode turns the two pickles of a record into a row, which is valid until the
// next call. What has no form is a *RejectError; there is no other error, and
// nothing is altered without being counted in Row.Forms.
func (e *Encoder) Encode(record []byte) (row *Row, err error) {
	e.reset(record)
	defer func() {
		if p := recover(); p != nil {
			row, err = e.otherwise(p)
		}
	}()
	class := e.load()
	e.class(class)
	if odd := e.odd(); odd != nil { // what is odd in the class pickle is told with the class
		odd.capsule = 0
		panic(odd)
	}
	e.stateAt = e.machine.Offset()
	e.root = e.load()
	if odd := e.odd(); odd != nil {
		panic(odd)
	}
	return e.direct(e.root), nil
}

// direct writes the state as JSON that SQL can look into.
func (e *Encoder) direct(state pickle.Ref) *Row {
	e.out = e.state(e.out, state)
	e.checkSize()
	e.row.State = e.out
	return &e.row
}

// Trim gives back what large records took, for an encoder that is not used for
// a while. The last row is gone.
func (e *Encoder) Trim() { e.reset(nil) }

// reset forgets the last record.
func (e *Encoder) reset(record []byte) {
	e.machine.Reset(record)
	if cap(e.out) > max(keepText, 8*len(record)) {
		e.out = nil
	}
	if cap(e.row.Refs) > max(keepText/8, len(record)) {
		e.row.Refs = nil
	}
	if cap(e.blob) > keepText {
		e.blob = nil
	}
	e.out = slices.Grow(e.out[:0], len(record)+len(record)/4)
	if cap(e.row.Loose) > keepText/64 {
		e.row.Loose = nil
	}
	e.row = Row{Refs: e.row.Refs[:0], Loose: e.row.Loose[:0]}
	e.limit = min(e.options.MaxExpanded, expandedBase+expandedFactor*len(record))
	e.preserving = e.options.PreserveSharing
	e.restart()
}

// restart makes ready to write a state.
func (e *Encoder) restart() {
	e.indirect, e.inRef, e.copying, e.callable = false, false, 0, 0
}

// rejected turns what a panic brought into an error.
func (e *Encoder) rejected(p any) *RejectError {
	err, ok := p.(*RejectError)
	if !ok {
		err = &RejectError{
			Reason: fmt.Sprintf("the encoder failed, which is a mistake in this program: %v", p),
			Offset: e.machine.Offset(),
			Stack:  debug.Stack(),
		}
	}
	if len(e.row.Name) > 0 {
		err.Class = string(e.row.Module) + "." + string(e.row.Name)
	}
	return err
}

// reject ends Encode. Its callers are deep in recursion and their callers on the
// hot path; a panic keeps them free of checks.
func (e *Encoder) reject(n *pickle.Node, format string, args ...any) {
	panic(&RejectError{Reason: fmt.Sprintf(format, args...), Offset: int(n.Pos)})
}

// instead is reject for what a capsule can hold.
func (e *Encoder) instead(capsule Form, n *pickle.Node, format string, args ...any) {
	panic(&RejectError{Reason: fmt.Sprintf(format, args...), Offset: int(n.Pos), capsule: capsule})
}

// load executes the next pickle of the record.
func (e *Encoder) load() pickle.Ref {
	r, err := e.machine.Load()
	if err != nil {
		reject := &RejectError{Reason: err.Error()}
		var at *pickle.Error
		if errors.As(err, &at) {
			reject.Reason, reject.Offset = at.Problem(), at.Offset
		}
		panic(reject)
	}
	e.nodes = e.machine.Nodes()
	return r
}

// odd returns what Python allows and JSON cannot tell, nil if there is nothing.
func (e *Encoder) odd() *RejectError {
	odd := e.machine.Odd()
	switch odd.Oddity {
	case pickle.MutatedAfterUse:
		return &RejectError{Reason: "an object refers to itself, directly or through others", Offset: odd.Offset, capsule: CapsuleCycle}
	case pickle.Dropped:
		return &RejectError{Reason: "the result of a call is thrown away; the call may set another object's state", Offset: odd.Offset, capsule: CapsuleState}
	case pickle.BuiltTwice:
		return &RejectError{Reason: "an object gets a second state", Offset: odd.Offset, capsule: CapsuleState}
	}
	return nil
}

// class finds the class of the record. ZODB writes the class itself, or a pair of
// the class or its module and name, and the arguments of its constructor, for
// which the destination has no place.
func (e *Encoder) class(r pickle.Ref) {
	n := &e.nodes[r]
	if n.Kind == pickle.Tuple && n.B == 2 {
		pair := e.machine.Kids(n)
		n = &e.nodes[pair[0]]
		e.className(n)
		if args := &e.nodes[pair[1]]; args.Kind != pickle.None && (args.Kind != pickle.Tuple || args.B != 0) {
			e.reject(args, "the object needs arguments to be made (__getnewargs__)")
		}
		return
	}
	if n.Kind != pickle.Global {
		e.reject(n, "its class is given in none of ZODB's ways but as %v", n.Kind)
	}
	e.className(n)
}

func (e *Encoder) className(n *pickle.Node) {
	var module, name *pickle.Node
	switch {
	case n.Kind == pickle.Global:
		module, name = &e.nodes[n.A], &e.nodes[n.B]
	case n.Kind == pickle.Tuple && n.B == 2:
		pair := e.machine.Kids(n)
		module, name = &e.nodes[pair[0]], &e.nodes[pair[1]]
	default:
		e.reject(n, "its class is given in none of ZODB's ways but as %v", n.Kind)
	}
	if module.Kind == pickle.Py2Str || name.Kind == pickle.Py2Str {
		e.row.Forms[Python2Class]++
	}
	moduleText, nameText := e.columnText(module), e.columnText(name)
	if len(moduleText) == 0 || len(nameText) == 0 {
		e.reject(n, "its class has no name or no module")
	}
	e.row.Module, e.row.Name = moduleText, nameText
	if size := len(moduleText) + len(nameText); size > maxClassName {
		e.reject(n, "the name of its class has %d bytes, the index on classes takes %d", size, maxClassName)
	}
}

// columnText is text that is stored in a column of its own.
func (e *Encoder) columnText(n *pickle.Node) []byte {
	if !isText(n) {
		e.reject(n, "the name of its class is no text")
	}
	text := e.machine.Data(n)
	if n.Flags&pickle.Plain == 0 {
		for _, c := range text {
			if c == 0 {
				e.reject(n, "the name of its class has a NUL in it")
			}
		}
	}
	return text
}
