//go:build unix

package pgtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/internal/pgserver"
)

// Snapshot is everything that a database holds, in a form that two databases
// can be compared by: for each table of the search path "rows digest", for each
// sequence its state, and under "schema" what pg_dump --schema-only prints.
func (s *Server) Snapshot(tb testing.TB, dsn string) map[string]string {
	tb.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	defer pgserver.Close(ctx, conn.PgConn())
	snapshot := map[string]string{"schema": s.Schema(tb, dsn)}
	for _, name := range relations(tb, conn, "r") {
		// Sorted by the whole row as text: every table here has a key, so this
		// is an order, and it does not depend on where rows lie.
		h := sha256.New()
		tag, err := conn.PgConn().CopyTo(ctx, h,
			fmt.Sprintf(`COPY (SELECT * FROM %s t ORDER BY t::text COLLATE "C") TO STDOUT`, name))
		if err != nil {
			tb.Fatalf("read table %s: %v", name, err)
		}
		snapshot["table "+name] = fmt.Sprintf("%d rows %x", tag.RowsAffected(), h.Sum(nil))
	}
	for _, name := range relations(tb, conn, "S") {
		var last int64
		var called bool
		if err := conn.QueryRow(ctx, "SELECT last_value, is_called FROM "+name).Scan(&last, &called); err != nil {
			tb.Fatalf("read sequence %s: %v", name, err)
		}
		snapshot["sequence "+name] = fmt.Sprint(last, called)
	}
	return snapshot
}

// relations lists the visible relations of one kind, quoted.
func relations(tb testing.TB, conn *pgx.Conn, kind string) []string {
	tb.Helper()
	rows, err := conn.Query(context.Background(), `
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = $1 AND pg_table_is_visible(c.oid)
		  AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`, kind)
	if err != nil {
		tb.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		tb.Fatal(err)
	}
	return names
}
