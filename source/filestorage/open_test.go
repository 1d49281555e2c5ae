package filestorage_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/zodb"
)

func TestOpenSaysWhatItIsInsteadOfADataFS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, problem string }{
		{filepath.Join(dir, "missing.fs"), "there is no such file"},
		{filepath.Join(dir, "no", "such", "Data.fs"), "there is no such file"},
		{dangling, "there is no such file"},
		{dir, "is a directory; give the Data.fs in it"},
		{pipe, "is neither a file nor a block device"},
		{"/dev/null", "is neither a file nor a block device"},
		{write("one", "F"), "has only 1 bytes"},
		{write("three", "FS3"), "has only 3 bytes"},
		{write("index", "\x80\x03M\xbb\x01."), `starts with "\x80\x03M\xbb"`},
		{write("FS20", "FS20 and more"), `starts with "FS20"`},
		{filepath.Join(write("file", "FS30"), "Data.fs"), "not a directory"},
	} {
		s, err := filestorage.Open(t.Context(), c.path, filestorage.Options{})
		if err == nil {
			s.Close()
			t.Errorf("%s was opened", c.path)
			continue
		}
		if !strings.Contains(err.Error(), c.problem) || !strings.Contains(err.Error(), c.path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %q, want %q", c.path, err, c.problem)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "missing.fs")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file was created: %v", err)
	}
}

// TestOpenWithoutPermission needs a user who may not read everything. For root
// it runs itself again as nobody.
func TestOpenWithoutPermission(t *testing.T) {
	path := os.Getenv("FILESTORAGE_TEST_UNREADABLE")
	if path == "" && os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("/tmp", "filestorage-test")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "Data.fs")
		program, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, sample().buf, 0o600), os.WriteFile(filepath.Join(dir, "test"), program, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(dir, "test"), "-test.run=^TestOpenWithoutPermission$", "-test.v")
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "FILESTORAGE_TEST_UNREADABLE="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Fatalf("as nobody: %v\n%s", err, out)
		}
		return
	}
	if path == "" {
		path = file(t, sample().buf)
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err == nil || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "may not read it") {
		t.Errorf("got %v", err)
	}
}

func TestEmptyFileIsAnEmptyDatabase(t *testing.T) {
	for name, content := range map[string]string{"is an empty file": "", "holds no transaction": "FS30"} {
		path := file(t, []byte(content))
		contract(t, path, nil)
		s := open(t, path)
		info, err := s.Scan(t.Context(), source.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(info.Warnings, "\n"); !strings.Contains(got, name) || info.Identity.End != 4 {
			t.Errorf("End %d, warnings %q", info.Identity.End, got)
		}
		// A server starts on it.
		if err := os.WriteFile(path, sample().buf, 0o600); err != nil {
			t.Fatal(err)
		}
		if g, err := s.Growth(t.Context()); err != nil || g.Transactions != 3 || g.Since != tid1 {
			t.Errorf("Growth %+v, %v", g, err)
		}
		if info, err = s.Scan(t.Context(), source.ScanOptions{Until: 4}); err != nil || info.Transactions != 0 {
			t.Errorf("Scan up to 4 gave %+v, %v", info, err)
		}
		if info, err = s.Scan(t.Context(), source.ScanOptions{}); err != nil || info.Transactions != 3 || len(info.Warnings) != 0 {
			t.Errorf("Scan gave %+v, %v", info, err)
		}
	}
}

func TestOpenThroughSymlinkAndRelativePath(t *testing.T) {
	path := file(t, sample().buf)
	t.Chdir(filepath.Dir(path))
	if err := os.Symlink("Data.fs", "link"); err != nil {
		t.Fatal(err)
	}
	s := open(t, "link")
	info, err := s.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "link"); info.Identity.Name != want || info.Transactions != 3 {
		t.Errorf("%s has %d transactions, want 3 in %s", info.Identity.Name, info.Transactions, want)
	}
}

