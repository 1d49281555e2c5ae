package pgjsonb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// contentReader looks rows up on a connection of its own.
type contentReader struct {
	c    *content
	conn *pgx.Conn

	oids, tids, numbers []byte // arguments, reused
	row                 dest.Row
	blob                dest.BlobRow
	transaction         dest.TransactionRow
}

// Reader opens a reader.
func (c *content) Reader(ctx context.Context) (dest.ContentReader, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers == 0 {
		return nil, errors.New("pgjsonb: more readers than were asked for")
	}
	conn, err := c.dest.connect.open(ctx, "zodb-convert verify")
	if err != nil {
		return nil, c.dest.plain(fullPool(err))
	}
	if err := beginView(ctx, conn, c.snapshot); err != nil {
		closeQuietly(conn)
		return nil, c.fail(ctx, "share the view", err)
	}
	c.readers--
	return &contentReader{c: c, conn: conn}, nil
}

// fullPool gives the answer of a PgBouncer that has no connection left its sentence.
func fullPool(err error) error {
	if code(err) != "08P01" || !strings.Contains(err.Error(), "query_wait_timeout") {
		return err
	}
	return &dest.RefusedError{Reason: "the pooler had no connection left (query_wait_timeout)", Hint: "use a larger pool, or a smaller -w", Cause: err}
}

func (r *contentReader) Close() error {
	closeQuietly(r.conn)
	return nil
}

// null is what a NULL counts as where zodb-pgjsonb has none. No oid, tid or size
// is that.
const null = -1

func bigint(v []byte) int64 {
	if v == nil {
		return null
	}
	return int64(binary.BigEndian.Uint64(v))
}

// beginArray begins a bigint[] in binary.
func beginArray(b []byte, n int) []byte {
	if n == 0 {
		b = appendInt32(b[:0], 0)
		b = appendInt32(b, 0)
		return appendInt32(b, int8OID)
	}
	b = appendInt32(b[:0], 1)
	b = appendInt32(b, 0)
	b = appendInt32(b, int8OID)
	b = appendInt32(b, int32(n))
	return appendInt32(b, 1)
}

var errShape = errors.New("the server has sent a value that is not what was asked for")

// readArray reads a bigint[] of whatever dimensions. NULLs, which no writer makes,
// are read as null.
func readArray(dst []int64, v []byte) ([]int64, error) {
	if v == nil {
		return append(dst, null), nil
	}
	// Behind the number of dimensions, two more words, and two words for each
	// dimension, the elements follow, whatever the dimensions are.
	const words, perDimension = 12, 8
	if len(v) < words {
		return dst, errShape
	}
	dimensions := int64(binary.BigEndian.Uint32(v))
	if int64(len(v)) < words+perDimension*dimensions {
		return dst, errShape
	}
	for v = v[words+perDimension*dimensions:]; len(v) > 0; {
		switch size := word(v); {
		case len(v) < 4 || size >= 0 && (size != 8 || len(v) < 12):
			return dst, errShape
		case size < 0:
			dst, v = append(dst, null), v[4:]
		default:
			dst, v = append(dst, bigint(v[4:12])), v[12:]
		}
	}
	return dst, nil
}

// word is a number of four bytes, null if they are not there.
func word(v []byte) int32 {
	if len(v) < 4 {
		return null
	}
	return int32(binary.BigEndian.Uint32(v))
}

// rows calls fn for each row of an answer. What fn says is kept apart from what
// the server says.
func (c *content) rows(ctx context.Context, what string, rows *pgconn.ResultReader, fn func(values [][]byte) error) error {
	var failed error
	for rows.NextRow() {
		if failed == nil {
			if failed = fn(rows.Values()); failed != nil {
				break
			}
		}
	}
	if failed != nil {
		_, _ = rows.Close() // the answer is given up
		return failed
	}
	if _, err := rows.Close(); err != nil {
		return c.fail(ctx, what, err)
	}
	return nil
}

// look runs a query whose rows begin with the number of the key that they belong
// to.
func (r *contentReader) look(ctx context.Context, what, sql string, args [][]byte, fn func(index int, values [][]byte) error) error {
	formats := make([]int16, len(args))
	for i := range formats {
		formats[i] = 1
	}
	rows := r.conn.PgConn().ExecParams(ctx, sql, args, nil, formats, []int16{1})
	return r.c.rows(ctx, what, rows, func(v [][]byte) error { return fn(int(bigint(v[0])), v[1:]) })
}

// take writes the keys that are wanted into the arguments: their numbers, oids
// and tids.
func (r *contentReader) take(keys []source.Key, want func(source.Key) bool) (n int, args [][]byte) {
	for _, k := range keys {
		if want(k) {
			n++
		}
	}
	r.numbers, r.oids, r.tids = beginArray(r.numbers, n), beginArray(r.oids, n), beginArray(r.tids, n)
	for i, k := range keys {
		if want(k) {
			r.numbers = appendBigint(r.numbers, int64(i))
			r.oids = appendBigint(r.oids, int64(k.OID))
			r.tids = appendBigint(r.tids, int64(k.TID))
		}
	}
	return n, [][]byte{r.numbers, r.oids, r.tids}
}

