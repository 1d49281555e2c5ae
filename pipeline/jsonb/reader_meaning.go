package jsonb

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// meaning is what an object in a state stands for.
type meaning uint8

const (
	meansDict meaning = iota // itself
	meansTuple
	meansBytes
	meansBigInt
	meansPairs // a dict given as [[key, value], ...]
	meansSet
	meansFrozenSet
	meansRef
	meansClass
	meansInstance
	meansReduce
	meansAnonymous // BUILD on something that is no instance
	meansString
	meansDatetime
	meansDate
	meansTime
	meansTimedelta
	meansDecimal
	meansUUID
	meansGeneral // decided by the general way
	meansBad     // refused
)

// maxMarkers is the size of the largest object that can be a marker.
const maxMarkers = 5

// object writes what the object at node i stands for.
func (r *Reader) object(i uint32, depth int) error {
	if depth == direct {
		f, value := r.directMeaning(i)
		if f != meansGeneral {
			return r.write(f, i, value, direct)
		}
		depth = 0
	}
	f, value := r.generalMeaning(i)
	if f != meansDict && r.doc.nodes[i].size > 1 {
		if err := r.passOver(i); err != nil {
			return err
		}
	}
	return r.write(f, i, value, depth)
}

// passOver reads the members before the first one with a marker's name as the
// general way does, which has begun a dict with them before it sees that
// something else is meant. They are dropped, but they may be refused.
func (r *Reader) passOver(i uint32) error {
	from := len(r.out)
	r.dropped++
	at := i + 1
	for {
		key := r.text(at)
		if len(key) > 0 && key[0] == '@' {
			break
		}
		if err := r.value(at+1, 0); err != nil {
			return err
		}
		at = r.next(at + 1)
	}
	r.dropped--
	r.out = r.out[:from]
	return nil
}

// directMeaning tells what the object at node i stands for in the direct way, and
// which node holds the value of its marker.
func (r *Reader) directMeaning(i uint32) (meaning, uint32) {
	size := r.doc.nodes[i].size
	switch {
	case size == 0 || size > maxMarkers:
		return meansDict, 0
	case size == 1:
		return r.directMarker(i)
	}
	if class := r.member(i, "@cls"); class != 0 {
		if !r.isClass(class) {
			return meansGeneral, 0
		}
		if size > 2 && r.hasConstruction(i) {
			return meansGeneral, 0
		}
		if state := r.member(i, "@s"); state != 0 && !r.looksLikeArguments(state) {
			return meansInstance, class
		}
		return meansGeneral, 0
	}
	if size == 2 {
		if moment := r.member(i, "@dt"); moment != 0 && r.is(moment, jsonString) {
			return meansDatetime, moment
		}
	}
	return meansDict, 0
}

// directMarker is directMeaning for the object of one member.
func (r *Reader) directMarker(i uint32) (meaning, uint32) {
	key, value := r.text(i+1), i+2
	if len(key) == 0 || key[0] != '@' {
		return meansDict, 0
	}
	var f meaning
	var fits bool
	switch string(key) {
	case "@ref":
		return meansRef, value
	case "@t":
		f, fits = meansTuple, r.is(value, jsonArray)
	case "@cls":
		f, fits = meansClass, r.isClass(value)
	case "@td":
		f, fits = meansTimedelta, r.isList(value, 3)
	case "@b":
		f, fits = meansBytes, r.is(value, jsonString)
	case "@dt":
		f, fits = meansDatetime, r.is(value, jsonString)
	case "@date":
		f, fits = meansDate, r.is(value, jsonString) && len(r.text(value)) >= len("2006-01-02")
	case "@time":
		f, fits = meansTime, r.is(value, jsonString)
	case "@dec":
		f, fits = meansDecimal, r.is(value, jsonString)
	case "@ns":
		f, fits = meansString, r.is(value, jsonString)
	default:
		return meansGeneral, 0
	}
	if !fits {
		return meansDict, 0
	}
	return f, value
}

// isClass tells whether node i is an array of two strings.
func (r *Reader) isClass(i uint32) bool {
	return r.isList(i, 2) && r.is(i+1, jsonString) && r.is(i+2, jsonString)
}

