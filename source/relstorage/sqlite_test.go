//go:build unix

package relstorage

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sqlite "modernc.org/sqlite/lib"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// sqliteFixture unpacks a database that the real RelStorage has written.
func sqliteFixture(t testing.TB, name string) (dir string) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "testdata", "relstorage", name+".sqlite3.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, sqliteFile), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// python runs a program with the sqlite3 module, which is SQLite's own library;
// it is another process, as a site is.
func python(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	path := os.Getenv("ZODB_PYTHON")
	if path == "" {
		throwaway.Missing(t, errors.New("no Python: ZODB_PYTHON is not set; run scripts/setup python and eval \"$(scripts/setup --env)\""))
	}
	return exec.Command(path, append([]string{"-I", "-c", program}, args...)...)
}

func runPython(t testing.TB, program string, args ...string) {
	t.Helper()
	if out, err := python(t, program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// newSQLiteFile makes an empty RelStorage without history.
func newSQLiteFile(t testing.TB, mode, statements string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	runPython(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA journal_mode = " + sys.argv[2])
db.executescript(sys.argv[3])
db.commit()
db.close()
`, filepath.Join(dir, sqliteFile), mode, sqliteHistoryFree+statements)
	return dir
}

const sqliteHistoryFree = `
CREATE TABLE object_state (zoid INTEGER NOT NULL PRIMARY KEY, tid INTEGER NOT NULL CHECK (tid > 0), state_size BIGINT NOT NULL, state BLOB);
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE blob_chunk (zoid INTEGER NOT NULL, chunk_num INTEGER NOT NULL, tid INTEGER NOT NULL, chunk BLOB NOT NULL, PRIMARY KEY (zoid, chunk_num));
`

func sqliteIn(dir string) Options { return Options{SQLite: &SQLite{DataDir: dir}} }

func TestSQLiteValuesComeAsTheyAre(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	dir := newSQLiteFile(t, "wal", fmt.Sprintf(`
CREATE TABLE v (n INTEGER PRIMARY KEY, big INTEGER, bytes BLOB, word TEXT);
INSERT INTO v VALUES (1, -9223372036854775808, x'%x', 'Grüße'), (2, 9223372036854775807, x'', ''), (3, NULL, NULL, NULL)`, all))
	_, conns, note := viewOf(t, sqliteIn(dir), 1)
	if note != "" {
		t.Errorf("note: %s", note)
	}
	want := []string{"1|-9223372036854775808|" + string(all) + "|Grüße", "2|9223372036854775807||", "3|NULL|NULL|NULL"}
	if d := cmp.Diff(want, ask(t, conns[0], "SELECT n, big, bytes, word FROM v ORDER BY n")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	d := sqliteDialect
	got := ask(t, conns[0], "SELECT "+d.size("bytes")+", "+d.contains("bytes", []byte("'\\\"%"))+", "+d.contains("bytes", []byte{0, 1, 2})+" FROM v WHERE n = 1")
	if got[0] != "256|0|1" {
		t.Errorf("size and contains give %q", got)
	}
	if _, err := tryAsk(t.Context(), conns[0], "SELECT 1.5"); err == nil {
		t.Error("a fraction is taken for bytes")
	}
}

func TestSQLiteFindsWhatRelStorageHasWritten(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "relstorage", "*.sqlite3.gz"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d databases: %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".sqlite3.gz")
		dir := sqliteFixture(t, name)
		before, err := os.ReadFile(filepath.Join(dir, sqliteFile))
		if err != nil {
			t.Fatal(err)
		}
		opts := sqliteIn(dir)
		opts.Connections = 3
		s, err := Open(t.Context(), opts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.history != strings.HasSuffix(name, "-hp") {
			t.Errorf("%s: history is %v", name, s.history)
		}
		s.Close()
		after, err := os.ReadFile(filepath.Join(dir, sqliteFile))
		if err != nil || sha256.Sum256(before) != sha256.Sum256(after) {
			t.Errorf("%s: the file has changed (%v)", name, err)
		}
	}
}

// sqliteSite commits, packs and lets the log be written into the file, as fast as
// it can, until its standard input ends. Without "close" at the end it leaves as
// one that was killed.
const sqliteSite = `
import os, random, sqlite3, sys, threading
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous = OFF")
if len(sys.argv) > 2:
    db.execute("PRAGMA wal_autocheckpoint = " + sys.argv[2])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
rng = random.Random(5)
tid = 1000
n = 0
while not stop.is_set():
    tid += rng.randrange(1, 1000)
    db.execute("BEGIN IMMEDIATE")
    for zoid in rng.sample(range(500), 3):
        db.execute("REPLACE INTO object_state VALUES (?, ?, 2000, ?)", (zoid, tid, rng.randbytes(2000)))
    db.execute("COMMIT")
    n += 1
    if n % 3 == 0:
        db.execute("DELETE FROM object_state WHERE zoid IN (SELECT zoid FROM object_state WHERE tid < ? ORDER BY tid LIMIT 2)", (tid,))
    if n % 10 == 0:
        print(n, flush=True)
    if n % 200 == 0:
        db.execute("PRAGMA busy_timeout = 5")
        db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        db.execute("PRAGMA busy_timeout = 30000")
os._exit(0)
`

// sqliteAtWork runs the site until the returned function is called.
func sqliteAtWork(t *testing.T, dir string, args ...string) (steps *atomic.Int64, stop func()) {
	t.Helper()
	cmd := python(t, sqliteSite, append([]string{filepath.Join(dir, sqliteFile)}, args...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	steps = new(atomic.Int64)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			n, _ := strconv.ParseInt(lines.Text(), 10, 64)
			steps.Store(n)
		}
	}()
	awaitSteps(t, steps, 50)
	return steps, func() {
		stdin.Close()
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the site: %v\n%s", err, stderr.Bytes())
		}
	}
}

func awaitSteps(t *testing.T, steps *atomic.Int64, n int64) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for at := steps.Load(); steps.Load() < at+n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the site does not get on")
		}
	}
}

func TestSQLiteConnectionsSeeOneStateWhileASiteWorks(t *testing.T) {
	dir := newSQLiteFile(t, "wal", "")
	steps, stop := sqliteAtWork(t, dir)
	defer stop()
	began := time.Now()
	states := map[string]bool{}
	for range 40 {
		_, conns, note := viewOf(t, sqliteIn(dir), 4)
		if len(conns) != 4 || note != "" {
			t.Errorf("%d connections: %s", len(conns), note)
		}
		before := checkSameState(t, conns, fingerprint(false))
		awaitSteps(t, steps, 20)
		if after := checkSameState(t, conns, fingerprint(false)); after != before {
			t.Fatalf("the view moved from %s to %s", before, after)
		}
		states[before] = true
		closeAll(conns)
	}
	t.Logf("%d states in 40 views, %d commits, %v", len(states), steps.Load(), time.Since(began).Round(time.Millisecond))
	if len(states) < 20 {
		t.Error("the site did not work meanwhile")
	}
}

func TestSQLiteConnectionsSeeOneStateWhenTheSiteBeginsBetweenThem(t *testing.T) {
	dir := newSQLiteFile(t, "wal", "INSERT INTO object_state VALUES (1, 1, 1, 'x')")
	e, err := newSQLite(&Options{SQLite: &SQLite{DataDir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	var list []*sqliteConn
	for range 2 {
		l, err := openLibrary(filepath.Join(dir, sqliteFile))
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		list = append(list, &sqliteConn{lib: l})
	}
	// The first looks at a file without a log, the second at the log.
	if err := list[0].lib.begin(); err != nil {
		t.Fatal(err)
	}
	if s, err := list[0].lib.snapshot(); s != 0 || err != nil {
		t.Fatalf("there is a snapshot: %v", err)
	}
	runPython(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("INSERT INTO object_state VALUES (2, 2, 1, 'y')")
db.commit()
`, filepath.Join(dir, sqliteFile))
	if err := list[1].lib.begin(); err != nil {
		t.Fatal(err)
	}
	if s, err := list[1].lib.snapshot(); s == 0 || err != nil {
		t.Fatalf("there is no snapshot: %v", err)
	} else {
		list[1].lib.forget(s)
	}
	a, b := ask(t, list[0], fingerprint(false))[0], ask(t, list[1], fingerprint(false))[0]
	if a == b {
		t.Fatal("the second does not see what was committed")
	}
	if wal, err := e.(*sqliteEngine).share(t.Context(), list); err != nil || !wal {
		t.Fatalf("WAL: %v, %v", wal, err)
	}
	checkSameState(t, []conn{list[0], list[1]}, fingerprint(false))
}

func TestSQLiteSeesWhatAKilledSiteHasLeftInTheLog(t *testing.T) {
	dir := newSQLiteFile(t, "wal", "")
	_, stop := sqliteAtWork(t, dir, "0")
	stop()
	if info, err := os.Stat(filepath.Join(dir, sqliteFile+"-wal")); err != nil || info.Size() == 0 {
		t.Fatalf("there is no log: %v", err)
	}
	// Another machine, or a start of this one: the index of the log is gone.
	if err := os.Remove(filepath.Join(dir, sqliteFile+"-shm")); err != nil {
		t.Fatal(err)
	}
	_, conns, _ := viewOf(t, sqliteIn(dir), 3)
	state := checkSameState(t, conns, fingerprint(false))
	rows, _, _ := strings.Cut(state, "|")
	if n, _ := strconv.Atoi(rows); n < 50 {
		t.Errorf("it sees %s", state)
	}
}

func TestSQLiteWithoutWALSaysThatASiteWaits(t *testing.T) {
	dir := newSQLiteFile(t, "delete", "INSERT INTO object_state VALUES (1, 1, 1, 'x')")
	_, conns, note := viewOf(t, sqliteIn(dir), 3)
	if len(conns) != 3 || !strings.Contains(note, "not in WAL mode") {
		t.Errorf("%d connections: %q", len(conns), note)
	}
	checkSameState(t, conns, fingerprint(false))
}

func TestSQLiteTroubleIsOneSentenceAndMakesNoFile(t *testing.T) {
	good := newSQLiteFile(t, "wal", "")
	write := func(name string, data []byte) func(string) {
		return func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	damaged, err := os.ReadFile(filepath.Join(sqliteFixture(t, "history-hf"), sqliteFile))
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(damaged); i++ {
		damaged[i] = 0x55
	}
	for _, c := range []struct {
		name    string
		prepare func(dir string)
		dir     string // below the folder
		query   string
		want    []string
	}{
		{"missing directory", nil, "nowhere", "", []string{"no directory", "nowhere", "check data-dir"}},
		{"missing file", nil, "", "", []string{"holds no main.sqlite3", "check data-dir"}},
		{"only the oids", write("oids.sqlite3", nil), "", "", []string{"holds no main.sqlite3"}},
		{"the file instead of its directory", write("main.sqlite3", nil), "main.sqlite3", "", []string{"is no directory"}},
		{"a directory instead of the file", func(dir string) { _ = os.Mkdir(filepath.Join(dir, sqliteFile), 0o755) }, "", "", []string{"is no file"}},
		{"an empty file", write(sqliteFile, nil), "", "", []string{"no table object_state"}},
		{"another kind of file", write(sqliteFile, bytes.Repeat([]byte("FS21 something else "), 1000)), "", "", []string{"is no database of SQLite", "check data-dir"}},
		{"a damaged file", write(sqliteFile, damaged), "", "SELECT * FROM object_state", []string{"damaged", "integrity_check"}},
		{"missing table", func(dir string) {
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
		}, "", "SELECT * FROM gone", []string{"no such table: gone"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.prepare != nil {
				c.prepare(dir)
			}
			before := names(t, dir)
			err := trouble(t, sqliteIn(filepath.Join(dir, c.dir)), c.query)
			if err == nil {
				t.Fatal("there is no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the sentence is %q", err)
			}
			after := names(t, dir)
			if c.query == "" && after != before {
				t.Errorf("there were %s, now there are %s", before, after)
			}
		})
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(list)
}

func TestSQLiteWaitsForALockAndThenNamesIt(t *testing.T) {
	dir := newSQLiteFile(t, "delete", "")
	cmd := python(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
`, filepath.Join(dir, sqliteFile))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !bufio.NewScanner(stdout).Scan() {
		t.Fatal("the file was not locked")
	}
	e, err := newSQLite(&Options{SQLite: &SQLite{DataDir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLibrary(filepath.Join(dir, sqliteFile))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	sqlite.Xsqlite3_busy_timeout(l.tls, l.db, 50)
	err = e.plain(l.begin())
	if err == nil || !strings.Contains(err.Error(), "another process keeps it locked") {
		t.Errorf("the error is %v", err)
	}
	time.AfterFunc(time.Second, func() { stdin.Close() })
	_, conns, _ := viewOf(t, sqliteIn(dir), 2)
	checkSameState(t, conns, fingerprint(false))
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestSQLiteAsAnotherUser runs itself as somebody who owns nothing.
func TestSQLiteAsAnotherUser(t *testing.T) {
	if dir := os.Getenv("SQLITE_TEST_DIR"); dir != "" {
		opts := sqliteIn(dir)
		opts.Connections = 2
		s, err := Open(context.Background(), opts)
		if err != nil {
			fmt.Printf("REFUSED: %v\n", err)
			return
		}
		defer s.Close()
		_, conns, _ := viewOf(t, opts, 3)
		for range 10 {
			checkSameState(t, conns, fingerprint(false))
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("OPENED")
		return
	}
	if os.Getuid() != 0 {
		throwaway.Missing(t, errors.New("only root can become somebody else"))
	}
	base, err := os.MkdirTemp("/tmp", "sqlite-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		throwaway.Missing(t, errors.New("a program finds itself in /proc on Linux only"))
	}
	program := filepath.Join(base, "test")
	if err := errors.Join(os.Chmod(base, 0o755), os.WriteFile(program, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	good := newSQLiteFile(t, "wal", "")
	rollback := newSQLiteFile(t, "delete", "")
	const nobody = 65534
	for _, c := range []struct {
		name    string
		from    string
		mode    os.FileMode // of the directory
		file    os.FileMode
		mine    bool // the file belongs to the reader
		joined  bool // a site has it open
		want    string
		created bool
	}{
		{"the owner", good, 0o777, 0o644, true, false, "OPENED", true},
		{"nobody works, another user", good, 0o777, 0o644, false, false, "run this as root", false},
		{"the directory is read-only", good, 0o555, 0o444, true, false, "cannot be opened by this user", false},
		{"the file is not readable", good, 0o755, 0o600, false, false, "run this as the user of the site", false},
		{"no log, read-only", rollback, 0o555, 0o444, false, false, "OPENED", false},
		{"the site works, another user", good, 0o755, 0o644, false, true, "OPENED", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(base, strings.ReplaceAll(c.name, " ", "-"))
			if err := os.CopyFS(dir, os.DirFS(c.from)); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, sqliteFile)
			if c.joined {
				_, stop := sqliteAtWork(t, dir)
				defer stop()
			}
			if c.mine {
				if err := os.Chown(file, nobody, nobody); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.Chmod(file, c.file), os.Chmod(dir, c.mode)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "-test.run=^TestSQLiteAsAnotherUser$", "-test.v")
			cmd.Dir = base
			cmd.Env = append(os.Environ(), "SQLITE_TEST_DIR="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%v\n%s\nwant %q", err, out, c.want)
			}
			if created := strings.Contains(names(t, dir), "-shm"); created != c.created {
				t.Errorf("there are %s", names(t, dir))
			}
		})
	}
}

func TestSQLiteCancelledQueryKeepsTheView(t *testing.T) {
	dir := newSQLiteFile(t, "wal", "")
	e, conns, _ := viewOf(t, sqliteIn(dir), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := tryAsk(ctx, conns[0], "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n")
	if !errors.Is(err, context.DeadlineExceeded) || e.lost(err) || time.Since(began) > 15*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if got := ask(t, conns[0], "SELECT 5"); got[0] != "5" {
		t.Errorf("then: %q", got)
	}
}

func TestSQLiteIdentityIsThatOfTheFile(t *testing.T) {
	dir := newSQLiteFile(t, "wal", "")
	link, other := filepath.Join(t.TempDir(), "link"), t.TempDir()
	if err := errors.Join(os.Symlink(dir, link), os.CopyFS(other, os.DirFS(dir))); err != nil {
		t.Fatal(err)
	}
	id := func(dir string) string {
		e, conns, _ := viewOf(t, sqliteIn(dir), 1)
		id, err := e.identity(t.Context(), conns[0])
		if err != nil || id == "" {
			t.Fatalf("%q, %v", id, err)
		}
		return id
	}
	if id(dir) != id(link) {
		t.Error("a link makes it another database")
	}
	if id(dir) == id(other) {
		t.Error("a copy is the same database")
	}
}

func TestSQLiteReadsBlobsInPieces(t *testing.T) {
	whole := make([]byte, 3<<20+17)
	for i := range whole {
		whole[i] = byte(i * i >> 8)
	}
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := newSQLiteFile(t, "wal", "")
	runPython(t, `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
data = open(sys.argv[2], "rb").read()
db.execute("INSERT INTO blob_chunk VALUES (7, 0, 9, ?)", (data,))
for n, part in enumerate((data[:1000000], b"", data[1000000:])):
    db.execute("INSERT INTO blob_chunk VALUES (8, ?, 9, ?)", (n, part))
db.commit()
`, filepath.Join(dir, sqliteFile), file)
	_, conns, _ := viewOf(t, sqliteIn(dir), 1)
	size := int64(len(whole))
	one := &storedBlob{zoid: 7, tid: 9, size: size, chunks: []blobChunk{{num: 0, size: size}}}
	three := &storedBlob{zoid: 8, tid: 9, size: size, chunks: []blobChunk{{num: 0, size: 1000000}, {num: 1, off: 1000000}, {num: 2, off: 1000000, size: size - 1000000}}}
	checkBlob(t, conns[0], one, whole)
	checkBlob(t, conns[0], three, whole)
	one.tid = 10
	if _, err := conns[0].readBlob(t.Context(), one, make([]byte, 10), 0); err == nil {
		t.Error("a blob that is not there was read")
	}
	three.chunks[2].size++
	if _, err := conns[0].readBlob(t.Context(), three, make([]byte, 10), size-5); err == nil {
		t.Error("a chunk of another size was read")
	}
}

// TestSQLiteMemoryOfALargeBlob: SQLite keeps a blob in one value of one row.
func TestSQLiteMemoryOfALargeBlob(t *testing.T) {
	if runtime.GOOS != "linux" {
		throwaway.Missing(t, errors.New("the largest size of a process is known on Linux only"))
	}
	const size = 300 << 20
	dir := newSQLiteFile(t, "wal", fmt.Sprintf("INSERT INTO blob_chunk VALUES (7, 0, 9, zeroblob(%d))", size))
	_, conns, _ := viewOf(t, sqliteIn(dir), 1)
	b := &storedBlob{zoid: 7, tid: 9, size: size, chunks: []blobChunk{{size: size}}}
	p := make([]byte, 1<<20)
	runtime.GC()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	before := peak(t)
	began, total := time.Now(), int64(0)
	for {
		n, err := conns[0].readBlob(t.Context(), b, p, total)
		if err != nil {
			t.Fatal(err)
		}
		total += int64(n)
		if n < len(p) {
			break
		}
	}
	grown := peak(t) - before
	t.Logf("%d MB in %v, memory grew by %d MB", total>>20, time.Since(began).Round(time.Millisecond), grown>>20)
	if total != size || grown > 16<<20 {
		t.Errorf("%d bytes were read, memory grew by %d", total, grown)
	}
}

// peak is the most memory that this process has had.
func peak(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// BenchmarkSQLiteRows reads rows as a chunk does.
func BenchmarkSQLiteRows(b *testing.B) {
	dir := newSQLiteFile(b, "wal", `
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO object_state SELECT i, 280000000000000000 + i, 3300, zeroblob(3300) FROM n`)
	_, conns, _ := viewOf(b, sqliteIn(dir), 1)
	benchmarkRows(b, conns[0])
}
