// Package dest says what every destination of a conversion takes.
//
// A destination promises exactly-once: a chunk is written in one transaction
// together with the note that it is done, so that a run that is killed at any
// moment can be continued without writing anything twice or leaving anything
// out. It refuses, before it writes, whatever it could not finish.
//
// desttest holds the contract that each destination passes.
package dest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Destination is one database to write.
type Destination interface {
	// State looks at what is there and writes nothing. Everything that would
	// make a run fail later and can be known now is an error here: rights,
	// encoding, server version, free connections for the workers.
	State(ctx context.Context, workers int) (*State, error)

	// Survey looks at what is there, like State, and goes on where that would
	// refuse: what cannot be asked is said in the survey. It writes nothing.
	Survey(ctx context.Context, workers int) *Survey

	// CheckSource returns the *RefusedError with which Begin would refuse a source
	// for what a scan has found in it, nil if it would not. It needs no connection.
	CheckSource(info *source.Info) error

	// Begin starts a run, continues the interrupted one that State found, or
	// opens a finished destination to catch up. After it, no other run can
	// write here until Close.
	Begin(ctx context.Context, plan *Plan) (Session, error)

	// Abort empties what an interrupted run loaded and puts the schema back as
	// it was before. left is empty or says in one sentence what stays elsewhere:
	// objects in S3, which are never removed because another site may use them.
	Abort(ctx context.Context) (left string, err error)

	// DryWriter decodes and counts like a Writer and writes nothing; it needs no
	// connection.
	DryWriter(src source.Source) Writer

	// Content opens what a finished destination holds, to be read by so many
	// readers. A *RefusedError says that there is nothing, or an unfinished run.
	Content(ctx context.Context, readers int) (Content, error)

	// Retry writes records that were rejected and can be stored now into a finished
	// destination: under the lock that a site takes to commit, only where there is no
	// row or tombstone of the oid at or above the record's tid, and all of them or
	// none. A *RefusedError says that it holds an unfinished run, or not the records'
	// transactions, or that somebody is connected.
	Retry(ctx context.Context, plan *RetryPlan) (*RetryResult, error)

	// HistoryPreserving tells whether every revision is wanted.
	HistoryPreserving() bool

	// LargestBlob is how many bytes a blob may have that it can hold; 0 for any.
	LargestBlob() int64

	// Name is for messages; it holds no secret.
	Name() string

	Close() error
}

// Condition is what a destination holds.
type Condition string

const (
	Absent      Condition = "absent"      // no schema
	Empty       Condition = "empty"       // a schema without data
	Interrupted Condition = "interrupted" // a run that did not finish
	Filled      Condition = "filled"      // data and no run
)

// State is what a destination holds before a run.
type State struct {
	Condition Condition
	Run       *Run // Interrupted
	// Live tells that the process of Run still works on it, as far as the server
	// can see.
	Live bool
	// Filled and Interrupted: how much is there. RootOnly is the trap of a site that was
	// started once on the new database.
	Transactions, Objects int64
	RootOnly              bool
	LastTID               zodb.TID
	// Owed counts uploads that are not done, Missing blobs that were not found:
	// Interrupted.
	Owed, OwedBytes, Missing int64
	// Notes are sentences worth telling before the load (no lz4, ...).
	Notes []string
}

// Run is the record of a run, kept in the destination while it is unfinished.
type Run struct {
	ID         string
	Generation int64
	Phase      Phase
	Source     source.Identity
	Options    Options
	Tool       string // version
	Host       string
	PID        int
	Started    time.Time // first start
	Claimed    time.Time // start of the latest generation
	Start      Start     // how that was
	Done       []source.Range
	Totals     Result // over everything done
}

// Phase is how far a run is.
type Phase string

const (
	Loading    Phase = "loading"     // chunks are written
	Finishing  Phase = "finishing"   // all chunks are written; keys and indexes are made
	CatchingUp Phase = "catching up" // the schema is complete; newer transactions follow
)

