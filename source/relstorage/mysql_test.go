//go:build unix

package relstorage

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
)

// mysqlOn names a database of a test server.
func mysqlOn(s *mariatest.Server, db string) *MySQL {
	return &MySQL{UnixSocket: s.Socket(), User: mariatest.User, Password: mariatest.Password, Database: db}
}

// viewOf opens a view.
func viewOf(t testing.TB, opts Options, n int) (engine, []conn, string) {
	t.Helper()
	e, err := newEngine(&opts)
	if err != nil {
		t.Fatal(err)
	}
	conns, note, err := e.view(t.Context(), n)
	if err != nil {
		t.Fatal(e.plain(err))
	}
	t.Cleanup(func() { closeAll(conns) })
	return e, conns, note
}

// ask gives the rows of a query as text; numbers stand in decimal.
func ask(t testing.TB, c conn, q string) []string {
	t.Helper()
	rows, err := tryAsk(t.Context(), c, q)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return rows
}

func tryAsk(ctx context.Context, c conn, q string) (rows []string, err error) {
	err = c.query(ctx, q, func(r row) error {
		var parts []string
		for i, v := range r.values {
			switch {
			case v == nil:
				parts = append(parts, "NULL")
			case r.binary && len(v) == 8:
				n, err := r.int(i)
				if err != nil {
					return err
				}
				parts = append(parts, fmt.Sprint(n))
			default:
				parts = append(parts, string(v))
			}
		}
		rows = append(rows, strings.Join(parts, "|"))
		return nil
	})
	return rows, err
}

// historyFree and historyPreserving are the tables that are read, as RelStorage
// makes them in MariaDB.
const (
	historyFree = `
CREATE TABLE object_state (zoid BIGINT NOT NULL PRIMARY KEY, tid BIGINT NOT NULL CHECK (tid > 0), state_size BIGINT NOT NULL CHECK (state_size >= 0), state LONGBLOB, KEY (tid)) ENGINE = InnoDB;
CREATE TABLE blob_chunk (zoid BIGINT NOT NULL, chunk_num BIGINT NOT NULL, tid BIGINT NOT NULL, chunk LONGBLOB NOT NULL, PRIMARY KEY (zoid, chunk_num)) ENGINE = InnoDB;`
	historyPreserving = "CREATE TABLE `transaction` (tid BIGINT UNSIGNED NOT NULL PRIMARY KEY, packed BOOLEAN NOT NULL DEFAULT FALSE, is_empty BOOLEAN NOT NULL DEFAULT FALSE, username BLOB NOT NULL, description BLOB NOT NULL, extension BLOB) ENGINE = InnoDB;" + `
CREATE TABLE object_state (zoid BIGINT NOT NULL, tid BIGINT NOT NULL, prev_tid BIGINT NOT NULL, md5 CHAR(32), state_size BIGINT NOT NULL, state LONGBLOB, PRIMARY KEY (zoid, tid), KEY (tid)) ENGINE = InnoDB;
CREATE TABLE current_object (zoid BIGINT NOT NULL PRIMARY KEY, tid BIGINT NOT NULL, KEY (tid)) ENGINE = InnoDB;
CREATE TABLE blob_chunk (zoid BIGINT NOT NULL, tid BIGINT NOT NULL, chunk_num BIGINT NOT NULL, chunk LONGBLOB NOT NULL, PRIMARY KEY (zoid, tid, chunk_num)) ENGINE = InnoDB;`
)

// loadFixture fills a new database with what the real RelStorage has written.
func loadFixture(t testing.TB, s *mariatest.Server, name string) (db string) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "testdata", "relstorage", name+".maria.sql.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	db = s.NewDatabase(t)
	cmd := exec.Command(s.Tool(t, "mariadb"), "--no-defaults", "--socket="+s.Socket(), "--user="+mariatest.User, db)
	cmd.Env = append(os.Environ(), "MYSQL_PWD="+mariatest.Password)
	cmd.Stdin = z
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("load %s: %v\n%s", name, err, out)
	}
	return db
}

