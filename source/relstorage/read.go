package relstorage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// DecodeFactor is how many times the size of its largest record a chunk takes
	// from the budget beside the chunk itself: the value tree and the JSON text of
	// one record at a time.
	DecodeFactor = 5
	// RecordCost is what one record or transaction takes in memory beside its
	// bytes.
	RecordCost = 96
	// inflateGuess is how many times its size a compressed record is expected to
	// take.
	inflateGuess = 4
)

// piece is a range that becomes one chunk.
type piece struct {
	from, to pos
	bytes    int64 // at most
	largest  int64
	units    int64
	blobs    int64
}

// weight is what the piece takes from the budget.
func (sc *scan) weight(p *piece) int64 {
	decode := int64(DecodeFactor)
	if sc.compressed {
		decode *= inflateGuess
	}
	return p.bytes + RecordCost*p.units + decode*p.largest
}

// gaps gives what the ranges that are done leave between start and last.
func (sc *scan) gaps(done []source.Range) ([]piece, error) {
	list := slices.Clone(done)
	slices.SortFunc(list, func(a, b source.Range) int {
		switch x, y := (pos{a.From, a.FromSub}), (pos{b.From, b.FromSub}); {
		case x.less(y):
			return -1
		case y.less(x):
			return 1
		}
		return 0
	})
	var out []piece
	at, last := start, sc.last()
	for _, r := range list {
		from, to := pos{r.From, r.FromSub}, pos{r.To, r.ToSub}
		if from.less(start) || last.less(to) || !from.less(to) {
			return nil, fmt.Errorf("relstorage: the range %v that is done already is none of this kind of source", r)
		}
		if at.less(from) {
			out = append(out, piece{from: at, to: from})
		}
		if at.less(to) {
			at = to
		}
	}
	if at.less(last) {
		out = append(out, piece{from: at, to: last})
	}
	return out, nil
}

// pieces cuts a gap. Where it starts or ends between two cuts, it holds at most
// what stands between them.
func (sc *scan) pieces(gap piece, chunk int64, fn func(piece) error) error {
	if len(sc.cuts) == 0 {
		return nil
	}
	i := max(sort.Search(len(sc.cuts), func(i int) bool { return gap.from.less(sc.cuts[i].at) })-1, 0)
	for at := gap.from; at.less(gap.to); {
		p := piece{from: at}
		for ; i < len(sc.cuts) && sc.cuts[i].at.less(gap.to); i++ {
			k := &sc.cuts[i]
			if p.units > 0 && (chunk < grid || p.bytes+k.bytes+blobWeight*(p.blobs+int64(k.blobs)) > chunk || !sc.history && k.at.a != at.a) {
				break
			}
			p.bytes += k.bytes
			p.largest = max(p.largest, k.largest)
			p.units += int64(k.units)
			p.blobs += int64(k.blobs)
		}
		p.to = gap.to
		if i < len(sc.cuts) && sc.cuts[i].at.less(gap.to) {
			p.to = sc.cuts[i].at
		}
		if err := fn(p); err != nil {
			return err
		}
		at = p.to
	}
	return nil
}

// split cuts a piece finer than the grid, for chunks that are smaller.
func (s *Source) split(ctx context.Context, v *view, sc *scan, p piece, chunk int64) ([]piece, error) {
	var k cutter
	err := v.do(ctx, func(c conn) error {
		k = cutter{from: p.from, limit: chunk, flat: !sc.history}
		return sc.walk(ctx, c, p.from, p.to, func(u *unit) error {
			k.add(u)
			return nil
		})
	})
	if err != nil || len(k.cuts) == 0 {
		return []piece{p}, err
	}
	list := make([]piece, len(k.cuts))
	for i, c := range k.cuts {
		list[i] = piece{from: c.at, to: p.to, bytes: c.bytes, largest: c.largest, units: int64(c.units)}
		if i > 0 {
			list[i-1].to = c.at
		}
	}
	return list, nil
}

