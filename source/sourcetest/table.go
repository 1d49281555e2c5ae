package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Changing is a table that changes between two views.
type Changing struct {
	// Open opens the source anew, without a scan.
	Open func(t testing.TB) source.Source
	// Change changes the database as RelStorage would: commits, packs, deletes.
	// It can be called several times, and tells what is in it then.
	Change func(t testing.TB) []Transaction
}

// table is how a Table is read: every revision, or the current ones.
//
// With history a record stands at (tid, oid) and the header of its transaction
// before all of them, at (tid, -1). Without, transactions stand at (0, tid) and
// objects at (1, oid).
type table struct{ history bool }

func (tb *table) recordAt(r *source.Record) [2]int64 {
	switch {
	case tb == nil:
		return [2]int64{}
	case tb.history:
		return [2]int64{int64(r.TID), int64(r.OID)}
	}
	return [2]int64{1, int64(r.OID)}
}

func (tb *table) transactionAt(x *source.Transaction) [2]int64 {
	switch {
	case tb == nil:
		return [2]int64{}
	case tb.history:
		return [2]int64{int64(x.TID), -1}
	}
	return [2]int64{0, int64(x.TID)}
}

// inside tells whether a range holds a position; a table has at, and no pos.
func (tb *table) inside(pos int64, at [2]int64, r source.Range) bool {
	if tb == nil {
		return r.From <= pos && pos < r.To
	}
	from, to := [2]int64{r.From, r.FromSub}, [2]int64{r.To, r.ToSub}
	return pos == 0 && slices.Compare(from[:], at[:]) <= 0 && slices.Compare(at[:], to[:]) < 0
}

// runTable tests a source.Table.
func (c *Case) runTable(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(map[bool]string{false: "history-free", true: "history-preserving"}[history], func(t *testing.T) {
			c := c.as(history)
			t.Run("Scan", c.testScan)
			t.Run("Transactions", c.testTransactions)
			c.runRead(t, history)
			if c.BytesOnly {
				return
			}
			t.Run("Idle", c.testIdle)
			t.Run("Growth", c.testGrowth)
			c.runDifferences(t)
			if c.Changing != nil {
				t.Run("Read in a newer view", c.testNewerView)
				t.Run("A view stays as it is", c.testViewStays)
			}
			if len(c.blobs()) > 0 {
				c.runBlobs(t)
			}
		})
	}
}

// as is the case of reading every revision, or the current ones.
func (c *Case) as(history bool) *Case {
	d := *c
	d.table = &table{history}
	if !history {
		d.Want = currents(c.Want)
		if records(d.Want) != records(c.Want) {
			d.Orphans = d.OrphanRows // whether a file is that of an older revision is not looked at
		}
	}
	return &d
}

func records(list []Transaction) (n int) {
	for _, txn := range list {
		n += len(txn.Records)
	}
	return n
}

// currents leaves the newest record of each oid.
func currents(list []Transaction) []Transaction {
	newest := map[zodb.OID]zodb.TID{}
	for _, txn := range list {
		for _, r := range txn.Records {
			newest[r.OID] = txn.TID
		}
	}
	out := slices.Clone(list)
	for i := range out {
		out[i].Records = slices.DeleteFunc(slices.Clone(out[i].Records), func(r Record) bool { return newest[r.OID] != out[i].TID })
	}
	return out
}

func (c *Case) openTable(t testing.TB) (source.Table, *source.Info) {
	t.Helper()
	s, info := c.open(t)
	return s.(source.Table), info
}

// testIdle lets go of the view at different times.
func (c *Case) testIdle(t *testing.T) {
	s, _ := c.openTable(t)
	opts := source.ReadOptions{History: c.table.history, ChunkBytes: 64 << 10, Budget: newBudget(t, 1<<50)}
	want := c.read(t, s, opts, -1)
	blobs := c.blobKeys()
	var blob *source.Record
	c.blobRecords(t, s, func(r *source.Record) {
		if w := blobs[blobKey{r.OID, r.TID}]; !w.Missing && !w.Unreadable {
			blob = &source.Record{OID: r.OID, TID: r.TID}
		}
	})
	s.Idle()
	s.Idle()
	if blob != nil { // takes a view of its own
		if err := checkBlob(t.Context(), s, blob, blobs[blobKey{blob.OID, blob.TID}], 1); err != nil {
			t.Errorf("blob after Idle: %v", err)
		}
	}
	if g, err := s.Growth(t.Context()); err != nil || g != (source.Growth{}) {
		t.Errorf("Growth after Idle: %+v, %v", g, err)
	}
	if _, err := s.Scan(t.Context(), c.scanOptions(0)); err != nil {
		t.Fatalf("Scan after Idle: %v", err)
	}
	if got := c.read(t, s, opts, -1); !slices.Equal(got.lines, want.lines) {
		t.Error("after Idle and another Scan, Read gives something else")
	}
}

