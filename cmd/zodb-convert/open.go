package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
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
	store, err := openStore(ctx, &c.Destination.S3)
	if err != nil {
		return nil, err
	}
	d, err := pgjsonb.Open(ctx, pgjsonb.Config{
		DSN:               c.Destination.DSN,
		HistoryPreserving: c.Destination.HistoryPreserving,
		S3:                store,
		BlobThreshold:     c.Destination.BlobThreshold,
	})
	if refused := (*dest.RefusedError)(nil); errors.As(err, &refused) {
		return nil, &config.Error{Path: path, Reason: refused.Reason, Hint: refused.Hint}
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openStore opens the bucket, or gives nil if none is named. The server is not
// asked yet.
func openStore(ctx context.Context, s *config.S3) (*s3blob.Store, error) {
	if s.Bucket == "" {
		return nil, nil
	}
	store, err := s3blob.Open(ctx, s3blob.Config{
		Bucket: s.Bucket, Prefix: s.Prefix,
		EndpointURL: s.EndpointURL, Region: s.Region,
		AccessKey: s.AccessKey, SecretKey: s.SecretKey,
		PlainHTTP: s.PlainHTTP, PathStyle: s.PathStyle, CAFile: s.CABundle,
	})
	if err != nil {
		return nil, fmt.Errorf("the S3 bucket %s: %w", s.Bucket, err)
	}
	return store, nil
}
