//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// Standby makes a hot standby of the server, by pg_basebackup, which follows it.
// The end of the test removes it.
func (s *Server) Standby(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	dir, err := s.user.Dir("pgtest")
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	standby := &Server{bin: s.bin, user: s.user, dir: dir, socketDir: dir}
	tb.Cleanup(standby.remove)
	cmd := exec.Command(s.Tool("pg_basebackup"), "--pgdata="+standby.dataDir(), "--write-recovery-conf", "--checkpoint=fast",
		"--wal-method=stream", "--no-sync", "--host="+s.socketDir, "--port="+strconv.Itoa(s.port), "--username="+Superuser)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	s.user.Run(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("pgtest: pg_basebackup: %v\n%s", err, out)
	}
	standby.settings = append([]string{
		// What pg_basebackup writes may be newer than the library that the server finds.
		fmt.Sprintf("primary_conninfo=host=%s port=%d user=%s", s.socketDir, s.port, Superuser),
		"fsync=off", "full_page_writes=off", "max_connections=60", "hot_standby=on",
		"listen_addresses=127.0.0.1", "unix_socket_directories=" + dir, "log_line_prefix=%m [%p] %a ",
	}, o.settings...)
	if err := throwaway.OnFreePort(func(port int) error {
		standby.port = port
		return standby.Run()
	}); err != nil {
		tb.Fatal(err)
	}
	return standby
}

// CatchUp waits until a standby has replayed all that s has written.
func (s *Server) CatchUp(tb testing.TB, standby *Server) {
	tb.Helper()
	want := s.Query(tb, s.DSN("postgres"), "SELECT pg_current_wal_lsn()")[0]
	deadline := time.Now().Add(time.Minute)
	for standby.Query(tb, standby.DSN("postgres"), fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s'", want))[0] != "t" {
		if time.Now().After(deadline) {
			tb.Fatalf("pgtest: the standby does not catch up\n%s", standby.Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// PgBouncer starts a PgBouncer before the server, in session, transaction or
// statement mode, with so many connections to each database, and returns the DSN
// of a database through it, as the superuser. The end of the test stops it.
func (s *Server) PgBouncer(tb testing.TB, mode string, pool int, db string) (dsn string) {
	tb.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			throwaway.Missing(tb, fmt.Errorf("pgtest: no pgbouncer found: %w", err))
		}
	}
	dir, err := s.user.Dir("pgbouncer")
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	log := filepath.Join(dir, "log")
	err = throwaway.OnFreePort(func(port int) error {
		ini := filepath.Join(dir, "pgbouncer.ini")
		text := fmt.Sprintf("[databases]\n* = host=%s port=%d user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\n"+
			"auth_type = any\npool_mode = %s\ndefault_pool_size = %d\nquery_wait_timeout = 60\n", s.socketDir, s.port, Superuser, port, mode, pool)
		if err := os.WriteFile(ini, []byte(text), 0o644); err != nil {
			return err
		}
		cmd := exec.Command(program, ini)
		cmd.Dir = dir
		s.user.Run(cmd)
		p, err := throwaway.Start(cmd, log, stopAtOnce)
		if err != nil {
			return err
		}
		dsn = fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s sslmode=disable", port, Superuser, db)
		if err := p.Wait(listens(port)); err != nil {
			p.Stop(stopAtOnce, stopAtOnce)
			return err
		}
		tb.Cleanup(func() { p.Stop(stopAtOnce, stopAtOnce) })
		return nil
	})
	if err != nil {
		tb.Fatalf("pgtest: pgbouncer: %v\n%s", err, throwaway.Log(log))
	}
	return dsn
}

const stopAtOnce = syscall.SIGTERM

func listens(port int) func(context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			err = c.Close()
		}
		return err
	}
}
