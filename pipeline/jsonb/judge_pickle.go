package jsonb

import (
	"bytes"
	"encoding/binary"
)

// trace executes the pickles of a record into a flat graph, for the Judge's fast
// way. It takes only what pickles of databases are usually made of, and leaves
// everything else, as soon as it meets it, to the executor of the Comparison.
//
// It is the third executor of pickles in this module, on purpose. The machine of
// package pickle is the encoder's: a mistake in it would alter a row and then
// tell the Judge that the row is right. The executor of the Comparison is
// independent of it, but it allocates each value. The trace shares no code with
// either and allocates nothing once its buffers have grown.
//
// A node takes 20 bytes and has no pointer in it. Text stays where it is in the
// record.
type trace struct {
	data  []byte
	pos   int
	nodes []traceNode // the first one stands for none
	parts []uint32    // nodes within lists, tuples, dicts and sets
	stack []uint32
	marks []uint32
	memo  []uint32 // by index, 0 for none
	refs  []int64  // the oids of the references that keep their target alive
	most  int      // how many nodes there may be, 0 for maxTraceNodes
}

// traceKind is the kind of a node.
type traceKind uint8

const (
	traceNone traceKind = iota
	traceTrue
	traceFalse
	traceInt    // off and size are the 64 bits
	traceFloat  // text is its eight bytes
	traceText   // off and size tell where in the record it stands
	traceOld    // a str of Python 2
	traceBytes  //
	traceGlobal // off and size tell the module, room and more the name
	traceList   // off and size tell where in parts the elements stand
	traceTuple
	traceDict // parts are key, value, key, value
	traceSet
	traceFrozenSet
	traceCall // off is the callable, size the tuple of arguments, more the state, room the contents
	traceNew  // the same for a class and its __new__
	traceRef  // off is the persistent id
	traceWeak // the same for a list that begins with 'w'
	traceBig  // an integer beyond 64 bits: text is its two's complement
	// traceContents are what was put into an object that is no list and no dict:
	// off is a list of elements, size a dict of items, 0 for none.
	traceContents
)

const (
	// traceMet: the comparison has been at this node.
	traceMet uint8 = 1 << iota
	// traceFixed: a list whose elements went into something else, which would not
	// see it change.
	traceFixed
)

type traceNode struct {
	kind      traceKind
	flags     uint8
	off, size uint32
	room      uint32 // of a list or dict: how much of parts is reserved
	more      uint32
}

const (
	// maxTraced is the size of the largest record that is traced: PostgreSQL takes
	// no more than a quarter of a gigabyte as one value.
	maxTraced = 256 << 20
	// maxTraceNodes is the number of values in one, if the Judge does not say.
	maxTraceNodes = 1 << 20
	// nodeCost is about what a value takes in the buffers, while they grow.
	nodeCost = 64
	// keepTraceNodes is what is kept of the buffers after a large record.
	keepTraceNodes = 1 << 16
)

// reset makes ready for a record.
func (t *trace) reset(record []byte) {
	if cap(t.nodes) > keepTraceNodes || cap(t.parts) > 4*keepTraceNodes ||
		cap(t.memo) > keepTraceNodes || cap(t.stack) > keepTraceNodes {
		*t = trace{most: t.most}
	}
	if t.most == 0 {
		t.most = maxTraceNodes
	}
	t.data, t.pos = record, 0
	t.nodes = append(t.nodes[:0], traceNode{})
	t.parts, t.memo, t.refs = t.parts[:0], t.memo[:0], t.refs[:0]
}

// text is the text of a node, or the module of a global.
func (t *trace) text(n *traceNode) []byte { return t.data[n.off : n.off+n.size] }

// name is the name of a global.
func (t *trace) name(n *traceNode) []byte { return t.data[n.room : n.room+n.more] }

// within are the parts of a node.
func (t *trace) within(n *traceNode) []uint32 { return t.parts[n.off : n.off+n.size] }

func (n *traceNode) integer() int64 { return int64(uint64(n.size)<<32 | uint64(n.off)) }

