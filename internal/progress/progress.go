// Package progress shows a conversion while it runs and what came of it.
//
// A Display listens to the events of package pipeline and passes them to a
// Printer: Text for people (a bar on a terminal, plain lines elsewhere) or JSON
// for programs (one object a line). It never makes the conversion wait: an
// event only changes what a goroutine of the Display will print.
//
// Nothing here uses colour or any other escape sequence: the bar is drawn with
// carriage returns and blanks, on a terminal that is not dumb.
package progress

import (
	"sync"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

// Printer shows things. Its methods are called by one goroutine at a time.
type Printer interface {
	// Every tells how often Update wants to be called.
	Every() time.Duration
	// Update tells how far the running phase is.
	Update(Status)
	// PhaseStarted and PhaseEnded frame what belongs to a phase.
	PhaseStarted(Status)
	PhaseEnded(Status)
	// Step tells that a step starts or that it is done.
	Step(time.Time, dest.Step)
	// Note tells the user something that matters.
	Note(at time.Time, text string)
	// Report is Update on demand (SIGUSR1).
	Report(Status)
	// Summary tells what came of the run.
	Summary(*Summary)
	// Uploaded tells what came of uploading a manifest.
	Uploaded(*UploadSummary)
	// Retried tells what came of retrying rejected records.
	Retried(*RetrySummary)
	// Problem tells why the command fails.
	Problem(*Problem)
}

// Status is how far a phase is.
type Status struct {
	Phase pipeline.Phase // "": nothing has started
	Since time.Time      // start of the phase
	Now   time.Time

	// Of the source, in bytes; Earlier is the part of Done that an earlier,
	// interrupted start did. Total is 0 where it is not known.
	Done, Total, Earlier int64
	// Keys tells that Done and Total count keys that are compared, not bytes.
	Keys              bool
	Objects, Rejected int64
	// Bytes of blobs, beside those of Done and Total.
	BlobBytes, BlobTotal int64
	// Uploads, in the phase of uploads only: Done and Total are then bytes of
	// blobs.
	Uploads, UploadTotal int64

	// Smoothed rates of this start, in bytes (blobs included) and objects a
	// second.
	ByteRate, ObjectRate float64
	// Left is the time that the rest will take; negative: not known yet.
	Left time.Duration

	// Steps are those that are running.
	Steps []RunningStep
}

// work is what the phase has done and has to do, in bytes of any kind, or in keys.
func (s *Status) work() (done, total int64) {
	if s.Keys {
		return s.Done, s.Total
	}
	if s.Total == 0 {
		return s.Done + s.BlobBytes, 0
	}
	// There may be fewer blobs than were counted, and never more; still, a bar
	// must not run over.
	return s.Done + min(s.BlobBytes, s.BlobTotal), s.Total + s.BlobTotal
}

// of tells how much of the work is done, with its unit.
func (s *Status) of(done, total int64) string {
	if s.Keys {
		return Count(done) + " of " + Plural(total, "key")
	}
	return Bytes(done) + " of " + Bytes(total)
}

// RunningStep is a step that has started and is not done.
type RunningStep struct {
	Name  string
	Since time.Time
}

// Problem is why a command fails.
type Problem struct {
	ExitCode int
	Message  string   // one sentence
	Hints    []string // what to do, a line each
}

// Display feeds a Printer with events. Use Event as pipeline.Options.Progress.
type Display struct {
	printer Printer

	mu    sync.Mutex
	meter meter
	queue []func()

	wake, stop chan struct{}
	stopped    sync.WaitGroup
}

// Start returns a Display that prints until Close.
func Start(p Printer) *Display {
	d := &Display{printer: p, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	d.stopped.Go(d.run)
	return d
}

// Close prints what is still to be printed and ends the running phase. After
// it, the Printer is the caller's again.
func (d *Display) Close() {
	close(d.stop)
	d.stopped.Wait()
}

// Event takes note of what happened. It does not wait for the output.
func (d *Display) Event(ev pipeline.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch ev.Kind {
	case pipeline.PhaseStarted:
		d.endPhase(ev.Time)
		d.meter.start(ev)
		status := d.meter.status(ev.Time)
		d.later(func() { d.printer.PhaseStarted(status) })
	case pipeline.Progress:
		d.meter.progress(ev)
	case pipeline.StepEvent:
		d.meter.step(ev)
		d.later(func() { d.printer.Step(ev.Time, ev.Step) })
	case pipeline.Note:
		d.later(func() { d.printer.Note(ev.Time, ev.Text) })
	}
}

// Report prints a report at once.
func (d *Display) Report() {
	d.mu.Lock()
	defer d.mu.Unlock()
	status := d.meter.status(time.Now())
	d.later(func() { d.printer.Report(status) })
}

// endPhase is called with the lock held.
func (d *Display) endPhase(at time.Time) {
	if d.meter.phase == "" || d.meter.phase == pipeline.Finished {
		return
	}
	status := d.meter.status(at)
	d.later(func() { d.printer.PhaseEnded(status) })
	d.meter.phase = ""
}

// later is called with the lock held.
func (d *Display) later(f func()) {
	d.queue = append(d.queue, f)
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *Display) run() {
	ticker := time.NewTicker(d.printer.Every())
	defer ticker.Stop()
	for {
		select {
		case <-d.wake:
			d.flush()
		case now := <-ticker.C:
			d.flush()
			d.update(now)
		case <-d.stop:
			d.mu.Lock()
			d.endPhase(time.Now())
			d.mu.Unlock()
			d.flush()
			return
		}
	}
}

// flush prints what is queued, without the lock: a terminal may be slow or
// stopped.
func (d *Display) flush() {
	d.mu.Lock()
	queue := d.queue
	d.queue = nil
	d.mu.Unlock()
	for _, f := range queue {
		f()
	}
}

func (d *Display) update(now time.Time) {
	d.mu.Lock()
	d.meter.sample(now)
	status := d.meter.status(now)
	d.mu.Unlock()
	if status.Phase != "" && status.Phase != pipeline.Finished {
		d.printer.Update(status)
	}
}

// Quiet returns a Printer that passes on problems and reports only.
func Quiet(p Printer) Printer { return quiet{p} }

type quiet struct{ Printer }

func (quiet) Every() time.Duration      { return time.Minute }
func (quiet) Update(Status)             {}
func (quiet) PhaseStarted(Status)       {}
func (quiet) PhaseEnded(Status)         {}
func (quiet) Step(time.Time, dest.Step) {}
func (quiet) Note(time.Time, string)    {}
func (quiet) Summary(*Summary)          {}
