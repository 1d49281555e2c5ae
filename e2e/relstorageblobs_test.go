//go:build faults

package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
)

// blobStage is a stage whose blobs go to S3 in one of the ways.
type blobStage struct {
	stage
	mode dest.BlobMode
	s3   *s3test.Server
}

// world makes one for a conversion of a site.
func (b blobStage) world(t *testing.T, s *site) *world {
	t.Helper()
	w := &world{t: t, pg: b.pg, s3: b.s3, bucket: b.s3.NewBucket(t), manifest: filepath.Join(t.TempDir(), "manifest.tsv")}
	w.conversion = b.conversion(s, b.pg.NewDatabase(t))
	w.ChunkBytes = 4 << 10
	w.Rejects = filepath.Join(t.TempDir(), "rejects")
	w.Threshold, w.Blobs, w.Manifest = threshold, b.mode, w.manifest
	w.Staging = filepath.Join(t.TempDir(), "staging")
	w.S3 = &s3blob.Config{
		Bucket: w.bucket, Prefix: "site/one", EndpointURL: b.s3.URL(), Region: s3test.Region, AccessKey: b.s3.AccessKey, SecretKey: b.s3.SecretKey,
	}
	return w
}

// prepare makes a world in which the stage can start.
func (b blobStage) prepare(t *testing.T) *world {
	t.Helper()
	if !b.catchUp {
		return b.world(t, b.later)
	}
	w := b.world(t, b.earlier)
	w.mustRun(t)
	w.settle()
	// The earlier database is another one; what it has staged is uploaded.
	w.Staging = filepath.Join(t.TempDir(), "staging")
	w.RelStorage = b.conversion(b.later, w.DSN).RelStorage
	w.Incremental = true
	return w
}

// undisturbed runs the stage without faults and judges the blobs by those of a
// conversion that put all of them into PostgreSQL.
func (b blobStage) undisturbed(t *testing.T, want []string) ([]place, result) {
	t.Helper()
	w := b.prepare(t)
	trace := filepath.Join(t.TempDir(), "trace")
	w.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	w.settle()
	r := w.result()
	if d := cmp.Diff(want, w.everyBlob(r)); d != "" {
		t.Errorf("the blobs differ from those that went to PostgreSQL (-want +got):\n%s", d)
	}
	if len(r.Bucket) < 10 {
		t.Errorf("only %d blobs went to S3", len(r.Bucket))
	}
	return readTrace(t, trace), r
}

// everyBlob names each blob with the digest of its bytes, wherever they are.
func (w *world) everyBlob(r result) []string {
	w.t.Helper()
	found := blobsInPostgreSQL(w.t, w.pg, w.DSN)
	for key, object := range r.Bucket {
		var oid, tid uint64
		if _, err := fmt.Sscanf(key, "site/one/blobs/%16x/%16x.blob", &oid, &tid); err != nil {
			w.t.Errorf("object %s: %v", key, err)
		}
		found = append(found, fmt.Sprintf("%d|%d|%s", oid, tid, object.SHA256))
	}
	slices.Sort(found)
	return found
}

func blobsInPostgreSQL(t *testing.T, pg *pgtest.Server, dsn string) []string {
	t.Helper()
	found := pg.Query(t, dsn, "SELECT zoid, tid, encode(sha256(data), 'hex') FROM blob_state WHERE s3_key IS NULL")
	slices.Sort(found)
	return found
}

