package pipeline

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
)

// Blobs are told of in pieces by all writers and uploaders; the listener must
// not be called for each.
func TestBlobsAreToldOfTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		listen := NewEvents(func(e Event) { events = append(events, e) })
		r := &run{report: &Report{}, events: listen, opts: Options{Blobs: dest.Background}}
		r.blobBytes(1) // nothing is written yet, or any more
		r.tally.Store(&tally{run: r, phase: Loading, done: 7, total: 9, blobTotal: 1000 * 1000 * 8})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 1000 {
					r.blobBytes(1000)
					time.Sleep(time.Millisecond)
				}
			})
		}
		all.Wait()
		if len(events) < 9 || len(events) > 11 {
			t.Errorf("%d events in a second", len(events))
		}
		time.Sleep(time.Second)
		r.blobBytes(-1000)
		last := events[len(events)-1]
		if last.BlobBytes != 7999*1000 || last.BlobTotal != 8000*1000 || last.Done != 7 || last.Total != 9 || last.Phase != Loading {
			t.Errorf("%+v", last)
		}
	})
}
