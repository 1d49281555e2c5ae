package progress

import (
	"math"
	"slices"
	"time"

	"github.com/zodb-convert/zodb-convert/pipeline"
)

const (
	// smoothing is how far back the rates look. Chunks are uneven (a catalog's
	// buckets, then a folder of large documents), so that a few seconds say
	// little about the hours to come.
	smoothing = 30 * time.Second
	// sampleMin keeps single chunks from being taken for a rate.
	sampleMin = 500 * time.Millisecond
	// leftAfter is how long a phase must run before its end is foretold.
	leftAfter = 3 * time.Second
)

// meter turns events into a Status.
type meter struct {
	phase                pipeline.Phase
	since                time.Time
	done, total, earlier int64
	objects, rejected    int64
	steps                []RunningStep

	// The last sample: what was done when.
	sampled        time.Time
	sampledBytes   int64
	sampledObjects int64
	counting       bool // a progress event has come: the counters mean something
	bytes, items   rate
}

func (m *meter) start(ev pipeline.Event) {
	*m = meter{phase: ev.Phase, since: ev.Time, total: ev.Total, sampled: ev.Time}
}

func (m *meter) progress(ev pipeline.Event) {
	if !m.counting {
		// What an earlier start did took no time of this one. Objects come
		// without such a mark, so that the first event is their zero.
		m.counting, m.sampledBytes, m.sampledObjects = true, ev.Earlier, ev.Objects
	}
	m.done, m.total, m.earlier = ev.Done, ev.Total, ev.Earlier
	m.objects, m.rejected = ev.Objects, ev.Rejected
	m.sample(ev.Time)
}

func (m *meter) step(ev pipeline.Event) {
	if !ev.Step.Done {
		m.steps = append(m.steps, RunningStep{Name: ev.Step.Name, Since: ev.Time})
		return
	}
	if i := slices.IndexFunc(m.steps, func(s RunningStep) bool { return s.Name == ev.Step.Name }); i >= 0 {
		m.steps = slices.Delete(m.steps, i, i+1)
	}
}

// sample takes what was done since the last sample into the rates. It is called
// without events too, so that a standstill shows.
func (m *meter) sample(now time.Time) {
	took := now.Sub(m.sampled)
	if !m.counting || took < sampleMin {
		return
	}
	m.bytes.add(float64(m.done-m.sampledBytes)/took.Seconds(), took)
	m.items.add(float64(m.objects-m.sampledObjects)/took.Seconds(), took)
	m.sampled, m.sampledBytes, m.sampledObjects = now, m.done, m.objects
}

func (m *meter) status(now time.Time) Status {
	s := Status{
		Phase: m.phase, Since: m.since, Now: now,
		Done: m.done, Total: m.total, Earlier: m.earlier,
		Objects: m.objects, Rejected: m.rejected,
		ByteRate: m.bytes.value(), ObjectRate: m.items.value(),
		Left:  -1,
		Steps: slices.Clone(m.steps),
	}
	if rest := m.total - m.done; m.total > 0 && s.ByteRate > 0 && now.Sub(m.since) >= leftAfter {
		s.Left = roundLeft(float64(rest) / s.ByteRate)
	}
	return s
}

// roundLeft gives the seconds left in steps that grow with them: nobody can
// tell hours to the second.
func roundLeft(seconds float64) time.Duration {
	step := 5 * time.Minute
	switch {
	case seconds < 60:
		step = time.Second
	case seconds < 10*60:
		step = 10 * time.Second
	case seconds < 2*3600:
		step = time.Minute
	case seconds > 1000*24*3600: // a crawl: beyond what a Duration is asked to hold
		return -1
	}
	return (time.Duration(seconds * float64(time.Second))).Round(step)
}

// rate is an exponentially weighted mean over the time. The weight corrects the
// start, where there is less to look back at: the value is then the plain mean.
type rate struct{ sum, weight float64 }

func (r *rate) add(sample float64, took time.Duration) {
	keep := math.Exp(-took.Seconds() / smoothing.Seconds())
	r.sum = r.sum*keep + sample*(1-keep)
	r.weight = r.weight*keep + (1 - keep)
}

func (r *rate) value() float64 {
	if r.weight == 0 {
		return 0
	}
	return r.sum / r.weight
}
