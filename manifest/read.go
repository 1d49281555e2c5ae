package manifest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Error is what is wrong with a manifest.
type Error struct {
	Path    string
	Line    int
	Problem string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Problem) }

// maxLine is beyond any path, quoted or not; it keeps a file that is no text
// out of memory.
const maxLine = 8 << 20

// Reader reads a manifest line by line.
type Reader struct {
	name string
	in   *bufio.Reader
	line int
}

// NewReader returns a Reader; name is for messages.
func NewReader(in io.Reader, name string) *Reader {
	return &Reader{name: name, in: bufio.NewReaderSize(in, 64<<10)}
}

// Line is the number of the line that Next gave.
func (r *Reader) Line() int { return r.line }

// Next gives the next line, io.EOF after the last one, an *Error for a line
// that is malformed. Empty lines are left out, as the Python tool does.
func (r *Reader) Next() (Line, error) {
	for {
		text, err := r.text()
		if err != nil {
			return Line{}, err
		}
		r.line++
		if strings.TrimSpace(text) == "" {
			continue
		}
		line, err := Parse(text)
		if err != nil {
			return Line{}, &Error{Path: r.name, Line: r.line, Problem: err.Error()}
		}
		return line, nil
	}
}

// text gives a line without its end, which may be that of Windows.
func (r *Reader) text() (string, error) {
	var long []byte
	for {
		part, err := r.in.ReadSlice('\n')
		if len(long)+len(part) > maxLine {
			return "", &Error{Path: r.name, Line: r.line + 1, Problem: "the line is too long for a manifest"}
		}
		switch {
		case err == nil || errors.Is(err, io.EOF) && len(long)+len(part) > 0:
			text := string(append(long, part...))
			text, _ = strings.CutSuffix(text, "\n")
			text, _ = strings.CutSuffix(text, "\r")
			return text, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("read the manifest %s: %w", r.name, err)
			}
			return "", err
		}
		long = append(long, part...)
	}
}

// Each calls fn for every line of the manifest at path.
func Each(path string, fn func(Line) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the manifest: %w", err)
	}
	defer f.Close()
	r := NewReader(f, path)
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := fn(line); err != nil {
			return err
		}
	}
}

// Total is what a manifest lists.
type Total struct{ Lines, Bytes int64 }

// Check reads the whole manifest at path and tells what it lists.
func Check(path string) (Total, error) {
	var t Total
	err := Each(path, func(l Line) error {
		t.Lines++
		t.Bytes += l.Size
		return nil
	})
	return t, err
}
