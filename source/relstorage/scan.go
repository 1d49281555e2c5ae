package relstorage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// grid is about how much of the database stands between two places to cut.
	grid = 256 << 10
	// blobWeight is what a blob counts in a chunk beside its record, so that a
	// chunk of blobs, whose records are tiny, is not thousands of uploads.
	blobWeight = 32 << 10
	// rowBytes is what a row counts beside its bytes in Chunk.Bytes, so that rows
	// without any, of deletions, are progress too.
	rowBytes = 32
	// headerPage is how many transactions are looked at before their rows are.
	headerPage = 20000
)

// cut is a place to cut, and what stands between it and the next.
type cut struct {
	at      pos
	bytes   int64
	largest int64
	units   int32 // rows and headers
	blobs   int32
}

// scan is what is known of a view.
type scan struct {
	q       statements
	history bool // every revision is read
	cuts    []cut
	end     int64 // Identity.End
	digest  string
	highest int64 // tid in the view
	records int64
	// compressed: some records are.
	compressed bool
}

// last is where reading ends.
func (sc *scan) last() pos {
	if sc.history {
		return logEnd
	}
	return flatEnd
}

// unit is a row or the header of a transaction.
type unit struct {
	at     pos
	zoid   int64
	tid    int64
	size   int64 // of its bytes
	blob   bool
	header bool
}

func (u *unit) bytes() int64 { return rowBytes + u.size }

// weight is what counts against the size of a chunk.
func (u *unit) weight() int64 {
	if u.blob {
		return u.bytes() + blobWeight
	}
	return u.bytes()
}

// Scan implements source.Source. It takes a new view.
func (s *Source) Scan(ctx context.Context, opts source.ScanOptions) (*source.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.Idle()
	s.scan = nil
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	v, err := s.newView(ctx, s.opts.Connections+extraConnections)
	if err != nil {
		return nil, err
	}
	sc, info, err := s.scanView(ctx, v, opts)
	if err != nil {
		v.close()
		return nil, err
	}
	if v.note != "" {
		info.Warnings = append(info.Warnings, v.note)
	}
	s.mu.Lock()
	s.view, s.scan = v, sc
	s.mu.Unlock()
	if err := s.countBlobs(ctx, v, opts, info); err != nil {
		s.Idle()
		return nil, err
	}
	return info, nil
}

// scanView looks at everything once.
func (s *Source) scanView(ctx context.Context, v *view, opts source.ScanOptions) (*scan, *source.Info, error) {
	sc := &scan{history: opts.History, q: statements{d: s.engine.dialect(), history: s.history, until: opts.Until}}
	info := &source.Info{Undescribed: !s.history, Warnings: append([]string(nil), s.notes...)}
	err := v.do(ctx, func(c conn) error {
		highest, err := s.bounds(ctx, c, sc)
		if err != nil {
			return err
		}
		if highest < opts.Until {
			return &ChangedError{Name: s.engine.name(), Now: zodb.TID(highest), Then: zodb.TID(opts.Until)}
		}
		if sc.end, sc.highest = highest, highest; opts.Until != 0 {
			sc.end = opts.Until
		}
		if info.Identity, err = s.identity(ctx, c, sc.end); err != nil {
			return err
		}
		sc.digest = info.Identity.Digest
		warning, err := s.engine.behind(ctx, c)
		if err != nil {
			return s.failed("ask whether it is a standby", err)
		}
		if warning != "" {
			info.Warnings = append(info.Warnings, warning)
		}
		if err := s.oddities(ctx, c, sc, info); err != nil {
			return err
		}
		return s.measure(ctx, c, sc, info, opts.Progress)
	})
	if err != nil {
		return nil, nil, err
	}
	return sc, info, nil
}

// identity names the database, looked at up to end.
func (s *Source) identity(ctx context.Context, c conn, end int64) (source.Identity, error) {
	id, err := s.engine.identity(ctx, c)
	if err != nil {
		return source.Identity{}, s.failed("ask for what names the database", err)
	}
	kind := "postgresql"
	switch {
	case s.opts.MySQL != nil:
		kind = "mysql"
	case s.opts.SQLite != nil:
		kind = "sqlite"
	}
	digest := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%t", kind, id, s.history))
	return source.Identity{Kind: Kind, Name: s.engine.name(), End: end, Digest: hex.EncodeToString(digest[:])}, nil
}

