// Package relstorage reads databases that RelStorage keeps in PostgreSQL, MySQL,
// MariaDB or SQLite.
package relstorage

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
	// Wait is told of what is waited for, if it is not nil.
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
