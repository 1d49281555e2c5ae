// Package desttest is the contract that each destination passes. A driver's
// test calls Run with a way to make an empty database and to look into it.
package desttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Database is one database to convert into.
type Database interface {
	// Open returns a destination for it, anew with each call.
	Open(t testing.TB, history bool) dest.Destination
	// Contents reads everything.
	Contents(t testing.TB, history bool) Contents
	// Blob reads the bytes of a blob; Upload does what a run has deferred.
	Blob(t testing.TB, oid zodb.OID, tid zodb.TID) []byte
	Upload(t testing.TB, owed []dest.OwedBlob)
	// Rows are all rows as text, in an order of their own, and all objects of the
	// bucket if there is one, which begin with ObjectRow; Schema is its definition. Two databases with equal
	// content have equal ones.
	Rows(t testing.TB) []string
	Schema(t testing.TB) string
}

// ObjectRow is how an object of a bucket begins among the rows.
const ObjectRow = "object|"

// Case is one kind of destination.
type Case struct {
	// New makes an empty database.
	New func(t testing.TB) Database
	// History tells whether to test history-preserving, too.
	History bool
	// Blobs are the ways to test in which blobs of BlobThreshold bytes and more
	// are uploaded. A destination without a bucket has dest.Inline alone.
	Blobs []dest.BlobMode
	// OnlyBlobs leaves out what has nothing to do with blobs.
	OnlyBlobs bool
}

// BlobThreshold is where blobs of BlobSample that are to be kept elsewhere begin.
const BlobThreshold = 1000

// Run tests the destination.
func Run(t *testing.T, c Case) {
	modes := map[string]bool{"HistoryFree": false}
	if c.History {
		modes["HistoryPreserving"] = true
	}
	for name, history := range modes {
		t.Run(name, func(t *testing.T) {
			s := suite{Case: c, history: history, sample: Sample}
			for _, mode := range c.Blobs {
				blobs := suite{Case: c, history: history, sample: BlobSample, mode: mode}
				t.Run("Blobs/"+string(mode), blobs.testBlobs)
			}
			for source, sourceHistory := range map[string]bool{"HistoryFree": false, "HistoryPreserving": true} {
				if c.OnlyBlobs && sourceHistory != history {
					continue
				}
				for _, mode := range c.Blobs {
					tables := suite{Case: c, history: history, sourceHistory: sourceHistory, mode: mode}
					t.Run("TableThatIs"+source+"/"+string(mode), tables.testTables)
				}
			}
			if c.OnlyBlobs {
				return
			}
			t.Run("ConvertsEverything", s.testConverts)
			t.Run("ContinuesAfterEveryChunk", s.testContinues)
			t.Run("CatchesUpFromEveryTransaction", s.testCatchesUp)
			t.Run("RejectsDoNotLetOlderRevisionsIn", s.testRejects)
			t.Run("DryWriterCountsTheSame", s.testDry)
			t.Run("RefusesTheSecondRun", s.testTwoRuns)
			t.Run("RefusesToMix", s.testMix)
			t.Run("AbortLeavesNothing", s.testAbort)
			t.Run("ClearsWhatIsThere", s.testClear)
		})
	}
}

type suite struct {
	Case
	history bool
	sample  func(history bool) *Builder
	mode    dest.BlobMode
	// sourceHistory tells whether the tables that are converted keep history.
	sourceHistory bool
}

