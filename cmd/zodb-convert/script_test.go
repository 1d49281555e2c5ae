package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
)

var (
	postgres pgtest.Shared
	s3       s3test.Shared
	maria    mariatest.Shared
	scripts  atomic.Int64 // names the roles
)

// suite runs the tests and then stops the servers: testscript.Main exits.
type suite struct{ *testing.M }

func (s suite) Run() int {
	code := s.M.Run()
	postgres.Close()
	s3.Close()
	maria.Close()
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"zodb-convert": main})
}

// TestScripts runs the command as a user types it, against a real PostgreSQL.
// Each script gets an empty database of its own:
//
//	DSN, PGDATABASE      connect to it as the superuser; psql needs nothing else
//	ZODB_DSN             connects to it over TCP as the role in ROLE, its owner
//	PASSWORD             the password of that role
//	PORT                 the server's TCP port
//	DATA                 the databases in testdata/
//	FAULTY               a zodb-convert that can be struck (package fault)
//
// and these commands besides those of testscript:
//
//	exits CODE PROGRAM ARGUMENT...  runs it; its exit code must be CODE
//	sql QUERY RESULT                the rows, joined by blanks, must be RESULT
//	untouched                       the database must hold no relation at all
//	waitsql QUERY                   waits until its result is t
//	waitlog FILE TEXT               waits until the file holds the text
//	signal NAME                     sends USR1, TERM or HUP to what runs in the background
func TestScripts(t *testing.T) {
	runScripts(t, "testdata/script", nil, nil)
}

// TestS3Scripts runs those that need an S3 server, a real one. Each script gets
// an empty bucket of its own besides:
//
//	S3_BUCKET, S3_URL, S3_REGION    where it is
//	S3_ACCESS, S3_SECRET            the keys of a user who may do everything in it
//	SLOW_URL                        the server behind a line of 2 MB a second
//	NOBODY, NOBODY_SECRET           those of one who may do nothing
//
// and these commands:
//
//	objects KEY...       the bucket must hold exactly these
//	spoil KEY            replaces an object by another one of the same size
//	drop KEY             removes it
//	list                 lets the user list the bucket, too
func TestS3Scripts(t *testing.T) {
	runScripts(t, "testdata/s3", s3Environment(t), s3Commands(t))
}

func s3Environment(t *testing.T) func(*testscript.Env) {
	server := s3.Server(t)
	slow := server.NewProxy(t, faults.Settings{Rate: 2 << 20})
	return func(e *testscript.Env) {
		bucket := server.NewBucket(t)
		access, secret := server.NewUser(t)
		server.Allow(t, bucket, access, "s3:*")
		nobody, nobodySecret := server.NewUser(t)
		for name, value := range map[string]string{
			"S3_BUCKET": bucket, "S3_URL": server.URL(), "S3_REGION": s3test.Region,
			"S3_ACCESS": access, "S3_SECRET": secret,
			"SLOW_URL": slow.URL(),
			"NOBODY":   nobody, "NOBODY_SECRET": nobodySecret,
		} {
			e.Setenv(name, value)
		}
	}
}

func s3Commands(t *testing.T) map[string]scriptCommand {
	server := s3.Server(t)
	return map[string]scriptCommand{
		"objects": func(ts *testscript.TestScript, neg bool, want []string) {
			have := slices.Sorted(maps.Keys(server.Snapshot(t, ts.Getenv("S3_BUCKET"))))
			slices.Sort(want)
			if slices.Equal(have, want) == neg {
				ts.Fatalf("the bucket holds %d objects: %s", len(have), strings.Join(have, " "))
			}
		},
		"spoil": func(ts *testscript.TestScript, neg bool, keys []string) {
			for _, key := range keys {
				data := server.Get(t, ts.Getenv("S3_BUCKET"), key)
				server.Put(t, ts.Getenv("S3_BUCKET"), key, bytes.Repeat([]byte("?"), len(data)), nil)
			}
		},
		"list": func(ts *testscript.TestScript, neg bool, _ []string) {
			server.Allow(t, ts.Getenv("S3_BUCKET"), ts.Getenv("S3_ACCESS"), "s3:*", "s3:ListBucket")
		},
		"drop": func(ts *testscript.TestScript, neg bool, keys []string) {
			for _, key := range keys {
				bucket := ts.Getenv("S3_BUCKET")
				_, err := server.Client(t).DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: &bucket, Key: &key})
				ts.Check(err)
			}
		},
	}
}

