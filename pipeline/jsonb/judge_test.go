package jsonb

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// judged is a record with the row that holds it.
type judged struct {
	label  string
	record []byte
	row    Stored
}

// encodedFor is the row that the encoder makes of a record, with its state as
// PostgreSQL prints it; ok is false for a reject.
func encodedFor(t testing.TB, e *Encoder, label string, record []byte) (_ judged, ok bool) {
	t.Helper()
	row, err := e.Encode(record)
	if err != nil {
		return judged{}, false
	}
	return judged{label, record, Stored{
		Module: slices.Clone(row.Module), Name: slices.Clone(row.Name),
		State: printed(normal(t, row.State)), Refs: slices.Clone(row.Refs),
	}}, true
}

// printed is the text of a jsonb, as PostgreSQL prints it.
func printed(value any) []byte { return appendPrinted(nil, value) }

func appendPrinted(b []byte, value any) []byte {
	switch v := value.(type) {
	case nil:
		return append(b, "null"...)
	case bool:
		return fmt.Append(b, v)
	case json.Number:
		return append(b, v...)
	case string:
		return appendPrintedString(b, v)
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendPrinted(b, e)
		}
		return append(b, ']')
	}
	members := value.(map[string]any)
	b = append(b, '{')
	for i, k := range sortedKeys(members) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(appendPrintedString(b, k), ": "...)
		b = appendPrinted(b, members[k])
	}
	return append(b, '}')
}

// sortedKeys are the keys of an object in the order of a jsonb.
func sortedKeys(members map[string]any) []string {
	keys := make([]string, 0, len(members))
	for k := range members {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return keys
}

func appendPrintedString(b []byte, text string) []byte {
	b = append(b, '"')
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ':
			b = append(b, c)
		default:
			if at := strings.IndexByte("\b\f\n\r\t", c); at >= 0 {
				b = append(b, '\\', "bfnrt"[at])
			} else {
				b = fmt.Appendf(b, `\u%04x`, c)
			}
		}
	}
	return append(b, '"')
}

// agreement counts what the fast way came to, and compares with the other one.
type agreement struct {
	fast, slow               Judge
	same, left, wrong, total int
}

// check compares both ways on a row.
func (a *agreement) check(t testing.TB, c *judged) (want Verdict) {
	t.Helper()
	want = a.slow.compareGraphs(c.record, &c.row)
	a.total++
	if !a.fast.fast.same(c.record, &c.row) {
		a.left++
		return want
	}
	a.same++
	got := a.fast.fast.verdict()
	if got.Outcome != want.Outcome || !slices.Equal(got.Deviations, want.Deviations) {
		if a.wrong++; a.wrong <= 10 {
			t.Errorf("%s: the fast way finds %v %v, the graphs %v %v %s: %s became %s\n  %.600s\n  %.600q", c.label,
				got.Outcome, got.Deviations, want.Outcome, want.Deviations, want.Path, want.Source, want.Stored, c.row.State, c.record)
		}
	}
	return want
}

func (a *agreement) String() string {
	return fmt.Sprintf("%d rows, %d by the fast way, %d left to the graphs", a.total, a.same, a.left)
}

func vectorRecords(t testing.TB) (records []judged) {
	t.Helper()
	e := NewEncoder(Options{})
	for _, v := range recordedVectors(t, "fwd") {
		record, err := hex.DecodeString(v.RecordHex)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := encodedFor(t, e, v.ID, record); ok {
			records = append(records, c)
		}
	}
	return records
}

// endless is a budget without bounds.
type endless struct{}

func (endless) Acquire(context.Context, int64) error { return nil }
func (endless) Release(int64)                        {}

