package jsonb

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

// rootSize is what a value takes besides its contents.
const rootSize = 16

// TestPostgreSQLStoresWhatThePythonCodecStores compares with the state of the
// Python codec as PostgreSQL itself prints it.
func TestPostgreSQLStoresWhatThePythonCodecStores(t *testing.T) {
	ctx := context.Background()
	server := pgtest.Start(t)
	conn, err := pgx.Connect(ctx, server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	asStored := func(state string) (text string, size int) {
		err := conn.QueryRow(ctx, "select j::text, pg_column_size(j) from (select $1::text::jsonb as j) s", state).Scan(&text, &size)
		if err != nil {
			t.Errorf("%v: %.300s", err, state)
		}
		return text, size
	}
	e := NewEncoder(Options{})
	compared, encoded := 0, 0
	for _, v := range forwardVectors(t) {
		row, err := e.Encode(v.record(t))
		if err != nil {
			continue
		}
		encoded++
		got, size := asStored(string(row.State))
		m := measure{text: row.State, most: maxJSONB}
		if atMost := m.value() + rootSize; atMost < size || m.problem != "" {
			t.Errorf("%s: measured %d %s, PostgreSQL takes %d: %.300s", v.ID, atMost, m.problem, size, row.State)
		}
		if v.RoundTrip != "ok" {
			continue
		}
		compared++
		if want, _ := asStored(v.StateJSON); got != want {
			t.Errorf("%s: PostgreSQL stores\n  %.300s, not\n  %.300s", v.ID, got, want)
		}
	}
	t.Logf("%d states stored, %d equal those of the Python codec", encoded, compared)
	if compared < 440 {
		t.Errorf("only %d of the vectors that the Python codec keeps were compared", compared)
	}
}
