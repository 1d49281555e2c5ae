package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

// Text prints for people.
type Text struct {
	out     io.Writer
	verbose bool
	bar     *bar // nil: not on a terminal
}

// NewText returns a Printer of plain lines. verbose adds the starts of steps.
func NewText(out io.Writer, verbose bool) *Text { return &Text{out: out, verbose: verbose} }

// NewTerminal returns a Printer that keeps a progress bar under its lines.
// width is asked for the columns of the terminal before each drawing.
func NewTerminal(out io.Writer, verbose bool, width func() int) *Text {
	return &Text{out: out, verbose: verbose, bar: &bar{out: out, width: width}}
}

const (
	linesEvery = 5 * time.Second
	barEvery   = 200 * time.Millisecond
)

// Every is 5 seconds, or five times a second for a bar.
func (t *Text) Every() time.Duration {
	if t.bar != nil {
		return barEvery
	}
	return linesEvery
}

// line prints one line, with the bar out of the way.
func (t *Text) line(format string, args ...any) {
	if t.bar != nil {
		t.bar.clear()
	}
	fmt.Fprintf(t.out, format+"\n", args...)
}

func (t *Text) PhaseStarted(s Status) {
	if t.verbose && s.Phase != pipeline.Finished {
		t.line("%s", heading(s.Phase)+" ...")
	}
}

// PhaseEnded prints what the phase did; short phases without data are not worth
// a line.
func (t *Text) PhaseEnded(s Status) {
	took := s.Now.Sub(s.Since)
	if t.bar != nil {
		t.bar.end()
	}
	if s.Done == 0 && took < time.Second {
		return
	}
	parts := []string{Duration(took)}
	if s.Done > 0 {
		amount := Bytes(s.Done)
		if s.Keys {
			amount = Plural(s.Done, "key")
		}
		parts = append(parts, amount)
		if s.Earlier > 0 {
			parts = append(parts, Bytes(s.Earlier)+" of them earlier")
		}
		if s.BlobBytes > 0 {
			parts = append(parts, Bytes(s.BlobBytes)+" of blobs")
		}
		if s.UploadTotal > 0 {
			parts = append(parts, fmt.Sprintf("%s of %s", Count(s.Uploads), Plural(s.UploadTotal, "blob")))
		}
		if mean := float64(s.Done-s.Earlier+s.BlobBytes) / took.Seconds(); took > 0 && mean >= 1 && !s.Keys {
			parts = append(parts, Bytes(int64(mean))+"/s")
		}
	}
	t.line("%-10s %s", s.Phase, strings.Join(parts, ", "))
}

// Update moves the bar or prints a line.
func (t *Text) Update(s Status) {
	if t.bar != nil {
		t.bar.draw(s)
		return
	}
	t.line("%s", statusLine(s))
}

func (t *Text) Step(_ time.Time, s dest.Step) {
	switch {
	case s.Done:
		t.line("  %s (%s)", s.Name, Duration(s.Took))
	case t.verbose:
		t.line("  %s ...", s.Name)
	}
}

func (t *Text) Note(_ time.Time, text string) { t.line("note: %s", text) }

// Report prints one block, so that it can be found between other lines.
func (t *Text) Report(s Status) {
	var b strings.Builder
	fmt.Fprintf(&b, "report at %s\n", s.Now.Format(time.DateTime))
	if s.Phase == "" {
		fmt.Fprintf(&b, "  nothing has started yet")
		t.line("%s", b.String())
		return
	}
	fmt.Fprintf(&b, "  phase     %s, for %s\n", s.Phase, Duration(s.Now.Sub(s.Since)))
	if s.Total > 0 {
		if s.UploadTotal > 0 {
			fmt.Fprintf(&b, "  uploads   %s of %s, %s of %s (%s)\n", Count(s.Uploads), Count(s.UploadTotal), Bytes(s.Done), Bytes(s.Total), percent(s))
			fmt.Fprintf(&b, "  rate      %s/s\n", Bytes(int64(s.ByteRate)))
		} else {
			t.loaded(&b, s)
		}
		left := "not known yet"
		if s.Left >= 0 {
			left = "about " + leftText(s.Left)
		}
		fmt.Fprintf(&b, "  left      %s\n", left)
	}
	for _, step := range s.Steps {
		fmt.Fprintf(&b, "  step      %s, for %s\n", step.Name, Duration(s.Now.Sub(step.Since)))
	}
	t.line("%s", strings.TrimSuffix(b.String(), "\n"))
}