// revision is what a destination holds of a key.
type revision struct {
	current bool
	// data is line's text of it; "" for what was there before, whose bytes nobody
	// compares.
	data string
}

// holding is what a destination holds.
type holding struct {
	txns map[zodb.TID]bool
	keys map[blobKey]revision
}

// whole is what a destination must hold in the end. A destination without
// history has no deleted objects.
func (c *Case) whole() holding {
	h := holding{map[zodb.TID]bool{}, map[blobKey]revision{}}
	newest := map[zodb.OID]zodb.TID{}
	for _, txn := range c.Want {
		h.txns[txn.TID] = true
		for _, r := range txn.Records {
			newest[r.OID] = txn.TID
		}
	}
	for _, txn := range c.Want {
		for _, r := range txn.Records {
			current := newest[r.OID] == txn.TID && r.Data != nil
			if current || c.table.history {
				h.keys[blobKey{r.OID, txn.TID}] = revision{current, line(txn.TID, r.OID, false, r.Data)}
			}
		}
	}
	return h
}

func (h holding) clone() holding {
	return holding{maps.Clone(h.txns), maps.Clone(h.keys)}
}

// blind forgets the bytes.
func (h holding) blind() holding {
	h = h.clone()
	for k, r := range h.keys {
		h.keys[k] = revision{current: r.current}
	}
	return h
}

// have gives it as a destination does, each sequence once.
func (h holding) have(t testing.TB) *source.Have {
	txns := slices.Sorted(maps.Keys(h.txns))
	keys := slices.Collect(maps.Keys(h.keys))
	slices.SortFunc(keys, func(a, b blobKey) int {
		return slices.Compare([]uint64{uint64(a.oid), uint64(a.tid)}, []uint64{uint64(b.oid), uint64(b.tid)})
	})
	return &source.Have{
		Transactions: once(t, "transactions", len(txns), func(i int) zodb.TID { return txns[i] }),
		Keys: once(t, "keys", len(keys), func(i int) source.Key {
			return source.Key{OID: keys[i].oid, TID: keys[i].tid, Current: h.keys[keys[i]].current}
		}),
	}
}

// once is a sequence that may be read a single time.
func once[T any](t testing.TB, name string, n int, at func(int) T) iter.Seq2[T, error] {
	read := false
	return func(yield func(T, error) bool) {
		if read {
			t.Errorf("the %s of the destination were read twice", name)
		}
		read = true
		for i := range n {
			if !yield(at(i), nil) {
				return
			}
		}
	}
}

// apply does what a chunk says.
func (h holding) apply(t testing.TB, s source.Source, c *source.Chunk, history bool) {
	t.Helper()
	for _, k := range c.Gone {
		if _, ok := h.keys[blobKey{k.OID, k.TID}]; !ok {
			t.Errorf("oid %v, tid %v is to be removed, but is not there", k.OID, k.TID)
		}
		delete(h.keys, blobKey{k.OID, k.TID})
	}
	for _, tid := range c.GoneTransactions {
		if !h.txns[tid] {
			t.Errorf("transaction %v is to be removed, but is not there", tid)
		}
		delete(h.txns, tid)
	}
	for i := range c.Transactions {
		h.txns[c.Transactions[i].TID] = true
	}
	var scratch []byte
	for i := range c.Records {
		r := &c.Records[i]
		b := data(t, s, r, &scratch)
		if !history { // there is one row an object
			maps.DeleteFunc(h.keys, func(k blobKey, _ revision) bool { return k.oid == r.OID })
			if b == nil {
				continue
			}
		}
		h.keys[blobKey{r.OID, r.TID}] = revision{r.Current && b != nil, line(r.TID, r.OID, false, b)}
	}
}

