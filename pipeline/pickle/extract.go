package pickle

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Extract is made of the pickles of a record by Machine.AppendExtract: one
// pickle that builds the same graph but takes what only ZODB can look up from
// outside.
type Extract struct {
	// Pickle is of protocol 5. Where the originals look up a global or resolve a
	// persistent id, it has NEXT_BUFFER.
	Pickle []byte
	// Holes are the nodes that the NEXT_BUFFERs stand for, in their order: each
	// is a Global or a PersID.
	Holes []Ref
	// Texts and Bytes count the strings of Python 2 that became one or the
	// other, without those that are Seen.
	Texts, Bytes int64
}

// longText is how many digits of an integer Python reads from text.
const longText = 4300

// AppendExtract appends the pickle to dst. All pickles that were loaded since
// Reset become one, whose value is that of the last of them; they must have been
// loaded without an error.
//
// The opcodes stay what they are, so that whatever they do is done again, in the
// same order and with the same memo: objects that refer to themselves, calls for
// the sake of their effect. Python's own unpickler pushes what NEXT_BUFFER gives
// it without asking for its type. Only these change:
//
//   - GLOBAL becomes NEXT_BUFFER. STACK_GLOBAL and BINPERSID first POP what they
//     are made of.
//   - INST, which names its class behind the arguments, becomes OBJ, which takes
//     it from below them.
//   - A str of Python 2 becomes text if it is ASCII and bytes otherwise. One that
//     is Seen becomes bytes.
//   - The text of an integer that Python refuses for its length becomes binary.
//   - STOP, but for the last, becomes what empties the stack. PROTO and FRAME go.
func (m *Machine) AppendExtract(dst []byte) Extract {
	w := rewriter{
		scanner: scanner{data: m.data[:m.pos]},
		machine: m,
		out:     Extract{Pickle: append(dst, opProto, 5)},
		special: m.special(),
	}
	w.classes = w.findClasses()
	for w.scanner.next() {
		w.step()
	}
	return w.out
}

// special are the nodes of the opcodes that do not stay what they are, in the
// order of the input.
func (m *Machine) special() []Ref {
	var found []Ref
	for r := sharedNodes; int(r) < len(m.nodes); r++ {
		switch n := &m.nodes[r]; n.Kind {
		case Global, PersID, Py2Str:
			found = append(found, r)
		case LongText:
			if n.B > longText {
				found = append(found, r)
			}
		}
	}
	// A state that is set on one of them moves its node to the end.
	slices.SortFunc(found, func(a, b Ref) int { return int(m.nodes[a].Pos) - int(m.nodes[b].Pos) })
	return found
}

// rewriter writes an Extract.
type rewriter struct {
	scanner scanner
	machine *Machine
	out     Extract
	special []Ref
	// classes are the globals of INSTs by the offset of the MARK below their
	// arguments; nil if there are none.
	classes map[int]Ref
}

// at takes the node of the opcode at hand.
func (w *rewriter) at() (Ref, bool) {
	if len(w.special) == 0 || int(w.machine.nodes[w.special[0]].Pos) != w.scanner.at {
		return 0, false
	}
	r := w.special[0]
	w.special = w.special[1:]
	return r, true
}

// findClasses goes over the input once more if it has an INST.
func (w *rewriter) findClasses() map[int]Ref {
	var classes map[int]Ref
	var globals []Ref
	for _, r := range w.special {
		n := &w.machine.nodes[r]
		if n.Kind == Global && w.scanner.data[n.Pos] == opInst {
			globals = append(globals, r)
		}
	}
	if globals == nil {
		return nil
	}
	classes = make(map[int]Ref, len(globals))
	for s := (scanner{data: w.scanner.data}); s.next(); {
		if s.op == opInst {
			classes[s.mark] = globals[0]
			globals = globals[1:]
		}
	}
	return classes
}

// step rewrites one opcode.
func (w *rewriter) step() {
	s := &w.scanner
	r, special := w.at()
	switch s.op {
	case opProto, opFrame:
		return
	case opStop:
		w.stop()
		return
	case opMark:
		w.keep()
		if class, found := w.classes[s.at]; found {
			w.hole(class)
		}
		return
	case opInst:
		w.put(opObj)
		return
	case opGlobal, opPersID:
		w.hole(r)
		return
	case opBinPersID:
		w.put(opPop)
		w.hole(r)
		return
	case opStackGlobal:
		w.put(opPop, opPop)
		w.hole(r)
		return
	}
	switch {
	case !special:
		w.keep()
	case w.machine.nodes[r].Kind == Py2Str:
		w.oldString(&w.machine.nodes[r])
	default:
		w.long(&w.machine.nodes[r])
	}
}

