package filestorage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// classify decides what the bytes from t on are, which is no whole transaction:
// a tail that is left out, or damage with more transactions behind it. Leaving
// out must never hide a transaction, so everything up to the limit is looked at.
func (sc *scanner) classify(t txn, problem string) error {
	left := sc.w.limit - t.pos
	zero, err := sc.allZero(t.pos)
	if err != nil {
		return sc.tailError(err)
	}
	inProgress := left >= txnFixed && t.status == committing
	if zero {
		sc.info.Tail = fmt.Sprintf("%d zero bytes from offset %d to the end of the file were left out: they hold no transaction", left, t.pos)
		return nil
	}
	if whole, err := sc.wholeButStatus(&t); err != nil {
		return sc.tailError(err)
	} else if whole {
		return sc.s.damage(t.pos, sc.info.LastTID, &fault{"a whole transaction stands here, but " + problem, restoreHint})
	}
	next, err := sc.findTransaction(t.pos + 1)
	if err != nil {
		return sc.tailError(err)
	}
	if next > 0 {
		return sc.s.damage(t.pos, sc.info.LastTID, &fault{fmt.Sprintf("no whole transaction stands here (%s), but one does at offset %d", problem, next), restoreHint})
	}
	if inProgress && (!t.fits(sc.w.limit) || t.next() == sc.w.limit) {
		sc.info.Tail = fmt.Sprintf("%d bytes from offset %d on were left out: a transaction that is being committed just now, or was when its server stopped", left, t.pos)
		return nil
	}
	sc.info.Tail = fmt.Sprintf("%d bytes from offset %d to the end of the file were left out: they are no whole transaction (%s), and none follows", left, t.pos, problem)
	return nil
}

func (sc *scanner) tailError(err error) error {
	if err == errShort {
		return err
	}
	return fmt.Errorf("%s: look for transactions after offset %d: %w", sc.s.path, sc.end, err)
}

func (sc *scanner) allZero(pos int64) (bool, error) {
	var zeros [4096]byte
	for pos < sc.w.limit {
		b, err := sc.w.at(pos, int(min(sc.w.limit-pos, int64(len(zeros)))))
		if err != nil {
			return false, err
		}
		if !bytes.Equal(b, zeros[:len(b)]) {
			return false, nil
		}
		pos += int64(len(b))
	}
	return true, nil
}

// wholeButStatus tells of a transaction that is sound but for its status byte
// or a tid of 0. It was not torn, so it is not a tail to leave out.
func (sc *scanner) wholeButStatus(t *txn) (bool, error) {
	if sc.w.limit-t.pos < txnFixed || t.status == committing || !t.fits(sc.w.limit) || !t.long() {
		return false, nil
	}
	if knownStatus(t.status) && t.tid != 0 {
		return false, nil
	}
	if again, err := readTrailer(sc.w, t); err != nil || again != t.tlen {
		return false, err
	}
	return true, nil
}

// findTransaction looks for a whole transaction that starts at pos or later, 0
// if there is none. It takes one pass: at each offset only what stands close by
// is looked at, unless that already says that a transaction starts there.
func (sc *scanner) findTransaction(pos int64) (int64, error) {
	now := zodb.TIDAt(time.Now().AddDate(0, 0, 1))
	for pos+txnFixed+trailer <= sc.w.limit {
		b, err := sc.w.at(pos, int(min(sc.w.limit-pos, minWindow)))
		if err != nil {
			return 0, err
		}
		i := 0
		for ; i+txnFixed <= len(b); i++ {
			// Most offsets end here: a status, and a length that fits.
			status := b[i+16]
			if status != committed && status != packed && status != undone {
				continue
			}
			t := parseTxn(b[i:], pos+int64(i))
			if !t.fits(sc.w.limit) || !t.long() {
				continue
			}
			ok, err := sc.isTransaction(&t, now)
			if err != nil {
				return 0, err
			}
			if ok {
				return t.pos, nil
			}
		}
		pos += int64(i)
	}
	return 0, nil
}

// isTransaction tells whether a header that may be anything is one. A first
// record that names the transaction's offset and tid leaves no room for doubt,
// nor does it need the tid to make sense; without records there is little to
// go by, so the tid must lie between the last one and now.
func (sc *scanner) isTransaction(t *txn, now zodb.TID) (bool, error) {
	if t.tlen == uint64(t.header()) {
		if t.tid <= sc.info.LastTID || t.tid > now {
			return false, nil
		}
	} else {
		if t.tlen < uint64(t.header())+recHeader {
			return false, nil
		}
		var b [recHeader]byte
		if err := sc.w.small(b[:], t.pos+t.header()); err != nil {
			return false, err
		}
		if r := parseRec(b[:], t.pos+t.header()); r.tid != t.tid || r.tloc != uint64(t.pos) || r.vlen != 0 {
			return false, nil
		}
	}
	again, err := readTrailer(sc.w, t)
	return err == nil && again == t.tlen, err
}

func readTrailer(w *window, t *txn) (uint64, error) {
	var b [trailer]byte
	err := w.small(b[:], t.end())
	return binary.BigEndian.Uint64(b[:]), err
}
