package jsonb

import (
	"bytes"
	"encoding/binary"
)

// This file is the part of the Judge's fast way for objects that a call or a class
// makes, and for the states of BTrees.

// object compares what a call or a __new__ has made.
func (s *sideBySide) object(n *traceNode, depth int) bool {
	class, args := &s.nodes[n.off], &s.nodes[n.size]
	if !s.cannotChange(class) {
		s.meet(n)
	} else if s.constant(n, class, args) {
		return true
	}
	if n.more != 0 && args.size == 0 && s.literal(`{"@s": `) {
		return s.instance(n, class, depth)
	}
	return s.reduce(n, class, args, depth)
}

// cannotChange tells what symbol.mutable tells about instances of a class. Those
// of builtins are not traced.
func (s *sideBySide) cannotChange(class *traceNode) bool {
	module := s.trace.text(class)
	for _, prefix := range immutableModules { // each ends with a dot
		n := len(prefix) - 1
		if len(module) >= n && string(module[:n]) == prefix[:n] && (len(module) == n || module[n] == '.') {
			return true
		}
	}
	return false
}

// constant compares values that have a short form. Where it returns false it has
// taken nothing from the text.
func (s *sideBySide) constant(n, class, args *traceNode) bool {
	if n.room != 0 {
		return false
	}
	from, ok := s.at, false
	switch module := s.trace.text(class); {
	case n.kind == traceCall && n.more == 0 && string(module) == "datetime":
		ok = s.moment(class, s.within(args))
	case n.kind == traceCall && n.more == 0 && string(module) == "decimal":
		ok = string(s.name(class)) == "Decimal" && args.size == 1 && s.literal(`{"@dec": `) &&
			s.decimalText(args) && s.literal("}")
	case n.kind == traceNew && n.more != 0 && string(module) == "uuid":
		ok = string(s.name(class)) == "UUID" && args.size == 0 && s.literal(`{"@uuid": "`) &&
			s.uuid(&s.nodes[n.more]) && s.literal(`"}`)
	}
	if !ok {
		s.at = from
	}
	return ok
}

// uuid compares the state of a UUID, which is a dict with its number alone.
func (s *sideBySide) uuid(state *traceNode) bool {
	if state.kind != traceDict || state.size != 2 {
		return false
	}
	parts := s.within(state)
	if !s.isText(parts[0], []byte("int")) {
		return false
	}
	var raw [16]byte // the first byte comes first
	switch n := &s.nodes[parts[1]]; {
	case n.kind == traceInt && n.integer() >= 0:
		binary.BigEndian.PutUint64(raw[8:], uint64(n.integer()))
	case n.kind == traceBig && n.size <= 17:
		text := s.trace.text(n)
		if text[len(text)-1] >= 0x80 || len(text) == 17 && text[16] != 0 {
			return false
		}
		for i, c := range text[:min(len(text), 16)] {
			raw[15-i] = c
		}
	default:
		return false
	}
	return s.hex(raw[:4]) && s.literal("-") && s.hex(raw[4:6]) && s.literal("-") && s.hex(raw[6:8]) &&
		s.literal("-") && s.hex(raw[8:10]) && s.literal("-") && s.hex(raw[10:])
}

// instance compares an object that was made without arguments and given a state,
// behind the name of the state.
func (s *sideBySide) instance(n, class *traceNode, depth int) bool {
	module, name := s.trace.text(class), s.name(class)
	if len(module) == 0 || len(name) == 0 {
		return false
	}
	shape := shapeOfBytes(module, name)
	switch {
	case shape != shapeless && (n.kind == traceCall || n.room != 0):
		return false
	case shape != shapeless:
		if !s.btree(n.more, shape, depth+1) {
			return false
		}
	case bytes.HasPrefix(s.text[s.at:], []byte(`{"@d"`)):
		return false // pairs may be arguments of a constructor
	case !s.state(n, class, depth+1):
		return false
	}
	return s.literal(`, "@cls": [`) && s.global(class) && s.literal("]") &&
		s.items(n, `, "@items": [`, depth+2) &&
		(n.kind == traceNew || s.literal(`, "@newobj": false`)) &&
		s.appends(n, `, "@appends": [`, depth+2) && s.literal("}")
}

// state compares the state of an object. In one that cannot change it makes no
// difference whether two objects have it in common.
func (s *sideBySide) state(n, class *traceNode, depth int) bool {
	constant := s.cannotChange(class)
	if constant {
		s.unchanging++
	}
	ok := s.value(n.more, depth)
	if constant {
		s.unchanging--
	}
	return ok
}

// items compares what was set on an object that is no dict, in its order.
func (s *sideBySide) items(n *traceNode, open string, depth int) bool {
	items := s.nodes[n.room].size
	if n.room == 0 || items == 0 || s.nodes[items].size == 0 {
		return true
	}
	return s.literal(open) && s.pairs(s.within(&s.nodes[items]), depth) && s.literal("]")
}

