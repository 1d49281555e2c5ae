package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// outcome is what came of a retry.
type outcome struct {
	result *dest.RetryResult
	err    error
}

// retryBeside retries a record with the allowance of --yes, or without it.
func retryBeside(t *testing.T, d *database, history, connected bool, record dest.Reject) <-chan outcome {
	t.Helper()
	dst := d.Open(t, history)
	t.Cleanup(func() { dst.Close() })
	plan := retryPlan([]dest.Reject{record})
	plan.Connected = connected
	done := make(chan outcome, 1)
	go func() {
		result, err := dst.Retry(context.Background(), plan)
		done <- outcome{result, err}
	}()
	return done
}

// held lets whoever writes the row of an oid wait until free is called.
func held(t *testing.T, d *database, oid zodb.OID) (free func()) {
	t.Helper()
	d.exec(t, fmt.Sprintf(`CREATE TABLE gate (shut boolean);
		CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN IF NEW.zoid = %d THEN LOCK TABLE gate IN SHARE MODE; END IF; RETURN NEW; END $$ LANGUAGE plpgsql;
		CREATE TRIGGER wait BEFORE INSERT ON object_state FOR EACH ROW EXECUTE FUNCTION wait()`, oid))
	return d.lock(t, "LOCK TABLE gate")
}

// lock holds what a statement locks. Its session has a name that is none of a
// site's.
func (d *database) lock(t *testing.T, sql string) (free func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.dsn+" application_name=zodb-convert-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), "BEGIN; "+sql); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(context.Background(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
}

func TestSessionThatConnectsDuringTheWritingIsNoticed(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	convert(t, d, b, false)
	free := held(t, d, 100)
	done := retryBeside(t, d, false, false, dest.Reject{OID: 100, TID: first, Data: thing(100, "x").Data})
	waits(t, d, "relation")
	conn, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	free()
	o := <-done
	isRefused(t, o.err, "another session is connected", "may be a running site")
	if got := d.query(t, "SELECT count(*) FROM object_state WHERE zoid = 100"); got[0] != "0" {
		t.Error("it was written")
	}
}

func TestSessionThatEndsIsNoSite(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	convert(t, d, b, false)
	conn, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(200*time.Millisecond, func() { conn.Close(context.Background()) })
	defer ended.Stop()
	result, err := retry(t, d, false, dest.Reject{OID: 100, TID: first, Data: thing(100, "x").Data})
	if err != nil || result.Written != 1 || len(result.Sessions) != 0 {
		t.Errorf("%+v %v", result, err)
	}
}

// missing is a database that lacks an object of a chain, as if it had been
// rejected. Another object can be locked and is removed by a pack.
func missing(t *testing.T, history bool) (*database, dest.Reject) {
	t.Helper()
	path, record := chain(t)
	d := newDatabase(t)
	convertFile(t, d, path, history)
	d.exec(t, fmt.Sprintf("DELETE FROM object_state WHERE zoid = %d", record.OID))
	if history {
		d.exec(t, fmt.Sprintf("INSERT INTO object_history (zoid, tid, class_mod, class_name, state_size) VALUES (%d, %d, '', '', 0)", record.OID, record.TID))
	}
	d.exec(t, fmt.Sprintf("INSERT INTO object_state (zoid, tid, class_mod, class_name, state, state_size) VALUES (5000, %d, 'app', 'Thing', '{}', 1)", record.TID))
	return d, record
}

const lockGarbage = "SELECT FROM object_state WHERE zoid = 5000 FOR UPDATE"

func TestPackThatStartsDuringTheWritingIsNoticed(t *testing.T) {
	d, record := missing(t, false)
	free, pass := d.lock(t, lockGarbage), held(t, d, record.OID)
	s := startRunningSite(t, d, false)
	done := retryBeside(t, d, false, true, record)
	waits(t, d, "relation")
	s.say(t, "pack")
	waits(t, d, "transactionid")
	pass()
	o := <-done
	isRefused(t, o.err, "is being packed")
	free()
	s.answers(t, "done")
	if got := d.query(t, fmt.Sprintf("SELECT count(*) FROM object_state WHERE zoid = %d", record.OID)); got[0] != "0" {
		t.Error("it was written")
	}
}

