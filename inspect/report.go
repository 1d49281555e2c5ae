// Package inspect tells what a source holds and what of it will not arrive
// unchanged, before anything is converted. It writes to neither side.
//
// It knows interfaces only. The source is read as a conversion reads it; each
// record goes through the encoder that a conversion uses, so that what is said of
// rejects and special forms is what the conversion will say.
package inspect

import (
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
)

// Version is that of the Report's JSON: it grows when a member goes or changes
// its meaning, not when one is added.
const Version = 1

// TopClasses is how many classes are listed; the rest is summed.
const TopClasses = 20

// Report is what an inspection found. It is filled as far as the inspection came.
type Report struct {
	Version     int          `json:"version" doc:"of this schema"`
	Source      Source       `json:"source" doc:"what the source holds"`
	Altered     []Finding    `json:"altered" doc:"what will not arrive unchanged, by cause; empty if all will"`
	Notable     []Finding    `json:"notable" doc:"what arrives unchanged and is worth knowing, by cause"`
	Estimate    *Estimate    `json:"estimate" doc:"what a conversion will take; null if the source could not be read to its end"`
	Destination *dest.Survey `json:"destination" doc:"what the destination's server says; null without one"`
	Notes       []string     `json:"notes" doc:"sentences"`
}

// Clean tells whether everything will arrive unchanged.
func (r *Report) Clean() bool { return len(r.Altered) == 0 }

// Source is what a source holds.
type Source struct {
	Name         string    `json:"name" doc:"of the source"`
	Kind         string    `json:"kind" doc:"filestorage or relstorage"`
	Bytes        int64     `json:"bytes" doc:"size of what was read, without blobs"`
	Transactions int64     `json:"transactions" doc:"how many there are"`
	First        string    `json:"first_tid" doc:"of the first transaction"`
	FirstTime    time.Time `json:"first_time" doc:"of the first transaction"`
	Last         string    `json:"last_tid" doc:"of the last transaction"`
	LastTime     time.Time `json:"last_time" doc:"of the last transaction"`
	HighestOID   string    `json:"highest_oid" doc:"of all records"`

	Records     int64 `json:"records" doc:"all revisions, deletions included"`
	Objects     int64 `json:"objects" doc:"distinct oids, deleted ones included"`
	Current     int64 `json:"current" doc:"objects that exist"`
	Deleted     int64 `json:"deleted" doc:"objects that do not exist any more"`
	BackRecords int64 `json:"back_pointers" doc:"records whose data is that of an earlier one (undo)"`
	Compressed  int64 `json:"compressed" doc:"records that are compressed by zlib"`
	MaxRevision int64 `json:"most_revisions" doc:"of one object"`
	// Revisions[i] counts objects that have 2^i revisions or more, and less than
	// 2^(i+1).
	Revisions  []int64 `json:"revisions" doc:"objects by number of revisions: 1, 2-3, 4-7, 8-15, ..."`
	Packed     string  `json:"packed" doc:"yes, no or unknown: whether a pack has gone over it"`
	PackedTIDs int64   `json:"packed_transactions" doc:"transactions that a pack has marked"`

	DataBytes    int64         `json:"data_bytes" doc:"pickles of the records that were decoded, inflated"`
	Classes      []Class       `json:"classes" doc:"current objects by class, the largest sums of bytes first"`
	OtherClasses Class         `json:"other_classes" doc:"the sum of all others"`
	Protocols    []Protocol    `json:"protocols" doc:"records by the protocol of their pickles"`
	Largest      []LargeRecord `json:"largest" doc:"the largest current records"`
	Python2      bool          `json:"python2" doc:"whether Python 2 has written it, as its header or its strings say"`
	OldStrings   int64         `json:"python2_strings" doc:"current records with strings of Python 2"`

	Blobs Blobs `json:"blobs" doc:"its blobs"`

	Tail    string `json:"tail" doc:"what stands behind the last transaction and is left out, empty if nothing"`
	Damage  string `json:"damage" doc:"where the source breaks its own format, empty if it does not"`
	CutOff  bool   `json:"cut_off" doc:"whether that is why nothing behind it was read"`
	Unread  int64  `json:"unreadable_records" doc:"records whose data is damaged: they are left out of all that is said of data"`
	Falling int64  `json:"falling_tids" doc:"transactions whose tid is not above the one before"`

	HistoryFree       Rows `json:"history_free" doc:"what a destination without history will hold"`
	HistoryPreserving Rows `json:"history_preserving" doc:"what a destination with history will hold"`
}

// Class is a class and its current objects.
type Class struct {
	Class   string `json:"class" doc:"module.name, empty in a sum"`
	Objects int64  `json:"objects" doc:"current objects"`
	Bytes   int64  `json:"bytes" doc:"of their pickles"`
	Classes int64  `json:"classes,omitempty" doc:"how many classes, in a sum"`
}

// Protocol is a protocol of pickles.
type Protocol struct {
	Protocol int   `json:"protocol" doc:"0 to 5, that of the state"`
	Records  int64 `json:"records" doc:"current records"`
}

