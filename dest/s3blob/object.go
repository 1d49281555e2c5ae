package s3blob

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/zodb-convert/zodb-convert/source"
)

const (
	opLook   = "look for"
	opRemove = "remove"
)

// head looks at an object; nil if there is none.
func (s *Store) head(ctx context.Context, op, key string) (out *s3.HeadObjectOutput, err error) {
	return s.headWithin(ctx, op, key, key, 0)
}

// headWithin is head with what to call the key in messages.
func (s *Store) headWithin(ctx context.Context, op, called, key string, wait time.Duration) (out *s3.HeadObjectOutput, err error) {
	err = s.run(ctx, task{op: op, key: called, right: mayHead, wait: wait, do: func(ctx context.Context, _ *watch) (err error) {
		out, err = s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.config.Bucket, Key: &key})
		if isStatus(err, http.StatusNotFound) {
			out, err = nil, nil
		}
		return err
	}})
	return out, err
}

func length(out *s3.HeadObjectOutput) int64 {
	if out.ContentLength == nil {
		return 0
	}
	return *out.ContentLength
}

// metadata finds a value whatever the case of its name, which stores may change.
func metadata(out *s3.HeadObjectOutput, name string) string {
	for key, value := range out.Metadata {
		if strings.EqualFold(key, name) {
			return value
		}
	}
	return ""
}

// look is head for a key without the prefix.
func (s *Store) look(ctx context.Context, key string) (*s3.HeadObjectOutput, error) {
	out, err := s.head(ctx, opLook, s.FullKey(key))
	var refused *Error
	if errors.As(err, &refused) && s.headed.Load() && isStatus(err, http.StatusForbidden) {
		// Without the right to list a bucket Amazon answers so when there is no
		// such object. That HEAD is allowed has been seen.
		return nil, nil
	}
	return out, err
}

// Exists tells whether the store has an object of this size under the key,
// whatever its bytes.
func (s *Store) Exists(ctx context.Context, key string, size int64) (bool, error) {
	out, err := s.look(ctx, key)
	return err == nil && out != nil && length(out) == size, err
}

// Has tells whether the store has exactly this blob under the key. Objects of
// other programs, which have no SHA-256 with them, are recognized by an ETag that
// is the MD5 of their bytes.
func (s *Store) Has(ctx context.Context, key string, b *source.Blob) (bool, error) {
	out, err := s.look(ctx, key)
	if err != nil || out == nil || length(out) != b.Size {
		return false, err
	}
	want, etag := strings.ToLower(metadata(out, digestKey)), strings.ToLower(unquote(out.ETag))
	if want == "" && !isMD5(etag) {
		return false, nil
	}
	file, err := b.Open(ctx)
	if err != nil {
		return false, err
	}
	defer file.Close()
	r := &blobReader{b, file}
	if want != "" {
		sum, err := hashOf(ctx, r.section(0, b.Size), nil)
		return err == nil && hex.EncodeToString(sum[:]) == want, err
	}
	sum := md5.New()
	_, err = hashOf(ctx, r.section(0, b.Size), sum)
	return err == nil && hex.EncodeToString(sum.Sum(nil)) == etag, err
}

func isMD5(etag string) bool {
	b, err := hex.DecodeString(etag)
	return err == nil && len(b) == md5.Size
}

// Delete removes an object; it may be gone already.
func (s *Store) Delete(ctx context.Context, key string) error {
	key = s.FullKey(key)
	return s.deleteWithin(ctx, opRemove, key, key, 0)
}

func (s *Store) deleteWithin(ctx context.Context, op, called, key string, wait time.Duration) error {
	return s.run(ctx, task{op: op, key: called, right: mayDelete, wait: wait, do: func(ctx context.Context, _ *watch) error {
		_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.config.Bucket, Key: &key})
		if isCode(err, "NoSuchKey") {
			return nil
		}
		return err
	}})
}

// Probe writes a small object and removes it, so that a wrong bucket, a wrong
// key, a clock that is wrong or a missing right is found before the work.
//
// The object's name is that of this host, so that what a kill leaves behind goes
// with the next probe. Two probes of a host at once may remove it for each
// other, which is why one that has vanished is written again.
func (s *Store) Probe(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("name of this host: %w", err)
	}
	sum := sha256.Sum256([]byte(host))
	key := s.FullKey("zodb-convert-probe-" + hex.EncodeToString(sum[:8]))
	for attempt := 1; ; attempt++ {
		vanished, err := s.probe(ctx, key)
		if !vanished || attempt == probeAttempts || !sleep(ctx, backoff(attempt)) {
			return err
		}
	}
}

// probe writes, looks at and removes the object. vanished tells that somebody
// else has removed it.
func (s *Store) probe(ctx context.Context, key string) (vanished bool, _ error) {
	op := "test the bucket " + s.Name()
	content := "written to see whether blobs can be stored here"
	sum, size := sha256.Sum256([]byte(content)), int64(len(content))
	wait := min(probeWait, s.config.Wait)
	err := s.run(ctx, task{op: op, right: mayPut, wait: wait, do: func(ctx context.Context, _ *watch) error {
		_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.config.Bucket, Key: &key, Body: strings.NewReader(content), ContentLength: &size, ContentType: text(contentType),
			Metadata: map[string]string{digestKey: hex.EncodeToString(sum[:])},
		}, withHash(sum))
		return err
	}})
	if err != nil {
		return false, err
	}
	out, err := s.headWithin(ctx, op, "", key, wait)
	// Whatever comes out, nothing is left behind.
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	removed := s.deleteWithin(own, op, "", key, wait)
	switch vanished = err == nil && out == nil; {
	case err != nil:
	case out == nil || length(out) != size || metadata(out, digestKey) != hex.EncodeToString(sum[:]):
		err = &Error{Op: op, Whole: true, Reason: "what was written does not come back with its size and its metadata",
			Hint: fmt.Sprintf("see what%s answers requests", s.at())}
	default:
		err = removed
	}
	var mine *Error
	if removed != nil && errors.As(err, &mine) {
		mine.Reason += ", and the probe " + key + " could not be removed"
	}
	if err != nil {
		return vanished, err
	}
	s.headed.Store(true)
	return false, nil
}
