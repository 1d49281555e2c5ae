package pickle

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// Escapes tells for eight bytes of text, the first of them lowest, whether one
// is a control character, a quote or a backslash: the result is not 0 then, and
// its lowest bit is within the byte of the first of them.
func Escapes(w uint64) uint64 {
	quote := w ^ '"'*ones
	backslash := w ^ '\\'*ones
	return ((w-0x20*ones)&^w | (quote-ones)&^quote | (backslash-ones)&^backslash) & highs
}

// classify finds out what is in text, in one pass over words of eight bytes: on
// Western European text three times as fast as utf8.Valid alone.
func classify(text []byte) Flags {
	escapes, high := uint64(0), false
	i := 0
	for i+8 <= len(text) {
		w := binary.LittleEndian.Uint64(text[i:])
		escapes |= Escapes(w)
		if w&highs == 0 {
			i += 8
			continue
		}
		high = true
		i += bits.TrailingZeros64(w&highs) / 8
		for i < len(text) && text[i] >= utf8.RuneSelf {
			size := runeSize(text[i:])
			if size == 0 {
				return classifyInvalid(text)
			}
			i += size
		}
	}
	for i < len(text) {
		c := text[i]
		if c >= utf8.RuneSelf {
			high = true
			size := runeSize(text[i:])
			if size == 0 {
				return classifyInvalid(text)
			}
			i += size
			continue
		}
		if c < 0x20 || c == '"' || c == '\\' {
			escapes = 1
		}
		i++
	}
	flags := Flags(0)
	if escapes == 0 {
		flags = Plain
	}
	if !high {
		flags |= ASCII
	}
	return flags
}

// classifyPy2 is classify for a str of Python 2.
func classifyPy2(text []byte) Flags {
	if flags := classify(text); flags&ASCII != 0 {
		return flags
	}
	return 0
}

// runeSize is the length of the character beyond ASCII that text begins with, 0
// if it is none.
func runeSize(text []byte) int {
	if len(text) >= 2 && text[0] >= 0xc2 && text[0] < 0xe0 && text[1]&0xc0 == 0x80 {
		return 2
	}
	if len(text) >= 3 && text[0] > 0xe0 && text[0] < 0xf0 && text[0] != 0xed && text[1]&0xc0 == 0x80 && text[2]&0xc0 == 0x80 {
		return 3
	}
	if r, size := utf8.DecodeRune(text); r != utf8.RuneError || size > 1 {
		return size
	}
	return 0
}

func classifyInvalid(text []byte) Flags {
	if validWithSurrogates(text) {
		return Surrogates
	}
	return Invalid
}

// validWithSurrogates tells whether text is what Python's UTF-8 encoder writes
// with the error handler surrogatepass.
func validWithSurrogates(text []byte) bool {
	for len(text) > 0 {
		if r, size := utf8.DecodeRune(text); r != utf8.RuneError || size > 1 {
			text = text[size:]
			continue
		}
		if len(text) < 3 || text[0] != 0xed || text[1]&0xe0 != 0xa0 || text[2]&0xc0 != 0x80 {
			return false
		}
		text = text[3:]
	}
	return true
}

