package relstorage

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/source"
)

var errUnfinished = errors.New("relstorage: not read yet")

func (s *Source) Scan(ctx context.Context, opts source.ScanOptions) (*source.Info, error) {
	return nil, errUnfinished
}

func (s *Source) Read(ctx context.Context, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	return errUnfinished
}

func (s *Source) Data(ctx context.Context, r *source.Record, scratch *[]byte) ([]byte, error) {
	return nil, errUnfinished
}

func (s *Source) Transactions(ctx context.Context, fn func(*source.Transaction) error) error {
	return errUnfinished
}

func (s *Source) Growth(ctx context.Context) (source.Growth, error) {
	return source.Growth{}, errUnfinished
}

func (s *Source) Differences(ctx context.Context, have *source.Have, opts source.DifferenceOptions, emit func(*source.Chunk) error) error {
	return errUnfinished
}
