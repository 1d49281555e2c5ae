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
	keys                 bool // done and total are keys, not bytes
	objects, rejected    int64
	blobs, blobTotal     int64
	uploads, uploadTotal int64
	steps                []RunningStep

	// The last sample: what was done when.
	sampled        time.Time
	sampledBytes   int64
	sampledObjects int64
	counting       bool // a progress event has come: the counters mean something
	bytes, items   rate
	end            forecast
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
	m.done, m.total, m.keys, m.earlier = ev.Done, ev.Total, ev.Keys, ev.Earlier
	m.objects, m.rejected = ev.Objects, ev.Rejected
	m.blobs, m.blobTotal = ev.BlobBytes, ev.BlobTotal
	m.uploads, m.uploadTotal = ev.Uploads.Done, ev.Uploads.Total
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
	done := m.done
	if !m.keys {
		done += m.blobs
	}
	m.bytes.add(float64(done-m.sampledBytes)/took.Seconds(), took)
	m.items.add(float64(m.objects-m.sampledObjects)/took.Seconds(), took)
	m.sampled, m.sampledBytes, m.sampledObjects = now, done, m.objects
	if speed := m.bytes.value(); m.total > 0 && speed > 0 && now.Sub(m.since) >= leftAfter {
		m.end.see(now, float64(max(m.total+m.blobTotal-done, 0))/speed, took)
	}
}

func (m *meter) status(now time.Time) Status {
	s := Status{
		Phase: m.phase, Since: m.since, Now: now,
		Done: m.done, Total: m.total, Keys: m.keys, Earlier: m.earlier,
		Objects: m.objects, Rejected: m.rejected,
		BlobBytes: m.blobs, BlobTotal: m.blobTotal,
		Uploads: m.uploads, UploadTotal: m.uploadTotal,
		ByteRate: m.bytes.value(), ObjectRate: m.items.value(),
		Left:  m.end.left(now),
		Steps: slices.Clone(m.steps),
	}
	return s
}

// forecast is the moment at which a phase is expected to end. It is smoothed
// once more: what people read is a clock that counts down, and an error of the
// rate is multiplied by everything that is left.
type forecast struct {
	at    time.Time // zero: not known yet
	shown time.Duration
}

// crawl is beyond what anybody waits for, and what a Duration could overflow at.
const crawl = 1000 * 24 * 3600

func (f *forecast) see(now time.Time, seconds float64, took time.Duration) {
	if seconds > crawl {
		*f = forecast{}
		return
	}
	at := now.Add(time.Duration(seconds * float64(time.Second)))
	if f.at.IsZero() {
		f.at = at
		return
	}
	move := 1 - math.Exp(-took.Seconds()/smoothing.Seconds())
	f.at = f.at.Add(time.Duration(move * float64(at.Sub(f.at))))
}

// left gives the time left in steps that grow with it: nobody can tell hours
// to the second. A value just above the last one shown is not worth a change.
func (f *forecast) left(now time.Time) time.Duration {
	if f.at.IsZero() {
		return -1
	}
	d := max(f.at.Sub(now), 0)
	step := 5 * time.Minute
	switch {
	case d < time.Minute:
		step = time.Second
	case d < 10*time.Minute:
		step = 10 * time.Second
	case d < 2*time.Hour:
		step = time.Minute
	}
	if d <= f.shown || d > f.shown+step {
		f.shown = (d + step - 1).Truncate(step)
	}
	return f.shown
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
