package progress

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

const mb = 1 << 20

// feed sends the events of a run of 300 MB at 10 MB and 1000 objects a second,
// of which an earlier start did 100 MB. It runs in a synctest bubble, whose
// clock starts at 2000-01-01 00:00:00 UTC.
func feed(d *Display) {
	send := func(ev pipeline.Event) {
		ev.Time = time.Now()
		d.Event(ev)
	}
	time.Sleep(30 * time.Millisecond) // nothing happens just when the display looks
	send(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: pipeline.Scanning, Total: 300 * mb})
	for i := range int64(4) {
		time.Sleep(500 * time.Millisecond)
		send(pipeline.Event{Kind: pipeline.Progress, Phase: pipeline.Scanning, Done: (i + 1) * 75 * mb, Total: 300 * mb})
	}
	send(pipeline.Event{Kind: pipeline.Note, Text: "the last transaction is torn and was left out"})
	send(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: pipeline.Preparing})
	time.Sleep(100 * time.Millisecond)
	send(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: pipeline.Loading, Total: 300 * mb})
	for i := range int64(200) {
		time.Sleep(100 * time.Millisecond)
		send(pipeline.Event{Kind: pipeline.Progress, Phase: pipeline.Loading,
			Done: (101 + i) * mb, Total: 300 * mb, Earlier: 100 * mb, Objects: 50000 + i*100, Rejected: i / 100})
		if i == 70 {
			d.Report()
		}
	}
	send(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: pipeline.Finishing})
	step := dest.Step{Name: "primary key of object_state"}
	send(pipeline.Event{Kind: pipeline.StepEvent, Step: step})
	time.Sleep(6 * time.Second)
	step.Done, step.Took = true, 6*time.Second
	send(pipeline.Event{Kind: pipeline.StepEvent, Step: step})
	send(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: pipeline.Finished})
}

func shown(t *testing.T, printer func(*bytes.Buffer) Printer) string {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		d := Start(printer(&out))
		feed(d)
		d.Close()
	})
	return out.String()
}

func TestPlainLines(t *testing.T) {
	got := shown(t, func(b *bytes.Buffer) Printer { return NewText(b, false) })
	golden(t, "lines.golden", got)
}

func TestPlainLinesVerbose(t *testing.T) {
	got := shown(t, func(b *bytes.Buffer) Printer { return NewText(b, true) })
	golden(t, "lines-verbose.golden", got)
}

func TestQuietPrintsReportsAndProblemsOnly(t *testing.T) {
	got := shown(t, func(b *bytes.Buffer) Printer { return Quiet(NewText(b, true)) })
	if n := strings.Count(got, "\n"); !strings.HasPrefix(got, "report at ") || n != 6 {
		t.Errorf("got %d lines:\n%s", n, got)
	}
	var out bytes.Buffer
	q := Quiet(NewText(&out, true))
	q.Summary(example())
	q.Problem(&Problem{ExitCode: 1, Message: "it broke", Hints: []string{"mend it"}})
	if got, want := out.String(), "zodb-convert: it broke\n  mend it\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestJSONLines(t *testing.T) {
	got := shown(t, func(b *bytes.Buffer) Printer { return NewJSON(b, false) })
	for line := range strings.Lines(got) {
		var v struct{ Event, Time string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Event == "" {
			t.Errorf("%v: %s", err, line)
		}
		if _, err := time.Parse(time.RFC3339, v.Time); err != nil {
			t.Error(err)
		}
	}
	golden(t, "lines.jsonl", got)
}

// screen plays what a terminal does with carriage returns and line ends.
func screen(output string, width int) (lines []string, wrapped bool) {
	line, col := []rune{}, 0
	for _, r := range output {
		switch r {
		case '\r':
			col = 0
		case '\n':
			lines = append(lines, strings.TrimRight(string(line), " "))
			line, col = nil, 0
		default:
			if col < len(line) {
				line[col] = r
			} else {
				line = append(line, r)
			}
			col++
			wrapped = wrapped || col >= width
		}
	}
	return append(lines, strings.TrimRight(string(line), " ")), wrapped
}

// withoutUpdates prints what stays above the bar.
type withoutUpdates struct{ *Text }

func (withoutUpdates) Every() time.Duration { return barEvery }
func (withoutUpdates) Update(Status)        {}

func TestBarLeavesNoTraces(t *testing.T) {
	for _, width := range []int{132, 80, 40, 10} {
		got := shown(t, func(b *bytes.Buffer) Printer {
			return NewTerminal(b, false, func() int { return width })
		})
		if strings.ContainsRune(got, '\x1b') {
			t.Errorf("width %d: an escape sequence in the output", width)
		}
		lines, _ := screen(got, width)
		want, _ := screen(shown(t, func(b *bytes.Buffer) Printer { return withoutUpdates{NewText(b, false)} }), width)
		if d := cmp.Diff(want, lines); d != "" {
			t.Errorf("width %d: %s", width, d)
		}
	}
}

func TestBarStaysWithinTheTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, width := range []int{132, 80, 60} {
			var out bytes.Buffer
			b := &bar{out: &out, width: func() int { return width }}
			s := Status{Phase: pipeline.Loading, Done: 43210 * mb, Total: 98765 * mb,
				ByteRate: 71 * mb, ObjectRate: 21034, Rejected: 3, Left: 23 * time.Minute}
			for range 3 {
				b.draw(s)
			}
			lines, wrapped := screen(out.String(), width)
			if wrapped {
				t.Errorf("width %d: wider than the terminal: %q", width, lines[0])
			}
			if width == 132 {
				want := "  43% [=========>..............]  load  42 GB of 96 GB  71 MB/s  21,034 objects/s  3 rejected  23m00s left"
				if lines[0] != want {
					t.Errorf("\n got %q\nwant %q", lines[0], want)
				}
			}
			if width == 80 && !strings.HasSuffix(lines[0], "load  42 GB of 96 GB  71 MB/s  23m00s left") {
				t.Errorf("the time left is cut off: %q", lines[0])
			}
			b.draw(Status{Phase: pipeline.Finishing, Left: -1,
				Steps: []RunningStep{{Name: "index idx_os_class"}, {Name: "index idx_os_refs"}}})
			if _, wrapped := screen(out.String(), width); wrapped {
				t.Errorf("width %d: the line of steps is wider than the terminal", width)
			}
		}
	})
}

