package pickle

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"strconv"
)

// Nodes that every pickle shares. A small integer is the commonest value of
// all; it costs no node.
const (
	refNone       Ref = 0
	refTrue       Ref = 1
	refFalse      Ref = 2
	refEmptyTuple Ref = 3
	refInts       Ref = 4
	sharedNodes       = refInts + 256
)

// MaxInput is the longest input that a Machine reads.
const MaxInput = math.MaxInt32

// Machine executes pickles. The zero value is ready for Reset. It is used by
// one goroutine at a time, and its slices are used again for every input.
type Machine struct {
	data []byte
	pos  int
	odd  Odd

	nodes []Node
	// kids holds the parts of all containers, each a run of it.
	kids []Ref
	// text holds what had to be decoded.
	text []byte

	stack []Ref
	// marks are the heights of the stack at the open marks; fence is the last of
	// them, below which nothing may be popped.
	marks []uint32
	fence int

	memo memo
}

// keepNodes and so on are what is kept of the slices, in elements, when they are
// much larger than the next input can need.
const (
	keepNodes = 1 << 16
	keepRoom  = 8
)

// Reset makes the machine ready for the pickles in data, which must not change
// while nodes are used. What was grown for a much larger input is given back.
func (m *Machine) Reset(data []byte) {
	limit := max(keepNodes, keepRoom*len(data))
	if cap(m.nodes) > limit || cap(m.kids) > limit || cap(m.text) > 16*limit || cap(m.stack) > limit || cap(m.memo.dense) > limit {
		*m = Machine{}
	}
	if len(m.nodes) < int(sharedNodes) {
		m.share()
	}
	m.data, m.pos, m.odd = data, 0, Odd{}
	m.nodes = m.nodes[:sharedNodes]
	m.kids, m.text = m.kids[:0], m.text[:0]
	m.stack, m.marks, m.fence = m.stack[:0], m.marks[:0], 0
	m.memo.reset()
	if len(data) > 1<<20 {
		// Growing by a quarter at a time would leave five times as much garbage.
		m.nodes = slices.Grow(m.nodes, len(data)/12)
	}
}

// share makes the nodes that every pickle shares.
func (m *Machine) share() {
	m.nodes = append(make([]Node, 0, 1024), Node{Kind: None}, Node{Kind: Bool, A: 1}, Node{Kind: Bool}, Node{Kind: Tuple})
	for i := range uint32(256) {
		m.nodes = append(m.nodes, Node{Kind: Int, A: i})
	}
}

// Node returns a node. The pointer is valid until the next Load.
func (m *Machine) Node(r Ref) *Node { return &m.nodes[r] }

// Nodes returns all nodes, for code that looks at very many of them.
func (m *Machine) Nodes() []Node { return m.nodes }

// Data returns the bytes of a node that has some.
func (m *Machine) Data(n *Node) []byte {
	if n.Flags&inText != 0 {
		return m.text[n.A : n.A+n.B]
	}
	return m.data[n.A : n.A+n.B]
}

// Kids returns the parts of a List, Tuple, Dict, Set or FrozenSet.
func (m *Machine) Kids(n *Node) []Ref { return m.kids[n.A : n.A+n.B : n.A+n.B] }

// Int returns the value of a Bool or Int.
func (n *Node) Int() int64 { return int64(uint64(n.B)<<32 | uint64(n.A)) }

// Float64 returns the value of a Float.
func (n *Node) Float64() float64 { return math.Float64frombits(uint64(n.B)<<32 | uint64(n.A)) }

// State returns the state that was set on a Call.
func (n *Node) State() (Ref, bool) { return Ref(n.state - 1), n.state != 0 }

// Items returns the dict items that were set on a Call, as the kids of a Dict.
func (m *Machine) Items(n *Node) []Ref {
	if n.more == 0 || m.nodes[n.more].A == 0 {
		return nil
	}
	return m.Kids(&m.nodes[m.nodes[n.more].A])
}

// Appends returns the list items that were appended to a Call.
func (m *Machine) Appends(n *Node) []Ref {
	if n.more == 0 || m.nodes[n.more].B == 0 {
		return nil
	}
	return m.Kids(&m.nodes[m.nodes[n.more].B])
}

// Odd returns the oddity that was met first.
func (m *Machine) Odd() Odd { return m.odd }

// Offset returns where the next Load starts.
func (m *Machine) Offset() int { return m.pos }

