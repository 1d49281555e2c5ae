package relstorage

import (
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// BenchmarkSmallBlobs scans and reads blobs of 20 to 200 KB as a conversion with
// one writer does, and tells how many a second.
func BenchmarkSmallBlobs(b *testing.B) {
	const blobs = 5000
	c := &content{history: false}
	for first := 0; first < blobs; first += 10 {
		txn := sourcetest.Transaction{TID: firstTID + zodb.TID(first)}
		for i := range 10 {
			txn.Records = append(txn.Records, sourcetest.Record{OID: zodb.OID(first + i), Data: []byte(blobRecord)})
		}
		c.txns = append(c.txns, txn)
	}
	dsn := c.database(b)
	server := postgresServer.Server(b)
	server.Exec(b, dsn, `INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk)
		SELECT zoid, tid, 0, lo_from_bytea(0, decode(repeat(md5(zoid::text), (20000 + (zoid * 7919) % 180000)::int / 16), 'hex')) FROM object_state`)
	server.Exec(b, dsn, "VACUUM ANALYZE")
	for b.Loop() {
		s := openPostgreSQL(b, dsn)
		start := time.Now()
		info := mustScan(b, s, source.ScanOptions{})
		scanned := time.Since(start)
		start = time.Now()
		var located, total time.Duration
		var bytes int64
		err := s.Read(b.Context(), source.ReadOptions{ChunkBytes: 2 << 20, Budget: newFreeBudget()}, func(c *source.Chunk) error {
			defer c.Release()
			for i := range c.Records {
				t := time.Now()
				blob, err := s.Blob(b.Context(), &c.Records[i])
				if err != nil {
					return err
				}
				located += time.Since(t)
				r, err := blob.Open(b.Context())
				if err != nil {
					return err
				}
				buffer := make([]byte, 64<<10)
				for at := int64(0); at < blob.Size; {
					n, err := r.ReadAt(buffer[:min(int64(len(buffer)), blob.Size-at)], at)
					if err != nil {
						return err
					}
					at += int64(n)
					bytes += int64(n)
				}
				r.Close()
			}
			return nil
		})
		total = time.Since(start)
		if err != nil || bytes != info.BlobBytes {
			b.Fatal(bytes, err)
		}
		b.ReportMetric(float64(scanned.Microseconds())/blobs, "scan-µs/blob")
		b.ReportMetric(float64(located.Microseconds())/blobs, "find-µs/blob")
		b.ReportMetric(float64(total.Microseconds())/blobs, "read-µs/blob")
		b.ReportMetric(float64(bytes)/total.Seconds()/(1<<20), "MB/s")
		s.Close()
	}
}
