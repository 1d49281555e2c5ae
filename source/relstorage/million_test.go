package relstorage

import (
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// A transaction of very many rows spans chunks, and is not gone through again for
// each of them.
func TestTransactionOfManyRows(t *testing.T) {
	const rows = 150_000
	server := postgresServer.Server(t)
	dsn := server.NewDatabase(t)
	// Foreign keys are not checked, which takes most of the time.
	server.Exec(t, dsn, "SET session_replication_role = replica;"+postgresHistory+`
		INSERT INTO transaction (tid, username, description) VALUES (10, 'u', 'd'), (11, 'u', 'd'), (12, 'u', 'd');
		INSERT INTO object_state (zoid, tid, state) SELECT n, 11, decode(md5(n::text), 'hex') FROM generate_series(1, 150000) n;
		INSERT INTO object_state (zoid, tid, state) VALUES (0, 10, 'root'), (5, 12, 'later');
		INSERT INTO current_object SELECT zoid, max(tid) FROM object_state GROUP BY zoid;
		ANALYZE`)
	s := openPostgreSQL(t, dsn)
	for _, history := range []bool{true, false} {
		began := time.Now()
		info, err := s.Scan(t.Context(), source.ScanOptions{History: history})
		if err != nil {
			t.Fatal(err)
		}
		scanned := time.Since(began)
		began = time.Now()
		var records, chunks, transactions, largest int64
		last := [2]uint64{}
		err = s.Read(t.Context(), source.ReadOptions{History: history, ChunkBytes: 1 << 20, Budget: newFreeBudget()}, func(c *source.Chunk) error {
			chunks++
			records += int64(len(c.Records))
			transactions += int64(len(c.Transactions))
			largest = max(largest, c.Bytes)
			for i := range c.Records {
				r := &c.Records[i]
				at := [2]uint64{0, uint64(r.OID)}
				if history {
					at[0] = uint64(r.TID)
				}
				if i+int(chunks) > 2 && (at[0] < last[0] || at[0] == last[0] && at[1] <= last[1]) {
					t.Errorf("%v comes after %v", at, last)
				}
				last = at
			}
			c.Release()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := int64(rows + 1)
		if history {
			want++
		}
		if records != want || info.Records != want || transactions != 3 || chunks < 7 || largest > 1<<20 || info.MaxOID != zodb.OID(rows) {
			t.Errorf("history %t: %d of %d records (%d scanned), %d transactions in %d chunks of up to %d bytes", history, records, want, info.Records, transactions, chunks, largest)
		}
		t.Logf("history %t: scanned in %v, read in %v, %d chunks", history, scanned, time.Since(began), chunks)
	}
}
