package pgjsonb_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

func TestContract(t *testing.T) {
	desttest.Run(t, desttest.Case{New: func(t testing.TB) desttest.Database { return newDatabase(t) }, History: true})
}

// database is one database of the server that all tests share. Like the role of
// a site, its owner is no superuser.
type database struct {
	server *pgtest.Server
	dsn    string // as its owner
}

func newDatabase(t testing.TB) *database {
	s := postgres.Server(t)
	if len(s.Query(t, s.DSN("postgres"), "SELECT 1 FROM pg_roles WHERE rolname = 'zope'")) == 0 {
		s.NewRole(t, "zope", "zope-secret")
	}
	dsn := s.NewDatabase(t, "OWNER zope")
	return &database{s, strings.Replace(dsn, "user=postgres", "user=zope", 1)}
}

func (d *database) name() string { return d.dsn[strings.Index(d.dsn, "dbname=")+len("dbname="):] }

func (d *database) Open(t testing.TB, history bool) dest.Destination {
	t.Helper()
	return d.open(t, pgjsonb.Config{HistoryPreserving: history})
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
	if d.query(t, "SELECT to_regclass('zodb_convert_run') IS NULL")[0] != "t" {
		return c // interrupted: the sequence comes later
	}
	if got := d.query(t, "SELECT last_value > coalesce((SELECT max(zoid) FROM object_state), 0) FROM zoid_seq"); got[0] != "t" {
		t.Error("zoid_seq is not above every oid")
	}
	return c
}