// segment is the memory of one chunk, used again and again.
type segment struct {
	buf  []byte
	txns []source.Transaction
	recs []source.Record
	read int64 // bytes of what was read, as in unit.bytes
}

func (s *Source) segment(p *piece) *segment {
	g, ok := s.segments.Get().(*segment)
	if !ok {
		g = new(segment)
	}
	g.buf, g.txns, g.recs, g.read = slices.Grow(g.buf[:0], int(p.bytes)), g.txns[:0], g.recs[:0], 0
	return g
}

// keepSegment bounds what stays allocated after a chunk was released, as a
// multiple of ChunkBytes: the buffer of a huge record goes.
const keepSegment = 2

func (s *Source) recycle(g *segment, chunkBytes int64) {
	if int64(cap(g.buf)) <= max(keepSegment*chunkBytes, grid) {
		s.segments.Put(g)
	}
}

// errMoved is a view that is none.
var errMoved = errors.New("there is more than the scan has seen, although both look at the same state: the server does not keep it still; read it with one connection, without a pooler")

// keep copies bytes into the buffer, which never grows: what was taken from the
// budget is what the scan has seen.
func (g *segment) keep(b []byte) ([]byte, error) {
	n := len(g.buf)
	if len(b) > cap(g.buf)-n {
		return nil, errMoved
	}
	g.buf = append(g.buf, b...)
	return g.buf[n:len(g.buf):len(g.buf)], nil
}

func (g *segment) header(r row) error {
	tid, err := r.int(0)
	if err != nil {
		return err
	}
	t := source.Transaction{TID: zodb.TID(tid)}
	g.read += rowBytes
	if len(r.values) > 1 {
		for i, to := range []*[]byte{&t.User, &t.Description, &t.Extension} {
			if *to, err = g.keep(r.bytes(i + 1)); err != nil {
				return err
			}
			g.read += int64(len(*to))
		}
	}
	g.txns = append(g.txns, t)
	return nil
}

// row takes in zoid, tid, state and whether it is current.
func (g *segment) row(r row) error {
	zoid, err := r.int(0)
	if err != nil {
		return err
	}
	tid, err := r.int(1)
	if err != nil {
		return err
	}
	current, err := r.int(3)
	if err != nil {
		return err
	}
	rec := source.Record{OID: zodb.OID(zoid), TID: zodb.TID(tid), Current: current != 0}
	if state := r.bytes(2); len(state) == 0 {
		rec.Deleted = true
	} else if rec.Raw, err = g.keep(state); err != nil {
		return err
	}
	g.read += rowBytes + int64(len(rec.Raw))
	g.recs = append(g.recs, rec)
	return nil
}

// load reads a piece.
func (sc *scan) load(ctx context.Context, c conn, p *piece, g *segment) error {
	if sc.history {
		return sc.loadRevisions(ctx, c, p, g)
	}
	if p.from.less(objects) {
		hi := int64(math.MaxInt64)
		if p.to.less(objects) {
			hi = p.to.b
		}
		return c.query(ctx, sc.q.headerRows(p.from.b, hi, 0), g.header)
	}
	hi := int64(math.MaxInt64)
	if p.to.less(flatEnd) {
		hi = p.to.b
	}
	return c.query(ctx, sc.q.currentRows(p.from.b, hi), g.row)
}

func (sc *scan) loadRevisions(ctx context.Context, c conn, p *piece, g *segment) error {
	if sc.q.history {
		lo, hi := p.headers()
		if lo < hi {
			if err := c.query(ctx, sc.q.headerRows(lo, hi, 0), g.header); err != nil {
				return err
			}
		}
		return c.query(ctx, sc.q.revisionRows(p.from, p.to), g.row)
	}
	tid := zodb.TID(p.from.a)
	if p.from.b < 0 {
		tid--
	}
	return c.query(ctx, sc.q.revisionRows(p.from, p.to), func(r row) error {
		if err := g.row(r); err != nil {
			return err
		}
		if rec := &g.recs[len(g.recs)-1]; rec.TID != tid {
			tid = rec.TID
			g.txns = append(g.txns, source.Transaction{TID: tid})
			g.read += rowBytes
		}
		return nil
	})
}

