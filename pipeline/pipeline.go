// Package pipeline moves a source into a destination: it reads, shares chunks
// out to writers, keeps memory within a budget, and tells what happens.
//
// It knows interfaces only. Run is the whole conversion that the command line
// offers; the result is told by the Report, what is done meanwhile by Events.
package pipeline

import (
	"io"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// Options say how to run.
type Options struct {
	Workers int
	// Memory is what the process may take, in bytes.
	Memory int64
	// ChunkBytes overrides how much of the source one destination transaction
	// takes; 0 for the default. A continued run keeps that of its first start.
	ChunkBytes int64
	// Incremental continues an interrupted run or catches up with what is new;
	// Clear empties the destination first; DryRun decodes everything and writes
	// nothing.
	Incremental, Clear, DryRun bool
	// Rejects is the file that lists the rejected records, and the blobs that are
	// missing; naming it accepts the records. Empty: a run with rejects stops
	// before its finishing steps.
	Rejects string
	// Blobs is when large blobs are uploaded, "" for dest.Inline. Manifest is
	// where dest.Deferred lists what is to be uploaded: a path, or "-" for
	// Stdout.
	Blobs    dest.BlobMode
	Manifest string
	Stdout   io.Writer
	// StagingDir is where dest.Deferred puts the bytes of blobs that the source
	// has in no file; the manifest lists them there. They stay when the run is
	// done.
	StagingDir string
	// AllowMissingBlobs lets a run finish although blobs were not found.
	AllowMissingBlobs bool
	// Tool is the version that the run record names.
	Tool string
	// Progress is told of everything that happens, from one goroutine at a
	// time. It must not block. nil: nobody listens.
	Progress func(Event)
}

// Phase is what a run is doing.
type Phase string

const (
	Scanning   Phase = "scan"
	Preparing  Phase = "prepare"
	Loading    Phase = "load"
	Finishing  Phase = "finish"
	Uploading  Phase = "upload"
	CatchingUp Phase = "catch up"
	Comparing  Phase = "compare" // verify only
	Inspecting Phase = "inspect" // inspect only
	Finished   Phase = "done"
)

// Event is something that happened. Every field that does not belong to its
// Kind is zero.
type Event struct {
	Kind  EventKind
	Time  time.Time
	Phase Phase
	// Progress: cumulative within the phase.
	Done, Total int64 // bytes of the source, or keys
	Keys        bool  // Done and Total count keys that are compared, not bytes
	Earlier     int64 // part of Done that an earlier, interrupted start did
	Objects     int64
	Rejected    int64
	// BlobBytes and BlobTotal count bytes of blobs beside those of Done and
	// Total, without those of earlier starts. BlobTotal is what there are at most:
	// older revisions, which a history-free destination leaves out, are among
	// them. Uploads are those of the phase Uploading, whose Done and Total are
	// bytes of blobs.
	BlobBytes, BlobTotal int64
	Uploads              dest.UploadProgress
	// Step, Note.
	Step dest.Step
	Text string
}

// EventKind tells events apart.
type EventKind string

const (
	PhaseStarted EventKind = "phase"    // Phase, Total
	Progress     EventKind = "progress" // Phase, Done, Total, Earlier, Objects, Rejected
	StepEvent    EventKind = "step"     // Step
	Note         EventKind = "note"     // Text: something the user should know
)

// Report is what a run did. It is filled as far as the run came, also when Run
// returns an error.
type Report struct {
	Source      source.Info
	Destination string
	// Found is what the destination held before.
	Found      dest.Condition
	Resumed    bool
	DryRun     bool
	Totals     dest.Result // earlier starts of the run included
	CaughtUp   int64       // transactions that came after the first start
	Phases     []PhaseTime
	PeakMemory int64 // bytes, resident set
	Growth     source.Growth
	// Rejects are the first rejected records, without their data.
	Rejects     []dest.Reject
	RejectsFile string
	// MissingBlobs are the first blobs that were not found.
	MissingBlobs []dest.MissingBlob
	// Manifest is where the owed uploads are listed: Owed of them.
	Manifest  string
	Owed      int64
	OwedBytes int64
	Notes     []string
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Phase Phase
	Took  time.Duration
	Bytes int64 // of the source
}
