package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// looking is a source that tells of every blob that is looked for, and may answer
// itself.
type looking struct {
	source.Log
	look func(r *source.Record) (*source.Blob, error)
}

func (s *looking) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	if b, err := s.look(r); b != nil || err != nil {
		return b, err
	}
	return s.Log.Blob(ctx, r)
}

// crash lets a server forget what it has not written, and starts it again.
func (d *database) crash(t *testing.T) {
	t.Helper()
	if err := d.server.Stop("immediate"); err != nil {
		t.Error(err)
	}
	if err := d.server.Run(); err != nil {
		t.Error(err)
	}
}

// Looking for missing blobs once more may take long.
func TestServerThatForgetsChunksWhileMissingBlobsAreLookedForStopsTheRun(t *testing.T) {
	d, b := ownServer(t), blobs(10, 20, 30, 40, 50, 60)
	b.Lose(2, 3<<40)
	dst := d.open(t, pgjsonb.Config{Wait: 20 * time.Second})
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptMissingBlobs = true })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	crashed := false
	err = l.session.Loaded(t.Context(), &looking{l.src, func(*source.Record) (*source.Blob, error) {
		if !crashed {
			crashed = true
			d.crash(t)
		}
		return nil, nil
	}})
	if !crashed {
		t.Fatal("no blob was looked for")
	}
	if err == nil || !strings.Contains(err.Error(), "lost the last") || !strings.Contains(err.Error(), "--incremental") {
		t.Errorf("a crash that forgets commits gives %v", err)
	}
	l.session.Close()
	if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptMissingBlobs = true, true }); err != nil {
		t.Fatal(err)
	}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.Want(false), d.Contents(t, false)); diff != "" {
		t.Error(diff)
	}
}

// A file server may fail for a moment.
func TestBlobThatIsFoundOnlyWhenItIsLookedForAgainIsUploaded(t *testing.T) {
	for _, sizes := range [][]int{{2000, 3000}, {2000, 10}} {
		d, b := newDatabaseWithS3(t), blobs(sizes...)
		dst := d.withS3(t, false, nil)
		l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptMissingBlobs, p.Options.ChunkBytes = true, 1<<20 })
		if err != nil {
			t.Fatal(err)
		}
		var looks atomic.Int64
		src := &breaking{l.src, map[zodb.OID]int64{2: 0}}
		l.src = &looking{src, func(r *source.Record) (*source.Blob, error) {
			if r.OID == 1 && looks.Add(1) == 1 {
				return nil, &source.BlobError{OID: r.OID, TID: r.TID, Path: "/nfs", Problem: "cannot be read: input/output error"}
			}
			return nil, nil
		}}
		if err := l.load(-1); err != nil {
			t.Fatal(err)
		}
		for _, row := range d.query(t, "SELECT s3_key FROM blob_state WHERE s3_key <> ''") {
			if _, there := d.s3.Snapshot(t, d.bucket)[prefix+"/"+row]; !there {
				t.Errorf("a row names %s, which is not in the bucket", row)
			}
		}
	}
}

