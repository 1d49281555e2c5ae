//go:build unix

// Package pgtest starts a real PostgreSQL for tests, in a directory of its own,
// and takes it away again.
//
// Nothing of an installed cluster is touched: data directory, unix socket and
// TCP port belong to the test, the server is a child of the test process and
// dies with it (on Linux also when that is killed). The binaries are those of
// PGTEST_BINDIR, else of the newest version in /usr/lib/postgresql, else of
// PATH. Where there are none a test fails under CI=true and is skipped loudly
// elsewhere.
//
// PostgreSQL refuses to run as root; for root the server runs as the system's
// user postgres.
//
// By default fsync is off: these servers outlive crashes of PostgreSQL, which
// tests cause, not of the machine. Connections over the socket are trusted,
// those over TCP need a password (Password for the superuser).
//
// A package shares one server among its tests:
//
//	var postgres pgtest.Shared
//
//	func TestMain(m *testing.M) {
//		code := m.Run()
//		postgres.Close()
//		os.Exit(code)
//	}
//
//	func TestSomething(t *testing.T) {
//		dsn := postgres.Server(t).NewDatabase(t)
//		...
//	}
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/internal/pgserver"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// Superuser is the bootstrap role of every server, Password its password over
// TCP.
const (
	Superuser = "postgres"
	Password  = "pgtest-secret"
)

// Server is one running (or stopped) PostgreSQL.
type Server struct {
	bin, dir  string
	socketDir string
	port      int
	settings  []string
	user      *throwaway.User
	databases atomic.Int64

	mu      sync.Mutex
	process *throwaway.Server // nil: stopped
}

// Option changes how a server is made.
type Option func(*options)

type options struct {
	settings         []string
	locale, encoding string
}

// Setting gives the server a configuration setting, over those that the
// package chooses.
func Setting(name, value string) Option {
	return func(o *options) { o.settings = append(o.settings, name+"="+value) }
}

// Locale is initdb's --locale. The default is C.UTF-8 where the system has it.
func Locale(name string) Option { return func(o *options) { o.locale = name } }

// Encoding is that of the template databases. The default is UTF8.
func Encoding(name string) Option { return func(o *options) { o.encoding = name } }

// Start makes a cluster and starts it; the end of the test removes it.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := start(opts)
	if errors.Is(err, errNoPostgreSQL) {
		throwaway.Missing(tb, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.remove)
	return s
}

// Shared is one server for all tests of a package, started by the first that
// asks. The zero value is ready to use.
type Shared struct {
	Options []Option

	once   sync.Once
	server *Server
	err    error
}

// Start starts the server unless it runs. Tests call Server; this is for
// TestMain, which has no testing.TB.
func (s *Shared) Start() (*Server, error) {
	s.once.Do(func() { s.server, s.err = start(s.Options) })
	return s.server, s.err
}

