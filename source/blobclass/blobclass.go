// Package blobclass tells by its bytes whether a record is that of a blob: an
// object of the class ZODB.blob.Blob, whose state is None and whose bytes are
// elsewhere.
//
// A record that merely refers to a blob holds the same names. ZODB itself writes
// the class alone, and takes nothing else for a blob when it copies a database.
// zodb-pgjsonb gives (("ZODB.blob", "Blob"), None), so a database that was copied
// out of one has the pair.
package blobclass

import (
	"bytes"
	"encoding/binary"
)

// Module is what the record of every blob contains, unless it is compressed.
const Module = "ZODB.blob"

const name = "Blob"

// MaxRecord is more than the record of a blob takes: a class pickle of about 25
// bytes, as a pair 36, and the pickle of None.
const MaxRecord = 128

// deepest is more than a class pickle has on the stack.
const deepest = 8

// classItem is what the machine below knows of a value.
type classItem struct {
	text  string // of a string
	class bool   // the class of blobs, or the pair of its names
	mark  bool
}

// Is tells whether the first pickle of a record is the class of blobs. It runs
// it as far as class pickles go: it knows strings, globals, tuples and the memo's
// stores; anything else is not the class pickle of a blob.
func Is(p []byte) bool {
	var room [deepest]classItem
	stack := room[:0]
	for len(p) > 0 && len(stack) < deepest {
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
		module, rest, some := bytes.Cut(p[1:], []byte{'\n'})
		class, _, all := bytes.Cut(rest, []byte{'\n'})
		if !some || !all {
			return nil, 0, false
		}
		is := string(module) == Module && string(class) == name
		return append(stack, classItem{class: is}), 3 + len(module) + len(class), true
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
	class := a.class && !b.class && b.text == "" || a.text == Module && b.text == name
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
