// Package verify tells whether what a source holds has arrived in a destination:
// object by object, both read anew.
//
// It knows interfaces only. The source is read as a conversion reads it, newest
// first and in chunks; the rows of each chunk are looked up by their keys in one
// view of the destination, and compared. Nothing is written on either side.
//
// # What it guarantees
//
//   - Every record of the source that has to be there is looked up, and every row
//     of the destination is accounted for: one that no record of the source has
//     led to is named as too much. For that no set of all keys is held: rows are
//     counted and summed up in 65,536 buckets, and only where a bucket of the
//     destination differs is the source read once more, for the keys in it.
//   - Values are not compared with what the encoder would write, but by a
//     jsonb.Judge: the row is read as the application would read it, and both are
//     compared as graphs.
//   - What could not be compared is a difference, never silence.
//
// # What is no difference
//
// Deviations that every conversion declares (Result.Declared); transactions of
// the source above the highest that the destination has of it; and what a site
// has written to the destination above that one.
package verify

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// DefaultMemory is what a comparison may take if Options do not say.
const DefaultMemory = pipeline.DefaultMemory

// Options say what to compare.
type Options struct {
	Workers int
	// Memory is what the process may take, in bytes.
	Memory int64
	// Percent of the objects are compared, chosen by their oids; 0 is all.
	Percent float64
	// Since leaves out transactions and revisions of an earlier tid.
	Since zodb.TID
	// Download compares blobs in S3 by their bytes, not by what the store says.
	Download bool
	// Strict makes deviations that the conversion declares differences.
	Strict bool
	// Report is told of every difference, by one goroutine at a time. nil: nobody
	// wants to know.
	Report func(*Difference) error
	// Progress is told of everything that happens, from one goroutine at a time. It
	// must not block. nil: nobody listens.
	Progress func(pipeline.Event)
}

// Kinds of differences.
const (
	MissingObject      = "missing-object"
	ExtraObject        = "extra-object"
	MissingRevision    = "missing-revision"
	ExtraRevision      = "extra-revision"
	DuplicateRow       = "duplicate-row"
	NotDeleted         = "not-deleted"
	OtherTID           = "tid"
	OtherClass         = "class"
	OtherValue         = "value"
	OtherRefs          = "refs"
	OtherSize          = "size"
	Unreadable         = "unreadable"
	NotCompared        = "not-compared"
	MissingTransaction = "missing-transaction"
	ExtraTransaction   = "extra-transaction"
	OtherTransaction   = "transaction"
	MissingBlob        = "missing-blob"
	ExtraBlob          = "extra-blob"
	OtherBlob          = "blob"
	SchemaFault        = "schema"
)

// Kinds of declared deviations, besides the names of forms of package jsonb.
const (
	Rejected         = "rejected"
	EscapedMetadata  = "escaped-metadata"
	SourceBlobLost   = "blob-missing-in-source"
	OrphanObject     = "orphan-in-s3"
	HistoryOverlap   = "history-overlap"
	maxDeclaredClass = 200
)

// Difference is something that is not the same on both sides.
type Difference struct {
	Kind string `json:"kind" doc:"what differs; the kinds are listed above"`
	// OID and TID are hexadecimal, empty where the difference has none.
	OID         string `json:"oid,omitempty" doc:"of the object, 0x and 16 hexadecimal digits"`
	TID         string `json:"tid,omitempty" doc:"of the transaction, in the source if it is there"`
	Class       string `json:"class,omitempty" doc:"of the record, module.name"`
	Path        string `json:"path,omitempty" doc:"where in the object, or which part of a row or of the schema"`
	Source      string `json:"source,omitempty" doc:"what stands there in the source"`
	Destination string `json:"destination,omitempty" doc:"what stands there in the destination"`
	Reason      string `json:"reason,omitempty" doc:"a sentence, where both sides do not tell"`
	Declared    bool   `json:"declared,omitempty" doc:"a deviation that the conversion declares; with --strict only"`

	oid zodb.OID
	tid zodb.TID
}

// String is the difference in one line.
func (d *Difference) String() string {
	var b strings.Builder
	b.WriteString(d.Kind)
	if d.OID != "" {
		b.WriteString(" oid " + d.OID)
	}
	if d.TID != "" {
		b.WriteString(" tid " + d.TID)
	}
	if d.Class != "" {
		b.WriteString(" " + d.Class)
	}
	if d.Path != "" {
		b.WriteString(" at " + d.Path)
	}
	if d.Source != "" || d.Destination != "" {
		fmt.Fprintf(&b, ": %s in the source, %s in the destination", orNothing(d.Source), orNothing(d.Destination))
	}
	if d.Reason != "" {
		b.WriteString(": " + d.Reason)
	}
	return b.String()
}

func orNothing(text string) string {
	if text == "" {
		return "nothing"
	}
	return text
}

