package pgjsonb

import (
	"context"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// dryWriter decodes and counts like a writer.
type dryWriter struct {
	dest *Destination
	rows recordRows
}

// DryWriter returns a writer that writes nothing.
func (d *Destination) DryWriter(src source.Source) dest.Writer {
	return &dryWriter{dest: d, rows: newRecordRows(d, src)}
}

// Write makes the chunk's rows and forgets them. Of blobs it looks for the files.
func (w *dryWriter) Write(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	r := &w.rows
	r.start(c, w.dest.config.HistoryPreserving)
	defer r.stop()
	r.reset()
	streams := []func() error{r.transactions(), r.objects(ctx, true)}
	if r.history {
		streams = append(streams, r.objects(ctx, false))
	}
	for _, next := range streams {
		if err := r.stream.discard(next); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if err := r.findBlobs(ctx, w.dest); err != nil {
		return nil, err
	}
	r.countBlobs()
	r.total()
	return r.result, nil
}

// Close has nothing to close.
func (w *dryWriter) Close() error { return nil }