// appends compares what was appended to an object that is no list.
func (s *sideBySide) appends(n *traceNode, open string, depth int) bool {
	list := s.nodes[n.room].off
	if n.room == 0 || list == 0 || s.nodes[list].size == 0 {
		return true
	}
	return s.literal(open) && s.elements(s.within(&s.nodes[list]), depth) && s.literal("]")
}

// reduce compares an object with the general form of calls.
func (s *sideBySide) reduce(n, class, args *traceNode, depth int) bool {
	if !s.literal(`{"@reduce": {"args": {"@t": [`) || !s.arguments(n, class, s.within(args), depth+2) || !s.literal("]}") {
		return false
	}
	if !s.items(n, `, "items": [`, depth+2) || n.more != 0 && (!s.literal(`, "state": `) || !s.state(n, class, depth+2)) {
		return false
	}
	if n.kind == traceNew && !s.literal(`, "newobj": true`) {
		return false
	}
	return s.appends(n, `, "appends": [`, depth+2) && s.literal(`, "callable": {"@cls": [`) && s.global(class) && s.literal("]}}}")
}

// arguments compares the arguments of a call. The payload of a date is bytes,
// whatever Python 2 made of it.
func (s *sideBySide) arguments(n, class *traceNode, ids []uint32, depth int) bool {
	if n.kind != traceCall || len(ids) == 0 || s.nodes[ids[0]].kind != traceOld || string(s.trace.text(class)) != "datetime" {
		return s.elements(ids, depth)
	}
	return s.bytes(s.trace.text(&s.nodes[ids[0]])) &&
		(len(ids) == 1 || s.literal(", ") && s.elements(ids[1:], depth))
}

func (s *sideBySide) decimalText(args *traceNode) bool {
	text, ok := s.python3Text(&s.nodes[s.within(args)[0]])
	return ok && s.string(text)
}

// moment compares the types of datetime with their short forms.
func (s *sideBySide) moment(class *traceNode, args []uint32) bool {
	switch string(s.name(class)) {
	case "datetime":
		return s.literal(`{"@dt": "`) && s.clock(args, 10)
	case "date":
		return s.literal(`{"@date": "`) && len(args) == 1 && s.clock(args, 4)
	case "time":
		return s.literal(`{"@time": "`) && s.clock(args, 6)
	case "timedelta":
		return len(args) == 3 && s.literal(`{"@td": [`) && s.integers(args) && s.literal("]}")
	}
	return false
}

// integers compares integers that are given as a list.
func (s *sideBySide) integers(ids []uint32) bool {
	for i, id := range ids {
		n := &s.nodes[id]
		if n.kind != traceInt || i > 0 && !s.literal(", ") || !s.integer(n.integer()) {
			return false
		}
	}
	return true
}

// clock compares the payload of a date, a time or both, up to the end of its
// object. A second argument is a time zone.
func (s *sideBySide) clock(ids []uint32, size uint32) bool {
	if len(ids) == 0 || len(ids) > 2 {
		return false
	}
	n := &s.nodes[ids[0]]
	if n.kind != traceBytes && n.kind != traceOld || n.size != size {
		return false
	}
	p := s.trace.text(n)
	if size != 6 {
		if !s.digits(int(p[0])<<8|int(p[1]), 4) || !s.literal("-") || !s.digits(int(p[2]), 2) ||
			!s.literal("-") || !s.digits(int(p[3]), 2) {
			return false
		}
		p = p[4:]
	}
	if size == 10 && !s.literal("T") || len(p) > 0 && !s.timeOfDay(p) {
		return false
	}
	if len(ids) == 1 {
		return s.literal(`"}`)
	}
	return s.zone(&s.nodes[ids[1]], size == 10)
}

// timeOfDay compares hours, minutes, seconds and microseconds.
func (s *sideBySide) timeOfDay(p []byte) bool {
	if !s.digits(int(p[0]), 2) || !s.literal(":") || !s.digits(int(p[1]), 2) || !s.literal(":") || !s.digits(int(p[2]), 2) {
		return false
	}
	micro := int(p[3])<<16 | int(p[4])<<8 | int(p[5])
	if s.next() != '.' {
		return micro == 0
	}
	return s.literal(".") && s.digits(micro, 6)
}

// digits compares a number with so many digits.
func (s *sideBySide) digits(want, size int) bool {
	if len(s.text)-s.at < size {
		return false
	}
	v := 0
	for _, c := range s.text[s.at : s.at+size] {
		if c < '0' || c > '9' {
			return false
		}
		v = 10*v + int(c-'0')
	}
	s.at += size
	return v == want
}

