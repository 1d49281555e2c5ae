package desttest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// life is a Table and what happens to it: each change makes another state.
type life struct {
	table   *Table
	changes []func()
}

// highest is the oid of an object that is never removed: it keeps the sequence of
// new oids the same, however many states a destination has seen.
const highest = 5000

// tableLife has objects and blobs that are replaced several times, deleted, undone
// and made again, transactions that are empty, packed away or lose one object of
// several, garbage that goes, and records larger than others.
func tableLife(history bool) *life {
	b := NewTable(history)
	rng := rand.New(rand.NewPCG(5, 6))
	tid := zodb.TID(0x03f8000000000001)
	next := func(user string) Transaction {
		tid += 0x10000000 + zodb.TID(rng.Uint64N(1000))
		return Transaction{TID: tid, User: user, Description: strings.Repeat("ż", rng.IntN(9))}
	}
	thing := func(oid zodb.OID) Record {
		return Record{OID: oid, Data: Data("app.things", fmt.Sprintf("Thing%d", rng.IntN(3)), strings.Repeat("zażółć ", rng.IntN(60)))}
	}
	blob := func(oid zodb.OID) Record {
		content := make([]byte, rng.IntN(3*BlobThreshold))
		for i := range content {
			content[i] = byte(rng.Uint32())
		}
		return BlobOf(oid, content)
	}
	// some writes a few of the objects 1 to 40 and of the blobs 101 to 110.
	some := func(transactions int) {
		for range transactions {
			written := map[zodb.OID]Record{}
			for range 1 + rng.IntN(6) {
				oid := zodb.OID(1 + rng.IntN(40))
				written[oid] = thing(oid)
			}
			if rng.IntN(2) == 0 {
				oid := zodb.OID(101 + rng.IntN(10))
				written[oid] = blob(oid)
			}
			var records []Record
			for oid := range zodb.OID(200) {
				if r, ok := written[oid]; ok {
					records = append(records, r)
				}
			}
			b.Commit(next("/ admin"), records...)
		}
	}
	b.Commit(next(""), thing(0), thing(highest))
	some(14)
	kept := thing(60)
	b.Commit(next("deletes"), thing(50), kept, thing(61), blob(120), blob(121))
	b.Commit(next("deletes"), Record{OID: 50}, thing(60), Record{OID: 61}, Record{OID: 121})
	b.Commit(next("nothing was written"))
	middle := tid
	return &life{table: b, changes: []func(){
		func() {
			some(6)
			b.Commit(next("undoes"), kept, thing(61), blob(121), Record{OID: 120})
			b.Commit(next("bytes \xff\x00"), thing(0), thing(62))
		},
		func() { b.Pack(middle, 62) },
		func() {
			some(4)
			b.Commit(next(""), Record{OID: 0, Data: Data("app", "Root", "new")}, blob(120), Record{OID: 121}, thing(101))
			b.Commit(next(""), Record{OID: 60}, thing(70))
		},
		func() { b.Pack(tid, 1, 2, 3, 61, 120) },
		func() { some(2) },
	}}
}

func (s suite) testTables(t *testing.T) {
	t.Run("AreReconciledInEveryState", s.testTableReconciled)
	t.Run("ContinueInAnotherViewAfterEveryChunk", s.testTableContinues)
	t.Run("MissingBlobsComeAndGo", s.testTableMissing)
	if s.OnlyBlobs {
		return
	}
	t.Run("AreConverted", s.testTableConverted)
	t.Run("AreReconciledAsAWholeOrNotAtAll", s.testTableStops)
	t.Run("RejectsComeAndGo", s.testTableRejects)
}

