package jsonb

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// recordedVector is one line of testdata/codec-vectors.jsonl: what the released
// Python codec made of a record or of a state.
type recordedVector struct {
	ID        string          `json:"id"`
	Dir       string          `json:"dir"`
	Module    string          `json:"class_mod"`
	Name      string          `json:"class_name"`
	RecordHex string          `json:"record_hex"`
	State     json.RawMessage `json:"state_after_unsanitize"`
	StateJSON string          `json:"state_json"`
	Error     string          `json:"error"`
	RoundTrip string          `json:"roundtrip"`
	Note      string          `json:"note"`
}

func (v *recordedVector) record(t testing.TB) []byte {
	t.Helper()
	record, err := hex.DecodeString(v.RecordHex)
	if err != nil {
		t.Fatalf("%s: record_hex: %v", v.ID, err)
	}
	return record
}

// recordedVectors are the vectors of one direction.
func recordedVectors(t testing.TB, dir string) []recordedVector {
	t.Helper()
	f, err := os.Open("../../testdata/codec-vectors.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var vectors []recordedVector
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var v recordedVector
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		if v.Dir == dir {
			vectors = append(vectors, v)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(vectors) == 0 {
		t.Fatalf("no vectors of direction %q", dir)
	}
	return vectors
}

func TestReaderWritesTheRecordsOfThePythonReader(t *testing.T) {
	vectors := recordedVectors(t, "rev")
	var r Reader
	for _, v := range vectors {
		got, err := r.AppendUnsanitized([]byte("before"), v.Module, v.Name, v.State)
		switch {
		case v.Error != "":
			if err == nil {
				t.Errorf("%s: %s\n  no error; the Python reader: %s", v.ID, v.State, v.Error)
			} else if string(got) != "before" {
				t.Errorf("%s: an error left %q", v.ID, got)
			}
		case err != nil:
			t.Errorf("%s: %.300s\n  %v", v.ID, v.State, err)
		default:
			want := append([]byte("before"), v.record(t)...)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %.300s\n  got  %q\n  want %q", v.ID, v.State, got, want)
			}
		}
	}
	t.Logf("%d vectors", len(vectors))
}

func TestReaderResolvesStringsBeforeTheCodec(t *testing.T) {
	cases := []struct{ name, state, want string }{
		{"in a value", `{"a":{"@ns":"AGI="}}`, `{"a":"\u0000b"}`},
		{"in place of a marker's text", `[{"@dec":{"@ns":"MS41"}}]`, `[{"@dec":"1.5"}]`},
		{"in a class", `{"@cls":[{"@ns":"bQ=="},"C"]}`, `{"@cls":["m","C"]}`},
		{"with what Python skips", `["a",{"@ns":"Y-W%I=\n==zz"}]`, `["a","ab"]`},
		{"not a key", `{"@ns:AGI=":1}`, `{"@ns:AGI=":1}`},
		{"not beside another key", `{"@ns":"AGI=","x":1}`, `{"@ns":"AGI=","x":1}`},
		{"once for a key that comes twice", `{"@ns":"AGI=","@ns":"YQ=="}`, `"a"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var r Reader
			got, err := r.AppendRecord(nil, "m", "C", []byte(c.state))
			if err != nil {
				t.Fatal(err)
			}
			want, err := r.AppendUnsanitized(nil, "m", "C", []byte(c.want))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestReaderRefusesWhatPythonRefuses(t *testing.T) {
	cases := []struct{ name, state string }{
		{"nothing", ``},
		{"two values", `1 2`},
		{"leading zero", `01`},
		{"a point without digits", `1.`},
		{"an exponent without digits", `1e`},
		{"no number", `-`},
		{"NaN", `NaN`},
		{"half a word", `nul`},
		{"a control character", "\"a\nb\""},
		{"half an escape", `"\u12"`},
		{"unknown escape", `"\x41"`},
		{"a lone surrogate", `"\ud800"`},
		{"surrogates in the wrong order", `"\udc00\ud800"`},
		{"not UTF-8", "\"\xff\""},
		{"an open string", `"abc`},
		{"an open array", `[1`},
		{"an open object", `{"a":1`},
		{"a comma at the end", `[1,]`},
		{"a key that is no string", `{1:2}`},
		{"a key alone", `{"a"}`},
		{"an integer Python does not convert", strings.Repeat("1", maxIntDigits+1)},
		{"an @ns of an @ns", `{"@ns":{"@ns":"YQ=="}}`},
		{"an @ns without padding", `{"@ns":"YQ"}`},
		{"an @ns that is not UTF-8", `{"@ns":"/w=="}`},
		{"an @ns with a letter beyond ASCII", `{"@ns":"YQ==é"}`},
		{"more nesting than a load survives", strings.Repeat("[", 991) + strings.Repeat("]", 991)},
		{"a hostile nesting", strings.Repeat("[", 10_000_000)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got, err := AppendRecord([]byte("x"), "m", "C", []byte(c.state)); err == nil || string(got) != "x" {
				t.Errorf("%q %v", got, err)
			}
		})
	}
}

// TestReaderTakesAnyJSON covers what jsonb never prints.
func TestReaderTakesAnyJSON(t *testing.T) {
	const head = "\x80\x02X\x01\x00\x00\x00mX\x01\x00\x00\x00C\x86N\x86.\x80\x02"
	cases := []struct{ name, state, want string }{
		{"spaces", " [ 1 ,\t{ \"a\" : null } ]\r\n", "](K\x01}(X\x01\x00\x00\x00aNue."},
		{"a key twice", `{"b":1,"a":2,"b":3}`, "}(X\x01\x00\x00\x00bK\x03X\x01\x00\x00\x00aK\x02u."},
		{"escapes", `"\"\\\/\b\f\n\r\t\u20ac\ud83d\ude00\u0000"`, "X\x10\x00\x00\x00\"\\/\b\f\n\r\t\xe2\x82\xac\xf0\x9f\x98\x80\x00."},
		{"escapes in a marker", `{"\u0040t":[]}`, ")."},
		{"a huge float", `1e400`, "G\x7f\xf0\x00\x00\x00\x00\x00\x00."},
		{"an integer of 64 bits", `-9223372036854775808`, "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80."},
		{"a larger one", `9223372036854775808`, "\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00."},
		{"zero with a sign", `-0`, "K\x00."},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := AppendRecord(nil, "m", "C", []byte(c.state))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != head+c.want {
				t.Errorf("got  %q\nwant %q", got, head+c.want)
			}
		})
	}
}