// loaded tells how far a phase is that reads the source.
func (t *Text) loaded(b *strings.Builder, s Status) {
	fmt.Fprintf(b, "  source    %s", s.of(s.Done, s.Total))
	if s.BlobTotal == 0 {
		fmt.Fprintf(b, " (%s)", percent(s))
	}
	if s.Earlier > 0 {
		fmt.Fprintf(b, ", %s of them earlier", Bytes(s.Earlier))
	}
	if s.BlobTotal > 0 {
		fmt.Fprintf(b, "\n  blobs     %s of %s or less (%s of all)", Bytes(s.BlobBytes), Bytes(s.BlobTotal), percent(s))
	}
	fmt.Fprintf(b, "\n  objects   %s, %s rejected\n", Count(s.Objects), Count(s.Rejected))
	if s.Keys {
		return
	}
	fmt.Fprintf(b, "  rate      %s/s, %s objects/s\n", Bytes(int64(s.ByteRate)), Count(int64(s.ObjectRate)))
}

func (t *Text) Summary(s *Summary) { t.line("%s", s.Text()) }

// Problem prints the message as other commands do, and a line for each hint.
func (t *Text) Problem(p *Problem) {
	t.line("zodb-convert: %s", p.Message)
	for _, h := range p.Hints {
		t.line("  %s", h)
	}
}

func heading(p pipeline.Phase) string {
	switch p {
	case pipeline.Scanning:
		return "scan: reading the structure of the source"
	case pipeline.Preparing:
		return "prepare: claiming the destination"
	case pipeline.Loading:
		return "load: decoding and writing"
	case pipeline.Finishing:
		return "finish: keys, indexes and statistics"
	case pipeline.Uploading:
		return "upload: blobs that are owed to S3"
	case pipeline.CatchingUp:
		return "catch up: what the source got since"
	case pipeline.Comparing:
		return "compare: the source with the destination"
	case pipeline.Inspecting:
		return "inspect: decoding every record of the source"
	}
	return string(p)
}

// statusLine is one plain line.
func statusLine(s Status) string {
	if s.Total == 0 {
		return fmt.Sprintf("%s  %s", s.Phase, running(s))
	}
	done, total := s.work()
	return fmt.Sprintf("%s %s  %s%s", s.Phase, percent(s), s.of(done, total), rates(s, 1000))
}

// running tells about a phase without a total.
func running(s Status) string {
	text := Duration(s.Now.Sub(s.Since))
	for i, step := range s.Steps {
		if i == 3 {
			return text + fmt.Sprintf("  and %d more", len(s.Steps)-i)
		}
		text += fmt.Sprintf("  %s (%s)", step.Name, Duration(s.Now.Sub(step.Since)))
	}
	return text
}

// rates gives what fits into a width. The time left is what people look for, so
// that the other parts go first.
func rates(s Status, width int) string {
	const left, rejected, uploads, bytes, objects = 0, 1, 2, 3, 4 // by importance
	var parts [5]string
	if s.Left >= 0 {
		parts[left] = fmt.Sprintf("  %s left", leftText(s.Left))
	}
	if s.Rejected > 0 {
		parts[rejected] = fmt.Sprintf("  %s rejected", Count(s.Rejected))
	}
	if s.UploadTotal > 0 {
		parts[uploads] = fmt.Sprintf("  %s of %s blobs", Count(s.Uploads), Count(s.UploadTotal))
	}
	if s.ByteRate >= 1 && !s.Keys {
		parts[bytes] = fmt.Sprintf("  %s/s", Bytes(int64(s.ByteRate)))
	}
	if s.ObjectRate >= 1 {
		parts[objects] = fmt.Sprintf("  %s objects/s", Count(int64(s.ObjectRate)))
	}
	for i, p := range parts {
		if len(p) > width && i > 0 {
			parts[i] = ""
			continue
		}
		width -= len(p)
	}
	return parts[uploads] + parts[bytes] + parts[objects] + parts[rejected] + parts[left]
}

// leftText is Duration without fractions, which a forecast has not.
func leftText(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.0fs", d.Seconds())
	}
	return Duration(d)
}

// percent never says 100 % before everything is done.
func percent(s Status) string {
	done, total := s.work()
	if total <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%d%%", int64(float64(done)/float64(total)*100))
}