// hasConstruction tells whether the object at node i says how an instance is
// made, beyond its class and state.
func (r *Reader) hasConstruction(i uint32) bool {
	return r.member(i, "@items") != 0 || r.member(i, "@appends") != 0 || r.member(i, "@newobj") != 0
}

// looksLikeArguments tells whether a state may hold constructor arguments. The
// general way decides.
func (r *Reader) looksLikeArguments(i uint32) bool {
	return r.is(i, jsonObject) && r.doc.nodes[i].size == 2 &&
		r.member(i, "@args") != 0 && r.member(i, "@state") != 0
}

// markers are the markers of the general way apart from @cls, in the order
// in which it looks for them, with the kind that their value must have.
var markers = [...]struct {
	key   string
	means meaning
	kind  jsonKind
}{
	{"@dt", meansDatetime, jsonString},
	{"@date", meansDate, jsonString},
	{"@time", meansTime, jsonString},
	{"@td", meansTimedelta, jsonArray},
	{"@dec", meansDecimal, jsonString},
	{"@uuid", meansUUID, jsonString},
	{"@t", meansTuple, jsonArray},
	{"@b", meansBytes, jsonString},
	{"@bi", meansBigInt, jsonString},
	{"@d", meansPairs, jsonArray},
	{"@set", meansSet, jsonArray},
	{"@fset", meansFrozenSet, jsonArray},
	{"@ref", meansRef, anyKind},
	{"@pkl", meansBytes, jsonString},
	{"@reduce", meansReduce, jsonObject},
}

// anyKind stands for a value of whatever kind.
const anyKind jsonKind = 0xff

// generalMeaning tells what the object at node i stands for in the general way, and
// which node holds the value of its marker.
func (r *Reader) generalMeaning(i uint32) (meaning, uint32) {
	size := r.doc.nodes[i].size
	if size == 0 || size > maxMarkers || !r.hasMarker(i) {
		return meansDict, 0
	}
	if class := r.member(i, "@cls"); class != 0 && r.isList(class, 2) {
		switch {
		case !r.isClass(class):
			return meansBad, class
		case size == 1:
			return meansClass, class
		case r.member(i, "@s") != 0:
			return meansInstance, class
		case r.hasConstruction(i):
			return meansBad, class
		}
		return meansClass, class
	}
	if size == 1 {
		switch value := i + 2; {
		case string(r.text(i+1)) == "@inst":
			return meansAnonymous, value
		case string(r.text(i+1)) == "@ns" && r.is(value, jsonString):
			return meansString, value
		}
	}
	for _, m := range &markers {
		value := r.member(i, m.key)
		if value == 0 || m.kind != anyKind && !r.is(value, m.kind) {
			continue
		}
		if m.means != meansTimedelta || r.isList(value, 3) {
			return m.means, value
		}
	}
	return meansDict, 0
}

// hasMarker tells whether a key of the object at node i begins like a marker.
func (r *Reader) hasMarker(i uint32) bool {
	at := i + 1
	for range r.doc.nodes[i].size {
		if key := r.text(at); len(key) > 0 && key[0] == '@' {
			return true
		}
		at = r.next(at + 1)
	}
	return false
}

// write writes the object at node i, which stands for f; value is
// the node with the value of its marker.
func (r *Reader) write(f meaning, i, value uint32, depth int) error {
	switch f {
	case meansDict:
		return r.dict(i, below(depth, 1))
	case meansTuple:
		return r.tuple(value, below(depth, 1))
	case meansBytes:
		return r.base64(r.text(value))
	case meansBigInt:
		if err := r.bigInteger(r.text(value)); err != nil {
			return fmt.Errorf("@bi: %w", err)
		}
		return nil
	case meansPairs:
		r.out = append(r.out, opEmptyDict)
		return r.pairs(value, false, below(depth, 1))
	case meansSet:
		return r.set("set", value, below(depth, 1))
	case meansFrozenSet:
		return r.set("frozenset", value, below(depth, 1))
	case meansRef:
		return r.ref(value, depth)
	case meansClass:
		r.out = appendRecordGlobal(r.out, r.text(value+1), r.text(value+2))
		return nil
	case meansInstance:
		return r.instance(i, value, depth)
	case meansReduce:
		return r.reduce(value, depth)
	case meansAnonymous:
		return r.anonymous(value, depth)
	case meansString:
		return r.encodedText(r.text(value))
	case meansBad:
		return errors.New("@cls: names that are no strings, or @items, @appends or @newobj without @s")
	}
	return r.known(f, i, value, depth)
}