// run executes a pickle up to its STOP. ok is false when it has something that is
// not traced.
func (t *trace) run() (node uint32, ok bool) {
	t.stack, t.marks = t.stack[:0], t.marks[:0]
	for t.pos < len(t.data) {
		op := t.data[t.pos]
		t.pos++
		if op == '.' { // STOP
			if len(t.stack) != 1 || len(t.marks) != 0 {
				return 0, false
			}
			return t.stack[0], true
		}
		if !t.step(op) {
			return 0, false
		}
	}
	return 0, false
}

// step executes one opcode. It is one switch, which becomes one jump.
func (t *trace) step(op byte) bool {
	switch op {
	case 'q': // BINPUT
		if t.pos == len(t.data) {
			return false
		}
		t.pos++
		return t.keep(int(t.data[t.pos-1]))
	case 'h': // BINGET
		if t.pos == len(t.data) {
			return false
		}
		t.pos++
		return t.again(int(t.data[t.pos-1]))
	case '(': // MARK
		t.marks = append(t.marks, uint32(len(t.stack)))
		return true

	case 'X': // BINUNICODE
		return t.counted(traceText, 4)
	case 0x8c: // SHORT_BINUNICODE
		return t.counted(traceText, 1)
	case 'U': // SHORT_BINSTRING
		return t.counted(traceOld, 1)
	case 'T': // BINSTRING
		return t.counted(traceOld, 4)
	case 'C': // SHORT_BINBYTES
		return t.counted(traceBytes, 1)
	case 'B': // BINBYTES
		return t.counted(traceBytes, 4)

	case 'N': // NONE
		return t.push(traceNode{kind: traceNone})
	case 0x88: // NEWTRUE
		return t.push(traceNode{kind: traceTrue})
	case 0x89: // NEWFALSE
		return t.push(traceNode{kind: traceFalse})
	case 'K': // BININT1
		return t.binary(1)
	case 'M': // BININT2
		return t.binary(2)
	case 'J': // BININT
		return t.binary(4)
	case 0x8a: // LONG1
		return t.long()
	case 'I', 'L': // INT, LONG
		return t.written(op)
	case 'G': // BINFLOAT
		return t.fixed(traceFloat, 8)

	case ']': // EMPTY_LIST
		return t.push(traceNode{kind: traceList})
	case '}': // EMPTY_DICT
		return t.push(traceNode{kind: traceDict})
	case ')': // EMPTY_TUPLE
		return t.push(traceNode{kind: traceTuple})
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		return t.tuple(int(op) - 0x84)
	case 't': // TUPLE
		return t.marked(traceTuple)
	case 'l': // LIST
		return t.marked(traceList)
	case 'd': // DICT
		return t.marked(traceDict)
	case 'u': // SETITEMS
		return t.fillMarked(traceDict)
	case 'e': // APPENDS
		return t.fillMarked(traceList)
	case 's': // SETITEM
		return t.fill(traceDict, len(t.stack)-2)
	case 'a': // APPEND
		return t.fill(traceList, len(t.stack)-1)

	case 'c': // GLOBAL
		return t.global()
	case 'Q': // BINPERSID
		return t.reference()
	case 'R': // REDUCE
		return t.made(traceCall)
	case 0x81: // NEWOBJ
		return t.made(traceNew)
	case 'o', 'i': // OBJ, INST
		return t.classic(op)
	case 'b': // BUILD
		return t.build()

	case 'r': // LONG_BINPUT
		index, ok := t.number(4)
		return ok && t.keep(index)
	case 'j': // LONG_BINGET
		index, ok := t.number(4)
		return ok && t.again(index)
	case 'p': // PUT
		index, ok := t.decimal()
		return ok && t.keep(index)
	case 'g': // GET
		index, ok := t.decimal()
		return ok && t.again(index)
	case 0x94: // MEMOIZE
		return t.keep(len(t.memo))

	case 0x80: // PROTO
		return t.skip(1)
	case 0x95: // FRAME
		return t.skip(8)
	}
	return false
}

// push puts a new node on the stack.
func (t *trace) push(n traceNode) bool {
	t.stack = append(t.stack, uint32(len(t.nodes)))
	t.nodes = append(t.nodes, n)
	return len(t.nodes) <= t.most
}

