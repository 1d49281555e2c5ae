package jsonb

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// rawOID is an oid as SHORT_BINBYTES.
func rawOID(last byte) string { return "C\x08\x00\x00\x00\x00\x00\x00\x00" + string([]byte{last}) }

// textOf is BINUNICODE of a short text.
func textOf(s string) string { return "X" + string([]byte{byte(len(s)), 0, 0, 0}) + s }

// holding is a record whose state is a list of persistent ids.
func holding(class string, ids ...string) []byte {
	b := []byte("\x80\x02" + class + ".\x80\x02](")
	for _, id := range ids {
		b = append(b, id+"Q"...)
	}
	return append(b, "e."...)
}

func (r Reference) text() string {
	database := ""
	if r.Database != nil {
		database = fmt.Sprintf(" in %q", r.Database)
	}
	return fmt.Sprintf("%d%s weak=%t", uint64(r.OID), database, r.Weak)
}

// Each kind of persistent id is told apart, in a row as in a record that has none.
func TestReferencesAreStrongWeakOrToAnotherDatabase(t *testing.T) {
	const class = "cm\nC\n"
	for _, c := range []struct {
		name, id string
		refs     []int64
		loose    []string
	}{
		{"oid", rawOID(1), []int64{1}, nil},
		{"oid of Python 2", "U" + rawOID(1)[1:], []int64{1}, nil},
		{"oid and class", rawOID(1) + class + "\x86", []int64{1}, nil},
		{"oid of Python 3, protocol 2", "c_codecs\nencode\n" + textOf("\x00\x00\x00\x00\x00\x00\x00\x07") + textOf("latin1") + "\x86R" + class + "\x86", []int64{7}, nil},
		{"weak", "](" + textOf("w") + rawOID(2) + "\x85e", nil, []string{"2 weak=true"}},
		{"weak of Python 2", "](U\x01wU" + rawOID(2)[1:] + "\x85e", nil, []string{"2 weak=true"}},
		{"weak of Python 3, protocol 2", "](" + textOf("w") + "c_codecs\nencode\n" + textOf("\x00\x00\x00\x00\x00\x00\x00\x07") + textOf("latin1") + "\x86R\x85e", nil, []string{"7 weak=true"}},
		{"old weak", "](" + rawOID(2) + "e", nil, []string{"2 weak=true"}},
		{"weak to another database", "](" + textOf("w") + rawOID(2) + textOf("other") + "\x86e", nil, []string{`2 in "other" weak=true`}},
		{"another database", "](" + textOf("n") + textOf("other") + rawOID(3) + "\x86e", nil, []string{`3 in "other" weak=false`}},
		{"another database, with class", "](" + textOf("m") + textOf("other") + rawOID(3) + class + "\x87e", nil, []string{`3 in "other" weak=false`}},
		{"none of ZODB's", "](" + textOf("x") + rawOID(3) + "\x85e", nil, nil},
		{"short oid", "C\x01a", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func(how string, refs []int64, loose []Reference) {
				t.Helper()
				var got []string
				for _, l := range loose {
					got = append(got, l.text())
				}
				if !slices.Equal(refs, c.refs) || !slices.Equal(got, c.loose) {
					t.Errorf("%s: %v and %v, want %v and %v", how, refs, got, c.refs, c.loose)
				}
			}
			e := NewEncoder(Options{})
			row, err := e.Encode(holding(class, c.id))
			if err != nil {
				t.Fatal(err)
			}
			check("row", row.Refs, row.Loose)

			// A list that holds itself makes the state a capsule, which is written
			// after a direct form that came half way.
			cyclic := []byte("\x80\x02" + class + ".\x80\x02](" + c.id + "Q]q\x01h\x01ae.")
			if row, err = e.Encode(cyclic); err != nil || row.Forms[CapsuleCycle] != 1 {
				t.Fatalf("%v, %v", row, err)
			}
			check("capsule", row.Refs, row.Loose)

			for _, damaged := range []bool{false, true} {
				record := holding("cm\nC\nK\x01\x85\x86", c.id) // arguments for the class: rejected
				if damaged {
					record = record[:len(record)-2]
				}
				if _, err := e.Encode(record); err == nil {
					t.Fatal("not rejected")
				}
				refs, loose, whole := e.References(record)
				signed := make([]int64, 0, len(refs))
				for _, r := range refs {
					signed = append(signed, int64(r))
				}
				check("reject", signed, loose)
				if whole == damaged {
					t.Errorf("whole = %t of a record that is damaged = %t", whole, damaged)
				}
			}
		})
	}
}

// Where the encoder stores references, the walk over the record finds the same.
func TestReferencesOfVectorsAreThoseOfTheirRows(t *testing.T) {
	e := NewEncoder(Options{})
	compared := 0
	for _, v := range forwardVectors(t) {
		record := v.record(t)
		row, err := e.Encode(record)
		if err != nil {
			continue
		}
		want := map[zodb.OID]bool{}
		for _, r := range row.Refs {
			want[zodb.OID(r)] = true
		}
		refs, _, whole := e.References(record)
		got := map[zodb.OID]bool{}
		for _, r := range refs {
			got[r] = true
		}
		if !whole || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v (whole: %t), the row has %v", v.ID, got, whole, want)
		}
		compared += len(want)
	}
	if compared == 0 {
		t.Error("no vector has references")
	}
}

// Whatever a record holds, the walk ends and says nothing impossible.
func TestReferencesOfDamagedRecordsDoNotFail(t *testing.T) {
	whole := holding("cm\nC\n", rawOID(1), "]("+textOf("w")+rawOID(2)+"\x85e", "]("+textOf("m")+textOf("other")+rawOID(3)+"cm\nC\n\x87e")
	random := rand.New(rand.NewPCG(1, 2))
	e := NewEncoder(Options{})
	for range 20_000 {
		record := bytes.Clone(whole)
		for range 1 + random.IntN(3) {
			record[random.IntN(len(record))] = byte(random.IntN(256))
		}
		refs, loose, _ := e.References(record[:random.IntN(len(record)+1)])
		if len(refs)+len(loose) > 6 {
			t.Fatalf("%d references of 3 persistent ids and 3 changed bytes in %q", len(refs)+len(loose), record)
		}
	}
}
