package jsonb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// executor executes a pickle into symbols. It knows the opcodes of protocols 0
// to 5, as far as Python's own unpickler does something with them.
type executor struct {
	data    string
	pos     int
	stack   []*symbol
	marks   []int
	memo    map[uint64]*symbol
	buffers []*symbol // what NEXT_BUFFER takes, in this order
	nested  int       // pickles within pickles
	room    *int64
}

// executeRecord executes the class pickle and the state pickle of a record,
// which share their memo.
func executeRecord(record []byte, room *int64) (class, state *symbol, err error) {
	if *room -= int64(len(record)); *room < 0 {
		return nil, nil, errTooLarge
	}
	e := executor{data: string(record), memo: make(map[uint64]*symbol), room: room}
	if class, err = e.run(); err != nil {
		return nil, nil, fmt.Errorf("class pickle at byte %d: %w", e.pos, err)
	}
	if state, err = e.run(); err != nil {
		return nil, nil, fmt.Errorf("state pickle at byte %d: %w", e.pos, err)
	}
	return class, state, nil
}

var (
	errShort     = errors.New("unexpected end of the pickle")
	errUnderflow = errors.New("the stack has too few values")
)

// run executes up to a STOP.
func (e *executor) run() (*symbol, error) {
	e.stack, e.marks = e.stack[:0], e.marks[:0]
	for {
		op, err := e.take(1)
		if err != nil {
			return nil, err
		}
		if op == "." {
			return e.pop()
		}
		if err := e.step(op[0]); err != nil {
			e.pos--
			return nil, fmt.Errorf("opcode %#02x: %w", op[0], err)
		}
	}
}

// take is the next n bytes.
func (e *executor) take(n uint64) (string, error) {
	if n > uint64(len(e.data)-e.pos) {
		return "", errShort
	}
	e.pos += int(n)
	return e.data[e.pos-int(n) : e.pos], nil
}

// line is what stands before the next line break.
func (e *executor) line() (string, error) {
	n := strings.IndexByte(e.data[e.pos:], '\n')
	if n < 0 {
		return "", errShort
	}
	text := e.data[e.pos : e.pos+n]
	e.pos += n + 1
	return text, nil
}

// number is a little-endian number of n bytes.
func (e *executor) number(n uint64) (uint64, error) {
	raw, err := e.take(n)
	if err != nil {
		return 0, err
	}
	var full [8]byte
	copy(full[:], raw)
	return binary.LittleEndian.Uint64(full[:]), nil
}

// counted is text behind its length of n bytes.
func (e *executor) counted(n uint64) (string, error) {
	size, err := e.number(n)
	if err != nil {
		return "", err
	}
	return e.take(size)
}

// charge takes bytes from the room that is left.
func (e *executor) charge(n int) error {
	if *e.room -= int64(n); *e.room < 0 {
		return errTooLarge
	}
	return nil
}

func (e *executor) push(s *symbol) error {
	e.stack = append(e.stack, s)
	return e.charge(symbolCost)
}

// floor is where the values above the last mark begin.
func (e *executor) floor() int {
	if len(e.marks) == 0 {
		return 0
	}
	return e.marks[len(e.marks)-1]
}

func (e *executor) pop() (*symbol, error) {
	n := len(e.stack)
	if n <= e.floor() {
		return nil, errUnderflow
	}
	s := e.stack[n-1]
	e.stack = e.stack[:n-1]
	return s, nil
}

func (e *executor) top() (*symbol, error) {
	if len(e.stack) <= e.floor() {
		return nil, errUnderflow
	}
	return e.stack[len(e.stack)-1], nil
}

// popMark is everything above the last mark, which goes too.
func (e *executor) popMark() ([]*symbol, error) {
	if len(e.marks) == 0 {
		return nil, errors.New("no mark")
	}
	floor := e.floor()
	e.marks = e.marks[:len(e.marks)-1]
	above := append([]*symbol(nil), e.stack[floor:]...)
	e.stack = e.stack[:floor]
	return above, e.charge(8 * len(above))
}

func (e *executor) popN(n int) ([]*symbol, error) {
	if len(e.stack)-e.floor() < n {
		return nil, errUnderflow
	}
	above := append([]*symbol(nil), e.stack[len(e.stack)-n:]...)
	e.stack = e.stack[:len(e.stack)-n]
	return above, nil
}

