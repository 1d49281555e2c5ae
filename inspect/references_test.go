package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// object is one in a model graph.
type object struct {
	oid    uint64
	class  string
	size   int64
	refs   []uint64
	weak   []uint64
	others []jsonb.Reference
}

func (o *object) row() *jsonb.Row {
	row := &jsonb.Row{Module: []byte("m"), Name: []byte(o.class)}
	for _, r := range o.refs {
		row.Refs = append(row.Refs, int64(r))
	}
	for _, r := range o.weak {
		row.Loose = append(row.Loose, jsonb.Reference{OID: zodb.OID(r), Weak: true})
	}
	row.Loose = append(row.Loose, o.others...)
	return row
}

// modelFindings are what is to be found, in the simplest way; of the text only the
// numbers.
func modelFindings(graph []object) map[string]Finding {
	have := map[uint64]*object{}
	for i := range graph {
		have[graph[i].oid] = &graph[i]
	}
	out := map[string]Finding{}
	note := func(cause string, of []*object, target func(o *object) string) {
		if len(of) == 0 {
			return
		}
		f := Finding{Cause: cause, Count: int64(len(of))}
		classes := map[string]Class{}
		slices.SortFunc(of, func(a, b *object) int { return cmp.Compare(a.oid, b.oid) })
		for i, o := range of {
			c := classes["m."+o.class]
			classes["m."+o.class] = Class{Class: "m." + o.class, Objects: c.Objects + 1, Bytes: c.Bytes + o.size}
			if i < firstListed {
				f.First = append(f.First, zodb.OID(o.oid).String())
				if target != nil {
					f.Targets = append(f.Targets, target(o))
				}
			}
		}
		f.Classes = slices.SortedFunc(maps.Values(classes), func(a, b Class) int {
			return cmp.Or(cmp.Compare(b.Objects, a.Objects), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Class, b.Class))
		})
		f.Classes = f.Classes[:min(len(f.Classes), firstListed)]
		out[cause] = f
	}
	missing := func(cause string, oids func(o *object) []uint64) {
		var of []*object
		targets := map[*object][]uint64{}
		for i := range graph {
			o := &graph[i]
			for _, t := range oids(o) {
				if have[t] == nil {
					targets[o] = append(targets[o], t)
				}
			}
			if len(targets[o]) > 0 {
				of = append(of, o)
			}
		}
		note(cause, of, func(o *object) string { return zodb.OID(slices.Min(targets[o])).String() })
		if f, found := out[cause]; found {
			distinct := map[uint64]bool{}
			for _, oids := range targets {
				for _, oid := range oids {
					distinct[oid] = true
				}
			}
			f.Missing = int64(len(distinct))
			out[cause] = f
		}
	}
	missing(Dangling, func(o *object) []uint64 { return o.refs })
	missing(WeakDangling, func(o *object) []uint64 { return o.weak })

	var crossed []*object
	for i := range graph {
		if len(graph[i].others) > 0 {
			crossed = append(crossed, &graph[i])
		}
	}
	note(CrossDatabase, crossed, func(o *object) string {
		r := slices.MinFunc(o.others, func(a, b jsonb.Reference) int { return cmp.Compare(a.OID, b.OID) })
		return fmt.Sprintf("%v in %q", r.OID, r.Database)
	})
	if have[0] == nil {
		return out
	}
	reached := map[uint64]bool{0: true}
	for stack := []uint64{0}; len(stack) > 0; {
		o := have[stack[len(stack)-1]]
		stack = stack[:len(stack)-1]
		for _, t := range o.refs {
			if have[t] != nil && !reached[t] {
				reached[t] = true
				stack = append(stack, t)
			}
		}
	}
	var lost []*object
	for i := range graph {
		if !reached[graph[i].oid] {
			lost = append(lost, &graph[i])
		}
	}
	note(Unreachable, lost, nil)
	return out
}

