package jsonb

import (
	"encoding/hex"
	"errors"
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
			t.Skip("longer than what the mutator makes good use of")
		}
		roundTrip(t, encoder, record)
	})
}
