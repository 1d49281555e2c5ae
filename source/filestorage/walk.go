package filestorage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// walkWindow bounds the buffer of walks over headers other than the scan. It
// holds the longest transaction header.
const walkWindow = 256 << 10

// headerAt reads the fixed part of a transaction header in the scanned range and checks it
// again as far as the walk depends on it.
func (s *Source) headerAt(w *window, pos int64) (txn, error) {
	b, err := w.at(pos, txnFixed)
	if err != nil {
		return txn{}, s.walkError(pos, err)
	}
	t := parseTxn(b, pos)
	if !t.fits(w.limit) || !t.long() {
		return txn{}, s.damageNow(pos, &fault{"the transaction that stood here when the file was scanned does not any more", restoreHint})
	}
	return t, nil
}

// recordAt reads the header of the record at pos in the transaction t, and its
// back pointer if it has one.
func (s *Source) recordAt(w *window, t *txn, pos int64) (rec, error) {
	if t.end()-pos < recHeader {
		return rec{}, s.damageNow(pos, &fault{"the record that stood here when the file was scanned does not any more", restoreHint})
	}
	b, err := w.at(pos, recHeader)
	if err != nil {
		return rec{}, s.walkError(pos, err)
	}
	r := parseRec(b, pos)
	if f := r.check(t.pos, t.end()); f != nil {
		return rec{}, s.damageNow(pos, f)
	}
	return r, nil
}

func (s *Source) walkError(pos int64, err error) error {
	if errors.Is(err, errShort) {
		return s.damageNow(pos, &fault{"the file became shorter than it was when it was scanned", restoreHint})
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%s: %w", s.path, err)
}

// damageNow is damage that the scan did not see: the file has changed, or the
// scan does not look at it (compressed data).
func (s *Source) damageNow(pos int64, f *fault) error {
	return s.damage(pos, s.before(pos), f)
}

// before is the tid of the last transaction that ends at or before pos, as far
// as it can be found, for messages.
func (s *Source) before(pos int64) zodb.TID {
	c := s.cutter(context.Background(), s.scan, grid)
	for i := c.find(min(pos, c.end-1)); i >= 0; {
		start := c.get(i).tpos
		var last zodb.TID
		for at := start; at < pos; {
			b, err := c.w.at(at, txnFixed)
			if err != nil {
				break
			}
			t := parseTxn(b, at)
			if !t.fits(pos) || !t.long() {
				break
			}
			if t.status != undone {
				last = t.tid
			}
			at = t.next()
		}
		if last != 0 {
			return last
		}
		for i >= 0 && c.get(i).tpos >= start { // the cuts within a long transaction
			i--
		}
	}
	return 0
}

// eachTxn calls fn for the transactions between two offsets, undone ones
// included. fn may read the rest of the transaction through the window.
func (s *Source) eachTxn(ctx context.Context, from, to int64, fn func(*window, *txn) error) error {
	w := newWindow(s.f, to, walkWindow, func(int64) error { return ctx.Err() })
	for pos := from; pos < to; {
		t, err := s.headerAt(w, pos)
		if err != nil {
			return err
		}
		if err := fn(w, &t); err != nil {
			return err
		}
		pos = t.next()
	}
	return ctx.Err()
}

// Transactions implements source.Source.
func (s *Source) Transactions(ctx context.Context, fn func(*source.Transaction) error) error {
	sc, err := s.scanned()
	if err != nil {
		return err
	}
	var out source.Transaction
	return s.eachTxn(ctx, firstPos, sc.end, func(w *window, t *txn) error {
		if t.status == undone {
			return nil
		}
		b, err := w.at(t.pos, int(t.header()))
		if err != nil {
			return s.walkError(t.pos, err)
		}
		out = t.transaction(b)
		return fn(&out)
	})
}

// transaction makes the public form of a header whose bytes are b.
func (t *txn) transaction(b []byte) source.Transaction {
	d := txnFixed + t.ulen
	e := d + t.dlen
	end := e + t.elen
	return source.Transaction{TID: t.tid, Pos: t.pos, End: t.next(),
		User: b[txnFixed:d:d], Description: b[d:e:e], Extension: b[e:end:end]}
}

// OIDs implements source.Log.
func (s *Source) OIDs(ctx context.Context, pos int64) ([]zodb.OID, error) {
	sc, err := s.scanned()
	if err != nil {
		return nil, err
	}
	c := s.cutter(ctx, sc, grid)
	if _, ok, err := c.transactionAt(pos); err != nil {
		return nil, err
	} else if !ok || pos == sc.end {
		return nil, &ChangedError{s.path, pos, "no transaction starts there"}
	}
	t, err := s.headerAt(c.w, pos)
	if err != nil {
		return nil, err
	}
	var oids []zodb.OID
	for pos := t.pos + t.header(); pos < t.end() && t.status != undone; {
		r, err := s.recordAt(c.w, &t, pos)
		if err != nil {
			return nil, err
		}
		oids = append(oids, r.oid)
		pos = r.end()
	}
	slices.Sort(oids)
	return slices.Compact(oids), nil
}

// Growth implements source.Source. Like Scan it stops at the first transaction
// that is not whole or not committed.
func (s *Source) Growth(ctx context.Context) (source.Growth, error) {
	var g source.Growth
	sc, err := s.scanned()
	if err != nil {
		return g, err
	}
	size, err := s.size()
	if err != nil {
		return g, err
	}
	if stat, err := os.Stat(s.path); err != nil {
		g.Replaced = true // moved away; nothing can be told about what comes in its place
	} else {
		g.Replaced = !os.SameFile(stat, s.stat)
	}
	if size < sc.end && sc.info.Transactions > 0 {
		return g, &ChangedError{s.path, sc.end, fmt.Sprintf("it has only %d bytes", size)}
	}
	w := newWindow(s.f, size, walkWindow, func(int64) error { return ctx.Err() })
	for pos := sc.end; size-pos >= txnFixed; {
		b, err := w.at(pos, txnFixed)
		if err != nil {
			return g, s.growthError(err)
		}
		t := parseTxn(b, pos)
		if problem, err := frameProblem(w, &t); err != nil || problem != "" {
			return g, s.growthError(err)
		}
		if t.status != undone {
			if g.Transactions == 0 {
				g.Since = t.tid
			}
			g.Transactions++
		}
		pos = t.next()
	}
	return g, ctx.Err()
}

// growthError lets pass that a writer took back what it had begun to write.
func (s *Source) growthError(err error) error {
	if err == nil || errors.Is(err, errShort) {
		return nil
	}
	return s.walkError(0, err)
}