// headers are the tids, from lo to before hi, whose headers stand in the piece.
func (p *piece) headers() (lo, hi int64) {
	lo, hi = p.from.a, p.to.a
	if p.from.b > headerSub {
		lo++
	}
	if p.to.b > headerSub && hi < math.MaxInt64 {
		hi++
	}
	return lo, hi
}

// fetch is a piece on its way.
type fetch struct {
	piece piece
	done  chan struct{} // closed when chunk or err is set
	chunk *source.Chunk
	err   error
}

// Read implements source.Source. Chunks come in reading order, oldest first; the
// rows of several are under way at a time, on as many connections.
func (s *Source) Read(ctx context.Context, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	if opts.ChunkBytes <= 0 || opts.Budget == nil {
		return errors.New("relstorage: ReadOptions need ChunkBytes and a Budget")
	}
	v, sc, err := s.scanned()
	if err != nil {
		return err
	}
	if opts.History != sc.history {
		if sc, err = s.remeasure(ctx, v, sc, opts.History); err != nil {
			return err
		}
	}
	gaps, err := sc.gaps(opts.Done)
	if err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	inner, cancel := context.WithCancel(inner)
	queue := make(chan *fetch, max(min(s.opts.Connections, v.n)-1, 0))
	group.Go(func() error {
		defer close(queue)
		for _, gap := range gaps {
			if err := sc.pieces(gap, opts.ChunkBytes, func(p piece) error {
				return s.dispatch(inner, group, v, sc, p, &opts, queue)
			}); err != nil {
				return err
			}
		}
		return nil
	})
	emitted := s.deliver(ctx, queue, cancel, emit)
	cancel()
	// One that failed cancels the others, which may come earlier.
	if err := group.Wait(); emitted == nil || errors.Is(emitted, context.Canceled) && ctx.Err() == nil && err != nil {
		return err
	}
	return emitted
}

// remeasure finds the cuts for the other order of reading.
func (s *Source) remeasure(ctx context.Context, v *view, sc *scan, history bool) (*scan, error) {
	other := &scan{q: sc.q, history: history, end: sc.end, highest: sc.highest, digest: sc.digest, compressed: sc.compressed}
	err := v.do(ctx, func(c conn) error { return s.measure(ctx, c, other, new(source.Info), nil) })
	return other, err
}

// dispatch takes the memory for a piece and starts to read it. It waits until
// the chunks before are far enough.
func (s *Source) dispatch(ctx context.Context, group *errgroup.Group, v *view, sc *scan, p piece, opts *source.ReadOptions, queue chan<- *fetch) error {
	list := []piece{p}
	if opts.ChunkBytes < grid {
		var err error
		if list, err = s.split(ctx, v, sc, p, opts.ChunkBytes); err != nil {
			return err
		}
	}
	for _, p := range list {
		weight := sc.weight(&p)
		if err := opts.Budget.Acquire(ctx, weight); err != nil {
			return fmt.Errorf("relstorage: wait for memory to read %v: %w", p.rang(), err)
		}
		f := &fetch{piece: p, done: make(chan struct{})}
		group.Go(func() error {
			defer close(f.done)
			f.chunk, f.err = s.fetch(ctx, v, sc, &p, weight, opts)
			return f.err
		})
		select {
		case queue <- f:
		case <-ctx.Done():
			<-f.done
			if f.chunk != nil {
				f.chunk.Release()
			}
			return ctx.Err()
		}
	}
	return nil
}

func (p *piece) rang() source.Range {
	return source.Range{From: p.from.a, FromSub: p.from.b, To: p.to.a, ToSub: p.to.b}
}

