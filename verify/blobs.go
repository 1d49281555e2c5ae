package verify

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// blobPair is a blob of the source and its row.
type blobPair struct {
	rec  *source.Record
	row  dest.BlobRow
	rows int
}

// storeRequests is how many objects in S3 a worker asks for at once: requests
// wait for the network more than they compute.
const storeRequests = 8

// compareBlobs compares the blobs of a batch of records.
func (w *worker) compareBlobs(ctx context.Context) error {
	if len(w.blobs) == 0 {
		return nil
	}
	w.keys = w.keys[:0]
	for i := range w.blobs {
		w.keys = append(w.keys, source.Key{OID: w.blobs[i].rec.OID, TID: w.blobs[i].rec.TID})
	}
	err := w.reader.Blobs(ctx, w.keys, func(i int, row *dest.BlobRow) error {
		b := &w.blobs[i]
		w.run.blobs.add(uint64(row.Key.OID), row.Key.TID)
		if b.rows++; b.rows > 1 {
			return w.tally.differ(w.blobDifference(DuplicateRow, b.rec, Difference{Path: "blob_state", Reason: "it has several rows"}))
		}
		b.row = *row
		return nil
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(storeRequests)
	for i := range w.blobs {
		b := &w.blobs[i]
		if b.row.S3Key == "" {
			if err := w.compareBlob(ctx, b); err != nil {
				return errors.Join(err, group.Wait())
			}
			continue
		}
		group.Go(func() error { return w.compareBlob(ctx, b) })
	}
	return group.Wait()
}

func (w *worker) blobDifference(kind string, rec *source.Record, d Difference) Difference {
	d.Class = "ZODB.blob.Blob"
	return w.difference(kind, rec, nil, d)
}

// compareBlob compares a blob with its row and what that leads to.
func (w *worker) compareBlob(ctx context.Context, b *blobPair) error {
	blob, err := w.src.Blob(ctx, b.rec)
	var lost *source.BlobError
	switch {
	case errors.As(err, &lost):
		return w.sourceLost(b, lost)
	case err != nil:
		return err
	case b.rows == 0:
		// One that cannot be read is missing in the source, too.
		if _, err := hashBlob(ctx, blob, false); errors.As(err, &lost) {
			return w.sourceLost(b, lost)
		} else if err != nil {
			return err
		}
		return w.tally.differ(w.blobDifference(MissingBlob, b.rec, Difference{Source: size(blob.Size)}))
	case b.row.Size != blob.Size:
		return w.tally.differ(w.blobDifference(OtherBlob, b.rec, Difference{Path: "blob_size", Source: size(blob.Size), Destination: size(b.row.Size)}))
	case !b.row.InRow && b.row.S3Key == "":
		return w.tally.differ(w.blobDifference(MissingBlob, b.rec, Difference{Source: size(blob.Size), Reason: "its row holds neither bytes nor a key in S3"}))
	}
	here, err := hashBlob(ctx, blob, b.row.S3Key != "" && !w.opts.Download)
	if errors.As(err, &lost) {
		return w.sourceLost(b, lost)
	}
	if err != nil {
		return err
	}
	if b.row.InRow {
		if b.row.Length != blob.Size || b.row.SHA256 != here.sha256 {
			return w.tally.differ(w.otherBytes(b.rec, "data", blob.Size, here, b.row.Length, hex.EncodeToString(b.row.SHA256[:])))
		}
		if b.row.S3Key == "" {
			w.tally.count(func(r *Result) { r.Blobs++; r.BlobBytes += blob.Size })
			return nil
		}
	}
	return w.compareObject(ctx, b, blob.Size, here)
}

// sourceLost is a blob that the source does not have: a conversion that accepts
// that leaves its row out. A row that is there cannot be compared.
func (w *worker) sourceLost(b *blobPair, lost *source.BlobError) error {
	d := w.blobDifference(SourceBlobLost, b.rec, Difference{Reason: lost.Error()})
	if b.rows == 0 {
		return w.tally.declare(d)
	}
	d.Kind, d.Path, d.Destination = NotCompared, "blob_state", size(b.row.Size)
	return w.tally.differ(d)
}

func size(n int64) string { return fmt.Sprintf("%d bytes", n) }

func (w *worker) otherBytes(rec *source.Record, path string, here int64, sum *sums, there int64, digest string) Difference {
	return w.blobDifference(OtherBlob, rec, Difference{Path: path,
		Source: fmt.Sprintf("%d bytes, SHA-256 %x", here, sum.sha256), Destination: fmt.Sprintf("%d bytes, SHA-256 %s", there, digest)})
}

// compareObject compares a blob with its object in S3.
func (w *worker) compareObject(ctx context.Context, b *blobPair, length int64, here *sums) error {
	store := w.content.Objects()
	key := b.row.S3Key
	if store == nil {
		return &dest.RefusedError{Reason: fmt.Sprintf("blob oid %v, tid %v is in S3, and no bucket is named", b.rec.OID, b.rec.TID),
			Hint: "name it: s3-bucket-name in [destination]"}
	}
	if want := objectKey(b.rec.OID, b.rec.TID); key != want {
		return w.tally.differ(w.blobDifference(OtherBlob, b.rec, Difference{Path: "s3_key", Source: want, Destination: key}))
	}
	if !w.opts.Download {
		o, err := store.Look(ctx, key)
		switch {
		case err != nil:
			return err
		case o == nil:
			return w.tally.differ(w.missingObject(b, key, length))
		case o.Size != length:
			return w.tally.differ(w.blobDifference(OtherBlob, b.rec, Difference{Path: key, Source: size(length), Destination: size(o.Size)}))
		case o.SHA256 != "" && o.SHA256 != hex.EncodeToString(here.sha256[:]):
			return w.tally.differ(w.otherBytes(b.rec, key, length, here, o.Size, o.SHA256))
		case here.vouched(o, length):
			w.tally.count(func(r *Result) { r.Blobs++; r.StoreChecked++; r.BlobBytes += length })
			return nil
		}
	}
	// The store does not tell enough, or was not asked.
	there, sum, err := store.Hash(ctx, key, func(int64) {})
	switch {
	case err != nil:
		return err
	case there < 0:
		return w.tally.differ(w.missingObject(b, key, length))
	case there != length || sum != here.sha256:
		return w.tally.differ(w.otherBytes(b.rec, key, length, here, there, hex.EncodeToString(sum[:])))
	}
	w.tally.count(func(r *Result) { r.Blobs++; r.Downloaded++; r.BlobBytes += length })
	return nil
}

func (w *worker) missingObject(b *blobPair, key string, length int64) Difference {
	return w.blobDifference(MissingBlob, b.rec, Difference{Path: key, Source: size(length), Reason: w.content.Objects().Name() + " has no such object"})
}

// objectKey is where zodb-pgjsonb keeps a blob.
func objectKey(oid zodb.OID, tid zodb.TID) string {
	return fmt.Sprintf("blobs/%016x/%016x.blob", uint64(oid), uint64(tid))
}

// partSize is that of the uploads of this program and of the Python tool.
const partSize = 8 << 20

// sums are the digests of a blob.
type sums struct {
	sha256 [sha256.Size]byte
	md5    [md5.Size]byte
	parts  []byte // the MD5 of each part
}

// vouched tells whether the store's own word on an object is enough: its MD5, of
// the whole or of parts of the usual size, or the SHA-256 that was recorded by
// whoever uploaded it in parts of which nothing is known.
func (s *sums) vouched(o *dest.Object, length int64) bool {
	if o.Parts == 0 {
		return o.MD5 == hex.EncodeToString(s.md5[:])
	}
	whole := md5.Sum(s.parts)
	if o.MD5 == hex.EncodeToString(whole[:]) && o.Parts == len(s.parts)/md5.Size {
		return true
	}
	usual := (length + partSize - 1) / partSize
	return o.SHA256 != "" && int64(o.Parts) != usual
}

// hashBlob reads a blob of the source. The digests by which stores vouch for an
// object are made if forStore says so.
func hashBlob(ctx context.Context, blob *source.Blob, forStore bool) (*sums, error) {
	in, err := blob.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out := new(sums)
	all, plain, part := sha256.New(), md5.New(), md5.New()
	hashes := []hash.Hash{all}
	if forStore {
		hashes = append(hashes, plain, part)
	}
	buffer := make([]byte, 256<<10)
	for at := int64(0); at < blob.Size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(int64(len(buffer)), blob.Size-at)
		if rest := partSize - at%partSize; n > rest {
			n = rest
		}
		k, err := in.ReadAt(buffer[:n], at)
		if int64(k) < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = &source.BlobError{OID: blob.OID, TID: blob.TID, Path: blob.Place(), Problem: fmt.Sprintf("ends after %d of %d bytes", at+int64(k), blob.Size)}
			}
			return nil, err
		}
		for _, h := range hashes {
			h.Write(buffer[:k])
		}
		if at += n; at%partSize == 0 || at == blob.Size {
			out.parts = part.Sum(out.parts)
			part.Reset()
		}
	}
	all.Sum(out.sha256[:0])
	plain.Sum(out.md5[:0])
	return out, nil
}