// An upload turns out to be impossible while a newer transaction replaces the
// blob: the uploader and the catch-up delete the same rows.
func TestUploaderAndCatchUpDoNotWaitForEachOther(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(10)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	first, second := zodb.TID(1000)<<40, zodb.TID(1001)<<40
	b.Commit(desttest.Transaction{TID: first}, desttest.BlobOf(10, make([]byte, 1200)), thing(11, strings.Repeat("x", chunkBytes)))
	b.Commit(desttest.Transaction{TID: second}, desttest.BlobOf(10, make([]byte, 1300)))
	if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptMissingBlobs, p.Blobs = true, true, dest.Background }); err != nil {
		t.Fatal(err)
	}
	// The uploader waits when it has locked the row that is owed.
	d.exec(t, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN OLD; END';
		CREATE TRIGGER slow BEFORE DELETE ON zodb_convert_owed FOR EACH ROW EXECUTE FUNCTION slow()`)
	src := l.src
	l.src = &looking{src, func(r *source.Record) (*source.Blob, error) {
		if r.TID != first {
			return nil, nil
		}
		blob, err := src.Blob(t.Context(), r)
		if err == nil {
			err = os.Remove(blob.Path)
		}
		return blob, err
	}}
	met := false
	l.between = func(int) {
		for d.query(t, "SELECT count(*) FROM zodb_convert_owed")[0] != "0" && !met {
			met = d.query(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")[0] == "1"
		}
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	if err := l.settled(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1|10", "10|1300"}, d.query(t, "SELECT zoid, blob_size FROM blob_state ORDER BY zoid")); diff != "" {
		t.Error(diff)
	}
	if totals := l.session.Run().Totals; totals.MissingBlobs != 0 || !met {
		t.Errorf("the totals are %+v (met: %v)", totals, met)
	}
}

func TestOwedUploadsFollowABlobDirectoryThatHasMoved(t *testing.T) {
	d, b := newDatabaseWithS3(t), blobs(2000, 3000)
	dst := d.withS3(t, false, nil)
	l, err := begin(t, dst, b, mode(dest.Deferred))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	info, err := l.src.Scan(t.Context(), scanAll)
	if err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	if err := os.RemoveAll(info.BlobDir); err != nil {
		t.Fatal(err)
	}
	if l, err = begin(t, dst, b, continues(dest.Deferred)); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := l.finishWith(func() error {
		return l.session.Owed(t.Context(), func(o *dest.OwedBlob) error {
			n++
			stat, err := os.Stat(o.Path)
			if err == nil && stat.Size() != o.Size {
				t.Errorf("%s has %d bytes, want %d", o.Path, stat.Size(), o.Size)
			}
			return err
		})
	}); err != nil {
		t.Error(err)
	}
	if n != 2 {
		t.Errorf("%d uploads are owed, want 2", n)
	}
}

// An error of a file, or of S3, is not one of the connection to PostgreSQL, as
// much as it may look like that: the chunk would be repeated for ever.
func TestErrorsOfFilesAndOfS3StopTheRun(t *testing.T) {
	for name, cause := range map[string]error{
		"the file system is gone": &fs.PathError{Op: "stat", Path: "/blobs", Err: syscall.ENOENT},
		"a stale handle":          &fs.PathError{Op: "open", Path: "/blobs/1", Err: syscall.ESTALE},
		"too many files":          fmt.Errorf("blob oid 1: %w", syscall.EMFILE),
		"a short file":            fmt.Errorf("read the source: %w", io.ErrUnexpectedEOF),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			d, b := newDatabase(t), blobs(10)
			dst := d.Open(t, false)
			defer dst.Close()
			l, err := begin(t, dst, b, nil)
			if err != nil {
				t.Fatal(err)
			}
			looks := 0
			l.src = &looking{l.src, func(*source.Record) (*source.Blob, error) {
				if looks++; looks > 5 {
					return nil, context.Canceled
				}
				return nil, cause
			}}
			if err := l.load(-1); !errors.Is(err, cause) || looks != 1 || ctx.Err() != nil {
				t.Errorf("%d attempts give %v", looks, err)
			}
		})
	}
	t.Run("S3 takes no connections", func(t *testing.T) {
		d, b := newDatabase(t), blobs(2000)
		d.s3 = s3test.Start(t)
		d.bucket = d.s3.NewBucket(t)
		dst := d.withS3(t, false, func(_ *pgjsonb.Config, s *s3blob.Config) { s.Wait = 500 * time.Millisecond })
		l, err := begin(t, dst, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		d.s3.Stop()
		done := make(chan error, 1)
		go func() { done <- l.load(-1) }()
		select {
		case err := <-done:
			var store *s3blob.Error
			if !errors.As(err, &store) || !store.Whole {
				t.Errorf("the load ends with %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("the load does not end")
		}
	})
}
