package pgjsonb_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var update = flag.Bool("update", false, "write the table in docs/fidelity.md anew")

const (
	fidelityPage = "../../docs/fidelity.md"
	codecOracle  = "../../scripts/py/codecoracle.py"
)

// specimen is a record whose way through PostgreSQL is followed: a recorded
// vector, or the example of a special form.
type specimen struct {
	ID        string `json:"id"`
	RecordHex string `json:"record_hex"`
	// Form and Python are those of an example.
	Form   string `json:"form,omitempty"`
	Python string `json:"python,omitempty"`
	// Loss is what the released codec loses of the record, and Codec what becomes
	// of it there.
	Loss  string `json:"loss,omitempty"`
	Codec string `json:"codec,omitempty"`
	// Next is what becomes of it when the application saves the object again.
	Next string `json:"next,omitempty"`
	// Endless tells that it is not tried there.
	Endless bool `json:"endless,omitempty"`
	// MayReject is why a reject is to be expected.
	MayReject string `json:"may_reject,omitempty"`

	OID    zodb.OID `json:"oid"`
	Reject string   `json:"reject,omitempty"`

	// What the real storage makes of it, and ZODB's own unpickler of that.
	Verdict    string `json:"verdict,omitempty"`
	Real       string `json:"real,omitempty"`
	Difference string `json:"difference,omitempty"`
	Module     string `json:"class_mod,omitempty"`
	Name       string `json:"class_name,omitempty"`
	State      string `json:"state,omitempty"`
}