func TestMariaDB(t *testing.T) {
	server := mariatest.Start(t)
	t.Run("values come as they are", func(t *testing.T) { testMySQLValues(t, server) })
	t.Run("what RelStorage has written is found", func(t *testing.T) { testMySQLFixtures(t, server) })
	t.Run("all connections see one state", func(t *testing.T) { testMySQLViews(t, server) })
	t.Run("fast commits are stopped for a moment, or one connection reads", func(t *testing.T) { testMySQLFastCommits(t, server) })
	t.Run("a lock is not waited for", func(t *testing.T) { testMySQLLock(t, server) })
	t.Run("too few connections", func(t *testing.T) { testMySQLFewConnections(t, server) })
	t.Run("trouble is one sentence", func(t *testing.T) { testMySQLTrouble(t, server) })
	t.Run("changes of the schema", func(t *testing.T) { testMySQLSchemaChange(t, server) })
	t.Run("blobs", func(t *testing.T) { testMySQLBlobs(t, server) })
	t.Run("large values", func(t *testing.T) { testMySQLLargeValues(t, server) })
	t.Run("identity", func(t *testing.T) { testMySQLIdentity(t, server) })
	t.Run("ways to connect", func(t *testing.T) { testMySQLConnect(t, server) })
	t.Run("a restart costs the view", func(t *testing.T) { testMySQLRestart(t, server) })
}

func testMySQLValues(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	server.Exec(t, db, historyFree+fmt.Sprintf(`
CREATE TABLE v (n INT PRIMARY KEY, small TINYINT, big BIGINT, huge BIGINT UNSIGNED, bytes LONGBLOB, word VARCHAR(20) CHARACTER SET latin1);
INSERT INTO v VALUES (1, -1, -9223372036854775808, 9223372036854775807, x'%x', x'fc'), (2, NULL, 9223372036854775807, 0, '', ''), (3, 0, 0, 1, NULL, NULL)`, all))
	for _, mode := range []string{"", "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES", "STRICT_ALL_TABLES,PAD_CHAR_TO_FULL_LENGTH"} {
		server.Exec(t, "", "SET GLOBAL sql_mode = '"+mode+"'")
		_, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 1)
		got := ask(t, conns[0], "SELECT n, small, big, huge, bytes, word FROM v ORDER BY n")
		want := []string{
			"1|-1|-9223372036854775808|9223372036854775807|" + string(all) + "|\xfc",
			"2|NULL|9223372036854775807|0||", "3|0|0|1|NULL|NULL",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("sql_mode %q (-want +got):\n%s", mode, d)
		}
		d := mysqlDialect
		got = ask(t, conns[0], "SELECT "+d.size("bytes")+", "+d.contains("bytes", []byte("'\\\"%"))+", "+d.contains("bytes", []byte{0, 1, 2})+", COUNT(*) + 0.0 FROM v WHERE n = 1")
		if got[0] != "256|0|1|1.0" {
			t.Errorf("sql_mode %q: size and contains give %q", mode, got)
		}
	}
	server.Exec(t, "", "SET GLOBAL sql_mode = DEFAULT")
}

func testMySQLFixtures(t *testing.T, server *mariatest.Server) {
	for _, name := range []string{"history", "blobs", "edges"} {
		for _, history := range []bool{false, true} {
			full := name + map[bool]string{false: "-hf", true: "-hp"}[history]
			s, err := Open(t.Context(), Options{MySQL: mysqlOn(server, loadFixture(t, server, full)), Connections: 3})
			if err != nil {
				t.Errorf("%s: %v", full, err)
				continue
			}
			if s.history != history {
				t.Errorf("%s: history is %v", full, s.history)
			}
			s.Close()
		}
	}
}

