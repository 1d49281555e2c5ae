package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/manifest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobdir"
)

// uploadTransfers is how many blobs are on their way at once if -w does not say.
// Uploads wait for the network more than they compute.
const uploadTransfers = 8

// upload sends what a manifest lists.
func (a *app) upload(ctx context.Context, o *convertOptions) error {
	c, err := a.uploadConfig(o)
	if err != nil {
		return err
	}
	total, err := manifest.Check(o.upload)
	if err != nil {
		return &failure{err: err, hints: []string{"nothing was uploaded"}}
	}
	limitMemory(o.memory, a.getenv)
	store, err := openStore(ctx, &c.Destination.S3)
	if err != nil {
		return err
	}
	u := &uploader{app: a, options: o, store: store, bucket: c.Destination.S3.Bucket, sum: progress.UploadSummary{
		Manifest: o.upload, Store: store.Name(), Blobs: total.Lines, Bytes: total.Bytes,
	}}
	if o.check {
		if err := u.compare(ctx, c); err != nil {
			return err
		}
	}
	return u.run(ctx)
}

// uploadConfig is what CONFIG, if there is one, and the flags say.
func (a *app) uploadConfig(o *convertOptions) (*config.Config, error) {
	c := &config.Config{}
	if o.from.destinationPath() != "" {
		var err error
		if c, err = a.readConfig(&o.from); err != nil {
			return nil, err
		}
	}
	if err := o.s3.over(c); err != nil {
		return nil, err
	}
	if c.Destination.S3.Bucket == "" {
		return nil, usage("--upload-blobs wants a bucket", "name a CONFIG whose [destination] has s3-bucket-name, or use --s3-bucket")
	}
	if o.check && c.Destination.DSN == "" {
		return nil, usage("--check looks into the destination, so that it wants a CONFIG with its dsn")
	}
	return c, checkRejectsPath(o.rejects, append(o.from.files(), o.upload)...)
}

// uploader is one call of --upload-blobs.
type uploader struct {
	*app
	options *convertOptions
	store   *s3blob.Store
	bucket  string
	display *progress.Display

	mu     sync.Mutex
	sum    progress.UploadSummary
	sent   int64 // bytes of blobs that are done with, and of parts on their way
	told   time.Time
	failed *failedList
}

func (u *uploader) run(ctx context.Context) error {
	printer := u.printer()
	u.display = progress.Start(printer)
	u.signals.onReport(u.display.Report)
	u.signals.onStop(func(name string) { u.note(name + ": stopping; once more to stop at once") })
	started := time.Now()
	err := u.work(ctx)
	u.signals.onReport(nil)
	u.signals.onStop(nil)
	u.display.Close()

	u.sum.Elapsed, u.sum.Stopped = time.Since(started), err != nil
	if e := u.failed.close(); err == nil {
		err = e
	}
	printer.Uploaded(&u.sum)
	again := "what is uploaded stays; go on with: " + u.command()
	if ctx.Err() == nil && u.sum.Uploaded+u.sum.Skipped == 0 {
		again = "nothing was uploaded; once that is mended: " + u.command()
	}
	switch {
	case err != nil:
		return &failure{err: err, hints: []string{again}}
	case u.sum.Failures > 0:
		err := fmt.Errorf("%s of %s could not be uploaded", progress.Count(u.sum.Failures), progress.Plural(u.sum.Blobs, "blob"))
		return &failure{err: err, hints: []string{"everything else is in the bucket; try these once more with: " + u.command()}}
	}
	return nil
}

// command is what is typed to go on.
func (u *uploader) command() string {
	o := u.options
	line := "zodb-convert --upload-blobs " + quote(o.upload)
	if o.s3.given("workers") {
		line += " -w " + strconv.Itoa(o.workers)
	}
	if o.s3.given("memory") {
		line += " --memory " + sizeText(o.memory)
	}
	if o.check {
		line += " --check"
	}
	line += o.s3.text()
	if u.options.rejects != "" {
		line += " --rejects " + quote(u.options.rejects)
	}
	return line + u.options.from.text()
}

func (u *uploader) note(text string) {
	u.display.Event(pipeline.Event{Kind: pipeline.Note, Time: time.Now(), Text: text})
}

