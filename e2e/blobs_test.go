//go:build faults

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
)

// threshold is the size from which on the blobs of these tests go to S3. About
// half of those in testdata/blobs.fs do.
const threshold = 1000

// multipart is the size of a blob that does not go to S3 in one piece.
const multipart = 17 << 20

// blobScenario is one way of blobs into a destination.
type blobScenario struct {
	mode    dest.BlobMode
	history bool
	// catchUp converts the first half of the source before.
	catchUp bool
}

func (s blobScenario) String() string {
	what, kind := "load", "HF"
	if s.catchUp {
		what = "catch up"
	}
	if s.history {
		kind = "HP"
	}
	return fmt.Sprintf("%s, %s %s", s.mode, what, kind)
}

func blobScenarios(mode dest.BlobMode) []blobScenario {
	return []blobScenario{{mode, false, true}, {mode, true, true}, {mode, false, false}, {mode, true, false}}
}

var blobModes = []dest.BlobMode{dest.Inline, dest.Background, dest.Deferred}

// blobSource is a database with its blobs: the whole and its first half.
type blobSource struct{ whole, half, blobs string }

// newBlobSource copies the database of testdata. One blob becomes large enough
// for a multipart upload: nothing in a record tells a blob's size.
func newBlobSource(t *testing.T) blobSource {
	t.Helper()
	s := blobSource{whole: filepath.Join("testdata", "blobs.fs"), blobs: filepath.Join(t.TempDir(), "blobs")}
	s.half = firstHalf(t, s.whole)
	if err := os.CopyFS(s.blobs, os.DirFS(filepath.Join("testdata", "blobs.blobs"))); err != nil {
		t.Fatal(err)
	}
	var files []string
	err := filepath.WalkDir(s.blobs, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blob") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	data := make([]byte, multipart)
	seed := [32]byte{9}
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	// The one in the middle belongs to the first half of the database.
	if err := os.WriteFile(files[len(files)/4], data, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// world is where one run goes: a database, a bucket and a manifest.
type world struct {
	t        *testing.T
	pg       *pgtest.Server
	s3       *s3test.Server
	bucket   string
	manifest string
	conversion
}

// newWorld makes an empty one. endpoint is the server itself if it is "".
func newWorld(t *testing.T, pg *pgtest.Server, server *s3test.Server, src blobSource, s blobScenario, endpoint string) *world {
	t.Helper()
	w := &world{t: t, pg: pg, s3: server, bucket: server.NewBucket(t), manifest: filepath.Join(t.TempDir(), "manifest.tsv")}
	if endpoint == "" {
		endpoint = server.URL()
	}
	w.conversion = conversion{
		Source: src.whole, BlobDir: src.blobs, DSN: pg.NewDatabase(t), History: s.history, Workers: 3, ChunkBytes: 4 << 10,
		Rejects: filepath.Join(t.TempDir(), "rejects"), Threshold: threshold, Blobs: s.mode, Manifest: w.manifest,
		S3: &s3blob.Config{
			Bucket: w.bucket, Prefix: "site/one", EndpointURL: endpoint, Region: s3test.Region, AccessKey: server.AccessKey, SecretKey: server.SecretKey,
		},
	}
	return w
}

// prepare makes a world in which the scenario can start.
func (s blobScenario) prepare(t *testing.T, pg *pgtest.Server, server *s3test.Server, src blobSource, endpoint string) *world {
	t.Helper()
	w := newWorld(t, pg, server, src, s, endpoint)
	if s.catchUp {
		first := w.conversion
		first.Source = src.half
		first.mustRun(t)
		if s.mode == dest.Deferred {
			w.mustUpload()
			// Whoever has uploaded a manifest may remove it or leave it.
			if s.history {
				if err := os.Remove(w.manifest); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.Incremental = true
	}
	return w
}

// tool builds the product once, with the places where it can be struck.
var tool = sync.OnceValues(func() (string, error) {
	path := toolPath()
	out, err := exec.Command("go", "build", "-tags", "faults", "-o", path, "github.com/zodb-convert/zodb-convert/cmd/zodb-convert").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the tool: %w\n%s", err, out)
	}
	return path, nil
})

func toolPath() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("zodb-convert-e2e-%d", os.Getpid()))
}

// uploader is the command that uploads the manifest.
func (w *world) uploader() *exec.Cmd {
	w.t.Helper()
	path, err := tool()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(path, "--upload-blobs", w.manifest, "-w", "3", "--s3-bucket", w.bucket, "--s3-prefix", w.S3.Prefix,
		"--s3-endpoint-url", w.S3.EndpointURL, "--s3-region", s3test.Region)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+w.s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+w.s3.SecretKey)
	return cmd
}

func (w *world) mustUpload() {
	w.t.Helper()
	if out, err := w.uploader().CombinedOutput(); err != nil {
		w.t.Fatalf("upload %s: %v\n%s", w.manifest, err, out)
	}
}

// result is everything that a run leaves.
type result struct {
	Database map[string]string
	Bucket   map[string]s3test.Object
}

// settle does what is left to an administrator: the upload of a manifest.
func (w *world) settle() {
	w.t.Helper()
	if w.Blobs == dest.Deferred {
		w.mustUpload()
	}
}

func (w *world) result() result {
	w.t.Helper()
	return result{w.pg.Snapshot(w.t, w.DSN), w.s3.Snapshot(w.t, w.bucket)}
}

// check judges a result by the files of the source: an undisturbed run is no
// measure if it is wrong itself.
func (w *world) check(r result) {
	w.t.Helper()
	named := w.pg.Query(w.t, w.DSN, "SELECT s3_key, blob_size FROM blob_state WHERE s3_key IS NOT NULL")
	if len(named) != len(r.Bucket) || len(named) < 10 {
		w.t.Errorf("%d rows name an object in S3, and there are %d", len(named), len(r.Bucket))
	}
	for key, object := range r.Bucket {
		var oid, tid uint64
		if _, err := fmt.Sscanf(key, "site/one/blobs/%16x/%16x.blob", &oid, &tid); err != nil {
			w.t.Errorf("object %s: %v", key, err)
			continue
		}
		data, err := os.ReadFile(blobFile(w.BlobDir, oid, tid))
		if err != nil {
			w.t.Errorf("object %s: %v", key, err)
			continue
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != object.SHA256 {
			w.t.Errorf("object %s is not what the file holds", key)
		}
	}
}

// blobFile is where the layout bushy keeps a blob.
func blobFile(dir string, oid, tid uint64) string {
	for shift := 56; shift >= 0; shift -= 8 {
		dir = filepath.Join(dir, fmt.Sprintf("0x%02x", byte(oid>>shift)))
	}
	return filepath.Join(dir, fmt.Sprintf("0x%016x.blob", tid))
}

// undisturbed runs a scenario without faults and returns every place that it
// passed, and what it left.
func (s blobScenario) undisturbed(t *testing.T, pg *pgtest.Server, server *s3test.Server, src blobSource) ([]place, result) {
	t.Helper()
	w := s.prepare(t, pg, server, src, "")
	trace := filepath.Join(t.TempDir(), "trace")
	w.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	w.settle()
	r := w.result()
	w.check(r)
	return readTrace(t, trace), r
}

// drawBlobs puts the places in an order in which every phase gets its turn,
// those of blobs every other one, and in each phase every point is met before
// one is met twice.
func drawBlobs(all []place, random *rand.Rand) []place {
	byPhase := make(map[string][]place)
	var phases []string
	for _, p := range draw(all, len(all), random) {
		phase := p.phase()
		if phase == "manifest" {
			phase = "blob"
		}
		if byPhase[phase] == nil && phase != "blob" {
			phases = append(phases, phase)
		}
		byPhase[phase] = append(byPhase[phase], p)
	}
	slices.Sort(phases)
	var order []place
	take := func(phase string) {
		if left := byPhase[phase]; len(left) > 0 {
			order = append(order, left[0])
			byPhase[phase] = left[1:]
		}
	}
	first := random.IntN(len(phases))
	for len(order) < len(all) {
		for i := range phases {
			take("blob")
			take(phases[(first+i)%len(phases)])
		}
	}
	return order
}

func TestKilledRunsWithBlobsResumeToTheSameDatabaseAndBucket(t *testing.T) {
	pg, server := postgres.Server(t), s3.Server(t)
	src := newBlobSource(t)
	for number, mode := range blobModes {
		total := count(t, "ZODB_CONVERT_BLOB_KILLS", 12)
		left := total
		byPhase := make(map[string]int)
		all := blobScenarios(mode)
		for i, s := range all {
			t.Run(s.String(), func(t *testing.T) {
				places, want := s.undisturbed(t, pg, server, src)
				share := left / (len(all) - i)
				for _, p := range drawBlobs(places, rand.New(rand.NewPCG(uint64(number), uint64(i)))) {
					if share == 0 {
						break
					}
					t.Run(fmt.Sprintf("%s:%d", p.point, p.n), func(t *testing.T) {
						w := s.prepare(t, pg, server, src, "")
						state, out := w.run(t, fmt.Sprintf("%s:%d:kill9", p.point, p.n))
						switch status, ok := state.Sys().(syscall.WaitStatus); {
						case ok && status.Signal() == syscall.SIGKILL:
							byPhase[p.phase()]++
							share--
							left--
							w.resume(want, !s.catchUp)
						case state.Success():
							// How often a point of the background is met differs
							// from run to run; this run was not struck, and must
							// be right all the same.
							w.settle()
							w.compare(want)
						default:
							t.Fatalf("not killed: %v\n%s", state, out)
						}
					})
				}
			})
		}
		t.Logf("%s: %d kills, by phase: %v", mode, total-left, byPhase)
		if left > 0 {
			t.Errorf("%s: %d kills are missing: the scenarios have too few places", mode, left)
		}
	}
}

// resume continues a struck run as an administrator would and compares. With
// keep, rows that were committed before must not have been written again.
func (w *world) resume(want result, keep bool) {
	w.t.Helper()
	var before map[string]bool
	if keep {
		before = rowVersions(w.t, w.pg, w.DSN)
	}
	w.Incremental = true
	w.mustRun(w.t)
	w.settle()
	w.compare(want)
	if keep {
		after := rowVersions(w.t, w.pg, w.DSN)
		for row := range before {
			if !after[row] {
				w.t.Errorf("a row committed before the kill was written again: %s", row)
			}
		}
	}
}

func (w *world) compare(want result) {
	w.t.Helper()
	if d := cmp.Diff(want, w.result()); d != "" {
		w.t.Errorf("differs from an undisturbed run (-want +got):\n%s", d)
	}
}

func TestStoppedServersWithBlobsResumeToTheSameDatabaseAndBucket(t *testing.T) {
	pg, server := pgtest.Start(t), s3.Server(t)
	src := newBlobSource(t)
	total := count(t, "ZODB_CONVERT_BLOB_STOPS", 3)
	for i := range total {
		mode := blobModes[i%len(blobModes)]
		s := blobScenarios(mode)[i/len(blobModes)%4]
		t.Run(s.String(), func(t *testing.T) {
			places, want := s.undisturbed(t, pg, server, src)
			for _, p := range drawBlobs(places, rand.New(rand.NewPCG(5, uint64(i)))) {
				w := s.prepare(t, pg, server, src, "")
				if stopAt(t, pg, w.conversion, p) {
					w.resume(want, false)
					return
				}
			}
			t.Fatal("no place was reached")
		})
	}
}

func TestKilledUploadsGoOnWhereTheyWere(t *testing.T) {
	pg, server := postgres.Server(t), s3.Server(t)
	src := newBlobSource(t)
	s := blobScenario{mode: dest.Deferred}
	w := s.prepare(t, pg, server, src, "")
	w.mustRun(t)
	start := time.Now()
	w.settle()
	whole := time.Since(start)
	want := w.result().Bucket
	random := rand.New(rand.NewPCG(6, 6))
	for range count(t, "ZODB_CONVERT_UPLOAD_KILLS", 5) {
		w.bucket = server.NewBucket(t)
		kills := 0
		for range 3 {
			cmd := w.uploader()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(time.Duration(random.Int64N(int64(whole))), func() { _ = cmd.Process.Kill() })
			err := cmd.Wait()
			timer.Stop()
			if err == nil {
				break
			}
			kills++
		}
		w.mustUpload()
		if d := cmp.Diff(want, server.Snapshot(t, w.bucket)); d != "" {
			t.Errorf("after %d kills the bucket differs (-want +got):\n%s", kills, d)
		}
	}
}
