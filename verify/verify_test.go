package verify_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/verify"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

// pair is a database of testdata and what it was converted into.
type pair struct {
	path    string
	history bool
	dsn     string
	open    func(t testing.TB) source.Source // where the source is no file of testdata
}

// converted converts a database of testdata.
func converted(t testing.TB, name string, history bool) *pair {
	t.Helper()
	p := &pair{path: filepath.Join("..", "testdata", name+".fs"), history: history, dsn: postgres.Server(t).NewDatabase(t)}
	p.convert(t, pipeline.Options{})
	return p
}

func (p *pair) convert(t testing.TB, opts pipeline.Options) {
	t.Helper()
	opts.Workers, opts.Rejects, opts.AllowMissingBlobs = 2, filepath.Join(t.TempDir(), "rejects.jsonl"), true
	if _, err := pipeline.Run(t.Context(), p.source(t), p.destination(t), opts); err != nil {
		t.Fatalf("convert %s: %v", p.path, err)
	}
}

func (p *pair) source(t testing.TB) source.Source {
	t.Helper()
	if p.open != nil {
		return p.open(t)
	}
	opts := filestorage.Options{}
	if dir := strings.TrimSuffix(p.path, ".fs") + ".blobs"; exists(dir) {
		opts.BlobDir = dir
	}
	src, err := filestorage.Open(t.Context(), p.path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *pair) destination(t testing.TB) *pgjsonb.Destination {
	t.Helper()
	d, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: p.dsn, HistoryPreserving: p.history})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// verify compares, and gives every difference too.
func (p *pair) verify(t testing.TB, opts verify.Options) (*verify.Result, []verify.Difference) {
	t.Helper()
	result, all, err := p.try(t, opts)
	if err != nil {
		t.Fatalf("verify %s: %v", p.path, err)
	}
	return result, all
}

func (p *pair) try(t testing.TB, opts verify.Options) (*verify.Result, []verify.Difference, error) {
	t.Helper()
	opts.Workers = max(opts.Workers, 2)
	var all []verify.Difference
	opts.Report = func(d *verify.Difference) error {
		all = append(all, *d)
		return nil
	}
	content, err := p.destination(t).Content(t.Context(), verify.Readers(opts.Workers))
	if err != nil {
		return nil, nil, err
	}
	defer content.Close()
	result, err := verify.Run(t.Context(), p.source(t), content, opts)
	return result, all, err
}

func names(t testing.TB) (names []string) {
	t.Helper()
	paths, err := filepath.Glob("../testdata/*.fs")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d databases: %v", len(paths), err)
	}
	for _, p := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(p), ".fs"))
	}
	return names
}

func TestUntouchedDestinationHasNoDifference(t *testing.T) {
	for _, name := range names(t) {
		for _, history := range []bool{false, true} {
			t.Run(name+map[bool]string{true: "/history"}[history], func(t *testing.T) {
				t.Parallel()
				r, all := converted(t, name, history).verify(t, verify.Options{})
				for i := range all {
					t.Error(all[i].String())
				}
				if r.Differences != int64(len(all)) {
					t.Errorf("%d differences are counted", r.Differences)
				}
				t.Logf("%d records, %d transactions, %d blobs; declared %v", r.Records, r.Transactions, r.Blobs, r.Declared)
			})
		}
	}
}

// What a site writes after the conversion is no difference, also where the older
// state goes into the history.
func TestSiteWritesAreCountedApart(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(map[bool]string{false: "without history", true: "with history"}[history], func(t *testing.T) {
			m := newMutator(t, converted(t, "plone", history), 0)
			m.exec(t, "INSERT INTO transaction_log SELECT max(tid) + 4096 FROM transaction_log")
			if history {
				m.exec(t, "INSERT INTO object_history SELECT * FROM object_state WHERE zoid IN (1, 2)")
			}
			m.exec(t, "UPDATE object_state SET state = '{}', tid = (SELECT max(tid) FROM transaction_log) WHERE zoid IN (1, 2)")
			r, all := m.pair.verify(t, verify.Options{})
			if len(all) > 0 || len(r.Declared) > 0 || r.SiteTransactions != 1 || r.SiteChanged != 2 || r.SiteRows != 2 {
				t.Errorf("%v, declared %v, %d transactions, %d changed, %d rows", all, r.Declared, r.SiteTransactions, r.SiteChanged, r.SiteRows)
			}
			if !history {
				return
			}
			// The revision that the site has replaced is still looked for.
			m.exec(t, "DELETE FROM object_history WHERE zoid = 2 AND tid = (SELECT max(tid) FROM object_history WHERE zoid = 2)")
			_, all = m.pair.verify(t, verify.Options{})
			if len(all) != 1 || all[0].Kind != verify.MissingRevision || all[0].OID != "0x0000000000000002" {
				t.Errorf("found %v", all)
			}
		})
	}
}

// A sample leaves objects out and finds what is in it, the same ones each time.
func TestSampleFindsItsShare(t *testing.T) {
	m := newMutator(t, converted(t, "btrees", false), 0)
	m.exec(t, "UPDATE object_state SET class_name = class_name || 'x'")
	r, all := m.pair.verify(t, verify.Options{Percent: 30})
	again, _ := m.pair.verify(t, verify.Options{Percent: 30})
	if r.Records+r.LeftOut != 378 || r.Records < 60 || r.Records > 180 || int64(len(all)) != r.Records || again.Records != r.Records {
		t.Errorf("%d compared, %d left out, %d differences; again %d", r.Records, r.LeftOut, len(all), again.Records)
	}
}

// However many rows are too much, each is named, in parts that fit into memory.
func TestEveryRowThatIsTooMuchIsNamed(t *testing.T) {
	m := newMutator(t, converted(t, "btrees", true), 0)
	m.exec(t, `INSERT INTO object_state SELECT zoid + g * 1000000, tid, class_mod, class_name, state, state_size, refs FROM object_state, generate_series(1, 20) g`)
	m.exec(t, `INSERT INTO object_history SELECT zoid + 1000000, tid, class_mod, class_name, state, state_size, refs FROM object_history`)
	m.exec(t, `SELECT setval('zoid_seq', 1000000000)`)
	r, all := m.pair.verify(t, verify.Options{Memory: 96 << 20})
	named := map[string]bool{}
	for _, d := range all {
		named[d.Kind+d.OID+d.TID] = true
	}
	history := int64(0)
	for _, k := range r.Kinds {
		if k.Kind == verify.ExtraRevision {
			history = k.Count
		}
	}
	if want := 378*20 + history; r.Differences != want || int64(len(named)) != want || len(r.Kinds) != 2 || len(r.First) != 10 {
		t.Errorf("%d differences, %d named, want %d: %v", r.Differences, len(named), want, r.Kinds)
	}
}
