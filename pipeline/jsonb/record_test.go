package jsonb

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// roundTrip encodes a record, does to the state what PostgreSQL does, reads it
// back and compares. It tells whether the record has a form at all.
//
// Sharing is ignored, because copies are what the destination has; Python 2
// strings that are not ASCII are expected as bytes.
func roundTrip(t *testing.T, encoder *Encoder, record []byte) bool {
	t.Helper()
	row, err := encoder.Encode(record)
	if err != nil {
		var rejected *RejectError
		if !errors.As(err, &rejected) || rejected.Stack != nil {
			t.Errorf("%q: %v", record, err)
		}
		return false
	}
	back, err := AppendRecord(nil, string(row.Module), string(row.Name), asPostgreSQLPrints(t, string(row.State)))
	if err != nil {
		t.Errorf("the reader refuses %.500s: %v", row.State, err)
		return true
	}
	difference, err := Comparison{IgnoreSharing: true, OldStringsAreBytes: true}.Equal(record, back)
	if err != nil || difference != "" {
		t.Errorf("%s %v\n  record %.500q\n  state  %.500s\n  back   %.500q", difference, err, record, row.State, back)
	}
	return true
}

// TestWhatIsEncodedReadsBackEqual takes every recorded record there and back.
func TestWhatIsEncodedReadsBackEqual(t *testing.T) {
	encoder := NewEncoder(Options{})
	encoded, rejected := 0, 0
	for _, v := range recordedVectors(t, "fwd") {
		t.Run(v.ID, func(t *testing.T) {
			if roundTrip(t, encoder, v.record(t)) {
				encoded++
			} else {
				rejected++
			}
		})
	}
	t.Logf("%d records encoded, %d rejected", encoded, rejected)
	if encoded < 500 {
		t.Errorf("only %d of %d records have a form", encoded, encoded+rejected)
	}
}

func FuzzRoundTrip(f *testing.F) {
	for _, v := range recordedVectors(f, "fwd") {
		record, err := hex.DecodeString(v.RecordHex)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(record)
	}
	encoder := NewEncoder(Options{MaxExpanded: 1 << 20})
	f.Fuzz(func(t *testing.T, record []byte) {
		if len(record) > 1<<16 {
			record = record[:1<<16] // the mutator makes no good use of more
		}
		roundTrip(t, encoder, record)
	})
}

// TestUserDictsAreNotTakenForMarkers takes dicts there and back that the reader
// would take for something else in one place or another.
func TestUserDictsAreNotTakenForMarkers(t *testing.T) {
	text := func(s string) string {
		return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
	}
	dict := func(pairs ...string) string { return "}(" + strings.Join(pairs, "") + "u" }
	list := func(items ...string) string { return "](" + strings.Join(items, "") + "e" }
	multi := dict(text("@t"), "]", text("x"), "K\x01") // a tuple only in the general way
	object := "cm\nA\n)\x81"
	values := map[string]string{
		"None": "N", "int": "K\x05", "float": "G?\xf8\x00\x00\x00\x00\x00\x00", "NaN": "G\x7f\xf8\x00\x00\x00\x00\x00\x00",
		"text": text("2020-01-02T03:04:05"), "text with NUL": text("a\x00b"), "surrogate": "X\x03\x00\x00\x00\xed\xa0\x80",
		"list": "]", "pair of texts": list(text("m"), text("C")), "three integers": list("K\x01", "K\x02", "K\x03"),
		"dict": "}", "markers": multi, "tuple": ")", "bytes": "C\x01a", "object": object, "large integer": "\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00",
		"Python 2 text": "U\x02ab", "Python 2 bytes": "U\x02\xff!",
	}
	keys := []string{
		"@t", "@b", "@bi", "@d", "@set", "@fset", "@ref", "@pkl", "@cls", "@dt", "@date", "@time", "@td", "@dec", "@uuid",
		"@reduce", "@inst", "@ns", "@ns:", "@ns:YQ==", "@kv", "@ks", "@children", "@first", "@next", "@args", "@state", "@kwargs",
		"@obj", "@callable", "@s", "@items", "@appends", "@newobj", "@tz", "@", "@x", "a\x00b", "@\x00",
	}
	places := map[string]func(string) string{
		"as the state":           func(v string) string { return v },
		"in a list":              func(v string) string { return list(v) },
		"in a set's place":       func(v string) string { return "cm\nf\n" + v + "\x85R" },
		"as a value of int keys": func(v string) string { return dict("K\x01", v) },
		"as an object's state":   func(v string) string { return object + v + "b" },
		"as a called one's":      func(v string) string { return "cm\nA\n)R" + v + "b" },
		"as one with arguments":  func(v string) string { return "cm\nA\nK\x01\x85\x81" + v + "b" },
		"under a key with NUL":   func(v string) string { return dict(text("a\x00b"), v) },
		"under an unknown key":   func(v string) string { return dict(text("@x"), v) },
		"as a BTree's state":     func(v string) string { return "cBTrees.OOBTree\nOOBTree\n)\x81" + v + "b" },
		"as a bucket's state":    func(v string) string { return "cBTrees.OOBTree\nOOBucket\n)\x81" + v + "b" },
		"as a BTree's value":     func(v string) string { return "cBTrees.OOBTree\nOOBTree\n)\x81(" + text("k") + v + "t\x85\x85\x85b" },
		"beside arguments":       func(v string) string { return object + dict(text("@args"), "K\x01", text("@state"), v) + "b" },
	}
	encoder := NewEncoder(Options{})
	for where, place := range places {
		for _, key := range keys {
			for what, value := range values {
				for name, d := range map[string]string{
					"alone":                dict(text(key), value),
					"with another":         dict(text(key), value, text("x"), multi),
					"with two others":      dict(text("a"), "N", text(key), value, text("b"), "N"),
					"with @s":              dict(text(key), value, text("@s"), multi),
					"with @tz":             dict(text(key), value, text("@tz"), "}"),
					"with @state":          dict(text(key), value, text("@state"), multi),
					"with @args, a tuple":  dict(text(key), value, text("@args"), ")"),
					"with @obj and @state": dict(text(key), value, text("@obj"), "N", text("@state"), "N"),
				} {
					if !roundTrip(t, encoder, withClass(place(d)+".")) {
						t.Errorf("rejected: %q %s %s, %s", key, name, where, what)
					}
					if t.Failed() {
						t.Fatalf("%q %s %s, %s", key, name, where, what)
					}
				}
			}
		}
	}
}
