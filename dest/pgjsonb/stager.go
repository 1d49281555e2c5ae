package pgjsonb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/staging"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// mustStage tells whether a blob of this size has to be put into a file before it
// can be listed in a manifest.
func (s *session) mustStage(b *source.Blob) bool {
	return s.plan.Blobs == dest.Deferred && b.Path == "" && s.dest.inS3(b.Size)
}

// openStaging takes the staging directory, and refuses a run whose blobs have no
// room there.
func (s *session) openStaging() error {
	if s.plan.Blobs != dest.Deferred || s.dest.config.S3 == nil {
		return nil
	}
	need := s.dest.fileless(s.plan.Info)
	if s.plan.StagingDir == "" {
		if need.Blobs > 0 {
			return noStaging(s.plan.Info.Identity.Name, need.Blobs)
		}
		return nil
	}
	dir, err := staging.Open(s.plan.StagingDir, s.plan.Info.Identity)
	if err != nil {
		return refusedStaging(err)
	}
	s.staging = dir
	return s.enoughRoom(need)
}

func noStaging(name string, n int64) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s has %s to be uploaded later whose bytes are in no file that could be uploaded", name, count(n, "blob")),
		Hint:   "name a directory with room for them, --staging-dir, or let this run upload them, without --deferred-blobs",
	}
}

// refusedStaging says what to do about a staging directory that cannot be used.
func refusedStaging(err error) error {
	if used := (*staging.InUseError)(nil); errors.As(err, &used) {
		return &dest.RefusedError{Reason: err.Error(), Hint: "wait until that has ended, or name another directory with --staging-dir"}
	}
	return &dest.RefusedError{Reason: err.Error(), Hint: "name a directory that this user may write to with --staging-dir"}
}

// fileless is how many blobs there are at most, and of how many bytes, that go to
// S3 and are in no file.
func (d *Destination) fileless(info *source.Info) (n source.BlobCount) {
	for i, c := range info.Fileless {
		if largest := int64(1)<<i - 1; d.inS3(largest) {
			n.Blobs += c.Blobs
			n.Bytes += c.Bytes
		}
	}
	return n
}