func (m *Machine) note(o Oddity, pos int) {
	if m.odd.Oddity == 0 {
		m.odd = Odd{o, pos}
	}
}

// fail returns an error for the opcode at pos.
func (m *Machine) fail(pos int, reason string) error {
	e := &Error{Offset: pos, Reason: reason}
	if pos < len(m.data) {
		e.Opcode = m.data[pos]
	}
	return e
}

const (
	truncated = "the data ends within it"
	underflow = "it needs more values than there are"
	noMark    = "no mark is open"
)

// Load executes one pickle, up to its STOP, and returns its value. The next
// Load goes on behind it with the same memo, as the two pickles of a ZODB record
// want it.
func (m *Machine) Load() (Ref, error) {
	if len(m.data) > MaxInput {
		return 0, m.fail(len(m.data), "the input is longer than 2 GiB")
	}
	m.stack, m.marks, m.fence = m.stack[:0], m.marks[:0], 0
	// The stack and the position are kept in registers; every opcode that is not
	// handled here gets them written back.
	data, pos, stack := m.data, m.pos, m.stack
	for {
		if pos >= len(data) {
			return 0, m.fail(pos, "the data ends before STOP")
		}
		at := pos
		op := data[pos]
		pos++
		switch op {
		case opBinUnicode:
			if len(data)-pos < 4 {
				return 0, m.fail(at, truncated)
			}
			size := int(binary.LittleEndian.Uint32(data[pos:]))
			pos += 4
			if size > len(data)-pos {
				return 0, m.fail(at, truncated)
			}
			stack = append(stack, Ref(len(m.nodes)))
			m.nodes = append(m.nodes, Node{Kind: Str, Flags: classify(data[pos : pos+size]), Pos: uint32(at), A: uint32(pos), B: uint32(size)})
			pos += size
		case opBinPut:
			if pos >= len(data) {
				return 0, m.fail(at, truncated)
			}
			if len(stack) <= m.fence {
				return 0, m.fail(at, underflow)
			}
			m.memo.put(uint32(data[pos]), stack[len(stack)-1])
			pos++
		case opLongBinPut:
			if len(data)-pos < 4 {
				return 0, m.fail(at, truncated)
			}
			if len(stack) <= m.fence {
				return 0, m.fail(at, underflow)
			}
			m.memo.put(binary.LittleEndian.Uint32(data[pos:]), stack[len(stack)-1])
			pos += 4
		case opMemoize:
			if len(stack) <= m.fence {
				return 0, m.fail(at, underflow)
			}
			m.memo.put(m.memo.count, stack[len(stack)-1])
		case opBinGet:
			if pos >= len(data) {
				return 0, m.fail(at, truncated)
			}
			r, ok := m.memo.get(uint32(data[pos]))
			if !ok {
				return 0, m.fail(at, "nothing was put there")
			}
			m.nodes[r].Flags |= Shared
			stack = append(stack, r)
			pos++
		case opLongBinGet:
			if len(data)-pos < 4 {
				return 0, m.fail(at, truncated)
			}
			r, ok := m.memo.get(binary.LittleEndian.Uint32(data[pos:]))
			if !ok {
				return 0, m.fail(at, "nothing was put there")
			}
			m.nodes[r].Flags |= Shared
			stack = append(stack, r)
			pos += 4
		case opBinInt1:
			if pos >= len(data) {
				return 0, m.fail(at, truncated)
			}
			stack = append(stack, refInts+Ref(data[pos]))
			pos++
		case opNone:
			stack = append(stack, refNone)
		case opNewTrue:
			stack = append(stack, refTrue)
		case opNewFalse:
			stack = append(stack, refFalse)
		case opEmptyTuple:
			stack = append(stack, refEmptyTuple)
		case opMark:
			m.marks = append(m.marks, uint32(len(stack)))
			m.fence = len(stack)
		case opTuple1, opTuple2, opTuple3:
			size := int(op - opTuple1 + 1)
			if len(stack)-size < m.fence {
				return 0, m.fail(at, underflow)
			}
			from := len(stack) - size
			r := m.group(Tuple, at, stack[from:])
			stack = append(stack[:from], r)
		case opSetItems:
			if len(m.marks) == 0 {
				return 0, m.fail(at, noMark)
			}
			from := m.popMark()
			if err := m.setItems(at, stack, from); err != nil {
				return 0, err
			}
			stack = stack[:from]
		case opAppends:
			if len(m.marks) == 0 {
				return 0, m.fail(at, noMark)
			}
			from := m.popMark()
			if err := m.appends(at, stack, from); err != nil {
				return 0, err
			}
			stack = stack[:from]
		case opEmptyDict:
			stack = append(stack, m.group(Dict, at, nil))
		case opEmptyList:
			stack = append(stack, m.group(List, at, nil))
		case opBinPersID:
			if len(stack) <= m.fence {
				return 0, m.fail(at, underflow)
			}
			stack[len(stack)-1] = m.add(Node{Kind: PersID, Pos: uint32(at), A: uint32(stack[len(stack)-1])})
		case opShortBinBytes:
			if pos >= len(data) || int(data[pos]) > len(data)-pos-1 {
				return 0, m.fail(at, truncated)
			}
			size := int(data[pos])
			pos++
			stack = append(stack, m.add(Node{Kind: Bytes, Pos: uint32(at), A: uint32(pos), B: uint32(size)}))
			pos += size
		case opBinInt2:
			if len(data)-pos < 2 {
				return 0, m.fail(at, truncated)
			}
			stack = append(stack, m.integer(at, int64(binary.LittleEndian.Uint16(data[pos:]))))
			pos += 2
		case opBinInt:
			if len(data)-pos < 4 {
				return 0, m.fail(at, truncated)
			}
			stack = append(stack, m.integer(at, int64(int32(binary.LittleEndian.Uint32(data[pos:])))))
			pos += 4
		case opShortBinString:
			if pos >= len(data) || int(data[pos]) > len(data)-pos-1 {
				return 0, m.fail(at, truncated)
			}
			size := int(data[pos])
			pos++
			stack = append(stack, m.add(Node{Kind: Py2Str, Flags: classifyPy2(data[pos : pos+size]), Pos: uint32(at), A: uint32(pos), B: uint32(size)}))
			pos += size
		case opBinFloat:
			if len(data)-pos < 8 {
				return 0, m.fail(at, truncated)
			}
			stack = append(stack, m.number(Float, at, binary.BigEndian.Uint64(data[pos:])))
			pos += 8
		case opReduce, opNewObj:
			if len(stack)-2 < m.fence {
				return 0, m.fail(at, underflow)
			}
			n := Node{Kind: Call, Made: ByReduce, Pos: uint32(at), A: uint32(stack[len(stack)-2]), B: uint32(stack[len(stack)-1])}
			if op == opNewObj {
				n.Made = ByNewObj
			}
			stack = stack[:len(stack)-1]
			stack[len(stack)-1] = m.add(n)
		case opStop:
			if len(stack) <= m.fence {
				return 0, m.fail(at, underflow)
			}
			top := stack[len(stack)-1]
			m.drop(stack[:len(stack)-1], at)
			m.pos, m.stack = pos, stack[:0]
			return top, nil
		default:
			m.pos, m.stack = pos, stack
			if err := m.step(op, at); err != nil {
				return 0, err
			}
			pos, stack = m.pos, m.stack
		}
	}
}

