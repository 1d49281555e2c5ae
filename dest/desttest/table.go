package desttest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Table is a database of rows in memory, which may be replaced and removed
// between two views of it. It knows what a destination must hold after its
// newest one.
type Table struct {
	// history tells that it keeps every revision. Without it a row is replaced,
	// and a transaction is what the rows say: a tid without user or description.
	history bool

	mu   sync.Mutex // a source looks for blobs while a test goes on
	txns map[zodb.TID]Transaction
	rows map[Revision]Record
	lost map[Revision]bool
}

// NewTable makes an empty one.
func NewTable(history bool) *Table {
	return &Table{history: history, txns: map[zodb.TID]Transaction{}, rows: map[Revision]Record{}, lost: map[Revision]bool{}}
}

// Commit writes a transaction.
func (b *Table) Commit(t Transaction, records ...Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.history {
		b.txns[t.TID] = t
	}
	for _, r := range records {
		if !b.history {
			maps.DeleteFunc(b.rows, func(old Revision, _ Record) bool { return old.OID == r.OID })
		}
		b.rows[Revision{OID: r.OID, TID: t.TID}] = r
	}
}

// Pack removes what is older than each object's newest revision up to a tid,
// objects that are deleted by then, those that are named, as garbage, and
// transactions of which nothing is left.
func (b *Table) Pack(until zodb.TID, garbage ...zodb.OID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	newest := map[zodb.OID]zodb.TID{}
	for r := range b.rows {
		if r.TID <= until {
			newest[r.OID] = max(newest[r.OID], r.TID)
		}
	}
	left := map[zodb.TID]bool{}
	for r, row := range b.rows {
		if slices.Contains(garbage, r.OID) || r.TID < newest[r.OID] || r.TID == newest[r.OID] && row.Data == nil {
			delete(b.rows, r)
			continue
		}
		left[r.TID] = true
	}
	for tid := range b.txns {
		if tid <= until && !left[tid] {
			delete(b.txns, tid)
		}
	}
}

// Lose lets the bytes of a blob be missing; Find puts all of them back.
func (b *Table) Lose(oid zodb.OID, tid zodb.TID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost[Revision{OID: oid, TID: tid}] = true
}

// Find puts the lost bytes back.
func (b *Table) Find() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.lost)
}

// tableRow is a row as a view has it.
type tableRow struct {
	Revision
	Record
	current bool // the newest of its object
	gone    bool // it says that the object does not exist
}

// tableView is a state that does not change.
type tableView struct {
	txns []Transaction
	rows []tableRow // by oid and tid
}

func (b *Table) view() *tableView {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := new(tableView)
	tids := map[zodb.TID]bool{}
	newest := map[zodb.OID]zodb.TID{}
	for r, row := range b.rows {
		v.rows = append(v.rows, tableRow{Revision: r, Record: row, gone: row.Data == nil})
		tids[r.TID] = true
		newest[r.OID] = max(newest[r.OID], r.TID)
	}
	if !b.history {
		for tid := range tids {
			v.txns = append(v.txns, Transaction{TID: tid})
		}
	}
	for _, t := range b.txns {
		v.txns = append(v.txns, t)
	}
	slices.SortFunc(v.txns, func(a, b Transaction) int { return cmp.Compare(a.TID, b.TID) })
	slices.SortFunc(v.rows, func(a, b tableRow) int {
		return cmp.Or(cmp.Compare(a.Revision.OID, b.Revision.OID), cmp.Compare(a.TID, b.TID))
	})
	for i := range v.rows {
		v.rows[i].current = v.rows[i].TID == newest[v.rows[i].Revision.OID]
	}
	return v
}

// Want is what a destination must hold that is equal to the table.
func (b *Table) Want(history bool) Contents {
	v := b.view()
	want := Contents{Current: map[zodb.OID]zodb.TID{}}
	for _, t := range v.txns {
		want.Transactions = append(want.Transactions, t.TID)
	}
	for _, row := range v.rows {
		r := row.Revision
		r.Gone = row.gone || row.Rejected
		switch {
		case row.current && !r.Gone:
			want.Current[r.OID] = r.TID
		case history:
			want.Older = append(want.Older, r)
		}
		if row.Blob != nil && (history || row.current) && !b.lost[row.Revision] {
			want.Blobs = append(want.Blobs, Blob{r.OID, r.TID, int64(len(row.Blob))})
		}
	}
	return want
}

// Bytes are those of a blob.
func (b *Table) Bytes(oid zodb.OID, tid zodb.TID) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rows[Revision{OID: oid, TID: tid}].Blob
}

// Source opens the table.
func (b *Table) Source() source.Table { return &tableSource{table: b} }

// tableSource reads a Table. The order in which it reads is the worst that is
// allowed: what a row needs stands behind it.
type tableSource struct {
	table   *Table
	v       *tableView // nil while it is idle
	until   zodb.TID
	history bool
}