// Options are those that change what is written: a run is continued only with
// the same ones.
type Options struct {
	HistoryPreserving bool  `json:"history_preserving"`
	ChunkBytes        int64 `json:"chunk_bytes"`
	// PreserveSharing keeps mutable parts that one record holds twice one object.
	// Without it they become copies.
	PreserveSharing bool `json:"preserve_sharing,omitempty"`
	// Bucket and Prefix say where in S3 large blobs go, from BlobThreshold bytes
	// on. Bucket is empty if all go to PostgreSQL, and then so are the others.
	Bucket        string `json:"bucket,omitempty"`
	Prefix        string `json:"prefix,omitempty"`
	BlobThreshold int64  `json:"blob_threshold,omitempty"`
}

// Start is how a generation of a run was started. It changes nothing in what is
// written: it is for those who ask about the run, and want to go on in the same way.
// Of a run that an earlier release has started nothing is known.
type Start struct {
	Blobs BlobMode `json:"blobs,omitempty"`
	// Manifest is the path to which Deferred lists uploads, as it was given.
	Manifest   string `json:"manifest,omitempty"`
	StagingDir string `json:"staging_dir,omitempty"`
	// SourceBytes is the size of the source by its scan.
	SourceBytes int64 `json:"source_bytes,omitempty"`
}

// BlobMode is when large blobs are uploaded to S3. It is not among the Options:
// what one start of a run owes, a later one pays in its own mode.
type BlobMode string

const (
	Inline     BlobMode = "inline"     // before the chunk that refers to them commits
	Background BlobMode = "background" // meanwhile; all are done when the run ends
	Deferred   BlobMode = "deferred"   // by somebody else, from a manifest
)

// Plan is what a run is going to do.
type Plan struct {
	Info *source.Info
	// Source is what will be read, for uploads that an earlier start owes; nil if
	// the first writer tells early enough.
	Source  source.Source
	Options Options
	Workers int
	Tool    string
	// Continue allows to go on with an interrupted run or to catch up with a
	// filled destination; Clear empties a filled one first.
	Continue, Clear bool
	// AcceptRejects lets Finish run although records were rejected,
	// AcceptMissingBlobs although blobs were not found.
	AcceptRejects, AcceptMissingBlobs bool
	// Blobs is when large blobs are uploaded.
	Blobs BlobMode
	// StagingDir is the directory in which Deferred puts the bytes of blobs that
	// are in no file, for whoever uploads them; "" if there is none, and then a
	// source with such blobs is refused.
	StagingDir string
	// Manifest is where Deferred lists uploads, for the record.
	Manifest string
	// BlobBytes is told of bytes of blobs as they are written or uploaded, from
	// any goroutine; n is negative where a transaction is repeated that had
	// written them. nil: nobody listens.
	BlobBytes func(n int64)
	// Log is told of each step as it happens. Never nil.
	Log func(Step)
	// Note is told of what the user should know, from any goroutine; nil: nobody
	// wants to.
	Note func(text string)
}

// Step is something that a destination did besides writing chunks.
type Step struct {
	Name string
	Took time.Duration
	Done bool // false: it starts now
}

