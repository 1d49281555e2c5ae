package filestorage_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	blobData = "../../testdata/blobs.fs"
	// orphans is how many files without a record each blob directory of testdata
	// has.
	orphans = 2
)

func openBlobs(t testing.TB, path, blobs string) *filestorage.Source {
	t.Helper()
	s, err := filestorage.Open(t.Context(), path, filestorage.Options{BlobDir: blobs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func blobContract(t *testing.T, path, blobs string, want []sourcetest.Transaction) {
	sourcetest.Run(t, sourcetest.Case{
		Open:       func(t testing.TB) source.Source { return openBlobs(t, path, blobs) },
		Scratch:    func(t testing.TB) source.Source { return openBlobs(t, path, copyDir(t, blobs)) },
		Want:       want,
		Orphans:    orphans,
		ChunkSizes: []int64{1, 300 << 10},
	})
}

// copyDir copies a blob directory and gives its path.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "blobstorage")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func blobDump(t testing.TB) []sourcetest.Transaction {
	t.Helper()
	want, err := sourcetest.LoadDump(strings.TrimSuffix(blobData, ".fs") + ".dump.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// eachFile calls fn for each blob that is wanted, with its file below dir in
// the layouts bushy and lawn.
func eachFile(dir string, want []sourcetest.Transaction, fn func(n int, b *sourcetest.Blob, bushy, lawn string)) {
	n := 0
	for _, txn := range want {
		for i := range txn.Records {
			if r := &txn.Records[i]; r.Blob != nil {
				fn(n, r.Blob, bushyPath(dir, r.OID, txn.TID), lawnPath(dir, r.OID, txn.TID))
				n++
			}
		}
	}
}

func bushyPath(dir string, oid zodb.OID, tid zodb.TID) string {
	hex := fmt.Sprintf("%016x", uint64(oid))
	for i := 0; i < 16; i += 2 {
		dir = filepath.Join(dir, "0x"+hex[i:i+2])
	}
	return filepath.Join(dir, idName(uint64(tid))+".blob")
}

func lawnPath(dir string, oid zodb.OID, tid zodb.TID) string {
	return filepath.Join(dir, idName(uint64(oid)), idName(uint64(tid))+".blob")
}

func idName(id uint64) string {
	hex := fmt.Sprintf("%x", id)
	return "0x" + strings.Repeat("0", len(hex)%2) + hex
}

func move(t testing.TB, from, to string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.Rename(from, to)); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestContractOnBlobDirectoriesFoundInPractice takes the contract of blobs through
// directories that are not as ZODB leaves them.
func TestContractOnBlobDirectoriesFoundInPractice(t *testing.T) {
	bushy := strings.TrimSuffix(blobData, ".fs") + ".blobs"
	lawn := strings.TrimSuffix(blobData, ".fs") + "-lawn.blobs"
	for _, c := range []struct {
		name, from string
		change     func(t *testing.T, dir string, want []sourcetest.Transaction) (now string)
	}{
		{"bushy without .layout", bushy, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			return dir + remove(t, filepath.Join(dir, ".layout"))
		}},
		{"lawn without .layout", lawn, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			return dir + remove(t, filepath.Join(dir, ".layout"))
		}},
		{"bushy that says lawn", bushy, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			write(t, filepath.Join(dir, ".layout"), "lawn\n")
			return dir
		}},
		{"lawn that says bushy", lawn, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			write(t, filepath.Join(dir, ".layout"), "bushy")
			return dir
		}},
		{"a link to the directory", bushy, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			if err := os.Symlink(dir, dir+".link"); err != nil {
				t.Fatal(err)
			}
			return dir + ".link"
		}},
		{"links within the directory", bushy, func(t *testing.T, dir string, _ []sourcetest.Transaction) string {
			deep := filepath.Join(dir, "0x00", "0x00", "0x00")
			move(t, deep, dir+".disk2")
			if err := os.Symlink(dir+".disk2", deep); err != nil {
				t.Fatal(err)
			}
			return dir
		}},
		{"every second blob in the other layout", bushy, func(t *testing.T, dir string, want []sourcetest.Transaction) string {
			eachFile(dir, want, func(n int, b *sourcetest.Blob, bushy, lawn string) {
				if n%2 == 1 {
					move(t, bushy, lawn)
					b.Elsewhere = true
				}
			})
			return dir
		}},
		{"files missing, unreadable and under another tid", bushy, func(t *testing.T, dir string, want []sourcetest.Transaction) string {
			damageBlobs(t, dir, want)
			return dir
		}},
		{"everything missing", bushy, func(t *testing.T, dir string, want []sourcetest.Transaction) string {
			eachFile(dir, want, func(_ int, b *sourcetest.Blob, bushy, _ string) {
				remove(t, bushy)
				*b = sourcetest.Blob{Missing: true}
			})
			return dir
		}},
		{"newer files of transactions that are not committed yet", lawn, func(t *testing.T, dir string, want []sourcetest.Transaction) string {
			last := want[len(want)-1].TID
			write(t, lawnPath(dir, 0xff, last+1), "more")
			write(t, lawnPath(dir, 0x1234, last+1<<32), "new")
			return dir
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := blobDump(t)
			dir := c.change(t, copyDir(t, c.from), want)
			sourcetest.RunBlobs(t, sourcetest.Case{
				Open:    func(t testing.TB) source.Source { return openBlobs(t, blobData, dir) },
				Want:    want,
				Orphans: orphans,
			})
		})
	}
}

