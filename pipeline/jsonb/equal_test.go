package jsonb

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

// read gives the record for the state that a forward vector tells.
func read(t *testing.T, v *recordedVector) []byte {
	t.Helper()
	record, err := AppendRecord(nil, v.Module, v.Name, asPostgreSQLPrints(t, v.StateJSON))
	if err != nil {
		t.Fatalf("%s: %v", v.ID, err)
	}
	return record
}

// asPostgreSQLPrints does to numbers what jsonb does, which prints no exponents
// and knows no negative zero. The rest of the text means the same without it.
func asPostgreSQLPrints(t *testing.T, state string) []byte {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(state))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	printed, err := json.Marshal(plainNumbers(value))
	if err != nil {
		t.Fatal(err)
	}
	return printed
}

func plainNumbers(value any) any {
	switch v := value.(type) {
	case json.Number:
		if exact, ok := new(big.Rat).SetString(v.String()); ok && exact.IsInt() && strings.ContainsAny(v.String(), "eE") {
			return json.Number(exact.Num().String())
		}
		if v == "-0.0" {
			return json.Number("0.0")
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	}
	return value
}

// TestEqualAgreesWithTheRecordedComparison compares what went into the Python
// codec with what came out, for every vector where something came out, and
// judges as the recorded comparison did.
func TestEqualAgreesWithTheRecordedComparison(t *testing.T) {
	back := make(map[string]recordedVector)
	for _, v := range recordedVectors(t, "rev") {
		back[v.ID] = v
	}
	judged := make(map[string]int)
	for _, v := range recordedVectors(t, "fwd") {
		if v.RoundTrip == "error" {
			continue
		}
		a := v.record(t)
		var b []byte
		if reader, found := back[v.ID+"-rev"]; !found {
			b = read(t, &v)
		} else if reader.Error == "" {
			b = reader.record(t)
		} else {
			continue
		}
		strict, err := Equal(a, b)
		if err != nil {
			t.Errorf("%s: %v", v.ID, err)
			continue
		}
		lax, err := Comparison{IgnoreSharing: true}.Equal(a, b)
		if err != nil {
			t.Errorf("%s: sharing ignored: %v", v.ID, err)
			continue
		}
		onlySharing := strings.Contains(v.Note, "identity only")
		verdict := v.RoundTrip
		if onlySharing {
			verdict += " (identity only)"
		}
		judged[verdict]++
		if (strict == "") != (v.RoundTrip == "ok") {
			t.Errorf("%s is %s: %s\n  strict: %q", v.ID, verdict, v.Note, strict)
		}
		if (lax == "") != (v.RoundTrip == "ok" || onlySharing) {
			t.Errorf("%s is %s: %s\n  sharing ignored: %q", v.ID, verdict, v.Note, lax)
		}
	}
	t.Log(judged)
	if judged["ok"] == 0 || judged["lossy"] == 0 || judged["lossy (identity only)"] == 0 {
		t.Error("a verdict was never compared")
	}
}
