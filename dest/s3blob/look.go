package s3blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/zodb-convert/zodb-convert/dest"
)

// Contents gives the objects of the store as a destination's content.
func (s *Store) Contents() dest.ObjectStore { return contents{s} }

// contents is a Store that is read.
type contents struct{ store *Store }

func (c contents) Name() string { return c.store.Name() }

// Look asks by HEAD.
func (c contents) Look(ctx context.Context, key string) (*dest.Object, error) {
	out, err := c.store.look(ctx, key)
	if err != nil || out == nil {
		return nil, err
	}
	c.store.headed.Store(true)
	o := &dest.Object{Size: length(out), SHA256: strings.ToLower(metadata(out, digestKey))}
	sum, parts, several := strings.Cut(strings.ToLower(unquote(out.ETag)), "-")
	if isMD5(sum) {
		o.MD5 = sum
	}
	if several {
		o.Parts, _ = strconv.Atoi(parts) // 0: the store's own notation
	}
	return o, nil
}

var (
	mayGet  = right{"read objects", "s3:GetObject"}
	mayList = right{"list the bucket", "s3:ListBucket"}
)

// Hash reads an object from its beginning again when the line breaks.
func (c contents) Hash(ctx context.Context, key string, read func(n int64)) (size int64, sum [sha256.Size]byte, err error) {
	s, full := c.store, c.store.FullKey(key)
	told := int64(0)
	err = s.run(ctx, task{op: "read", key: full, right: mayGet, do: func(ctx context.Context, w *watch) error {
		read(-told)
		size, told = -1, 0
		out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.config.Bucket, Key: &full})
		if isStatus(err, http.StatusNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		defer out.Body.Close()
		hash := sha256.New()
		buffer := make([]byte, 256<<10)
		for {
			n, err := out.Body.Read(buffer)
			hash.Write(buffer[:n])
			told += int64(n)
			read(int64(n))
			w.timer.Reset(w.stall)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		size = told
		hash.Sum(sum[:0])
		return nil
	}})
	return size, sum, err
}

// List asks for a thousand keys at a time.
func (c contents) List(ctx context.Context, fn func(key string, size int64) error) error {
	s := c.store
	prefix := s.FullKey("blobs/")
	var next *string
	for {
		var page *s3.ListObjectsV2Output
		err := s.run(ctx, task{op: "list " + s.Name(), right: mayList, do: func(ctx context.Context, _ *watch) (err error) {
			page, err = s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.config.Bucket, Prefix: &prefix, ContinuationToken: next})
			return err
		}})
		if isStatus(err, http.StatusForbidden) {
			return &dest.RefusedError{Reason: fmt.Sprintf("the credentials may not list %s", s.Name()),
				Hint: "allow s3:ListBucket on the bucket " + s.Bucket(), Cause: err}
		}
		if err != nil {
			return err
		}
		for _, o := range page.Contents {
			if o.Key == nil || o.Size == nil {
				return fmt.Errorf("list %s: the server names an object without key or size", s.Name())
			}
			if err := fn((*o.Key)[len(prefix)-len("blobs/"):], *o.Size); err != nil {
				return err
			}
		}
		if next = page.NextContinuationToken; next == nil {
			return nil
		}
	}
}
