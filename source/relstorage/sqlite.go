package relstorage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	sqlite "modernc.org/sqlite/lib"
)

// sqliteEngine is the file main.sqlite3 in a directory of RelStorage. The other
// file there, oids.sqlite3, only counts oids.
//
// RelStorage keeps the file in WAL mode: what was committed last stands in a log
// beside it (main.sqlite3-wal), and an index of the log that all processes share
// (-shm) tells each what it sees. A reader needs both; it makes them if they are
// not there, and leaves them. It hinders nobody, but as long as it looks the log
// only grows. The parameter "immutable", which does without them, would read past
// the log and is never used.
type sqliteEngine struct{ path string }

var _ engine = (*sqliteEngine)(nil)

// sqliteFile is the name that RelStorage gives the file.
const sqliteFile = "main.sqlite3"

// newSQLite looks for the file: SQLite would say of any that is missing that it
// cannot be opened.
func newSQLite(opts *Options) (engine, error) {
	dir, err := filepath.Abs(opts.SQLite.DataDir)
	if err != nil {
		return nil, fmt.Errorf("the source: data-dir: %w", err)
	}
	if opts.SQLite.DataDir == "" {
		return nil, errors.New("the source: no data-dir of SQLite is named")
	}
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the source: there is no directory %s; check data-dir in <sqlite3>", dir)
	case err != nil:
		return nil, fmt.Errorf("the source: data-dir: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("the source: data-dir %s is no directory; name the one that holds %s", dir, sqliteFile)
	}
	e := &sqliteEngine{path: filepath.Join(dir, sqliteFile)}
	switch info, err := os.Stat(e.path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the source: the directory %s holds no %s, so no RelStorage; check data-dir in <sqlite3>", dir, sqliteFile)
	case err != nil:
		return nil, fmt.Errorf("the source: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("the source: %s is no file", e.path)
	}
	return e, mayJoin(e.path)
}

func (e *sqliteEngine) name() string { return fmt.Sprintf("RelStorage in SQLite file %s", e.path) }

func (e *sqliteEngine) close() error { return nil }

// identity implements engine: a copy of a file is another file.
func (e *sqliteEngine) identity(context.Context, conn) (string, error) { return fileID(e.path) }

// behind implements engine: there is one file.
func (e *sqliteEngine) behind(context.Context, conn) (string, error) { return "", nil }

var sqliteDialect = dialect{
	transaction: `"transaction"`,
	// SQLite takes the size from the head of the row.
	size: func(column string) string { return "octet_length(" + column + ")" },
	contains: func(column string, part []byte) string {
		return fmt.Sprintf("instr(%s, x'%x') > 0", column, part)
	},
	tables: `SELECT t.name, c.name, c.type FROM sqlite_master t, pragma_table_info(t.name) c
		WHERE t.type IN ('table', 'view') AND t.name IN ('transaction', 'object_state', 'current_object', 'blob_chunk', 'pack_object')
		ORDER BY t.name, c.cid`,
}

func (e *sqliteEngine) dialect() *dialect { return &sqliteDialect }

// shareTries is how many times snapshots are shared anew, which a checkpoint of the
// site can prevent for a moment.
const shareTries = 20

// view implements engine. In WAL mode all connections open the snapshot of the
// first, which no checkpoint overwrites as long as the first looks at it. In the
// other modes nobody can commit while one of them reads.
func (e *sqliteEngine) view(ctx context.Context, n int) ([]conn, string, error) {
	var list []*sqliteConn
	closeList := func() {
		for _, c := range list {
			_ = c.close()
		}
	}
	for range n {
		l, err := openLibrary(e.path)
		if err != nil {
			closeList()
			return nil, "", err
		}
		list = append(list, &sqliteConn{lib: l})
	}
	wal, err := e.share(ctx, list)
	if err != nil {
		closeList()
		return nil, "", err
	}
	conns := make([]conn, n)
	for i, c := range list {
		conns[i] = c
	}
	note := ""
	if !wal {
		note = e.name() + " is not in WAL mode: a site that writes to it waits until this has read all"
	}
	return conns, note, nil
}

// share begins transactions that see the same state.
func (e *sqliteEngine) share(ctx context.Context, list []*sqliteConn) (wal bool, err error) {
	for try := 0; ; try++ {
		wal, err = e.shareOnce(ctx, list)
		var problem *sqliteError
		switch {
		case err == nil || ctx.Err() != nil:
			return wal, err
		case errors.Is(err, errAhead), errors.As(err, &problem) && problem.code&0xff == sqlite.SQLITE_BUSY,
			errors.As(err, &problem) && problem.code == sqlite.SQLITE_ERROR_SNAPSHOT:
			if try == shareTries {
				return false, err
			}
		default:
			return false, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// errAhead: the first connection sees the file alone, and another one sees a
// commit that came after.
var errAhead = errors.New("commits keep several connections from seeing the same state")

func (e *sqliteEngine) shareOnce(ctx context.Context, list []*sqliteConn) (wal bool, err error) {
	leader := list[0].lib
	err = leader.watched(ctx, leader.begin)
	if err != nil {
		return false, err
	}
	mode, err := leader.text("PRAGMA journal_mode")
	if err != nil {
		return false, err
	}
	wal = mode == "wal"
	snapshot := uintptr(0)
	if wal {
		if snapshot, err = leader.snapshot(); err != nil {
			return wal, err
		}
	}
	if snapshot != 0 {
		defer leader.forget(snapshot)
	}
	for _, c := range list[1:] {
		err := c.lib.watched(ctx, func() error {
			if snapshot != 0 {
				return c.lib.beginAt(snapshot)
			}
			return c.lib.begin()
		})
		if err != nil || !wal || snapshot != 0 {
			if err != nil {
				return wal, err
			}
			continue
		}
		own, err := c.lib.snapshot()
		if err != nil {
			return wal, err
		}
		if own != 0 {
			c.lib.forget(own)
			return wal, errAhead
		}
	}
	return wal, nil
}

// lookAtFile is a query that reads the file.
const lookAtFile = "SELECT 1 FROM sqlite_master LIMIT 1"

// begin begins a transaction that sees the newest state.
func (l *library) begin() error {
	if err := l.end(); err != nil {
		return err
	}
	if err := l.exec("BEGIN"); err != nil {
		return err
	}
	return l.exec(lookAtFile)
}

// beginAt begins a transaction that sees a snapshot.
func (l *library) beginAt(snapshot uintptr) error {
	if err := l.end(); err != nil {
		return err
	}
	// A connection knows that there is a log once it has looked at the file.
	if err := l.exec(lookAtFile); err != nil {
		return err
	}
	if err := l.exec("BEGIN"); err != nil {
		return err
	}
	if err := l.openSnapshot(snapshot); err != nil {
		return err
	}
	return l.exec(lookAtFile)
}

func (l *library) end() error {
	if !l.inTransaction() {
		return nil
	}
	return l.exec("ROLLBACK")
}

// sqliteConn is a connection that is in a transaction of its view.
type sqliteConn struct {
	lib *library

	// Of the row that is read.
	got     [][]byte
	numbers []byte

	// The chunk of a blob that was read last, and its row.
	open  openChunk
	rowID int64
}

type openChunk struct{ zoid, tid, num int64 }

func (c *sqliteConn) close() error {
	c.lib.close()
	return nil
}

// query implements conn.
func (c *sqliteConn) query(ctx context.Context, q string, fn func(row) error) error {
	return c.gone(c.lib.watched(ctx, func() error {
		return c.lib.rows(q, func(stmt uintptr, columns int) error {
			if len(c.got) < columns {
				c.got, c.numbers = make([][]byte, columns), make([]byte, 8*columns)
			}
			values := c.got[:columns]
			if err := c.lib.values(stmt, values, c.numbers); err != nil {
				return err
			}
			return fn(row{values: values, binary: true})
		})
	}))
}

// readBlob implements conn. SQLite follows the pages of a value from its start,
// and remembers them as long as the blob is open.
func (c *sqliteConn) readBlob(ctx context.Context, b *storedBlob, p []byte, off int64) (n int, err error) {
	err = c.gone(c.lib.watched(ctx, func() error {
		for _, chunk := range b.chunks {
			at := off + int64(n) - chunk.off
			if at >= chunk.size || n == len(p) {
				continue
			}
			part := p[n:min(len(p), n+int(min(chunk.size-at, int64(len(p)))))]
			if err := c.readChunk(b, &chunk, part, at); err != nil {
				return err
			}
			n += len(part)
		}
		return nil
	}))
	return n, err
}

func (c *sqliteConn) readChunk(b *storedBlob, chunk *blobChunk, p []byte, at int64) error {
	if c.open != (openChunk{b.zoid, b.tid, chunk.num}) {
		found := false
		err := c.lib.rows(fmt.Sprintf("SELECT rowid FROM blob_chunk WHERE zoid = %d AND tid = %d AND chunk_num = %d", b.zoid, b.tid, chunk.num), func(stmt uintptr, _ int) error {
			found = true
			c.rowID = sqlite.Xsqlite3_column_int64(c.lib.tls, stmt, 0)
			return nil
		})
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("chunk %d of the blob is not there", chunk.num)
		}
		c.open = openChunk{b.zoid, b.tid, chunk.num}
	}
	if err := c.lib.openBlob(c.rowID); err != nil {
		return err
	}
	if size := c.lib.blobSize(); size != chunk.size {
		return fmt.Errorf("chunk %d of the blob has %d bytes instead of %d", chunk.num, size, chunk.size)
	}
	return c.lib.readBlob(p, at)
}

// gone marks an error that has ended the transaction.
func (c *sqliteConn) gone(err error) error {
	if err == nil || c.lib.inTransaction() {
		return err
	}
	return &goneError{err}
}

// lost implements engine.
func (e *sqliteEngine) lost(err error) bool {
	var gone *goneError
	return errors.As(err, &gone)
}

// plain implements engine.
func (e *sqliteEngine) plain(err error) error {
	var plain *plainError
	var problem *sqliteError
	switch {
	case err == nil || errors.As(err, &plain) || !errors.As(err, &problem):
		return err
	}
	return &plainError{text: e.name() + ": " + sqliteReason(e.path, problem), err: err}
}

// sqliteReason is the rest of a sentence about an error: what is wrong, and what
// to do.
func sqliteReason(path string, e *sqliteError) string {
	switch e.code & 0xff {
	case sqlite.SQLITE_NOTADB:
		return "it is no database of SQLite, or an encrypted one; check data-dir in <sqlite3>"
	case sqlite.SQLITE_CANTOPEN, sqlite.SQLITE_READONLY:
		return fmt.Sprintf("it cannot be opened by this user (%s): to read it, %s-wal and -shm beside it must be there and readable, or the directory writable; run this as the user of the site, or copy the whole directory to a place that is writable", e.message, sqliteFile)
	case sqlite.SQLITE_PERM, sqlite.SQLITE_AUTH:
		return fmt.Sprintf("it may not be read by this user (%s); run this as the user of the site", e.message)
	case sqlite.SQLITE_BUSY, sqlite.SQLITE_LOCKED:
		return fmt.Sprintf("another process keeps it locked (%s); stop what writes to it, and start again", e.message)
	case sqlite.SQLITE_CORRUPT:
		return fmt.Sprintf("the file is damaged (%s); look at it with PRAGMA integrity_check, and convert a backup, or what .recover of the sqlite3 shell saves", e.message)
	case sqlite.SQLITE_PROTOCOL, sqlite.SQLITE_NOLFS:
		return fmt.Sprintf("its locks do not work where it lies (%s); a file system over a network cannot hold it, so copy the directory to a local one while the site is stopped", e.message)
	case sqlite.SQLITE_IOERR, sqlite.SQLITE_FULL:
		return fmt.Sprintf("the disk fails or is full (%s); look into the log of the system", e.message)
	case sqlite.SQLITE_NOMEM, sqlite.SQLITE_TOOBIG:
		return fmt.Sprintf("there is not enough memory (%s)", e.message)
	case sqlite.SQLITE_SCHEMA:
		return fmt.Sprintf("its tables were changed while it was read (%s); go on with --incremental", e.message)
	}
	return fmt.Sprintf("%s (error %d of SQLite)", e.message, e.code)
}