func (s suite) convertTable(t *testing.T, db Database, b *Table, change func(*conversion)) (*conversion, error) {
	t.Helper()
	c := &conversion{src: b.Source(), dst: db.Open(t, s.history), history: s.history, mode: s.mode, staging: t.TempDir()}
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

func (s suite) mustTable(t *testing.T, db Database, b *Table, change func(*conversion)) *conversion {
	t.Helper()
	c, err := s.convertTable(t, db, b, change)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func incremental(c *conversion) { c.continues = true }

func (s suite) checkTable(t *testing.T, db Database, want Contents) {
	t.Helper()
	if diff := cmp.Diff(want, db.Contents(t, s.history)); diff != "" {
		t.Fatalf("contents (-want +got):\n%s", diff)
	}
}

func (s suite) checkTableBytes(t *testing.T, db Database, b *Table) {
	t.Helper()
	for _, blob := range b.Want(s.history).Blobs {
		if !bytes.Equal(db.Blob(t, blob.OID, blob.TID), b.Bytes(blob.OID, blob.TID)) {
			t.Errorf("blob oid %v, tid %v has other bytes", blob.OID, blob.TID)
		}
	}
}

// fresh is what a conversion of the newest state makes.
func (s suite) fresh(t *testing.T, b *Table) everything {
	t.Helper()
	db := s.New(t)
	s.mustTable(t, db, b, nil)
	return look(t, db)
}

func (s suite) testTableConverted(t *testing.T) {
	l := tableLife(s.sourceHistory)
	for i := range len(l.changes) + 1 {
		if i > 0 {
			l.changes[i-1]()
		}
		db := s.New(t)
		c := s.mustTable(t, db, l.table, nil)
		want := l.table.Want(s.history)
		s.checkTable(t, db, want)
		s.checkTableBytes(t, db, l.table)
		if got := c.totals; got.Objects != int64(len(want.Current)) || got.Transactions != int64(len(want.Transactions)) ||
			got.Blobs+got.S3Blobs != int64(len(want.Blobs)) || got.Gone+got.GoneTransactions != 0 {
			t.Errorf("the totals are %+v", got)
		}
	}
	empty := NewTable(s.sourceHistory)
	db := s.New(t)
	s.mustTable(t, db, empty, nil)
	s.mustTable(t, db, empty, incremental)
	s.checkTable(t, db, empty.Want(s.history))
}

// testTableReconciled goes from every state to every later one.
func (s suite) testTableReconciled(t *testing.T) {
	n := len(tableLife(s.sourceHistory).changes)
	for from := 0; from < n; from += s.step(2) {
		l := tableLife(s.sourceHistory)
		for _, change := range l.changes[:from] {
			change()
		}
		db := s.New(t)
		s.mustTable(t, db, l.table, nil)
		for at, change := range l.changes[from:] {
			change()
			if (at+from)%2 == 1 && at+from != n-1 {
				continue // two changes at once
			}
			before := db.Contents(t, s.history)
			c := s.mustTable(t, db, l.table, incremental)
			after := db.Contents(t, s.history)
			s.same(t, s.fresh(t, l.table), look(t, db))
			s.checkTable(t, db, l.table.Want(s.history))
			s.checkTableBytes(t, db, l.table)
			if got, want := c.totals.Transactions-c.totals.GoneTransactions, int64(len(after.Transactions)-len(before.Transactions)); got != want {
				t.Errorf("%d transactions more are counted, there are %d", got, want)
			}
			if got, want := c.totals.Gone, missingFrom(before, after, s.history); got != want {
				t.Errorf("%d revisions are counted as gone, %d are", got, want)
			}
			if c := s.mustTable(t, db, l.table, incremental); c.chunks != 0 {
				t.Errorf("a second comparison finds %d chunks", c.chunks)
			}
		}
	}
}

// missingFrom counts what is in one state and not in another: revisions or, without
// history, objects.
func missingFrom(before, after Contents, history bool) (n int64) {
	if !history {
		for oid := range before.Current {
			if _, ok := after.Current[oid]; !ok {
				n++
			}
		}
		return n
	}
	revisions := func(c Contents) map[Revision]bool {
		all := map[Revision]bool{}
		for oid, tid := range c.Current {
			all[Revision{OID: oid, TID: tid}] = true
		}
		for _, r := range c.Older {
			all[Revision{OID: r.OID, TID: r.TID}] = true
		}
		return all
	}
	left := revisions(after)
	for r := range revisions(before) {
		if !left[r] {
			n++
		}
	}
	return n
}

// testTableContinues stops a load after every chunk and goes on with it in a view
// of a later state, stops that, too, and goes on in one of a still later state.
func (s suite) testTableContinues(t *testing.T) {
	l := tableLife(s.sourceHistory)
	n := len(l.changes)
	chunks := s.mustTable(t, s.New(t), l.table, nil).chunks
	if chunks < 8 {
		t.Fatalf("%d chunks are too few to test anything", chunks)
	}
	for stop := 1; stop <= chunks; stop += s.step(3) {
		l := tableLife(s.sourceHistory)
		db := s.New(t)
		staging := t.TempDir()
		for i, change := range l.changes {
			if i%2 == stop%2 && i != n-1 {
				change()
				continue // two changes at once
			}
			_, err := s.convertTable(t, db, l.table, func(c *conversion) {
				c.continues, c.staging, c.stopAfter = i > 0, staging, stop
				if i > 1 {
					c.stopAfter = 2
				}
			})
			if err != nil && !errors.Is(err, errStop) {
				t.Fatalf("stop after %d, state %d: %v", stop, i, err)
			}
			change()
		}
		s.mustTable(t, db, l.table, func(c *conversion) { c.continues, c.staging = true, staging })
		s.checkTable(t, db, l.table.Want(s.history))
		s.checkTableBytes(t, db, l.table)
		want, got := s.fresh(t, l.table), look(t, db)
		if s.mode == dest.Inline {
			got.Rows = withoutLeftovers(want.Rows, got.Rows)
		}
		s.same(t, want, got)
		if c := s.mustTable(t, db, l.table, incremental); c.chunks != 0 {
			t.Errorf("stop after %d: a second comparison finds %d chunks", stop, c.chunks)
		}
	}
}

// withoutLeftovers leaves out objects of the bucket that nobody wants. A blob that
// is uploaded before its chunk commits stays there if the run is stopped in
// between and the source has dropped it when the run goes on.
func withoutLeftovers(want, got []string) []string {
	return slices.DeleteFunc(slices.Clone(got), func(row string) bool {
		return strings.HasPrefix(row, ObjectRow) && !slices.Contains(want, row)
	})
}

func (s suite) testTableStops(t *testing.T) {
	l := tableLife(s.sourceHistory)
	db := s.New(t)
	s.mustTable(t, db, l.table, nil)
	before := l.table.Want(s.history)
	for _, change := range l.changes[:3] {
		change()
	}
	staging := t.TempDir()
	stops := 0
	for stop := 1; ; stop++ {
		c, err := s.convertTable(t, db, l.table, func(c *conversion) { c.continues, c.staging, c.stopAfter = true, staging, stop })
		if err == nil {
			if c.chunks != 0 {
				t.Errorf("%d chunks were written again", c.chunks)
			}
			break
		}
		if !errors.Is(err, errStop) {
			t.Fatal(err)
		}
		stops++
		s.condition(t, db, dest.Interrupted)
		if got := db.Contents(t, s.history); !cmp.Equal(got, before) {
			s.checkTable(t, db, l.table.Want(s.history)) // that was the last chunk
		}
	}
	if stops < 4 {
		t.Errorf("%d chunks are too few to test anything", stops)
	}
	s.checkTable(t, db, l.table.Want(s.history))
	s.checkTableBytes(t, db, l.table)
}

func (s suite) testTableRejects(t *testing.T) {
	b := NewTable(s.sourceHistory)
	good := func(oid zodb.OID, text string) Record { return Record{OID: oid, Data: Data("app", "Thing", text)} }
	bad := func(oid zodb.OID) Record { return Record{OID: oid, Data: Bad(), Rejected: true} }
	b.Commit(Transaction{TID: 1 << 40}, good(0, "root"), good(1, "a"), bad(2), good(3, "b"), bad(4))
	b.Commit(Transaction{TID: 2 << 40}, bad(1))
	db := s.New(t)
	var rejected *dest.RejectedError
	if _, err := s.convertTable(t, db, b, nil); !errors.As(err, &rejected) || rejected.Count != 3 {
		t.Fatalf("three rejects that nobody accepts give %v", err)
	}
	accept := func(c *conversion) { c.continues, c.accept = true, true }
	// What comes since is compared with what is known to be rejected.
	b.Commit(Transaction{TID: 3 << 40}, good(2, "mended"), bad(3))
	c := s.mustTable(t, db, b, accept)
	s.checkTable(t, db, b.Want(s.history))
	// Those of 1, 3 and 4; with history, also the older one of 2.
	want := int64(3)
	if s.history && s.sourceHistory {
		want++
	}
	if c.totals.Rejected != want {
		t.Errorf("%d rejects are left, want %d", c.totals.Rejected, want)
	}
	b.Commit(Transaction{TID: 4 << 40}, good(1, "mended"), good(3, "mended"), bad(5))
	b.Pack(4<<40, 4)
	s.mustTable(t, db, b, accept)
	s.checkTable(t, db, b.Want(s.history))
	// A run that has succeeded has forgotten what it has rejected.
	if c = s.mustTable(t, db, b, accept); c.totals.Rejected != 1 || c.chunks != 1 {
		t.Errorf("%d rejects in %d chunks are found again, want 1", c.totals.Rejected, c.chunks)
	}
	s.checkTable(t, db, b.Want(s.history))
}

func (s suite) testTableMissing(t *testing.T) {
	b := NewTable(s.sourceHistory)
	content := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 700*n) }
	b.Commit(Transaction{TID: 1 << 40}, Record{OID: 0, Data: Data("app", "Root", "")},
		BlobOf(1, content(1)), BlobOf(2, content(2)), BlobOf(3, content(3)), BlobOf(4, content(1)))
	for oid := zodb.OID(1); oid <= 4; oid++ {
		b.Lose(oid, 1<<40)
	}
	db := s.New(t)
	staging := t.TempDir()
	var rejected *dest.RejectedError
	convert := func(acceptMissing bool) (*conversion, error) {
		return s.convertTable(t, db, b, func(c *conversion) {
			c.continues, c.staging, c.acceptMissing = true, staging, acceptMissing
		})
	}
	if _, err := convert(false); !errors.As(err, &rejected) || rejected.MissingBlobs != 4 {
		t.Fatalf("four blobs that are missing give %v", err)
	}
	// One is found, one is replaced, one deleted, one stays missing.
	delete(b.lost, Revision{OID: 1, TID: 1 << 40})
	b.Commit(Transaction{TID: 2 << 40}, BlobOf(2, content(1)), Record{OID: 3}, BlobOf(5, content(2)))
	b.Pack(2<<40, 0xffff)
	b.Lose(5, 2<<40)
	for range 2 { // the second start has something to look for again
		if _, err := convert(false); !errors.As(err, &rejected) {
			t.Fatalf("missing blobs give %v", err)
		}
	}
	c, err := convert(true)
	if err != nil {
		t.Fatal(err)
	}
	if c.totals.MissingBlobs != 2 || len(c.missing) != 2 || c.missing[0].OID != 4 || c.missing[1].OID != 5 {
		t.Errorf("%d blobs are counted as missing, listed are %v", c.totals.MissingBlobs, c.missing)
	}
	s.checkTable(t, db, b.Want(s.history))
	s.checkTableBytes(t, db, b)
}
