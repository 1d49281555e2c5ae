package verify_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/internal/fixture"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
	"github.com/zodb-convert/zodb-convert/verify"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// later lets the site of a RelStorage write which objects a condition names.
func later(t *testing.T, dir string, history bool, which string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "main.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	statements := []string{
		`CREATE TABLE later AS SELECT zoid, tid AS old, (SELECT max(tid) + 4096 FROM object_state) AS tid FROM object_state s
			WHERE state IS NOT NULL AND s.tid = (SELECT max(tid) FROM object_state i WHERE i.zoid = s.zoid) AND ` + which,
		`UPDATE blob_chunk SET tid = (SELECT max(tid) FROM later) WHERE zoid IN (SELECT zoid FROM later)`,
		`UPDATE object_state SET tid = (SELECT max(tid) FROM later) WHERE zoid IN (SELECT zoid FROM later)`,
	}
	if history {
		statements = append(statements[:1],
			`INSERT INTO "transaction" (tid, username, description) SELECT max(tid), 'user', 'later' FROM later`,
			`INSERT INTO object_state SELECT zoid, later.tid, later.old, md5, state_size, state FROM object_state s JOIN later USING (zoid) WHERE s.tid = later.old`,
			`INSERT INTO blob_chunk SELECT zoid, later.tid, chunk_num, chunk FROM blob_chunk b JOIN later USING (zoid) WHERE b.tid = later.old`,
			`UPDATE current_object SET tid = (SELECT max(tid) FROM later) WHERE zoid IN (SELECT zoid FROM later)`)
	}
	for _, s := range append(statements, `DROP TABLE later`) {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// relStorage converts a RelStorage in SQLite.
func relStorage(t *testing.T, d fixture.Database, dir string, history bool) *pair {
	t.Helper()
	p := &pair{history: history, dsn: postgres.Server(t).NewDatabase(t), open: func(t testing.TB) source.Source {
		src, err := relstorage.Open(t.Context(), relstorage.Options{SQLite: &relstorage.SQLite{DataDir: dir}, BlobDir: d.BlobDir(), Connections: 2})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return src
	}}
	p.convert(t, pipeline.Options{})
	return p
}

// What a RelStorage has changed since is not converted yet. Neither the revision
// that was the newest before, which has no row of history yet, nor its blob is a
// difference, and neither is a transaction that is gone from a source that keeps
// no history because all its objects have changed.
func TestRelStorageThatHasChangedSinceIsNoDifference(t *testing.T) {
	for _, name := range []string{"history", "blobs", "odd"} {
		for _, from := range []bool{false, true} {
			for _, to := range []bool{false, true} {
				d := fixture.Named(t, name, from)
				t.Run(d.String()+map[bool]string{true: "/history"}[to], func(t *testing.T) {
					t.Parallel()
					dir := d.SQLite(t)
					p := relStorage(t, d, dir, to)
					if _, all := p.verify(t, verify.Options{}); len(all) > 0 {
						t.Fatalf("untouched: %v", all)
					}
					// What the last transaction has written, and what some older ones have.
					later(t, dir, from, "true ORDER BY s.tid DESC LIMIT 7")
					r, all := p.verify(t, verify.Options{})
					if len(all) > 0 || r.NotConverted != 1 || r.NotConvertedRecords == 0 || from && r.SiteTransactions > 0 {
						t.Errorf("%v; %d transactions and %d records are not converted, %d transactions of a site", all, r.NotConverted, r.NotConvertedRecords, r.SiteTransactions)
					}
					if !from || !to {
						return
					}
					// Revisions whose successor is not converted are compared all the same.
					m := newMutator(t, p, 0)
					m.exec(t, "UPDATE object_state SET class_name = class_name || 'x'")
					was, _ := p.verify(t, verify.Options{})
					if count := m.count(t, "object_state"); was.Differences != count {
						t.Errorf("%d differences in %d rows: %v", was.Differences, count, was.Kinds)
					}
				})
			}
		}
	}
}

// So it is with objects that a site of the destination has changed, too.
func TestBothSitesHaveWritten(t *testing.T) {
	for _, name := range []string{"history", "blobs"} {
		for _, from := range []bool{false, true} {
			for _, to := range []bool{false, true} {
				d := fixture.Named(t, name, from)
				t.Run(d.String()+map[bool]string{true: "/history"}[to], func(t *testing.T) {
					t.Parallel()
					dir := d.SQLite(t)
					p := relStorage(t, d, dir, to)
					m := newMutator(t, p, 0)
					m.exec(t, "INSERT INTO transaction_log SELECT max(tid) + 8192 FROM transaction_log")
					if to {
						m.exec(t, "INSERT INTO object_history SELECT * FROM object_state")
					}
					m.exec(t, "UPDATE object_state SET state = '{}', tid = (SELECT max(tid) FROM transaction_log)")
					later(t, dir, from, "s.tid < (SELECT max(tid) FROM object_state)")
					r, all := p.verify(t, verify.Options{})
					if len(all) > 0 || r.NotConverted != 1 || r.NotConvertedRecords == 0 || r.SiteTransactions != 1 {
						t.Errorf("%v; %d transactions and %d records are not converted, %d transactions of a site", all, r.NotConverted, r.NotConvertedRecords, r.SiteTransactions)
					}
				})
			}
		}
	}
}

func (m *mutator) count(t *testing.T, table string) (n int64) {
	t.Helper()
	if err := m.conn.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func thing(oid zodb.OID, text string) desttest.Record {
	return desttest.Record{OID: oid, Data: desttest.Data("app", "Thing", text)}
}

// built converts a database that is made for a test; open is what it is compared
// with later.
func built(t *testing.T, history bool, b *desttest.Builder) *pair {
	t.Helper()
	p := &pair{history: history, dsn: postgres.Server(t).NewDatabase(t), open: func(t testing.TB) source.Source { return b.Source(t) }}
	p.convert(t, pipeline.Options{})
	return p
}

// Where tids fall, the last transaction does not have the highest one. What comes
// before it is missing all the same, and what comes behind it is not converted yet.
func TestTransactionsAreInTheOrderOfTheSourceWhereTidsFall(t *testing.T) {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"))
	b.Commit(desttest.Transaction{TID: 9 << 40}, thing(2, "b"))
	b.Commit(desttest.Transaction{TID: 7 << 40}, thing(1, "c"))
	p := built(t, false, b)
	m := newMutator(t, p, 0)
	if _, all := p.verify(t, verify.Options{}); len(all) > 0 {
		t.Fatalf("untouched: %v", all)
	}
	m.exec(t, "DELETE FROM object_state WHERE zoid = 2")
	m.exec(t, "DELETE FROM transaction_log WHERE tid = $1", int64(9<<40))
	r, all := p.verify(t, verify.Options{})
	if len(all) != 2 || all[0].Kind+all[1].Kind != verify.MissingTransaction+verify.MissingObject && all[1].Kind+all[0].Kind != verify.MissingTransaction+verify.MissingObject || r.NotConverted != 0 {
		t.Errorf("found %v, %d not converted", all, r.NotConverted)
	}
	m.restore(t)
	b.Commit(desttest.Transaction{TID: 8 << 40}, thing(1, "d"), thing(3, "e"))
	r, all = p.verify(t, verify.Options{})
	if len(all) != 0 || r.NotConverted != 1 {
		t.Errorf("found %v, %d not converted", all, r.NotConverted)
	}
}
