package relstorage

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"

	"modernc.org/libc"
	sqlite "modernc.org/sqlite/lib"
)

// SQLite's own interface is used, not the driver for database/sql: it shows bytes
// where they are, reads a blob of any size in pieces, and lets connections share
// a snapshot. Everything that it keeps lies outside of Go's memory.

// library is one connection to a file. Only interrupt may be called by others
// while it works.
type library struct {
	tls   *libc.TLS
	db    uintptr
	main  uintptr // the name of the schema of the file
	out   uintptr // room for one pointer that a function gives back
	piece uintptr // room for pieceSize bytes of a blob

	blob      uintptr // the blob that is open, or 0
	blobRowID int64

	mu      sync.Mutex
	running bool // interrupt may stop it
	closed  bool
}

const (
	pointerSize = bits.UintSize / 8
	pieceSize   = 256 << 10
	busyWait    = 10_000 // milliseconds
)

// sqliteError is an error of SQLite.
type sqliteError struct {
	code    int32 // extended
	message string
}

func (e *sqliteError) Error() string { return fmt.Sprintf("%s (SQLite error %d)", e.message, e.code) }

// openLibrary opens a file that exists, to read it.
func openLibrary(path string) (*library, error) {
	l := &library{tls: libc.NewTLS()}
	l.out = libc.Xcalloc(l.tls, 1, pointerSize)
	l.piece = libc.Xmalloc(l.tls, pieceSize)
	l.main, _ = libc.CString("main")
	name, err := libc.CString(path)
	if err != nil || l.main == 0 || l.out == 0 || l.piece == 0 {
		l.close()
		return nil, errNoMemory
	}
	defer libc.Xfree(l.tls, name)
	// One goroutine at a time uses a connection, so it needs no lock of its own.
	code := sqlite.Xsqlite3_open_v2(l.tls, name, l.out, sqlite.SQLITE_OPEN_READONLY|sqlite.SQLITE_OPEN_NOMUTEX, 0)
	l.db = l.given()
	if code != sqlite.SQLITE_OK {
		err := l.problem(code)
		l.close()
		return nil, err
	}
	sqlite.Xsqlite3_extended_result_codes(l.tls, l.db, 1)
	sqlite.Xsqlite3_busy_timeout(l.tls, l.db, busyWait)
	return l, nil
}

var errNoMemory = &sqliteError{sqlite.SQLITE_NOMEM, "out of memory"}

// given is the pointer that a function has given back.
func (l *library) given() uintptr {
	b := libc.GoBytes(l.out, pointerSize)
	if pointerSize == 4 {
		return uintptr(binary.NativeEndian.Uint32(b))
	}
	return uintptr(binary.NativeEndian.Uint64(b))
}

func (l *library) problem(code int32) error {
	if code == sqlite.SQLITE_OK || code == sqlite.SQLITE_ROW || code == sqlite.SQLITE_DONE {
		return nil
	}
	e := &sqliteError{code: code, message: libc.GoString(sqlite.Xsqlite3_errstr(l.tls, code))}
	if l.db != 0 {
		if extended := sqlite.Xsqlite3_extended_errcode(l.tls, l.db); extended&0xff == code&0xff {
			e.code, e.message = extended, libc.GoString(sqlite.Xsqlite3_errmsg(l.tls, l.db))
		}
	}
	return e
}

// close also closes what is open within. What comes after it is refused: it would
// reach into memory that is no longer there.
func (l *library) close() {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return
	}
	l.closeBlob()
	if l.db != 0 {
		sqlite.Xsqlite3_close_v2(l.tls, l.db)
	}
	for _, p := range []uintptr{l.main, l.out, l.piece} {
		if p != 0 {
			libc.Xfree(l.tls, p)
		}
	}
	l.tls.Close()
}

// watched calls fn, which a cancelled context stops.
func (l *library) watched(ctx context.Context, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	l.running = !l.closed
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return errClosed
	}
	stop := context.AfterFunc(ctx, l.interrupt)
	err := fn()
	stop()
	l.mu.Lock()
	l.running = false
	l.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

var errClosed = &sqliteError{sqlite.SQLITE_MISUSE, "the connection is closed"}

func (l *library) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		// What the connection uses is not for two at a time.
		tls := libc.NewTLS()
		defer tls.Close()
		sqlite.Xsqlite3_interrupt(tls, l.db)
	}
}

// inTransaction tells whether the connection still sees its view: some errors end
// a transaction.
func (l *library) inTransaction() bool {
	return !l.closed && sqlite.Xsqlite3_get_autocommit(l.tls, l.db) == 0
}

// exec runs a statement and forgets its rows.
func (l *library) exec(q string) error {
	return l.rows(q, func(uintptr, int) error { return nil })
}

