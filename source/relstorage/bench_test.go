package relstorage

import (
	"fmt"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
)

// benchmarkDatabase holds 20,000 objects of 3.3 KB that do not compress.
func benchmarkDatabase(b *testing.B, history bool) *Source {
	b.Helper()
	server := postgresServer.Server(b)
	dsn := server.NewDatabase(b)
	schema := postgresFree
	if history {
		schema = postgresHistory + "INSERT INTO transaction SELECT 1000 + n, false, false, 'u', 'd' FROM generate_series(0, 199) n;"
	}
	server.Exec(b, dsn, schema+`
		CREATE FUNCTION bytes(n bigint) RETURNS bytea LANGUAGE sql AS $$
			SELECT string_agg(decode(md5(n::text || i::text), 'hex'), '') FROM generate_series(1, 206) i $$;
		INSERT INTO object_state (zoid, tid, state) SELECT n, 1000 + n / 100, bytes(n) FROM generate_series(0, 19999) n;`)
	if history {
		server.Exec(b, dsn, "INSERT INTO current_object SELECT zoid, tid FROM object_state")
	}
	server.Exec(b, dsn, "VACUUM ANALYZE")
	s, err := Open(b.Context(), Options{PostgreSQL: &PostgreSQL{DSN: dsn}, Connections: 2})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func BenchmarkScan(b *testing.B) {
	for _, history := range []bool{false, true} {
		b.Run(fmt.Sprintf("history=%t", history), func(b *testing.B) {
			s := benchmarkDatabase(b, history)
			b.ReportAllocs()
			var rows int64
			for b.Loop() {
				info, err := s.Scan(b.Context(), source.ScanOptions{History: history})
				if err != nil {
					b.Fatal(err)
				}
				rows += info.Records
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, history := range []bool{false, true} {
		b.Run(fmt.Sprintf("history=%t", history), func(b *testing.B) {
			s := benchmarkDatabase(b, history)
			info, err := s.Scan(b.Context(), source.ScanOptions{History: history})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(info.Bytes)
			b.ReportAllocs()
			var rows int64
			for b.Loop() {
				err := s.Read(b.Context(), source.ReadOptions{History: history, ChunkBytes: 2 << 20, Budget: newFreeBudget()}, func(c *source.Chunk) error {
					rows += int64(len(c.Records))
					c.Release()
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