// remove removes a file; it returns "" to be of use in an expression.
func remove(t testing.TB, path string) string {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return ""
}

// damageBlobs removes the files of back records, whose bytes are found under
// another tid, and of some others, which are missing; and puts directories in
// the place of some more.
func damageBlobs(t *testing.T, dir string, want []sourcetest.Transaction) {
	first := map[zodb.OID]bool{}
	var elsewhere, missing, unreadable int
	back := backRecords(t)
	for _, txn := range want {
		for i := range txn.Records {
			r := &txn.Records[i]
			if r.Blob == nil {
				continue
			}
			path := bushyPath(dir, r.OID, txn.TID)
			switch {
			case back[txn.TID]:
				remove(t, path)
				r.Blob.Elsewhere = true
				elsewhere++
			case !first[r.OID] && r.OID%3 == 0 && r.OID != 0x108: // whose creation was redone
				remove(t, path)
				*r.Blob = sourcetest.Blob{Missing: true}
				missing++
			case !first[r.OID] && r.OID == 0x107:
				remove(t, path)
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
				*r.Blob = sourcetest.Blob{Unreadable: true}
				unreadable++
			}
			first[r.OID] = true
		}
	}
	if elsewhere < 4 || missing < 2 || unreadable != 1 {
		t.Fatalf("%d blobs under another tid, %d missing, %d unreadable", elsewhere, missing, unreadable)
	}
}

