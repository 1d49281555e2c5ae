package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
)

// compareTransaction compares the metadata of a transaction with its row.
func (w *worker) compareTransaction(t *source.Transaction, row *dest.TransactionRow) error {
	d := Difference{Kind: OtherTransaction, TID: t.TID.String(), tid: t.TID}
	escaped := false
	for _, text := range []struct {
		name       string
		here, have []byte
	}{{"user", t.User, row.User}, {"description", t.Description, row.Description}} {
		want := storable(text.here)
		if !bytes.Equal(want, text.have) {
			d.Path, d.Source, d.Destination = text.name, short(text.here), short(text.have)
			return w.tally.differ(d)
		}
		escaped = escaped || !bytes.Equal(want, text.here)
	}
	if same, problem := sameExtension(t.Extension, row.Extension); !same {
		d.Path, d.Source, d.Destination, d.Reason = "extension", short(t.Extension), short(row.Extension), problem
		return w.tally.differ(d)
	}
	if escaped {
		d.Kind, d.Source = EscapedMetadata, short(t.User)+", "+short(t.Description)
		d.Destination = short(row.User) + ", " + short(row.Description)
		return w.tally.declare(d)
	}
	return nil
}

// storable is text as PostgreSQL can hold it: a byte that is not UTF-8, and NUL,
// is written as \xHH.
func storable(text []byte) []byte {
	if utf8.Valid(text) && bytes.IndexByte(text, 0) < 0 {
		return text
	}
	var out []byte
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == 0 || r == utf8.RuneError && size == 1 {
			out = fmt.Appendf(out, `\x%02x`, text[0])
		} else {
			out = append(out, text[:size]...)
		}
		text = text[size:]
	}
	return out
}

const maxShort = 200

// short is the beginning of bytes as one line of text.
func short(text []byte) string {
	if len(text) > maxShort {
		return strconv.Quote(string(text[:maxShort])) + fmt.Sprintf("... (%d bytes)", len(text))
	}
	return strconv.Quote(string(text))
}

// emptyDict is a record whose state is {}.
const (
	recordOf  = "\x80\x02cextension\nExtension\n.\x80\x02"
	emptyDict = "}."
)

// sameExtension compares the extension of a transaction, which is a pickled dict
// or nothing, with what is stored: the same, or JSON that stands for the same
// dict. Nothing and an empty dict are the same.
func sameExtension(pickled, stored []byte) (same bool, problem string) {
	if bytes.Equal(pickled, stored) {
		return true, ""
	}
	defer func() {
		if p := recover(); p != nil {
			same, problem = false, fmt.Sprintf("this program failed on the extension: %v", p)
		}
	}()
	here := append([]byte(recordOf), pickled...)
	if len(pickled) == 0 {
		here = append(here, emptyDict...)
	}
	there := append([]byte(recordOf), stored...)
	switch {
	case len(stored) == 0:
		there = append(there, emptyDict...)
	case stored[0] == '{':
		var err error
		if there, err = appendPickled([]byte(recordOf), stored); err != nil {
			return false, "the extension in the destination is no JSON: " + err.Error()
		}
	}
	difference, err := jsonb.Comparison{IgnoreSharing: true, MaxMemory: 256 << 20}.Equal(here, there)
	if err != nil {
		return false, err.Error()
	}
	return difference == "", difference
}

// appendPickled appends the pickle of a JSON document.
func appendPickled(dst, document []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	dst, err := appendValue(dst, d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document")
	}
	return append(dst, '.'), nil
}

func appendValue(dst []byte, d *json.Decoder) ([]byte, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case nil:
		return append(dst, 'N'), nil
	case bool:
		if v {
			return append(dst, '\x88'), nil
		}
		return append(dst, '\x89'), nil
	case string:
		dst = append(dst, 'X', byte(len(v)), byte(len(v)>>8), byte(len(v)>>16), byte(len(v)>>24))
		return append(dst, v...), nil
	case json.Number:
		text := v.String()
		if strings.ContainsAny(text, ".eE") {
			return append(append(append(dst, 'F'), text...), '\n'), nil
		}
		return append(append(append(dst, 'L'), text...), "L\n"...), nil
	case json.Delim:
		open, set := byte(']'), byte('e')
		if v == '{' {
			open, set = '}', 'u'
		}
		dst = append(dst, open, '(')
		for d.More() {
			if dst, err = appendValue(dst, d); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, err
		}
		return append(dst, set), nil
	}
	return nil, fmt.Errorf("unexpected %v", token)
}
