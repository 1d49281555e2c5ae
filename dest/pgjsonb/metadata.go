package pgjsonb

import (
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

const hexDigits = "0123456789abcdef"

// appendEscaped appends text as PostgreSQL takes it: bytes that are not UTF-8
// become \xHH, and so does NUL. A backslash that is there already stays as it
// is: such a text is reported with its original bytes, so that nobody has to
// guess. escaped tells whether something was replaced.
func appendEscaped(dst, text []byte) (_ []byte, escaped bool) {
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

// appendTransaction appends a row of transaction_log and counts what had to be
// escaped. scratch is a buffer to be reused.
func appendTransaction(b []byte, t *source.Transaction, scratch *[]byte, x *extensions, result *dest.Result) []byte {
	b = appendInt16(b, 4)
	b = appendBigint(b, int64(t.TID))
	user, userEscaped := appendEscaped((*scratch)[:0], t.User)
	b = appendText(b, user)
	description, descriptionEscaped := appendEscaped(user[:0], t.Description)
	b = appendText(b, description)
	b = appendText(b, x.convert(t.Extension))
	*scratch = description
	if userEscaped || descriptionEscaped {
		result.Metadata++
		if len(result.Escaped) < dest.ListMax {
			result.Escaped = append(result.Escaped, dest.Escaped{
				TID: t.TID, User: append([]byte{}, t.User...), Description: append([]byte{}, t.Description...),
			})
		}
	}
	return b
}
