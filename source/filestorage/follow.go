package filestorage

import (
	"context"
	"errors"

	"github.com/zodb-convert/zodb-convert/source"
)

// Follow implements source.Log. A chunk ends with the last transaction that
// ends in it, if there is one, so that a destination may commit as often as
// possible.
func (s *Source) Follow(ctx context.Context, from int64, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	sc, err := s.prepared(&opts)
	if err != nil {
		return err
	}
	if len(opts.Done) > 0 {
		return errors.New("filestorage: Follow takes no ranges that are done")
	}
	c := s.cutter(ctx, sc, opts.ChunkBytes)
	_, ok, err := c.transactionAt(from)
	if err != nil {
		return err
	}
	if !ok {
		return &ChangedError{s.path, from, "no transaction starts or ends there"}
	}
	tpos := from
	for pos := from; pos < sc.end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := c.next(pos, tpos)
		if err != nil {
			return err
		}
		if pos, tpos, err = s.followPiece(ctx, c, &p, &opts, emit); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// next is the piece of about a chunk that starts at pos, which is in the
// transaction at tpos.
func (c *cutter) next(pos, tpos int64) (piece, error) {
	i := c.find(pos)
	j := i + 1
	if c.chunk >= grid {
		j = c.group(i, pos)
	}
	p := c.join(i, j)
	p.off, p.tpos = pos, tpos
	if c.chunk >= grid || p.skip || p.units == 1 {
		return p, nil
	}
	parts, err := c.split(p, 1)
	if err != nil {
		return p, err
	}
	return parts[0], nil
}

// followPiece emits the piece, or as much of it as ends with a transaction, and
// returns where the next one starts.
func (s *Source) followPiece(ctx context.Context, c *cutter, p *piece, opts *source.ReadOptions, emit func(*source.Chunk) error) (pos, tpos int64, err error) {
	g, free, err := s.acquire(ctx, p, opts)
	if err != nil {
		return 0, 0, err
	}
	if err := g.load(s, p, c.end); err != nil {
		free()
		return 0, 0, err
	}
	end, whole, err := g.endTransaction(p, c)
	if err != nil {
		free()
		return 0, 0, err
	}
	for k, sp := range g.spans {
		last := len(g.recs)
		if k+1 < len(g.spans) {
			last = g.spans[k+1].first
		}
		for _, at := range g.recs[sp.first:last] {
			g.out = append(g.out, g.record(at, p.off, sp.tid))
		}
	}
	tpos = end
	if !whole {
		if tpos = p.tpos; len(g.spans) > 0 {
			tpos = g.spans[len(g.spans)-1].pos
		}
	}
	return end, tpos, emit(&source.Chunk{
		Range: source.Range{From: p.off, To: end}, Bytes: end - p.off,
		Transactions: g.txns, Records: g.out, EndsTransaction: whole, OnRelease: free,
	})
}

// endTransaction shortens the segment to the last transaction that ends in it,
// if it ends within another.
func (g *segment) endTransaction(p *piece, c *cutter) (end int64, whole bool, err error) {
	if _, whole, err = c.transactionAt(p.end); whole || err != nil || len(g.spans) == 0 {
		return p.end, whole, err
	}
	last := g.spans[len(g.spans)-1]
	if last.pos <= p.off { // the only transaction, and it goes on
		return p.end, false, nil
	}
	g.recs = g.recs[:last.first]
	g.spans = g.spans[:len(g.spans)-1]
	g.txns = g.txns[:len(g.txns)-1]
	return last.pos, true, nil
}