// fingerprint is a query whose result two states share only if they are the
// same.
func fingerprint(history bool) string {
	q := "SELECT COUNT(*), MAX(tid), SUM(zoid), SUM(tid %% 1000003), SUM(LENGTH(state))%s FROM object_state"
	if history {
		return fmt.Sprintf(q, ", (SELECT COUNT(*) FROM `transaction`), (SELECT SUM(tid % 1000003) FROM `transaction`), (SELECT SUM(tid % 1000003) FROM current_object)")
	}
	return fmt.Sprintf(q, "")
}

// busySite commits and packs as RelStorage does: a transaction has a tid above
// all others, a pack deletes rows in batches of their own transactions.
type busySite struct {
	db      *sql.DB
	history bool
	pause   time.Duration
	commits atomic.Int64
	deletes atomic.Int64
}

func (b *busySite) run(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(1, 2))
	tid := int64(firstTID)
	for n := 0; ctx.Err() == nil; n++ {
		tid += 1 + rng.Int64N(1000)
		if err := b.commit(ctx, rng, tid); err != nil {
			return errors.Join(err, ctx.Err())
		}
		b.commits.Add(1)
		if n%3 == 0 {
			if err := b.pack(ctx, tid); err != nil {
				return errors.Join(err, ctx.Err())
			}
			b.deletes.Add(1)
		}
		time.Sleep(b.pause)
	}
	return nil
}

