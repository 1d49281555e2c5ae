// Package relstorage reads databases that RelStorage keeps in PostgreSQL, MySQL,
// MariaDB or SQLite.
//
// # Format
//
// oid and tid are signed 64-bit integers, the big-endian value of their bytes.
// The state of a record is what ZODB gave to the storage: its pickles, as they
// are. A database without history has one table for them,
//
//	object_state (zoid, tid, state)           one row an object
//
// one that keeps history has three:
//
//	transaction (tid, username, description, extension)
//	object_state (zoid, tid, state)           one row a revision
//	current_object (zoid, tid)                which revision is the current one
//
// and both may have blob_chunk (zoid, tid, chunk_num, chunk). The tables tell
// which of the two it is. Everything else (packed, empty or is_empty, state_size,
// md5, prev_tid, the tables of packs, views and functions) differs between
// releases since 1.5 and is not used. The row of transaction with tid 0 is none. A
// state that is NULL or empty is a deletion: of the object, or of its creation by
// an undo. Without history a transaction is known only by the tid of the rows that
// it left: it has no user, description or extension.
//
// # View
//
// A Scan takes a view: connections that all see one state of the database. How
// that is done is each engine's business; there may be fewer connections than were
// asked for, down to one. Read, Transactions, Differences and Blob look at this
// state, whatever is committed or packed meanwhile. It ends with Idle, Close, the
// next Scan, and with the loss of any of its connections.
//
// Nothing is written, no schema is migrated, no lock lasts. No setting of a
// session is relied on, so that a pooler may stand between.
//
// # Chunks
//
// Scan goes through the keys and sizes of all rows once, in reading order, and
// notes a place to cut about every quarter of a megabyte; so the memory that a
// chunk takes is known before it is read. Reading order and ranges:
//
//   - Without history in the destination, transactions come first, in ranges
//     0/TID, then the current revisions, chosen on the server, in ranges 1/ZOID.
//   - With it, all revisions come by tid and zoid, in ranges TID/ZOID. The header of
//     a transaction stands at TID/-1, in the chunk that holds its first row.
//
// A range means the same in every view; what is in it may differ. A load that goes
// on in a newer view reads only rows up to the tid that was the highest in the
// first one.
//
// # Memory
//
// The table of places takes 40 bytes for each quarter of a megabyte. A chunk takes
// its bytes, RecordCost for each row and DecodeFactor times its largest record,
// four times that where records are compressed, from the Budget before it is read.
package relstorage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/zodb-convert/zodb-convert/source"
)

// Kind is the Identity.Kind of this source.
const Kind = "relstorage"

// Options say which database to read, and how. Exactly one of PostgreSQL, MySQL
// and SQLite is set.
type Options struct {
	PostgreSQL *PostgreSQL
	MySQL      *MySQL
	SQLite     *SQLite

	// KeepHistory is what the configuration says, nil if it does not: one that
	// contradicts the schema is refused.
	KeepHistory *bool
	// BlobDir is the blob directory, "" if none is named. SharedBlobDir tells that
	// it holds the only copy of the blobs, nil if the configuration does not.
	BlobDir       string
	SharedBlobDir *bool
	// Replicas are addresses to read from instead of the one in the DSN, HOST or
	// HOST:PORT, tried in this order; from ro-replica-conf or replica-conf.
	Replicas []string
	// Connections is how many of them read at a time, at least 1; a few more are
	// used for blobs.
	Connections int
	// Note is told of what is waited for, if it is not nil.
	Note func(text string)
}

// PostgreSQL is a database of a PostgreSQL server.
type PostgreSQL struct {
	// DSN is keyword=value or a URL, as libpq takes it; what it does not say comes
	// from the environment (PGHOST, ~/.pgpass, ...).
	DSN string
}

// MySQL is a database of a MySQL or MariaDB server, named as RelStorage does.
type MySQL struct {
	Host       string
	Port       int
	UnixSocket string
	User       string
	Password   string
	Database   string
	// DefaultFile and DefaultGroup are a my.cnf and the section to read in it.
	DefaultFile, DefaultGroup string
	ConnectTimeout            int // seconds
	Compress                  bool
}