// Server returns the server.
func (s *Shared) Server(tb testing.TB) *Server {
	tb.Helper()
	_, _ = s.Start()
	if errors.Is(s.err, errNoPostgreSQL) {
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

var errNoPostgreSQL = errors.New("pgtest: no PostgreSQL server binaries (initdb, postgres) found; install PostgreSQL or set PGTEST_BINDIR")

// BinDir returns the folder of the server's binaries.
func BinDir() (string, error) {
	chosen := os.Getenv("PGTEST_BINDIR")
	if chosen != "" {
		chosen = filepath.Join(chosen, "initdb")
	}
	initdb, err := throwaway.Find(chosen, []string{"/usr/lib/postgresql/*/bin"}, "initdb")
	if errors.Is(err, throwaway.ErrNotFound) {
		return "", errNoPostgreSQL
	}
	if err != nil {
		return "", fmt.Errorf("pgtest: PGTEST_BINDIR: %w", err)
	}
	return filepath.Dir(initdb), nil
}

func start(opts []Option) (_ *Server, err error) {
	o := options{encoding: "UTF8", locale: "C.UTF-8"}
	if runtime.GOOS != "linux" {
		o.locale = "C"
	}
	for _, opt := range opts {
		opt(&o)
	}
	bin, err := BinDir()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin}
	// PostgreSQL refuses to run as root.
	if s.user, err = throwaway.Unprivileged("postgres"); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	if s.dir, err = s.user.Dir("pgtest"); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	s.socketDir = s.dir
	if err := s.initdb(o); err != nil {
		return nil, err
	}
	s.settings = append([]string{
		"fsync=off", "full_page_writes=off", "max_connections=60",
		"listen_addresses=127.0.0.1", "unix_socket_directories=" + s.socketDir,
		"log_statement=none", "log_line_prefix=%m [%p] %a ",
	}, o.settings...)
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

func (s *Server) initdb(o options) error {
	pwfile := filepath.Join(s.dir, "password")
	if err := os.WriteFile(pwfile, []byte(Password+"\n"), 0o644); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	cmd := exec.Command(filepath.Join(s.bin, "initdb"), "--no-sync", "--no-instructions",
		"--username="+Superuser, "--pwfile="+pwfile,
		"--auth-local=trust", "--auth-host=scram-sha-256",
		"--encoding="+o.encoding, "--locale="+o.locale, "--pgdata="+s.dataDir())
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	s.user.Run(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgtest: initdb: %w\n%s", err, out)
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
	args := []string{"-D", s.dataDir(), "-p", strconv.Itoa(s.port)}
	for _, set := range s.settings {
		args = append(args, "-c", set)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	s.user.Run(cmd)
	p, err := throwaway.Start(cmd, s.logFile(), syscall.SIGQUIT)
	if err != nil {
		return fmt.Errorf("pgtest: start PostgreSQL: %w", err)
	}
	if err := p.Wait(s.answers); err != nil {
		p.Stop(syscall.SIGQUIT, syscall.SIGQUIT)
		return fmt.Errorf("pgtest: %w", err)
	}
	s.process = p
	return nil
}

func (s *Server) answers(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return err
	}
	pgserver.Close(ctx, conn)
	return nil
}

// Stop stops the server: "smart", "fast" or "immediate", as pg_ctl names them.
// Stopping a stopped server does nothing.
func (s *Server) Stop(mode string) error {
	sig, ok := map[string]syscall.Signal{
		"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT,
	}[mode]
	if !ok {
		return fmt.Errorf("pgtest: unknown shutdown mode %q", mode)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	s.process.Stop(sig, syscall.SIGQUIT)
	s.process = nil
	return nil
}

// Restart stops the server fast and starts it again, on the same port.
func (s *Server) Restart() error {
	if err := s.Stop("fast"); err != nil {
		return err
	}
	return s.Run()
}

func (s *Server) remove() {
	_ = s.Stop("immediate")
	_ = os.RemoveAll(s.dir)
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// Log returns what the server has logged.
func (s *Server) Log() string { return throwaway.Log(s.logFile()) }

// Dir is where the server's files are; DataDir within it is the cluster.
func (s *Server) Dir() string { return s.dir }

// DataDir is the cluster's data directory.
func (s *Server) DataDir() string { return s.dataDir() }

// Port is the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Tool returns the path of a program that came with the server: pg_dump, psql.
func (s *Server) Tool(name string) string { return filepath.Join(s.bin, name) }

// DSN connects to a database as the superuser, over the socket.
func (s *Server) DSN(db string) string { return s.DSNAs(db, Superuser) }

// DSNAs connects to a database as a role, over the socket and without a
// password.
func (s *Server) DSNAs(db, role string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", s.socketDir, s.port, role, db)
}

// TCPDSN connects to a database over TCP, where a password is asked for.
func (s *Server) TCPDSN(db, role, password string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=%s sslmode=disable", s.port, role, password, db)
}

// NewRole creates a role without any right but LOGIN, with a password.
func (s *Server) NewRole(tb testing.TB, name, password string) {
	tb.Helper()
	s.Exec(tb, s.DSN("postgres"), fmt.Sprintf(
		"CREATE ROLE %s LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '%s'", name, password))
}

// NewDatabase creates an empty database and returns its DSN. with is what
// CREATE DATABASE takes behind the name: "OWNER zope ENCODING 'LATIN1' TEMPLATE
// template0".
func (s *Server) NewDatabase(tb testing.TB, with ...string) (dsn string) {
	tb.Helper()
	name := fmt.Sprintf("t%d", s.databases.Add(1))
	s.Exec(tb, s.DSN("postgres"), "CREATE DATABASE "+name+" "+strings.Join(with, " "))
	return s.DSN(name)
}

// Exec runs statements in one simple query; an error ends the test.
func (s *Server) Exec(tb testing.TB, dsn, sql string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	defer pgserver.Close(ctx, conn)
	if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
		tb.Fatalf("pgtest: %s: %v", sql, err)
	}
}

// Reload has the server read its settings again and waits until new sessions
// have them.
func (s *Server) Reload(tb testing.TB) {
	tb.Helper()
	dsn := s.DSN("postgres")
	before := s.Query(tb, dsn, "SELECT pg_conf_load_time() FROM pg_reload_conf()")[0]
	for end := time.Now().Add(time.Minute); s.Query(tb, dsn, "SELECT pg_conf_load_time()")[0] == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("pgtest: the settings are not read again")
		}
	}
}

// Query returns the rows of a query as text, columns joined by "|".
func (s *Server) Query(tb testing.TB, dsn, sql string) []string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	defer pgserver.Close(ctx, conn.PgConn())
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		tb.Fatalf("pgtest: %s: %v", sql, err)
	}
	var rows []string
	for _, r := range results {
		for _, row := range r.Rows {
			rows = append(rows, string(bytes.Join(row, []byte("|"))))
		}
	}
	return rows
}

// Schema returns what pg_dump --schema-only prints for a database, without the
// lines that differ from call to call.
func (s *Server) Schema(tb testing.TB, dsn string) string {
	tb.Helper()
	cmd := exec.Command(s.Tool("pg_dump"), "--schema-only", "--dbname="+dsn)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("pgtest: pg_dump: %v\n%s", err, stderr.Bytes())
	}
	// Its session ends a moment later, and would count among those that are there.
	for s.Query(tb, s.DSN("postgres"), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump'")[0] != "0" {
		time.Sleep(5 * time.Millisecond)
	}
	var keep []string
	for line := range strings.Lines(string(out)) {
		// Newer releases guard a dump with a random token.
		if strings.HasPrefix(line, `\restrict `) || strings.HasPrefix(line, `\unrestrict `) {
			continue
		}
		keep = append(keep, line)
	}
	return strings.Join(keep, "")
}
