package filestorage_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// noBudget is a budget without bounds.
type noBudget struct{}

func (noBudget) Acquire(ctx context.Context, n int64) error { return ctx.Err() }
func (noBudget) Release(n int64)                            {}

var benchmarks = []struct {
	name          string
	size, perTxn  int
	records, oids int
	scattered     bool
}{
	{"300 bytes, 10 a transaction", 300, 10, 200_000, 180_000, false},
	{"300 bytes, 50000 a transaction", 300, 50_000, 200_000, 180_000, false},
	{"300 bytes, scattered oids", 300, 10, 200_000, 180_000, true},
	{"3300 bytes, 10 a transaction", 3300, 10, 40_000, 36_000, false},
}

func benchFile(b *testing.B, i int) (path string, records int) {
	c := benchmarks[i]
	rng := rand.New(rand.NewPCG(1, 2))
	d := newData()
	pickle := make([]byte, c.size)
	for i := range pickle {
		pickle[i] = byte(rng.Uint32())
	}
	pickle[0] = 0x80
	var puts []put
	for i := range c.records {
		oid := zodb.OID(i)
		if i >= c.oids {
			oid = zodb.OID(rng.IntN(c.oids))
		}
		if c.scattered {
			oid = oid * 0x9e3779b97f4a7c15 >> 1
		}
		if puts = append(puts, put{oid: oid, data: pickle}); len(puts) == c.perTxn {
			d.add(' ', tid1+zodb.TID(i), "/ admin", "/site/document/edit", "", puts...)
			puts = puts[:0]
		}
	}
	return file(b, d.buf), c.records
}

// BenchmarkScan and BenchmarkRead measure the file in the page cache, so
// reading it costs one copy.
func BenchmarkScan(b *testing.B) {
	for i, c := range benchmarks {
		b.Run(c.name, func(b *testing.B) {
			path, records := benchFile(b, i)
			var info *source.Info
			for b.Loop() {
				s := open(b, path)
				var err error
				if info, err = s.Scan(b.Context(), source.ScanOptions{}); err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
			b.SetBytes(info.Bytes)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
			b.ReportMetric(float64(info.SeenBytes)/float64(info.Objects), "bytes/oid")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for i, c := range benchmarks {
		for _, history := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s, history %v", c.name, history), func(b *testing.B) {
				path, records := benchFile(b, i)
				s := open(b, path)
				info, err := s.Scan(b.Context(), source.ScanOptions{})
				if err != nil {
					b.Fatal(err)
				}
				opts := source.ReadOptions{History: history, ChunkBytes: 4 << 20, Budget: noBudget{}}
				for b.Loop() {
					if err := s.Read(b.Context(), opts, func(c *source.Chunk) error { c.Release(); return nil }); err != nil {
						b.Fatal(err)
					}
				}
				b.SetBytes(info.Bytes)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
			})
		}
	}
}
