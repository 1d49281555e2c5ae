package jsonb

import (
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"unicode/utf8"
)

// maxNestedPickles bounds pickles that are loaded by pickles.
const maxNestedPickles = 8

// call makes the result of callable(*args): the value itself where it is known
// without importing anything, otherwise a symbol for the call.
func (e *executor) call(callable, args *symbol) (*symbol, error) {
	asIs := &symbol{kind: symCall, parts: []*symbol{callable, args}}
	if args.kind != symTuple || args.more != nil {
		return asIs, nil
	}
	if buffers, ok := pickleLoader(callable); ok && len(args.parts) == 1 && args.parts[0].isBytes() {
		return e.load(args.parts[0].text, buffers)
	}
	if callable.kind != symGlobal || callable.more != nil {
		return asIs, nil
	}
	module := callable.text
	if now, moved := map[string]string{"__builtin__": "builtins", "copy_reg": "copyreg"}[module]; moved {
		module = now
	}
	for _, family := range []func(string, []*symbol) (*symbol, error){
		e.callBuiltin, e.callCodec, e.callCollection, e.callConstructor,
	} {
		if s, err := family(module+"."+callable.name, args.parts); s != nil || err != nil {
			return s, err
		}
	}
	if module == "datetime" && len(args.parts) > 0 && args.parts[0].isOldString() {
		// The payload of a date is bytes in Python 3.
		payload := &symbol{kind: symBytes, text: args.parts[0].text}
		asIs.parts[1] = args.withPart(0, payload)
	}
	return asIs, nil
}

// callBuiltin evaluates the types of the language. Like the functions beside
// it, it returns nil for a call that it does not know.
func (e *executor) callBuiltin(function string, args []*symbol) (*symbol, error) {
	kind, known := map[string]symbolKind{
		"builtins.set": symSet, "builtins.frozenset": symFrozenSet,
		"builtins.list": symList, "builtins.tuple": symTuple,
	}[function]
	switch {
	case known && len(args) == 0:
		return &symbol{kind: kind}, nil
	case known && len(args) == 1 && args[0].iterable():
		return &symbol{kind: kind, parts: args[0].copyParts()}, e.charge(8 * len(args[0].parts))
	case function == "builtins.dict" && len(args) == 0:
		return &symbol{kind: symDict}, nil
	case function == "builtins.dict" && len(args) == 1:
		pairs, ok := args[0].asPairs()
		if !ok {
			return nil, nil
		}
		return &symbol{kind: symDict, pairs: pairs}, e.charge(16 * len(pairs))
	case function == "builtins.bytes" && len(args) == 0:
		return &symbol{kind: symBytes}, nil
	case function == "builtins.bytearray" && len(args) == 0:
		return &symbol{kind: symByteArray}, nil
	case function == "builtins.bytearray" && len(args) == 1 && args[0].isBytes():
		return &symbol{kind: symByteArray, text: args[0].text}, nil
	case function == "builtins.bytearray" && len(args) == 2 && args[0].isText():
		encoded, err := e.encode(args)
		if encoded == nil || err != nil {
			return nil, err
		}
		return &symbol{kind: symByteArray, text: encoded.text}, nil
	case function == "builtins.float" && len(args) == 1 && args[0].isText():
		if v, ok := pythonFloat(args[0].text); ok {
			return floatSymbol(v), nil
		}
	case function == "types.NoneType" && len(args) == 0:
		return &symbol{kind: symNone}, nil
	}
	return nil, nil
}

// iterable tells whether the elements of a symbol are known and in an order that
// does not matter or is kept.
func (s *symbol) iterable() bool {
	return s.more == nil && len(s.pairs) == 0 && (s.kind == symList || s.kind == symTuple || s.kind == symSet || s.kind == symFrozenSet)
}

func (s *symbol) copyParts() []*symbol { return append([]*symbol(nil), s.parts...) }

// asPairs reads what dict() takes.
func (s *symbol) asPairs() ([]symbolPair, bool) {
	if s.kind == symDict && s.more == nil {
		return append([]symbolPair(nil), s.pairs...), true
	}
	if !s.iterable() {
		return nil, false
	}
	pairs := make([]symbolPair, 0, len(s.parts))
	for _, p := range s.parts {
		if !p.iterable() || len(p.parts) != 2 {
			return nil, false
		}
		pairs = append(pairs, symbolPair{p.parts[0], p.parts[1]})
	}
	return pairs, true
}