// asOther is the database for a role whose queries the owner does not see.
func asOther(t *testing.T, d *database) *database {
	t.Helper()
	if len(d.server.Query(t, d.server.DSN("postgres"), "SELECT 1 FROM pg_roles WHERE rolname = 'plonesite'")) == 0 {
		d.server.Exec(t, d.server.DSN("postgres"), "CREATE ROLE plonesite LOGIN PASSWORD 'plonesite-secret'; GRANT zope TO plonesite")
	}
	other := *d
	other.dsn = strings.NewReplacer("user=zope", "user=plonesite", "zope-secret", "plonesite-secret").Replace(d.dsn)
	return &other
}

func TestPackOfAnotherRoleIsNoticed(t *testing.T) {
	d, record := missing(t, false)
	free := d.lock(t, lockGarbage)
	s := startRunningSite(t, asOther(t, d), false)
	s.say(t, "pack")
	waits(t, d, "transactionid")
	isRefused(t, (<-retryBeside(t, d, false, true, record)).err, "is being packed")
	free()
	s.answers(t, "done")
	if o := <-retryBeside(t, d, false, true, record); o.err != nil || o.result.Written != 1 {
		t.Errorf("after the pack: %+v %v", o.result, o.err)
	}
}

// Its table is not in the catalog before everything is traced.
func TestPackThatTracesIsNoticed(t *testing.T) {
	d, record := missing(t, false)
	d.exec(t, fmt.Sprintf(`INSERT INTO object_state (zoid, tid, class_mod, class_name, state, state_size, refs)
		SELECT i, %d, 'app', 'Thing', '{}', 1, ARRAY[i + 1] FROM generate_series(10000, 90000) i; UPDATE object_state SET refs = refs || 10000::bigint WHERE zoid = 0; ANALYZE object_state`, record.TID))
	s := startRunningSite(t, asOther(t, d), false)
	s.say(t, "pack")
	const tracing = "FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT zoid INTO TEMP reachable_oids%'"
	for end := time.Now().Add(20 * time.Second); d.server.Query(t, d.server.DSN("postgres"), "SELECT count(*) "+tracing)[0] == "0"; {
		if time.Now().After(end) {
			t.Fatal("nothing is packed")
		}
	}
	o := <-retryBeside(t, d, false, true, record)
	if d.server.Query(t, d.server.DSN("postgres"), "SELECT count(pg_terminate_backend(pid)) "+tracing)[0] == "0" {
		t.Fatal("the pack did not last")
	}
	isRefused(t, o.err, "is being packed by process", "user plonesite")
}

// The last statement of a pack with history does not name its table.
func TestLastPhaseOfAPackIsNoticed(t *testing.T) {
	d, record := missing(t, true)
	d.exec(t, "INSERT INTO transaction_log (tid) VALUES (7)")
	free := d.lock(t, "SELECT FROM transaction_log WHERE tid = 7 FOR UPDATE")
	s := startRunningSite(t, d, true)
	time.Sleep(1100 * time.Millisecond) // the clock of a pack has whole seconds
	s.say(t, "pack")
	waits(t, d, "transactionid")
	if got := d.query(t, "SELECT query FROM pg_stat_activity WHERE wait_event = 'transactionid'"); len(got) != 1 || strings.Contains(got[0], "reachable_oids") {
		t.Fatalf("the pack does %q", got)
	}
	isRefused(t, (<-retryBeside(t, d, true, true, record)).err, "is being packed")
	free()
	s.answers(t, "done")
	if o := <-retryBeside(t, d, true, true, record); o.err != nil || o.result.Written != 1 {
		t.Errorf("after the pack: %+v %v", o.result, o.err)
	}
}

// pausedPack packs and waits between two statements for a line.
const pausedPack = `
import logging, sys
import ZODB
from zodb_pgjsonb.storage import PGJsonbStorage
class Pause(logging.Handler):
    def emit(self, record):
        if "reachability trace complete" in record.getMessage():
            print("up", flush=True)
            sys.stdin.readline()
logger = logging.getLogger("zodb_pgjsonb.packer")
logger.addHandler(Pause())
logger.setLevel(logging.INFO)
db = ZODB.DB(PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0))
db.pack()
db.close()
print("done", flush=True)
`

