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

	// Begin starts a run, continues the interrupted one that State found, or
	// opens a finished destination to catch up. After it, no other run can
	// write here until Close.
	Begin(ctx context.Context, plan *Plan) (Session, error)

	// Abort empties what an interrupted run loaded and puts the schema back as
	// it was before. plan tells who asks.
	Abort(ctx context.Context) error

	// DryWriter decodes and counts like a Writer and writes nothing; it needs no
	// connection.
	DryWriter(src source.Source) Writer

	// HistoryPreserving tells whether every revision is wanted.
	HistoryPreserving() bool

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
	// Filled and Interrupted: how much is there. RootOnly is the trap of a site that was
	// started once on the new database.
	Transactions, Objects int64
	RootOnly              bool
	LastTID               zodb.TID
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
}

// Plan is what a run is going to do.
type Plan struct {
	Info    *source.Info
	Options Options
	Workers int
	Tool    string
	// Continue allows to go on with an interrupted run or to catch up with a
	// filled destination; Clear empties a filled one first.
	Continue, Clear bool
	// AcceptRejects lets Finish run although records were rejected.
	AcceptRejects bool
	// Log is told of each step as it happens. Never nil.
	Log func(Step)
}

// Step is something that a destination did besides writing chunks.
type Step struct {
	Name string
	Took time.Duration
	Done bool // false: it starts now
}

// Session is a claimed run.
type Session interface {
	// Run is the record as claimed, with what earlier generations did.
	Run() *Run
	// Writer opens one of Plan.Workers writers. Each is used by one goroutine.
	Writer(ctx context.Context, src source.Source) (Writer, error)
	// Loaded is called once, when every chunk is written: it makes them durable
	// and moves the run to Finishing. It returns a *RejectedError, and stays in
	// Loading, if there are rejects that are not accepted or that may not be.
	Loaded(ctx context.Context) error
	// Finish makes keys, indexes, sequence and statistics. Each step is done
	// once, whatever interrupts it. It moves the run to CatchingUp.
	Finish(ctx context.Context) error
	// Verify checks that what is there up to its highest tid is the source's,
	// and returns the position in src from which to follow.
	Verify(ctx context.Context, src source.Source) (from int64, err error)
	// Follower writes the chunks of Source.Follow, in order.
	Follower(ctx context.Context, src source.Source) (Writer, error)
	// Rejects calls fn for every reject of the run, oldest position first.
	Rejects(ctx context.Context, fn func(*Reject) error) error
	// Complete removes the run record: the run has succeeded.
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
	Superseded   int64 `json:"superseded,omitempty"`
	Dropped      int64 `json:"dropped,omitempty"`
	Rejected     int64 `json:"rejected,omitempty"`
	SourceBytes  int64 `json:"source_bytes,omitempty"`
	PickleBytes  int64 `json:"pickle_bytes,omitempty"`
	StateBytes   int64 `json:"state_bytes,omitempty"` // JSON text
	// Forms counts special forms by kind (package jsonb names them).
	Forms map[string]int64 `json:"forms,omitempty"`
	// NewCodec counts records that only zodb-json-codec >= 1.7.0 reads;
	// NewCodecClasses are the first classes among them.
	NewCodec        int64    `json:"new_codec,omitempty"`
	NewCodecClasses []string `json:"new_codec_classes,omitempty"`
	// Metadata counts transactions whose user or description had to be escaped;
	// Escaped lists the first of them.
	Metadata int64     `json:"metadata,omitempty"`
	Escaped  []Escaped `json:"escaped,omitempty"`
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
	r.Superseded += o.Superseded
	r.Dropped += o.Dropped
	r.Rejected += o.Rejected
	r.SourceBytes += o.SourceBytes
	r.PickleBytes += o.PickleBytes
	r.StateBytes += o.StateBytes
	for k, n := range o.Forms {
		if r.Forms == nil {
			r.Forms = make(map[string]int64)
		}
		r.Forms[k] += n
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

// RejectedError is a load that is complete but for rejected records.
type RejectedError struct {
	Count int64
	Root  bool // the root object is among them, which can never be accepted
}

func (e *RejectedError) Error() string {
	if e.Root {
		return "the root object was rejected: without it the database cannot be opened"
	}
	noun := "records were"
	if e.Count == 1 {
		noun = "record was"
	}
	return fmt.Sprintf("%d %s rejected", e.Count, noun)
}

// RefusedError is a run that was not started because of what the destination
// or the source is. Nothing was changed.
type RefusedError struct {
	Reason string
	Hint   string
}

func (e *RefusedError) Error() string {
	if e.Hint == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Hint
}