// number asks for one number; NULL is 0.
func number(ctx context.Context, c conn, q string) (n int64, err error) {
	err = c.query(ctx, q, func(r row) error {
		n, err = r.int(0)
		return err
	})
	return n, err
}

// bounds finds the highest tid.
func (s *Source) bounds(ctx context.Context, c conn, sc *scan) (highest int64, err error) {
	if highest, err = number(ctx, c, "SELECT MAX(tid) FROM object_state"); err != nil {
		return 0, s.failed("read the highest tid", err)
	}
	if !s.history {
		return highest, nil
	}
	n, err := number(ctx, c, "SELECT MAX(tid) FROM "+sc.q.d.transaction)
	return max(highest, n), s.failed("read the highest tid", err)
}

// oddities looks for what the schema should make impossible, but does not on
// every server. None of it is lost, except what RelStorage itself cannot load.
func (s *Source) oddities(ctx context.Context, c conn, sc *scan, info *source.Info) error {
	sample := "SELECT SUBSTR(o.state, 1, 2) FROM object_state o ORDER BY o.zoid"
	for _, order := range []string{"", " DESC"} {
		err := c.query(ctx, sample+order+" LIMIT 100", func(r row) error {
			sc.compressed = sc.compressed || zrecord.Is(r.bytes(0))
			return nil
		})
		if err != nil {
			return s.failed("read a few rows", err)
		}
	}
	if _, ok := s.tables["transaction"]["packed"]; !s.history || !ok {
		info.Packed = -1
	} else if n, err := number(ctx, c, "SELECT COUNT(*) FROM "+sc.q.d.transaction+" WHERE tid > 0 AND packed"); err != nil {
		return s.failed("count what was packed", err)
	} else {
		info.Packed = n
	}
	if !s.history {
		return nil
	}
	for i, odd := range []struct{ query, text string }{
		{"SELECT COUNT(*), MIN(o.tid) FROM object_state o" + where(sc.q.orphan()),
			"%d records belong to transactions that are not in the table transaction (the first is %v): they are given transactions without user and description"},
		{"SELECT COUNT(*), MIN(o.zoid) FROM object_state o WHERE NOT EXISTS (SELECT 1 FROM current_object c WHERE c.zoid = o.zoid)",
			"%d records are of objects that are not in the table current_object (the first is %v): RelStorage does not find these objects, and without history they are not converted"},
		{"SELECT COUNT(*), MIN(c.zoid) FROM current_object c WHERE NOT EXISTS (SELECT 1 FROM object_state o WHERE o.zoid = c.zoid AND o.tid = c.tid)",
			"%d objects have no record of the tid that the table current_object names (the first is %v): RelStorage cannot load them, and without history they are not converted"},
	} {
		var n, first int64
		err := c.query(ctx, odd.query, func(r row) (err error) {
			if n, err = r.int(0); err == nil {
				first, err = r.int(1)
			}
			return err
		})
		if err != nil {
			return s.failed("look for rows that belong to nothing", err)
		}
		if n > 0 {
			info.Warnings = append(info.Warnings, s.engine.name()+": "+fmt.Sprintf(odd.text, n, zodb.OID(first)))
			sc.q.orphans = sc.q.orphans || i == 0
		}
	}
	if sc.history {
		n, err := number(ctx, c, "SELECT COUNT(*) FROM current_object")
		if err != nil {
			return s.failed("count the objects", err)
		}
		info.Objects = n
	}
	return nil
}

// cutter notes where to cut.
type cutter struct {
	from  pos
	limit int64
	flat  bool // transactions and objects apart
	cuts  []cut
	// header is the last unit if that was one.
	header unit
}

