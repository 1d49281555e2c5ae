package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// LargestBytea is the largest blob that a site can read back from a bytea column:
// zodb-pgjsonb selects data and s3_key as text, two hexadecimal digits a byte,
// and PostgreSQL makes no row of a gigabyte. Measured with PostgreSQL 15 and
// psycopg 3, 2^29-7 bytes come back and 2^29-6 do not; a kilobyte is left for
// whatever else a later release selects beside them.
const LargestBytea = 512<<20 - 1<<10

// keepBlobs is for how many blobs a list is kept for the next chunk.
const keepBlobs = 1000

// blobColumns are those of blob_state that COPY writes.
const blobColumns = "(zoid, tid, blob_size, data, s3_key)"

// isBlob tells whether a row is that of a blob's object.
func isBlob(row *jsonb.Row) bool {
	return string(row.Module) == "ZODB.blob" && string(row.Name) == "Blob"
}

// LargestBlob is how many bytes a blob may have: any number if there is S3.
func (d *Destination) LargestBlob() int64 {
	if d.config.S3 != nil {
		return 0
	}
	return LargestBytea
}

// inS3 tells whether a blob of so many bytes goes to S3.
func (d *Destination) inS3(size int64) bool {
	return d.config.S3 != nil && (size >= d.config.BlobThreshold || size > LargestBytea)
}

// options completes the options of a run by what this destination adds to them.
func (d *Destination) options(o dest.Options) dest.Options {
	o.PreserveSharing = d.config.PreserveSharing
	o.Bucket, o.Prefix, o.BlobThreshold = "", "", 0
	if d.config.S3 != nil {
		o.Bucket, o.Prefix, o.BlobThreshold = d.config.S3.Bucket(), d.config.S3.Prefix(), d.config.BlobThreshold
	}
	return o
}

// checkBlobs refuses blobs that cannot be written, before the load.
func (d *Destination) checkBlobs(info *source.Info) error {
	if info.Blobs > 0 && info.BlobDir == "" {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s has %s, and it is not said where their files are; the first oids are %s", info.Identity.Name,
				count(info.Blobs, "blob record"), list(info.BlobOIDs, func(i int) string { return info.BlobOIDs[i].String() }, int64(len(info.BlobOIDs)))),
			Hint: "name the blob directory: blob-dir in [source]",
		}
	}
	if d.config.S3 != nil {
		return nil
	}
	var large []source.LargeBlob
	for _, b := range info.LargeBlobs {
		if b.Size > LargestBytea && (b.Current || d.config.HistoryPreserving) {
			large = append(large, b)
		}
	}
	if len(large) == 0 {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s has %s of more than %d bytes, which zodb-pgjsonb could write to PostgreSQL and not read back: %s",
			info.Identity.Name, count(int64(len(large)), "blob"), LargestBytea, list(large, func(i int) string {
				where := ""
				if large[i].Path != "" {
					where = ", " + large[i].Path
				}
				return fmt.Sprintf("oid %v, tid %v (%d bytes%s)", large[i].OID, large[i].TID, large[i].Size, where)
			}, int64(len(large)))),
		Hint: "name a bucket for large blobs: s3-bucket-name in [destination]",
	}
}

// list writes the first of total entries out.
func list[T any](entries []T, entry func(i int) string, total int64) string {
	var all []string
	for i := range entries[:min(len(entries), dest.ListMax)] {
		all = append(all, entry(i))
	}
	if more := total - int64(len(all)); more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(all, ", ")
}

// chunkBlob is a blob of a chunk whose bytes were found.
type chunkBlob struct {
	index int // of its record
	*source.Blob
	key string // in S3; empty if the bytes go into the row
	// path is the file that an upload is to take; empty if there is none yet.
	path string
}

// missingBlob is one whose bytes were not.
type missingBlob struct {
	index int
	*source.BlobError
}

