package filestorage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// segment is the memory of one chunk, used again and again.
type segment struct {
	buf   []byte
	recs  []int  // where in buf the records start, in file order
	spans []span // the transactions they belong to
	txns  []source.Transaction
	out   []source.Record
}

// span is the part of a segment's records that belongs to one transaction.
type span struct {
	first int // index into recs
	pos   int64
	tid   zodb.TID
}

func (s *Source) segment() *segment {
	if g, ok := s.segments.Get().(*segment); ok {
		return g
	}
	return new(segment)
}

// keepSegment bounds what stays allocated after a chunk was released, as a
// multiple of ChunkBytes: the buffer of a huge record goes.
const keepSegment = 2

func (s *Source) recycle(g *segment, chunkBytes int64) {
	if int64(cap(g.buf)) <= keepSegment*chunkBytes || cap(g.buf) <= grid {
		s.segments.Put(g)
	}
}

// load reads a piece of the file into the segment and finds its records.
func (g *segment) load(s *Source, p *piece, limit int64) error {
	g.recs, g.spans, g.txns, g.out = slices.Grow(g.recs[:0], int(p.units)), g.spans[:0], g.txns[:0], g.out[:0]
	if p.skip {
		g.buf = g.buf[:0]
		return nil
	}
	g.buf = sized(g.buf, p.end-p.off)
	if n, err := s.f.ReadAt(g.buf, p.off); n < len(g.buf) {
		if err == io.EOF {
			err = errShort
		}
		return s.walkError(p.off+int64(n), err)
	}
	var t txn
	if p.off > p.tpos {
		w := window{r: s.f, limit: limit}
		var b [txnFixed]byte
		if err := w.small(b[:], p.tpos); err != nil {
			return s.walkError(p.tpos, err)
		}
		if t = parseTxn(b[:], p.tpos); !t.fits(limit) || t.end() <= p.off {
			return s.damageNow(p.tpos, errMoved)
		}
		g.spans = append(g.spans, span{0, t.pos, t.tid})
	}
	return g.parse(s, p, t, limit)
}

var errMoved = &fault{"the file is not as it was when it was scanned", restoreHint}

// parse finds the transactions and records of the segment. t is the transaction
// that its start is in, if it does not start with one. The scan has checked all
// of this; it is checked again because nothing forbids to change a file.
func (g *segment) parse(s *Source, p *piece, t txn, limit int64) error {
	i := 0
	for i < len(g.buf) {
		pos := p.off + int64(i)
		if t.pos == 0 || pos >= t.next() {
			next, err := g.transaction(s, i, pos, limit)
			if err != nil {
				return err
			}
			t, i = next, i+int(next.header())
			if t.status == undone {
				i = int(t.end() - p.off)
			} else {
				g.spans = append(g.spans, span{len(g.recs), t.pos, t.tid})
			}
		} else {
			end := int(min(t.end()-p.off, int64(len(g.buf))))
			n, err := g.records(i, end, &t)
			if err != nil {
				return s.damageNow(p.off+int64(n), errMoved)
			}
			i = n
		}
		if p.off+int64(i) == t.end() {
			i += trailer
		}
	}
	if i != len(g.buf) {
		return s.damageNow(p.end, errMoved)
	}
	return nil
}

// transaction takes in the transaction header at g.buf[i:].
func (g *segment) transaction(s *Source, i int, pos, limit int64) (txn, error) {
	if len(g.buf)-i < txnFixed {
		return txn{}, s.damageNow(pos, errMoved)
	}
	t := parseTxn(g.buf[i:], pos)
	if !t.fits(limit) || !t.long() || int64(len(g.buf)-i) < t.header() {
		return txn{}, s.damageNow(pos, errMoved)
	}
	if t.status != undone {
		g.txns = append(g.txns, t.transaction(g.buf[i:i+int(t.header())]))
	}
	return t, nil
}

// records takes in the records in g.buf[i:end] and returns where they end.
//
// This loop and the two in reader run once for each record of the file:
// 38 ns for one of 300 bytes, of which a third is the copy from the page
// cache (BenchmarkRead).
func (g *segment) records(i, end int, t *txn) (int, error) {
	for i < end {
		if end-i < recHeader {
			return i, errShort
		}
		b := g.buf[i:end]
		tloc, vlen, plen := binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint16(b[32:]), binary.BigEndian.Uint64(b[34:])
		body := plen
		if plen == 0 {
			body = 8
		}
		if tloc != uint64(t.pos) || vlen != 0 || body > uint64(len(b)-recHeader) {
			return i, errShort
		}
		g.recs = append(g.recs, i)
		i += recHeader + int(body)
	}
	return i, nil
}

// record makes the public form of the record at g.buf[i:], which records has
// found.
func (g *segment) record(i int, off int64, tid zodb.TID) source.Record {
	b := g.buf[i:]
	r := source.Record{OID: zodb.OID(binary.BigEndian.Uint64(b)), TID: tid, Pos: off + int64(i)}
	if plen := int(binary.BigEndian.Uint64(b[34:])); plen > 0 {
		r.Raw = b[recHeader : recHeader+plen : recHeader+plen]
	} else {
		r.Back = int64(binary.BigEndian.Uint64(b[recHeader:]))
		r.Deleted = r.Back == 0
	}
	return r
}

// reader is one Read.
type reader struct {
	s    *Source
	opts source.ReadOptions
	cut  *cutter
	seen *oidSet // the scan's
	txn  txnSet
	emit func(*source.Chunk) error
}