// collect gives a graph to several writers at a time.
func collect(t testing.TB, r *references, graph []object, writers int) {
	t.Helper()
	var group errgroup.Group
	for i := range writers {
		w := r.writer(jsonb.NewEncoder(jsonb.Options{}))
		group.Go(func() error {
			for j := i; j < len(graph); j += writers {
				o := &graph[j]
				w.add(zodb.OID(o.oid), o.row(), o.size)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func raise(need int64) int64 { return need }

// opened are references that end with the test.
func opened(t testing.TB, opts referenceOptions) *references {
	t.Helper()
	if opts.Memory == 0 {
		opts.Memory = 64 << 20
	}
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	opts.Raise = raise
	r, err := newReferences(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func byCause(t testing.TB, found []Finding) map[string]Finding {
	t.Helper()
	out := map[string]Finding{}
	for _, f := range found {
		if f.Text == "" {
			t.Errorf("%s has no text", f.Cause)
		}
		f.Text = ""
		if _, twice := out[f.Cause]; twice {
			t.Errorf("%s comes twice", f.Cause)
		}
		out[f.Cause] = f
	}
	return out
}

// graphOf makes a random graph. spread tells how far oids lie from each other.
func graphOf(random *rand.Rand, size int, spread uint64) []object {
	oids := []uint64{}
	seen := map[uint64]bool{}
	for i := range size {
		oid := uint64(i)
		if spread > 1 {
			oid = random.Uint64N(uint64(size) * spread)
		}
		if i == 0 && random.IntN(8) > 0 {
			oid = 0
		}
		if !seen[oid] {
			seen[oid] = true
			oids = append(oids, oid)
		}
	}
	absent := func() uint64 { return random.Uint64N(uint64(size)*spread + 10) }
	target := func() uint64 {
		if random.IntN(50) == 0 {
			return absent()
		}
		return oids[random.IntN(len(oids))]
	}
	graph := make([]object, 0, len(oids))
	mean := 1 + random.IntN(3)
	for _, oid := range oids {
		o := object{oid: oid, class: fmt.Sprint("C", random.IntN(13)), size: random.Int64N(1 << 20)}
		for range random.IntN(mean + 1) {
			o.refs = append(o.refs, target())
		}
		switch random.IntN(40) {
		case 0:
			o.refs = append(o.refs, oid)
		case 1:
			o.weak = append(o.weak, target(), absent())
		case 2:
			o.others = append(o.others, jsonb.Reference{OID: zodb.OID(absent()), Database: []byte("other"), Weak: random.IntN(2) == 0})
		case 3:
			for range random.IntN(500) {
				o.refs = append(o.refs, target())
			}
		}
		graph = append(graph, o)
	}
	random.Shuffle(len(graph), func(i, j int) { graph[i], graph[j] = graph[j], graph[i] })
	return graph
}

func TestReferencesAgreeWithAModel(t *testing.T) {
	check := func(t *testing.T, graph []object, writers, frontier int) {
		t.Helper()
		r := opened(t, referenceOptions{Reachability: true})
		r.frontier = frontier
		collect(t, r, graph, writers)
		found, err := r.findings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := byCause(t, found), modelFindings(graph); !reflect.DeepEqual(got, want) {
			t.Errorf("found\n%+v, want\n%+v", got, want)
		}
	}
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		size := 1 + random.IntN(400)
		spread := []uint64{1, 3, 1000, 1 << 40, 1 << 63 / uint64(size)}[random.IntN(5)]
		check(t, graphOf(random, size, spread), 1+random.IntN(4), 1+random.IntN(30))
	}
	t.Run("many", func(t *testing.T) {
		random := rand.New(rand.NewPCG(7, 7))
		check(t, graphOf(random, 200_000, 2), 3, 1000)
	})
	t.Run("long chain", func(t *testing.T) {
		graph := make([]object, 200_000)
		for i := range graph {
			graph[i] = object{oid: uint64(i) * 17, class: "Bucket", refs: []uint64{uint64(i+1) * 17 % (200_000 * 17)}}
		}
		graph[150_000].refs = nil
		check(t, graph, 2, maxFrontier)
	})
	t.Run("one object refers to all", func(t *testing.T) {
		graph := make([]object, 100_000)
		for i := range graph {
			graph[i] = object{oid: uint64(i) << 20, class: "Leaf"}
			graph[0].refs = append(graph[0].refs, uint64(i)<<20)
		}
		check(t, graph, 2, 10)
	})
}

// Without the temporary file it is known what is missing, not who refers to it.
func TestWithoutReachabilityTheMissingObjectsAreFound(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 2))
		graph := graphOf(random, 1+random.IntN(300), []uint64{1, 5, 1 << 30}[random.IntN(3)])
		dir := t.TempDir()
		r := opened(t, referenceOptions{TempDir: dir, Announce: func(int64) { t.Error("a file is announced") }})
		collect(t, r, graph, 3)
		found, err := r.findings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, have := byCause(t, found), map[uint64]bool{}
		for _, o := range graph {
			have[o.oid] = true
		}
		missing := func(cause string, oids func(o *object) []uint64) {
			t.Helper()
			absent := map[uint64]bool{}
			for i := range graph {
				for _, oid := range oids(&graph[i]) {
					if !have[oid] {
						absent[oid] = true
					}
				}
			}
			var first []string
			for _, oid := range slices.Sorted(maps.Keys(absent)) {
				first = append(first, zodb.OID(oid).String())
			}
			f := got[cause]
			if f.Count != int64(len(absent)) || f.Missing != f.Count || !slices.Equal(f.Targets, first[:min(len(first), firstListed)]) || f.First != nil {
				t.Errorf("%s: %+v, want %v", cause, f, first)
			}
		}
		missing(Dangling, func(o *object) []uint64 { return o.refs })
		missing(WeakDangling, func(o *object) []uint64 { return o.weak })
		if want := modelFindings(graph)[CrossDatabase]; !reflect.DeepEqual(got[CrossDatabase], want) {
			t.Errorf("%+v, want %+v", got[CrossDatabase], want)
		}
		if _, ok := got[Unreachable]; ok {
			t.Error("it is said what is unreachable")
		}
	}
}

// A reject's references are taken from its pickles as far as these can be read.
func TestRejectsKeepAliveWhatTheyReferTo(t *testing.T) {
	const record = "\x80\x02cm\nC\nK\x01\x85\x86.\x80\x02](C\x08\x00\x00\x00\x00\x00\x00\x00\x01Q" +
		"](C\x08\x00\x00\x00\x00\x00\x00\x00\x05eQe."
	for _, damaged := range []bool{false, true} {
		r := opened(t, referenceOptions{Reachability: true})
		w := r.writer(jsonb.NewEncoder(jsonb.Options{}))
		text := record
		if damaged {
			text = record[:len(record)-10] // within the weak reference
		}
		w.addRejected(0, "m.C", []byte(text))
		graph := []object{{oid: 1, class: "A", size: 7, refs: []uint64{2}}, {oid: 2, class: "A"}, {oid: 3, class: "B", size: 5}}
		collect(t, r, graph, 2)
		found, err := r.findings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		texts := ""
		for _, f := range found {
			texts += f.Cause + ": " + f.Text + "\n"
		}
		got := byCause(t, found)
		if f := got[Unreachable]; f.Count != 1 || !slices.Equal(f.First, []string{zodb.OID(3).String()}) {
			t.Errorf("%+v", f)
		}
		if said := strings.Contains(texts, "the references of 1 rejected record could not be read"); said != damaged {
			t.Errorf("damaged: %t\n%s", damaged, texts)
		}
		if f := got[WeakDangling]; f.Count == 0 != damaged {
			t.Errorf("damaged: %t, %+v", damaged, f)
		}
	}
}

func TestNothingIsUnreachableWithoutARoot(t *testing.T) {
	r := opened(t, referenceOptions{Reachability: true})
	collect(t, r, []object{{oid: 1, class: "A"}, {oid: 2, class: "A", refs: []uint64{1}}}, 1)
	found, err := r.findings(t.Context())
	if err != nil || len(found) != 0 || len(r.notes()) != 1 {
		t.Errorf("%v, %v, %v", found, r.notes(), err)
	}
}

func TestNothingIsFoundInNothing(t *testing.T) {
	for _, reachability := range []bool{false, true} {
		r := opened(t, referenceOptions{Reachability: reachability})
		r.writer(jsonb.NewEncoder(jsonb.Options{}))
		found, err := r.findings(t.Context())
		if err != nil || len(found) != 0 || len(r.notes()) != 0 {
			t.Errorf("%v, %v, %v", found, r.notes(), err)
		}
	}
}

// far are objects of which each takes a word of its own.
func far(n int) []object {
	graph := make([]object, n)
	for i := range graph {
		graph[i] = object{oid: uint64(i) << 30, class: "A", refs: []uint64{uint64(i+1)<<30 + 1}}
	}
	return graph
}

func TestTooLittleMemoryIsSaid(t *testing.T) {
	named := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "--memory") && strings.Contains(err.Error(), "--no-reachability")
	}
	dir := t.TempDir()
	// At once, if it is clear before.
	if _, err := newReferences(referenceOptions{Reachability: true, TempDir: dir, Memory: 10 << 20, Raise: raise, Objects: 5_000_000}); !named(err) {
		t.Errorf("%v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("%v, %v", files, err)
	}
	// When the oids turn out to be far from each other.
	r := opened(t, referenceOptions{Reachability: true, Memory: 1 << 20, Objects: 100_000})
	graph := far(100_000)
	graph[90_000].others = []jsonb.Reference{{OID: 1, Database: []byte("other")}}
	collect(t, r, graph, 2)
	onlyCrossed(t, r, "Unreachable objects and references to what does not exist were not looked for: ", "--memory", "--no-reachability")
	if size := r.file.info(t).Size(); size > 2*edgeBlock {
		t.Errorf("the temporary file still takes %d bytes", size)
	}
	// Or at the end: what their index takes is more than what their set did.
	r = opened(t, referenceOptions{Reachability: true, Memory: 1 << 20, Objects: 1000})
	graph = make([]object, 300_000)
	for i := range graph {
		graph[i] = object{oid: uint64(i), class: "A"}
	}
	graph[5].others = []jsonb.Reference{{OID: 1, Database: []byte("other")}}
	collect(t, r, graph, 2)
	if r.gaveUp.Load() {
		t.Error("the set was too large already")
	}
	onlyCrossed(t, r, "Unreachable objects and references to what does not exist were not looked for: ", "--memory", "--no-reachability")
	// Without reachability only one finding is lost.
	r = opened(t, referenceOptions{Memory: 1 << 20})
	graph = far(100_000)
	graph[5].others = []jsonb.Reference{{OID: 1, Database: []byte("other")}}
	collect(t, r, graph, 2)
	found, err := r.findings(t.Context())
	if err != nil || len(found) != 1 || found[0].Cause != CrossDatabase || len(r.notes()) != 1 {
		t.Errorf("%v, %v, %v", found, r.notes(), err)
	}
}

// onlyCrossed wants that references to other databases are found, and that one note
// says why nothing else is.
func onlyCrossed(t *testing.T, r *references, note ...string) {
	t.Helper()
	found, err := r.findings(t.Context())
	if err != nil || len(found) != 1 || found[0].Cause != CrossDatabase || found[0].Count != 1 || len(r.notes()) != 1 {
		t.Fatalf("%v, %q, %v", found, r.notes(), err)
	}
	for _, part := range note {
		if !strings.Contains(r.notes()[0], part) {
			t.Errorf("%q does not say %q", r.notes()[0], part)
		}
	}
}

// info is what the system says of the file.
func (e *edgeFile) info(t *testing.T) os.FileInfo {
	t.Helper()
	info, err := e.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// Who raises --memory by as much as is said is not refused again.
func TestTheMemoryThatIsAskedForIsEnough(t *testing.T) {
	for _, memory := range []int64{1 << 20, 96 << 20, 256 << 20, 1 << 30} {
		r := &run{opts: Options{Memory: memory}, info: &source.Info{Objects: 200_000_000, SeenBytes: 60 << 20}}
		opts := referenceOptions{Reachability: true, TempDir: t.TempDir(), Memory: r.share(), Raise: r.raise, Objects: r.info.Objects}
		_, err := newReferences(opts)
		if err == nil {
			t.Fatal("not refused")
		}
		more := int64(0)
		if found := regexp.MustCompile("raise --memory by ([0-9]+) MB").FindStringSubmatch(err.Error()); found != nil {
			more, _ = strconv.ParseInt(found[1], 10, 64)
		}
		r.opts.Memory += more << 20
		opts.Memory = r.share()
		enough, err := newReferences(opts)
		if err != nil {
			t.Fatalf("with %d MB more: %v", more, err)
		}
		enough.Close()
	}
}

// What is taken stays within the memory that was allowed.
func TestMemoryIsKept(t *testing.T) {
	const allowed = 4 << 20
	r := opened(t, referenceOptions{Reachability: true, Memory: allowed, Objects: 500_000})
	w := r.writer(jsonb.NewEncoder(jsonb.Options{}))
	row := &jsonb.Row{Module: []byte("m"), Name: []byte("C"), Refs: []int64{0, 0}}
	for i := range 500_000 {
		row.Refs[0], row.Refs[1] = int64(i+1), int64((i*7919)%500_000)
		w.add(zodb.OID(i), row, 100)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	ctx := &watched{Context: t.Context(), look: func() {
		if now := heap(); now > before+allowed+1<<20 {
			t.Errorf("%d KB more than before", (now-before)>>10)
		}
	}}
	found, err := r.findings(ctx)
	if err != nil || ctx.asked < 3 {
		t.Fatalf("%v, asked %d times", err, ctx.asked)
	}
	if f := byCause(t, found)[Dangling]; f.Count != 1 {
		t.Errorf("%+v", found)
	}
}

// watched is a context that looks at something whenever it is asked.
type watched struct {
	context.Context
	look  func()
	asked int
}

func (w *watched) Err() error {
	w.asked++
	if w.asked%16 == 0 {
		w.look()
	}
	return w.Context.Err()
}

func TestTheTemporaryFileIsAnnouncedPrivateAndGone(t *testing.T) {
	dir, announced := t.TempDir(), int64(0)
	r, err := newReferences(referenceOptions{Reachability: true, TempDir: dir, Memory: 64 << 20, Objects: 1000, Announce: func(n int64) { announced = n }})
	if err != nil {
		t.Fatal(err)
	}
	if announced < 10_000 || announced > 100_000 {
		t.Errorf("%d bytes are announced for 1000 objects", announced)
	}
	if info, err := r.file.file.Stat(); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	left := func() int {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if n := left(); n > 0 && runtime.GOOS != "windows" {
		t.Errorf("%d files have a name while it is used", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if n := left(); n > 0 {
		t.Errorf("%d files are left", n)
	}
	if _, err := newReferences(referenceOptions{Reachability: true, TempDir: dir + "/none", Memory: 1 << 20}); err == nil ||
		!strings.Contains(err.Error(), "--temp-dir") {
		t.Errorf("%v", err)
	}
}

func TestAFullDiskEndsTheInspectionOfReferencesOnly(t *testing.T) {
	dir := throwaway.SmallDisk(t)
	r := opened(t, referenceOptions{Reachability: true, TempDir: dir})
	graph := make([]object, 200_000)
	for i := range graph {
		graph[i] = object{oid: uint64(i), refs: []uint64{uint64(i * 31)}}
	}
	graph[len(graph)-1].others = []jsonb.Reference{{OID: 1, Database: []byte("other")}}
	collect(t, r, graph, 2)
	if !errors.Is(r.lost, syscall.ENOSPC) {
		t.Errorf("%v", r.lost)
	}
	onlyCrossed(t, r, "Unreachable objects and references to what does not exist were not looked for: references cannot be written", "--temp-dir", "--no-reachability")
	// The room is there for others again.
	if err := os.WriteFile(dir+"/other", make([]byte, 32<<10), 0o600); err != nil {
		t.Error(err)
	}
}

// A temporary file that cannot be read back costs what needs it.
func TestWhatWasFoundBeforeTheTemporaryFileFailedIsTold(t *testing.T) {
	graph := make([]object, 20_000)
	for i := range graph {
		graph[i] = object{oid: uint64(i), class: "A", refs: []uint64{uint64(i + 1)}}
	}
	graph[3].others = []jsonb.Reference{{OID: 1, Database: []byte("other")}}
	r := opened(t, referenceOptions{Reachability: true})
	collect(t, r, graph, 1)
	if err := r.file.file.Truncate(100); err != nil {
		t.Fatal(err)
	}
	r.writers[0].flush()
	if err := r.file.file.Truncate(100); err != nil {
		t.Fatal(err)
	}
	onlyCrossed(t, r, "Unreachable objects and references to what does not exist were not looked for: references cannot be read from the temporary file")
}

// Of records that cannot be read it is known that their objects exist, and nothing
// else: nothing is missing or unreachable for that.
func TestRecordsThatCannotBeReadHideWhatIsUnreachable(t *testing.T) {
	for _, oid := range []zodb.OID{zodb.Root, 1} {
		for _, reachability := range []bool{true, false} {
			r := opened(t, referenceOptions{Reachability: reachability})
			r.writer(jsonb.NewEncoder(jsonb.Options{})).addUnread(oid)
			graph := []object{{oid: 1 - uint64(oid), class: "A", refs: []uint64{uint64(oid), 9}}, {oid: 2, class: "A"}}
			collect(t, r, graph, 2)
			found, err := r.findings(t.Context())
			if err != nil || len(found) != 1 || found[0].Cause != Dangling || found[0].Count != 1 || !slices.Equal(found[0].Targets, []string{zodb.OID(9).String()}) {
				t.Errorf("oid %v: %+v, %v", oid, found, err)
			}
			if want := map[bool]int{true: 1}[reachability]; len(r.notes()) != want || want > 0 && !strings.Contains(r.notes()[0], "the records refer to that cannot be read") {
				t.Errorf("oid %v: %q", oid, r.notes())
			}
		}
	}
}

func TestAWalkEndsWithItsContext(t *testing.T) {
	r := opened(t, referenceOptions{Reachability: true})
	collect(t, r, far(3*stepsBetweenChecks), 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.findings(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Objects of any size are read wherever a window ends, and a file that lost its end
// is an error.
func TestEdgesAreReadBackFromAnyPlace(t *testing.T) {
	file, err := createEdgeFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	random := rand.New(rand.NewPCG(3, 3))
	var all []edges
	var places []int64
	for i := range 3000 {
		e := edges{oid: random.Uint64() >> random.IntN(64), class: uint32(i), size: random.Uint64() >> random.IntN(64)}
		most := 20
		if i%500 == 0 {
			most = 100_000
		}
		for range random.IntN(most) {
			e.strong = append(e.strong, random.Uint64()>>random.IntN(64))
		}
		for range random.IntN(2) * random.IntN(20) {
			e.weak = append(e.weak, random.Uint64()>>random.IntN(64))
		}
		all, places = append(all, e), append(places, file.size)
		if err := file.append(appendEdges(nil, &e)); err != nil {
			t.Fatal(err)
		}
	}
	reader := &edgeReader{from: file}
	check := func(i int, next int64) {
		t.Helper()
		end, err := reader.read(places[i], next)
		if err != nil {
			t.Fatal(err)
		}
		if i+1 < len(places) && end != places[i+1] || i+1 == len(places) && end != file.size {
			t.Fatalf("%d ends at %d", i, end)
		}
		got, want := &reader.edges, &all[i]
		if got.oid != want.oid || got.class != want.class || got.size != want.size || !slices.Equal(got.strong, want.strong) || !slices.Equal(got.weak, want.weak) {
			t.Fatalf("%d: %v, want %v", i, got, want)
		}
	}
	for i := range all {
		check(i, places[i])
	}
	for range 3000 {
		i := random.IntN(len(all))
		check(i, places[i]+random.Int64N(1<<20))
	}
	if err := file.file.Truncate(file.size - 1); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.read(places[len(places)-1], 1<<40); err != nil && !errors.Is(err, errDamagedEdges) {
		t.Errorf("%v", err)
	}
	reader = &edgeReader{from: file}
	if _, err := reader.read(places[len(places)-1], 1<<40); !errors.Is(err, errDamagedEdges) {
		t.Errorf("%v", err)
	}
}

func FuzzEdges(f *testing.F) {
	f.Add(appendEdges(nil, &edges{oid: 5, class: 1, size: 100, strong: []uint64{4, 9, 1 << 63}, weak: []uint64{7}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, again edges
		n := e.read(b)
		if n == 0 {
			return
		}
		if n > len(b) || len(e.strong)+len(e.weak) > n {
			t.Fatalf("%d of %d bytes, %v", n, len(b), e)
		}
		text := appendEdges(nil, &e)
		if again.read(text) != len(text) || !slices.Equal(e.strong, again.strong) || !slices.Equal(e.weak, again.weak) || e.oid != again.oid {
			t.Fatalf("%v, then %v", e, again)
		}
	})
}

func TestOIDSetsAgreeWithAModel(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 4))
		memory := &setMemory{most: 1 << 30}
		set := new(oidSet)
		set.init(memory)
		model := map[uint64]bool{}
		top := uint64(1) << (1 + random.IntN(63))
		for range random.IntN(3000) {
			oid := random.Uint64N(top)
			for range 1 + random.IntN(4) {
				model[oid] = true
				if !set.add(oid) {
					t.Fatal("no room")
				}
				oid++
			}
		}
		x := set.sorted()
		if memory.used.Load() != 0 {
			t.Errorf("%d bytes are still taken", memory.used.Load())
		}
		x.number()
		sorted := slices.Sorted(maps.Keys(model))
		if x.n != int64(len(sorted)) {
			t.Fatalf("%d oids, want %d", x.n, len(sorted))
		}
		look := func(oid uint64) {
			t.Helper()
			i, want := slices.BinarySearch(sorted, oid)
			rank, got := x.rank(oid)
			if got != want || got && int(rank) != i || x.has(oid) != want {
				t.Fatalf("oid %d: rank %d, %t; want %d, %t", oid, rank, got, i, want)
			}
		}
		for _, i := range random.Perm(len(sorted)) {
			look(sorted[i])
		}
		for _, oid := range sorted {
			look(oid)
			look(oid + 1)
		}
		for range 1000 {
			look(random.Uint64N(top))
			look(random.Uint64())
		}
		part := new(oidSet)
		part.init(memory)
		var rest []uint64
		for _, oid := range sorted {
			if random.IntN(2) == 0 {
				part.add(oid)
			} else {
				rest = append(rest, oid)
			}
		}
		y := part.sorted()
		var got []uint64
		x.minus(&y, func(oid uint64) { got = append(got, oid) })
		if !slices.Equal(got, rest) {
			t.Fatalf("%v, want %v", got, rest)
		}
	}
}

func TestWhatIsSaidOfReferences(t *testing.T) {
	graph := []object{
		{oid: 0, class: "Root", refs: []uint64{1, 7, 8, 8}},
		{oid: 1, class: "A", refs: []uint64{0, 7}, others: []jsonb.Reference{
			{OID: 5, Database: []byte("other")}, {OID: 6, Database: []byte("other"), Weak: true}, {OID: 1, Database: []byte("third\n\xff")}}},
		{oid: 2, class: "B", size: 1500, weak: []uint64{3}},
	}
	for _, c := range []struct {
		reachability bool
		want         []string
	}{
		{true, []string{
			`cross-database: Objects refer to other databases (2 references to "other" (1 weak), 1 reference to "third\n?"): such a database must be mounted under the same name as before, and whether it has what is referred to was not looked at.`,
			"dangling-reference: Objects refer to what the source has not, or not any more (3 references to 2 objects): an application that follows one gets a POSKeyError, in the source as in the destination.",
			"dangling-weak-reference: Objects refer weakly to what does not exist (1 reference to 1 object), which is harmless: weak references are made for that.",
			"unreachable: No path of references leads from the root to these objects, whose records have 1.5 KB: a pack with garbage collection removes them, unless another database refers to them.",
		}},
		{false, []string{
			`cross-database: Objects refer to other databases (2 references to "other" (1 weak), 1 reference to "third\n?"): such a database must be mounted under the same name as before, and whether it has what is referred to was not looked at.`,
			"dangling-reference: Objects refer to these, which the source has not, or not any more: an application that follows such a reference gets a POSKeyError, in the source as in the destination.",
			"dangling-weak-reference: Objects refer weakly to these, which do not exist, which is harmless: weak references are made for that.",
		}},
	} {
		r := opened(t, referenceOptions{Reachability: c.reachability})
		collect(t, r, graph, 1)
		found, err := r.findings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			got = append(got, f.Cause+": "+f.Text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}
