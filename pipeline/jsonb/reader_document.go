package jsonb

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting bounds the nesting of JSON text that is parsed at all. The codec
// counts at most 1000 levels, and no marker spends more than four JSON levels
// on one of them.
const maxNesting = 10000

// maxLoadNesting is the nesting of a jsonb value beyond which no load succeeds:
// the storage walks it with one Python frame a level, and Python stops at 1000
// frames, some of which its caller has taken already.
const maxLoadNesting = 990

// maxIntDigits is how many digits Python's json takes in an integer.
const maxIntDigits = 4300

// jsonKind tells the values of a JSON text apart.
type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonFalse
	jsonTrue
	jsonInt   // neither point nor exponent
	jsonFloat // anything else
	jsonString
	jsonArray
	jsonObject
)

// jsonNode is one value of a document. The nodes of a text stand in one slice
// in reading order, so that the first child of an array stands behind it and
// the next child span nodes further. The children of an object are key, value,
// key, value. 16 bytes without a pointer: a document of a million values costs
// one allocation, none when the document is used again.
type jsonNode struct {
	kind     jsonKind
	owned    bool   // the text was unescaped into document.text
	resolved bool   // a string that {"@ns": ...} stood for
	off      uint32 // where the text of a string or number begins
	size     uint32 // bytes of text; elements of an array; members of an object
	span     uint32 // nodes that the value takes, itself included
}

// document is a parsed JSON text.
type document struct {
	source []byte
	text   []byte // what strings with escapes say
	nodes  []jsonNode

	// resolve replaces every object {"@ns": text} by the string it stands for,
	// as the storage does before the codec sees the state.
	resolve bool
	deepest int // nesting that is refused

	pos    int
	lookup map[string]uint32 // members of one object, for dedupe
}

// parse reads one JSON text. It takes what Python's json takes, apart from NaN,
// Infinity and lone surrogates, which a jsonb cannot hold. Where a key comes
// twice, which does not happen in jsonb either, both values must be good.
func (d *document) parse(source []byte) error {
	d.source, d.text, d.nodes, d.pos = source, d.text[:0], d.nodes[:0], 0
	if int64(len(source)) > 1<<32-1 {
		return fmt.Errorf("JSON of %d bytes: more than 4 GiB", len(source))
	}
	if !utf8.Valid(source) {
		return errors.New("JSON is not valid UTF-8")
	}
	d.skipSpace()
	if err := d.value(0); err != nil {
		return fmt.Errorf("JSON at byte %d: %w", d.pos, err)
	}
	d.skipSpace()
	if d.pos != len(source) {
		return fmt.Errorf("JSON at byte %d: something follows the value", d.pos)
	}
	return nil
}

// bytes is the text of a string or number.
func (d *document) bytes(n *jsonNode) []byte {
	if n.owned {
		return d.text[n.off : n.off+n.size]
	}
	return d.source[n.off : n.off+n.size]
}

func (d *document) skipSpace() {
	for d.pos < len(d.source) {
		switch d.source[d.pos] {
		case ' ', '\n', '\t', '\r':
			d.pos++
		default:
			return
		}
	}
}

// peek is the next byte, 0 at the end.
func (d *document) peek() byte {
	if d.pos < len(d.source) {
		return d.source[d.pos]
	}
	return 0
}

func (d *document) value(depth int) error {
	switch c := d.peek(); c {
	case '"':
		return d.string()
	case '{', '[':
		if depth >= d.deepest {
			return fmt.Errorf("more than %d levels of nesting", d.deepest)
		}
		if c == '{' {
			return d.object(depth)
		}
		return d.array(depth)
	case 'n':
		return d.word("null", jsonNull)
	case 't':
		return d.word("true", jsonTrue)
	case 'f':
		return d.word("false", jsonFalse)
	case 0:
		return errors.New("unexpected end")
	default:
		return d.number()
	}
}

func (d *document) word(word string, kind jsonKind) error {
	if rest := d.source[d.pos:]; len(rest) < len(word) || string(rest[:len(word)]) != word {
		return errors.New("unknown word")
	}
	d.pos += len(word)
	d.nodes = append(d.nodes, jsonNode{kind: kind, span: 1})
	return nil
}

// digits counts the digits that follow and moves behind them.
func (d *document) digits() int {
	begin := d.pos
	for d.pos < len(d.source) && '0' <= d.source[d.pos] && d.source[d.pos] <= '9' {
		d.pos++
	}
	return d.pos - begin
}

