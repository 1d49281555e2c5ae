package pgjsonb

import (
	"bytes"

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
