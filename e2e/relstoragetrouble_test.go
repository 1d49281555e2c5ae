//go:build faults

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

// toolConfig is a configuration of the command: the site as its own zope.conf
// would name it, and a destination.
func (s *site) toolConfig(t *testing.T, dsn string, history bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "convert.conf")
	text := s.storage("source") + fmt.Sprintf("\n%%import zodb_pgjsonb\n<pgjsonb destination>\n  dsn %s\n  history-preserving %v\n</pgjsonb>\n", dsn, history)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// command is one call of the command by an administrator.
func command(t *testing.T, faults string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := tool()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"-q", "-w", "2"}, args...)...)
	cmd.Env = append(os.Environ(), "ZODB_CONVERT_FAULT="+faults)
	return cmd
}

// refusal runs a command that has to fail with code 1 and a message: a sentence
// and, below it, what to do. It returns the message.
func refusal(t *testing.T, cmd *exec.Cmd, secrets ...string) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	text := string(out)
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d instead of 1 (%v): %s", code, err, text)
	}
	message(t, text, secrets...)
	return text
}

// message judges what a failed command says.
func message(t *testing.T, text string, secrets ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > 3 || strings.Contains(text, "goroutine ") || lines[0] == "" {
		t.Errorf("not a sentence and what to do: %q", text)
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("a password was printed: %q", text)
		}
	}
	t.Logf("%s", text)
}

// trouble is a source that cannot be converted.
type trouble struct {
	name string
	kind kind
	// spoil does it to a copy of a good one.
	spoil func(t *testing.T, s *site)
	// says is a part of the message.
	says string
}

