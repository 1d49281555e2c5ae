package relstorage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/source"
)

// readAll reads everything through opts and compares it with c.
func (c *content) readAll(t *testing.T, opts Options, history bool) *source.Info {
	t.Helper()
	opts.Connections = max(opts.Connections, 2)
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := s.Scan(t.Context(), source.ScanOptions{History: history})
	if err != nil {
		t.Fatal(err)
	}
	st := newState()
	if err := s.Read(t.Context(), source.ReadOptions{History: history, ChunkBytes: 20000, Budget: newFreeBudget()}, func(c *source.Chunk) error {
		st.take(t, s, c, false)
		c.Release()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	st.check(t, c.want(history))
	if n := st.differ(t, s, history, 5000); n != 0 && history {
		t.Errorf("%d chunks of differences after reading", n)
	}
	return info
}

func database(dsn string) string { return dsn[strings.Index(dsn, "dbname=")+len("dbname="):] }

func TestPgBouncer(t *testing.T) {
	c := randomContent(60, true, 30, 200)
	dsn := c.database(t)
	server := postgresServer.Server(t)
	for _, mode := range []string{"session", "transaction"} {
		for _, pool := range []int{1, 20} {
			t.Run(fmt.Sprintf("%s mode, %d connections", mode, pool), func(t *testing.T) {
				bouncer := server.PgBouncer(t, mode, pool, database(dsn))
				info := c.readAll(t, Options{PostgreSQL: &PostgreSQL{DSN: bouncer}}, true)
				if few := strings.Contains(strings.Join(info.Warnings, "\n"), "is read with 1 connections"); few != (pool == 1) {
					t.Errorf("warnings %q", info.Warnings)
				}
			})
		}
	}
	t.Run("statement mode", func(t *testing.T) {
		_, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: server.PgBouncer(t, "statement", 20, database(dsn))}})
		if err == nil || !strings.Contains(err.Error(), "statement mode") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a search path", func(t *testing.T) {
		other := c.database(t)
		server.Exec(t, other, "CREATE SCHEMA zope; ALTER TABLE transaction SET SCHEMA zope; ALTER TABLE object_state SET SCHEMA zope; ALTER TABLE current_object SET SCHEMA zope")
		bouncer := server.PgBouncer(t, "transaction", 20, database(other))
		for _, setting := range []string{" search_path=zope,public", " options='-c search_path=zope,public'"} {
			c.readAll(t, Options{PostgreSQL: &PostgreSQL{DSN: bouncer + setting}}, true)
		}
		if _, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: bouncer}}); err == nil || !strings.Contains(err.Error(), "search_path") {
			t.Errorf("without search path: %v", err)
		}
	})
}

func TestHotStandby(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Setting("wal_level", "replica"), pgtest.Setting("autovacuum", "off"))
	c := randomContent(61, true, 30, 200)
	dsn := primary.NewDatabase(t)
	primary.Exec(t, dsn, postgresHistory+c.sql(c.txns))
	standby := primary.Standby(t, pgtest.Setting("max_standby_streaming_delay", "0"), pgtest.Setting("hot_standby_feedback", "off"))
	primary.CatchUp(t, standby)
	there := standby.DSN(database(dsn))
	if info := c.readAll(t, Options{PostgreSQL: &PostgreSQL{DSN: there}}, true); len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "is a standby: what the primary has committed since is not converted") {
		t.Errorf("warnings %q", info.Warnings)
	}
	t.Run("named as a replica", func(t *testing.T) {
		opts := Options{PostgreSQL: &PostgreSQL{DSN: primary.TCPDSN(database(dsn), pgtest.Superuser, pgtest.Password)},
			Replicas: []string{"127.0.0.1:1", fmt.Sprintf("127.0.0.1:%d", standby.Port()), "127.0.0.1:2"}}
		info := c.readAll(t, opts, false)
		if want := fmt.Sprint(standby.Port()); !strings.Contains(info.Identity.Name, want) {
			t.Errorf("%s was read, not %s", info.Identity.Name, want)
		}
	})
	t.Run("a conflict with recovery", func(t *testing.T) {
		s := openPostgreSQL(t, there)
		if _, err := s.Scan(t.Context(), source.ScanOptions{}); err != nil {
			t.Fatal(err)
		}
		primary.Exec(t, dsn, "UPDATE object_state SET state = state")
		primary.Exec(t, dsn, "VACUUM object_state")
		primary.CatchUp(t, standby)
		err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: 1000, Budget: newFreeBudget()}, func(c *source.Chunk) error { c.Release(); return nil })
		if err == nil || !strings.Contains(err.Error(), "max_standby_streaming_delay") || !strings.Contains(err.Error(), "--incremental") {
			t.Errorf("got %v", err)
		}
	})
}

