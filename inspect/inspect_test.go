package inspect_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/internal/fixture"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

// database is something to be converted.
type database struct {
	name string
	open func(testing.TB) source.Source
}

// databases are all of testdata: FileStorages, and RelStorages on two servers.
func databases(t testing.TB) (list []database) {
	t.Helper()
	paths, err := filepath.Glob("../testdata/*.fs")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d databases: %v", len(paths), err)
	}
	for _, path := range paths {
		list = append(list, database{strings.TrimSuffix(filepath.Base(path), ".fs"), func(t testing.TB) source.Source { return fileStorage(t, path) }})
	}
	for _, d := range fixture.All(t) {
		if d.On(fixture.PostgreSQL) {
			list = append(list, database{d.String() + "-postgresql", func(t testing.TB) source.Source {
				dsn := postgres.Server(t).NewDatabase(t)
				d.PostgreSQL(t, dsn)
				return relStorage(t, d, relstorage.Options{PostgreSQL: &relstorage.PostgreSQL{DSN: dsn}})
			}})
		}
		if d.On(fixture.SQLite) {
			list = append(list, database{d.String() + "-sqlite", func(t testing.TB) source.Source {
				return relStorage(t, d, relstorage.Options{SQLite: &relstorage.SQLite{DataDir: d.SQLite(t)}})
			}})
		}
	}
	return list
}

func fileStorage(t testing.TB, path string) source.Source {
	t.Helper()
	opts := filestorage.Options{}
	if dir := strings.TrimSuffix(path, ".fs") + ".blobs"; exists(dir) {
		opts.BlobDir = dir
	}
	src, err := filestorage.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func relStorage(t testing.TB, d fixture.Database, opts relstorage.Options) source.Source {
	t.Helper()
	opts.Connections = 2
	if dir := d.BlobDir(); dir != "" {
		shared := true
		opts.BlobDir, opts.SharedBlobDir = dir, &shared
	}
	src, err := relstorage.Open(t.Context(), opts)
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

func look(t testing.TB, src source.Source, opts inspect.Options) *inspect.Report {
	t.Helper()
	opts.Workers = max(opts.Workers, 2)
	opts.TempDir = t.TempDir()
	r, err := inspect.Run(t.Context(), src, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func finding(r *inspect.Report, cause string) *inspect.Finding {
	for _, list := range [][]inspect.Finding{r.Altered, r.Notable} {
		for i := range list {
			if list[i].Cause == cause {
				return &list[i]
			}
		}
	}
	return &inspect.Finding{}
}

// What an inspection says of a destination is what a conversion reports, and what
// stands in its tables afterwards.
func TestInspectionSaysWhatAConversionDoes(t *testing.T) {
	for _, db := range databases(t) {
		for _, history := range []bool{false, true} {
			t.Run(db.name+map[bool]string{true: "/history"}[history], func(t *testing.T) {
				t.Parallel()
				src := db.open(t)
				r := look(t, src, inspect.Options{HistoryPreserving: history, LargestBlob: pgjsonb.LargestBytea, Reachability: true})
				dsn := postgres.Server(t).NewDatabase(t)
				compare(t, r, convert(t, src, dsn, history), dsn)
			})
		}
	}
}

func convert(t testing.TB, src source.Source, dsn string, history bool) *pipeline.Report {
	t.Helper()
	dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: dsn, HistoryPreserving: history})
	if err != nil {
		t.Fatal(err)
	}
	done, err := pipeline.Run(t.Context(), src, dst, pipeline.Options{
		Workers: 2, Rejects: filepath.Join(t.TempDir(), "rejects.jsonl"), AllowMissingBlobs: true,
	})
	if err != nil {
		t.Fatalf("convert: %v", err)
	}
	return done
}

func compare(t *testing.T, r *inspect.Report, done *pipeline.Report, dsn string) {
	t.Helper()
	totals, history := &done.Totals, r.Estimate.HistoryPreserving
	rows := &r.Source.HistoryFree
	if history {
		rows = &r.Source.HistoryPreserving
	}
	equal := func(what string, said, is int64) {
		t.Helper()
		if said != is {
			t.Errorf("%s: the inspection says %d, the conversion %d", what, said, is)
		}
	}
	equal("transactions", rows.Transactions, totals.Transactions)
	equal("objects", rows.Objects, totals.Objects)
	equal("revisions", rows.Revisions, totals.Revisions)
	equal("deleted", rows.Deleted, totals.Deleted)
	equal("rejected", rows.Rejected, totals.Rejected)
	equal("rejected, the finding", finding(r, inspect.Rejected).Count, totals.Rejected)
	equal("blobs", rows.Blobs, totals.Blobs)
	equal("bytes of blobs", rows.BlobBytes, totals.BlobBytes)
	equal("missing blobs", finding(r, inspect.MissingBlob).Count, totals.MissingBlobs)
	equal("escaped metadata", finding(r, inspect.EscapedMetadata).Count, totals.Metadata)
	equal("records for a newer codec", finding(r, inspect.NewCodec).Count, totals.NewCodec)
	equal("bytes of JSON", r.Estimate.StateBytes, totals.StateBytes)
	forms := map[string]int64{}
	for form := range jsonb.NumForms {
		name := jsonb.Form(form).String()
		f := finding(r, name)
		if f.Values > 0 {
			forms[name] = f.Values
		}
		if c := totals.FormClasses[name]; c != nil {
			equal("records of the form "+name, f.Count, c.Records())
		}
	}
	if len(forms)+len(totals.Forms) > 0 && !maps.Equal(forms, totals.Forms) {
		t.Errorf("forms: the inspection says %v, the conversion %v", forms, totals.Forms)
	}

	is := func(query string) (n int64) {
		t.Helper()
		fmt.Sscan(postgres.Server(t).Query(t, dsn, query)[0], &n)
		return n
	}
	equal("rows of transaction_log", rows.Transactions, is("SELECT count(*) FROM transaction_log"))
	equal("rows of object_state", rows.Objects, is("SELECT count(*) FROM object_state"))
	equal("rows of blob_state", rows.Blobs, is("SELECT count(*) FROM blob_state"))
	if history {
		equal("rows of object_history", rows.Revisions+rows.Deleted+rows.Rejected, is("SELECT count(*) FROM object_history"))
	}
	s := &r.Source
	equal("objects with their deleted ones", s.Objects, s.Current+s.Deleted)
	sum := int64(0)
	for _, n := range s.Revisions {
		sum += n
	}
	equal("objects by revisions", sum, s.Objects)
	sum = s.OtherClasses.Objects
	for _, c := range s.Classes {
		sum += c.Objects
	}
	equal("objects by class", sum, s.Current)
}
