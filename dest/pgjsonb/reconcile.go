package pgjsonb

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

var errReconcile = errors.New("a database that is a table cannot be compared")

// Have gives what is there to Table.Differences.
func (s *session) Have(ctx context.Context) (*source.Have, func(), error) {
	return nil, nil, errReconcile
}

// Reconciler writes the chunks of Table.Differences.
func (s *session) Reconciler(ctx context.Context, src source.Table) (dest.Writer, error) {
	return nil, errReconcile
}