// blobRows are the blobs of a chunk.
type blobRows struct {
	// found and missing are those of the records that got a row; records are
	// their indexes.
	records []int
	found   []chunkBlob
	missing []missingBlob
	// current is the one whose row is being sent.
	current int
	told    int64 // bytes that were told of in the attempt

	// What is kept over the attempts of one chunk: blobs that turned out to be
	// unreadable, and those that are in S3 already.
	unreadable map[int]*source.BlobError
	uploaded   map[int]int64 // with their sizes
	staged     map[int]staged
}

// start forgets the chunk before.
func (b *blobRows) start() {
	b.unreadable, b.uploaded, b.staged = map[int]*source.BlobError{}, map[int]int64{}, map[int]staged{}
	b.told = 0
	b.reset()
}

// stop gives back what the list of a chunk of very many blobs took.
func (b *blobRows) stop() {
	b.reset()
	if cap(b.found) > keepBlobs {
		b.records, b.found, b.missing = nil, nil, nil
	}
	b.unreadable, b.uploaded, b.staged = nil, nil, nil
}

// reset forgets what an earlier attempt has found.
func (b *blobRows) reset() {
	b.current = 0
	clear(b.found)
	b.records, b.found, b.missing = b.records[:0], b.found[:0], b.missing[:0]
}

// findBlobs looks for the bytes of the blobs whose records got a row, and
// decides where they go.
func (r *recordRows) findBlobs(ctx context.Context, d *Destination) error {
	b := &r.blobs
	b.found, b.missing = b.found[:0], b.missing[:0]
	for _, index := range b.records {
		bad := b.unreadable[index]
		if bad == nil {
			record := &r.chunk.Records[index]
			blob, err := r.src.Blob(ctx, record)
			if err == nil && !d.inS3(blob.Size) && blob.Size > LargestBytea {
				// CheckSource refuses those that it sees. This one has come since, or a
				// later part of a catch-up replaces it.
				err = &source.BlobError{OID: record.OID, TID: record.TID, Path: blob.Place(),
					Problem: fmt.Sprintf("has %d bytes, of which a site reads %d at most back from PostgreSQL", blob.Size, int64(LargestBytea))}
			}
			switch {
			case err == nil:
				one := chunkBlob{index: index, Blob: blob, path: blob.Path}
				if d.inS3(blob.Size) {
					one.key = s3blob.Key(record.OID, record.TID)
				}
				b.found = append(b.found, one)
				continue
			case !errors.As(err, &bad):
				return elsewhere(fmt.Errorf("look for blob oid %v, tid %v: %w", record.OID, record.TID, err))
			}
		}
		b.missing = append(b.missing, missingBlob{index, bad})
	}
	return nil
}

// gone counts the missing blobs whose records the source does not have any more.
func (b *blobRows) gone() (n int64) {
	for i := range b.missing {
		if b.missing[i].Gone {
			n++
		}
	}
	return n
}

// countBlobs adds the blobs to the result.
func (r *recordRows) countBlobs() {
	for i := range r.blobs.found {
		switch one := &r.blobs.found[i]; one.key {
		case "":
			r.result.Blobs++
			r.result.BlobBytes += one.Size
		default:
			r.result.S3Blobs++
			r.result.S3Bytes += one.Size
		}
	}
	r.result.MissingBlobs += int64(len(r.blobs.missing))
}

// uploadBlobs uploads the blobs of a chunk that go to S3. Those that cannot be
// read become missing ones. What this process has uploaded for the chunk in an
// earlier attempt is not uploaded again.
func (r *recordRows) uploadBlobs(ctx context.Context, s *session) error {
	for {
		unreadable, err := r.uploadFound(ctx, s)
		if err != nil || !unreadable {
			return err
		}
		// Looking again may find what could not be found before, too: that is to
		// be uploaded as well.
		if err := r.findBlobs(ctx, s.dest); err != nil {
			return err
		}
	}
}