func (b *busySite) commit(ctx context.Context, rng *rand.Rand, tid int64) error {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var list []string
	if b.history {
		list = append(list, fmt.Sprintf("INSERT INTO `transaction` (tid, username, description) VALUES (%d, 'u', 'd')", tid))
	}
	seen := map[int]bool{}
	for range 3 {
		zoid := rng.IntN(2000)
		if seen[zoid] {
			continue
		}
		seen[zoid] = true
		if b.history {
			list = append(list, fmt.Sprintf("INSERT INTO object_state (zoid, tid, prev_tid, state_size, state) VALUES (%d, %d, 0, 10, REPEAT('x', 10))", zoid, tid),
				fmt.Sprintf("REPLACE INTO current_object VALUES (%d, %d)", zoid, tid))
		} else {
			list = append(list, fmt.Sprintf("REPLACE INTO object_state (zoid, tid, state_size, state) VALUES (%d, %d, 10, REPEAT('x', 10))", zoid, tid))
		}
	}
	for _, q := range list {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (b *busySite) pack(ctx context.Context, tid int64) error {
	list := []string{fmt.Sprintf("DELETE FROM object_state WHERE tid < %d ORDER BY tid LIMIT 2", tid)}
	if b.history {
		list = []string{
			fmt.Sprintf("DELETE o FROM object_state o LEFT JOIN current_object c ON c.zoid = o.zoid AND c.tid = o.tid WHERE c.zoid IS NULL AND o.tid < %d AND o.tid %% 3 = 0", tid),
			"DELETE t FROM `transaction` t LEFT JOIN object_state o ON o.tid = t.tid WHERE o.tid IS NULL",
		}
	}
	for _, q := range list {
		if _, err := b.db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// atWork runs a site until the returned function is called.
func (b *busySite) atWork(t *testing.T, server *mariatest.Server, db string) (stop func()) {
	t.Helper()
	var err error
	if b.db, err = sql.Open("mysql", server.DSN(db)); err != nil {
		t.Fatal(err)
	}
	b.db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(context.Background())
	var task errgroup.Group
	task.Go(func() error { return b.run(ctx) })
	for b.commits.Load() < 50 {
		time.Sleep(time.Millisecond)
	}
	return func() {
		cancel()
		if err := task.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the site: %v", err)
		}
		b.db.Close()
	}
}

func schemaSQL(history bool) string {
	if history {
		return historyPreserving
	}
	return historyFree
}

func checkSameState(t *testing.T, conns []conn, q string) string {
	t.Helper()
	var first string
	for i, c := range conns {
		got := ask(t, c, q)[0]
		if i == 0 {
			first = got
		} else if got != first {
			t.Fatalf("connection %d sees %s, the first one %s", i, got, first)
		}
	}
	return first
}

func testMySQLViews(t *testing.T, server *mariatest.Server) {
	for _, history := range []bool{false, true} {
		db := server.NewDatabase(t)
		server.Exec(t, db, schemaSQL(history))
		site := &busySite{history: history, pause: 3 * time.Millisecond}
		stop := site.atWork(t, server, db)
		states := map[string]bool{}
		for range 40 {
			_, conns, note := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 4)
			if len(conns) != 4 || note != "" {
				t.Errorf("%d connections: %s", len(conns), note)
			}
			before := checkSameState(t, conns, fingerprint(history))
			time.Sleep(10 * time.Millisecond)
			if after := checkSameState(t, conns, fingerprint(history)); after != before {
				t.Fatalf("the view moved from %s to %s", before, after)
			}
			states[before] = true
			closeAll(conns)
		}
		stop()
		t.Logf("history %v: %d states in 40 views; %d commits, %d packs", history, len(states), site.commits.Load(), site.deletes.Load())
		if len(states) < 20 {
			t.Error("the site did not work meanwhile")
		}
	}
}

func testMySQLFastCommits(t *testing.T, server *mariatest.Server) {
	server.Exec(t, "", "CREATE USER reader IDENTIFIED BY 'r'; CREATE USER locker IDENTIFIED BY 'l'; CREATE USER flusher IDENTIFIED BY 'f'")
	db := server.NewDatabase(t)
	server.Exec(t, db, historyPreserving+"GRANT SELECT ON "+db+".* TO reader; GRANT SELECT, LOCK TABLES ON "+db+".* TO locker; GRANT SELECT ON "+db+".* TO flusher; GRANT RELOAD ON *.* TO flusher")
	site := &busySite{history: true}
	defer site.atWork(t, server, db)()
	for _, c := range []struct {
		user, password string
		tries          int
		alone          bool
	}{{"locker", "l", 0, false}, {"flusher", "f", 0, false}, {"reader", "r", 0, true}, {"reader", "r", snapshotTries, false}} {
		opts := mysqlOn(server, db)
		opts.User, opts.Password = c.user, c.password
		e, err := newMySQL(&Options{MySQL: opts})
		if err != nil {
			t.Fatal(err)
		}
		e.(*mysqlEngine).tries = c.tries
		for range 25 {
			began := site.commits.Load()
			conns, note, err := e.view(t.Context(), 4)
			if err != nil {
				t.Fatal(e.plain(err))
			}
			checkSameState(t, conns, fingerprint(true))
			closeAll(conns)
			switch {
			case c.alone && (len(conns) != 1 || !strings.Contains(note, "grant LOCK TABLES")),
				!c.alone && (len(conns) != 4 || note != "") && c.tries == 0:
				t.Errorf("%s, %d tries: %d connections: %q", c.user, c.tries, len(conns), note)
			}
			// Nothing is locked any more.
			for deadline := time.Now().Add(20 * time.Second); site.commits.Load() < began+10; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: the site hangs", c.user)
				}
			}
		}
	}
}

// testMySQLLock: a transaction of the site that takes minutes must not make a
// lock wait for minutes, which would make everybody else wait behind it.
func testMySQLLock(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree)
	long, err := sql.Open("mysql", server.DSN(db))
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	tx, err := long.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("INSERT INTO object_state VALUES (1, 1, 1, 'x')"); err != nil {
		t.Fatal(err)
	}
	e, err := newMySQL(&Options{MySQL: mysqlOn(server, db)})
	if err != nil {
		t.Fatal(err)
	}
	m := e.(*mysqlEngine)
	c, err := m.lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	began := time.Now()
	refused, err := m.beginLocked(t.Context(), mysqlGroup{c})
	if err != nil || numberOf(refused) != lockTimeout {
		t.Errorf("refused: %v, error: %v", refused, err)
	}
	if took := time.Since(began); took > 10*lockWait*time.Second {
		t.Errorf("it took %v", took)
	}
}

