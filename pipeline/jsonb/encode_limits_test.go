package jsonb

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func pickledText(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

// classed is the record of a plain object with this state.
func classed(state string) []byte { return []byte("cm\nC\n." + state + ".") }

// doubled is a list that holds a list twice that holds a list twice, ...
func doubled(levels int) string {
	var b strings.Builder
	for i := range levels {
		fmt.Fprintf(&b, "]q%c", i)
	}
	for i := levels - 1; i > 0; i-- {
		fmt.Fprintf(&b, "ah%ca", i)
	}
	return b.String()
}

func TestEncodeRejects(t *testing.T) {
	cases := []struct {
		name   string
		record []byte
		class  string
		reason string
	}{
		{"an empty record", nil, "", "ends before STOP"},
		{"a class alone", []byte("cm\nC\n."), "m.C", "ends before STOP"},
		{"a class without module", []byte("c\nC\n.N."), "", "no name or no module"},
		{"a class with NUL", []byte("cm\x00\nC\n.N."), "", "NUL"},
		{"a class that is not UTF-8", []byte("cm\xff\nC\n.N."), "", "no text"},
		{"a class name too long for the index", []byte("cm\n" + strings.Repeat("C", 2700) + "\n.N."), "m.", "index"},
		{"constructor arguments", []byte("cm\nC\n(K\x01t\x86.N."), "m.C", "__getnewargs__"},
		{"a list as class", []byte("].N."), "", "list"},
		{"an oid beyond bigint", classed("C\x08\xff\x00\x00\x00\x00\x00\x00\x00Q"), "m.C", "0xff00000000000000"},
		{"a reference in a persistent id", classed("C\x0200QQ"), "m.C", "persistent id"},
		{"text that is not UTF-8", classed("X\x01\x00\x00\x00\xff"), "m.C", "UTF-8"},
		{"a key that is not UTF-8", classed("}X\x01\x00\x00\x00\xffNs"), "m.C", "UTF-8"},
		{"a class pickle with a cycle", []byte("]q\x00h\x00a0cm\nC\n.N."), "m.C", "refers to itself"},
		{"an integer of 200,000 digits", classed("L" + strings.Repeat("1", 200_000) + "L\n"), "m.C", "digits"},
		{"a buffer", classed("\x97"), "m.C", "outside"},
		{"a class name with a line end", classed(pickledText("m\nN") + pickledText("C") + "\x93"), "m.C", "line end"},
	}
	e := NewEncoder(Options{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			row, err := e.Encode(c.record)
			var reject *RejectError
			if !errors.As(err, &reject) {
				t.Fatalf("%+v, error %v", row, err)
			}
			if !strings.Contains(reject.Reason, c.reason) || !strings.HasPrefix(reject.Class, c.class) || reject.Stack != nil {
				t.Errorf("%v\n%s", err, reject.Stack)
			}
			if reject.Offset < 0 || reject.Offset > len(c.record) {
				t.Errorf("offset %d of %d", reject.Offset, len(c.record))
			}
			if _, err := e.Encode(classed("N")); err != nil {
				t.Errorf("the next record: %v", err)
			}
		})
	}
}

func TestEncodeAtItsLimits(t *testing.T) {
	cases := []struct {
		name   string
		record []byte
	}{
		{"600 lists", classed(strings.Repeat("]", 600) + strings.Repeat("a", 599))},
		{"300 tuples", classed("N" + strings.Repeat("\x85", 300))},
		{"a memo number of 32 bits", classed("Nr\xff\xff\xff\xff")},
		{"a long class name", []byte("cm\n" + strings.Repeat("C", 2500) + "\n.N.")},
		{"an integer of 60 kB", classed("\x8b\x00\xea\x00\x00" + strings.Repeat("\x01", 0xea00))},
		{"what follows the state", append(classed("N"), "whatever"...)},
	}
	e := NewEncoder(Options{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			row, err := e.Encode(c.record)
			if err != nil {
				t.Fatal(err)
			}
			checkOutput(t, row)
		})
	}
}

func TestMoreThan100000MemoEntries(t *testing.T) {
	const n = 150_000
	var b strings.Builder
	b.WriteString("](")
	for i := range n {
		b.WriteString(pickledText(fmt.Sprint("text ", i)) + "\x94")
	}
	b.WriteString("ej\x00\x00\x00\x00\x86") // the first text again
	row, err := NewEncoder(Options{}).Encode(classed(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if want := `"text 149999"],"text 0"]}`; !strings.HasSuffix(string(row.State), want) {
		t.Errorf("...%s", row.State[len(row.State)-100:])
	}
}

func TestSharedPartsAreCounted(t *testing.T) {
	cases := []struct {
		name, state string
		want        int64
	}{
		{"a list twice", "]q\x00h\x00\x86", 1},
		{"a list three times", "]q\x00h\x00h\x00\x87", 2},
		{"text twice", pickledText("a") + "q\x00h\x00\x86", 0},
		{"a tuple with a list twice", "]\x85q\x00h\x00\x86", 1},
		{"a tuple of text twice", pickledText("a") + "\x85q\x00h\x00\x86", 0},
		{"a list in a list twice", "]]aq\x00h\x00\x86", 2},
		{"an object twice", "cm\nC\n)\x81q\x00}bh\x00\x86", 2}, // with its state
		{"a date twice", "cdatetime\ndate\nC\x04\x07\xd0\x01\x01\x85Rq\x00h\x00\x86", 0},
		{"a time zone twice", "cpytz\n_UTC\n)Rq\x00h\x00\x86", 0},
		{"a class twice", "cm\nC\nq\x00h\x00\x86", 0},
		{"a reference twice", "C\x0812345678Qq\x00h\x00\x86", 0},
	}
	e := NewEncoder(Options{})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			row, err := e.Encode(classed(c.state))
			if err != nil {
				t.Fatal(err)
			}
			if got := row.Forms[SharedCopied]; got != c.want {
				t.Errorf("%d, want %d: %s", got, c.want, row.State)
			}
		})
	}
}

