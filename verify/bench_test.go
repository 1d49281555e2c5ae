package verify_test

import (
	"os"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/verify"
)

// BenchmarkVerify compares a database with what it was converted into:
// ZODB_CONVERT_BENCH, a Data.fs, or one of testdata. It tells how long the
// conversion took, too.
func BenchmarkVerify(b *testing.B) {
	p := &pair{path: "../testdata/plone.fs", dsn: postgres.Server(b).NewDatabase(b)}
	if path := os.Getenv("ZODB_CONVERT_BENCH"); path != "" {
		p.path = path
	}
	info, err := os.Stat(p.path)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	p.convert(b, pipeline.Options{})
	took := time.Since(began)
	b.SetBytes(info.Size())
	for b.Loop() {
		r, all := p.verify(b, verify.Options{})
		if len(all) > 0 {
			b.Fatalf("%v", r.Kinds)
		}
	}
	b.ReportMetric(took.Seconds(), "s/convert")
}
