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
