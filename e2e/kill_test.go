//go:build faults

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

// scenario is one way through a conversion: a fresh load, or a catch-up of a
// destination that holds an earlier state of the source.
type scenario struct {
	name    string
	before  string // loaded first, without faults; empty: none
	source  string
	history bool
}

func scenarios(t *testing.T) []scenario {
	earlier, later := growingSource(t)
	plone, history := testdata("plone.fs"), testdata("history.fs")
	// Those with few places come first: what they leave, the others take.
	return []scenario{
		{"catch up HF", earlier, later, false},
		{"catch up HP", earlier, later, true},
		{"load history.fs HF", "", history, false},
		{"load plone.fs HF", "", plone, false},
		{"load history.fs HP", "", history, true},
	}
}

func testdata(name string) string { return filepath.Join("..", "testdata", name) }

// growingSource gives two states of one database: history.fs, and its first
// half. A FileStorage only grows, so the first half of the file, cut between
// two transactions, is an earlier state of the whole.
func growingSource(t *testing.T) (earlier, later string) {
	t.Helper()
	later = testdata("history.fs")
	return firstHalf(t, later), later
}

// firstHalf cuts a file between two transactions in its middle.
func firstHalf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pos := 4
	for pos < len(data)/2 {
		pos += int(uint64FromBytes(data[pos+8:])) + 8
	}
	half := filepath.Join(t.TempDir(), "earlier.fs")
	if err := os.WriteFile(half, data[:pos], 0o644); err != nil {
		t.Fatal(err)
	}
	return half
}

func uint64FromBytes(b []byte) (n uint64) {
	for _, c := range b[:8] {
		n = n<<8 | uint64(c)
	}
	return n
}

func (s scenario) conversion(source, dsn string) conversion {
	return conversion{Source: source, DSN: dsn, History: s.history, Workers: 3, ChunkBytes: 8 << 10}
}

// prepare makes a database in which the scenario can start.
func (s scenario) prepare(t *testing.T, server *pgtest.Server) conversion {
	t.Helper()
	dsn := server.NewDatabase(t)
	if s.before != "" {
		s.conversion(s.before, dsn).mustRun(t)
	}
	c := s.conversion(s.source, dsn)
	c.Incremental = s.before != ""
	c.Rejects = filepath.Join(t.TempDir(), "rejects")
	return c
}

// place is one hit of one fault point.
type place struct {
	point string
	n     int
}

func (p place) phase() string { return p.point[:strings.IndexByte(p.point, '.')] }

// places runs the scenario once without faults and returns every place that it
// passed, together with what the result has to be.
func (s scenario) places(t *testing.T, server *pgtest.Server) ([]place, map[string]string) {
	t.Helper()
	c := s.prepare(t, server)
	trace := filepath.Join(t.TempDir(), "trace")
	c.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	return readTrace(t, trace), server.Snapshot(t, c.DSN)
}

// readTrace returns the places in the order in which they were passed.
func readTrace(t *testing.T, path string) []place {
	t.Helper()
	lines, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hits := make(map[string]int)
	var all []place
	for _, point := range strings.Fields(string(lines)) {
		hits[point]++
		all = append(all, place{point, hits[point]})
	}
	return all
}

// count reads how many strikes are wanted.
func count(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return otherwise
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// draw picks n of the places so that every phase gets its share (the finishing
// steps a third) and every point is met before one is met twice.
func draw(all []place, n int, random *rand.Rand) []place {
	all = slices.Clone(all)
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	// Rank every place by how many of its point came before it, so that sorting
	// puts first hits of all points first.
	seen := make(map[string]int)
	rank := make(map[place]int)
	for _, p := range all {
		rank[p] = seen[p.point]
		seen[p.point]++
	}
	slices.SortStableFunc(all, func(a, b place) int { return rank[a] - rank[b] })
	var finishing, other []place
	for _, p := range all {
		if p.phase() == "finish" {
			finishing = append(finishing, p)
		} else {
			other = append(other, p)
		}
	}
	third := min((n+2)/3, len(finishing))
	rest := min(n-third, len(other))
	third = min(n-rest, len(finishing)) // where the others are too few
	return append(finishing[:third:third], other[:rest]...)
}

func TestKilledRunsResumeToTheSameDatabase(t *testing.T) {
	server := postgres.Server(t)
	total := count(t, "ZODB_CONVERT_KILLS", 24)
	all := scenarios(t)
	left := total
	byPhase := make(map[string]int)
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			places, want := s.places(t, server)
			drawn := draw(places, left/(len(all)-i), rand.New(rand.NewPCG(1, uint64(i))))
			left -= len(drawn)
			for _, p := range drawn {
				byPhase[p.phase()]++
				t.Run(fmt.Sprintf("%s:%d", p.point, p.n), func(t *testing.T) {
					c := s.prepare(t, server)
					state, out := c.run(t, fmt.Sprintf("%s:%d:kill9", p.point, p.n))
					if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
						t.Fatalf("not killed: %v\n%s", state, out)
					}
					resume(t, server, c, want, s.before == "")
				})
			}
		})
	}
	t.Logf("%d kills, by phase: %v", total-left, byPhase)
	if left > 0 {
		t.Errorf("%d kills are missing: the scenarios have too few places", left)
	}
}