func (d *document) number() error {
	begin, kind := d.pos, jsonInt
	if d.peek() == '-' {
		d.pos++
	}
	leading := d.peek()
	whole := d.digits()
	if whole == 0 || leading == '0' && whole > 1 {
		return errors.New("neither a value nor a number")
	}
	if d.peek() == '.' {
		kind = jsonFloat
		d.pos++
		if d.digits() == 0 {
			return errors.New("a number ends with its point")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		kind = jsonFloat
		d.pos++
		if c := d.peek(); c == '+' || c == '-' {
			d.pos++
		}
		if d.digits() == 0 {
			return errors.New("a number ends with its exponent sign")
		}
	}
	if d.resolve && kind == jsonInt && whole > maxIntDigits {
		return fmt.Errorf("an integer of %d digits: Python reads at most %d", whole, maxIntDigits)
	}
	d.nodes = append(d.nodes, jsonNode{kind: kind, off: uint32(begin), size: uint32(d.pos - begin), span: 1})
	return nil
}

func (d *document) string() error {
	d.pos++
	begin := d.pos
	for i, c := range d.source[begin:] {
		switch {
		case c == '"':
			d.nodes = append(d.nodes, jsonNode{kind: jsonString, off: uint32(begin), size: uint32(i), span: 1})
			d.pos = begin + i + 1
			return nil
		case c == '\\':
			d.pos = begin + i
			return d.escaped(begin)
		case c < ' ':
			d.pos = begin + i
			return errors.New("a control character in a string")
		}
	}
	return errors.New("a string has no end")
}

// escaped reads a string whose first escape stands at d.pos.
func (d *document) escaped(begin int) error {
	out := len(d.text)
	for {
		d.text = append(d.text, d.source[begin:d.pos]...)
		r, err := d.escape()
		if err != nil {
			return err
		}
		d.text = utf8.AppendRune(d.text, r)
		begin = d.pos
		for d.pos < len(d.source) && d.source[d.pos] != '"' && d.source[d.pos] != '\\' {
			if d.source[d.pos] < ' ' {
				return errors.New("a control character in a string")
			}
			d.pos++
		}
		switch d.peek() {
		case '"':
			d.text = append(d.text, d.source[begin:d.pos]...)
			d.pos++
			d.nodes = append(d.nodes, jsonNode{kind: jsonString, owned: true,
				off: uint32(out), size: uint32(len(d.text) - out), span: 1})
			return nil
		case 0:
			return errors.New("a string has no end")
		}
	}
}

// escape reads one escape, a pair of surrogates included.
func (d *document) escape() (rune, error) {
	d.pos++
	c := d.peek()
	d.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		r, ok := d.hex4()
		if ok && utf16.IsSurrogate(r) {
			var low rune
			if ok = bytes.HasPrefix(d.source[d.pos:], []byte(`\u`)); ok {
				d.pos += 2
				low, ok = d.hex4()
			}
			r = utf16.DecodeRune(r, low)
			ok = ok && r != utf8.RuneError
		}
		if !ok {
			return 0, errors.New(`a \u escape without four digits or a lone surrogate`)
		}
		return r, nil
	}
	return 0, errors.New("unknown escape in a string")
}

