package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// isRefused checks that err is one sentence that says what it must, and no
// password.
func isRefused(t *testing.T, err error, says ...string) {
	t.Helper()
	var refused *dest.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("not refused: %v", err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
	if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%q has a password or several lines", err)
	}
}

// state opens a destination and asks for its state. The survey must say the same.
func state(t *testing.T, dsn string, workers int) (*dest.State, error) {
	t.Helper()
	d, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: dsn})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := d.State(ctx, workers)
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if told := d.Survey(ctx, workers).Problem; told != problem {
		t.Errorf("the survey says %q, the state %q", told, problem)
	}
	return got, err
}

func TestServersThatCannotBeUsedAreRefused(t *testing.T) {
	s := postgres.Server(t)
	d := newDatabase(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	_, silentPort, _ := net.SplitHostPort(silent.Addr().String())
	_, closedPort, _ := net.SplitHostPort(closed.Addr().String())
	latin := s.NewDatabase(t, "OWNER zope ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
	noRights := s.NewDatabase(t)
	readOnly := newDatabase(t)
	readOnly.exec(t, "ALTER DATABASE "+readOnly.name()+" SET default_transaction_read_only = on")
	limited := s.NewDatabase(t, "OWNER zope CONNECTION LIMIT 3")
	noSchema := newDatabase(t)
	noSchema.exec(t, "ALTER DATABASE "+noSchema.name()+" SET search_path = missing")

	for name, c := range map[string]struct {
		dsn     string
		workers int
		says    []string
	}{
		"no DSN syntax":    {"host=localhost port=x password=secret", 1, []string{"connection string"}},
		"unknown URL port": {"postgresql://zope:secret@localhost:x/db", 1, []string{"connection string"}},
		"nobody listens":   {"host=127.0.0.1 password=secret user=zope port=" + closedPort, 1, []string{"127.0.0.1:" + closedPort, "refused"}},
		"no socket":        {"host=/tmp/missing-socket user=zope password=secret", 1, []string{"/tmp/missing-socket", "cannot be reached"}},
		"no answer":        {"host=127.0.0.1 connect_timeout=1 user=zope password=secret sslmode=disable port=" + silentPort, 1, []string{"does not answer"}},
		"unknown host":     {"host=no-such-host.invalid user=zope password=secret", 1, []string{"no-such-host.invalid"}},
		"wrong password":   {s.TCPDSN(d.name(), "zope", "wrong-secret"), 1, []string{`"zope"`, "password"}},
		"missing database": {s.DSNAs("nowhere", "zope"), 1, []string{`no database "nowhere"`, "createdb"}},
		"unknown role":     {s.DSNAs(d.name(), "nobody_here"), 1, []string{"nobody_here"}},
		"no TLS":           {s.TCPDSN(d.name(), "zope", "zope-secret") + " sslmode=verify-full", 1, []string{"TLS"}},
		"another encoding": {strings.Replace(latin, "user=postgres", "user=zope", 1), 1, []string{"LATIN1", "UTF8"}},
		"no CREATE right":  {strings.Replace(noRights, "user=postgres", "user=zope", 1), 1, []string{"may not create", "GRANT"}},
		"read-only":        {readOnly.dsn, 1, []string{"read-only"}},
		"too many workers": {d.dsn, 1000, []string{"1001 are needed", "-w"}},
		"database is full": {strings.Replace(limited, "user=postgres", "user=zope", 1), 3, []string{"3 free connections", "4 are needed"}},
		"no schema to use": {noSchema.dsn, 1, []string{"search path"}},
		"unknown setting":  {d.dsn + " options='-c statement_timeout=1 -c nonsense=1'", 1, []string{"nonsense"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := state(t, c.dsn, c.workers)
			isRefused(t, err, c.says...)
		})
	}
}

func TestConnectionStringsAreTakenAsLibpqTakesThem(t *testing.T) {
	s, d := postgres.Server(t), newDatabase(t)
	t.Setenv("PGPASSFILE", filepath.Join(t.TempDir(), "pass"))
	if err := os.WriteFile(os.Getenv("PGPASSFILE"), fmt.Appendf(nil, "127.0.0.1:%d:*:zope:zope-secret\n", s.Port()), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", filepath.Join(t.TempDir(), "service"))
	if err := os.WriteFile(os.Getenv("PGSERVICEFILE"), fmt.Appendf(nil, "[site]\nhost=127.0.0.1\nport=%d\nuser=zope\ndbname=%s\n", s.Port(), d.name()), 0o600); err != nil {
		t.Fatal(err)
	}
	tcp := fmt.Sprintf("host=127.0.0.1 port=%d user=zope dbname=%s ", s.Port(), d.name())
	for _, dsn := range []string{
		tcp + "password=zope-secret",
		tcp, // .pgpass
		"service=site",
		fmt.Sprintf("postgresql://zope:zope-secret@127.0.0.1:%d/%s?sslmode=prefer&application_name=x", s.Port(), d.name()),
		tcp + "keepalives=1 keepalives_idle=10 gssencmode=disable fallback_application_name=x connect_timeout=3 target_session_attrs=read-write",
		fmt.Sprintf("host=db.invalid hostaddr=127.0.0.1 port=%d user=zope dbname=%s password=zope-secret", s.Port(), d.name()),
		d.dsn + " options='-c statement_timeout=20ms -c lock_timeout=20ms -c search_path=public'",
	} {
		got, err := state(t, dsn, 1)
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
		} else if got.Condition != dest.Absent {
			t.Errorf("%s: %s", dsn, got.Condition)
		}
	}
}

func TestOtherTablesOfTheSameNamesAreRefused(t *testing.T) {
	tables := "CREATE TABLE transaction_log (tid bigint PRIMARY KEY, username text, description text, extension bytea);" +
		"CREATE TABLE object_state (zoid bigint PRIMARY KEY, tid bigint, class_mod text, class_name text, state jsonb, state_size integer, refs bigint[]);" +
		"CREATE TABLE blob_state (zoid bigint, tid bigint, blob_size bigint, data bytea, s3_key text);"
	for name, c := range map[string]struct {
		sql, says string
	}{
		"of another program":       {"CREATE TABLE transaction_log (id int)", "no table"},
		"only objects":             {"CREATE TABLE object_state (zoid bigint)", "no transaction_log"},
		"of a RelStorage":          {"CREATE TABLE object_state (zoid bigint, tid bigint, state bytea)", "holds a RelStorage"},
		"a view":                   {tables + "ALTER TABLE blob_state RENAME TO b; CREATE VIEW blob_state AS SELECT * FROM b", "not an ordinary table"},
		"a missing column":         {tables + "ALTER TABLE object_state DROP COLUMN refs", "no column refs"},
		"another type":             {tables + "ALTER TABLE object_state ALTER state TYPE json", "column state of object_state is json"},
		"a column without default": {tables + "ALTER TABLE object_state ADD COLUMN more int NOT NULL", "column more"},
		"unlogged":                 {tables + "ALTER TABLE object_state SET UNLOGGED", "unlogged"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, c.sql)
			before := d.Schema(t)
			_, err := state(t, d.dsn, 1)
			isRefused(t, err, c.says)
			_, err = run(t, d, desttest.Sample(false), false, nil)
			isRefused(t, err, c.says)
			if d.Schema(t) != before {
				t.Error("the schema was changed")
			}
		})
	}
	d := newDatabase(t)
	d.server.Exec(t, d.server.DSN(d.name()), tables+"GRANT ALL ON transaction_log, object_state, blob_state TO zope")
	_, err := state(t, d.dsn, 1)
	isRefused(t, err, "does not own")
}

