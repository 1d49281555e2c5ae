//go:build faults

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

// A site is a database that the real RelStorage has written, and that it goes on
// writing when a test wants it to.
type site struct {
	engine  engine
	history bool
	blobs   blobPlace
	// section is the <postgresql>, <mysql> or <sqlite3> of its configuration.
	section string
	// blobDir is its blob-dir, "" without blobs.
	blobDir string
	// opts are what the tool reads it by.
	opts relStorage
}

// blobPlace is where a site keeps its blobs.
type blobPlace int

const (
	noBlobs    blobPlace = iota
	inDatabase           // rows of blob_chunk; the blob-dir is a cache
	inFiles              // shared-blob-dir true
)

// engine is a database server, or the file system, in which sites are.
type engine interface {
	// create makes room for a site: an empty database.
	create(t *testing.T) (section string, opts relStorage)
	// copy makes a database of the same content.
	copy(t *testing.T, of *site) (section string, opts relStorage)
	// stop and run restart the server.
	stop(mode string) error
	run() error
	// tables calls for the content of all tables, to tell that nothing was
	// changed.
	tables(t *testing.T, of *site) map[string]string
}

// newSite makes an empty one.
func newSite(t *testing.T, e engine, history bool, blobs blobPlace) *site {
	t.Helper()
	s := &site{engine: e, history: history, blobs: blobs}
	s.section, s.opts = e.create(t)
	if blobs != noBlobs {
		s.blobDir = filepath.Join(t.TempDir(), "blobs")
	}
	s.addBlobDir()
	return s
}

// earlier is the site as it is now, in a database of its own.
func (s *site) earlier(t *testing.T) *site {
	t.Helper()
	c := *s
	c.section, c.opts = s.engine.copy(t, s)
	if s.blobs == inFiles {
		c.blobDir = filepath.Join(t.TempDir(), "blobs")
		if err := os.CopyFS(c.blobDir, os.DirFS(s.blobDir)); err != nil {
			t.Fatal(err)
		}
	}
	c.addBlobDir()
	return &c
}

func (s *site) addBlobDir() {
	shared := s.blobs == inFiles
	if s.blobs != noBlobs {
		s.opts.BlobDir, s.opts.SharedBlobDir = s.blobDir, &shared
	}
}

// storage is the <relstorage> section, with a name if one is given.
func (s *site) storage(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%%import relstorage\n")
	in := func(indent int, format string, a ...any) {
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat("  ", indent), fmt.Sprintf(format, a...))
	}
	in(0, "%s", strings.TrimSpace("<relstorage "+name)+">")
	in(1, "keep-history %v", s.history)
	if s.blobs != noBlobs {
		in(1, "blob-dir %s", s.blobDir)
		in(1, "shared-blob-dir %v", s.blobs == inFiles)
	}
	for line := range strings.Lines(s.section) {
		in(1, "%s", strings.TrimRight(line, "\n"))
	}
	in(0, "</relstorage>")
	return b.String()
}

// configFile is for the site's own process.
func (s *site) configFile(t *testing.T) string {
	t.Helper()
	storage := strings.Replace(s.storage(""), "keep-history", "cache-local-mb 1\n  keep-history", 1)
	storage, _ = strings.CutPrefix(storage, "%import relstorage\n")
	path := filepath.Join(t.TempDir(), "site.conf")
	if err := os.WriteFile(path, []byte("%import relstorage\n<zodb main>\n"+storage+"</zodb>\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *site) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	python := os.Getenv("ZODB_PYTHON")
	if python == "" {
		throwaway.Missing(t, errors.New("no real RelStorage: ZODB_PYTHON is not set; run scripts/setup python and eval \"$(scripts/setup --env)\""))
	}
	args = append([]string{"-B", filepath.Join("testdata", "site.py"), s.configFile(t)}, args...)
	if s.blobs != noBlobs {
		args = append(args, "--blobs")
	}
	return exec.Command(python, args...)
}

// work lets the site do so many steps of a seed.
func (s *site) work(t *testing.T, seed, steps int, args ...string) {
	t.Helper()
	cmd := s.command(t, append([]string{"--seed", strconv.Itoa(seed), "--steps", strconv.Itoa(steps)}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the site: %v\n%s", err, tail(out))
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	t.Logf("the site, seed %d: %s", seed, lines[len(lines)-1])
}

func tail(out []byte) []byte {
	if len(out) > 4000 {
		out = out[len(out)-4000:]
	}
	return out
}

// judge lets the real ZODB compare a destination with what the real RelStorage
// reads in the site.
func (s *site) judge(t *testing.T, c conversion) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	if out, err := s.command(t, "--export", path).CombinedOutput(); err != nil {
		t.Fatalf("export the site: %v\n%s", err, tail(out))
	}
	args := []string{"-B", filepath.Join("..", "scripts", "oracle"), "compare", "--source", path, "--dsn", c.DSN}
	if s.blobs != noBlobs {
		args = append(args, "--blob-dir", strings.TrimSuffix(path, ".fs")+".blobs")
	}
	if c.History {
		args = append(args, "--history")
	}
	out, err := exec.Command(os.Getenv("ZODB_PYTHON"), args...).CombinedOutput()
	if err != nil {
		t.Errorf("the oracle: %v\n%s", err, tail(out))
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	t.Logf("the oracle: %s", lines[len(lines)-1])
}

// living is a site at work.
type living struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *bytes.Buffer
	steps  atomic.Int64
	packs  atomic.Int64
	ended  chan struct{}
	last   string // valid after ended
}

// live starts the site; it works until it is stopped.
func (s *site) live(t *testing.T, seed int, args ...string) *living {
	t.Helper()
	l := &living{t: t, stderr: new(bytes.Buffer), ended: make(chan struct{})}
	l.cmd = s.command(t, append([]string{"--seed", strconv.Itoa(seed)}, args...)...)
	l.cmd.Stderr = l.stderr
	stdin, err := l.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.stdin = stdin
	stdout, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.cmd.Process.Kill(); <-l.ended })
	go func() {
		defer close(l.ended)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			l.last = lines.Text()
			l.steps.Add(1)
			if strings.HasSuffix(l.last, " pack") {
				l.packs.Add(1)
			}
		}
	}()
	return l
}

