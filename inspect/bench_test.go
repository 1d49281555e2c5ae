package inspect_test

import (
	"os"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/inspect"
)

// BenchmarkInspect inspects a database with one worker: ZODB_CONVERT_BENCH, a
// Data.fs, or one of testdata.
func BenchmarkInspect(b *testing.B) {
	path := "../testdata/plone.fs"
	if p := os.Getenv("ZODB_CONVERT_BENCH"); p != "" {
		path = p
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	for name, reachability := range map[string]bool{"without reachability": false, "with reachability": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(info.Size())
			b.ReportAllocs()
			for b.Loop() {
				src := fileStorage(b, path)
				if _, err := inspect.Run(b.Context(), src, inspect.Options{Workers: 1, LargestBlob: pgjsonb.LargestBytea, Reachability: reachability, TempDir: b.TempDir()}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
