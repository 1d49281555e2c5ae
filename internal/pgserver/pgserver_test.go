package pgserver_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/internal/pgserver"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

const others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

func TestASessionHasEndedWhenItsConnectionIsClosed(t *testing.T) {
	s := postgres.Server(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 50 {
		conn, err := pgconn.Connect(ctx, s.DSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		// What a session has to put away makes its end take longer.
		if _, err := conn.Exec(ctx, "BEGIN; CREATE TEMPORARY TABLE t AS SELECT generate_series(1, 1000)").ReadAll(); err != nil {
			t.Fatal(err)
		}
		pgserver.Close(ctx, conn)
		if !conn.IsClosed() {
			t.Fatal("the connection is open")
		}
		if n := s.Query(t, s.DSN("postgres"), others)[0]; n != "0" {
			t.Fatalf("%s sessions are there", n)
		}
	}
}

func TestClosingDoesNotWaitForAQuery(t *testing.T) {
	s := postgres.Server(t)
	conn, err := pgconn.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Exec(t.Context(), "SELECT pg_sleep(60)") // its answer is not read
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	pgserver.Close(ctx, conn)
	if ctx.Err() != nil || !conn.IsClosed() {
		t.Error("it waited, or the connection is open")
	}
	s.Query(t, s.DSN("postgres"), "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query LIKE '%sleep(60)%' AND pid <> pg_backend_pid()")
}