// await waits until the site has begun n more steps.
func (l *living) await(n int64) {
	l.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for want := l.steps.Load() + n; l.steps.Load() < want; time.Sleep(5 * time.Millisecond) {
		select {
		case <-l.ended:
			_ = l.cmd.Wait()
			l.t.Fatalf("the site has ended: %v\n%s", l.cmd.ProcessState, tail(l.stderr.Bytes()))
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the site does not get on: %s\n%s", l.last, tail(l.stderr.Bytes()))
		}
	}
}

// stop ends the site between two steps.
func (l *living) stop() {
	l.t.Helper()
	if err := l.stdin.Close(); err != nil {
		l.t.Fatal(err)
	}
	<-l.ended
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("the site: %v\n%s", err, tail(l.stderr.Bytes()))
	}
	l.t.Logf("the site: %s", l.last)
}

// postgreSQL is a server of sites.
type postgreSQL struct{ server *pgtest.Server }

func (e postgreSQL) create(t *testing.T) (string, relStorage) {
	t.Helper()
	return e.at(e.server.NewDatabase(t))
}

func (e postgreSQL) copy(t *testing.T, of *site) (string, relStorage) {
	t.Helper()
	return e.at(e.server.NewDatabase(t, "TEMPLATE "+databaseName(of.opts.PostgreSQL)))
}

// databaseName takes the name out of a DSN of pgtest.
func databaseName(dsn string) string {
	_, name, _ := strings.Cut(dsn, "dbname=")
	return name
}

func (e postgreSQL) at(dsn string) (string, relStorage) {
	return fmt.Sprintf("<postgresql>\n  driver psycopg2\n  dsn %s\n</postgresql>", dsn), relStorage{PostgreSQL: dsn}
}

func (e postgreSQL) stop(mode string) error { return e.server.Stop(mode) }
func (e postgreSQL) run() error             { return e.server.Run() }

func (e postgreSQL) tables(t *testing.T, of *site) map[string]string {
	t.Helper()
	return e.server.Snapshot(t, of.opts.PostgreSQL)
}

// sqlite keeps sites in files.
type sqlite struct{}

func (e sqlite) create(t *testing.T) (string, relStorage) {
	t.Helper()
	return e.at(filepath.Join(t.TempDir(), "data"))
}

func (e sqlite) copy(t *testing.T, of *site) (string, relStorage) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	// Nobody has it open, so the file is all.
	if err := os.CopyFS(dir, os.DirFS(of.opts.SQLite)); err != nil {
		t.Fatal(err)
	}
	return e.at(dir)
}

func (e sqlite) at(dir string) (string, relStorage) {
	return fmt.Sprintf("<sqlite3>\n  data-dir %s\n</sqlite3>", dir), relStorage{SQLite: dir}
}

func (e sqlite) stop(string) error { return nil }
func (e sqlite) run() error        { return nil }

func (e sqlite) tables(t *testing.T, of *site) map[string]string {
	t.Helper()
	found := make(map[string]string)
	data, err := os.ReadFile(filepath.Join(of.opts.SQLite, "main.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	found["main.sqlite3"] = fmt.Sprintf("%d bytes %x", len(data), digest(data))
	return found
}

// mariaDB is a server of sites.
type mariaDB struct{ server *mariatest.Server }

func (e mariaDB) create(t *testing.T) (string, relStorage) {
	t.Helper()
	return e.at(e.server.NewDatabase(t))
}

func (e mariaDB) copy(t *testing.T, of *site) (string, relStorage) {
	t.Helper()
	return e.at(e.server.Copy(t, of.opts.MySQL.Database))
}

func (e mariaDB) at(name string) (string, relStorage) {
	opts := &relstorage.MySQL{UnixSocket: e.server.Socket(), User: mariatest.User, Password: mariatest.Password, Database: name}
	return fmt.Sprintf("<mysql>\n  driver PyMySQL\n  db %s\n  user %s\n  passwd %s\n  unix_socket %s\n</mysql>",
		name, opts.User, opts.Password, opts.UnixSocket), relStorage{MySQL: opts}
}

func (e mariaDB) stop(mode string) error { return e.server.Stop(mode) }
func (e mariaDB) run() error             { return e.server.Run() }

func (e mariaDB) tables(t *testing.T, of *site) map[string]string {
	t.Helper()
	return e.server.Checksums(t, of.opts.MySQL.Database)
}