// work sends the blobs.
func (u *uploader) work(ctx context.Context) (err error) {
	if u.failed, err = newFailedList(u.options.rejects); err != nil {
		return err
	}
	if u.sum.Blobs == 0 {
		return nil
	}
	if err := manifest.Each(u.options.upload, func(l manifest.Line) error {
		u.note(fmt.Sprintf("%s, %s; the first goes to %s",
			progress.Plural(u.sum.Blobs, "blob"), progress.Bytes(u.sum.Bytes), "s3://"+u.bucket+"/"+u.store.FullKey(l.Key())))
		return io.EOF
	}); !errors.Is(err, io.EOF) {
		return err
	}
	u.store.OnWait(u.note)
	if err := u.store.Probe(ctx); err != nil {
		return err
	}
	u.display.Event(pipeline.Event{Kind: pipeline.PhaseStarted, Time: time.Now(), Phase: pipeline.Uploading, Total: u.sum.Bytes})
	group, ctx := errgroup.WithContext(ctx)
	lines := make(chan manifest.Line)
	group.Go(func() error {
		defer close(lines)
		return manifest.Each(u.options.upload, func(l manifest.Line) error {
			select {
			case lines <- l:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range u.options.transfers() {
		group.Go(func() error {
			for l := range lines {
				if err := u.one(ctx, l); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (o *convertOptions) transfers() int {
	if o.s3.given("workers") {
		return o.workers
	}
	return uploadTransfers
}

// one uploads one blob. What concerns this blob only is listed, what concerns
// the store is an error.
func (u *uploader) one(ctx context.Context, l manifest.Line) error {
	b, err := u.open(l)
	if err != nil {
		return u.fail(ctx, l, 0, err)
	}
	has, err := u.store.Has(ctx, l.Key(), b)
	if err != nil {
		return u.fail(ctx, l, 0, err)
	}
	if has {
		u.count(l.Size, func(s *progress.UploadSummary) { s.Skipped++; s.SkippedBytes += l.Size })
		return nil
	}
	sent := int64(0)
	err = u.store.Put(ctx, l.Key(), b, func(n int64) {
		u.mu.Lock()
		sent += n
		u.mu.Unlock()
		u.count(n, nil)
	})
	u.mu.Lock()
	rest := l.Size - sent // what a repeated part was counted for twice, too
	u.mu.Unlock()
	if err != nil {
		return u.fail(ctx, l, rest-l.Size, err)
	}
	u.count(rest, func(s *progress.UploadSummary) { s.Uploaded++; s.UploadedBytes += l.Size })
	return nil
}

// open finds the file of a line, as large as the line says.
func (u *uploader) open(l manifest.Line) (*source.Blob, error) {
	b, err := blobdir.File(l.OID, l.TID, l.Path)
	if err == nil && b.Size != l.Size {
		err = &source.BlobError{OID: l.OID, TID: l.TID, Path: l.Path,
			Problem: fmt.Sprintf("has changed: it has %d bytes, and the manifest says %d", b.Size, l.Size)}
	}
	return b, err
}

// fail lists a blob that cannot be uploaded. Any error that is about more than
// this blob is returned.
func (u *uploader) fail(ctx context.Context, l manifest.Line, sent int64, err error) error {
	var (
		missing *source.BlobError
		store   *s3blob.Error
		reason  string
	)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &missing):
		reason = missing.Problem
	case errors.As(err, &store) && !store.Whole:
		reason = "cannot be uploaded: " + store.Error()
	default:
		return err
	}
	u.count(sent+l.Size, func(s *progress.UploadSummary) {
		s.Failures++
		if len(s.Failed) < dest.ListMax {
			s.Failed = append(s.Failed, progress.FailedBlob{OID: l.OID.String(), TID: l.TID.String(), Path: l.Path, Reason: reason})
		}
		err = u.failed.add(l, reason)
	})
	if err != nil {
		return fmt.Errorf("write the list of failed uploads %s: %w", u.options.rejects, err)
	}
	return nil
}

// tellEvery keeps the display from being told of every part of a blob.
const tellEvery = 100 * time.Millisecond

// count adds bytes that are done with and lets change note what came of a blob.
func (u *uploader) count(bytes int64, change func(*progress.UploadSummary)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sent += bytes
	if change != nil {
		change(&u.sum)
	}
	done := u.sum.Uploaded + u.sum.Skipped + u.sum.Failures
	now := time.Now()
	if now.Sub(u.told) < tellEvery && done < u.sum.Blobs {
		return
	}
	u.told = now
	u.display.Event(pipeline.Event{Kind: pipeline.Progress, Time: now, Phase: pipeline.Uploading,
		Done: u.sent, Total: u.sum.Bytes,
		Uploads: dest.UploadProgress{Done: done, Total: u.sum.Blobs, DoneBytes: u.sent, TotalBytes: u.sum.Bytes}})
}

// failedList is the file of --rejects: it appears when it is whole. Without a
// path it does nothing.
type failedList struct {
	path  string
	file  *os.File
	lines *json.Encoder
}

func newFailedList(path string) (*failedList, error) {
	if path == "" {
		return &failedList{}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("write the list of failed uploads: %w", err)
	}
	return &failedList{path: path, file: f, lines: json.NewEncoder(f)}, nil
}

func (l *failedList) add(m manifest.Line, reason string) error {
	if l.file == nil {
		return nil
	}
	return l.lines.Encode(pipeline.RejectLine{Kind: pipeline.MissingBlob, OID: m.OID.String(), TID: m.TID.String(), Path: m.Path, Reason: reason})
}

func (l *failedList) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	err := l.file.Sync()
	if e := l.file.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(l.file.Name(), l.path)
	}
	if err != nil {
		os.Remove(l.file.Name())
		return fmt.Errorf("write the list of failed uploads %s: %w", l.path, err)
	}
	return nil
}
