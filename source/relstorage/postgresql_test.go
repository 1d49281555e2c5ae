package relstorage

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var postgresServer pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	postgresServer.Close()
	os.Exit(code)
}

func openPostgreSQL(t testing.TB, dsn string) *Source {
	t.Helper()
	s, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: dsn}, Connections: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// freeBudget counts what is held.
type freeBudget struct{ held chan int64 }

func newFreeBudget() *freeBudget {
	b := &freeBudget{held: make(chan int64, 1)}
	b.held <- 0
	return b
}

func (b *freeBudget) Acquire(ctx context.Context, n int64) error {
	b.held <- n + <-b.held
	return ctx.Err()
}

func (b *freeBudget) Release(n int64) { b.held <- <-b.held - n }

func (b *freeBudget) check(t testing.TB) {
	t.Helper()
	n := <-b.held
	b.held <- n
	if n != 0 {
		t.Errorf("%d bytes were never released", n)
	}
}

// rec is a record as it was given.
type rec struct {
	OID     zodb.OID
	TID     zodb.TID
	Data    string
	Current bool
	Deleted bool
}

// state is what a destination would hold.
type state struct {
	txns map[zodb.TID]string
	recs map[[2]uint64]rec
}

func newState() *state { return &state{map[zodb.TID]string{}, map[[2]uint64]rec{}} }

func (st *state) take(t testing.TB, s *Source, c *source.Chunk, repair bool) {
	t.Helper()
	var scratch []byte
	for _, k := range c.Gone {
		id := [2]uint64{uint64(k.OID), uint64(k.TID)}
		if _, ok := st.recs[id]; !ok {
			t.Errorf("%v is gone and never was", k)
		}
		delete(st.recs, id)
	}
	for _, tid := range c.GoneTransactions {
		delete(st.txns, tid)
	}
	for _, x := range c.Transactions {
		if _, ok := st.txns[x.TID]; ok {
			t.Errorf("transaction %v came twice", x.TID)
		}
		st.txns[x.TID] = fmt.Sprintf("%q %q %q", x.User, x.Description, x.Extension)
	}
	for i := range c.Records {
		r := &c.Records[i]
		data, err := s.Data(t.Context(), r, &scratch)
		if err != nil {
			t.Fatal(err)
		}
		id := [2]uint64{uint64(r.OID), uint64(r.TID)}
		if _, ok := st.recs[id]; ok && !repair {
			t.Errorf("record %v %v came twice", r.OID, r.TID)
		}
		st.recs[id] = rec{r.OID, r.TID, string(data), r.Current, r.Deleted}
	}
}

// want is what a conversion of c gives.
func (c *content) want(history bool) *state {
	st := newState()
	current := map[zodb.OID]zodb.TID{}
	for _, txn := range c.txns {
		st.txns[txn.TID] = fmt.Sprintf("%q %q %q", txn.User, txn.Description, txn.Extension)
		for _, r := range txn.Records {
			current[r.OID] = txn.TID
		}
	}
	for _, txn := range c.txns {
		for _, r := range txn.Records {
			if cur := current[r.OID] == txn.TID; cur || history {
				st.recs[[2]uint64{uint64(r.OID), uint64(txn.TID)}] = rec{r.OID, txn.TID, string(r.Data), cur, r.Data == nil}
			}
		}
	}
	return st
}

func (st *state) check(t testing.TB, want *state) {
	t.Helper()
	if diff := cmp.Diff(want.txns, st.txns); diff != "" {
		t.Errorf("transactions (-want +got):\n%.2000s", diff)
	}
	if diff := cmp.Diff(want.recs, st.recs); diff != "" {
		t.Errorf("records (-want +got):\n%.2000s", diff)
	}
}

// forget drops what a destination does not keep: without history deletions, and
// in any case that one is the newest record of its object.
func (st *state) forget(history bool) {
	for id, r := range st.recs {
		if r.Deleted && !history {
			delete(st.recs, id)
		} else if r.Deleted {
			r.Current = false
			st.recs[id] = r
		}
	}
}

// have is the state as a destination tells it.
func (st *state) have() *source.Have {
	var tids []zodb.TID
	for tid := range st.txns {
		tids = append(tids, tid)
	}
	slices.Sort(tids)
	var keys []source.Key
	for _, r := range st.recs {
		keys = append(keys, source.Key{OID: r.OID, TID: r.TID, Current: r.Current && !r.Deleted})
	}
	slices.SortFunc(keys, func(a, b source.Key) int {
		if a.OID != b.OID {
			return int(a.OID) - int(b.OID)
		}
		return int(a.TID) - int(b.TID)
	})
	return &source.Have{
		Transactions: func(yield func(zodb.TID, error) bool) {
			for _, tid := range tids {
				if !yield(tid, nil) {
					return
				}
			}
		},
		Keys: func(yield func(source.Key, error) bool) {
			for _, k := range keys {
				if !yield(k, nil) {
					return
				}
			}
		},
	}
}

