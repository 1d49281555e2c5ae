//go:build unix

package relstorage_test

import (
	"database/sql"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	_ "modernc.org/sqlite"

	"github.com/zodb-convert/zodb-convert/internal/fixture"
	"github.com/zodb-convert/zodb-convert/internal/mariatest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// place is where a test's databases are made.
type place interface {
	engine() fixture.Engine
	// load makes a database of a fixture.
	load(t testing.TB, d fixture.Database) database
	// transaction is the name of that table, bytes a literal, hex an expression
	// for bytes as text.
	transaction() string
	bytes([]byte) string
	hex(column string) string
}

// database is one that a test may change.
type database struct {
	opts relstorage.Options
	// exec runs statements, rows gives what a query does, as text.
	exec func(t testing.TB, script string)
	rows func(t testing.TB, query string) [][]string
}

type postgresqlPlace struct{ server *pgtest.Server }

func (p postgresqlPlace) load(t testing.TB, d fixture.Database) database {
	dsn := p.server.NewDatabase(t)
	d.PostgreSQL(t, dsn)
	run := func(t testing.TB, text string) []*pgconn.Result {
		t.Helper()
		conn, err := pgconn.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		results, err := conn.Exec(t.Context(), text).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return results
	}
	return database{
		opts: relstorage.Options{PostgreSQL: &relstorage.PostgreSQL{DSN: dsn}},
		exec: func(t testing.TB, script string) { run(t, script) },
		rows: func(t testing.TB, query string) (list [][]string) {
			for _, values := range run(t, query)[0].Rows {
				var row []string
				for _, v := range values {
					row = append(row, string(v))
				}
				list = append(list, row)
			}
			return list
		},
	}
}

func (postgresqlPlace) engine() fixture.Engine { return fixture.PostgreSQL }
func (postgresqlPlace) transaction() string    { return "transaction" }
func (postgresqlPlace) bytes(b []byte) string {
	return "decode('" + hex.EncodeToString(b) + "', 'hex')"
}
func (postgresqlPlace) hex(column string) string { return "encode(" + column + ", 'hex')" }

type mariaPlace struct{ server *mariatest.Server }

func (p mariaPlace) load(t testing.TB, d fixture.Database) database {
	name := p.server.NewDatabase(t)
	p.server.Exec(t, name, d.MariaDB(t))
	opts := relstorage.MySQL{UnixSocket: p.server.Socket(), User: mariatest.User, Password: mariatest.Password, Database: name}
	return database{
		opts: relstorage.Options{MySQL: &opts},
		exec: func(t testing.TB, script string) { p.server.Exec(t, name, script) },
		rows: func(t testing.TB, query string) (list [][]string) {
			for _, row := range p.server.Query(t, name, query) {
				list = append(list, strings.Split(row, "|"))
			}
			return list
		},
	}
}

func (mariaPlace) engine() fixture.Engine   { return fixture.MariaDB }
func (mariaPlace) transaction() string      { return "`transaction`" }
func (mariaPlace) bytes(b []byte) string    { return "x'" + hex.EncodeToString(b) + "'" }
func (mariaPlace) hex(column string) string { return "HEX(" + column + ")" }

type sqlitePlace struct{}

func (sqlitePlace) load(t testing.TB, d fixture.Database) database {
	dir := d.SQLite(t)
	db, err := sql.Open("sqlite", filepath.Join(dir, "main.sqlite3")+"?_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	return database{
		opts: relstorage.Options{SQLite: &relstorage.SQLite{DataDir: dir}},
		exec: func(t testing.TB, script string) {
			t.Helper()
			if _, err := db.ExecContext(t.Context(), script); err != nil {
				t.Fatalf("%s: %v", script, err)
			}
		},
		rows: func(t testing.TB, query string) [][]string { return sqliteRows(t, db, query) },
	}
}

func sqliteRows(t testing.TB, db *sql.DB, query string) (list [][]string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, v := range row {
			text = append(text, v.String)
		}
		list = append(list, text)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return list
}

func (sqlitePlace) engine() fixture.Engine   { return fixture.SQLite }
func (sqlitePlace) transaction() string      { return `"transaction"` }
func (sqlitePlace) bytes(b []byte) string    { return "x'" + hex.EncodeToString(b) + "'" }
func (sqlitePlace) hex(column string) string { return "hex(" + column + ")" }

// TestContractPostgreSQL and its siblings read what the real RelStorage has
// written, with what it reads in it itself.
func TestContractPostgreSQL(t *testing.T) {
	testContract(t, postgresqlPlace{pgtest.Start(t)})
}

func TestContractMariaDB(t *testing.T) {
	testContract(t, mariaPlace{mariatest.Start(t)})
}

func TestContractSQLite(t *testing.T) {
	testContract(t, sqlitePlace{})
}

func testContract(t *testing.T, p place) {
	for _, d := range fixture.All(t) {
		if !d.On(p.engine()) {
			continue // RelStorage did not know the engine then
		}
		for _, connections := range []int{1, 3} {
			if connections == 1 && (d.Name != "packed" && d.Name != "blobs" || !d.History) {
				continue
			}
			t.Run(fmt.Sprintf("%v by %d connections", d, connections), func(t *testing.T) {
				t.Parallel() // most of it is waiting for a server
				opts := p.load(t, d).opts
				opts.Connections = connections
				want := d.Want(t)
				c := sourcetest.Case{Want: want, Most: 2, ChunkSizes: []int64{3000}}
				if d.Name == "history" && connections > 1 {
					c.Most, c.ChunkSizes = 4, []int64{1, 3000, 1 << 40}
				}
				switch d.Name {
				case "odd", "rejects", "zlib", "plone":
					c.BytesOnly = true
				}
				if d.Name == "release30" && d.History { // deleted in place, its bytes stay
					c.Orphans, c.OrphanRows = 1, 1
				}
				c.Open = func(t testing.TB) source.Source { return open(t, opts) }
				if dir := d.BlobDir(); dir != "" {
					shared := true
					opts.BlobDir, opts.SharedBlobDir = dir, &shared
					c.Orphans = orphans(t, dir, want)
					c.Scratch = func(t testing.TB) source.Source {
						opts := opts
						opts.BlobDir = filepath.Join(t.TempDir(), "blobs")
						if err := os.CopyFS(opts.BlobDir, os.DirFS(dir)); err != nil {
							t.Fatal(err)
						}
						return open(t, opts)
					}
				}
				if d.Name == "history" || d.Name == "packed" {
					c.Changing = func(t testing.TB) sourcetest.Changing { return changing(t, p, d, connections) }
				}
				sourcetest.Run(t, c)
			})
		}
	}
}

func open(t testing.TB, opts relstorage.Options) source.Source {
	t.Helper()
	s, err := relstorage.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// orphans counts the files that no record refers to.
func orphans(t testing.TB, dir string, want []sourcetest.Transaction) (n int64) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".blob") {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, txn := range want {
		for _, r := range txn.Records {
			if r.Blob != nil && !r.Blob.Missing {
				n--
			}
		}
	}
	return n
}

// changing loads a database that is then changed by SQL, as RelStorage does it.
func changing(t testing.TB, p place, d fixture.Database, connections int) sourcetest.Changing {
	db := p.load(t, d)
	db.opts.Connections = connections
	w := &writer{t: t, p: p, db: db, history: d.History}
	return sourcetest.Changing{
		Open:   func(t testing.TB) source.Source { return open(t, db.opts) },
		Change: func(t testing.TB) []sourcetest.Transaction { w.change(); return w.everything() },
	}
}

// writer commits and packs.
type writer struct {
	t       testing.TB
	p       place
	db      database
	history bool
	script  strings.Builder
}

// change commits a transaction that edits, makes and deletes objects, and one
// that changes nothing; then it packs some of the history and collects garbage.
func (w *writer) change() {
	w.t.Helper()
	all := w.everything()
	tid := all[len(all)-1].TID
	live := map[zodb.OID]zodb.TID{}
	var top zodb.OID
	for _, txn := range all {
		for _, r := range txn.Records {
			top = max(top, r.OID)
			if delete(live, r.OID); r.Data != nil {
				live[r.OID] = txn.TID
			}
		}
	}
	var oids []zodb.OID
	for oid := zodb.OID(1); oid <= top && len(oids) < 8; oid++ {
		if live[oid] != 0 {
			oids = append(oids, oid)
		}
	}
	if len(oids) < 6 {
		w.t.Fatalf("only %d objects are left to change", len(oids))
	}
	w.script.Reset()
	w.exec("BEGIN")
	tid += 1 << 20
	w.header(tid, "edited")
	for i, oid := range append(oids[len(oids)-2:], zodb.Root, top+1, top+2, top+3) {
		w.store(oid, tid, fmt.Appendf(nil, "\x80\x03cshop\nItem\nq\x00.\x80\x03}q\x01X\x01\x00\x00\x00nq\x02K%cs.", 'a'+i))
	}
	tid += 1 << 20
	w.header(tid, "deleted")
	w.remove(oids[0], tid)
	if w.history {
		w.header(tid+1<<20, "nothing was changed")
		w.pack(oids[1:4])
		w.collect(oids[4])
	}
	w.exec("COMMIT")
	w.db.exec(w.t, w.script.String())
}

func (w *writer) exec(format string, a ...any) {
	fmt.Fprintf(&w.script, format+";\n", a...)
}

func (w *writer) header(tid zodb.TID, description string) {
	if w.history {
		w.exec("INSERT INTO %s (tid, username, description, extension) VALUES (%d, %s, %s, %s)", w.p.transaction(), tid,
			w.p.bytes([]byte("writer")), w.p.bytes([]byte(description)), w.p.bytes(nil))
	}
}

func (w *writer) store(oid zodb.OID, tid zodb.TID, state []byte) {
	literal := "NULL"
	if state != nil {
		literal = w.p.bytes(state)
	}
	if !w.history {
		w.exec("DELETE FROM object_state WHERE zoid = %d", oid)
		w.exec("INSERT INTO object_state (zoid, tid, state_size, state) VALUES (%d, %d, %d, %s)", oid, tid, len(state), literal)
		return
	}
	w.exec("INSERT INTO object_state (zoid, tid, prev_tid, state_size, state) VALUES (%d, %d, 0, %d, %s)", oid, tid, len(state), literal)
	w.exec("DELETE FROM current_object WHERE zoid = %d", oid)
	w.exec("INSERT INTO current_object (zoid, tid) VALUES (%d, %d)", oid, tid)
}

// remove deletes an object: its row, or by a revision without state.
func (w *writer) remove(oid zodb.OID, tid zodb.TID) {
	if w.history {
		w.store(oid, tid, nil)
		return
	}
	w.exec("DELETE FROM object_state WHERE zoid = %d", oid)
}

// pack removes the older revisions of some objects, and the transactions that
// are empty then.
func (w *writer) pack(oids []zodb.OID) {
	w.exec("UPDATE object_state SET prev_tid = 0")
	w.exec("UPDATE %s SET packed = 1 = 1 WHERE tid > 0 AND tid < (SELECT MAX(tid) FROM object_state)", w.p.transaction())
	for _, oid := range oids {
		w.exec("DELETE FROM object_state WHERE zoid = %d AND tid NOT IN (SELECT tid FROM current_object WHERE zoid = %d)", oid, oid)
	}
	w.exec("DELETE FROM %s WHERE tid > 0 AND tid NOT IN (SELECT tid FROM object_state) AND tid < (SELECT MAX(tid) FROM object_state)", w.p.transaction())
}

// collect removes an object with all its revisions.
func (w *writer) collect(oid zodb.OID) {
	w.exec("DELETE FROM current_object WHERE zoid = %d", oid)
	w.exec("DELETE FROM object_state WHERE zoid = %d", oid)
}

// everything reads the tables, in the plainest way.
func (w *writer) everything() (list []sourcetest.Transaction) {
	w.t.Helper()
	q := "SELECT DISTINCT tid, '', '', '' FROM object_state ORDER BY tid"
	if w.history {
		q = fmt.Sprintf("SELECT tid, %s, %s, %s FROM %s WHERE tid > 0 ORDER BY tid",
			w.p.hex("username"), w.p.hex("description"), w.p.hex("extension"), w.p.transaction())
	}
	index := map[zodb.TID]int{}
	for _, row := range w.db.rows(w.t, q) {
		x := sourcetest.Transaction{TID: zodb.TID(w.number(row[0])), User: w.unhex(row[1]), Description: w.unhex(row[2]), Extension: w.unhex(row[3])}
		index[x.TID] = len(list)
		list = append(list, x)
	}
	for _, row := range w.db.rows(w.t, "SELECT tid, zoid, "+w.p.hex("state")+" FROM object_state ORDER BY tid, zoid") {
		x := &list[index[zodb.TID(w.number(row[0]))]]
		x.Records = append(x.Records, sourcetest.Record{OID: zodb.OID(w.number(row[1])), Data: w.unhex(row[2])})
	}
	return list
}

func (w *writer) number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// unhex gives nil for nothing, which is a deletion.
func (w *writer) unhex(text string) []byte {
	if text == "" {
		return nil
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}
