package jsonb

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
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

func (v *recordedVector) record(t *testing.T) []byte {
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