// callCodec evaluates the ways between text, bytes and floats, and time spans.
func (e *executor) callCodec(function string, args []*symbol) (*symbol, error) {
	switch {
	case function == "_codecs.encode" && len(args) >= 2 && args[0].isText():
		return e.encode(args)
	case function == "_codecs.decode" && len(args) >= 2 && (args[0].isBytes() || args[0].isOldString()):
		return e.decode(args)
	case function == "zlib.decompress" && len(args) == 1 && args[0].isBytes():
		return e.inflate(args[0].text)
	case function == "_struct.unpack" && len(args) == 2 && args[0].text == "<d" && len(args[1].text) == 8:
		// The way to a NaN with a payload, together with the next one.
		var reversed [8]byte
		for i := range reversed {
			reversed[i] = args[1].text[7-i]
		}
		return &symbol{kind: symTuple, parts: []*symbol{{kind: symFloat, text: string(reversed[:])}}}, nil
	case function == "_operator.getitem" && len(args) == 2 && args[0].kind == symTuple && args[0].more == nil &&
		len(args[0].parts) == 1 && args[1].kind == symInt && args[1].text == "":
		return args[0].parts[0], nil
	case function == "datetime.timedelta" && len(args) >= 1 && len(args) <= 3:
		return timeSpan(args), nil
	}
	return nil, nil
}

// encode is str.encode for text that Python's pickler writes so.
func (e *executor) encode(args []*symbol) (*symbol, error) {
	text := args[0].text
	switch codecName(args[1]) {
	case "utf8":
		if len(args) == 2 && !utf8.ValidString(text) {
			return nil, nil
		}
		return &symbol{kind: symBytes, text: text}, nil
	case "latin1":
		var raw []byte
		for _, r := range text {
			if r > 0xff {
				return nil, nil
			}
			raw = append(raw, byte(r))
		}
		return &symbol{kind: symBytes, text: string(raw)}, e.charge(len(raw))
	}
	return nil, nil
}

func (e *executor) decode(args []*symbol) (*symbol, error) {
	raw := args[0].text
	switch codecName(args[1]) {
	case "utf8":
		surrogates := len(args) == 3 && args[2].text == "surrogatepass"
		if !utf8.ValidString(raw) && (!surrogates || !validWithSurrogates(raw)) {
			return nil, nil
		}
		return &symbol{kind: symText, text: raw}, nil
	case "latin1":
		var text []byte
		for i := range len(raw) {
			text = utf8.AppendRune(text, rune(raw[i]))
		}
		return &symbol{kind: symText, text: string(text)}, e.charge(len(text))
	}
	return nil, nil
}

func codecName(s *symbol) string {
	if !s.isText() {
		return ""
	}
	name := strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s.text))
	if name == "iso88591" {
		return "latin1"
	}
	return name
}

// validWithSurrogates tells whether text is UTF-8 apart from surrogates.
func validWithSurrogates(text string) bool {
	for i := 0; i < len(text); {
		if r, size := utf8.DecodeRuneInString(text[i:]); r != utf8.RuneError || size > 1 {
			i += size
			continue
		}
		if len(text)-i < 3 || text[i] != 0xed || text[i+1]&0xe0 != 0xa0 || text[i+2]&0xc0 != 0x80 {
			return false
		}
		i += 3
	}
	return true
}

