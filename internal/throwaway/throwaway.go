// Package throwaway holds what the servers of tests have in common: the program
// is found, runs as a child that dies with the test, and is waited for until it
// answers. A disk that is soon full is here, too.
//
// pgtest, mariatest and s3test are the servers.
package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Missing ends a test that lacks something, such as a server: it fails under CI=true and
// is skipped loudly elsewhere.
func Missing(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %v\n", tb.Name(), err)
	tb.Skip(err)
}

// ErrNotFound is Find's when there is no such program.
var ErrNotFound = errors.New("no such program")

// Find returns the path of a program: the one that somebody has chosen, in which
// case it must be there, else the first in places, which are patterns of
// folders, those of one pattern with the highest version first, else that of
// PATH.
func Find(chosen string, places []string, name string) (string, error) {
	if chosen != "" {
		if _, err := os.Stat(chosen); err != nil {
			return "", err
		}
		return chosen, nil
	}
	for _, place := range places {
		found, _ := filepath.Glob(filepath.Join(place, name))
		if len(found) > 0 {
			return slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }), nil
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return "", ErrNotFound
}

// version is the last name in a path that is a number.
func version(path string) int {
	parts := strings.Split(filepath.ToSlash(path), "/")
	for _, part := range slices.Backward(parts) {
		if n, err := strconv.Atoi(part); err == nil {
			return n
		}
	}
	return 0
}

// Above returns the folders of a name in the current folder and all above it,
// the nearest first.
func Above(name string) ([]string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	var places []string
	for {
		places = append(places, filepath.Join(dir, name))
		parent := filepath.Dir(dir)
		if parent == dir {
			return places, nil
		}
		dir = parent
	}
}

// OnFreePort calls run with a port of 127.0.0.1 that nobody uses, and with
// others while it fails: between choosing a port and using it somebody else may
// take it.
func OnFreePort(run func(port int) error) error {
	for try := 0; ; try++ {
		port, err := freePort()
		if err != nil {
			return err
		}
		if err = run(port); err == nil || try == 4 {
			return err
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Server is the running program of a server.
type Server struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// Start starts a program, which writes to the file log. When the test process
// dies it gets the signal death (on Linux; elsewhere it stays). cmd.SysProcAttr
// is set by Start, but for the user (User.Run).
//
// The child is started from a goroutine that keeps its thread until it ends: a
// parent-death signal is sent when the thread that started the child ends.
func Start(cmd *exec.Cmd, log string, death syscall.Signal) (*Server, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	dieWithParent(cmd, death)
	s := &Server{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			s.err = cmd.Wait()
			close(s.done)
		}
	}()
	return s, <-started
}

// Wait waits until the server answers. One that ends instead, or does not answer
// for a minute, is an error with the end of its log.
func (s *Server) Wait(answers func(context.Context) error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := answers(ctx)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s ended while starting: %v\n%s", filepath.Base(s.cmd.Path), s.err, LogTail(s.log))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer: %w\n%s", filepath.Base(s.cmd.Path), err, LogTail(s.log))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop asks the server to stop, and insists after half a minute.
func (s *Server) Stop(ask, insist syscall.Signal) {
	_ = s.cmd.Process.Signal(ask)
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		_ = s.cmd.Process.Signal(insist)
		<-s.done
	}
}

// Kill ends the server as a crash would.
func (s *Server) Kill() { s.Stop(syscall.SIGKILL, syscall.SIGKILL) }

// Log returns what a log holds, or why it cannot be read.
func Log(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// LogTail returns the last lines of a log.
func LogTail(name string) string {
	lines := strings.Split(Log(name), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