func (s *specimen) record(t testing.TB) []byte {
	t.Helper()
	record, err := hex.DecodeString(s.RecordHex)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// oracle runs the judge with lines for its input.
func oracle(t testing.TB, input []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(pythonPath(t), append([]string{codecOracle}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && (len(out) == 0 || cmd.ProcessState.ExitCode() != 1) {
		t.Fatalf("%s %v: %v\n%s", codecOracle, args, err, stderr.Bytes())
	}
	return out
}

func specimens(t testing.TB, lines []byte) []specimen {
	t.Helper()
	var all []specimen
	scanner := bufio.NewScanner(bytes.NewReader(lines))
	scanner.Buffer(nil, 1<<26)
	for scanner.Scan() {
		var s specimen
		if err := json.Unmarshal(scanner.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// stored converts the specimens, lets the real storage load them from
// PostgreSQL, and judges what it loads.
func stored(t testing.TB, d *database, all []specimen, sharing bool) []specimen {
	t.Helper()
	b := desttest.NewBuilder()
	records := []desttest.Record{{OID: 0, Data: desttest.Data("persistent.mapping", "PersistentMapping", "root")}}
	for i := range all {
		all[i].OID = zodb.OID(i + 1)
		records = append(records, desttest.Record{OID: all[i].OID, Data: all[i].record(t)})
	}
	// One of the vectors is a blob, whose file is missing.
	records = append(records, desttest.BlobOf(zodb.OID(len(records)), []byte("a blob")))
	b.Commit(desttest.Transaction{TID: 1 << 50}, records...)
	dst := d.open(t, pgjsonb.Config{PreserveSharing: sharing})
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptRejects, p.AcceptMissingBlobs = true, true })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.finishSteps(); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Rejects(t.Context(), func(r *dest.Reject) error {
		all[r.OID-1].Reject = r.Reason
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lines []byte
	for i := range all {
		line, err := json.Marshal(&all[i])
		if err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, line...), '\n')
	}
	args := []string{"stored", d.dsn}
	if sharing {
		args = append(args, "--strict")
	}
	return specimens(t, oracle(t, lines, args...))
}

// checkReaders holds both readers to the same verdict.
func checkReaders(t testing.TB, s *specimen, sharing bool) {
	t.Helper()
	switch s.Verdict {
	case "reject":
		t.Logf("%s is rejected: %s", s.ID, s.Reject)
		return
	case "unloadable":
		return // with ZODB, too
	case "same", "shared":
	default:
		t.Errorf("%s: %s %s\n  %.300s", s.ID, s.Verdict, s.Difference, s.State)
		return
	}
	back, err := jsonb.AppendRecord(nil, s.Module, s.Name, []byte(s.State))
	if err != nil {
		t.Errorf("%s: our reader: %v", s.ID, err)
		return
	}
	comparison := jsonb.Comparison{OldStringsAreBytes: true, IgnoreSharing: s.Verdict == "shared"}
	if difference, err := comparison.Equal(s.record(t), back); difference != "" || err != nil {
		t.Errorf("%s: our reader: %s %v", s.ID, difference, err)
	}
	row, err := jsonb.NewEncoder(jsonb.Options{PreserveSharing: sharing}).Encode(s.record(t))
	if err != nil {
		t.Errorf("%s: %v", s.ID, err)
		return
	}
	if counted := row.Forms[jsonb.SharedCopied] > 0; s.Verdict == "shared" && !counted {
		t.Errorf("%s: copies that are not counted", s.ID)
	}
}

// query finds the rows with a special form; where is what it is in words if
// there is none.
type query struct{ where, none string }

// called finds a call of a function.
func called(functions ...string) query {
	var parts []string
	for _, f := range functions {
		module, name, _ := strings.Cut(f, " ")
		parts = append(parts, fmt.Sprintf(`@."@reduce".callable."@cls"[0] == "%s" && @."@reduce".callable."@cls"[1] == "%s"`, module, name))
	}
	return query{where: `state @? '$.** ? (` + strings.Join(parts, " || ") + `)'`}
}

// capsule finds all capsules. They look alike, whatever made them necessary.
var capsule = query{where: `state @? '$."@reduce".callable."@reduce".args."@t"[1]."@t"[0]."@cls" ? (@[0] == "pickle" || @ == "pickle")'`}

var queries = map[jsonb.Form]query{
	jsonb.FloatSpecial:     called("builtins float", "_operator getitem"),
	jsonb.FloatLarge:       {where: `state::text ~ '[0-9]{17}\.0'`},
	jsonb.DictPairs:        {where: `state @? '$.**."@d"[*][0] ? (@ starts with "@")'`},
	jsonb.DictCall:         called("builtins dict"),
	jsonb.Python2Text:      {none: "it is text like any other"},
	jsonb.Python2Bytes:     {where: `state @? '$.** ? (exists (@."@b"))' -- and all other bytes`},
	jsonb.Python2Class:     {none: "the class stands in the columns like any other"},
	jsonb.SurrogateText:    called("_codecs decode"),
	jsonb.NulText:          {where: `state @? '$.** ? (exists (@."@ns"))' -- and all other text with NUL`},
	jsonb.DatetimeGeneric:  called("datetime datetime", "datetime date", "datetime time"),
	jsonb.KnownGeneric:     {where: `state @? '$.** ? (@."@cls"[0] == "uuid" || @."@reduce".callable."@cls"[0] == "datetime" || @."@reduce".callable."@cls"[0] == "decimal")'`},
	jsonb.BTreeGeneric:     {where: `(class_mod LIKE 'BTrees.%' OR state @? '$.** ? (@."@cls"[0] starts with "BTrees.")') AND state @? '$.** ? (exists (@."@t"))'`},
	jsonb.RefGeneric:       {where: `state @? 'strict $.** ? (exists (@."@ref"."@t") || exists (@."@ref"."@reduce"))'`},
	jsonb.RefInCallable:    {where: `state @? '$.**."@reduce".callable.** ? (exists (@."@ref"))'`},
	jsonb.OldInstance:      {none: "it is an instance like any other"},
	jsonb.ByteArray:        called("builtins bytearray"),
	jsonb.IntText:          {where: `state @? '$.** ? (exists (@."@bi"))' -- and all other integers beyond 64 bits`},
	jsonb.SharedCopied:     {none: "the copies are values like any other"},
	jsonb.ItemsReordered:   {where: `state @? '$.** ? (exists (@."@appends") || exists (@."@items") || exists (@.appends) || exists (@.items))' -- and those in the usual order`},
	jsonb.CapsuleCycle:     capsule,
	jsonb.CapsuleState:     capsule,
	jsonb.CapsuleDepth:     capsule,
	jsonb.CapsuleExpansion: capsule,
	jsonb.CapsuleSize:      capsule,
	jsonb.CapsuleExtension: capsule,
	jsonb.CapsuleShared:    capsule,
}

// TestFidelity stores every recorded vector and an example of every special form
// in a real PostgreSQL. What the released reader loads is what went in, or the
// record is among the rejects; our reader agrees; the queries in
// docs/fidelity.md find the rows. -update writes the table there.
func TestFidelity(t *testing.T) {
	t.Logf("%s", oracle(t, nil, "selftest"))
	vectors := slices.DeleteFunc(specimens(t, oracle(t, nil, "vectors", "../../testdata/codec-vectors.jsonl")), func(s specimen) bool {
		return s.RecordHex == "" // a record without data is a deletion
	})
	examples := specimens(t, oracle(t, nil, "examples"))
	losses := specimens(t, oracle(t, nil, "losses"))
	for _, sharing := range []bool{false, true} {
		name := map[bool]string{false: "copies", true: "preserve-sharing"}[sharing]
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			all := stored(t, d, slices.Concat(vectors, examples, losses), sharing)
			counts, real := map[string]int{}, map[string]int{}
			for i := range all {
				counts[all[i].Verdict]++
				real[all[i].Real]++
				checkReaders(t, &all[i], sharing)
			}
			t.Log(counts, real)
			if len(all) != len(vectors)+len(examples)+len(losses) || counts["same"] < 500 || counts["reject"] > 37 || real["same"] < 600 || sharing != (counts["shared"] == 0) {
				t.Errorf("%d specimens: %v, really loaded: %v", len(all), counts, real)
			}
			checkQueries(t, d, all, sharing)
			if !sharing {
				checkFidelityPage(t, all[len(vectors):])
				checkLosses(t, all[len(vectors)+len(examples):])
			}
		})
	}
}

// checkQueries compares what each query finds with what the encoder counts.
func checkQueries(t *testing.T, d *database, all []specimen, sharing bool) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	have := map[zodb.OID]jsonb.Counts{}
	encoder := jsonb.NewEncoder(jsonb.Options{PreserveSharing: sharing})
	for i := range all {
		if row, err := encoder.Encode(all[i].record(t)); err == nil {
			have[all[i].OID] = row.Forms
		}
	}
	for f := range jsonb.NumForms {
		form := jsonb.Form(f)
		q, known := queries[form]
		if !known || (q.where == "") == (q.none == "") {
			t.Errorf("there is no query for %v", form)
			continue
		}
		if q.none != "" {
			continue
		}
		rows, _ := conn.Query(t.Context(), q.sql())
		oids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			t.Fatalf("%v: %v\n%s", form, err, q.sql())
		}
		found := map[zodb.OID]bool{}
		for _, oid := range oids {
			found[zodb.OID(oid)] = true
		}
		wanted := 0
		for oid, forms := range have {
			if forms[form] == 0 {
				continue
			}
			wanted++
			if !found[oid] {
				t.Errorf("%v: the query does not find %s: %.300s", form, all[oid-1].ID, all[oid-1].State)
			}
		}
		t.Logf("%v: %d rows have it, %d are found", form, wanted, len(found))
		if len(found) > 150 {
			t.Errorf("%v: the query finds %d of %d rows, %d have the form", form, len(found), len(have), wanted)
		}
	}
}

