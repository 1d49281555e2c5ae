package s3blob

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/zodb-convert/zodb-convert/source"
)

const (
	// bufferSize is up to which size an object is read once, into memory, and
	// maxBuffers how many of them are there at once.
	bufferSize, maxBuffers = 512 << 10, 32
	// partSize is that of a part, unless there would be more than maxPartCount.
	// Smaller objects are one request.
	partSize, maxPartCount = 8 << 20, 10_000
	// maxParts is how many parts, or objects that are read as they are sent, may
	// be on their way at once, maxPartsOfOne how many parts of one object.
	maxParts, maxPartsOfOne = 16, 8
	// maxTries is how often an upload is begun.
	maxTries = 3
	// digestKey is under which metadata an object's SHA-256 is kept.
	digestKey = "sha256"
	// contentType is what boto3 gives an object that it knows nothing of.
	contentType = "binary/octet-stream"
)

const opUpload = "upload"

// Put uploads a blob and makes sure that the server has got it whole. sent is
// told of bytes that are confirmed, and of less than none when they have to be
// sent again. A *source.BlobError says that the blob cannot
// be read, an *Error that the store does not take it.
func (s *Store) Put(ctx context.Context, key string, b *source.Blob, sent func(n int64)) error {
	if sent == nil {
		sent = func(int64) {}
	}
	file, err := b.Open(ctx)
	if err != nil {
		return err
	}
	defer file.Close()
	u := &upload{Store: s, key: s.FullKey(key), blob: b, file: &blobReader{b, file}, sent: sent}
	if b.Size <= bufferSize {
		return u.buffered(ctx)
	}
	return u.streamed(ctx)
}

// upload is one Put.
type upload struct {
	*Store
	key  string // with the prefix
	blob *source.Blob
	file *blobReader
	sent func(n int64)
}