// text is what it holds, one line each. Bytes that both do not know are alike.
func (h holding) text() (list []string) {
	for tid := range h.txns {
		list = append(list, fmt.Sprintf("transaction %v", tid))
	}
	for k, r := range h.keys {
		list = append(list, fmt.Sprintf("%v %v current=%v %s", k.oid, k.tid, r.current, r.data))
	}
	slices.Sort(list)
	return list
}

// start is a state of the destination, before Differences.
type start struct {
	name string
	make func(c *Case, whole holding, rng *rand.Rand) holding
}

// starts are those that can come about: a load that was interrupted, an earlier
// state, rows that a pack has removed since, and what nobody expects.
var starts = []start{
	{"nothing", func(_ *Case, _ holding, _ *rand.Rand) holding {
		return holding{map[zodb.TID]bool{}, map[blobKey]revision{}}
	}},
	{"everything", func(_ *Case, whole holding, _ *rand.Rand) holding { return whole }},
	{"some of it", subset},
	{"what is gone from the source", superset},
	{"some, and what is gone", func(c *Case, whole holding, rng *rand.Rand) holding { return superset(c, subset(c, whole, rng), rng) }},
	{"an earlier state", func(c *Case, _ holding, rng *rand.Rand) holding {
		earlier := *c
		earlier.Want = c.Want[:rng.IntN(len(c.Want)+1)]
		return earlier.whole()
	}},
	{"another current revision", flipped},
	{"keys only", func(_ *Case, whole holding, _ *rand.Rand) holding { whole.txns = map[zodb.TID]bool{}; return whole }},
	{"transactions only", func(_ *Case, whole holding, _ *rand.Rand) holding { whole.keys = map[blobKey]revision{}; return whole }},
}

func subset(_ *Case, whole holding, rng *rand.Rand) holding {
	h := whole.clone()
	for _, tid := range slices.Sorted(maps.Keys(h.txns)) {
		if rng.IntN(3) == 0 {
			delete(h.txns, tid)
		}
	}
	for _, k := range h.sorted() {
		if rng.IntN(3) == 0 {
			delete(h.keys, k)
		}
	}
	return h
}

func (h holding) sorted() []blobKey {
	keys := slices.Collect(maps.Keys(h.keys))
	slices.SortFunc(keys, func(a, b blobKey) int {
		return slices.Compare([]uint64{uint64(a.oid), uint64(a.tid)}, []uint64{uint64(b.oid), uint64(b.tid)})
	})
	return keys
}

// superset adds objects, revisions below the newest one, and transactions.
func superset(c *Case, whole holding, rng *rand.Rand) holding {
	h := whole.clone()
	if len(c.Want) == 0 {
		return h
	}
	highest := int64(c.Want[len(c.Want)-1].TID)
	newest := map[zodb.OID]zodb.TID{}
	for _, txn := range c.Want {
		for _, r := range txn.Records {
			newest[r.OID] = txn.TID
		}
	}
	for range 5 {
		h.txns[zodb.TID(1+rng.Int64N(highest))] = true
	}
	for range 5 {
		oid := zodb.OID(rng.Int64N(1 << 40))
		if newest[oid] == 0 {
			h.keys[blobKey{oid, zodb.TID(1 + rng.Int64N(highest))}] = revision{current: rng.IntN(2) == 0 || !c.table.history}
		}
	}
	oids := slices.Sorted(maps.Keys(newest))
	for range 5 {
		oid := oids[rng.IntN(len(oids))]
		k := blobKey{oid, zodb.TID(1 + rng.Int64N(int64(newest[oid])))}
		if !c.table.history { // one row an object
			maps.DeleteFunc(h.keys, func(k blobKey, _ revision) bool { return k.oid == oid })
		}
		if _, ok := h.keys[k]; !ok && k.tid != newest[oid] {
			h.keys[k] = revision{current: !c.table.history}
		}
	}
	return h
}

// flipped has other revisions as current than it should.
func flipped(c *Case, whole holding, rng *rand.Rand) holding {
	h := whole.clone()
	if !c.table.history {
		return subset(c, h, rng)
	}
	for _, k := range h.sorted() {
		if r := h.keys[k]; rng.IntN(2) == 0 {
			h.keys[k] = revision{!r.current, r.data}
		}
	}
	return h
}

