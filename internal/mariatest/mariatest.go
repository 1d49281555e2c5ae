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
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
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
	cred      *syscall.Credential
	databases atomic.Int64

	mu      sync.Mutex
	process *process // nil: stopped
}

// Start makes a server and starts it; the end of the test removes it. settings
// are options of mariadbd without the dashes: "max_connections=20".
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := start(settings)
	if errors.Is(err, errNoMariaDB) {
		missing(tb, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.remove)
	return s
}

func missing(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %v\n", tb.Name(), err)
	tb.Skip(err)
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
		missing(tb, s.err)
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
	for _, dir := range []string{os.Getenv("MARIADB_BINDIR"), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"} {
		if path := filepath.Join(dir, "mariadbd"); dir != "" && executable(path) {
			return path, nil
		}
	}
	if path, err := exec.LookPath("mariadbd"); err == nil {
		return path, nil
	}
	return "", errNoMariaDB
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
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
	for _, path := range []string{filepath.Join(dir, name), filepath.Join(filepath.Dir(dir), "bin", name)} {
		if executable(path) {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("mariatest: %w", err)
	}
	return path, nil
}

func start(settings []string) (_ *Server, err error) {
	s := &Server{}
	if s.bin, err = binary(); err != nil {
		return nil, err
	}
	if s.cred, err = serverUser(); err != nil {
		return nil, err
	}
	// The path of a unix socket has room for about 100 bytes.
	if s.dir, err = os.MkdirTemp("/tmp", "mariatest"); err != nil {
		return nil, fmt.Errorf("mariatest: %w", err)
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return nil, fmt.Errorf("mariatest: %w", err)
		}
		if err := os.Chmod(s.dir, 0o755); err != nil {
			return nil, fmt.Errorf("mariatest: %w", err)
		}
	}
	if err := s.install(); err != nil {
		return nil, err
	}
	s.settings = append([]string{
		"innodb_flush_log_at_trx_commit=2", "innodb_buffer_pool_size=128M", "innodb_doublewrite=0", "max_allowed_packet=64M",
		"skip_log_bin", "character_set_server=utf8mb4",
	}, settings...)
	// Between choosing a port and using it somebody else may take it.
	for try := 0; ; try++ {
		if s.port, err = freePort(); err != nil {
			return nil, fmt.Errorf("mariatest: %w", err)
		}
		if err = s.Run(); err == nil {
			return s, nil
		}
		if try == 4 {
			return nil, err
		}
	}
}

// serverUser says as whom the server runs; nil is the current user. The server
// refuses to be root unless it is told to.
func serverUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("mysql")
	if err != nil {
		return nil, fmt.Errorf("mariatest: MariaDB does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("mariatest: uid of user mysql: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("mariatest: gid of user mysql: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mariatest: mariadb-install-db: %w\n%s", err, out)
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
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
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("mariatest: %w", err)
	}
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr(s.cred)
	p, err := spawn(cmd)
	log.Close()
	if err != nil {
		return fmt.Errorf("mariatest: start MariaDB: %w", err)
	}
	if err := s.waitReady(p); err != nil {
		p.stop(syscall.SIGKILL)
		return err
	}
	s.process = p
	return nil
}

func (s *Server) waitReady(p *process) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := s.ping()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("mariatest: MariaDB ended while starting: %v\n%s", p.err, s.logTail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("mariatest: MariaDB does not take connections: %w\n%s", err, s.logTail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Server) ping() error {
	db, err := sql.Open("mysql", s.DSN(""))
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
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
	s.process.stop(sig)
	s.process = nil
	return nil
}

func (s *Server) remove() {
	_ = s.Stop("immediate")
	_ = os.RemoveAll(s.dir)
}

func (s *Server) logTail() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return string(bytes.Join(lines, []byte("\n")))
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

// process is a child that is waited for by a goroutine of its own.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// spawn starts cmd from a goroutine that keeps its thread until the child ends:
// a parent-death signal is sent when the thread that started the child ends.
func spawn(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

func (p *process) stop(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
		<-p.done
	}
}