// TestNothingIsTouched reads a file beside a stale index and a lock and looks at
// the directory afterwards.
func TestNothingIsTouched(t *testing.T) {
	path := file(t, various().buf)
	for name, content := range map[string]string{".index": "stale", ".lock": " 1\n", ".tmp": "junk"} {
		if err := os.WriteFile(path+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, filepath.Dir(path))
	s := open(t, path)
	if _, err := s.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	everything(t, s)
	if _, err := s.Growth(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if after := listing(t, filepath.Dir(path)); !slices.Equal(before, after) {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
}

func listing(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		stat, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e.Name()+stat.ModTime().String()+stat.Mode().String()+string(content))
	}
	return list
}

// chunks gives the ranges that a reading is cut into.
func chunks(t *testing.T, s *filestorage.Source, size int64) (list []source.Range) {
	t.Helper()
	err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: size, Budget: noBudget{}}, func(c *source.Chunk) error {
		list = append(list, c.Range)
		c.Release()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func scan(t *testing.T, s *filestorage.Source, until int64) *source.Info {
	t.Helper()
	info, err := s.Scan(t.Context(), source.ScanOptions{Until: until})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestScanInStepsGivesTheSame(t *testing.T) {
	d := various()
	path := file(t, d.buf)
	whole := open(t, path)
	want := scan(t, whole, 0)
	var ends []int64
	if err := whole.Transactions(t.Context(), func(x *source.Transaction) error { ends = append(ends, x.End); return nil }); err != nil {
		t.Fatal(err)
	}
	sizes := []int64{1000, 256 << 10, 1 << 20, 1 << 40}
	for i, end := range ends {
		if i%47 != 0 && i > 18 {
			continue
		}
		direct := open(t, file(t, d.buf[:end]))
		part := scan(t, direct, 0)
		s := open(t, path)
		got := scan(t, s, end)
		got.Identity.Name = part.Identity.Name
		if diff := cmp.Diff(part, got); diff != "" {
			t.Fatalf("Scan up to %d differs from that of the file as it was then:\n%s", end, diff)
		}
		for _, size := range sizes {
			if a, b := chunks(t, direct, size), chunks(t, s, size); !slices.Equal(a, b) {
				t.Fatalf("up to %d in chunks of %d: %v and %v", end, size, a, b)
			}
		}
		if diff := cmp.Diff(want, scan(t, s, 0)); diff != "" {
			t.Fatalf("Scan up to %d and on to the end differs from one scan:\n%s", end, diff)
		}
		for _, size := range sizes {
			if a, b := chunks(t, whole, size), chunks(t, s, size); !slices.Equal(a, b) {
				t.Fatalf("to %d and on in chunks of %d: %v and %v", end, size, a, b)
			}
		}
		if back := scan(t, s, end); back.Identity.Digest != got.Identity.Digest {
			t.Fatalf("Scan back to %d gives another identity", end)
		}
	}
}

func TestScanAfterAnInterruptedReadIsRight(t *testing.T) {
	s := open(t, file(t, various().buf))
	want := scan(t, s, 0)
	stop := errors.New("stop")
	err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: 1000, Budget: noBudget{}}, func(c *source.Chunk) error { c.Release(); return stop })
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, scan(t, s, 0)); diff != "" {
		t.Error(diff)
	}
}

