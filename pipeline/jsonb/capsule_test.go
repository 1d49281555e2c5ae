package jsonb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
)

// encapsulated writes the record as a capsule, whatever it is; false if it has
// none.
func encapsulated(t testing.TB, e *Encoder, record []byte) (*Row, bool) {
	t.Helper()
	if _, err := e.Encode(record); err != nil {
		var reject *RejectError
		if !errors.As(err, &reject) || reject.Stack != nil {
			t.Fatalf("%v\n%s", err, reject.Stack)
		}
		return nil, false
	}
	row, err := e.capsule(CapsuleShared)
	if err != nil {
		var reject *RejectError
		if !errors.As(err, &reject) || reject.Stack != nil {
			t.Fatalf("%v\n%s", err, reject.Stack)
		}
		return nil, false
	}
	return row, true
}

// checkBack reads the row and compares what comes out with the record.
func checkBack(t testing.TB, record []byte, row *Row) {
	t.Helper()
	checkOutput(t, row)
	back, err := AppendRecord(nil, string(row.Module), string(row.Name), row.State)
	if err != nil {
		t.Errorf("the reader: %v\n  %.300s", err, row.State)
		return
	}
	comparison := Comparison{OldStringsAreBytes: true, MaxMemory: 256 << 20}
	if difference, err := comparison.Equal(record, back); err != nil {
		t.Errorf("%v\n  %.300s", err, row.State)
	} else if difference != "" {
		t.Errorf("%s\n  %.300s", difference, row.State)
	}
}

// TestCapsulesAreTheRecordedOnes compares with the capsules that the released
// reader was seen to load as the value that went in.
func TestCapsulesAreTheRecordedOnes(t *testing.T) {
	sources := make(map[string]recordedVector)
	for _, v := range recordedVectors(t, "fwd") {
		sources[v.ID] = v
	}
	compared := 0
	for _, form := range recordedVectors(t, "rev") {
		name, found := strings.CutPrefix(form.ID, "form-capsule-")
		if !found || strings.HasPrefix(name, "z-") || strings.HasSuffix(name, "-rev") {
			continue
		}
		compared++
		source := sources[name]
		row, ok := encapsulated(t, NewEncoder(Options{}), source.record(t))
		if !ok {
			t.Errorf("%s: rejected", form.ID)
			continue
		}
		if !sameJSON(t, row.State, form.State) {
			t.Errorf("%s:\n  %s\n  recorded\n  %s", form.ID, row.State, form.State)
		}
	}
	if compared < 8 {
		t.Errorf("%d capsules compared", compared)
	}
}

// TestEveryVectorAsACapsule holds the capsule to its word that it can say
// whatever a pickle can.
func TestEveryVectorAsACapsule(t *testing.T) {
	e, reader := NewEncoder(Options{}), 0
	for _, v := range forwardVectors(t) {
		t.Run(v.ID, func(t *testing.T) {
			record := v.record(t)
			direct := ""
			if row, err := e.Encode(record); err != nil {
				return // told by TestEncodeKeepsWhatThePythonCodecLoses
			} else if row.Forms[RefInCallable] == 0 {
				direct = fmt.Sprint(row.Refs)
			}
			row, ok := encapsulated(t, e, record)
			if !ok {
				t.Fatal("rejected")
			}
			reader++
			checkBack(t, record, row)
			if got := fmt.Sprint(row.Refs); direct != "" && got != direct {
				t.Logf("refs %s, written out %s", got, direct)
			}
		})
	}
	if reader < 600 {
		t.Errorf("only %d capsules", reader)
	}
}