// above is how many values stand above the last mark.
func (t *trace) above() int {
	if len(t.marks) == 0 {
		return len(t.stack)
	}
	return len(t.stack) - int(t.marks[len(t.marks)-1])
}

func (t *trace) skip(n int) bool {
	t.pos += n
	return t.pos <= len(t.data)
}

// number reads a little-endian number of at most four bytes.
func (t *trace) number(size int) (int, bool) {
	if len(t.data)-t.pos < size {
		return 0, false
	}
	at := t.data[t.pos:]
	t.pos += size
	switch size {
	case 1:
		return int(at[0]), true
	case 2:
		return int(binary.LittleEndian.Uint16(at)), true
	}
	return int(binary.LittleEndian.Uint32(at)), true
}

// fixed pushes a node whose text are the next bytes.
func (t *trace) fixed(kind traceKind, size int) bool {
	if len(t.data)-t.pos < size {
		return false
	}
	t.pos += size
	return t.push(traceNode{kind: kind, off: uint32(t.pos - size), size: uint32(size)})
}

// counted pushes a node whose text stands behind its size.
func (t *trace) counted(kind traceKind, digits int) bool {
	size, ok := t.number(digits)
	return ok && t.fixed(kind, size)
}

func (t *trace) integer(v int64) bool {
	return t.push(traceNode{kind: traceInt, off: uint32(v), size: uint32(v >> 32)})
}

func (t *trace) binary(size int) bool {
	v, ok := t.number(size)
	if size == 4 {
		return ok && t.integer(int64(int32(v)))
	}
	return ok && t.integer(int64(v))
}

// long is LONG1.
func (t *trace) long() bool {
	size, ok := t.number(1)
	if !ok || len(t.data)-t.pos < size {
		return false
	}
	if size > 8 {
		return t.fixed(traceBig, size)
	}
	var raw [8]byte
	if copy(raw[:], t.data[t.pos:t.pos+size]); size > 0 && raw[size-1] >= 0x80 {
		for i := size; i < len(raw); i++ {
			raw[i] = 0xff
		}
	}
	t.pos += size
	return t.integer(int64(binary.LittleEndian.Uint64(raw[:])))
}

// line is what stands before the next line break.
func (t *trace) line() (off, size int, ok bool) {
	n := bytes.IndexByte(t.data[t.pos:], '\n')
	if n < 0 {
		return 0, 0, false
	}
	t.pos += n + 1
	return t.pos - n - 1, n, true
}

// decimal reads a line of digits, as the memo's indices are written.
func (t *trace) decimal() (int, bool) {
	off, size, ok := t.line()
	if !ok || size == 0 || size > 9 || t.data[off] == '-' {
		return 0, false
	}
	v, ok := decimalInteger(t.data[off : off+size])
	return int(v), ok
}

// decimalInteger reads an integer of at most 18 digits.
func decimalInteger(text []byte) (v int64, ok bool) {
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	if len(text) == 0 || len(text) > 18 {
		return 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = 10*v + int64(c-'0')
	}
	if negative {
		v = -v
	}
	return v, true
}

// written is an integer in digits, which protocol 1 has for what is longer than 32
// bits, and for bools.
func (t *trace) written(op byte) bool {
	off, size, ok := t.line()
	if !ok {
		return false
	}
	text := t.data[off : off+size]
	switch {
	case op == 'I' && string(text) == "00":
		return t.push(traceNode{kind: traceFalse})
	case op == 'I' && string(text) == "01":
		return t.push(traceNode{kind: traceTrue})
	}
	if op == 'L' {
		text = bytes.TrimSuffix(text, []byte("L"))
	}
	v, ok := decimalInteger(text)
	return ok && t.integer(v)
}

// keep puts the top of the stack into the memo. Picklers count up from 0 or 1.
func (t *trace) keep(index int) bool {
	if t.above() == 0 {
		return false
	}
	top := t.stack[len(t.stack)-1]
	switch {
	case index == len(t.memo):
		t.memo = append(t.memo, top)
		return true
	case index < len(t.memo):
		t.memo[index] = top
		return true
	case index > len(t.data):
		return false
	}
	for len(t.memo) < index {
		t.memo = append(t.memo, 0)
	}
	t.memo = append(t.memo, top)
	return true
}