// LargeRecord is a record that is large.
type LargeRecord struct {
	OID   string `json:"oid" doc:"of its object"`
	TID   string `json:"tid" doc:"of its transaction"`
	Class string `json:"class" doc:"module.name, empty if it is not known"`
	Bytes int64  `json:"bytes" doc:"of its pickles"`
}

// Blobs are the blobs of a source.
type Blobs struct {
	Place        string `json:"place" doc:"where they were looked for; empty if the configuration does not say"`
	Records      int64  `json:"records" doc:"records that are blobs, all revisions"`
	Current      int64  `json:"current" doc:"current ones"`
	Found        int64  `json:"found" doc:"blobs that were found"`
	Bytes        int64  `json:"bytes" doc:"of those that were found"`
	CurrentBytes int64  `json:"current_bytes" doc:"of the current ones that were found"`
	Missing      int64  `json:"missing" doc:"records whose blob was not found or cannot be read"`
	Orphaned     int64  `json:"orphaned" doc:"blobs that no record refers to"`
}

// Rows is what a destination will hold.
type Rows struct {
	Transactions int64 `json:"transactions" doc:"rows of transactions"`
	Objects      int64 `json:"objects" doc:"current rows"`
	Revisions    int64 `json:"revisions" doc:"older revisions, deletions among them; 0 without history"`
	Deleted      int64 `json:"deleted" doc:"objects that do not exist any more: no row, or, with history, one that says so"`
	Rejected     int64 `json:"rejected" doc:"records that it cannot hold"`
	Blobs        int64 `json:"blobs" doc:"blobs that were found, in PostgreSQL or in S3"`
	BlobBytes    int64 `json:"blob_bytes" doc:"of these"`
}

// Causes of findings, besides the names of the special forms of package jsonb.
const (
	Rejected        = "rejected"           // the destination cannot hold it
	NewCodec        = "new-codec"          // only a newer reader reads it
	Dangling        = "dangling-reference" // it refers to an object that does not exist
	CrossDatabase   = "cross-database"     // it refers to an object of another database
	WeakDangling    = "dangling-weak-reference"
	Unreachable     = "unreachable" // no path of references leads to it from the root
	EscapedMetadata = "escaped-metadata"
	MissingBlob     = "missing-blob"
	OrphanedBlob    = "orphaned-blob"
	BlobTooLarge    = "blob-too-large"
	HighID          = "id-too-high"
	FallingTID      = "falling-tid"
	TornTail        = "torn-tail"
	NoRoot          = "no-root"
)

// Finding is what was found for one cause.
type Finding struct {
	Cause   string   `json:"cause" doc:"a stable name; docs/fidelity.md explains those of forms"`
	Text    string   `json:"text" doc:"what it means, in one sentence"`
	Count   int64    `json:"count" doc:"records; transactions of falling-tid and escaped-metadata; blobs of orphaned-blob; objects of unreachable, and of dangling references those that are missing, if first does not say who refers to them; 1 of what a source has once"`
	Missing int64    `json:"missing,omitempty" doc:"of dangling references: how many distinct objects do not exist, or at least so many if memory did not suffice"`
	Values  int64    `json:"values,omitempty" doc:"how many values of these records are of a form"`
	Classes []Class  `json:"classes,omitempty" doc:"the first classes, most frequent first; of each, objects counts records"`
	First   []string `json:"first,omitempty" doc:"the first oids (tids where it is about transactions)"`
	Targets []string `json:"targets,omitempty" doc:"of references: what those of first refer to, one for each; without first, what is referred to"`
	Reasons []Reason `json:"reasons,omitempty" doc:"of rejects: why, most frequent first"`
}

// Reason is why records are rejected.
type Reason struct {
	Reason  string `json:"reason" doc:"a sentence, without what differs between records"`
	Records int64  `json:"records" doc:"rejected for it"`
}

// Estimate is what a conversion takes.
type Estimate struct {
	HistoryPreserving bool  `json:"history_preserving" doc:"for which kind of destination"`
	StateBytes        int64 `json:"state_bytes" doc:"JSON text of all rows"`
	DiskBytes         int64 `json:"disk_bytes" doc:"what tables and indexes will take in PostgreSQL, without blobs in S3"`
	BlobBytes         int64 `json:"blob_bytes" doc:"blobs in PostgreSQL, part of disk_bytes"`
	S3Bytes           int64 `json:"s3_bytes" doc:"blobs in S3"`
	WALBytes          int64 `json:"wal_bytes" doc:"what PostgreSQL writes ahead meanwhile, at most max_wal_size of it at a time"`
	Seconds           int64 `json:"seconds" doc:"with as many workers as this inspection had, if the server keeps up: reckoned by rates of a server with two cores, and no less than what the inspection took"`
	S3Rate            int64 `json:"s3_bytes_per_second" doc:"assumed in seconds; 0 if nothing goes to S3"`
}
