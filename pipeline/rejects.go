package pipeline

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// RejectLine is one line of the rejects file: JSON, one object a line.
type RejectLine struct {
	OID    string `json:"oid"`
	TID    string `json:"tid"`
	Offset int64  `json:"offset"`
	Class  string `json:"class"`
	Reason string `json:"reason"`
	// Pickle is the record as the source holds it (base64 in JSON).
	Pickle []byte `json:"pickle"`
}

// settleRejects writes the rejects file, or stops the run if there are rejects
// that nobody accepted or that nobody may accept.
func (r *run) settleRejects(ctx context.Context, session dest.Session) error {
	var rejected dest.RejectedError
	err := session.Rejects(ctx, func(j *dest.Reject) error {
		rejected.Count++
		rejected.Root = rejected.Root || j.OID == zodb.Root
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the list of rejects: %w", err)
	}
	if r.opts.Rejects != "" {
		if err := writeRejects(ctx, session, r.opts.Rejects, r.opts.Incremental); err != nil {
			return fmt.Errorf("write the rejects file %s: %w", r.opts.Rejects, err)
		}
		r.report.RejectsFile = r.opts.Rejects
	}
	if rejected.Count > 0 {
		if err := r.listRejects(ctx, session); err != nil {
			return err
		}
		if r.opts.Rejects == "" || rejected.Root {
			return &rejected
		}
	}
	return nil
}

// listRejects puts the first rejects into the report.
func (r *run) listRejects(ctx context.Context, session dest.Session) error {
	r.report.Rejects = nil
	if err := session.Rejects(ctx, func(j *dest.Reject) error {
		if len(r.report.Rejects) < dest.ListMax {
			short := *j
			short.Data = nil
			r.report.Rejects = append(r.report.Rejects, short)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read the list of rejects: %w", err)
	}
	return nil
}

// writeRejects writes all rejects to path, which appears only when it is whole
// and is readable by its owner only: it holds the data of the database. With
// keep, lines of an earlier run that are there already stay.
func writeRejects(ctx context.Context, session dest.Session, path string, keep bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriter(f)
	lines := json.NewEncoder(w)
	written := make(map[[2]string]bool) // oid and tid
	err = session.Rejects(ctx, func(j *dest.Reject) error {
		line := RejectLine{
			OID: j.OID.String(), TID: j.TID.String(), Offset: j.Pos,
			Class: j.Class, Reason: j.Reason, Pickle: j.Data,
		}
		written[[2]string{line.OID, line.TID}] = true
		return lines.Encode(line)
	})
	if err != nil {
		return err
	}
	if keep {
		err := earlierRejects(path, func(line *RejectLine) error {
			if written[[2]string{line.OID, line.TID}] {
				return nil
			}
			return lines.Encode(line)
		})
		if err != nil {
			return fmt.Errorf("keep the lines of the earlier run: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// earlierRejects calls fn for each line of a rejects file, if there is one.
func earlierRejects(path string, fn func(*RejectLine) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := json.NewDecoder(bufio.NewReader(f))
	for {
		var line RejectLine
		if err := lines.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := fn(&line); err != nil {
			return err
		}
	}
}