func (t *trace) again(index int) bool {
	if index >= len(t.memo) || t.memo[index] == 0 {
		return false
	}
	t.stack = append(t.stack, t.memo[index])
	return true
}

// tuple makes a tuple of the values on top of the stack.
func (t *trace) tuple(size int) bool {
	return t.above() >= size && t.gather(traceTuple, len(t.stack)-size)
}

// marked makes a container of the values above the last mark.
func (t *trace) marked(kind traceKind) bool {
	from, ok := t.popMark()
	return ok && (kind != traceDict || (len(t.stack)-from)%2 == 0) && t.gather(kind, from)
}

func (t *trace) popMark() (from int, ok bool) {
	if len(t.marks) == 0 {
		return 0, false
	}
	from = int(t.marks[len(t.marks)-1])
	t.marks = t.marks[:len(t.marks)-1]
	return from, true
}

// gather makes a container of what the stack holds from there on.
func (t *trace) gather(kind traceKind, from int) bool {
	size := uint32(len(t.stack) - from)
	n := traceNode{kind: kind, off: uint32(len(t.parts)), size: size, room: size}
	t.parts = append(t.parts, t.stack[from:]...)
	t.stack = t.stack[:from]
	return t.push(n)
}

func (t *trace) fillMarked(kind traceKind) bool {
	from, ok := t.popMark()
	return ok && t.fill(kind, from)
}

// fill puts what the stack holds from there on into the container or object below
// it.
func (t *trace) fill(kind traceKind, from int) bool {
	added := len(t.stack) - from
	if t.above() < added+1 || kind == traceDict && added%2 != 0 {
		return false
	}
	into := t.stack[from-1]
	if n := &t.nodes[into]; n.kind == traceCall || n.kind == traceNew {
		into = t.contents(into, kind)
	}
	n := &t.nodes[into]
	if n.kind != kind || n.flags&traceFixed != 0 {
		return false
	}
	t.extend(n, t.stack[from:])
	t.stack = t.stack[:from]
	return len(t.nodes) <= t.most
}

// contents is the list or dict of what is put into an object.
func (t *trace) contents(object uint32, kind traceKind) uint32 {
	if t.nodes[object].room == 0 {
		t.nodes[object].room = uint32(len(t.nodes))
		t.nodes = append(t.nodes, traceNode{kind: traceContents})
	}
	n := &t.nodes[t.nodes[object].room]
	at := &n.off
	if kind == traceDict {
		at = &n.size
	}
	if *at == 0 {
		*at = uint32(len(t.nodes))
		into := *at
		t.nodes = append(t.nodes, traceNode{kind: kind})
		return into
	}
	return *at
}

// extend adds parts to a list or dict. Where it has no room left, it moves behind
// everything else and gets twice the room.
func (t *trace) extend(n *traceNode, parts []uint32) {
	size := n.size + uint32(len(parts))
	if size > n.room {
		switch {
		case n.size == 0:
			n.off, n.room = uint32(len(t.parts)), size
			t.parts = append(t.parts, parts...)
			n.size = size
			return
		case int(n.off+n.room) != len(t.parts):
			off := uint32(len(t.parts))
			t.parts = append(t.parts, t.within(n)...)
			n.off = off
		default:
			t.parts = t.parts[:n.off+n.size]
		}
		t.parts = append(t.parts, parts...)
		for n.room = 2 * size; len(t.parts) < int(n.off+n.room); {
			t.parts = append(t.parts, 0)
		}
		n.size = size
		return
	}
	copy(t.parts[n.off+n.size:], parts)
	n.size = size
}

func (t *trace) global() bool {
	module, moduleSize, ok := t.line()
	if !ok {
		return false
	}
	name, nameSize, ok := t.line()
	return ok && t.push(traceNode{kind: traceGlobal, off: uint32(module), size: uint32(moduleSize),
		room: uint32(name), more: uint32(nameSize)})
}

