package pgjsonb

import (
	"math"
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// extensions turns the extension of a transaction, a pickled dict, into what
// zodb-pgjsonb keeps: JSON as Python's json.dumps writes it, if reading that
// gives the same dict; the pickle as it is otherwise. The storage reads both.
// An empty dict is nothing.
type extensions struct {
	machine pickle.Machine
	out     []byte
}

const hexDigits = "0123456789abcdef"

const (
	// An extension has at most 64 kB. Parts that it shares are written out each
	// time, so a bound is needed for what they can stand for.
	maxExtension      = 1 << 20
	maxExtensionDepth = 100
)

// convert returns what is stored. The result is valid until the next call.
func (x *extensions) convert(pickled []byte) []byte {
	if len(pickled) == 0 {
		return nil
	}
	x.machine.Reset(pickled)
	root, err := x.machine.Load()
	if err != nil || x.machine.Odd().Oddity != 0 {
		return pickled
	}
	n := x.machine.Node(root)
	if n.Kind != pickle.Dict {
		return pickled // no application reads it, but it is not ours to drop
	}
	if len(x.machine.Kids(n)) == 0 {
		return nil
	}
	var clean bool
	if x.out, clean = x.value(x.out[:0], root, 0); !clean {
		return pickled
	}
	return x.out
}

// value appends a value. clean is false if JSON does not give it back.
func (x *extensions) value(b []byte, r pickle.Ref, depth int) (_ []byte, clean bool) {
	if depth > maxExtensionDepth || len(b) > maxExtension {
		return b, false
	}
	n := x.machine.Node(r)
	switch n.Kind {
	case pickle.None:
		return append(b, "null"...), true
	case pickle.Bool:
		return strconv.AppendBool(b, n.Int() != 0), true
	case pickle.Int:
		return strconv.AppendInt(b, n.Int(), 10), true
	case pickle.LongText:
		return append(b, x.machine.Data(n)...), true
	case pickle.Long:
		return longValue(x.machine.Data(n)).Append(b, 10), true
	case pickle.Float:
		return appendPythonFloat(b, n.Float64())
	case pickle.Str, pickle.Py2Str:
		return x.text(b, n)
	case pickle.List:
		return x.list(b, n, depth)
	case pickle.Dict:
		return x.dict(b, n, depth)
	}
	return b, false
}

// text appends a string. Of the str of Python 2 only ASCII is text.
func (x *extensions) text(b []byte, n *pickle.Node) (_ []byte, clean bool) {
	data := x.machine.Data(n)
	if n.Kind == pickle.Py2Str && n.Flags&pickle.ASCII == 0 || !utf8.Valid(data) {
		return b, false
	}
	return appendPythonString(b, data), true
}

func (x *extensions) list(b []byte, n *pickle.Node, depth int) (_ []byte, clean bool) {
	b = append(b, '[')
	for i, kid := range x.machine.Kids(n) {
		if i > 0 {
			b = append(b, ", "...)
		}
		if b, clean = x.value(b, kid, depth+1); !clean {
			return b, false
		}
	}
	return append(b, ']'), true
}

// dict appends a dict. A key that comes twice stands where it came first, with
// its last value.
func (x *extensions) dict(b []byte, n *pickle.Node, depth int) (_ []byte, clean bool) {
	kids := x.machine.Kids(n)
	at := make(map[string]int, len(kids)/2)
	var order []pickle.Ref
	for i := 0; i+1 < len(kids); i += 2 {
		key := x.machine.Node(kids[i])
		if key.Kind != pickle.Str && key.Kind != pickle.Py2Str {
			return b, false
		}
		name := string(x.machine.Data(key))
		if j, ok := at[name]; ok {
			order[j+1] = kids[i+1]
			continue
		}
		at[name] = len(order)
		order = append(order, kids[i], kids[i+1])
	}
	b = append(b, '{')
	for i := 0; i < len(order); i += 2 {
		if i > 0 {
			b = append(b, ", "...)
		}
		if b, clean = x.text(b, x.machine.Node(order[i])); !clean {
			return b, false
		}
		b = append(b, ": "...)
		if b, clean = x.value(b, order[i+1], depth+1); !clean {
			return b, false
		}
	}
	return append(b, '}'), true
}

// longValue reads little-endian two's complement.
func longValue(data []byte) *big.Int {
	bytes := slices.Clone(data)
	slices.Reverse(bytes)
	v := new(big.Int).SetBytes(bytes)
	if len(bytes) > 0 && bytes[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(bytes))))
	}
	return v
}

// appendPythonFloat appends what Python's repr gives: the shortest digits,
// with an exponent from 1e16 and below 1e-4. What is no number has no JSON.
func appendPythonFloat(b []byte, f float64) (_ []byte, clean bool) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return b, false
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.AppendFloat(b, f, 'e', -1, 64), true
	}
	from := len(b)
	b = strconv.AppendFloat(b, f, 'f', -1, 64)
	if !slices.Contains(b[from:], '.') {
		b = append(b, ".0"...)
	}
	return b, true
}

// appendPythonString appends a string as json.dumps does: everything but
// printable ASCII escaped, above the basic plane as two surrogates.
func appendPythonString(b, text []byte) []byte {
	b = append(b, '"')
	for _, r := range string(text) {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r >= ' ' && r <= '~':
			b = append(b, byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r == '\f':
			b = append(b, `\f`...)
		case r == '\b':
			b = append(b, `\b`...)
		case r > 0xffff:
			r -= 0x10000
			b = appendEscape(appendEscape(b, 0xd800+r>>10), 0xdc00+r&0x3ff)
		default:
			b = appendEscape(b, r)
		}
	}
	return append(b, '"')
}

func appendEscape(b []byte, r rune) []byte {
	return append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}
