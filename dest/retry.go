package dest

import (
	"context"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// RetryPlan is what is retried: records that an earlier version rejected.
type RetryPlan struct {
	// Records calls fn for each of them, in any order. What it gets is valid until
	// the call returns. A revision comes once.
	Records func(ctx context.Context, fn func(*Reject) error) error
	// Blobs are those that were missing. Nothing brings their bytes; some may be
	// there by now.
	Blobs []Blob
	// Show is how many of those that are not written the result lists, 0 for all.
	Show int
	// Connected allows other sessions, among them a running site.
	Connected bool
}

// Blob names the blob of a revision.
type Blob struct {
	OID zodb.OID
	TID zodb.TID
}

// RetryResult is what became of the records. Each is in exactly one place.
type RetryResult struct {
	// Written are in the destination now, There were before.
	Written int64
	There   int64
	// Superseded have a newer row or tombstone of the same oid, or a newer record;
	// for SupersededByListed it is one of the list. Outdated are the first of them.
	Superseded, SupersededByListed int64
	Outdated                       []Outdated
	// Rejected cannot be stored by this version either, or have no transaction any
	// more that they could belong to. Rejects are the first of them, without Data.
	Rejected int64
	Rejects  []Reject
	// BlobsThere counts those of Blobs that the destination has.
	BlobsThere int64
	// Forms counts special forms by kind of what was written, NewCodec the records
	// that only zodb-json-codec >= 1.7.0 reads.
	Forms    map[string]int64
	NewCodec int64
	// Unreferenced counts current objects among the written ones to which nothing
	// refers: the next pack removes them.
	Unreferenced int64
	// Dangling counts the oids to which they, and those that were there, refer and
	// which are not there.
	Dangling int64
	// Sessions are those that were connected at any time, a phrase each.
	Sessions []string
	// PackBegan tells that the database was being packed just after the records
	// were committed: the pack may not know of them.
	PackBegan bool
	// Unwatched says why that could not be looked up.
	Unwatched string
}

// UncertainError is a retry that ended between COMMIT and its answer: either all
// records were written or none. To retry them once more tells which.
type UncertainError struct{ Err error }

func (e *UncertainError) Error() string {
	return e.Err.Error() + "; either all records were written or none: the same command tells, and goes on"
}

func (e *UncertainError) Unwrap() error { return e.Err }

// Outdated is a record that is not written because the destination has something
// newer, or the list.
type Outdated struct {
	OID   zodb.OID
	TID   zodb.TID // of the record
	Newer zodb.TID
	// Listed tells that the newer revision is one of the list, which may itself be
	// one that cannot be stored.
	Listed bool
}
