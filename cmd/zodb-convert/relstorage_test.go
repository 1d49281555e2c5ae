package main

import (
	"bytes"
	"compress/gzip"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
)

// migrateFromRelStorage is the page that shows the rights of a role that reads.
const migrateFromRelStorage = "../../docs/migrate-from-relstorage.md"

// TestRelStorageScripts runs those whose source is a RelStorage that the real one
// has written (testdata/relstorage). Each script gets these commands besides:
//
//	load ENGINE NAME     puts the database NAME on a server, or into $WORK/sqlite
//	change SQL...        runs statements in the database that was loaded last
//	content FILE         writes what the destination holds, to compare it
//
// load sets for postgresql:
//
//	SOURCE_DSN           connects over TCP as a role that may only read
//	SOURCE_NAME, SOURCE_ROLE, SOURCE_PASSWORD, SOURCE_PORT
//
// and for mysql:
//
//	MYSQL_DB, MYSQL_USER, MYSQL_PWD, MYSQL_HOST, MYSQL_TCP_PORT, MYSQL_SOCKET
func TestRelStorageScripts(t *testing.T) {
	l := &loader{t: t}
	runScripts(t, "testdata/relstorage", nil, map[string]scriptCommand{
		"load": l.load, "change": l.change, "content": content,
	})
}

// TestRelStorageToS3Scripts runs those that need an S3 server, too.
func TestRelStorageToS3Scripts(t *testing.T) {
	l := &loader{t: t}
	commands := s3Commands(t)
	commands["load"], commands["change"], commands["content"] = l.load, l.change, content
	runScripts(t, "testdata/relstorage-s3", s3Environment(t), commands)
}

type loader struct{ t *testing.T }

func (l *loader) load(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: load postgresql|mysql|sqlite NAME")
	}
	suffix := map[string]string{"postgresql": ".pg.sql.gz", "mysql": ".maria.sql.gz", "sqlite": ".sqlite3.gz"}[args[0]]
	f, err := os.Open(filepath.Join(ts.Getenv("DATA"), "relstorage", args[1]+suffix))
	ts.Check(err)
	defer f.Close()
	data, err := gzip.NewReader(f)
	ts.Check(err)
	ts.Setenv("SOURCE_ENGINE", args[0])
	switch args[0] {
	case "postgresql":
		l.postgresql(ts, data)
	case "mysql":
		l.mysql(ts, data)
	default:
		ts.Check(os.MkdirAll(ts.MkAbs("sqlite"), 0o755))
		all, err := io.ReadAll(data)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs("sqlite/main.sqlite3"), all, 0o644))
	}
}

func (l *loader) postgresql(ts *testscript.TestScript, dump io.Reader) {
	server := postgres.Server(l.t)
	dsn := server.NewDatabase(l.t)
	name := regexp.MustCompile(`dbname=(\S+)`).FindStringSubmatch(dsn)[1]
	pipe(ts, dump, server.Tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-d", dsn)
	role := fmt.Sprintf("reader%d", scripts.Add(1))
	password := "pw-of-" + role
	server.NewRole(l.t, role, password)
	rights := strings.ReplaceAll(rightsOfReaders(l.t), "reader", role)
	pipe(ts, strings.NewReader(rights), server.Tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-d", dsn)
	for key, value := range map[string]string{
		"SOURCE_DSN": server.TCPDSN(name, role, password), "SOURCE_NAME": name, "SOURCE_ROLE": role, "SOURCE_PASSWORD": password,
		"SOURCE_PORT": strconv.Itoa(server.Port()), "SOURCE_ADMIN": dsn,
	} {
		ts.Setenv(key, value)
	}
}

// rightsOfReaders is what the page shows to an administrator.
func rightsOfReaders(t *testing.T) string {
	page, err := os.ReadFile(migrateFromRelStorage)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)psql -d zodb <<'SQL'\n(.*?)\nSQL\n`).FindSubmatch(page)
	if m == nil {
		t.Fatal("the page does not show the rights of a role that reads")
	}
	return string(m[1])
}

func (l *loader) mysql(ts *testscript.TestScript, dump io.Reader) {
	server := maria.Server(l.t)
	name := server.NewDatabase(l.t)
	pipe(ts, dump, server.Tool(l.t, "mariadb"), "--no-defaults", "--socket="+server.Socket(), "--user="+mariatest.User, "--password="+mariatest.Password, name)
	user := fmt.Sprintf("reader%d", scripts.Add(1))
	password := "pw-of-" + user
	server.Exec(l.t, name, fmt.Sprintf("CREATE USER %[1]s IDENTIFIED BY '%[2]s'; GRANT SELECT ON %[3]s.* TO %[1]s", user, password, name))
	for key, value := range map[string]string{
		"MYSQL_DB": name, "MYSQL_USER": user, "MYSQL_PWD": password, "MYSQL_HOST": "127.0.0.1", "MYSQL_TCP_PORT": strconv.Itoa(server.Port()),
		"MYSQL_SOCKET": server.Socket(),
	} {
		ts.Setenv(key, value)
	}
}

// pipe gives a program its input.
func pipe(ts *testscript.TestScript, in io.Reader, program string, args ...string) {
	cmd := exec.Command(program, args...)
	cmd.Stdin = in
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		ts.Fatalf("%s: %v\n%s", program, err, out.Bytes())
	}
}

func (l *loader) change(ts *testscript.TestScript, neg bool, statements []string) {
	if neg || len(statements) == 0 {
		ts.Fatalf("usage: change SQL...")
	}
	for _, s := range statements {
		switch in := strings.NewReader(s); ts.Getenv("SOURCE_ENGINE") {
		case "postgresql":
			pipe(ts, in, postgres.Server(l.t).Tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-d", ts.Getenv("SOURCE_ADMIN"))
		case "mysql":
			server := maria.Server(l.t)
			pipe(ts, in, server.Tool(l.t, "mariadb"), "--no-defaults", "--socket="+server.Socket(), "--user="+mariatest.User, "--password="+mariatest.Password, ts.Getenv("MYSQL_DB"))
		case "sqlite":
			db, err := sql.Open("sqlite", ts.MkAbs("sqlite/main.sqlite3"))
			ts.Check(err)
			_, err = db.Exec(s)
			ts.Check(err)
			ts.Check(db.Close())
		default:
			ts.Fatalf("change comes after load")
		}
	}
}

// content writes the rows of the destination.
func content(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: content FILE")
	}
	var all strings.Builder
	for _, q := range []string{
		"select tid, username, description, extension from transaction_log order by tid",
		"select zoid, tid, class_mod, class_name, md5(state::text), state_size, refs from object_state order by zoid",
		"select zoid, tid, blob_size, md5(data) from blob_state order by zoid, tid",
	} {
		all.WriteString(query(ts, "select coalesce(string_agg(q::text, e'\\n'), '') from ("+q+") q") + "\n")
	}
	if query(ts, "select to_regclass('object_history') is not null") == "t" {
		all.WriteString(query(ts, "select coalesce(string_agg(q::text, e'\\n'), '') from (select zoid, tid, md5(state::text) from object_history order by zoid, tid) q") + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(all.String()), 0o644))
}