// databaseRecords are the records of a database of testdata that have a form.
func databaseRecords(t testing.TB, path string) (records []judged) {
	t.Helper()
	ctx := t.Context()
	src, err := filestorage.Open(ctx, path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Scan(ctx, source.ScanOptions{History: true}); err != nil {
		t.Fatal(err)
	}
	e := NewEncoder(Options{})
	err = src.Read(ctx, source.ReadOptions{ChunkBytes: 1 << 20, Budget: endless{}}, func(chunk *source.Chunk) error {
		defer chunk.Release()
		for i := range chunk.Records {
			var scratch []byte
			data, err := src.Data(ctx, &chunk.Records[i], &scratch)
			if err != nil || len(data) == 0 {
				continue // a record that cannot be read has no row
			}
			label := fmt.Sprintf("%s %v", filepath.Base(path), chunk.Records[i].OID)
			if c, ok := encodedFor(t, e, label, slices.Clone(data)); ok {
				records = append(records, c)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestJudgeFindsNothingInWhatTheEncoderWrites(t *testing.T) {
	databases, err := filepath.Glob("../../testdata/*.fs")
	if err != nil || len(databases) == 0 {
		t.Fatal("no databases in testdata", err)
	}
	all := map[string][]judged{"vectors": vectorRecords(t)}
	for _, path := range databases {
		all[filepath.Base(path)] = databaseRecords(t, path)
	}
	for name, records := range all {
		var a agreement
		for i := range records {
			if v := a.check(t, &records[i]); v.Outcome > Deviating {
				t.Errorf("%s: %+v", records[i].label, v)
			}
		}
		t.Logf("%s: %v", name, &a)
		if name == "plone.fs" && a.left*50 > a.total {
			t.Errorf("%s: the fast way is to take nearly all: %v", name, &a)
		}
	}
}

// TestJudgeIsNeverCertainOfADifference changes rows in one place, in every way in
// which a row can be wrong, and lets both ways judge.
func TestJudgeIsNeverCertainOfADifference(t *testing.T) {
	records := vectorRecords(t)
	for _, name := range []string{"plone.fs", "btrees.fs", "py2-site.fs", "py2-values.fs", "odd.fs"} {
		records = append(records, databaseRecords(t, "../../testdata/"+name)...)
	}
	random := rand.New(rand.NewPCG(1, 2))
	var a agreement
	found := 0
	rounds := 20_000
	if testing.Short() {
		rounds = 2000
	}
	for range rounds {
		c := records[random.IntN(len(records))]
		if len(c.record) > 20_000 {
			continue
		}
		c.mutate(t, random)
		if v := a.check(t, &c); v.Outcome == Different {
			found++
		}
	}
	t.Logf("%v, %d differ", &a, found)
	if found < rounds/2 {
		t.Errorf("only %d of %d changes made a difference", found, rounds)
	}
}

// TestJudgeIsNeverCertainOfAnotherRecord changes a byte or two of a record and
// judges the row of the record before.
func TestJudgeIsNeverCertainOfAnotherRecord(t *testing.T) {
	records := vectorRecords(t)
	for _, name := range []string{"plone.fs", "py2-site.fs", "odd.fs"} {
		records = append(records, databaseRecords(t, "../../testdata/"+name)...)
	}
	random := rand.New(rand.NewPCG(3, 4))
	var a agreement
	a.slow.MaxMemory = 16 << 20
	outcomes := map[Outcome]int{}
	rounds := 20_000
	if testing.Short() {
		rounds = 2000
	}
	for range rounds {
		c := records[random.IntN(len(records))]
		if len(c.record) > 5000 {
			continue
		}
		c.label += " of a changed record"
		c.record = slices.Clone(c.record)
		for range 1 + random.IntN(2) {
			at := random.IntN(len(c.record))
			switch random.IntN(4) {
			case 0:
				c.record[at] = "()NKXUt}u]eqhcQRb.\x81\x85\x86\x87\x88as0"[random.IntN(26)]
			case 1:
				c.record[at] ^= 1 << random.IntN(8)
			case 2:
				c.record = slices.Delete(c.record, at, at+1)
			default:
				c.record = slices.Insert(c.record, at, c.record[random.IntN(len(c.record))])
			}
			if len(c.record) == 0 {
				break
			}
		}
		outcomes[a.check(t, &c).Outcome]++
	}
	t.Logf("%v, outcomes %v", &a, outcomes)
}

func TestJudgeTells(t *testing.T) {
	capsule := func(pickle string) string {
		return `{"@reduce": {"args": {"@t": [{"@b": "` + base64.StdEncoding.EncodeToString([]byte(pickle)) +
			`"}]}, "callable": {"@cls": ["pickle", "loads"]}}}`
	}
	const ref = "C\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nC\n\x86Q."
	cases := []struct {
		name, record, state string
		refs                []int64
		want                Verdict
	}{
		{name: "same", record: "}X\x01\x00\x00\x00aK\x01s.", state: `{"a": 1}`},
		{name: "a digit", record: "}X\x01\x00\x00\x00aK\x01s.", state: `{"a": 2}`,
			want: Verdict{Outcome: Different, What: "value", Path: `[str "a"]`, Source: "int 1", Stored: "int 2"}},
		{name: "a key", record: "}X\x01\x00\x00\x00aK\x01s.", state: `{"b": 1}`,
			want: Verdict{Outcome: Different, What: "value", Path: "/", Source: `str "a"`, Stored: `str "b"`}},
		{name: "a type", record: "K\x01.", state: "1.0",
			want: Verdict{Outcome: Different, What: "value", Path: "/", Source: "int 1", Stored: "float 1 (3ff0000000000000)"}},
		{name: "a marker", record: "(K\x01t.", state: "[1]",
			want: Verdict{Outcome: Different, What: "value", Path: "/", Source: "tuple", Stored: "list"}},
		{name: "an element", record: "](K\x01K\x02e.", state: "[1]",
			want: Verdict{Outcome: Different, What: "value", Path: "/", Source: "list of 2", Stored: "list of 1"}},
		{name: "a part that was shared", record: "(]q\x00h\x00t.", state: `{"@t": [[], []]}`,
			want: Verdict{Outcome: Deviating, Deviations: []Form{SharedCopied}}},
		{name: "parts that were separate", record: "(]]t.", state: capsule("(]q\x00h\x00t."),
			want: Verdict{Outcome: Different, What: "value", Path: "[1]"}},
		{name: "a capsule that keeps what is shared", record: "(]q\x00h\x00t.", state: capsule("(]q\x00h\x00t.")},
		{name: "text of Python 2", record: "U\x02ab.", state: `"ab"`},
		{name: "bytes of Python 2", record: "U\x01\xe9.", state: `{"@b": "6Q=="}`,
			want: Verdict{Outcome: Deviating, Deviations: []Form{Python2Bytes}}},
		{name: "both", record: "(U\x01\xe9]q\x00h\x00t.", state: `{"@t": [{"@b": "6Q=="}, [], []]}`,
			want: Verdict{Outcome: Deviating, Deviations: []Form{SharedCopied, Python2Bytes}}},
		{name: "a reference", record: ref, state: `{"@ref": ["0000000000000005", "m.C"]}`, refs: []int64{5}},
		{name: "a reference twice", record: ref, state: `{"@ref": ["0000000000000005", "m.C"]}`, refs: []int64{5, 5}},
		{name: "a reference to another object", record: ref, state: `{"@ref": ["0000000000000006", "m.C"]}`, refs: []int64{5},
			want: Verdict{Outcome: Different, What: "value", Path: "/pid[0]",
				Source: `bytes b"\x00\x00\x00\x00\x00\x00\x00\x05"`, Stored: `bytes b"\x00\x00\x00\x00\x00\x00\x00\x06"`}},
		{name: "a reference that pack does not see", record: ref, state: `{"@ref": ["0000000000000005", "m.C"]}`,
			want: Verdict{Outcome: Different, What: "refs", Path: "refs", Source: "0x0000000000000005", Stored: "no reference"}},
		{name: "a reference too many", record: "N.", state: "null", refs: []int64{7},
			want: Verdict{Outcome: Different, What: "refs", Path: "refs", Source: "no reference", Stored: "0x0000000000000007"}},
		{name: "no state", record: "N.",
			want: Verdict{Outcome: Different, What: "unreadable", Path: "/", Source: "None", Stored: "NULL"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var j Judge
			row := Stored{Module: []byte("m"), Name: []byte("C"), Refs: c.refs}
			if c.state != "" {
				row.State = []byte(c.state)
			}
			got := j.Compare(withClass(c.record), &row)
			got.Err = nil
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			graphs := j.compareGraphs(withClass(c.record), &row)
			if graphs.Err = nil; !reflect.DeepEqual(graphs, c.want) {
				t.Errorf("by the graphs %+v\nwant %+v", graphs, c.want)
			}
		})
	}
}

// mutate changes one thing in a row.
func (c *judged) mutate(t testing.TB, random *rand.Rand) {
	c.label += " mutated"
	switch random.IntN(20) {
	case 0:
		c.row.Refs = slices.Clone(c.row.Refs)
		if n := len(c.row.Refs); n > 0 && random.IntN(2) == 0 {
			c.row.Refs[random.IntN(n)] ^= 1 << random.IntN(20)
		} else if n > 0 {
			c.row.Refs = c.row.Refs[1:]
		} else {
			c.row.Refs = append(c.row.Refs, 1)
		}
	case 1:
		c.row.Name = append(slices.Clone(c.row.Name), 'x')
	case 2:
		c.row.Module, c.row.Name = c.row.Name, c.row.Module
	case 3, 4: // a byte, whatever it means
		c.row.State = slices.Clone(c.row.State)
		c.row.State[random.IntN(len(c.row.State))] = `0123456789"{}[]:, @x\`[random.IntN(21)]
	default:
		value := normal(t, c.row.State)
		at := random.IntN(count(value))
		c.row.State = printed(mutated(value, &at, random))
	}
}

// count is the number of values and keys in a JSON value.
func count(value any) int {
	n := 1
	switch v := value.(type) {
	case []any:
		for _, e := range v {
			n += count(e)
		}
	case map[string]any:
		for _, e := range v {
			n += 1 + count(e)
		}
	}
	return n
}

// mutated changes what stands at a place.
func mutated(value any, at *int, random *rand.Rand) any {
	if *at--; *at < 0 {
		*at = 1 << 30
		return otherThan(value, random)
	}
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = mutated(v[i], at, random)
		}
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if *at--; *at < 0 {
				*at = 1 << 30
				e := v[k]
				delete(v, k)
				v[otherKey(k, random)] = e
				return v
			}
			v[k] = mutated(v[k], at, random)
		}
	}
	return value
}

var markerKeys = []string{"@t", "@b", "@d", "@s", "@cls", "@ref", "@ns", "@set", "@fset", "@dt", "@date", "@time",
	"@td", "@dec", "@kv", "@ks", "@next", "@first", "@children", "@newobj", "@items", "@bi", "@uuid", "@x", "args", "state",
	"@args", "@state", "@tz", "@pkl", "@inst", "@reduce"}

func otherKey(key string, random *rand.Rand) string {
	switch random.IntN(3) {
	case 0:
		return markerKeys[random.IntN(len(markerKeys))]
	case 1:
		return key + "x"
	}
	return otherText(key, random)
}

func otherText(text string, random *rand.Rand) string {
	if text == "" {
		return "x"
	}
	raw := []byte(text)
	at := random.IntN(len(raw))
	switch c := raw[at]; {
	case c >= 0x80:
		return text + "é"
	case random.IntN(4) == 0:
		return text[:at] + text[at+1:]
	case '0' <= c && c <= '9':
		raw[at] = '0' + (c-'0'+1)%10
	default:
		raw[at] = "aZ9+/\"\\\n"[random.IntN(8)]
	}
	return string(raw)
}

func otherThan(value any, random *rand.Rand) any {
	if random.IntN(6) == 0 {
		return []any{nil, true, json.Number("0"), json.Number("1.0"), "", []any{}, map[string]any{},
			map[string]any{"@t": []any{}}, map[string]any{"@b": ""}, map[string]any{"@ns": "AA=="}, map[string]any{"@ns": "YQ=="}}[random.IntN(11)]
	}
	switch v := value.(type) {
	case bool:
		return !v
	case json.Number:
		return otherNumber(v, random)
	case string:
		return otherText(v, random)
	case []any:
		return otherList(v, random)
	case map[string]any:
		v[otherKey("k", random)] = []any{nil, json.Number("1"), "x", []any{}}[random.IntN(4)]
		return v
	}
	return false
}

func otherNumber(v json.Number, random *rand.Rand) json.Number {
	switch random.IntN(4) {
	case 0:
		return plainNumber(string(v) + "e1")
	case 1:
		if !strings.Contains(string(v), ".") {
			return v + ".0"
		}
		return v + "1"
	case 2:
		if trimmed, negative := strings.CutPrefix(string(v), "-"); negative {
			return json.Number(trimmed)
		}
		return plainNumber("-" + string(v))
	}
	raw := []byte(v)
	for i, c := range raw {
		if '1' <= c && c < '9' {
			raw[i]++
			break
		}
	}
	return json.Number(raw)
}

func otherList(v []any, random *rand.Rand) any {
	if len(v) == 0 {
		return []any{nil}
	}
	at := random.IntN(len(v))
	switch random.IntN(4) {
	case 0:
		return append(slices.Clone(v[:at]), v[at+1:]...)
	case 1:
		return append(slices.Clone(v[:at+1]), v[at:]...)
	case 2:
		other := random.IntN(len(v))
		v[at], v[other] = v[other], v[at]
		return v
	}
	return map[string]any{"@t": v}
}

// TestJudgeAgreesOnRandomGraphs makes pickles of random graphs as Python's
// picklers do, with shared parts, Python 2 strings, references and BTrees.
func TestJudgeAgreesOnRandomGraphs(t *testing.T) {
	rounds := 20_000
	if testing.Short() {
		rounds = 2000
	}
	e := NewEncoder(Options{})
	var plain, changed agreement
	for seed := range rounds {
		random := rand.New(rand.NewPCG(uint64(seed), 7))
		c, ok := encodedFor(t, e, fmt.Sprintf("seed %d", seed), randomRecord(random))
		if !ok {
			continue
		}
		if v := plain.check(t, &c); v.Outcome > Deviating {
			t.Errorf("%s: %+v\n  %.500s", c.label, v, c.row.State)
		}
		c.mutate(t, random)
		changed.check(t, &c)
	}
	t.Logf("as encoded: %v; mutated: %v", &plain, &changed)
	if plain.total < rounds*9/10 || plain.left*3 > plain.total {
		t.Errorf("too few are judged by the fast way: %v", &plain)
	}
}

// pickler writes random pickles.
type pickler struct {
	*rand.Rand
	out   []byte
	kept  int   // entries of the memo
	lists []int // those of them that may be used again
}

// randomRecord is a record of random contents.
func randomRecord(random *rand.Rand) []byte {
	p := pickler{Rand: random}
	classes := []string{"app\nItem", "persistent.mapping\nPersistentMapping", "BTrees.OOBTree\nOOBTree", "BTrees.IIBTree\nIISet",
		"BTrees.OOBTree\nOOBucket", "BTrees.OOBTree\nOOTreeSet", "BTrees.Length\nLength"}
	class := classes[random.IntN(len(classes))]
	switch random.IntN(3) {
	case 0:
		p.out = append(append(append(p.out, 'c'), class...), "\n."...)
	case 1:
		p.out = append(append(append(p.out, 'c'), class...), "\n)\x86."...)
	default:
		p.out = append(append(append(p.out, "\x80\x03c"...), class...), "\nq\x00N\x86."...)
		p.kept = 1
	}
	p.out = append(p.out, "\x80\x02"...)
	if strings.HasPrefix(class, "BTrees") && random.IntN(4) > 0 {
		p.btree(class)
	} else if random.IntN(4) > 0 {
		p.dict(3)
	} else {
		p.value(3)
	}
	return append(p.out, '.')
}

func (p *pickler) text() {
	words := []string{"", "a", "title", "x\"y", "back\\slash", "line\nbreak", "tab\t", "über", "日本語", "\x01", "@t", "@ns:YQ==", "creation_date", "_p", "12345678", "exactly 8", "\x7f"}
	text := words[p.IntN(len(words))]
	if p.IntN(20) == 0 {
		text = strings.Repeat(text, 40)
	}
	switch p.IntN(4) {
	case 0:
		p.out = append(append(p.out, 'U', byte(min(len(text), 255))), text[:min(len(text), 255)]...)
	default:
		p.out = append(binary.LittleEndian.AppendUint32(append(p.out, 'X'), uint32(len(text))), text...)
	}
	p.memoize(false)
}

// memoize keeps the top of the stack at times.
func (p *pickler) memoize(again bool) {
	if p.IntN(3) == 0 || p.kept > 250 {
		return
	}
	if again {
		p.lists = append(p.lists, p.kept)
	}
	p.out = append(p.out, 'q', byte(p.kept))
	p.kept++
}

func (p *pickler) oid() {
	p.out = append(p.out, "UC"[p.IntN(2)], 8, 0, 0, 0, 0, 0, 0, byte(p.IntN(200)), byte(p.IntN(256)))
}

func (p *pickler) ref() {
	p.out = append(p.out, '(')
	p.oid()
	switch p.IntN(4) {
	case 0:
		p.out = append(p.out, "NtQ"...)
	case 1: // a weak one
		p.out = append(p.out[:len(p.out)-11], "](U\x01w("...)
		p.oid()
		p.out = append(p.out, []string{"teQ", "X\x04\x00\x00\x00mainteQ"}[p.IntN(2)]...)
	default:
		p.out = append(p.out, "cProducts.Some\nThing\ntQ"...)
	}
}

func (p *pickler) btree(class string) {
	if p.IntN(6) == 0 {
		p.out = append(p.out, 'N')
		return
	}
	if p.IntN(4) == 0 && strings.Contains(class, "Tree\n") == false {
		p.out = append(p.out, "(("...)
		p.ref()
		p.value(0)
		p.ref()
		p.out = append(p.out, 't')
		p.ref()
		p.out = append(p.out, 't')
		return
	}
	p.out = append(p.out, '(')
	for range p.IntN(6) {
		p.value(0)
		if !strings.HasSuffix(class, "Set") {
			p.value(1)
		}
	}
	p.out = append(p.out, 't')
	switch {
	case strings.HasSuffix(class, "BTree"), strings.HasSuffix(class, "TreeSet"):
		p.out = append(p.out, "\x85\x85\x85"...)
	case p.IntN(2) == 0:
		p.out = append(p.out, '\x85')
	default:
		p.ref()
		p.out = append(p.out, '\x86')
	}
}

func (p *pickler) dict(depth int) {
	p.out = append(p.out, '}')
	p.memoize(true)
	p.out = append(p.out, '(')
	texts := p.IntN(8) > 0
	for range p.IntN(7) {
		if texts {
			p.text()
		} else {
			p.value(0)
		}
		p.value(depth - 1)
	}
	p.out = append(p.out, 'u')
}

func (p *pickler) scalar() {
	switch p.IntN(12) {
	case 10:
		p.out = append(p.out, []string{"I01\n", "I00\n", "I-123456\n", "L99999999999L\n", "L0L\n"}[p.IntN(5)]...)
	case 11:
		p.uuid()
	case 0:
		p.out = append(p.out, 'N')
	case 1:
		p.out = append(p.out, "\x88\x89"[p.IntN(2)])
	case 2:
		p.out = append(p.out, 'K', byte(p.IntN(256)))
	case 3:
		p.out = binary.LittleEndian.AppendUint32(append(p.out, 'J'), p.Uint32()>>p.IntN(32))
	case 4:
		size := p.IntN(9)
		p.out = append(p.out, 0x8a, byte(size))
		for range size {
			p.out = append(p.out, byte(p.IntN(256)))
		}
	case 5:
		p.float()
	case 6:
		p.out = append(p.out, 'C', 3, byte(p.IntN(256)), 0, 255)
	case 7:
		p.out = append(p.out, 'U', 2, 0xe9, byte(p.IntN(256)))
	default:
		p.text()
	}
}

func (p *pickler) uuid() {
	size := 1 + p.IntN(17)
	p.out = append(p.out, "cuuid\nUUID\n)\x81}U\x03int\x8a"...)
	p.out = append(p.out, byte(size))
	for range size {
		p.out = append(p.out, byte(p.IntN(256)))
	}
	if size == 17 {
		p.out[len(p.out)-1] = 0
	}
	p.out = append(p.out, "sb"...)
	p.memoize(true)
}

func (p *pickler) float() {
	floats := []float64{0, 1, -1.5, 0.1, 1e-7, 123456789.125, 1e15, 1e16, 1e22, 1e300, 5e-324, 1.0 / 3, -0.0001}
	v := floats[p.IntN(len(floats))]
	if p.IntN(2) == 0 {
		v = p.NormFloat64()
	}
	p.out = append(p.out, 'G')
	p.out = append(p.out, floatSymbol(v).text...)
}

func (p *pickler) value(depth int) {
	if depth <= 0 {
		p.scalar()
		return
	}
	switch p.IntN(14) {
	case 0:
		p.list(depth)
	case 1:
		size := p.IntN(6)
		p.out = append(p.out, '(')
		for range size {
			p.value(depth - 1)
		}
		p.out = append(p.out, 't')
	case 2, 3:
		p.dict(depth)
	case 4:
		p.ref()
	case 5:
		p.instance(depth)
	case 6:
		p.moment()
	case 7:
		p.set()
	case 8:
		if len(p.lists) > 0 && p.IntN(3) == 0 {
			p.out = append(p.out, 'h', byte(p.lists[p.IntN(len(p.lists))]))
			return
		}
		p.scalar()
	case 9:
		p.out = append(p.out, "cmod.sub\nfunction\n"...)
	default:
		p.scalar()
	}
}

func (p *pickler) list(depth int) {
	p.out = append(p.out, ']')
	p.memoize(true)
	for range p.IntN(3) {
		if p.IntN(2) == 0 {
			p.value(depth - 1)
			p.out = append(p.out, 'a')
			continue
		}
		p.out = append(p.out, '(')
		for range p.IntN(5) {
			p.value(depth - 1)
		}
		p.out = append(p.out, 'e')
	}
}

func (p *pickler) instance(depth int) {
	starts := []string{"capp\nPart\n)\x81", "ccopy_reg\n_reconstructor\n(capp\nOld\nc__builtin__\nobject\nNtR",
		"capp\nMade\n)R", "capp\nWith\nK\x01\x85\x81", "capp\nCalled\nX\x01\x00\x00\x00a\x85R", "cBTrees.OOBTree\nOOBTree\n)\x81", "(iapp\nClassic\n"}
	p.out = append(p.out, starts[p.IntN(len(starts))]...)
	p.memoize(true)
	switch p.IntN(8) {
	case 0:
		p.text()
		p.value(depth - 1)
		p.out = append(p.out, 's')
	case 1:
		p.out = append(p.out, '(')
		p.value(depth - 1)
		p.value(0)
		p.out = append(p.out, 'e')
	case 2:
		p.value(depth - 1)
		p.out = append(p.out, "a(K\x01K\x02K\x03Nu"...)
	}
	switch p.IntN(5) {
	case 0:
	case 1:
		p.value(depth - 1)
		p.out = append(p.out, 'b')
	default:
		p.dict(depth - 1)
		p.out = append(p.out, 'b')
	}
}

func (p *pickler) moment() {
	kind := byte("UC"[p.IntN(2)])
	date := []byte{7, byte(200 + p.IntN(40)), byte(1 + p.IntN(12)), byte(1 + p.IntN(28))}
	clock := []byte{byte(p.IntN(24)), byte(p.IntN(60)), byte(p.IntN(60)), 0, byte(p.IntN(2)), byte(p.IntN(256))}
	zones := []string{"\x85R", "\x85R", "cpytz\n_p\nX\x0d\x00\x00\x00Europe/ViennaM\x10\x0eK\x00U\x03CET" + "(t\x85R", "cpytz\n_UTC\n)R\x86R",
		"cpytz\n_p\n(X\x0d\x00\x00\x00Europe/ViennaM\x10\x0eK\x00U\x03CETtR\x86R",
		"cdatetime\ntimezone\ncdatetime\ntimedelta\nK\x00M\x10\x0eK\x00\x87R\x85R\x86R"}
	zone := zones[p.IntN(2)]
	if p.IntN(2) == 0 {
		zone = zones[3+p.IntN(3)]
	}
	switch p.IntN(5) {
	case 0:
		p.out = append(append(append(p.out, "cdatetime\ndate\n"...), kind, 4), date...)
		p.out = append(p.out, "\x85R"...)
	case 1:
		p.out = append(append(append(p.out, "cdatetime\ntime\n"...), kind, 6), clock...)
		p.out = append(p.out, zone...)
	case 2:
		p.out = append(p.out, "cdatetime\ntimedelta\nK\x01J\xff\xff\xff\xffK\x07\x87R"...)
	case 3:
		p.out = append(p.out, "cdecimal\nDecimal\nX\x03\x00\x00\x001.5\x85R"...)
	default:
		p.out = append(append(append(append(p.out, "cdatetime\ndatetime\n"...), kind, 10), date...), clock...)
		p.out = append(p.out, zone...)
	}
	p.memoize(true)
}

func (p *pickler) set() {
	p.out = append(p.out, []string{"c__builtin__\nset\n", "cbuiltins\nset\n", "cbuiltins\nfrozenset\n"}[p.IntN(3)]...)
	p.out = append(p.out, "](K\x01K\x02X\x01\x00\x00\x00ae"...)
	p.memoize(false)
	p.out = append(p.out, "\x85R"...)
	p.memoize(true)
}

// FuzzJudge takes a record and the text of a row: what the fast way is certain of
// must be what the graphs say.
// A record of millions of values is compared without a graph, whose memory would
// be that of the whole machine.
func TestJudgeTakesLargeRecordsSideBySide(t *testing.T) {
	const values = 3_000_000
	record := append([]byte("\x80\x02capp\nThing\n.\x80\x02]("), bytes.Repeat([]byte("K\x07"), values)...)
	record = append(record, "e."...)
	row := Stored{Module: []byte("app"), Name: []byte("Thing"), State: append(append([]byte("["), bytes.Repeat([]byte("7, "), values-1)...), "7]"...)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	v := new(Judge).Compare(record, &row)
	runtime.ReadMemStats(&after)
	if taken := (after.TotalAlloc - before.TotalAlloc) >> 20; v.Outcome != Same || taken > 512 {
		t.Errorf("%+v, %d MB allocated", v, taken)
	}
	row.State[len(row.State)-2] = '8'
	if v := new(Judge).Compare(record[:0:0], &row); v.Outcome != Unknown {
		t.Errorf("no record: %+v", v)
	}
	if v := (&Judge{MaxMemory: 64 << 20}).Compare(record, &row); v.Outcome == Same || v.Outcome == Deviating {
		t.Errorf("another value: %+v", v)
	}
}

func FuzzJudge(f *testing.F) {
	for _, c := range vectorRecords(f) {
		if len(c.record) < 2000 {
			f.Add(c.record, string(c.row.Module), string(c.row.Name), string(c.row.State))
		}
	}
	for seed := range 100 {
		random := rand.New(rand.NewPCG(uint64(seed), 3))
		if c, ok := encodedFor(f, NewEncoder(Options{}), "", randomRecord(random)); ok {
			f.Add(c.record, string(c.row.Module), string(c.row.Name), string(c.row.State))
		}
	}
	f.Fuzz(func(t *testing.T, record []byte, module, name, state string) {
		var j Judge
		j.MaxMemory = 16 << 20
		row := Stored{Module: []byte(module), Name: []byte(name), State: []byte(state)}
		// The references are not what is judged here: they are those of the record.
		room := j.MaxMemory
		if _, value, err := executeRecord(record, &room); err == nil {
			row.Refs, _ = appendReferences(nil, value, room)
		}
		if !j.fast.same(record, &row) {
			return
		}
		if v := j.compareGraphs(record, &row); v.Outcome == Different || v.Outcome == Unknown && bytes.Contains([]byte(v.Err.Error()), []byte("read")) {
			t.Errorf("the fast way is certain, the graphs find %+v", v)
		}
	})
}

// FuzzJudgeOfEncoded takes a record, and judges the row that the encoder makes of
// it: both ways must find the same, and nothing that no conversion declares.
func FuzzJudgeOfEncoded(f *testing.F) {
	for _, c := range vectorRecords(f) {
		if len(c.record) < 2000 {
			f.Add(c.record)
		}
	}
	for seed := range 200 {
		f.Add(randomRecord(rand.New(rand.NewPCG(uint64(seed), 9))))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		c, ok := encodedFor(t, NewEncoder(Options{MaxExpanded: 1 << 20}), "", record)
		if !ok {
			return
		}
		var a agreement
		a.slow.MaxMemory = 64 << 20
		v := a.check(t, &c)
		// A reference that the pickle makes and drops is among the encoder's, because
		// the capsule of such a pickle makes it, too.
		dropped := v.What == "refs" && v.Source == "no reference"
		if v.Outcome == Different && !dropped {
			t.Errorf("%+v\n  %.500s", v, c.row.State)
		}
	})
}
