package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var objects s3test.Shared

// blobs is a database of blobs of these sizes, oids from 1 on.
func blobs(sizes ...int) *desttest.Builder {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 1 << 40}, desttest.Record{Data: desttest.Data("app.things", "Root", "x")})
	for i, size := range sizes {
		b.Commit(desttest.Transaction{TID: zodb.TID(i+2) << 40}, desttest.BlobOf(zodb.OID(i+1), []byte(strings.Repeat("b", size))))
	}
	return b
}

// where are the files of a source.
func where(t *testing.T, src source.Source) (path, blobDir string) {
	t.Helper()
	info, err := src.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info.Identity.Name, info.BlobDir
}

// withoutBlobs opens a source without its blob directory.
func withoutBlobs(t *testing.T, b *desttest.Builder) source.Source {
	t.Helper()
	path, _ := where(t, b.Source(t))
	src, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// target is a destination with a bucket.
type target struct {
	dsn    string
	bucket string
	config s3blob.Config
}

func newTarget(t *testing.T) *target {
	server := objects.Server(t)
	d := &target{dsn: postgres.Server(t).NewDatabase(t), bucket: server.NewBucket(t)}
	d.config = s3blob.Config{Bucket: d.bucket, EndpointURL: server.URL(), Region: s3test.Region,
		AccessKey: server.AccessKey, SecretKey: server.SecretKey, Wait: 3 * time.Second}
	return d
}

func (d *target) open(t *testing.T, history bool) dest.Destination {
	t.Helper()
	store, err := s3blob.Open(t.Context(), d.config)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: d.dsn, HistoryPreserving: history, S3: store, BlobThreshold: 1000, Transfers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dst.Close() })
	return dst
}

func (d *target) rows(t *testing.T, sql string) []string {
	return postgres.Server(t).Query(t, d.dsn, sql)
}

