package zrecord

import (
	"bytes"
	"compress/zlib"
	"strings"
	"testing"
)

func compressed(t testing.TB, plain []byte) []byte {
	t.Helper()
	b := bytes.NewBufferString(".z")
	w := zlib.NewWriter(b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInflate(t *testing.T) {
	long := bytes.Repeat([]byte("persistent mapping "), 10000)
	for _, c := range []struct {
		name      string
		raw, want []byte
		problem   string
	}{
		{"a record", compressed(t, long), long, ""},
		{"with bytes behind the stream", append(compressed(t, long), "behind"...), long, ""},
		{"a stream of nothing is the record itself", compressed(t, nil), compressed(t, nil), ""},
		{"cut off", compressed(t, long)[:40], nil, "ends early"},
		{"the mark alone", []byte(".z"), nil, "ends early"},
		{"no stream", []byte(".zzzzzzzzz"), nil, "zlib"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var z Inflater
			var scratch []byte
			for range 2 { // the state is used again
				got, err := z.Inflate(c.raw, &scratch)
				if !bytes.Equal(got, c.want) || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
}

func TestPrefixInflatesNoMoreThanAskedFor(t *testing.T) {
	var z Inflater
	p := make([]byte, 7)
	if n := z.Prefix(compressed(t, []byte("cZODB.blob\nBlob\n")), p); n != 7 || string(p) != "cZODB.b" {
		t.Errorf("%d bytes: %q", n, p)
	}
	if n := z.Prefix([]byte(".znothing"), p); n != 0 {
		t.Errorf("%d bytes of no stream", n)
	}
}

func FuzzInflate(f *testing.F) {
	f.Add(compressed(f, []byte("some pickle")))
	f.Add([]byte(".z"))
	f.Add(compressed(f, bytes.Repeat([]byte("x"), 5000))[:20])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !Is(raw) {
			return
		}
		var z Inflater
		var scratch []byte
		first, err := z.Inflate(raw, &scratch)
		first = bytes.Clone(first)
		again, errAgain := z.Inflate(raw, &scratch)
		if !bytes.Equal(first, again) || (err == nil) != (errAgain == nil) {
			t.Errorf("the second time %d bytes and %v, the first %d and %v", len(again), errAgain, len(first), err)
		}
		if err == nil && len(first) == 0 {
			t.Error("a record became nothing")
		}
	})
}
