package relstorage

import (
	"context"
	"errors"
)

// readBlob reads large objects.
func (c *postgresConn) readBlob(ctx context.Context, b *storedBlob, p []byte, off int64) (int, error) {
	return 0, errors.New("relstorage: blobs are not read")
}