func testMySQLFewConnections(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree+"CREATE USER few IDENTIFIED BY 'f' WITH MAX_USER_CONNECTIONS 2; GRANT SELECT ON "+db+".* TO few")
	opts := mysqlOn(server, db)
	opts.User, opts.Password = "few", "f"
	_, conns, note := viewOf(t, Options{MySQL: opts}, 5)
	if len(conns) != 2 || !strings.Contains(note, "2 connections instead of 5") || !strings.Contains(note, "max_user_connections") {
		t.Errorf("%d connections: %s", len(conns), note)
	}
}

// trouble opens a source and reads from it, and returns what goes wrong.
func trouble(t *testing.T, opts Options, q string) error {
	t.Helper()
	opts.Connections = 2
	s, err := Open(t.Context(), opts)
	if err != nil {
		return err
	}
	defer s.Close()
	v, err := s.newView(t.Context(), 2)
	if err != nil {
		return err
	}
	defer v.close()
	return v.do(t.Context(), func(c conn) error {
		return c.query(t.Context(), q, func(row) error { return nil })
	})
}

func testMySQLTrouble(t *testing.T, server *mariatest.Server) {
	hf, hp, empty, old := server.NewDatabase(t), server.NewDatabase(t), server.NewDatabase(t), server.NewDatabase(t)
	server.Exec(t, hf, historyFree)
	server.Exec(t, hp, historyPreserving)
	server.Exec(t, old, strings.ReplaceAll(historyFree, "InnoDB", "MyISAM"))
	server.Exec(t, "", "CREATE USER tables IDENTIFIED BY 't'; CREATE USER nothing IDENTIFIED BY 'n';"+
		"GRANT SELECT ON "+hp+".object_state TO tables; GRANT SELECT ON "+hp+".blob_chunk TO tables;"+
		"GRANT SELECT ON "+hf+".object_state TO tables")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []struct {
		name   string
		change func(*MySQL)
		query  string
		want   []string
	}{
		{"wrong password", func(o *MySQL) { o.Database = hf; o.Password = "hidden-wrong" }, "", []string{"refuses the login", "check user and passwd"}},
		{"unknown user", func(o *MySQL) { o.Database = hf; o.User = "nobody-here" }, "", []string{"refuses the login", "nobody-here"}},
		{"unknown database", func(o *MySQL) { o.Database = "nowhere" }, "", []string{"no such database", "nowhere", "check db"}},
		{"no right on the database", func(o *MySQL) { o.Database = hf; o.User, o.Password = "nothing", "n" }, "", []string{"may not use it", "grant SELECT"}},
		{"no RelStorage", func(o *MySQL) { o.Database = empty }, "", []string{"no table object_state"}},
		{"no right on transaction", func(o *MySQL) { o.Database = hp; o.User, o.Password = "tables", "t" }, "", []string{"may not read a table", "transaction", "grant SELECT on all tables"}},
		{"no right on blob_chunk", func(o *MySQL) { o.Database = hf; o.User, o.Password = "tables", "t" }, "", []string{"may not read a table", "blob_chunk"}},
		{"no snapshots", func(o *MySQL) { o.Database = old }, "", []string{"object_state is kept by MyISAM", "ENGINE = InnoDB"}},
		{"missing table", func(o *MySQL) { o.Database = hf }, "SELECT * FROM gone", []string{"gone", "check db"}},
		{"missing column", func(o *MySQL) { o.Database = hf }, "SELECT gone FROM object_state", []string{"gone", "schema of a RelStorage"}},
		{"query that was ended", func(o *MySQL) { o.Database = hf }, "SET STATEMENT max_statement_time = 0.05 FOR SELECT SLEEP(5) FROM information_schema.schemata", []string{"has ended a query"}},
		{"closed port", func(o *MySQL) { *o = MySQL{Host: "127.0.0.1", Port: closedPort, User: "u", Database: hf} }, "", []string{"cannot be reached", "refused"}},
		{"no socket", func(o *MySQL) { o.UnixSocket = filepath.Join(t.TempDir(), "none"); o.Database = hf }, "", []string{"cannot be reached", "unix_socket"}},
		{"silent server", func(o *MySQL) {
			*o = MySQL{Host: "127.0.0.1", Port: silent.Addr().(*net.TCPAddr).Port, User: "u", Database: hf, ConnectTimeout: 1}
		}, "", []string{"does not answer in time", "connect_timeout"}},
		{"unknown host", func(o *MySQL) { *o = MySQL{Host: "no-such-host.invalid", User: "u", Database: hf} }, "", []string{"no-such-host.invalid", "not known"}},
		{"no database", func(o *MySQL) { o.Database = "" }, "", []string{"set db"}},
		{"bad option file", func(o *MySQL) { o.DefaultFile = filepath.Join(t.TempDir(), "my.cnf") }, "", []string{"read_default_file", "my.cnf"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := mysqlOn(server, "")
			c.change(opts)
			err := trouble(t, Options{MySQL: opts}, c.query)
			if err == nil {
				t.Fatal("there is no error")
			}
			for _, w := range append(c.want, opts.Database) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), mariatest.Password) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the sentence is %q", err)
			}
		})
	}
}

