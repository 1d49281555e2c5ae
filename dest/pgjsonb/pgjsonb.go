// Package pgjsonb writes a ZODB into PostgreSQL the way zodb-pgjsonb keeps one:
// a row per object with its state as JSONB.
//
// # What it guarantees
//
//   - Exactly once. A chunk of the source is one transaction that writes the
//     rows, the rejects and the note that the range is done (package watermark).
//   - The finished schema is the one that zodb-pgjsonb 1.19.0 makes on an empty
//     database, or the one that was there before, byte for byte of pg_dump -s;
//     the first start of the site has nothing to change.
//   - Nothing is altered in silence. A record without a form in JSONB is a
//     reject with its reason; so is one that the server does not take. Where the
//     newest revision of an object is rejected no older one takes its place.
//   - No superuser is needed. What is missing is named before any work.
//
// # How it loads
//
// A fresh database is loaded bare: primary keys, indexes, the foreign key and
// the notify trigger are taken down (of a schema that is absent: are made and
// taken down, so that there is one mechanism), and everything that is needed to
// put them back is in the run's record before the first row is. Rows go through
// binary COPY, encoded while the connection takes them, one record at a time.
// The finishing steps put back what was taken down; each is a transaction that
// is recorded, so that an interrupted run goes on behind the last one.
//
// # Blobs
//
// A record whose class is ZODB.blob.Blob gets its row like any other (its state
// is null) and, in the same transaction, a row of blob_state with the same oid
// and tid: history-free for the newest revision, history-preserving for each.
// Small ones have their bytes in that row, streamed from the file through COPY.
// From Config.BlobThreshold on, if there is a bucket, and above what a site can
// read back from a row, the row names an object in S3 instead. That object is
// there before the chunk commits (dest.Inline), or the transaction also notes
// that it is owed: the uploader of the session pays that meanwhile
// (dest.Background), or somebody else from a list (dest.Deferred).
//
// A blob without its file is noted as missing, in the same transaction, and
// looked for once more when the load ends.
//
// Catching up, where there is no history, removes the rows of blobs that are
// replaced or deleted. Their objects are removed after the commit, by
// SettleBlobs; until then the run keeps their keys. Nothing else is ever removed
// from a bucket.
//
// The tables are
//
//	transaction_log(tid, username, description, extension)
//	object_state(zoid, tid, class_mod, class_name, state, state_size, refs)
//	object_history, the same columns: history-preserving only
//	blob_state, pack_state, pgjsonb_schema_state, sequence zoid_seq
//
// History-free, object_state holds the newest revision of each object.
// History-preserving, older ones are in object_history, and a deletion is a row
// there without state and class, which readers take for "no such object". A
// rejected revision gets such a row, too: readers of a moment after it would
// otherwise be given the revision before.
package pgjsonb

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
)

// DefaultBlobThreshold is from which size on zodb-pgjsonb keeps blobs in S3 if
// its configuration does not say.
const DefaultBlobThreshold = 100 << 10

// Config says where to write.
type Config struct {
	// DSN is a connection string as libpq takes it: key=value or URL. What it
	// leaves out comes from PGHOST, PGPASSWORD, ~/.pgpass, service files.
	DSN string
	// HistoryPreserving keeps every revision.
	HistoryPreserving bool
	// S3 is where large blobs go; nil: all of them go to PostgreSQL.
	S3 *s3blob.Store
	// BlobThreshold is from which size on, in bytes; 0: all of them. It has no
	// effect without S3. DefaultBlobThreshold is what zodb-pgjsonb takes.
	BlobThreshold int64
	// Transfers is how many uploads are done at once; 0: as many as there are
	// workers, but at least 8.
	Transfers int
	// Wait is how long to wait for a server that went away; 0 is 30 s.
	Wait time.Duration
	// PreserveSharing keeps mutable parts that one record holds twice one object.
	PreserveSharing bool
	// Note is told, from any goroutine, where this program itself has failed on a
	// record, with the stack: that record is rejected. nil: nobody wants to know.
	Note func(text string)
	// LockTimeout is how long to wait for other sessions that use the tables
	// before the load; 0 is 10 s.
	LockTimeout time.Duration
}

// Destination is a dest.Destination.
type Destination struct {
	config  Config
	connect *connector
	host    string       // of this process
	failed  atomic.Int64 // records that this program has failed on
}

var _ dest.Destination = (*Destination)(nil)

// Open reads the connection string. The server is not asked yet.
func Open(_ context.Context, config Config) (*Destination, error) {
	if config.Wait == 0 {
		config.Wait = 30 * time.Second
	}
	if config.LockTimeout == 0 {
		config.LockTimeout = 10 * time.Second
	}
	c, err := newConnector(config.DSN)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this host: %w", err)
	}
	return &Destination{config: config, connect: c, host: host}, nil
}

// HistoryPreserving tells whether every revision is wanted.
func (d *Destination) HistoryPreserving() bool { return d.config.HistoryPreserving }

// Name names database and server.
func (d *Destination) Name() string { return d.connect.name() }

// Close has nothing to close: connections belong to sessions.
func (d *Destination) Close() error { return nil }

// quote returns a qualified name.
func quote(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// count says "1 object" or "3 objects".
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// sentence turns what a server says, which may have several lines, into one.
func sentence(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