func (r *Reader) set(class string, value uint32, depth int) error {
	r.out = appendRecordGlobal(r.out, "builtins", class)
	if err := r.list(value, depth); err != nil {
		return err
	}
	r.out = append(r.out, opTuple1, opReduce)
	return nil
}

// ref writes a persistent reference: an oid, an oid with the path of a class, or
// anything else as it stands.
func (r *Reader) ref(value uint32, depth int) error {
	if !r.generic {
		short, err := r.shortRef(value, depth)
		if short || err != nil {
			return err
		}
	}
	if depth == direct {
		depth = 0
	}
	outer := r.generic
	r.generic = true
	err := r.value(value, depth+1)
	r.generic = outer
	r.out = append(r.out, opBinPersID)
	return err
}

// shortRef writes a reference of one of the two forms that begin with an oid in
// hex, and tells whether it is one.
func (r *Reader) shortRef(value uint32, depth int) (bool, error) {
	switch {
	case r.is(value, jsonString):
		if err := r.oid(r.text(value)); err != nil {
			return true, err
		}
		r.out = append(r.out, opNone)
	case r.isClass(value):
		if err := r.oid(r.text(value + 1)); err != nil {
			return true, err
		}
		path := r.text(value + 2)
		dot := bytes.LastIndexByte(path, '.')
		r.out = appendRecordGlobal(r.out, path[:max(dot, 0)], path[dot+1:])
	case r.isList(value, 2) && r.is(value+1, jsonString) && isOIDHex(r.text(value+1)):
		return true, errors.New("@ref: an oid without the path of a class")
	default:
		return false, nil
	}
	r.out = append(r.out, opTuple2, opBinPersID)
	return true, r.limit(below(depth, 2))
}

func isOIDHex(text []byte) bool {
	for _, c := range text {
		if _, ok := hexDigit(c); !ok {
			return false
		}
	}
	return len(text) == 16
}

// instance writes an object that is made from its class and then given a state.
func (r *Reader) instance(i, class uint32, depth int) error {
	module, name := r.text(class+1), r.text(class+2)
	state := r.member(i, "@s")
	shape := shapeless
	if bytes.HasPrefix(module, []byte(treeModules)) {
		shape = shapeOf(string(module), string(name))
	}
	if depth == direct {
		r.out = appendRecordGlobal(r.out, module, name)
		r.out = append(r.out, opEmptyTuple, opNewObj)
		return r.build(state, shape, direct)
	}
	if len(module) == 0 && len(name) == 0 {
		return r.unnamed(i, state, depth)
	}
	arguments, inner, given := r.arguments(state, shape)
	if given {
		if err := r.constructWith(i, class, arguments, depth); err != nil {
			return err
		}
	} else {
		r.out = appendRecordGlobal(r.out, module, name)
		r.out = append(r.out, opEmptyTuple)
		r.construct(i)
	}
	if err := r.contents(i, "@appends", "@items", depth); err != nil {
		return err
	}
	if !given {
		return r.build(state, shape, depth+1)
	}
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	return r.build(inner, shapeless, depth+1)
}

// constructWith makes an instance with arguments, which stand in a dict beside
// the state.
func (r *Reader) constructWith(i, class, arguments uint32, depth int) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	writeClass := func() error {
		r.out = appendRecordGlobal(r.out, r.text(class+1), r.text(class+2))
		return nil
	}
	if positional, keywords, old := r.oldArguments(arguments); old {
		return r.newObjEx(writeClass, positional, keywords, depth)
	}
	if err := writeClass(); err != nil {
		return err
	}
	if err := r.value(arguments, depth+1); err != nil {
		return err
	}
	r.construct(i)
	return nil
}

