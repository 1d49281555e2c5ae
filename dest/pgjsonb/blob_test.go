package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// withS3 opens a destination with a store of its own.
func (d *database) withS3(t testing.TB, history bool, change func(*pgjsonb.Config, *s3blob.Config)) dest.Destination {
	t.Helper()
	config := pgjsonb.Config{HistoryPreserving: history, BlobThreshold: desttest.BlobThreshold}
	config.S3 = d.store(t, func(s *s3blob.Config) {
		if change != nil {
			change(&config, s)
		}
	})
	dst := d.open(t, config)
	t.Cleanup(func() { dst.Close() })
	return dst
}

func mode(m dest.BlobMode) func(*dest.Plan) {
	return func(p *dest.Plan) { p.Blobs = m }
}

func continues(m dest.BlobMode) func(*dest.Plan) {
	return func(p *dest.Plan) { p.Blobs, p.Continue = m, true }
}

// settled takes a run to its end.
func (l *loading) settled() error {
	if l.session.Run().Phase == dest.Loading {
		if err := l.load(-1); err != nil {
			return err
		}
		if err := l.session.Loaded(l.t.Context(), l.src); err != nil {
			return err
		}
	}
	if l.session.Run().Phase == dest.Finishing {
		if err := l.session.Finish(l.t.Context()); err != nil {
			return err
		}
	}
	if err := l.session.SettleBlobs(l.t.Context(), nil); err != nil {
		return err
	}
	return l.session.Complete(l.t.Context())
}

// blobs is a small database of blobs of these sizes, oids from 1 on.
func blobs(sizes ...int) *desttest.Builder {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 1 << 40}, thing(0, "root"))
	for i, size := range sizes {
		b.Commit(desttest.Transaction{TID: zodb.TID(i+2) << 40}, desttest.BlobOf(zodb.OID(i+1), []byte(strings.Repeat("b", size))))
	}
	return b
}

func TestSourcesWhoseBlobsCannotBeWrittenAreRefused(t *testing.T) {
	d := newDatabaseWithS3(t)
	large := []source.LargeBlob{
		{OID: 7, TID: 3 << 40, Size: 512 << 20, Path: "/blobs/seven", Current: true},
		{OID: 8, TID: 3 << 40, Size: 600 << 20, Path: "/blobs/eight"},
		{OID: 9, TID: 3 << 40, Size: 500 << 20, Path: "/blobs/nine", Current: true},
	}
	for name, c := range map[string]struct {
		info    source.Info
		history bool
		s3      bool
		says    []string
		not     string
	}{
		"no blob directory": {info: source.Info{Blobs: 12, BlobOIDs: []zodb.OID{5, 6}}, says: []string{"12 blob records", zodb.OID(5).String(), "blob-dir"}},
		"too large":         {info: source.Info{Blobs: 3, BlobDir: "/blobs", LargeBlobs: large}, says: []string{"1 blob of more", "/blobs/seven", "s3-bucket-name"}, not: "eight"},
		"of any revision":   {info: source.Info{Blobs: 3, BlobDir: "/blobs", LargeBlobs: large}, history: true, says: []string{"2 blobs of more", "/blobs/seven", "/blobs/eight"}, not: "nine"},
		"with S3":           {info: source.Info{Blobs: 3, BlobDir: "/blobs", LargeBlobs: large}, s3: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := &database{server: d.server, dsn: newDatabase(t).dsn, s3: d.s3, bucket: d.bucket}
			dst := d.open(t, pgjsonb.Config{HistoryPreserving: c.history})
			if c.s3 {
				dst = d.withS3(t, c.history, nil)
			}
			defer dst.Close()
			c.info.Identity = source.Identity{Kind: "test", Name: "Data.fs"}
			session, err := dst.Begin(t.Context(), &dest.Plan{Info: &c.info, Workers: 1, Log: func(dest.Step) {}, Options: dest.Options{HistoryPreserving: c.history}})
			if c.says == nil {
				if err != nil {
					t.Fatal(err)
				}
				session.Close()
				return
			}
			isRefused(t, err, c.says...)
			if c.not != "" && strings.Contains(err.Error(), c.not) {
				t.Errorf("%q says %q", err, c.not)
			}
		})
	}
	if n := d.open(t, pgjsonb.Config{}).LargestBlob(); n < 500<<20 || n >= 512<<20 {
		t.Errorf("without S3 the largest blob has %d bytes", n)
	}
	if n := d.withS3(t, false, nil).LargestBlob(); n != 0 {
		t.Errorf("with S3 the largest blob has %d bytes", n)
	}
}