// Session is a claimed run.
type Session interface {
	// Run is the record as claimed, with what earlier generations did. Loaded,
	// Verify and SettleBlobs bring its Totals up to date where blobs that had been
	// missing were found, or the other way round.
	Run() *Run
	// Writer opens one of Plan.Workers writers. Each is used by one goroutine.
	Writer(ctx context.Context, src source.Source) (Writer, error)
	// Loaded is called once, when every chunk is written: it looks once more for
	// blobs that were missing, makes everything durable and moves the run to
	// Finishing. A load from several views of a Table may lack a transaction that
	// rows name: it gets one without user and description, until Differences. It
	// returns a *RejectedError, and stays in Loading, if there are rejects or
	// missing blobs that are not accepted or that may not be.
	Loaded(ctx context.Context, src source.Source) error
	// Finish makes keys, indexes, sequence and statistics. Each step is done
	// once, whatever interrupts it. It moves the run to CatchingUp.
	Finish(ctx context.Context) error
	// Verify checks that what is there up to its highest tid is the source's,
	// and returns the position in src from which to follow.
	Verify(ctx context.Context, src source.Log) (from int64, err error)
	// Follower writes the chunks of Log.Follow, in order.
	Follower(ctx context.Context, src source.Log) (Writer, error)
	// Have gives what is there to Table.Differences. Its sequences are read once,
	// and both may be open at a time. free ends them. A database that somebody else
	// has written to since this run loaded it is a *source.ForeignError.
	Have(ctx context.Context) (have *source.Have, free func(), err error)
	// Reconciler writes the chunks of Table.Differences, all in one transaction,
	// which is committed with the chunk that has EndsTransaction: a destination is
	// what one view of the source was, or as it was before.
	Reconciler(ctx context.Context, src source.Table) (Writer, error)
	// Foreign is what a run is told whose destination Differences does not take for
	// the source's: a *RefusedError. A run that has changed nothing is ended. What
	// Have and Reconciler gave must be let go before.
	Foreign(ctx context.Context, e *source.ForeignError) error
	// Rejects calls fn for every reject of the run, oldest position first.
	Rejects(ctx context.Context, fn func(*Reject) error) error
	// MissingBlobs calls fn for every blob that was not found or could not be
	// read, by oid and tid.
	MissingBlobs(ctx context.Context, fn func(*MissingBlob) error) error
	// Owed calls fn for every upload that is not done, by oid and tid.
	Owed(ctx context.Context, fn func(*OwedBlob) error) error
	// Gone calls fn for the key, without the prefix, of every object in S3 that
	// newer transactions have replaced or deleted and SettleBlobs has not removed
	// yet.
	Gone(ctx context.Context, fn func(key string) error) error
	// SettleBlobs does the uploads that are owed, unless they are deferred, and
	// removes from S3 what newer transactions have replaced. It returns an
	// *UploadError if some cannot be done; where missing blobs are accepted, those
	// whose files are gone by then are missing ones, which Run's Totals and
	// MissingBlobs tell. Uploads in the background begin with the session; progress
	// is told of those that are left.
	SettleBlobs(ctx context.Context, progress func(UploadProgress)) error
	// Complete removes the run record: the run has succeeded. Owed uploads are
	// forgotten with it.
	Complete(ctx context.Context) error
	// Close gives up the claim; the run record stays unless Complete was
	// called.
	Close() error
}

// Writer writes chunks, each exactly once and in one transaction. It does not
// release them.
type Writer interface {
	Write(ctx context.Context, c *source.Chunk) (*Result, error)
	Close() error
}

