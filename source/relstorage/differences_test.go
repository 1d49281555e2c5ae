package relstorage

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// grow gives the transactions that a site adds to c, and adds them.
func (c *content) grow(seed uint64, n int) []sourcetest.Transaction {
	more := randomContent(seed, true, n, 300)
	last := c.txns[len(c.txns)-1].TID
	for i := range more.txns {
		t := &more.txns[i]
		t.TID += last - firstTID
		if !c.history {
			t.User, t.Description, t.Extension = nil, nil, nil
		}
	}
	c.txns = append(c.txns, more.txns...)
	if !c.history {
		c.pack()
	}
	return more.txns
}

// collect removes some objects with all their revisions, as a pack that collects
// garbage does, and transactions that have nothing left; it returns the SQL.
func (c *content) collect(seed uint64) string {
	rng := rand.New(rand.NewPCG(seed, 2))
	newest := map[zodb.OID]zodb.TID{}
	for _, txn := range c.txns {
		for _, r := range txn.Records {
			newest[r.OID] = txn.TID
		}
	}
	last := c.txns[len(c.txns)-1].TID
	var oids []string
	gone := map[zodb.OID]bool{}
	for oid, tid := range newest {
		if oid != zodb.Root && tid != last && rng.IntN(4) == 0 {
			gone[oid] = true
			oids = append(oids, fmt.Sprint(uint64(oid)))
		}
	}
	var tids []string
	var out []sourcetest.Transaction
	for _, txn := range c.txns {
		had := len(txn.Records)
		txn.Records = slices.DeleteFunc(slices.Clone(txn.Records), func(r sourcetest.Record) bool { return gone[r.OID] })
		if had > 0 && len(txn.Records) == 0 {
			tids = append(tids, fmt.Sprint(uint64(txn.TID)))
			continue
		}
		out = append(out, txn)
	}
	c.txns = out
	list := strings.Join(oids, ", ")
	sql := ""
	if c.history {
		sql = "DELETE FROM current_object WHERE zoid IN (" + list + ");"
	}
	sql += "DELETE FROM object_state WHERE zoid IN (" + list + ");"
	if c.history && len(tids) > 0 {
		sql += "DELETE FROM transaction WHERE tid IN (" + strings.Join(tids, ", ") + ");" +
			fmt.Sprintf("UPDATE transaction SET packed = TRUE WHERE tid > 0 AND tid < %d;", uint64(last))
	}
	return sql
}