func TestPostgreSQLTroubleIsOneSentence(t *testing.T) {
	server := postgresServer.Server(t)
	server.NewRole(t, "reader", "right")
	c := randomContent(62, true, 10, 50)
	keep := false
	for _, x := range []struct {
		name    string
		prepare string
		dsn     func(db string) string
		keep    *bool
		want    []string
	}{
		{name: "a wrong password", dsn: func(db string) string { return server.TCPDSN(db, "reader", "guess-me") }, want: []string{"reader", "check the password"}},
		{name: "an unknown host", dsn: func(db string) string { return "host=nowhere.invalid dbname=" + db }, want: []string{"nowhere.invalid", "not known"}},
		{name: "nobody listens", dsn: func(db string) string { return "host=127.0.0.1 port=1 dbname=" + db }, want: []string{"127.0.0.1:1", "cannot be reached"}},
		{name: "no such database", dsn: func(db string) string { return server.DSN("nodb") }, want: []string{`no database "nodb"`}},
		{name: "no connection string", dsn: func(db string) string { return "host='" }, want: []string{"connection string of the source"}},
		{name: "no rights on one table", prepare: "GRANT SELECT ON object_state, transaction TO reader", dsn: func(db string) string { return server.TCPDSN(db, "reader", "right") },
			want: []string{"current_object", "grant SELECT"}},
		{name: "no tables", prepare: "DROP SCHEMA public CASCADE; CREATE SCHEMA public", want: []string{"no table object_state"}},
		{name: "no current_object", prepare: "DROP TABLE current_object", want: []string{"transaction", "no current_object"}},
		{name: "an unknown column", prepare: "ALTER TABLE object_state RENAME state TO data", want: []string{"object_state", "without a column state"}},
		{name: "state as text", prepare: "ALTER TABLE transaction ALTER username TYPE text", want: []string{"transaction.username", "text"}},
		{name: "history where none is configured", keep: &keep, want: []string{"keep-history false"}},
		{name: "a bad setting", dsn: func(db string) string { return server.DSN(db) + " options='-c nonsense=1'" }, want: []string{"nonsense"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			dsn := c.database(t)
			if x.prepare != "" {
				server.Exec(t, dsn, x.prepare)
			}
			if x.dsn != nil {
				dsn = x.dsn(database(dsn))
			}
			s, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: dsn}, KeepHistory: x.keep})
			if err == nil {
				_, err = s.Scan(t.Context(), source.ScanOptions{History: true})
				s.Close()
			}
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			for _, want := range x.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("it lacks %q: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "guess-me") || strings.Contains(err.Error(), "\n") {
				t.Errorf("the password or several lines: %v", err)
			}
		})
	}
}

func TestReadOnlyRoleAndARunningPack(t *testing.T) {
	server := postgresServer.Server(t)
	c := randomContent(63, true, 10, 50)
	dsn := c.database(t)
	role := "onlyreader"
	server.NewRole(t, role, "right")
	server.Exec(t, dsn, "GRANT SELECT ON object_state, transaction, current_object, blob_chunk TO "+role+
		"; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public; ALTER ROLE "+role+" SET statement_timeout = '1s'; INSERT INTO pack_object VALUES (1, true, 1)")
	opts := Options{PostgreSQL: &PostgreSQL{DSN: server.DSNAs(database(dsn), role)}}
	first := c.readAll(t, opts, true)
	if again := c.readAll(t, opts, true); !again.Identity.Same(first.Identity) {
		t.Errorf("the identity changes: %v, %v", first.Identity, again.Identity)
	}
	if len(first.Warnings) != 0 {
		t.Errorf("warnings %q", first.Warnings)
	}
	info := c.readAll(t, Options{PostgreSQL: &PostgreSQL{DSN: dsn}}, true)
	if len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "pack") {
		t.Errorf("warnings %q", info.Warnings)
	}
	if info.Identity.Same(c.readAll(t, Options{PostgreSQL: &PostgreSQL{DSN: c.database(t)}}, true).Identity) {
		t.Error("two databases are the same")
	}
}