// add takes the next unit. A header stays with the first row of its transaction:
// without history in the schema, that is what tells of it.
func (k *cutter) add(u *unit) {
	n := len(k.cuts)
	if n == 0 {
		k.cuts = append(k.cuts, cut{at: k.from})
	} else if open := &k.cuts[n-1]; k.full(open, u) {
		at, head := u.at, k.header
		switch {
		case k.flat && open.at.a != u.at.a:
			at = objects
			fallthrough
		case !head.header || k.flat || head.tid != u.tid:
			k.cuts = append(k.cuts, cut{at: at})
		case open.units > 1:
			open.bytes -= head.bytes()
			open.units--
			k.cuts = append(k.cuts, cut{at: head.at})
			k.count(&head)
		}
	}
	k.count(u)
	k.header.header = u.header
	if u.header {
		k.header = *u
	}
}

func (k *cutter) full(open *cut, u *unit) bool {
	return open.bytes+blobWeight*int64(open.blobs)+u.weight() > k.limit || open.units == math.MaxInt32 || k.flat && open.at.a != u.at.a
}

func (k *cutter) count(u *unit) {
	open := &k.cuts[len(k.cuts)-1]
	open.bytes += u.bytes()
	open.largest = max(open.largest, u.size)
	open.units++
	if u.blob {
		open.blobs++
	}
}

// measure goes through all keys once, in reading order, and notes where to cut.
func (s *Source) measure(ctx context.Context, c conn, sc *scan, info *source.Info, progress func(done, total int64)) error {
	m := &meter{sc: sc, info: info, report: progress}
	k := &cutter{from: start, limit: grid, flat: !sc.history}
	err := sc.walk(ctx, c, start, sc.last(), func(u *unit) error {
		k.add(u)
		if err := m.take(u); err != nil {
			return fmt.Errorf("%s: %w", s.engine.name(), err)
		}
		return nil
	})
	if err != nil {
		return s.failed("read the keys of all objects", err)
	}
	m.finish()
	sc.cuts, sc.records = k.cuts, info.Records
	return nil
}

// meter counts what a scan meets.
type meter struct {
	sc     *scan
	info   *source.Info
	report func(done, total int64)
	units  int64
}

// reportEvery is how many units pass between two reports of progress.
const reportEvery = 1 << 14

func (m *meter) take(u *unit) error {
	info := m.info
	if u.zoid < 0 || u.tid <= 0 {
		return fmt.Errorf("it has a row with zoid %d and tid %d; neither may be negative, and no tid 0: it was not written by RelStorage", u.zoid, u.tid)
	}
	info.Bytes += u.bytes()
	info.MaxTID = max(info.MaxTID, zodb.TID(u.tid))
	if u.header {
		if info.Transactions++; info.Transactions == 1 {
			info.FirstTID = zodb.TID(u.tid)
		}
		info.LastTID = zodb.TID(u.tid)
	} else {
		info.Records++
		info.MaxOID = max(info.MaxOID, zodb.OID(u.zoid))
		info.HasRoot = info.HasRoot || zodb.OID(u.zoid) == zodb.Root
		info.LargestData = max(info.LargestData, u.size)
	}
	if m.units++; m.report != nil && m.units%reportEvery == 0 {
		m.report(info.Bytes, m.total(u))
	}
	return nil
}

// total guesses how much there is in all from how far the numbers have come.
func (m *meter) total(u *unit) int64 {
	if m.sc.history && m.info.FirstTID > 0 {
		if far, all := u.tid-int64(m.info.FirstTID), m.sc.end-int64(m.info.FirstTID); far > 0 && far < all {
			return int64(float64(m.info.Bytes) * float64(all) / float64(far))
		}
	}
	return 0
}

func (m *meter) finish() {
	if !m.sc.history || !m.sc.q.history {
		m.info.Objects = m.info.Records
	}
	if m.report != nil {
		m.report(m.info.Bytes, m.info.Bytes)
	}
}

// errEnough ends a query early.
var errEnough = errors.New("enough")