// add adds a node.
func (m *Machine) add(n Node) Ref {
	m.nodes = append(m.nodes, n)
	return Ref(len(m.nodes) - 1)
}

func (m *Machine) number(kind Kind, at int, v uint64) Ref {
	return m.add(Node{Kind: kind, Pos: uint32(at), A: uint32(v), B: uint32(v >> 32)})
}

// group adds a container with its parts.
func (m *Machine) group(kind Kind, at int, parts []Ref) Ref {
	from := len(m.kids)
	m.kids = append(m.kids, parts...)
	return m.add(Node{Kind: kind, Pos: uint32(at), A: uint32(from), B: uint32(len(parts))})
}

// popMark closes the last mark and returns the height of the stack at it.
func (m *Machine) popMark() int {
	from := int(m.marks[len(m.marks)-1])
	m.marks = m.marks[:len(m.marks)-1]
	m.fence = 0
	if len(m.marks) > 0 {
		m.fence = int(m.marks[len(m.marks)-1])
	}
	return from
}

// extend adds parts to a container. Parts that are not at the end of kids move
// there once, with room up to the next power of two, so that adding one at a
// time costs no more than a slice of its own would.
func (m *Machine) extend(r Ref, parts []Ref) {
	n := &m.nodes[r]
	from, old, size := int(n.A), int(n.B), int(n.B)+len(parts)
	switch {
	case from+old == len(m.kids):
		m.kids = append(m.kids, parts...)
		n.Flags &^= moved
	case n.Flags&moved != 0 && size <= roomFor(old):
		copy(m.kids[from+old:], parts)
	case old == 0:
		n.A = uint32(len(m.kids))
		m.kids = append(m.kids, parts...)
	default:
		n.A = uint32(len(m.kids))
		m.kids = append(m.kids, m.kids[from:from+old]...)
		m.kids = append(m.kids, parts...)
		for spare := roomFor(size) - size; spare > 0; spare-- {
			m.kids = append(m.kids, 0)
		}
		n.Flags |= moved
	}
	n.B = uint32(size)
}