func TestARelStorageInAnotherSchemaIsLeftAlone(t *testing.T) {
	d := newDatabase(t)
	d.exec(t, "CREATE TABLE object_state (zoid bigint PRIMARY KEY, tid bigint, state bytea); CREATE SEQUENCE zoid_seq; INSERT INTO object_state VALUES (0, 1, 'x'); CREATE SCHEMA new")
	d.dsn += " options='-c search_path=new,public'"
	for _, clear := range []bool{false, true} {
		if _, err := run(t, d, desttest.Sample(false), false, func(p *dest.Plan) { p.Clear = clear }); err != nil {
			t.Fatal(err)
		}
		for query, want := range map[string]string{
			"SELECT count(*) FROM public.object_state":  "1",
			"SELECT is_called FROM public.zoid_seq":     "f",
			"SELECT count(*) > 0 FROM new.object_state": "t",
		} {
			if got := d.query(t, query); !slices.Equal(got, []string{want}) {
				t.Errorf("%s: %q", query, got)
			}
		}
	}
}

func TestSourcesThatCannotBeWrittenAreRefused(t *testing.T) {
	one := func(oid zodb.OID, tids ...zodb.TID) *desttest.Builder {
		b := desttest.NewBuilder()
		for _, tid := range tids {
			b.Commit(desttest.Transaction{TID: tid}, desttest.Record{OID: oid, Data: desttest.Data("a", "B", "c")})
		}
		return b
	}
	blob := desttest.NewBuilder()
	blob.Commit(desttest.Transaction{TID: 1 << 40}, desttest.Record{OID: 7, Data: desttest.Data("ZODB.blob", "Blob", "")})
	for name, c := range map[string]struct {
		b       *desttest.Builder
		history bool
		says    []string
	}{
		"oid":                       {one(zodb.Limit, 1<<40), false, []string{"oid 0x7fffffff00000000"}},
		"tid":                       {one(1, zodb.Limit), false, []string{"tid 0x7fffffff00000000"}},
		"equal tids":                {one(1, 1<<40, 1<<40), false, []string{"0x0000010000000000"}},
		"falling tids with history": {one(1, 2<<40, 1<<40), true, []string{"0x0000010000000000", "0x0000020000000000"}},
		"blobs":                     {blob, false, []string{"1 blob record", "0x0000000000000007"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			_, err := run(t, d, c.b, c.history, nil)
			isRefused(t, err, c.says...)
			if got := d.query(t, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"); got[0] != "0" {
				t.Error("something was made")
			}
		})
	}
	// Without history tids may fall, and the newest record counts.
	d, b := newDatabase(t), one(1, 2<<40, 1<<40)
	convert(t, d, b, false)
	if got := d.query(t, "SELECT zoid, tid FROM object_state"); len(got) != 1 || got[0] != fmt.Sprintf("1|%d", 1<<40) {
		t.Errorf("the rows are %v", got)
	}
}