// Count is how often something was found.
type Count struct {
	Kind  string `json:"kind" doc:"what"`
	Class string `json:"class,omitempty" doc:"of the records, module.name"`
	Count int64  `json:"count" doc:"how often"`
}

// Result is what was found. It is filled as far as the comparison came.
type Result struct {
	Source            string `json:"source" doc:"name of the source"`
	Destination       string `json:"destination" doc:"name of the destination"`
	HistoryPreserving bool   `json:"history_preserving" doc:"whether every revision was compared"`
	// What was compared.
	Transactions int64 `json:"transactions" doc:"transactions that were compared"`
	Records      int64 `json:"records" doc:"records of the source that were compared with their rows"`
	Deleted      int64 `json:"deleted" doc:"records of the source that are deletions"`
	Blobs        int64 `json:"blobs" doc:"blobs whose bytes were compared by SHA-256"`
	StoreChecked int64 `json:"blobs_by_checksum" doc:"blobs in S3 that were compared by size and the checksum that the store names"`
	Downloaded   int64 `json:"blobs_downloaded" doc:"blobs in S3 that were compared by their bytes"`
	BlobBytes    int64 `json:"blob_bytes" doc:"bytes of the blobs that were compared"`
	LeftOut      int64 `json:"left_out" doc:"records that --sample and --since left out"`
	// What is newer on one side.
	NotConverted        int64 `json:"not_converted" doc:"transactions of the source above the highest that the destination has of it"`
	NotConvertedRecords int64 `json:"not_converted_records" doc:"records of those, where the source is a RelStorage"`
	SiteTransactions    int64 `json:"site_transactions" doc:"transactions that a site has written to the destination since"`
	SiteChanged         int64 `json:"site_changed" doc:"objects of the source that a site has changed in the destination since"`
	SiteRows            int64 `json:"site_rows" doc:"all rows of objects that a site has written to the destination since"`
	// What differs.
	Differences int64        `json:"differences" doc:"how many there are"`
	Kinds       []Count      `json:"kinds" doc:"how many of each kind"`
	First       []Difference `json:"first" doc:"the first of them by oid"`
	Declared    []Count      `json:"declared" doc:"deviations that the conversion declares, by kind and class"`
	Notes       []string     `json:"notes" doc:"sentences"`
}

// tally collects what the workers find.
type tally struct {
	report func(*Difference) error
	strict bool

	mu       sync.Mutex
	result   *Result
	kinds    map[string]int64
	declared map[Count]int64
}

func newTally(r *Result, opts *Options) *tally {
	return &tally{report: opts.Report, strict: opts.Strict, result: r, kinds: map[string]int64{}, declared: map[Count]int64{}}
}

// count changes the result.
func (t *tally) count(fn func(*Result)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn(t.result)
}

// differ adds a difference.
func (t *tally) differ(d Difference) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Differences++
	t.kinds[d.Kind]++
	at, _ := slices.BinarySearchFunc(t.result.First, d, before)
	if at < dest.ListMax {
		t.result.First = slices.Insert(t.result.First, at, d)
		t.result.First = t.result.First[:min(len(t.result.First), dest.ListMax)]
	}
	if t.report == nil {
		return nil
	}
	return t.report(&d)
}

// before orders differences. What belongs to no object comes first.
func before(a, b Difference) int {
	for _, c := range []int{
		strings.Compare(a.OID, b.OID), strings.Compare(a.TID, b.TID), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Path, b.Path),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}

// declare counts a deviation that the conversion declares.
func (t *tally) declare(d Difference) error {
	t.mu.Lock()
	key := Count{Kind: d.Kind, Class: d.Class}
	if _, known := t.declared[key]; !known && len(t.declared) >= maxDeclaredClass {
		key.Class = ""
	}
	t.declared[key]++
	t.mu.Unlock()
	if !t.strict {
		return nil
	}
	d.Declared = true
	return t.differ(d)
}

// finish writes the counts into the result, most frequent first.
func (t *tally) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.result
	r.Kinds, r.Declared = []Count{}, []Count{}
	for kind, n := range t.kinds {
		r.Kinds = append(r.Kinds, Count{Kind: kind, Count: n})
	}
	for key, n := range t.declared {
		key.Count = n
		r.Declared = append(r.Declared, key)
	}
	order := func(a, b Count) int {
		if a.Count != b.Count {
			return int(min(max(b.Count-a.Count, -1), 1))
		}
		return strings.Compare(a.Kind+" "+a.Class, b.Kind+" "+b.Class)
	}
	slices.SortFunc(r.Kinds, order)
	slices.SortFunc(r.Declared, order)
	if r.First == nil {
		r.First = []Difference{}
	}
	if r.Notes == nil {
		r.Notes = []string{}
	}
}