// rows runs a statement and calls fn for each row.
func (l *library) rows(q string, fn func(stmt uintptr, columns int) error) error {
	text, err := libc.CString(q)
	if err != nil {
		return errNoMemory
	}
	defer libc.Xfree(l.tls, text)
	if err := l.problem(sqlite.Xsqlite3_prepare_v2(l.tls, l.db, text, -1, l.out, 0)); err != nil {
		return err
	}
	stmt := l.given()
	defer sqlite.Xsqlite3_finalize(l.tls, stmt)
	columns := int(sqlite.Xsqlite3_column_count(l.tls, stmt))
	for {
		switch code := sqlite.Xsqlite3_step(l.tls, stmt); code {
		case sqlite.SQLITE_ROW:
			if err := fn(stmt, columns); err != nil {
				return err
			}
		case sqlite.SQLITE_DONE:
			return nil
		default:
			return l.problem(code)
		}
	}
}

// text gives the one text of a query.
func (l *library) text(q string) (s string, err error) {
	err = l.rows(q, func(stmt uintptr, _ int) error {
		s = string(l.bytes(stmt, 0))
		return nil
	})
	return s, err
}

// bytes are those of a column, of which nothing is copied: they are valid until
// the next step.
func (l *library) bytes(stmt uintptr, i int) []byte {
	p := sqlite.Xsqlite3_column_blob(l.tls, stmt, int32(i))
	n := sqlite.Xsqlite3_column_bytes(l.tls, stmt, int32(i))
	if p == 0 || n == 0 {
		return []byte{} // empty, not NULL
	}
	return libc.GoBytes(p, int(n))
}

// values gives a row. numbers is room for eight bytes a column.
func (l *library) values(stmt uintptr, values [][]byte, numbers []byte) error {
	for i := range values {
		switch kind := sqlite.Xsqlite3_column_type(l.tls, stmt, int32(i)); kind {
		case sqlite.SQLITE_NULL:
			values[i] = nil
		case sqlite.SQLITE_INTEGER:
			values[i] = numbers[8*i : 8*i+8 : 8*i+8]
			binary.BigEndian.PutUint64(values[i], uint64(sqlite.Xsqlite3_column_int64(l.tls, stmt, int32(i))))
		case sqlite.SQLITE_BLOB, sqlite.SQLITE_TEXT:
			values[i] = l.bytes(stmt, i)
			if values[i] == nil {
				return errNoMemory
			}
		default:
			return fmt.Errorf("column %d of a result is a fraction", i)
		}
	}
	return nil
}

// snapshot takes hold of what the transaction of this connection sees. 0 stands
// for the state before anything was written to the log beside the file: then the
// file alone holds the state, and it cannot change while this transaction reads
// it.
func (l *library) snapshot() (uintptr, error) {
	code := sqlite.Xsqlite3_snapshot_get(l.tls, l.db, l.main, l.out)
	switch code {
	case sqlite.SQLITE_OK:
		return l.given(), nil
	case sqlite.SQLITE_ERROR:
		return 0, nil
	}
	return 0, l.problem(code)
}

func (l *library) forget(snapshot uintptr) { sqlite.Xsqlite3_snapshot_free(l.tls, snapshot) }

// openSnapshot makes the transaction that has just begun see a snapshot.
func (l *library) openSnapshot(snapshot uintptr) error {
	return l.problem(sqlite.Xsqlite3_snapshot_open(l.tls, l.db, l.main, snapshot))
}

// openBlob opens the bytes of one row of blob_chunk, unless they are open.
func (l *library) openBlob(rowID int64) error {
	if l.blob != 0 && l.blobRowID == rowID {
		return nil
	}
	l.closeBlob()
	var names [2]uintptr
	for i, s := range []string{"blob_chunk", "chunk"} {
		name, err := libc.CString(s)
		if err != nil {
			return errNoMemory
		}
		defer libc.Xfree(l.tls, name)
		names[i] = name
	}
	if err := l.problem(sqlite.Xsqlite3_blob_open(l.tls, l.db, l.main, names[0], names[1], rowID, 0, l.out)); err != nil {
		return err
	}
	l.blob, l.blobRowID = l.given(), rowID
	return nil
}

func (l *library) closeBlob() {
	if l.blob != 0 {
		sqlite.Xsqlite3_blob_close(l.tls, l.blob)
		l.blob = 0
	}
}

func (l *library) blobSize() int64 { return int64(sqlite.Xsqlite3_blob_bytes(l.tls, l.blob)) }

// readBlob fills p from an offset of the open blob on.
func (l *library) readBlob(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), pieceSize)
		if err := l.problem(sqlite.Xsqlite3_blob_read(l.tls, l.blob, l.piece, int32(n), int32(off))); err != nil {
			return err
		}
		copy(p, libc.GoBytes(l.piece, n))
		p, off = p[n:], off+int64(n)
	}
	return nil
}