func (q query) sql() string {
	return "SELECT zoid FROM object_state WHERE " + q.where
}

// checkLosses proves that what is told as lost is lost there, and kept or
// rejected here.
func checkLosses(t *testing.T, losses []specimen) {
	t.Helper()
	if len(losses) < 45 {
		t.Errorf("only %d losses of the codec are tried", len(losses))
	}
	for i := range losses {
		if l := &losses[i]; l.Codec == "" || l.Codec == "keeps it" {
			t.Errorf("%s: the codec %q", l.Loss, l.Codec)
		}
	}
}

// lossTable tells what becomes of the losses.
func lossTable(t *testing.T, losses []specimen) string {
	t.Helper()
	var table strings.Builder
	table.WriteString("| value | Python codec 1.7.0 | here | as |\n|---|---|---|---|\n")
	for i := range losses {
		l := &losses[i]
		here, as := "the same", ""
		row, err := jsonb.NewEncoder(jsonb.Options{}).Encode(l.record(t))
		switch {
		case l.Verdict == "reject":
			here, as = "rejected", strings.ReplaceAll(l.Reject, "_", `\_`)
		case err != nil:
			t.Errorf("%s: %v", l.Loss, err)
			continue
		default:
			switch {
			case l.Verdict == "shared":
				here = "copies"
			case l.Real == "only the new one loads: UnicodeDecodeError":
				here = "bytes" // Python 3 loads the source not at all
			case l.Real != "same":
				t.Errorf("%s: really loaded: %s", l.Loss, l.Real)
			}
			as = formNames(&row.Forms)
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", l.Loss, l.Codec, here, as)
	}
	// TestAStateThatJSONBCannotHoldIsCompressed is about this one.
	fmt.Fprintf(&table, "| text of more than 256 MB | refuses it | the same | `%s` |\n", jsonb.CapsuleSize)
	return table.String()
}

func formNames(forms *jsonb.Counts) string {
	var names []string
	for f, n := range forms {
		if n > 0 {
			names = append(names, "`"+jsonb.Form(f).String()+"`")
		}
	}
	if names == nil {
		return "the usual form"
	}
	return strings.Join(names, ", ")
}

var generatedLosses = regexp.MustCompile(`(?s)(<!-- generated: losses -->\n).*?(<!-- end -->\n)`)

var generatedForms = regexp.MustCompile(`(?s)(<!-- generated: forms -->\n).*?(<!-- end -->\n)`)

// checkFidelityPage compares the tables with what the examples have become.
func checkFidelityPage(t *testing.T, examples []specimen) {
	t.Helper()
	page, err := os.ReadFile(fidelityPage)
	if err != nil {
		t.Fatal(err)
	}
	losses := examples[slices.IndexFunc(examples, func(s specimen) bool { return s.Loss != "" }):]
	want := generated(t, page, generatedForms, formTable(t, examples))
	want = generated(t, want, generatedLosses, lossTable(t, losses))
	if *update {
		if err := os.WriteFile(fidelityPage, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(page, want) {
		t.Errorf("%s is not up to date: go test ./dest/pgjsonb -run Fidelity -update", filepath.Base(fidelityPage))
	}
}

// generated puts a text into its place on a page.
func generated(t *testing.T, page []byte, place *regexp.Regexp, text string) []byte {
	t.Helper()
	if len(place.FindAll(page, -1)) != 1 {
		t.Fatalf("%s has no place for %v", fidelityPage, place)
	}
	return place.ReplaceAllFunc(page, func(block []byte) []byte {
		m := place.FindSubmatch(block)
		return bytes.Join([][]byte{m[1], []byte("\n" + text + "\n"), m[2]}, nil)
	})
}

// notShown are forms whose loss on the next save the examples do not show: one is
// stored without sharing; a call is not made by what it returns; large integers
// are no trouble, but 256 MB of anything are; and a BTree does not load from a
// state with a key too many.
var notShown = []jsonb.Form{jsonb.CapsuleShared, jsonb.RefInCallable, jsonb.CapsuleSize, jsonb.BTreeGeneric}

// formTable is a table of the examples, and the queries.
func formTable(t *testing.T, examples []specimen) string {
	t.Helper()
	of := map[string]*specimen{}
	for i := range examples {
		of[examples[i].Form] = &examples[i]
	}
	var table, sql strings.Builder
	table.WriteString("| kind | in Python | what SQL sees | read by codec | next save |\n|---|---|---|---|---|\n")
	seen := map[string]bool{}
	for f := range jsonb.NumForms {
		form := jsonb.Form(f)
		example := of[form.String()]
		if form == jsonb.CapsuleShared {
			example = withSharing(t, of[jsonb.SharedCopied.String()])
		}
		if example == nil {
			t.Errorf("%v has no example", form)
			continue
		}
		row, err := jsonb.NewEncoder(jsonb.Options{PreserveSharing: form == jsonb.CapsuleShared}).Encode(example.record(t))
		if err != nil || row.Forms[form] == 0 {
			t.Errorf("the example of %v has not its form: %v", form, err)
			continue
		}
		codec, save := "1.6.1", "keeps it"
		if row.NewCodec {
			codec = "1.7.0"
		}
		if form.LostOnSave() {
			save = "loses it"
		}
		if form == jsonb.SharedCopied {
			save = "lost already"
		} else if !slices.Contains(notShown, form) && (example.Next != "keeps it") != form.LostOnSave() {
			t.Errorf("%v: when it is saved again the codec %s", form, example.Next)
		}
		fmt.Fprintf(&table, "| `%s` | %s | `%s` | %s | %s |\n", form, code(example.Python), cell(example.State), codec, save)
		q := queries[form]
		key := q.where
		switch {
		case q.none != "":
			fmt.Fprintf(&sql, "-- %s: %s\n", form, q.none)
		case seen[key]:
			fmt.Fprintf(&sql, "-- %s: as before\n", form)
		default:
			seen[key] = true
			fmt.Fprintf(&sql, "-- %s\nSELECT zoid, class_mod, class_name FROM object_state WHERE %s\n;\n", form, q.where)
		}
	}
	return table.String() + "\nThese queries find the rows:\n\n```sql\n" + sql.String() + "```\n"
}

// withSharing is the example as it is stored where sharing is preserved.
func withSharing(t *testing.T, s *specimen) *specimen {
	t.Helper()
	row, err := jsonb.NewEncoder(jsonb.Options{PreserveSharing: true}).Encode(s.record(t))
	if err != nil {
		t.Fatal(err)
	}
	kept := *s
	kept.State = string(row.State)
	return &kept
}

// code puts what is Python into a code span; a description stays text.
func code(text string) string {
	if strings.ContainsAny(text, "({'") && !strings.Contains(text, ", ") && !strings.HasPrefix(text, "a") {
		return "`" + text + "`"
	}
	return text
}

// cell is the part of a state that a table has room for.
func cell(state string) string {
	const most = 150
	runes := []rune(strings.ReplaceAll(state, "|", `\|`))
	if len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return string(runes)
}
