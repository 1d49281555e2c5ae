package jsonb

import (
	"bytes"
	"math"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// dictShape is how a dict is written.
type dictShape uint8

const (
	asObject dictShape = iota
	// asLoneMarker is an object with one key that begins with @ and that the
	// reader does not know: its value is handled indirectly.
	asLoneMarker
	// asPairs is {"@d":[[key,value],...]}, for keys that are not text.
	asPairs
	// asSafePairs is the same for what would be taken for a marker.
	asSafePairs
)

func (e *Encoder) dict(b []byte, n *pickle.Node, depth int) []byte {
	kids := e.machine.Kids(n)
	return e.dictAs(b, n, kids, e.shape(kids), depth)
}

func (e *Encoder) dictAs(b []byte, n *pickle.Node, kids []pickle.Ref, shape dictShape, depth int) []byte {
	switch shape {
	case asObject:
		e.enter(n, depth+1)
		b = e.object(b, kids, depth+1)
		e.leave()
		return b
	case asSafePairs:
		e.row.Forms[DictPairs]++
	}
	was := e.indirect
	e.indirect = true
	if shape == asLoneMarker {
		e.enter(n, depth+1)
		b = e.object(b, kids, depth+1)
	} else {
		e.enter(n, depth+3)
		b = append(b, `{"@d":`...)
		b = e.pairs(b, kids, depth+2)
		b = append(b, '}')
	}
	e.leave()
	e.indirect = was
	return b
}

// object writes a dict whose keys are all text; its values stand at depth.
func (e *Encoder) object(b []byte, kids []pickle.Ref, depth int) []byte {
	b = append(b, '{')
	for i := 0; i+1 < len(kids); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		key := &e.nodes[kids[i]]
		if key.Kind == pickle.Str && key.Flags&pickle.Plain != 0 && (key.B < 4 || e.machine.Data(key)[0] != '@') {
			b = append(b, '"')
			b = append(b, e.machine.Data(key)...)
			b = append(b, '"', ':')
		} else {
			b = append(e.key(b, key), ':')
		}
		b = e.value(b, kids[i+1], depth)
		if len(b) > e.limit {
			e.rejectLong(kids[i+1])
		}
	}
	return append(b, '}')
}

// pairs writes [[key,value],...]; depth is that of the pairs.
func (e *Encoder) pairs(b []byte, kids []pickle.Ref, depth int) []byte {
	b = append(b, '[')
	for i := 0; i+1 < len(kids); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = e.value(b, kids[i], depth+1)
		b = append(b, ',')
		b = e.value(b, kids[i+1], depth+1)
		b = append(b, ']')
		if len(b) > e.limit {
			e.rejectLong(kids[i+1])
		}
	}
	return append(b, ']')
}

// shape looks at the keys of a dict.
func (e *Encoder) shape(kids []pickle.Ref) dictShape {
	markers := false
	for i := 0; i < len(kids); i += 2 {
		key := &e.nodes[kids[i]]
		if key.Kind != pickle.Str || key.Flags&(pickle.Surrogates|pickle.Invalid) != 0 {
			if !isText(key) {
				if key.Flags&pickle.Invalid != 0 {
					e.reject(key, "a text is not UTF-8")
				}
				return asPairs
			}
		}
		if key.B > 0 && (e.machine.Data(key)[0] == '@' || key.Flags&pickle.Plain == 0 && bytes.IndexByte(e.machine.Data(key), 0) >= 0) {
			markers = true // a key with NUL is written as one that begins with @
		}
	}
	if !markers {
		return asObject
	}
	return e.shapeOfMarkers(kids)
}

// maxMarkerKeys is how many keys an object with a marker has at most.
const maxMarkerKeys = 5

// shapeOfMarkers decides for a dict that has keys beginning with @, all of its
// keys being text, whether the reader would take it for something else.
func (e *Encoder) shapeOfMarkers(kids []pickle.Ref) dictShape {
	keys := make(map[string]pickle.Ref, maxMarkerKeys+1)
	for i := 0; i < len(kids) && len(keys) <= maxMarkerKeys; i += 2 {
		keys[string(e.machine.Data(&e.nodes[kids[i]]))] = kids[i+1]
	}
	switch {
	case len(keys) > maxMarkerKeys:
		return asObject
	case len(keys) == 1:
		for key, value := range keys {
			return e.shapeOfLone(key, &e.nodes[value])
		}
	case e.indirect:
		for key := range keys {
			if markerValues[key] != notMarker {
				return asSafePairs
			}
		}
	default:
		_, class := keys["@cls"]
		_, when := keys["@dt"]
		if class || len(keys) == 2 && when {
			return asSafePairs
		}
	}
	return asObject
}

// markerValue is what the value of a marker has to be.
type markerValue uint8

const (
	notMarker markerValue = iota
	textMarker
	arrayMarker
	objectMarker
	anyMarker
)

var markerValues = map[string]markerValue{
	"@b": textMarker, "@bi": textMarker, "@pkl": textMarker, "@dt": textMarker, "@date": textMarker,
	"@time": textMarker, "@dec": textMarker, "@uuid": textMarker,
	"@t": arrayMarker, "@d": arrayMarker, "@set": arrayMarker, "@fset": arrayMarker, "@td": arrayMarker, "@cls": arrayMarker,
	"@reduce": objectMarker,
	"@inst":   anyMarker, "@ref": anyMarker, "@ns": anyMarker,
}

// shapeOfLone decides for a dict with one key, which begins with @.
func (e *Encoder) shapeOfLone(key string, value *pickle.Node) dictShape {
	wanted := markerValues[key]
	if wanted == notMarker {
		return asLoneMarker
	}
	if e.indirect || wanted == anyMarker || wanted == jsonType(value) {
		return asSafePairs
	}
	return asLoneMarker
}

// jsonType is what a value looks like in JSON.
func jsonType(n *pickle.Node) markerValue {
	switch n.Kind {
	case pickle.None, pickle.Bool, pickle.Int:
		return notMarker
	case pickle.Float:
		if v := n.Float64(); !math.IsNaN(v) && !math.IsInf(v, 0) && (v != 0 || !math.Signbit(v)) {
			return notMarker
		}
	case pickle.List:
		return arrayMarker
	}
	if isText(n) {
		return textMarker
	}
	return objectMarker
}
