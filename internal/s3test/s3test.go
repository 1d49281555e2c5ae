// Package s3test starts a real S3 server for tests, versitygw on a directory of
// its own, and takes it away again.
//
// Keys are random, the port is free on 127.0.0.1, and the server is a child of
// the test process and dies with it (on Linux also when that is killed). The
// binary is that of VERSITYGW, else .cache/bin/versitygw in this folder or one
// above it (scripts/setup s3 puts it there), else that of PATH. Where there is
// none a test fails under CI=true and is skipped loudly elsewhere.
//
// A package shares one server among its tests:
//
//	var s3 s3test.Shared
//
//	func TestMain(m *testing.M) {
//		code := m.Run()
//		s3.Close()
//		os.Exit(code)
//	}
//
//	func TestSomething(t *testing.T) {
//		server := s3.Server(t)
//		bucket := server.NewBucket(t)
//		...
//	}
//
// Proxy stands between a client and the server and plays a bad network.
package s3test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
)

// Region is that of every server.
const Region = "us-east-1"

// Server is one running (or stopped) S3 server.
type Server struct {
	// AccessKey and SecretKey are those of the owner of everything.
	AccessKey, SecretKey string
	// CAFile holds the certificate of the authority that signed the server's;
	// "" for a server without TLS.
	CAFile string

	binary, dir string
	sidecar     bool
	port        int
	tls         *authority
	buckets     atomic.Int64

	mu      sync.Mutex
	process *throwaway.Server // nil: stopped
}

// Option changes how a server is made.
type Option func(*options)

type options struct{ tls bool }

// TLS makes a server that speaks https, with a certificate for 127.0.0.1 alone
// that an authority of its own has signed (Server.CAFile).
func TLS() Option { return func(o *options) { o.tls = true } }

// Start starts a server; the end of the test removes it.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := start(opts)
	if errors.Is(err, errNoServer) {
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

// Server returns the server.
func (s *Shared) Server(tb testing.TB) *Server {
	tb.Helper()
	s.once.Do(func() { s.server, s.err = start(s.Options) })
	if errors.Is(s.err, errNoServer) {
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

var errNoServer = errors.New("s3test: no S3 server (versitygw) found; run scripts/setup s3 or set VERSITYGW")

// Binary returns the path of the server's binary.
func Binary() (string, error) {
	places, err := throwaway.Above(filepath.Join(".cache", "bin"))
	if err != nil {
		return "", fmt.Errorf("s3test: %w", err)
	}
	path, err := throwaway.Find(os.Getenv("VERSITYGW"), places, "versitygw")
	if errors.Is(err, throwaway.ErrNotFound) {
		return "", errNoServer
	}
	if err != nil {
		return "", fmt.Errorf("s3test: VERSITYGW: %w", err)
	}
	return path, nil
}

func start(opts []Option) (_ *Server, err error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	s := &Server{AccessKey: "AK" + rand.Text(), SecretKey: rand.Text() + rand.Text()}
	if s.binary, err = Binary(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "s3test"); err != nil {
		return nil, fmt.Errorf("s3test: %w", err)
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	for _, dir := range []string{"buckets", "iam", "sidecar"} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("s3test: %w", err)
		}
	}
	s.sidecar = !hasAttributes(s.dir)
	if o.tls {
		if s.tls, err = newAuthority(s.dir); err != nil {
			return nil, fmt.Errorf("s3test: %w", err)
		}
		s.CAFile = s.tls.caFile
	}
	err = throwaway.OnFreePort(func(port int) error {
		s.port = port
		return s.Run()
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Run starts the server again after Stop, on the same port. It waits until
// requests are answered.
func (s *Server) Run() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return nil
	}
	cmd := exec.Command(s.binary, s.arguments()...)
	cmd.Dir = s.dir
	// Keys in the environment, not in the process title.
	cmd.Env = append(serverEnvironment(), "ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
	transport, err := s.transport()
	if err != nil {
		return fmt.Errorf("s3test: %w", err)
	}
	defer transport.CloseIdleConnections()
	p, err := throwaway.Start(cmd, s.logFile(), syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("s3test: start versitygw: %w", err)
	}
	client := http.Client{Transport: transport}
	if err := p.Wait(func(ctx context.Context) error { return s.answers(ctx, &client) }); err != nil {
		p.Kill()
		return fmt.Errorf("s3test: %w", err)
	}
	s.process = p
	return nil
}

func (s *Server) arguments() []string {
	args := []string{
		"--port", "127.0.0.1:" + strconv.Itoa(s.port), "--region", Region,
		"--keep-alive", "--quiet", "--health", "/-/health",
		// A changed account counts at once.
		"--iam-dir", filepath.Join(s.dir, "iam"), "--iam-cache-disable",
	}
	if s.tls != nil {
		args = append(args, "--cert", s.tls.certFile, "--key", s.tls.keyFile)
	}
	args = append(args, "posix")
	if s.sidecar {
		args = append(args, "--sidecar", filepath.Join(s.dir, "sidecar"))
	}
	return append(args, filepath.Join(s.dir, "buckets"))
}

// serverEnvironment leaves out what would configure the server.
func serverEnvironment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "VGW_") && !strings.HasPrefix(v, "AWS_") {
			env = append(env, v)
		}
	}
	return env
}

func (s *Server) answers(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/-/health", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// Stop kills the server, as a crash would. Stopping a stopped server does
// nothing.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.Kill()
		s.process = nil
	}
}

func (s *Server) remove() {
	s.Stop()
	_ = os.RemoveAll(s.dir)
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// Log returns what the server has printed.
func (s *Server) Log() string { return throwaway.Log(s.logFile()) }

// Dir is where the server keeps the buckets, each a folder.
func (s *Server) Dir() string { return filepath.Join(s.dir, "buckets") }

// Port is the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Addr is "127.0.0.1:PORT".
func (s *Server) Addr() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

// URL is the endpoint.
func (s *Server) URL() string {
	if s.tls != nil {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}