// appendRune appends the UTF-8 of r, three bytes for a surrogate.
func appendRune(dst []byte, r rune) []byte {
	if 0xd800 <= r && r < 0xe000 {
		return append(dst, 0xed, 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
	}
	return utf8.AppendRune(dst, r)
}

// appendRawUnicode decodes the argument of UNICODE: bytes are Latin-1, and of an
// odd number of backslashes the last one may begin an escape, \u with four
// hexadecimal digits or \U with eight.
func appendRawUnicode(dst, line []byte) ([]byte, string) {
	for len(line) > 0 {
		if line[0] != '\\' {
			dst = utf8.AppendRune(dst, rune(line[0]))
			line = line[1:]
			continue
		}
		run := 1
		for run < len(line) && line[run] == '\\' {
			run++
		}
		size := 0
		if run%2 == 1 && run < len(line) {
			switch line[run] {
			case 'u':
				size = 4
			case 'U':
				size = 8
			}
		}
		if size == 0 {
			dst = append(dst, line[:run]...)
			line = line[run:]
			continue
		}
		dst = append(dst, line[:run-1]...)
		line = line[run+1:]
		if len(line) < size {
			return dst, "an escape is cut short"
		}
		r, err := strconv.ParseUint(string(line[:size]), 16, 32)
		if err != nil || r > utf8.MaxRune {
			return dst, "an escape is no character"
		}
		dst = appendRune(dst, rune(r))
		line = line[size:]
	}
	return dst, ""
}

var simpleEscapes = map[byte]byte{
	'\\': '\\', '\'': '\'', '"': '"', 'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
}

// appendQuoted decodes the argument of STRING: a Python 2 string literal.
// Blanks after the closing quote are allowed, as by every Python unpickler.
func appendQuoted(dst, line []byte) ([]byte, string) {
	line = bytes.TrimRight(line, " \t\r\n\v\f\x00")
	if len(line) < 2 || line[0] != '\'' && line[0] != '"' || line[len(line)-1] != line[0] {
		return dst, "the argument is not quoted"
	}
	line = line[1 : len(line)-1]
	for len(line) > 0 {
		c := line[0]
		if c != '\\' {
			dst = append(dst, c)
			line = line[1:]
			continue
		}
		if len(line) == 1 {
			return dst, "a backslash stands at the end"
		}
		c = line[1]
		line = line[2:]
		switch plain, ok := simpleEscapes[c]; {
		case ok:
			dst = append(dst, plain)
		case c == 'x':
			if len(line) < 2 {
				return dst, "an escape is cut short"
			}
			v, err := strconv.ParseUint(string(line[:2]), 16, 8)
			if err != nil {
				return dst, "an escape has no hexadecimal digits"
			}
			dst = append(dst, byte(v))
			line = line[2:]
		case '0' <= c && c <= '7':
			v := c - '0'
			for i := 0; i < 2 && len(line) > 0 && '0' <= line[0] && line[0] <= '7'; i++ {
				v = v<<3 | (line[0] - '0')
				line = line[1:]
			}
			dst = append(dst, v)
		case c == '\n':
			// The literal goes on in the next line.
		default:
			dst = append(dst, '\\', c)
		}
	}
	return dst, ""
}

// parseFloat reads what Python's float() does.
func parseFloat(text string) (float64, bool) {
	text = strings.TrimSpace(text)
	if strings.ContainsAny(text, "xXpP_") {
		return 0, false
	}
	switch strings.ToLower(text) {
	case "nan", "+nan": // Go's NaN has other bits
		return math.Float64frombits(0x7ff8 << 48), true
	case "-nan":
		return math.Float64frombits(0xfff8 << 48), true
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil && !math.IsInf(v, 0) {
		return 0, false
	}
	return v, true
}

// decimal returns the canonical text of a decimal integer, "" if it is none. A
// leading zero would mean octal to one implementation of Python and an error to
// the other.
func decimal(text []byte) []byte {
	digits := text
	if len(digits) > 0 && (digits[0] == '+' || digits[0] == '-') {
		digits = digits[1:]
	}
	if len(digits) == 0 {
		return nil
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return nil
		}
	}
	if digits[0] == '0' {
		if len(digits) > 1 {
			return nil
		}
		return digits
	}
	if text[0] == '+' {
		return digits
	}
	return text
}

// Decimal returns the decimal text of a Long or LongText node.
func (m *Machine) Decimal(n *Node) string {
	data := m.Data(n)
	if n.Kind == LongText {
		return string(data)
	}
	return littleEndian(data).String()
}

// Binary returns the shortest little-endian two's complement of a LongText node.
func (m *Machine) Binary(n *Node) []byte {
	v, _ := new(big.Int).SetString(string(m.Data(n)), 10)
	negative := v.Sign() < 0
	if negative {
		v.Not(v) // -x-1: its bits are those of x turned around
	}
	raw := v.FillBytes(make([]byte, v.BitLen()/8+1))
	slices.Reverse(raw)
	for i := range raw {
		if negative {
			raw[i] = ^raw[i]
		}
	}
	return raw
}

// littleEndian reads a two's complement of any length.
func littleEndian(data []byte) *big.Int {
	raw := make([]byte, len(data))
	for i, c := range data {
		raw[len(data)-1-i] = c
	}
	v := new(big.Int).SetBytes(raw)
	if len(raw) > 0 && raw[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
	}
	return v
}

// trimLong drops the bytes of a two's complement that only repeat its sign.
func trimLong(data []byte) []byte {
	for n := len(data); n > 1; n-- {
		top, sign := data[n-1], data[n-2]&0x80
		if !(top == 0 && sign == 0 || top == 0xff && sign != 0) {
			return data[:n]
		}
	}
	return data[:min(len(data), 1)]
}

// smallLong reads a trimmed two's complement of at most 8 bytes.
func smallLong(data []byte) int64 {
	if len(data) == 0 {
		return 0
	}
	v := int64(int8(data[len(data)-1]))
	for i := len(data) - 2; i >= 0; i-- {
		v = v<<8 | int64(data[i])
	}
	return v
}