func TestModesNeedABucket(t *testing.T) {
	d := newDatabase(t)
	dst := d.Open(t, false)
	defer dst.Close()
	for _, m := range []dest.BlobMode{dest.Background, dest.Deferred} {
		_, err := begin(t, dst, blobs(5), mode(m))
		isRefused(t, err, string(m), "s3-bucket-name")
	}
}

func TestRunKeepsItsBucketPrefixAndThreshold(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(10, 2000)
	l, err := begin(t, d.withS3(t, false, nil), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o := l.session.Run().Options; o.Bucket != d.bucket || o.Prefix != prefix || o.BlobThreshold != desttest.BlobThreshold {
		t.Errorf("the options are %+v", o)
	}
	l.session.Close()
	other := d.s3.NewBucket(t)
	for name, c := range map[string]struct {
		dst  dest.Destination
		says []string
	}{
		"bucket":    {d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.Bucket = other }), []string{"s3-bucket-name", d.bucket, other}},
		"prefix":    {d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.Prefix = "elsewhere" }), []string{"s3-prefix", prefix, "elsewhere"}},
		"threshold": {d.withS3(t, false, func(c *pgjsonb.Config, _ *s3blob.Config) { c.BlobThreshold = 0 }), []string{"blob-threshold is 1000 there and 0 now"}},
		"none":      {d.open(t, pgjsonb.Config{}), []string{"s3-bucket-name", "no bucket"}},
	} {
		_, err := begin(t, c.dst, b, func(p *dest.Plan) { p.Continue = true })
		t.Log(name)
		isRefused(t, err, append(c.says, "--abort")...)
	}
	if l, err = begin(t, d.withS3(t, false, nil), b, func(p *dest.Plan) { p.Continue = true }); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
}

func TestThresholdOfNothingSendsEveryBlobToS3(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(0, 1, 2000)
	l, err := begin(t, d.withS3(t, false, func(c *pgjsonb.Config, _ *s3blob.Config) { c.BlobThreshold = 0 }), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	if got := d.query(t, "SELECT count(*) FROM blob_state WHERE data IS NULL AND s3_key <> ''"); got[0] != "3" {
		t.Errorf("%s blobs are in S3, want 3", got[0])
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 3 {
		t.Errorf("the bucket has %d objects, want 3", n)
	}
}

func TestBucketThatCannotBeUsedIsRefusedBeforeAnythingIsChanged(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000)
	before := d.Schema(t)
	for _, m := range []dest.BlobMode{dest.Inline, dest.Background} {
		dst := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.Bucket = "no-such-bucket" })
		var steps []string
		_, err := begin(t, dst, b, func(p *dest.Plan) {
			p.Blobs, p.Log = m, func(s dest.Step) { steps = append(steps, s.Name) }
		})
		isRefused(t, err, "no-such-bucket")
		if !slices.Contains(steps, "check the S3 bucket: write and remove a probe object") {
			t.Errorf("the steps are %q", steps)
		}
	}
	if diff := cmp.Diff(before, d.Schema(t)); diff != "" {
		t.Error(diff)
	}
}

