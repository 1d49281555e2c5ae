package pgjsonb

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
)

func TestStreamIsTheSameWhateverIsReadAtATime(t *testing.T) {
	rows := []jsonb.Row{
		{Module: []byte("m"), Name: []byte("n"), State: []byte(`{"a": 1}`), Refs: []int64{1, -2, 3}},
		{Module: []byte(""), Name: []byte(""), State: []byte(`null`)},
		{Module: []byte("m"), Name: []byte("n"), State: bytes.Repeat([]byte("x"), 10000)},
	}
	stream := func(s *rowStream) {
		i := 0
		s.reset(func() error {
			if i == len(rows) {
				return io.EOF
			}
			r := source.Record{OID: 5, TID: 6}
			s.head = appendObjectHead(s.head, &r, &rows[i])
			s.tail = appendObjectTail(s.tail, 77, rows[i].Refs)
			s.emit(rows[i].State)
			i++
			return nil
		})
	}
	var s rowStream
	stream(&s)
	want, err := io.ReadAll(&s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(want, []byte(copyHeader)) || !bytes.HasSuffix(want, []byte(copyTrailer)) {
		t.Fatalf("the stream is %q", want)
	}
	first := copyHeader + "\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x06" +
		"\x00\x00\x00\x01m\x00\x00\x00\x01n\x00\x00\x00\x09\x01{\"a\": 1}\x00\x00\x00\x04\x00\x00\x00\x4d" +
		"\x00\x00\x00\x38\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00\x01" +
		"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\xff\xff\xff\xff\xff\xff\xff\xfe" +
		"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x03"
	if !bytes.HasPrefix(want, []byte(first)) {
		t.Errorf("the first row is %q", want[:len(first)])
	}
	for _, size := range []int{1, 2, 3, 7, 64, 4096, 20000} {
		stream(&s)
		var got []byte
		buf := make([]byte, size)
		for {
			n, err := s.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("read %d bytes at a time it differs", size)
		}
	}
}

func TestStreamEndsWithTheErrorThatARowHas(t *testing.T) {
	broken := errors.New("broken")
	var s rowStream
	s.reset(func() error { return broken })
	if _, err := io.ReadAll(&s); !errors.Is(err, broken) || !errors.Is(s.err, broken) {
		t.Errorf("the error is %v, kept %v", err, s.err)
	}
}

func TestMetadataThatIsNoTextIsEscaped(t *testing.T) {
	for _, c := range []struct {
		in, want string
		escaped  bool
	}{
		{"", "", false},
		{"/ admin", "/ admin", false},
		{"zażółć \U0001f600 \ufffd", "zażółć \U0001f600 \ufffd", false},
		{`C:\x41 stays`, `C:\x41 stays`, false},
		{"\xff", `\xff`, true},
		{"a\x00b", `a\x00b`, true},
		{"caf\xe9 \xc3\xa9", `caf\xe9 é`, true},
		{"\xc3", `\xc3`, true},
		{"\xed\xa0\x80", `\xed\xa0\x80`, true},
		{"\x1b[0m\x7f", "\x1b[0m\x7f", false},
	} {
		got, escaped := dest.AppendEscaped([]byte("x"), []byte(c.in))
		if string(got) != "x"+c.want || escaped != c.escaped {
			t.Errorf("%q gives %q, %v", c.in, got, escaped)
		}
	}
	var scratch []byte
	var x extensions
	var result dest.Result
	for range dest.ListMax + 3 {
		appendTransaction(nil, &source.Transaction{TID: 7, User: []byte("\xff"), Description: []byte("d")}, &scratch, &x, &result)
	}
	if result.Metadata != dest.ListMax+3 || len(result.Escaped) != dest.ListMax || string(result.Escaped[0].User) != "\xff" || string(result.Escaped[0].Description) != "d" {
		t.Errorf("the result is %+v", result)
	}
}

func FuzzEscaped(f *testing.F) {
	for _, s := range []string{"", "plain", "\xff\x00", `\x00`, "\xed\xa0\x80\xf4\x90\x80\x80"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, escaped := dest.AppendEscaped(nil, in)
		if !utf8.Valid(out) || bytes.IndexByte(out, 0) >= 0 {
			t.Fatalf("%q gives %q", in, out)
		}
		if clean := utf8.Valid(in) && bytes.IndexByte(in, 0) < 0; clean == escaped || clean && !bytes.Equal(in, out) {
			t.Fatalf("%q gives %q, escaped %v", in, out, escaped)
		}
	})
}

func FuzzExtension(f *testing.F) {
	for _, s := range []string{
		"", "}.", "}q\x00U\x01aU\x01bs.", "\x80\x02}q\x01X\x01\x00\x00\x00aK\x01s.", "(dp0\nS'a'\nI1\ns.",
		"\x80\x02}q\x01(X\x01\x00\x00\x00aG?\xf0\x00\x00\x00\x00\x00\x00X\x01\x00\x00\x00b]q\x02h\x02au.",
		"\x80\x02}X\x01\x00\x00\x00a\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00s.", "]q\x00h\x00a.",
	} {
		f.Add([]byte(s))
	}
	var x extensions
	f.Fuzz(func(t *testing.T, in []byte) {
		out := x.convert(in)
		if len(out) == 0 || bytes.Equal(out, in) {
			return
		}
		var dict map[string]any
		if err := json.Unmarshal(out, &dict); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("%q gives %q: %v", in, out, err)
		}
		for _, b := range out {
			if b < ' ' || b > '~' {
				t.Fatalf("%q gives %q", in, out)
			}
		}
	})
}
