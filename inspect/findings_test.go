package inspect_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/internal/fixture"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const firstTID = zodb.TID(0x03adf7fc00000000)

func commit(b *desttest.Builder, n int, user string, records ...desttest.Record) {
	b.Commit(desttest.Transaction{TID: firstTID + zodb.TID(n), User: user}, records...)
}

func thing(oid zodb.OID) desttest.Record {
	return desttest.Record{OID: oid, Data: desttest.Data("app", "Thing", "text")}
}

func causes(list []inspect.Finding) (names []string) {
	for _, f := range list {
		names = append(names, f.Cause)
	}
	return names
}

// What will not arrive unchanged is told with the first oids, lowest first, and
// their classes.
func TestFindingsNameTheFirst(t *testing.T) {
	b := desttest.NewBuilder()
	commit(b, 1, "", thing(zodb.Root))
	for oid := range zodb.OID(30) {
		commit(b, 100-int(oid), "", desttest.Record{OID: 200 - oid, Data: desttest.Bad()}) // tids fall
	}
	r := look(t, b.Source(t), inspect.Options{})
	if got := causes(r.Altered); !slices.Equal(got, []string{inspect.Rejected}) {
		t.Errorf("altered: %v", got)
	}
	if got := causes(r.Notable); !slices.Equal(got, []string{inspect.FallingTID}) {
		t.Errorf("notable: %v", got)
	}
	f := finding(r, inspect.Rejected)
	if len(f.First) != 10 || f.First[0] != "0x00000000000000ab" || f.First[9] != "0x00000000000000b4" || !slices.IsSorted(f.First) {
		t.Errorf("first %v", f.First)
	}
	if f.Count != 30 || len(f.Classes) != 1 || f.Classes[0] != (inspect.Class{Class: "mod.name", Objects: 30, Bytes: 30 * int64(len(desttest.Bad()))}) {
		t.Errorf("%d of %v", f.Count, f.Classes)
	}
	if len(f.Reasons) != 1 || f.Reasons[0].Records != 30 || f.Reasons[0].Reason == "" {
		t.Errorf("reasons %v", f.Reasons)
	}
	if r.Source.Falling != 29 || finding(r, inspect.FallingTID).Count != 29 {
		t.Errorf("%d tids fall: %+v", r.Source.Falling, finding(r, inspect.FallingTID))
	}
	// With history, such a source is refused.
	if r := look(t, b.Source(t), inspect.Options{HistoryPreserving: true}); !slices.Contains(causes(r.Altered), inspect.FallingTID) {
		t.Errorf("altered, with history: %v", causes(r.Altered))
	}
}

func TestRejectedRootIsTold(t *testing.T) {
	b := desttest.NewBuilder()
	commit(b, 1, "", desttest.Record{OID: zodb.Root, Data: desttest.Bad()}, thing(1))
	r := look(t, b.Source(t), inspect.Options{})
	if !strings.Contains(strings.Join(r.Notes, "\n"), "root object") {
		t.Errorf("notes: %v", r.Notes)
	}
	b = desttest.NewBuilder()
	commit(b, 1, "", thing(1))
	if r := look(t, b.Source(t), inspect.Options{}); finding(r, inspect.NoRoot).Count != 1 {
		t.Errorf("a database without root: %v", causes(r.Notable))
	}
}

func TestIDsThatAreTooHighAreTold(t *testing.T) {
	b := desttest.NewBuilder()
	commit(b, 1, "", thing(zodb.Root), thing(zodb.Limit))
	f := finding(look(t, b.Source(t), inspect.Options{}), inspect.HighID)
	if f.Count != 1 || !slices.Equal(f.First, []string{zodb.OID(zodb.Limit).String()}) {
		t.Errorf("%+v", f)
	}
}

// A source may have as many classes as objects.
func TestClassesBeyondReasonAreSummedUp(t *testing.T) {
	b := desttest.NewBuilder()
	records := []desttest.Record{thing(zodb.Root)}
	for oid := range zodb.OID(6000) {
		records = append(records, desttest.Record{OID: oid + 1, Data: desttest.Data("app", fmt.Sprintf("Thing%d", oid), "text")})
	}
	commit(b, 1, "", records...)
	s := look(t, b.Source(t), inspect.Options{Workers: 1}).Source
	objects, bytes := s.OtherClasses.Objects, s.OtherClasses.Bytes
	for _, c := range s.Classes {
		objects += c.Objects
		bytes += c.Bytes
	}
	if len(s.Classes) != inspect.TopClasses || objects != 6001 || bytes != s.DataBytes || s.Current != 6001 {
		t.Errorf("%d classes, %d objects of %d bytes, %d bytes in all", len(s.Classes), objects, bytes, s.DataBytes)
	}
}