func (c *Case) runDifferences(t *testing.T) {
	for i, from := range starts {
		t.Run("Differences from "+from.name, func(t *testing.T) {
			s, _ := c.openTable(t)
			for seed := range uint64(min(c.Most, 3)) {
				rng := rand.New(rand.NewPCG(uint64(i), seed))
				h := from.make(c, c.whole(), rng)
				size := c.ChunkSizes[int(seed)%len(c.ChunkSizes)]
				c.checkDifferences(t, s, h, size)
			}
		})
	}
	t.Run("Differences stop", c.testDifferencesStop)
	t.Run("Differences refuse", c.testForeign)
}

// checkDifferences compares, applies, and compares again. What was there before
// keeps its bytes: they are not known, and not looked at.
func (c *Case) checkDifferences(t *testing.T, s source.Table, h holding, chunkBytes int64) {
	t.Helper()
	before := h.clone()
	want := c.whole()
	chunks := c.differences(t, s, h, chunkBytes)
	for k, r := range h.keys { // what was not given was there, with what it has
		if _, was := before.keys[k]; was && r.data == "" {
			h.keys[k] = revision{r.current, want.keys[k].data}
		}
	}
	if diff := cmp.Diff(want.text(), h.text()); diff != "" {
		t.Fatalf("after the differences the destination is not what the source is (-want +got):\n%s", shorten(diff))
	}
	if equal := slices.Equal(before.blind().text(), want.blind().text()); equal != (chunks == 0) {
		t.Errorf("equal before: %v, but there were %d chunks", equal, chunks)
	}
	if n := c.differences(t, s, h, chunkBytes); n != 0 {
		t.Errorf("%d chunks again", n)
	}
}

// differences brings a destination up to date; it returns the number of chunks.
func (c *Case) differences(t *testing.T, s source.Table, h holding, chunkBytes int64) (chunks int) {
	t.Helper()
	budget := newBudget(t, 1<<50)
	opts := source.DifferenceOptions{ReadOptions: source.ReadOptions{History: c.table.history, ChunkBytes: chunkBytes, Budget: budget}}
	var done int64
	opts.Progress = func(d, _ int64) {
		if d < done {
			t.Errorf("progress goes back from %d to %d", done, d)
		}
		done = d
	}
	ended := false
	var last [2]uint64
	have := h.have(t)
	now := h.clone() // have is read while chunks come
	err := s.Differences(t.Context(), have, opts, func(chunk *source.Chunk) error {
		defer chunk.Release()
		if ended {
			t.Error("there is a chunk after the last one")
		}
		ended = chunk.EndsTransaction
		chunks++
		if len(chunk.Records)+len(chunk.Transactions)+len(chunk.Gone)+len(chunk.GoneTransactions) == 0 && !ended {
			t.Error("an empty chunk")
		}
		for i := range chunk.Records {
			r := &chunk.Records[i]
			at := [2]uint64{uint64(r.OID), uint64(r.TID)}
			if slices.Compare(last[:], at[:]) >= 0 && last != [2]uint64{} {
				t.Errorf("oid %v, tid %v comes after %v", r.OID, r.TID, last)
			}
			last = at
		}
		now.apply(t, s, chunk, c.table.history)
		return nil
	})
	if err != nil {
		t.Fatalf("Differences: %v", err)
	}
	if chunks > 0 && !ended {
		t.Error("no chunk was the last one")
	}
	budget.checkEmpty()
	h.txns, h.keys = replace(h.txns, now.txns), replace(h.keys, now.keys)
	return chunks
}

// replace fills one map with another.
func replace[K comparable, V any](into, from map[K]V) map[K]V {
	clear(into)
	maps.Copy(into, from)
	return into
}

