package pipeline_test

import (
	"context"
	"fmt"
	"log"

	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

func ExampleRun() {
	ctx := context.Background()
	src, err := filestorage.Open(ctx, "../testdata/plone.fs", filestorage.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	dst, err := pgjsonb.Open(ctx, pgjsonb.Config{DSN: exampleDSN})
	if err != nil {
		log.Fatal(err)
	}
	defer dst.Close()

	report, err := pipeline.Run(ctx, src, dst, pipeline.Options{
		Workers: 2,
		Progress: func(e pipeline.Event) {
			if e.Kind == pipeline.PhaseStarted {
				fmt.Println(e.Phase)
			}
		},
	})
	if err != nil {
		log.Fatal(err) // interrupted? Run again with Options.Incremental
	}
	fmt.Println(report.Totals.Objects, "objects,", report.Totals.Rejected, "rejected")
	// Output:
	// scan
	// prepare
	// load
	// finish
	// done
	// 259 objects, 0 rejected
}
