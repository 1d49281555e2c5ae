package filestorage_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
)

// server is a Python process that writes a FileStorage with the real ZODB.
type server struct {
	t    *testing.T
	path string
	in   io.WriteCloser
	out  *bufio.Reader
	log  bytes.Buffer
}

// python is the interpreter that has ZODB. Without it a test fails where all
// tests must run, and says elsewhere that it did not.
func python(t *testing.T) string {
	t.Helper()
	path := os.Getenv("ZODB_PYTHON")
	if path == "" {
		path, _ = filepath.Abs("../../.venv/bin/python")
	}
	if out, err := exec.Command(path, "-c", "import ZODB, zc.zlibstorage").CombinedOutput(); err != nil {
		throwaway.Missing(t, fmt.Errorf("no Python with ZODB and zc.zlibstorage (scripts/setup installs it, ZODB_PYTHON names it): %w\n%s", err, out))
	}
	return path
}

// startServer starts a server; more may be its blob directory.
func startServer(t *testing.T, more ...string) *server {
	t.Helper()
	s := &server{t: t, path: filepath.Join(t.TempDir(), "Data.fs")}
	cmd := exec.Command(python(t), append([]string{"testdata/live_writer.py", s.path}, more...)...)
	cmd.Stderr = &s.log
	var err error
	if s.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReaderSize(out, 1<<20)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the ZODB server: %v\n%s", err, s.log.String())
		}
	})
	s.do("commit 1")
	return s
}

// send gives a command, answer waits until it is done.
func (s *server) send(command string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, command+"\n"); err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, s.log.String())
	}
}

func (s *server) answer() []string {
	s.t.Helper()
	lines, err := s.read()
	if err != nil {
		s.t.Fatalf("the ZODB server: %v\n%s", err, s.log.String())
	}
	return lines
}

// read reads an answer. It may be called from any goroutine.
func (s *server) read() (lines []string, err error) {
	for {
		line, err := s.out.ReadString('\n')
		if err != nil || line == ".\n" {
			return lines, err
		}
		lines = append(lines, line)
	}
}

func (s *server) do(command string) []string {
	s.t.Helper()
	s.send(command)
	return s.answer()
}

// dump gives what ZODB's own iterator reads now.
func (s *server) dump() []sourcetest.Transaction {
	s.t.Helper()
	list, err := sourcetest.ReadDump(strings.NewReader(strings.Join(s.do("dump"), "")))
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// same compares what a source gives with what ZODB reads.
func (s *server) same(src *filestorage.Source, tail string) *source.Info {
	s.t.Helper()
	info := scan(s.t, src, 0)
	if got, want := everything(s.t, src), text(s.dump()); got != want {
		s.t.Fatalf("got %.2000s\nwant %.2000s", got, want)
	}
	if tail == "" && info.Tail != "" || !strings.Contains(info.Tail, tail) {
		s.t.Errorf("tail %q, want %q", info.Tail, tail)
	}
	return info
}

func TestLiveDatabase(t *testing.T) {
	s := startServer(t)
	for range 3 {
		s.do("commit")
	}
	old := open(t, s.path)
	before := s.same(old, "")

	s.do("vote")
	if info := s.same(open(t, s.path), "being committed"); !info.Identity.Same(before.Identity) {
		t.Errorf("a vote changed %+v to %+v", before.Identity, info.Identity)
	}
	if g, err := old.Growth(t.Context()); err != nil || g != (source.Growth{}) {
		t.Errorf("Growth during a vote: %+v, %v", g, err)
	}
	s.do("abort")
	s.same(open(t, s.path), "")
	s.do("vote 3")
	s.same(old, "being committed")
	s.do("finish")
	if g, err := old.Growth(t.Context()); err != nil || g.Transactions != 1 || g.Since <= before.LastTID {
		t.Errorf("Growth after a commit: %+v, %v", g, err)
	}
	s.same(old, "")
	s.do("undo")
	s.do("undo")
	s.do("delete")
	s.same(old, "")
	if info := scan(t, open(t, s.path), before.Identity.End); !info.Identity.Same(before.Identity) {
		t.Errorf("what was there before is %+v now, was %+v", info.Identity, before.Identity)
	}
	contract(t, s.path, s.dump())
}

// TestScanWhileAServerWrites scans again and again while transactions are
// committed and aborted. Every scan must end between two transactions.
func TestScanWhileAServerWrites(t *testing.T) {
	s := startServer(t)
	s.send("work 100")
	done := make(chan error, 1)
	go func() {
		_, err := s.read()
		done <- err
	}()
	growing := open(t, s.path)
	var ends []int64
	scans := 0
	for running := true; running; scans++ {
		select {
		case err := <-done:
			if running = false; err != nil {
				t.Fatalf("the ZODB server: %v\n%s", err, s.log.String())
			}
		default:
		}
		ends = append(ends, scan(t, growing, 0).Identity.End, scan(t, open(t, s.path), 0).Identity.End)
		if _, err := growing.Growth(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.same(growing, "")
	between := map[int64]bool{4: true}
	if err := growing.Transactions(t.Context(), func(x *source.Transaction) error { between[x.End] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, end := range ends {
		if !between[end] {
			t.Errorf("a scan ended at %d, within a transaction", end)
		}
	}
	t.Logf("%d scans over %d transactions", 2*scans, len(between)-1)
}

func TestPackDuringReading(t *testing.T) {
	s := startServer(t)
	s.do("work 20")
	s.do("undo")
	old := open(t, s.path)
	info := s.same(old, "")
	want := s.dump()
	s.do("pack")
	s.do("commit")
	if got := everything(t, old); got != text(want) {
		t.Errorf("got %.2000s\nwant %.2000s", got, text(want))
	}
	if g, err := old.Growth(t.Context()); err != nil || !g.Replaced {
		t.Errorf("Growth after a pack: %+v, %v", g, err)
	}
	packed := open(t, s.path)
	s.same(packed, "")
	if _, err := packed.Scan(t.Context(), source.ScanOptions{Until: info.Identity.End}); err == nil {
		t.Errorf("the packed file passes for the one before")
	}
	contract(t, s.path, s.dump())
}

// TestScanWhileAServerWritesBlobs wants every blob of every transaction that a
// scan accepts, and takes none of a transaction under way for one too many. An
// aborted transaction may leave its file for a moment, but with a newer tid.
func TestScanWhileAServerWritesBlobs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobstorage")
	s := startServer(t, dir)
	const rounds = 300
	s.send(fmt.Sprintf("blobs %d", rounds))
	done := make(chan error, 1)
	go func() {
		_, err := s.read()
		done <- err
	}()
	growing := openBlobs(t, s.path, dir)
	scans, last := 0, false
	var info *source.Info
	for !last {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("the ZODB server: %v\n%s", err, s.log.String())
			}
			last = true // and once more, at rest
		default:
		}
		whole := openBlobs(t, s.path, dir)
		for _, src := range []*filestorage.Source{growing, whole} {
			info = scan(t, src, 0)
			if info.BlobFiles != info.Blobs || info.MissingBlobs != 0 || info.OrphanBlobs != 0 {
				t.Fatalf("scan %d: %d blobs, %d files, %d missing, %d without a record", scans, info.Blobs, info.BlobFiles, info.MissingBlobs, info.OrphanBlobs)
			}
		}
		whole.Close()
		scans++
	}
	if info.Blobs < rounds || scans < 3 {
		t.Errorf("%d blobs, %d scans", info.Blobs, scans)
	}
}