func TestReferencesInCallablesAreAdded(t *testing.T) {
	const ref = "C\x08\x00\x00\x00\x00\x00\x00\x00"
	row, err := NewEncoder(Options{}).Encode(classed("(" + ref + "\x01Q" + ref + "\x02Q)R" + ref + "\x01Qt"))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(row.Refs) != "[1 2 1]" || row.Forms[RefInCallable] != 1 {
		t.Errorf("%v, %d in callables", row.Refs, row.Forms[RefInCallable])
	}
}

func TestCountsAreAddedByName(t *testing.T) {
	var c Counts
	if got := c.AddTo(nil); got != nil {
		t.Errorf("nothing became %v", got)
	}
	c[FloatSpecial], c[SharedCopied] = 2, 3
	totals := c.AddTo(map[string]int64{"float-special": 1})
	if fmt.Sprint(totals) != "map[float-special:3 shared-copied:3]" {
		t.Error(totals)
	}
	seen := map[string]bool{}
	for f := range NumForms {
		if name := Form(f).String(); name == "" || seen[name] {
			t.Errorf("form %d is named %q", f, name)
		} else {
			seen[name] = true
		}
	}
}

// bigRecord is about size bytes of what large records consist of.
func bigRecord(size int) []byte {
	var b bytes.Buffer
	b.WriteString("cm\nC\n.](")
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "}(%s%s%sG?\xf8\x00\x00\x00\x00\x00\x00%sM\x01\x02%s\x88u",
			pickledText("title"), pickledText(strings.Repeat("Some words that are the title. ", 1+i%3)),
			pickledText("weight"), pickledText("position"), pickledText("public"))
	}
	b.WriteString("e.")
	return b.Bytes()
}

func TestALargeRecordTakesAFewTimesItsSize(t *testing.T) {
	record := bigRecord(16 << 20)
	e := NewEncoder(Options{})
	live := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := live()
	row, err := e.Encode(record)
	if err != nil {
		t.Fatal(err)
	}
	if took := live() - before; took > 100<<20 {
		t.Errorf("%d MB for a record of 16 MB", took>>20)
	}
	if !json.Valid(row.State) {
		t.Error("no JSON")
	}
	if _, err := e.Encode(classed("N")); err != nil {
		t.Fatal(err)
	}
	if kept := live() - before; kept > 8<<20 {
		t.Errorf("%d MB kept after the next record", kept>>20)
	}
	runtime.KeepAlive(e)
	runtime.KeepAlive(record)
}

func TestMeasureFindsWhatJSONBDoesNotHold(t *testing.T) {
	cases := []struct {
		name string
		text string
		want string
	}{
		{"small", `{"a":[1,2.5,"x\"\u0001",null,true,false,-1e-7]}`, ""},
		{"long text", `["` + strings.Repeat("x", maxJSONB) + `"]`, "256 MiB"},
		{"many short parts", `[` + strings.Repeat(`["aaaaaaa"],`, maxJSONB/20) + `1]`, "256 MiB"},
		{"many elements", `[` + strings.Repeat(`n,`, 0) + strings.Repeat(`null,`, maxElements) + `null]`, "elements"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := measure{text: []byte(c.text), most: maxJSONB}
			m.value()
			if m.pos != len(c.text) {
				t.Errorf("stopped at %d of %d", m.pos, len(c.text))
			}
			if !strings.Contains(m.problem, c.want) || c.want == "" && m.problem != "" {
				t.Errorf("%q, want %q", m.problem, c.want)
			}
		})
	}
}

// FuzzEncode encodes any bytes. Whatever comes out is a row that PostgreSQL can
// hold, and does not depend on what was encoded before.
func FuzzEncode(f *testing.F) {
	for _, v := range forwardVectors(f) {
		f.Add(v.record(f))
	}
	f.Add(classed(doubled(60)))
	options := Options{MaxExpanded: 1 << 20}
	used := NewEncoder(options)
	options.PreserveSharing = true
	sharing := NewEncoder(options)
	options.PreserveSharing = false
	f.Fuzz(func(t *testing.T, record []byte) {
		if row, err := sharing.Encode(record); err == nil {
			checkOutput(t, row)
		} else if _, err := used.Encode(record); err == nil {
			t.Error("only without the sharing preserved it has a form")
		}
		row, err := used.Encode(record)
		fresh, freshErr := NewEncoder(options).Encode(record)
		if err != nil {
			var reject *RejectError
			if !errors.As(err, &reject) || reject.Stack != nil || reject.Offset < 0 || reject.Offset > len(record) {
				t.Fatalf("%v\n%s", err, reject.Stack)
			}
			if freshErr == nil || freshErr.Error() != err.Error() {
				t.Errorf("used: %v\nfresh: %v", err, freshErr)
			}
			return
		}
		checkOutput(t, row)
		if freshErr != nil || !bytes.Equal(row.State, fresh.State) || row.Forms != fresh.Forms || fmt.Sprint(row.Refs) != fmt.Sprint(fresh.Refs) {
			t.Errorf("a used Encoder gives %s %v, a fresh one %s %v", row.State, row.Forms, fresh.State, fresh.Forms)
		}
		if len(row.State) > options.MaxExpanded+7*len(record)+400 {
			t.Errorf("%d bytes of JSON", len(row.State))
		}
	})
}