// roomFor is the room of moved kids.
func roomFor(size int) int { return 1 << bits.Len(uint(size-1)) }

// changed notes a change of something that another reference may lead to.
func (m *Machine) changed(n *Node, at int) {
	if n.Flags&Shared != 0 {
		if n.Kind >= List {
			n.Flags |= Changed
		}
		m.note(MutatedAfterUse, at)
	}
}

// appends adds the values above from to the object below them.
func (m *Machine) appends(at int, stack []Ref, from int) error {
	if from-1 < m.fence {
		return m.fail(at, underflow)
	}
	target, values := stack[from-1], stack[from:]
	n := &m.nodes[target]
	if len(values) > 0 {
		m.changed(n, at)
	}
	switch n.Kind {
	case List:
		m.extend(target, values)
	case Call:
		if n.state != 0 || n.more != 0 && m.nodes[n.more].A != 0 {
			n.Reordered = true
		}
		list := m.moreOf(target, at).B
		if list == 0 {
			list = uint32(m.group(List, at, nil))
			m.moreOf(target, at).B = list
		}
		m.extend(Ref(list), values)
	default:
		return m.fail(at, "nothing can be appended to a "+n.Kind.String())
	}
	return nil
}

// setItems adds the pairs above from to the object below them.
func (m *Machine) setItems(at int, stack []Ref, from int) error {
	if from-1 < m.fence {
		return m.fail(at, underflow)
	}
	target, values := stack[from-1], stack[from:]
	if len(values)%2 != 0 {
		return m.fail(at, "a key has no value")
	}
	n := &m.nodes[target]
	if len(values) > 0 {
		m.changed(n, at)
	}
	switch n.Kind {
	case Dict:
		m.extend(target, values)
	case Call:
		if n.state != 0 {
			n.Reordered = true
		}
		dict := m.moreOf(target, at).A
		if dict == 0 {
			dict = uint32(m.group(Dict, at, nil))
			m.moreOf(target, at).A = dict
		}
		m.extend(Ref(dict), values)
	default:
		return m.fail(at, "a "+n.Kind.String()+" has no items to set")
	}
	return nil
}

// moreOf returns the node that holds the items of a Call: A those of a dict, B
// those of a list.
func (m *Machine) moreOf(call Ref, at int) *Node {
	if m.nodes[call].more == 0 {
		m.nodes[call].more = uint32(m.add(Node{Pos: uint32(at)}))
	}
	return &m.nodes[m.nodes[call].more]
}

// drop notes that values were thrown away, if that may mean anything.
func (m *Machine) drop(values []Ref, at int) {
	for _, r := range values {
		n := &m.nodes[r]
		if n.Kind >= Call || n.Kind >= List && n.B > 0 {
			m.note(Dropped, at)
		}
	}
}

// step executes the opcodes that are rare, or not worth a place in Load.
func (m *Machine) step(op byte, at int) error {
	switch op {
	case opProto:
		_, err := m.take(1, at)
		return err
	case opFrame:
		_, err := m.take(8, at)
		return err
	case opInt, opLong, opLong1, opLong4, opFloat:
		return m.stepNumber(op, at)
	case opString, opBinString, opUnicode, opShortBinUnicode, opBinUnicode8,
		opBinBytes, opBinBytes8, opByteArray8:
		return m.stepText(op, at)
	case opPut, opGet:
		return m.stepMemo(op, at)
	case opGlobal, opStackGlobal, opInst, opObj, opNewObjEx, opBuild, opPersID:
		return m.stepObject(op, at)
	case opTuple, opList, opDict, opEmptySet, opFrozenSet, opAddItems, opAppend, opSetItem:
		return m.stepContainer(op, at)
	case opPop, opPopMark, opDup:
		return m.stepStack(op, at)
	case opExt1, opExt2, opExt4:
		return m.extension(op, at)
	case opNextBuffer, opReadonlyBuffer:
		return m.fail(at, "it stands for data outside of the pickle")
	}
	return m.fail(at, "there is no such opcode")
}

