package main

import (
	"sync/atomic"
	"time"

	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

// watched is a command that shows how far it is.
type watched struct {
	*app
	display atomic.Pointer[progress.Display] // nil while nothing is shown
}

// note tells what the user should know. It may be called from any goroutine.
func (w *watched) note(text string) {
	note := pipeline.Event{Kind: pipeline.Note, Time: time.Now(), Text: w.redact(text)}
	if d := w.display.Load(); d != nil {
		d.Event(note)
		return
	}
	w.printer().Note(note.Time, note.Text)
}

// watch shows what work tells its listener. stopping is what is said when a signal
// asks it to stop.
func (w *watched) watch(stopping string, work func(listener func(pipeline.Event))) {
	display := progress.Start(w.printer())
	w.display.Store(display)
	w.signals.onReport(display.Report)
	w.signals.onStop(func(name string) { w.note(name + ": " + stopping + "; once more to stop at once") })
	work(display.Event)
	w.signals.onReport(nil)
	w.signals.onStop(nil)
	w.display.Store(nil)
	display.Close()
}