func (s *tableSource) Scan(ctx context.Context, opts source.ScanOptions) (*source.Info, error) {
	s.v, s.history = s.table.view(), opts.History
	info := &source.Info{Identity: source.Identity{Kind: "desttest", Name: "a table", Digest: fmt.Sprint(s.table.history)}, BlobDir: "memory", Undescribed: !s.table.history}
	for _, t := range s.v.txns {
		info.MaxTID = max(info.MaxTID, t.TID)
	}
	s.until = info.MaxTID
	if opts.Until != 0 {
		s.until = zodb.TID(opts.Until)
	}
	info.Identity.End, info.LastTID = int64(s.until), info.MaxTID
	for _, i := range s.items() {
		if i.txn != nil {
			info.Transactions++
			continue
		}
		info.Records++
		info.Bytes += int64(len(i.row.Data))
		info.MaxOID = max(info.MaxOID, i.row.Revision.OID)
		info.HasRoot = info.HasRoot || i.row.Revision.OID == zodb.Root
		if i.row.Blob != nil {
			info.Blobs++
			info.BlobBytes += int64(len(i.row.Blob))
		}
	}
	return info, ctx.Err()
}

// mark is a place in the order of reading.
type mark struct{ n, sub int64 }

func (m mark) compare(o mark) int { return cmp.Or(cmp.Compare(m.n, o.n), cmp.Compare(m.sub, o.sub)) }

// item is what stands at a mark: a row or a transaction.
type item struct {
	at  mark
	row *tableRow
	txn *Transaction
}

// items are all that Read gives, in its order. A destination without history gets
// the objects by oid and then the transactions; one with history each transaction
// with its rows, and behind them its header.
func (s *tableSource) items() []item {
	var all []item
	for i := range s.v.rows {
		row := &s.v.rows[i]
		switch {
		case row.TID > s.until || !s.history && !row.current:
		case s.history:
			all = append(all, item{at: mark{int64(row.TID), int64(row.Revision.OID)}, row: row})
		default:
			all = append(all, item{at: mark{0, int64(row.Revision.OID)}, row: row})
		}
	}
	for i := range s.v.txns {
		t := &s.v.txns[i]
		switch {
		case t.TID > s.until:
		case s.history:
			all = append(all, item{at: mark{int64(t.TID), headerSub}, txn: t})
		default:
			all = append(all, item{at: mark{1, int64(t.TID)}, txn: t})
		}
	}
	slices.SortFunc(all, func(a, b item) int { return a.at.compare(b.at) })
	return all
}

const (
	headerSub = 1 << 62
	lastMark  = 1 << 62
	// chunkItems is how many things a chunk of a Table holds.
	chunkItems = 7
)

func (s *tableSource) Read(ctx context.Context, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	done := slices.Clone(opts.Done)
	slices.SortFunc(done, func(a, b source.Range) int { return mark{a.From, a.FromSub}.compare(mark{b.From, b.FromSub}) })
	items := s.items()
	from := mark{0, -1}
	for _, d := range append(done, source.Range{From: lastMark, To: lastMark}) {
		to := mark{d.From, d.FromSub}
		if from.compare(to) < 0 {
			if err := s.gap(ctx, items, from, to, emit); err != nil {
				return err
			}
		}
		from = mark{d.To, d.ToSub}
	}
	return nil
}

// gap gives what stands from a mark on, before another one.
func (s *tableSource) gap(ctx context.Context, items []item, from, to mark, emit func(*source.Chunk) error) error {
	find := func(m mark) int {
		i, _ := slices.BinarySearchFunc(items, m, func(i item, m mark) int { return i.at.compare(m) })
		return i
	}
	items = items[find(from):find(to)]
	for {
		end, n := to, min(chunkItems, len(items))
		if n < len(items) {
			end = items[n].at
		}
		c := &source.Chunk{Range: source.Range{From: from.n, FromSub: from.sub, To: end.n, ToSub: end.sub}}
		for _, i := range items[:n] {
			s.add(c, i)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := emit(c); err != nil {
			return err
		}
		if items, from = items[n:], end; len(items) == 0 {
			return nil
		}
	}
}

func (s *tableSource) add(c *source.Chunk, i item) {
	if t := i.txn; t != nil {
		c.Transactions = append(c.Transactions, source.Transaction{
			TID: t.TID, User: []byte(t.User), Description: []byte(t.Description), Extension: []byte(t.Extension)})
		return
	}
	c.Records = append(c.Records, i.row.record())
	c.Bytes += int64(len(i.row.Data))
}

func (row *tableRow) record() source.Record {
	return source.Record{OID: row.Revision.OID, TID: row.TID, Raw: row.Data, Deleted: row.gone, Current: row.current}
}

func (s *tableSource) Data(_ context.Context, r *source.Record, _ *[]byte) ([]byte, error) {
	return r.Raw, nil
}

func (s *tableSource) Blob(_ context.Context, r *source.Record) (*source.Blob, error) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	id := Revision{OID: r.OID, TID: r.TID}
	row, ok := s.table.rows[id]
	if !ok || s.table.lost[id] {
		return nil, &source.BlobError{OID: r.OID, TID: r.TID, Path: "a row", Missing: true, Problem: "is not there"}
	}
	content := row.Blob
	return &source.Blob{OID: r.OID, TID: r.TID, Size: int64(len(content)), Open: func(context.Context) (source.BlobReader, error) {
		return inMemory{bytes.NewReader(content)}, nil
	}}, nil
}

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