// isUploaded tells whether the blob is in S3, with as many bytes as it has now.
func (b *blobRows) isUploaded(one *chunkBlob) bool {
	size, ok := b.uploaded[one.index]
	return ok && size == one.Size
}

// uploadFound uploads the blobs that were found. unreadable tells that some
// cannot be read.
func (r *recordRows) uploadFound(ctx context.Context, s *session) (unreadable bool, err error) {
	group, groupCtx := errgroup.WithContext(ctx)
	outcomes := make([]upload, len(r.blobs.found)) // each written by its own goroutine
	for i := range r.blobs.found {
		one := &r.blobs.found[i]
		if one.key == "" || r.blobs.isUploaded(one) {
			continue
		}
		if err := s.transfers.Acquire(groupCtx, 1); err != nil {
			break // Wait tells why
		}
		group.Go(func() error {
			defer s.transfers.Release(1)
			err := s.put(groupCtx, one.key, one.Blob, s.plan.BlobBytes)
			outcomes[i].done = err == nil
			if errors.As(err, &outcomes[i].bad) {
				return nil
			}
			return elsewhere(err)
		})
	}
	err = group.Wait()
	for i, one := range r.blobs.found {
		if outcomes[i].done {
			r.blobs.uploaded[one.index] = one.Size
		}
		if bad := outcomes[i].bad; bad != nil {
			r.blobs.unreadable[one.index], unreadable = bad, true
		}
	}
	if err == nil {
		err = ctx.Err()
	}
	return unreadable, err
}

// upload is what became of one upload.
type upload struct {
	done bool
	bad  *source.BlobError // it cannot be read
}

// copyBlobs writes the rows of the chunk's blobs: those of blob_state, those of
// uploads that are owed, and those of missing blobs.
func (r *recordRows) copyBlobs(ctx context.Context, s *session, conn *pgx.Conn) error {
	b := &r.blobs
	if len(b.records) == 0 {
		return nil
	}
	if err := r.findBlobs(ctx, s.dest); err != nil {
		return err
	}
	if s.plan.Blobs == dest.Inline {
		if err := r.uploadBlobs(ctx, s); err != nil {
			return err
		}
	}
	if s.plan.Blobs == dest.Deferred {
		if err := r.stageBlobs(ctx, s); err != nil {
			return err
		}
	}
	r.countBlobs()
	for _, one := range b.found {
		s.remark(one.Blob)
	}
	if len(b.found) > 0 {
		sql := "COPY " + s.layout.name(blobState) + " " + blobColumns + " FROM STDIN (FORMAT binary)"
		if err := r.copyFiles(ctx, conn, sql, r.blobState(ctx, s.plan.BlobBytes)); err != nil {
			return err
		}
		fault.Point("blob.copied")
	}
	if s.plan.Blobs != dest.Inline && r.result.S3Blobs > 0 {
		if err := r.copy(ctx, conn, "COPY "+s.tables.Owed+" "+watermark.OwedColumns+" FROM STDIN (FORMAT binary)", r.owed()); err != nil {
			return err
		}
		fault.Point("blob.owed")
	}
	if len(b.missing) > 0 {
		if err := r.copy(ctx, conn, "COPY "+s.tables.Missing+" "+watermark.MissingColumns+" FROM STDIN (FORMAT binary)", r.missingBlobs()); err != nil {
			return err
		}
		fault.Point("blob.missing")
	}
	return nil
}

