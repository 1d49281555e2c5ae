package relstorage

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/go-sql-driver/mysql"
)

// mysqlEngine is a database of a MySQL or MariaDB server.
type mysqlEngine struct {
	servers []*mysql.Config // tried in this order
	tries   int             // how many times snapshots are taken without a lock
	listed  bool            // they come from a list of replicas

	mu    sync.Mutex
	used  *mysql.Config // the server that answered last
	maria bool          // it is MariaDB
}

var _ engine = (*mysqlEngine)(nil)

func newMySQL(opts *Options) (engine, error) {
	configs, err := mysqlConfigs(*opts.MySQL, opts.Replicas)
	if err != nil {
		return nil, fmt.Errorf("the source: %w", err)
	}
	return &mysqlEngine{servers: configs, tries: snapshotTries, used: configs[0], listed: len(opts.Replicas) > 0}, nil
}

func (e *mysqlEngine) server() (config *mysql.Config, maria bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.used, e.maria
}

func (e *mysqlEngine) name() string {
	c, maria := e.server()
	kind := "MySQL"
	if maria {
		kind = "MariaDB"
	}
	return fmt.Sprintf("RelStorage in %s database %q on %s", kind, c.DBName, c.Addr)
}

func (e *mysqlEngine) close() error { return nil }

// identity implements engine. MySQL makes a name for each server when it is
// installed. MariaDB has none in most releases; where it runs and where its files
// are stands for it.
func (e *mysqlEngine) identity(ctx context.Context, c conn) (string, error) {
	q := "SELECT @@server_uuid, DATABASE(), @@lower_case_table_names"
	if _, maria := e.server(); maria {
		q = "SELECT CONCAT_WS(' ', @@hostname, @@port, @@server_id, @@datadir), DATABASE(), @@lower_case_table_names"
	}
	var id string
	err := c.query(ctx, q, func(r row) error {
		database := string(r.bytes(1))
		if folds, err := r.int(2); err != nil {
			return err
		} else if folds != 0 {
			database = strings.ToLower(database)
		}
		id = string(r.bytes(0)) + " " + database
		return nil
	})
	return id, err
}

// behind implements engine. Whether a server copies another one, and how far it is,
// only few roles may ask.
func (e *mysqlEngine) behind(context.Context, conn) (string, error) {
	if !e.listed {
		return "", nil
	}
	return e.name() + " is read because a list of replicas names it: if it copies another server, what that has committed since is not converted; read that one at the end, when the site is stopped", nil
}

var mysqlDialect = dialect{
	transaction: "`transaction`",
	// InnoDB keeps a long value outside of its row and reads it to tell its length.
	size: func(column string) string { return "LENGTH(" + column + ")" },
	contains: func(column string, part []byte) string {
		return fmt.Sprintf("LOCATE(x'%x', %s) > 0", part, column)
	},
	tables: `SELECT table_name, column_name, data_type FROM information_schema.columns
		WHERE table_schema = DATABASE() AND table_name IN ('transaction', 'object_state', 'current_object', 'blob_chunk', 'pack_object')
		ORDER BY table_name, ordinal_position`,
}

func (e *mysqlEngine) dialect() *dialect { return &mysqlDialect }

// mysqlDriverConn is what a connection of the driver can do.
type mysqlDriverConn interface {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.Validator
}

// mysqlConn is a connection. The driver is used without database/sql: its rows
// are read from the net as they are asked for, and bytes are those of its buffer.
type mysqlConn struct {
	engine *mysqlEngine
	dc     mysqlDriverConn

	// Of the row that is read.
	got    []driver.Value
	values [][]byte
	digits []byte
}

func (c *mysqlConn) close() error { return c.dc.Close() }

func (c *mysqlConn) exec(ctx context.Context, q string) error {
	_, err := c.dc.ExecContext(ctx, q, nil)
	return c.gone(err)
}

// query implements conn. Without arguments the driver uses the text protocol.
func (c *mysqlConn) query(ctx context.Context, q string, fn func(row) error) error {
	rows, err := c.dc.QueryContext(ctx, q, nil)
	if err != nil {
		return c.gone(err)
	}
	err = c.rows(rows, len(rows.Columns()), fn)
	// What is left is read and forgotten, which keeps the connection.
	if closed := rows.Close(); closed != nil {
		return c.gone(errors.Join(err, closed))
	}
	return c.gone(err)
}

func (c *mysqlConn) rows(rows driver.Rows, columns int, fn func(row) error) error {
	if cap(c.got) < columns {
		c.got, c.values = make([]driver.Value, columns), make([][]byte, columns)
	}
	got, values := c.got[:columns], c.values[:columns]
	for {
		switch err := rows.Next(got); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := c.text(got, values); err != nil {
			return err
		}
		if err := fn(row{values: values}); err != nil {
			return err
		}
	}
}

// text gives numbers, which the driver has read, back as text. (Numbers as binary
// would be mistaken for the text in which the server writes sums.)
func (c *mysqlConn) text(got []driver.Value, values [][]byte) error {
	c.digits = c.digits[:0]
	for i, v := range got {
		start := len(c.digits)
		switch v := v.(type) {
		case nil:
			values[i] = nil
			continue
		case []byte:
			if v == nil {
				v = []byte{} // empty, not NULL
			}
			values[i] = v
			continue
		case int64:
			c.digits = strconv.AppendInt(c.digits, v, 10)
		case uint64:
			c.digits = strconv.AppendUint(c.digits, v, 10)
		default:
			return fmt.Errorf("column %d of a result is a %T", i, v)
		}
		// Growing leaves the digits of earlier columns where they are.
		values[i] = c.digits[start:len(c.digits):len(c.digits)]
	}
	return nil
}

// substring is how much of a chunk of a blob is asked for at a time where it is not
// wanted whole. What a function returns must be smaller than max_allowed_packet,
// of which old servers have 1 MiB; it is NULL otherwise.
const substring = 512 << 10

// readBlob implements conn.
func (c *mysqlConn) readBlob(ctx context.Context, b *storedBlob, p []byte, off int64) (n int, err error) {
	for i := range b.chunks {
		chunk := &b.chunks[i]
		if chunk.off+chunk.size <= off || chunk.size == 0 {
			continue
		}
		for n < len(p) && off+int64(n) < chunk.off+chunk.size {
			got, err := c.readChunk(ctx, b, chunk, p[n:], off+int64(n)-chunk.off)
			n += got
			if err != nil {
				return n, err
			}
		}
		if n == len(p) {
			break
		}
	}
	return n, nil
}

// readChunk reads bytes of one chunk, at least one.
func (c *mysqlConn) readChunk(ctx context.Context, b *storedBlob, chunk *blobChunk, p []byte, at int64) (n int, err error) {
	want := min(chunk.size-at, int64(len(p)))
	what := "chunk"
	if want < chunk.size {
		want = min(want, substring)
		what = fmt.Sprintf("SUBSTRING(chunk, %d, %d)", at+1, want)
	}
	found := false
	err = c.query(ctx, fmt.Sprintf("SELECT %s FROM blob_chunk WHERE zoid = %d AND tid = %d AND chunk_num = %d", what, b.zoid, b.tid, chunk.num), func(r row) error {
		found = true
		if got := int64(len(r.bytes(0))); got != want {
			return fmt.Errorf("chunk %d of the blob has other bytes than its size tells: %d instead of %d at %d", chunk.num, got, want, at)
		}
		n = copy(p, r.bytes(0))
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("chunk %d of the blob is not there", chunk.num)
	}
	return n, err
}