// walk calls fn for what stands from one position to another, in reading order.
// The unit is valid during the call only.
func (sc *scan) walk(ctx context.Context, c conn, from, to pos, fn func(*unit) error) error {
	switch {
	case sc.history && sc.q.history:
		return sc.walkLog(ctx, c, from, to, fn)
	case sc.history:
		return sc.walkRevisions(ctx, c, from, to, fn)
	}
	var u unit
	if from.less(objects) {
		hi := int64(math.MaxInt64)
		if to.less(objects) {
			hi = to.b
		}
		if err := c.query(ctx, sc.q.headerKeys(from.b, hi, 0), func(r row) error {
			if err := u.setHeader(r); err != nil {
				return err
			}
			u.at = pos{0, u.tid}
			return fn(&u)
		}); err != nil {
			return err
		}
		from = objects
	}
	if !from.less(to) {
		return nil
	}
	hi := int64(math.MaxInt64)
	if to.less(flatEnd) {
		hi = to.b
	}
	return c.query(ctx, sc.q.currentKeys(from.b, hi), func(r row) error {
		if err := u.setRow(r); err != nil {
			return err
		}
		u.at = pos{1, u.zoid}
		return fn(&u)
	})
}

// A unit is filled in again for each row: fn lets it escape, and there are as many
// as rows.
func (u *unit) setHeader(r row) (err error) {
	*u = unit{header: true}
	if u.tid, err = r.int(0); err == nil && len(r.values) > 1 {
		u.size, err = r.int(1)
	}
	return err
}

func (u *unit) setRow(r row) (err error) {
	*u = unit{}
	if u.zoid, err = r.int(0); err != nil {
		return err
	}
	if u.tid, err = r.int(1); err != nil {
		return err
	}
	if u.size, err = r.int(2); err != nil {
		return err
	}
	blob, err := r.int(3)
	u.blob = blob != 0
	return err
}

// walkRevisions goes through the rows of a history-free schema by tid. Each new
// tid is a transaction.
func (sc *scan) walkRevisions(ctx context.Context, c conn, from, to pos, fn func(*unit) error) error {
	var u, head unit
	tid := from.a
	if from.b < 0 {
		tid--
	}
	return c.query(ctx, sc.q.revisionKeys(from, to), func(r row) error {
		if err := u.setRow(r); err != nil {
			return err
		}
		if u.tid != tid {
			tid = u.tid
			head = unit{at: pos{tid, headerSub}, tid: tid, header: true}
			if err := fn(&head); err != nil {
				return err
			}
		}
		u.at = pos{u.tid, u.zoid}
		return fn(&u)
	})
}

// walkLog goes through transactions and revisions of a schema with history. A
// page of transactions is followed by the revisions that belong to them, so that
// one connection does, and no server must sort everything at once.
func (sc *scan) walkLog(ctx context.Context, c conn, from, to pos, fn func(*unit) error) error {
	for from.less(to) {
		lo, hi := from.a, to.a
		if from.b > headerSub {
			lo++ // the header stands before from
		}
		if to.b > headerSub && hi < math.MaxInt64 {
			hi++
		}
		var page []unit
		if err := c.query(ctx, sc.q.headerKeys(lo, hi, headerPage), func(r row) error {
			var u unit
			err := u.setHeader(r)
			u.at = pos{u.tid, headerSub}
			page = append(page, u)
			return err
		}); err != nil {
			return err
		}
		end := to
		if len(page) == headerPage {
			end = pos{page[len(page)-1].tid + 1, headerSub}
			if to.less(end) {
				end = to
			}
		}
		if err := sc.walkPage(ctx, c, from, end, page, fn); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// walkPage puts the headers of a page before their revisions.
func (sc *scan) walkPage(ctx context.Context, c conn, from, to pos, page []unit, fn func(*unit) error) error {
	headers := func(tid int64) error {
		for len(page) > 0 && page[0].tid <= tid {
			if err := fn(&page[0]); err != nil {
				return err
			}
			page = page[1:]
		}
		return nil
	}
	var u unit
	if err := c.query(ctx, sc.q.revisionKeys(from, to), func(r row) error {
		if err := u.setRow(r); err != nil {
			return err
		}
		if err := headers(u.tid); err != nil {
			return err
		}
		u.at = pos{u.tid, u.zoid}
		return fn(&u)
	}); err != nil {
		return err
	}
	return headers(math.MaxInt64)
}
