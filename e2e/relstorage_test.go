//go:build faults

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

// kind is a way from a RelStorage into a destination.
type kind struct {
	name    string
	engine  func(*testing.T) engine
	source  bool // the source keeps history
	history bool // and so does the destination
	blobs   blobPlace
}

func onPostgreSQL(t *testing.T) engine { return postgreSQL{sourcePostgres.Server(t)} }
func onMariaDB(t *testing.T) engine    { return mariaDB{sourceMariaDB.Server(t)} }
func onSQLite(*testing.T) engine       { return sqlite{} }

var kinds = []kind{
	{"PostgreSQL HF to HF", onPostgreSQL, false, false, inDatabase},
	{"PostgreSQL HP to HF", onPostgreSQL, true, false, noBlobs},
	{"PostgreSQL HP to HP", onPostgreSQL, true, true, inDatabase},
	{"SQLite HF to HF", onSQLite, false, false, inDatabase},
	{"MariaDB HF to HF", onMariaDB, false, false, inDatabase},
	{"MariaDB HP to HP", onMariaDB, true, true, inFiles},
	{"PostgreSQL HF to HP", onPostgreSQL, false, true, inFiles},
	{"SQLite HP to HP", onSQLite, true, true, inDatabase},
}

func (k kind) conversion(s *site, dsn string) conversion {
	opts := s.opts
	opts.History = s.history
	return conversion{RelStorage: &opts, Source: k.name, DSN: dsn, History: k.history, Workers: 3, ChunkBytes: 8 << 10}
}

// arena is a site of one kind at two times, and a destination that holds the
// earlier one.
type arena struct {
	kind
	pg             *pgtest.Server
	earlier, later *site
	loaded         string // name of the database
}

// newArena lets a site work, and look back at how it was halfway.
func (k kind) newArena(t *testing.T, pg *pgtest.Server, seed int) *arena {
	t.Helper()
	a := &arena{kind: k, pg: pg, later: newSite(t, k.engine(t), k.source, k.blobs)}
	a.later.work(t, seed, 110, "--pack", "45")
	a.earlier = a.later.earlier(t)
	a.later.work(t, seed+1, 60, "--pack", "25")
	c := k.conversion(a.earlier, pg.NewDatabase(t))
	c.mustRun(t)
	a.loaded = databaseName(c.DSN)
	return a
}

// stage is a conversion of an arena: a load, or a catch-up of what is loaded.
type stage struct {
	*arena
	catchUp bool
}

func (s stage) String() string {
	if s.catchUp {
		return "catch up"
	}
	return "load"
}

func (a *arena) stages() []stage { return []stage{{a, true}, {a, false}} }

// prepare makes a destination in which the stage can start.
func (s stage) prepare(t *testing.T) conversion {
	t.Helper()
	dsn := ""
	if s.catchUp {
		dsn = s.pg.NewDatabase(t, "TEMPLATE "+s.loaded)
	} else {
		dsn = s.pg.NewDatabase(t)
	}
	c := s.conversion(s.later, dsn)
	c.Incremental = s.catchUp
	c.Rejects = filepath.Join(t.TempDir(), "rejects")
	return c
}

// undisturbed runs the stage without faults: every place that it passes, how
// long it takes and what it leaves.
func (s stage) undisturbed(t *testing.T) ([]place, time.Duration, map[string]string) {
	t.Helper()
	c := s.prepare(t)
	trace := filepath.Join(t.TempDir(), "trace")
	start := time.Now()
	c.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	return readTrace(t, trace), time.Since(start), s.pg.Snapshot(t, c.DSN)
}

// content is what a snapshot says about rows. Sequences may be ahead of those of
// another way to the same rows.
func content(snapshot map[string]string) map[string]string {
	rows := make(map[string]string)
	for name, digest := range snapshot {
		if !strings.HasPrefix(name, "sequence ") {
			rows[name] = digest
		}
	}
	return rows
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// forEachKind runs a test for each kind, with a seed of its own that is told.
func forEachKind(t *testing.T, test func(t *testing.T, k kind, seed int)) {
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			seed := 100 * (i + 1)
			t.Logf("seed %d", seed)
			test(t, k, seed)
		})
	}
}

