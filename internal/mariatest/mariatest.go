//go:build unix

// Package mariatest starts a real MariaDB for tests, in a directory of its own,
// and takes it away again, as pgtest does with PostgreSQL.
//
// Nothing of an installed server is touched: data directory, unix socket and TCP
// port belong to the test, the server is a child of the test process and dies
// with it (on Linux also when that is killed). The binary mariadbd is that of
// MARIADB_BINDIR, /usr/sbin, /usr/local/sbin, /usr/libexec or PATH. Where there
// is none a test fails under CI=true and is skipped loudly elsewhere.
//
// The server does not wait for the disk: it outlives crashes of its own, which
// tests cause, not of the machine. The role User may do everything; it has a
// password.
package mariatest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// User may do everything, with Password.
const (
	User     = "site"
	Password = "mariatest-secret"
)

// Server is one running (or stopped) MariaDB.
type Server struct {
	bin, dir  string
	port      int
	settings  []string
	user      *throwaway.User
	databases atomic.Int64

	mu      sync.Mutex
	process *throwaway.Server // nil: stopped
}

// Start makes a server and starts it; the end of the test removes it. settings
// are options of mariadbd without the dashes: "max_connections=20".
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := start(settings)
	if errors.Is(err, errNoMariaDB) {
		throwaway.Missing(tb, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.remove)
	return s
}

// Shared is one server for all tests of a package, started by the first that
// asks. The zero value is ready to use; TestMain calls Close.
type Shared struct {
	Settings []string

	once   sync.Once
	server *Server
	err    error
}

// Server returns the server.
func (s *Shared) Server(tb testing.TB) *Server {
	tb.Helper()
	s.once.Do(func() { s.server, s.err = start(s.Settings) })
	if errors.Is(s.err, errNoMariaDB) {
		throwaway.Missing(tb, s.err)
	}
	if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.server
}

// Close stops and removes the server, if one was started.
func (s *Shared) Close() {
	if s.server != nil {
		s.server.remove()
	}
}

var errNoMariaDB = errors.New("mariatest: no MariaDB server (mariadbd) found; run scripts/setup mariadb or set MARIADB_BINDIR")

func binary() (string, error) {
	chosen := os.Getenv("MARIADB_BINDIR")
	if chosen != "" {
		chosen = filepath.Join(chosen, "mariadbd")
	}
	path, err := throwaway.Find(chosen, []string{"/usr/sbin", "/usr/local/sbin", "/usr/libexec"}, "mariadbd")
	if errors.Is(err, throwaway.ErrNotFound) {
		return "", errNoMariaDB
	}
	if err != nil {
		return "", fmt.Errorf("mariatest: MARIADB_BINDIR: %w", err)
	}
	return path, nil
}

// Tool finds a program that came with the server: mariadb-dump, mariadb.
func (s *Server) Tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := s.tool(name)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func (s *Server) tool(name string) (string, error) {
	dir := filepath.Dir(s.bin)
	path, err := throwaway.Find("", []string{dir, filepath.Join(filepath.Dir(dir), "bin")}, name)
	if err != nil {
		return "", fmt.Errorf("mariatest: %s: %w", name, err)
	}
	return path, nil
}