// Read implements source.Source. A set of seen oids is its only memory of what
// went before, and a second one while it is in a transaction of many records.
// The first is the set that the scan has made: emptied, and full again at the
// end, so that there are never two of them.
func (s *Source) Read(ctx context.Context, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	sc, err := s.prepared(&opts)
	if err != nil {
		return err
	}
	r := &reader{s: s, opts: opts, cut: s.cutter(ctx, sc, opts.ChunkBytes), seen: sc.oids, emit: emit}
	groups := r.cut.groups()
	done, err := r.cut.done(groups, opts.Done)
	if err != nil {
		return err
	}
	if sc.oids.thin > 0 {
		return fmt.Errorf("%s: the set of its oids takes more memory than allowed", s.path)
	}
	sc.lost = true // until every oid was seen again
	r.seen.max = 0
	r.seen.clear()
	for g := len(groups) - 2; g >= 0; g-- {
		pieces, err := r.cut.pieces(groups[g], groups[g+1])
		if err != nil {
			return err
		}
		for _, p := range slices.Backward(pieces) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if covered(done, &p) {
				err = r.recall(ctx, &p)
			} else {
				err = r.read(ctx, &p)
			}
			if err != nil {
				return err
			}
		}
	}
	sc.lost = false
	return nil
}

func (s *Source) prepared(opts *source.ReadOptions) (*scan, error) {
	if opts.ChunkBytes <= 0 || opts.Budget == nil {
		return nil, errors.New("filestorage: ReadOptions need ChunkBytes and a Budget")
	}
	return s.scanned()
}

// read emits a piece as a chunk.
func (r *reader) read(ctx context.Context, p *piece) error {
	g, free, err := r.s.acquire(ctx, p, &r.opts)
	if err != nil {
		return err
	}
	if err := g.load(r.s, p, r.cut.end); err != nil {
		free()
		return err
	}
	c := &source.Chunk{Range: source.Range{From: p.off, To: p.end}, Bytes: p.end - p.off, OnRelease: free}
	r.choose(g, p, c)
	slices.Reverse(g.txns)
	c.Transactions, c.Records = g.txns, g.out
	return r.emit(c)
}

// acquire takes the memory for a piece; free gives it back.
func (s *Source) acquire(ctx context.Context, p *piece, opts *source.ReadOptions) (g *segment, free func(), err error) {
	weight := p.weight()
	if err := opts.Budget.Acquire(ctx, weight); err != nil {
		return nil, nil, fmt.Errorf("%s: wait for memory to read offsets %d to %d: %w", s.path, p.off, p.end, err)
	}
	g = s.segment()
	return g, func() {
		s.recycle(g, opts.ChunkBytes)
		opts.Budget.Release(weight)
	}, nil
}

// choose decides, from the last record to the first, which ones the chunk gives.
func (r *reader) choose(g *segment, p *piece, c *source.Chunk) {
	g.out = slices.Grow(g.out, len(g.recs))
	last := len(g.recs)
	for _, sp := range slices.Backward(g.spans) {
		r.txn.enter(sp.pos)
		for i := last - 1; i >= sp.first; i-- {
			at := g.recs[i]
			oid := zodb.OID(binary.BigEndian.Uint64(g.buf[at:]))
			current := r.seen.add(oid)
			if current {
				r.txn.add(oid)
			} else if !r.txn.addNew(oid) {
				c.Dropped++
				continue
			} else if !r.opts.History {
				c.Superseded++
				continue
			}
			out := g.record(at, p.off, sp.tid)
			out.Current = current
			g.out = append(g.out, out)
		}
		last = sp.first
	}
}

// recall takes in what a piece that was emitted by an earlier Read has decided.
func (r *reader) recall(ctx context.Context, p *piece) error {
	if p.skip {
		return nil
	}
	if err := r.opts.Budget.Acquire(ctx, walkWindow); err != nil {
		return err
	}
	defer r.opts.Budget.Release(walkWindow)
	if p.off > p.tpos {
		r.txn.enter(p.tpos) // goes on in the piece before
	}
	return r.s.units(r.cut.w, p, func(u unit) error {
		if u.rec == nil {
			return nil
		}
		r.seen.add(u.rec.oid)
		if p.off > p.tpos && u.t.pos == p.tpos {
			r.txn.addNew(u.rec.oid)
		}
		return nil
	})
}

// txnSet is the set of oids met in one transaction. Most transactions are
// small, so the first few are searched one by one.
type txnSet struct {
	pos  int64 // of the transaction
	few  []zodb.OID
	many *oidSet
	used bool // many holds something
}

const fewOIDs = 16

// enter empties the set unless it is that of the transaction at pos already.
func (s *txnSet) enter(pos int64) {
	if s.pos == pos {
		return
	}
	s.pos, s.few = pos, s.few[:0]
	if s.used {
		s.many.clear()
		s.used = false
	}
}

// addNew adds an oid and tells whether it is new.
func (s *txnSet) addNew(oid zodb.OID) bool {
	if slices.Contains(s.few, oid) {
		return false
	}
	return s.add(oid)
}

// add adds an oid that is not among the few.
func (s *txnSet) add(oid zodb.OID) bool {
	if len(s.few) < fewOIDs {
		s.few = append(s.few, oid)
		return true
	}
	if s.many == nil {
		s.many = newOIDSet()
	}
	s.used = true
	return s.many.add(oid)
}
