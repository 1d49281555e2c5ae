package filestorage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
)

const (
	// maxHops bounds a chain of back pointers. Undoing and redoing one change
	// again and again makes the chain one longer at every second step.
	maxHops = 10000
	// inflateGuess is how many times its size a compressed record is expected
	// to take, before it was inflated.
	inflateGuess = 4
	// keepInput is the size up to which a buffer for compressed data is kept.
	keepInput = 1 << 20
)

// backPointer is what follows the header of a record without data.
func backPointer(b []byte) uint64 { return binary.BigEndian.Uint64(b[recHeader:]) }

// dataInfo is what a scan knows of a record's data, its own or that at the end
// of a chain of back pointers. It is zero for a deletion.
type dataInfo struct {
	size       int64
	compressed bool
	blob       bool
	hops       int // back pointers on the way
}

func (z *inflater) inspect(prefix []byte, size uint64) dataInfo {
	return dataInfo{size: int64(size), compressed: zrecord.Is(prefix), blob: z.isBlob(prefix, size)}
}

// cost is the data's part of what a chunk takes from the budget.
func (d dataInfo) cost() int64 {
	if d.compressed {
		return inflateGuess * d.size
	}
	return d.size
}

// chainMemo remembers where chains of back pointers ended, by the offset of
// each record on the way, so that a scan does not walk a long chain again for
// each record of it. It is emptied when full.
type chainMemo map[int64]dataInfo

const maxMemo = 1 << 15

// target follows the back pointer of a record to its data.
func (sc *scanner) target(r *rec, back uint64) (data dataInfo, err error) {
	if back == 0 {
		return dataInfo{}, nil
	}
	way := []int64{r.pos}
	var found *dataInfo
	end, err := follow(sc.w, sc.s.path, r, back, func(pos int64) bool {
		if data, ok := sc.chains[pos]; ok {
			found = &data
			return false
		}
		way = append(way, pos)
		return true
	})
	switch {
	case err != nil:
		return dataInfo{}, err
	case found != nil:
		data = *found
	case end.plen > 0:
		prefix := make([]byte, min(end.plen, blobPrefix))
		if err := sc.w.small(prefix, end.pos+recHeader); err != nil {
			return dataInfo{}, err
		}
		data = sc.z.inspect(prefix, end.plen)
	}
	if sc.chains == nil || len(sc.chains)+len(way) > maxMemo {
		sc.chains = make(chainMemo)
	}
	// way holds the record and all targets with a back pointer; what is behind
	// them took data.hops already.
	for _, pos := range slices.Backward(way) {
		data.hops++
		sc.chains[pos] = data
	}
	if data.hops > maxHops {
		return dataInfo{}, chainTooLong(sc.s.path, r)
	}
	return data, nil
}

// follow walks the chain of back pointers of the record r, and returns the
// record that holds the data; its plen is 0 if there is none. Each target must
// stand before the record that points to it, so the walk ends. visit is told of
// each target that has a back pointer itself, and may end the walk.
func follow(w *window, path string, r *rec, back uint64, visit func(pos int64) bool) (rec, error) {
	from := r.pos
	for hop := 0; back != 0; hop++ {
		fail := func(format string, args ...any) error {
			return &source.DamageError{Path: path, Pos: from, Hint: restoreHint,
				Problem: fmt.Sprintf("the back pointer of oid %v, tid %v leads to offset %d, ", r.oid, r.tid, back) + fmt.Sprintf(format, args...)}
		}
		if back >= uint64(from) || back < firstPos+txnFixed || from-int64(back) < recHeader+1 {
			return rec{}, fail("which is not before the record itself")
		}
		if hop == maxHops {
			return rec{}, chainTooLong(path, r)
		}
		target, problem, err := readTarget(w, int64(back), from)
		if err != nil {
			return rec{}, err
		}
		if problem == "" && target.oid != r.oid {
			problem = fmt.Sprintf("where a record of oid %v stands", target.oid)
		}
		if problem != "" {
			return rec{}, fail("%s", problem)
		}
		if target.plen > 0 {
			return target, nil
		}
		if visit != nil && !visit(target.pos) {
			return rec{}, nil
		}
		var b [8]byte
		if err := w.small(b[:], target.pos+recHeader); err != nil {
			return rec{}, err
		}
		from, back = target.pos, binary.BigEndian.Uint64(b[:])
	}
	return rec{}, nil
}