func start(settings []string) (_ *Server, err error) {
	s := &Server{}
	if s.bin, err = binary(); err != nil {
		return nil, err
	}
	// MariaDB refuses to run as root unless it is told to.
	if s.user, err = throwaway.Unprivileged("mysql"); err != nil {
		return nil, fmt.Errorf("mariatest: %w", err)
	}
	if s.dir, err = s.user.Dir("mariatest"); err != nil {
		return nil, fmt.Errorf("mariatest: %w", err)
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if err := s.install(); err != nil {
		return nil, err
	}
	s.settings = append([]string{
		"innodb_flush_log_at_trx_commit=2", "innodb_buffer_pool_size=128M", "innodb_doublewrite=0", "max_allowed_packet=64M",
		"skip_log_bin", "character_set_server=utf8mb4",
	}, settings...)
	err = throwaway.OnFreePort(func(port int) error {
		s.port = port
		return s.Run()
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }
func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// Socket is the path of the unix socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "socket") }

// Port is the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

func (s *Server) install() error {
	path, err := s.tool("mariadb-install-db")
	if err != nil {
		return err
	}
	init := filepath.Join(s.dir, "init.sql")
	text := fmt.Sprintf("CREATE USER IF NOT EXISTS '%[1]s'@'localhost' IDENTIFIED BY '%[2]s';\n"+
		"CREATE USER IF NOT EXISTS '%[1]s'@'%%' IDENTIFIED BY '%[2]s';\n"+
		"GRANT ALL ON *.* TO '%[1]s'@'localhost' WITH GRANT OPTION;\nGRANT ALL ON *.* TO '%[1]s'@'%%' WITH GRANT OPTION;\n", User, Password)
	if err := os.WriteFile(init, []byte(text), 0o644); err != nil {
		return fmt.Errorf("mariatest: %w", err)
	}
	cmd := exec.Command(path, "--no-defaults", "--datadir="+s.dataDir(), "--auth-root-authentication-method=normal",
		"--skip-test-db", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2")
	cmd.Dir = s.dir
	s.user.Run(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mariatest: mariadb-install-db: %w\n%s", err, out)
	}
	return nil
}

// Run starts the server again after Stop. It waits until connections are taken.
func (s *Server) Run() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return nil
	}
	args := []string{"--no-defaults", "--datadir=" + s.dataDir(), "--socket=" + s.Socket(), "--port=" + strconv.Itoa(s.port),
		"--bind-address=127.0.0.1", "--pid-file=" + filepath.Join(s.dir, "pid"), "--init-file=" + filepath.Join(s.dir, "init.sql"), "--skip-name-resolve"}
	for _, set := range s.settings {
		args = append(args, "--"+set)
	}
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.dir
	s.user.Run(cmd)
	p, err := throwaway.Start(cmd, s.logFile(), syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("mariatest: start MariaDB: %w", err)
	}
	if err := p.Wait(s.ping); err != nil {
		p.Kill()
		return fmt.Errorf("mariatest: %w", err)
	}
	s.process = p
	return nil
}

func (s *Server) ping(ctx context.Context) error {
	db, err := sql.Open("mysql", s.DSN(""))
	if err != nil {
		return err
	}
	defer db.Close()
	return db.PingContext(ctx)
}

// Stop stops the server: "fast" waits for it to write all, "immediate" kills it,
// as pgtest names them. Stopping a stopped server does nothing.
func (s *Server) Stop(mode string) error {
	sig, ok := map[string]syscall.Signal{"fast": syscall.SIGTERM, "immediate": syscall.SIGKILL}[mode]
	if !ok {
		return fmt.Errorf("mariatest: unknown shutdown mode %q", mode)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	s.process.Stop(sig, syscall.SIGKILL)
	s.process = nil
	return nil
}

func (s *Server) remove() {
	_ = s.Stop("immediate")
	_ = os.RemoveAll(s.dir)
}

// DSN is for the Go driver, over the socket, as User.
func (s *Server) DSN(db string) string {
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr, c.DBName, c.MultiStatements = User, Password, "unix", s.Socket(), db, true
	return c.FormatDSN()
}

// NewDatabase creates an empty database and returns its name.
func (s *Server) NewDatabase(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("t%d", s.databases.Add(1))
	s.Exec(tb, "", "CREATE DATABASE "+name)
	return name
}

// Exec runs statements; an error ends the test.
func (s *Server) Exec(tb testing.TB, db, text string) {
	tb.Helper()
	conn, err := sql.Open("mysql", s.DSN(db))
	if err != nil {
		tb.Fatalf("mariatest: %v", err)
	}
	defer conn.Close()
	if _, err := conn.Exec(text); err != nil {
		tb.Fatalf("mariatest: %s: %v", text, err)
	}
}

// Query returns the rows of a query as text, columns joined by "|".
func (s *Server) Query(tb testing.TB, db, text string) []string {
	tb.Helper()
	conn, err := sql.Open("mysql", s.DSN(db))
	if err != nil {
		tb.Fatalf("mariatest: %v", err)
	}
	defer conn.Close()
	rows, err := conn.Query(text)
	if err != nil {
		tb.Fatalf("mariatest: %s: %v", text, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		tb.Fatalf("mariatest: %v", err)
	}
	var all []string
	for rows.Next() {
		values := make([]sql.RawBytes, len(columns))
		into := make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			tb.Fatalf("mariatest: %v", err)
		}
		parts := make([]string, len(values))
		for i, v := range values {
			parts[i] = string(v)
		}
		all = append(all, strings.Join(parts, "|"))
	}
	if err := rows.Err(); err != nil {
		tb.Fatalf("mariatest: %s: %v", text, err)
	}
	return all
}

// Copy makes a database of the same content and returns its name.
func (s *Server) Copy(tb testing.TB, of string) string {
	tb.Helper()
	name := s.NewDatabase(tb)
	login := []string{"--no-defaults", "--socket=" + s.Socket(), "--user=" + User, "--max-allowed-packet=64M"}
	dump := exec.Command(s.Tool(tb, "mariadb-dump"), append(login, "--single-transaction", "--routines", "--triggers", "--hex-blob", of)...)
	load := exec.Command(s.Tool(tb, "mariadb"), append(login, name)...)
	for _, cmd := range []*exec.Cmd{dump, load} {
		cmd.Env = append(os.Environ(), "MYSQL_PWD="+Password)
	}
	var err error
	var said [2]bytes.Buffer
	dump.Stderr, load.Stderr = &said[0], &said[1]
	if load.Stdin, err = dump.StdoutPipe(); err != nil {
		tb.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		tb.Fatalf("mariatest: %v", err)
	}
	loaded := load.Run()
	dumped := dump.Wait()
	if err := errors.Join(dumped, loaded); err != nil {
		tb.Fatalf("mariatest: copy %s: %v\n%s%s", of, err, &said[0], &said[1])
	}
	return name
}

// Checksums tells the content of every table of a database: "rows checksum".
func (s *Server) Checksums(tb testing.TB, db string) map[string]string {
	tb.Helper()
	found := make(map[string]string)
	for _, table := range s.Query(tb, db, "SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND table_type = 'BASE TABLE'") {
		rows := s.Query(tb, db, "SELECT count(*) FROM `"+table+"`")
		sum := s.Query(tb, db, "CHECKSUM TABLE `"+table+"`")
		_, value, _ := strings.Cut(sum[0], "|")
		found[table] = rows[0] + " " + value
	}
	return found
}
