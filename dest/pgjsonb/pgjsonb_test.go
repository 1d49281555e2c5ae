package pgjsonb_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var (
	postgres pgtest.Shared
	objects  s3test.Shared
)

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	objects.Close()
	os.Exit(code)
}

func TestContract(t *testing.T) {
	desttest.Run(t, desttest.Case{New: func(t testing.TB) desttest.Database { return newDatabase(t) }, History: true, Blobs: []dest.BlobMode{dest.Inline}})
}

func TestContractOfBlobsInS3(t *testing.T) {
	desttest.Run(t, desttest.Case{
		New: func(t testing.TB) desttest.Database { return newDatabaseWithS3(t) }, History: true,
		Blobs: []dest.BlobMode{dest.Inline, dest.Background, dest.Deferred}, OnlyBlobs: true,
	})
}

// database is one database of the server that all tests share. Like the role of
// a site, its owner is no superuser.
type database struct {
	server *pgtest.Server
	dsn    string // as its owner
	// Without S3 both are nil.
	s3     *s3test.Server
	bucket string
}

// prefix is that of the objects in the bucket.
const prefix = "site/one"

func newDatabaseWithS3(t testing.TB) *database {
	d := newDatabase(t)
	d.s3 = objects.Server(t)
	d.bucket = d.s3.NewBucket(t)
	return d
}

// store opens the bucket.
func (d *database) store(t testing.TB, change func(*s3blob.Config)) *s3blob.Store {
	t.Helper()
	config := s3blob.Config{
		Bucket: d.bucket, Prefix: prefix, EndpointURL: d.s3.URL(), Region: s3test.Region,
		AccessKey: d.s3.AccessKey, SecretKey: d.s3.SecretKey, Wait: 3 * time.Second,
	}
	if change != nil {
		change(&config)
	}
	store, err := s3blob.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Upload does what was deferred.
func (d *database) Upload(t testing.TB, owed []dest.OwedBlob) {
	t.Helper()
	for _, o := range owed {
		data, err := os.ReadFile(o.Path)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(data)) != o.Size {
			t.Errorf("%s has %d bytes, %d are owed", o.Path, len(data), o.Size)
		}
		d.s3.Put(t, d.bucket, prefix+"/"+o.Key, data, nil)
	}
}

// Blob reads a blob as the site does.
func (d *database) Blob(t testing.TB, oid zodb.OID, tid zodb.TID) []byte {
	t.Helper()
	rows := d.query(t, fmt.Sprintf("SELECT coalesce(encode(data, 'hex'), 'none') || '|' || coalesce(s3_key, '') FROM blob_state WHERE zoid = %d AND tid = %d", int64(oid), int64(tid)))
	if len(rows) != 1 {
		t.Errorf("blob oid %v, tid %v has %d rows", oid, tid, len(rows))
		return nil
	}
	text, key, _ := strings.Cut(rows[0], "|")
	if key != "" {
		if text != "none" {
			t.Errorf("blob oid %v, tid %v is in both places", oid, tid)
		}
		return d.s3.Get(t, d.bucket, prefix+"/"+key)
	}
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Error(err)
	}
	return data
}

func newDatabase(t testing.TB) *database {
	s := postgres.Server(t)
	if len(s.Query(t, s.DSN("postgres"), "SELECT 1 FROM pg_roles WHERE rolname = 'zope'")) == 0 {
		s.NewRole(t, "zope", "zope-secret")
	}
	dsn := s.NewDatabase(t, "OWNER zope")
	return &database{server: s, dsn: strings.Replace(dsn, "user=postgres", "user=zope", 1)}
}

func (d *database) name() string { return d.dsn[strings.Index(d.dsn, "dbname=")+len("dbname="):] }

func (d *database) Open(t testing.TB, history bool) dest.Destination {
	t.Helper()
	config := pgjsonb.Config{HistoryPreserving: history, BlobThreshold: desttest.BlobThreshold}
	if d.s3 != nil {
		config.S3 = d.store(t, nil)
	}
	return d.open(t, config)
}