func testMySQLSchemaChange(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree+"INSERT INTO object_state VALUES (1, 1, 1, 'x')")
	e, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 2)
	// Snapshots that have read nothing of a table hold no lock on it.
	server.Exec(t, db, "ALTER TABLE blob_chunk ADD COLUMN more INT, ALGORITHM = COPY")
	_, err := tryAsk(t.Context(), conns[0], "SELECT * FROM blob_chunk")
	if numberOf(err) != tableChanged || e.lost(err) || !strings.Contains(e.plain(err).Error(), "changed a table") {
		t.Errorf("the error is %v", e.plain(err))
	}
	if got := ask(t, conns[0], "SELECT zoid FROM object_state"); len(got) != 1 {
		t.Errorf("rows: %q", got)
	}
}

func testMySQLBlobs(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree)
	var whole []byte
	b := &storedBlob{zoid: 7, tid: 9}
	rng := rand.New(rand.NewPCG(3, 4))
	for i, size := range []int{1 << 20, 1 << 20, 0, 700_000, 1} {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		server.Exec(t, db, fmt.Sprintf("INSERT INTO blob_chunk (zoid, chunk_num, tid, chunk) VALUES (7, %d, 9, x'%x')", i, data))
		b.chunks = append(b.chunks, blobChunk{num: int64(i), off: int64(len(whole)), size: int64(size)})
		whole = append(whole, data...)
	}
	b.size = int64(len(whole))
	_, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 1)
	checkBlob(t, conns[0], b, whole)
	b.chunks[1].size--
	if n, err := conns[0].readBlob(t.Context(), b, make([]byte, 3<<20), 0); err == nil || n != 1<<20 {
		t.Errorf("a chunk of another size: %d, %v", n, err)
	}
	b.zoid = 8
	if _, err := conns[0].readBlob(t.Context(), b, make([]byte, 10), 0); err == nil {
		t.Error("a blob that is not there was read")
	}
}

// checkBlob reads a blob in pieces of many sizes.
func checkBlob(t *testing.T, c conn, b *storedBlob, whole []byte) {
	t.Helper()
	for _, size := range []int{100_003, 1 << 18, 1 << 20, 3 << 20, 10 << 20} {
		p := make([]byte, size)
		var got []byte
		for {
			n, err := c.readBlob(t.Context(), b, p, int64(len(got)))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p[:n]...)
			if n < size {
				break
			}
		}
		if !bytes.Equal(got, whole) {
			t.Errorf("in pieces of %d: %d bytes instead of %d, or others", size, len(got), len(whole))
		}
	}
	if n, err := c.readBlob(t.Context(), b, make([]byte, 10), b.size); n != 0 || err != nil {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
	if n, err := c.readBlob(t.Context(), b, make([]byte, 10), b.size-1); n != 1 || err != nil {
		t.Errorf("the last byte: %d bytes, %v", n, err)
	}
}