func TestBlobThatIsLostBeforeItsUploadIsReportedAsMissing(t *testing.T) {
	for _, mode := range []dest.BlobMode{dest.Inline, dest.Background} {
		t.Run(string(mode), func(t *testing.T) {
			d, b := newTarget(t), blobs(2000, 2001, 2002, 2003, 2004, 2005)
			proxy := objects.Server(t).NewProxy(t, faults.Settings{})
			d.config.EndpointURL = proxy.URL()
			src := b.Source(t)
			_, dir := where(t, src)
			// What is owed is left to the end of another start.
			ctx, cancel := context.WithCancel(t.Context())
			_, err := pipeline.Run(ctx, src, d.open(t, false), pipeline.Options{
				Blobs: dest.Deferred, Manifest: filepath.Join(t.TempDir(), "manifest"),
				Progress: func(e pipeline.Event) {
					if e.Phase == pipeline.Finishing {
						cancel()
					}
				},
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%v", err)
			}
			proxy.Set(faults.Settings{Latency: 400 * time.Millisecond})
			rejects, lost := filepath.Join(t.TempDir(), "rejects"), false
			report, err := pipeline.Run(t.Context(), src, d.open(t, false), pipeline.Options{
				Blobs: mode, Incremental: true, AllowMissingBlobs: true, Rejects: rejects,
				Progress: func(e pipeline.Event) {
					if e.Phase == pipeline.Uploading && !lost {
						lost = true
						if err := os.Remove(desttest.BlobPath(dir, 6, 7<<40)); err != nil {
							t.Error(err)
						}
					}
				},
			})
			if err != nil || !lost {
				t.Fatalf("%v (lost: %v)", err, lost)
			}
			if diff := cmp.Diff([]string{"1", "2", "3", "4", "5"}, d.rows(t, "SELECT zoid FROM blob_state ORDER BY zoid")); diff != "" {
				t.Error(diff)
			}
			if report.Totals.MissingBlobs != 1 || report.Totals.S3Blobs != 5 || len(report.MissingBlobs) != 1 || report.MissingBlobs[0].OID != 6 {
				t.Errorf("the report has %+v and %+v", report.Totals, report.MissingBlobs)
			}
			list, err := os.ReadFile(rejects)
			if err != nil || !strings.Contains(string(list), fmt.Sprintf("%q", zodb.OID(6).String())) {
				t.Errorf("the list of rejects holds %q (%v)", list, err)
			}
		})
	}
}

func TestBlobsThatComeWhileCatchingUpWithoutABlobDirectoryAreRefused(t *testing.T) {
	d, b := newTarget(t), blobs(2000, 10, 3000)
	ctx, cancel := context.WithCancel(t.Context())
	first := b.Prefix(1).Source(t)
	_, err := pipeline.Run(ctx, first, d.open(t, false), pipeline.Options{Progress: func(e pipeline.Event) {
		if e.Phase == pipeline.Finishing {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	report, err := pipeline.Run(t.Context(), withoutBlobs(t, b), d.open(t, false), pipeline.Options{Incremental: true, AllowMissingBlobs: true})
	var refused *dest.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "3 blob records") || !strings.Contains(err.Error(), "blob-dir") {
		t.Errorf("blobs without a directory give %v, totals %+v", err, report.Totals)
	}
	if _, err := pipeline.Run(t.Context(), b.Source(t), d.open(t, false), pipeline.Options{Incremental: true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1|2000", "2|10", "3|3000"}, d.rows(t, "SELECT zoid, blob_size FROM blob_state ORDER BY zoid")); diff != "" {
		t.Error(diff)
	}
}

// hole makes a blob's file as large as it is said to be, without taking room.
func hole(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestDryRunNamesMissingBlobsAndRefusesWhatARealRunRefuses(t *testing.T) {
	dsn := postgres.Server(t).NewDatabase(t)
	dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	b := blobs(10, 20, 30)
	b.Commit(desttest.Transaction{TID: 90 << 40}, desttest.BlobOf(1, []byte("newer")))
	b.Lose(1, 2<<40) // is not wanted without history
	b.Lose(3, 4<<40)
	src := b.Source(t)
	report, err := pipeline.Run(t.Context(), src, dst, pipeline.Options{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if report.Totals.MissingBlobs != 1 || report.Totals.Blobs != 2 || len(report.MissingBlobs) != 2 || report.MissingBlobs[1].OID != 3 ||
		!strings.Contains(report.MissingBlobs[1].Path, "0x0400") {
		t.Errorf("totals %+v, missing %+v", report.Totals, report.MissingBlobs)
	}
	path, dir := where(t, src)
	hole(t, desttest.BlobPath(dir, 2, 3<<40), 512<<20)
	if src, err = filestorage.Open(t.Context(), path, filestorage.Options{BlobDir: dir}); err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for _, dry := range []bool{true, false} {
		report, err = pipeline.Run(t.Context(), src, dst, pipeline.Options{DryRun: dry})
		var refused *dest.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), desttest.BlobPath(dir, 2, 3<<40)) || !strings.Contains(err.Error(), "s3-bucket-name") {
			t.Errorf("a blob that is too large gives %v (dry: %v)", err, dry)
		}
		if dry && (report.Totals.Transactions != 5 || report.Totals.Objects != 4) {
			t.Errorf("the totals are %+v", report.Totals)
		}
		_, err = pipeline.Run(t.Context(), withoutBlobs(t, b), dst, pipeline.Options{DryRun: dry})
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "4 blob records") {
			t.Errorf("blobs without a directory give %v (dry: %v)", err, dry)
		}
	}
}

// The scan may not see what grows too large, or comes, after it.
func TestBlobThatIsTooLargeForPostgreSQLIsAMissingOne(t *testing.T) {
	dsn := postgres.Server(t).NewDatabase(t)
	dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	b := blobs(10, 20)
	for i := range 3 {
		// Each is a chunk of its own.
		large := desttest.Record{OID: 9, Data: desttest.Data("app.things", "Thing", strings.Repeat("x", 9000))}
		b.Commit(desttest.Transaction{TID: zodb.TID(50+i) << 40}, large, desttest.BlobOf(1, []byte("newer")))
	}
	if _, err := pipeline.Run(t.Context(), b.Prefix(3).Source(t), dst, pipeline.Options{}); err != nil {
		t.Fatal(err)
	}
	src := b.Source(t)
	_, dir := where(t, src)
	hole(t, desttest.BlobPath(dir, 1, 51<<40), 600<<20) // not the current one
	if _, err := pipeline.Run(t.Context(), src, dst, pipeline.Options{Incremental: true, ChunkBytes: 4 << 10}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1|5", "2|20"}, postgres.Server(t).Query(t, dsn, "SELECT zoid, blob_size FROM blob_state ORDER BY zoid")); diff != "" {
		t.Error(diff)
	}
}

// Whoever starts the site too early cannot catch up any more, but has its blobs.
func TestOwedUploadsAreDoneAlthoughTheSiteHasWritten(t *testing.T) {
	for _, mode := range []dest.BlobMode{dest.Inline, dest.Background, dest.Deferred} {
		t.Run(string(mode), func(t *testing.T) {
			d, b := newTarget(t), blobs(2000, 10, 3000)
			server, src := objects.Server(t), b.Source(t)
			manifest := filepath.Join(t.TempDir(), "manifest")
			ctx, cancel := context.WithCancel(t.Context())
			_, err := pipeline.Run(ctx, src, d.open(t, false), pipeline.Options{
				Blobs: dest.Deferred, Manifest: filepath.Join(t.TempDir(), "manifest"), Incremental: true,
				Progress: func(e pipeline.Event) {
					if e.Kind == pipeline.PhaseStarted && e.Phase == pipeline.Scanning && len(d.rows(t, "SELECT FROM pg_tables WHERE tablename = 'zodb_convert_run'")) > 0 {
						cancel() // it is to catch up
					}
				},
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			d.rows(t, "INSERT INTO transaction_log VALUES (4611686018427387904, 'admin', 'edited', NULL) RETURNING 1")
			report, err := pipeline.Run(t.Context(), src, d.open(t, false), pipeline.Options{Blobs: mode, Manifest: manifest, Incremental: true})
			var refused *dest.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), "admin") {
				t.Fatalf("a destination that the site has written to gives %v", err)
			}
			if mode != dest.Deferred {
				if n := len(server.Snapshot(t, d.bucket)); n != 2 {
					t.Errorf("%d objects are uploaded, want 2", n)
				}
				return
			}
			list, err := os.ReadFile(manifest)
			if err != nil || strings.Count(string(list), "\n") != 2 || report.Owed != 2 {
				t.Errorf("the manifest is %q (%v), %d owed", list, err, report.Owed)
			}
		})
	}
}
