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
	// Kind is what the line lists: a record that was rejected, or a blob that is
	// missing. Files of earlier versions have records only, and no kind.
	Kind RejectKind `json:"kind"`
	OID  string     `json:"oid"`
	TID  string     `json:"tid"`
	// Offset is where the record stands, if the source has positions.
	Offset int64 `json:"offset,omitempty"`
	// Path is where the blob was looked for.
	Path   string `json:"path,omitempty"`
	Class  string `json:"class"`
	Reason string `json:"reason"`
	// Pickle is the record as the source holds it (base64 in JSON).
	Pickle []byte `json:"pickle,omitempty"`
}

// RejectKind tells the lines of a rejects file apart.
type RejectKind string

const (
	RejectedRecord RejectKind = "record"
	MissingBlob    RejectKind = "blob"
)

// settleRejects writes the rejects file, and stops the run if there are rejects
// or missing blobs that nobody accepted or that nobody may accept.
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
	if err := r.listFaults(ctx, session); err != nil {
		return err
	}
	if r.opts.Rejects != "" && !rejected.Root {
		rejected.Count = 0
	}
	if !r.opts.AllowMissingBlobs {
		rejected.MissingBlobs = r.report.Totals.MissingBlobs
	}
	if rejected.Count > 0 || rejected.Root || rejected.MissingBlobs > 0 {
		return &rejected
	}
	return nil
}

// listFaults puts the first rejects and missing blobs into the report and all of
// them into the rejects file, if there is to be one.
func (r *run) listFaults(ctx context.Context, session dest.Session) error {
	r.report.Rejects, r.report.MissingBlobs = nil, nil
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
	missing := int64(0)
	if err := session.MissingBlobs(ctx, func(m *dest.MissingBlob) error {
		if missing++; missing <= dest.ListMax {
			r.report.MissingBlobs = append(r.report.MissingBlobs, *m)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read the list of missing blobs: %w", err)
	}
	// The chunks counted those that they did not find; some may have been found
	// since.
	r.report.Totals.MissingBlobs = missing
	if r.opts.Rejects == "" {
		return nil
	}
	if err := r.writeRejects(ctx, session); err != nil {
		return fmt.Errorf("write the rejects file %s: %w", r.opts.Rejects, err)
	}
	r.report.RejectsFile = r.opts.Rejects
	return nil
}

// writeRejects writes all rejects and missing blobs to the rejects file, which
// appears only when it is whole and is readable by its owner only: it holds the
// data of the database. Lines of an earlier run stay.
func (r *run) writeRejects(ctx context.Context, session dest.Session) (err error) {
	path := r.opts.Rejects
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
	if err := r.encodeRejects(ctx, session, json.NewEncoder(w)); err != nil {
		return err
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

func (r *run) encodeRejects(ctx context.Context, session dest.Session, lines *json.Encoder) error {
	type fault struct {
		kind     RejectKind
		oid, tid string
	}
	written := make(map[fault]bool)
	for old := range r.missing {
		// Found meanwhile, unless it is written below.
		written[fault{MissingBlob, old.oid.String(), old.tid.String()}] = true
	}
	write := func(line RejectLine) error {
		written[fault{line.Kind, line.OID, line.TID}] = true
		return lines.Encode(line)
	}
	if err := session.Rejects(ctx, func(j *dest.Reject) error {
		return write(RejectLine{
			Kind: RejectedRecord, OID: j.OID.String(), TID: j.TID.String(), Offset: j.Pos,
			Class: j.Class, Reason: j.Reason, Pickle: j.Data,
		})
	}); err != nil {
		return err
	}
	if err := session.MissingBlobs(ctx, func(m *dest.MissingBlob) error {
		return write(RejectLine{
			Kind: MissingBlob, OID: m.OID.String(), TID: m.TID.String(), Offset: m.Pos,
			Path: m.Path, Reason: m.Reason,
		})
	}); err != nil {
		return err
	}
	if !r.opts.Incremental {
		return nil
	}
	err := earlierRejects(r.opts.Rejects, func(line *RejectLine) error {
		if line.Kind == "" {
			line.Kind = RejectedRecord
		}
		if written[fault{line.Kind, line.OID, line.TID}] {
			return nil
		}
		return lines.Encode(line)
	})
	if err != nil {
		return fmt.Errorf("keep the lines of the earlier run: %w", err)
	}
	return nil
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