func troubles() []trouble {
	hf, hp, lite, maria := kinds[0], kinds[2], kinds[3], kinds[4]
	sql := func(text string) func(*testing.T, *site) {
		return func(t *testing.T, s *site) {
			t.Helper()
			switch e := s.engine.(type) {
			case postgreSQL:
				e.server.Exec(t, s.opts.PostgreSQL, text)
			case mariaDB:
				e.server.Exec(t, s.opts.MySQL.Database, text)
			default:
				t.Fatal("no server")
			}
		}
	}
	all := []trouble{
		{"PostgreSQL, wrong password", hf, wrongPassword, "password"},
		{"MariaDB, wrong password", maria, wrongPassword, "assword"},
		{"PostgreSQL HF, no object_state", hf, sql("DROP TABLE object_state CASCADE"), "object_state"},
		{"PostgreSQL HP, no object_state", hp, sql("DROP TABLE object_state CASCADE"), "object_state"},
		{"PostgreSQL HP, no current_object", hp, sql("DROP TABLE current_object CASCADE"), "current_object"},
		{"PostgreSQL HP, no transaction", hp, sql("DROP TABLE transaction CASCADE"), "transaction"},
		{"MariaDB HF, no object_state", maria, sql("SET foreign_key_checks = 0; DROP TABLE object_state"), "object_state"},
		{"PostgreSQL HF, a column is missing", hf, sql("ALTER TABLE object_state RENAME state TO pickle"), "state"},
		{"PostgreSQL HP, a column is missing", hp, sql("ALTER TABLE transaction RENAME username TO who"), "username"},
		{"PostgreSQL HF, blobs of another kind", hf, sql("ALTER TABLE blob_chunk RENAME chunk TO piece"), "chunk"},
		{"SQLite, no database", lite, func(t *testing.T, s *site) {
			if err := os.Remove(filepath.Join(s.opts.SQLite, "main.sqlite3")); err != nil {
				t.Fatal(err)
			}
		}, "main.sqlite3"},
		{"SQLite, no SQLite", lite, func(t *testing.T, s *site) {
			if err := os.WriteFile(filepath.Join(s.opts.SQLite, "main.sqlite3"), bytes.Repeat([]byte("no database "), 1000), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "main.sqlite3"},
	}
	for _, table := range []string{"object_state", "blob_chunk"} {
		all = append(all, trouble{"PostgreSQL HF, no right on " + table, hf, withoutRight(table), table},
			trouble{"MariaDB HF, no right on " + table, maria, withoutRight(table), table})
	}
	for _, table := range []string{"object_state", "transaction", "current_object"} {
		all = append(all, trouble{"PostgreSQL HP, no right on " + table, hp, withoutRight(table), table})
	}
	return all
}

const wrongSecret = "wrong-secret-of-e2e"

// wrongPassword makes the configuration, not the database, wrong.
func wrongPassword(t *testing.T, s *site) {
	t.Helper()
	switch e := s.engine.(type) {
	case postgreSQL:
		s.section, s.opts = e.at(e.server.TCPDSN(databaseName(s.opts.PostgreSQL), pgtest.Superuser, wrongSecret))
	case mariaDB:
		s.section = strings.Replace(s.section, mariatest.Password, wrongSecret, 1)
	}
}

// withoutRight makes a role that may read every table but one.
func withoutRight(table string) func(*testing.T, *site) {
	return func(t *testing.T, s *site) {
		t.Helper()
		switch e := s.engine.(type) {
		case postgreSQL:
			role := "without_" + table
			if len(e.server.Query(t, s.opts.PostgreSQL, "SELECT 1 FROM pg_roles WHERE rolname = '"+role+"'")) == 0 {
				e.server.NewRole(t, role, "reader")
			}
			e.server.Exec(t, s.opts.PostgreSQL, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role+"; REVOKE ALL ON "+table+" FROM "+role)
			s.section, s.opts = e.at(e.server.DSNAs(databaseName(s.opts.PostgreSQL), role))
		case mariaDB:
			db := s.opts.MySQL.Database
			grants := "CREATE OR REPLACE USER reader@'localhost' IDENTIFIED BY 'reader-secret';"
			for _, other := range e.server.Query(t, db, "SHOW TABLES") {
				if other != table {
					grants += fmt.Sprintf("GRANT SELECT ON `%s`.`%s` TO reader@'localhost';", db, other)
				}
			}
			e.server.Exec(t, db, grants)
			s.section = strings.NewReplacer(mariatest.Password, "reader-secret", "user "+mariatest.User, "user reader").Replace(s.section)
		}
	}
}

func TestTroubleWithRelStorageIsOneSentenceAndChangesNothing(t *testing.T) {
	pg := postgres.Server(t)
	sites := make(map[string]*site)
	whole := t // whose end is that of the sites
	for _, c := range troubles() {
		t.Run(c.name, func(t *testing.T) {
			good := sites[c.kind.name]
			if good == nil {
				good = newSite(whole, c.kind.engine(t), c.kind.source, c.kind.blobs)
				good.work(t, 5, 30)
				sites[c.kind.name] = good
			}
			s := good.earlier(t)
			c.spoil(t, s)
			dsn := pg.NewDatabase(t)
			before := pg.Snapshot(t, dsn)
			text := refusal(t, command(t, "", s.toolConfig(t, dsn, c.kind.history)), wrongSecret, mariatest.Password, "reader-secret")
			if !strings.Contains(text, c.says) {
				t.Errorf("the message does not name %q", c.says)
			}
			if d := cmp.Diff(before, pg.Snapshot(t, dsn)); d != "" {
				t.Errorf("the destination was changed (-before +after):\n%s", d)
			}
		})
	}
}

// The command says how to go on after a connection to the source was cut: before
// it has read a row, and where there may be nothing left to read but blobs.
func TestCutConnectionsToRelStorage(t *testing.T) {
	pg := postgres.Server(t)
	for _, k := range kinds {
		if strings.HasPrefix(k.name, "SQLite") {
			continue // it has no connection
		}
		t.Run(k.name, func(t *testing.T) {
			s := newSite(t, k.engine(t), k.source, k.blobs)
			s.work(t, 9, 120)
			before := s.engine.tables(t, s)
			for _, point := range []string{"claim.committed", "chunk.commit"} {
				k.cutAt(t, pg, s, point)
			}
			if d := cmp.Diff(before, s.engine.tables(t, s)); d != "" {
				t.Errorf("the source was changed (-before +after):\n%s", d)
			}
		})
	}
}

func (k kind) cutAt(t *testing.T, pg *pgtest.Server, s *site, point string) {
	t.Helper()
	c := k.conversion(s, pg.NewDatabase(t))
	config := s.toolConfig(t, c.DSN, k.history)
	mark := filepath.Join(t.TempDir(), "reached")
	cmd := command(t, point+":1:sh=touch "+mark+"; while [ ! -e "+mark+".done ]; do sleep 0.02; done", config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	awaitFile(t, mark, ended, &out)
	s.cutConnections(t)
	if err := os.WriteFile(mark+".done", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	switch err := <-ended; {
	case err == nil && point == "claim.committed":
		t.Error("it says that all is done")
	case err != nil:
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		message(t, out.String())
		if !strings.Contains(out.String(), "--incremental") {
			t.Errorf("it does not say how to go on: %s", &out)
		}
	}
	if out, err := command(t, "", "--incremental", config).CombinedOutput(); err != nil {
		t.Fatalf("go on: %v\n%s", err, out)
	}
	k.compareWithFresh(t, pg, s, c)
}

// awaitFile waits until a program has made a file.
func awaitFile(t *testing.T, path string, ended <-chan error, out *bytes.Buffer) {
	t.Helper()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended before the place was reached: %v\n%s", err, out)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// cutConnections ends every connection to the site's database.
func (s *site) cutConnections(t *testing.T) {
	t.Helper()
	switch e := s.engine.(type) {
	case postgreSQL:
		e.server.Query(t, s.opts.PostgreSQL, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	case mariaDB:
		for _, id := range e.server.Query(t, "", "SELECT id FROM information_schema.processlist WHERE db = '"+s.opts.MySQL.Database+"'") {
			e.server.Exec(t, "", "KILL "+id)
		}
	}
}

// A pack removes rows in pieces. In its middle, and where it was interrupted,
// the database is converted as it is, and caught up with when it is packed.
func TestInTheMiddleOfAPack(t *testing.T) {
	pg := postgres.Server(t)
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			s := newSite(t, k.engine(t), k.source, k.blobs)
			s.work(t, 11, 120)
			server := s.engine.(postgreSQL).server
			ctx := context.Background()
			// Whoever holds rows that are to be removed stops a pack there.
			conn, err := pgx.Connect(ctx, s.opts.PostgreSQL)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(ctx)
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "SELECT zoid FROM object_state WHERE zoid <> 0 FOR UPDATE"); err != nil {
				t.Fatal(err)
			}
			live := s.live(t, 12, "--pack", "1")
			live.await(1)
			for len(server.Query(t, s.opts.PostgreSQL, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			c := k.conversion(s, pg.NewDatabase(t))
			config := s.toolConfig(t, c.DSN, k.history)
			if out, err := command(t, "", config).CombinedOutput(); err != nil {
				t.Fatalf("while the pack waits: %v\n%s", err, out)
			}
			k.compareWithFresh(t, pg, s, c)

			// Interrupted: what it has marked stays marked.
			s.cutPack(t)
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			_ = live.cmd.Process.Kill()
			<-live.ended
			if out, err := command(t, "", "--incremental", config).CombinedOutput(); err != nil {
				t.Fatalf("after the interrupted pack: %v\n%s", err, out)
			}
			k.compareWithFresh(t, pg, s, c)

			s.work(t, 13, 1, "--pack", "1")
			if out, err := command(t, "", "--incremental", config).CombinedOutput(); err != nil {
				t.Fatalf("after the pack: %v\n%s", err, out)
			}
			k.compareWithFresh(t, pg, s, c)
		})
	}
}

// cutPack ends the connection of a pack that waits for a row.
func (s *site) cutPack(t *testing.T) {
	t.Helper()
	s.engine.(postgreSQL).server.Query(t, s.opts.PostgreSQL,
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
}
