package jsonb

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/bits"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// escaped tells for each byte how JSON wants it: 0 as it is, 'u' by its number,
// otherwise a backslash and the letter.
var escaped = [256]byte{'"': '"', '\\': '\\', '\n': 'n', '\r': 'r', '\t': 't'}

func init() {
	for c := range 0x20 {
		if escaped[c] == 0 {
			escaped[c] = 'u'
		}
	}
}

const hexDigits = "0123456789abcdef"

// isText tells whether Python 3 would make a str of a node that can be written
// as a JSON string: text without surrogates, or a Python 2 str that is ASCII.
func isText(n *pickle.Node) bool {
	switch n.Kind {
	case pickle.Str:
		return n.Flags&(pickle.Surrogates|pickle.Invalid) == 0
	case pickle.Py2Str:
		return n.Flags&pickle.ASCII != 0
	}
	return false
}

// isTextOf tells whether a node is text with these bytes.
func (e *Encoder) isTextOf(n *pickle.Node, want string) bool {
	return isText(n) && string(e.machine.Data(n)) == want
}

// text writes a Str of any contents.
func (e *Encoder) text(b []byte, n *pickle.Node, depth int) []byte {
	if n.Flags&pickle.Surrogates != 0 {
		return e.surrogates(b, n, depth)
	}
	from := len(b)
	b = append(b, '"')
	if b, ok := e.appendEscaped(b, n); ok {
		return append(b, '"')
	}
	e.checkDepth(n, depth+1)
	return e.nulText(b[:from], n)
}

// plainText writes text where only a string may stand. The reader resolves a
// text with NUL before it looks for what is around it.
func (e *Encoder) plainText(b []byte, n *pickle.Node) []byte {
	if n.Flags&pickle.Plain != 0 {
		b = append(b, '"')
		b = append(b, e.machine.Data(n)...)
		return append(b, '"')
	}
	from := len(b)
	b = append(b, '"')
	if b, ok := e.appendEscaped(b, n); ok {
		return append(b, '"')
	}
	e.row.Forms[NulText]++
	return e.nulText(b[:from], n)
}

// nulText writes a text with NUL, which PostgreSQL does not take in a string.
func (e *Encoder) nulText(b []byte, n *pickle.Node) []byte {
	b = append(b, `{"@ns":"`...)
	b = base64.StdEncoding.AppendEncode(b, e.machine.Data(n))
	return append(b, `"}`...)
}

// appendEscaped appends text without the quotes around it. It returns false if
// there is a NUL in it.
func (e *Encoder) appendEscaped(b []byte, n *pickle.Node) ([]byte, bool) {
	if n.Flags&pickle.Invalid != 0 {
		e.reject(n, "a text is not UTF-8")
	}
	text := e.machine.Data(n)
	from, i := 0, 0
	for i < len(text) {
		if i+8 <= len(text) {
			found := pickle.Escapes(binary.LittleEndian.Uint64(text[i:]))
			if found == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(found) / 8
		}
		c := text[i]
		letter := escaped[c]
		if letter == 0 {
			i++
			continue
		}
		if c == 0 {
			return b, false
		}
		b = append(b, text[from:i]...)
		if letter == 'u' {
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, '\\', letter)
		}
		i++
		from = i
	}
	return append(b, text[from:]...), true
}

// surrogates writes text that is not UTF-8 without them.
func (e *Encoder) surrogates(b []byte, n *pickle.Node, depth int) []byte {
	e.checkDepth(n, depth+4)
	e.row.Forms[SurrogateText]++
	return e.decodeCall(b, n)
}

// decodeCall writes text as a call that decodes its bytes.
func (e *Encoder) decodeCall(b []byte, n *pickle.Node) []byte {
	if n.Flags&pickle.Invalid != 0 {
		e.reject(n, "a text is not UTF-8")
	}
	b = append(b, `{"@reduce":{"callable":{"@cls":["_codecs","decode"]},"args":{"@t":[{"@b":"`...)
	b = base64.StdEncoding.AppendEncode(b, e.machine.Data(n))
	return append(b, `"},"utf-8","surrogatepass"]}}}`...)
}

// python2 writes a str of Python 2, which may have been meant as text or as
// bytes. Python 3 reads it as text if it is ASCII and fails if it is not; bytes
// keep it.
func (e *Encoder) python2(b []byte, n *pickle.Node, depth int) []byte {
	if n.Flags&pickle.ASCII == 0 {
		e.row.Forms[Python2Bytes]++
		return e.bytes(b, n, depth)
	}
	e.row.Forms[Python2Text]++
	return e.text(b, n, depth)
}

// key writes a text as the key of an object. A NUL cannot stand there, and what
// looks like the escape for one has to be escaped too.
func (e *Encoder) key(b []byte, n *pickle.Node) []byte {
	if n.Kind == pickle.Py2Str {
		e.row.Forms[Python2Text]++
	}
	text := e.machine.Data(n)
	from := len(b)
	b = append(b, '"')
	if !bytes.HasPrefix(text, []byte("@ns:")) {
		if b, ok := e.appendEscaped(b, n); ok {
			return append(b, '"')
		}
	}
	e.row.NewCodec = true
	b = append(b[:from], `"@ns:`...)
	b = base64.StdEncoding.AppendEncode(b, text)
	return append(b, '"')
}
