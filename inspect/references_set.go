package inspect

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"sync"
)

// Oids lie close together, because they are given out one after the other: a set
// of them keeps 64 neighbours in one word.
const (
	wordShift = 6
	wordBits  = 1 << wordShift
)

// word is the part of a set whose oids are key<<wordShift and so on.
type word struct{ key, bits uint64 }

const wordSize = 16

// oidTable is a set of oids that grows: a hash table with open addressing. The zero
// value with a memory is empty. Words without a bit are free places.
type oidTable struct {
	memory *setMemory
	words  []word
	used   int
	last   int // the place of the word that was met last
}

const smallestTable = 1 << 6

func hash(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 }

// place is where a key is, or could be.
func (t *oidTable) place(key uint64) int {
	mask := len(t.words) - 1
	for i := int(hash(key) >> 20 & math.MaxInt32); ; i++ {
		if w := &t.words[i&mask]; w.bits == 0 || w.key == key {
			return i & mask
		}
	}
}

// add tells whether there was room for an oid.
func (t *oidTable) add(oid uint64) bool {
	key, bit := oid>>wordShift, uint64(1)<<(oid%wordBits)
	if len(t.words) > 0 {
		if w := &t.words[t.last]; w.key == key && w.bits != 0 {
			w.bits |= bit
			return true
		}
	}
	if t.used >= len(t.words)/4*3 && !t.grow() {
		return false
	}
	t.last = t.place(key)
	w := &t.words[t.last]
	if w.bits == 0 {
		w.key = key
		t.used++
	}
	w.bits |= bit
	return true
}

func (t *oidTable) grow() bool {
	size := max(2*len(t.words), smallestTable)
	if !t.memory.take(int64(size-len(t.words)) * wordSize) {
		return false
	}
	old := t.words
	t.words, t.last = make([]word, size), 0
	for _, w := range old {
		if w.bits != 0 {
			t.words[t.place(w.key)] = w
		}
	}
	return true
}

// release gives the memory back.
func (t *oidTable) release() {
	t.memory.used.Add(-int64(len(t.words)) * wordSize)
	t.words, t.used, t.last = nil, 0, 0
}

// oidSet is a set of oids that several goroutines add to. Parts with a lock of their
// own keep them out of each other's way.
type oidSet [1 << oidSetShift]struct {
	sync.Mutex
	oidTable
}

const oidSetShift = 6

func (s *oidSet) init(memory *setMemory) {
	for i := range s {
		s[i].memory = memory
	}
}

// add tells whether there was room for an oid.
func (s *oidSet) add(oid uint64) bool {
	part := &s[hash(oid>>wordShift)>>(64-oidSetShift)]
	part.Lock()
	defer part.Unlock()
	return part.oidTable.add(oid)
}

func (s *oidSet) release() {
	for i := range s {
		s[i].Lock()
		s[i].oidTable.release()
		s[i].Unlock()
	}
}

// oidIndex is a set of oids, ascending, with the rank of each.
type oidIndex struct {
	words []word
	// before is how many oids there are before each word.
	before []uint32
	n      int64
	last   int // where the last search ended
}

// sorted makes an index of a set, which is released. Each word is in one part.
func (s *oidSet) sorted() oidIndex {
	total := 0
	for i := range s {
		total += s[i].used
	}
	x := oidIndex{words: make([]word, 0, total)}
	for i := range s {
		for _, w := range s[i].words {
			if w.bits != 0 {
				x.words = append(x.words, w)
				x.n += int64(bits.OnesCount64(w.bits))
			}
		}
		s[i].release()
	}
	slices.SortFunc(x.words, func(a, b word) int { return cmp.Compare(a.key, b.key) })
	return x
}

// number counts the oids before each word. There must be less than 2^32.
func (x *oidIndex) number() {
	x.before = make([]uint32, len(x.words))
	n := uint32(0)
	for i, w := range x.words {
		x.before[i] = n
		n += uint32(bits.OnesCount64(w.bits))
	}
}

