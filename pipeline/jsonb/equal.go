package jsonb

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Comparison tells whether two records mean the same to ZODB. Each is executed
// into a graph of what it builds, without any class; calls whose result is known
// without one (a set of a list, bytes of a text, a time span) are evaluated, so
// that the ways in which one value can be pickled count as one. Then both graphs
// are walked side by side.
//
//   - Numbers are compared with their type, floats by their bits.
//   - The order of dicts and sets does not count; of what is put into any other
//     object it does.
//   - A call of a class is not the same as its __new__.
//   - Lists, dicts, sets and objects must be the same object in one graph where
//     they are in the other. Objects that cannot change are excepted, with their
//     states, and what persistent ids are made of.
//   - The string type of Python 2 is text where it is ASCII, bytes in oids and in
//     the payload of dates, and otherwise a type of its own.
//
// A Comparison shares no code with the encoder and its pickle machine: it is
// there to judge them. It is made to be plainly right, not fast.
type Comparison struct {
	// IgnoreSharing lets copies take the place of an object that several
	// others refer to.
	IgnoreSharing bool
	// OldStringsAreBytes takes a Python 2 string that is not ASCII for bytes.
	OldStringsAreBytes bool
	// MaxMemory bounds what the graphs of both records may take, in bytes,
	// roughly; 0 is 1 GiB.
	MaxMemory int64

	// copies is IgnoreSharing for the first record only: what is one object there
	// may be several in the second, but not the other way round.
	copies bool
}

// Equal compares two records strictly. It returns a path to the first
// difference and what it is, or "" when there is none. An error means that a
// record cannot be executed or that the graphs are too large to compare.
func Equal(a, b []byte) (string, error) { return Comparison{}.Equal(a, b) }

// Equal is the function Equal with the options of c.
func (c Comparison) Equal(a, b []byte) (string, error) {
	if c.MaxMemory == 0 {
		c.MaxMemory = 1 << 30
	}
	room := c.MaxMemory
	classA, stateA, err := executeRecord(a, &room)
	if err != nil {
		return "", fmt.Errorf("first record: %w", err)
	}
	classB, stateB, err := executeRecord(b, &room)
	if err != nil {
		return "", fmt.Errorf("second record: %w", err)
	}
	w := c.walk(room)
	if err := w.records(classA, stateA, classB, stateB); err != nil {
		return "", err
	}
	return w.difference, nil
}

func (c Comparison) walk(room int64) *walk {
	return &walk{
		Comparison: c,
		room:       room,
		met:        make(map[meeting]struct{}),
		left:       make(map[*symbol]*symbol),
		right:      make(map[*symbol]*symbol),
		keys:       keys{oldBytes: c.OldStringsAreBytes, known: make(map[*symbol]string), open: make(map[*symbol]int)},
	}
}

// records walks through two records.
func (w *walk) records(classA, stateA, classB, stateB *symbol) error {
	if w.sameClass(classA, classB) {
		w.same(stateA, stateB)
	}
	if w.err == nil {
		w.err = w.keys.err
	}
	return w.err
}

// walk goes through two graphs at once.
type walk struct {
	Comparison
	room int64
	// met are the pairs of containers that were walked, or are being walked: a
	// second meeting needs no second look. This ends the walk of cycles.
	met map[meeting]struct{}
	// left and right tell which object of the other graph an object stands for.
	left, right map[*symbol]*symbol
	within      int // persistent ids, and states of what cannot change, that the walk is in
	keys        keys
	path        []step
	difference  string
	// The parts of difference; before and after only where each side has something.
	where, what   string
	before, after string
	err           error
}

// became is the form of a difference between two values.
const became = "%s became %s"

// step is one step of the path from the state to where the walk is.
type step struct {
	format string
	index  int
	key    *symbol
}

// maxWalkDepth keeps the walk within the stack of a goroutine.
const maxWalkDepth = 100_000

// meeting is a pair of symbols, and whether it was met where it does not count
// what is shared.
type meeting struct {
	a, b   *symbol
	within bool
}

// meetingCost is about what an entry of met takes.
const meetingCost = 64

