package filestorage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/zodb-convert/zodb-convert/source"
)

// piece is a range of the file that becomes one chunk. It starts at a record or
// at a transaction; tpos is the transaction that its start is in.
type piece struct {
	off, end int64
	tpos     int64
	largest  int64
	units    int64
	skip     bool // holds no records and need not be read
}

// weight is what the piece takes from the budget.
func (p *piece) weight() int64 {
	if p.skip {
		return 0
	}
	return p.end - p.off + RecordCost*p.units + DecodeFactor*p.largest
}

// cutter knows where a scanned file may be cut.
type cutter struct {
	s     *Source
	cuts  []cut // of the whole scanned range, without the open one
	open  cut
	end   int64
	chunk int64 // ReadOptions.ChunkBytes
	w     *window
}

func (s *Source) cutter(ctx context.Context, sc *scan, chunkBytes int64) *cutter {
	return &cutter{s: s, cuts: sc.cuts, open: sc.open, end: sc.end, chunk: chunkBytes,
		w: newWindow(s.f, sc.end, walkWindow, func(int64) error { return ctx.Err() })}
}

// n is the number of cuts, at gives one as a piece.
func (c *cutter) n() int {
	if c.open.units == 0 {
		return len(c.cuts)
	}
	return len(c.cuts) + 1
}

func (c *cutter) get(i int) cut {
	if i < len(c.cuts) {
		return c.cuts[i]
	}
	return c.open
}

// off is where cut i starts; i may be n.
func (c *cutter) off(i int) int64 {
	if i == c.n() {
		return c.end
	}
	return c.get(i).off
}

// find is the cut that pos is in.
func (c *cutter) find(pos int64) int {
	return sort.Search(c.n(), func(i int) bool { return c.off(i) > pos }) - 1
}

// join makes one piece of the cuts i to j-1.
func (c *cutter) join(i, j int) piece {
	first := c.get(i)
	p := piece{off: first.off, end: c.off(j), tpos: first.tpos, skip: first.skip && j == i+1}
	for ; i < j; i++ {
		k := c.get(i)
		p.largest = max(p.largest, k.largest)
		p.units += int64(k.units)
	}
	return p
}

// group is the end of the chunk of whole cuts that starts with cut i at from.
func (c *cutter) group(i int, from int64) int {
	blobs := int64(c.get(i).blobs)
	for i++; i < c.n(); i++ {
		blobs += int64(c.get(i).blobs)
		if c.off(i+1)-from+blobWeight*blobs > c.chunk {
			break
		}
	}
	return i
}

// groups gives the first cut of each group, and n at the end.
func (c *cutter) groups() []int {
	list := []int{0}
	for i := 0; i < c.n(); {
		if c.chunk < grid {
			i++
		} else {
			i = c.group(i, c.off(i))
		}
		list = append(list, i)
	}
	return list
}

// pieces gives the chunks of the cuts i to j-1, in file order.
func (c *cutter) pieces(i, j int) ([]piece, error) {
	p := c.join(i, j)
	if c.chunk >= grid || p.skip || p.units == 1 {
		return []piece{p}, nil
	}
	return c.split(p, math.MaxInt)
}

