package relstorage

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// content is what a test database holds: all its revisions, as a database with
// history has them.
type content struct {
	history bool
	txns    []sourcetest.Transaction
}

// firstTID is some day in 2024.
const firstTID = zodb.TID(0x03f6dcd2f1111111)

// randomContent makes transactions of every kind: large, empty, with metadata
// that is no text, with records that are deletions, compressed, or of all sizes.
func randomContent(seed uint64, history bool, transactions, objects int) *content {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := &content{history: history}
	tid := firstTID
	for n := range transactions {
		tid += zodb.TID(1 + rng.Int64N(1<<34))
		txn := sourcetest.Transaction{TID: tid}
		if history {
			txn.User, txn.Description, txn.Extension = metadata(rng), metadata(rng), metadata(rng)
		}
		oids := map[zodb.OID]bool{}
		if n == 0 {
			oids[zodb.Root] = true
		}
		for range rng.IntN(12) * rng.IntN(12) {
			oids[zodb.OID(rng.IntN(objects))*zodb.OID(1+rng.IntN(2)*1000)] = true
		}
		for _, oid := range slices.Sorted(maps.Keys(oids)) { // a map's own order would make the content another each time
			txn.Records = append(txn.Records, sourcetest.Record{OID: oid, Data: pickleLike(rng, oid, tid)})
		}
		c.txns = append(c.txns, txn)
	}
	if !history {
		c.pack()
	}
	return c
}

func metadata(rng *rand.Rand) []byte {
	if rng.IntN(3) == 0 {
		return nil
	}
	b := make([]byte, rng.IntN(60))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// pickleLike is the data of a record, which names it; nil is a deletion.
func pickleLike(rng *rand.Rand, oid zodb.OID, tid zodb.TID) []byte {
	if rng.IntN(15) == 0 && oid != zodb.Root {
		return nil
	}
	n := 16 + rng.IntN(300)
	if rng.IntN(20) == 0 {
		n = rng.IntN(40000)
	}
	b := append([]byte{0x80, 2}, make([]byte, n+16)...)
	binary.BigEndian.PutUint64(b[2:], uint64(oid))
	binary.BigEndian.PutUint64(b[10:], uint64(tid))
	for i := 18; i < len(b); i++ {
		b[i] = byte(rng.Uint32() % 7)
	}
	return b
}

// pack leaves the newest revision of each object, as a database without history
// does, and the transactions that have some.
func (c *content) pack() {
	newest := map[zodb.OID]zodb.TID{}
	for _, txn := range c.txns {
		for _, r := range txn.Records {
			newest[r.OID] = txn.TID
		}
	}
	var out []sourcetest.Transaction
	for _, txn := range c.txns {
		keep := sourcetest.Transaction{TID: txn.TID}
		for _, r := range txn.Records {
			if newest[r.OID] == txn.TID {
				keep.Records = append(keep.Records, r)
			}
		}
		if len(keep.Records) > 0 {
			out = append(out, keep)
		}
	}
	c.txns = out
}

// The tables as RelStorage 3 and 4 make them on PostgreSQL, without what is not
// looked at.
const (
	postgresHistory = `
CREATE TABLE transaction (tid bigint PRIMARY KEY, packed boolean NOT NULL DEFAULT FALSE, is_empty boolean NOT NULL DEFAULT FALSE,
	username bytea NOT NULL, description bytea NOT NULL, extension bytea);
INSERT INTO transaction (tid, username, description) VALUES (0, 'system', 'special transaction for object creation');
CREATE TABLE object_state (zoid bigint NOT NULL, tid bigint NOT NULL REFERENCES transaction CHECK (tid > 0), PRIMARY KEY (zoid, tid),
	prev_tid bigint NOT NULL DEFAULT 0 REFERENCES transaction, md5 char(32), state_size bigint NOT NULL DEFAULT 0, state bytea);
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE current_object (zoid bigint NOT NULL PRIMARY KEY, tid bigint NOT NULL, FOREIGN KEY (zoid, tid) REFERENCES object_state (zoid, tid));
CREATE INDEX current_object_tid ON current_object (tid);
CREATE TABLE blob_chunk (zoid bigint NOT NULL, tid bigint NOT NULL, chunk_num bigint NOT NULL, PRIMARY KEY (zoid, tid, chunk_num), chunk oid NOT NULL);
CREATE TABLE pack_object (zoid bigint NOT NULL PRIMARY KEY, keep boolean NOT NULL, keep_tid bigint NOT NULL);`
	postgresFree = `
CREATE TABLE object_state (zoid bigint NOT NULL PRIMARY KEY, tid bigint NOT NULL CHECK (tid > 0), state_size bigint NOT NULL DEFAULT 0, state bytea);
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE blob_chunk (zoid bigint NOT NULL, chunk_num bigint NOT NULL, PRIMARY KEY (zoid, chunk_num), tid bigint NOT NULL, chunk oid NOT NULL);
CREATE TABLE pack_object (zoid bigint NOT NULL PRIMARY KEY, keep boolean NOT NULL, keep_tid bigint NOT NULL);`
)

func bytea(b []byte) string {
	if b == nil {
		return "NULL"
	}
	return fmt.Sprintf(`'\x%x'`, b)
}

// sql writes transactions into the tables.
func (c *content) sql(txns []sourcetest.Transaction) string {
	var b strings.Builder
	for _, txn := range txns {
		if c.history {
			fmt.Fprintf(&b, "INSERT INTO transaction (tid, username, description, extension) VALUES (%d, %s, %s, %s);\n", txn.TID,
				bytea(append([]byte{}, txn.User...)), bytea(append([]byte{}, txn.Description...)), bytea(txn.Extension))
		}
		for _, r := range txn.Records {
			switch {
			case c.history:
				fmt.Fprintf(&b, "INSERT INTO object_state (zoid, tid, state) VALUES (%d, %d, %s);\n", r.OID, txn.TID, bytea(r.Data))
				fmt.Fprintf(&b, "INSERT INTO current_object VALUES (%d, %d) ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid;\n", r.OID, txn.TID)
			default:
				fmt.Fprintf(&b, "INSERT INTO object_state (zoid, tid, state) VALUES (%d, %d, %s) ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid, state = excluded.state;\n", r.OID, txn.TID, bytea(r.Data))
			}
		}
	}
	return b.String()
}

// database makes a PostgreSQL database of it.
func (c *content) database(t testing.TB) (dsn string) {
	t.Helper()
	server := postgresServer.Server(t)
	dsn = server.NewDatabase(t)
	schema := postgresFree
	if c.history {
		schema = postgresHistory
	}
	server.Exec(t, dsn, schema)
	server.Exec(t, dsn, c.sql(c.txns))
	return dsn
}