// differ notes a difference where the walk is and returns false.
func (w *walk) differ(format string, args ...any) bool {
	if w.difference != "" || w.err != nil {
		return false
	}
	var path strings.Builder
	for i, s := range w.path {
		if len(w.path) > 40 && i == 20 {
			path.WriteString("...")
		}
		if len(w.path) > 40 && i >= 20 && i < len(w.path)-20 {
			continue
		}
		if s.key != nil {
			fmt.Fprintf(&path, s.format, s.key.describe())
		} else if strings.Contains(s.format, "%") {
			fmt.Fprintf(&path, s.format, s.index)
		} else {
			path.WriteString(s.format)
		}
	}
	if path.Len() == 0 {
		path.WriteString("/")
	}
	w.where, w.what = path.String(), fmt.Sprintf(format, args...)
	w.difference = w.where + ": " + w.what
	switch n := len(args); n {
	case 2: // a value, key or element on each side
		w.before, w.after = fmt.Sprint(args[0]), fmt.Sprint(args[1])
	case 3: // a number on each side
		w.before, w.after = fmt.Sprintf("%v with %v", args[0], args[1]), fmt.Sprintf("with %v", args[2])
	case 4: // a container and its size on each side
		w.before, w.after = fmt.Sprintf("%v of %v", args[0], args[1]), fmt.Sprintf("%v of %v", args[2], args[3])
	}
	return false
}

// sameClass compares the class pickles, whose forms all mean a class and
// perhaps arguments.
func (w *walk) sameClass(a, b *symbol) bool {
	moduleA, nameA, argsA, okA := classOf(a)
	moduleB, nameB, argsB, okB := classOf(b)
	w.path = append(w.path[:0], step{format: "class"})
	defer func() { w.path = w.path[:0] }()
	switch {
	case okA != okB:
		return w.differ("one of the class pickles has none of the forms of ZODB")
	case !okA:
		return w.same(a, b)
	case moduleA != moduleB || nameA != nameB:
		return w.differ(became, moduleA+"."+nameA, moduleB+"."+nameB)
	case argsA == nil && argsB == nil:
		return true
	case argsA == nil || argsB == nil:
		return w.differ("constructor arguments on one side only")
	}
	return w.at(step{format: "/args"}, argsA, argsB)
}

// classOf reads what a class pickle evaluates to: a class, (class, arguments) or
// ((module, name), arguments). Arguments that are None or empty count as none.
func classOf(s *symbol) (module, name string, args *symbol, ok bool) {
	class := s
	if s.kind == symTuple && len(s.parts) == 2 {
		class, args = s.parts[0], s.parts[1]
		if args.kind == symNone || args.kind == symTuple && len(args.parts) == 0 {
			args = nil
		}
	}
	switch {
	case class.kind == symGlobal:
		return class.text, class.name, args, true
	case class == s || class.kind != symTuple || len(class.parts) != 2:
		return "", "", nil, false
	case !class.parts[0].isText() || !class.parts[1].isText():
		return "", "", nil, false
	}
	return class.parts[0].text, class.parts[1].text, args, true
}

// at compares two parts, one step further.
func (w *walk) at(s step, a, b *symbol) bool {
	w.path = append(w.path, s)
	ok := w.same(a, b)
	w.path = w.path[:len(w.path)-1]
	return ok
}

// same compares two symbols and everything below them.
func (w *walk) same(a, b *symbol) bool {
	kind := a.plainKind(w.OldStringsAreBytes)
	if kind != b.plainKind(w.OldStringsAreBytes) {
		return w.differ(became, a.describe(), b.describe())
	}
	switch kind {
	case symList, symTuple, symDict, symSet, symFrozenSet, symByteArray, symCall, symNew, symNewEx, symRef:
	default:
		if a.text != b.text || a.name != b.name {
			return w.differ(became, a.describe(), b.describe())
		}
		if a.more == nil && b.more == nil {
			return true
		}
	}
	pair := meeting{a, b, w.within > 0}
	if _, found := w.met[pair]; found {
		return true
	}
	w.met[pair] = struct{}{}
	w.room -= meetingCost
	switch {
	case w.room < 0:
		w.err = errTooLarge
		return false
	case len(w.path) > maxWalkDepth:
		w.err = fmt.Errorf("more than %d levels of nesting", maxWalkDepth)
		return false
	case !w.IgnoreSharing && w.within == 0 && a.mutable() && !w.sameIdentity(a, b):
		return false
	}
	return w.sameContents(kind, a, b) && w.sameExtras(a, b)
}

