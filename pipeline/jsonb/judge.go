package jsonb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Judge tells whether a row of the destination holds what a record of the source
// says. It reads the row as an application would, by the Reader, and compares by
// a Comparison; of the encoder it knows nothing, so that it finds the encoder's
// mistakes, too.
//
// Most rows need neither graph: the fast way, sideBySide, walks the record and the
// text of the row at once. What it is not certain of, it leaves to the Comparison.
//
// A Judge keeps its buffers between calls. It is not for several goroutines at
// once.
type Judge struct {
	// MaxMemory bounds what the comparison of one record may take, roughly; 0 is
	// 1 GiB.
	MaxMemory int64

	fast   sideBySide
	reader Reader
	record []byte
	refs   []int64
	stored []int64
}

// Stored is a row as PostgreSQL returns it.
type Stored struct {
	Module, Name []byte
	// State is JSON text, nil for NULL.
	State []byte
	Refs  []int64
}

// Outcome is what a comparison came to.
type Outcome uint8

const (
	// Same: an application sees what it saw before.
	Same Outcome = iota
	// Deviating: the same but for what every conversion declares.
	Deviating
	// Different: something was lost or altered.
	Different
	// Unknown: the two could not be compared.
	Unknown
)

// Verdict is what a Judge found.
type Verdict struct {
	Outcome Outcome
	// Deviations are the forms that the row deviates by: SharedCopied,
	// Python2Bytes.
	Deviations []Form
	// What tells differences apart: "value", "class", "refs", "unreadable".
	What string
	// Path is where in the object the first difference is; Source and Stored are
	// what stands there on either side, as short text.
	Path, Source, Stored string
	// Err is why nothing is known, or why the row cannot be loaded.
	Err error
}

// Compare compares a record, which is two pickles, with a row.
func (j *Judge) Compare(record []byte, row *Stored) (v Verdict) {
	defer func() {
		if p := recover(); p != nil {
			v = Verdict{Outcome: Unknown, Err: fmt.Errorf("this program failed on the record: %v", p)}
		}
	}()
	j.fast.most = int(j.room() / nodeCost)
	if j.fast.same(record, row) {
		return j.fast.verdict()
	}
	return j.compareGraphs(record, row)
}

func (j *Judge) room() int64 {
	if j.MaxMemory > 0 {
		return j.MaxMemory
	}
	return 1 << 30
}

// compareGraphs is Compare without the fast way.
func (j *Judge) compareGraphs(record []byte, row *Stored) Verdict {
	room := j.room()
	class, state, err := executeRecord(record, &room)
	if err != nil {
		return Verdict{Outcome: Unknown, Err: fmt.Errorf("the record of the source cannot be read: %w", err)}
	}
	if row.State == nil {
		return Verdict{Outcome: Different, What: "unreadable", Path: "/", Source: state.describe(), Stored: "NULL",
			Err: errors.New("the state is NULL, which means that there is no such object")}
	}
	j.record, err = j.reader.AppendRecord(j.record[:0], string(row.Module), string(row.Name), row.State)
	defer j.shrink()
	if err != nil {
		return Verdict{Outcome: Different, What: "unreadable", Path: "/", Source: state.describe(), Stored: err.Error(),
			Err: fmt.Errorf("the row cannot be loaded: %w", err)}
	}
	storedClass, storedState, err := executeRecord(j.record, &room)
	if err != nil {
		return Verdict{Outcome: Different, What: "unreadable", Path: "/", Source: state.describe(), Stored: err.Error(),
			Err: fmt.Errorf("the row cannot be loaded: %w", err)}
	}
	walk := func(c Comparison) *walk {
		w := c.walk(room)
		_ = w.records(class, state, storedClass, storedState) // w.err
		return w
	}
	w := walk(Comparison{copies: true, OldStringsAreBytes: true})
	switch {
	case w.err != nil:
		return Verdict{Outcome: Unknown, Err: w.err}
	case w.difference != "":
		return w.verdict()
	}
	if v := j.compareRefs(state, row.Refs, room); v.Outcome != Same {
		return v
	}
	return deviations(walk)
}

// keepRecord is how much of the buffer is kept after a large record.
const keepRecord = 1 << 20

func (j *Judge) shrink() {
	if cap(j.record) > keepRecord {
		j.record = nil
	}
}

