// Package sourcetest is the contract that each source passes. A driver's test
// calls Run with a way to open the source and with what is really in it, as
// somebody else has read or made it.
package sourcetest

import (
	"bytes"
	order "cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Case is one source to test.
type Case struct {
	// Open opens the source anew, without a scan.
	Open func(t testing.TB) source.Source
	// Want is everything in it, in the order in which it was written.
	Want []Transaction
	// ChunkSizes to read with; the default goes from 1 byte to more than any
	// test database has. Most is the number of chunks up to which a reading is
	// stopped after each single one; above it, after that many of them.
	ChunkSizes []int64
	Most       int
	// Orphans is how many blobs there are that no record refers to.
	Orphans int64
	// OrphanRows of them stand in a database and not in files.
	OrphanRows int64
	// Scratch opens the source on a copy whose blob files may be changed; nil if
	// its blobs are no files.
	Scratch func(t testing.TB) source.Source
	// BytesOnly tests of a table what depends on the bytes of its records; it has
	// nothing else that other cases have not.
	BytesOnly bool
	// Changing makes a copy of a table that may be changed; nil for a Log.
	Changing func(t testing.TB) Changing

	// table is how a Table is read; nil for a Log.
	table *table
}

// Transaction is one transaction that the source must give.
type Transaction struct {
	TID                          zodb.TID
	User, Description, Extension []byte
	Records                      []Record
}

// Record is one record that the source must give. Data nil means that it is a
// deletion.
type Record struct {
	OID  zodb.OID
	Data []byte
	// Blob is what the record's blob must be; nil if it has none, or if the
	// source was not told where its blobs are.
	Blob *Blob
}

// Blob is what a blob must be: bytes, or a *source.BlobError.
type Blob struct {
	Size   int64
	SHA256 string // in hex
	// Missing and Unreadable blobs have no bytes.
	Missing, Unreadable bool
	// Elsewhere: its bytes are not where they should be, which a Note must say.
	Elsewhere bool
}

const defaultMost = 12

// Run tests the source of c.
func Run(t *testing.T, c Case) {
	if c.ChunkSizes == nil {
		c.ChunkSizes = []int64{1, 1000, 64 << 10, 300 << 10, 1 << 40}
	}
	if c.Most == 0 {
		c.Most = defaultMost
	}
	if !c.isLog(t) {
		c.runTable(t)
		return
	}
	t.Run("Scan", c.testScan)
	t.Run("Transactions", c.testTransactions)
	t.Run("OIDs", c.testOIDs)
	for _, history := range []bool{false, true} {
		t.Run(map[bool]string{false: "history-free", true: "history-preserving"}[history], func(t *testing.T) {
			c.runRead(t, history)
		})
	}
	for _, size := range c.ChunkSizes {
		t.Run(fmt.Sprintf("Follow by %d bytes", size), func(t *testing.T) { c.testFollow(t, size) })
	}
	t.Run("Growth", c.testGrowth)
	if len(c.blobs()) > 0 {
		c.runBlobs(t)
	}
}

func (c *Case) runRead(t *testing.T, history bool) {
	for _, size := range c.ChunkSizes {
		opts := source.ReadOptions{History: history, ChunkBytes: size}
		t.Run(fmt.Sprintf("Read by %d bytes", size), func(t *testing.T) { c.testRead(t, opts) })
		t.Run(fmt.Sprintf("Read again from each chunk of %d bytes", size), func(t *testing.T) { c.testContinue(t, opts) })
		t.Run(fmt.Sprintf("Read stops in chunks of %d bytes", size), func(t *testing.T) { c.testStop(t, opts) })
	}
}

// isLog tells whether the source is a log.
func (c *Case) isLog(t testing.TB) bool {
	s := c.Open(t)
	defer s.Close()
	_, ok := s.(source.Log)
	return ok
}

// open opens and scans the source.
func (c *Case) open(t testing.TB) (source.Source, *source.Info) {
	t.Helper()
	s := c.Open(t)
	t.Cleanup(func() { s.Close() })
	info, err := s.Scan(t.Context(), c.scanOptions(0))
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	return s, info
}

// scanOptions are those to look at the source up to an end, 0 for any.
func (c *Case) scanOptions(until int64) source.ScanOptions {
	return source.ScanOptions{Until: until, History: c.table != nil && c.table.history}
}

func (c *Case) testScan(t *testing.T) {
	s, info := c.open(t)
	var records int64
	oids := map[zodb.OID]bool{}
	var maxTID zodb.TID
	var maxOID zodb.OID
	for _, txn := range c.Want {
		maxTID = max(maxTID, txn.TID)
		records += int64(len(txn.Records))
		for _, r := range txn.Records {
			oids[r.OID] = true
			maxOID = max(maxOID, r.OID)
		}
	}
	check := func(what string, got, want any) {
		if got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	check("Transactions", info.Transactions, int64(len(c.Want)))
	check("Records", info.Records, records)
	check("Objects", info.Objects, int64(len(oids)))
	check("MaxTID", info.MaxTID, maxTID)
	check("MaxOID", info.MaxOID, maxOID)
	check("HasRoot", info.HasRoot, oids[zodb.Root])
	if n := len(c.Want); n > 0 {
		check("FirstTID", info.FirstTID, c.Want[0].TID)
		check("LastTID", info.LastTID, c.Want[n-1].TID)
	}
	for _, until := range []int64{0, info.Identity.End} {
		again, err := s.Scan(t.Context(), c.scanOptions(until))
		if err != nil {
			t.Fatalf("Scan up to %d again: %v", until, err)
		}
		if until != 0 { // what stands behind was not looked at
			again.Tail = info.Tail
		}
		if diff := cmp.Diff(info, again); diff != "" {
			t.Errorf("Scan up to %d again (-first +again):\n%s", until, diff)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = c.Open(t)
	defer s.Close()
	if _, err := s.Scan(ctx, c.scanOptions(0)); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan with a cancelled context: %v", err)
	}
}

func (c *Case) testTransactions(t *testing.T) {
	s, _ := c.open(t)
	c.testTransactionsOf(t, s)
}

func (c *Case) testTransactionsOf(t *testing.T, s source.Source) {
	t.Helper()
	got := c.transactions(t, s)
	if len(got) != len(c.Want) {
		t.Fatalf("%d transactions, want %d", len(got), len(c.Want))
	}
	for i, want := range c.Want {
		c.checkTransaction(t, &got[i], &want)
	}
	stop := errors.New("stop")
	if err := s.Transactions(t.Context(), func(*source.Transaction) error { return stop }); len(got) > 0 && !errors.Is(err, stop) {
		t.Errorf("Transactions gave %v instead of the callback's error", err)
	}
}

// transactions gives copies of all transaction headers.
func (c *Case) transactions(t testing.TB, s source.Source) (list []source.Transaction) {
	t.Helper()
	err := s.Transactions(t.Context(), func(x *source.Transaction) error {
		list = append(list, copyTransaction(x))
		return nil
	})
	if err != nil {
		t.Fatalf("Transactions: %v", err)
	}
	return list
}

func copyTransaction(x *source.Transaction) source.Transaction {
	y := *x
	y.User, y.Description, y.Extension = bytes.Clone(x.User), bytes.Clone(x.Description), bytes.Clone(x.Extension)
	return y
}

func (c *Case) checkTransaction(t *testing.T, got *source.Transaction, want *Transaction) {
	t.Helper()
	if got.TID != want.TID || !bytes.Equal(got.User, want.User) || !bytes.Equal(got.Description, want.Description) || !bytes.Equal(got.Extension, want.Extension) {
		t.Errorf("transaction at %d: got %v %.80q %.80q %.80q, want %v %.80q %.80q %.80q", got.Pos,
			got.TID, got.User, got.Description, got.Extension, want.TID, want.User, want.Description, want.Extension)
	}
	if c.table != nil {
		if got.Pos != 0 || got.End != 0 {
			t.Errorf("transaction %v of a table has positions: %d to %d", got.TID, got.Pos, got.End)
		}
	} else if got.End <= got.Pos {
		t.Errorf("transaction at %d ends at %d", got.Pos, got.End)
	}
}

func (c *Case) testOIDs(t *testing.T) {
	s, info := c.open(t)
	list := c.transactions(t, s)
	for _, i := range some(len(list), 200) {
		want := []zodb.OID{}
		for _, r := range c.Want[i].Records {
			want = append(want, r.OID)
		}
		slices.Sort(want)
		want = slices.Compact(want)
		got, err := s.(source.Log).OIDs(t.Context(), list[i].Pos)
		if err != nil {
			t.Fatalf("OIDs(%d): %v", list[i].Pos, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("OIDs(%d): got %v, want %v", list[i].Pos, got, want)
		}
	}
	if _, err := s.(source.Log).OIDs(t.Context(), info.Identity.End); err == nil {
		t.Errorf("OIDs(%d), the end: no error", info.Identity.End)
	}
}

// some gives all numbers below n if they are at most most, else that many of
// them, always the same, with the first and the last.
func some(n, most int) (list []int) {
	for i := range n {
		list = append(list, i)
	}
	if n <= most {
		return list
	}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	rng.Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
	list = append(list[:most], 0, n-1)
	slices.Sort(list)
	return slices.Compact(list)
}

// line is a record as text, so that two sets of records can be compared and a
// difference be read.
func line(tid zodb.TID, oid zodb.OID, current bool, data []byte) string {
	mark := "older"
	if current {
		mark = "newest"
	}
	switch {
	case data == nil:
		return fmt.Sprintf("%v %v %s deleted", tid, oid, mark)
	case len(data) <= 64:
		return fmt.Sprintf("%v %v %s %q", tid, oid, mark, data)
	}
	return fmt.Sprintf("%v %v %s %d bytes %x", tid, oid, mark, len(data), fingerprint(data))
}

// want gives the lines that Read must give, newest first, and what it must
// count instead.
func (c *Case) want(history bool) (lines []string, superseded, dropped int64) {
	seen := map[zodb.OID]bool{}
	for _, txn := range slices.Backward(c.Want) {
		here := map[zodb.OID]bool{}
		for _, r := range slices.Backward(txn.Records) {
			switch {
			case here[r.OID]:
				dropped++
			case seen[r.OID] && !history:
				superseded++
			default:
				lines = append(lines, line(txn.TID, r.OID, !seen[r.OID], r.Data))
			}
			here[r.OID], seen[r.OID] = true, true
		}
	}
	return lines, superseded, dropped
}

// reading is what one or several calls of Read gave.
type reading struct {
	table               *table
	lines               []string
	ranges              []source.Range
	transactions        []source.Transaction
	superseded, dropped int64
	bytes               int64
}

// take adds a chunk.
func (r *reading) take(t testing.TB, s source.Source, c *source.Chunk) {
	t.Helper()
	var scratch []byte
	for i := range c.Records {
		rec := &c.Records[i]
		if !r.table.inside(rec.Pos, r.table.recordAt(rec), c.Range) {
			t.Errorf("the chunk %v has the record of oid %v, tid %v, at %d", c.Range, rec.OID, rec.TID, rec.Pos)
		}
		r.lines = append(r.lines, line(rec.TID, rec.OID, rec.Current, data(t, s, rec, &scratch)))
	}
	for i := range c.Transactions {
		x := &c.Transactions[i]
		if !r.table.inside(x.Pos, r.table.transactionAt(x), c.Range) {
			t.Errorf("the chunk %v has the transaction %v, at %d", c.Range, x.TID, x.Pos)
		}
		r.transactions = append(r.transactions, copyTransaction(x))
	}
	r.ranges = append(r.ranges, c.Range)
	r.superseded += c.Superseded
	r.dropped += c.Dropped
	r.bytes += c.Bytes
}

func data(t testing.TB, s source.Source, rec *source.Record, scratch *[]byte) []byte {
	t.Helper()
	b, err := s.Data(t.Context(), rec, scratch)
	if err != nil {
		t.Fatalf("Data of oid %v at %d: %v", rec.OID, rec.Pos, err)
	}
	if rec.Deleted && b != nil {
		t.Errorf("oid %v at %d is deleted and has data", rec.OID, rec.Pos)
	}
	return b
}

// check compares the union of all that was read with the truth.
func (c *Case) check(t *testing.T, r *reading, history bool) {
	t.Helper()
	want, superseded, dropped := c.want(history)
	got := slices.Clone(r.lines)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", shorten(diff))
	}
	if r.superseded != superseded || r.dropped != dropped {
		t.Errorf("%d superseded and %d dropped, want %d and %d", r.superseded, r.dropped, superseded, dropped)
	}
	txns := slices.Clone(r.transactions)
	slices.SortFunc(txns, func(a, b source.Transaction) int {
		return order.Or(order.Compare(a.Pos, b.Pos), order.Compare(a.TID, b.TID))
	})
	if len(txns) != len(c.Want) {
		t.Fatalf("%d transactions, want %d", len(txns), len(c.Want))
	}
	for i := range txns {
		c.checkTransaction(t, &txns[i], &c.Want[i])
	}
	ranges := slices.Clone(r.ranges)
	slices.SortFunc(ranges, byFrom)
	for i := 1; i < len(ranges); i++ {
		if ranges[i-1].To != ranges[i].From || ranges[i-1].ToSub != ranges[i].FromSub {
			t.Errorf("the chunks %v and %v do not meet", ranges[i-1], ranges[i])
		}
	}
}

func shorten(diff string) string {
	if lines := strings.SplitAfterN(diff, "\n", 41); len(lines) > 40 {
		return strings.Join(lines[:40], "") + "..."
	}
	return diff
}

// testRead keeps every chunk to the end, so that memory given out twice shows.
func (c *Case) testRead(t *testing.T, opts source.ReadOptions) {
	s, info := c.open(t)
	budget := newBudget(t, 1<<50)
	opts.Budget = budget
	var chunks []*source.Chunk
	var raw int64
	err := s.Read(t.Context(), opts, func(c *source.Chunk) error {
		chunks = append(chunks, c)
		for _, r := range c.Records {
			raw += int64(len(r.Raw))
		}
		if held := budget.held(); held < raw {
			t.Errorf("%d bytes taken from the budget, but %d are in use", held, raw)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	got := reading{table: c.table}
	for _, c := range chunks {
		got.take(t, s, c)
	}
	c.check(t, &got, opts.History)
	if c.table == nil {
		checkNewestFirst(t, got.lines)
	}
	if got.bytes != info.Bytes {
		t.Errorf("chunks of %d bytes in a source of %d", got.bytes, info.Bytes)
	}
	c.testSharedData(t, s, chunks)
	for _, c := range chunks {
		c.Release()
		c.Release()
	}
	budget.checkEmpty()
}

// testSharedData reads the data of all records in several goroutines at once.
func (c *Case) testSharedData(t *testing.T, s source.Source, chunks []*source.Chunk) {
	want := map[string]bool{}
	for _, txn := range c.Want {
		for _, r := range txn.Records {
			want[line(txn.TID, r.OID, false, r.Data)] = true
		}
	}
	var group errgroup.Group
	for first := range 4 {
		group.Go(func() error {
			var scratch []byte
			for i := first; i < len(chunks); i++ {
				for k := range chunks[i].Records {
					r := &chunks[i].Records[k]
					b, err := s.Data(t.Context(), r, &scratch)
					if err != nil {
						return err
					}
					if l := line(r.TID, r.OID, false, b); !want[l] {
						return fmt.Errorf("in another goroutine the record at %d is %s", r.Pos, l)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// checkNewestFirst checks that no older record of an oid comes before its
// newest one.
func checkNewestFirst(t *testing.T, lines []string) {
	t.Helper()
	newest := map[string]bool{}
	for _, l := range lines {
		f := strings.Fields(l)
		if f[2] == "newest" {
			newest[f[1]] = true
		} else if !newest[f[1]] {
			t.Errorf("an older record came before the newest one: %s", l)
			return
		}
	}
}

var errStop = errors.New("stopped by the test")

// testContinue stops a reading after each chunk, goes on with a source that was
// opened anew, and wants everything exactly once.
func (c *Case) testContinue(t *testing.T, opts source.ReadOptions) {
	s, info := c.open(t)
	whole := c.read(t, s, opts, -1)
	for _, n := range some(len(whole.ranges), c.Most) {
		got := c.read(t, s, opts, n+1)
		again := c.Open(t)
		if _, err := again.Scan(t.Context(), c.scanOptions(info.Identity.End)); err != nil {
			t.Fatalf("Scan up to %d: %v", info.Identity.End, err)
		}
		opts := opts
		opts.Done = doneRanges(got.ranges, n)
		rest := c.read(t, again, opts, -1)
		again.Close()

		got.lines = append(got.lines, rest.lines...)
		got.ranges = append(got.ranges, rest.ranges...)
		got.transactions = append(got.transactions, rest.transactions...)
		got.superseded += rest.superseded
		got.dropped += rest.dropped
		if union(got.ranges) != union(whole.ranges) || c.table == nil && !slices.Equal(got.ranges, whole.ranges) {
			t.Errorf("stopped after chunk %d: the chunks %v are not those of an uninterrupted reading, %v", n, got.ranges, whole.ranges)
		}
		c.check(t, &got, opts.History)
		if t.Failed() {
			t.Fatalf("stopped after chunk %d", n)
		}
	}
	c.testHoles(t, s, opts, &whole)
}

// doneRanges gives ranges in another order, some of them joined.
func doneRanges(list []source.Range, seed int) []source.Range {
	out := slices.Clone(list)
	rng := rand.New(rand.NewPCG(2, uint64(seed)))
	if seed%2 == 1 && len(out) > 0 { // the caller stored only their union
		out = []source.Range{union(out)}
	}
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func byFrom(a, b source.Range) int {
	return order.Or(order.Compare(a.From, b.From), order.Compare(a.FromSub, b.FromSub))
}

// union is the one range of ranges that meet.
func union(list []source.Range) source.Range {
	first, last := slices.MinFunc(list, byFrom), slices.MaxFunc(list, byFrom)
	return source.Range{From: first.From, FromSub: first.FromSub, To: last.To, ToSub: last.ToSub}
}

// testHoles leaves out chunks anywhere, as several writers finish them in any
// order.
func (c *Case) testHoles(t *testing.T, s source.Source, opts source.ReadOptions, whole *reading) {
	rng := rand.New(rand.NewPCG(3, 0))
	for range 2 {
		got := reading{table: c.table}
		opts.Done = nil
		opts.Budget = newBudget(t, 1<<50)
		err := s.Read(t.Context(), opts, func(c *source.Chunk) error {
			defer c.Release()
			if rng.IntN(2) == 0 {
				got.take(t, s, c)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		opts.Done = slices.Clone(got.ranges)
		rest := c.read(t, s, opts, -1)
		got.lines = append(got.lines, rest.lines...)
		got.ranges = append(got.ranges, rest.ranges...)
		got.transactions = append(got.transactions, rest.transactions...)
		got.superseded += rest.superseded
		got.dropped += rest.dropped
		c.check(t, &got, opts.History)
	}
	for _, bad := range c.badRanges(whole) {
		opts.Done = []source.Range{bad}
		if err := s.Read(t.Context(), opts, func(c *source.Chunk) error { c.Release(); return nil }); err == nil {
			t.Errorf("Read took %v as a range that is done", bad)
		}
	}
}

// badRanges are some that cannot be done: before the start, behind the end, from
// back to front.
func (c *Case) badRanges(whole *reading) []source.Range {
	if len(whole.ranges) == 0 {
		return []source.Range{{From: -1, To: 5}}
	}
	all := union(whole.ranges)
	return []source.Range{
		{From: -1, To: 5},
		{From: all.To, FromSub: all.ToSub, To: all.To, ToSub: all.ToSub + 1},
		{From: all.To, FromSub: all.ToSub, To: all.To - 1, ToSub: all.ToSub},
	}
}

// read reads up to a number of chunks, or all if it is negative.
func (c *Case) read(t testing.TB, s source.Source, opts source.ReadOptions, chunks int) (got reading) {
	t.Helper()
	got.table = c.table
	budget := newBudget(t, 1<<50)
	opts.Budget = budget
	err := s.Read(t.Context(), opts, func(c *source.Chunk) error {
		got.take(t, s, c)
		c.Release()
		if len(got.ranges) == chunks {
			return errStop
		}
		return nil
	})
	if chunks < 0 && err != nil || chunks >= 0 && !errors.Is(err, errStop) {
		t.Fatalf("Read: %v", err)
	}
	budget.checkEmpty()
	return got
}

// testStop reads with a budget below one chunk and cancels after each chunk.
func (c *Case) testStop(t *testing.T, opts source.ReadOptions) {
	s, _ := c.open(t)
	total := len(c.read(t, s, opts, -1).ranges)

	budget := newBudget(t, 1)
	opts.Budget = budget
	queue := make(chan *source.Chunk)
	go func() {
		for c := range queue {
			c.Release()
		}
	}()
	n := 0
	err := s.Read(t.Context(), opts, func(c *source.Chunk) error { n++; queue <- c; return nil })
	close(queue)
	if err != nil || n != total {
		t.Fatalf("Read with a budget of 1 byte gave %d of %d chunks: %v", n, total, err)
	}

	for _, at := range some(total, 8) {
		ctx, cancel := context.WithCancel(t.Context())
		budget := newBudget(t, 1<<50)
		opts.Budget = budget
		n := 0
		err := s.Read(ctx, opts, func(c *source.Chunk) error {
			if n++; n == at+1 {
				cancel()
			}
			c.Release()
			return nil
		})
		cancel()
		if n > at+1 || n < total && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in chunk %d of %d: Read went on to %d and gave %v", at+1, total, n, err)
		}
		budget.checkEmpty()
	}
	c.testStarved(t, s, opts, total)
}

// testStarved cancels a reading that waits for memory.
func (c *Case) testStarved(t *testing.T, s source.Source, opts source.ReadOptions, total int) {
	if total < 2 {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	budget := newBudget(t, 1)
	opts.Budget = budget
	var kept []*source.Chunk
	budget.waits = cancel
	err := s.Read(ctx, opts, func(c *source.Chunk) error { kept = append(kept, c); return nil })
	if !errors.Is(err, context.Canceled) && len(kept) < total {
		t.Errorf("cancelled while waiting for memory: Read gave %v", err)
	}
	for _, c := range kept {
		c.Release()
	}
	budget.checkEmpty()
}

func (c *Case) testFollow(t *testing.T, chunkBytes int64) {
	s, info := c.open(t)
	list := c.transactions(t, s)
	for _, i := range append(some(len(list), c.Most), len(list)) {
		from := info.Identity.End
		if i < len(list) {
			from = list[i].Pos
		}
		c.follow(t, s, chunkBytes, from, i, list)
		if t.Failed() {
			t.Fatalf("Follow from transaction %d at %d", i, from)
		}
	}
	if len(list) > 0 {
		err := s.(source.Log).Follow(t.Context(), list[0].Pos+1, source.ReadOptions{ChunkBytes: chunkBytes, Budget: newBudget(t, 1<<50)}, func(c *source.Chunk) error { c.Release(); return nil })
		if err == nil {
			t.Errorf("Follow started within a transaction")
		}
	}
}

// within tells whether pos is inside one of the transactions.
func within(list []source.Transaction, pos int64) bool {
	i := sort.Search(len(list), func(i int) bool { return list[i].End > pos })
	return i < len(list) && list[i].Pos < pos
}

// follow checks what Follow gives from transaction i on.
func (c *Case) follow(t *testing.T, s source.Source, chunkBytes, from int64, i int, list []source.Transaction) {
	t.Helper()
	var want []string
	for _, txn := range c.Want[i:] {
		for _, r := range txn.Records {
			want = append(want, line(txn.TID, r.OID, false, r.Data))
		}
	}
	budget := newBudget(t, 1<<50)
	got := reading{table: c.table}
	at := from
	err := s.(source.Log).Follow(t.Context(), from, source.ReadOptions{ChunkBytes: chunkBytes, Budget: budget}, func(c *source.Chunk) error {
		if c.Range.From != at {
			t.Errorf("a chunk starts at %d, the one before ended at %d", c.Range.From, at)
		}
		if at = c.Range.To; c.EndsTransaction == within(list, at) {
			t.Errorf("the chunk that ends at %d: EndsTransaction is %v", at, c.EndsTransaction)
		}
		got.take(t, s, c)
		c.Release()
		return nil
	})
	if err != nil {
		t.Fatalf("Follow from %d: %v", from, err)
	}
	budget.checkEmpty()
	if diff := cmp.Diff(want, got.lines); diff != "" {
		t.Errorf("records (-want +got):\n%s", shorten(diff))
	}
	if len(got.transactions) != len(c.Want)-i {
		t.Fatalf("%d transactions, want %d", len(got.transactions), len(c.Want)-i)
	}
	for k := range got.transactions {
		c.checkTransaction(t, &got.transactions[k], &c.Want[i+k])
	}
}

func (c *Case) testGrowth(t *testing.T) {
	s, _ := c.open(t)
	g, err := s.Growth(t.Context())
	if err != nil || g != (source.Growth{}) {
		t.Errorf("Growth of a source at rest: %+v, %v", g, err)
	}
}
