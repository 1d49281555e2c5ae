// Package pickle executes Python pickles symbolically: bytes go in, a tree of
// nodes comes out. No class is imported and nothing is called; a call is a node.
//
// It reads every opcode of protocols 0 to 5 that stands for a value by itself.
// Out-of-band buffers (NEXT_BUFFER, READONLY_BUFFER) mean something only
// together with the process that wrote them; they are errors. A code of the
// extension registry (EXT1, EXT2, EXT4) is a node, although only a process with
// the same registry can tell what it stands for.
//
// A Machine guarantees, whatever bytes it is given:
//   - It never panics and never recurses.
//   - Memory is at most proportional to the length of the input; no length or
//     memo number is believed before it is compared with what is there.
//   - Two references to one object lead to one node. A graph with a cycle is
//     never returned without the MutatedAfterUse oddity.
//
// The format is that of Python's pickletools module. Where its two
// implementations of the unpickler disagree, the one in C counts, because that
// is what ZODB uses.
package pickle

import "fmt"

// Ref is the number of a node. It is valid until the next Reset.
type Ref uint32

// Kind tells what a node is.
type Kind uint8

// The kinds from List on are the containers: they have parts.
const (
	None      Kind = iota
	Bool           // Int is 0 or 1
	Int            // fits 64 bits
	Long           // does not; Data is the shortest little-endian two's complement
	LongText       // does not; Data is its canonical decimal text
	Float          // Float64
	Str            // Data is UTF-8; the flags tell what is in it
	Py2Str         // the str of Python 2: Data is text or bytes, nobody knows
	Bytes          // Data
	ByteArray      // Data
	Global         // A and B are the nodes of module and name, both Str
	Ext            // a code of Python's extension registry, which stands for a global: A
	List           // Kids
	Tuple          // Kids
	Dict           // Kids: key, value, key, value, ...; keys may come twice
	Set            // Kids
	FrozenSet      // Kids
	Call           // an object made by a call; Made tells how
	Built          // a state that was set on something else than the result of a call: A the target, B the state
	PersID         // a reference that the application resolves: A is its id
)

var kindNames = [...]string{
	None: "None", Bool: "bool", Int: "int", Long: "int", LongText: "int", Float: "float",
	Str: "str", Py2Str: "Python 2 str", Bytes: "bytes", ByteArray: "bytearray", Global: "global", Ext: "extension code",
	List: "list", Tuple: "tuple", Dict: "dict", Set: "set", FrozenSet: "frozenset",
	Call: "object", Built: "object", PersID: "persistent reference",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Flags tell what is known about a node.
type Flags uint8

// The flags of Str and Py2Str are found while the bytes are in the cache
// anyway, once for a string that is used many times.
const (
	// Plain text is valid UTF-8 without control characters, quotes and
	// backslashes: most text formats take it as it is.
	Plain Flags = 1 << iota
	// ASCII text has no byte above 0x7f.
	ASCII
	// Surrogates stand in text that is otherwise valid UTF-8, as Python's error
	// handler surrogatepass writes them.
	Surrogates
	// Invalid text is not UTF-8 even if surrogates are allowed. A Py2Str that is
	// not ASCII has none of these flags.
	Invalid
	// Shared nodes were taken from the memo, or duplicated: another reference
	// may lead to them.
	Shared
	// Seen is free for the reader of the tree. Reset clears it.
	Seen
	// inText marks data that was decoded into the Machine's own buffer.
	inText
	// moved marks kids that have room up to the next power of two.
	moved
)

// Changed is a flag of what is no text: it was changed after it had been taken
// from the memo, or duplicated.
const Changed = Invalid

// Made tells what made a Call.
type Made uint8

const (
	ByReduce   Made = iota // A(*B)
	ByNewObj               // A.__new__(A, *B)
	ByNewObjEx             // B is a tuple (A, args, kwargs): A.__new__(A, *args, **kwargs)
	ByInst                 // INST or OBJ: A(*B), but A.__new__(A) for a class if B is empty
)

// Node is one value. Nodes are kept in one slice and refer to each other by
// number, so that a record of thousands of values costs no allocation; 24 bytes
// keep the tree of a record within a few times its length.
//
// What A and B mean depends on the kind; the methods of Machine read them.
type Node struct {
	Kind  Kind
	Flags Flags
	Made  Made
	// Reordered tells of a Call that items were added after its state was set,
	// or list items after dict items.
	Reordered bool
	// Pos is where the opcode stands in the input. Values that every pickle
	// shares (None, True, False, small integers, the empty tuple) have none.
	Pos  uint32
	A, B uint32
	// State of a Call is the node that BUILD gave it, more its items; 0 if
	// there is none.
	state, more uint32
}

// Oddity is something that Python allows and that a tree cannot tell.
type Oddity uint8

const (
	// MutatedAfterUse: an object was changed after it had been fetched from the
	// memo, so that it may hold itself, or was used before it was complete.
	MutatedAfterUse Oddity = 1 << iota
	// Dropped: the result of a call was thrown away. The call may have had an
	// effect on another object, such as setting its state.
	Dropped
	// BuiltTwice: a state was set on an object that had one.
	BuiltTwice
)

// Odd is an oddity and the place where it was first met.
type Odd struct {
	Oddity Oddity
	Offset int
}

// Error is an input that is no pickle, or one that this package does not read.
type Error struct {
	Offset int  // of the opcode
	Opcode byte // 0 behind the last one
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("offset %d: %s", e.Offset, e.Problem())
}

// Problem is the error without its place.
func (e *Error) Problem() string {
	if e.Opcode == 0 {
		return "pickle: " + e.Reason
	}
	return fmt.Sprintf("pickle opcode %s: %s", opcodeName(e.Opcode), e.Reason)
}
