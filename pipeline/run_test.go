package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

var postgres pgtest.Shared

// exampleDSN is an empty database for the example.
var exampleDSN string

func TestMain(m *testing.M) {
	// A missing server is reported by the tests, and by the example's output.
	if server, err := postgres.Start(); err == nil {
		exampleDSN = server.DSN("postgres")
	}
	code := m.Run()
	postgres.Close()
	objects.Close()
	os.Exit(code)
}

// convert runs one conversion of a database in testdata.
func convert(t *testing.T, ctx context.Context, path, dsn string, history bool, opts pipeline.Options) (*pipeline.Report, error) {
	t.Helper()
	src, err := filestorage.Open(ctx, path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := pgjsonb.Open(context.WithoutCancel(ctx), pgjsonb.Config{DSN: dsn, HistoryPreserving: history})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	return pipeline.Run(ctx, src, dst, opts)
}

func testdata(name string) string { return filepath.Join("..", "testdata", name) }

func modes(t *testing.T, f func(t *testing.T, history bool)) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprintf("history=%v", history), func(t *testing.T) { f(t, history) })
	}
}

func TestCancelAfterEveryChunkThenResume(t *testing.T) {
	server := postgres.Server(t)
	ctx := context.Background()
	for _, name := range []string{"history.fs", "plone.fs"} {
		for _, workers := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s -w %d", name, workers), func(t *testing.T) {
				modes(t, func(t *testing.T, history bool) {
					opts := pipeline.Options{Workers: workers, ChunkBytes: 4 << 10}
					whole := server.NewDatabase(t)
					want, err := convert(t, ctx, testdata(name), whole, history, opts)
					if err != nil {
						t.Fatal(err)
					}
					cut := server.NewDatabase(t)
					got, starts := cancelEachChunk(t, testdata(name), cut, history, opts)
					if starts < 4 {
						t.Errorf("only %d starts: too few chunks to prove anything", starts)
					}
					if d := cmp.Diff(server.Snapshot(t, whole), server.Snapshot(t, cut)); d != "" {
						t.Errorf("differs from an uninterrupted run (-whole +cut):\n%s", d)
					}
					if d := cmp.Diff(want.Totals, got.Totals); d != "" {
						t.Errorf("totals differ from an uninterrupted run (-whole +cut):\n%s", d)
					}
				})
			})
		}
	}
}

// cancelEachChunk starts a conversion again and again, cancelling it as soon as
// one chunk more is written, until it ends by itself.
func cancelEachChunk(t *testing.T, path, dsn string, history bool, opts pipeline.Options) (*pipeline.Report, int) {
	t.Helper()
	for start := 1; ; start++ {
		ctx, cancel := context.WithCancel(context.Background())
		opts.Incremental = start > 1
		opts.Progress = func(e pipeline.Event) {
			if e.Kind == pipeline.Progress && e.Phase == pipeline.Loading {
				cancel()
			}
		}
		report, err := convert(t, ctx, path, dsn, history, opts)
		cancel()
		if err == nil {
			return report, start
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("start %d: %v", start, err)
		}
		if start > 1000 {
			t.Fatal("the conversion makes no progress")
		}
	}
}