// maxOtherKeys bounds how many keys are kept that are not as they should be. Where
// there are more, each of them is a difference already.
const maxOtherKeys = 100_000

// listObjects looks for objects in S3 that no row names. Those that rows name and
// that are missing were found with their blobs.
func (r *run) listObjects(ctx context.Context) error {
	store := r.content.Objects()
	if store == nil || r.opts.Percent > 0 && r.opts.Percent < 100 || r.opts.Since > 0 {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	named := make(chan string, 1000)
	group.Go(func() error {
		defer close(named)
		return r.content.Blobs(ctx, func(b *dest.BlobRow) error {
			if b.S3Key == "" || r.otherKeys[b.S3Key] {
				return nil
			}
			select {
			case named <- b.S3Key:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	group.Go(func() error {
		next, some := <-named
		err := store.List(ctx, func(key string, length int64) error {
			// Rows and objects come in the same order: hexadecimal digits of a fixed
			// number sort like what they stand for.
			for some && next < key {
				next, some = <-named
			}
			if some && next == key || r.otherKeys[key] {
				return nil
			}
			return r.tally.declare(Difference{Kind: OrphanObject, Path: key, Destination: size(length), Reason: "no row of blob_state names this object"})
		})
		if refused := (*dest.RefusedError)(nil); errors.As(err, &refused) {
			r.result.Notes = append(r.result.Notes, "objects in S3 that no row names were not looked for: "+refused.Error())
			err = nil
		}
		for err == nil && some { // missing objects were found with their blobs
			_, some = <-named
		}
		return err
	})
	return group.Wait()
}
