//go:build faults

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/mariatest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

// The test program is also the program that is killed: with this variable it
// runs one conversion and exits. It is the product but for the command line,
// which cannot set chunks as small as small databases need.
const childVariable = "ZODB_CONVERT_E2E_CHILD"

// conversion is what a child is asked to do.
type conversion struct {
	Source      string
	DSN         string
	History     bool
	Incremental bool
	Workers     int
	ChunkBytes  int64
	Rejects     string
	// The rest is for sources with blobs.
	BlobDir   string
	S3        *s3blob.Config // nil: all blobs go to PostgreSQL
	Threshold int64
	Blobs     dest.BlobMode
	Manifest  string
	Memory    int64
	// RelStorage is the source instead of the file Source.
	RelStorage *relStorage
	Staging    string
}

// relStorage is relstorage.Options as a child can be given them.
type relStorage struct {
	PostgreSQL    string
	MySQL         *relstorage.MySQL
	SQLite        string
	History       bool
	BlobDir       string
	SharedBlobDir *bool
}

func (r *relStorage) options() relstorage.Options {
	opts := relstorage.Options{
		KeepHistory: &r.History, BlobDir: r.BlobDir, SharedBlobDir: r.SharedBlobDir, MySQL: r.MySQL, Connections: 3,
	}
	switch {
	case r.PostgreSQL != "":
		opts.PostgreSQL = &relstorage.PostgreSQL{DSN: r.PostgreSQL}
	case r.SQLite != "":
		opts.SQLite = &relstorage.SQLite{DataDir: r.SQLite}
	}
	return opts
}

// open opens the source.
func (c *conversion) open(ctx context.Context) (source.Source, error) {
	if c.RelStorage != nil {
		return relstorage.Open(ctx, c.RelStorage.options())
	}
	return filestorage.Open(ctx, c.Source, filestorage.Options{BlobDir: c.BlobDir})
}

var (
	postgres pgtest.Shared
	s3       s3test.Shared
	// Those of sites.
	sourcePostgres pgtest.Shared
	sourceMariaDB  mariatest.Shared
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(childVariable); spec != "" {
		if err := convert(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	postgres.Close()
	s3.Close()
	sourcePostgres.Close()
	sourceMariaDB.Close()
	_ = os.Remove(toolPath()) // there only if a test has built it
	os.Exit(code)
}

func convert(spec string) error {
	var c conversion
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	ctx := context.Background()
	src, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	config := pgjsonb.Config{DSN: c.DSN, HistoryPreserving: c.History, BlobThreshold: c.Threshold, Transfers: 3}
	if c.S3 != nil {
		if config.S3, err = s3blob.Open(ctx, *c.S3); err != nil {
			return err
		}
	}
	dst, err := pgjsonb.Open(ctx, config)
	if err != nil {
		return err
	}
	defer dst.Close()
	_, err = pipeline.Run(ctx, src, dst, pipeline.Options{
		Workers: c.Workers, ChunkBytes: c.ChunkBytes, Incremental: c.Incremental, Rejects: c.Rejects, Tool: "e2e",
		Blobs: c.Blobs, Manifest: c.Manifest, StagingDir: c.Staging, Memory: c.Memory,
	})
	return err
}

// start runs the conversion in a child with the given faults. The error is that
// of the process; what it printed comes with it.
func (c conversion) start(t *testing.T, faults string, environ ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	spec, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(spec), "ZODB_CONVERT_FAULT="+faults)
	cmd.Env = append(cmd.Env, environ...)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// run is start and wait.
func (c conversion) run(t *testing.T, faults string, environ ...string) (*os.ProcessState, string) {
	t.Helper()
	cmd, out := c.start(t, faults, environ...)
	_ = cmd.Wait() // the state tells
	return cmd.ProcessState, out.String()
}

// mustRun is run for a conversion that has to succeed.
func (c conversion) mustRun(t *testing.T, environ ...string) {
	t.Helper()
	if state, out := c.run(t, "", environ...); !state.Success() {
		t.Fatalf("conversion of %s: %v\n%s", c.Source, state, out)
	}
}