// pushText pushes the text that an opcode has read.
func (e *executor) pushText(kind symbolKind, text string, err error) error {
	if err != nil {
		return err
	}
	return e.push(&symbol{kind: kind, text: text})
}

// pushInt pushes an integer of a few bytes.
func (e *executor) pushInt(size uint64, signed bool) error {
	v, err := e.number(size)
	if err != nil {
		return err
	}
	if signed {
		return e.push(intSymbol(int64(int32(v))))
	}
	return e.push(intSymbol(int64(v)))
}

// step executes one opcode.
func (e *executor) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		_, err := e.take(1)
		return err
	case 0x95: // FRAME
		_, err := e.take(8)
		return err
	case '(':
		e.marks = append(e.marks, len(e.stack))
		return e.charge(8)
	case '0':
		if len(e.marks) > 0 && len(e.stack) == e.floor() {
			e.marks = e.marks[:len(e.marks)-1]
			return nil
		}
		s, err := e.pop()
		if err == nil {
			s.noteEffect()
		}
		return err
	case '1':
		_, err := e.popMark()
		return err
	case '2':
		s, err := e.top()
		if err != nil {
			return err
		}
		return e.push(s)
	}
	for _, family := range []func(byte) (bool, error){e.scalar, e.text, e.container, e.object, e.memory} {
		if known, err := family(op); known {
			return err
		}
	}
	return errors.New("unknown opcode")
}

// noteEffect keeps a call whose result is dropped: it was made for what it does
// to its first argument, as Python's pickler writes a setter of states.
func (s *symbol) noteEffect() {
	if s.kind != symCall || s.parts[1].kind != symTuple || len(s.parts[1].parts) == 0 {
		return
	}
	if target := s.parts[1].parts[0]; target.mutable() {
		target.extend().states = append(target.extend().states, s)
	}
}

func (e *executor) scalar(op byte) (bool, error) {
	switch op {
	case 'N':
		return true, e.push(&symbol{kind: symNone})
	case 0x88:
		return true, e.push(&symbol{kind: symBool, text: "1"})
	case 0x89:
		return true, e.push(&symbol{kind: symBool, text: "0"})
	case 'K':
		return true, e.pushInt(1, false)
	case 'M':
		return true, e.pushInt(2, false)
	case 'J':
		return true, e.pushInt(4, true)
	case 0x8a:
		text, err := e.counted(1)
		return true, e.pushText(symInt, shortest(text), err)
	case 0x8b:
		text, err := e.counted(4)
		return true, e.pushText(symInt, shortest(text), err)
	case 'G':
		text, err := e.take(8)
		return true, e.pushText(symFloat, text, err)
	case 'I', 'L', 'F':
		line, err := e.line()
		if err != nil {
			return true, err
		}
		s, err := numberSymbol(op, line)
		if err != nil {
			return true, err
		}
		return true, e.push(s)
	}
	return false, nil
}

// numberSymbol is the number that a text opcode gives.
func numberSymbol(op byte, line string) (*symbol, error) {
	switch {
	case op == 'I' && line == "00":
		return &symbol{kind: symBool, text: "0"}, nil
	case op == 'I' && line == "01":
		return &symbol{kind: symBool, text: "1"}, nil
	}
	line = strings.TrimSpace(line)
	if op == 'F' {
		v, ok := pythonFloat(line)
		if !ok {
			return nil, errors.New("no float")
		}
		return floatSymbol(v), nil
	}
	v, err := parseInteger([]byte(strings.TrimRight(line, "L")))
	if err != nil {
		return nil, err
	}
	return &symbol{kind: symInt, text: shortest(string(littleEndian(v)))}, nil
}

func floatSymbol(v float64) *symbol {
	return &symbol{kind: symFloat, text: string(binary.BigEndian.AppendUint64(nil, math.Float64bits(v)))}
}