// take returns the next n bytes.
func (m *Machine) take(n uint64, at int) ([]byte, error) {
	if n > uint64(len(m.data)-m.pos) {
		return nil, m.fail(at, truncated)
	}
	part := m.data[m.pos : m.pos+int(n)]
	m.pos += int(n)
	return part, nil
}

// line returns the bytes up to the end of the line.
func (m *Machine) line(at int) ([]byte, error) {
	size := bytes.IndexByte(m.data[m.pos:], '\n')
	if size < 0 {
		return nil, m.fail(at, truncated)
	}
	part := m.data[m.pos : m.pos+size]
	m.pos += size + 1
	return part, nil
}

// counted reads a length of so many bytes and then as many bytes as it says.
func (m *Machine) counted(size uint64, at int) ([]byte, error) {
	raw, err := m.take(size, at)
	if err != nil {
		return nil, err
	}
	return m.take(unsigned(raw), at)
}

func unsigned(raw []byte) (v uint64) {
	for i, c := range raw {
		v |= uint64(c) << (8 * i)
	}
	return v
}

func (m *Machine) push(r Ref) { m.stack = append(m.stack, r) }

func (m *Machine) pushInt(at int, v int64) { m.push(m.integer(at, v)) }

// integer adds an integer, if it is none that every pickle shares.
func (m *Machine) integer(at int, v int64) Ref {
	if 0 <= v && v < 256 {
		return refInts + Ref(v)
	}
	return m.number(Int, at, uint64(v))
}

func (m *Machine) stepNumber(op byte, at int) error {
	if op == opLong1 || op == opLong4 {
		return m.stepLong(op, at)
	}
	line, err := m.line(at)
	if err != nil {
		return err
	}
	return m.numberLine(op, at, bytes.TrimSpace(line))
}

func (m *Machine) stepLong(op byte, at int) error {
	size := uint64(1)
	if op == opLong4 {
		size = 4
	}
	from := m.pos
	raw, err := m.counted(size, at)
	if err != nil {
		return err
	}
	if op == opLong4 && m.data[from+3]&0x80 != 0 {
		return m.fail(at, "its length is negative")
	}
	raw = trimLong(raw)
	if len(raw) <= 8 {
		m.pushInt(at, smallLong(raw))
		return nil
	}
	m.push(m.add(Node{Kind: Long, Pos: uint32(at), A: uint32(from) + uint32(size), B: uint32(len(raw))}))
	return nil
}

// numberLine reads the numbers of protocol 0.
func (m *Machine) numberLine(op byte, at int, line []byte) error {
	if op == opFloat {
		v, ok := parseFloat(string(line))
		if !ok {
			return m.fail(at, "its argument is no number")
		}
		m.push(m.number(Float, at, math.Float64bits(v)))
		return nil
	}
	if op == opInt && len(line) == 2 && line[0] == '0' && (line[1] == '0' || line[1] == '1') {
		m.push(refFalse - Ref(line[1]-'0'))
		return nil
	}
	if op == opLong {
		line = bytes.TrimSuffix(line, []byte{'L'})
	}
	text := decimal(line)
	if text == nil {
		return m.fail(at, "its argument is no decimal integer")
	}
	if v, err := strconv.ParseInt(string(text), 10, 64); err == nil {
		m.pushInt(at, v)
		return nil
	}
	m.push(m.inText(LongText, at, text))
	return nil
}

// inText adds a node with data that is kept in the machine's own buffer.
func (m *Machine) inText(kind Kind, at int, data []byte) Ref {
	from := len(m.text)
	m.text = append(m.text, data...)
	return m.add(Node{Kind: kind, Flags: inText, Pos: uint32(at), A: uint32(from), B: uint32(len(data))})
}

// inData adds a node for the last size bytes that were taken.
func (m *Machine) inData(kind Kind, at int, data []byte) Ref {
	n := Node{Kind: kind, Pos: uint32(at), A: uint32(m.pos - len(data)), B: uint32(len(data))}
	switch kind {
	case Str:
		n.Flags = classify(data)
	case Py2Str:
		n.Flags = classifyPy2(data)
	}
	return m.add(n)
}

