package pgjsonb

import (
	"context"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// dryWriter decodes and counts like a writer.
type dryWriter struct {
	rows    recordRows
	history bool
}

// DryWriter returns a writer that writes nothing.
func (d *Destination) DryWriter(src source.Source) dest.Writer {
	return &dryWriter{rows: newRecordRows(src), history: d.config.HistoryPreserving}
}

// Write makes the chunk's rows and forgets them.
func (w *dryWriter) Write(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	r := &w.rows
	r.start(c, w.history)
	defer r.stop()
	r.reset()
	streams := []func() error{r.transactions(), r.objects(ctx, true)}
	if w.history {
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
	r.total()
	return r.result, nil
}

// Close has nothing to close.
func (w *dryWriter) Close() error { return nil }
