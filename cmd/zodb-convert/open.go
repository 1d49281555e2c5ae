package main

import (
	"context"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// openSource opens what [source] names.
func openSource(ctx context.Context, c *config.Config) (source.Source, error) {
	return filestorage.Open(ctx, c.Source.Path)
}

// openDestination opens what [destination] names.
func openDestination(ctx context.Context, c *config.Config) (dest.Destination, error) {
	return pgjsonb.Open(ctx, pgjsonb.Config{
		DSN:               c.Destination.DSN,
		HistoryPreserving: c.Destination.HistoryPreserving,
	})
}