func (d *database) open(t testing.TB, config pgjsonb.Config) dest.Destination {
	t.Helper()
	if config.DSN == "" {
		config.DSN = d.dsn
	}
	if config.Wait == 0 {
		config.Wait = 5 * time.Second
	}
	if config.LockTimeout == 0 {
		config.LockTimeout = 300 * time.Millisecond
	}
	dst, err := pgjsonb.Open(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	return dst
}

func (d *database) query(t testing.TB, sql string) []string {
	t.Helper()
	return d.server.Query(t, d.dsn, sql)
}

func (d *database) exec(t testing.TB, sql string) {
	t.Helper()
	d.server.Exec(t, d.dsn, sql)
}

func (d *database) Schema(t testing.TB) string { return d.server.Schema(t, d.dsn) }

func (d *database) Rows(t testing.TB) []string {
	rows := d.query(t, "SELECT 'log', t.* FROM transaction_log t ORDER BY tid; SELECT 'state', o.* FROM object_state o ORDER BY zoid; "+
		"SELECT 'seq', last_value, is_called FROM zoid_seq")
	if d.query(t, "SELECT to_regclass('object_history') IS NOT NULL")[0] == "t" {
		rows = append(rows, d.query(t, "SELECT 'history', o.* FROM object_history o ORDER BY zoid, tid")...)
	}
	rows = append(rows, d.query(t, "SELECT 'blob', zoid, tid, blob_size, md5(data), s3_key FROM blob_state ORDER BY zoid, tid")...)
	if d.s3 != nil {
		snapshot := d.s3.Snapshot(t, d.bucket)
		for _, key := range slices.Sorted(maps.Keys(snapshot)) {
			rows = append(rows, fmt.Sprintf(desttest.ObjectRow+"%s|%d|%s", key, snapshot[key].Size, snapshot[key].SHA256))
		}
	}
	return rows
}

func number(t testing.TB, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (d *database) Contents(t testing.TB, history bool) desttest.Contents {
	c := desttest.Contents{Current: map[zodb.OID]zodb.TID{}}
	for _, row := range d.query(t, "SELECT tid FROM transaction_log ORDER BY tid") {
		c.Transactions = append(c.Transactions, zodb.TID(number(t, row)))
	}
	for _, row := range d.query(t, "SELECT zoid, tid FROM object_state WHERE state IS NOT NULL") {
		f := strings.Split(row, "|")
		c.Current[zodb.OID(number(t, f[0]))] = zodb.TID(number(t, f[1]))
	}
	if history {
		for _, row := range d.query(t, "SELECT zoid, tid, state IS NULL AND class_mod = '' AND state_size = 0 AND refs = '{}' FROM object_history") {
			f := strings.Split(row, "|")
			c.Older = append(c.Older, desttest.Revision{OID: zodb.OID(number(t, f[0])), TID: zodb.TID(number(t, f[1])), Gone: f[2] == "t"})
		}
		desttest.SortRevisions(c.Older)
	}
	for _, row := range d.query(t, "SELECT zoid, tid, blob_size FROM blob_state ORDER BY zoid, tid") {
		f := strings.Split(row, "|")
		c.Blobs = append(c.Blobs, desttest.Blob{OID: zodb.OID(number(t, f[0])), TID: zodb.TID(number(t, f[1])), Size: int64(number(t, f[2]))})
	}
	if d.query(t, "SELECT to_regclass('zodb_convert_run') IS NULL")[0] != "t" {
		return c // interrupted: the sequence comes later
	}
	if got := d.query(t, "SELECT last_value > coalesce((SELECT max(zoid) FROM object_state), 0) FROM zoid_seq"); got[0] != "t" {
		t.Error("zoid_seq is not above every oid")
	}
	return c
}
