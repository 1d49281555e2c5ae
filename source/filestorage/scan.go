package filestorage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// grid is the distance of the places at which the file may be cut.
	grid = 256 << 10
	// blobWeight is what a blob counts in a chunk beside its record: a chunk is
	// one transaction of the destination, which is to stay small and to be shared
	// out among the writers where records are few and blobs many. Its true size
	// does not count, because a file is cut in the same places whatever becomes
	// of its blob directory.
	blobWeight = 32 << 10
	// leastSeen is what the set of oids may take at least.
	leastSeen = 1 << 20
	// maxNamed caps lists of oids and places in an Info.
	maxNamed = 10
	// maxFalling caps Info.Falling (a warning has the count), and maxFallen the
	// number of such places at all.
	maxFalling = 1000
	maxFallen  = 1 << 22
)

// scan is what the scans of a file found up to end. It is carried on by the
// next one.
type scan struct {
	end    int64 // after the last accepted transaction
	broken bool  // stopped within a transaction; of no use

	info source.Info
	sum  hash.Hash
	oids *oidSet
	root bool // oid 0 was met
	lost bool // a Read that did not come to its end has left oids incomplete

	cuts []cut // closed ranges
	open cut   // the last, growing one; empty if open.units == 0

	maxPos  int64 // where info.MaxTID stands
	fallen  []fallen
	falling []source.TIDOrder // the first of fallen

	undone   int64 // transactions
	otherTID int64 // records whose tid is not that of their transaction
	otherAt  int64 // the first of them
	chains   chainMemo

	blobs *blobScan
}

// cut is a range of the file between two places where it may be cut. It reaches
// to the next one.
type cut struct {
	off     int64
	tpos    int64 // of the transaction that off is in
	largest int64 // data to decode at once, see dataCost
	units   int32 // headers and records
	blobs   uint16
	skip    bool // nothing but one undone transaction: never read
}

type fallen struct {
	tid zodb.TID
	pos int64
}

func newScan() *scan {
	return &scan{end: firstPos, sum: sha256.New(), oids: newOIDSet(), blobs: new(blobScan)}
}

// Scan implements source.Source. It reads the file once from front to back,
// but jumps over large records. The error for a file that does not reach to
// until, or has no transaction that ends there, is a *ChangedError.
func (s *Source) Scan(ctx context.Context, opts source.ScanOptions) (*source.Info, error) {
	until, progress := opts.Until, opts.Progress
	python2, err := s.magic()
	if err != nil {
		return nil, err
	}
	size, err := s.size()
	if err != nil {
		return nil, err
	}
	if until != 0 && (until < firstPos || size < until && (size != 0 || until != firstPos)) {
		return nil, &ChangedError{s.path, until, fmt.Sprintf("it has only %d bytes", size)}
	}
	if s.scan == nil || s.scan.broken || s.scan.lost || until != 0 && s.scan.end > until || s.blobs != nil && s.scan.blobs.lowers(opts.LargeBlob) {
		s.scan = newScan()
		s.scan.blobs.largeFrom = opts.LargeBlob
	}
	if s.scan.oids.max = opts.MaxSeen; opts.MaxSeen > 0 {
		s.scan.oids.max = max(opts.MaxSeen, leastSeen)
	}
	limit := size
	if until != 0 {
		limit = until
	}
	sc := scanner{scan: s.scan, s: s, ctx: ctx, until: until, progress: progress}
	sc.w = newWindow(s.f, limit, maxWindow, sc.tick)
	sc.info.Python2 = python2
	sc.info.Tail = ""
	sc.broken = true
	if s.blobs == nil {
		err = sc.run()
	} else {
		err = sc.runBlobs(ctx, size)
	}
	if err != nil {
		if damage := (*source.DamageError)(nil); errors.As(err, &damage) && sc.info.Transactions > 0 {
			damage.Until = sc.end
		}
		return nil, err
	}
	sc.broken = false
	if progress != nil {
		progress(sc.end, sc.end)
	}
	info, err := sc.result(size)
	if err == nil && s.blobs != nil {
		sc.report(info, opts.LargeBlob)
	}
	return info, err
}

// scanner is one run over the file.
type scanner struct {
	*scan
	s        *Source
	ctx      context.Context
	w        *window
	z        inflater
	until    int64
	progress func(done, total int64)
	refs     chan<- blobRef // nil without a blob directory
}

func (sc *scanner) tick(off int64) error {
	if sc.progress != nil {
		sc.progress(off, sc.w.limit)
	}
	return sc.ctx.Err()
}