func TestWhatHasNoOtherFormIsACapsule(t *testing.T) {
	ref := "C\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nD\n\x86Q"
	cases := []struct {
		name  string
		state string
		form  Form
		refs  string
	}{
		{"a list that holds itself", "]q\x00h\x00a", CapsuleCycle, "[]"},
		{"an object that holds itself and a persistent one", "cm\nD\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00b" + ref + "ub", CapsuleCycle, "[5]"},
		{"a tuple that holds itself", "]q\x00(h\x00tq\x01a0h\x01", CapsuleCycle, "[]"},
		{"a long tuple that holds itself", "(]q\x00(h\x00NNNtq\x01aNNN1h\x01", CapsuleCycle, "[]"},
		{"a set that holds itself in an object", "\x8fq\x00(cm\nD\n)\x81}X\x01\x00\x00\x00sh\x00sb\x90", CapsuleCycle, "[]"},
		{"an old-style instance that holds itself", "(im\nD\nq\x00}X\x01\x00\x00\x00ah\x00sb", CapsuleCycle, "[]"},
		{"old-style instances in the arguments of others", "(" + ref + "(K\x01im\nD\nq\x00(im\nE\ntq\x02(h\x00h\x02im\nF\n}X\x01\x00\x00\x00ah\x00sb]q\x01h\x01a\x86", CapsuleCycle, "[5]"},
		{"an old-style instance by its class", "(cm\nD\nNoq\x00}X\x01\x00\x00\x00ah\x00sb", CapsuleCycle, "[]"},
		{"two states", "cm\nD\n)\x81}X\x01\x00\x00\x00aK\x01sb}X\x01\x00\x00\x00bK\x02sb", CapsuleState, "[]"},
		{"a state by a setter", "cm\nD\n)\x81q\x00cm\nset\nh\x00}X\x01\x00\x00\x00aK\x01s\x86R0", CapsuleState, "[]"},
		{"601 lists", strings.Repeat("]", 602) + strings.Repeat("a", 601), CapsuleDepth, "[]"},
		{"10,000 tuples", ref + strings.Repeat("\x85", 10_000), CapsuleDepth, "[5]"},
		{"sharing that explodes", doubled(100), CapsuleExpansion, "[]"},
		{"an integer of 100 kB", "\x8b\x00\x87\x01\x00" + strings.Repeat("\x01", 0x18700), CapsuleSize, "[]"},
		{"an integer of 10,000 digits beside a cycle", "]q\x00(h\x00L-" + strings.Repeat("7", 10_000) + "L\ne", CapsuleCycle, "[]"},
		{"extensions", "\x82\x01)\x81\x83\x01\x02\x84\x01\x02\x03\x04\x87", CapsuleExtension, "[]"},
		{"names from the stack", pickledText("m") + pickledText("D.E") + "\x93q\x00]q\x01h\x01h\x00\x86a", CapsuleCycle, "[]"},
		{"references of every kind", "(" + ref + "C\x08\x00\x00\x00\x00\x00\x00\x00\x06QP0000000000000007\n](" + pickledText("w") +
			"C\x08\x00\x00\x00\x00\x00\x00\x00\x08\x85eQ]q\x01h\x01at", CapsuleCycle, "[5 6]"},
		{"strings of Python 2", "](U\x03abcU\x01\xe9S'\\xe9'\nS'abc' \nT\x01\x00\x00\x00z(U\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nD\ntQ" +
			"cdatetime\ndate\nU\x04\x07\xe4\x01\x02\x85R]q\x00h\x00ae", CapsuleCycle, "[5]"},
		{"bytes of protocol 5", "](\x96\x02\x00\x00\x00\x00\x00\x00\x00ab]q\x00h\x00ae", CapsuleCycle, "[]"},
		{"keyword arguments", "](cm\nD\n)}X\x01\x00\x00\x00aK\x01s\x92]q\x00h\x00ae", CapsuleCycle, "[]"},
		{"numbers", "](G\x7f\xf8\x00\x00\x00\x00\x00\x01I01\nI-5\nF-0.0\nL5L\n\x8a\x02\x00\x80J\xff\xff\xff\xffM\x01\x02]q\x00h\x00ae", CapsuleCycle, "[]"},
		{"text with NUL and surrogates", "](X\x03\x00\x00\x00a\x00bX\x03\x00\x00\x00\xed\xa0\x80V\\u20ac\n]q\x00h\x00ae", CapsuleCycle, "[]"},
	}
	e := NewEncoder(Options{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			record := classed(c.state)
			row, err := e.Encode(record)
			if err != nil {
				t.Fatal(err)
			}
			if row.Forms[c.form] != 1 {
				t.Errorf("forms %v", row.Forms.AddTo(nil))
			}
			if got := fmt.Sprint(row.Refs); got != c.refs {
				t.Errorf("refs %s, want %s", got, c.refs)
			}
			if c.name == "sharing that explodes" {
				// Its graph cannot be walked strictly but its pickle is the same.
				checkOutput(t, row)
			}
			checkBack(t, record, row)
		})
	}
}