type scriptCommand = func(*testscript.TestScript, bool, []string)

func runScripts(t *testing.T, dir string, setUp func(*testscript.Env), more map[string]scriptCommand) {
	server := postgres.Server(t)
	faulty := faultyProgram(t)
	data, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]scriptCommand{
		"exits":     exits,
		"sql":       sqlResult,
		"untouched": untouched,
		"waitsql":   waitSQL,
		"waitlog":   waitLog,
		"signal":    sendSignal,
	}
	maps.Copy(commands, more)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			role := fmt.Sprintf("zodb%d", scripts.Add(1))
			password := "pw-of-" + role
			server.NewRole(t, role, password)
			dsn := server.NewDatabase(t, "OWNER "+role)
			c, err := pgconn.ParseConfig(dsn)
			if err != nil {
				return err
			}
			for name, value := range map[string]string{
				"DSN":        dsn,
				"PGHOST":     c.Host,
				"PGPORT":     strconv.Itoa(int(c.Port)),
				"PGUSER":     c.User,
				"PGDATABASE": c.Database,
				"ROLE":       role,
				"PASSWORD":   password,
				"ZODB_DSN":   server.TCPDSN(c.Database, role, password),
				"PORT":       strconv.Itoa(server.Port()),
				"DATA":       data,
				"FAULTY":     faulty,
				"PATH":       filepath.Dir(server.Tool("psql")) + string(filepath.ListSeparator) + e.Getenv("PATH"),
				"HOME":       e.WorkDir,
				"TERM":       "dumb",
			} {
				e.Setenv(name, value)
			}
			if setUp != nil {
				setUp(e)
			}
			return nil
		},
		Cmds: commands,
	})
}

// faultyProgram builds the command with the tag "faults".
func faultyProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zodb-convert")
	if out, err := exec.Command("go", "build", "-tags", "faults", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build -tags faults: %v\n%s", err, out)
	}
	return path
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// query asks the script's database.
func query(ts *testscript.TestScript, sql string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgconn.Connect(ctx, ts.Getenv("DSN"))
	ts.Check(err)
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	ts.Check(err)
	var values []string
	for _, r := range results {
		for _, row := range r.Rows {
			for _, v := range row {
				values = append(values, string(v))
			}
		}
	}
	return strings.Join(values, " ")
}

func sqlResult(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: sql QUERY RESULT")
	}
	if got := query(ts, args[0]); (got == args[1]) == neg {
		ts.Fatalf("the result is %q", got)
	}
}

func untouched(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: untouched")
	}
	got := query(ts, `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname NOT LIKE 'pg_temp%'
		UNION ALL SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')`)
	if got != "" {
		ts.Fatalf("the database holds %s", got)
	}
}

const patience = 30 * time.Second

// poll asks until the answer is yes.
func poll(ts *testscript.TestScript, what string, yes func() bool) {
	for end := time.Now().Add(patience); !yes(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("waited %v in vain for %s", patience, what)
		}
	}
}

func waitSQL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitsql QUERY")
	}
	poll(ts, args[0], func() bool { return query(ts, args[0]) == "t" })
}

func waitLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitlog FILE TEXT")
	}
	path := ts.MkAbs(args[0])
	poll(ts, args[1], func() bool {
		text, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(text), args[1])
	})
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	names := map[string]syscall.Signal{"USR1": syscall.SIGUSR1, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "INT": syscall.SIGINT}
	if neg || len(args) != 1 || names[args[0]] == 0 {
		ts.Fatalf("usage: signal USR1|TERM|HUP|INT")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(names[args[0]]))
	}
}
