package inspect

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// BenchmarkReferences tells what references cost for each object, without decoding
// records, in nanoseconds and in bytes of the temporary file: of a site of a million
// objects in which most references lead to what was made at the same time. Records
// come in the order in which they were last written, which is not that of oids.
func BenchmarkReferences(b *testing.B) {
	const objects = 1_000_000
	random := rand.New(rand.NewPCG(1, 1))
	order := random.Perm(objects)
	refs := make([][3]int64, objects)
	for i := range refs {
		near := max(i-100, 0) + random.IntN(200)
		refs[i] = [3]int64{int64(min(i+1, objects-1)), int64(min(near, objects-1)), random.Int64N(objects)}
	}
	for _, reachability := range []bool{false, true} {
		b.Run(fmt.Sprintf("reachability=%t", reachability), func(b *testing.B) {
			size := int64(0)
			for b.Loop() {
				r := opened(b, referenceOptions{Reachability: reachability, Memory: 256 << 20, Objects: objects})
				w := r.writer(jsonb.NewEncoder(jsonb.Options{}))
				row := &jsonb.Row{Module: []byte("plone.app.contenttypes.content"), Name: []byte("Document")}
				for _, i := range order {
					row.Refs = refs[i][:]
					w.add(zodb.OID(i), row, 700)
				}
				if _, err := r.findings(b.Context()); err != nil {
					b.Fatal(err)
				}
				if reachability {
					size = r.file.size
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/objects, "ns/object")
			b.ReportMetric(float64(size)/objects, "file-B/object")
		})
	}
}