// testDifferencesStop cancels after each chunk, while memory is waited for, and
// when the destination cannot say what it has.
func (c *Case) testDifferencesStop(t *testing.T) {
	s, _ := c.openTable(t)
	options := func(b *budget) source.DifferenceOptions {
		return source.DifferenceOptions{ReadOptions: source.ReadOptions{History: c.table.history, ChunkBytes: 2000, Budget: b}}
	}
	nothing := func() holding { return holding{map[zodb.TID]bool{}, map[blobKey]revision{}} }
	total := 0
	if err := s.Differences(t.Context(), nothing().have(t), options(newBudget(t, 1)), func(chunk *source.Chunk) error { total++; chunk.Release(); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, at := range some(total, c.Most) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBudget(t, 1<<50)
		n := 0
		err := s.Differences(ctx, nothing().have(t), options(b), func(chunk *source.Chunk) error {
			defer chunk.Release()
			if n++; n == at+1 {
				cancel()
			}
			return nil
		})
		cancel()
		if n > at+1 || n < total && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in chunk %d of %d: Differences went on to %d and gave %v", at+1, total, n, err)
		}
		b.checkEmpty()
		n = 0
		err = s.Differences(t.Context(), nothing().have(t), options(b), func(chunk *source.Chunk) error {
			defer chunk.Release()
			if n++; n == at+1 {
				return errStop
			}
			return nil
		})
		if n != at+1 || !errors.Is(err, errStop) {
			t.Errorf("stopped in chunk %d of %d: Differences went on to %d and gave %v", at+1, total, n, err)
		}
		b.checkEmpty()
	}
	broken := errors.New("the destination is gone")
	for name, have := range map[string]*source.Have{
		"transactions": {Transactions: func(yield func(zodb.TID, error) bool) { yield(0, broken) }, Keys: nothing().have(t).Keys},
		"keys":         {Transactions: nothing().have(t).Transactions, Keys: func(yield func(source.Key, error) bool) { yield(source.Key{}, broken) }},
	} {
		b := newBudget(t, 1<<50)
		if err := s.Differences(t.Context(), have, options(b), func(chunk *source.Chunk) error { chunk.Release(); return nil }); !errors.Is(err, broken) {
			t.Errorf("the %s of the destination end with an error, Differences gave %v", name, err)
		}
		b.checkEmpty()
	}
}

// testForeign has something newer in the destination than in the source.
func (c *Case) testForeign(t *testing.T) {
	s, info := c.openTable(t)
	var newest blobKey
	for _, txn := range c.Want {
		for _, r := range txn.Records {
			if txn.TID < info.MaxTID && r.Data != nil && !slices.ContainsFunc(c.Want[len(c.Want)-1].Records, func(l Record) bool { return l.OID == r.OID }) {
				newest = blobKey{r.OID, info.MaxTID}
			}
		}
	}
	for name, foreign := range map[string]func(holding){
		"a transaction above the highest tid": func(h holding) { h.txns[info.MaxTID+1] = true },
		"an object above the highest tid": func(h holding) {
			h.keys[blobKey{info.MaxOID + 1, info.MaxTID + 1}] = revision{current: true}
		},
		"an object newer than in the source": func(h holding) {
			if newest.oid != 0 {
				maps.DeleteFunc(h.keys, func(k blobKey, _ revision) bool { return !c.table.history && k.oid == newest.oid })
				h.keys[newest] = revision{current: true}
			} else {
				h.txns[info.MaxTID+1] = true
			}
		},
	} {
		h := c.whole()
		foreign(h)
		b := newBudget(t, 1<<50)
		opts := source.DifferenceOptions{ReadOptions: source.ReadOptions{History: c.table.history, ChunkBytes: 1 << 20, Budget: b}}
		err := s.Differences(t.Context(), h.have(t), opts, func(chunk *source.Chunk) error { chunk.Release(); return nil })
		var bad *source.ForeignError
		if !errors.As(err, &bad) || bad.Problem == "" {
			t.Errorf("%s: Differences gave %v", name, err)
		}
		b.checkEmpty()
	}
}

