package relstorage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// keyPage is how many keys are asked for at a time.
	keyPage = 20000
	// fetchKeys is how many rows one query fetches by their keys: SQLite takes no
	// more than 500 terms, and planning a longer list takes longer than asking twice.
	fetchKeys = 400
	// planUnits is how many differences of any kind a chunk may hold.
	planUnits = 10000
	// strangers is how many transactions a destination has, none of which the source
	// has, before it is taken for that of another database. What is left of the site
	// that was converted has some of them, however much was written or packed since:
	// no site writes every object anew. A few it may.
	strangers = 20
)

// key is a row of the source.
type key struct {
	zoid, tid int64
	size      int64 // 0: a deletion
	current   bool  // the newest revision of its object, deletions included
}

// keys gives a page of keys, ascending, those of one revision an object or, with
// history, of all, behind zoid and tid.
func (q *statements) keys(history bool, zoid, tid int64) string {
	lower := "" // see between
	if zoid >= 0 {
		lower = fmt.Sprintf("o.zoid >= %d AND NOT (o.zoid = %d AND o.tid <= %d)", zoid, zoid, tid)
	}
	columns := "SELECT o.zoid, o.tid, " + q.d.size("o.state") + ", "
	switch {
	case !q.history:
		columns += "1 FROM object_state o"
	case history:
		columns += q.revisionsFrom()
	default:
		columns += "1 FROM current_object c JOIN object_state o ON o.zoid = c.zoid AND o.tid = c.tid"
		if zoid >= 0 {
			lower += fmt.Sprintf(" AND c.zoid >= %d", zoid)
		}
	}
	return columns + where(lower) + fmt.Sprintf(" ORDER BY o.zoid, o.tid LIMIT %d", keyPage)
}

// rowsOf fetches rows by their keys. The list is a table, because that is the one
// form that every engine takes and looks up by its index.
func (q *statements) rowsOf(keys []key) string {
	var b strings.Builder
	b.WriteString("SELECT o.zoid, o.tid, o.state, 1 FROM (")
	for i, k := range keys {
		if i == 0 {
			fmt.Fprintf(&b, "SELECT %d AS zoid, %d AS tid", k.zoid, k.tid)
			continue
		}
		fmt.Fprintf(&b, " UNION ALL SELECT %d, %d", k.zoid, k.tid)
	}
	b.WriteString(") v JOIN object_state o ON o.zoid = v.zoid AND o.tid = v.tid ORDER BY o.zoid, o.tid")
	return b.String()
}

// headersOf fetches transactions by their tids.
func (q *statements) headersOf(tids []header) string {
	b := []byte("SELECT t.tid, t.username, t.description, t.extension FROM " + q.d.transaction + " t WHERE t.tid IN (")
	for i, h := range tids {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendInt(b, h.tid, 10)
	}
	return string(append(b, ") ORDER BY t.tid"...))
}

// header is a transaction of the source: its tid, and the size of its metadata.
type header struct{ tid, size int64 }

// plan is what the next chunk will hold. Rows are fetched only when it is known
// whether another chunk follows, so that the last one can say that it is, and no
// memory is waited for while some is held.
type plan struct {
	headers  []header
	keys     []key
	gone     []source.Key
	goneTIDs []zodb.TID
	bytes    int64
	largest  int64
}

func (p *plan) units() int {
	return len(p.headers) + len(p.keys) + len(p.gone) + len(p.goneTIDs)
}

// differ is one call of Differences.
type differ struct {
	s    *Source
	v    *view
	sc   *scan
	opts *source.DifferenceOptions
	emit func(*source.Chunk) error
	plan plan
	done int64 // keys that were compared
}

