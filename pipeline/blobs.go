package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/manifest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// ToStdout is the manifest that goes to Options.Stdout.
const ToStdout = "-"

// revision names a revision of an object.
type revision struct {
	oid zodb.OID
	tid zodb.TID
}

// largeBlob is the size from which on a blob is too large for the destination.
func (r *run) largeBlob() int64 {
	if n := r.dst.LargestBlob(); n > 0 {
		return n + 1
	}
	return 0
}

// admitManifest refuses a manifest that could not be written when everything
// else is done, or whose lines would be lost with it.
func (r *run) admitManifest(s *dest.State) error {
	path := r.opts.Manifest
	if r.opts.Blobs != dest.Deferred || r.opts.DryRun || path == ToStdout {
		return nil
	}
	there, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the manifest: %w", err)
	}
	if err == nil && there.Size() > 0 {
		if !r.opts.Incremental || s.Condition == dest.Absent || s.Condition == dest.Empty {
			return &dest.RefusedError{
				Reason: fmt.Sprintf("the manifest %s is there already, and may list blobs that are not uploaded yet", path),
				Hint:   "upload them with --upload-blobs and remove it, or name another file",
			}
		}
		if _, err := manifest.Check(path); err != nil {
			return fmt.Errorf("the manifest that is to be kept up: %w", err)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("the manifest cannot be written: %w", err)
	}
	f.Close()
	return os.Remove(f.Name())
}

// rememberMissing notes which blobs an interrupted start did not find, so that
// those found by now can leave the list of rejects.
func (r *run) rememberMissing(ctx context.Context, session dest.Session) error {
	if !r.report.Resumed || r.opts.Rejects == "" {
		return nil
	}
	r.missing = make(map[revision]bool)
	if err := session.MissingBlobs(ctx, func(m *dest.MissingBlob) error {
		r.missing[revision{m.OID, m.TID}] = true
		return nil
	}); err != nil {
		return fmt.Errorf("read the list of missing blobs: %w", err)
	}
	return nil
}

// correctTotals takes the counts over from the session: those of the chunks do not
// know of blobs that were missing and were found since, or the other way round.
func (r *run) correctTotals(session dest.Session) { r.report.Totals = session.Run().Totals }

// settleBlobs brings what is owed to S3, or to the manifest.
//
// The manifest comes first: once the objects that newer transactions replaced
// are removed from S3, nothing tells any more which of its lines are void.
func (r *run) settleBlobs(ctx context.Context, session dest.Session) error {
	if r.opts.Blobs == dest.Deferred {
		if err := r.writeManifest(ctx, session); err != nil {
			return err
		}
	}
	started := false
	var last dest.UploadProgress
	err := session.SettleBlobs(ctx, func(u dest.UploadProgress) {
		if u.Total == 0 {
			return
		}
		if !started {
			started = true
			r.startPhase(Uploading, u.TotalBytes)
		}
		last = u
		r.events.Send(Event{Kind: Progress, Phase: Uploading, Done: u.DoneBytes, Total: u.TotalBytes, Uploads: u})
	})
	if started {
		r.endPhase(last.DoneBytes)
	}
	if err != nil {
		return err
	}
	listed := r.report.Totals.MissingBlobs
	r.correctTotals(session)
	if r.report.Totals.MissingBlobs == listed {
		return nil
	}
	// Files were gone when they were to be uploaded.
	return r.settleRejects(ctx, session)
}

// payAnyway settles the blobs of a run that is refused to catch up. Where the
// site was started too early that is for good, and what is loaded refers to
// objects that are still owed.
func (r *run) payAnyway(ctx context.Context, session dest.Session, cause error) error {
	if refused := (*dest.RefusedError)(nil); !r.report.Resumed || !errors.As(cause, &refused) {
		return cause
	}
	return errors.Join(cause, r.settleBlobs(ctx, session))
}

// writeManifest lists the uploads that are owed, and keeps those of earlier
// runs that still hold.
func (r *run) writeManifest(ctx context.Context, session dest.Session) error {
	lines := func(add func(manifest.Line) error) error {
		return session.Owed(ctx, func(o *dest.OwedBlob) error {
			return add(manifest.Line{Path: o.Path, OID: o.OID, TID: o.TID, Size: o.Size})
		})
	}
	var (
		all manifest.Total
		err error
	)
	switch path := r.opts.Manifest; {
	case path == ToStdout:
		if all, err = manifest.Encode(r.opts.Stdout, lines); err == nil {
			err = bringToDisk(r.opts.Stdout)
		}
	case !r.opts.Incremental:
		all, err = manifest.Write(path, lines)
	default:
		gone := make(map[string]bool)
		err = session.Gone(ctx, func(key string) error {
			gone[key] = true
			return nil
		})
		if err == nil {
			all, err = manifest.Update(path, func(key string) bool { return gone[key] }, lines)
		}
	}
	if err != nil {
		return fmt.Errorf("write the manifest %s: %w", r.opts.Manifest, err)
	}
	r.report.Manifest, r.report.Owed, r.report.OwedBytes = r.opts.Manifest, all.Lines, all.Bytes
	return nil
}

// bringToDisk makes what was written durable if it went to a file: what is owed
// is forgotten next.
func bringToDisk(w io.Writer) error {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if stat, err := f.Stat(); err != nil || !stat.Mode().IsRegular() {
		return err
	}
	return f.Sync()
}
