package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/blobdir"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// leastTransfers is how many uploads are done at once if fewer workers do
	// not say more: most of an upload is waiting.
	leastTransfers = 8
	// owedBatch is how many owed uploads are read, and noted as done, at once.
	owedBatch = 256
	// noteEvery is how long a confirmed upload waits for others, so that they
	// are noted together.
	noteEvery = 250 * time.Millisecond
	// lookEvery is how often the table of owed uploads is looked at when nobody
	// has told of new ones.
	lookEvery = time.Second
)

// put uploads a blob. On a continued run it may be there already.
func (s *session) put(ctx context.Context, key string, b *source.Blob, told func(int64)) error {
	fault.Point("blob.upload")
	if s.record.Generation > 1 {
		has, err := s.dest.config.S3.Has(ctx, key, b)
		if err != nil {
			return err
		}
		if has {
			told(b.Size)
			return nil
		}
	}
	var sent atomic.Int64
	err := s.dest.config.S3.Put(ctx, key, b, func(n int64) {
		sent.Add(n)
		told(n)
	})
	if err != nil {
		told(-sent.Load())
		return err
	}
	fault.Point("blob.uploaded")
	return nil
}

// blobID names a blob.
type blobID struct {
	oid zodb.OID
	tid zodb.TID
}

func idOf(o *watermark.Owed) blobID { return blobID{o.OID, o.TID} }

// uploader does in the background what the table of owed uploads holds. It
// begins with the session and ends when it is told to drain the table, when the
// store fails, or with the session.
type uploader struct {
	s      *session
	cancel context.CancelFunc
	wake   chan struct{} // rows were added
	drain  chan struct{} // closed: no more will be
	once   sync.Once
	ended  chan struct{} // closed: err is final
	err    error

	// sent counts bytes, done uploads that are settled.
	sent, done atomic.Int64

	conn *pgx.Conn
	// known are the uploads that were taken from the table and are not yet
	// settled there.
	known   map[blobID]bool
	queue   []*watermark.Owed
	settled []outcome
	more    bool // the table may hold uploads that are not known
	flying  int
}

// outcome is what became of an upload.
type outcome struct {
	*watermark.Owed
	err error
}

// startUploads starts the uploader unless it runs or has nothing to do.
func (s *session) startUploads(ctx context.Context) error {
	if s.plan.Blobs == dest.Deferred || s.dest.config.S3 == nil {
		return nil
	}
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	if s.uploads != nil {
		return nil
	}
	if s.plan.Blobs != dest.Background {
		var owed int64
		err := s.withControl(ctx, func(conn *pgx.Conn) error {
			c, err := s.tables.CountBlobs(ctx, conn)
			owed = c.Owed
			return err
		})
		if err != nil || owed == 0 {
			return err
		}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	u := &uploader{
		s: s, cancel: cancel, more: true, known: map[blobID]bool{},
		wake: make(chan struct{}, 1), drain: make(chan struct{}), ended: make(chan struct{}),
	}
	s.uploads = u
	go func() {
		defer close(u.ended)
		u.err = u.run(ctx)
	}()
	return nil
}

// stopUploads ends the uploader and waits for it.
func (s *session) stopUploads() {
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	if u := s.uploads; u != nil {
		u.cancel()
		<-u.ended
	}
}

// tellUploads says that there are new rows.
func (s *session) tellUploads() {
	s.uploadsMu.Lock()
	u := s.uploads
	s.uploadsMu.Unlock()
	if u == nil {
		return
	}
	select {
	case u.wake <- struct{}{}:
	default: // it knows
	}
}

// uploadsFailed is why uploads in the background cannot go on, or nil.
func (s *session) uploadsFailed() error {
	s.uploadsMu.Lock()
	u := s.uploads
	s.uploadsMu.Unlock()
	if u == nil {
		return nil
	}
	select {
	case <-u.ended:
		return u.err
	default:
		return nil
	}
}

// run shares the owed uploads out until there are none and none will come.
func (u *uploader) run(ctx context.Context) error {
	defer func() { closeQuietly(u.conn) }()
	if err := u.retry(ctx, u.forgive); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *watermark.Owed)
	results := make(chan outcome, u.s.parallel)
	for range u.s.parallel {
		group.Go(func() error { return u.work(ctx, jobs, results) })
	}
	group.Go(func() error {
		defer close(jobs)
		return u.share(ctx, jobs, results)
	})
	err := group.Wait()
	if whole := (*s3blob.Error)(nil); errors.As(err, &whole) {
		return fmt.Errorf("upload blobs: %w; when that is mended go on with --incremental", err)
	}
	return err
}