func TestKilledRunsFromRelStorageResumeToTheSameDatabase(t *testing.T) {
	pg := postgres.Server(t)
	forEachKind(t, func(t *testing.T, k kind, seed int) {
		left := count(t, "ZODB_CONVERT_RELSTORAGE_KILLS", 12)
		total := left
		a := k.newArena(t, pg, seed)
		byPhase := make(map[string]int)
		results := make(map[string]map[string]string)
		for i, s := range a.stages() {
			t.Run(s.String(), func(t *testing.T) {
				places, took, want := s.undisturbed(t)
				results[s.String()] = content(want)
				random := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
				share := left / (2 - i)
				atPlaces := draw(places, share-share/4, random)
				for _, p := range atPlaces {
					t.Run(fmt.Sprintf("%s:%d", p.point, p.n), func(t *testing.T) {
						c := s.prepare(t)
						state, out := c.run(t, fmt.Sprintf("%s:%d:kill9", p.point, p.n))
						mustBeKilled(t, state.Sys(), out)
						resume(t, pg, c, want, !s.catchUp)
					})
					byPhase[p.phase()]++
				}
				for n := len(atPlaces); n < share; n++ {
					t.Run(fmt.Sprintf("at any time %d", n), func(t *testing.T) {
						s.killAtAnyTime(t, took, random, want)
					})
					byPhase["any time"]++
				}
				left -= share
			})
		}
		if d := cmp.Diff(results["load"], results["catch up"]); d != "" {
			t.Errorf("a catch-up differs from a load (-load +catch up):\n%s", d)
		}
		t.Logf("%d kills, by phase: %v", total-left, byPhase)
		if left > 0 {
			t.Errorf("%d kills are missing", left)
		}
	})
}

func mustBeKilled(t *testing.T, state any, out string) {
	t.Helper()
	if status, ok := state.(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("not killed: %v\n%s", state, out)
	}
}

// killAtAnyTime strikes between two instructions, not at a place. A run that was
// done before is repeated with less time.
func (s stage) killAtAnyTime(t *testing.T, took time.Duration, random *rand.Rand, want map[string]string) {
	for {
		c := s.prepare(t)
		cmd, out := c.start(t, "")
		after := time.Duration(random.Int64N(int64(took)))
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err != nil {
			t.Logf("killed after %v", after)
			mustBeKilled(t, cmd.ProcessState.Sys(), out.String())
			resume(t, s.pg, c, want, !s.catchUp)
			return
		}
		took = took*9/10 + 1
	}
}

// A run whose source or destination goes away ends with a sentence that says
// how to go on, and goes on.
func TestStoppedServersOfRelStorageResumeToTheSameDatabase(t *testing.T) {
	forEachKind(t, func(t *testing.T, k kind, seed int) {
		pg := pgtest.Start(t)
		a := k.newArena(t, pg, seed)
		stops := count(t, "ZODB_CONVERT_RELSTORAGE_STOPS", 2)
		for i, s := range a.stages() {
			t.Run(s.String(), func(t *testing.T) {
				places, _, want := s.undisturbed(t)
				random := rand.New(rand.NewPCG(uint64(seed), uint64(10+i)))
				for _, p := range draw(places, stops, random) {
					modes := []string{"immediate", "fast"}
					if strings.HasPrefix(k.name, "SQLite") {
						modes = nil // there is no server
					}
					for _, mode := range modes {
						t.Run(fmt.Sprintf("source %s %s:%d", mode, p.point, p.n), func(t *testing.T) {
							s.stopSource(t, p, mode, want)
						})
					}
					t.Run(fmt.Sprintf("destination %s:%d", p.point, p.n), func(t *testing.T) {
						c := s.prepare(t)
						if !stopAt(t, pg, c, p) {
							t.Fatal("ended before the place was reached")
						}
						resume(t, pg, c, want, false)
					})
				}
			})
		}
	})
}

