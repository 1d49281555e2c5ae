package jsonb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// pythonRecords are records of random values that Python's own picklers made.
// Where there is no Python with ZODB the test fails under CI=true and says
// elsewhere that it did not run.
func pythonRecords(t *testing.T, count int) (records [][]byte) {
	t.Helper()
	path := os.Getenv("ZODB_PYTHON")
	if path == "" {
		path, _ = filepath.Abs("../../.venv/bin/python")
	}
	cmd := exec.Command(path, "../../scripts/py/codecoracle.py", "generate", fmt.Sprint(count), "5")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		throwaway.Missing(t, fmt.Errorf("no Python with ZODB (scripts/setup installs it, ZODB_PYTHON names it): %w\n%s", err, stderr.Bytes()))
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<28)
	for lines.Scan() {
		var line struct {
			RecordHex string `json:"record_hex"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		record, err := hex.DecodeString(line.RecordHex)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
	}
	if lines.Err() != nil || len(records) < count/2 {
		t.Fatalf("%d records: %v", len(records), lines.Err())
	}
	return records
}

// TestJudgeReadsRowsAsPostgreSQLPrintsThem sends what the encoder writes through a
// jsonb column's own text, also with a change in it, and lets both ways judge.
func TestJudgeReadsRowsAsPostgreSQLPrintsThem(t *testing.T) {
	ctx := context.Background()
	server := pgtest.Start(t)
	conn, err := pgx.Connect(ctx, server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	asStored := func(rows []judged) {
		t.Helper()
		states := make([]string, len(rows))
		for i := range rows {
			states[i] = string(rows[i].row.State)
		}
		result, err := conn.Query(ctx, "select s::jsonb::text from unnest($1::text[]) with ordinality u(s, i) order by i", states)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := pgx.CollectRows(result, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			if stored[i] != states[i] {
				t.Errorf("%s: PostgreSQL prints\n  %.300s, not\n  %.300s", rows[i].label, stored[i], states[i])
			}
			rows[i].row.State = []byte(stored[i])
		}
	}
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	databases, err := filepath.Glob("../../testdata/*.fs")
	if err != nil || len(databases) == 0 {
		t.Fatal("no databases in testdata", err)
	}
	sources := map[string][]judged{"vectors": vectorRecords(t)}
	for _, path := range databases {
		sources["databases"] = append(sources["databases"], databaseRecords(t, path)...)
	}
	e := NewEncoder(Options{})
	for i, record := range pythonRecords(t, 1000*rounds) {
		if c, ok := encodedFor(t, e, fmt.Sprintf("Python's record %d", i), record); ok {
			sources["random values of Python"] = append(sources["random values of Python"], c)
		}
	}
	for seed := range 1000 * rounds {
		random := rand.New(rand.NewPCG(uint64(seed), 11))
		if c, ok := encodedFor(t, e, fmt.Sprintf("graph %d", seed), randomRecord(random)); ok {
			sources["random graphs"] = append(sources["random graphs"], c)
		}
	}
	random := rand.New(rand.NewPCG(5, 6))
	for name, rows := range sources {
		asStored(rows)
		var plain, changed agreement
		found := 0
		for i := range rows {
			if v := plain.check(t, &rows[i]); v.Outcome > Deviating {
				t.Errorf("%s: %+v", rows[i].label, v)
			}
			for range rounds {
				c := rows[i]
				c.mutate(t, random)
				if v := changed.check(t, &c); v.Outcome == Different {
					found++
				}
			}
		}
		t.Logf("%s: %v; with changes: %v, %d differ", name, &plain, &changed, found)
	}
}