func (m *Machine) stepText(op byte, at int) error {
	if op == opString || op == opUnicode {
		return m.textLine(op, at)
	}
	kind, size := Str, uint64(8)
	switch op {
	case opBinString:
		kind, size = Py2Str, 4
	case opShortBinUnicode:
		size = 1
	case opBinBytes:
		kind, size = Bytes, 4
	case opBinBytes8:
		kind = Bytes
	case opByteArray8:
		kind = ByteArray
	}
	data, err := m.counted(size, at)
	if err != nil {
		return err
	}
	m.push(m.inData(kind, at, data))
	return nil
}

// textLine reads the strings of protocol 0.
func (m *Machine) textLine(op byte, at int) error {
	line, err := m.line(at)
	if err != nil {
		return err
	}
	from, problem := len(m.text), ""
	n := Node{Kind: Str, Pos: uint32(at), A: uint32(from)}
	if op == opString {
		n.Kind = Py2Str
		m.text, problem = appendQuoted(m.text, line)
		n.Flags = classifyPy2(m.text[from:])
	} else {
		m.text, problem = appendRawUnicode(m.text, line)
		n.Flags = classify(m.text[from:])
	}
	if problem != "" {
		return m.fail(at, problem)
	}
	n.Flags |= inText
	n.B = uint32(len(m.text) - from)
	m.push(m.add(n))
	return nil
}

func (m *Machine) stepMemo(op byte, at int) error {
	line, err := m.line(at)
	if err != nil {
		return err
	}
	index, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 32)
	if err != nil {
		return m.fail(at, "its argument is no memo number")
	}
	if op == opPut {
		if len(m.stack) <= m.fence {
			return m.fail(at, underflow)
		}
		m.memo.put(uint32(index), m.stack[len(m.stack)-1])
		return nil
	}
	r, ok := m.memo.get(uint32(index))
	if !ok {
		return m.fail(at, "nothing was put there")
	}
	m.nodes[r].Flags |= Shared
	m.push(r)
	return nil
}

// pop removes the top n values and returns them; they are valid until the next
// push.
func (m *Machine) pop(n, at int) ([]Ref, error) {
	from := len(m.stack) - n
	if from < m.fence {
		return nil, m.fail(at, underflow)
	}
	values := m.stack[from:]
	m.stack = m.stack[:from]
	return values, nil
}

// popMarked removes the last mark and the values above it.
func (m *Machine) popMarked(at int) ([]Ref, error) {
	if len(m.marks) == 0 {
		return nil, m.fail(at, noMark)
	}
	from := m.popMark()
	values := m.stack[from:]
	m.stack = m.stack[:from]
	return values, nil
}

func (m *Machine) stepObject(op byte, at int) error {
	switch op {
	case opGlobal:
		r, err := m.global(at)
		if err == nil {
			m.push(r)
		}
		return err
	case opStackGlobal:
		names, err := m.pop(2, at)
		if err != nil {
			return err
		}
		if m.nodes[names[0]].Kind != Str || m.nodes[names[1]].Kind != Str {
			return m.fail(at, "the names are not text")
		}
		m.push(m.add(Node{Kind: Global, Pos: uint32(at), A: uint32(names[0]), B: uint32(names[1])}))
	case opInst:
		return m.inst(at)
	case opObj:
		parts, err := m.popMarked(at)
		if err != nil {
			return err
		}
		if len(parts) == 0 {
			return m.fail(at, underflow)
		}
		class := parts[0]
		m.call(ByInst, at, class, m.tuple(at, parts[1:]))
	case opNewObjEx:
		parts, err := m.pop(3, at)
		if err != nil {
			return err
		}
		class := parts[0]
		m.call(ByNewObjEx, at, class, m.group(Tuple, at, parts))
	case opBuild:
		return m.build(at)
	case opPersID:
		line, err := m.line(at)
		if err != nil {
			return err
		}
		// Bytes, as zodbpickle has it. Python's own unpickler makes text of it.
		m.pos--
		id := m.inData(Bytes, at, line)
		m.pos++
		m.push(m.add(Node{Kind: PersID, Pos: uint32(at), A: uint32(id)}))
	}
	return nil
}

func (m *Machine) call(made Made, at int, callable, args Ref) {
	m.push(m.add(Node{Kind: Call, Made: made, Pos: uint32(at), A: uint32(callable), B: uint32(args)}))
}

