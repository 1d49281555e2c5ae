package filestorage

import (
	"math/rand/v2"
	"testing"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// kinds of oids that databases have, each as the i-th oid added.
var oidKinds = []struct {
	name string
	oid  func(rng *rand.Rand, i int) zodb.OID
	most float64 // bytes for each of 200,000 oids
}{
	{"in sequence", func(_ *rand.Rand, i int) zodb.OID { return zodb.OID(i) }, 0.25},
	{"in sequence from far above", func(_ *rand.Rand, i int) zodb.OID { return 1<<62 + 12345 + zodb.OID(i) }, 0.25},
	{"backwards", func(_ *rand.Rand, i int) zodb.OID { return 1<<20 - zodb.OID(i) }, 0.25},
	{"every 16th", func(_ *rand.Rand, i int) zodb.OID { return zodb.OID(16 * i) }, 4},
	{"scattered", func(rng *rand.Rand, i int) zodb.OID { return zodb.OID(rng.Uint64()) }, 42},
	{"at both ends", func(_ *rand.Rand, i int) zodb.OID { return zodb.OID(i) * (1<<63 + 1) }, 0.5},
	{"with gaps at random", func(rng *rand.Rand, i int) zodb.OID { return zodb.OID(rng.IntN(1 << 25)) }, 42},
}

func TestOIDSetIsASet(t *testing.T) {
	for _, k := range oidKinds {
		t.Run(k.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			s, want := newOIDSet(), map[zodb.OID]bool{}
			for round := range 2 {
				for i := range 20_000 {
					oid := k.oid(rng, i)
					if s.contains(oid) != want[oid] {
						t.Fatalf("round %d: contains(%v) is %v before it was added the %dth", round, oid, !want[oid], i)
					}
					if s.add(oid) == want[oid] {
						t.Fatalf("round %d: add(%v) is %v at the %dth", round, oid, want[oid], i)
					}
					want[oid] = true
					if near := oid ^ zodb.OID(1<<rng.IntN(64)); s.contains(near) != want[near] {
						t.Fatalf("round %d: contains(%v) is %v", round, near, !want[near])
					}
				}
				if s.len() != int64(len(want)) {
					t.Fatalf("round %d: len is %d, want %d", round, s.len(), len(want))
				}
				for oid := range want {
					if s.add(oid) || !s.contains(oid) {
						t.Fatalf("round %d: %v was lost", round, oid)
					}
				}
				if s.clear(); s.len() != 0 || s.contains(7) || s.contains(zodb.OID(1<<62+12345)) {
					t.Fatalf("round %d: something is left after clear", round)
				}
				clear(want)
			}
		})
	}
}

func TestOIDSetIsSmall(t *testing.T) {
	for _, k := range oidKinds {
		rng := rand.New(rand.NewPCG(1, 1))
		s := newOIDSet()
		for i := range 200_000 {
			s.add(k.oid(rng, i))
		}
		if got := float64(s.bytes()) / float64(s.len()); got > k.most {
			t.Errorf("oids %s take %.2f bytes each, at most %.2f wanted", k.name, got, k.most)
		}
	}
}

func BenchmarkOIDSet(b *testing.B) {
	for _, k := range oidKinds {
		b.Run(k.name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 1))
			var s *oidSet
			for i := 0; b.Loop(); i++ {
				if i%1_000_000 == 0 {
					s = newOIDSet()
				}
				s.add(k.oid(rng, i%1_000_000))
			}
		})
	}
}

func TestThinnedSetEstimatesWithinItsMemory(t *testing.T) {
	for name, oid := range map[string]func(i uint64) zodb.OID{
		"scattered": func(i uint64) zodb.OID { return zodb.OID(i * 0x9e3779b97f4a7c15) },
		"dense":     func(i uint64) zodb.OID { return zodb.OID(i) },
	} {
		t.Run(name, func(t *testing.T) {
			const n, limit = 400_000, 16 << 10
			whole, thin := newOIDSet(), newOIDSet()
			thin.max = limit
			for i := range uint64(n) {
				whole.add(oid(i))
				thin.add(oid(i))
				if thin.held() > limit+slabMaps<<blockBits/8 {
					t.Fatalf("takes %d bytes", thin.held())
				}
			}
			if thin.thin == 0 {
				t.Fatal("was not thinned")
			}
			if got := float64(thin.len()) / n; got < 0.5 || got > 2 {
				t.Errorf("estimates %d of %d oids", thin.len(), n)
			}
			if got := float64(thin.bytes()) / float64(whole.bytes()); got < 0.25 || got > 4 {
				t.Errorf("estimates %d bytes, the whole takes %d", thin.bytes(), whole.bytes())
			}
		})
	}
}

// contains tells whether an oid is in the set, without adding it.
func (s *oidSet) contains(oid zodb.OID) bool {
	e := &s.slots[s.slot(uint64(oid)>>blockBits)]
	low := uint64(oid) & blockMask
	if e.val>>countBit == inMap {
		return s.bitmap(e)[low/64]&(1<<(low%64)) != 0
	}
	return e.inline(low)
}
