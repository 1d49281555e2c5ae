package main

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// openSource opens what [source] names.
func openSource(ctx context.Context, c *config.Config) (source.Source, error) {
	return filestorage.Open(ctx, c.Source.Path, filestorage.Options{BlobDir: c.Source.BlobDir})
}

// openDestination opens what [destination] names. Open does not ask the server
// yet: what it refuses is a mistake in the configuration at path.
func openDestination(ctx context.Context, c *config.Config, path string) (dest.Destination, error) {
	d, err := pgjsonb.Open(ctx, pgjsonb.Config{
		DSN:               c.Destination.DSN,
		HistoryPreserving: c.Destination.HistoryPreserving,
	})
	if refused := (*dest.RefusedError)(nil); errors.As(err, &refused) {
		return nil, &config.Error{Path: path, Reason: refused.Reason, Hint: refused.Hint}
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}