func TestStoppedServersResumeToTheSameDatabase(t *testing.T) {
	// A server of its own: stopping it disturbs nobody.
	server := pgtest.Start(t)
	total := count(t, "ZODB_CONVERT_STOPS", 4)
	left := total
	all := scenarios(t)
	for i, s := range all {
		share := left / (len(all) - i)
		if share == 0 {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			places, want := s.places(t, server)
			drawn := draw(places, share, rand.New(rand.NewPCG(2, uint64(i))))
			left -= len(drawn)
			for _, p := range drawn {
				t.Run(fmt.Sprintf("%s:%d", p.point, p.n), func(t *testing.T) {
					c := s.prepare(t, server)
					if !stopAt(t, server, c, p) {
						t.Fatal("ended before the place was reached")
					}
					resume(t, server, c, want, false)
				})
			}
		})
	}
	if left > 0 {
		t.Errorf("%d stops are missing: the scenarios have too few places", left)
	}
}

// pausedRun is a run that waits at a place.
type pausedRun struct {
	reached string
	ended   chan error
	cmd     *exec.Cmd
	out     *bytes.Buffer
}

// pauseAt starts a child and waits until it has reached the place. nil: it ended
// before.
func pauseAt(t *testing.T, c conversion, p place) *pausedRun {
	t.Helper()
	reached := filepath.Join(t.TempDir(), "reached")
	cmd, out := c.start(t, fmt.Sprintf("%s:%d:sh=touch %s; while [ ! -e %s.done ]; do sleep 0.02; done", p.point, p.n, reached, reached))
	run := &pausedRun{reached, make(chan error, 1), cmd, out}
	go func() { run.ended <- cmd.Wait() }()
	for {
		if _, err := os.Stat(reached); err == nil {
			return run
		}
		select {
		case <-run.ended:
			t.Logf("%s:%d: ended before it was reached: %v\n%s", p.point, p.n, cmd.ProcessState, out)
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// goOn lets the run go on.
func (r *pausedRun) goOn(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(r.reached+".done", nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the end. A run that does not come to one says where it hangs.
func (r *pausedRun) wait(t *testing.T, limit time.Duration) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(limit):
	}
	_ = r.cmd.Process.Signal(syscall.SIGQUIT)
	<-r.ended
	t.Fatalf("the run did not end in %v:\n%s", limit, r.out)
	return nil
}

// stopAt lets the child reach the place, stops the server at once, starts it
// again, and waits for the child, which may end either way. False: it ended
// before the place was reached.
func stopAt(t *testing.T, server *pgtest.Server, c conversion, p place) bool {
	t.Helper()
	run := pauseAt(t, c, p)
	if run == nil {
		return false
	}
	if err := server.Stop("immediate"); err != nil {
		t.Fatal(err)
	}
	run.goOn(t)
	time.Sleep(200 * time.Millisecond) // let the child meet the missing server
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	_ = run.wait(t, 2*time.Minute)
	t.Logf("%s:%d: the run ended with %v", p.point, p.n, run.cmd.ProcessState)
	return true
}

// resume continues a struck conversion and compares the result with want. With
// keep, rows that were committed before must not have been written again.
func resume(t *testing.T, server *pgtest.Server, c conversion, want map[string]string, keep bool) {
	t.Helper()
	var before map[string]bool
	if keep {
		before = rowVersions(t, server, c.DSN)
	}
	c.Incremental = true
	c.mustRun(t)
	if d := cmp.Diff(want, server.Snapshot(t, c.DSN)); d != "" {
		t.Errorf("differs from an uninterrupted run (-want +got):\n%s", d)
	}
	if !keep {
		return
	}
	after := rowVersions(t, server, c.DSN)
	for row := range before {
		if !after[row] {
			t.Errorf("a row committed before the kill was written again: %s", row)
		}
	}
}

// rowVersions returns the committed rows with the transaction that wrote them.
func rowVersions(t *testing.T, server *pgtest.Server, dsn string) map[string]bool {
	t.Helper()
	versions := make(map[string]bool)
	for table, key := range map[string]string{"transaction_log": "tid", "object_state": "zoid, tid", "object_history": "zoid, tid", "blob_state": "zoid, tid"} {
		if server.Query(t, dsn, fmt.Sprintf("SELECT to_regclass('%s') IS NOT NULL", table))[0] != "t" {
			continue
		}
		for _, row := range server.Query(t, dsn, fmt.Sprintf("SELECT '%s', %s, xmin FROM %s", table, key, table)) {
			versions[row] = true
		}
	}
	return versions
}