// pythonFloat reads what Python's float takes, apart from underscores.
func pythonFloat(text string) (float64, bool) {
	text = strings.ToLower(strings.TrimSpace(text))
	unsigned := strings.TrimLeft(text, "+-")
	if len(text)-len(unsigned) > 1 {
		return 0, false
	}
	switch unsigned {
	case "nan":
		// Python's has no payload, unlike math.NaN.
		return math.Float64frombits(0x7ff8<<48 | uint64(strings.Count(text, "-"))<<63), true
	case "inf", "infinity":
		return math.Inf(1 - 2*strings.Count(text, "-")), true
	}
	if strings.Trim(text, "0123456789.e+-") != "" || text == "" {
		return 0, false
	}
	v, err := strconv.ParseFloat(text, 64)
	return v, err == nil || errors.Is(err, strconv.ErrRange)
}

func (e *executor) text(op byte) (bool, error) {
	var kind symbolKind
	var text string
	var err error
	switch op {
	case 'S':
		kind = symOldString
		if text, err = e.line(); err == nil {
			text, err = unquote(text)
		}
	case 'T':
		kind = symOldString
		text, err = e.counted(4)
	case 'U':
		kind = symOldString
		text, err = e.counted(1)
	case 'V':
		kind = symText
		if text, err = e.line(); err == nil {
			text, err = rawUnicode(text)
		}
	case 'X':
		kind = symText
		text, err = e.counted(4)
	case 0x8c:
		kind = symText
		text, err = e.counted(1)
	case 0x8d:
		kind = symText
		text, err = e.counted(8)
	case 'B':
		kind = symBytes
		text, err = e.counted(4)
	case 'C':
		kind = symBytes
		text, err = e.counted(1)
	case 0x8e:
		kind = symBytes
		text, err = e.counted(8)
	case 0x96:
		kind = symByteArray
		text, err = e.counted(8)
	default:
		return false, nil
	}
	return true, e.pushText(kind, text, err)
}

// unquote reads the argument of STRING: the repr of a byte string.
func unquote(line string) (string, error) {
	line = strings.TrimRight(line, " \t\r\f\v")
	n := len(line)
	if n < 2 || line[0] != line[n-1] || line[0] != '\'' && line[0] != '"' {
		return "", errors.New("a string without quotes")
	}
	line = line[1 : n-1]
	var out []byte
	for i := 0; i < len(line); {
		if line[i] != '\\' {
			out = append(out, line[i])
			i++
			continue
		}
		if i+1 == len(line) {
			return "", errors.New("a string ends with a backslash")
		}
		c := line[i+1]
		i += 2
		if at := strings.IndexByte(`\'"abfnrtv`, c); at >= 0 {
			out = append(out, "\\'\"\a\b\f\n\r\t\v"[at])
			continue
		}
		digits, base := 0, 8
		switch {
		case c == 'x':
			base = 16
			for digits < 2 && i+digits < len(line) && isHex(line[i+digits]) {
				digits++
			}
			if digits < 2 {
				return "", errors.New(`a string with an unfinished \x`)
			}
		case '0' <= c && c <= '7':
			i--
			for digits < 3 && i+digits < len(line) && '0' <= line[i+digits] && line[i+digits] <= '7' {
				digits++
			}
		default:
			out = append(out, '\\', c)
			continue
		}
		v, err := strconv.ParseUint(line[i:i+digits], base, 16)
		if err != nil {
			return "", err
		}
		out = append(out, byte(v))
		i += digits
	}
	return string(out), nil
}

func isHex(c byte) bool {
	_, ok := hexDigit(c)
	return ok
}

// rawUnicode reads the argument of UNICODE: Latin-1 with escapes for the rest.
func rawUnicode(line string) (string, error) {
	var out []byte
	for i := 0; i < len(line); {
		run := 0
		for i+run < len(line) && line[i+run] == '\\' {
			run++
		}
		if run == 0 {
			out = utf8.AppendRune(out, rune(line[i]))
			i++
			continue
		}
		out = append(out, line[i:i+run]...)
		i += run
		if run%2 == 0 || i == len(line) || line[i] != 'u' && line[i] != 'U' {
			continue
		}
		digits := 4
		if line[i] == 'U' {
			digits = 8
		}
		if len(line)-i-1 < digits {
			return "", errors.New("a text with an unfinished escape")
		}
		v, err := strconv.ParseUint(line[i+1:i+1+digits], 16, 32)
		if err != nil || v > utf8.MaxRune {
			return "", errors.New("a text with a bad escape")
		}
		out = appendAnyRune(out[:len(out)-1], rune(v))
		i += 1 + digits
	}
	return string(out), nil
}