// zone compares a time zone of pytz, or an offset, up to the end of the object. A
// time has no zone by name.
func (s *sideBySide) zone(n *traceNode, named bool) bool {
	if n.kind != traceCall || n.more != 0 || n.room != 0 {
		return false
	}
	class, ids := &s.nodes[n.off], s.within(&s.nodes[n.size])
	if named && len(ids) > 0 && string(s.trace.text(class)) == "pytz" && string(s.name(class)) == "_p" &&
		s.literal(`", "@tz": {"name": `) {
		return s.value(ids[0], maxFastDepth) && s.literal(`, "pytz": [`) && s.pytz(ids) && s.literal("]}}")
	}
	seconds, ok := s.offset(class, ids)
	if !ok {
		return false
	}
	sign := "+"
	if seconds < 0 {
		sign, seconds = "-", -seconds
	}
	return seconds%60 == 0 && s.literal(sign) && s.digits(int(seconds/3600), 2) && s.literal(":") &&
		s.digits(int(seconds/60%60), 2) && s.literal(`"}`)
}

// pytz compares the arguments of a zone, which are text and integers.
func (s *sideBySide) pytz(ids []uint32) bool {
	for i, id := range ids {
		n := &s.nodes[id]
		_, text := s.python3Text(n)
		if i > 0 && !s.literal(", ") || n.kind != traceInt && !text || !s.value(id, maxFastDepth) {
			return false
		}
	}
	return true
}

// offset is what timezone(timedelta(days, seconds, 0)) says, in seconds.
func (s *sideBySide) offset(class *traceNode, ids []uint32) (seconds int64, ok bool) {
	if string(s.trace.text(class)) != "datetime" || string(s.name(class)) != "timezone" || len(ids) != 1 {
		return 0, false
	}
	delta := &s.nodes[ids[0]]
	if delta.kind != traceCall || delta.more != 0 || delta.room != 0 {
		return 0, false
	}
	class, ids = &s.nodes[delta.off], s.within(&s.nodes[delta.size])
	if string(s.trace.text(class)) != "datetime" || string(s.name(class)) != "timedelta" || len(ids) != 3 {
		return 0, false
	}
	var v [3]int64
	for i, id := range ids {
		n := &s.nodes[id]
		if v[i] = n.integer(); n.kind != traceInt || v[i] < -1<<30 || v[i] > 1<<30 {
			return 0, false
		}
	}
	return v[0]*86400 + v[1], v[2] == 0
}

// btree compares the state of a node of a BTree, whose items stand in the row
// without the tuples around them.
func (s *sideBySide) btree(id uint32, shape treeShape, depth int) bool {
	n := &s.nodes[id]
	if n.kind != traceTuple || depth+4 > maxFastDepth {
		return s.value(id, depth)
	}
	switch {
	case s.literal(`{"@kv": [`):
		items, rest, ok := s.leaf(n, shape)
		return ok && items.size%2 == 0 && s.pairs(s.within(items), depth+4) && s.nextLeaf(rest, depth)
	case s.literal(`{"@ks": [`):
		items, rest, ok := s.leaf(n, shape)
		return ok && s.elements(s.within(items), depth+4) && s.nextLeaf(rest, depth)
	case s.literal(`{"@first": `):
		return s.children(n, depth)
	}
	return s.value(id, depth)
}

// leaf finds the items of a node of a BTree, and what follows them in a leaf.
func (s *sideBySide) leaf(n *traceNode, shape treeShape) (items *traceNode, rest []uint32, ok bool) {
	parts := s.within(n)
	if shape == innerShape {
		for range 2 {
			if len(parts) != 1 || s.nodes[parts[0]].kind != traceTuple {
				return nil, nil, false
			}
			parts = s.within(&s.nodes[parts[0]])
		}
		if len(parts) != 1 {
			return nil, nil, false
		}
	}
	if len(parts) == 0 || len(parts) > 2 {
		return nil, nil, false
	}
	items = &s.nodes[parts[0]]
	return items, parts[1:], items.kind == traceTuple
}

// nextLeaf compares the end of a leaf, with the leaf behind it if there is one.
func (s *sideBySide) nextLeaf(rest []uint32, depth int) bool {
	if len(rest) == 0 {
		return s.literal("]}")
	}
	return s.literal(`], "@next": `) && s.value(rest[0], depth+2) && s.literal("}")
}

// children compares a tree with the nodes below it, behind the name of the first.
func (s *sideBySide) children(n *traceNode, depth int) bool {
	parts := s.within(n)
	if len(parts) != 2 || s.nodes[parts[0]].kind != traceTuple {
		return false
	}
	return s.value(parts[1], depth+2) && s.literal(`, "@children": [`) &&
		s.elements(s.within(&s.nodes[parts[0]]), depth+2) && s.literal("]}")
}