// fetch reads a piece. The memory is given back with the chunk, or at once.
func (s *Source) fetch(ctx context.Context, v *view, sc *scan, p *piece, weight int64, opts *source.ReadOptions) (*source.Chunk, error) {
	g := s.segment(p)
	forget := func() {}
	free := func() {
		forget()
		s.recycle(g, opts.ChunkBytes)
		opts.Budget.Release(weight)
	}
	err := v.do(ctx, func(c conn) (err error) {
		if err := sc.load(ctx, c, p, g); err != nil {
			return err
		}
		forget, err = s.locateBlobs(ctx, c, g.recs)
		return err
	})
	if err != nil {
		free()
		return nil, s.failed(fmt.Sprintf("read %v", p.rang()), err)
	}
	return &source.Chunk{Range: p.rang(), Transactions: g.txns, Records: g.recs, Bytes: g.read, OnRelease: free}, nil
}

// deliver emits the chunks in order. After an error it stops the reading and
// gives back the rest.
func (s *Source) deliver(ctx context.Context, queue <-chan *fetch, cancel func(), emit func(*source.Chunk) error) (err error) {
	for f := range queue {
		<-f.done
		if err == nil {
			if err = ctx.Err(); err == nil {
				err = f.err
			}
			if err == nil {
				if err = emit(f.chunk); err == nil {
					continue
				}
				cancel()
				continue // emit owns the chunk
			}
			cancel()
		}
		if f.chunk != nil {
			f.chunk.Release()
		}
	}
	return err
}

// transactionPage is how many transactions Transactions asks for at a time, and
// transactionBytes from how many bytes on it takes no more of them.
const (
	transactionPage  = 1000
	transactionBytes = 1 << 20
)

// Transactions implements source.Source.
func (s *Source) Transactions(ctx context.Context, fn func(*source.Transaction) error) error {
	v, sc, err := s.scanned()
	if err != nil {
		return err
	}
	var g segment
	for from := int64(0); ; {
		g.txns, g.buf = g.txns[:0], nil
		err := v.do(ctx, func(c conn) error {
			err := c.query(ctx, sc.q.headerRows(from, math.MaxInt64, transactionPage), func(r row) error {
				if len(g.buf) >= transactionBytes {
					return errEnough
				}
				size := 0
				for _, v := range r.values[1:] {
					size += len(v)
				}
				g.buf = slices.Grow(g.buf, size)
				return g.header(r)
			})
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		})
		if err != nil {
			return s.failed("read the transactions", err)
		}
		for i := range g.txns {
			if err := fn(&g.txns[i]); err != nil {
				return err
			}
		}
		if len(g.txns) == 0 {
			return nil
		}
		from = int64(g.txns[len(g.txns)-1].TID) + 1
	}
}

// Growth implements source.Source.
func (s *Source) Growth(ctx context.Context) (source.Growth, error) {
	if s.scan == nil {
		return source.Growth{}, errNotScanned
	}
	sc := s.scan
	v, err := s.newView(ctx, 1)
	if err != nil {
		return source.Growth{}, err
	}
	defer v.close()
	var g source.Growth
	err = v.do(ctx, func(c conn) error {
		now, err := s.identity(ctx, c, sc.end)
		if err != nil {
			return err
		}
		q := "SELECT COUNT(DISTINCT tid), MIN(tid) FROM object_state"
		if s.history {
			q = "SELECT COUNT(*), MIN(tid) FROM " + sc.q.d.transaction
		}
		highest, err := s.bounds(ctx, c, sc)
		if err != nil {
			return err
		}
		g.Replaced = now.Digest != sc.digest || highest < sc.end
		return c.query(ctx, q+fmt.Sprintf(" WHERE tid > %d", sc.end), func(r row) error {
			n, err := r.int(0)
			if err != nil {
				return err
			}
			since, err := r.int(1)
			g.Transactions, g.Since = n, zodb.TID(since)
			return err
		})
	})
	return g, s.failed("look at it again", err)
}