const rowColumns = "o.zoid, o.tid, o.class_mod, o.class_name, o.state, o.state_size, o.refs"

// Rows implements dest.ContentReader.
func (r *contentReader) Rows(ctx context.Context, keys []source.Key, fn func(int, *dest.Row) error) error {
	c := r.c
	if n, args := r.take(keys, func(k source.Key) bool { return k.Current }); n > 0 {
		sql := `SELECT k.n, ` + rowColumns + ` FROM unnest($1::int8[], $2::int8[], $3::int8[]) k (n, zoid, tid) JOIN ` +
			c.layout.name(objectState) + ` o ON o.zoid = k.zoid`
		if err := r.each(ctx, sql, args, true, fn); err != nil {
			return err
		}
	}
	if !c.HistoryPreserving() {
		return nil
	}
	n, args := r.take(keys, func(source.Key) bool { return true })
	if n == 0 {
		return nil
	}
	sql := `SELECT k.n, ` + rowColumns + ` FROM unnest($1::int8[], $2::int8[], $3::int8[]) k (n, zoid, tid) JOIN ` +
		c.layout.name(objectHistory) + ` o ON o.zoid = k.zoid AND o.tid = k.tid`
	return r.each(ctx, sql, args, false, fn)
}

func (r *contentReader) each(ctx context.Context, sql string, args [][]byte, current bool, fn func(int, *dest.Row) error) error {
	return r.look(ctx, "read the objects", sql, args, func(index int, v [][]byte) (err error) {
		row := &r.row
		row.Key = source.Key{OID: zodb.OID(bigint(v[0])), TID: zodb.TID(bigint(v[1])), Current: current}
		row.Module, row.Name = v[2], v[3]
		switch {
		case v[4] == nil:
			row.State = nil
		case len(v[4]) == 0 || v[4][0] != jsonbVersion:
			return fmt.Errorf("read the objects of %s: %w", r.c.dest.Name(), errShape)
		default:
			row.State = v[4][1:]
		}
		row.Size = int64(word(v[5]))
		if row.Refs, err = readArray(row.Refs[:0], v[6]); err != nil {
			return fmt.Errorf("read the references of object %v of %s: %w", row.Key.OID, r.c.dest.Name(), err)
		}
		return fn(index, row)
	})
}

// Blobs implements dest.ContentReader. The server computes the digests: it has
// the bytes in memory anyway, and they need not come over the line.
func (r *contentReader) Blobs(ctx context.Context, keys []source.Key, fn func(int, *dest.BlobRow) error) error {
	n, args := r.take(keys, func(source.Key) bool { return true })
	if n == 0 {
		return nil
	}
	sql := `SELECT k.n, b.zoid, b.tid, b.blob_size, b.s3_key, octet_length(b.data)::int8, sha256(b.data)
		FROM unnest($1::int8[], $2::int8[], $3::int8[]) k (n, zoid, tid) JOIN ` + r.c.layout.name(blobState) + ` b ON b.zoid = k.zoid AND b.tid = k.tid`
	return r.look(ctx, "read the blobs", sql, args, func(index int, v [][]byte) error {
		b := &r.blob
		*b = dest.BlobRow{Key: source.Key{OID: zodb.OID(bigint(v[0])), TID: zodb.TID(bigint(v[1]))}, Size: bigint(v[2]), S3Key: string(v[3])}
		if v[4] != nil {
			b.InRow, b.Length = true, bigint(v[4])
			copy(b.SHA256[:], v[5])
		}
		return fn(index, b)
	})
}

// Transactions implements dest.ContentReader.
func (r *contentReader) Transactions(ctx context.Context, tids []zodb.TID, fn func(int, *dest.TransactionRow) error) error {
	r.numbers, r.tids = beginArray(r.numbers, len(tids)), beginArray(r.tids, len(tids))
	for i, tid := range tids {
		r.numbers = appendBigint(r.numbers, int64(i))
		r.tids = appendBigint(r.tids, int64(tid))
	}
	sql := `SELECT k.n, t.tid, t.username, t.description, t.extension
		FROM unnest($1::int8[], $2::int8[]) k (n, tid) JOIN ` + r.c.layout.name(transactionLog) + ` t ON t.tid = k.tid`
	return r.look(ctx, "read the transactions", sql, [][]byte{r.numbers, r.tids}, func(index int, v [][]byte) error {
		t := &r.transaction
		*t = dest.TransactionRow{TID: zodb.TID(bigint(v[0])), User: v[1], Description: v[2], Extension: v[3]}
		return fn(index, t)
	})
}
