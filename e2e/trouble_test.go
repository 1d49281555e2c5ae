//go:build faults

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

func TestAThirdOfRequestsToS3Fails(t *testing.T) {
	t.Parallel()
	pg, server := postgres.Server(t), s3.Server(t)
	src := newBlobSource(t)
	for number, mode := range blobModes {
		for _, s := range []blobScenario{{mode: mode}, {mode: mode, history: true, catchUp: true}} {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel() // most of the time is spent waiting
				_, want := s.undisturbed(t, pg, server, src)
				settings := faults.Settings{Kinds: faults.All(), Share: 1.0 / 3, Seed: uint64(number), Delay: time.Second, StallTime: time.Minute}
				proxy := server.NewProxy(t, settings)
				w := s.prepare(t, pg, server, src, "")
				w.S3.EndpointURL = proxy.URL()
				w.S3.Stall = 2 * time.Second
				// A run may give up; what it may not is to say that all is done.
				state, out := w.run(t, "")
				for try := 0; !state.Success(); try++ {
					t.Logf("the run gave up: %s", out)
					if try == 5 {
						t.Fatal("it does not get on")
					}
					w.Incremental = true
					state, out = w.run(t, "")
				}
				if mode == dest.Deferred {
					// The command waits half a minute for an answer, which would
					// be spent many times over.
					settings.Kinds = slices.DeleteFunc(faults.All(), func(f faults.Fault) bool { return f == faults.Stall })
					proxy.Set(settings)
					for try := 0; ; try++ {
						out, err := w.uploader().CombinedOutput()
						if err == nil {
							break
						}
						t.Logf("the upload gave up: %v\n%s", err, out)
						if try == 5 {
							t.Fatal("it does not get on")
						}
					}
				}
				w.compare(want)
				injected := 0
				for _, n := range proxy.Injected() {
					injected += n
				}
				t.Logf("faults: %v", proxy.Injected())
				if injected < 3 {
					t.Errorf("only %d requests were struck", injected)
				}
			})
		}
	}
}

// outage is how long S3 is away in the test below.
const outage = 20 * time.Second

func TestS3IsAwayForAWhile(t *testing.T) {
	t.Parallel() // it waits, too
	pg, server := postgres.Server(t), s3test.Start(t)
	src := newBlobSource(t)
	type started struct {
		blobScenario
		world *world
		want  result
		run   *pausedRun
	}
	var all []*started
	for _, mode := range blobModes[:2] {
		for _, catchUp := range []bool{false, true} {
			s := blobScenario{mode: mode, catchUp: catchUp}
			_, want := s.undisturbed(t, pg, server, src)
			all = append(all, &started{s, s.prepare(t, pg, server, src, ""), want, nil})
		}
	}
	deferred := blobScenario{mode: dest.Deferred}
	_, wantDeferred := deferred.undisturbed(t, pg, server, src)
	upload := deferred.prepare(t, pg, server, src, "")
	upload.mustRun(t)
	// Slow enough to be in the middle when the server goes.
	upload.S3.EndpointURL = server.NewProxy(t, faults.Settings{Latency: 300 * time.Millisecond}).URL()

	// All wait for the same outage, each with an upload under way.
	for _, s := range all {
		if s.run = pauseAt(t, s.world.conversion, place{"blob.upload", 3}); s.run == nil {
			t.Fatalf("%s ended before its third upload", s)
		}
	}
	cmd := upload.uploader()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for len(server.Snapshot(t, upload.bucket)) < 3 {
		time.Sleep(50 * time.Millisecond)
	}
	server.Stop()
	for _, s := range all {
		s.run.goOn(t)
	}
	time.Sleep(outage)
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if err := s.run.wait(t, 2*time.Minute); err != nil {
			t.Errorf("%s: %v\n%s", s, err, s.run.out)
			continue
		}
		s.world.compare(s.want)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("upload: %v\n%s", err, &out)
	}
	upload.compare(wantDeferred)
}

func TestS3IsAwayForGood(t *testing.T) {
	pg, server := postgres.Server(t), s3test.Start(t)
	src := newBlobSource(t)
	for _, mode := range blobModes[:2] {
		for _, catchUp := range []bool{false, true} {
			s := blobScenario{mode: mode, catchUp: catchUp}
			t.Run(s.String(), func(t *testing.T) {
				t.Cleanup(func() {
					if err := server.Run(); err != nil {
						t.Error(err)
					}
				})
				_, want := s.undisturbed(t, pg, server, src)
				w := s.prepare(t, pg, server, src, "")
				w.S3.Wait = 2 * time.Second
				run := pauseAt(t, w.conversion, place{"blob.upload", 3})
				if run == nil {
					t.Fatal("it ended before its third upload")
				}
				server.Stop()
				run.goOn(t)
				err := run.wait(t, 30*time.Second)
				if err == nil {
					t.Fatal("the run says that it is done")
				}
				text := run.out.String()
				if !strings.Contains(text, server.Addr()) {
					t.Errorf("the server is not named: %s", text)
				}
				if strings.Contains(text, server.SecretKey) || strings.Contains(text, server.AccessKey) {
					t.Errorf("keys were printed: %s", text)
				}
				// Still away: a second start does not get anywhere either.
				w.Incremental = true
				if state, out := w.run(t, ""); state.Success() {
					t.Errorf("the second run says that it is done: %s", out)
				}
				if err := server.Run(); err != nil {
					t.Fatal(err)
				}
				w.S3.Wait = 0
				w.resume(want, false)
			})
		}
	}
	t.Run("upload", func(t *testing.T) {
		s := blobScenario{mode: dest.Deferred}
		w := s.prepare(t, pg, server, src, "")
		w.mustRun(t)
		server.Stop()
		defer func() {
			if err := server.Run(); err != nil {
				t.Fatal(err)
			}
			w.mustUpload()
		}()
		cmd := w.uploader()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		// Whoever does not want to wait stops it.
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		stopped := time.Now()
		if err := cmd.Wait(); err == nil {
			t.Error("the upload says that it is done")
		} else if took := time.Since(stopped); took > 5*time.Second {
			t.Errorf("it took %v to stop", took)
		}
	})
}

// The run's tables know what is owed, so a manifest that cannot be written is
// written by the next start.
func TestDiskFullForTheManifest(t *testing.T) {
	pg, server := postgres.Server(t), s3.Server(t)
	src := newBlobSource(t)
	for _, history := range []bool{false, true} {
		s := blobScenario{mode: dest.Deferred, history: history}
		t.Run(s.String(), func(t *testing.T) {
			_, want := s.undisturbed(t, pg, server, src)
			w := s.prepare(t, pg, server, src, "")
			disk := fullDisk(t)
			w.Manifest = filepath.Join(disk, "manifest.tsv")
			state, out := w.run(t, "")
			if state.Success() {
				t.Fatal("the run says that it is done")
			}
			if !strings.Contains(out, w.Manifest) || !strings.Contains(out, "no space left") {
				t.Errorf("the message: %s", out)
			}
			entries, err := os.ReadDir(disk)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != "filler" {
					t.Errorf("%s was left behind", e.Name())
				}
			}
			if d := cmp.Diff(map[string]s3test.Object{}, server.Snapshot(t, w.bucket)); d != "" {
				t.Errorf("something was uploaded: %s", d)
			}
			w.Manifest = w.manifest // on another disk
			w.resume(want, true)
		})
	}
}

// fullDisk fills a small disk.
func fullDisk(t *testing.T) string {
	t.Helper()
	dir := throwaway.SmallDisk(t)
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	return dir
}