func (s *tableSource) Transactions(_ context.Context, fn func(*source.Transaction) error) error {
	for _, t := range s.v.txns {
		if t.TID > s.until {
			break
		}
		if err := fn(&source.Transaction{TID: t.TID, User: []byte(t.User), Description: []byte(t.Description), Extension: []byte(t.Extension)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *tableSource) Growth(context.Context) (g source.Growth, err error) {
	for _, t := range s.table.view().txns {
		if t.TID > s.until {
			if g.Transactions == 0 {
				g.Since = t.TID
			}
			g.Transactions++
		}
	}
	return g, nil
}

func (s *tableSource) Idle() { s.v = nil }

func (s *tableSource) Close() error { return nil }

// Differences compares the way the interface says: both sequences are open at a
// time and are read once, to the end.
func (s *tableSource) Differences(ctx context.Context, have *source.Have, opts source.DifferenceOptions, emit func(*source.Chunk) error) error {
	d := &differences{ctx: ctx, emit: emit, c: &source.Chunk{}}
	tids, stopTIDs := iter.Pull2(have.Transactions)
	defer stopTIDs()
	keys, stopKeys := iter.Pull2(have.Keys)
	defer stopKeys()
	if err := s.compareTransactions(d, tids); err != nil {
		return err
	}
	if err := s.compareKeys(d, keys, opts.History); err != nil {
		return err
	}
	return d.end()
}

// differences gathers chunks; the last one is known when there is no more.
type differences struct {
	ctx  context.Context
	emit func(*source.Chunk) error
	c    *source.Chunk
	n    int
}

// next makes room for one more.
func (d *differences) next() error {
	if d.n++; d.n <= chunkItems {
		return d.ctx.Err()
	}
	err := d.emit(d.c)
	d.c, d.n = &source.Chunk{}, 1
	return err
}

func (d *differences) end() error {
	if d.n == 0 {
		return nil
	}
	d.c.EndsTransaction = true
	return d.emit(d.c)
}

func (s *tableSource) compareTransactions(d *differences, next func() (zodb.TID, error, bool)) error {
	i := 0
	for {
		tid, err, some := next()
		if err != nil {
			return err
		}
		for ; i < len(s.v.txns) && (!some || s.v.txns[i].TID < tid); i++ {
			if err := d.next(); err != nil {
				return err
			}
			s.add(d.c, item{txn: &s.v.txns[i]})
		}
		switch {
		case !some:
			return nil
		case i < len(s.v.txns) && s.v.txns[i].TID == tid:
			i++
		case i == len(s.v.txns):
			return &source.ForeignError{TID: tid, Problem: fmt.Sprintf("has the transaction %v, which is above all of the source", tid)}
		default:
			if err := d.next(); err != nil {
				return err
			}
			d.c.GoneTransactions = append(d.c.GoneTransactions, tid)
		}
	}
}

func (s *tableSource) compareKeys(d *differences, next func() (source.Key, error, bool), history bool) error {
	rows := s.v.rows
	if !history {
		rows = slices.DeleteFunc(slices.Clone(rows), func(row tableRow) bool { return !row.current || row.gone })
	}
	give := func(row *tableRow) error {
		if err := d.next(); err != nil {
			return err
		}
		s.add(d.c, item{row: row})
		return nil
	}
	i := 0
	for {
		k, err, some := next()
		if err != nil {
			return err
		}
		for ; i < len(rows); i++ {
			if some && cmp.Or(cmp.Compare(rows[i].Revision.OID, k.OID), cmp.Compare(rows[i].TID, k.TID)) >= 0 {
				break
			}
			if err := give(&rows[i]); err != nil {
				return err
			}
		}
		switch {
		case !some:
			return nil
		case i < len(rows) && rows[i].Revision.OID == k.OID && rows[i].TID == k.TID:
			row := &rows[i]
			i++
			if k.Rejected || k.Current == (row.current && !row.gone) {
				continue
			}
			err = give(row)
		default:
			if err = d.next(); err == nil {
				d.c.Gone = append(d.c.Gone, k)
			}
		}
		if err != nil {
			return err
		}
	}
}
