package relstorage

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
)

// engine is the database server, or file, in which RelStorage keeps its tables.
// There is one for each kind, in the file of its name.
type engine interface {
	// view opens up to n connections that all see the same state of the database,
	// the newest one, and no other whatever is committed, packed or dropped
	// meanwhile. Fewer than n, but at least one, if the server has no more; note
	// tells then why in one sentence.
	view(ctx context.Context, n int) (conns []conn, note string, err error)

	// identity names the database on its server, whatever name it is reached by:
	// a dump that is restored elsewhere is another database.
	identity(ctx context.Context, c conn) (string, error)

	// behind warns of a server that may not have got yet what was committed last; it
	// gives a sentence, or "".
	behind(ctx context.Context, c conn) (warning string, err error)

	// dialect is how its SQL differs from the others'.
	dialect() *dialect

	// name is for messages; it holds no secret.
	name() string

	// plain makes an error of the server a sentence: what could not be done, why,
	// and what to do. lost tells that the connection is gone, and its view with it.
	plain(err error) error
	lost(err error) bool

	close() error
}

// conn is one connection of a view. It is used by one goroutine at a time.
type conn interface {
	// query calls fn for each row. The values of a row are valid during the call
	// only. All numbers are written into the text of q.
	query(ctx context.Context, q string, fn func(row) error) error

	// readBlob reads bytes of a blob in the database from an offset on, fewer than
	// len(p) only at its end. The chunks of the blob are rows of blob_chunk; see
	// blobChunks.
	readBlob(ctx context.Context, b *storedBlob, p []byte, off int64) (n int, err error)

	// close ends the connection, at once. It may be called again.
	close() error
}

// row is one row of a result. Engines give integers as text or as binary,
// big-endian, two's complement; bytes are bytes.
type row struct {
	values [][]byte // nil is NULL
	binary bool
}

// int is column i as a number; NULL is 0.
func (r row) int(i int) (int64, error) {
	v := r.values[i]
	if v == nil {
		return 0, nil
	}
	if !r.binary {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("column %d of a result is %.40q, not a number", i, v)
		}
		return n, nil
	}
	switch len(v) {
	case 1:
		return int64(int8(v[0])), nil
	case 2:
		return int64(int16(binary.BigEndian.Uint16(v))), nil
	case 4:
		return int64(int32(binary.BigEndian.Uint32(v))), nil
	case 8:
		return int64(binary.BigEndian.Uint64(v)), nil
	}
	return 0, fmt.Errorf("column %d of a result has %d bytes, which is no number", i, len(v))
}

// bytes is column i; NULL is nil. It is valid until the next row.
func (r row) bytes(i int) []byte { return r.values[i] }

// dialect is what differs in the SQL of the engines.
type dialect struct {
	// transaction is the quoted name of that table.
	transaction string
	// size gives the expression for the size of the bytes in a column, without
	// reading them where the engine can do that. 0 or NULL for NULL.
	size func(column string) string
	// contains gives the expression that tells whether a column of bytes contains
	// some.
	contains func(column string, part []byte) string
	// largeObject gives the expressions for the large object that a column names, as
	// a number, and for its size, noObject or noRight. trusted: the server lets the
	// role read it although it may not look so. nil where there are no such objects.
	largeObject func(column string, trusted bool) (object, size string)
	// tables is a query for the names of the tables and their columns that the
	// connection sees when it uses unqualified names: table, column, type.
	tables string
}

// storedBlob is a blob whose bytes are in the database.
type storedBlob struct {
	zoid, tid int64
	size      int64
	chunks    []blobChunk
}

// blobChunk is one row of blob_chunk: the bytes from off on.
type blobChunk struct {
	num       int64
	off, size int64
	// object is the large object that holds them; PostgreSQL only.
	object int64
}
