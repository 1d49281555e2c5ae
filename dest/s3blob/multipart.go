package s3blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

const (
	// completeStall is how long the server may take to put the parts together.
	completeStall = 5 * time.Minute
	// An upload that failed is given up within this time, and within the shorter
	// one if somebody waits for the end.
	abortTime, abortTimeCancelled = 10 * time.Second, 1500 * time.Millisecond
	// It is given up so often, so long after each other.
	abortAttempts, abortAgain = 5, 100 * time.Millisecond
)

// multipart uploads an object in parts, several at once.
func (u *upload) multipart(ctx context.Context, d *digest, size int64) error {
	for try := 1; ; try++ {
		problem, err := u.tryParts(ctx, d, size)
		if err != nil || problem == "" {
			return err
		}
		if try == maxTries {
			return u.wrong(problem)
		}
		// What was told of the parts is told again from now on.
		u.sent(-u.blob.Size)
	}
}

// tryParts uploads all parts and puts them together. problem is why the whole
// must be done again.
func (u *upload) tryParts(ctx context.Context, d *digest, size int64) (problem string, err error) {
	id, err := u.create(ctx, d)
	if err != nil {
		return "", err
	}
	confirmed := false
	defer func() {
		if !confirmed {
			u.abort(ctx, id)
		}
	}()
	parts, err := u.sendParts(ctx, id, d, size)
	if err != nil {
		return "", err
	}
	err = u.complete(ctx, id, parts)
	// An answer that was lost: then the upload is no more, and the object is
	// there.
	if err != nil && !isCode(err, "NoSuchUpload") {
		return "", err
	}
	problem, err = u.verify(ctx, d, len(parts))
	confirmed = err == nil && problem == ""
	return problem, err
}

func (u *upload) create(ctx context.Context, d *digest) (id *string, err error) {
	err = u.run(ctx, task{op: opUpload, key: u.key, right: mayPut, do: func(ctx context.Context, _ *watch) error {
		out, err := u.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
			Bucket: &u.config.Bucket, Key: &u.key, ContentType: text(contentType), Metadata: map[string]string{digestKey: d.hex()},
		})
		if err == nil {
			id = out.UploadId
		}
		return err
	}})
	if err == nil && id == nil {
		err = &Error{Op: opUpload, Key: u.key, Reason: "the server begins an upload without naming it", Whole: true}
	}
	return id, err
}

// sendParts uploads the parts, at most maxPartsOfOne of this object and maxParts
// of all at once.
func (u *upload) sendParts(ctx context.Context, id *string, d *digest, size int64) ([]types.CompletedPart, error) {
	parts := make([]types.CompletedPart, len(d.parts))
	group, shared := errgroup.WithContext(ctx)
	group.SetLimit(maxPartsOfOne)
	for i := range parts {
		if shared.Err() != nil {
			break
		}
		off := int64(i) * size
		group.Go(func() error {
			var err error
			parts[i], err = u.sendPart(shared, id, int32(i+1), off, min(size, u.blob.Size-off), d.parts[i])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	// Parts that were not even begun have no error.
	return parts, ctx.Err()
}

func (u *upload) sendPart(ctx context.Context, id *string, number int32, off, size int64, sum [sha256.Size]byte) (part types.CompletedPart, err error) {
	if err := u.start(ctx); err != nil {
		return part, err
	}
	defer u.end()
	err = u.run(ctx, task{op: opUpload, key: u.key, right: mayPut, do: func(ctx context.Context, w *watch) error {
		return u.send(u.file.section(off, size), w, func(body io.Reader) error {
			out, err := u.client.UploadPart(ctx, &s3.UploadPartInput{
				Bucket: &u.config.Bucket, Key: &u.key, UploadId: id, PartNumber: &number, Body: body, ContentLength: &size,
			}, withHash(sum))
			if err == nil {
				part = types.CompletedPart{ETag: out.ETag, PartNumber: &number}
			}
			return err
		})
	}})
	if err != nil {
		return part, u.orChanged(ctx, err, off, size, sum)
	}
	u.sent(size)
	return part, nil
}

func (u *upload) complete(ctx context.Context, id *string, parts []types.CompletedPart) error {
	return u.run(ctx, task{op: opUpload, key: u.key, right: mayPut, stall: max(completeStall, u.config.Stall), do: func(ctx context.Context, _ *watch) error {
		_, err := u.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &u.config.Bucket, Key: &u.key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		return err
	}})
}

// abort gives up an upload, so that its parts do not stay in the store. Its
// context is its own: the other one may be what has ended. That it fails is not
// told, because why the upload was given up is.
func (u *upload) abort(ctx context.Context, id *string) {
	limit := abortTime
	if ctx.Err() != nil {
		limit = abortTimeCancelled
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	// A part whose request was given up may still be on its way to its place and
	// bring the upload back, so it is given up until the store does not know it;
	// some stores know it for longer.
	gone := false
	for range abortAttempts {
		err := u.run(ctx, task{op: opUpload, key: u.key, right: mayAbort, wait: limit, do: func(ctx context.Context, _ *watch) error {
			_, err := u.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
				Bucket: &u.config.Bucket, Key: &u.key, UploadId: id,
			})
			var unknown *types.NoSuchUpload
			if gone = errors.As(err, &unknown); gone {
				return nil
			}
			return err
		}})
		if err != nil || gone {
			return
		}
		select {
		case <-time.After(abortAgain):
		case <-ctx.Done():
			return
		}
	}
}