// Result counts what was written. It is kept as JSON with the chunk, so that
// totals survive an interruption.
type Result struct {
	Transactions int64 `json:"transactions,omitempty"`
	Objects      int64 `json:"objects,omitempty"`   // current rows
	Revisions    int64 `json:"revisions,omitempty"` // older rows, history-preserving only
	Deleted      int64 `json:"deleted,omitempty"`   // newest records that are deletions
	// Gone counts the rows that were removed because the source has none like them
	// any more, GoneTransactions the transactions.
	Gone             int64 `json:"gone,omitempty"`
	GoneTransactions int64 `json:"gone_transactions,omitempty"`
	Superseded       int64 `json:"superseded,omitempty"`
	Dropped          int64 `json:"dropped,omitempty"`
	Rejected         int64 `json:"rejected,omitempty"`
	// Blobs that are in PostgreSQL, blobs whose rows name an object in S3
	// (uploaded, or owed), and blobs that were not found.
	Blobs        int64 `json:"blobs,omitempty"`
	BlobBytes    int64 `json:"blob_bytes,omitempty"`
	S3Blobs      int64 `json:"s3_blobs,omitempty"`
	S3Bytes      int64 `json:"s3_bytes,omitempty"`
	MissingBlobs int64 `json:"missing_blobs,omitempty"`
	SourceBytes  int64 `json:"source_bytes,omitempty"`
	PickleBytes  int64 `json:"pickle_bytes,omitempty"`
	StateBytes   int64 `json:"state_bytes,omitempty"` // JSON text
	// Forms counts special forms by kind (package jsonb names them).
	Forms map[string]int64 `json:"forms,omitempty"`
	// FormClasses tells, by kind, which classes the records are of whose form the
	// application loses when it next saves the object, or that hold copies of parts
	// that were shared.
	FormClasses map[string]*ClassCounts `json:"form_classes,omitempty"`
	// NewCodec counts records that only zodb-json-codec >= 1.7.0 reads;
	// NewCodecClasses are the first classes among them.
	NewCodec        int64    `json:"new_codec,omitempty"`
	NewCodecClasses []string `json:"new_codec_classes,omitempty"`
	// Metadata counts transactions whose user or description had to be escaped;
	// Escaped lists the first of them.
	Metadata int64     `json:"metadata,omitempty"`
	Escaped  []Escaped `json:"escaped,omitempty"`
}

// ClassCounts counts records by class.
type ClassCounts struct {
	// Classes are the first ListMax that were met.
	Classes []ClassCount `json:"classes"`
	// Others counts the records of all other classes.
	Others int64 `json:"others,omitempty"`
}

// ClassCount is a class, "module.name", and how many records are of it.
type ClassCount struct {
	Class   string `json:"class"`
	Records int64  `json:"records"`
}

// Count adds records of a class. It allocates only for a new class.
func (c *ClassCounts) Count(class []byte, records int64) {
	for i := range c.Classes {
		if c.Classes[i].Class == string(class) {
			c.Classes[i].Records += records
			return
		}
	}
	if len(c.Classes) == ListMax {
		c.Others += records
		return
	}
	c.Classes = append(c.Classes, ClassCount{Class: string(class), Records: records})
}

// Records is how many are counted.
func (c *ClassCounts) Records() int64 {
	n := c.Others
	for _, class := range c.Classes {
		n += class.Records
	}
	return n
}

// ClassesOf returns the counts of a form, to be added to.
func (r *Result) ClassesOf(form string) *ClassCounts {
	counts := r.FormClasses[form]
	if counts == nil {
		if r.FormClasses == nil {
			r.FormClasses = make(map[string]*ClassCounts)
		}
		counts = new(ClassCounts)
		r.FormClasses[form] = counts
	}
	return counts
}

// Escaped is a transaction whose user or description is not UTF-8 text that
// PostgreSQL takes. The original bytes are base64 in JSON.
type Escaped struct {
	TID         zodb.TID `json:"tid"`
	User        []byte   `json:"user"`
	Description []byte   `json:"description"`
}

// ListMax is how many entries of a list are kept and shown; the count tells the
// rest.
const ListMax = 10

// Add adds o to r.
func (r *Result) Add(o *Result) {
	r.Transactions += o.Transactions
	r.Objects += o.Objects
	r.Revisions += o.Revisions
	r.Deleted += o.Deleted
	r.Gone += o.Gone
	r.GoneTransactions += o.GoneTransactions
	r.Superseded += o.Superseded
	r.Dropped += o.Dropped
	r.Rejected += o.Rejected
	r.Blobs += o.Blobs
	r.BlobBytes += o.BlobBytes
	r.S3Blobs += o.S3Blobs
	r.S3Bytes += o.S3Bytes
	r.MissingBlobs += o.MissingBlobs
	r.SourceBytes += o.SourceBytes
	r.PickleBytes += o.PickleBytes
	r.StateBytes += o.StateBytes
	for k, n := range o.Forms {
		if r.Forms == nil {
			r.Forms = make(map[string]int64)
		}
		r.Forms[k] += n
	}
	for form, o := range o.FormClasses {
		counts := r.ClassesOf(form)
		for _, c := range o.Classes {
			counts.Count([]byte(c.Class), c.Records)
		}
		counts.Others += o.Others
	}
	r.NewCodec += o.NewCodec
	for _, c := range o.NewCodecClasses {
		r.addClass(c)
	}
	r.Metadata += o.Metadata
	for _, e := range o.Escaped {
		if len(r.Escaped) < ListMax {
			r.Escaped = append(r.Escaped, e)
		}
	}
}

