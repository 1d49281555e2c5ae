package relstorage

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/source"
)

// Blob finds the bytes of a blob.
func (s *Source) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	return nil, errors.New("relstorage: blobs are not read")
}

// countBlobs fills in what Info tells of blobs. It is called at the end of a
// scan, with its view open.
func (s *Source) countBlobs(ctx context.Context, v *view, opts source.ScanOptions, info *source.Info) error {
	return nil
}
