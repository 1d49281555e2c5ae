package pgjsonb_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/dest/staging"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// filelessSource is a source whose blobs are in no file. It may be blind.
type filelessSource struct {
	source.Log
	broken map[zodb.OID]bool
	opened func(zodb.OID) // called before a blob is, if not nil
	asked  atomic.Int64
}

func (s *filelessSource) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	s.asked.Add(1)
	b, err := s.Log.Blob(ctx, r)
	if err != nil {
		return nil, err
	}
	c := *b
	c.Path = ""
	c.Open = func(ctx context.Context) (source.BlobReader, error) {
		if s.opened != nil {
			s.opened(r.OID)
		}
		if s.broken[r.OID] {
			return nil, &source.BlobError{OID: r.OID, TID: r.TID, Path: "a table", Problem: "cannot be read: it is broken"}
		}
		return b.Open(ctx)
	}
	return &c, nil
}

// staged is a plan that stages.
func staged(dir string) func(*dest.Plan) {
	return func(p *dest.Plan) { p.Blobs, p.StagingDir = dest.Deferred, dir }
}

// owedOf gives the owed uploads.
func owedOf(t *testing.T, l *loading) (list []dest.OwedBlob, err error) {
	t.Helper()
	err = l.session.Owed(t.Context(), func(o *dest.OwedBlob) error {
		list = append(list, *o)
		return nil
	})
	return list, err
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func identity(t *testing.T, b *desttest.Builder) source.Identity {
	t.Helper()
	src := b.Source(t)
	info, err := src.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info.Identity
}

// below is the directory of a database in a staging directory.
func below(t *testing.T, dir string) string {
	t.Helper()
	list := names(t, dir)
	if len(list) != 1 {
		t.Fatalf("%s holds %q", dir, list)
	}
	return filepath.Join(dir, list[0])
}

func TestDeferredBlobsThatAreInNoFileAreStaged(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabaseWithS3(t), blobs(10, 2000, 300_000, 0)
		b.Commit(desttest.Transaction{TID: 40 << 40}, desttest.BlobOf(2, []byte(strings.Repeat("c", 2500))))
		dst := d.withS3(t, history, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL = "http://127.0.0.1:1" })
		dir := filepath.Join(t.TempDir(), "staged")
		var told atomic.Int64
		var notes []string
		l, err := begin(t, dst, b, func(p *dest.Plan) {
			staged(dir)(p)
			p.BlobBytes = func(n int64) { told.Add(n) }
			p.Note = func(text string) { notes = append(notes, text) }
		})
		if err != nil {
			t.Fatal(err)
		}
		l.src = &filelessSource{Log: l.src}
		want := []string{"0000000000000002-0000280000000000.blob", "0000000000000003-0000040000000000.blob", "source.json"}
		bytes := int64(302_510)
		if history {
			want = slices.Insert(want, 0, "0000000000000002-0000030000000000.blob")
			bytes += 2000
		}
		if err := l.finishWith(func() error {
			owed, err := owedOf(t, l)
			for _, o := range owed {
				if filepath.Dir(o.Path) != below(t, dir) || content(t, o.Path) != string(b.Bytes(o.OID, o.TID)) || o.Size != int64(len(content(t, o.Path))) {
					t.Errorf("%+v", o)
				}
			}
			if len(owed) != len(want)-1 {
				t.Errorf("%d are owed", len(owed))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, names(t, below(t, dir))); diff != "" {
			t.Error(diff)
		}
		if told.Load() != bytes {
			t.Errorf("told of %d bytes, want %d", told.Load(), bytes)
		}
		if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, dir) && strings.Contains(n, "nothing removes them") }) {
			t.Errorf("%q", notes)
		}
	})
}

