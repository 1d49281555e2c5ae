package inspect

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/zodb-convert/zodb-convert/zodb"
)

func TestRevisionsAreCountedForEachOID(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		oid  func(i int) zodb.OID
	}{
		{"in sequence", func(i int) zodb.OID { return zodb.OID(i) }},
		{"scattered", func(int) zodb.OID { return zodb.OID(random.Uint64()) }},
		{"far up", func(i int) zodb.OID { return ^zodb.OID(0) - zodb.OID(i) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newRevisions(64 << 20)
			var want []int64
			highest := int64(0)
			for i := range 20_000 {
				oid, n := c.oid(i), int64(1)+int64(i%3)
				switch i {
				case 7:
					n = 254
				case 8:
					n = 255
				case 9:
					n = 256
				case 10:
					n = 70_000
				}
				for range n {
					v.add(oid)
				}
				size := bits.Len64(uint64(n)) - 1
				for len(want) <= size {
					want = append(want, 0)
				}
				want[size]++
				highest = max(highest, n)
			}
			v.check()
			sizes, most := v.histogram()
			if v.full || most != highest || !slices.Equal(sizes, want) {
				t.Errorf("got %v, at most %d; want %v, at most %d; full: %v", sizes, most, want, highest, v.full)
			}
		})
	}
}

// What does not fit is given back, and never counted wrong.
func TestRevisionsStayWithinTheirMemory(t *testing.T) {
	v := newRevisions(1 << 20)
	for i := range 100_000 {
		v.add(zodb.OID(i) << 20)
		if i%1000 == 0 {
			v.check()
		}
	}
	if !v.full || v.slots != nil || v.slabs != nil || v.many != nil {
		t.Errorf("full: %v, and it holds %d slots and %d slabs", v.full, len(v.slots), len(v.slabs))
	}
}

func TestProtocolIsThatOfThePickler(t *testing.T) {
	for _, c := range []struct {
		record string
		want   int
	}{
		{"(cshop\nItem\np1\nNtp2\n.(dp3\n.", 0},
		{"(cshop\nItem\nq\x01Ntq\x02.}q\x03.", 1},
		{"cshop\nItem\nr\x00\x01\x00\x00.}.", 1},
		{"cshop\nItem\n.(d.", 0},
		{"((S'shop'\np1\nS'Item'\np2\ntp3\nNtp4\n.(dp5\n.", 0},
		{"((Vshop\np1\nVItem\np2\ntp3\nNtp4\n.(dp5\n.", 0},
		{"((U\x04shopq\x01U\x04Itemq\x02tq\x03Ntq\x04.}q\x05.", 1},
		{"((X\x04\x00\x00\x00shopq\x01X\x04\x00\x00\x00Itemq\x02tq\x03Ntq\x04.}q\x05.", 1},
		{"\x80\x02cshop\nItem\nq\x01.\x80\x02}q\x02.", 2},
		{"\x80\x03cshop\nItem\nq\x01.\x80\x03}q\x02.", 3},
		{"\x80\x05\x8c\x04shop\x8c\x04Item\x93.\x80\x05}.", 5},
		{"\x80\xff", 5},
		{"\x80", 0},
		{"", 0},
	} {
		if got := protocol([]byte(c.record)); got != c.want {
			t.Errorf("protocol(%q) = %d, want %d", c.record, got, c.want)
		}
	}
}