// stopSource stops the source's server at a place, and starts it again before
// the run is continued.
func (s stage) stopSource(t *testing.T, p place, mode string, want map[string]string) {
	t.Helper()
	c := s.prepare(t)
	run := pauseAt(t, c, p)
	if run == nil {
		t.Fatal("ended before the place was reached")
	}
	if err := s.later.engine.stop(mode); err != nil {
		t.Fatal(err)
	}
	run.goOn(t)
	err := run.wait(t, 2*time.Minute)
	if e := s.later.engine.run(); e != nil {
		t.Fatal(e)
	}
	t.Logf("%s:%d: the run ended with %v: %s", p.point, p.n, run.cmd.ProcessState, run.out)
	if err != nil {
		oneSentence(t, run.out.String())
		// A server that is away when the run first asks for it again has another
		// sentence; the command adds how to go on to both.
		if out := run.out.String(); !strings.Contains(out, "--incremental") && !strings.Contains(out, "cannot be reached") {
			t.Errorf("it does not say how to go on: %s", run.out)
		}
	}
	resume(t, s.pg, c, want, !s.catchUp)
}

// oneSentence wants a message of one line that is no trace of a program.
func oneSentence(t *testing.T, text string) {
	t.Helper()
	text = strings.TrimSpace(text)
	if text == "" || strings.Contains(text, "\n") || strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") {
		t.Errorf("not one sentence: %q", text)
	}
}

// A site that goes on working and packing is converted in the end.
func TestLivingSitesAreCaughtUpWith(t *testing.T) {
	pg := postgres.Server(t)
	forEachKind(t, func(t *testing.T, k kind, seed int) {
		for round := range count(t, "ZODB_CONVERT_RELSTORAGE_ROUNDS", 1) {
			t.Run(fmt.Sprint(round), func(t *testing.T) {
				random := rand.New(rand.NewPCG(uint64(seed), uint64(20+round)))
				s := newSite(t, k.engine(t), k.source, k.blobs)
				s.work(t, seed+round, 80, "--pack", "60")
				places, _ := k.trace(t, pg, s)
				live := s.live(t, seed+50+round, "--pack", "20", "--pause", "0.01")
				live.await(5)
				c := k.conversion(s, pg.NewDatabase(t))
				strikes := 0
				for _, p := range k.strikes(places, random) {
					state, out := c.run(t, fmt.Sprintf("%s:%d:kill9", p.point, p.n))
					if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
						strikes++
					} else if !state.Success() && !k.packedAway(t, out) {
						t.Fatalf("%s:%d: %v\n%s", p.point, p.n, state, out)
					}
					c.Incremental = true
					live.await(15)
				}
				// With the site still at work.
				if state, out := c.run(t, ""); !state.Success() && !k.packedAway(t, out) {
					t.Fatalf("%v\n%s", state, out)
				}
				for live.packs.Load() == 0 {
					live.await(1)
				}
				live.await(5)
				live.stop()
				c.mustRun(t)
				k.compareWithFresh(t, pg, s, c)
				s.judge(t, c)
				t.Logf("%d kills, %d steps of the site, %d packs", strikes, live.steps.Load(), live.packs.Load())
			})
		}
	})
}

// packedAway tells that a run stopped because of blobs whose files are gone. Files
// belong to no view: a pack removes them from under a run, which then says so.
func (k kind) packedAway(t *testing.T, out string) bool {
	t.Helper()
	gone := k.blobs == inFiles && strings.Contains(out, "missing")
	if gone {
		t.Logf("packed away: %s", strings.TrimSpace(out))
	}
	return gone
}

