package verify_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/verify"
)

// writeRounds makes a database in which each transaction changes one of ten
// objects and the root's child, and adds one of its own that no other touches. It
// prints tid and oids of each.
const writeRounds = `
import json
import sys
import persistent.mapping
import transaction
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.utils import u64

db = DB(FileStorage(sys.argv[1]))
root = db.open().root()
parts = [persistent.mapping.PersistentMapping() for _ in range(10)]
root["parts"] = persistent.mapping.PersistentMapping(enumerate(parts))
transaction.commit()
for i in range(40):
    parts[i % 10][str(i)] = persistent.mapping.PersistentMapping(number=i)
    transaction.commit()
for t in db.storage.iterator():
    print(json.dumps({"tid": u64(t.tid), "oids": [u64(r.oid) for r in t]}))
db.close()
`

// makeSchema lets zodb-pgjsonb make its tables.
const makeSchema = `
import sys
from zodb_pgjsonb.storage import PGJsonbStorage

PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0).close()
`

// pythonCommand is the program that PyPI has under our name.
const pythonCommand = `
import sys
from zodb_convert.cli import main

sys.exit(main(sys.argv[1:]))
`

// round is a transaction of writeRounds.
type round struct {
	TID  int64   `json:"tid"`
	OIDs []int64 `json:"oids"`
}

// TestHolesThatAKillOfThePythonCommandLeavesAreFound kills the real command with
// several workers while two transactions wait for a lock, as they do on a busy
// server, and lets it go on with --incremental: it looks at the highest tid only.
// What is lost is told by its log of transactions; verify has to name just that.
func TestHolesThatAKillOfThePythonCommandLeavesAreFound(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(map[bool]string{false: "without history", true: "with history"}[history], func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "Data.fs")
			rounds := writtenRounds(t, path)
			p := &pair{path: path, history: history, dsn: postgres.Server(t).NewDatabase(t)}
			runPython(t, makeSchema, p.dsn, fmt.Sprint(history))
			config := filepath.Join(t.TempDir(), "convert.conf")
			text := fmt.Sprintf("%%import zodb_pgjsonb\n<filestorage source>\n  path %s\n</filestorage>\n<pgjsonb destination>\n  dsn %s\n  history-preserving %v\n  cache-warm-pct 0\n</pgjsonb>\n",
				path, p.dsn, history)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			killPython(t, p.dsn, config, rounds[12].TID, rounds[14].TID)
			runPython(t, pythonCommand, "--incremental", config)

			want := lost(t, p, rounds)
			_, all := p.verify(t, verify.Options{})
			var got []string
			for _, line := range located(all) {
				switch {
				case strings.HasPrefix(line, verify.SchemaFault): // the watermark, and the sequence
				case strings.HasPrefix(line, verify.ExtraObject):
					t.Errorf("found %s", line)
				default:
					got = append(got, line)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("found\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
			leftovers := 0
			for i := range all {
				if all[i].Kind == verify.SchemaFault && strings.Contains(all[i].Path, "migration_watermark") {
					leftovers++
				}
			}
			if leftovers != 1 {
				t.Errorf("the table that the run left is named %d times: %v", leftovers, all)
			}
		})
	}
}

func writtenRounds(t *testing.T, path string) (rounds []round) {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(pythonOutput(t, writeRounds, path)))
	for lines.Scan() {
		var r round
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		rounds = append(rounds, r)
	}
	if len(rounds) < 40 {
		t.Fatalf("%d transactions", len(rounds))
	}
	return rounds
}

// killPython starts the command, with the rows of some transactions locked, and
// kills it when others behind them are there.
func killPython(t *testing.T, dsn, config string, locked ...int64) {
	t.Helper()
	ctx := t.Context()
	lock, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close(ctx)
	look, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close(ctx)
	tx, err := lock.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range locked {
		if _, err := tx.Exec(ctx, "INSERT INTO transaction_log (tid) VALUES ($1)", tid); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(python(t), "-c", pythonCommand, "-w", "4", config)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var behind int
		if err := look.QueryRow(ctx, "SELECT count(*) FROM transaction_log WHERE tid > $1", slices.Max(locked)).Scan(&behind); err != nil {
			t.Fatal(err)
		}
		if behind >= 2 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended by itself: %v\n%s", err, stderr.Bytes())
		default:
		}
		if time.Now().After(end) {
			t.Errorf("only %d transactions got past the locked ones", behind)
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	// The server learns of it before the lock is free.
	if _, err := look.Exec(ctx, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN ($1, $2)",
		lock.PgConn().PID(), look.PgConn().PID()); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
}

// lost is what verify has to find: what the transactions that are not in the log
// had written.
func lost(t *testing.T, p *pair, rounds []round) (want []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, _ := conn.Query(t.Context(), "SELECT tid FROM transaction_log")
	have, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	newest, written, holes := map[int64]int64{}, map[int64]int{}, 0
	for _, r := range rounds {
		for _, oid := range r.OIDs {
			newest[oid] = r.TID
			written[oid]++
		}
	}
	for _, r := range rounds {
		if slices.Contains(have, r.TID) {
			continue
		}
		holes++
		want = append(want, fmt.Sprintf("%s  0x%016x", verify.MissingTransaction, r.TID))
		for _, oid := range r.OIDs {
			kind := ""
			switch {
			case newest[oid] == r.TID && written[oid] == 1:
				kind = verify.MissingObject
			case newest[oid] == r.TID:
				kind = verify.OtherTID
			case p.history:
				kind = verify.MissingRevision
			default:
				continue // a later transaction has written it again
			}
			want = append(want, fmt.Sprintf("%s 0x%016x 0x%016x", kind, oid, r.TID))
		}
	}
	if holes < 2 {
		t.Fatalf("the kill has left %d holes", holes)
	}
	slices.Sort(want)
	return want
}

func located(all []verify.Difference) (lines []string) {
	for i := range all {
		lines = append(lines, fmt.Sprintf("%s %s %s", all[i].Kind, all[i].OID, all[i].TID))
	}
	slices.Sort(lines)
	return lines
}
