package pickle

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// odd tells for each byte why text with it is not Plain.
var odd [256]bool

func init() {
	for c := range odd {
		odd[c] = c < 0x20 || c >= 0x7f || c == '"' || c == '\\'
	}
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// oddWord tells whether one of eight bytes is not Plain. The subtractions borrow
// from byte to byte only above a byte that is found, which is enough for a yes
// or no.
func oddWord(w uint64) bool {
	quote := w ^ '"'*ones
	backslash := w ^ '\\'*ones
	del := w ^ 0x7f*ones
	return (w|(w-0x20*ones)|(quote-ones)|(backslash-ones)|(del-ones))&highs != 0
}

// classify finds out what is in text.
func classify(text []byte) Flags {
	rest := text
	for len(rest) >= 8 {
		if oddWord(binary.LittleEndian.Uint64(rest)) {
			return classifyOdd(text)
		}
		rest = rest[8:]
	}
	for _, c := range rest {
		if odd[c] {
			return classifyOdd(text)
		}
	}
	return Plain | ASCII
}

func classifyOdd(text []byte) Flags {
	if isASCII(text) {
		return ASCII
	}
	if utf8.Valid(text) {
		return 0
	}
	if validWithSurrogates(text) {
		return Surrogates
	}
	return Invalid
}

func isASCII(text []byte) bool {
	for len(text) >= 8 {
		if binary.LittleEndian.Uint64(text)&highs != 0 {
			return false
		}
		text = text[8:]
	}
	for _, c := range text {
		if c >= 0x80 {
			return false
		}
	}
	return true
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
// odd number of backslashes the last one may begin \uXXXX or \UXXXXXXXX.
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