func (e *executor) inflate(packed string) (*symbol, error) {
	r, err := zlib.NewReader(strings.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("zlib.decompress: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(r, max(*e.room, 0)/4+1)) // it may be held three times
	if err != nil {
		return nil, fmt.Errorf("zlib.decompress: %w", err)
	}
	return &symbol{kind: symBytes, text: string(raw)}, e.charge(4 * len(raw))
}

// timeSpan is datetime.timedelta(days, seconds, microseconds) with one argument,
// all of it in microseconds.
func timeSpan(args []*symbol) *symbol {
	total := new(big.Int)
	for i, unit := range []int64{86_400_000_000, 1_000_000, 1}[:len(args)] {
		if args[i].kind != symInt || len(args[i].text) > 64 {
			return nil
		}
		total.Add(total, new(big.Int).Mul(bigOf(args[i].text), big.NewInt(unit)))
	}
	span := &symbol{kind: symInt, text: shortest(string(littleEndian(total)))}
	return &symbol{kind: symCall, parts: []*symbol{
		{kind: symGlobal, text: "datetime", name: "timedelta"},
		{kind: symTuple, parts: []*symbol{span}},
	}}
}

// callCollection evaluates containers that take their contents as an argument,
// into the form in which Python pickles them: made empty, then filled.
func (e *executor) callCollection(function string, args []*symbol) (*symbol, error) {
	made := &symbol{kind: symCall, parts: []*symbol{nil, {kind: symTuple}}}
	name := strings.TrimPrefix(function, "collections.")
	made.parts[0] = &symbol{kind: symGlobal, text: "collections", name: name}
	rest := args
	switch {
	case function == "collections.OrderedDict" && len(args) == 1:
		rest = args[:0]
	case function == "collections.defaultdict" && len(args) == 2:
		rest = args[:1]
	case function == "collections.deque" && (len(args) == 1 || len(args) == 2) && args[0].iterable():
		if len(args) == 2 && args[1].kind != symNone {
			made.parts[1].parts = []*symbol{{kind: symTuple}, args[1]}
		}
		return made, e.appendItems(made, args[0].copyParts())
	default:
		return nil, nil
	}
	pairs, ok := args[len(args)-1].asPairs()
	if !ok {
		return nil, nil
	}
	made.parts[1].parts, made.pairs = rest, pairs
	return made, e.charge(16 * len(pairs))
}

// callConstructor evaluates the functions that stand for opcodes.
func (e *executor) callConstructor(function string, args []*symbol) (*symbol, error) {
	switch {
	case function == "copyreg.__newobj__" && len(args) > 0:
		return &symbol{kind: symNew, parts: []*symbol{args[0], {kind: symTuple, parts: args[1:]}}}, nil
	case function == "copyreg.__newobj_ex__" && len(args) == 3:
		return newEx(args), nil
	case function == "copy._reconstruct" && len(args) >= 4 && len(args) <= 7 &&
		args[0].kind == symNone && args[1].kind == symNone && args[3].kind == symTuple:
		return e.reconstruct(args[2:])
	case (function == "pickle.loads" || function == "_pickle.loads") && len(args) == 1 && args[0].isBytes():
		return e.load(args[0].text, nil)
	}
	return nil, nil
}

// reconstruct is copy._reconstruct(None, None, ...): a call, a state, elements
// and pairs.
func (e *executor) reconstruct(args []*symbol) (*symbol, error) {
	made, err := e.call(args[0], args[1])
	if err != nil {
		return nil, err
	}
	if len(args) > 2 && args[2].kind != symNone {
		made.extend().states = append(made.extend().states, args[2])
	}
	if len(args) > 3 && args[3].kind != symNone {
		if !args[3].iterable() {
			return nil, errors.New("copy._reconstruct with elements that are no list")
		}
		if err := e.appendItems(made, args[3].parts); err != nil {
			return nil, err
		}
	}
	if len(args) > 4 && args[4].kind != symNone {
		pairs, ok := args[4].asPairs()
		if !ok || args[4].kind == symDict {
			return nil, errors.New("copy._reconstruct with pairs that are no list")
		}
		made.pairs = append(made.pairs, pairs...)
	}
	return made, e.charge(symbolCost)
}

// pickleLoader tells whether a callable is partial(pickle.loads, buffers=[...]),
// and which buffers it has.
func pickleLoader(callable *symbol) ([]*symbol, bool) {
	if callable.kind != symNewEx || callable.class() != "functools.partial" || callable.more != nil {
		return nil, false
	}
	args, keywords := callable.parts[1], callable.parts[2]
	if len(args.parts) != 1 || args.parts[0].kind != symGlobal ||
		args.parts[0].text != "pickle" || args.parts[0].name != "loads" {
		return nil, false
	}
	if len(keywords.pairs) != 1 || !keywords.pairs[0].key.isText() || keywords.pairs[0].key.text != "buffers" ||
		!keywords.pairs[0].value.iterable() {
		return nil, false
	}
	return keywords.pairs[0].value.parts, true
}

// load executes a pickle that is a value of this one.
func (e *executor) load(data string, buffers []*symbol) (*symbol, error) {
	if e.nested == maxNestedPickles {
		return nil, fmt.Errorf("more than %d pickles within pickles", maxNestedPickles)
	}
	inner := executor{data: data, memo: make(map[uint64]*symbol), buffers: buffers, nested: e.nested + 1, room: e.room}
	s, err := inner.run()
	if err != nil {
		return nil, fmt.Errorf("pickle.loads at byte %d: %w", inner.pos, err)
	}
	return s, nil
}
