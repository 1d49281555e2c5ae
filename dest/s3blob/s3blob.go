// Package s3blob keeps blobs in an S3 bucket, under the keys that zodb-pgjsonb
// looks for:
//
//	[PREFIX/]blobs/<oid, 16 hex digits>/<tid, 16 hex digits>.blob
//
// The prefix belongs to the store; keys without it stand in blob_state.s3_key
// and in manifests.
package s3blob

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Config says where the bucket is and who asks.
type Config struct {
	Bucket, Prefix string
	// EndpointURL is the server; "" for Amazon's.
	EndpointURL, Region string
	// AccessKey and SecretKey are empty if environment, profile or instance role
	// tell them.
	AccessKey, SecretKey string
	// PlainHTTP talks to an endpoint without a scheme over http.
	PlainHTTP bool
	// PathStyle puts the bucket into the path of the URL instead of the host
	// name; nil: unless the server is Amazon's.
	PathStyle *bool
	// CAFile holds the certificates that the server's is checked against; "" for
	// those of the system, or of AWS_CA_BUNDLE.
	CAFile string
	// Wait is how long to wait for a server that is away; 0 is 2 minutes.
	Wait time.Duration
}

// Store is an open bucket. It is safe for concurrent use.
type Store struct {
	config Config
}

// Error is what went wrong with an object or with the bucket.
type Error struct {
	Op     string // "upload", "look for", "remove", ...
	Key    string // with the prefix; "" if it concerns the bucket
	Reason string
	Hint   string
	// Whole: it concerns the store, not this object only: it is down, or the
	// credentials or rights are wrong.
	Whole bool
	Err   error
}

func (e *Error) Error() string {
	s := e.Op
	if e.Key != "" {
		s += " " + e.Key
	}
	s += ": " + e.Reason
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Key is where a blob is kept, without the prefix.
func Key(oid zodb.OID, tid zodb.TID) string {
	return fmt.Sprintf("blobs/%016x/%016x.blob", uint64(oid), uint64(tid))
}

// Open reads the configuration and finds the credentials. The server is not
// asked yet.
func Open(ctx context.Context, config Config) (*Store, error) {
	return nil, errors.ErrUnsupported
}

// Name is "s3://bucket/prefix", for messages.
func (s *Store) Name() string { return "s3://" + s.config.Bucket + "/" + s.config.Prefix }

// FullKey puts the prefix before a key.
func (s *Store) FullKey(key string) string { return s.config.Prefix + "/" + key }

// Probe writes a small object and removes it, so that a wrong bucket, a wrong
// key, a clock that is wrong or a missing right is found before the work.
func (s *Store) Probe(ctx context.Context) error { return errors.ErrUnsupported }

// Put uploads a blob and makes sure that the server has got it whole. sent is
// told of bytes that are confirmed. A *source.BlobError says that the blob cannot
// be read, an *Error that the store does not take it.
func (s *Store) Put(ctx context.Context, key string, b *source.Blob, sent func(n int64)) error {
	return errors.ErrUnsupported
}

// Has tells whether the store has exactly this blob under the key.
func (s *Store) Has(ctx context.Context, key string, b *source.Blob) (bool, error) {
	return false, errors.ErrUnsupported
}

// Delete removes an object; it may be gone already.
func (s *Store) Delete(ctx context.Context, key string) error { return errors.ErrUnsupported }