// What many workers count is put together as they go, and no more of them decode than
// there is memory for.
func TestManyWorkersCountManyClassesInLittleMemory(t *testing.T) {
	b := desttest.NewBuilder()
	commit(b, 1, "", thing(zodb.Root))
	for n := range 40 {
		records := []desttest.Record{}
		for i := range zodb.OID(3000) {
			data := "\x80\x03capp\nThing" + strconv.Itoa(int(i)) + "\nq\x00.\x80\x03G\x7f\xf8\x00\x00\x00\x00\x00\x00."
			records = append(records, desttest.Record{OID: zodb.OID(n)*3000 + i + 1, Data: []byte(data)})
		}
		commit(b, n+2, "", records...)
	}
	one := look(t, b.Source(t), inspect.Options{Workers: 1, Memory: 96 << 20})
	many := look(t, b.Source(t), inspect.Options{Workers: 256, Memory: 96 << 20})
	if asJSON(t, one) != asJSON(t, many) {
		t.Errorf("with one worker\n%s\nwith many\n%s", asJSON(t, one), asJSON(t, many))
	}
	if f := finding(many, "float-special"); f.Count != 120_000 || len(f.Classes) != dest.ListMax || f.Classes[0].Objects != 40 {
		t.Errorf("%+v", f)
	}
	if said := func(r *inspect.Report) bool {
		return strings.Contains(strings.Join(r.Notes, "\n"), "not the 256 of --workers")
	}; said(one) || !said(many) {
		t.Errorf("notes %q and %q", one.Notes, many.Notes)
	}
	if r := look(t, b.Source(t), inspect.Options{Workers: 256, Memory: 2 << 30}); strings.Contains(strings.Join(r.Notes, "\n"), "--workers") {
		t.Errorf("with more memory: %q", r.Notes)
	}
}

func TestMetadataThatIsNoTextIsFound(t *testing.T) {
	b := desttest.NewBuilder()
	for i, user := range []string{"plain", "Z\u00fcrich", "\xff", "a\x00b", "\ufffd", "\xed\xa0\x80", ""} {
		commit(b, i+1, user, thing(zodb.OID(i)))
	}
	f := finding(look(t, b.Source(t), inspect.Options{}), inspect.EscapedMetadata)
	want := []string{(firstTID + 3).String(), (firstTID + 4).String(), (firstTID + 6).String()}
	if f.Count != 3 || !slices.Equal(f.First, want) {
		t.Errorf("%d, first %v, want %v", f.Count, f.First, want)
	}
}