func TestLostConnectionEndsTheView(t *testing.T) {
	server := postgresServer.Server(t)
	c := randomContent(64, true, 40, 200)
	dsn := c.database(t)
	s := openPostgreSQL(t, dsn)
	if _, err := s.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
		t.Fatal(err)
	}
	n := 0
	budget := newFreeBudget()
	read := func() error {
		return s.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: 1000, Budget: budget}, func(c *source.Chunk) error {
			defer c.Release()
			if n++; n == 3 {
				server.Exec(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
			}
			return nil
		})
	}
	for range 2 { // and stays so
		if err := read(); err == nil || !strings.Contains(err.Error(), "go on with --incremental") {
			t.Errorf("got %v", err)
		}
	}
	budget.check(t)
	if _, err := s.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
		t.Errorf("a new view: %v", err)
	}
}

func TestCancelledQueryLeavesTheViewUsable(t *testing.T) {
	c := randomContent(65, true, 40, 200)
	s := openPostgreSQL(t, c.database(t))
	if _, err := s.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Read(ctx, source.ReadOptions{History: true, ChunkBytes: 1000, Budget: newFreeBudget()}, func(c *source.Chunk) error {
		c.Release()
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	st := newState()
	if n := st.differ(t, s, true, 1<<20); n == 0 {
		t.Error("nothing was given")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err = s.view.do(ctx, func(c conn) error { return c.query(ctx, "SELECT pg_sleep(60)", func(row) error { return nil }) })
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 30*time.Second {
		t.Errorf("a query that hangs ended after %v with %v", took, err)
	}
}

func TestOddRowsAreToldAndNotLost(t *testing.T) {
	c := randomContent(66, true, 10, 50)
	server := postgresServer.Server(t)
	for _, history := range []bool{false, true} {
		dsn := c.database(t)
		server.Exec(t, dsn, `ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey;
			INSERT INTO object_state (zoid, tid, state) VALUES (70000, 285658000000000001, 'abc'), (70001, 285658000000000001, 'def');
			INSERT INTO current_object VALUES (70000, 285658000000000001), (70001, 285658000000000001)`)
		s := openPostgreSQL(t, dsn)
		info, err := s.Scan(t.Context(), source.ScanOptions{History: history})
		if err != nil {
			t.Fatal(err)
		}
		if w := strings.Join(info.Warnings, "\n"); !strings.Contains(w, "2 records belong to transactions that are not") || !strings.Contains(w, "0x03f6dc") {
			t.Errorf("warnings %q", w)
		}
		st := newState()
		if err := s.Read(t.Context(), source.ReadOptions{History: history, ChunkBytes: 3000, Budget: newFreeBudget()}, func(c *source.Chunk) error {
			st.take(t, s, c, false)
			c.Release()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, ok := st.txns[285658000000000001]; !ok || st.recs[[2]uint64{70001, 285658000000000001}].Data != "def" || int64(len(st.txns)) != info.Transactions {
			t.Errorf("history %v: the rows without transaction are not there", history)
		}
		if n := st.differ(t, s, history, 1000); history && n != 0 {
			t.Errorf("%d differences", n)
		}
		var tids int64
		if err := s.Transactions(t.Context(), func(*source.Transaction) error { tids++; return nil }); err != nil || tids != info.Transactions {
			t.Errorf("%d transactions, %v", tids, err)
		}
	}
}

func TestASourceThatWasSetBackIsRefused(t *testing.T) {
	c := randomContent(67, false, 10, 50)
	s := openPostgreSQL(t, c.database(t))
	info, err := s.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Scan(t.Context(), source.ScanOptions{Until: info.Identity.End + 1}); err == nil || !strings.Contains(err.Error(), "set back") {
		t.Errorf("got %v", err)
	}
}
