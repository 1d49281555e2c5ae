package relstorage

import (
	"context"
	"fmt"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
)

// Data implements source.Source. Everything is in the chunk.
func (s *Source) Data(ctx context.Context, r *source.Record, scratch *[]byte) ([]byte, error) {
	if r.Deleted {
		return nil, nil
	}
	if !zrecord.Is(r.Raw) {
		return r.Raw, nil
	}
	z, ok := s.inflaters.Get().(*zrecord.Inflater)
	if !ok {
		z = new(zrecord.Inflater)
	}
	defer s.inflaters.Put(z)
	data, err := z.Inflate(r.Raw, scratch)
	if err != nil {
		return nil, &source.DamageError{
			Path:    s.engine.name(),
			Problem: fmt.Sprintf("the compressed data of oid %v, tid %v cannot be inflated: %v", r.OID, r.TID, err),
			Hint:    "restore the object from a backup, or repair it with the ZODB that wrote it",
		}
	}
	return data, nil
}
