package jsonb

import (
	"bytes"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// btree is which of the four kinds of nodes a class of BTrees is.
type btree struct {
	tree bool // has children, or its items in one bucket within
	set  bool // has keys only
}

// btreeKind tells by its name whether a class is one of BTrees. The codec goes
// by the end of the name and so must every writer.
func btreeKind(module, name []byte) (btree, bool) {
	if !bytes.HasPrefix(module, []byte("BTrees.")) || string(module) == "BTrees.Length" {
		return btree{}, false
	}
	switch {
	case bytes.HasSuffix(name, []byte("BTree")):
		return btree{tree: true}, true
	case bytes.HasSuffix(name, []byte("Bucket")):
		return btree{}, true
	case bytes.HasSuffix(name, []byte("TreeSet")):
		return btree{tree: true, set: true}, true
	case bytes.HasSuffix(name, []byte("Set")):
		return btree{set: true}, true
	}
	return btree{}, false
}

// btree writes the state of a node of a BTree: its items without the tuples
// around them. What is not built as BTrees do is written like any value.
func (e *Encoder) btree(b []byte, r pickle.Ref, kind btree, depth int) []byte {
	n := &e.nodes[r]
	switch n.Kind {
	case pickle.None:
		return append(b, "null"...)
	case pickle.Dict:
		return e.btreeDict(b, n, depth)
	case pickle.Tuple:
	default:
		return e.value(b, r, depth)
	}
	kids := e.machine.Kids(n)
	if kind.tree {
		return e.tree(b, r, kids, kind, depth)
	}
	if len(kids) < 1 || len(kids) > 2 {
		return e.value(b, r, depth)
	}
	items := &e.nodes[kids[0]]
	if items.Kind != pickle.Tuple || !kind.set && items.B%2 != 0 {
		return e.oddBTree(b, r, depth)
	}
	b = e.btreeItems(b, items, kind, depth)
	if len(kids) == 2 {
		b = append(b, `,"@next":`...)
		b = e.value(b, kids[1], depth+1)
	}
	return append(b, '}')
}

// oddBTree writes a state that the Python codec fails on, or almost.
func (e *Encoder) oddBTree(b []byte, r pickle.Ref, depth int) []byte {
	e.row.Forms[BTreeGeneric]++
	return e.value(b, r, depth)
}

func (e *Encoder) tree(b []byte, r pickle.Ref, kids []pickle.Ref, kind btree, depth int) []byte {
	switch len(kids) {
	case 1:
		items, ok := e.inlineItems(kids[0])
		if !ok {
			break
		}
		if !kind.set && items.B%2 != 0 {
			return e.oddBTree(b, r, depth)
		}
		return append(e.btreeItems(b, items, kind, depth), '}')
	case 2:
		children := &e.nodes[kids[0]]
		if children.Kind != pickle.Tuple || !e.anyRef(e.machine.Kids(children)) {
			break
		}
		e.enter(children, depth+2)
		b = append(b, `{"@children":`...)
		b = e.list(b, e.machine.Kids(children), depth+1)
		e.leave()
		b = append(b, `,"@first":`...)
		b = e.value(b, kids[1], depth+1)
		return append(b, '}')
	}
	return e.value(b, r, depth)
}

// inlineItems finds the items of a tree of one bucket: ((((items),),),).
func (e *Encoder) inlineItems(r pickle.Ref) (*pickle.Node, bool) {
	n := &e.nodes[r]
	for range 2 {
		if n.Kind != pickle.Tuple || n.B != 1 {
			return nil, false
		}
		n = &e.nodes[e.machine.Kids(n)[0]]
	}
	return n, n.Kind == pickle.Tuple
}

func (e *Encoder) anyRef(kids []pickle.Ref) bool {
	for _, kid := range kids {
		if e.nodes[kid].Kind == pickle.PersID {
			return true
		}
	}
	return false
}

// btreeItems writes the items and leaves the object open.
func (e *Encoder) btreeItems(b []byte, items *pickle.Node, kind btree, depth int) []byte {
	e.enter(items, depth+3)
	kids := e.machine.Kids(items)
	if kind.set {
		b = append(b, `{"@ks":`...)
		b = e.list(b, kids, depth+1)
	} else {
		b = append(b, `{"@kv":`...)
		b = e.pairs(b, kids, depth+2)
	}
	e.leave()
	return b
}

// btreeDict writes a dict as the state of a BTree. Its keys must not look like
// the members of such a state.
func (e *Encoder) btreeDict(b []byte, n *pickle.Node, depth int) []byte {
	kids := e.machine.Kids(n)
	shape := e.shape(kids)
	for i := 0; i < len(kids) && shape != asPairs; i += 2 {
		key := &e.nodes[kids[i]]
		if e.isTextOf(key, "@kv") || e.isTextOf(key, "@ks") || e.isTextOf(key, "@children") {
			shape = asSafePairs
			break
		}
	}
	return e.dictAs(b, n, kids, shape, depth)
}