func (r *Result) addClass(c string) {
	if len(r.NewCodecClasses) >= ListMax {
		return
	}
	for _, have := range r.NewCodecClasses {
		if have == c {
			return
		}
	}
	r.NewCodecClasses = append(r.NewCodecClasses, c)
}

// Reject is a record that the destination cannot hold.
type Reject struct {
	OID    zodb.OID
	TID    zodb.TID
	Pos    int64
	Class  string // "module.name", empty if unknown
	Reason string
	Data   []byte // the record's pickles
}

// MissingBlob is a blob whose record is written and whose bytes were not found
// or could not be read.
type MissingBlob struct {
	OID  zodb.OID
	TID  zodb.TID
	Pos  int64 // of its record
	Path string
	// Reason is the rest of the sentence "the blob file PATH ...".
	Reason string
}

// OwedBlob is a blob whose row names an object in S3 that is not yet uploaded.
type OwedBlob struct {
	OID  zodb.OID
	TID  zodb.TID
	Size int64
	Path string
	Key  string // without the prefix
}

// UploadProgress is how far uploads are.
type UploadProgress struct {
	Done, Total           int64
	DoneBytes, TotalBytes int64
}

// UploadError are uploads that cannot be done.
type UploadError struct {
	Count int64
	// Failed are the first of them.
	Failed []FailedUpload
}

// FailedUpload is an upload and why it cannot be done.
type FailedUpload struct {
	OwedBlob
	Err error
}

func (e *UploadError) Error() string {
	noun := "uploads have"
	if e.Count == 1 {
		noun = "upload has"
	}
	s := fmt.Sprintf("%d %s failed", e.Count, noun)
	if len(e.Failed) > 0 {
		s += fmt.Sprintf("; the first is %s: %v", e.Failed[0].Place(), e.Failed[0].Err)
	}
	return s
}

// Place is where the bytes of the blob are, for messages.
func (o *OwedBlob) Place() string {
	if o.Path != "" {
		return o.Path
	}
	return fmt.Sprintf("blob oid %v, tid %v", o.OID, o.TID)
}

// RejectedError is a load that is complete but for rejected records and missing
// blobs.
type RejectedError struct {
	Count        int64 // rejected records that are not accepted
	Root         bool  // the root object is among them, which can never be accepted
	MissingBlobs int64 // blobs that are missing and not accepted
}

func (e *RejectedError) Error() string {
	if e.Root {
		return "the root object was rejected: without it the database cannot be opened"
	}
	var parts []string
	switch {
	case e.Count == 1:
		parts = append(parts, "1 record was rejected")
	case e.Count > 1:
		parts = append(parts, fmt.Sprintf("%d records were rejected", e.Count))
	}
	switch {
	case e.MissingBlobs == 1:
		parts = append(parts, "1 blob is missing")
	case e.MissingBlobs > 1:
		parts = append(parts, fmt.Sprintf("%d blobs are missing", e.MissingBlobs))
	}
	return strings.Join(parts, ", ")
}

// RefusedError is a run that was not started because of what the destination
// or the source is. Nothing was changed.
type RefusedError struct {
	Reason string
	Hint   string
	Cause  error // what a source or a server said, if that is what it is about
}

func (e *RefusedError) Unwrap() error { return e.Cause }

func (e *RefusedError) Error() string {
	if e.Hint == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Hint
}
