package inspect_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// times is a database of testdata, so many times over with other oids and tids.
func times(t *testing.T, name string, n int) *desttest.Builder {
	t.Helper()
	src := fileStorage(t, filepath.Join("../testdata", name+".fs"))
	if _, err := src.Scan(t.Context(), source.ScanOptions{History: true}); err != nil {
		t.Fatal(err)
	}
	var records []desttest.Record
	var tids []zodb.TID
	err := src.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: 1 << 20, Budget: pipeline.NewBudget(64 << 20)}, func(c *source.Chunk) error {
		defer c.Release()
		for i := range c.Records {
			data, err := src.Data(t.Context(), &c.Records[i], new([]byte))
			if err != nil {
				return err
			}
			if data != nil {
				records = append(records, desttest.Record{OID: c.Records[i].OID, Data: slices.Clone(data)})
				tids = append(tids, c.Records[i].TID)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(records)
	slices.Reverse(tids)
	b := desttest.NewBuilder()
	tid := tids[0]
	for copied := range n {
		for from := 0; from < len(records); {
			to := from
			for to < len(records) && tids[to] == tids[from] {
				to++
			}
			batch := slices.Clone(records[from:to])
			for i := range batch {
				batch[i].OID += zodb.OID(copied) * 10_000
			}
			tid += 1 << 20
			b.Commit(desttest.Transaction{TID: tid, User: " admin", Description: "/site/edit"}, batch...)
			from = to
		}
	}
	return b
}

// What a conversion takes in PostgreSQL is told within a factor of 1.5, if that is
// more than a few pages.
func TestEstimateIsNearWhatAConversionTakes(t *testing.T) {
	for _, c := range []struct {
		name    string
		times   int
		history bool
	}{{"plone", 30, false}, {"btrees", 30, false}, {"history", 120, true}} {
		t.Run(fmt.Sprint(c.name, map[bool]string{true: "/history"}[c.history]), func(t *testing.T) {
			t.Parallel()
			src := times(t, c.name, c.times).Source(t)
			r := look(t, src, inspect.Options{HistoryPreserving: c.history, LargestBlob: pgjsonb.LargestBytea})
			dsn := postgres.Server(t).NewDatabase(t)
			convert(t, src, dsn, c.history)
			var is int64
			fmt.Sscan(postgres.Server(t).Query(t, dsn, `SELECT sum(pg_total_relation_size(c.oid))::bigint
				FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace`)[0], &is)
			ratio := float64(r.Estimate.DiskBytes) / float64(is)
			t.Logf("%d bytes were estimated, it takes %d: %.2f", r.Estimate.DiskBytes, is, ratio)
			if ratio < 1/1.5 || ratio > 1.5 {
				t.Errorf("the estimate is %.2f times what it takes", ratio)
			}
			if is < 2<<20 {
				t.Errorf("%d bytes are too few to tell", is)
			}
		})
	}
}