func bothKinds(t *testing.T, fn func(t *testing.T, schema, history bool)) {
	for _, schema := range []bool{false, true} {
		for _, history := range []bool{false, true} {
			name := map[bool]string{false: "history-free", true: "history-preserving"}
			t.Run(name[schema]+" to "+name[history], func(t *testing.T) { fn(t, schema, history) })
		}
	}
}

func TestReadGivesEveryRecordOnce(t *testing.T) {
	bothKinds(t, func(t *testing.T, schema, history bool) {
		c := randomContent(1, schema, 60, 300)
		s := openPostgreSQL(t, c.database(t))
		info, err := s.Scan(t.Context(), source.ScanOptions{History: history})
		if err != nil {
			t.Fatal(err)
		}
		want := c.want(history)
		if info.Records != int64(len(want.recs)) || info.Transactions != int64(len(want.txns)) || len(info.Warnings) != 0 {
			t.Errorf("Info has %d records and %d transactions, want %d and %d; warnings %q", info.Records, info.Transactions, len(want.recs), len(want.txns), info.Warnings)
		}
		for _, size := range []int64{1, 1000, 64 << 10, 300 << 10, 1 << 40} {
			budget := newFreeBudget()
			st := newState()
			var bytes int64
			at := start
			err := s.Read(t.Context(), source.ReadOptions{History: history, ChunkBytes: size, Budget: budget}, func(c *source.Chunk) error {
				if from := (pos{c.Range.From, c.Range.FromSub}); from != at {
					t.Errorf("a chunk starts at %v, the one before ended at %v", from, at)
				}
				at = pos{c.Range.To, c.Range.ToSub}
				st.take(t, s, c, false)
				bytes += c.Bytes
				c.Release()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			budget.check(t)
			st.check(t, want)
			if bytes != info.Bytes || at != s.scan.last() {
				t.Errorf("chunks of %d bytes have %d of %d, and end at %v", size, bytes, info.Bytes, at)
			}
		}
	})
}

// A conversion into an earlier schema of the search path makes tables of the same
// names there while the source is read.
func TestATableThatIsMadeInAnEarlierSchemaIsNotReadInstead(t *testing.T) {
	c := randomContent(4, true, 30, 100)
	dsn := c.database(t)
	server := postgresServer.Server(t)
	server.Exec(t, dsn, `CREATE SCHEMA "New site"`)
	s := openPostgreSQL(t, dsn+` options='-c search_path="New\\ site",public'`)
	for range 2 {
		if _, err := s.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
			t.Fatal(err)
		}
		server.Exec(t, dsn, `CREATE TABLE IF NOT EXISTS "New site".object_state (zoid bigint PRIMARY KEY, tid bigint, state jsonb)`)
		st := newState()
		err := s.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: 64 << 10, Budget: newFreeBudget()}, func(c *source.Chunk) error {
			st.take(t, s, c, false)
			c.Release()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		st.check(t, c.want(true))
	}
	_, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: dsn + ` options='-c search_path="New\\ site"'`}})
	if err == nil || !strings.Contains(err.Error(), "is a database of zodb-pgjsonb") {
		t.Errorf("a destination as the source: %v", err)
	}
}

func TestRowsThatAPolicyHidesAreNotLeftOut(t *testing.T) {
	c := randomContent(5, false, 5, 50)
	dsn := c.database(t)
	server := postgresServer.Server(t)
	server.NewRole(t, "half_blind", "half_blind-password")
	server.Exec(t, dsn, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO half_blind; ALTER TABLE object_state ENABLE ROW LEVEL SECURITY;
		CREATE POLICY even ON object_state FOR SELECT TO half_blind USING (zoid % 2 = 0)`)
	s, err := Open(t.Context(), Options{PostgreSQL: &PostgreSQL{DSN: strings.Replace(dsn, "user=postgres", "user=half_blind", 1)}})
	if err == nil {
		defer s.Close()
		_, err = s.Scan(t.Context(), source.ScanOptions{})
	}
	if err == nil || !strings.Contains(err.Error(), "does not see all rows") {
		t.Errorf("a table of which a policy hides rows: %v", err)
	}
}
