package s3blob

import (
	"context"
	"errors"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Answer is whether the credentials allow something.
type Answer int

// Answers.
const (
	Unknown Answer = iota // it cannot be told without writing
	Yes
	No
)

// Access is what the credentials allow, as far as it can be seen without writing.
type Access struct {
	List, Read Answer
}

// Access asks for one key of a blob and looks at that object, or at the one that
// key names, and writes nothing. The error is why the bucket cannot be used at all.
func (s *Store) Access(ctx context.Context, key string) (a Access, _ error) {
	wait := min(probeWait, s.config.Wait)
	prefix, one := s.FullKey("blobs/"), int32(1)
	var page *s3.ListObjectsV2Output
	err := s.run(ctx, task{op: "list " + s.Name(), right: mayList, wait: wait, do: func(ctx context.Context, _ *watch) (err error) {
		page, err = s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.config.Bucket, Prefix: &prefix, MaxKeys: &one})
		return err
	}})
	switch {
	case err == nil:
		a.List = Yes
	case mayList.refused(err):
		a.List = No
	default:
		return a, err
	}
	full := s.FullKey(key)
	if a.List == Yes && len(page.Contents) > 0 && page.Contents[0].Key != nil {
		full = *page.Contents[0].Key
	}
	out, err := s.headWithin(ctx, opLook, full, full, wait)
	switch {
	case err == nil && (out != nil || a.List == Yes):
		a.Read = Yes
		s.headed.Store(true)
	case err == nil:
		// No such object, or no such bucket: HEAD does not tell which.
	case mayHead.refused(err) && a.List == Yes:
		a.Read = No
	case mayHead.refused(err):
		// Without the right to list a bucket Amazon answers so when there is no such
		// object.
	default:
		return a, err
	}
	return a, nil
}

// refused tells whether the server has answered that the credentials lack the
// right, and not that they are wrong.
func (r right) refused(err error) bool {
	var mine *Error
	return isStatus(err, http.StatusForbidden) && errors.As(err, &mine) && mine.Reason == "the credentials may not "+r.what
}
