package jsonb

import (
	"errors"
	"strings"
)

// treeShape is the shape of the state that a class of BTrees has.
type treeShape uint8

const (
	shapeless  treeShape = iota
	innerShape           // BTree, TreeSet: the items three tuples deep, or children
	leafShape            // Bucket, Set: the items, then the next leaf
)

// treeModules begins the modules of the BTrees package.
const treeModules = "BTrees."

// shapeOf tells from its name what a class of BTrees is. Every class whose
// name ends so counts; Length has no items.
func shapeOf(module, name string) treeShape {
	switch {
	case !strings.HasPrefix(module, treeModules), module == "BTrees.Length":
		return shapeless
	case strings.HasSuffix(name, "BTree"), strings.HasSuffix(name, "TreeSet"):
		return innerShape
	case strings.HasSuffix(name, "Bucket"), strings.HasSuffix(name, "Set"):
		return leafShape
	}
	return shapeless
}

// isBTreeState tells whether the general way turns a state into the tuples of a
// BTree rather than reading it as any other value.
func (r *Reader) isBTreeState(i uint32) bool {
	if !r.is(i, jsonObject) {
		return false
	}
	if r.member(i, "@kv") != 0 || r.member(i, "@ks") != 0 {
		return true
	}
	children := r.member(i, "@children")
	return children != 0 && r.is(children, jsonArray)
}

// btreeState writes the state of a node of a BTree. The two ways differ in what
// they do with a state of an unexpected shape.
func (r *Reader) btreeState(i uint32, shape treeShape, depth int) error {
	if !r.is(i, jsonObject) {
		return r.value(i, depth)
	}
	if items := r.member(i, "@kv"); items != 0 && (depth != direct || r.is(items, jsonArray)) {
		return r.btreeItems(i, items, true, shape, depth)
	}
	if items := r.member(i, "@ks"); items != 0 && (depth != direct || r.is(items, jsonArray)) {
		return r.btreeItems(i, items, false, shape, depth)
	}
	if children := r.member(i, "@children"); children != 0 {
		first := r.member(i, "@first")
		if first == 0 {
			return errors.New("@children without @first")
		}
		if r.is(children, jsonArray) {
			return r.btreeChildren(children, first, depth)
		}
	}
	return r.value(i, depth)
}

// btreeItems writes the tuples around the items of a node.
func (r *Reader) btreeItems(i, items uint32, isMap bool, shape treeShape, depth int) error {
	if !r.is(items, jsonArray) {
		return errors.New("the items of a BTree must be a list")
	}
	next := r.member(i, "@next")
	itemDepth := below(depth, 2)
	if shape == innerShape {
		itemDepth = below(depth, 4)
	}
	if err := r.limit(below(itemDepth, -1)); err != nil {
		return err
	}
	if err := r.flat(items, isMap, itemDepth); err != nil {
		return err
	}
	switch {
	case shape == innerShape:
		r.out = append(r.out, opTuple1, opTuple1, opTuple1)
		if next == 0 || depth == direct {
			return nil
		}
		// A tree has no next; the general way reads it and drops it.
		from := len(r.out)
		r.dropped++
		err := r.value(next, depth)
		r.dropped--
		r.out = r.out[:from]
		return err
	case next == 0:
		r.out = append(r.out, opTuple1)
		return nil
	}
	if err := r.value(next, below(depth, 1)); err != nil {
		return err
	}
	r.out = append(r.out, opTuple2)
	return nil
}

// flat writes keys, or pairs one after the other, as one tuple.
func (r *Reader) flat(items uint32, isMap bool, depth int) error {
	if !isMap {
		return r.tuple(items, depth)
	}
	size := 2 * int(r.doc.nodes[items].size)
	r.openTuple(size)
	at := items + 1
	for range r.doc.nodes[items].size {
		elements := r.doc.nodes[at].size
		if !r.is(at, jsonArray) || elements < 2 || elements > 2 && depth != direct {
			return errors.New("an item of a BTree must be a [key, value] pair")
		}
		if err := r.value(at+1, depth); err != nil {
			return err
		}
		if err := r.value(r.next(at+1), depth); err != nil {
			return err
		}
		at = r.next(at)
	}
	r.closeTuple(size)
	return nil
}

func (r *Reader) btreeChildren(children, first uint32, depth int) error {
	if err := r.limit(below(depth, 1)); err != nil {
		return err
	}
	if err := r.tuple(children, below(depth, 2)); err != nil {
		return err
	}
	if err := r.value(first, below(depth, 1)); err != nil {
		return err
	}
	r.out = append(r.out, opTuple2)
	return nil
}