// testMySQLLargeValues: what is larger than max_allowed_packet can have been
// stored when that was larger.
func testMySQLLargeValues(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree+"INSERT INTO object_state SELECT 1, 1, 40000000, REPEAT('0123456789', 4000000); INSERT INTO blob_chunk SELECT 1, 0, 1, REPEAT('0123456789', 1000000)")
	server.Exec(t, "", "SET GLOBAL max_allowed_packet = 1048576")
	defer server.Exec(t, "", "SET GLOBAL max_allowed_packet = 67108864")
	e, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 1)
	size := 0
	err := conns[0].query(t.Context(), "SELECT state FROM object_state", func(r row) error {
		size = len(r.bytes(0))
		return nil
	})
	if err != nil && !strings.Contains(e.plain(err).Error(), "raise max_allowed_packet") {
		t.Errorf("the error is %v", e.plain(err))
	}
	if err == nil && size != 40_000_000 {
		t.Errorf("the state has %d bytes", size)
	}
	t.Logf("a state above max_allowed_packet: %d bytes, %v", size, err)
	checkBlob(t, conns[0], &storedBlob{zoid: 1, tid: 1, size: 10_000_000, chunks: []blobChunk{{0, 0, 10_000_000, 0}}}, bytes.Repeat([]byte("0123456789"), 1_000_000))
}

func testMySQLIdentity(t *testing.T, server *mariatest.Server) {
	a, b := server.NewDatabase(t), server.NewDatabase(t)
	id := func(opts *MySQL) string {
		t.Helper()
		e, conns, _ := viewOf(t, Options{MySQL: opts}, 1)
		id, err := e.identity(t.Context(), conns[0])
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	overSocket := id(mysqlOn(server, a))
	tcp := mysqlOn(server, a)
	tcp.UnixSocket, tcp.Host, tcp.Port = "", "127.0.0.1", server.Port()
	if got := id(tcp); got != overSocket || !strings.HasSuffix(got, " "+a) {
		t.Errorf("over TCP it is %q, over the socket %q", got, overSocket)
	}
	if id(mysqlOn(server, b)) == overSocket {
		t.Error("two databases have one identity")
	}
}

func testMySQLConnect(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree+"INSERT INTO object_state VALUES (1, 1, 300000, REPEAT('x', 300000)); INSTALL SONAME 'auth_ed25519'; CREATE USER modern IDENTIFIED VIA ed25519 USING PASSWORD('m'); GRANT SELECT ON "+db+".* TO modern")
	file := filepath.Join(t.TempDir(), "my.cnf")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[client]\nuser = %s\npassword = \"%s\"\nsocket=%s # here\n[site]\ndatabase=%s\n", mariatest.User, mariatest.Password, server.Socket(), db), 0o600); err != nil {
		t.Fatal(err)
	}
	tcp := MySQL{Host: "127.0.0.1", Port: server.Port(), User: mariatest.User, Password: mariatest.Password, Database: db}
	compressed, modern := tcp, tcp
	compressed.Compress = true
	modern.User, modern.Password = "modern", "m"
	for name, c := range map[string]Options{
		"socket":      {MySQL: mysqlOn(server, db)},
		"TCP":         {MySQL: &tcp},
		"compressed":  {MySQL: &compressed},
		"ed25519":     {MySQL: &modern},
		"option file": {MySQL: &MySQL{DefaultFile: file, DefaultGroup: "site"}},
		"replica":     {MySQL: &MySQL{Host: "nowhere.invalid", User: tcp.User, Password: tcp.Password, Database: db}, Replicas: []string{"127.0.0.1:1", fmt.Sprintf("127.0.0.1:%d", server.Port())}},
	} {
		t.Run(name, func(t *testing.T) {
			e, conns, note := viewOf(t, c, 3)
			if len(conns) != 3 || note != "" {
				t.Errorf("%d connections: %s", len(conns), note)
			}
			if got := ask(t, conns[2], "SELECT state FROM object_state"); len(got) != 1 || len(got[0]) != 300000 {
				t.Errorf("%d rows", len(got))
			}
			if !strings.Contains(e.name(), "MariaDB") || strings.Contains(e.name(), "nowhere") {
				t.Errorf("its name is %q", e.name())
			}
		})
	}
	t.Run("no replica answers", func(t *testing.T) {
		err := trouble(t, Options{MySQL: &tcp, Replicas: []string{"127.0.0.1:1", "127.0.0.1:2"}}, "")
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "127.0.0.1:2") {
			t.Errorf("the error is %v", err)
		}
	})
}

