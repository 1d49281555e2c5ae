//go:build unix

package pgtest

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

var postgres Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

func TestDatabasesAreApart(t *testing.T) {
	s := postgres.Server(t)
	a, b := s.NewDatabase(t), s.NewDatabase(t)
	s.Exec(t, a, "CREATE TABLE here (x int); INSERT INTO here VALUES (1), (2)")
	if got := strings.Join(s.Query(t, a, "SELECT x, 'a' FROM here ORDER BY x"), " "); got != "1|a 2|a" {
		t.Errorf("rows are %q", got)
	}
	if got := s.Query(t, b, "SELECT to_regclass('here') IS NULL"); got[0] != "t" {
		t.Error("a table is in both databases")
	}
	if dump := s.Schema(t, a); !strings.Contains(dump, "CREATE TABLE public.here") {
		t.Errorf("pg_dump gives\n%s", dump)
	}
}

func TestCommittedRowsOutliveEveryWayToStop(t *testing.T) {
	s := Start(t, Setting("max_connections", "20"))
	dsn := s.NewDatabase(t)
	s.Exec(t, dsn, "CREATE TABLE kept (x int)")
	for _, mode := range []string{"fast", "immediate", "smart"} {
		s.Exec(t, dsn, "INSERT INTO kept VALUES (1)")
		if err := s.Stop(mode); err != nil {
			t.Fatal(err)
		}
		if _, err := pgconn.Connect(t.Context(), dsn); err == nil {
			t.Fatalf("a server stopped %s takes connections", mode)
		}
		if err := s.Run(); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Query(t, dsn, "SELECT count(*) FROM kept"); got[0] != "3" {
		t.Errorf("%s of 3 rows are left", got[0])
	}
	if got := s.Query(t, dsn, "SHOW max_connections"); got[0] != "20" {
		t.Errorf("max_connections is %s", got[0])
	}
	if err := s.Stop("abrupt"); err == nil {
		t.Error("an unknown mode is taken")
	}
}

func TestRolesOverTCPNeedTheirPassword(t *testing.T) {
	s := postgres.Server(t)
	s.NewRole(t, "zope", "right")
	s.NewDatabase(t, "OWNER zope")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, s.TCPDSN("postgres", "zope", "right"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(ctx)
	if _, err := pgconn.Connect(ctx, s.TCPDSN("postgres", "zope", "wrong")); err == nil {
		t.Error("a wrong password is taken")
	}
	if got := s.Query(t, s.DSNAs("postgres", "zope"), "SELECT usesuper FROM pg_user WHERE usename = current_user"); got[0] != "f" {
		t.Error("a new role is a superuser")
	}
}

func TestServerWithAnotherEncoding(t *testing.T) {
	s := Start(t, Encoding("LATIN1"), Locale("C"))
	if got := s.Query(t, s.NewDatabase(t), "SHOW server_encoding"); got[0] != "LATIN1" {
		t.Errorf("server_encoding is %s", got[0])
	}
}