func TestCapsulesCountStringsOfPython2(t *testing.T) {
	state := "](U\x03abcU\x01\xe9S'\\xe9'\n(U\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nD\ntQcdatetime\ndate\nU\x04\x07\xe4\x01\x02\x85R]q\x00h\x00ae"
	row, err := NewEncoder(Options{}).Encode([]byte("(U\x01mU\x01CtN\x86." + state + "."))
	if err != nil {
		t.Fatal(err)
	}
	want := "map[capsule-cycle:1 python2-bytes:2 python2-class:1 python2-text:1]"
	if got := fmt.Sprint(row.Forms.AddTo(nil)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if row.NewCodec {
		t.Error("the old codec reads it, too")
	}
}

// TestTheClassPickleLeavesNothingBehind: what it puts into the memo is there for
// the state, what it leaves on the stack is not.
func TestTheClassPickleLeavesNothingBehind(t *testing.T) {
	for name, record := range map[string]string{
		"memo":          "cm\nC\nq\x05.]q\x00(h\x00h\x05e.",
		"memo, counted": "\x80\x04cm\nC\n\x94.]\x94(h\x01h\x00e.",
		"values below":  "NN]cm\nC\n.]q\x00h\x00a.",
		"open marks":    "N(N((]cm\nC\n.]q\x00h\x00a.",
	} {
		t.Run(name, func(t *testing.T) {
			row, err := NewEncoder(Options{}).Encode([]byte(record))
			if err != nil {
				t.Fatal(err)
			}
			if row.Forms[CapsuleCycle] != 1 {
				t.Errorf("forms %v", row.Forms.AddTo(nil))
			}
			checkBack(t, []byte(record), row)
		})
	}
}

func TestWhatEvenACapsuleDoesNotHoldIsRejected(t *testing.T) {
	cycle := "]q\x00(h\x00"
	cases := []struct{ name, state, reason string }{
		{"an oid beyond bigint", cycle + "C\x08\xff\x00\x00\x00\x00\x00\x00\x00Qe", "0xff00000000000000"},
		{"a class name with a line end", cycle + pickledText("m\nN") + pickledText("C") + "\x93e", "line end"},
		{"text that is not UTF-8", cycle + "X\x01\x00\x00\x00\xffe", "UTF-8"},
		{"a reference in a persistent id", cycle + "C\x0200QQe", "persistent id"},
		{"an extension in a persistent id", cycle + "C\x08\x00\x00\x00\x00\x00\x00\x00\x05\x82\x01\x86Qe", "extension"},
		{"a persistent id that changes later", cycle + "]q\x01Qh\x01Nae", "changed elsewhere"},
		{"a persistent id that holds itself", "]q\x00h\x00aQ", "changed elsewhere"},
		{"a persistent id that explodes", "(Nq\x00" + strings.Repeat("h\x00\x86q\x00", 0) + strings.Repeat("2\x86", 100) + "Q]q\x01h\x01at", "parts"},
		{"an integer of too many digits", cycle + "L" + strings.Repeat("1", 200_000) + "L\ne", "digits"},
		{"classes that explode", strings.Repeat("N", 0) + "](" + pickledText(strings.Repeat("m", 100_000)) + "q\x00" +
			pickledText("C") + "q\x01\x93" + strings.Repeat("h\x00h\x01\x93", 10_000) + "]q\x02h\x02ae", "longer than"},
		{"references that explode", "](C\x08\x00\x00\x00\x00\x00\x00\x00\x05c" + strings.Repeat("m", 100_000) + "\nC\n\x86q\x00Q" +
			strings.Repeat("h\x00Q", 10_000) + "]q\x02h\x02ae", "longer than"},
	}
	e := NewEncoder(Options{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			row, err := e.Encode(classed(c.state))
			var reject *RejectError
			if !errors.As(err, &reject) {
				t.Fatalf("%.300s, error %v", rowText(row), err)
			}
			if !strings.Contains(reject.Reason, c.reason) || reject.Class != "m.C" || reject.Stack != nil {
				t.Errorf("%v\n%s", err, reject.Stack)
			}
		})
	}
}

func rowText(row *Row) string {
	if row == nil {
		return ""
	}
	return string(row.State)
}

