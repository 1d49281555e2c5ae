package pgjsonb_test

import (
	"context"
	"os"
	"testing"

	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// BenchmarkConvert converts the Data.fs that ZODB_CONVERT_BENCH names, with its
// finishing steps, into a server with its usual settings.
func BenchmarkConvert(b *testing.B) {
	path := os.Getenv("ZODB_CONVERT_BENCH")
	if path == "" {
		b.Skip("ZODB_CONVERT_BENCH names no Data.fs")
	}
	for b.Loop() {
		b.StopTimer()
		d := newDatabase(b)
		dst := d.Open(b, false)
		src, err := filestorage.Open(context.Background(), path, filestorage.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		report, err := pipeline.Run(context.Background(), src, dst, pipeline.Options{Workers: 4})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(report.Source.Bytes)
		for _, p := range report.Phases {
			b.ReportMetric(p.Took.Seconds(), string(p.Phase)+"-s")
		}
		src.Close()
		dst.Close()
	}
}