func TestDeferredUploadsNeedNoReachableStore(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(10, 2000, 3000)
	dst := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL = "http://127.0.0.1:1" })
	l, err := begin(t, dst, b, mode(dest.Deferred))
	if err != nil {
		t.Fatal(err)
	}
	var owed []dest.OwedBlob
	if err := l.finishWith(func() error {
		return l.session.Owed(t.Context(), func(o *dest.OwedBlob) error { owed = append(owed, *o); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if len(owed) != 2 || owed[0].OID != 2 || owed[0].Size != 2000 || owed[0].Key != "blobs/0000000000000002/0000030000000000.blob" {
		t.Errorf("owed: %+v", owed)
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 0 {
		t.Errorf("%d objects were uploaded", n)
	}
	if l.totals.Blobs != 1 || l.totals.S3Blobs != 2 || l.totals.S3Bytes != 5000 {
		t.Errorf("the totals are %+v", l.totals)
	}
}

// finishWith takes a run to its end and looks before the end.
func (l *loading) finishWith(look func() error) error {
	if err := l.load(-1); err != nil {
		return err
	}
	if err := l.session.Loaded(l.t.Context(), l.src); err != nil {
		return err
	}
	if err := l.session.Finish(l.t.Context()); err != nil {
		return err
	}
	if err := look(); err != nil {
		return err
	}
	return l.settled()
}

// breaking is a source some of whose blobs break off while they are read.
type breaking struct {
	source.Log
	at map[zodb.OID]int64
}

type breakingReader struct {
	source.BlobReader
	blob *source.Blob
	at   int64
}

func (s *breaking) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	b, err := s.Log.Blob(ctx, r)
	at, ok := s.at[r.OID]
	if err != nil || !ok {
		return b, err
	}
	broken := *b
	broken.Open = func(ctx context.Context) (source.BlobReader, error) {
		reader, err := b.Open(ctx)
		return &breakingReader{reader, b, at}, err
	}
	return &broken, nil
}

func (r *breakingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= r.at {
		return r.BlobReader.ReadAt(p, off)
	}
	n, err := r.BlobReader.ReadAt(p[:max(0, r.at-off)], off)
	if err == nil || errors.Is(err, io.EOF) {
		err = &source.BlobError{OID: r.blob.OID, TID: r.blob.TID, Path: r.blob.Path, Problem: "cannot be read: input/output error"}
	}
	return n, err
}

func TestFilesThatBreakOffWhileTheyAreSentAreMissingBlobs(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		for name, d := range map[string]*database{"bytea": newDatabase(t), "S3": newDatabaseWithS3(t)} {
			t.Run(name, func(t *testing.T) {
				b := blobs(500, 200_000, 100, 150_000, 900, 70_000)
				dst := d.Open(t, history)
				defer dst.Close()
				var told atomic.Int64
				l, err := begin(t, dst, b, func(p *dest.Plan) {
					p.AcceptMissingBlobs, p.BlobBytes = true, func(n int64) { told.Add(n) }
				})
				if err != nil {
					t.Fatal(err)
				}
				l.src = &breaking{l.src, map[zodb.OID]int64{2: 130_000, 3: 0, 4: 149_999}}
				if err := l.finishWith(func() error {
					var missing []string
					err := l.session.MissingBlobs(t.Context(), func(m *dest.MissingBlob) error {
						missing = append(missing, fmt.Sprint(uint64(m.OID), " ", m.Reason))
						return nil
					})
					want := []string{"2 cannot be read: input/output error", "3 cannot be read: input/output error", "4 cannot be read: input/output error"}
					if diff := cmp.Diff(want, missing); diff != "" {
						t.Error(diff)
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{"1|500", "5|900", "6|70000"}, d.query(t, "SELECT zoid, blob_size FROM blob_state ORDER BY zoid")); diff != "" {
					t.Error(diff)
				}
				if told.Load() != 71_400 {
					t.Errorf("told of %d bytes, want 71400", told.Load())
				}
				if l.totals.MissingBlobs != 3 || l.totals.Blobs+l.totals.S3Blobs != 3 {
					t.Errorf("the totals are %+v", l.totals)
				}
				// While catching up, too.
				for i, oid := range []zodb.OID{1, 2, 5} {
					b.Commit(desttest.Transaction{TID: zodb.TID(50+i) << 40}, desttest.BlobOf(oid, []byte(strings.Repeat("c", 100_000))))
				}
				if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptMissingBlobs = true, true }); err != nil {
					t.Fatal(err)
				}
				l.src = &breaking{l.src, map[zodb.OID]int64{2: 30_000}}
				if err := l.follow(); err != nil {
					t.Fatal(err)
				}
				if err := l.settled(); err != nil {
					t.Fatal(err)
				}
				got := d.query(t, "SELECT zoid, blob_size FROM blob_state WHERE zoid <> 6 AND tid >= 50::int8 << 40 ORDER BY zoid, tid")
				if diff := cmp.Diff([]string{"1|100000", "5|100000"}, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	})
}

func TestBlobsTakeNoMemory(t *testing.T) {
	d, b := newDatabase(t), blobs(0)
	b.Commit(desttest.Transaction{TID: 99 << 40}, desttest.BlobOf(50, make([]byte, 96<<20)))
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("a blob of 96 MB takes %d bytes of memory", took)
	}
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	if got := d.query(t, "SELECT length(data) FROM blob_state WHERE zoid = 50"); got[0] != fmt.Sprint(96<<20) {
		t.Errorf("the blob has %s bytes", got[0])
	}
}

func TestLostConnectionsDoNotUploadTwice(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000, 4000, 5000)
	proxy := d.s3.NewProxy(t, faults.Settings{})
	dst := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL = proxy.URL() })
	var told atomic.Int64
	killed := false
	l, err := begin(t, dst, b, func(p *dest.Plan) {
		p.BlobBytes = func(n int64) {
			if told.Add(n) >= 14_000 && !killed {
				killed = true // everything is uploaded, the chunk is not committed
				d.kill(t)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	before, _ := proxy.Requests()
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	after, _ := proxy.Requests()
	once, _ := countRequests(t, b)
	if !killed || after-before != once {
		t.Errorf("%d requests (the connection was lost: %v), want %d", after-before, killed, once)
	}
	if told.Load() != 14_000 {
		t.Errorf("told of %d bytes, want 14000", told.Load())
	}
}

// countRequests counts those of an undisturbed run, without the probe.
func countRequests(t *testing.T, b *desttest.Builder) (load, all int) {
	t.Helper()
	d := newDatabaseWithS3(t)
	proxy := d.s3.NewProxy(t, faults.Settings{})
	l, err := begin(t, d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL = proxy.URL() }), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	probe, _ := proxy.Requests()
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	all, _ = proxy.Requests()
	return all - probe, all
}

func TestUploadsOfAnInterruptedRunArePaidInTheLaterMode(t *testing.T) {
	for _, later := range []dest.BlobMode{dest.Inline, dest.Background} {
		t.Run(string(later), func(t *testing.T) {
			d, b := newDatabaseWithS3(t), blobs(2000, 10, 3000, 4000)
			dst := d.withS3(t, false, nil)
			l, err := begin(t, dst, b, mode(dest.Deferred))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.load(-1); err != nil {
				t.Fatal(err)
			}
			l.session.Close()
			state, err := dst.State(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if state.Owed != 3 || state.OwedBytes != 9000 {
				t.Errorf("the state is %+v", state)
			}
			if l, err = begin(t, dst, b, continues(later)); err != nil {
				t.Fatal(err)
			}
			var last dest.UploadProgress
			if err := l.finishWith(func() error {
				return l.session.SettleBlobs(t.Context(), func(u dest.UploadProgress) { last = u })
			}); err != nil {
				t.Fatal(err)
			}
			if last.Done != last.Total || last.DoneBytes > last.TotalBytes {
				t.Errorf("the last progress is %+v", last)
			}
			if n := len(d.s3.Snapshot(t, d.bucket)); n != 3 {
				t.Errorf("%d objects are uploaded, want 3", n)
			}
		})
	}
}

func TestStoreThatStaysDownStopsTheRunAndItGoesOnLater(t *testing.T) {
	for _, m := range []dest.BlobMode{dest.Inline, dest.Background} {
		t.Run(string(m), func(t *testing.T) {
			d, b := newDatabaseWithS3(t), desttest.BlobSample(false)
			proxy := d.s3.NewProxy(t, faults.Settings{})
			dst := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL, s.Wait = proxy.URL(), 1 })
			l, err := begin(t, dst, b, mode(m))
			if err != nil {
				t.Fatal(err)
			}
			proxy.Set(faults.Settings{Kinds: []faults.Fault{faults.Error503}, Every: 1})
			err = l.settled()
			var store *s3blob.Error
			if !errors.As(err, &store) || !store.Whole {
				t.Fatalf("a store that is down gives %v", err)
			}
			if m == dest.Background && !strings.Contains(err.Error(), "--incremental") {
				t.Errorf("%q does not say how to go on", err)
			}
			l.session.Close()
			proxy.Set(faults.Settings{})
			if l, err = begin(t, dst, b, continues(m)); err != nil {
				t.Fatal(err)
			}
			if err := l.settled(); err != nil {
				t.Fatal(err)
			}
			want := newDatabaseWithS3(t)
			if l, err = begin(t, want.withS3(t, false, nil), b, nil); err != nil {
				t.Fatal(err)
			}
			if err := l.settled(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.Rows(t), d.Rows(t)); diff != "" {
				t.Errorf("(-undisturbed +continued):\n%s", diff)
			}
		})
	}
}

func TestUploadsThatFailForOneBlobAreListedAndTheOthersDone(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000, 4000)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, mode(dest.Deferred))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	var path string
	if err := l.session.Owed(t.Context(), func(o *dest.OwedBlob) error {
		if o.OID == 2 {
			path = o.Path
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	b.Lose(2, 3<<40)
	if l, err = begin(t, dst, b, continues(dest.Inline)); err != nil {
		t.Fatal(err)
	}
	err = l.settled()
	var failed *dest.UploadError
	if !errors.As(err, &failed) || failed.Count != 1 || len(failed.Failed) != 1 || failed.Failed[0].OID != 2 || failed.Failed[0].Path != path {
		t.Fatalf("an upload that cannot be done gives %v", err)
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 2 {
		t.Errorf("%d of the others are uploaded, want 2", n)
	}
	l.session.Close()
	t.Run("back again", func(t *testing.T) {
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		defer os.Rename(path, path+".away")
		l, err := begin(t, dst, b, continues(dest.Background))
		if err != nil {
			t.Fatal(err)
		}
		defer l.session.Close()
		if err := l.session.SettleBlobs(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if n := len(d.s3.Snapshot(t, d.bucket)); n != 3 {
			t.Errorf("%d objects, want 3", n)
		}
	})
}

func TestFileThatIsLostBeforeItsUploadMayBeAcceptedAsMissing(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, mode(dest.Deferred))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Owed(t.Context(), func(o *dest.OwedBlob) error {
		if o.OID == 2 {
			return os.Rename(o.Path, filepath.Join(t.TempDir(), "away"))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	b.Lose(2, 3<<40)
	if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptMissingBlobs = true, true }); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	if totals := l.session.Run().Totals; totals.MissingBlobs != 1 || totals.S3Blobs != 1 || totals.S3Bytes != 2000 {
		t.Errorf("the totals are %+v", totals)
	}
	if diff := cmp.Diff([]string{"1"}, d.query(t, "SELECT zoid FROM blob_state")); diff != "" {
		t.Error(diff)
	}
}

func TestReplacedObjectsLeaveS3AfterTheCommitWhateverInterruptsIt(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000, 4000, 10)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	b.Commit(desttest.Transaction{TID: 50 << 40}, desttest.BlobOf(1, make([]byte, 2500)), desttest.Record{OID: 2})
	b.Commit(desttest.Transaction{TID: 51 << 40}, thing(3, "no blob any more"))
	if l, err = begin(t, dst, b, continues(dest.Inline)); err != nil {
		t.Fatal(err)
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	var gone []string
	if err := l.session.Gone(t.Context(), func(key string) error { gone = append(gone, key); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(gone) != 3 {
		t.Errorf("gone: %q", gone)
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 4 {
		t.Errorf("%d objects before the uploads are settled, want 4", n)
	}
	// Somebody's row names one of the keys: that object stays.
	d.exec(t, "INSERT INTO blob_state SELECT oid, 5, 4000, NULL, key FROM zodb_convert_gone WHERE oid = 3")
	l.session.Close() // killed
	if l, err = begin(t, dst, b, continues(dest.Background)); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for key := range d.s3.Snapshot(t, d.bucket) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	want := []string{
		prefix + "/" + s3blob.Key(1, 50<<40),
		prefix + "/" + s3blob.Key(3, 4<<40),
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Error(diff)
	}
	// Deferred and out of reach, what was replaced stays and the run ends.
	b.Commit(desttest.Transaction{TID: 60 << 40}, desttest.Record{OID: 1})
	away := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.EndpointURL, s.Wait = "http://127.0.0.1:1", 1 })
	var notes []string
	l, err = begin(t, away, b, func(p *dest.Plan) {
		p.Blobs, p.Continue, p.Note = dest.Deferred, true, func(text string) { notes = append(notes, text) }
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(notes, func(s string) bool { return strings.Contains(s, "stay in s3://") }) {
		t.Errorf("nothing is said of what stays: %q", notes)
	}
}

func TestCatchingUpABlobDatabaseNeedsItsBucket(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000)
	l, err := begin(t, d.withS3(t, false, nil), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	_, err = begin(t, d.open(t, pgjsonb.Config{}), b, func(p *dest.Plan) { p.Continue = true })
	isRefused(t, err, "1 blob in S3", "s3-bucket-name")
}

func TestCatchingUpInAnotherPlaceOfS3IsRefused(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000)
	l, err := begin(t, d.withS3(t, false, nil), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	other := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.Prefix = "elsewhere" })
	for _, m := range []dest.BlobMode{dest.Inline, dest.Background} {
		_, err = begin(t, other, b, continues(m))
		isRefused(t, err, "elsewhere has none of the first 2", "the prefix of the site")
	}
	// Of what is deferred, nothing may be there yet; and one that is suffices.
	for _, dst := range []dest.Destination{other, d.withS3(t, false, nil)} {
		m := dest.Deferred
		if dst != other {
			m = dest.Inline
			if err := d.store(t, nil).Delete(t.Context(), s3blob.Key(1, 2<<40)); err != nil {
				t.Fatal(err)
			}
		}
		if l, err = begin(t, dst, b, continues(m)); err != nil {
			t.Fatal(err)
		}
		if err := l.settled(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectsStayInS3WhenARunIsUndoneOrCleared(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000, 10)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	left, err := dst.Abort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	where := "2 objects stay in s3://" + d.bucket + "/" + prefix
	if !strings.HasPrefix(left, where) {
		t.Errorf("undone, and %q is left", left)
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
	if l, err = begin(t, dst, b, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	for _, done := range []string{"a finished one", "an unfinished one"} {
		var notes []string
		l, err = begin(t, dst, b, func(p *dest.Plan) {
			p.Clear, p.Note = true, func(text string) { notes = append(notes, text) }
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(notes, func(s string) bool { return strings.HasPrefix(s, where) }) {
			t.Errorf("cleared %s, and nothing is said of what stays: %q", done, notes)
		}
		if err := l.load(-1); err != nil {
			t.Fatal(err)
		}
		l.session.Close()
	}
	if n := len(d.s3.Snapshot(t, d.bucket)); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
}

func TestUnfinishedCatchUpWithOwedOrMissingBlobsIsNotForgotten(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	b.Commit(desttest.Transaction{TID: 50 << 40}, desttest.BlobOf(1, make([]byte, 2500)), desttest.BlobOf(2, nil))
	b.Lose(2, 50<<40)
	if l, err = begin(t, dst, b, continues(dest.Deferred)); err != nil {
		t.Fatal(err)
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	_, err = dst.Abort(t.Context())
	isRefused(t, err, "1 blob missing", "1 not yet uploaded", "--incremental")
}
