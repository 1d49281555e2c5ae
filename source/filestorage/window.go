package filestorage

import (
	"errors"
	"fmt"
	"io"
)

const (
	// maxWindow is read at a time where headers follow each other closely,
	// minWindow where the reader jumps over large records.
	maxWindow = 4 << 20
	minWindow = 64 << 10
)

// window is a moving view of a file for one reader that goes mostly forwards.
// It reads large blocks as long as the reader wants everything and smaller ones
// after a jump. It never reads at or beyond limit.
type window struct {
	r     io.ReaderAt
	limit int64
	// tick is called before each read, with the offset.
	tick func(off int64) error
	max  int

	buf  []byte // the bytes from off on
	off  int64
	size int // of the last read
}

// errShort tells that the file ends before the place that was asked for.
var errShort = errors.New("the file ends early")

func newWindow(r io.ReaderAt, limit int64, max int, tick func(int64) error) *window {
	return &window{r: r, limit: limit, max: max, tick: tick}
}

// at returns n bytes from off on, valid until the next call. n is at most a
// transaction header (197 KB).
func (w *window) at(off int64, n int) ([]byte, error) {
	if d := off - w.off; d >= 0 && d+int64(n) <= int64(len(w.buf)) {
		return w.buf[d : d+int64(n)], nil
	}
	return w.fill(off, n)
}

// holds tells whether at would not have to read.
func (w *window) holds(off int64, n int) bool {
	d := off - w.off
	return d >= 0 && d+int64(n) <= int64(len(w.buf))
}

func (w *window) fill(off int64, n int) ([]byte, error) {
	if w.tick != nil {
		if err := w.tick(off); err != nil {
			return nil, err
		}
	}
	if w.size > 0 && off >= w.off && off <= w.off+int64(len(w.buf)) {
		w.size = min(2*w.size, w.max)
	} else {
		w.size = minWindow
	}
	want := max(w.size, n)
	if room := w.limit - off; int64(want) > room {
		if int64(n) > room {
			return nil, errShort
		}
		want = int(room)
	}
	if cap(w.buf) < want {
		w.buf = make([]byte, want)
	}
	got, err := w.r.ReadAt(w.buf[:want], off)
	w.buf, w.off = w.buf[:got], off
	if got >= n {
		return w.buf[:n], nil
	}
	if err == io.EOF {
		return nil, errShort
	}
	return nil, fmt.Errorf("read %d bytes at offset %d: %w", want, off, err)
}

// forget drops what was read, to see the file as it is now.
func (w *window) forget(limit int64) { w.buf, w.limit = w.buf[:0], limit }

// small reads n bytes at off without moving the window.
func (w *window) small(b []byte, off int64) error {
	if w.holds(off, len(b)) {
		copy(b, w.buf[off-w.off:])
		return nil
	}
	if off+int64(len(b)) > w.limit {
		return errShort
	}
	if n, err := w.r.ReadAt(b, off); n < len(b) {
		if err == io.EOF {
			return errShort
		}
		return fmt.Errorf("read %d bytes at offset %d: %w", len(b), off, err)
	}
	return nil
}