func TestTheSiteThatWasStartedOnceGetsItsOwnSentence(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false).Prefix(1), false)
	got, err := state(t, d.dsn, 1)
	if err != nil || got.Condition != dest.Filled || !got.RootOnly {
		t.Fatalf("%+v, %v", got, err)
	}
	_, err = run(t, d, desttest.Sample(false), false, nil)
	isRefused(t, err, "root object and nothing else", "--clear")
	_, err = run(t, d, desttest.Sample(false), false, func(p *dest.Plan) { p.Clear = true })
	if err != nil {
		t.Fatal(err)
	}
}

func TestTablesInUseAreNamedWithTheirSession(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.NewBuilder(), false) // makes the tables
	conn, err := pgconn.Connect(t.Context(), d.dsn+" application_name=Plone")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "BEGIN; SELECT count(*) FROM object_state").ReadAll(); err != nil {
		t.Fatal(err)
	}
	before := d.Schema(t)
	_, err = run(t, d, desttest.Sample(false), false, nil)
	isRefused(t, err, fmt.Sprintf("process %d", conn.PID()), `"Plone"`, "idle in transaction")
	if d.Schema(t) != before {
		t.Error("the schema was changed")
	}
	if _, err := conn.Exec(t.Context(), "ROLLBACK").ReadAll(); err != nil {
		t.Fatal(err)
	}
	convert(t, d, desttest.Sample(false), false)
}

func TestCatchingUpIsRefusedWhereSomebodyElseHasWritten(t *testing.T) {
	for name, c := range map[string]struct {
		sql     string
		history bool
		says    []string
	}{
		"the site has written": {"INSERT INTO transaction_log (tid, username) VALUES (288230376151711744, 'bob')", false,
			[]string{"0x0400000000000000", `"bob"`}},
		"another user": {"UPDATE transaction_log SET username = 'eve' WHERE tid = (SELECT max(tid) FROM transaction_log)", false,
			[]string{`"eve"`}},
		"another description": {"UPDATE transaction_log SET description = 'x' WHERE tid = (SELECT max(tid) FROM transaction_log)", false,
			[]string{"described"}},
		"another object": {"UPDATE object_state SET zoid = 99999 WHERE tid = (SELECT max(tid) FROM transaction_log) AND zoid <> 0", false,
			[]string{"0x000000000001869f"}},
		"a revision is missing": {"DELETE FROM object_history WHERE tid = (SELECT max(tid) FROM transaction_log)", true,
			[]string{"2 objects there and 3"}},
		"a transaction is missing": {"ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey; DELETE FROM transaction_log WHERE tid = (SELECT min(tid) FROM transaction_log)", false,
			[]string{"lacks 1 transaction of the source"}},
		"without its history": {"ALTER TABLE object_history RENAME TO elsewhere", true,
			[]string{"history-free"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			convert(t, d, desttest.Sample(c.history), c.history)
			d.exec(t, c.sql)
			dst := d.Open(t, c.history)
			l, err := begin(t, dst, desttest.Sample(c.history), func(p *dest.Plan) { p.Continue = true })
			if err == nil {
				_, err = l.session.Verify(t.Context(), l.src)
			}
			isRefused(t, err, c.says...)
		})
	}
}

func TestStandbyIsRefused(t *testing.T) {
	s := pgtest.Start(t, pgtest.Setting("hot_standby", "on"))
	s.NewRole(t, "zope", "zope-secret")
	dsn := s.NewDatabase(t, "OWNER zope")
	if err := s.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.DataDir(), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(); err != nil {
		t.Fatal(err)
	}
	_, err := state(t, strings.Replace(dsn, "user=postgres", "user=zope", 1), 1)
	isRefused(t, err, "standby")
}
