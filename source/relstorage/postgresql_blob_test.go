package relstorage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// blobRecord is what ZODB writes for a blob.
const blobRecord = "\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N."

// withBlobs is a database with blobs in every shape that releases of RelStorage
// have left. Its chunks are large objects.
type withBlobs struct {
	content
	// rows are the rows of blob_chunk as SQL, in order.
	rows strings.Builder
	rng  *rand.Rand
}

func (w *withBlobs) commit(records ...sourcetest.Record) zodb.TID {
	tid := firstTID + zodb.TID(len(w.txns)+1)<<20
	w.txns = append(w.txns, sourcetest.Transaction{TID: tid, Records: records})
	return tid
}

func ofBlob(oid zodb.OID, b *sourcetest.Blob) sourcetest.Record {
	return sourcetest.Record{OID: oid, Data: []byte(blobRecord), Blob: b}
}

func blobOf(parts ...[]byte) *sourcetest.Blob {
	h, size := sha256.New(), 0
	for _, p := range parts {
		h.Write(p)
		size += len(p)
	}
	return &sourcetest.Blob{Size: int64(size), SHA256: hex.EncodeToString(h.Sum(nil))}
}

func (w *withBlobs) bytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rng.Uint32())
	}
	return p
}

// chunk writes a row that names a new large object.
func (w *withBlobs) chunk(oid zodb.OID, tid zodb.TID, num int, p []byte) {
	fmt.Fprintf(&w.rows, "INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (%d, %d, %d, lo_from_bytea(0, '\\x%x'));\n", oid, tid, num, p)
}

// same writes a row that names the large object of another.
func (w *withBlobs) same(oid zodb.OID, tid zodb.TID, asOID zodb.OID, asTID zodb.TID) {
	fmt.Fprintf(&w.rows, "INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) SELECT %d, %d, chunk_num, chunk FROM blob_chunk WHERE zoid = %d AND tid = %d;\n", oid, tid, asOID, asTID)
}

// newWithBlobs makes one blob of each kind, and one revision of each that is
// replaced where there is history.
func newWithBlobs(history bool) *withBlobs {
	w := &withBlobs{content: content{history: history}, rng: rand.New(rand.NewPCG(7, 8))}
	w.commit(sourcetest.Record{OID: zodb.Root, Data: []byte("\x80\x03capp\nRoot\nq\x00.\x80\x03}(U\x09ZODB.blobU\x04Blobu.")})
	one := func(oid zodb.OID, parts ...[]byte) zodb.TID {
		tid := w.commit(ofBlob(oid, blobOf(parts...)))
		for i, p := range parts {
			w.chunk(oid, tid, i, p)
		}
		return tid
	}
	for i, n := range []int{0, 1, 5000, blobSlice - 1, blobSlice, blobSlice + 1, 3*blobSlice + 77} {
		one(zodb.OID(1+i), w.bytes(n))
	}
	one(20, w.bytes(3000), w.bytes(blobSlice), nil, w.bytes(1))
	one(21, nil, nil)
	undone := w.bytes(40_000)
	first := one(22, undone)
	again := w.commit(ofBlob(23, blobOf(undone)))
	w.same(23, again, 22, first)
	if history {
		second := one(22, w.bytes(10))
		third := w.commit(ofBlob(22, blobOf(undone)))
		w.same(22, third, 22, first)
		_ = second
		w.commit(sourcetest.Record{OID: 22}) // deleted
	}
	// Broken ones.
	tid := w.commit(ofBlob(30, &sourcetest.Blob{Missing: true}), ofBlob(31, &sourcetest.Blob{Missing: true}), ofBlob(32, &sourcetest.Blob{Unreadable: true}), ofBlob(33, &sourcetest.Blob{Missing: true}))
	fmt.Fprintf(&w.rows, "INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (31, %d, 0, 4000000001);\n", tid)
	w.chunk(32, tid, 0, w.bytes(10))
	w.chunk(32, tid, 2, w.bytes(10))
	w.chunk(33, tid, 0, w.bytes(10))
	fmt.Fprintf(&w.rows, "INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (33, %d, 1, 4000000002);\n", tid)
	// No blob of a record: an older revision, and an object that is no blob.
	w.chunk(40, 5, 0, w.bytes(10))
	w.commit(sourcetest.Record{OID: 41, Data: []byte("\x80\x03capp\nThing\nq\x00.\x80\x03N.")})
	return w
}

func (w *withBlobs) make(t testing.TB) (dsn string) {
	t.Helper()
	dsn = w.database(t)
	postgresServer.Server(t).Exec(t, dsn, w.rows.String())
	return dsn
}

