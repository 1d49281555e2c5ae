package jsonb

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
)

// symbolKind is the kind of a value that a pickle builds.
type symbolKind uint8

const (
	symNone  symbolKind = iota
	symBool             // text "0" or "1"
	symInt              // text is the shortest little-endian two's complement
	symFloat            // text is the eight bytes of the pickle
	symText             // UTF-8, surrogates as three bytes
	symBytes
	symOldString // of Python 2
	symGlobal    // text is the module
	symExtension // text is the code
	symByteArray
	symList
	symTuple
	symDict
	symSet
	symFrozenSet
	symCall  // parts: callable, arguments
	symNew   // parts: class, arguments
	symNewEx // parts: class, arguments, keyword arguments
	symRef   // parts: persistent id
)

func (k symbolKind) container() bool { return k >= symByteArray }

// symbol is a value that a pickle builds. Two references to one object are the
// same pointer.
type symbol struct {
	kind  symbolKind
	text  string
	name  string // of a global
	parts []*symbol
	pairs []symbolPair // of a dict, or set on any other object
	more  *symbolExtras
}

type symbolPair struct{ key, value *symbol }

// symbolExtras is what was done to an object after it was made.
type symbolExtras struct {
	items  []*symbol // appended to what is no list
	states []*symbol
}

// symbolCost is about what a symbol takes.
const symbolCost = 128

var errTooLarge = errors.New("the graphs of the records are too large to compare")

func (s *symbol) extras() symbolExtras {
	if s.more == nil {
		return symbolExtras{}
	}
	return *s.more
}

func (s *symbol) extend() *symbolExtras {
	if s.more == nil {
		s.more = new(symbolExtras)
	}
	return s.more
}

// plainKind is the kind with the string type of Python 2 told by its contents.
func (s *symbol) plainKind(oldBytes bool) symbolKind {
	switch {
	case s.kind != symOldString:
		return s.kind
	case isASCII(s.text):
		return symText
	case oldBytes:
		return symBytes
	}
	return symOldString
}

func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= 0x80 {
			return false
		}
	}
	return true
}

// isText tells whether Python 3 sees a str. One with a state, which no pickler
// writes, is not looked into; the same goes for the functions below.
func (s *symbol) isText() bool { return s.plainKind(false) == symText && s.more == nil }

func (s *symbol) isBytes() bool { return s.kind == symBytes && s.more == nil }

func (s *symbol) isOldString() bool { return s.kind == symOldString && s.more == nil }

// class is "module.name" of what made an object, "" if that is no class.
func (s *symbol) class() string {
	if s.kind >= symCall && s.kind <= symNewEx && s.parts[0].kind == symGlobal {
		return s.parts[0].text + "." + s.parts[0].name
	}
	return ""
}

// immutableModules hold classes whose instances cannot change, apart from those
// of builtins: two equal instances are as good as one.
var immutableModules = []string{
	"datetime.", "decimal.", "uuid.", "fractions.", "pytz.", "zoneinfo.", "ipaddress.",
}

// immutableBuiltins make instances that cannot change.
var immutableBuiltins = []string{
	"complex", "range", "xrange", "slice", "getattr", "int", "float", "str", "bytes", "type", "object",
}

// mutable tells whether it matters that two references are to one object.
func (s *symbol) mutable() bool {
	switch s.kind {
	case symList, symDict, symSet, symByteArray:
		return true
	case symCall, symNew, symNewEx:
	default:
		return false
	}
	class := s.class()
	for _, prefix := range immutableModules {
		if strings.HasPrefix(class, prefix) {
			return false
		}
	}
	class = strings.Replace(class, "__builtin__.", "builtins.", 1)
	for _, name := range immutableBuiltins {
		if class == "builtins."+name {
			return false
		}
	}
	// The result of a method is what getattr found it on.
	return s.parts[0].kind != symCall || s.parts[0].mutable()
}

// immutable tells whether a key is equal to any other that looks like it, in
// Python too.
func (s *symbol) immutable() bool {
	if s.kind == symTuple || s.kind == symFrozenSet {
		for _, p := range s.parts {
			if !p.immutable() {
				return false
			}
		}
		return true
	}
	return !s.kind.container()
}

// describe says what a symbol is, in a few words.
func (s *symbol) describe() string {
	if s == nil {
		return "none"
	}
	switch s.kind {
	case symNone:
		return "None"
	case symBool:
		return map[string]string{"0": "False", "1": "True"}[s.text]
	case symInt:
		if len(s.text) > 40 {
			return fmt.Sprintf("int of %d bytes", len(s.text))
		}
		return "int " + bigOf(s.text).String()
	case symFloat:
		return fmt.Sprintf("float %v (%x)", math.Float64frombits(binary.BigEndian.Uint64([]byte(s.text))), s.text)
	case symText:
		return "str " + excerpt(s.text)
	case symBytes:
		return "bytes b" + excerpt(s.text)
	case symOldString:
		return "py2 str b" + excerpt(s.text)
	case symGlobal:
		return "global " + s.text + ":" + s.name
	case symExtension:
		return "extension " + s.text
	case symCall, symNew, symNewEx:
		how := map[symbolKind]string{symCall: "called", symNew: "made", symNewEx: "made with keywords"}[s.kind]
		if class := s.class(); class != "" {
			return "object of " + class + " (" + how + ")"
		}
		return "object (" + how + ")"
	}
	return map[symbolKind]string{symByteArray: "bytearray", symList: "list", symTuple: "tuple", symDict: "dict",
		symSet: "set", symFrozenSet: "frozenset", symRef: "persistent ref"}[s.kind]
}

func excerpt(text string) string {
	if len(text) > 60 {
		return fmt.Sprintf("%.60q... (%d bytes)", text, len(text))
	}
	return fmt.Sprintf("%q", text)
}

// bigOf is the integer with the given little-endian two's complement.
func bigOf(text string) *big.Int {
	raw := []byte(text)
	for i, j := 0, len(raw)-1; i < j; i, j = i+1, j-1 {
		raw[i], raw[j] = raw[j], raw[i]
	}
	v := new(big.Int).SetBytes(raw)
	if len(raw) > 0 && raw[0] >= 0x80 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
	}
	return v
}

// shortest drops the bytes of a two's complement that say nothing.
func shortest(text string) string {
	for n := len(text); n > 0; n = len(text) {
		last := text[n-1]
		switch {
		case n == 1 && last == 0:
			return ""
		case n == 1:
			return text
		case last == 0 && text[n-2] < 0x80, last == 0xff && text[n-2] >= 0x80:
			text = text[:n-1]
		default:
			return text
		}
	}
	return text
}

func intSymbol(v int64) *symbol {
	return &symbol{kind: symInt, text: shortest(string(binary.LittleEndian.AppendUint64(nil, uint64(v))))}
}

// hashNames makes one short name of many.
func hashNames(kind symbolKind, text, name string, groups ...[]string) string {
	h := sha256.New()
	put := func(s string) {
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(len(s)))
		h.Write(size[:])
		h.Write([]byte(s))
	}
	h.Write([]byte{byte(kind)})
	put(text)
	put(name)
	for _, group := range groups {
		for _, s := range group {
			put(s)
		}
		h.Write([]byte("end of group"))
	}
	return "#" + string(h.Sum(nil))
}