func TestScanRefusesAFileThatIsNotTheOneBefore(t *testing.T) {
	for _, c := range []struct {
		name    string
		content []byte
		until   int64
		problem string
	}{
		{"shorter", sample().buf[:txnC], sampleEnd, "has only 308 bytes"},
		{"empty", nil, sampleEnd, "has only 0 bytes"},
		{"ends elsewhere", sample().buf, 300, "transaction at offset 204 does not fit"},
		{"ends a little later", sample().buf, 320, "transaction at offset 308 does not fit"},
		{"no end at all", sample().buf, 3, "has only 443 bytes"},
		{"uncommitted meanwhile", set(txnC+atStatus, 'c')(sample().buf), sampleEnd, "not committed"},
	} {
		_, err := open(t, file(t, c.content)).Scan(t.Context(), source.ScanOptions{Until: c.until})
		var changed *filestorage.ChangedError
		if !errors.As(err, &changed) || !strings.Contains(changed.Problem, c.problem) || changed.End != c.until {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestDigestCoversEveryHeader(t *testing.T) {
	base := scan(t, open(t, file(t, sample().buf)), 0).Identity
	for name, patch := range map[string]func([]byte) []byte{
		"tid":          u64(txnA, uint64(tid1)-1),
		"user":         set(txnA+23, 'x'),
		"extension":    set(txnB+23+3, 'x'),
		"oid":          u64(recA0, 7),
		"back pointer": u64(recC1+atBack, recB1),
	} {
		got := scan(t, open(t, file(t, patch(sample().buf))), 0).Identity
		if got.Same(base) || got.End != base.End {
			t.Errorf("another %s gives the same identity", name)
		}
	}
}

func TestGrowth(t *testing.T) {
	d := sample()
	path := file(t, d.buf)
	s := open(t, path)
	scan(t, s, 0)
	growth := func(want source.Growth) {
		t.Helper()
		if g, err := s.Growth(t.Context()); err != nil || g != want {
			t.Errorf("got %+v, %v; want %+v", g, err, want)
		}
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.add('u', tid3+1, "", "", "")
	d.add(' ', tid3+2, "", "", "", put{oid: 1, data: []byte("x")})
	d.add(' ', tid3+3, "", "", "")
	whole := len(d.buf)
	write(d.buf)
	growth(source.Growth{Transactions: 2, Since: tid3 + 2})
	d.add('c', tid3+4, "", "", "", put{oid: 1, data: []byte("x")})
	write(d.buf)
	growth(source.Growth{Transactions: 2, Since: tid3 + 2})
	for n := whole - 10; n < len(d.buf); n++ {
		write(d.buf[:n])
		want := source.Growth{Transactions: 2, Since: tid3 + 2}
		if n < whole {
			want.Transactions = 1
		}
		growth(want)
	}
	write(sample().buf[:txnC])
	var changed *filestorage.ChangedError
	if _, err := s.Growth(t.Context()); !errors.As(err, &changed) {
		t.Errorf("of a file that was cut: %v", err)
	}
	write(sample().buf)
	growth(source.Growth{})
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	growth(source.Growth{Replaced: true})
	write(sample().buf)
	growth(source.Growth{Replaced: true})
}

func TestFileThatIsCutWhileItIsRead(t *testing.T) {
	for _, n := range []int64{0, 4, 443, 100_000, int64(len(various().buf)) - 1} {
		s := open(t, file(t, various().buf))
		if err := os.Truncate(scan(t, s, 0).Identity.Name, n); err != nil {
			t.Fatal(err)
		}
		budget := &counting{}
		err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: 1 << 20, Budget: budget}, func(c *source.Chunk) error { c.Release(); return nil })
		var damage *source.DamageError
		if !errors.As(err, &damage) || budget.n != 0 {
			t.Errorf("cut to %d bytes: Read gave %v and keeps %d bytes", n, err, budget.n)
		}
		err = s.Follow(t.Context(), 4, source.ReadOptions{ChunkBytes: 1 << 20, Budget: budget}, func(c *source.Chunk) error { c.Release(); return nil })
		if !errors.As(err, &damage) || budget.n != 0 {
			t.Errorf("cut to %d bytes: Follow gave %v and keeps %d bytes", n, err, budget.n)
		}
	}
}

type counting struct{ n int64 }

func (c *counting) Acquire(ctx context.Context, n int64) error { c.n += n; return ctx.Err() }
func (c *counting) Release(n int64)                            { c.n -= n }

// TestLargeTransactionTakesNoMoreThanChunks reads a transaction of 50,000
// records in small chunks.
func TestLargeTransactionTakesNoMoreThanChunks(t *testing.T) {
	d := newData()
	var puts []put
	for i := range 50_000 {
		puts = append(puts, put{oid: zodb.OID(i % 49_000), data: []byte("0123456789 0123456789 0123456789 0123456789")})
	}
	d.add(' ', tid1, "", "", "", puts...)
	s := open(t, file(t, d.buf))
	scan(t, s, 0)
	const size = 300 << 10
	var records, dropped, most int64
	budget := &counting{}
	err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: size, Budget: budget}, func(c *source.Chunk) error {
		records += int64(len(c.Records))
		dropped += c.Dropped
		most = max(most, budget.n)
		if c.Bytes > size {
			t.Errorf("a chunk of %d bytes", c.Bytes)
		}
		c.Release()
		return nil
	})
	if err != nil || records != 49_000 || dropped != 1000 {
		t.Errorf("%d records, %d dropped, %v", records, dropped, err)
	}
	if most > size+size/(42+43)*filestorage.RecordCost+filestorage.DecodeFactor*43 {
		t.Errorf("a chunk took %d bytes", most)
	}
}

func TestChunksAreNoLargerThanAskedFor(t *testing.T) {
	s := open(t, file(t, various().buf))
	scan(t, s, 0)
	for _, size := range []int64{1, 64, 1000, 100_000, 256 << 10, 1 << 20} {
		err := s.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: size, Budget: noBudget{}}, func(c *source.Chunk) error {
			if n := len(c.Records) + len(c.Transactions); c.Bytes > size && n > 1 {
				t.Errorf("by %d bytes: a chunk of %d with %d records", size, c.Bytes, len(c.Records))
			}
			c.Release()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestChunksOfManyBlobsAreSmall(t *testing.T) {
	d := newData()
	var puts []put
	for i := range 1000 {
		puts = append(puts, put{oid: zodb.OID(i), data: []byte(blobPickle)})
	}
	d.add(' ', 1, "", "", "", puts...)
	s := open(t, file(t, d.buf))
	scan(t, s, 0)
	for _, c := range []struct {
		size    int64
		records int // a blob counts as 32 kB in a chunk
	}{{256 << 10, 8}, {2 << 20, 64}} {
		var chunks, records, most int
		err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: c.size, Budget: noBudget{}}, func(chunk *source.Chunk) error {
			chunks++
			records += len(chunk.Records)
			most = max(most, len(chunk.Records))
			chunk.Release()
			return nil
		})
		if err != nil || records != 1000 {
			t.Fatalf("%d records, %v", records, err)
		}
		if most > c.records || chunks > 2*1000/c.records {
			t.Errorf("by %d bytes: %d chunks of up to %d blobs, want up to %d", c.size, chunks, most, c.records)
		}
	}
}

func TestScanTellsProgress(t *testing.T) {
	s := open(t, file(t, various().buf))
	last := int64(-1)
	info, err := s.Scan(t.Context(), source.ScanOptions{Progress: func(done, total int64) {
		if done < last || done > total {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil || last != info.Identity.End {
		t.Errorf("the last was %d of %d, %v", last, info.Identity.End, err)
	}
}