// verdict tells of the difference that a walk found.
func (w *walk) verdict() Verdict {
	v := Verdict{Outcome: Different, What: "value", Path: w.where, Source: w.before, Stored: w.after}
	if len(w.where) >= 5 && w.where[:5] == "class" {
		v.What = "class"
	}
	if v.Source == "" && v.Stored == "" {
		v.Err = errors.New(w.what)
	}
	return v
}

// deviations finds out which of what is allowed two records that are otherwise
// the same need.
func deviations(walk func(Comparison) *walk) Verdict {
	strict := walk(Comparison{})
	switch {
	case strict.err != nil:
		return Verdict{Outcome: Unknown, Err: strict.err}
	case strict.difference == "":
		return Verdict{}
	}
	v := Verdict{Outcome: Deviating}
	if w := walk(Comparison{OldStringsAreBytes: true}); w.err != nil || w.difference != "" {
		v.Deviations = append(v.Deviations, SharedCopied)
	}
	if w := walk(Comparison{copies: true}); w.err != nil || w.difference != "" {
		v.Deviations = append(v.Deviations, Python2Bytes)
	}
	return v
}

// compareRefs compares the oids that the source's state refers to with those of
// the column, as sets: how often an object is referred to makes no difference to
// what keeps it alive.
func (j *Judge) compareRefs(state *symbol, have []int64, room int64) Verdict {
	var err error
	if j.refs, err = appendReferences(j.refs[:0], state, room); err != nil {
		return Verdict{Outcome: Unknown, Err: err}
	}
	slices.Sort(j.refs)
	want := slices.Compact(j.refs)
	j.stored = append(j.stored[:0], have...)
	slices.Sort(j.stored)
	stored := slices.Compact(j.stored)
	for i := range max(len(want), len(stored)) {
		switch {
		case i == len(want) || i < len(stored) && stored[i] < want[i]:
			return Verdict{Outcome: Different, What: "refs", Path: "refs", Source: "no reference", Stored: oidText(stored[i])}
		case i == len(stored) || want[i] < stored[i]:
			return Verdict{Outcome: Different, What: "refs", Path: "refs", Source: oidText(want[i]), Stored: "no reference"}
		}
	}
	return Verdict{}
}

// oidText is an oid for people. -1 is what readers make of NULL.
func oidText(oid int64) string {
	if oid == -1 {
		return "NULL"
	}
	return fmt.Sprintf("0x%016x", uint64(oid))
}

// appendReferences appends the oids of the persistent ids that keep their target
// alive: (oid, class) and oid. Weak references and those to other databases are
// lists.
func appendReferences(refs []int64, state *symbol, room int64) ([]int64, error) {
	met := map[*symbol]struct{}{}
	stack := []*symbol{state}
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !s.kind.container() && s.more == nil && len(s.pairs) == 0 {
			continue
		}
		if _, found := met[s]; found {
			continue
		}
		met[s] = struct{}{}
		if room -= meetingCost; room < 0 {
			return refs, errTooLarge
		}
		if s.kind == symRef {
			if oid, ok := s.parts[0].target(); ok {
				refs = append(refs, oid)
			}
			continue
		}
		stack = append(stack, s.parts...)
		for _, p := range s.pairs {
			stack = append(stack, p.key, p.value)
		}
		extras := s.extras()
		stack = append(append(stack, extras.items...), extras.states...)
	}
	return refs, nil
}

// target is the oid of a persistent id that keeps it alive.
func (s *symbol) target() (oid int64, ok bool) {
	if s.kind == symTuple && len(s.parts) > 0 && s.more == nil {
		s = s.parts[0]
	}
	if !s.isBytes() && !s.isOldString() || len(s.text) != oidSize {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64([]byte(s.text))), true
}

// Class is the class of a record: module and name, empty if its class pickle has
// none of the forms of ZODB.
func (j *Judge) Class(record []byte) (module, name string) {
	defer func() {
		if recover() != nil {
			module, name = "", ""
		}
	}()
	room := int64(64 << 20)
	e := executor{data: string(record), memo: make(map[uint64]*symbol), room: &room}
	class, err := e.run()
	if err != nil {
		return "", ""
	}
	module, name, _, ok := classOf(class)
	if !ok {
		return "", ""
	}
	return module, name
}
