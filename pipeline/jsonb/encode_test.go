package jsonb

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// normal is a JSON value as jsonb keeps it: the last of several members of one
// name, numbers with their scale.
func normal(t testing.TB, text []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %.300s", err, text)
	}
	return normalNumbers(v)
}

func normalNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return plainNumber(string(v))
	case []any:
		for i := range v {
			v[i] = normalNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = normalNumbers(v[k])
		}
	}
	return v
}

// plainNumber writes a number without exponent, as PostgreSQL's numeric does:
// the digits behind the point are kept, zeros among them.
func plainNumber(text string) json.Number {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(text), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	scale := len(fraction)
	if exponent != "" {
		shift, ok := new(big.Int).SetString(strings.TrimPrefix(exponent, "+"), 10)
		if !ok {
			return json.Number(text)
		}
		scale -= int(shift.Int64())
	}
	digits, ok := new(big.Int).SetString(whole+fraction, 10)
	if !ok {
		return json.Number(text)
	}
	if scale < 0 {
		digits.Mul(digits, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(-scale)), nil))
		scale = 0
	}
	sign := ""
	if digits.Sign() < 0 {
		sign = "-"
		digits.Neg(digits)
	}
	s := digits.String()
	if scale == 0 {
		return json.Number(sign + s)
	}
	if len(s) <= scale {
		s = strings.Repeat("0", scale+1-len(s)) + s
	}
	return json.Number(sign + s[:len(s)-scale] + "." + s[len(s)-scale:])
}

func sameJSON(t testing.TB, a, b []byte) bool {
	t.Helper()
	x, errA := json.Marshal(normal(t, a))
	y, errB := json.Marshal(normal(t, b))
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	return bytes.Equal(x, y)
}

// forward is a vector with what only this direction needs.
type forward struct {
	recordedVector
	Refs []int64 `json:"refs"`
}

func forwardVectors(t testing.TB) []forward {
	t.Helper()
	var vectors []forward
	text, err := os.ReadFile("../../testdata/codec-vectors.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for raw := range bytes.Lines(text) {
		var v forward
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		if v.Dir == "fwd" {
			vectors = append(vectors, v)
		}
	}
	return vectors
}

func TestEncodeWritesWhatThePythonCodecWrites(t *testing.T) {
	e := NewEncoder(Options{})
	compared := 0
	for _, v := range forwardVectors(t) {
		if v.RoundTrip != "ok" {
			continue
		}
		compared++
		row, err := e.Encode(v.record(t))
		if beyondBigint(v.Refs) {
			// The Python codec lets the oid become negative, one that no object
			// of the destination can have.
			if err == nil {
				t.Errorf("%s: accepted", v.ID)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v\n  note %s\n  want %.300s", v.ID, err, v.Note, v.StateJSON)
			continue
		}
		if string(row.Module) != v.Module || string(row.Name) != v.Name {
			t.Errorf("%s: class %s.%s, want %s.%s", v.ID, row.Module, row.Name, v.Module, v.Name)
		}
		if !sameJSON(t, row.State, []byte(v.StateJSON)) {
			t.Errorf("%s: %s\n  got  %.400s\n  want %.400s", v.ID, v.Note, row.State, v.StateJSON)
		}
		for f, n := range row.Forms {
			// What the Python codec finds no reference in, it reads all the same.
			if form := Form(f); n > 0 && form.LostOnSave() && form != RefInCallable {
				t.Errorf("%s: %v is said to be lost, and the Python codec keeps it", v.ID, form)
			}
		}
		refs := row.Refs
		if row.Forms[RefInCallable] == 0 && !slices.Equal(refs, v.Refs) && len(refs)+len(v.Refs) > 0 {
			t.Errorf("%s: refs %v, want %v", v.ID, refs, v.Refs)
		}
	}
	t.Logf("%d vectors", compared)
}

func beyondBigint(refs []int64) bool {
	return slices.ContainsFunc(refs, func(r int64) bool { return r < 0 })
}

func TestEncodeKeepsWhatThePythonCodecLoses(t *testing.T) {
	e := NewEncoder(Options{})
	kept, rejected := 0, 0
	for _, v := range forwardVectors(t) {
		if v.RoundTrip == "ok" {
			continue
		}
		record := v.record(t)
		row, err := e.Encode(record)
		if err != nil {
			var reject *RejectError
			if !errors.As(err, &reject) || reject.Stack != nil {
				t.Errorf("%s: %v", v.ID, err)
			}
			t.Logf("%-28s rejected: %v | %.100s", v.ID, err, v.Note)
			rejected++
			continue
		}
		kept++
		checkOutput(t, row)
		back, err := AppendRecord(nil, string(row.Module), string(row.Name), row.State)
		if err != nil {
			t.Errorf("%s: %.300s\n  the reader: %v", v.ID, row.State, err)
			continue
		}
		comparison := Comparison{IgnoreSharing: row.Forms[SharedCopied] > 0, OldStringsAreBytes: true}
		difference, err := comparison.Equal(record, back)
		if err != nil {
			t.Errorf("%s: %v", v.ID, err)
		} else if difference != "" {
			t.Errorf("%s: %s\n  %.300s\n  %s", v.ID, difference, row.State, v.Note)
		}
	}
	t.Logf("%d kept, %d rejected", kept, rejected)
}

// checkOutput checks what must hold for any output.
func checkOutput(t testing.TB, row *Row) {
	t.Helper()
	if !json.Valid(row.State) || !utf8.Valid(row.State) {
		t.Errorf("no JSON in UTF-8: %q", row.State)
	}
	if bytes.Contains(row.State, []byte(`\u0000`)) && bytes.Contains(bytes.ReplaceAll(row.State, []byte(`\\`), nil), []byte(`\u0000`)) {
		t.Errorf("a NUL in %q", row.State)
	}
	if len(row.Module) == 0 || len(row.Name) == 0 {
		t.Errorf("class %q.%q", row.Module, row.Name)
	}
}