// blobState gives the rows of blob_state. The bytes of a blob are read from its
// file while the connection takes them.
func (r *recordRows) blobState(ctx context.Context, told func(int64)) func() error {
	b := &r.blobs
	i := 0
	return func() error {
		if i == len(b.found) {
			return io.EOF
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		one := &b.found[i]
		b.current = i
		i++
		record := &r.chunk.Records[one.index]
		head := appendInt16(r.stream.head, 5)
		head = appendBigint(head, int64(record.OID))
		head = appendBigint(head, int64(record.TID))
		head = appendBigint(head, one.Size)
		if one.key != "" {
			r.stream.head = appendText(appendNull(head), one.key)
			r.stream.emit(nil)
			return nil
		}
		reader, err := one.Open(ctx)
		if err != nil {
			return fmt.Errorf("open blob oid %v, tid %v: %w", record.OID, record.TID, err)
		}
		r.stream.head = appendInt32(head, int32(one.Size))
		r.stream.tail = appendNull(r.stream.tail)
		r.stream.emitBlob(&blobBody{blob: one.Blob, reader: reader, told: func(n int64) {
			b.told += n
			told(n)
		}})
		return nil
	}
}

// takeBack tells that what an attempt has told of is not written after all.
func (b *blobRows) takeBack(told func(int64)) {
	if b.told != 0 {
		told(-b.told)
		b.told = 0
	}
}

// unreadableBlob tells whether an attempt failed because the file of a blob
// cannot be read to its end. If so, that blob is marked, and so are those behind
// it that cannot be read either, lest the chunk be repeated for each.
func (r *recordRows) unreadableBlob(ctx context.Context, err error) (bool, error) {
	var bad *source.BlobError
	if !errors.As(err, &bad) || r.blobs.current >= len(r.blobs.found) {
		return false, nil
	}
	at := r.blobs.current
	r.blobs.unreadable[r.blobs.found[at].index] = bad
	buffer := make([]byte, 256<<10)
	for _, one := range r.blobs.found[at+1:] {
		if one.key != "" {
			continue
		}
		err := readThrough(ctx, one.Blob, buffer)
		if errors.As(err, &bad) {
			r.blobs.unreadable[one.index] = bad
		} else if err != nil {
			return false, elsewhere(err)
		}
	}
	return true, nil
}

// readThrough reads a blob to its end.
func readThrough(ctx context.Context, blob *source.Blob, buffer []byte) error {
	reader, err := blob.Open(ctx)
	if err != nil {
		return err
	}
	body := blobBody{blob: blob, reader: reader, told: func(int64) {}}
	defer body.close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := body.read(buffer); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// owed gives the rows of uploads that are owed.
func (r *recordRows) owed() func() error {
	i := 0
	return func() error {
		for i < len(r.blobs.found) {
			one := &r.blobs.found[i]
			i++
			if one.key == "" {
				continue
			}
			record := &r.chunk.Records[one.index]
			b := appendInt16(r.stream.head, 6)
			b = appendBigint(b, int64(record.OID))
			b = appendBigint(b, int64(record.TID))
			b = appendBigint(b, record.Pos)
			b = appendBigint(b, one.Size)
			b = appendText(b, one.path)
			r.stream.head = appendText(b, one.key)
			r.stream.emit(nil)
			return nil
		}
		return io.EOF
	}
}

// missingBlobs gives the rows of the table of missing blobs.
func (r *recordRows) missingBlobs() func() error {
	i := 0
	return func() error {
		if i == len(r.blobs.missing) {
			return io.EOF
		}
		one := r.blobs.missing[i]
		i++
		record := &r.chunk.Records[one.index]
		b := appendInt16(r.stream.head, 5)
		b = appendBigint(b, record.Pos)
		b = appendBigint(b, int64(record.OID))
		b = appendBigint(b, int64(record.TID))
		b = r.appendLine(b, one.Path)
		r.stream.head = r.appendLine(b, one.Problem)
		r.stream.emit(nil)
		return nil
	}
}

// remark tells of a blob that was not where it should be, of the first ones.
func (s *session) remark(b *source.Blob) {
	if b.Note == "" {
		return
	}
	if n := s.remarks.Add(1); n <= dest.ListMax {
		s.tell(fmt.Sprintf("blob oid %v, tid %v: %s", b.OID, b.TID, b.Note))
	}
}
