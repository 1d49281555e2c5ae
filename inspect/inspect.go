package inspect

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
)

// DefaultMemory is what an inspection may take if Options do not say.
const DefaultMemory = pipeline.DefaultMemory

// Options say what to look at, and for which destination.
type Options struct {
	Workers int
	// Memory is what the process may take, in bytes.
	Memory int64
	// HistoryPreserving is the kind of destination that Altered, Notable and the
	// Estimate are about. With it every revision is decoded, otherwise the current
	// ones.
	HistoryPreserving bool
	// PreserveSharing tells that the conversion will be told so.
	PreserveSharing bool
	// S3 tells that there is a bucket for blobs of BlobThreshold bytes or more, and
	// for all that are larger than LargestBlob. Without it, these cannot be written.
	S3                         bool
	BlobThreshold, LargestBlob int64
	// Reachability looks for objects to which no path of references leads; the
	// references are kept in a file in TempDir meanwhile.
	Reachability bool
	TempDir      string
	// Progress is told of everything that happens, from one goroutine at a time. It
	// must not block. nil: nobody listens.
	Progress func(pipeline.Event)
}

// Run inspects src, and does not take it over.
//
// The report is never nil. An error means that the source could not be read to
// its end; the report is about what stands before that place then. What is found
// is no error.
func Run(ctx context.Context, src source.Source, opts Options) (*Report, error) {
	opts.Workers = max(opts.Workers, 1)
	if opts.Memory == 0 {
		opts.Memory = DefaultMemory
	}
	r := &run{src: src, opts: opts, events: pipeline.NewEvents(opts.Progress), report: &Report{
		Version: Version, Altered: []Finding{}, Notable: []Finding{}, Notes: []string{},
		Source: Source{Classes: []Class{}, Protocols: []Protocol{}, Largest: []LargeRecord{}, Revisions: []int64{}, Packed: "unknown"},
	}}
	err := r.run(ctx)
	if damage := (*source.DamageError)(nil); errors.As(err, &damage) {
		r.report.Source.Damage, r.report.Source.CutOff = err.Error(), damage != r.damage.first
	}
	return r.report, err
}