// work does uploads. It returns an error if the whole store, or the run, fails.
func (u *uploader) work(ctx context.Context, jobs <-chan *watermark.Owed, results chan<- outcome) error {
	for o := range jobs {
		err := u.s.transfers.Acquire(ctx, 1)
		if err != nil {
			return err
		}
		err = u.upload(ctx, o)
		u.s.transfers.Release(1)
		if store := (*s3blob.Error)(nil); errors.As(err, &store) && store.Whole || ctx.Err() != nil {
			return err
		}
		select {
		case results <- outcome{o, err}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// upload uploads the blob of a row.
func (u *uploader) upload(ctx context.Context, o *watermark.Owed) error {
	b, err := u.s.owedBlob(ctx, o)
	if err != nil {
		return err
	}
	return u.s.put(ctx, o.Key, b, func(n int64) {
		u.sent.Add(n)
		u.s.plan.BlobBytes(n)
	})
}

// share gives the uploads out and notes what became of them.
func (u *uploader) share(ctx context.Context, jobs chan<- *watermark.Owed, results <-chan outcome) error {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	looked := time.Now()
	draining := u.drain
	ending := false
	for {
		if u.more && len(u.queue) == 0 {
			if err := u.retry(ctx, u.take); err != nil {
				return err
			}
			looked = time.Now()
		}
		if len(u.queue) == 0 && u.flying == 0 {
			if err := u.retry(ctx, u.settle); err != nil {
				return err
			}
			if ending && !u.more {
				return nil
			}
		}
		var out chan<- *watermark.Owed
		var next *watermark.Owed
		if len(u.queue) > 0 {
			out, next = jobs, u.queue[0]
		}
		select {
		case out <- next:
			u.queue = u.queue[1:]
			u.flying++
		case o := <-results:
			u.flying--
			u.settled = append(u.settled, o)
		case <-u.wake:
			u.more = true
		case <-draining:
			draining, ending, u.more = nil, true, true
		case <-tick.C:
			u.more = u.more || time.Since(looked) > lookEvery
			if err := u.retry(ctx, u.settle); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if len(u.settled) >= owedBatch {
			if err := u.retry(ctx, u.settle); err != nil {
				return err
			}
		}
	}
}

// retry runs fn, again if the connection was lost. fn may run twice.
func (u *uploader) retry(ctx context.Context, fn func(context.Context) error) error {
	for again := false; ; again = true {
		if u.conn == nil || u.conn.IsClosed() {
			conn, err := u.s.dest.connect.reopen(ctx, u.s.application("blobs"), u.s.dest.config.Wait)
			if err != nil {
				return u.s.dest.plain(err)
			}
			u.conn = conn
		}
		err := fn(ctx)
		if err == nil || again || ctx.Err() != nil || !lost(err) && !u.conn.IsClosed() {
			return u.s.fenced(err)
		}
		closeQuietly(u.conn)
	}
}

// fencedTx runs fn in a transaction of a connection that writes only as long as
// the run is this session's.
func (s *session) fencedTx(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, s.tables.Fence(s.record, "")); err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// forgive lets uploads that have failed be tried again.
func (u *uploader) forgive(ctx context.Context) error {
	return u.s.fencedTx(ctx, u.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE `+u.s.tables.Owed+` SET failed = NULL WHERE failed IS NOT NULL`)
		if err != nil {
			return fmt.Errorf("read which uploads are owed: %w", err)
		}
		return nil
	})
}

// take reads the next uploads. Those that are known stand among the first rows.
func (u *uploader) take(ctx context.Context) error {
	limit := owedBatch + len(u.known)
	rows, fresh := 0, []*watermark.Owed(nil)
	err := u.s.tables.OwedUploads(ctx, u.conn, "failed IS NULL", limit, func(o *watermark.Owed) error {
		rows++
		if !u.known[idOf(o)] {
			fresh = append(fresh, o)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range fresh {
		u.known[idOf(o)] = true
	}
	u.queue = append(u.queue, fresh...)
	u.more = rows == limit
	return nil
}

// settle notes what became of uploads: those that are done are not owed any
// more.
func (u *uploader) settle(ctx context.Context) error {
	if len(u.settled) == 0 {
		return nil
	}
	fault.Point("blob.confirmed")
	var failed []outcome
	var oids, tids, allOIDs, allTIDs []int64
	for _, o := range u.settled {
		allOIDs, allTIDs = append(allOIDs, int64(o.OID)), append(allTIDs, int64(o.TID))
		if o.err != nil {
			failed = append(failed, o)
			continue
		}
		oids, tids = append(oids, int64(o.OID)), append(tids, int64(o.TID))
	}
	err := u.s.fencedTx(ctx, u.conn, func(tx pgx.Tx) error {
		// In the order in which a catch-up locks them.
		if _, err := tx.Exec(ctx, `SELECT count(*) FROM (SELECT FROM `+u.s.tables.Owed+` WHERE (oid, tid) IN (SELECT * FROM unnest($1::int8[], $2::int8[]))
			ORDER BY oid, tid FOR UPDATE) locked`, allOIDs, allTIDs); err != nil {
			return fmt.Errorf("note what is uploaded: %w", err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM `+u.s.tables.Owed+` o USING unnest($1::int8[], $2::int8[]) d (oid, tid)
			WHERE o.oid = d.oid AND o.tid = d.tid`, oids, tids); err != nil {
			return fmt.Errorf("note what is uploaded: %w", err)
		}
		for _, o := range failed {
			if err := u.s.noteFailed(ctx, tx, o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fault.Point("blob.settled")
	for _, o := range u.settled {
		delete(u.known, idOf(o.Owed))
	}
	u.done.Add(int64(len(u.settled)))
	u.settled = u.settled[:0]
	return nil
}

// noteFailed notes an upload that cannot be done. Where missing blobs are
// accepted and the file is gone, the blob is a missing one from now on.
func (s *session) noteFailed(ctx context.Context, tx pgx.Tx, o outcome) error {
	var bad *source.BlobError
	if !errors.As(o.err, &bad) || !s.plan.AcceptMissingBlobs {
		reason, _ := dest.AppendEscaped(nil, []byte(sentence(o.err.Error())))
		_, err := tx.Exec(ctx, `UPDATE `+s.tables.Owed+` SET failed = $3::text WHERE oid = $1::int8 AND tid = $2::int8`,
			int64(o.OID), int64(o.TID), string(reason))
		if err != nil {
			return fmt.Errorf("note what cannot be uploaded: %w", err)
		}
		return nil
	}
	correction, err := s.tables.CorrectionSQL(&dest.Result{S3Blobs: -1, S3Bytes: -o.Size, MissingBlobs: 1})
	if err != nil {
		return err
	}
	path, _ := dest.AppendEscaped(nil, []byte(bad.Path))
	problem, _ := dest.AppendEscaped(nil, []byte(bad.Problem))
	tag, err := tx.Exec(ctx, `DELETE FROM `+s.tables.Owed+` WHERE oid = $1::int8 AND tid = $2::int8`, int64(o.OID), int64(o.TID))
	if err == nil && tag.RowsAffected() == 0 {
		return nil // a newer transaction has replaced it
	}
	if err == nil {
		_, err = tx.Exec(ctx, `DELETE FROM `+s.layout.name(blobState)+` WHERE zoid = $1::int8 AND tid = $2::int8`, int64(o.OID), int64(o.TID))
	}
	if err == nil {
		_, err = tx.Exec(ctx, `INSERT INTO `+s.tables.Missing+` `+watermark.MissingColumns+` VALUES ($1::int8, $2::int8, $3::int8, $4::text, $5::text)`,
			o.Pos, int64(o.OID), int64(o.TID), string(path), string(problem))
	}
	if err == nil {
		_, err = tx.Exec(ctx, correction)
	}
	if err != nil {
		return fmt.Errorf("note a missing blob: %w", err)
	}
	return nil
}

// SettleBlobs does the uploads that are owed, unless they are deferred, and
// removes from S3 what newer transactions have replaced.
func (s *session) SettleBlobs(ctx context.Context, progress func(dest.UploadProgress)) error {
	if s.dest.config.S3 != nil {
		if err := s.settleStore(ctx, progress); err != nil {
			return err
		}
	}
	// Files that were gone when they were to be uploaded may be missing blobs now.
	return s.readTotals(ctx)
}

// settleStore settles what concerns S3.
func (s *session) settleStore(ctx context.Context, progress func(dest.UploadProgress)) error {
	if err := s.settleUploads(ctx, progress); err != nil {
		return err
	}
	// Only now no upload is under way that would bring an object back.
	if err := s.removeGone(ctx); err != nil {
		if s.plan.Blobs != dest.Deferred || ctx.Err() != nil {
			return err
		}
		s.tell(fmt.Sprintf("objects that newer transactions have replaced stay in %s: %v", s.dest.config.S3.Name(), err))
	}
	return nil
}

func (s *session) settleUploads(ctx context.Context, progress func(dest.UploadProgress)) error {
	if s.plan.Blobs == dest.Deferred {
		return nil
	}
	if err := s.startUploads(ctx); err != nil {
		return err
	}
	s.uploadsMu.Lock()
	u := s.uploads
	s.uploadsMu.Unlock()
	if u == nil {
		return nil // nothing is owed
	}
	if err := s.drain(ctx, u, progress); err != nil {
		return err
	}
	s.uploadsMu.Lock()
	s.uploads = nil
	s.uploadsMu.Unlock()
	return s.uploadErrors(ctx)
}

// drain waits until the uploader has done everything, and tells how far it is.
func (s *session) drain(ctx context.Context, u *uploader, progress func(dest.UploadProgress)) error {
	var left watermark.BlobCounts
	err := s.withControl(ctx, func(conn *pgx.Conn) (err error) {
		left, err = s.tables.CountBlobs(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	done, sent := u.done.Load(), u.sent.Load()
	tell := func() {
		if progress != nil && left.Owed > 0 {
			progress(dest.UploadProgress{
				Total: left.Owed, Done: min(left.Owed, u.done.Load()-done),
				TotalBytes: left.OwedBytes, DoneBytes: max(0, min(left.OwedBytes, u.sent.Load()-sent)),
			})
		}
	}
	tell()
	u.once.Do(func() { close(u.drain) })
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			tell()
		case <-ctx.Done():
			return ctx.Err()
		case <-u.ended:
			tell()
			return u.err
		}
	}
}

// uploadErrors tells which uploads could not be done.
func (s *session) uploadErrors(ctx context.Context) error {
	var failed dest.UploadError
	err := s.withControl(ctx, func(conn *pgx.Conn) error {
		failed = dest.UploadError{}
		return s.tables.OwedUploads(ctx, conn, "failed IS NOT NULL", 0, func(o *watermark.Owed) error {
			if failed.Count++; len(failed.Failed) < dest.ListMax {
				failed.Failed = append(failed.Failed, dest.FailedUpload{OwedBlob: o.OwedBlob, Err: errors.New(o.Failed)})
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if failed.Count > 0 {
		return &failed
	}
	return nil
}

// removeGone removes the objects that no row names any more, and forgets each
// when it is removed. A key that a row names is left alone.
func (s *session) removeGone(ctx context.Context) error {
	for {
		var oids, tids []int64
		var keys []string
		var named []bool
		err := s.withControl(ctx, func(conn *pgx.Conn) error {
			oids, tids, keys, named = nil, nil, nil, nil
			rows, err := conn.Query(ctx, `SELECT oid, tid, key, EXISTS (SELECT FROM `+s.layout.name(blobState)+` b WHERE b.zoid = g.oid AND b.s3_key = g.key)
				FROM `+s.tables.Gone+fmt.Sprintf(` g ORDER BY oid, tid LIMIT %d`, owedBatch))
			if err != nil {
				return fmt.Errorf("read what is to be removed from S3: %w", err)
			}
			var oid, tid int64
			var key string
			var name bool
			_, err = pgx.ForEachRow(rows, []any{&oid, &tid, &key, &name}, func() error {
				oids, tids, keys, named = append(oids, oid), append(tids, tid), append(keys, key), append(named, name)
				return nil
			})
			if err != nil {
				return fmt.Errorf("read what is to be removed from S3: %w", err)
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := s.removeKeys(ctx, keys, named); err != nil {
			return err
		}
		fault.Point("blob.removed")
		err = s.withControl(ctx, func(conn *pgx.Conn) error {
			return s.fencedTx(ctx, conn, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `DELETE FROM `+s.tables.Gone+` g USING unnest($1::int8[], $2::int8[]) d (oid, tid)
					WHERE g.oid = d.oid AND g.tid = d.tid`, oids, tids)
				if err != nil {
					return fmt.Errorf("note what is removed from S3: %w", err)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
}

// removeKeys removes the objects that are not named any more.
func (s *session) removeKeys(ctx context.Context, keys []string, named []bool) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for i, key := range keys {
		if named[i] {
			continue
		}
		group.Go(func() error {
			if err := s.dest.config.S3.Delete(groupCtx, key); err != nil {
				return fmt.Errorf("remove from S3 what newer transactions have replaced: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}

// MissingBlobs calls fn for every blob that was not found.
func (s *session) MissingBlobs(ctx context.Context, fn func(*dest.MissingBlob) error) error {
	return s.listed(ctx, func(conn *pgx.Conn, seen *bool) error {
		return s.tables.MissingBlobs(ctx, conn, func(m *dest.MissingBlob) error {
			*seen = true
			return elsewhere(fn(m))
		})
	})
}

// Owed calls fn for every upload that is not done.
func (s *session) Owed(ctx context.Context, fn func(*dest.OwedBlob) error) error {
	if err := s.stageOwed(ctx); err != nil {
		return err
	}
	var inStaging int64
	err := s.listed(ctx, func(conn *pgx.Conn, seen *bool) error {
		return s.tables.OwedUploads(ctx, conn, "true", 0, func(o *watermark.Owed) error {
			*seen = true
			if err := s.moved(ctx, o); err != nil {
				return elsewhere(err)
			}
			if s.staging != nil && filepath.Dir(o.Path) == s.staging.Path() {
				inStaging++
			}
			return elsewhere(fn(&o.OwedBlob))
		})
	})
	if err == nil && inStaging > 0 {
		s.tell(fmt.Sprintf("the bytes of %s wait in %s for their upload; nothing removes them: when it is done, the directory can go", count(inStaging, "blob"), s.staging.Path()))
	}
	return err
}

// Gone calls fn for the key of every object that is still to be removed.
func (s *session) Gone(ctx context.Context, fn func(key string) error) error {
	return s.listed(ctx, func(conn *pgx.Conn, seen *bool) error {
		rows, err := conn.Query(ctx, `SELECT key FROM `+s.tables.Gone+` ORDER BY oid, tid`)
		if err != nil {
			return fmt.Errorf("read what is to be removed from S3: %w", err)
		}
		var key string
		_, err = pgx.ForEachRow(rows, []any{&key}, func() error {
			*seen = true
			return elsewhere(fn(key))
		})
		if err != nil {
			return fmt.Errorf("read what is to be removed from S3: %w", err)
		}
		return nil
	})
}

// listed runs a query on the control connection that is not repeated once its
// first row was seen.
func (s *session) listed(ctx context.Context, fn func(conn *pgx.Conn, seen *bool) error) error {
	return s.withControl(ctx, func(conn *pgx.Conn) error {
		if err := conn.Ping(ctx); err != nil {
			return err
		}
		var seen bool
		err := fn(conn, &seen)
		if seen && lost(err) {
			return elsewhere(fmt.Errorf("the connection was lost: %w", err))
		}
		return err
	})
}

// known is where a source was seen last, for blobs that are not where they were.
type knownSource struct {
	mu  sync.Mutex
	src source.Source
}

func (k *knownSource) set(src source.Source) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.src = src
}

func (k *knownSource) get() source.Source {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.src
}

// owedBlob is the blob of an owed upload: the file that was found when the row
// was written or, if that is not there any more or was none, what the source
// finds now.
func (s *session) owedBlob(ctx context.Context, o *watermark.Owed) (*source.Blob, error) {
	src := s.source.get()
	record := &source.Record{OID: o.OID, TID: o.TID, Pos: o.Pos}
	var b *source.Blob
	var err error
	switch {
	case o.Path != "":
		b, err = blobdir.File(o.OID, o.TID, o.Path)
		if bad := (*source.BlobError)(nil); src != nil && errors.As(err, &bad) && bad.Missing {
			if again, e := src.Blob(ctx, record); e == nil {
				b, err = again, nil
			}
		}
	case src == nil:
		err = fmt.Errorf("read blob oid %v, tid %v: it is in no file, and the source is not open", o.OID, o.TID)
	default:
		b, err = src.Blob(ctx, record)
	}
	if err == nil && b.Size != o.Size {
		err = &source.BlobError{OID: o.OID, TID: o.TID, Path: b.Place(), Problem: fmt.Sprintf("has %d bytes by now, it had %d when its row was written", b.Size, o.Size)}
	}
	return b, err
}

// moved corrects the path of an owed upload whose file an earlier start has found
// in another blob directory (in a snapshot that is gone, say) or has staged.
func (s *session) moved(ctx context.Context, o *watermark.Owed) error {
	dir := s.plan.Info.BlobDir
	if dir == "" || strings.HasPrefix(o.Path, dir+string(filepath.Separator)) {
		return nil
	}
	b, err := s.owedBlob(ctx, o)
	if bad := (*source.BlobError)(nil); errors.As(err, &bad) {
		return nil // the upload will tell
	}
	if err == nil {
		o.Path, err = s.restage(ctx, b)
	}
	return err
}

// leftInS3 says in a sentence that objects stay.
func leftInS3(n int64, store *s3blob.Store, record *dest.Options) string {
	if n == 0 {
		return ""
	}
	where := "S3"
	switch {
	case record != nil && record.Bucket != "":
		where = strings.TrimRight("s3://"+record.Bucket+"/"+record.Prefix, "/")
	case store != nil:
		where = strings.TrimRight(store.Name(), "/")
	}
	stay := "stay"
	if n == 1 {
		stay = "stays"
	}
	return fmt.Sprintf("%s %s in %s: another site may use them", count(n, "object"), stay, where)
}