func (m *Machine) tuple(at int, parts []Ref) Ref {
	if len(parts) == 0 {
		return refEmptyTuple
	}
	return m.group(Tuple, at, parts)
}

// extension reads a code of the extension registry, which begins with 1.
func (m *Machine) extension(op byte, at int) error {
	raw, err := m.take(1<<(op-opExt1), at)
	if err != nil {
		return err
	}
	code := unsigned(raw)
	if code == 0 || code > math.MaxInt32 {
		return m.fail(at, "there is no such code")
	}
	m.push(m.add(Node{Kind: Ext, Pos: uint32(at), A: uint32(code)}))
	return nil
}

// global reads the two lines of GLOBAL and INST.
func (m *Machine) global(at int) (Ref, error) {
	var names [2]Ref
	for i := range names {
		line, err := m.line(at)
		if err != nil {
			return 0, err
		}
		m.pos--
		names[i] = m.inData(Str, at, line)
		m.pos++
	}
	return m.add(Node{Kind: Global, Pos: uint32(at), A: uint32(names[0]), B: uint32(names[1])}), nil
}

func (m *Machine) inst(at int) error {
	class, err := m.global(at)
	if err != nil {
		return err
	}
	args, err := m.popMarked(at)
	if err != nil {
		return err
	}
	m.call(ByInst, at, class, m.tuple(at, args))
	return nil
}

// build sets a state. It belongs to the object, not to the place on the stack:
// what stands in the memo has it too.
func (m *Machine) build(at int) error {
	values, err := m.pop(2, at)
	if err != nil {
		return err
	}
	target, state := values[0], values[1]
	m.push(target)
	if target < sharedNodes {
		// None, True and small integers have no attributes; the state cannot be
		// kept on a node that others share either.
		return m.fail(at, "a "+m.nodes[target].Kind.String()+" takes no state")
	}
	n := &m.nodes[target]
	m.changed(n, at)
	switch n.Kind {
	case Call:
		if n.state != 0 {
			m.note(BuiltTwice, at)
		}
		n.state = uint32(state) + 1
	case Built:
		m.note(BuiltTwice, at)
		n.B = uint32(state)
	default:
		inner := m.add(*n)
		m.nodes[target] = Node{Kind: Built, Flags: m.nodes[target].Flags & Shared, Pos: uint32(at), A: uint32(inner), B: uint32(state)}
	}
	return nil
}

func (m *Machine) stepContainer(op byte, at int) error {
	switch op {
	case opEmptySet:
		m.push(m.group(Set, at, nil))
		return nil
	case opAppend, opSetItem:
		size := 1
		if op == opSetItem {
			size = 2
		}
		from := len(m.stack) - size
		if from < m.fence {
			return m.fail(at, underflow)
		}
		defer func() { m.stack = m.stack[:from] }()
		if op == opAppend {
			return m.appends(at, m.stack, from)
		}
		return m.setItems(at, m.stack, from)
	}
	values, err := m.popMarked(at)
	if err != nil {
		return err
	}
	switch op {
	case opTuple:
		m.push(m.tuple(at, values))
	case opList:
		m.push(m.group(List, at, values))
	case opFrozenSet:
		m.push(m.group(FrozenSet, at, values))
	case opDict:
		if len(values)%2 != 0 {
			return m.fail(at, "a key has no value")
		}
		m.push(m.group(Dict, at, values))
	case opAddItems:
		if len(m.stack) <= m.fence {
			return m.fail(at, underflow)
		}
		target := m.stack[len(m.stack)-1]
		n := &m.nodes[target]
		if n.Kind != Set {
			return m.fail(at, "nothing can be added to a "+n.Kind.String())
		}
		if len(values) > 0 {
			m.changed(n, at)
		}
		m.extend(target, values)
	}
	return nil
}

func (m *Machine) stepStack(op byte, at int) error {
	switch op {
	case opDup:
		if len(m.stack) <= m.fence {
			return m.fail(at, underflow)
		}
		top := m.stack[len(m.stack)-1]
		m.nodes[top].Flags |= Shared
		m.push(top)
	case opPopMark:
		values, err := m.popMarked(at)
		m.drop(values, at)
		return err
	case opPop:
		if len(m.stack) == m.fence && len(m.marks) > 0 {
			m.popMark()
			return nil
		}
		values, err := m.pop(1, at)
		m.drop(values, at)
		return err
	}
	return nil
}