// appendAnyRune is utf8.AppendRune that takes surrogates as well.
func appendAnyRune(dst []byte, r rune) []byte {
	if 0xd800 <= r && r <= 0xdfff {
		return append(dst, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
	}
	return utf8.AppendRune(dst, r)
}

func (e *executor) container(op byte) (bool, error) {
	switch op {
	case ']':
		return true, e.push(&symbol{kind: symList})
	case '}':
		return true, e.push(&symbol{kind: symDict})
	case 0x8f:
		return true, e.push(&symbol{kind: symSet})
	case ')':
		return true, e.push(&symbol{kind: symTuple})
	case 0x85, 0x86, 0x87:
		parts, err := e.popN(int(op) - 0x84)
		return true, e.pushParts(symTuple, parts, err)
	case 't':
		parts, err := e.popMark()
		return true, e.pushParts(symTuple, parts, err)
	case 'l':
		parts, err := e.popMark()
		return true, e.pushParts(symList, parts, err)
	case 0x91:
		parts, err := e.popMark()
		return true, e.pushParts(symFrozenSet, parts, err)
	case 'd':
		parts, err := e.popMark()
		if err != nil {
			return true, err
		}
		s := &symbol{kind: symDict}
		if err := e.setItems(s, parts); err != nil {
			return true, err
		}
		return true, e.push(s)
	case 'a', 's', 'e', 'u', 0x90:
		return true, e.fill(op)
	}
	return false, nil
}

func (e *executor) pushParts(kind symbolKind, parts []*symbol, err error) error {
	if err != nil {
		return err
	}
	return e.push(&symbol{kind: kind, parts: parts})
}

// fill puts values into the object below them.
func (e *executor) fill(op byte) error {
	var values []*symbol
	var err error
	switch op {
	case 'a':
		values, err = e.popN(1)
	case 's':
		values, err = e.popN(2)
	default:
		values, err = e.popMark()
	}
	if err != nil {
		return err
	}
	into, err := e.top()
	if err != nil {
		return err
	}
	switch op {
	case 'a', 'e':
		return e.appendItems(into, values)
	case 0x90:
		if into.kind != symSet {
			return errors.New("elements for what is no set")
		}
		into.parts = append(into.parts, values...)
		return nil
	}
	return e.setItems(into, values)
}

func (e *executor) appendItems(into *symbol, values []*symbol) error {
	if into.kind == symList {
		into.parts = append(into.parts, values...)
	} else if len(values) > 0 {
		into.extend().items = append(into.extend().items, values...)
	}
	return e.charge(8 * len(values))
}

// setItems sets keys and values that stand one after the other.
func (e *executor) setItems(into *symbol, values []*symbol) error {
	if len(values)%2 != 0 {
		return errors.New("a key without a value")
	}
	for i := 0; i < len(values); i += 2 {
		into.pairs = append(into.pairs, symbolPair{values[i], values[i+1]})
	}
	return e.charge(8 * len(values))
}

func (e *executor) object(op byte) (bool, error) {
	switch op {
	case 'c':
		class, err := e.global()
		if err != nil {
			return true, err
		}
		return true, e.push(class)
	case 0x93:
		names, err := e.popN(2)
		if err != nil {
			return true, err
		}
		if !names[0].isText() || !names[1].isText() {
			return true, errors.New("the name of a class is no text")
		}
		return true, e.push(&symbol{kind: symGlobal, text: names[0].text, name: names[1].text})
	case 'R', 0x81, 0x92, 'i', 'o':
		made, err := e.construct(op)
		if err != nil {
			return true, err
		}
		return true, e.push(made)
	case 'b':
		state, err := e.pop()
		if err != nil {
			return true, err
		}
		into, err := e.top()
		if err != nil {
			return true, err
		}
		into.extend().states = append(into.extend().states, state)
		return true, e.charge(32)
	case 'P':
		line, err := e.line()
		if err != nil {
			return true, err
		}
		return true, e.push(&symbol{kind: symRef, parts: []*symbol{{kind: symBytes, text: line}}})
	case 'Q':
		pid, err := e.pop()
		if err != nil {
			return true, err
		}
		return true, e.push(&symbol{kind: symRef, parts: []*symbol{oidsAsBytes(pid)}})
	case 0x82, 0x83, 0x84:
		code, err := e.number(1 << (op - 0x82))
		if err != nil {
			return true, err
		}
		return true, e.push(&symbol{kind: symExtension, text: strconv.FormatUint(code, 10)})
	}
	return false, nil
}

func (e *executor) global() (*symbol, error) {
	module, err := e.line()
	if err != nil {
		return nil, err
	}
	name, err := e.line()
	return &symbol{kind: symGlobal, text: module, name: name}, err
}

// construct makes the object of a call, of __new__, or of one of the two
// opcodes of old-style classes.
func (e *executor) construct(op byte) (*symbol, error) {
	switch op {
	case 'R', 0x81:
		parts, err := e.popN(2)
		if err != nil {
			return nil, err
		}
		if op == 'R' {
			return e.call(parts[0], parts[1])
		}
		return &symbol{kind: symNew, parts: parts}, nil
	case 0x92:
		parts, err := e.popN(3)
		if err != nil {
			return nil, err
		}
		return newEx(parts), nil
	}
	args, err := e.popMark()
	if err != nil {
		return nil, err
	}
	var class *symbol
	if op == 'i' {
		if class, err = e.global(); err != nil {
			return nil, err
		}
	} else {
		if len(args) == 0 {
			return nil, errUnderflow
		}
		class, args = args[0], args[1:]
	}
	tuple := &symbol{kind: symTuple, parts: args}
	if len(args) == 0 {
		return &symbol{kind: symNew, parts: []*symbol{class, tuple}}, nil
	}
	return e.call(class, tuple)
}

// newEx is cls.__new__(cls, *args, **kwargs).
func newEx(parts []*symbol) *symbol {
	if parts[2].kind == symDict && len(parts[2].pairs) == 0 {
		return &symbol{kind: symNew, parts: parts[:2:2]}
	}
	return &symbol{kind: symNewEx, parts: parts}
}

// oidsAsBytes gives the oids in a persistent id the type that ZODB wants, where
// Python 2 has written its only string type.
func oidsAsBytes(pid *symbol) *symbol {
	if pid.isOldString() {
		return &symbol{kind: symBytes, text: pid.text}
	}
	n := len(pid.parts)
	if pid.kind == symTuple && n > 0 || pid.kind == symList && n == 1 {
		return pid.withPart(0, oidsAsBytes(pid.parts[0]))
	}
	if pid.kind != symList || n != 2 || !pid.parts[0].isText() || pid.parts[1].kind != symTuple {
		return pid
	}
	at := map[string]int{"w": 0, "m": 1, "n": 1}[pid.parts[0].text]
	inner := pid.parts[1]
	if at >= len(inner.parts) || !inner.parts[at].isOldString() {
		return pid
	}
	return pid.withPart(1, inner.withPart(at, &symbol{kind: symBytes, text: inner.parts[at].text}))
}

// withPart is a copy with another part.
func (s *symbol) withPart(i int, part *symbol) *symbol {
	if s.parts[i] == part {
		return s
	}
	changed := *s
	changed.parts = append([]*symbol(nil), s.parts...)
	changed.parts[i] = part
	return &changed
}

func (e *executor) memory(op byte) (bool, error) {
	var index uint64
	var err error
	switch op {
	case 'p', 'g':
		var line string
		if line, err = e.line(); err == nil {
			index, err = strconv.ParseUint(strings.TrimSpace(line), 10, 64)
		}
	case 'q', 'h':
		index, err = e.number(1)
	case 'r', 'j':
		index, err = e.number(4)
	case 0x94:
		index = uint64(len(e.memo))
	case 0x97, 0x98:
		return true, e.buffer(op)
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if op == 'g' || op == 'h' || op == 'j' {
		s, found := e.memo[index]
		if !found {
			return true, fmt.Errorf("memo has no entry %d", index)
		}
		return true, e.push(s)
	}
	s, err := e.top()
	if err != nil {
		return true, err
	}
	e.memo[index] = s
	return true, e.charge(48)
}

// buffer is NEXT_BUFFER, or READONLY_BUFFER, which changes nothing here.
func (e *executor) buffer(op byte) error {
	if op == 0x98 {
		_, err := e.top()
		return err
	}
	if len(e.buffers) == 0 {
		return errors.New("no buffer is left")
	}
	s := e.buffers[0]
	e.buffers = e.buffers[1:]
	return e.push(s)
}
