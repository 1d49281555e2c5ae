package pipeline

import (
	"sync"
	"time"
)

// Events passes events on to a listener, from one goroutine at a time. It is for
// use by several goroutines.
type Events struct {
	listener func(Event)

	mu sync.Mutex
	// Of the phase that Read is about.
	phase                Phase
	total, done, records int64
}

// NewEvents returns Events for a listener, nil if nobody listens.
func NewEvents(listener func(Event)) *Events { return &Events{listener: listener} }

// Send passes an event on and gives it its time.
func (e *Events) Send(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pass(ev)
}

// Begin tells that a phase begins.
func (e *Events) Begin(p Phase, total int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.phase, e.total, e.done, e.records = p, total, 0, 0
	e.pass(Event{Kind: PhaseStarted, Phase: p, Total: total})
}

// Read tells that so much more of the source was read in the phase.
func (e *Events) Read(bytes, records int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done += bytes
	e.records += records
	e.pass(Event{Kind: Progress, Phase: e.phase, Done: e.done, Total: e.total, Objects: e.records})
}

// Scanned tells how far a scan is.
func (e *Events) Scanned(done, total int64) {
	e.Send(Event{Kind: Progress, Phase: Scanning, Done: done, Total: total})
}

// pass is called with the lock held.
func (e *Events) pass(ev Event) {
	if e.listener == nil {
		return
	}
	ev.Time = time.Now()
	e.listener(ev)
}
