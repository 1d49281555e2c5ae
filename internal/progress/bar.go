package progress

import (
	"bytes"
	"io"

	"github.com/schollz/progressbar/v3"

	"github.com/zodb-convert/zodb-convert/pipeline"
)

// bar is the line at the bottom of a terminal. The library draws it; rates and
// the time left are ours, because the library's look back a few seconds only
// and count what an earlier start did as done in no time.
type bar struct {
	out   io.Writer
	width func() int

	phase pipeline.Phase
	total int64
	shown *progressbar.ProgressBar
	// frame collects what the library writes: it draws after each change, and
	// the terminal should see the last of them only, in one write.
	frame bytes.Buffer
}

const (
	barWidth = 24
	// besideBar is what the library puts around bar and description: percent,
	// frame, blanks, and one column that keeps terminals from wrapping.
	besideBar = 12
)

func (b *bar) draw(s Status) {
	done, total := s.work()
	if b.shown == nil || b.phase != s.Phase || b.total != total {
		b.end()
		b.start(s.Phase, total)
	}
	defer b.flush()
	room := b.width() - besideBar
	if s.Total == 0 {
		b.shown.Describe(clip(string(s.Phase)+"  "+running(s), room))
		return
	}
	// At its full length the bar would count as finished and not be cleared.
	b.shown.Set64(min(done, total-1))
	text := string(s.Phase) + "  " + s.of(done, total)
	b.shown.Describe(clip(text+rates(s, room-barWidth-len(text)), room-barWidth))
}

func (b *bar) start(phase pipeline.Phase, total int64) {
	b.phase, b.total = phase, total
	if total == 0 {
		total = -1 // a spinner
	}
	b.shown = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(&b.frame),
		progressbar.OptionSetWidth(min(barWidth, max(b.width()-besideBar, 1))),
		progressbar.OptionSetTheme(progressbar.ThemeASCII),
		progressbar.OptionShowDescriptionAtLineEnd(),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSpinnerType(9),
		// The spinner turns when we draw; the library's own goroutine would
		// write between our lines.
		progressbar.OptionSetSpinnerChangeInterval(0),
	)
}

// clear takes the bar off the screen; the next draw puts it back.
func (b *bar) clear() {
	if b.shown != nil {
		b.shown.Clear()
		b.flush()
	}
}

func (b *bar) flush() {
	b.frame.WriteTo(b.out)
	b.frame.Reset()
}

func (b *bar) end() {
	b.clear()
	b.shown = nil
}
