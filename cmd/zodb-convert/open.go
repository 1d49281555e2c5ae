package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/pgserver"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

// sourceOptions are what the command line says about reading.
type sourceOptions struct {
	path    string // the file that names the source
	workers int
	note    func(text string)
}

// openSource opens what [source] names.
func openSource(ctx context.Context, c *config.Config, opts sourceOptions) (source.Source, error) {
	if f := c.Source.FileStorage; f != nil {
		return filestorage.Open(ctx, f.Path, filestorage.Options{BlobDir: f.BlobDir})
	}
	if p := c.Source.RelStorage.PostgreSQL; p != nil {
		// A mistake in the file is told before a server is asked.
		if _, err := pgserver.Parse(p.DSN); err != nil {
			return nil, &config.Error{Path: opts.path, Reason: fmt.Sprintf("the dsn of the source: %v", err), Hint: pgserver.DSNHint}
		}
	}
	return relstorage.Open(ctx, relStorageOptions(c.Source.RelStorage, opts))
}

// relStorageOptions are what [source] says of a RelStorage. As many connections
// read as there are workers: more would read ahead of what can be written.
func relStorageOptions(s *config.RelStorage, opts sourceOptions) relstorage.Options {
	out := relstorage.Options{
		KeepHistory: s.KeepHistory, BlobDir: s.BlobDir, SharedBlobDir: s.SharedBlobDir, Replicas: s.Replicas,
		Connections: opts.workers, Note: opts.note,
	}
	switch {
	case s.PostgreSQL != nil:
		out.PostgreSQL = &relstorage.PostgreSQL{DSN: s.PostgreSQL.DSN}
	case s.MySQL != nil:
		m := s.MySQL
		out.MySQL = &relstorage.MySQL{
			Host: m.Host, Port: int(m.Port), UnixSocket: m.UnixSocket, User: m.User, Password: m.Password, Database: m.Database,
			DefaultFile: m.DefaultFile, DefaultGroup: m.DefaultGroup, ConnectTimeout: int(m.ConnectTimeout), Compress: m.Compress,
		}
	case s.SQLite3 != nil:
		out.SQLite = &relstorage.SQLite{DataDir: s.SQLite3.DataDir}
	}
	return out
}

// destinationOptions are what the command line says about writing.
type destinationOptions struct {
	path            string // the file that names the destination
	preserveSharing bool
	note            func(text string)
}

// openDestination opens what [destination] names. Open does not ask the server
// yet: what it refuses is a mistake in the configuration.
func openDestination(ctx context.Context, c *config.Config, opts destinationOptions) (dest.Destination, error) {
	store, err := openStore(ctx, &c.Destination.S3)
	if err != nil {
		return nil, err
	}
	d, err := openDatabase(ctx, c, store, opts)
	if err != nil {
		return nil, err // no interface of a nil pointer
	}
	return d, nil
}

// openDatabase is openDestination with a bucket that is open already, if there is
// one.
func openDatabase(ctx context.Context, c *config.Config, store *s3blob.Store, opts destinationOptions) (*pgjsonb.Destination, error) {
	d, err := pgjsonb.Open(ctx, pgjsonb.Config{
		DSN:               c.Destination.DSN,
		HistoryPreserving: c.Destination.HistoryPreserving,
		S3:                store,
		BlobThreshold:     c.Destination.BlobThreshold,
		PreserveSharing:   opts.preserveSharing,
		Note:              opts.note,
	})
	if refused := (*dest.RefusedError)(nil); errors.As(err, &refused) {
		return nil, &config.Error{Path: opts.path, Reason: refused.Reason, Hint: refused.Hint}
	}
	return d, err
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
