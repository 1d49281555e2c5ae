// Package s3blob keeps blobs in an S3 bucket, under the keys that zodb-pgjsonb
// looks for:
//
//	[PREFIX/]blobs/<oid, 16 hex digits>/<tid, 16 hex digits>.blob
//
// The prefix belongs to the store; keys without it stand in blob_state.s3_key
// and in manifests.
//
// It guarantees:
//   - Put returns nil only if the server holds exactly the bytes of the blob.
//     Their SHA-256 is computed first and kept with the object as metadata
//     ("sha256"). Every request carries the SHA-256 of its body, signed, over
//     http and https alike, so that the server refuses what was changed on its
//     way. At the end the server's word on the whole object is compared: its
//     checksum where it is the MD5 of what was sent, else size, metadata and
//     number of parts.
//   - A failed part is sent again, not the whole object. A server that is away is
//     waited for (Config.Wait). What cannot be mended by waiting is an *Error
//     that says why and what to do.
//   - Keys are in no error, and no Store or Config prints them.
//   - Memory does not depend on the size or the number of blobs: small ones
//     (up to 512 KiB) are held in 32 buffers at most, 16 MiB; larger ones are
//     read from the file as they are sent, in parts of 8 MiB (more than 10,000
//     of them are not allowed, so that parts of blobs above 78 GiB are larger),
//     16 at once, with about 200 KiB for each request. All in all less than
//     32 MiB.
package s3blob

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// Config says where the bucket is and who asks. Its own formatting hides the
// keys; a struct that holds one in an unexported field must not be printed with
// %v, because package fmt does not ask there.
type Config struct {
	Bucket, Prefix string
	// EndpointURL is the server; "" for Amazon's, or what AWS_ENDPOINT_URL_S3,
	// AWS_ENDPOINT_URL or the profile name.
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
	// Stall is how long a request may make no progress before it is given up and
	// repeated; 0 is 30 seconds.
	Stall time.Duration
}

// String tells everything but the keys.
func (c Config) String() string {
	return fmt.Sprintf("s3://%s/%s at %q, region %q, access key %s, secret key %s",
		c.Bucket, c.Prefix, safeURL(c.EndpointURL), c.Region, given(c.AccessKey), given(c.SecretKey))
}

func given(key string) string {
	if key == "" {
		return "not given"
	}
	return "given"
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// Format is String, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// Store is an open bucket. It is safe for concurrent use.
type Store struct {
	// config is without the keys.
	config   Config
	endpoint string // for messages; "" for Amazon's
	plain    bool   // http
	client   *s3.Client
	// redact takes the keys out of a text. They are in no field that could be
	// printed.
	redact func(string) string

	// parts has room for the parts that may be on their way at once.
	parts chan struct{}
	// buffers holds the free buffers for small objects; nil ones are not yet
	// allocated.
	buffers chan []byte

	// answered is when the server last did what was asked, as nanoseconds since
	// opened; 0 for never.
	opened   time.Time
	answered atomic.Int64
	// headed: Probe has seen that HEAD is allowed.
	headed atomic.Bool

	waits waits
}

// String is Name.
func (s *Store) String() string { return s.Name() }

// GoString is Name.
func (s *Store) GoString() string { return s.Name() }

// Format is Name, whatever the verb.
func (s *Store) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.Name()) }

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

// Name is "s3://bucket/prefix", for messages.
func (s *Store) Name() string {
	if s.config.Prefix == "" {
		return "s3://" + s.config.Bucket
	}
	return "s3://" + s.config.Bucket + "/" + s.config.Prefix
}

// Bucket is the name of the bucket.
func (s *Store) Bucket() string { return s.config.Bucket }

// Prefix is what stands before every key, without a slash at its end.
func (s *Store) Prefix() string { return s.config.Prefix }

// FullKey puts the prefix before a key.
func (s *Store) FullKey(key string) string {
	if s.config.Prefix == "" {
		return key
	}
	return s.config.Prefix + "/" + key
}
