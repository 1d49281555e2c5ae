//go:build unix

package jsonb_test

import (
	"context"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// unlimited is the budget of a benchmark.
type unlimited struct{}

func (unlimited) Acquire(context.Context, int64) error { return nil }
func (unlimited) Release(int64)                        {}

// siteRecords are the records of a site: those of testdata, or those of the
// database that ZODB_CONVERT_BENCH_DATA names.
func siteRecords(b *testing.B) [][]byte {
	b.Helper()
	path := os.Getenv("ZODB_CONVERT_BENCH_DATA")
	if path == "" {
		path = "../../testdata/plone.fs"
	}
	ctx := b.Context()
	src, err := filestorage.Open(ctx, path, filestorage.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Scan(ctx, source.ScanOptions{}); err != nil {
		b.Fatal(err)
	}
	var records [][]byte
	err = src.Read(ctx, source.ReadOptions{ChunkBytes: 1 << 20, Budget: unlimited{}}, func(c *source.Chunk) error {
		defer c.Release()
		for i := range c.Records {
			var scratch []byte
			data, err := src.Data(ctx, &c.Records[i], &scratch)
			if err != nil {
				return err
			}
			if len(data) > 0 {
				records = append(records, slices.Clone(data))
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return records
}

// BenchmarkEncode tells MB/s of pickle on one core.
func BenchmarkEncode(b *testing.B) {
	records := siteRecords(b)
	encoder := jsonb.NewEncoder(jsonb.Options{})
	measure(b, records, func(record []byte) {
		if _, err := encoder.Encode(record); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkPickle is the part of BenchmarkEncode that the pickle machine takes.
func BenchmarkPickle(b *testing.B) {
	records := siteRecords(b)
	var machine pickle.Machine
	measure(b, records, func(record []byte) {
		machine.Reset(record)
		for range 2 {
			if _, err := machine.Load(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// measure runs over all records at a time.
func measure(b *testing.B, records [][]byte, do func([]byte)) {
	size := 0
	for _, r := range records {
		size += len(r)
	}
	b.SetBytes(int64(size))
	b.ReportMetric(float64(size)/float64(len(records)), "B/record")
	b.ReportAllocs()
	start := cpuTime(b)
	for b.Loop() {
		for _, r := range records {
			do(r)
		}
	}
	// What the processor was kept busy for, because wall time says little on a
	// machine that does other things, too.
	seconds := cpuTime(b) - start
	b.ReportMetric(float64(b.N)*float64(size)/1e6/seconds, "MB/cpu-s")
	b.ReportMetric(float64(b.N)*float64(len(records))/seconds, "records/cpu-s")
}

func cpuTime(b *testing.B) float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}