// strikes are where the runs of a living site are struck: first when most of it is
// loaded, so that the rest comes from another view, then early, because there is
// little left to do.
func (k kind) strikes(places []place, random *rand.Rand) []place {
	chunks := 0
	for _, p := range places {
		if p.point == "chunk.committed" {
			chunks = max(chunks, p.n)
		}
	}
	all := []place{{"chunk.committed", max(chunks*7/10, 1)}}
	for _, p := range draw(places, 4, random) {
		all = append(all, place{p.point, 1 + (p.n-1)%5})
	}
	return all
}

// trace converts once and returns the places that are passed.
func (k kind) trace(t *testing.T, pg *pgtest.Server, s *site) ([]place, conversion) {
	t.Helper()
	c := k.conversion(s, pg.NewDatabase(t))
	trace := filepath.Join(t.TempDir(), "trace")
	c.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	c.Incremental = true
	c.mustRun(t, "ZODB_CONVERT_FAULT_TRACE="+trace)
	return readTrace(t, trace), c
}

// compareWithFresh wants every row as a conversion of the source as it is now
// makes it.
func (k kind) compareWithFresh(t *testing.T, pg *pgtest.Server, s *site, c conversion) {
	t.Helper()
	fresh := k.conversion(s, pg.NewDatabase(t))
	fresh.mustRun(t)
	if d := cmp.Diff(content(pg.Snapshot(t, fresh.DSN)), content(pg.Snapshot(t, c.DSN))); d != "" {
		t.Errorf("differs from a fresh conversion (-fresh +got):\n%s", d)
	}
}

// A server keeps for a view what was deleted since. The finishing steps, which
// can take hours, do not need it.
func TestTheViewEndsBeforeTheFinishingSteps(t *testing.T) {
	pg := postgres.Server(t)
	for _, k := range kinds {
		if !strings.HasPrefix(k.name, "PostgreSQL") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			s := newSite(t, k.engine(t), k.source, k.blobs)
			s.work(t, 7, 30)
			for _, at := range []place{{"chunk.committed", 1}, {"finish.begin", 1}, {"complete.begin", 1}} {
				run := pauseAt(t, k.conversion(s, pg.NewDatabase(t)), at)
				if run == nil {
					t.Fatalf("ended before %s", at.point)
				}
				open := sourcePostgres.Server(t).Query(t, s.opts.PostgreSQL,
					"SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL")
				switch {
				case at.point == "chunk.committed" && len(open) == 0:
					t.Error("there is no view while it is loaded")
				case at.point != "chunk.committed" && len(open) > 0:
					t.Errorf("at %s a view is held: %q", at.point, open)
				}
				run.goOn(t)
				if err := run.wait(t, time.Minute); err != nil {
					t.Errorf("%v\n%s", err, run.out)
				}
			}
		})
	}
}

// Blob files belong to no view. A pack between the look at the source and the
// reading of a blob takes the file; the run says that it is missing, and the next
// start finds that the source does not have the record any more either.
func TestBlobFilesThatAPackRemovesMeanwhile(t *testing.T) {
	pg := postgres.Server(t)
	for _, k := range []kind{
		{"HF to HF", onPostgreSQL, false, false, inFiles},
		{"HP to HP", onPostgreSQL, true, true, inFiles},
	} {
		t.Run(k.name, func(t *testing.T) {
			s := newSite(t, k.engine(t), k.source, k.blobs)
			s.work(t, 21, 100)
			c := k.conversion(s, pg.NewDatabase(t))
			run := pauseAt(t, c, place{"claim.committed", 1})
			if run == nil {
				t.Fatal("ended before a row was read")
			}
			s.work(t, 22, 60, "--pack", "30")
			run.goOn(t)
			if err := run.wait(t, time.Minute); err == nil {
				t.Error("a run whose blobs are gone says that all is done")
			}
			oneSentence(t, run.out.String())
			if !k.packedAway(t, run.out.String()) {
				t.Errorf("it does not say that blobs are missing: %s", run.out)
			}
			c.Incremental = true
			c.mustRun(t)
			k.compareWithFresh(t, pg, s, c)
			s.judge(t, c)
		})
	}
}
