package jsonb

import (
	"encoding/base64"
	"math"
	"strconv"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// state writes the state of the record.
func (e *Encoder) state(b []byte, r pickle.Ref) []byte {
	if kind, ok := btreeKind(e.row.Module, e.row.Name); ok {
		return e.btree(b, r, kind, 0)
	}
	return e.value(b, r, 0)
}

// value writes any value. depth is how many arrays and objects are open.
func (e *Encoder) value(b []byte, r pickle.Ref, depth int) []byte {
	n := &e.nodes[r]
	switch n.Kind {
	case pickle.Str:
		if n.Flags&pickle.Plain != 0 {
			b = append(b, '"')
			b = append(b, e.machine.Data(n)...)
			return append(b, '"')
		}
		return e.text(b, n, depth)
	case pickle.Int:
		return strconv.AppendInt(b, n.Int(), 10)
	case pickle.None:
		return append(b, "null"...)
	case pickle.Bool:
		return strconv.AppendBool(b, n.A != 0)
	case pickle.Dict:
		return e.dict(b, n, depth)
	case pickle.List:
		e.enter(n, depth+1)
		b = e.list(b, e.machine.Kids(n), depth)
		e.leave()
		return b
	case pickle.Tuple:
		e.enter(n, depth+2)
		b = append(b, `{"@t":`...)
		b = e.list(b, e.machine.Kids(n), depth+1)
		b = append(b, '}')
		e.leave()
		return b
	case pickle.PersID:
		return e.persistent(b, n, depth)
	case pickle.Call:
		return e.call(b, n, depth)
	case pickle.Bytes:
		return e.bytes(b, n, depth)
	case pickle.Float:
		return e.float(b, n, depth)
	}
	return e.rareValue(b, n, depth)
}

func (e *Encoder) rareValue(b []byte, n *pickle.Node, depth int) []byte {
	switch n.Kind {
	case pickle.Py2Str:
		return e.python2(b, n, depth)
	case pickle.Long, pickle.LongText:
		return e.long(b, n, depth)
	case pickle.ByteArray:
		e.row.Forms[ByteArray]++
		e.enter(n, depth+4)
		b = append(b, `{"@reduce":{"callable":{"@cls":["builtins","bytearray"]},"args":{"@t":[`...)
		b = e.bytes(b, n, depth+4)
		e.leave()
		return append(b, `]}}}`...)
	case pickle.Global:
		return e.global(b, n, depth)
	case pickle.Set:
		return e.set(b, n, `{"@set":`, e.machine.Kids(n), depth)
	case pickle.FrozenSet:
		return e.set(b, n, `{"@fset":`, e.machine.Kids(n), depth)
	case pickle.Built:
		e.enter(n, depth+2)
		b = e.built(b, func(b []byte) []byte { return e.value(b, pickle.Ref(n.A), depth+2) }, pickle.Ref(n.B), depth)
		e.leave()
		return b
	case pickle.Ext:
		e.instead(CapsuleExtension, n, "the meaning of an extension code is in the registry of the process that wrote it")
	}
	e.reject(n, "a %v has no form", n.Kind)
	return b
}

// checkDepth rejects what stands deeper than a reader goes.
func (e *Encoder) checkDepth(n *pickle.Node, depth int) {
	if depth > maxDepth {
		e.tooDeep(n)
	}
}

// tooDeep is apart so that checkDepth costs no call.
func (e *Encoder) tooDeep(n *pickle.Node) {
	e.instead(CapsuleDepth, n, "it is nested more than %d levels deep", maxDepth)
}

// enter begins a container whose parts stand at the given depth.
func (e *Encoder) enter(n *pickle.Node, depth int) {
	e.checkDepth(n, depth)
	if n.Flags&pickle.Shared != 0 || e.copying > 0 {
		e.enterShared(n)
	}
}

// enterShared counts a part that is written again. The parts of a persistent id
// are gone once it is resolved: it does not matter whether they are shared.
func (e *Encoder) enterShared(n *pickle.Node) {
	if e.inRef {
		if e.copying > 0 {
			e.copying++
		}
		return
	}
	if e.copying == 0 && n.Flags&pickle.Seen == 0 {
		n.Flags |= pickle.Seen
		return
	}
	e.copying++
	if e.mutable(n) {
		if e.preserving {
			e.instead(CapsuleShared, n, "a %v is shared", n.Kind)
		}
		e.row.Forms[SharedCopied]++
	}
}

// leave ends what enter began: while a copy is open, every part within it was
// entered as a copy.
func (e *Encoder) leave() {
	if e.copying > 0 {
		e.copying--
	}
}

// list writes the elements of an array, which stands at the given depth.
func (e *Encoder) list(b []byte, kids []pickle.Ref, depth int) []byte {
	b = append(b, '[')
	for i, kid := range kids {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.value(b, kid, depth+1)
		if len(b) > e.limit {
			e.rejectLong(kid)
		}
	}
	return append(b, ']')
}

func (e *Encoder) rejectLong(r pickle.Ref) {
	e.instead(CapsuleExpansion, &e.nodes[r], "written out, its shared parts or its size make it longer than %d bytes of JSON", e.limit)
}

// set writes what the reader handles indirectly.
func (e *Encoder) set(b []byte, n *pickle.Node, open string, kids []pickle.Ref, depth int) []byte {
	e.enter(n, depth+2)
	was := e.indirect
	e.indirect = true
	b = append(b, open...)
	b = e.list(b, kids, depth+1)
	e.indirect = was
	e.leave()
	return append(b, '}')
}

// built writes a state that was set on something else than the result of a call.
func (e *Encoder) built(b []byte, target func([]byte) []byte, state pickle.Ref, depth int) []byte {
	e.row.NewCodec = true
	was := e.indirect
	e.indirect = true
	b = append(b, `{"@inst":{"@obj":`...)
	b = target(b)
	b = append(b, `,"@state":`...)
	b = e.value(b, state, depth+2)
	e.indirect = was
	return append(b, `}}`...)
}

// bytes writes the data of a node, whatever its kind, as bytes.
func (e *Encoder) bytes(b []byte, n *pickle.Node, depth int) []byte {
	e.checkDepth(n, depth+1)
	b = append(b, `{"@b":"`...)
	b = base64.StdEncoding.AppendEncode(b, e.machine.Data(n))
	return append(b, `"}`...)
}

func (e *Encoder) long(b []byte, n *pickle.Node, depth int) []byte {
	e.checkDepth(n, depth+1)
	if n.Kind == pickle.LongText {
		e.checkDigits(n)
		e.row.Forms[IntText]++
	} else if n.B > maxLongBytes {
		e.instead(CapsuleSize, n, "an integer of %d bytes is longer than %d", n.B, maxLongBytes)
	}
	b = append(b, `{"@bi":"`...)
	b = append(b, e.machine.Decimal(n)...)
	return append(b, `"}`...)
}

// checkDigits rejects an integer as text that is longer than Python reads, too.
func (e *Encoder) checkDigits(n *pickle.Node) {
	if n.B > maxLongDigits {
		e.reject(n, "an integer of %d digits is longer than %d", n.B, maxLongDigits)
	}
}

// largeFloat is where jsonb makes integers of floats, because they have no
// digits behind the point.
const largeFloat = 1e16

func (e *Encoder) float(b []byte, n *pickle.Node, depth int) []byte {
	v := n.Float64()
	size := math.Abs(v)
	switch {
	case !(size <= math.MaxFloat64) || v == 0 && math.Signbit(v):
		return e.specialFloat(b, n, depth)
	case size >= largeFloat:
		e.row.Forms[FloatLarge]++
		b = strconv.AppendFloat(b, v, 'f', -1, 64)
		return append(b, '.', '0')
	case size < 1e-5 && v != 0:
		return strconv.AppendFloat(b, v, 'e', -1, 64)
	}
	from := len(b)
	b = strconv.AppendFloat(b, v, 'f', -1, 64)
	for _, c := range b[from:] {
		if c == '.' {
			return b
		}
	}
	return append(b, '.', '0')
}

// specialFloat writes what JSON has no number for. The text names the bits, but
// for a NaN with a payload, which only struct can make.
func (e *Encoder) specialFloat(b []byte, n *pickle.Node, depth int) []byte {
	e.checkDepth(n, depth+6)
	e.row.Forms[FloatSpecial]++
	bits := math.Float64bits(n.Float64())
	text := ""
	switch bits {
	case 0x7ff8 << 48:
		text = "nan"
	case 0xfff8 << 48:
		text = "-nan"
	case 0x7ff0 << 48:
		text = "inf"
	case 0xfff0 << 48:
		text = "-inf"
	case 0x8000 << 48:
		text = "-0.0"
	default:
		b = append(b, `{"@reduce":{"callable":{"@cls":["_operator","getitem"]},"args":{"@t":[`+
			`{"@reduce":{"callable":{"@cls":["_struct","unpack"]},"args":{"@t":["<d",{"@b":"`...)
		raw := [8]byte{byte(bits), byte(bits >> 8), byte(bits >> 16), byte(bits >> 24),
			byte(bits >> 32), byte(bits >> 40), byte(bits >> 48), byte(bits >> 56)}
		b = base64.StdEncoding.AppendEncode(b, raw[:])
		return append(b, `"}]}}},0]}}}`...)
	}
	b = append(b, `{"@reduce":{"callable":{"@cls":["builtins","float"]},"args":{"@t":["`...)
	b = append(b, text...)
	return append(b, `"]}}}`...)
}

// global writes a class or function.
func (e *Encoder) global(b []byte, n *pickle.Node, depth int) []byte {
	e.checkDepth(n, depth+2)
	b = append(b, `{"@cls":[`...)
	b = e.globalText(b, &e.nodes[n.A])
	b = append(b, ',')
	b = e.globalText(b, &e.nodes[n.B])
	return append(b, ']', '}')
}

// globalText writes a name of a global. The reader writes it into the line of an
// opcode, where a line end would begin another one.
func (e *Encoder) globalText(b []byte, n *pickle.Node) []byte {
	if n.Flags&pickle.Plain == 0 {
		if n.Flags&pickle.Surrogates != 0 {
			e.reject(n, "a class name has surrogates in it")
		}
		for _, c := range e.machine.Data(n) {
			if c == '\n' {
				e.reject(n, "a class name has a line end in it")
			}
		}
	}
	return e.plainText(b, n)
}