// reference makes a reference of (oid, class), the form in which nearly all are,
// or a weak one, ['w', (oid, ...)].
func (t *trace) reference() bool {
	if t.above() == 0 {
		return false
	}
	id := t.stack[len(t.stack)-1]
	n := &t.nodes[id]
	if n.size != 2 || n.kind != traceTuple && n.kind != traceList {
		return false
	}
	t.stack = t.stack[:len(t.stack)-1]
	parts := t.within(n)
	if n.kind == traceList {
		n.flags |= traceFixed
		return t.isWeak(&t.nodes[parts[0]], &t.nodes[parts[1]]) && t.push(traceNode{kind: traceWeak, off: id})
	}
	oid, class := &t.nodes[parts[0]], &t.nodes[parts[1]]
	if oid.kind != traceBytes && oid.kind != traceOld || oid.size != oidSize ||
		class.kind != traceGlobal && class.kind != traceNone {
		return false
	}
	t.refs = append(t.refs, int64(binary.BigEndian.Uint64(t.text(oid))))
	return t.push(traceNode{kind: traceRef, off: id})
}

// isWeak tells whether the parts of a persistent id are those of a weak reference.
// Behind the oid there may be the name of a database.
func (t *trace) isWeak(word, args *traceNode) bool {
	if word.kind != traceText && word.kind != traceOld || string(t.text(word)) != "w" ||
		args.kind != traceTuple || args.size < 1 || args.size > 2 {
		return false
	}
	parts := t.within(args)
	oid := &t.nodes[parts[0]]
	return (oid.kind == traceBytes || oid.kind == traceOld) &&
		(len(parts) == 1 || t.nodes[parts[1]].kind == traceText || t.nodes[parts[1]].kind == traceOld)
}

// made makes an object by a call or by __new__, or the set that a call makes.
func (t *trace) made(kind traceKind) bool {
	if t.above() < 2 {
		return false
	}
	callable, args := t.stack[len(t.stack)-2], t.stack[len(t.stack)-1]
	class, tuple := &t.nodes[callable], &t.nodes[args]
	if class.kind != traceGlobal || tuple.kind != traceTuple {
		return false
	}
	t.stack = t.stack[:len(t.stack)-2]
	if kind == traceCall {
		switch module := t.text(class); string(module) {
		case "builtins", "__builtin__":
			return t.set(class, tuple)
		case "_codecs", "zlib", "_struct", "_operator", "copy", "pickle", "_pickle", "types":
			return false // the Comparison may know what comes out
		case "collections":
			// Made with contents, they would count as if they were filled later.
			name := string(t.name(class))
			if tuple.size > 0 && (tuple.size > 1 || name != "defaultdict") {
				return false
			}
		case "copyreg", "copy_reg":
			if bytes.HasPrefix(t.name(class), []byte("__newobj")) {
				return false
			}
		}
	}
	return t.push(traceNode{kind: kind, off: callable, size: args})
}

// classic makes an instance of an old-style class without a call, which is what
// happens where there are no arguments.
func (t *trace) classic(op byte) bool {
	from, ok := t.popMark()
	if !ok {
		return false
	}
	if op == 'i' && !t.global() {
		return false
	}
	if len(t.stack) != from+1 || t.nodes[t.stack[from]].kind != traceGlobal {
		return false
	}
	class := t.stack[from]
	t.stack = t.stack[:from]
	args := uint32(len(t.nodes))
	t.nodes = append(t.nodes, traceNode{kind: traceTuple})
	return t.push(traceNode{kind: traceNew, off: class, size: args})
}

// set makes the set or frozenset of a list. The list itself is gone then.
func (t *trace) set(class, args *traceNode) bool {
	kind := traceSet
	switch string(t.name(class)) {
	case "set":
	case "frozenset":
		kind = traceFrozenSet
	default:
		return false
	}
	if args.size != 1 {
		return false
	}
	list := &t.nodes[t.within(args)[0]]
	if list.kind != traceList {
		return false
	}
	list.flags |= traceFixed
	return t.push(traceNode{kind: kind, off: list.off, size: list.size})
}

// build gives an object its state.
func (t *trace) build() bool {
	if t.above() < 2 {
		return false
	}
	state := t.stack[len(t.stack)-1]
	t.stack = t.stack[:len(t.stack)-1]
	n := &t.nodes[t.stack[len(t.stack)-1]]
	if n.kind != traceCall && n.kind != traceNew || n.more != 0 {
		return false
	}
	n.more = state
	return true
}