func TestSharingIsPreservedOnRequest(t *testing.T) {
	e := NewEncoder(Options{PreserveSharing: true})
	for _, c := range []struct {
		name, state string
		form        Form
		copied      int64
	}{
		{"a list twice", "]q\x00h\x00\x86", CapsuleShared, 0},
		{"an object twice", "cm\nD\n)\x81q\x00}bh\x00\x86", CapsuleShared, 0},
		{"a list in a tuple twice", "]\x85q\x00h\x00\x86", CapsuleShared, 0},
		{"sharing that explodes", doubled(100), CapsuleShared, 0},
		{"text twice", pickledText("a") + "q\x00h\x00\x86", 0, 0},
		{"a tuple twice", pickledText("a") + "\x85q\x00h\x00\x86", 0, 0},
		{"a list twice beside what a capsule does not hold", "]q\x00h\x00\x86", 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := c.state
			if c.copied > 0 {
				state = "X\x01\x00\x00\x00\xff0" + c.state
			}
			row, err := e.Encode(classed(state))
			if err != nil {
				t.Fatal(err)
			}
			if c.form != 0 && row.Forms[c.form] != 1 || c.form == 0 && row.Forms[CapsuleShared] != 0 || row.Forms[SharedCopied] != c.copied {
				t.Errorf("forms %v", row.Forms.AddTo(nil))
			}
			if c.copied == 0 {
				checkBack(t, classed(state), row)
			}
		})
	}
}

// TestWhatIsTooLargeForJSONBIsCompressed does with a megabyte what jsonb does with
// 256 of them.
func TestWhatIsTooLargeForJSONBIsCompressed(t *testing.T) {
	e := NewEncoder(Options{})
	e.most = 1 << 20
	binary := func(data string) []byte {
		return classed("B" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(data)))) + data)
	}
	dull := strings.Repeat("All work and no play makes a dull day. ", 40_000)
	random := make([]byte, 1<<20)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(random); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name     string
		record   []byte
		deflated bool
		reason   string
	}{
		{"bytes", binary(dull), true, ""},
		{"text", classed(pickledText(dull)), true, ""},
		{"many parts", classed("](" + strings.Repeat(pickledText("one of many parts"), 60_000) + "e"), true, ""},
		{"bytes that base64 makes too large", binary(string(random[:800<<10])), false, "compressed"},
		{"text without room for itself", classed(pickledText(strings.Repeat("\n", 100) + dull[:900<<10])), false, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			row, err := e.Encode(c.record)
			if c.reason != "" {
				var reject *RejectError
				if !errors.As(err, &reject) || !strings.Contains(reject.Reason, c.reason) {
					t.Fatalf("%.300v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Contains(row.State, []byte(`"zlib","decompress"`)); got != c.deflated || got != (row.Forms[CapsuleSize] == 1) || len(row.State) > e.most {
				t.Fatalf("%d bytes, forms %v", len(row.State), row.Forms.AddTo(nil))
			}
			checkBack(t, c.record, row)
		})
	}
}

// FuzzCapsule writes any record as a capsule and reads it back: it has to be the
// same, including what is shared.
func FuzzCapsule(f *testing.F) {
	for _, v := range forwardVectors(f) {
		f.Add(v.record(f))
	}
	f.Add(classed("(K\x05im\nD\n(cm\nD\nNo\x86"))
	e := NewEncoder(Options{MaxExpanded: 1 << 20})
	f.Fuzz(func(t *testing.T, record []byte) {
		row, ok := encapsulated(t, e, record)
		if !ok {
			return
		}
		checkOutput(t, row)
		back, err := AppendRecord(nil, string(row.Module), string(row.Name), row.State)
		if err != nil {
			t.Fatalf("the reader: %v\n  %.300s", err, row.State)
		}
		comparison := Comparison{OldStringsAreBytes: true, MaxMemory: 16 << 20}
		if difference, err := comparison.Equal(record, record); difference != "" || err != nil {
			return // nothing can be said about it
		}
		if difference, err := comparison.Equal(record, back); difference != "" || err != nil {
			t.Errorf("%s %v\n  %.300s", difference, err, row.State)
		}
	})
}

