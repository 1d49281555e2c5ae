package pipeline

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// maxLine is how long a line of a rejects file may be: PostgreSQL keeps records up
// to a gigabyte with the list of rejects, base64 adds a third.
const maxLine = 3 << 29

// RetryReport is what came of Retry.
type RetryReport struct {
	dest.RetryResult
	File, Destination string
	// Records counts those of the file, Blobs the missing blobs of it that the
	// destination does not have from elsewhere: their bytes are in no such file. What
	// comes twice counts once.
	Records, Blobs int64
}

// Remaining counts what of the file is not in the destination.
func (r *RetryReport) Remaining() int64 {
	return r.Blobs + r.Superseded + r.Rejected
}

// Retry writes those records of a rejects file that can be stored now into the
// finished destination. The whole file is checked before the destination is
// asked. The report lists show of those that are not written, 0 for all. connected
// allows that somebody else, such as a running site, is connected to it.
func Retry(ctx context.Context, path string, dst dest.Destination, show int, connected bool) (*RetryReport, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of rejects: %w", err)
	}
	defer f.Close()
	list := rejectsFile{path: path, file: f, seen: map[seenKey]seenLine{}}
	report := &RetryReport{File: path, Destination: dst.Name()}
	var blobs []dest.Blob
	err = list.lines(ctx, func(n int, line *RejectLine) error {
		first, err := list.note(n, line)
		switch {
		case err != nil || !first:
		case line.Kind == MissingBlob:
			key, _ := revisionOf(line)
			blobs = append(blobs, dest.Blob{OID: key.oid, TID: key.tid})
		default:
			report.Records++
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	result, err := dst.Retry(ctx, &dest.RetryPlan{Records: list.records, Blobs: blobs, Show: show, Connected: connected})
	if err != nil {
		return nil, err
	}
	report.RetryResult = *result
	report.Blobs = int64(len(blobs)) - result.BlobsThere
	return report, nil
}

// rejectsFile is a rejects file that is read twice: once to check it, and once for
// what is in it.
type rejectsFile struct {
	path string
	file *os.File
	seen map[seenKey]seenLine
}

// listed names what a line is about.
type listed struct {
	kind RejectKind
	oid  zodb.OID
	tid  zodb.TID
}

// seenKey is a short form of listed: there is one for each line.
type seenKey [2]uint64

func (r listed) short() seenKey {
	k := seenKey{uint64(r.oid), uint64(r.tid)}
	if r.kind == MissingBlob {
		k[1] |= 1 << 63 // no tid that is taken is so large
	}
	return k
}

// seenLine is the line that was first about a revision.
type seenLine struct {
	number int
	digest digest
}

// digest tells other data; nobody has a reason to forge it.
type digest [16]byte

func digestOf(data []byte) digest {
	sum := sha256.Sum256(data)
	return digest(sum[:16])
}

// malformed is the refusal of a file for what a line is.
func (l *rejectsFile) malformed(line int, format string, args ...any) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s, line %d: %s", l.path, line, fmt.Sprintf(format, args...)),
		Hint:   "nothing was changed; name a file that --rejects has written, as it was written",
	}
}

// note remembers a line. first is false for a copy of an earlier one, which is
// there where files were joined.
func (l *rejectsFile) note(n int, line *RejectLine) (first bool, err error) {
	key, err := revisionOf(line)
	if err != nil {
		return false, l.malformed(n, "%v", err)
	}
	now := seenLine{n, digestOf(line.Pickle)}
	earlier, ok := l.seen[key.short()]
	switch {
	case !ok:
		l.seen[key.short()] = now
		return true, nil
	case earlier.digest == now.digest:
		return false, nil
	}
	return false, l.malformed(n, "oid %v, tid %v stands in line %d already, with other data", key.oid, key.tid, earlier.number)
}

// records gives the records of the file, each once. It refuses a file that does not
// hold any more what was counted.
func (l *rejectsFile) records(ctx context.Context, fn func(*dest.Reject) error) error {
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the list of rejects: %w", err)
	}
	again, last := 0, 0
	err := l.lines(ctx, func(n int, line *RejectLine) error {
		last = n
		key, err := revisionOf(line)
		if err != nil {
			return l.malformed(n, "%v", err)
		}
		seen := l.seen[key.short()]
		if seen.digest != digestOf(line.Pickle) {
			return l.malformed(n, "it has changed while the file was read")
		}
		if seen.number != n {
			return nil
		}
		again++
		if key.kind != RejectedRecord {
			return nil
		}
		return fn(&dest.Reject{OID: key.oid, TID: key.tid, Pos: line.Offset, Class: line.Class, Reason: line.Reason, Data: line.Pickle})
	})
	if err == nil && again != len(l.seen) {
		return l.malformed(last, "the file has changed while it was read: it listed %d revisions, and now %d", len(l.seen), again)
	}
	return err
}

// lines calls fn for each line that is not empty.
func (l *rejectsFile) lines(ctx context.Context, fn func(n int, line *RejectLine) error) error {
	in := bufio.NewReaderSize(l.file, 64<<10)
	var text []byte
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		text, err = readLine(in, text[:0])
		if errors.Is(err, errLongLine) {
			return l.malformed(n, "it is longer than the line of any record")
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the list of rejects %s: %w", l.path, err)
		}
		if content := bytes.TrimSpace(text); len(content) > 0 {
			line, e := parseReject(content)
			if e != nil {
				return l.malformed(n, "%v", e)
			}
			if e := fn(n, line); e != nil {
				return e
			}
		}
		if err != nil {
			return nil
		}
	}
}

var errLongLine = errors.New("the line is too long")

// readLine appends a line to text. io.EOF comes with the last one.
func readLine(in *bufio.Reader, text []byte) ([]byte, error) {
	for {
		part, err := in.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case len(text) > maxLine:
			return text, errLongLine
		case !errors.Is(err, bufio.ErrBufferFull):
			return text, err
		}
	}
}

// parseReject reads one line.
func parseReject(text []byte) (*RejectLine, error) {
	line := new(RejectLine)
	in := json.NewDecoder(bytes.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(line); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("it ends in the middle of an object")
		}
		return nil, fmt.Errorf("it is no line of a list of rejects (%s)", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something stands behind its object")
	}
	return line, nil
}

// revisionOf checks what a line is about.
func revisionOf(line *RejectLine) (r listed, err error) {
	r.kind = line.Kind
	switch r.kind {
	case "": // of an earlier version
		r.kind = RejectedRecord
	case RejectedRecord, MissingBlob:
	default:
		return r, fmt.Errorf("its kind %q is none that this version knows", line.Kind)
	}
	oid, err := parseNumber("oid", line.OID)
	if err != nil {
		return r, err
	}
	tid, err := parseNumber("tid", line.TID)
	if err != nil {
		return r, err
	}
	r.oid, r.tid = zodb.OID(oid), zodb.TID(tid)
	if max(oid, tid) >= uint64(zodb.Limit) {
		return r, fmt.Errorf("oid %v, tid %v: no destination holds such numbers", r.oid, r.tid)
	}
	return r, nil
}

// parseNumber reads an oid or a tid as String writes it.
func parseNumber(name, text string) (uint64, error) {
	digits, ok := strings.CutPrefix(text, "0x")
	n, err := strconv.ParseUint(digits, 16, 64)
	if !ok || len(digits) != 16 || err != nil {
		return 0, fmt.Errorf("its %s %q is not 0x and 16 hexadecimal digits", name, text)
	}
	return n, nil
}