// backRecords are the transactions that have back records of blobs.
func backRecords(t *testing.T) map[zodb.TID]bool {
	found := map[zodb.TID]bool{}
	s := open(t, blobData)
	scan(t, s, 0)
	err := s.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: 1 << 20, Budget: unlimited{}}, func(c *source.Chunk) error {
		for _, r := range c.Records {
			if r.Back != 0 && r.OID != zodb.Root {
				found[r.TID] = true
			}
		}
		c.Release()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

type unlimited struct{}

func (unlimited) Acquire(context.Context, int64) error { return nil }
func (unlimited) Release(int64)                        {}

func TestBlobDirectoryMustExist(t *testing.T) {
	for _, c := range []struct{ name, dir, want string }{
		{"none", filepath.Join(t.TempDir(), "blobstorage"), "no such blob directory"},
		{"a file", blobData, "is no directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := filestorage.Open(t.Context(), blobData, filestorage.Options{BlobDir: c.dir})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Base(c.dir)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBlobWithoutBlobDirectory(t *testing.T) {
	s := open(t, blobData)
	info := scan(t, s, 0)
	if info.BlobDir != "" || info.Blobs == 0 || info.BlobFiles+info.MissingBlobs+info.OrphanBlobs != 0 {
		t.Errorf("%+v", info)
	}
	_, err := s.Blob(t.Context(), &source.Record{OID: 0xff, TID: info.FirstTID, Pos: 4})
	var bad *source.BlobError
	if !errors.As(err, &bad) || !bad.Missing || !strings.Contains(err.Error(), "no blob directory was given") {
		t.Errorf("got %v", err)
	}
}

// TestRescanCountsNewBlobs scans a database part by part, as it grows, and
// wants what one scan of everything finds.
func TestRescanCountsNewBlobs(t *testing.T) {
	dir := strings.TrimSuffix(blobData, ".fs") + ".blobs"
	var ends []int64
	s := openBlobs(t, blobData, dir)
	scan(t, s, 0)
	err := s.Transactions(t.Context(), func(x *source.Transaction) error {
		ends = append(ends, x.End)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	growing := openBlobs(t, blobData, dir)
	opts := source.ScanOptions{LargeBlob: 20}
	for _, end := range ends {
		opts.Until = end
		whole := openBlobs(t, blobData, dir)
		for _, until := range []int64{end, end} {
			opts.Until = until
			want, err := whole.Scan(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			got, err := growing.Scan(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
				t.Fatalf("up to %d part by part:\n%s\nat once:\n%s", end, g, w)
			}
		}
		whole.Close()
	}
}

func TestScanWarnsOfOddBlobDirectories(t *testing.T) {
	dir := copyDir(t, strings.TrimSuffix(blobData, ".fs")+".blobs")
	want := blobDump(t)
	eachFile(dir, want, func(n int, _ *sourcetest.Blob, bushy, lawn string) {
		if n < 3 {
			move(t, bushy, lawn)
		}
	})
	info := scan(t, openBlobs(t, blobData, dir), 0)
	text := strings.Join(info.Warnings, "\n")
	for _, part := range []string{"both layouts", "3 blobs lie in the layout that is not the one"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in %q", part, text)
		}
	}
}

func TestScanWarnsOfTheWrongBlobDirectory(t *testing.T) {
	info := scan(t, openBlobs(t, blobData, t.TempDir()), 0)
	if text := strings.Join(info.Warnings, "\n"); !strings.Contains(text, "is it mounted?") || info.MissingBlobs == 0 {
		t.Errorf("%d missing, warnings %q", info.MissingBlobs, text)
	}
}

// TestScanStopsIfTheBlobDirectoryDisappears makes sure that an unmounted
// directory is not taken for one whose blobs are missing.
func TestScanStopsIfTheBlobDirectoryDisappears(t *testing.T) {
	dir := copyDir(t, strings.TrimSuffix(blobData, ".fs")+".blobs")
	s := openBlobs(t, blobData, dir)
	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	var bad *source.BlobError
	if _, err := s.Scan(t.Context(), source.ScanOptions{}); err == nil || errors.As(err, &bad) {
		t.Errorf("Scan: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil { // the empty mount point
		t.Fatal(err)
	}
	if _, err := s.Scan(t.Context(), source.ScanOptions{}); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("Scan: %v", err)
	}
}

// TestBlobWrittenTwiceInOneTransaction has one file for two records.
func TestBlobWrittenTwiceInOneTransaction(t *testing.T) {
	d := newData()
	blob := put{oid: 9, data: []byte(blobPickle)}
	d.add(' ', tid1, "", "", "", blob, put{oid: 10, data: []byte(blobPickle)}, blob)
	dir := t.TempDir()
	write(t, bushyPath(dir, 9, tid1), "bytes")
	info := scan(t, openBlobs(t, file(t, d.buf), dir), 0)
	if info.Blobs != 3 || info.BlobFiles != 1 || info.BlobBytes != 5 || info.MissingBlobs != 1 || info.OrphanBlobs != 0 {
		t.Errorf("%+v", info)
	}
	if len(info.FirstMissing) != 1 || info.FirstMissing[0].OID != 10 || !info.FirstMissing[0].Missing || info.FirstMissing[0].Pos == 0 {
		t.Errorf("missing: %+v", info.FirstMissing)
	}
}

// TestOrphansDoNotDependOnTheEndOfTheFile counts with a torn end, from which
// the last tid cannot be guessed, and with tids that fall.
func TestOrphansDoNotDependOnTheEndOfTheFile(t *testing.T) {
	d := newData()
	d.add(' ', tid3, "", "", "", put{oid: 9, data: []byte(blobPickle)})
	d.add(' ', tid2, "", "falls", "", put{oid: 9, data: []byte(blobPickle)})
	dir := t.TempDir()
	for _, tid := range []zodb.TID{tid3, tid2, tid1, tid3 - 1, tid3 + 1} {
		write(t, lawnPath(dir, 9, tid), "bytes")
	}
	for name, buf := range map[string][]byte{"whole": d.buf, "torn": append(d.buf[:len(d.buf):len(d.buf)], d.buf[4:60]...)} {
		info := scan(t, openBlobs(t, file(t, buf), dir), 0)
		if info.BlobFiles != 2 || info.MissingBlobs != 0 || info.OrphanBlobs != 2 {
			t.Errorf("%s: %d found, %d missing, %d without a record", name, info.BlobFiles, info.MissingBlobs, info.OrphanBlobs)
		}
	}
}

// TestBlobRecordsOfAnotherTID looks for the file under the tid in the record,
// too, if that is not the one of its transaction.
func TestBlobRecordsOfAnotherTID(t *testing.T) {
	d := newData()
	at := d.add(' ', tid2, "", "", "", put{oid: 9, data: []byte(blobPickle)})
	binary.BigEndian.PutUint64(d.buf[at[0]+8:], uint64(tid1))
	dir := t.TempDir()
	write(t, bushyPath(dir, 9, tid1), "bytes")
	s := openBlobs(t, file(t, d.buf), dir)
	if info := scan(t, s, 0); info.BlobFiles != 1 || info.OrphanBlobs != 0 {
		t.Errorf("%+v", info)
	}
	b, err := s.Blob(t.Context(), &source.Record{OID: 9, TID: tid2, Pos: at[0]})
	if err != nil || b.TID != tid2 || !strings.Contains(b.Note, tid1.String()) {
		t.Errorf("%+v, %v", b, err)
	}
	for _, pos := range []int64{-1, 0, 4, at[0] + 1, 1 << 40} { // not where the record stands
		var bad *source.BlobError
		if _, err := s.Blob(t.Context(), &source.Record{OID: 9, TID: tid2, Pos: pos}); !errors.As(err, &bad) || !bad.Missing {
			t.Errorf("position %d: %v", pos, err)
		}
	}
}

// TestFirstMissingBlobsAreThoseThatComeFirst although many look for them at once.
func TestFirstMissingBlobsAreThoseThatComeFirst(t *testing.T) {
	d := newData()
	for oid := zodb.OID(1); oid <= 100; oid++ {
		d.add(' ', tid1+zodb.TID(oid), "", "", "", put{oid: oid, data: []byte(blobPickle)})
	}
	info := scan(t, openBlobs(t, file(t, d.buf), t.TempDir()), 0)
	if info.MissingBlobs != 100 || len(info.FirstMissing) != 10 {
		t.Fatalf("%d missing, %d named", info.MissingBlobs, len(info.FirstMissing))
	}
	for i, l := range info.FirstMissing {
		if l.OID != zodb.OID(i+1) {
			t.Errorf("number %d is %v", i, l.OID)
		}
	}
}
