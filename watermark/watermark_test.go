package watermark_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	os.Exit(code)
}

var tables = watermark.In("odd \"schema'")

func connect(t *testing.T, dsn, application string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func record() *watermark.Record {
	return &watermark.Record{
		Run: dest.Run{
			ID: "0123456789abcdef", Generation: 1, Phase: dest.Loading, Tool: "v1", Host: "here", PID: 4711,
			Source:  source.Identity{Kind: "filestorage", Name: "/it's/Data.fs", End: 1 << 40, Digest: "d"},
			Options: dest.Options{HistoryPreserving: true, ChunkBytes: 5},
		},
		Restore: []byte(`{"a": "it's"}`), MaxOID: 42,
	}
}

// begun makes a run and returns a database with it.
func begun(t *testing.T) (dsn string, conn *pgx.Conn, r *watermark.Record) {
	t.Helper()
	dsn = postgres.Server(t).NewDatabase(t)
	conn = connect(t, dsn, "test")
	if _, err := conn.Exec(t.Context(), `CREATE SCHEMA "odd ""schema'"`); err != nil {
		t.Fatal(err)
	}
	r = record()
	if err := tables.Create(t.Context(), conn, r); err != nil {
		t.Fatal(err)
	}
	return dsn, conn, r
}

func exec(t *testing.T, conn *pgx.Conn, sql string) error {
	t.Helper()
	_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	return err
}

func TestRecordIsReadAsItWasWritten(t *testing.T) {
	_, conn, r := begun(t)
	results := []dest.Result{
		{Transactions: 3, Objects: 4, Forms: map[string]int64{"it's": 1}, NewCodecClasses: []string{"a\x00b.C"}, NewCodec: 1},
		{Transactions: 1, Rejected: 2, Metadata: 1, Escaped: []dest.Escaped{{TID: 1, User: []byte("\xff\x00"), Description: []byte{}}}},
	}
	var want dest.Result
	for i, kind := range []watermark.Kind{watermark.Load, watermark.Follow} {
		sql, err := tables.ChunkSQL(kind, source.Range{From: 10, To: 20}, int64(100*i), &results[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := exec(t, conn, sql); err != nil {
			t.Fatal(err)
		}
		want.Add(&results[i])
		got, err := tables.ChunkResult(t.Context(), conn, kind, source.Range{From: 10, To: 20})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&results[i], got); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
	}
	got, err := tables.Read(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	r.Done, r.Totals, r.MaxOID = []source.Range{{From: 10, To: 20}}, want, 100
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if _, err := tables.ChunkResult(t.Context(), conn, watermark.Load, source.Range{From: 10, To: 21}); err == nil {
		t.Error("a range that was cut in another way is taken for the same")
	}
	if got, err := tables.ChunkResult(t.Context(), conn, watermark.Load, source.Range{From: 11, To: 20}); got != nil || err != nil {
		t.Errorf("a range that is not done gives %v, %v", got, err)
	}
	if err := tables.Drop(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	if got, err := tables.Read(t.Context(), conn); got != nil || err != nil {
		t.Errorf("after Drop there is %v, %v", got, err)
	}
}

func TestOfTwoRunsOneIsToldThatItIsSecond(t *testing.T) {
	dsn, conn, _ := begun(t)
	if err := tables.Create(t.Context(), conn, record()); !watermark.Exists(err) {
		t.Errorf("a second run gets %v", err)
	}
	if err := tables.Drop(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tables.Create(t.Context(), tx, record()); err != nil {
		t.Fatal(err)
	}
	second := make(chan error)
	other := connect(t, dsn, "other")
	go func() { second <- tables.Create(t.Context(), other, record()) }()
	time.Sleep(100 * time.Millisecond)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-second; !watermark.Exists(err) {
		t.Errorf("a second run at the same moment gets %v", err)
	}
}

func TestRaiseWaitsForOpenTransactionsAndFencesTheNextOnes(t *testing.T) {
	dsn, conn, r := begun(t)
	old := connect(t, dsn, "old")
	stale := *r
	if err := exec(t, old, "BEGIN; "+tables.Fence(&stale, dest.Loading)); err != nil {
		t.Fatal(err)
	}
	raised := make(chan error, 1)
	r.Start = dest.Start{Blobs: dest.Deferred, Manifest: "it's \"here\".tsv", StagingDir: "/staging", SourceBytes: 5}
	go func() { raised <- tables.Raise(t.Context(), conn, r, "v2", "there", 12) }()
	select {
	case err := <-raised:
		t.Fatalf("the generation was raised while a transaction is open: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	sql, err := tables.ChunkSQL(watermark.Load, source.Range{From: 1, To: 2}, 0, &dest.Result{})
	if err != nil {
		t.Fatal(err)
	}
	if err := exec(t, old, sql+"; COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-raised; err != nil {
		t.Fatal(err)
	}
	got, err := tables.Read(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if got.Generation != 2 || got.Tool != "v2" || got.Host != "there" || got.PID != 12 || len(got.Done) != 1 || got.Started != r.Started ||
		got.Options != stale.Options || got.Start != r.Start {
		t.Errorf("after the claim the record is %+v", got)
	}
	if err := exec(t, old, "BEGIN; "+tables.Fence(&stale, dest.Loading)); !tables.TakenOver(err) {
		t.Errorf("the old generation begins with %v", err)
	}
	if err := exec(t, old, "ROLLBACK; BEGIN; "+tables.Fence(r, dest.Loading)+"; COMMIT"); err != nil {
		t.Errorf("the new generation begins with %v", err)
	}
	next := *r
	next.ID += "x"
	if err := exec(t, old, "BEGIN; "+tables.Fence(&next, dest.Loading)); !tables.TakenOver(err) {
		t.Errorf("another run with the same generation begins with %v", err)
	}
	if err := exec(t, old, "ROLLBACK; BEGIN; "+tables.Fence(r, dest.Finishing)); !tables.Forgotten(err) {
		t.Errorf("a later phase begins with %v", err)
	}
	if err := exec(t, old, "ROLLBACK; BEGIN; "+tables.Fence(r, "")+"; COMMIT"); err != nil {
		t.Errorf("any phase begins with %v", err)
	}
	if err := tables.SetPhase(t.Context(), old, r, dest.Finishing, dest.CatchingUp); !errors.Is(err, watermark.ErrForgotten) {
		t.Errorf("going on from a later phase gives %v", err)
	}
	if err := tables.Raise(t.Context(), old, &stale, "v3", "x", 1); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("claiming what was claimed gives %v", err)
	}
	if err := tables.SetPhase(t.Context(), old, &stale, dest.Loading, dest.Finishing); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("the old generation goes on with %v", err)
	}
	if err := tables.Drop(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	if err := exec(t, old, "BEGIN; "+tables.Fence(r, dest.Loading)); !tables.TakenOver(err) {
		t.Errorf("a run that was undone begins with %v", err)
	}
}

func TestARunIsAliveAsLongAsItsControlConnectionIs(t *testing.T) {
	dsn, conn, r := begun(t)
	r.Host, r.PID = "here", os.Getpid()
	alive := func(host string) bool {
		t.Helper()
		a, err := watermark.Alive(t.Context(), conn, r, host)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if alive("here") || alive("elsewhere") {
		t.Error("a run without a connection is alive")
	}
	worker := connect(t, dsn, watermark.AppName(r.ID, 1, "w1"))
	earlier := connect(t, dsn, watermark.AppName(r.ID, 0, watermark.ControlRole()))
	other := connect(t, dsn, watermark.AppName("fedcba9876543210", 1, watermark.ControlRole()))
	if alive("elsewhere") {
		t.Error("a run with only a worker left is alive")
	}
	control := connect(t, dsn, watermark.AppName(r.ID, 1, watermark.ControlRole()))
	if !alive("here") || !alive("elsewhere") {
		t.Error("a run with a control connection is dead")
	}
	r.PID = 1 << 22 // above what Linux gives out by default
	if alive("here") {
		t.Error("a run whose process is gone is alive")
	}
	if err := watermark.EndEarlier(t.Context(), conn, r.ID, 2); err != nil {
		t.Fatal(err)
	}
	for name, gone := range map[string]*pgx.Conn{"worker": worker, "earlier": earlier, "control": control} {
		if gone.Ping(t.Context()) == nil {
			t.Errorf("%s is still connected", name)
		}
	}
	if err := other.Ping(t.Context()); err != nil {
		t.Errorf("another run's connection was ended: %v", err)
	}
}

func TestRejectsAreGivenOldestFirst(t *testing.T) {
	_, conn, _ := begun(t)
	if n, root, err := tables.CountRejects(t.Context(), conn); n != 0 || root || err != nil {
		t.Errorf("%d, %v, %v", n, root, err)
	}
	if err := exec(t, conn, "INSERT INTO "+tables.Reject+" VALUES (30, 0, 7, '', 'b', NULL), (20, 5, 6, 'm.C', 'a', '\\x00ff')"); err != nil {
		t.Fatal(err)
	}
	var got []dest.Reject
	if err := tables.Rejects(t.Context(), conn, func(r *dest.Reject) error { got = append(got, *r); return nil }); err != nil {
		t.Fatal(err)
	}
	want := []dest.Reject{{OID: 5, TID: 6, Pos: 20, Class: "m.C", Reason: "a", Data: []byte{0, 255}}, {TID: 7, Pos: 30, Reason: "b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n, root, err := tables.CountRejects(t.Context(), conn); n != 2 || !root || err != nil {
		t.Errorf("%d, %v, %v", n, root, err)
	}
}

// earlier are the tables as releases before this one made them.
const earlier = `
CREATE TABLE %[1]s.zodb_convert_run (one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL, generation bigint NOT NULL,
	phase text NOT NULL, source json NOT NULL, options json NOT NULL, tool text NOT NULL, host text NOT NULL, pid integer NOT NULL,
	started timestamptz NOT NULL DEFAULT clock_timestamp(), claimed timestamptz NOT NULL DEFAULT clock_timestamp(),
	max_oid bigint NOT NULL, restore json NOT NULL);
CREATE TABLE %[1]s.zodb_convert_chunk (kind text NOT NULL, range_from bigint NOT NULL, range_to bigint NOT NULL, max_oid bigint NOT NULL,
	result json NOT NULL, PRIMARY KEY (kind, range_from));
CREATE TABLE %[1]s.zodb_convert_reject (pos bigint PRIMARY KEY, oid bigint NOT NULL, tid bigint NOT NULL, class text NOT NULL,
	reason text NOT NULL, data bytea);
CREATE TABLE %[1]s.zodb_convert_step (name text PRIMARY KEY, done timestamptz NOT NULL DEFAULT clock_timestamp(), took interval NOT NULL);
INSERT INTO %[1]s.zodb_convert_run VALUES (true, '0123456789abcdef', 3, 'loading', '{"kind": "filestorage", "end": 99}', '{"chunk_bytes": 5}', 'v0', 'here', 1,
	default, default, 7, '{}');
INSERT INTO %[1]s.zodb_convert_chunk VALUES ('load', 4, 50, 7, '{"objects": 3, "source_bytes": 46}'), ('follow', 4, 60, 9, '{"objects": 1}');
INSERT INTO %[1]s.zodb_convert_reject VALUES (30, 1, 2, '', 'bad', NULL)`

const earlierMissing = `CREATE TABLE %[1]s.zodb_convert_missing (pos bigint PRIMARY KEY, oid bigint NOT NULL, tid bigint NOT NULL, path text NOT NULL, reason text NOT NULL);
INSERT INTO %[1]s.zodb_convert_missing VALUES (20, 5, 6, '/p', 'r')`

func TestRunOfAnEarlierReleaseIsContinued(t *testing.T) {
	for _, blobs := range []bool{false, true} {
		t.Run(fmt.Sprintf("blobs=%v", blobs), func(t *testing.T) {
			conn := connect(t, postgres.Server(t).NewDatabase(t), "test")
			schema := pgx.Identifier{`odd "schema'`}.Sanitize()
			sql := "CREATE SCHEMA " + schema + ";" + fmt.Sprintf(earlier, schema)
			if blobs {
				sql += ";" + fmt.Sprintf(earlierMissing, schema)
			}
			if err := exec(t, conn, sql); err != nil {
				t.Fatal(err)
			}
			// Reading alone changes nothing, and understands it.
			check := func() {
				t.Helper()
				r, err := tables.Read(t.Context(), conn)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]source.Range{{From: 4, To: 50}}, r.Done); diff != "" {
					t.Errorf("done (-want +got):\n%s", diff)
				}
				if r.Generation != 3 || r.Totals.Objects != 4 || r.MaxOID != 9 || r.Totals.SourceBytes != 46 {
					t.Errorf("the record is %+v", r)
				}
			}
			check()
			for range 2 {
				if err := tables.Ensure(t.Context(), conn); err != nil {
					t.Fatal(err)
				}
				check()
			}
			// Two numbers tell ranges apart by now, and a key records without position.
			sql = ""
			for sub := range int64(3) {
				note, err := tables.ChunkSQL(watermark.Load, source.Range{From: 1, FromSub: sub, To: 1, ToSub: sub + 1}, 0, &dest.Result{Objects: sub})
				if err != nil {
					t.Fatal(err)
				}
				sql += fmt.Sprintf("%s; INSERT INTO %s VALUES (0, %d, 2, '', 'r'); INSERT INTO %s VALUES (0, 1, %d, '', '')", note, tables.Reject, sub, tables.Missing, sub) + ";"
			}
			if err := exec(t, conn, sql); err != nil {
				t.Fatal(err)
			}
			got, err := tables.ChunkResult(t.Context(), conn, watermark.Load, source.Range{From: 1, FromSub: 2, To: 1, ToSub: 3})
			if err != nil || got.Objects != 2 {
				t.Errorf("the chunk's result is %+v, %v", got, err)
			}
			if _, err := tables.ChunkResult(t.Context(), conn, watermark.Load, source.Range{From: 1, FromSub: 2, To: 1, ToSub: 4}); err == nil {
				t.Error("a range with another end is taken for the same")
			}
			done, err := tables.Loaded(t.Context(), conn)
			if err != nil || len(done) != 4 {
				t.Errorf("%v are done, %v", done, err)
			}
			want := 3
			if blobs {
				want++
			}
			var found []source.Record
			for after := (*source.Record)(nil); ; after = &found[len(found)-1] {
				next, err := tables.MissingAfter(t.Context(), conn, after, 2)
				if err != nil {
					t.Fatal(err)
				}
				if len(next) == 0 {
					break
				}
				found = append(found, next...)
			}
			if len(found) != want || found[2].TID != 2 || found[2].OID != 1 {
				t.Errorf("missing are %v", found)
			}
		})
	}
}