// Differences implements source.Table.
func (s *Source) Differences(ctx context.Context, have *source.Have, opts source.DifferenceOptions, emit func(*source.Chunk) error) error {
	if opts.ChunkBytes <= 0 || opts.Budget == nil {
		return errors.New("relstorage: DifferenceOptions need ChunkBytes and a Budget")
	}
	v, sc, err := s.scanned()
	if err != nil {
		return err
	}
	whole := *sc
	whole.q.until = 0
	d := &differ{s: s, v: v, sc: &whole, opts: &opts, emit: emit}
	if err := d.transactions(ctx, have.Transactions); err != nil {
		return err
	}
	if err := d.keys(ctx, have.Keys); err != nil {
		return err
	}
	if d.plan.units() > 0 {
		return d.flush(ctx, true)
	}
	return nil
}

// room makes sure that something of so many bytes fits into the plan.
func (d *differ) room(ctx context.Context, bytes int64) error {
	n := d.plan.units()
	if n > 0 && (d.plan.bytes+bytes > d.opts.ChunkBytes || n >= planUnits) {
		return d.flush(ctx, false)
	}
	return nil
}

// transactions compares them.
func (d *differ) transactions(ctx context.Context, have iter.Seq2[zodb.TID, error]) error {
	unpacked, err := d.unpacked(ctx)
	if err != nil {
		return err
	}
	next, stop := iter.Pull2(have)
	defer stop()
	there, err, ok := next()
	seen, common := 0, 0 // transactions of the destination, and those that the source has
	advance := func() {
		seen++
		there, err, ok = next()
	}
	gone := func() error {
		if unpacked > 0 && int64(there) > unpacked && int64(there) <= d.sc.highest {
			return &source.ForeignError{TID: there, Problem: fmt.Sprintf("has a transaction %v that the source does not have, and that no pack has removed there, since those from %v on are not packed: somebody else has written to it",
				there, zodb.TID(unpacked))}
		}
		if int64(there) > d.sc.highest {
			return &source.ForeignError{TID: there, Problem: fmt.Sprintf("has a transaction %v, which is newer than the newest of the source (%v): somebody else has written to it, or the source was set back", there, zodb.TID(d.sc.highest))}
		}
		if err := d.room(ctx, rowBytes); err != nil {
			return err
		}
		d.plan.goneTIDs = append(d.plan.goneTIDs, there)
		d.plan.bytes += rowBytes
		return nil
	}
	var page []header
	for lo := int64(0); ; lo = page[len(page)-1].tid + 1 {
		if page, err = d.headerPage(ctx, lo, page[:0], err); err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for _, h := range page {
			for ; err == nil && ok && int64(there) < h.tid; advance() {
				if err := gone(); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
			if ok && int64(there) == h.tid {
				common++
				advance()
				continue
			}
			if err := d.room(ctx, rowBytes+h.size); err != nil {
				return err
			}
			d.plan.headers = append(d.plan.headers, h)
			d.plan.bytes += rowBytes + h.size
		}
	}
	for ; err == nil && ok; advance() {
		if err := gone(); err != nil {
			return err
		}
	}
	if err == nil && common == 0 && seen >= strangers {
		return &source.ForeignError{Problem: fmt.Sprintf("has %d transactions, none of which the source has: it was converted from another database, or somebody else has written to it", seen)}
	}
	return err
}

// unpacked is the first transaction of the source that was never packed, 0 if
// nothing tells. A pack goes from the oldest transaction on, marks each, and
// removes what is empty of them; nothing else removes a transaction. So one above
// this that a destination has, and the source has not, never was in the source,
// also if the source has gone on beyond it.
func (d *differ) unpacked(ctx context.Context) (tid int64, err error) {
	if _, ok := d.s.tables["transaction"]["packed"]; !d.sc.q.history || !ok {
		return 0, nil
	}
	err = d.v.do(ctx, func(c conn) error {
		tid, err = number(ctx, c, "SELECT MIN(tid) FROM "+d.sc.q.d.transaction+" WHERE tid > 0 AND NOT packed")
		return err
	})
	return tid, d.s.failed("look for what was packed", err)
}

// headerPage asks for the next transactions, unless something failed before.
func (d *differ) headerPage(ctx context.Context, lo int64, page []header, err error) ([]header, error) {
	if err != nil {
		return nil, err
	}
	var u unit
	err = d.v.do(ctx, func(c conn) error {
		return c.query(ctx, d.sc.q.headerKeys(lo, math.MaxInt64, headerPage), func(r row) error {
			err := u.setHeader(r)
			page = append(page, header{u.tid, u.size})
			return err
		})
	})
	return page, d.s.failed("compare the transactions", err)
}

// keys compares those of all rows.
func (d *differ) keys(ctx context.Context, have iter.Seq2[source.Key, error]) error {
	next, stop := iter.Pull2(have)
	defer stop()
	m := &merge{d: d, next: next}
	if err := m.advance(); err != nil {
		return err
	}
	page := make([]key, 0, keyPage)
	last := key{zoid: -1, tid: 0}
	var u unit
	for {
		page = page[:0]
		err := d.v.do(ctx, func(c conn) error {
			return c.query(ctx, d.sc.q.keys(d.sc.history, last.zoid, last.tid), func(r row) error {
				err := u.setRow(r)
				page = append(page, key{zoid: u.zoid, tid: u.tid, size: u.size, current: u.blob})
				return err
			})
		})
		if err != nil {
			return d.s.failed("compare the keys", err)
		}
		for i := range page {
			if err := m.take(ctx, &page[i]); err != nil {
				return err
			}
		}
		d.done += int64(len(page))
		if d.opts.Progress != nil {
			d.opts.Progress(d.done, max(d.done, d.sc.records))
		}
		if len(page) < keyPage {
			break
		}
		last = page[len(page)-1]
	}
	return m.rest(ctx)
}

// merge goes through the keys of source and destination side by side.
type merge struct {
	d    *differ
	next func() (source.Key, error, bool)

	there source.Key // of the destination, if ok
	ok    bool
	last  key // of the source, the one before
	any   bool
}

func (m *merge) advance() (err error) {
	before, had := m.there, m.ok
	if m.there, err, m.ok = m.next(); err != nil {
		return err
	}
	if m.ok && had && (m.there.OID < before.OID || m.there.OID == before.OID && m.there.TID <= before.TID) {
		return fmt.Errorf("relstorage: the keys of the destination do not ascend: oid %v, tid %v comes after oid %v, tid %v", m.there.OID, m.there.TID, before.OID, before.TID)
	}
	return nil
}

// take compares the next key of the source.
func (m *merge) take(ctx context.Context, k *key) error {
	for m.ok && (int64(m.there.OID) < k.zoid || int64(m.there.OID) == k.zoid && int64(m.there.TID) < k.tid) {
		if err := m.gone(ctx, k); err != nil {
			return err
		}
	}
	m.last, m.any = *k, true
	deleted := k.size == 0
	if m.ok && int64(m.there.OID) == k.zoid && int64(m.there.TID) == k.tid {
		same := m.there.Rejected || m.there.Current == (k.current && !deleted)
		if err := m.advance(); err != nil || same {
			return err
		}
	} else if deleted && !m.d.sc.history {
		return nil // what is not there needs no deletion
	}
	bytes := rowBytes + k.size
	if err := m.d.room(ctx, bytes); err != nil {
		return err
	}
	p := &m.d.plan
	p.keys = append(p.keys, *k)
	p.bytes += bytes
	p.largest = max(p.largest, k.size)
	return nil
}

// gone takes the key of the destination that the source lacks; k is the next one
// of the source, nil behind the last.
func (m *merge) gone(ctx context.Context, k *key) error {
	t := &m.there
	if int64(t.TID) > m.d.sc.highest {
		return &source.ForeignError{OID: t.OID, TID: t.TID, Problem: fmt.Sprintf("has a record of oid %v with tid %v, which is newer than the newest transaction of the source (%v): somebody else has written to it, or the source was set back",
			t.OID, t.TID, zodb.TID(m.d.sc.highest))}
	}
	if m.any && m.last.zoid == int64(t.OID) && (k == nil || k.zoid != int64(t.OID)) {
		return &source.ForeignError{OID: t.OID, TID: t.TID, Problem: fmt.Sprintf("has a record of oid %v with tid %v, and the newest of the source is %v: somebody else has written to it, or the source was set back",
			t.OID, t.TID, zodb.TID(m.last.tid))}
	}
	if err := m.d.room(ctx, rowBytes); err != nil {
		return err
	}
	m.d.plan.gone = append(m.d.plan.gone, *t)
	m.d.plan.bytes += rowBytes
	return m.advance()
}

// rest takes what the destination has behind the last key of the source.
func (m *merge) rest(ctx context.Context) error {
	for m.ok {
		if err := m.gone(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// flush fetches what is planned and emits it.
func (d *differ) flush(ctx context.Context, last bool) error {
	p := &d.plan
	piece := &piece{bytes: p.bytes, largest: p.largest, units: int64(p.units())}
	weight := d.sc.weight(piece)
	if err := d.opts.Budget.Acquire(ctx, weight); err != nil {
		return fmt.Errorf("relstorage: wait for memory to fetch differences: %w", err)
	}
	g := d.s.segment(piece)
	free := func() {
		d.s.recycle(g, d.opts.ChunkBytes)
		d.opts.Budget.Release(weight)
	}
	err := d.fetchHeaders(ctx, g)
	if err == nil {
		err = d.fetchRows(ctx, g)
	}
	if err != nil {
		free()
		return d.s.failed("fetch what differs", err)
	}
	c := &source.Chunk{
		Transactions: g.txns, Records: g.recs, Bytes: g.read, EndsTransaction: last,
		Gone: slices.Clone(p.gone), GoneTransactions: slices.Clone(p.goneTIDs), OnRelease: free,
	}
	p.headers, p.keys, p.gone, p.goneTIDs, p.bytes, p.largest = p.headers[:0], p.keys[:0], p.gone[:0], p.goneTIDs[:0], 0, 0
	return d.emit(c)
}

// fetchHeaders gets the transactions that are planned. Those that are only known
// by their rows have nothing to fetch.
func (d *differ) fetchHeaders(ctx context.Context, g *segment) error {
	for list := range slices.Chunk(d.plan.headers, fetchKeys) {
		first := len(g.txns)
		if d.sc.q.history {
			if err := d.v.do(ctx, func(c conn) error { return c.query(ctx, d.sc.q.headersOf(list), g.header) }); err != nil {
				return err
			}
		}
		if found := g.txns[first:]; len(found) < len(list) {
			full := make([]source.Transaction, 0, len(list))
			for _, h := range list {
				if len(found) > 0 && int64(found[0].TID) == h.tid {
					full, found = append(full, found[0]), found[1:]
					continue
				}
				full = append(full, source.Transaction{TID: zodb.TID(h.tid)})
				g.read += rowBytes
			}
			g.txns = append(g.txns[:first], full...)
		}
	}
	return nil
}

// fetchRows gets the rows that are planned.
func (d *differ) fetchRows(ctx context.Context, g *segment) error {
	for list := range slices.Chunk(d.plan.keys, fetchKeys) {
		first := len(g.recs)
		if err := d.v.do(ctx, func(c conn) error { return c.query(ctx, d.sc.q.rowsOf(list), g.row) }); err != nil {
			return err
		}
		got := g.recs[first:]
		if len(got) != len(list) {
			return errMoved
		}
		for i := range got {
			if int64(got[i].OID) != list[i].zoid || int64(got[i].TID) != list[i].tid {
				return errMoved
			}
			got[i].Current = list[i].current
		}
	}
	return nil
}