func TestKilledRunsWithBlobsOfRelStorageResumeToTheSameDatabaseAndBucket(t *testing.T) {
	pg, server := postgres.Server(t), s3.Server(t)
	for i, k := range kinds {
		if !strings.HasPrefix(k.name, "PostgreSQL") || k.blobs != inDatabase {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			seed := 1000 + 100*i
			t.Logf("seed %d", seed)
			a := k.newArena(t, pg, seed)
			whole := k.conversion(a.later, pg.NewDatabase(t))
			whole.mustRun(t)
			blobs := blobsInPostgreSQL(t, pg, whole.DSN)
			for number, mode := range blobModes {
				left := count(t, "ZODB_CONVERT_BLOB_KILLS", 8)
				byPhase := make(map[string]int)
				for j, s := range a.stages() {
					b := blobStage{s, mode, server}
					t.Run(fmt.Sprintf("%s, %s", mode, s), func(t *testing.T) {
						places, want := b.undisturbed(t, blobs)
						order := drawBlobs(places, rand.New(rand.NewPCG(uint64(seed+number), uint64(j))))
						left -= b.kill(t, order, left/(2-j), want, byPhase)
					})
				}
				t.Logf("%s: kills by phase: %v", mode, byPhase)
				if left > 0 {
					t.Errorf("%s: %d kills are missing", mode, left)
				}
			}
		})
	}
}

// kill strikes so many runs of the stage, each at the next of the places, and
// returns how many were.
func (b blobStage) kill(t *testing.T, order []place, share int, want result, byPhase map[string]int) (kills int) {
	for _, p := range order {
		if kills == share {
			break
		}
		t.Run(fmt.Sprintf("%s:%d", p.point, p.n), func(t *testing.T) {
			w := b.prepare(t)
			state, out := w.run(t, fmt.Sprintf("%s:%d:kill9", p.point, p.n))
			switch status, ok := state.Sys().(syscall.WaitStatus); {
			case ok && status.Signal() == syscall.SIGKILL:
				byPhase[p.phase()]++
				kills++
				w.resume(want, !b.catchUp)
			case state.Success():
				// How often a point of the background is met differs from run to
				// run; this one was not struck, and must be right all the same.
				w.settle()
				w.compare(want)
			default:
				t.Fatalf("not killed: %v\n%s", state, out)
			}
		})
	}
	return kills
}

// Blobs that a killed run has loaded, owes or was about to write may be replaced or
// packed away when it goes on.
func TestBlobsThatGoWhileARunIsInterrupted(t *testing.T) {
	pg, server := postgres.Server(t), s3.Server(t)
	// Uploads in the background are not done when a run over it is killed.
	slow := server.NewProxy(t, faults.Settings{Latency: time.Second}).URL()
	for i, mode := range blobModes {
		for _, k := range kinds {
			if !strings.HasPrefix(k.name, "PostgreSQL") || k.blobs == noBlobs {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", k.name, mode), func(t *testing.T) {
				s := newSite(t, k.engine(t), k.source, k.blobs)
				s.work(t, 31+i, 100)
				b := blobStage{stage{&arena{kind: k, pg: pg, later: s}, false}, mode, server}
				for n, at := range []string{"finish.begin:1", "chunk.committed:60"} {
					w := b.prepare(t)
					if mode == dest.Background {
						w.S3.EndpointURL = slow
					}
					state, out := w.run(t, at+":kill9")
					mustBeKilled(t, state.Sys(), out)
					s.work(t, 41+i+n, 60, "--pack", "30")
					w.S3.EndpointURL = server.URL()
					w.Incremental = true
					w.mustRun(t)
					w.settle()
					whole := k.conversion(s, pg.NewDatabase(t))
					whole.mustRun(t)
					if d := cmp.Diff(blobsInPostgreSQL(t, pg, whole.DSN), w.namedBlobs()); d != "" {
						t.Errorf("%s: the blobs differ from those that went to PostgreSQL (-want +got):\n%s", at, d)
					}
				}
			})
		}
	}
}

// namedBlobs is everyBlob without objects in S3 that no row names: such are left
// where a run was killed between an upload and its commit, if the source does not
// have the blob any more when the run goes on.
func (w *world) namedBlobs() []string {
	w.t.Helper()
	bucket := w.s3.Snapshot(w.t, w.bucket)
	named := make(map[string]s3test.Object)
	for _, key := range w.pg.Query(w.t, w.DSN, "SELECT s3_key FROM blob_state WHERE s3_key IS NOT NULL") {
		key = w.S3.Prefix + "/" + key
		object, ok := bucket[key]
		if !ok {
			w.t.Errorf("object %s is named and not there", key)
		}
		named[key] = object
	}
	return w.everyBlob(result{Bucket: named})
}
