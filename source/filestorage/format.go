package filestorage

import (
	"encoding/binary"
	"fmt"

	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	firstPos  = 4  // of the first transaction, after the magic
	txnFixed  = 23 // bytes of a transaction header before its strings
	recHeader = 42 // bytes of a data record header
	trailer   = 8  // the repeated length behind a transaction
)

// The status byte of a transaction.
const (
	committed  = ' '
	packed     = 'p'
	committing = 'c'
	undone     = 'u' // by the undo of ZODB before 3.3: as if it were not there
)

// txn is a transaction header.
type txn struct {
	pos        int64
	tid        zodb.TID
	tlen       uint64
	status     byte
	ulen, dlen int
	elen       int
}

func parseTxn(b []byte, pos int64) txn {
	_ = b[txnFixed-1]
	return txn{
		pos:    pos,
		tid:    zodb.TID(binary.BigEndian.Uint64(b)),
		tlen:   binary.BigEndian.Uint64(b[8:]),
		status: b[16],
		ulen:   int(binary.BigEndian.Uint16(b[17:])),
		dlen:   int(binary.BigEndian.Uint16(b[19:])),
		elen:   int(binary.BigEndian.Uint16(b[21:])),
	}
}

// header is the length of the header with its strings.
func (t *txn) header() int64 { return int64(txnFixed + t.ulen + t.dlen + t.elen) }

// end is where the trailer stands, next where the next transaction would. Both
// are valid after fits said so.
func (t *txn) end() int64  { return t.pos + int64(t.tlen) }
func (t *txn) next() int64 { return t.end() + trailer }

// fits tells whether the transaction ends at or before limit, without trusting
// its length in any sum.
func (t *txn) fits(limit int64) bool {
	room := limit - t.pos - trailer
	return room >= 0 && t.tlen <= uint64(room)
}

// long tells whether the length covers at least the header.
func (t *txn) long() bool { return t.tlen >= uint64(t.header()) }

func knownStatus(b byte) bool { return b == committed || b == packed || b == undone }

// rec is a data record header.
type rec struct {
	pos  int64
	oid  zodb.OID
	tid  zodb.TID
	tloc uint64
	vlen uint16
	plen uint64
}

func parseRec(b []byte, pos int64) rec {
	_ = b[recHeader-1]
	return rec{
		pos:  pos,
		oid:  zodb.OID(binary.BigEndian.Uint64(b)),
		tid:  zodb.TID(binary.BigEndian.Uint64(b[8:])),
		tloc: binary.BigEndian.Uint64(b[24:]),
		vlen: binary.BigEndian.Uint16(b[32:]),
		plen: binary.BigEndian.Uint64(b[34:]),
	}
}

// fault is what is wrong at a place in the file, and what to do about it.
type fault struct{ problem, hint string }

const (
	restoreHint = "nothing after this place can be trusted to be complete: restore the file from a backup, or let ZODB's fsrecover make a repaired copy and convert that one"
	versionHint = "the database contains uncommitted Versions, which no ZODB since 3.9 can read: commit or discard them with the ZODB that made them, pack, and convert again"
)

// check tells what is wrong with a record that stands in a transaction at tpos
// whose records end at end, or nil. After nil the sums of end are safe.
func (r *rec) check(tpos, end int64) *fault {
	room := end - r.pos - recHeader // the caller saw the header: room >= 0
	switch {
	case r.tloc != uint64(tpos):
		return &fault{fmt.Sprintf("the record of oid %v says that its transaction starts at offset %d, but it stands in the one at %d", r.oid, r.tloc, tpos), restoreHint}
	case r.vlen != 0:
		return &fault{fmt.Sprintf("the record of oid %v, tid %v belongs to a Version (with a name of %d bytes)", r.oid, r.tid, r.vlen), versionHint}
	case r.plen == 0 && room < 8, r.plen > uint64(room):
		return &fault{fmt.Sprintf("the record of oid %v claims %d bytes of data, but its transaction ends %d bytes after the record's header", r.oid, r.plen, room), restoreHint}
	}
	return nil
}

// body is the length behind the header: data or back pointer.
func (r *rec) body() int64 {
	if r.plen == 0 {
		return 8
	}
	return int64(r.plen)
}

func (r *rec) end() int64 { return r.pos + recHeader + r.body() }
