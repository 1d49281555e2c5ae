package dest

import "unicode/utf8"

const hexDigits = "0123456789abcdef"

// AppendEscaped appends text as PostgreSQL takes it: bytes that are not UTF-8
// become \xHH, and so does NUL. A backslash that is there already stays as it
// is: such a text is reported with its original bytes, so that nobody has to
// guess. escaped tells whether something was replaced.
func AppendEscaped(dst, text []byte) (_ []byte, escaped bool) {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == 0 || r == utf8.RuneError && size == 1 {
			dst = append(dst, '\\', 'x', hexDigits[text[0]>>4], hexDigits[text[0]&15])
			escaped = true
		} else {
			dst = append(dst, text[:size]...)
		}
		text = text[size:]
	}
	return dst, escaped
}