// construct ends the making of an instance: by __new__ unless the object says
// otherwise.
func (r *Reader) construct(i uint32) {
	op := byte(opNewObj)
	if how := r.member(i, "@newobj"); how != 0 && r.is(how, jsonFalse) {
		op = opReduce
	}
	r.out = append(r.out, op)
}

// contents writes the elements and pairs of an object that is a list or a dict
// too, in the order of Python's pickler.
func (r *Reader) contents(i uint32, appends, items string, depth int) error {
	if list := r.member(i, appends); list != 0 {
		if !r.is(list, jsonArray) {
			return fmt.Errorf("%s must be a list", appends)
		}
		if err := r.appends(list, depth+1); err != nil {
			return err
		}
	}
	list := r.member(i, items)
	if list == 0 {
		return nil
	}
	if !r.is(list, jsonArray) {
		return fmt.Errorf("%s must be a list of [key, value] pairs", items)
	}
	return r.pairs(list, true, depth+1)
}

// build writes a state and applies it.
func (r *Reader) build(state uint32, shape treeShape, depth int) error {
	var err error
	if shape != shapeless {
		err = r.btreeState(state, shape, depth)
	} else {
		err = r.value(state, depth)
	}
	r.out = append(r.out, opBuild)
	return err
}

// unnamed is an instance without a class: what the codec takes for @inst,
// dropping all but the state.
func (r *Reader) unnamed(i, state uint32, depth int) error {
	from := len(r.out)
	r.dropped++
	err := r.contents(i, "@appends", "@items", depth)
	r.dropped--
	r.out = r.out[:from]
	if err != nil {
		return err
	}
	return r.anonymous(state, depth)
}

// anonymous writes BUILD on a value that is no instance, or on the result of a
// call, a form of older codecs.
func (r *Reader) anonymous(state uint32, depth int) error {
	if r.dropped > 0 { // the shape matters when it is written
		return r.value(state, depth+1)
	}
	var found [3]pair
	n := r.fewPairs(state, &found)
	object, callable := named(found[:max(n, 0)], "@obj"), named(found[:max(n, 0)], "@callable")
	arguments, inner := named(found[:max(n, 0)], "@args"), named(found[:max(n, 0)], "@state")
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	switch {
	case n == 2 && object != 0 && inner != 0:
		if err := r.value(object, depth+1); err != nil {
			return err
		}
	case n == 3 && callable != 0 && arguments != 0 && inner != 0:
		if err := r.value(callable, depth+1); err != nil {
			return err
		}
		if err := r.value(arguments, depth+1); err != nil {
			return err
		}
		r.out = append(r.out, opReduce)
	default:
		return errors.New("@inst: the state must be {@obj, @state} or {@callable, @args, @state}")
	}
	return r.build(inner, shapeless, depth+1)
}

// reduce writes a call, what is put into its result, and the state of that.
func (r *Reader) reduce(i uint32, depth int) error {
	arguments := r.member(i, "args")
	callable := func() error { return r.optional(r.member(i, "callable"), depth+1) }
	if positional, keywords, old := r.oldArguments(arguments); old {
		if err := r.newObjEx(callable, positional, keywords, depth); err != nil {
			return err
		}
	} else {
		if err := callable(); err != nil {
			return err
		}
		if err := r.optional(arguments, depth+1); err != nil {
			return err
		}
		op := byte(opReduce)
		if how := r.member(i, "newobj"); how != 0 && r.is(how, jsonTrue) {
			op = opNewObj
		}
		r.out = append(r.out, op)
	}
	if err := r.contents(i, "appends", "items", depth); err != nil {
		return err
	}
	if state := r.member(i, "state"); state != 0 {
		return r.build(state, shapeless, depth+1)
	}
	return nil
}

// optional writes node i, or None where there is none.
func (r *Reader) optional(i uint32, depth int) error {
	if i != 0 {
		return r.value(i, depth)
	}
	r.out = append(r.out, opNone)
	return r.limit(depth)
}

// newObjEx writes the call of a class with keyword arguments that older codecs
// stored as a dict.
func (r *Reader) newObjEx(writeClass func() error, positional, keywords uint32, depth int) error {
	r.out = appendRecordGlobal(r.out, "copyreg", "__newobj_ex__")
	if err := writeClass(); err != nil {
		return err
	}
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	if err := r.value(positional, depth+2); err != nil {
		return err
	}
	if err := r.value(keywords, depth+2); err != nil {
		return err
	}
	r.out = append(r.out, opTuple3, opReduce)
	return nil
}