// run accepts transactions until the limit or the first one that is not whole.
func (sc *scanner) run() error {
	if err := sc.ctx.Err(); err != nil {
		return err
	}
	for sc.end < sc.w.limit {
		t, problem, err := sc.frame(sc.end)
		switch {
		case errors.Is(err, errShort):
			// A writer took back what it had begun to write.
			if err := sc.shrink(); err != nil {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", sc.s.path, err)
		case problem == "":
			if err := sc.transaction(t); err != nil {
				return err
			}
			continue
		case sc.until != 0:
			return &ChangedError{sc.s.path, sc.until, fmt.Sprintf("the transaction at offset %d does not fit (%s)", sc.end, problem)}
		}
		err = sc.classify(t, problem)
		if errors.Is(err, errShort) {
			if err := sc.shrink(); err != nil {
				return err
			}
			continue
		}
		return err
	}
	return nil
}

// shrink looks at the size of the file again after a read failed at its end.
func (sc *scanner) shrink() error {
	size, err := sc.s.size()
	if err != nil {
		return err
	}
	if size >= sc.w.limit || size < sc.end || sc.until != 0 {
		return sc.s.damage(sc.end, sc.info.LastTID, &fault{fmt.Sprintf("the file could not be read to its end at %d", sc.w.limit), restoreHint})
	}
	sc.w.forget(size)
	return nil
}

// frame reads the header of the transaction at pos and checks it against the
// limit, its trailer and its status. A problem is for classify to judge.
func (sc *scanner) frame(pos int64) (t txn, problem string, err error) {
	if left := sc.w.limit - pos; left < txnFixed {
		return txn{pos: pos}, fmt.Sprintf("%d bytes are too few for a transaction", left), nil
	}
	b, err := sc.w.at(pos, txnFixed)
	if err != nil {
		return txn{}, "", err
	}
	t = parseTxn(b, pos)
	problem, err = frameProblem(sc.w, &t)
	return t, problem, err
}

func frameProblem(w *window, t *txn) (string, error) {
	switch {
	case t.status == committing:
		return "it is not committed", nil
	case !t.fits(w.limit):
		return fmt.Sprintf("it claims %d bytes, but %d are left", t.tlen, w.limit-t.pos-trailer), nil
	case !t.long():
		return fmt.Sprintf("it claims %d bytes, but its header has %d", t.tlen, t.header()), nil
	}
	again, err := readTrailer(w, t)
	switch {
	case err != nil:
		return "", err
	case again != t.tlen:
		return fmt.Sprintf("its length is %d in front and %d behind", t.tlen, again), nil
	case !knownStatus(t.status):
		return fmt.Sprintf("its status is %q", t.status), nil
	case t.tid == 0:
		return "its tid is 0", nil
	}
	return "", nil
}

// transaction takes in a transaction whose frame is sound.
func (sc *scanner) transaction(t txn) error {
	b, err := sc.w.at(t.pos, int(t.header()))
	if err != nil {
		return sc.readError(t.pos, err)
	}
	sc.sum.Write(b)
	if t.status == undone {
		sc.undone++
		sc.unit(&t, t.pos, t.next(), dataInfo{})
		sc.end = t.next()
		return nil
	}
	if err := sc.order(&t); err != nil {
		return err
	}
	pos := t.pos + t.header()
	if pos == t.end() {
		sc.unit(&t, t.pos, t.next(), dataInfo{})
	} else {
		sc.unit(&t, t.pos, pos, dataInfo{})
	}
	for pos < t.end() {
		if pos, err = sc.record(&t, pos); err != nil {
			return err
		}
	}
	sc.info.Transactions++
	if t.status == packed {
		sc.info.Packed++
	}
	sc.info.LastTID = t.tid
	sc.end = t.next()
	return nil
}

// record takes in the record at pos and returns where the next one stands.
func (sc *scanner) record(t *txn, pos int64) (int64, error) {
	if room := t.end() - pos; room < recHeader {
		return 0, sc.s.damage(pos, sc.info.LastTID, &fault{fmt.Sprintf("%d bytes are left in the transaction at offset %d, too few for a record", room, t.pos), restoreHint})
	}
	b, err := sc.w.at(pos, int(min(t.end()-pos, recHeader+blobPrefix)))
	if err != nil {
		return 0, sc.readError(pos, err)
	}
	r := parseRec(b, pos)
	if f := r.check(t.pos, t.end()); f != nil {
		return 0, sc.s.damage(pos, sc.info.LastTID, f)
	}
	sc.info.Records++
	sc.info.MaxOID = max(sc.info.MaxOID, r.oid)
	sc.oids.add(r.oid)
	sc.root = sc.root || r.oid == zodb.Root
	if r.tid != t.tid {
		if sc.otherTID == 0 {
			sc.otherAt = pos
		}
		sc.otherTID++
	}
	var data dataInfo
	if r.plen > 0 {
		sc.sum.Write(b[:recHeader])
		data = sc.z.inspect(b[recHeader:], r.plen)
	} else {
		sc.sum.Write(b[:recHeader+8])
		if data, err = sc.target(&r, backPointer(b)); err != nil {
			return 0, sc.readError(pos, err)
		}
	}
	sc.info.LargestData = max(sc.info.LargestData, data.size)
	if data.blob {
		sc.blob(r.oid)
		if err := sc.wanted(t, &r); err != nil {
			return 0, err
		}
	}
	end := r.end()
	if end == t.end() {
		sc.unit(t, pos, t.next(), data)
	} else {
		sc.unit(t, pos, end, data)
	}
	return end, nil
}

func (sc *scanner) blob(oid zodb.OID) {
	sc.info.Blobs++
	if len(sc.info.BlobOIDs) == maxNamed {
		return
	}
	for _, o := range sc.info.BlobOIDs {
		if o == oid {
			return
		}
	}
	sc.info.BlobOIDs = append(sc.info.BlobOIDs, oid)
}

// readError is an error of reading within a transaction whose frame was sound.
func (sc *scanner) readError(pos int64, err error) error {
	var damage *source.DamageError
	switch {
	case errors.As(err, &damage):
		damage.LastTID = sc.info.LastTID
		return damage
	case errors.Is(err, errShort):
		return sc.s.damage(pos, sc.info.LastTID, &fault{"the file became shorter while it was read", restoreHint})
	}
	return fmt.Errorf("%s: %w", sc.s.path, err)
}

// order keeps the highest tid and notes where the order is broken.
func (sc *scanner) order(t *txn) error {
	switch {
	case sc.info.Transactions == 0:
		sc.info.FirstTID = t.tid
	case t.tid <= sc.info.MaxTID:
		if len(sc.fallen) == maxFallen {
			return sc.s.damage(t.pos, sc.info.LastTID, &fault{fmt.Sprintf("more than %d transactions have a tid that is not above those before", maxFallen), restoreHint})
		}
		if sc.fallen = append(sc.fallen, fallen{t.tid, t.pos}); len(sc.fallen) <= maxFalling {
			sc.falling = append(sc.falling, source.TIDOrder{TID: t.tid, Pos: t.pos, Prev: sc.info.MaxTID, PrevPos: sc.maxPos})
		}
		return nil
	}
	sc.info.MaxTID, sc.maxPos = t.tid, t.pos
	return nil
}

// unit takes in a piece of the file that is never cut: a header, a record, or a
// transaction without records.
func (sc *scan) unit(t *txn, from, to int64, data dataInfo) {
	blob := uint16(0)
	if data.blob {
		blob = 1
	}
	if sc.open.units > 0 && to-sc.open.off+blobWeight*int64(sc.open.blobs+blob) > grid {
		sc.cuts = append(sc.cuts, sc.open)
		sc.open = cut{}
	}
	if sc.open.units == 0 {
		sc.open = cut{off: from, tpos: t.pos, skip: t.status == undone}
	}
	sc.open.skip = sc.open.skip && sc.open.units == 0
	sc.open.units++
	sc.open.blobs += blob
	sc.open.largest = max(sc.open.largest, data.cost())
}

// result fills in what is known at the end only.
func (sc *scanner) result(size int64) (*source.Info, error) {
	falling, err := sc.equalTIDs()
	if err != nil {
		return nil, err
	}
	info := sc.info
	info.Falling, info.FallingTIDs = falling, int64(len(sc.fallen))
	info.Identity = source.Identity{Kind: Kind, Name: sc.s.path, End: sc.end, Digest: "sha256:" + hex.EncodeToString(sc.sum.Sum(nil))}
	info.Bytes = sc.end - firstPos // what the chunks of a reading add up to
	info.Objects = sc.oids.len()
	info.HasRoot = sc.root
	info.SeenBytes = sc.oids.bytes()
	info.BlobOIDs = append([]zodb.OID(nil), info.BlobOIDs...)
	info.Warnings = sc.warnings(size)
	return &info, nil
}

func (sc *scanner) warnings(size int64) (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	switch {
	case size == 0:
		add("%s is an empty file, that is an empty database", sc.s.path)
	case sc.info.Transactions == 0:
		add("%s holds no transaction, it is an empty database", sc.s.path)
	}
	if n := sc.undone; n > 0 {
		add("%d transactions are marked as undone by a ZODB before 3.3; they are left out, as ZODB does", n)
	}
	if n := sc.otherTID; n > 0 {
		add("%d records carry another tid than their transaction (the first at offset %d); that of the transaction is used", n, sc.otherAt)
	}
	if n := len(sc.fallen); n > maxFalling {
		add("%d transactions have a tid that is not above those before; the first %d are listed", n, maxFalling)
	}
	return list
}