// SQLite is the directory that holds main.sqlite3.
type SQLite struct {
	DataDir string
}

// Source is an open RelStorage. It implements source.Table.
type Source struct {
	opts    Options
	engine  engine
	history bool   // the schema keeps history
	tables  tables // what the schema has
	notes   []string

	mu   sync.Mutex // guards view
	view *view      // nil before Scan and after Idle

	scan *scan // of the last Scan; nil before it

	blobs blobs

	segments  sync.Pool // *segment
	inflaters sync.Pool // *zrecord.Inflater
}

// Open connects to the database and looks at its schema. Nothing is written.
func Open(ctx context.Context, opts Options) (*Source, error) {
	opts.Connections = max(opts.Connections, 1)
	if opts.BlobDir != "" {
		if abs, err := filepath.Abs(opts.BlobDir); err == nil {
			opts.BlobDir = abs
		}
	}
	e, err := newEngine(&opts)
	if err != nil {
		return nil, err
	}
	s := &Source{opts: opts, engine: e}
	if err := s.look(ctx); err != nil {
		e.close()
		return nil, err
	}
	return s, nil
}

func newEngine(opts *Options) (engine, error) {
	switch {
	case opts.PostgreSQL != nil && opts.MySQL == nil && opts.SQLite == nil:
		return newPostgreSQL(opts)
	case opts.MySQL != nil && opts.PostgreSQL == nil && opts.SQLite == nil:
		return newMySQL(opts)
	case opts.SQLite != nil && opts.PostgreSQL == nil && opts.MySQL == nil:
		return newSQLite(opts)
	}
	return nil, errors.New("relstorage: Options need exactly one of PostgreSQL, MySQL and SQLite")
}

// look checks the schema, in a view of its own, which ends at once: a table that
// has been looked at cannot be truncated while the view lasts, and a pack truncates
// those that it works with.
func (s *Source) look(ctx context.Context) error {
	v, err := s.newView(ctx, 1)
	if err != nil {
		return err
	}
	defer v.close()
	return v.do(ctx, func(c conn) error {
		if err := s.checkSchema(ctx, c); err != nil {
			return err
		}
		s.notes = nil
		if !s.has("pack_object") {
			return nil
		}
		var packing bool
		err := c.query(ctx, "SELECT 1 FROM pack_object LIMIT 1", func(row) error {
			packing = true
			return nil
		})
		if packing {
			s.notes = append(s.notes, s.engine.name()+": it is being packed, or a pack was interrupted or only prepared; what the pack removes later is not removed from what is converted now, but by --incremental")
		}
		// Nothing else needs that table, which a role may lack the right to read.
		return ctxOr(ctx, err, nil)
	})
}

// ctxOr gives the error of the context if err is one that it caused, else other.
func ctxOr(ctx context.Context, err, other error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return other
}

// Idle lets go of the view.
func (s *Source) Idle() {
	s.mu.Lock()
	v := s.view
	s.view = nil
	s.mu.Unlock()
	if v != nil {
		v.close()
	}
}

// Close ends all connections.
func (s *Source) Close() error {
	s.Idle()
	return s.engine.close()
}

// errNotScanned is a mistake of the caller.
var errNotScanned = errors.New("relstorage: Scan must succeed before the database is read, and Idle ends that")

// scanned gives the view of the last Scan.
func (s *Source) scanned() (*view, *scan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view == nil || s.scan == nil {
		return nil, nil, errNotScanned
	}
	return s.view, s.scan, nil
}

// borrow calls fn with a connection of the view, or of a view of its own where
// none is open.
func (s *Source) borrow(ctx context.Context, fn func(conn) error) error {
	s.mu.Lock()
	v := s.view
	s.mu.Unlock()
	if v == nil {
		own, err := s.newView(ctx, 1)
		if err != nil {
			return err
		}
		defer own.close()
		v = own
	}
	return v.do(ctx, fn)
}

// failed says what could not be done.
func (s *Source) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, s.engine.plain(err))
}

var _ source.Table = (*Source)(nil)