// pair is a member of something that is read as a dict.
type pair struct {
	key   string
	text  bool // the key is a string
	value uint32
}

// fewPairs lists the pairs of the dict that node i is read as. It returns their
// number, or -1 when node i is no dict or one with more pairs than fit.
func (r *Reader) fewPairs(i uint32, found *[3]pair) int {
	if !r.is(i, jsonObject) {
		return -1
	}
	f, value := r.generalMeaning(i)
	n, at := 0, i+1
	switch f {
	case meansDict:
		if r.doc.nodes[i].size > uint32(len(found)) {
			return -1
		}
		for range r.doc.nodes[i].size {
			key, ok := decodedKey(r.text(at))
			found[n] = pair{key, ok, at + 1}
			n++
			at = r.next(at + 1)
		}
		return n
	case meansPairs:
		at = value + 1
		for range r.doc.nodes[value].size {
			if r.isList(at, 2) {
				if n == len(found) {
					return -1
				}
				key, ok := r.stringAt(at + 1)
				found[n] = pair{key, ok, r.next(at + 1)}
				n++
			}
			at = r.next(at)
		}
		return n
	}
	return -1
}

// decodedKey is the key that the text of a member's key stands for.
func decodedKey(text []byte) (string, bool) {
	encoded, ok := strings.CutPrefix(string(text), keyPrefix)
	if !ok {
		return encoded, true
	}
	decoded, err := appendBase64(nil, []byte(encoded))
	return string(decoded), err == nil
}

// stringAt is the string that node i is read as.
func (r *Reader) stringAt(i uint32) (string, bool) {
	if r.is(i, jsonString) {
		return string(r.text(i)), true
	}
	if r.is(i, jsonObject) {
		if f, value := r.generalMeaning(i); f == meansString {
			decoded, err := appendBase64(nil, r.text(value))
			return string(decoded), err == nil
		}
	}
	return "", false
}

// named is the value of the first pair with a key, 0 if there is none.
func named(pairs []pair, key string) uint32 {
	for _, p := range pairs {
		if p.text && p.key == key {
			return p.value
		}
	}
	return 0
}

// twoNamed returns the values of a dict with exactly these two keys.
func (r *Reader) twoNamed(i uint32, first, second string) (uint32, uint32, bool) {
	var found [3]pair
	if r.fewPairs(i, &found) != 2 {
		return 0, 0, false
	}
	a, b := named(found[:2], first), named(found[:2], second)
	return a, b, a != 0 && b != 0
}

// arguments tells whether a state holds the arguments of the constructor beside
// the real state, and where both stand.
func (r *Reader) arguments(state uint32, shape treeShape) (arguments, inner uint32, given bool) {
	if shape != shapeless && r.isBTreeState(state) {
		return 0, 0, false
	}
	arguments, inner, given = r.twoNamed(state, "@args", "@state")
	if !given {
		return 0, 0, false
	}
	if _, _, old := r.oldArguments(arguments); !old && !r.isTuple(arguments) {
		return 0, 0, false
	}
	return arguments, inner, true
}

// oldArguments tells whether arguments are the dict of positional and keyword
// arguments that older codecs stored.
func (r *Reader) oldArguments(i uint32) (positional, keywords uint32, old bool) {
	if i == 0 {
		return 0, 0, false
	}
	positional, keywords, old = r.twoNamed(i, "@args", "@kwargs")
	if !old || !r.isTuple(positional) || !r.isDict(keywords) {
		return 0, 0, false
	}
	return positional, keywords, true
}

func (r *Reader) isTuple(i uint32) bool {
	if !r.is(i, jsonObject) {
		return false
	}
	f, _ := r.generalMeaning(i)
	return f == meansTuple
}

func (r *Reader) isDict(i uint32) bool {
	if !r.is(i, jsonObject) {
		return false
	}
	f, _ := r.generalMeaning(i)
	return f == meansDict || f == meansPairs
}