// differ compares st with the view and repairs it; it returns how many chunks
// that took.
func (st *state) differ(t testing.TB, s *Source, history bool, size int64) (chunks int) {
	t.Helper()
	budget := newFreeBudget()
	last := false
	opts := source.DifferenceOptions{ReadOptions: source.ReadOptions{History: history, ChunkBytes: size, Budget: budget}}
	err := s.Differences(t.Context(), st.have(), opts, func(c *source.Chunk) error {
		if last {
			t.Error("a chunk comes after the last one")
		}
		last = c.EndsTransaction
		chunks++
		st.take(t, s, c, true)
		c.Release()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if chunks > 0 && !last {
		t.Error("the last chunk does not say that it is")
	}
	budget.check(t)
	st.forget(history)
	return chunks
}

func TestDifferencesMakeADestinationEqual(t *testing.T) {
	bothKinds(t, func(t *testing.T, schema, history bool) {
		for _, size := range []int64{100, 1 << 30} {
			c := randomContent(2, schema, 40, 300)
			dsn := c.database(t)
			server := postgresServer.Server(t)
			s := openPostgreSQL(t, dsn)
			scan := func() {
				t.Helper()
				if _, err := s.Scan(t.Context(), source.ScanOptions{History: history}); err != nil {
					t.Fatal(err)
				}
			}
			want := func() *state {
				w := c.want(history)
				w.forget(history)
				return w
			}
			scan()
			st := newState()
			if n := st.differ(t, s, history, size); n == 0 || size < 1000 && n < 100 {
				t.Errorf("all was given in %d chunks of %d bytes", n, size)
			}
			st.check(t, want())
			if n := st.differ(t, s, history, size); n != 0 {
				t.Errorf("equal, and %d chunks", n)
			}
			for step := range uint64(3) {
				server.Exec(t, dsn, c.sql(c.grow(10+step, 15)))
				server.Exec(t, dsn, c.collect(20+step))
				if n := st.differ(t, s, history, size); n != 0 {
					t.Errorf("the view has changed: %d chunks", n)
				}
				scan()
				st.differ(t, s, history, size)
				st.check(t, want())
				if n := st.differ(t, s, history, size); n != 0 {
					t.Errorf("equal after step %d, and %d chunks", step, n)
				}
			}
		}
	})
}

// A load that was interrupted goes on in a newer view, between the ranges that
// are done, and is mended by Differences.
func TestReadGoesOnInANewerView(t *testing.T) {
	bothKinds(t, func(t *testing.T, schema, history bool) {
		for seed := range uint64(3) {
			c := randomContent(30+seed, schema, 40, 300)
			dsn := c.database(t)
			first := openPostgreSQL(t, dsn)
			info, err := first.Scan(t.Context(), source.ScanOptions{History: history})
			if err != nil {
				t.Fatal(err)
			}
			st := newState()
			opts := source.ReadOptions{History: history, ChunkBytes: 9000, Budget: newFreeBudget()}
			rng := rand.New(rand.NewPCG(seed, 3))
			err = first.Read(t.Context(), opts, func(c *source.Chunk) error {
				if rng.IntN(2) == 0 {
					st.take(t, first, c, false)
					opts.Done = append(opts.Done, c.Range)
				}
				c.Release()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			first.Close()

			server := postgresServer.Server(t)
			server.Exec(t, dsn, c.sql(c.grow(40+seed, 15)))
			server.Exec(t, dsn, c.collect(50+seed))
			s := openPostgreSQL(t, dsn)
			again, err := s.Scan(t.Context(), source.ScanOptions{History: history, Until: info.Identity.End})
			if err != nil {
				t.Fatal(err)
			}
			if !again.Identity.Same(info.Identity) {
				t.Fatalf("the identity is %v, and was %v", again.Identity, info.Identity)
			}
			err = s.Read(t.Context(), opts, func(c *source.Chunk) error {
				for i := range c.Records {
					if r := &c.Records[i]; int64(r.TID) > info.Identity.End {
						t.Errorf("a record of %v, beyond the end", r.TID)
					}
				}
				for i := range c.Transactions {
					delete(st.txns, c.Transactions[i].TID) // of the view before
				}
				st.take(t, s, c, !history)
				c.Release()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			current := map[zodb.OID]int{}
			for _, r := range st.recs {
				if r.Current {
					current[r.OID]++
				}
			}
			for oid, n := range current {
				if n > 1 {
					t.Errorf("%v has %d current records after two views", oid, n)
				}
			}
			st.forget(history)
			if _, err := s.Scan(t.Context(), source.ScanOptions{History: history}); err != nil {
				t.Fatal(err)
			}
			st.differ(t, s, history, 5000)
			want := c.want(history)
			want.forget(history)
			st.check(t, want)
			if t.Failed() {
				t.FailNow()
			}
		}
	})
}

func TestDifferencesRefuseWhatSomebodyElseHasWritten(t *testing.T) {
	bothKinds(t, func(t *testing.T, schema, history bool) {
		c := randomContent(3, schema, 20, 100)
		s := openPostgreSQL(t, c.database(t))
		info, err := s.Scan(t.Context(), source.ScanOptions{History: history})
		if err != nil {
			t.Fatal(err)
		}
		// One of the second transaction, so that there are others around it.
		object := c.txns[1].Records[0]
		for _, r := range c.txns[1].Records {
			for _, later := range c.txns[2:] {
				if !slices.ContainsFunc(later.Records, func(x sourcetest.Record) bool { return x.OID == r.OID }) {
					object = r
				}
			}
		}
		var newest zodb.TID
		for _, txn := range c.txns {
			for _, r := range txn.Records {
				if r.OID == object.OID {
					newest = txn.TID
				}
			}
		}
		for name, change := range map[string]func(*state){
			"a newer transaction":                 func(st *state) { st.txns[info.MaxTID+1] = "" },
			"a newer record of an unknown object": func(st *state) { st.recs[[2]uint64{1 << 40, 1}] = rec{1 << 40, info.MaxTID + 1, "x", true, false} },
			"a transaction that was not packed away": func(st *state) {
				if schema {
					st.txns[info.MaxTID-1] = ""
				} else {
					st.txns[info.MaxTID+1] = ""
				}
			},
			"a newer record of an object": func(st *state) {
				st.recs[[2]uint64{uint64(object.OID), 1}] = rec{object.OID, newest + 1, "x", true, false}
			},
		} {
			st := c.want(history)
			st.forget(history)
			change(st)
			opts := source.DifferenceOptions{ReadOptions: source.ReadOptions{History: history, ChunkBytes: 1 << 20, Budget: newFreeBudget()}}
			err := s.Differences(t.Context(), st.have(), opts, func(c *source.Chunk) error { c.Release(); return nil })
			var foreign *source.ForeignError
			if !errors.As(err, &foreign) || !strings.Contains(err.Error(), "newe") && !strings.Contains(err.Error(), "no pack has removed") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// The tids of another database may well be lower than those of the source.
func TestDifferencesRefuseWhatWasConvertedFromAnotherDatabase(t *testing.T) {
	bothKinds(t, func(t *testing.T, schema, history bool) {
		c := randomContent(6, schema, 40, 300)
		s := openPostgreSQL(t, c.database(t))
		if _, err := s.Scan(t.Context(), source.ScanOptions{History: history}); err != nil {
			t.Fatal(err)
		}
		for transactions, refused := range map[int]bool{strangers - 1: false, strangers: true} {
			other := newState()
			for i := range transactions {
				tid := firstTID - zodb.TID(transactions) + zodb.TID(i)
				other.txns[tid] = ""
				other.recs[[2]uint64{uint64(i), uint64(tid)}] = rec{zodb.OID(i), tid, "x", true, false}
			}
			opts := source.DifferenceOptions{ReadOptions: source.ReadOptions{History: history, ChunkBytes: 1000, Budget: newFreeBudget()}}
			err := s.Differences(t.Context(), other.have(), opts, func(c *source.Chunk) error {
				if c.EndsTransaction && refused {
					t.Error("what differs would be committed")
				}
				c.Release()
				return nil
			})
			if foreign := (*source.ForeignError)(nil); errors.As(err, &foreign) != refused || err != nil && !refused {
				t.Errorf("a destination with %d other transactions: %v", transactions, err)
			}
		}
	})
}
