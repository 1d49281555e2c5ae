package verify

import (
	"sync/atomic"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// bucketBits tells how finely rows are summed up: of a hundred million objects
// some 1500 fall into one bucket.
const bucketBits = 16

// buckets sum rows up by a hash of what identifies them. Two sets of rows of which
// one contains the other have the same sums exactly if they are equal: the counts
// alone tell that.
type buckets struct {
	counts, sums [1 << bucketBits]atomic.Uint64
}

// mix is the finishing step of splitmix64, a bijection.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// bucketOf depends on one number of the key, so that all rows of an object are in
// one bucket.
func bucketOf(n uint64) int { return int(mix(n+0x9e3779b97f4a7c15) >> (64 - bucketBits)) }

func (b *buckets) add(n uint64, tid zodb.TID) {
	i := bucketOf(n)
	b.counts[i].Add(1)
	b.sums[i].Add(mix(mix(n+0x9e3779b97f4a7c15) ^ uint64(tid)))
}

// differing are the buckets in which b and o are not the same, nil if there are
// none.
func (b *buckets) differing(o *buckets) map[int]bool {
	var out map[int]bool
	for i := range b.counts {
		if b.counts[i].Load() != o.counts[i].Load() || b.sums[i].Load() != o.sums[i].Load() {
			if out == nil {
				out = map[int]bool{}
			}
			out[i] = true
		}
	}
	return out
}

// above is how many rows there are more in o than in b.
func (b *buckets) above(o *buckets) (n int64) {
	for i := range b.counts {
		n += int64(o.counts[i].Load() - b.counts[i].Load())
	}
	return n
}

// portions cuts differing buckets into parts of which none holds more keys than
// limit, or a single bucket.
func (b *buckets) portions(differing map[int]bool, limit uint64) []map[int]bool {
	var parts []map[int]bool
	room := uint64(0)
	for i := range b.counts {
		if !differing[i] {
			continue
		}
		n := b.counts[i].Load()
		if len(parts) == 0 || n > room {
			parts = append(parts, map[int]bool{})
			room = max(limit, n)
		}
		parts[len(parts)-1][i] = true
		room -= n
	}
	return parts
}

// inSample tells whether an object belongs to a sample of so many percent.
func inSample(oid zodb.OID, percent float64) bool {
	if percent <= 0 || percent >= 100 {
		return true
	}
	const all = 1 << 53
	return float64(mix(uint64(oid)^0x5851f42d4c957f2d)>>11) < percent/100*all
}