// split cuts a piece finer than the grid, or only the first so many parts of it. What the largest record of each part is stays unknown, so each
// counts with that of the whole.
func (c *cutter) split(p piece, most int) ([]piece, error) {
	list := []piece{{off: p.off, tpos: p.tpos, largest: p.largest}}
	err := c.s.units(c.w, &p, func(u unit) error {
		last := &list[len(list)-1]
		if last.units > 0 && u.end-last.off > c.chunk {
			if last.end = u.off; len(list) == most {
				return errEnough
			}
			list = append(list, piece{off: u.off, tpos: u.t.pos, largest: p.largest})
			last = &list[len(list)-1]
		}
		last.skip = last.units == 0 && u.t.status == undone
		last.units++
		return nil
	})
	if err == errEnough {
		return list, nil
	}
	list[len(list)-1].end = p.end
	return list, err
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// unit is a part of the file that is never cut.
type unit struct {
	t        *txn
	off, end int64
	rec      *rec // nil for a header and for a transaction without records
}

// units calls fn for each unit of a piece.
func (s *Source) units(w *window, p *piece, fn func(unit) error) error {
	t, err := s.headerAt(w, p.tpos)
	if err != nil {
		return err
	}
	for pos := p.off; pos < p.end; {
		u := unit{t: &t, off: pos}
		switch {
		case pos >= t.next():
			if t, err = s.headerAt(w, pos); err != nil {
				return err
			}
			fallthrough
		case pos == t.pos:
			if u.end = pos + t.header(); t.status == undone {
				u.end = t.end()
			}
		default:
			r, err := s.recordAt(w, &t, pos)
			if err != nil {
				return err
			}
			u.rec, u.end = &r, r.end()
		}
		if u.end == t.end() {
			u.end = t.next()
		}
		if err := fn(u); err != nil {
			return err
		}
		pos = u.end
	}
	return nil
}

// transactionAt finds the cut that pos is in, and tells whether a transaction
// starts at pos.
func (c *cutter) transactionAt(pos int64) (i int, ok bool, err error) {
	if pos < firstPos || pos >= c.end {
		return c.n(), pos == c.end, nil
	}
	i = c.find(pos)
	for at := c.get(i).tpos; at < pos; {
		t, err := c.s.headerAt(c.w, at)
		if err != nil {
			return 0, false, err
		}
		if at = t.next(); at > pos {
			return i, false, nil
		}
	}
	return i, true, nil
}

// boundaries tells where chunks start. It keeps the pieces of the last group
// that was asked for.
type boundaries struct {
	c      *cutter
	groups []int
	group  int
	pieces []piece
}

// has tells whether a chunk starts or ends at pos.
func (b *boundaries) has(pos int64) (bool, error) {
	c := b.c
	if pos == c.end || pos == firstPos {
		return true, nil
	}
	if pos < firstPos || pos > c.end {
		return false, nil
	}
	g := sort.Search(len(b.groups), func(g int) bool { return c.off(b.groups[g]) > pos }) - 1
	if c.off(b.groups[g]) == pos {
		return true, nil
	}
	if b.pieces == nil || b.group != g {
		var err error
		if b.pieces, err = c.pieces(b.groups[g], b.groups[g+1]); err != nil {
			return false, err
		}
		b.group = g
	}
	i := sort.Search(len(b.pieces), func(i int) bool { return b.pieces[i].off >= pos })
	return i < len(b.pieces) && b.pieces[i].off == pos, nil
}

// done prepares the ranges that need not be read: sorted, joined, and checked to
// be made of whole chunks. Anything else means that they come from another file
// or another chunk size, and would lead to records that are loaded twice or not
// at all.
func (c *cutter) done(groups []int, ranges []source.Range) ([]source.Range, error) {
	list := slices.Clone(ranges)
	slices.SortFunc(list, func(a, b source.Range) int {
		switch {
		case a.From < b.From:
			return -1
		case a.From > b.From:
			return 1
		}
		return 0
	})
	chunk := boundaries{c: c, groups: groups}
	out := list[:0]
	for _, r := range list {
		for _, pos := range []int64{r.From, r.To} {
			if ok, err := chunk.has(pos); err != nil {
				return nil, err
			} else if !ok || r.From >= r.To {
				return nil, fmt.Errorf("%s: the range %d-%d that is done already is not made of chunks of %d bytes of this file", c.s.path, r.From, r.To, c.chunk)
			}
		}
		if n := len(out); n > 0 && r.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// covered tells whether one of the sorted ranges covers p.
func covered(ranges []source.Range, p *piece) bool {
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].To > p.off })
	return i < len(ranges) && ranges[i].From <= p.off
}
