package pgjsonb

import (
	"context"

	"github.com/zodb-convert/zodb-convert/dest"
)

// maxBytea is the largest blob that a site can read back from a bytea column:
// zodb-pgjsonb asks for it as text, two hexadecimal digits a byte, and
// PostgreSQL makes no text of a gigabyte.
const maxBytea = 512<<20 - 1<<10

// LargestBlob is how many bytes a blob may have.
func (d *Destination) LargestBlob() int64 { return maxBytea }

// MissingBlobs calls fn for every blob that was not found.
func (s *session) MissingBlobs(context.Context, func(*dest.MissingBlob) error) error { return nil }

// Owed calls fn for every upload that is not done.
func (s *session) Owed(context.Context, func(*dest.OwedBlob) error) error { return nil }

// SettleBlobs does what is owed to S3.
func (s *session) SettleBlobs(context.Context, func(dest.UploadProgress)) error { return nil }

// Gone calls fn for the key of every object that is still to be removed.
func (s *session) Gone(context.Context, func(key string) error) error { return nil }