// Sample is a database with what a source can have: several revisions, deleted
// and undone objects, several records of one object in a transaction, empty
// transactions, metadata of all kinds, records larger than a chunk.
func Sample(history bool) *Builder {
	b := NewBuilder()
	rng := rand.New(rand.NewPCG(1, 2))
	tid := zodb.TID(0x03f6000000000001)
	next := func(user, description string) Transaction {
		tid += 0x10000000 + zodb.TID(rng.Uint64N(1000))
		return Transaction{TID: tid, User: user, Description: description}
	}
	text := func() string { return strings.Repeat("zażółć ", rng.IntN(40)) }
	root := func() Record { return Record{OID: 0, Data: Data("persistent.mapping", "PersistentMapping", text())} }
	b.Commit(next("", "initial database creation"), root())
	positions := map[zodb.OID]int64{}
	for i := range 12 {
		var records []Record
		for range 1 + rng.IntN(9) {
			records = append(records, Record{OID: zodb.OID(1 + rng.IntN(40)), Data: Data("app.things", fmt.Sprintf("Thing%d", rng.IntN(3)), text())})
		}
		if i == 6 {
			records = append(records, Record{OID: 77, Data: Data("app.things", "Large", strings.Repeat("x", 9000))})
		}
		for i, at := range b.Commit(next("/ admin", text()), records...) {
			positions[records[i].OID] = at
		}
	}
	b.Commit(next("", "nothing was written"))
	b.Commit(next("bytes \xff\x00", `a back\slash`), root())
	b.Commit(next("", "deleted"), Record{OID: 77}, Record{OID: 78, Data: Data("app", "Late", "x")})
	gone := b.Commit(next("", "uncreated"), Record{OID: 78})
	b.Commit(next("", "undo of a deletion's undo"), Record{OID: 78, Back: gone[0], Gone: true})
	for oid := zodb.OID(1); oid <= 40; oid++ {
		if at := positions[oid]; at != 0 {
			b.Commit(next("", "undone"), Record{OID: oid, Back: at}, root())
			break
		}
	}
	// An oid that exists only as deleted is above all others.
	b.Commit(next("", "last"), Record{OID: 500}, root(), Record{OID: 4000, Data: Data("app", "Last", "y")})
	return b
}

const chunkBytes = 2000

// budget is without bound.
type budget struct{}

func (budget) Acquire(ctx context.Context, _ int64) error { return ctx.Err() }
func (budget) Release(int64)                              {}

// errStop stops a run where a test wants it.
var errStop = errors.New("stopped by the test")

// conversion is one run.
type conversion struct {
	src     source.Source
	dst     dest.Destination
	history bool
	staging string // directory

	workers                  int
	continues, clear, accept bool
	mode                     dest.BlobMode
	acceptMissing            bool
	// stopAfter stops the run when that many chunks are written; 0: never.
	stopAfter int

	totals dest.Result
	found  int // chunks that earlier starts have written
	chunks int
	steps  []dest.Step
	// What the session tells at the end.
	missing []dest.MissingBlob
	owed    []dest.OwedBlob
}

// run converts the way package pipeline does.
func (c *conversion) run(ctx context.Context) error {
	if c.workers == 0 {
		c.workers = 2
	}
	state, err := c.dst.State(ctx, c.workers)
	if err != nil {
		return err
	}
	var until int64
	if c.continues && state.Condition == dest.Interrupted {
		until = state.Run.Source.End
	}
	info, err := c.src.Scan(ctx, source.ScanOptions{Until: until, History: c.history})
	if err != nil {
		return err
	}
	staging := ""
	if c.mode == dest.Deferred {
		staging = c.staging
	}
	var mu sync.Mutex
	session, err := c.dst.Begin(ctx, &dest.Plan{
		Info: info, Workers: c.workers, Tool: "desttest", Continue: c.continues, Clear: c.clear, AcceptRejects: c.accept,
		Options: dest.Options{HistoryPreserving: c.history, ChunkBytes: chunkBytes},
		Blobs:   c.mode, AcceptMissingBlobs: c.acceptMissing, Source: c.src, StagingDir: staging,
		Log: func(s dest.Step) {
			mu.Lock()
			defer mu.Unlock()
			c.steps = append(c.steps, s)
		},
	})
	if err != nil {
		return err
	}
	defer session.Close()
	err = c.phases(ctx, session, info)
	if rejected := (*dest.RejectedError)(nil); errors.As(err, &rejected) {
		return errors.Join(err, c.listMissing(ctx, session))
	}
	return err
}

func (c *conversion) listMissing(ctx context.Context, session dest.Session) error {
	return session.MissingBlobs(ctx, func(m *dest.MissingBlob) error {
		c.missing = append(c.missing, *m)
		return nil
	})
}