// sameIdentity pairs two objects, if neither is the partner of another one. Where
// copies are allowed, the first may be.
func (w *walk) sameIdentity(a, b *symbol) bool {
	if _, found := w.left[a]; found && !w.copies {
		return w.differ("%s shared in the first record, separate objects in the second", a.describe())
	}
	if _, found := w.right[b]; found {
		return w.differ("%s separate in the first record, one object in the second", b.describe())
	}
	w.left[a], w.right[b] = b, a
	return true
}

func (w *walk) sameContents(kind symbolKind, a, b *symbol) bool {
	switch kind {
	case symDict:
		return w.sameDict(a, b)
	case symSet, symFrozenSet:
		return w.sameSet(a, b)
	case symByteArray:
		if a.text != b.text {
			return w.differ(became, a.describe(), b.describe())
		}
	case symList, symTuple:
		return w.sameParts("[%d]", a, b, a.parts, b.parts)
	case symRef:
		w.within++
		ok := w.at(step{format: "/pid"}, a.parts[0], b.parts[0])
		w.within--
		return ok
	case symCall, symNew, symNewEx:
		if a.class() != b.class() {
			return w.differ(became, a.describe(), b.describe())
		}
		for i, format := range []string{"/callable", "/args", "/kwargs"}[:len(a.parts)] {
			if !w.at(step{format: format}, a.parts[i], b.parts[i]) {
				return false
			}
		}
	}
	return true
}

// sameParts compares what stands in an order.
func (w *walk) sameParts(format string, a, b *symbol, left, right []*symbol) bool {
	if len(left) != len(right) {
		return w.differ("%s of %d became %s of %d", a.describe(), len(left), b.describe(), len(right))
	}
	for i := range left {
		if !w.at(step{format: format, index: i}, left[i], right[i]) {
			return false
		}
	}
	return true
}

// sameExtras compares what was put into an object after it was made.
func (w *walk) sameExtras(a, b *symbol) bool {
	left, right := a.extras(), b.extras()
	if !w.sameParts(".append[%d]", a, b, left.items, right.items) {
		return false
	}
	if a.kind != symDict {
		if len(a.pairs) != len(b.pairs) {
			return w.differ("%s: %d dict items became %d", a.describe(), len(a.pairs), len(b.pairs))
		}
		for i := range a.pairs {
			if !w.at(step{format: ".key[%d]", index: i}, a.pairs[i].key, b.pairs[i].key) ||
				!w.at(step{format: ".item[%d]", index: i}, a.pairs[i].value, b.pairs[i].value) {
				return false
			}
		}
	}
	if len(left.states) != len(right.states) {
		return w.differ("%s: %d BUILD states became %d", a.describe(), len(left.states), len(right.states))
	}
	if !a.mutable() {
		w.within++
		defer func() { w.within-- }()
	}
	for i := range left.states {
		if !w.at(step{format: "/state"}, left.states[i], right.states[i]) {
			return false
		}
	}
	return true
}

// sameDict compares dicts without their order. Of several pairs with the same
// key the first counts with the value of the last, as in Python.
func (w *walk) sameDict(a, b *symbol) bool {
	left, right := w.keys.index(a.pairs), w.keys.index(b.pairs)
	if w.keys.err != nil {
		return false
	}
	if lost, gained := missing(left, right), missing(right, left); lost != nil || gained != nil {
		return w.differ("dict keys differ: lost %s, gained %s", lost.describe(), gained.describe())
	}
	for _, entry := range left.order {
		for i, p := range entry.pairs {
			q := right.entries[entry.id].pairs[i]
			if p.key.kind.container() && !w.at(step{format: ".key(%s)", key: p.key}, p.key, q.key) {
				return false
			}
			if !w.at(step{format: "[%s]", key: p.key}, p.value, q.value) {
				return false
			}
		}
	}
	return true
}

// missing is the first key of one dict or set that the other has less often.
func missing(from, in keyIndex) *symbol {
	for _, entry := range from.order {
		if other := in.entries[entry.id]; other == nil || len(other.pairs) < len(entry.pairs) {
			return entry.pairs[0].key
		}
	}
	return nil
}

