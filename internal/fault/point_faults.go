//go:build faults && unix

package fault

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

type strike struct {
	name   string
	n      int // strikes at the n-th time
	action string
	hits   int
}

// The state is the process's: it is what the environment asks of it.
var (
	mu      sync.Mutex
	once    sync.Once
	strikes []*strike
	trace   *os.File
)

func setUp() {
	for line := range strings.Lines(os.Getenv("ZODB_CONVERT_FAULT")) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		part := strings.SplitN(line, ":", 3)
		n := 0
		if len(part) == 3 {
			n, _ = strconv.Atoi(part[1])
		}
		if n < 1 || part[2] != "kill9" && !strings.HasPrefix(part[2], "sh=") {
			fmt.Fprintf(os.Stderr, "ZODB_CONVERT_FAULT: %q is not name:n:kill9 or name:n:sh=COMMAND\n", line)
			os.Exit(2)
		}
		strikes = append(strikes, &strike{name: part[0], n: n, action: part[2]})
	}
	if path := os.Getenv("ZODB_CONVERT_FAULT_TRACE"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			fmt.Fprintf(os.Stderr, "ZODB_CONVERT_FAULT_TRACE: %v\n", err)
			os.Exit(2)
		}
		trace = f
	}
}

// Point strikes if the environment says so.
func Point(name string) {
	once.Do(setUp)
	mu.Lock()
	defer mu.Unlock()
	if trace != nil {
		fmt.Fprintln(trace, name)
	}
	for _, s := range strikes {
		if s.name != name && s.name != "*" {
			continue
		}
		if s.hits++; s.hits == s.n {
			s.strike()
		}
	}
}

func (s *strike) strike() {
	command, ok := strings.CutPrefix(s.action, "sh=")
	if !ok {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; nothing may happen meanwhile
	}
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "ZODB_CONVERT_FAULT: %s: %v\n", command, err)
	}
}