func (c *conversion) phases(ctx context.Context, session dest.Session, info *source.Info) error {
	c.totals, c.found = session.Run().Totals, len(session.Run().Done)
	verify := session.Run().Phase == dest.CatchingUp
	if session.Run().Phase == dest.Loading {
		if err := c.load(ctx, session); err != nil {
			return err
		}
		if err := session.Loaded(ctx, c.src); err != nil {
			return err
		}
		c.totals = session.Run().Totals
	}
	if !verify {
		if err := session.Finish(ctx); err != nil {
			return err
		}
	}
	if c.continues {
		if err := c.follow(ctx, session, info, verify); err != nil {
			return err
		}
	}
	if err := c.settle(ctx, session); err != nil {
		return err
	}
	return session.Complete(ctx)
}

// settle does what is owed. The manifest comes first, as in package pipeline.
func (c *conversion) settle(ctx context.Context, session dest.Session) error {
	if c.mode == dest.Deferred {
		gone := map[string]bool{}
		if err := session.Gone(ctx, func(key string) error { gone[key] = true; return nil }); err != nil {
			return err
		}
		if err := session.Owed(ctx, func(o *dest.OwedBlob) error {
			if gone[o.Key] {
				return fmt.Errorf("%s is both owed and gone", o.Key)
			}
			c.owed = append(c.owed, *o)
			return nil
		}); err != nil {
			return err
		}
	}
	if err := c.listMissing(ctx, session); err != nil {
		return err
	}
	return session.SettleBlobs(ctx, func(dest.UploadProgress) {})
}

func (c *conversion) options(done []source.Range) source.ReadOptions {
	return source.ReadOptions{History: c.history, ChunkBytes: chunkBytes, Done: done, Budget: budget{}}
}

