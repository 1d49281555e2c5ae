//go:build faults && unix

package fault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain is also the program that is struck.
func TestMain(m *testing.M) {
	if os.Getenv("FAULT_TEST_VICTIM") == "" {
		os.Exit(m.Run())
	}
	for range 3 {
		Point("a")
		Point("b")
	}
	os.Exit(7)
}

func TestStrikesAtTheNthHitOfThePoint(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	for _, c := range []struct {
		fault  string
		killed bool
		trace  string
		mark   bool
	}{
		{"", false, "ababab", false},
		{"b:2:kill9", true, "abab", false},
		{"*:1:kill9", true, "a", false},
		{"b:4:kill9", false, "ababab", false},
		{"c:1:kill9", false, "ababab", false},
		{"a:1:sh=echo x >" + mark + "\nb:3:kill9", true, "ababab", true},
	} {
		os.Remove(mark)
		trace := filepath.Join(t.TempDir(), "trace")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FAULT_TEST_VICTIM=1",
			"ZODB_CONVERT_FAULT="+c.fault, "ZODB_CONVERT_FAULT_TRACE="+trace)
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("%q: %v", c.fault, err)
		}
		status := exit.Sys().(syscall.WaitStatus)
		if killed := status.Signal() == syscall.SIGKILL; killed != c.killed || !killed && status.ExitStatus() != 7 {
			t.Errorf("%q: %v", c.fault, err)
		}
		got, _ := os.ReadFile(trace)
		if s := strings.ReplaceAll(string(got), "\n", ""); s != c.trace {
			t.Errorf("%q: reached %q, want %q", c.fault, s, c.trace)
		}
		if _, err := os.Stat(mark); (err == nil) != c.mark {
			t.Errorf("%q: the command's mark: %v", c.fault, err)
		}
	}
}
