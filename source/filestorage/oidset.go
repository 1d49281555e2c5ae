package filestorage

import (
	"math/bits"
	"math/rand/v2"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// oidSet is a set of oids, made for two kinds of database: those whose oids
// ZODB has allocated in sequence, where it takes little more than a bit for
// each, and those whose oids some tool has scattered over all 64 bits.
//
// It is a hash table of blocks of 1024 oids. A block with up to 6 of them keeps
// these in its slot, any other has a bitmap. So it takes 1.2 bits for each oid
// in sequence, 20 to 40 bytes for each scattered one, and not more for anything
// between.
//
// A roaring64 bitmap does as well with oids in sequence, but keeps the scattered
// ones in a sorted array: 180,000 of them took 7000 ns each to add, growing with
// their number, against 40 ns here, and its size in memory cannot be asked for.
type oidSet struct {
	slots []oidSlot // a power of two of them, at most 4/5 in use
	used  int
	shift uint   // 64 - log2(len(slots))
	seed  uint64 // odd; random, so that no file can be made to collide
	n     int64

	maps  []*[slabMaps]oidMap // allocated by slabs, so that none ever moves
	nmaps int

	last int // the slot that was used last

	// max is how many bytes the set may take, 0 for any. A set that would take
	// more is thinned: it keeps only the blocks whose hash ends in so many zero
	// bits, and answers with estimates.
	max  int64
	thin uint
}

// oidSlot is one block. The upper 4 bits of val are the number of oids in the
// lower bits, ten bits each, or inMap with the number of a bitmap below; 0 is a
// free slot.
type oidSlot struct{ key, val uint64 }

const (
	blockBits = 10
	blockMask = 1<<blockBits - 1
	maxInline = 6
	inMap     = 15
	countBit  = 60 // where the upper 4 bits start
	slabMaps  = 64
	minSlots  = 64
)

type oidMap [1 << blockBits / 64]uint64

func newOIDSet() *oidSet {
	s := &oidSet{seed: rand.Uint64() | 1}
	s.clear()
	return s
}

// clear empties the set and gives back what it took.
func (s *oidSet) clear() {
	if len(s.slots) == minSlots {
		clear(s.slots)
	} else {
		s.slots, s.shift = make([]oidSlot, minSlots), 64-6
	}
	if len(s.maps) > 1 {
		s.maps = nil
	}
	s.used, s.n, s.nmaps = 0, 0, 0
	s.last = 0
}

func (s *oidSet) len() int64 { return s.n << s.thin }

// bytes is what the set takes in memory, or would if it were whole.
func (s *oidSet) bytes() int64 { return s.held() << s.thin }

func (s *oidSet) held() int64 {
	return int64(len(s.slots))*16 + int64(len(s.maps))*slabMaps*(1<<blockBits/8)
}

// left tells whether thinning leaves a block out.
func (s *oidSet) left(key uint64) bool {
	return s.thin > 0 && s.hash(key)>>16&(1<<s.thin-1) != 0
}

// thinOut leaves out about half of the blocks.
func (s *oidSet) thinOut() {
	whole := *s
	s.slots, s.maps = nil, nil
	s.clear()
	s.thin++
	s.max = 0 // a half fits
	defer func() { s.max = whole.max }()
	for i := range whole.slots {
		e := &whole.slots[i]
		if e.val == 0 || s.left(e.key) {
			continue
		}
		if e.val>>countBit != inMap {
			val := e.val
			for range e.val >> countBit {
				s.add(zodb.OID(e.key<<blockBits | val&blockMask))
				val >>= blockBits
			}
			continue
		}
		for w, word := range whole.bitmap(e) {
			for ; word != 0; word &= word - 1 {
				s.add(zodb.OID(e.key<<blockBits | uint64(w*64+bits.TrailingZeros64(word))))
			}
		}
	}
}

// slot finds the slot of a block, or the free one where it belongs.
func (s *oidSet) slot(key uint64) int {
	if e := &s.slots[s.last]; e.key == key && e.val != 0 {
		return s.last
	}
	mask := len(s.slots) - 1
	i := s.home(key)
	for s.slots[i].val != 0 && s.slots[i].key != key {
		i = (i + 1) & mask
	}
	s.last = i
	return i
}

func (s *oidSet) home(key uint64) int { return int(s.hash(key) >> s.shift) }

func (s *oidSet) hash(key uint64) uint64 { return (key ^ key>>29) * s.seed }

func (e *oidSlot) inline(low uint64) bool {
	val := e.val
	for range e.val >> countBit {
		if val&blockMask == low {
			return true
		}
		val >>= blockBits
	}
	return false
}

// bitmap is that of a slot which has one.
func (s *oidSet) bitmap(e *oidSlot) *oidMap {
	i := e.val & (1<<countBit - 1)
	return &s.maps[i/slabMaps][i%slabMaps]
}

// add adds an oid and tells whether it is new.
func (s *oidSet) add(oid zodb.OID) bool {
	key, low := uint64(oid)>>blockBits, uint64(oid)&blockMask
	if s.left(key) {
		return false
	}
	e := &s.slots[s.slot(key)]
	n := e.val >> countBit
	if n == inMap {
		word, bit := &s.bitmap(e)[low/64], uint64(1)<<(low%64)
		if *word&bit != 0 {
			return false
		}
		*word |= bit
		s.n++
		return true
	}
	if e.inline(low) {
		return false
	}
	s.n++
	switch n {
	case 0:
		e.key, e.val = key, 1<<countBit|low
		if s.used++; s.used*5 > len(s.slots)*4 {
			s.grow()
		}
	case maxInline:
		if s.toMap(e, low); s.max > 0 && s.held() > s.max {
			s.thinOut()
		}
	default:
		e.val = (e.val &^ (inMap << countBit)) | low<<(n*blockBits) | (n+1)<<countBit
	}
	return true
}

// toMap moves a full slot's oids, and one more, into a bitmap.
func (s *oidSet) toMap(e *oidSlot, low uint64) {
	i := s.nmaps
	s.nmaps++
	if i/slabMaps == len(s.maps) {
		s.maps = append(s.maps, new([slabMaps]oidMap))
	}
	m := &s.maps[i/slabMaps][i%slabMaps]
	*m = oidMap{} // may have been used before clear
	m[low/64] |= 1 << (low % 64)
	for val, k := e.val, 0; k < maxInline; k++ {
		m[val&blockMask/64] |= 1 << (val & blockMask % 64)
		val >>= blockBits
	}
	e.val = inMap<<countBit | uint64(i)
}

func (s *oidSet) grow() {
	if s.max > 0 && s.held()*2 > s.max {
		s.thinOut()
		return
	}
	old := s.slots
	s.slots = make([]oidSlot, 2*len(old))
	s.shift--
	s.last = 0
	mask := len(s.slots) - 1
	for _, e := range old {
		if e.val == 0 {
			continue
		}
		i := s.home(e.key)
		for s.slots[i].val != 0 {
			i = (i + 1) & mask
		}
		s.slots[i] = e
	}
}
