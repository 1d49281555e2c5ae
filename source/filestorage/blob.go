package filestorage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// blobClass is how much of a record's data the test for blobs looks at. The
	// class pickle of a blob takes about 25 bytes, as a pair 36.
	blobClass = blobPrefix
	// blobPrefix is what of the stored form is read for the test. A compressed
	// record that is longer is no blob: zc.zlibstorage leaves blob records as
	// they are, because compression would make their 25 bytes longer.
	blobPrefix = 128
)

// isBlob tells whether the record of size bytes whose stored data starts with
// prefix is that of a blob: its first pickle is the class ZODB.blob.Blob, alone
// or in the pair (class, None). Something that merely refers to a blob does not
// count.
//
// ZODB itself writes the class alone, and takes nothing else for a blob when it
// copies a database. zodb-pgjsonb gives (("ZODB.blob", "Blob"), None), so a
// FileStorage that was copied out of one has the pair.
func (z *inflater) isBlob(prefix []byte, size uint64) bool {
	if uint64(len(prefix)) > size {
		prefix = prefix[:size]
	}
	if zrecord.Is(prefix) {
		if size > blobPrefix {
			return false
		}
		prefix = z.head[:z.Prefix(prefix, z.head[:])]
	}
	return blobclass.Is(prefix)
}

// Blob implements source.Source. A blob that a back record stands for may lie
// under the tid of the record that the back pointer leads to: ZODB copies the
// file at an undo, but not every tool does.
func (s *Source) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	sc, err := s.scanned()
	if err != nil {
		return nil, err
	}
	b, _, err := s.findBlob(ctx, r.OID, r.TID, r.Pos, sc.end)
	return b, err
}

// findBlob finds the blob of the record at pos, which stands before limit. It
// also returns the tid under which the file lies.
func (s *Source) findBlob(ctx context.Context, oid zodb.OID, tid zodb.TID, pos, limit int64) (b *source.Blob, found zodb.TID, err error) {
	if s.blobs == nil {
		return nil, 0, &source.BlobError{OID: oid, TID: tid, Path: s.path, Missing: true, Problem: "has blobs, but no blob directory was given"}
	}
	b, err = s.blobs.Find(ctx, oid, tid)
	var missing *source.BlobError
	if !errors.As(err, &missing) || !missing.Missing {
		return b, tid, err
	}
	for _, other := range s.otherTIDs(oid, tid, pos, limit) {
		b, err := s.blobs.Find(ctx, oid, other)
		if err == nil {
			return under(b, tid), other, nil
		}
		if again := (*source.BlobError)(nil); !errors.As(err, &again) {
			return nil, 0, err
		}
	}
	return nil, 0, missing
}

// under is the blob of the revision tid whose file was found under another tid.
func under(b *source.Blob, tid zodb.TID) *source.Blob {
	c := *b
	c.TID = tid
	c.Note = fmt.Sprintf("its file lies under tid %v, from which it was copied", b.TID)
	if b.Note != "" {
		c.Note += "; " + b.Note
	}
	return &c
}

// otherTIDs are those under which the blob of a record may lie, too: the tid in
// the record if it differs from that of its transaction, and for a back record
// the first and the last that its chain of back pointers leads to. Nothing, if
// no such record stands at pos.
func (s *Source) otherTIDs(oid zodb.OID, tid zodb.TID, pos, limit int64) (list []zodb.TID) {
	add := func(t zodb.TID) {
		if t != 0 && t != tid && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	if pos < firstPos+txnFixed {
		return nil
	}
	w := &window{r: s.f, limit: limit}
	r, problem, err := readTarget(w, pos, limit)
	if err != nil || problem != "" || r.oid != oid {
		return nil
	}
	add(r.tid)
	var b [8]byte
	if r.plen > 0 || w.small(b[:], pos+recHeader) != nil {
		return list
	}
	var first int64
	last, err := follow(w, s.path, &r, binary.BigEndian.Uint64(b[:]), func(pos int64) bool {
		first = max(first, pos) // each target stands before the last
		return true
	})
	if err != nil || last.plen == 0 {
		return list
	}
	if first != 0 {
		if r, problem, err := readTarget(w, first, pos); err == nil && problem == "" {
			add(r.tid)
		}
	}
	add(last.tid)
	return list
}