// testNewerView stops a reading, lets the database change, goes on in a newer
// view, and wants no revision twice, none that is newer than the first view,
// and no object with two current ones. Differences then makes all equal.
func (c *Case) testNewerView(t *testing.T) {
	const chunkBytes = 2000
	for _, stop := range []int{1, 5, 9, 20}[:min(c.Most, 4)] {
		changing := c.Changing(t)
		first := changing.Open(t)
		info, err := first.Scan(t.Context(), c.scanOptions(0))
		if err != nil {
			t.Fatal(err)
		}
		opts := source.ReadOptions{History: c.table.history, ChunkBytes: chunkBytes}
		got := reading{table: c.table}
		h := holding{map[zodb.TID]bool{}, map[blobKey]revision{}}
		load := func(s source.Source, until int) error {
			opts.Budget = newBudget(t, 1<<50)
			n := 0
			return s.Read(t.Context(), opts, func(chunk *source.Chunk) error {
				defer chunk.Release()
				got.take(t, s, chunk)
				c.load(t, s, h, chunk)
				if n++; n == until {
					return errStop
				}
				return nil
			})
		}
		if err := load(first, stop); err != nil && !errors.Is(err, errStop) {
			t.Fatal(err)
		}
		first.Close()
		later := Case{Open: changing.Open, Want: changing.Change(t), ChunkSizes: c.ChunkSizes}
		second := changing.Open(t).(source.Table)
		again, err := second.Scan(t.Context(), c.scanOptions(info.Identity.End))
		if err != nil {
			t.Fatal(err)
		}
		if !again.Identity.Same(info.Identity) {
			t.Errorf("the identity changed from %+v to %+v", info.Identity, again.Identity)
		}
		if growth, err := second.Growth(t.Context()); err != nil || growth.Transactions == 0 || growth.Since <= zodb.TID(info.Identity.End) {
			t.Errorf("Growth since the first view: %+v, %v", growth, err)
		}
		opts.Done = doneRanges(got.ranges, stop)
		if err := load(second, -1); err != nil {
			t.Fatal(err)
		}
		checkMixed(t, &got, zodb.TID(info.Identity.End))
		later.as(c.table.history).checkDifferences(t, second, h, chunkBytes)
		// What was loaded is not looked at again, but it must have been right.
		second.Close()
		if t.Failed() {
			t.Fatalf("stopped after chunk %d", stop)
		}
	}
}

// load does with a chunk of Read what a destination does.
func (c *Case) load(t testing.TB, s source.Source, h holding, chunk *source.Chunk) {
	for i := range chunk.Transactions {
		if x := &chunk.Transactions[i]; h.txns[x.TID] {
			t.Errorf("transaction %v came twice", x.TID)
		} else {
			h.txns[x.TID] = true
		}
	}
	var scratch []byte
	for i := range chunk.Records {
		r := &chunk.Records[i]
		k := blobKey{r.OID, r.TID}
		if _, ok := h.keys[k]; ok {
			t.Errorf("oid %v, tid %v came twice", r.OID, r.TID)
		}
		b := data(t, s, r, &scratch)
		if c.table.history || r.Current && b != nil {
			h.keys[k] = revision{r.Current && b != nil, line(r.TID, r.OID, false, b)}
		}
	}
}

// checkMixed checks what two views together gave.
func checkMixed(t *testing.T, got *reading, end zodb.TID) {
	t.Helper()
	current := map[string]string{}
	for _, l := range got.lines {
		var tid, oid, mark string
		if _, err := fmt.Sscan(l, &tid, &oid, &mark); err != nil {
			t.Fatal(err)
		}
		if mark == "newest" {
			if current[oid] != "" {
				t.Errorf("two current revisions: %s and %s", current[oid], l)
			}
			current[oid] = l
		}
		if tid > end.String() {
			t.Errorf("newer than %v: %s", end, l)
		}
	}
	for _, x := range got.transactions {
		if x.TID > end {
			t.Errorf("transaction %v is newer than %v", x.TID, end)
		}
	}
}

// testViewStays changes the database while it is read: what Read, Transactions,
// Data and Differences give is the state of the view.
func (c *Case) testViewStays(t *testing.T) {
	changing := c.Changing(t)
	s := changing.Open(t).(source.Table)
	defer s.Close()
	if _, err := s.Scan(t.Context(), c.scanOptions(0)); err != nil {
		t.Fatal(err)
	}
	chunks := 0
	got := reading{table: c.table}
	opts := source.ReadOptions{History: c.table.history, ChunkBytes: 2000, Budget: newBudget(t, 1<<50)}
	if err := s.Read(t.Context(), opts, func(chunk *source.Chunk) error {
		defer chunk.Release()
		if chunks++; chunks == 2 {
			changing.Change(t)
		}
		got.take(t, s, chunk)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c.check(t, &got, c.table.history)
	changing.Change(t)
	c.testTransactionsOf(t, s)
	c.checkDifferences(t, s, subset(c, c.whole(), rand.New(rand.NewPCG(4, 4))), 2000)
	if g, err := s.Growth(t.Context()); err != nil || g.Transactions == 0 {
		t.Errorf("Growth after changes: %+v, %v", g, err)
	}
}