func (w *rewriter) put(ops ...byte) { w.out.Pickle = append(w.out.Pickle, ops...) }

// keep copies the opcode at hand.
func (w *rewriter) keep() {
	w.put(w.scanner.data[w.scanner.at:w.scanner.pos]...)
}

func (w *rewriter) hole(r Ref) {
	w.put(opNextBuffer)
	w.out.Holes = append(w.out.Holes, r)
}

// stop ends the last pickle. Behind any other it takes everything from the
// stack, as the unpickler does before it loads the next one.
func (w *rewriter) stop() {
	s := &w.scanner
	if s.pos == len(s.data) {
		w.put(opStop)
		return
	}
	for range s.marks {
		w.put(opPopMark)
	}
	bottom := s.height
	if len(s.marks) > 0 {
		bottom = s.marks[0]
	}
	for range bottom {
		w.put(opPop)
	}
	s.height, s.marks = 0, s.marks[:0]
}

func (w *rewriter) oldString(n *Node) {
	data := w.machine.Data(n)
	size := uint32(len(data))
	op := byte(opBinUnicode)
	switch {
	case n.Flags&Seen != 0:
		op = opBinBytes
	case n.Flags&ASCII == 0:
		op = opBinBytes
		w.out.Bytes++
	default:
		w.out.Texts++
	}
	w.put(op)
	w.out.Pickle = binary.LittleEndian.AppendUint32(w.out.Pickle, size)
	w.put(data...)
}

// long writes an integer as a binary one.
func (w *rewriter) long(n *Node) {
	raw := w.machine.Binary(n)
	w.put(opLong4)
	w.out.Pickle = binary.LittleEndian.AppendUint32(w.out.Pickle, uint32(len(raw)))
	w.put(raw...)
}

// scanner goes through pickles that were executed before, opcode by opcode, and
// keeps track of nothing but the height of the stack.
type scanner struct {
	data    []byte
	at, pos int // of the opcode and behind it
	op      byte
	height  int
	marks   []int // heights of the stack at the open marks
	offsets []int // of these marks in data
	// mark is where the mark stands that the opcode has closed.
	mark int
}

// next moves to the next opcode.
func (s *scanner) next() bool {
	if s.pos >= len(s.data) {
		return false
	}
	s.at, s.op = s.pos, s.data[s.pos]
	s.pos++
	s.skip()
	s.move()
	return true
}

// skip moves behind the arguments of the opcode.
func (s *scanner) skip() {
	switch s.op {
	case opBinInt1, opBinGet, opBinPut, opProto, opExt1:
		s.pos++
	case opBinInt2, opExt2:
		s.pos += 2
	case opBinInt, opLongBinGet, opLongBinPut, opExt4:
		s.pos += 4
	case opBinFloat, opFrame:
		s.pos += 8
	case opFloat, opInt, opLong, opString, opUnicode, opPersID, opGet, opPut:
		s.skipLine()
	case opGlobal, opInst:
		s.skipLine()
		s.skipLine()
	case opShortBinString, opShortBinBytes, opShortBinUnicode, opLong1:
		s.skipCounted(1)
	case opBinString, opBinUnicode, opBinBytes, opLong4:
		s.skipCounted(4)
	case opBinUnicode8, opBinBytes8, opByteArray8:
		s.skipCounted(8)
	}
}

func (s *scanner) skipLine() { s.pos += bytes.IndexByte(s.data[s.pos:], '\n') + 1 }

func (s *scanner) skipCounted(size int) {
	s.pos += size + int(unsigned(s.data[s.pos:s.pos+size]))
}

// move follows the stack.
func (s *scanner) move() {
	switch s.op {
	case opMark:
		s.marks, s.offsets = append(s.marks, s.height), append(s.offsets, s.at)
	case opPop:
		if n := len(s.marks); n > 0 && s.marks[n-1] == s.height {
			s.closeMark()
		} else {
			s.height--
		}
	case opTuple, opList, opDict, opFrozenSet, opObj, opInst:
		s.closeMark()
		s.height++
	case opAppends, opSetItems, opAddItems, opPopMark:
		s.closeMark()
	case opTuple2, opReduce, opNewObj, opStackGlobal, opAppend, opBuild:
		s.height--
	case opTuple3, opNewObjEx, opSetItem:
		s.height -= 2
	case opPut, opBinPut, opLongBinPut, opMemoize, opProto, opFrame, opBinPersID, opTuple1, opStop:
	default:
		s.height++
	}
}

func (s *scanner) closeMark() {
	n := len(s.marks) - 1
	s.height, s.mark = s.marks[n], s.offsets[n]
	s.marks, s.offsets = s.marks[:n], s.offsets[:n]
}
