package jsonb

import (
	"encoding/binary"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// oidSize is the length of an oid in a persistent id.
const oidSize = 8

// persistent writes a persistent reference, and adds it to the refs if it keeps
// its target alive.
func (e *Encoder) persistent(b []byte, n *pickle.Node, depth int) []byte {
	if e.inRef {
		e.reject(n, "a persistent id has a persistent reference in it")
	}
	id := &e.nodes[n.A]
	switch id.Kind {
	case pickle.Tuple:
		kids := e.machine.Kids(id)
		if len(kids) == 0 {
			break
		}
		oid := &e.nodes[kids[0]]
		if !isOID(oid) {
			e.referCalled(oid)
			break
		}
		e.refer(oid, e.machine.Data(oid))
		if len(kids) == 2 {
			if b, ok := e.shortRef(b, oid, &e.nodes[kids[1]], depth); ok {
				return b
			}
		}
	case pickle.Bytes, pickle.Py2Str:
		e.refer(id, e.machine.Data(id))
	case pickle.Call:
		e.referCalled(id)
	case pickle.List:
		e.row.Loose = e.appendLoose(e.row.Loose, id)
	}
	return e.genericRef(b, pickle.Ref(n.A), depth)
}

func isOID(n *pickle.Node) bool { return n.Kind == pickle.Bytes || n.Kind == pickle.Py2Str }

// refer adds an oid to the refs.
func (e *Encoder) refer(oid *pickle.Node, data []byte) {
	if len(data) != oidSize {
		return
	}
	zoid := int64(binary.BigEndian.Uint64(data))
	if zoid < 0 {
		e.reject(oid, "it refers to oid 0x%x, which the destination has no number for", uint64(zoid))
	}
	if e.callable > 0 {
		e.row.Forms[RefInCallable]++
	}
	e.row.Refs = append(e.row.Refs, zoid)
}

// referCalled adds an oid that is a call of _codecs.encode. Without it a pack
// would remove the object.
func (e *Encoder) referCalled(n *pickle.Node) {
	if oid, ok := e.calledOID(n); ok {
		e.refer(n, oid[:])
	}
}

// calledOID returns an oid that is a call of _codecs.encode, by which Python 3
// writes bytes with protocol 2.
func (e *Encoder) calledOID(n *pickle.Node) (oid [oidSize]byte, ok bool) {
	if n.Kind != pickle.Call || n.Made != pickle.ByReduce || !e.isGlobal(&e.nodes[n.A], "_codecs", "encode") {
		return oid, false
	}
	args := &e.nodes[n.B]
	if args.Kind != pickle.Tuple || args.B != 2 {
		return oid, false
	}
	kids := e.machine.Kids(args)
	text := &e.nodes[kids[0]]
	if !isText(text) || !e.isTextOf(&e.nodes[kids[1]], "latin1") {
		return oid, false
	}
	size := 0
	for _, r := range string(e.machine.Data(text)) {
		if size == oidSize || r > 0xff {
			return oid, false
		}
		oid[size] = byte(r)
		size++
	}
	return oid, size == oidSize
}

// shortRef writes {"@ref":"oid"} or {"@ref":["oid","module.name"]}. The reader
// splits the class at the last dot.
func (e *Encoder) shortRef(b []byte, oid, class *pickle.Node, depth int) ([]byte, bool) {
	data := e.machine.Data(oid)
	if len(data) != oidSize || depth+2 > maxDepth {
		return b, false
	}
	if class.Kind == pickle.None {
		b = append(b, `{"@ref":"`...)
		b = appendHex(b, data)
		return append(b, `"}`...), true
	}
	if class.Kind != pickle.Global {
		return b, false
	}
	module, name := &e.nodes[class.A], &e.nodes[class.B]
	plain := module.Flags&name.Flags&pickle.Plain != 0
	if !plain || hasDot(e.machine.Data(name)) {
		return b, false
	}
	b = append(b, `{"@ref":["`...)
	b = appendHex(b, data)
	b = append(b, `","`...)
	if module.B != 0 {
		b = append(b, e.machine.Data(module)...)
		b = append(b, '.')
	}
	b = append(b, e.machine.Data(name)...)
	return append(b, `"]}`...), true
}

func appendHex(b, data []byte) []byte {
	for _, c := range data {
		b = append(b, hexDigits[c>>4], hexDigits[c&15])
	}
	return b
}

func hasDot(text []byte) bool {
	for _, c := range text {
		if c == '.' {
			return true
		}
	}
	return false
}

// genericRef writes the persistent id as a value. Oids in it are bytes, also if
// Python 2 wrote them.
func (e *Encoder) genericRef(b []byte, r pickle.Ref, depth int) []byte {
	id := &e.nodes[r]
	was := e.indirect
	e.indirect, e.inRef = true, true
	b = append(b, `{"@ref":`...)
	switch {
	case isOID(id):
		b = e.bytes(b, id, depth+1)
	case id.Kind == pickle.Str:
		// A bare string would be read as an oid in hexadecimal digits.
		e.row.Forms[RefGeneric]++
		e.enter(id, depth+5)
		b = e.decodeCall(b, id)
		e.leave()
	case id.Kind == pickle.Tuple:
		b = e.idTuple(b, id, depth+1)
	case id.Kind == pickle.List:
		b = e.idList(b, id, depth+1)
	default:
		b = e.value(b, r, depth+1)
	}
	e.indirect, e.inRef = was, false
	return append(b, '}')
}

// idTuple writes (oid, class) where it has no short form.
func (e *Encoder) idTuple(b []byte, id *pickle.Node, depth int) []byte {
	kids := e.machine.Kids(id)
	if len(kids) == 2 && e.nodes[kids[1]].Kind == pickle.Global && isOID(&e.nodes[kids[0]]) {
		e.row.Forms[RefGeneric]++
	}
	return e.tupleWithOID(b, id, 0, depth)
}

// tupleWithOID writes a tuple in which one element is an oid.
func (e *Encoder) tupleWithOID(b []byte, n *pickle.Node, oid, depth int) []byte {
	e.enter(n, depth+2)
	b = append(b, `{"@t":[`...)
	b = e.elementsWithOID(b, e.machine.Kids(n), oid, depth+2)
	e.leave()
	return append(b, `]}`...)
}

func (e *Encoder) elementsWithOID(b []byte, kids []pickle.Ref, oid, depth int) []byte {
	for i, kid := range kids {
		if i > 0 {
			b = append(b, ',')
		}
		if n := &e.nodes[kid]; i == oid && n.Kind == pickle.Py2Str {
			b = e.bytes(b, n, depth)
		} else {
			b = e.value(b, kid, depth)
		}
	}
	return b
}

// idList writes weak references [oid] and ['w', (oid, ...)] and those to other
// databases, ['n', (database, oid)] and ['m', (database, oid, class)].
func (e *Encoder) idList(b []byte, id *pickle.Node, depth int) []byte {
	kids := e.machine.Kids(id)
	e.enter(id, depth+1)
	defer e.leave()
	b = append(b, '[')
	if len(kids) != 2 {
		oid := -1
		if len(kids) == 1 {
			oid = 0
		}
		b = e.elementsWithOID(b, kids, oid, depth+1)
		return append(b, ']')
	}
	first, second := &e.nodes[kids[0]], &e.nodes[kids[1]]
	if isText(first) && isText(second) || isText(first) && isHexOID(e.machine.Data(first)) {
		// The reader would take it for an oid and a class.
		return e.idListCall(b[:len(b)-1], kids, depth)
	}
	e.row.NewCodec = true
	b = e.value(b, kids[0], depth+1)
	b = append(b, ',')
	if second.Kind == pickle.Tuple {
		oid := 0
		if e.isTextOf(first, "m") || e.isTextOf(first, "n") {
			oid = 1
		}
		b = e.tupleWithOID(b, second, oid, depth+1)
	} else {
		b = e.value(b, kids[1], depth+1)
	}
	return append(b, ']')
}

// idListCall writes a list as a call of list.
func (e *Encoder) idListCall(b []byte, kids []pickle.Ref, depth int) []byte {
	e.row.Forms[RefGeneric]++
	e.checkDepth(&e.nodes[kids[0]], depth+6)
	b = append(b, `{"@reduce":{"callable":{"@cls":["builtins","list"]},"args":{"@t":[{"@t":`...)
	b = e.list(b, kids, depth+5)
	return append(b, `}]}}}`...)
}

func isHexOID(text []byte) bool {
	if len(text) != 2*oidSize {
		return false
	}
	for _, c := range text {
		if !isHex(c) {
			return false
		}
	}
	return true
}