// A writer that is stuck (a stopped terminal) must not hold up the conversion.
func TestEventsDoNotWaitForTheOutput(t *testing.T) {
	stuck := make(chan struct{})
	d := Start(NewText(writerFunc(func(p []byte) (int, error) { <-stuck; return len(p), nil }), true))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 1000 {
			d.Event(pipeline.Event{Kind: pipeline.Note, Time: time.Now(), Text: "x"})
			d.Event(pipeline.Event{Kind: pipeline.Progress, Time: time.Now()})
			d.Report()
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Event waited for the writer")
	}
	close(stuck)
	d.Close()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestAnEarlierStartDoesNotCountForTheRate(t *testing.T) {
	var m meter
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	m.start(pipeline.Event{Phase: pipeline.Loading, Total: 10000 * mb, Time: at})
	for i := range int64(100) {
		at = at.Add(100 * time.Millisecond)
		m.progress(pipeline.Event{Time: at, Done: 9000*mb + i*mb, Total: 10000 * mb, Earlier: 9000 * mb, Objects: 1e6 + i*50})
	}
	s := m.status(at)
	if math.Abs(s.ByteRate/(10*mb)-1) > 0.05 || math.Abs(s.ObjectRate/500-1) > 0.05 {
		t.Errorf("%.1f MB/s and %.1f objects/s, want about 10 and 500", s.ByteRate/mb, s.ObjectRate)
	}
	if s.Left < 90*time.Second || s.Left > 100*time.Second {
		t.Errorf("%v left, want 90s or a step of 10s more", s.Left)
	}
}

func TestTimeLeftDoesNotJump(t *testing.T) {
	var m meter
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	start := at
	const total = 6000 * mb
	m.start(pipeline.Event{Phase: pipeline.Loading, Total: total, Time: at})
	var last time.Duration
	up := 0
	for done := int64(0); done < total; {
		// Uneven like the folders of a site: 5 seconds at 16 MB/s, 5 at 4.
		speed := int64(16)
		if at.Sub(start)/(5*time.Second)%2 == 1 {
			speed = 4
		}
		at = at.Add(250 * time.Millisecond)
		done += speed * mb / 4
		m.progress(pipeline.Event{Time: at, Done: done, Total: total})
		left, elapsed := m.status(at).Left, at.Sub(start)
		truth := (10*time.Minute - elapsed).Seconds()
		switch {
		case elapsed < leftAfter:
			if left >= 0 {
				t.Errorf("after %v the end was foretold", elapsed)
			}
			continue
		case elapsed < smoothing:
			continue // the first seconds tell little
		case last != 0 && math.Abs(left.Seconds()-last.Seconds()) > max(last.Seconds()/20, 10):
			t.Errorf("after %v the time left jumped from %v to %v", elapsed, last, left)
		case elapsed > time.Minute && math.Abs(left.Seconds()-truth) > max(truth/5, 10):
			t.Errorf("after %v: %v left, in truth %.0fs", elapsed, left, truth)
		case left > last:
			up++
		}
		last = left
	}
	if up > 5 {
		t.Errorf("the time left rose %d times while the speed stayed the same on average", up)
	}
}

func TestBlobsCountForTheBarAndTheTimeLeft(t *testing.T) {
	var m meter
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	m.start(pipeline.Event{Phase: pipeline.Loading, Total: 100 * mb, Time: at})
	for i := range int64(100) {
		at = at.Add(100 * time.Millisecond)
		m.progress(pipeline.Event{Time: at, Done: (i + 1) * mb / 2, Total: 100 * mb, BlobBytes: (i + 1) * 2 * mb, BlobTotal: 900 * mb})
	}
	s := m.status(at)
	if done, total := s.work(); done != 250*mb || total != 1000*mb || percent(s) != "25%" {
		t.Errorf("%d of %d, %s", done/mb, total/mb, percent(s))
	}
	if s.Left < 30*time.Second || s.Left > 31*time.Second {
		t.Errorf("%v left, want 30s", s.Left)
	}
	var out bytes.Buffer
	p := NewText(&out, false)
	p.Update(s)
	p.Report(s)
	p.PhaseEnded(s)
	p.Update(Status{Phase: pipeline.Uploading, Done: 5 * mb, Total: 10 * mb, Uploads: 3, UploadTotal: 1200, ByteRate: mb, Left: time.Minute})
	golden(t, "blobs.golden", out.String())
}

func TestAStandstillShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		m.start(pipeline.Event{Phase: pipeline.Loading, Total: 1000 * mb, Time: time.Now()})
		for i := range int64(100) {
			time.Sleep(100 * time.Millisecond)
			m.progress(pipeline.Event{Time: time.Now(), Done: i * mb, Total: 1000 * mb})
		}
		before := m.status(time.Now()).ByteRate
		for range 120 {
			time.Sleep(time.Second)
			m.sample(time.Now())
		}
		if after := m.status(time.Now()).ByteRate; after > before/20 {
			t.Errorf("after two minutes without progress the rate is %.0f of %.0f", after, before)
		}
	})
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Bytes(0), "0 B"}, {Bytes(1023), "1023 B"}, {Bytes(1024), "1.0 KB"}, {Bytes(1000 << 10), "1.0 MB"},
		{Bytes(10 * mb), "10 MB"}, {Bytes(123 << 30), "123 GB"}, {Bytes(math.MaxInt64), "8388608 TB"},
		{Count(0), "0"}, {Count(999), "999"}, {Count(1000), "1,000"}, {Count(-1234567), "-1,234,567"},
		{Duration(0), "0.0s"}, {Duration(9940 * time.Millisecond), "9.9s"}, {Duration(59 * time.Second), "59s"},
		{Duration(61 * time.Second), "1m01s"}, {Duration(3 * time.Hour), "3h00m"}, {Duration(59*time.Minute + 59900*time.Millisecond), "60m00s"},
		{Plural(1, "object"), "1 object"}, {Plural(2000, "object"), "2,000 objects"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

// The keys of a table are compared while blobs are written: neither are they
// bytes, nor do bytes of blobs shorten the way to the last key.
func TestKeysAreNotShownAsBytes(t *testing.T) {
	var m meter
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	m.start(pipeline.Event{Phase: pipeline.CatchingUp, Time: at})
	for i := range int64(100) {
		at = at.Add(100 * time.Millisecond)
		m.progress(pipeline.Event{Time: at, Keys: true, Done: (i + 1) * 500, Total: 200_000, BlobBytes: i * mb})
	}
	s := m.status(at)
	if s.Left < 29*time.Second || s.Left > 31*time.Second {
		t.Errorf("%v left, want 30s", s.Left)
	}
	var out bytes.Buffer
	p := NewText(&out, false)
	p.Update(s)
	p.Report(s)
	p.PhaseEnded(s)
	NewJSON(&out, false).Update(s)
	got := out.String()
	for _, want := range []string{
		"catch up 25%  50,000 of 200,000 keys  30s left\n", "  source    50,000 of 200,000 keys (25%)\n",
		"catch up   10s, 50,000 keys, 99 MB of blobs\n", `"bytes":0,"total_bytes":0,"keys":50000,"total_keys":200000,`, `"bytes_per_second":0,`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