func TestPackBetweenItsStatementsIsNoticed(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, record := missing(t, history)
		s := startScript(t, pausedPack, d, history)
		if got := d.query(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()"); got[0] != "0" {
			t.Fatal("something is under way")
		}
		isRefused(t, (<-retryBeside(t, d, history, true, record)).err, "is being packed")
		s.say(t, "")
		s.answers(t, "done")
		s.stop()
		if o := <-retryBeside(t, d, history, true, record); o.err != nil || o.result.Written != 1 {
			t.Errorf("after the pack: %+v %v", o.result, o.err)
		}
	})
}

// What a crash of the server leaves of a pack is no pack.
func TestTableThatAPackHasLeftIsNoPack(t *testing.T) {
	d, record := missing(t, false)
	d.server.Exec(t, strings.Replace(d.dsn, "user=zope", "user=postgres", 1), "SET allow_system_table_mods = on; CREATE TABLE reachable_oids (zoid bigint); UPDATE pg_class SET relpersistence = 't' WHERE relname = 'reachable_oids'")
	t.Cleanup(func() {
		d.server.Exec(t, strings.Replace(d.dsn, "user=zope", "user=postgres", 1), "SET allow_system_table_mods = on; UPDATE pg_class SET relpersistence = 'p' WHERE relname = 'reachable_oids'; DROP TABLE reachable_oids")
	})
	if o := <-retryBeside(t, d, false, false, record); o.err != nil || o.result.Written != 1 {
		t.Errorf("%+v %v", o.result, o.err)
	}
}

// waitAtCommit lets the COMMIT of a new object wait until pass is called.
func waitAtCommit(t *testing.T, d *database) (pass func()) {
	t.Helper()
	d.exec(t, `CREATE TABLE gate (shut boolean);
		CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN LOCK TABLE gate IN SHARE MODE; RETURN NULL; END $$ LANGUAGE plpgsql;
		CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON object_state DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
	return d.lock(t, "LOCK TABLE gate")
}

func TestInterruptionTellsWhetherAnythingCanBeWritten(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	convert(t, d, b, false)
	dst := d.Open(t, false)
	defer dst.Close()
	record := dest.Reject{OID: 100, TID: first, Data: thing(100, "x").Data}

	ctx, cancel := context.WithCancel(t.Context())
	plan := retryPlan([]dest.Reject{record})
	given := plan.Records
	plan.Records = func(ctx context.Context, fn func(*dest.Reject) error) error {
		defer cancel()
		return given(ctx, fn)
	}
	var uncertain *dest.UncertainError
	if _, err := dst.Retry(ctx, plan); !errors.Is(err, context.Canceled) || errors.As(err, &uncertain) {
		t.Errorf("before COMMIT: %v", err)
	}

	pass := waitAtCommit(t, d)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := dst.Retry(ctx, retryPlan([]dest.Reject{record}))
		done <- err
	}()
	waits(t, d, "relation")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.As(err, &uncertain) || !strings.Contains(err.Error(), "either all records were written or none") {
		t.Errorf("after COMMIT: %v", err)
	}
	pass()
}

// Both are there only when the answer to COMMIT is: nothing can be refused.
func TestWhoComesWithTheCommitIsTold(t *testing.T) {
	d, record := missing(t, false)
	pass, free := waitAtCommit(t, d), d.lock(t, lockGarbage)
	done := retryBeside(t, d, false, false, record)
	waits(t, d, "relation")
	s := startRunningSite(t, d, false)
	s.say(t, "pack")
	waits(t, d, "transactionid")
	pass()
	o := <-done
	if o.err != nil || !o.result.PackBegan || len(o.result.Sessions) == 0 || o.result.Unwatched != "" {
		t.Errorf("%+v %v", o.result, o.err)
	}
	free()
	s.answers(t, "done")
	s.stop()
	if o := <-retryBeside(t, d, false, true, record); o.err != nil || o.result.PackBegan || o.result.Written+o.result.There != 1 || o.result.Dangling == 0 {
		t.Errorf("once more: %+v %v", o.result, o.err)
	}
}
