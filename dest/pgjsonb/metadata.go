package pgjsonb

import (
	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// appendTransaction appends a row of transaction_log and counts what had to be
// escaped. scratch is a buffer to be reused.
func appendTransaction(b []byte, t *source.Transaction, scratch *[]byte, x *extensions, result *dest.Result) []byte {
	b = appendInt16(b, 4)
	b = appendBigint(b, int64(t.TID))
	user, userEscaped := dest.AppendEscaped((*scratch)[:0], t.User)
	b = appendText(b, user)
	description, descriptionEscaped := dest.AppendEscaped(user[:0], t.Description)
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