// buffered is for small objects: they are read once.
func (u *upload) buffered(ctx context.Context) error {
	var buffer []byte
	select {
	case buffer = <-u.buffers:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { u.buffers <- buffer }()
	if buffer == nil {
		buffer = make([]byte, bufferSize)
	}
	data := buffer[:u.blob.Size]
	if _, err := io.ReadFull(u.file.section(0, u.blob.Size), data); err != nil && u.blob.Size > 0 {
		return err
	}
	d := &digest{sha: sha256.Sum256(data), md5: md5.Sum(data)}
	return u.single(ctx, d, func() io.ReadSeeker { return bytes.NewReader(data) })
}

// streamed is for larger ones: they are read once for the digest, and then as
// they are sent.
func (u *upload) streamed(ctx context.Context) error {
	size := partSizeFor(u.blob.Size)
	d, err := u.digest(ctx, size)
	if err != nil {
		return err
	}
	if u.blob.Size <= size {
		if err := u.start(ctx); err != nil {
			return err
		}
		defer u.end()
		return u.single(ctx, d, func() io.ReadSeeker { return u.file.section(0, u.blob.Size) })
	}
	return u.multipart(ctx, d, size)
}

// start waits until one more part may be on its way.
func (s *Store) start(ctx context.Context) error {
	select {
	case s.parts <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) end() { <-s.parts }

// partSizeFor is the size of the parts of an object, in whole MiB.
func partSizeFor(size int64) int64 {
	if size <= partSize*maxPartCount {
		return partSize
	}
	const unit = 1 << 20
	return (size + maxPartCount*unit - 1) / (maxPartCount * unit) * unit
}

// digest is what is known of the bytes before they are sent.
type digest struct {
	sha   [sha256.Size]byte
	md5   [md5.Size]byte // of an object that is one request
	parts [][sha256.Size]byte
}

func (d *digest) hex() string { return hex.EncodeToString(d.sha[:]) }

// digest reads the blob. Hashes of the parts are taken on the way, so that the
// file need not be read a third time.
func (u *upload) digest(ctx context.Context, size int64) (*digest, error) {
	d := &digest{}
	if u.blob.Size <= size {
		sum := md5.New()
		whole, err := hashOf(ctx, u.file.section(0, u.blob.Size), sum)
		sum.Sum(d.md5[:0])
		d.sha = whole
		return d, err
	}
	whole := sha256.New()
	for off := int64(0); off < u.blob.Size; off += size {
		part, err := hashOf(ctx, u.file.section(off, min(size, u.blob.Size-off)), whole)
		if err != nil {
			return nil, err
		}
		d.parts = append(d.parts, part)
	}
	whole.Sum(d.sha[:0])
	return d, nil
}

// hashOf gives the SHA-256 of what r reads; also gets the same bytes.
func hashOf(ctx context.Context, r io.Reader, also hash.Hash) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	buffer := make([]byte, 64<<10)
	for {
		if ctx.Err() != nil {
			return sum, ctx.Err()
		}
		n, err := r.Read(buffer)
		h.Write(buffer[:n])
		if also != nil {
			also.Write(buffer[:n])
		}
		if err == io.EOF {
			h.Sum(sum[:0])
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// single uploads an object with one request.
func (u *upload) single(ctx context.Context, d *digest, open func() io.ReadSeeker) error {
	for try := 1; ; try++ {
		var etag string
		err := u.run(ctx, task{op: opUpload, key: u.key, right: mayPut, do: func(ctx context.Context, w *watch) error {
			return u.send(open(), w, func(body io.Reader) error {
				out, err := u.client.PutObject(ctx, &s3.PutObjectInput{
					Bucket: &u.config.Bucket, Key: &u.key, Body: body, ContentLength: &u.blob.Size,
					ContentType: text(contentType), Metadata: map[string]string{digestKey: d.hex()},
				}, withHash(d.sha))
				if err == nil {
					etag = unquote(out.ETag)
				}
				return err
			})
		}})
		if err != nil {
			return u.orChanged(ctx, err, 0, u.blob.Size, d.sha)
		}
		// What the server has is what was sent if it gives the same MD5. With
		// another kind of ETag it is asked.
		problem := ""
		if etag != hex.EncodeToString(d.md5[:]) {
			if problem, err = u.verify(ctx, d, 0); err != nil {
				return err
			}
		}
		if problem == "" {
			u.sent(u.blob.Size)
			return nil
		}
		if try == maxTries {
			return u.wrong(problem)
		}
	}
}

// send gives a request its body, and afterwards takes it away.
func (u *upload) send(r io.ReadSeeker, w *watch, request func(io.Reader) error) error {
	b := &body{reader: r, watch: w}
	err := request(b)
	if failed := b.letGo(); failed != nil && err != nil {
		return &readError{failed}
	}
	return err
}

// orChanged finds out who is to blame when the server got other bytes: a file
// that has changed since its digest was taken, or the way to the server.
func (u *upload) orChanged(ctx context.Context, err error, off, size int64, want [sha256.Size]byte) error {
	var mine *Error
	if !errors.As(err, &mine) || !isCode(err, "XAmzContentSHA256Mismatch") && !isCode(err, "BadDigest") {
		return err
	}
	now, readErr := hashOf(ctx, u.file.section(off, size), nil)
	if readErr != nil {
		return readErr
	}
	if now != want {
		return u.file.problem("has changed while it was read")
	}
	return err
}

// verify asks the server for the object and compares. parts is 0 for an object
// that was one request. problem is empty or the rest of "the object ...".
func (u *upload) verify(ctx context.Context, d *digest, parts int) (problem string, err error) {
	out, err := u.head(ctx, opUpload, u.key)
	if err != nil {
		return "", err
	}
	switch {
	case out == nil:
		return "is not there after it was written", nil
	case length(out) != u.blob.Size:
		return fmt.Sprintf("has %d bytes instead of %d", length(out), u.blob.Size), nil
	case metadata(out, digestKey) != d.hex():
		return "has another checksum than what was sent", nil
	}
	// The ETag of an object in parts ends with their number, where the store
	// follows Amazon's.
	if _, n, found := strings.Cut(unquote(out.ETag), "-"); found && parts > 0 && n != fmt.Sprint(parts) {
		return fmt.Sprintf("has %s parts instead of %d", n, parts), nil
	}
	return "", nil
}

func (u *upload) wrong(problem string) *Error {
	return &Error{Op: opUpload, Key: u.key, Reason: "the object " + problem,
		Hint: "the store does not keep what it confirms, or something else writes under the same key"}
}

// withHash signs a body with a hash that is known already, and has the server
// check it. The SDK would compute it, or over https leave it out.
func withHash(sum [sha256.Size]byte) func(*s3.Options) {
	text := hex.EncodeToString(sum[:])
	set := middleware.InitializeMiddlewareFunc("PayloadHash", func(
		ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
	) (middleware.InitializeOutput, middleware.Metadata, error) {
		return next.HandleInitialize(v4.SetPayloadHash(ctx, text), in)
	})
	return s3.WithAPIOptions(func(stack *middleware.Stack) error { return stack.Initialize.Add(set, middleware.Before) })
}

func text(s string) *string { return &s }

// unquote gives an ETag without its quotes.
func unquote(etag *string) string {
	if etag == nil {
		return ""
	}
	return strings.Trim(*etag, `"`)
}