func chainTooLong(path string, r *rec) error {
	return &source.DamageError{Path: path, Pos: r.pos, Hint: restoreHint,
		Problem: fmt.Sprintf("the back pointer of oid %v, tid %v starts a chain of more than %d", r.oid, r.tid, maxHops)}
}

// readTarget reads the record header at pos, which something at from points to,
// and checks that it is one: it stands in a transaction, and ends before from.
// Only then its length may be believed.
func readTarget(w *window, pos, from int64) (r rec, problem string, err error) {
	const noRecord = "where no record stands"
	var b [recHeader]byte
	if err := w.small(b[:], pos); err != nil {
		return rec{}, "", err
	}
	r = parseRec(b[:], pos)
	if r.tloc < firstPos || r.tloc > uint64(pos-txnFixed) {
		return rec{}, noRecord, nil
	}
	if err := w.small(b[:txnFixed], int64(r.tloc)); err != nil {
		return rec{}, "", err
	}
	t := parseTxn(b[:txnFixed], int64(r.tloc))
	if !t.fits(w.limit) || !t.long() || t.pos+t.header() > pos || t.end()-pos < recHeader {
		return rec{}, noRecord, nil
	}
	if f := r.check(t.pos, min(t.end(), from)); f != nil {
		return rec{}, noRecord, nil
	}
	return r, "", nil
}

// Data implements source.Source.
func (s *Source) Data(ctx context.Context, r *source.Record, scratch *[]byte) ([]byte, error) {
	if _, err := s.scanned(); err != nil {
		return nil, err
	}
	if r.Deleted {
		return nil, nil
	}
	if r.Back == 0 {
		if !zrecord.Is(r.Raw) {
			return r.Raw, nil
		}
		z := s.inflater()
		defer s.inflaters.Put(z)
		return s.inflate(z, r, r.Raw, scratch)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.backData(r, scratch)
}

// backData reads the data that a back pointer leads to.
func (s *Source) backData(r *source.Record, scratch *[]byte) ([]byte, error) {
	w := &window{r: s.f, limit: s.scan.end}
	end, err := follow(w, s.path, &rec{pos: r.Pos, oid: r.OID, tid: r.TID}, uint64(r.Back), nil)
	if err != nil || end.plen == 0 {
		return nil, s.dataError(r, err)
	}
	var mark [2]byte
	if err := w.small(mark[:min(2, end.plen)], end.pos+recHeader); err != nil {
		return nil, s.dataError(r, err)
	}
	if !zrecord.Is(mark[:]) {
		*scratch = sized(*scratch, int64(end.plen))
		return *scratch, s.dataError(r, w.small(*scratch, end.pos+recHeader))
	}
	z := s.inflater()
	defer s.inflaters.Put(z)
	z.in = sized(z.in, int64(end.plen))
	if err := w.small(z.in, end.pos+recHeader); err != nil {
		return nil, s.dataError(r, err)
	}
	plain, err := s.inflate(z, r, z.in, scratch)
	if cap(z.in) > keepInput {
		z.in = nil
	}
	return plain, err
}

// dataError names the record in an error of reading its data.
func (s *Source) dataError(r *source.Record, err error) error {
	var damage *source.DamageError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &damage):
		damage.LastTID = s.before(damage.Pos)
		return damage
	case errors.Is(err, errShort):
		return s.damageNow(r.Pos, &fault{fmt.Sprintf("the data of oid %v, tid %v: %v", r.OID, r.TID, err), restoreHint})
	}
	return fmt.Errorf("%s: data of oid %v, tid %v at offset %d: %w", s.path, r.OID, r.TID, r.Pos, err)
}

// sized returns b with length n, allocated anew if it is too small.
func sized(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// inflater is the state of a decompressor, to be used again.
type inflater struct {
	zrecord.Inflater
	in   []byte
	head [blobClass]byte
}

func (s *Source) inflater() *inflater {
	if z, ok := s.inflaters.Get().(*inflater); ok {
		return z
	}
	return new(inflater)
}

// inflate gives the data of a compressed record.
func (s *Source) inflate(z *inflater, r *source.Record, raw []byte, scratch *[]byte) ([]byte, error) {
	out, err := z.Inflate(raw, scratch)
	if err != nil {
		return nil, s.damageNow(r.Pos, &fault{fmt.Sprintf("the compressed data of oid %v, tid %v cannot be inflated: %v", r.OID, r.TID, err),
			"restore the file from a backup, or repair the object with the ZODB that wrote it"})
	}
	return out, nil
}