func (d *document) hex4() (rune, bool) {
	if len(d.source)-d.pos < 4 {
		return 0, false
	}
	var r rune
	for _, c := range d.source[d.pos : d.pos+4] {
		digit, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(digit)
	}
	d.pos += 4
	return r, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func (d *document) array(depth int) error {
	at := len(d.nodes)
	d.nodes = append(d.nodes, jsonNode{kind: jsonArray})
	var size uint32
	d.pos++
	d.skipSpace()
	if d.peek() == ']' {
		d.pos++
	} else {
		for more := true; more; size++ {
			d.skipSpace()
			if err := d.value(depth + 1); err != nil {
				return err
			}
			var err error
			if more, err = d.comma(']'); err != nil {
				return err
			}
		}
	}
	d.nodes[at].size, d.nodes[at].span = size, uint32(len(d.nodes)-at)
	return nil
}

// comma tells whether another element follows, or moves behind the end.
func (d *document) comma(end byte) (bool, error) {
	d.skipSpace()
	switch c := d.peek(); c {
	case ',', end:
		d.pos++
		return c == ',', nil
	}
	return false, fmt.Errorf("neither a comma nor %q", end)
}

func (d *document) object(depth int) error {
	at := len(d.nodes)
	d.nodes = append(d.nodes, jsonNode{kind: jsonObject})
	var size uint32
	// jsonb prints members by length and bytes of the key: as long as the keys
	// come that way, none can come twice.
	ascending, last := true, jsonNode{}
	d.pos++
	d.skipSpace()
	if d.peek() == '}' {
		d.pos++
	} else {
		for more := true; more; size++ {
			d.skipSpace()
			if d.peek() != '"' {
				return errors.New("a member without a key")
			}
			key := len(d.nodes)
			if err := d.string(); err != nil {
				return err
			}
			ascending = ascending && (size == 0 || d.before(&last, &d.nodes[key]))
			last = d.nodes[key]
			if d.skipSpace(); d.peek() != ':' {
				return errors.New("a key without a colon")
			}
			d.pos++
			d.skipSpace()
			if err := d.value(depth + 1); err != nil {
				return err
			}
			var err error
			if more, err = d.comma('}'); err != nil {
				return err
			}
		}
	}
	if !ascending {
		size = d.dedupe(at, size)
	}
	d.nodes[at].size, d.nodes[at].span = size, uint32(len(d.nodes)-at)
	if d.resolve && size == 1 && string(d.bytes(&d.nodes[at+1])) == "@ns" {
		return d.resolveString(at)
	}
	return nil
}

// before tells whether jsonb prints key a before key b.
func (d *document) before(a, b *jsonNode) bool {
	if a.size != b.size {
		return a.size < b.size
	}
	return bytes.Compare(d.bytes(a), d.bytes(b)) < 0
}

// dedupe removes members whose key comes again, as a Python dict does: the place
// is that of the first, the value that of the last. It returns how many remain.
func (d *document) dedupe(at int, size uint32) uint32 {
	if d.lookup == nil || len(d.lookup) > 1<<12 { // never keep a huge one
		d.lookup = make(map[string]uint32)
	}
	clear(d.lookup)
	again := false
	for key := at + 1; key < len(d.nodes); key += 1 + int(d.nodes[key+1].span) {
		text := d.bytes(&d.nodes[key])
		if _, found := d.lookup[string(text)]; found {
			again = true
		}
		d.lookup[string(text)] = uint32(key) // the last one
	}
	if !again {
		return size
	}
	kept := make([]jsonNode, 0, len(d.nodes)-at)
	size = 0
	for key := at + 1; key < len(d.nodes); key += 1 + int(d.nodes[key+1].span) {
		text := string(d.bytes(&d.nodes[key]))
		from, found := d.lookup[text]
		if !found {
			continue
		}
		delete(d.lookup, text)
		value := int(from) + 1
		kept = append(kept, d.nodes[key])
		kept = append(kept, d.nodes[value:value+int(d.nodes[value].span)]...)
		size++
	}
	d.nodes = append(d.nodes[:at+1], kept...)
	return size
}

// resolveString puts the string that {"@ns": text} stands for in its place.
func (d *document) resolveString(at int) error {
	value := &d.nodes[at+2]
	if value.kind != jsonString || value.resolved {
		return errors.New("@ns without a string")
	}
	out := len(d.text)
	var err error
	if d.text, err = appendLenientBase64(d.text, d.bytes(value)); err != nil {
		return fmt.Errorf("@ns: %w", err)
	}
	if !utf8.Valid(d.text[out:]) {
		return errors.New("@ns does not decode to UTF-8")
	}
	d.nodes[at] = jsonNode{kind: jsonString, owned: true, resolved: true,
		off: uint32(out), size: uint32(len(d.text) - out), span: 1}
	d.nodes = d.nodes[:at+1]
	return nil
}

// appendLenientBase64 decodes what Python's base64.b64decode takes: characters
// outside the alphabet are skipped, and what follows the padding is ignored.
func appendLenientBase64(dst, text []byte) ([]byte, error) {
	var bits uint32
	quad, pads := 0, 0
	for _, c := range text {
		if c >= 0x80 { // refused before anything is decoded
			return dst, errors.New("base64 with a character that is not ASCII")
		}
	}
	for _, c := range text {
		if c == '=' {
			if quad >= 2 {
				if pads++; quad+pads >= 4 {
					return dst, nil
				}
			}
			continue
		}
		value, ok := base64Digit(c)
		if !ok {
			continue
		}
		pads = 0
		bits = bits<<6 | uint32(value)
		switch quad = (quad + 1) % 4; quad {
		case 2:
			dst = append(dst, byte(bits>>4))
		case 3:
			dst = append(dst, byte(bits>>2))
		case 0:
			dst = append(dst, byte(bits))
		}
	}
	if quad != 0 {
		return dst, errors.New("base64 is not padded")
	}
	return dst, nil
}

func base64Digit(c byte) (byte, bool) {
	switch {
	case 'A' <= c && c <= 'Z':
		return c - 'A', true
	case 'a' <= c && c <= 'z':
		return c - 'a' + 26, true
	case '0' <= c && c <= '9':
		return c - '0' + 52, true
	case c == '+':
		return 62, true
	case c == '/':
		return 63, true
	}
	return 0, false
}

// strictBase64 takes the standard alphabet with all its padding and with zero
// bits behind the last byte.
var strictBase64 = base64.StdEncoding.Strict()

// appendBase64 decodes as the codec does. Unlike encoding/base64 it takes no
// line breaks.
func appendBase64(dst, text []byte) ([]byte, error) {
	if bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0 {
		return dst, errors.New("base64 with a line break")
	}
	dst, err := strictBase64.AppendDecode(dst, text)
	if err != nil {
		return dst, fmt.Errorf("base64: %w", err)
	}
	return dst, nil
}