func (w *walk) sameSet(a, b *symbol) bool {
	left, right := w.keys.index(elementPairs(a.parts)), w.keys.index(elementPairs(b.parts))
	if w.keys.err != nil {
		return false
	}
	if lost, gained := missing(left, right), missing(right, left); lost != nil || gained != nil {
		return w.differ("set elements differ: lost %s, gained %s", lost.describe(), gained.describe())
	}
	for _, entry := range left.order {
		for i, p := range entry.pairs {
			if !w.at(step{format: "{%s}", key: p.key}, p.key, right.entries[entry.id].pairs[i].key) {
				return false
			}
		}
	}
	return true
}

func elementPairs(elements []*symbol) []symbolPair {
	pairs := make([]symbolPair, len(elements))
	for i, e := range elements {
		pairs[i] = symbolPair{e, e}
	}
	return pairs
}

// keyIndex finds the pairs of a dict by their key. Objects that look alike are
// still several keys: an entry then holds several pairs, in their order.
type keyIndex struct {
	entries map[string]*keyEntry
	order   []*keyEntry
}

type keyEntry struct {
	id    string
	pairs []symbolPair
}

// keys gives symbols names that are the same for what is the same in both
// graphs, so that pairs of dicts and elements of sets find each other.
type keys struct {
	oldBytes bool
	known    map[*symbol]string
	open     map[*symbol]int // containers that are being named, with their depth
	steps    int
	err      error
}

// maxKeySteps bounds the work for keys that refer to each other in circles.
const maxKeySteps = 50_000_000

func (k *keys) index(pairs []symbolPair) keyIndex {
	index := keyIndex{entries: make(map[string]*keyEntry, len(pairs))}
	for _, p := range pairs {
		id := k.name(p.key)
		entry := index.entries[id]
		switch {
		case entry == nil:
			entry = &keyEntry{id: id, pairs: []symbolPair{p}}
			index.entries[id] = entry
			index.order = append(index.order, entry)
		case p.key.immutable():
			entry.pairs[0].value = p.value
		default:
			entry.pairs = append(entry.pairs, p)
		}
	}
	return index
}

func (k *keys) name(s *symbol) string {
	name, _ := k.reach(s)
	return name
}

// neverReached is the reach of a name that depends on no open container.
const neverReached = 1 << 30

// reach names a symbol and tells the outermost open container that the name
// refers to: such a name holds only there and is not kept.
func (k *keys) reach(s *symbol) (string, int) {
	kind := s.plainKind(k.oldBytes)
	if !kind.container() && s.more == nil {
		return string(rune('A'+int(kind))) + strconv.Itoa(len(s.text)) + ":" + s.text + ":" + s.name, neverReached
	}
	if name, found := k.known[s]; found {
		return name, neverReached
	}
	if depth, found := k.open[s]; found {
		return "up" + strconv.Itoa(len(k.open)-depth), depth
	}
	if k.steps++; k.steps > maxKeySteps || len(k.open) > maxWalkDepth {
		k.err = errors.New("the keys of a dict or set are too complex to compare")
	}
	if k.err != nil {
		return "", neverReached
	}
	depth := len(k.open)
	k.open[s] = depth
	outermost := neverReached
	part := func(s *symbol) string {
		name, reach := k.reach(s)
		outermost = min(outermost, reach)
		return name
	}
	name := digest(s, kind, part)
	delete(k.open, s)
	if outermost >= depth {
		outermost = neverReached
		k.known[s] = name
	}
	return name, outermost
}

// digest is a short name of a container, from the names of its parts.
func digest(s *symbol, kind symbolKind, part func(*symbol) string) string {
	var parts []string
	for _, p := range s.parts {
		parts = append(parts, part(p))
	}
	if kind == symSet || kind == symFrozenSet {
		sort.Strings(parts)
	}
	var pairs []string
	for _, p := range s.pairs {
		pairs = append(pairs, part(p.key)+"="+part(p.value))
	}
	if kind == symDict {
		sort.Strings(pairs)
	}
	extras := s.extras()
	var after []string
	for _, p := range extras.items {
		after = append(after, part(p))
	}
	after = append(after, "states")
	for _, p := range extras.states {
		after = append(after, part(p))
	}
	return hashNames(kind, s.text, s.name, parts, pairs, after)
}