func (c *conversion) load(ctx context.Context, session dest.Session) error {
	group, ctx := errgroup.WithContext(ctx)
	chunks := make(chan *source.Chunk)
	group.Go(func() error {
		defer close(chunks)
		return c.src.Read(ctx, c.options(session.Run().Done), func(k *source.Chunk) error {
			select {
			case chunks <- k:
				return nil
			case <-ctx.Done():
				k.Release()
				return ctx.Err()
			}
		})
	})
	var mu sync.Mutex
	for range c.workers {
		group.Go(func() error {
			w, err := session.Writer(ctx, c.src)
			if err != nil {
				return err
			}
			defer w.Close()
			for k := range chunks {
				result, err := w.Write(ctx, k)
				k.Release()
				if err != nil {
					return err
				}
				mu.Lock()
				err = c.wrote(result)
				mu.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (c *conversion) wrote(result *dest.Result) error {
	c.totals.Add(result)
	if c.chunks++; c.chunks == c.stopAfter {
		return errStop
	}
	return nil
}

func (c *conversion) follow(ctx context.Context, session dest.Session, loaded *source.Info, verify bool) error {
	info, err := c.src.Scan(ctx, source.ScanOptions{History: c.history})
	if err != nil {
		return err
	}
	if table, ok := c.src.(source.Table); ok {
		return c.reconcile(ctx, session, table)
	}
	src := c.src.(source.Log)
	from := loaded.Identity.End
	if verify {
		if from, err = session.Verify(ctx, src); err != nil {
			return err
		}
	}
	if from >= info.Identity.End {
		return nil
	}
	w, err := session.Follower(ctx, src)
	if err != nil {
		return err
	}
	defer w.Close()
	return src.Follow(ctx, from, c.options(nil), c.writes(ctx, w))
}

func (c *conversion) reconcile(ctx context.Context, session dest.Session, src source.Table) error {
	have, free, err := session.Have(ctx)
	if err != nil {
		return err
	}
	defer free()
	w, err := session.Reconciler(ctx, src)
	if err != nil {
		return err
	}
	defer w.Close()
	c.totals = session.Run().Totals
	return src.Differences(ctx, have, source.DifferenceOptions{ReadOptions: c.options(nil)}, c.writes(ctx, w))
}

// writes lets a writer write what a source gives.
func (c *conversion) writes(ctx context.Context, w dest.Writer) func(*source.Chunk) error {
	return func(k *source.Chunk) error {
		result, err := w.Write(ctx, k)
		k.Release()
		if err != nil {
			return err
		}
		return c.wrote(result)
	}
}

func (s suite) convert(t *testing.T, db Database, b *Builder, change func(*conversion)) (*conversion, error) {
	t.Helper()
	c := &conversion{src: b.Source(t), dst: db.Open(t, s.history), history: s.history, mode: s.mode}
	defer c.dst.Close()
	if change != nil {
		change(c)
	}
	err := c.run(t.Context())
	if err == nil && len(c.owed) > 0 {
		db.Upload(t, c.owed)
	}
	return c, err
}

func (s suite) must(t *testing.T, db Database, b *Builder, change func(*conversion)) *conversion {
	t.Helper()
	c, err := s.convert(t, db, b, change)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s suite) check(t *testing.T, db Database, b *Builder) {
	t.Helper()
	if diff := cmp.Diff(b.Want(s.history), db.Contents(t, s.history)); diff != "" {
		t.Fatalf("contents (-want +got):\n%s", diff)
	}
}

func (s suite) condition(t *testing.T, db Database, want dest.Condition) *dest.State {
	t.Helper()
	d := db.Open(t, s.history)
	defer d.Close()
	state, err := d.State(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if state.Condition != want {
		t.Fatalf("the destination is %s, want %s", state.Condition, want)
	}
	survey := d.Survey(t.Context(), 2)
	if survey.Problem != "" || survey.Condition != want || survey.Objects != state.Objects || len(survey.Faults) > 0 {
		t.Errorf("the survey tells of %s, %d objects, problem %q, faults %v; the state of %d objects", survey.Condition, survey.Objects, survey.Problem, survey.Faults, state.Objects)
	}
	return state
}

func (s suite) testConverts(t *testing.T) {
	db, b := s.New(t), Sample(s.history)
	s.condition(t, db, dest.Absent)
	c := s.must(t, db, b, nil)
	s.check(t, db, b)
	want := b.Want(s.history)
	state := s.condition(t, db, dest.Filled)
	if state.Transactions != int64(b.Len()) || state.Objects != int64(len(want.Current)) || state.LastTID != want.Transactions[b.Len()-1] {
		t.Errorf("the state is %+v", state)
	}
	if c.totals.Objects != int64(len(want.Current)) || c.totals.Transactions != int64(b.Len()) || c.totals.Metadata != 1 || len(c.totals.Escaped) != 1 {
		t.Errorf("the totals are %+v", c.totals)
	}
	if len(c.steps) == 0 {
		t.Error("no step was told")
	}
	// Neither an empty source nor one without a root is an error.
	empty := s.New(t)
	s.must(t, empty, NewBuilder(), nil)
	s.check(t, empty, NewBuilder())
}

// step is how many places are left out where the same is done in several ways.
func (s suite) step(n int) int {
	if s.mode == "" {
		return 1
	}
	return n
}

func (s suite) testContinues(t *testing.T) {
	b := s.sample(s.history)
	whole := s.New(t)
	chunks := s.must(t, whole, b, nil).chunks
	want := look(t, whole)
	if chunks < 8 {
		t.Fatalf("%d chunks are too few to test anything", chunks)
	}
	for stop := 1; stop <= chunks; stop += s.step(2) {
		db := s.New(t)
		if _, err := s.convert(t, db, b, func(c *conversion) { c.stopAfter = stop }); !errors.Is(err, errStop) {
			t.Fatalf("stop after %d: %v", stop, err)
		}
		state := s.condition(t, db, dest.Interrupted)
		if len(state.Run.Done) < stop || state.Run.Phase != dest.Loading {
			t.Fatalf("stop after %d: %d chunks are done in phase %s", stop, len(state.Run.Done), state.Run.Phase)
		}
		c := s.must(t, db, b, func(c *conversion) { c.continues = true })
		// A commit that was under way may have come after the look.
		if c.found < len(state.Run.Done) || c.chunks != chunks-c.found {
			t.Errorf("stop after %d: %d chunks were done, then %d, and %d of %d were written", stop, len(state.Run.Done), c.found, c.chunks, chunks)
		}
		s.same(t, want, look(t, db))
	}
}

// everything is what two databases are compared by.
type everything struct {
	Rows   []string
	Schema string
}

func look(t *testing.T, db Database) everything { return everything{db.Rows(t), db.Schema(t)} }

func (s suite) same(t *testing.T, want, got everything) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func (s suite) testCatchesUp(t *testing.T) {
	b := s.sample(s.history)
	whole := s.New(t)
	s.must(t, whole, b, nil)
	want := look(t, whole)
	for n := 0; n <= b.Len(); n += s.step(3) {
		db := s.New(t)
		s.must(t, db, b.Prefix(n), nil)
		// Stopped after every chunk, it is at each moment what the source was. (An
		// empty destination is loaded newest first.)
		// A transaction may take several chunks, so that one is not progress.
		for stopped, stop := n > 0, 1; stopped; stop++ {
			_, err := s.convert(t, db, b, func(c *conversion) { c.continues, c.stopAfter = true, stop })
			if stopped = errors.Is(err, errStop); err != nil && !stopped {
				t.Fatalf("after %d transactions: %v", n, err)
			}
			s.check(t, db, b.Prefix(len(db.Contents(t, s.history).Transactions)))
			if n%4 != 0 {
				break // once is enough for most
			}
		}
		s.must(t, db, b, func(c *conversion) { c.continues = true })
		s.same(t, want, look(t, db))
	}
}

func (s suite) testRejects(t *testing.T) {
	build := func(tail bool) *Builder {
		b := NewBuilder()
		good := func(text string) []byte { return Data("app", "Thing", text) }
		b.Commit(Transaction{TID: 1 << 40}, Record{OID: 0, Data: good("root")}, Record{OID: 1, Data: good("older")}, Record{OID: 2, Data: Bad(), Rejected: true})
		b.Commit(Transaction{TID: 2 << 40}, Record{OID: 1, Data: Bad(), Rejected: true}, Record{OID: 2, Data: good("newer")})
		if tail {
			b.Commit(Transaction{TID: 3 << 40}, Record{OID: 2, Data: Bad(), Rejected: true}, Record{OID: 3, Data: good("new")})
		}
		return b
	}
	db, b := s.New(t), build(false)
	_, err := s.convert(t, db, b, nil)
	var rejected *dest.RejectedError
	if !errors.As(err, &rejected) || rejected.Root || rejected.Count == 0 {
		t.Fatalf("rejects that nobody accepts give %v", err)
	}
	s.condition(t, db, dest.Interrupted)
	c := s.must(t, db, b, func(c *conversion) { c.continues, c.accept = true, true })
	if c.chunks != 0 {
		t.Errorf("%d chunks were read again to accept the rejects", c.chunks)
	}
	s.check(t, db, b)
	s.must(t, db, build(true), func(c *conversion) { c.continues, c.accept = true, true })
	s.check(t, db, build(true))

	// The root can never be accepted.
	b = NewBuilder()
	b.Commit(Transaction{TID: 1 << 40}, Record{OID: 0, Data: Bad()})
	_, err = s.convert(t, s.New(t), b, func(c *conversion) { c.accept = true })
	if !errors.As(err, &rejected) || !rejected.Root {
		t.Errorf("a rejected root gives %v", err)
	}
}

func (s suite) testDry(t *testing.T) {
	b := s.sample(s.history)
	wet := s.must(t, s.New(t), b, nil)
	src := b.Source(t)
	if _, err := src.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	d := s.New(t).Open(t, s.history)
	defer d.Close()
	w := d.DryWriter(src)
	defer w.Close()
	var totals dest.Result
	c := &conversion{history: s.history}
	err := src.Read(t.Context(), c.options(nil), func(k *source.Chunk) error {
		defer k.Release()
		r, err := w.Write(t.Context(), k)
		if err == nil {
			totals.Add(r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wet.totals, totals); diff != "" {
		t.Errorf("totals (-written +dry):\n%s", diff)
	}
}

func (s suite) refused(t *testing.T, err error, parts ...string) {
	t.Helper()
	var refused *dest.RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("not refused: %v", err)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}

func (s suite) testTwoRuns(t *testing.T) {
	db, b := s.New(t), Sample(s.history)
	src := b.Source(t)
	info, err := src.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(continues bool) (dest.Session, error) {
		d := db.Open(t, s.history)
		t.Cleanup(func() { d.Close() })
		return d.Begin(t.Context(), &dest.Plan{
			Info: info, Workers: 1, Tool: "desttest", Continue: continues, Log: func(dest.Step) {},
			Options: dest.Options{HistoryPreserving: s.history, ChunkBytes: chunkBytes},
		})
	}
	// Of several that start at once exactly one gets through.
	sessions := make([]dest.Session, 4)
	errs := make([]error, len(sessions))
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() { sessions[i], errs[i] = begin(false) })
	}
	wg.Wait()
	var first dest.Session
	for i, session := range sessions {
		if session == nil {
			s.refused(t, errs[i], "pid")
			continue
		}
		if first != nil {
			t.Fatal("two runs have begun")
		}
		first = session
	}
	if first == nil {
		t.Fatal("no run has begun")
	}
	for _, continues := range []bool{false, true} {
		_, err := begin(continues)
		s.refused(t, err, "pid")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.Run().Generation != first.Run().Generation+1 || second.Run().ID != first.Run().ID {
		t.Errorf("continued as %+v after %+v", second.Run(), first.Run())
	}
}

func (s suite) testMix(t *testing.T) {
	db, b := s.New(t), Sample(s.history)
	if _, err := s.convert(t, db, b, func(c *conversion) { c.stopAfter = 2 }); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	other := b.Prefix(b.Len() - 1)
	other.Commit(b.txns[b.Len()-1].Transaction, Record{OID: 12, Data: Data("app", "Another", "")})
	src := other.Source(t)
	info, err := src.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same, err := b.Source(t).Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	options := dest.Options{HistoryPreserving: s.history, ChunkBytes: chunkBytes}
	for name, plan := range map[string]*dest.Plan{
		"another source": {Info: info, Options: options},
		"other options":  {Info: same, Options: dest.Options{HistoryPreserving: s.history, ChunkBytes: chunkBytes + 1}},
	} {
		d := db.Open(t, s.history)
		plan.Workers, plan.Continue, plan.Log = 1, true, func(dest.Step) {}
		session, err := d.Begin(t.Context(), plan)
		if err == nil {
			session.Close()
		}
		t.Log(name)
		s.refused(t, err, name)
		d.Close()
	}
	s.must(t, db, b, func(c *conversion) { c.continues = true })
	s.check(t, db, b)
}

func (s suite) testAbort(t *testing.T) {
	b := s.sample(s.history)
	db := s.New(t)
	before := db.Schema(t)
	abort := func() error {
		d := db.Open(t, s.history)
		defer d.Close()
		_, err := d.Abort(t.Context())
		return err
	}
	s.refused(t, abort())
	if _, err := s.convert(t, db, b, func(c *conversion) { c.stopAfter = 3 }); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	if err := abort(); err != nil {
		t.Fatal(err)
	}
	s.condition(t, db, dest.Absent)
	if diff := cmp.Diff(before, db.Schema(t)); diff != "" {
		t.Errorf("schema (-before +after):\n%s", diff)
	}
	s.must(t, db, b, nil)
	s.check(t, db, b)
}

func (s suite) testClear(t *testing.T) {
	b := Sample(s.history)
	db := s.New(t)
	s.must(t, db, b, nil)
	_, err := s.convert(t, db, b, nil)
	s.refused(t, err, "--incremental")
	less := b.Prefix(5)
	s.must(t, db, less, func(c *conversion) { c.clear = true })
	s.check(t, db, less)
	// Also what an interrupted run has left.
	if _, err := s.convert(t, db, b, func(c *conversion) { c.clear, c.stopAfter = true, 3 }); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	s.must(t, db, b, func(c *conversion) { c.clear = true })
	s.check(t, db, b)
}