// Where blobs go, and which do not, depends on the destination.
func TestBlobsAreCountedByWhereTheyGo(t *testing.T) {
	b := desttest.NewBuilder()
	commit(b, 1, "", thing(zodb.Root), desttest.BlobOf(1, make([]byte, 10)), desttest.BlobOf(2, make([]byte, 1000)))
	commit(b, 2, "", desttest.BlobOf(1, make([]byte, 20)), desttest.BlobOf(3, make([]byte, 30)), desttest.BlobOf(4, nil))
	b.Lose(3, firstTID+2)
	for _, c := range []struct {
		name                   string
		opts                   inspect.Options
		rows, bytes, inRow, s3 int64
		missing, large         int64
		all                    bool
	}{
		{"PostgreSQL", inspect.Options{LargestBlob: 1 << 20}, 3, 1020, 1020, 0, 1, 0, false},
		{"PostgreSQL, history", inspect.Options{LargestBlob: 1 << 20, HistoryPreserving: true}, 4, 1030, 1030, 0, 1, 0, true},
		{"too large", inspect.Options{LargestBlob: 999}, 3, 1020, 20, 0, 1, 1, false},
		{"S3", inspect.Options{S3: true, BlobThreshold: 20, LargestBlob: 1 << 20}, 3, 1020, 0, 1020, 1, 0, false},
		{"S3 for what PostgreSQL does not take", inspect.Options{S3: true, BlobThreshold: 1 << 30, LargestBlob: 999}, 3, 1020, 20, 1000, 1, 0, false},
		{"S3, history", inspect.Options{S3: true, BlobThreshold: 15, HistoryPreserving: true}, 4, 1030, 10, 1020, 1, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := look(t, b.Source(t), c.opts)
			rows := r.Source.HistoryFree
			if c.all {
				rows = r.Source.HistoryPreserving
			}
			if rows.Blobs != c.rows || rows.BlobBytes != c.bytes {
				t.Errorf("%d blobs of %d bytes, want %d of %d", rows.Blobs, rows.BlobBytes, c.rows, c.bytes)
			}
			if e := r.Estimate; e.BlobBytes != c.inRow || e.S3Bytes != c.s3 {
				t.Errorf("%d bytes in rows and %d in S3, want %d and %d", e.BlobBytes, e.S3Bytes, c.inRow, c.s3)
			}
			if m, l := finding(r, inspect.MissingBlob).Count, finding(r, inspect.BlobTooLarge).Count; m != c.missing || l != c.large {
				t.Errorf("%d missing and %d too large, want %d and %d", m, l, c.missing, c.large)
			}
			s := r.Source.Blobs
			if s.Records != 5 || s.Current != 4 || s.Found != 4 || s.Missing != 1 || s.Bytes != 1030 || s.CurrentBytes != 1020 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// The report does not depend on who has read what.
func TestReportIsTheSameWhateverTheWorkers(t *testing.T) {
	for _, name := range []string{"odd", "history", "plone"} {
		path := filepath.Join("../testdata", name+".fs")
		one := asJSON(t, look(t, fileStorage(t, path), inspect.Options{Workers: 1, HistoryPreserving: true, Reachability: true}))
		four := asJSON(t, look(t, fileStorage(t, path), inspect.Options{Workers: 4, HistoryPreserving: true, Reachability: true}))
		if one != four {
			t.Errorf("%s: with one worker\n%s\nwith four\n%s", name, one, four)
		}
	}
}

// asJSON is a report without what may differ.
func asJSON(t *testing.T, r *inspect.Report) string {
	t.Helper()
	short := *r
	short.Source.Name, short.Source.Damage, short.Source.CutOff, short.Notes, short.Estimate = "", "", false, nil, nil
	text, err := json.MarshalIndent(&short, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Of a damaged source, what stands before the damage is inspected.
func TestDamagedSourceIsInspectedUpToTheDamage(t *testing.T) {
	data, err := os.ReadFile("../testdata/history.fs")
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64
	src := fileStorage(t, "../testdata/history.fs")
	if _, err := src.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
		t.Fatal(err)
	}
	if err := src.Transactions(t.Context(), func(tx *source.Transaction) error {
		ends = append(ends, tx.End)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	const good = 7
	until := ends[good-1]
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, damage := range map[string]func([]byte){
		"status":            func(b []byte) { b[until+16] = 'x' },
		"length behind":     func(b []byte) { b[ends[good]-1] ^= 0xff },
		"overwritten bytes": func(b []byte) { copy(b[until+60:ends[good]-8], bytes.Repeat([]byte{0xff}, 1<<20)) },
	} {
		broken := bytes.Clone(data)
		damage(broken)
		r, err := inspect.Run(t.Context(), fileStorage(t, write(name, broken)), inspect.Options{Workers: 2, HistoryPreserving: true})
		damage := (*source.DamageError)(nil)
		if !errors.As(err, &damage) || damage.Until != until || r.Source.Damage != err.Error() || !r.Source.CutOff || r.Estimate != nil {
			t.Errorf("%s: %v; the report says %q", name, err, r.Source.Damage)
		}
		want := look(t, fileStorage(t, write("whole", data[:until])), inspect.Options{HistoryPreserving: true})
		if asJSON(t, r) != asJSON(t, want) || r.Source.Transactions != good {
			t.Errorf("%s: got\n%s\nwant\n%s", name, asJSON(t, r), asJSON(t, want))
		}
	}
	// Nothing is before the first transaction.
	broken := bytes.Clone(data)
	broken[4+16] = 'x'
	r, err := inspect.Run(t.Context(), fileStorage(t, write("all", broken)), inspect.Options{})
	if damage := (*source.DamageError)(nil); !errors.As(err, &damage) || damage.Until != 0 || r.Source.Damage == "" || r.Source.Transactions != 0 {
		t.Errorf("%v: %+v", err, r.Source)
	}
}

// A record that cannot be inflated is damage, and the others are inspected.
func TestDamagedRecordDoesNotHideTheOthers(t *testing.T) {
	data, err := os.ReadFile("../testdata/zlib.fs")
	if err != nil {
		t.Fatal(err)
	}
	whole := look(t, fileStorage(t, "../testdata/zlib.fs"), inspect.Options{})
	at := bytes.Index(data, []byte(".z\x78"))
	data[at+5] ^= 0xff
	path := filepath.Join(t.TempDir(), "broken.fs")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := inspect.Run(t.Context(), fileStorage(t, path), inspect.Options{HistoryPreserving: true, Reachability: true, TempDir: t.TempDir()})
	if damage := (*source.DamageError)(nil); !errors.As(err, &damage) || r.Source.Damage != err.Error() || r.Source.CutOff || r.Source.Unread != 1 {
		t.Fatalf("%v; the report says %q", err, r.Source.Damage)
	}
	if r.Source.Records != whole.Source.Records || r.Source.Compressed != whole.Source.Compressed || whole.Source.Compressed == 0 {
		t.Errorf("%d records, %d compressed, want %d and %d", r.Source.Records, r.Source.Compressed, whole.Source.Records, whole.Source.Compressed)
	}
	h, w := r.Source.HistoryPreserving, whole.Source.HistoryPreserving
	if lost := w.Objects + w.Revisions - h.Objects - h.Revisions; lost != 1 {
		t.Errorf("%d rows are not counted, want 1: %+v, %+v", lost, h, w)
	}
	if f, g := finding(r, inspect.Unreachable), finding(r, inspect.Dangling); f.Count+g.Count > 0 {
		t.Errorf("%+v, %+v", f, g)
	}
}

// What cannot be read is neither missing nor a reason to call anything unreachable.
func TestDamagedObjectsExist(t *testing.T) {
	data, err := os.ReadFile("../testdata/zlib.fs")
	if err != nil {
		t.Fatal(err)
	}
	opts := inspect.Options{Workers: 2, Reachability: true, TempDir: t.TempDir()}
	whole := look(t, fileStorage(t, "../testdata/zlib.fs"), opts)
	for at := 0; ; {
		next := bytes.Index(data[at:], []byte(".z\x78"))
		if next < 0 {
			break
		}
		at += next + 5
		data[at] ^= 0xff
	}
	path := filepath.Join(t.TempDir(), "broken.fs")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := inspect.Run(t.Context(), fileStorage(t, path), opts)
	if damage := (*source.DamageError)(nil); !errors.As(err, &damage) || r.Source.Unread == 0 || whole.Source.Current-r.Source.Current == 0 {
		t.Fatalf("%v, %d records, %d objects", err, r.Source.Unread, r.Source.Current)
	}
	if f, g := finding(r, inspect.Unreachable), finding(r, inspect.Dangling); f.Count > 0 || g.Count > finding(whole, inspect.Dangling).Count {
		t.Errorf("%+v, %+v", f, g)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "Unreachable objects were not looked for") || strings.Contains(notes, "root object") {
		t.Errorf("notes %q", r.Notes)
	}
}

func TestDamagedRowDoesNotHideTheOthers(t *testing.T) {
	d := fixture.Named(t, "zlib", true)
	dir := d.SQLite(t)
	whole := look(t, relStorage(t, d, relstorage.Options{SQLite: &relstorage.SQLite{DataDir: dir}}), inspect.Options{HistoryPreserving: true})
	db, err := sql.Open("sqlite", filepath.Join(dir, "main.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	done, err := db.Exec(`UPDATE object_state SET state = CAST(substr(state, 1, 5) || x'ff' || substr(state, 7) AS BLOB)
		WHERE rowid IN (SELECT rowid FROM object_state WHERE substr(state, 1, 2) = x'2e7a' LIMIT 3)`)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := done.RowsAffected(); err != nil || n != 3 {
		t.Fatalf("%d rows: %v", n, err)
	}
	r, err := inspect.Run(t.Context(), relStorage(t, d, relstorage.Options{SQLite: &relstorage.SQLite{DataDir: dir}}), inspect.Options{Workers: 2, HistoryPreserving: true})
	if damage := (*source.DamageError)(nil); !errors.As(err, &damage) || r.Source.Damage != err.Error() || !strings.Contains(err.Error(), "cannot be inflated") {
		t.Fatalf("%v; the report says %q", err, r.Source.Damage)
	}
	h, w := r.Source.HistoryPreserving, whole.Source.HistoryPreserving
	if lost := w.Objects + w.Revisions - h.Objects - h.Revisions; lost != 3 || r.Source.Records != whole.Source.Records {
		t.Errorf("%d rows are not counted, want 3: %+v, %+v", lost, h, w)
	}
}

func TestTornTailIsFound(t *testing.T) {
	r := look(t, fileStorage(t, "../testdata/torn.fs"), inspect.Options{})
	if r.Source.Tail == "" || finding(r, inspect.TornTail).Count != 1 || !r.Clean() {
		t.Errorf("tail %q, notable %v, altered %v", r.Source.Tail, causes(r.Notable), causes(r.Altered))
	}
}

func TestPackedSourceIsTold(t *testing.T) {
	for name, want := range map[string]string{"packed": "yes", "history": "no", "empty": "unknown"} {
		r := look(t, fileStorage(t, "../testdata/"+name+".fs"), inspect.Options{})
		if r.Source.Packed != want || (r.Source.PackedTIDs > 0) != (want == "yes") {
			t.Errorf("%s: packed %s, %d transactions", name, r.Source.Packed, r.Source.PackedTIDs)
		}
	}
}

// What a destination with history will hold is told by an inspection for one
// without, too, as far as no older revision is rejected.
func TestRowsOfBothKindsAreTold(t *testing.T) {
	same := 0
	for _, db := range databases(t) {
		if strings.HasSuffix(db.name, "-postgresql") {
			continue
		}
		src := db.open(t)
		free := look(t, src, inspect.Options{}).Source
		preserving := look(t, src, inspect.Options{HistoryPreserving: true}).Source
		if free.HistoryFree != preserving.HistoryFree {
			t.Errorf("%s: without history, %+v or %+v", db.name, free.HistoryFree, preserving.HistoryFree)
		}
		if preserving.HistoryPreserving.Rejected > preserving.HistoryFree.Rejected {
			continue
		}
		same++
		if free.HistoryPreserving != preserving.HistoryPreserving {
			t.Errorf("%s: with history, %+v or %+v", db.name, free.HistoryPreserving, preserving.HistoryPreserving)
		}
	}
	if same < 20 {
		t.Errorf("only %d databases were compared", same)
	}
}

// What does not fit into the memory is refused, or left out and said so.
func TestMemoryIsKept(t *testing.T) {
	b := desttest.NewBuilder()
	records := []desttest.Record{thing(zodb.Root)}
	for i := range zodb.OID(150_000) {
		records = append(records, thing((i+1)*0x9e3779b97f4a7c15>>2))
	}
	commit(b, 1, "", records...)
	_, err := inspect.Run(t.Context(), b.Source(t), inspect.Options{Memory: 66 << 20})
	if refused := (*dest.RefusedError)(nil); !errors.As(err, &refused) || !strings.Contains(refused.Hint, "--memory") {
		t.Errorf("with little memory: %v", err)
	}
	r := look(t, b.Source(t), inspect.Options{Memory: 80 << 20})
	if len(r.Source.Revisions) > 0 || !strings.Contains(strings.Join(r.Notes, "\n"), "revisions of each object") || r.Source.Current != 150_001 {
		t.Errorf("%d objects, by revisions %v; notes %q", r.Source.Current, r.Source.Revisions, r.Notes)
	}
	if r := look(t, b.Source(t), inspect.Options{Memory: 256 << 20}); !slices.Equal(r.Source.Revisions, []int64{150_001}) || r.Source.MaxRevision != 1 {
		t.Errorf("with more memory: %v", r.Source.Revisions)
	}
}

// A conversion refuses a source with blobs of which it is not said where they are,
// also if it would write none of them.
func TestBlobsWithoutAPlaceAreTold(t *testing.T) {
	for _, d := range fixture.All(t) {
		if d.On(fixture.SQLite) {
			t.Run(d.String(), func(t *testing.T) {
				src, err := relstorage.Open(t.Context(), relstorage.Options{SQLite: &relstorage.SQLite{DataDir: d.SQLite(t)}})
				if err != nil {
					t.Fatal(err)
				}
				defer src.Close()
				agreeOnPlaces(t, src)
			})
		}
	}
	blob := func(oid zodb.OID) desttest.Record {
		return desttest.Record{OID: oid, Data: desttest.BlobOf(oid, nil).Data}
	}
	for name, last := range map[string]desttest.Record{
		"older": thing(1), "deleted": {OID: 1}, "current": blob(1), "another": blob(2),
	} {
		t.Run(name, func(t *testing.T) {
			b := desttest.NewBuilder()
			commit(b, 1, "", thing(zodb.Root), blob(1))
			commit(b, 2, "", last)
			src := b.Source(t)
			agreeOnPlaces(t, src)
		})
	}
}

// agreeOnPlaces compares what an inspection says with what a conversion refuses.
func agreeOnPlaces(t *testing.T, src source.Source) {
	t.Helper()
	for _, history := range []bool{false, true} {
		r := look(t, src, inspect.Options{HistoryPreserving: history})
		dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: "host=localhost", HistoryPreserving: history})
		if err != nil {
			t.Fatal(err)
		}
		info, err := src.Scan(t.Context(), source.ScanOptions{History: history})
		if err != nil {
			t.Fatal(err)
		}
		err = dst.CheckSource(info)
		refused := err != nil && strings.Contains(err.Error(), "it is not said where their files are")
		f := finding(r, inspect.MissingBlob)
		if told := strings.Contains(f.Text, "does not say where"); told != refused || refused && (r.Clean() || f.Count == 0 || len(f.First) == 0) {
			t.Errorf("history %t: the conversion says %v, the inspection %+v", history, err, f)
		}
	}
}

// What is broken off while a damaged source is scanned once more is no report.
func TestInspectionOfADamagedSourceCanBeCancelled(t *testing.T) {
	data, err := os.ReadFile("../testdata/plone.fs")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "damaged.fs")
	copy(data[105616:], "\xff\xff\xff\xff")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	scans := 0
	_, err = inspect.Run(ctx, fileStorage(t, path), inspect.Options{Progress: func(ev pipeline.Event) {
		if ev.Kind == pipeline.PhaseStarted && ev.Phase == pipeline.Scanning {
			if scans++; scans == 2 {
				cancel()
			}
		}
	}})
	if damage := (*source.DamageError)(nil); scans != 2 || !errors.Is(err, context.Canceled) || errors.As(err, &damage) {
		t.Errorf("after %d scans: %v", scans, err)
	}
}

// A temporary file that takes more than there is costs one answer, not the report.
func TestAFullDiskDoesNotCostTheReport(t *testing.T) {
	b := desttest.NewBuilder()
	records := []desttest.Record{thing(zodb.Root)}
	for oid := range zodb.OID(30_000) {
		records = append(records, thing(oid+1))
	}
	commit(b, 1, "", records...)
	r, err := inspect.Run(t.Context(), b.Source(t), inspect.Options{Workers: 2, Reachability: true, TempDir: throwaway.SmallDisk(t)})
	if err != nil || r.Estimate == nil || r.Source.Current != 30_001 || !r.Clean() || finding(r, inspect.Unreachable).Count > 0 {
		t.Errorf("%v: %+v", err, r)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "were not looked for: ") || !strings.Contains(notes, "--temp-dir") {
		t.Errorf("notes %q", r.Notes)
	}
}

func TestInspectionCanBeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := inspect.Run(ctx, fileStorage(t, "../testdata/plone.fs"), inspect.Options{Workers: 2, Reachability: true, TempDir: t.TempDir(),
		Progress: func(ev pipeline.Event) {
			if ev.Phase == pipeline.Inspecting {
				cancel()
			}
		}})
	if !errors.Is(err, context.Canceled) || r == nil || r.Estimate != nil || r.Source.Damage != "" {
		t.Errorf("%v; %+v", err, r)
	}
}