// rank is the number of an oid among all, ascending from 0.
func (x *oidIndex) rank(oid uint64) (rank uint32, ok bool) {
	i, found := x.find(oid >> wordShift)
	if !found {
		return 0, false
	}
	w, bit := x.words[i].bits, oid%wordBits
	if w>>bit&1 == 0 {
		return 0, false
	}
	return x.before[i] + uint32(bits.OnesCount64(w&(1<<bit-1))), true
}

func (x *oidIndex) has(oid uint64) bool {
	i, found := x.find(oid >> wordShift)
	return found && x.words[i].bits>>(oid%wordBits)&1 != 0
}

// find finds a word. It begins where the word would be if no oid were missing
// since the last one that was looked for, which it mostly is or is close to.
func (x *oidIndex) find(key uint64) (int, bool) {
	size := len(x.words)
	if size == 0 {
		return 0, false
	}
	at := x.last
	switch here := x.words[at].key; {
	case key > here:
		at += int(min(key-here, uint64(size-1-at)))
	case key < here:
		at -= int(min(here-key, uint64(at)))
	}
	// Keys are distinct, so the place is between at and x.last, and mostly near at.
	low, high := at, at+1
	for step := 1; low > 0 && x.words[low].key > key; step *= 2 {
		low = max(low-step, 0)
	}
	for step := 1; high < size && x.words[high].key <= key; step *= 2 {
		high = min(high+step, size)
	}
	for high-low > 1 {
		if middle := int(uint(low+high) / 2); x.words[middle].key <= key {
			low = middle
		} else {
			high = middle
		}
	}
	x.last = low
	return low, x.words[low].key == key
}

// minus calls fn for the oids of x that y does not have, ascending.
func (x *oidIndex) minus(y *oidIndex, fn func(oid uint64)) {
	for _, w := range x.words {
		left := w.bits
		if i, found := y.find(w.key); found {
			left &^= y.words[i].bits
		}
		for ; left != 0; left &= left - 1 {
			fn(w.key<<wordShift | uint64(bits.TrailingZeros64(left)))
		}
	}
}

// bitmap is a set of ranks.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i uint32) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }

// offsets are numbers below 2^40, by rank.
type offsets struct {
	low  []uint32
	high []uint8
}

func newOffsets(n int64) offsets { return offsets{make([]uint32, n), make([]uint8, n)} }

const maxOffset = 1<<40 - 1

func (o offsets) set(i uint32, v int64) { o.low[i], o.high[i] = uint32(v), uint8(v>>32) }
func (o offsets) at(i uint32) int64     { return int64(o.high[i])<<32 | int64(o.low[i]) }

// indexMemory is what it takes to walk so many objects in so many words: words with
// their ranks, offsets, two bitmaps, and a list of objects that is not too short.
func indexMemory(objects, words int64) int64 {
	return words*(wordSize+4) + objects*5 + objects/4 + smallestFrontier*16
}

// reference is one that is listed.
type reference struct {
	from, to uint64
	database []byte
}

// lowest are the first references by the oid that they are from.
type lowest []reference

// add keeps of each referring object one reference, the lowest.
func (l *lowest) add(r reference) {
	i, found := slices.BinarySearchFunc(*l, r, func(a, b reference) int { return cmp.Compare(a.from, b.from) })
	switch {
	case found && r.to < (*l)[i].to:
		r.database = slices.Clone(r.database)
		(*l)[i] = r
	case found || i == firstListed:
	default:
		if len(*l) == firstListed {
			*l = (*l)[:firstListed-1]
		}
		r.database = slices.Clone(r.database)
		*l = slices.Insert(*l, i, r)
	}
}

// census counts records and their bytes by the number of their class.
type census []Class

func (c *census) add(class uint32, size int64) {
	for int(class) >= len(*c) {
		*c = append(*c, Class{})
	}
	(*c)[class].Objects++
	(*c)[class].Bytes += size
}