func TestStagingThatCannotWorkIsRefusedBeforeTheLoad(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(10, 2000)
	dst := d.withS3(t, false, nil)
	before := d.Schema(t)
	fileless := func(p *dest.Plan, size int, n, bytes int64) {
		p.Info.Fileless[size] = source.BlobCount{Blobs: n, Bytes: bytes}
	}
	used, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	s, err := staging.Open(used, identity(t, b))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*dest.Plan)
		says   []string
	}{
		{"no directory", func(p *dest.Plan) { p.Blobs = dest.Deferred; fileless(p, 20, 3, 1<<20) }, []string{"3 blobs", "in no file", "--staging-dir", "--deferred-blobs"}},
		{"no directory, and small blobs", func(p *dest.Plan) { p.Blobs = dest.Deferred; fileless(p, 5, 3, 60) }, nil},
		{"no room", func(p *dest.Plan) { staged(t.TempDir())(p); fileless(p, 50, 3, 1<<50) }, []string{"3 blobs", "1073741824.0 MB", "has room for", "--staging-dir"}},
		{"no room needed", func(p *dest.Plan) { staged(t.TempDir())(p); fileless(p, 5, 1<<50, 1<<52) }, nil},
		{"used by another process", staged(used), []string{"used by another conversion"}},
		{"a file", staged(file), []string{"no directory", "--staging-dir"}},
		{"nowhere", staged(filepath.Join(file, "x")), []string{"staging directory", "--staging-dir"}},
		{"not deferred", func(p *dest.Plan) { fileless(p, 20, 3, 1<<20); p.StagingDir = "" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := begin(t, dst, b, c.change)
			if c.says == nil {
				if err != nil {
					t.Fatal(err)
				}
				l.session.Close()
				if _, err := dst.Abort(t.Context()); err != nil {
					t.Fatal(err)
				}
				return
			}
			isRefused(t, err, c.says...)
			if diff := cmp.Diff(before, d.Schema(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a killed start has left is overwritten, or removed if it is half written.
func TestLeftoversOfAKilledStartAreOverwritten(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000)
	dst := d.withS3(t, false, nil)
	parent := t.TempDir()
	own, err := staging.Open(parent, identity(t, b))
	if err != nil {
		t.Fatal(err)
	}
	own.Close()
	dir := own.Path()
	for name, text := range map[string]string{
		"0000000000000001-0000020000000000.blob":            "old",
		"0000000000000002-0000030000000000.blob.123456.tmp": "half",
		"0000000000000009-0000030000000000.blob":            "of a blob that is no more",
		"mine":                                              "of somebody else", "source.json": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := begin(t, dst, b, staged(parent))
	if err != nil {
		t.Fatal(err)
	}
	l.src = &filelessSource{Log: l.src}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	want := []string{"0000000000000001-0000020000000000.blob", "0000000000000002-0000030000000000.blob", "0000000000000009-0000030000000000.blob", "mine", "source.json"}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	if len(content(t, filepath.Join(dir, want[0]))) != 2000 || content(t, filepath.Join(dir, want[2])) != "of a blob that is no more" {
		t.Error("not overwritten, or too much")
	}
}

func TestBlobsThatBreakOffWhileTheyAreStagedAreMissing(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000, 4000)
	dst := d.withS3(t, false, nil)
	dir := t.TempDir()
	var told atomic.Int64
	l, err := begin(t, dst, b, func(p *dest.Plan) {
		staged(dir)(p)
		p.AcceptMissingBlobs, p.BlobBytes = true, func(n int64) { told.Add(n) }
	})
	if err != nil {
		t.Fatal(err)
	}
	l.src = &filelessSource{Log: &breaking{l.src, map[zodb.OID]int64{3: 2000}}, broken: map[zodb.OID]bool{2: true}}
	if err := l.finishWith(func() error {
		owed, err := owedOf(t, l)
		if len(owed) != 1 || owed[0].OID != 1 {
			t.Errorf("%+v", owed)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if l.totals.MissingBlobs != 2 || told.Load() != 2000 {
		t.Errorf("%+v, told of %d", l.totals, told.Load())
	}
	if diff := cmp.Diff([]string{"0000000000000001-0000020000000000.blob", "source.json"}, names(t, below(t, dir))); diff != "" {
		t.Error(diff)
	}
}

// owing leaves a run behind that is loaded and owes the upload of blobs in no
// file, as one in the background does that was killed.
func owing(t *testing.T, d *database, dst dest.Destination, b *desttest.Builder) {
	t.Helper()
	l, err := begin(t, dst, b, mode(dest.Deferred))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	d.query(t, "UPDATE zodb_convert_owed SET path = '' RETURNING oid")
}

func TestWhatAnEarlierStartOwesIsDoneFromTheSource(t *testing.T) {
	sizes := []int{2000, 3000, 10, 4000}
	for _, m := range []dest.BlobMode{dest.Inline, dest.Background} {
		t.Run(string(m), func(t *testing.T) {
			d, b := newDatabaseWithS3(t), blobs(sizes...)
			dst := d.withS3(t, false, nil)
			owing(t, d, dst, b)
			var src *filelessSource
			l, err := begin(t, dst, b, func(p *dest.Plan) {
				continues(m)(p)
				log := b.Source(t)
				if _, err := log.Scan(t.Context(), source.ScanOptions{}); err != nil {
					t.Fatal(err)
				}
				src = &filelessSource{Log: log}
				p.Source = src // uploads in the background begin before any writer
			})
			if err != nil {
				t.Fatal(err)
			}
			l.src = src
			if err := l.settled(); err != nil {
				t.Fatal(err)
			}
			if n := len(d.s3.Snapshot(t, d.bucket)); n != 3 || src.asked.Load() != 3 {
				t.Errorf("%d objects, %d blobs were asked for", n, src.asked.Load())
			}
		})
	}
	deferred := func(t *testing.T, accept bool, src *filelessSource) ([]dest.OwedBlob, dest.Result, error) {
		d, b := newDatabaseWithS3(t), blobs(sizes...)
		dst := d.withS3(t, false, nil)
		owing(t, d, dst, b)
		dir := t.TempDir()
		l, err := begin(t, dst, b, func(p *dest.Plan) {
			continues(dest.Deferred)(p)
			p.StagingDir, p.AcceptMissingBlobs = dir, accept
			src.Log = b.Source(t)
			if _, err := src.Scan(t.Context(), source.ScanOptions{}); err != nil {
				t.Fatal(err)
			}
			p.Source = src
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.session.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		owed, err := owedOf(t, l)
		for _, o := range owed {
			if content(t, o.Path) != string(b.Bytes(o.OID, o.TID)) {
				t.Errorf("%+v", o)
			}
		}
		if err == nil && len(owed) > 0 {
			// One that has gone since is staged again.
			if err := os.Remove(owed[0].Path); err != nil {
				t.Fatal(err)
			}
			again, err := owedOf(t, l)
			if diff := cmp.Diff(owed, again); diff != "" || err != nil {
				t.Error(diff, err)
			}
			content(t, owed[0].Path)
		}
		if err == nil {
			err = l.settled()
		}
		return owed, l.session.Run().Totals, err
	}
	t.Run("deferred", func(t *testing.T) {
		if owed, _, err := deferred(t, false, &filelessSource{}); err != nil || len(owed) != 3 {
			t.Errorf("%+v, %v", owed, err)
		}
	})
	t.Run("deferred, and one is broken", func(t *testing.T) {
		var failed *dest.UploadError
		if _, _, err := deferred(t, false, &filelessSource{broken: map[zodb.OID]bool{2: true}}); !errors.As(err, &failed) || failed.Count != 1 || !strings.Contains(err.Error(), "it is broken") {
			t.Errorf("%v", err)
		}
	})
	t.Run("deferred, and one is broken, which is accepted", func(t *testing.T) {
		owed, totals, err := deferred(t, true, &filelessSource{broken: map[zodb.OID]bool{2: true}})
		if err != nil || len(owed) != 2 || totals.MissingBlobs != 1 || totals.S3Blobs != 2 {
			t.Errorf("%d, %+v, %v", len(owed), totals, err)
		}
	})
}

// A chunk whose connection is lost behind the staging is repeated, and what it has
// staged is not.
func TestBlobsOfARepeatedChunkAreStagedOnce(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000)
	dst := d.withS3(t, false, nil)
	var told atomic.Int64
	l, err := begin(t, dst, b, func(p *dest.Plan) {
		staged(t.TempDir())(p)
		p.BlobBytes = func(n int64) { told.Add(n) }
	})
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	l.src = &filelessSource{Log: l.src, opened: func(oid zodb.OID) {
		if oid == 2 {
			cut += len(d.query(t, "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name LIKE '%w1%'"))
		}
	}}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	if cut != 1 || told.Load() != 5000 {
		t.Errorf("the connection was cut %d times, told of %d bytes", cut, told.Load())
	}
}