func testMySQLRestart(t *testing.T, server *mariatest.Server) {
	db := server.NewDatabase(t)
	server.Exec(t, db, historyFree+"INSERT INTO object_state SELECT seq, seq, 1000, REPEAT('x', 1000) FROM seq_1_to_20000")
	for _, mode := range []string{"fast", "immediate"} {
		e, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 3)
		rows := 0
		err := conns[0].query(t.Context(), "SELECT zoid, state FROM object_state", func(row) error {
			if rows++; rows == 1000 {
				return server.Stop(mode)
			}
			return nil
		})
		// The row after the stop must not be the end of the result.
		if !e.lost(err) || rows >= 20000 {
			t.Errorf("%s: %d rows, then: %v", mode, rows, err)
		} else if text := e.plain(err).Error(); !strings.Contains(text, "--incremental") || strings.Contains(text, "\n") {
			t.Errorf("%s: the sentence is %q", mode, text)
		}
		if _, err := tryAsk(t.Context(), conns[1], "SELECT 1"); !e.lost(err) {
			t.Errorf("%s: an idle connection: %v", mode, err)
		}
		if _, _, err := e.view(t.Context(), 1); err == nil || e.lost(err) || !strings.Contains(e.plain(err).Error(), "cannot be reached") {
			t.Errorf("%s: a stopped server: %v", mode, e.plain(err))
		}
		if err := server.Run(); err != nil {
			t.Fatal(err)
		}
		if _, err := tryAsk(t.Context(), conns[2], "SELECT 1"); !e.lost(err) {
			t.Errorf("%s: a connection from before the restart: %v", mode, err)
		}
		again, _, err := e.view(t.Context(), 2)
		if err != nil {
			t.Fatalf("%s: after the restart: %v", mode, e.plain(err))
		}
		checkSameState(t, again, fingerprint(false))
		closeAll(again)
	}
	t.Run("cancelled", func(t *testing.T) {
		e, conns, _ := viewOf(t, Options{MySQL: mysqlOn(server, db)}, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := tryAsk(ctx, conns[0], "SELECT SLEEP(20)")
		if !errors.Is(err, context.DeadlineExceeded) || !e.lost(err) || time.Since(began) > 15*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// BenchmarkMySQLRows reads rows as a chunk does.
func BenchmarkMySQLRows(b *testing.B) {
	server := mariatest.Start(b)
	db := server.NewDatabase(b)
	server.Exec(b, db, historyFree+"INSERT INTO object_state SELECT seq, 280000000000000000 + seq, 3300, REPEAT('x', 3300) FROM seq_1_to_20000")
	_, conns, _ := viewOf(b, Options{MySQL: mysqlOn(server, db)}, 1)
	benchmarkRows(b, conns[0])
}

func benchmarkRows(b *testing.B, c conn) {
	b.ReportAllocs()
	b.SetBytes(3300)
	n := 0
	for n < b.N {
		err := c.query(b.Context(), "SELECT zoid, tid, state FROM object_state LIMIT "+fmt.Sprint(min(20000, b.N-n)), func(r row) error {
			for i := range 2 {
				if _, err := r.int(i); err != nil {
					return err
				}
			}
			if len(r.bytes(2)) != 3300 {
				return errors.New("another state")
			}
			n++
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
