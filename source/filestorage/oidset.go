package filestorage

import (
	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// oidSet is a set of oids.
type oidSet struct{ bits *roaring64.Bitmap }

func newOIDSet() *oidSet { return &oidSet{bits: roaring64.New()} }

// add tells whether oid is new.
func (s *oidSet) add(oid zodb.OID) bool      { return s.bits.CheckedAdd(uint64(oid)) }
func (s *oidSet) contains(oid zodb.OID) bool { return s.bits.Contains(uint64(oid)) }
func (s *oidSet) clear()                     { s.bits.Clear() }
func (s *oidSet) len() int64                 { return int64(s.bits.GetCardinality()) }
func (s *oidSet) bytes() int64               { return int64(s.bits.GetSizeInBytes()) }