func TestBlobsInLargeObjects(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprintf("history %t", history), func(t *testing.T) {
			w := newWithBlobs(history)
			dsn := w.make(t)
			sourcetest.RunBlobs(t, sourcetest.Case{
				Open:    func(t testing.TB) source.Source { return openPostgreSQL(t, dsn) },
				Want:    w.txns,
				Orphans: 1, OrphanRows: 1,
			})
		})
	}
}

// One connection is enough for everything, and no view is needed.
func TestBlobsAreReadWithOneConnectionAndWithoutAView(t *testing.T) {
	w := newWithBlobs(true)
	s := openPostgreSQL(t, w.make(t))
	mustScan(t, s, source.ScanOptions{History: true})
	v := s.view
	for len(v.free) > 1 {
		(<-v.free).close()
		v.n--
	}
	w.readAll(t, s)
	s.Idle()
	w.readAll(t, s)
}

func mustScan(t testing.TB, s *Source, opts source.ScanOptions) *source.Info {
	t.Helper()
	info, err := s.Scan(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// readAll reads every blob twice at the same time.
func (w *withBlobs) readAll(t testing.TB, s *Source) {
	t.Helper()
	var group errgroup.Group
	for _, txn := range w.txns {
		for _, r := range txn.Records {
			if r.Blob == nil || r.Blob.Missing || r.Blob.Unreadable {
				continue
			}
			for range 2 {
				group.Go(func() error {
					sum, _, err := readBlob(t, s, r.OID, txn.TID)
					if err == nil && sum != r.Blob.SHA256 {
						err = fmt.Errorf("blob %v %v has other bytes", r.OID, txn.TID)
					}
					return err
				})
			}
		}
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// readBlob reads a blob as a COPY does.
func readBlob(t testing.TB, s *Source, oid zodb.OID, tid zodb.TID) (sum string, n int64, err error) {
	b, err := s.Blob(t.Context(), &source.Record{OID: oid, TID: tid})
	if err != nil {
		return "", 0, err
	}
	r, err := b.Open(t.Context())
	if err != nil {
		return "", 0, err
	}
	defer r.Close()
	h := sha256.New()
	n, err = io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(r, 0, b.Size)}, make([]byte, 32<<10))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

func TestRightsOnLargeObjects(t *testing.T) {
	w := newWithBlobs(true)
	dsn := w.make(t)
	server := postgresServer.Server(t)
	server.NewRole(t, "blob_reader", "secret-of-the-reader")
	server.NewRole(t, "blob_owner", "x")
	as := server.DSNAs(server.Query(t, dsn, "SELECT current_database()")[0], "blob_reader")
	server.Exec(t, dsn, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO blob_reader")
	open := func() *Source { return openPostgreSQL(t, as) }
	s := open()
	_, err := s.Scan(t.Context(), source.ScanOptions{History: true})
	if err == nil || !strings.Contains(err.Error(), "may not read") || !strings.Contains(err.Error(), "ALTER ROLE ... SET lo_compat_privileges") || !strings.Contains(err.Error(), "GRANT SELECT ON LARGE OBJECT") {
		t.Fatalf("without rights: %v", err)
	}
	for _, c := range []struct{ name, grant, revoke string }{
		{"owner of all", `DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'ALTER LARGE OBJECT ' || o || ' OWNER TO blob_reader'; END LOOP; END $$`,
			`DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'ALTER LARGE OBJECT ' || o || ' OWNER TO blob_owner'; END LOOP; END $$`},
		{"member of the owner", "GRANT blob_owner TO blob_reader", "REVOKE blob_owner FROM blob_reader"},
		{"granted to public", `DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'GRANT SELECT ON LARGE OBJECT ' || o || ' TO PUBLIC'; END LOOP; END $$`,
			`DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'REVOKE SELECT ON LARGE OBJECT ' || o || ' FROM PUBLIC'; END LOOP; END $$`},
		{"each granted", `DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'GRANT SELECT ON LARGE OBJECT ' || o || ' TO blob_reader'; END LOOP; END $$`,
			`DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE 'REVOKE SELECT ON LARGE OBJECT ' || o || ' FROM blob_reader'; END LOOP; END $$`},
		{"compatible with 8.4", "ALTER ROLE blob_reader SET lo_compat_privileges = on", "ALTER ROLE blob_reader RESET lo_compat_privileges"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server.Exec(t, dsn, c.grant)
			s := open()
			mustScan(t, s, source.ScanOptions{History: true})
			w.readAll(t, s)
			server.Exec(t, dsn, c.revoke)
			if _, err := open().Scan(t.Context(), source.ScanOptions{History: true}); err == nil {
				t.Error("the rights were not needed")
			}
		})
	}
	t.Run("taken away while it is read", func(t *testing.T) {
		server.Exec(t, dsn, "GRANT blob_owner TO blob_reader")
		s := open()
		mustScan(t, s, source.ScanOptions{History: true})
		b, err := s.Blob(t.Context(), &source.Record{OID: 3, TID: w.txns[3].TID})
		if err != nil {
			t.Fatal(err)
		}
		server.Exec(t, dsn, "REVOKE blob_owner FROM blob_reader")
		r, err := b.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.ReadAt(make([]byte, 10), 0)
		if bad := (*source.BlobError)(nil); !errors.As(err, &bad) || bad.Missing || !strings.Contains(err.Error(), "may not read") {
			t.Errorf("%v", err)
		}
		// The view has outlived it.
		server.Exec(t, dsn, "GRANT blob_owner TO blob_reader")
		w.readAll(t, s)
	})
}

// A blob that is packed away meanwhile is still in the view, and in no later one.
func TestBlobsOfTheViewOutliveAPack(t *testing.T) {
	w := newWithBlobs(false)
	dsn := w.make(t)
	s := openPostgreSQL(t, dsn)
	mustScan(t, s, source.ScanOptions{})
	server := postgresServer.Server(t)
	server.Exec(t, dsn, "SELECT lo_unlink(chunk) FROM (SELECT DISTINCT chunk FROM blob_chunk WHERE chunk IN (SELECT oid FROM pg_largeobject_metadata)) x")
	server.Exec(t, dsn, "DELETE FROM blob_chunk")
	server.Exec(t, dsn, "VACUUM pg_largeobject")
	server.Exec(t, dsn, "VACUUM pg_largeobject_metadata")
	w.readAll(t, s)
	r := &source.Record{OID: 3, TID: w.txns[3].TID}
	b, err := s.Blob(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	s.Idle()
	open, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.ReadAt(make([]byte, 10), 0); !isMissing(err) {
		t.Errorf("reading: %v", err)
	}
	if _, err := s.Blob(t.Context(), r); !isMissing(err) {
		t.Errorf("looking: %v", err)
	}
}

func isMissing(err error) bool {
	var bad *source.BlobError
	return errors.As(err, &bad) && bad.Missing
}

// The blobs of a chunk are looked for at once.
func TestBlobsOfAChunkAreLocatedAtOnce(t *testing.T) {
	w := newWithBlobs(true)
	s := openPostgreSQL(t, w.make(t))
	mustScan(t, s, source.ScanOptions{History: true})
	var records []source.Record
	for _, txn := range w.txns {
		for _, r := range txn.Records {
			records = append(records, source.Record{OID: r.OID, TID: txn.TID, Raw: r.Data, Deleted: r.Data == nil})
		}
	}
	var forget func()
	if err := s.borrow(t.Context(), func(c conn) (err error) {
		forget, err = s.locateBlobs(t.Context(), c, records)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, txn := range w.txns {
		for _, r := range txn.Records {
			b, known := s.blobs.known[blobKey{int64(r.OID), int64(txn.TID)}]
			if known != (r.Blob != nil) || r.Blob != nil && r.Blob.SHA256 != "" && b.size != r.Blob.Size {
				t.Errorf("%v %v: known %t, %+v", r.OID, txn.TID, known, b)
			}
		}
	}
	w.readAll(t, s)
	forget()
	if len(s.blobs.known) > 0 {
		t.Errorf("%d are not forgotten", len(s.blobs.known))
	}
}

// Releases before large objects had bytes in the rows.
func TestBlobsInRowsOfBytes(t *testing.T) {
	c := content{}
	w := &withBlobs{content: c, rng: rand.New(rand.NewPCG(1, 2))}
	parts := [][]byte{w.bytes(blobSlice + 5), w.bytes(7)}
	tid := w.commit(ofBlob(1, blobOf(parts...)))
	dsn := w.database(t)
	server := postgresServer.Server(t)
	server.Exec(t, dsn, "ALTER TABLE blob_chunk DROP COLUMN chunk; ALTER TABLE blob_chunk ADD chunk bytea NOT NULL")
	for i, p := range parts {
		server.Exec(t, dsn, fmt.Sprintf("INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (1, %d, %d, '\\x%x')", tid, i, p))
	}
	s := openPostgreSQL(t, dsn)
	if info := mustScan(t, s, source.ScanOptions{}); info.BlobBytes != blobSlice+12 {
		t.Errorf("%+v", info)
	}
	w.readAll(t, s)
}

// 300 MB go through in constant memory.
func TestLargeBlobsAreStreamed(t *testing.T) {
	const size = 300 << 20
	w := &withBlobs{rng: rand.New(rand.NewPCG(1, 2))}
	tid := w.commit(ofBlob(1, &sourcetest.Blob{Size: size}))
	dsn := w.database(t)
	server := postgresServer.Server(t)
	server.Exec(t, dsn, fmt.Sprintf(`INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (1, %d, 0, lo_create(0));
		SELECT sum(length(x::text)) FROM (SELECT lo_put(chunk, n * 1048576::bigint, decode(repeat(md5(n::text), 32768), 'hex') || decode(repeat(md5(n::text), 32768), 'hex')) x
		FROM blob_chunk, generate_series(0, 299) n) y`, tid))
	s := openPostgreSQL(t, dsn)
	info := mustScan(t, s, source.ScanOptions{LargeBlob: size})
	if info.BlobBytes != size || len(info.LargeBlobs) != 1 || info.Fileless[29].Bytes != size {
		t.Fatalf("%+v", info)
	}
	before := resident(t)
	// The highest so far counts from here.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Logf("what it takes is not seen if a test before took more: %v", err)
	}
	_, n, err := readBlob(t, s, 1, tid)
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if grown := resident(t) - before; grown > 24<<20 {
		t.Errorf("it took %d MB", grown>>20)
	} else {
		t.Logf("it took %d MB", grown>>20)
	}
}

// resident is the highest resident set of this process so far.
func resident(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// A site with a shared blob directory has a table of blobs, too, and nothing in it.
// That blobs are missing is known only where their directory is.
func TestBlobsWhoseDirectoryIsNotNamed(t *testing.T) {
	for _, c := range []struct {
		name, dir string
		rows      int
		told      bool // where blobs are
	}{
		{name: "no directory, no rows"},
		{name: "no directory, a row", rows: 1, told: true},
		{name: "a directory without them", dir: t.TempDir(), told: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &withBlobs{content: content{}, rng: rand.New(rand.NewPCG(1, 2))}
			p := w.bytes(100)
			tid := w.commit(ofBlob(1, blobOf(p)), ofBlob(2, &sourcetest.Blob{Missing: true}))
			if c.rows > 0 {
				w.chunk(1, tid, 0, p)
			}
			s, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: w.make(t)}, BlobDir: c.dir})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			info := mustScan(t, s, source.ScanOptions{})
			if info.Blobs != 2 || (info.BlobDir != "") != c.told || c.told && info.MissingBlobs != int64(2-c.rows) || !c.told && info.MissingBlobs != 0 {
				t.Errorf("%+v", info)
			}
		})
	}
}

// Blobs without rows are files, if there are any.
func TestBlobsInFiles(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name    string
		shared  *bool
		make    func(t *testing.T, dir string)
		refused string
		found   int64
		says    string // of the blob without anything
		missing bool
	}{
		{name: "beside rows", make: func(t *testing.T, dir string) {}, found: 2, says: "0x0", missing: true},
		{name: "shared", shared: &yes, make: func(t *testing.T, dir string) {}, found: 2, says: "0x0", missing: true},
		{name: "not shared, and yet there", shared: &no, make: func(t *testing.T, dir string) {}, found: 2, says: "0x0", missing: true},
		{name: "a cache", make: func(t *testing.T, dir string) { write(t, filepath.Join(dir, ".layout"), "zeocache\n") }, found: 1, says: "blob cache", missing: true},
		{name: "gone", make: func(t *testing.T, dir string) { remove(t, dir) }, found: 1, says: "does not exist", missing: true},
		{name: "gone, and shared", shared: &yes, make: func(t *testing.T, dir string) { remove(t, dir) }, refused: "no such blob directory"},
		{name: "no directory", make: func(t *testing.T, dir string) { remove(t, dir); write(t, dir, "") }, found: 1, says: "cannot be looked into"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &withBlobs{content: content{history: true}, rng: rand.New(rand.NewPCG(1, 2))}
			p := w.bytes(100)
			inRow := w.commit(ofBlob(1, blobOf(p)))
			w.chunk(1, inRow, 0, p)
			inFile := w.commit(ofBlob(2, blobOf(p)))
			lost := w.commit(ofBlob(3, &sourcetest.Blob{Missing: true}))
			dsn := w.make(t)
			dir := filepath.Join(t.TempDir(), "blobs")
			path := filepath.Join(dir, "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x02", fmt.Sprintf("0x%016x.blob", uint64(inFile)))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, path, string(p))
			c.make(t, dir)
			s, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: dsn}, BlobDir: dir, SharedBlobDir: c.shared})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			info, err := s.Scan(t.Context(), source.ScanOptions{History: true})
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if info.Blobs != 3 || info.BlobFiles != c.found || info.MissingBlobs != 3-c.found || info.Fileless[7].Blobs != 1 {
				t.Errorf("%+v", info)
			}
			b, err := s.Blob(t.Context(), &source.Record{OID: 2, TID: inFile})
			if c.found == 2 && (err != nil || b.Path != path) || c.found == 1 && err == nil {
				t.Errorf("the one in a file: %+v, %v", b, err)
			}
			var bad *source.BlobError
			if _, err := s.Blob(t.Context(), &source.Record{OID: 3, TID: lost}); !errors.As(err, &bad) || bad.Missing != c.missing || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the lost one: %v", err)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