// enoughRoom refuses a run that would fill the disk. What an earlier start has
// staged counts as room: it is there already, or will be overwritten.
func (s *session) enoughRoom(need source.BlobCount) error {
	free, known, err := s.staging.Free()
	if err != nil || !known {
		return err
	}
	there, err := s.staging.Staged()
	if err != nil {
		return err
	}
	if need.Bytes <= free+there.Bytes {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s to be uploaded later take up to %s, and the staging directory %s has room for %s",
			count(need.Blobs, "blob"), megabytes(need.Bytes), s.staging.Path(), megabytes(free+there.Bytes)),
		Hint: "name a directory with more room, --staging-dir, or let this run upload them, without --deferred-blobs",
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// stageBlobs puts the blobs of a chunk that go to S3 and are in no file into the
// staging directory, before the transaction that says they are owed commits.
// Those that cannot be read become missing ones. What this process has staged for
// the chunk in an earlier attempt is not staged again.
func (r *recordRows) stageBlobs(ctx context.Context, s *session) error {
	for {
		unreadable, err := r.stageFound(ctx, s)
		if err != nil {
			return err
		}
		if !unreadable {
			return nil
		}
		if err := r.findBlobs(ctx, s.dest); err != nil {
			return err
		}
	}
}

// stageFound stages the blobs that were found. unreadable tells that some cannot
// be read.
func (r *recordRows) stageFound(ctx context.Context, s *session) (unreadable bool, err error) {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	b := &r.blobs
	outcomes := make([]staged, len(b.found)) // each written by its own goroutine
	for i := range b.found {
		one := &b.found[i]
		if one.key == "" || !s.mustStage(one.Blob) {
			continue
		}
		if was := b.staged[one.index]; was.path != "" && was.size == one.Size {
			outcomes[i] = was
			continue
		}
		group.Go(func() (err error) {
			outcomes[i].size = one.Size
			outcomes[i].path, err = s.stage(groupCtx, one.Blob)
			if errors.As(err, &outcomes[i].bad) {
				return nil
			}
			return err
		})
	}
	err = group.Wait()
	fresh := false
	for i := range outcomes {
		index := b.found[i].index
		switch o := outcomes[i]; {
		case o.bad != nil:
			b.unreadable[index], unreadable = o.bad, true
		case o.path != "":
			_, again := b.staged[index]
			fresh = fresh || !again
			b.staged[index] = o
			b.found[i].path = o.path
		}
	}
	if err == nil && fresh {
		err = elsewhere(s.staging.Sync())
	}
	return unreadable, err
}

// staged is what became of a blob that was to be staged.
type staged struct {
	path string
	size int64
	bad  *source.BlobError // it cannot be read
}

// stage puts the bytes of a blob into the staging directory.
func (s *session) stage(ctx context.Context, b *source.Blob) (path string, err error) {
	if s.staging == nil {
		// The scan has not seen it: it came since.
		return "", elsewhere(noStaging(s.plan.Info.Identity.Name, 1))
	}
	path, err = s.staging.Put(ctx, b, s.plan.BlobBytes)
	return path, elsewhere(err)
}

// stageOwed stages the blobs of owed uploads that are in no file: an earlier start
// of the run meant to upload them itself.
func (s *session) stageOwed(ctx context.Context) error {
	failed := new(dest.UploadError)
	behind := "path = ''"
	for {
		var owed []*watermark.Owed
		err := s.withControl(ctx, func(conn *pgx.Conn) error {
			owed = nil
			return s.tables.OwedUploads(ctx, conn, behind, owedBatch, func(o *watermark.Owed) error {
				owed = append(owed, o)
				return nil
			})
		})
		if err != nil {
			return err
		}
		if len(owed) == 0 {
			break
		}
		last := owed[len(owed)-1]
		behind = fmt.Sprintf("path = '' AND (oid, tid) > (%d, %d)", int64(last.OID), int64(last.TID))
		if err := s.stageBatch(ctx, owed, failed); err != nil {
			return err
		}
	}
	if failed.Count > 0 {
		return failed
	}
	return nil
}

// stageBatch stages some owed blobs and notes where they are. Those that cannot
// be read are missing ones where that is accepted, else they have failed.
func (s *session) stageBatch(ctx context.Context, owed []*watermark.Owed, failed *dest.UploadError) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	outcomes := make([]outcome, len(owed)) // each written by its own goroutine
	for i, o := range owed {
		group.Go(func() error {
			b, err := s.owedBlob(groupCtx, o)
			if err == nil {
				o.Path = b.Path
			}
			if err == nil && o.Path == "" {
				o.Path, err = s.stage(groupCtx, b)
			}
			outcomes[i] = outcome{o, err}
			if bad := (*source.BlobError)(nil); errors.As(err, &bad) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if s.staging != nil {
		if err := s.staging.Sync(); err != nil {
			return elsewhere(err)
		}
	}
	return s.withControl(ctx, func(conn *pgx.Conn) error {
		return s.fencedTx(ctx, conn, func(tx pgx.Tx) error {
			for _, o := range outcomes {
				if err := s.noteStaged(ctx, tx, o, failed); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (s *session) noteStaged(ctx context.Context, tx pgx.Tx, o outcome, failed *dest.UploadError) error {
	if o.err == nil {
		_, err := tx.Exec(ctx, `UPDATE `+s.tables.Owed+` SET path = $3::bytea WHERE oid = $1::int8 AND tid = $2::int8`,
			int64(o.OID), int64(o.TID), []byte(o.Path))
		if err != nil {
			return fmt.Errorf("note which blobs are staged: %w", err)
		}
		return nil
	}
	if !s.plan.AcceptMissingBlobs {
		if failed.Count++; len(failed.Failed) < dest.ListMax {
			failed.Failed = append(failed.Failed, dest.FailedUpload{OwedBlob: o.OwedBlob, Err: o.err})
		}
	}
	return s.noteFailed(ctx, tx, o)
}

// restage puts the bytes of an owed upload whose file is gone into the staging
// directory, if they are in no file elsewhere.
func (s *session) restage(ctx context.Context, b *source.Blob) (path string, err error) {
	if b.Path != "" {
		return b.Path, nil
	}
	if path, err = s.stage(ctx, b); err == nil {
		err = elsewhere(s.staging.Sync())
	}
	return path, err
}
