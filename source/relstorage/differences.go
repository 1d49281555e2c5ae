package relstorage

import (
	"context"

	"github.com/zodb-convert/zodb-convert/source"
)

func (s *Source) Differences(ctx context.Context, have *source.Have, opts source.DifferenceOptions, emit func(*source.Chunk) error) error {
	panic("soon")
}
