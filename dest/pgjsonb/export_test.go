package pgjsonb

import (
	"bytes"
	"context"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

// FailOn makes a writer panic on records that contain a text.
func FailOn(w dest.Writer, text string) {
	rows := func() *recordRows {
		switch w := w.(type) {
		case *writer:
			return &w.rows
		case *follower:
			return &w.rows
		case *dryWriter:
			return &w.rows
		}
		panic("a writer of another kind")
	}()
	rows.encoder = failingEncoder{rows.encoder, text}
}

type failingEncoder struct {
	recordEncoder
	text string
}

func (e failingEncoder) Encode(record []byte) (*jsonb.Row, error) {
	if bytes.Contains(record, []byte(e.text)) {
		record = record[:cap(record)+1] // a panic of the runtime, none of our own
	}
	return e.recordEncoder.Encode(record)
}

// EstimateBlobs tells what the survey does where counting takes too long.
func EstimateBlobs(ctx context.Context, d *Destination) (*dest.Survey, error) {
	conn, err := d.connect.dial(ctx, "test")
	if err != nil {
		return nil, err
	}
	defer closeQuietly(conn)
	s := &surveyor{d: d, conn: conn, out: new(dest.Survey)}
	if s.layout, err = readLayout(ctx, conn); err != nil {
		return nil, err
	}
	return s.out, s.ask(ctx, func() error { return s.estimateBlobs(ctx) })
}