// TestHostileRecordsTakeBoundedMemoryAndTime encodes records that are small and
// mean something huge. What is allocated is bounded by the length of the record
// and the longest JSON, whatever the record claims.
func TestHostileRecordsTakeBoundedMemoryAndTime(t *testing.T) {
	const size = 256 << 10
	fill := func(part string) string { return strings.Repeat(part, size/len(part)) }
	numbered := func(format string) string {
		var b strings.Builder
		for i := uint32(0); b.Len() < size; i++ {
			b.WriteString(strings.ReplaceAll(format, "#", string(binary.LittleEndian.AppendUint32(nil, i*2654435761))))
		}
		return b.String()
	}
	wide := "](" + fill("N") + "e" // a list of a million parts
	cases := []struct{ name, state string }{
		{"a length of 4 GiB", "B\xff\xff\xff\xff"},
		{"a length of 2^63", "\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"},
		{"a long integer that is not there", "\x8b\xff\xff\xff\x7f"},
		{"a frame of 2^63 bytes", "\x95\xff\xff\xff\xff\xff\xff\xff\x7fN"},
		{"a memo number of 32 bits", "Nr\xff\xff\xff\xff"},
		{"many memo numbers far apart", numbered("Nr#0") + "N"},
		{"many marks", fill("(")},
		{"many values for nothing", fill("N")},
		{"many lists, each in the next", fill("]") + fill("a")[1:]},
		{"many tuples, each in the next", "N" + fill("\x85")},
		{"many tuples of twice the same", "N" + fill("2\x86")},
		{"many lists that hold the one before twice", "]q\x00" + fill("]q\x01h\x00ah\x00aq\x00")},
		{"a list of a million parts, a thousand times", "(" + wide + "q\x00" + strings.Repeat("h\x00", 1000) + "t"},
		{"the same beside a cycle", "(" + wide + "q\x00" + strings.Repeat("h\x00", 1000) + "]q\x01h\x01at"},
		{"a list of a million parts as an id, a hundred thousand times", "(" + wide + "q\x00" + strings.Repeat("h\x00Q", 100_000) + "t"},
		{"the same with a cycle", "(]q\x01h\x01a" + wide + "q\x00" + strings.Repeat("h\x00Q", 100_000) + "t"},
		{"a text of a megabyte as a key, a thousand times", pickledText(fill("k")) + "q\x000(" + strings.Repeat("}h\x00Ns", 1000) + "t"},
		{"a class name of a megabyte, a thousand times", "(c" + fill("m") + "\nC\nq\x00" + strings.Repeat("h\x00)R", 1000) + "t"},
		{"an integer of a megabyte, a thousand times", "(\x8b\x00\x00\x10\x00" + fill("\x01") + "q\x00" + strings.Repeat("h\x00", 1000) + "t"},
		{"integers of 60 kB", fill("\x8b\x00\xea\x00\x00" + strings.Repeat("\x01", 0xea00))},
		{"an integer of a million digits", "L" + fill("7") + "L\n"},
		{"a float of a million digits", "F" + fill("7") + "\n"},
		{"floats of 309 digits", "(" + fill("G\x7f\xef\xff\xff\xff\xff\xff\xff") + "t"},
		{"strings of Python 2", "(" + fill("U\x01\xff") + "]q\x00h\x00at"},
		{"one old-style instance in the next", fill("(") + "(im\nC\nq\x00}h\x00h\x00sb" + strings.Repeat("im\nC\n", 1000)},
		{"many states on one object", "cm\nC\n)\x81" + fill("}b")},
		{"many globals", "(" + fill("cm\nC\n") + "]q\x00h\x00at"},
		{"many extension codes", "(" + fill("\x82\x01") + "t"},
		{"lists that grow in turn", "]q\x00]q\x01" + fill("h\x00Na0h\x01Na0") + "\x86"},
	}
	for _, options := range []Options{{}, {PreserveSharing: true}} {
		e := NewEncoder(options)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				record := classed(c.state)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				start := time.Now()
				row, err := e.Encode(record)
				took := time.Since(start)
				runtime.ReadMemStats(&after)
				state := 0
				var reject *RejectError
				switch {
				case err == nil:
					state = len(row.State)
				case !errors.As(err, &reject) || reject.Stack != nil:
					t.Fatalf("%v\n%s", err, reject.Stack)
				}
				allocated := after.TotalAlloc - before.TotalAlloc
				t.Logf("%d bytes, %d of JSON, %d allocated, %v: %v", len(record), state, allocated, took, err)
				// What a slice leaves behind while it grows is counted, too.
				if most := 8*uint64(expandedBase+expandedFactor*len(record)) + 200*uint64(len(record)); allocated > most {
					t.Errorf("%d bytes allocated for %d, at most %d", allocated, len(record), most)
				}
				if took > 20*time.Second {
					t.Errorf("it took %v", took)
				}
				e.Trim()
			})
		}
	}
}
