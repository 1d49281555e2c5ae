package inspect

import (
	"math/bits"
	"math/rand/v2"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// revisions counts the revisions of each object. It is a hash table of blocks of
// 64 oids, each with a byte for each of them; those that a byte does not hold are
// counted apart. So it takes less than two bytes for each oid that ZODB has
// allocated in sequence, and about a hundred for each that some tool has scattered
// over all numbers.
type revisions struct {
	max   int64  // bytes it may take
	seed  uint64 // odd; random, so that no source can be made to collide
	slots []revisionSlot
	used  int
	slabs []*[slabBlocks][blockOIDs]uint8
	many  map[zodb.OID]int64 // counts beyond a byte's
	full  bool               // it would take more than it may, and holds nothing
}

// revisionSlot is a block: its number, and the place of its counts plus one.
type revisionSlot struct {
	key   uint64
	block uint32
}

const (
	blockOIDs  = 64
	slabBlocks = 256
	slotBytes  = 16
	manyBytes  = 64 // about what an entry of many takes
	most       = 255
)

func newRevisions(limit int64) *revisions { return &revisions{max: limit, seed: rand.Uint64() | 1} }

// add counts a revision.
func (v *revisions) add(oid zodb.OID) {
	if v.full {
		return
	}
	n := &v.block(uint64(oid) / blockOIDs)[uint64(oid)%blockOIDs]
	if *n < most {
		*n++
		return
	}
	if v.many == nil {
		v.many = map[zodb.OID]int64{}
	}
	v.many[oid]++
}

// block finds the counts of a block, or makes them.
func (v *revisions) block(key uint64) *[blockOIDs]uint8 {
	if v.used*4 >= len(v.slots)*3 {
		v.grow()
	}
	at := v.find(key)
	s := &v.slots[at]
	if s.block == 0 {
		if v.used%slabBlocks == 0 {
			v.slabs = append(v.slabs, new([slabBlocks][blockOIDs]uint8))
		}
		v.used++
		*s = revisionSlot{key, uint32(v.used)}
	}
	i := int(s.block - 1)
	return &v.slabs[i/slabBlocks][i%slabBlocks]
}

// find finds the slot of a block, or the one where it belongs.
func (v *revisions) find(key uint64) int {
	mask := len(v.slots) - 1
	at := int((key^key>>29)*v.seed>>20) & mask
	for v.slots[at].block != 0 && v.slots[at].key != key {
		at = (at + 1) & mask
	}
	return at
}

func (v *revisions) grow() {
	old := v.slots
	v.slots = make([]revisionSlot, max(2*len(old), 1024))
	for _, s := range old {
		if s.block != 0 {
			v.slots[v.find(s.key)] = s
		}
	}
}

// check gives everything back if it takes more than it may. It is asked between
// chunks, so that adding stays short.
func (v *revisions) check() {
	if v.full {
		return
	}
	held := int64(len(v.slots))*slotBytes*3/2 + int64(len(v.slabs))*slabBlocks*blockOIDs + int64(len(v.many))*manyBytes
	if held > v.max {
		*v = revisions{full: true}
	}
}

// histogram counts objects by their number of revisions: 1, 2-3, 4-7 and so on.
func (v *revisions) histogram() (sizes []int64, highest int64) {
	var all [64]int64
	count := func(n int64) {
		all[bits.Len64(uint64(n))-1]++
		highest = max(highest, n)
	}
	for _, s := range v.slots {
		if s.block == 0 {
			continue
		}
		i := int(s.block - 1)
		for low, n := range &v.slabs[i/slabBlocks][i%slabBlocks] {
			switch {
			case n == most:
				count(most + v.many[zodb.OID(s.key*blockOIDs+uint64(low))])
			case n > 0:
				count(int64(n))
			}
		}
	}
	last := 0
	for i, n := range all {
		if n > 0 {
			last = i + 1
		}
	}
	return append([]int64{}, all[:last]...), highest
}
