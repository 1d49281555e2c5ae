package jsonb

import "fmt"

// Form is a special form: something that the Python codec writes otherwise, or
// that a reader should know about.
type Form uint8

const (
	// FloatSpecial: NaN, an infinity or -0.0, written as a call of float.
	FloatSpecial Form = iota
	// FloatLarge: a float of 1e16 or more, written with all its digits.
	FloatLarge
	// DictPairs: a dict that could be taken for a marker, written as pairs.
	DictPairs
	// DictCall: a state that could be taken for constructor arguments, written as
	// a call of dict.
	DictCall
	// Python2Text: a str of Python 2 that is ASCII, written as text.
	Python2Text
	// Python2Bytes: a str of Python 2 that is not, written as bytes.
	Python2Bytes
	// Python2Class: a class whose names are strs of Python 2.
	Python2Class
	// SurrogateText: text with surrogates, written as a call that decodes it.
	SurrogateText
	// NulText: text with a NUL in a place where the Python codec fails.
	NulText
	// DatetimeGeneric: a date or time that has no short form, written as a call.
	DatetimeGeneric
	// KnownGeneric: another value of a known type that has no short form.
	KnownGeneric
	// BTreeGeneric: the state of a BTree that is not as BTrees make them.
	BTreeGeneric
	// RefGeneric: a persistent reference that has no short form.
	RefGeneric
	// RefInCallable: a persistent reference within a callable, added to the refs.
	RefInCallable
	// OldInstance: an instance of an old-style class (opcodes INST and OBJ).
	OldInstance
	// ByteArray: a bytearray of protocol 5, written as a call.
	ByteArray
	// IntText: an integer beyond 64 bits that was written as text.
	IntText
	// SharedCopied: a mutable part that was referenced again and became a copy.
	SharedCopied
	// ItemsReordered: an object whose items came after its state, or in another
	// order; readers set them before.
	ItemsReordered
	// CapsuleCycle: a state with an object that refers to itself, or that was
	// used before it was complete. Like all that follow it is a capsule: the
	// state is a call that unpickles it.
	CapsuleCycle
	// CapsuleState: a state in which an object gets its own state twice, or by a
	// call that is made for its effect.
	CapsuleState
	// CapsuleDepth: a state that is nested too deeply.
	CapsuleDepth
	// CapsuleExpansion: a state whose shared parts, written out each time, are
	// too long.
	CapsuleExpansion
	// CapsuleSize: a state that is larger than what jsonb holds, or that has an
	// integer that is too long to be written in decimal digits.
	CapsuleSize
	// CapsuleExtension: a state with codes of Python's extension registry.
	CapsuleExtension
	// CapsuleShared: a state with shared mutable parts, where sharing is to be
	// preserved.
	CapsuleShared

	NumForms int = iota
)

var formNames = [NumForms]string{
	FloatSpecial:    "float-special",
	FloatLarge:      "float-large",
	DictPairs:       "dict-pairs",
	DictCall:        "dict-call",
	Python2Text:     "python2-text",
	Python2Bytes:    "python2-bytes",
	Python2Class:    "python2-class",
	SurrogateText:   "surrogates",
	NulText:         "nul-text",
	DatetimeGeneric: "datetime-generic",
	KnownGeneric:    "known-generic",
	BTreeGeneric:    "btree-generic",
	RefGeneric:      "ref-generic",
	RefInCallable:   "ref-in-callable",
	OldInstance:     "old-instance",
	ByteArray:       "bytearray",
	IntText:         "int-text",
	SharedCopied:    "shared-copied",
	ItemsReordered:  "items-reordered",

	CapsuleCycle:     "capsule-cycle",
	CapsuleState:     "capsule-state",
	CapsuleDepth:     "capsule-depth",
	CapsuleExpansion: "capsule-expansion",
	CapsuleSize:      "capsule-size",
	CapsuleExtension: "capsule-extension",
	CapsuleShared:    "capsule-shared",
}

// lostOnSave are the forms that zodb-pgjsonb does not write itself: when the
// application saves such an object again, its state is altered then or cannot be
// stored. For the other forms the value that was read is saved as it is.
var lostOnSave = [NumForms]bool{
	FloatSpecial: true, FloatLarge: true, DictPairs: true, DictCall: true, SurrogateText: true, NulText: true,
	DatetimeGeneric: true, KnownGeneric: true, RefGeneric: true, RefInCallable: true,
	CapsuleCycle: true, CapsuleDepth: true, CapsuleExpansion: true, CapsuleSize: true, CapsuleExtension: true,
	CapsuleShared: true,
}

// LostOnSave tells whether the application loses the form when it next saves the
// object.
func (f Form) LostOnSave() bool { return int(f) < NumForms && lostOnSave[f] }

// String is the name by which a form is counted. It does not change between
// versions.
func (f Form) String() string {
	if int(f) < NumForms {
		return formNames[f]
	}
	return fmt.Sprintf("form-%d", uint8(f))
}

// Counts counts special forms.
type Counts [NumForms]int64

// AddTo adds the counts that are not zero to totals by name. totals may be nil
// as long as nothing was counted; the map that holds the sum is returned.
func (c *Counts) AddTo(totals map[string]int64) map[string]int64 {
	for f, n := range c {
		if n == 0 {
			continue
		}
		if totals == nil {
			totals = make(map[string]int64)
		}
		totals[Form(f).String()] += n
	}
	return totals
}