// FuzzAppendRecord reads any state. What comes out, if anything does, must not
// depend on what was read before with the same Reader.
func FuzzAppendRecord(f *testing.F) {
	for _, v := range recordedVectors(f, "rev") {
		f.Add(v.Module, v.Name, []byte(v.State))
	}
	var used Reader
	f.Fuzz(func(t *testing.T, module, name string, state []byte) {
		for _, read := range []func(*Reader) ([]byte, error){
			func(r *Reader) ([]byte, error) { return r.AppendRecord(nil, module, name, state) },
			func(r *Reader) ([]byte, error) { return r.AppendUnsanitized(nil, module, name, state) },
		} {
			got, err := read(&used)
			fresh, freshErr := read(new(Reader))
			if !bytes.Equal(got, fresh) || (err == nil) != (freshErr == nil) {
				t.Errorf("a used Reader gives %q %v, a fresh one %q %v", got, err, fresh, freshErr)
			}
			if err != nil {
				continue
			}
			_, _ = Comparison{MaxMemory: 16 << 20}.Equal(got, got) // a hostile class name may end a line early
		}
	})
}

func BenchmarkAppendRecord(b *testing.B) {
	states := map[string]string{
		"content": `{"id": "a-page", "blob": {"@b": "` + strings.Repeat("AAEC", 60) + `"}, ` +
			`"text": "` + strings.Repeat("Lorem ipsum dolor sit amet. ", 80) + `", "title": "Über uns", ` +
			`"values": [1, 2, 3, 4.5, true, null, 123456789], "created": {"@dt": "2020-01-02T03:04:05+00:00"}, ` +
			`"subjects": {"@t": ["one", "two", "three"]}, ` +
			`"__parent__": {"@ref": ["0000000000000005", "plone.folder.content.Folder"]}, ` +
			`"workflow_history": {"@s": {"data": {}}, "@cls": ["persistent.mapping", "PersistentMapping"]}}`,
		"btree": `{"@kv": [` + strings.Repeat(`[123456, {"@ref": ["0000000000000005", "m.C"]}], `, 60) + `[1, 2]]}`,
		"dicts": `[` + strings.Repeat(`{"a": 1, "bb": "text", "ccc": [1, 2], "dddd": {"x": null}}, `, 60) + `1]`,
	}
	for name, state := range states {
		b.Run(name, func(b *testing.B) {
			module, class := "m", "C"
			if name == "btree" {
				module, class = "BTrees.OOBTree", "OOBucket"
			}
			var r Reader
			var out []byte
			state := []byte(state)
			b.SetBytes(int64(len(state)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if out, err = r.AppendRecord(out[:0], module, class, state); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
