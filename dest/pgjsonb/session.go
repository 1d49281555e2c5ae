package pgjsonb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/semaphore"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/dest/staging"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// session is a claimed run.
type session struct {
	dest   *Destination
	plan   *dest.Plan
	layout *layout
	tables watermark.Tables
	record *watermark.Record
	bare   *bare

	workers atomic.Int32

	// opened tells that this session has begun to catch up with a finished
	// database and has written nothing yet.
	opened bool
	// upTo is the highest tid that was loaded, or compared with the source.
	upTo zodb.TID
	// seen is what Have has found; nil before it.
	seen *held

	mu      sync.Mutex
	control *pgx.Conn // idle between uses: it tells that the run is alive

	// written are the ranges that writers of this session have committed.
	writtenMu sync.Mutex
	written   map[source.Range]bool

	// Blobs: transfers bounds the uploads of all writers together, to parallel;
	// uploads does those in the background; remarks counts what was told.
	parallel  int
	transfers *semaphore.Weighted
	source    knownSource
	remarks   atomic.Int64
	// passing are the missing blobs that lookAgain met whose records the source
	// does not have any more.
	passing int64
	// ctx ends with the session, or with that of Begin.
	ctx       context.Context
	cancel    context.CancelFunc
	staging   *staging.Dir // nil: no blob can be staged
	uploadsMu sync.Mutex
	uploads   *uploader
}

var _ dest.Session = (*session)(nil)

// Begin starts a run, goes on with an interrupted one, or opens a finished
// database to catch up.
func (d *Destination) Begin(ctx context.Context, plan *dest.Plan) (dest.Session, error) {
	if err := d.CheckSource(plan.Info); err != nil {
		return nil, err
	}
	if d.config.S3 == nil && plan.Blobs != "" && plan.Blobs != dest.Inline {
		return nil, &dest.RefusedError{
			Reason: fmt.Sprintf("uploads cannot be %s: no bucket is configured, so that all blobs go to PostgreSQL", plan.Blobs),
			Hint:   "name the bucket: s3-bucket-name in [destination]",
		}
	}
	conn, err := d.connect.open(ctx, "zodb-convert")
	if err != nil {
		return nil, d.plain(err)
	}
	s := &session{dest: d, plan: d.complete(plan), control: conn, written: map[source.Range]bool{}, parallel: d.config.Transfers}
	if s.parallel < 1 {
		s.parallel = max(plan.Workers, leastTransfers)
	}
	s.transfers = semaphore.NewWeighted(int64(s.parallel))
	d.connect.onWait(s.plan.Note)
	if d.config.S3 != nil {
		d.config.S3.OnWait(s.plan.Note)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.source.set(plan.Source)
	if err = s.openStaging(); err == nil {
		err = s.begin(ctx)
	}
	if err == nil {
		err = s.startUploads(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// complete is the plan with what this destination adds to it.
func (d *Destination) complete(plan *dest.Plan) *dest.Plan {
	p := *plan
	p.Options = d.options(p.Options)
	if p.Blobs == "" {
		p.Blobs = dest.Inline
	}
	if p.Note == nil {
		p.Note = func(string) {}
	}
	if p.BlobBytes == nil {
		p.BlobBytes = func(int64) {}
	}
	return &p
}

func (s *session) begin(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	record, err := s.tables.Read(ctx, s.control)
	if err != nil {
		return err
	}
	fault.Point("claim.begin")
	if record != nil {
		switch {
		case s.plan.Continue:
			return s.continueRun(ctx, record)
		case s.plan.Clear:
			left, err := s.dest.undo(ctx, s.control, s.layout, record)
			if err != nil {
				return err
			}
			s.tell(left)
			if err := s.look(ctx); err != nil {
				return err
			}
		default:
			return s.dest.unfinished(record)
		}
	}
	state, err := readState(ctx, s.control, s.layout)
	if err != nil {
		return err
	}
	if state.Condition != dest.Filled {
		return s.start(ctx, false)
	}
	switch {
	case s.plan.Clear:
		return s.start(ctx, true)
	case s.plan.Continue:
		return s.open(ctx)
	case state.RootOnly:
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s is not empty: it holds a root object and nothing else, as a site makes one when it is started on a new database", s.dest.Name()),
			Hint:   "stop the site and use --clear to start from an empty database",
		}
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s already holds %s in %s", s.dest.Name(), count(state.Objects, "object"), count(state.Transactions, "transaction")),
		Hint:   "use --incremental to add what is newer in the source, or --clear to empty it first",
	}
}

// look reads and checks what is there.
func (s *session) look(ctx context.Context) error {
	l, err := readLayout(ctx, s.control)
	if err != nil {
		return err
	}
	srv, err := readServer(ctx, s.control, l.schema)
	if err != nil {
		return err
	}
	workers := s.plan.Workers
	if _, ok := s.plan.Source.(source.Table); ok && s.plan.Continue {
		workers = max(workers, comparing)
	}
	if err := srv.check(s.dest, l, workers-1); err != nil { // the control connection is open
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	s.layout, s.tables = l, l.run()
	return nil
}

func (d *Destination) unfinished(r *watermark.Record) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s holds an unfinished conversion that was started %s on %s (pid %d)",
			d.Name(), r.Started.Format(time.DateTime), r.Host, r.PID),
		Hint: "continue it with --incremental, or undo it with --abort",
	}
}

// busy is the refusal of a run while another one works.
func (d *Destination) busy(r *watermark.Record) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("another conversion is writing to %s: host %s, pid %d, since %s", d.Name(), r.Host, r.PID, r.Claimed.Format(time.DateTime)),
		Hint:   "wait until it has ended, or stop it first",
	}
}

// start begins a run on an empty database, in one transaction: the tables of
// the run and of the database are there, and keys and indexes are down, or
// nothing has happened.
func (s *session) start(ctx context.Context, clear bool) error {
	s.record = &watermark.Record{
		Run: dest.Run{
			ID: newID(), Generation: 1, Phase: dest.Loading, Source: s.plan.Info.Identity,
			Options: s.plan.Options, Tool: s.plan.Tool, Host: s.dest.host, PID: os.Getpid(), Start: start(s.plan),
		},
		Restore: []byte("{}"), MaxOID: int64(s.plan.Info.MaxOID),
	}
	s.bare = &bare{Loads: true, Tables: []string{objectState, transactionLog, blobState}}
	if s.plan.Options.HistoryPreserving {
		s.bare.Tables = append(s.bare.Tables, objectHistory)
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	return s.logged("take down keys and indexes", func() error {
		return s.claim(ctx, func(tx pgx.Tx) error { return s.prepare(ctx, tx, clear) })
	})
}

// start is how the plan says that the run is started.
func start(p *dest.Plan) dest.Start {
	return dest.Start{Blobs: p.Blobs, Manifest: p.Manifest, StagingDir: p.StagingDir, SourceBytes: p.Info.Bytes}
}

// open begins to catch up with a finished database.
func (s *session) open(ctx context.Context) error {
	if err := s.checkMode(ctx); err != nil {
		return err
	}
	if err := s.dest.checkPlace(ctx, s.control, s.layout); err != nil {
		return err
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	if s.plan.Blobs != dest.Deferred { // which asks nothing of S3
		if err := s.dest.checkBucket(ctx, s.control, s.layout); err != nil {
			return err
		}
	}
	s.record = &watermark.Record{
		Run: dest.Run{
			ID: newID(), Generation: 1, Phase: dest.CatchingUp, Source: s.plan.Info.Identity,
			Options: s.plan.Options, Tool: s.plan.Tool, Host: s.dest.host, PID: os.Getpid(), Start: start(s.plan),
		},
		Restore: []byte("{}"), MaxOID: int64(s.plan.Info.MaxOID),
	}
	s.bare = &bare{}
	s.opened = true
	return s.claim(ctx, func(pgx.Tx) error { return nil })
}

// claim makes the run's tables and does what goes with it.
func (s *session) claim(ctx context.Context, with func(pgx.Tx) error) error {
	if err := s.rename(ctx); err != nil {
		return err
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if err := s.tables.Create(ctx, tx, s.record); err != nil {
			return err
		}
		fault.Point("claim.created")
		return with(tx)
	})
	if err == nil {
		fault.Point("claim.committed")
		return nil
	}
	if watermark.Exists(err) {
		if first, e := s.tables.Read(ctx, s.control); e == nil && first != nil {
			return s.dest.busy(first)
		}
	}
	return s.explain(ctx, err)
}

// inTx runs fn in a transaction of the control connection that waits for locks
// only so long.
func (s *session) inTx(ctx context.Context, fn func(pgx.Tx) error) error {
	tx, err := s.control.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", s.dest.config.LockTimeout.Milliseconds())); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// prepare makes the schema, or what is missing of it, and takes down what makes
// a load slow.
func (s *session) prepare(ctx context.Context, tx pgx.Tx, clear bool) error {
	hp := s.plan.Options.HistoryPreserving
	existed := s.layout.has(transactionLog)
	if existed {
		if err := s.lockAndEmpty(ctx, tx, clear); err != nil {
			return err
		}
	}
	undo, err := s.layout.ensure(ctx, tx, hp)
	if err != nil {
		return err
	}
	marks, err := s.layout.marks(ctx, tx)
	if err != nil {
		return err
	}
	s.bare.Undo = append(undo, marks...)
	if err := s.layout.lz4(ctx, tx, hp); err != nil {
		return err
	}
	fault.Point("claim.schema")
	if err := s.layout.takeDown(ctx, tx, s.bare); err != nil {
		return err
	}
	for _, k := range s.bare.Kept {
		s.tell(k)
	}
	note, err := s.bare.note()
	if err != nil {
		return err
	}
	if err := s.tables.SetRestore(ctx, tx, note); err != nil {
		return err
	}
	s.record.Restore = note
	fault.Point("claim.bare")
	fault.Point("claim.commit")
	return nil
}

// lockAndEmpty locks the tables and makes sure that they are empty: since they
// were looked at, a site may have been started.
func (s *session) lockAndEmpty(ctx context.Context, tx pgx.Tx, clear bool) error {
	var names []string
	for _, t := range []string{objectState, transactionLog, blobState, objectHistory, packState} {
		if s.layout.has(t) {
			names = append(names, s.layout.name(t))
		}
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE `+strings.Join(names, ", ")+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return fmt.Errorf("lock the tables: %w", err)
	}
	if clear {
		if err := s.aloneWith(ctx, tx, names); err != nil {
			return err
		}
		n, err := s.layout.countInS3(ctx, tx)
		if err != nil {
			return err
		}
		s.tell(leftInS3(n, s.dest.config.S3, nil))
		return empty(ctx, tx, names)
	}
	state, err := readStateLocked(ctx, tx, s.layout)
	if err != nil {
		return err
	}
	if state.Condition != dest.Empty {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s has just been written to by somebody else", s.dest.Name()), Hint: "stop the site first"}
	}
	return nil
}

// aloneWith refuses to empty tables if that would change those of other people.
func (s *session) aloneWith(ctx context.Context, tx pgx.Tx, names []string) error {
	var others []string
	err := tx.QueryRow(ctx, `SELECT coalesce(array_agg(DISTINCT conrelid::regclass::text), '{}') FROM pg_catalog.pg_constraint
		WHERE contype = 'f' AND confdeltype IN ('c', 'n', 'd')
		  AND confrelid = ANY ($1::text[]::regclass[]) AND NOT conrelid = ANY ($1::text[]::regclass[])`, names).Scan(&others)
	if err != nil {
		return fmt.Errorf("look for tables that refer to the objects: %w", err)
	}
	if len(others) == 0 {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("emptying %s would also change the rows of %s, which refer to it", s.dest.Name(), strings.Join(others, ", ")),
		Hint:   "empty them, or drop their foreign keys, before --clear",
	}
}

// empty empties tables, those that refer to others first. A table to which
// somebody else's refers cannot be truncated, even if that is empty.
func empty(ctx context.Context, tx pgx.Tx, names []string) error {
	sub, err := tx.Begin(ctx)
	if err != nil {
		return fmt.Errorf("empty the tables: %w", err)
	}
	_, err = sub.Exec(ctx, `TRUNCATE `+strings.Join(names, ", "))
	if err == nil {
		err = sub.Commit(ctx)
	} else if code(err) == "0A000" {
		err = sub.Rollback(ctx)
		for _, name := range names {
			if err == nil {
				_, err = tx.Exec(ctx, `DELETE FROM `+name)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("empty the tables: %w", err)
	}
	return nil
}

func readStateLocked(ctx context.Context, q watermark.Querier, l *layout) (*dest.State, error) {
	state := new(dest.State)
	return state, l.readContents(ctx, q, state)
}

// explain turns errors of the claim into sentences.
func (s *session) explain(ctx context.Context, err error) error {
	switch code(err) {
	case "55P03":
		who := s.layout.blockers(ctx, s.control, append(append([]string{}, core...), history...))
		if who == "" {
			who = "another session"
		}
		return &dest.RefusedError{
			Reason: fmt.Sprintf("the tables of %s are in use by %s; they were not free for %v", s.dest.Name(), who, s.dest.config.LockTimeout),
			Hint:   "stop the site and end such sessions before the conversion",
		}
	case "42501":
		return &dest.RefusedError{Reason: fmt.Sprintf("the role lacks a right in %s: %s", s.dest.Name(), serverMessage(err)), Hint: "let the owner of the database run the conversion"}
	case "23503":
		return &dest.RefusedError{Reason: fmt.Sprintf("%s cannot be emptied: %s", s.dest.Name(), serverMessage(err)), Hint: "empty the table that refers to it first"}
	}
	return err
}

// continueRun claims an interrupted run.
func (s *session) continueRun(ctx context.Context, r *watermark.Record) error {
	alive, err := watermark.Alive(ctx, s.control, r, s.dest.host)
	if err != nil {
		return err
	}
	if alive {
		return s.dest.busy(r)
	}
	if err := s.sameRun(r); err != nil {
		return err
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	r.Start = start(s.plan)
	if err := s.dest.takeOver(ctx, s.control, s.tables, r, s.plan.Tool); err != nil {
		return err
	}
	if err := s.tables.Ensure(ctx, s.control); err != nil {
		return err
	}
	// Only now nothing of the earlier generation can be committed any more.
	if s.record, err = s.tables.Read(ctx, s.control); err != nil {
		return err
	}
	if s.record == nil || s.record.ID != r.ID || s.record.Generation != r.Generation {
		return s.takenOver()
	}
	s.record.MaxOID = max(s.record.MaxOID, int64(s.plan.Info.MaxOID))
	s.bare, err = parseBare(s.record.Restore)
	return err
}

// sameRun refuses to mix two sources, or two ways to write one.
func (s *session) sameRun(r *watermark.Record) error {
	now := s.plan.Info.Identity
	if !r.Source.Same(now) {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s holds an unfinished conversion of %s up to %d, and %s is not the same up to there: it is another source, or was packed or truncated since",
				s.dest.Name(), r.Source.Name, r.Source.End, now.Name),
			Hint: "use the original source, or undo the conversion with --abort and start again",
		}
	}
	if what := differences(r.Options, s.plan.Options); len(what) > 0 {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s holds an unfinished conversion with other options: %s", s.dest.Name(), strings.Join(what, "; ")),
			Hint:   "use the same options, or undo the conversion with --abort and start again",
		}
	}
	return nil
}

// differences names the options of a run that are not those of now.
func differences(run, now dest.Options) (what []string) {
	differ := func(name string, then, now any) {
		if then != now {
			what = append(what, fmt.Sprintf("%s is %v there and %v now", name, then, now))
		}
	}
	place := func(o dest.Options) string {
		if o.Bucket == "" {
			return "no bucket"
		}
		return fmt.Sprintf("%q", o.Bucket)
	}
	differ("history-preserving", run.HistoryPreserving, now.HistoryPreserving)
	differ("--preserve-sharing", run.PreserveSharing, now.PreserveSharing)
	differ("the size of chunks", run.ChunkBytes, now.ChunkBytes)
	differ("the bucket (s3-bucket-name)", place(run), place(now))
	if run.Bucket != "" && now.Bucket != "" {
		differ("the prefix in the bucket (s3-prefix)", fmt.Sprintf("%q", run.Prefix), fmt.Sprintf("%q", now.Prefix))
		differ("blob-threshold", run.BlobThreshold, now.BlobThreshold)
	}
	return what
}

// probe makes sure, before anything is changed, that the bucket takes objects
// and gives them away.
func (s *session) probe(ctx context.Context) error {
	if s.dest.config.S3 == nil || s.plan.Blobs == dest.Deferred {
		return nil
	}
	return s.logged("check the S3 bucket: write and remove a probe object", func() error {
		err := s.dest.config.S3.Probe(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		return s.dest.unusable(err)
	})
}

// unusable is the refusal of a bucket.
func (d *Destination) unusable(err error) error {
	var store *s3blob.Error
	if errors.As(err, &store) {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s cannot be used: %s", d.config.S3.Name(), store.Reason), Hint: store.Hint}
	}
	return &dest.RefusedError{Reason: fmt.Sprintf("%s cannot be used: %v", d.config.S3.Name(), err)}
}

// checkPlace refuses to catch up without S3 a database that has blobs there.
func (d *Destination) checkPlace(ctx context.Context, q watermark.Querier, l *layout) error {
	if d.config.S3 != nil {
		return nil
	}
	n, err := l.countInS3(ctx, q)
	if err != nil || n == 0 {
		return err
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s has %s in S3, the configuration names no bucket", d.Name(), count(n, "blob")),
		Hint:   "name the bucket of the site: s3-bucket-name in [destination]",
	}
}

// sampledBlobs are looked for in the bucket before a database is caught up.
const sampledBlobs = 8

// checkBucket refuses to catch up a database with blobs in S3 if the bucket has
// none of those that are looked for: a finished database does not say in which
// bucket and below which prefix they are, a site knows one place only, and new
// blobs would go to another one.
func (d *Destination) checkBucket(ctx context.Context, q watermark.Querier, l *layout) error {
	store := d.config.S3
	if store == nil || !l.has(blobState) {
		return nil
	}
	rows, err := q.Query(ctx, `SELECT s3_key, blob_size FROM `+l.name(blobState)+
		fmt.Sprintf(` WHERE s3_key <> '' ORDER BY zoid, tid LIMIT %d`, sampledBlobs))
	if err != nil {
		return fmt.Errorf("look for blobs in S3: %w", err)
	}
	var (
		keys  []string
		sizes []int64
		key   string
		size  int64
	)
	if _, err := pgx.ForEachRow(rows, []any{&key, &size}, func() error {
		keys, sizes = append(keys, key), append(sizes, size)
		return nil
	}); err != nil {
		return fmt.Errorf("look for blobs in S3: %w", err)
	}
	for i, key := range keys {
		has, err := store.Exists(ctx, key, sizes[i])
		if err != nil {
			return fmt.Errorf("look for blobs in S3: %w", err)
		}
		if has {
			return nil
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s has blobs in S3, and %s has none of the first %d, which begin with %s: they are in another place, or are not uploaded yet",
			d.Name(), store.Name(), len(keys), keys[0]),
		Hint: "name the bucket and the prefix of the site; or, if a manifest still lists them, upload it with --upload-blobs first, or go on with --deferred-blobs and that manifest",
	}
}

// countInS3 counts the rows that name an object in S3.
func (l *layout) countInS3(ctx context.Context, q watermark.Querier) (n int64, err error) {
	if !l.has(blobState) {
		return 0, nil
	}
	if err := q.QueryRow(ctx, `SELECT count(*) FROM `+l.name(blobState)+` WHERE s3_key <> ''`).Scan(&n); err != nil {
		return 0, fmt.Errorf("look for blobs in S3: %w", err)
	}
	return n, nil
}

// takeOver fences out earlier generations: theirs are told to end, the raised
// generation waits for what they have open, and what is left is waited for.
func (d *Destination) takeOver(ctx context.Context, conn *pgx.Conn, t watermark.Tables, r *watermark.Record, tool string) error {
	if err := watermark.EndEarlier(ctx, conn, r.ID, r.Generation+1); err != nil {
		return err
	}
	fault.Point("claim.raise")
	if err := rename(ctx, conn, r.ID, r.Generation+1); err != nil {
		return err
	}
	if err := t.Raise(ctx, conn, r, tool, d.host, os.Getpid()); err != nil {
		if errors.Is(err, watermark.ErrTakenOver) {
			return &dest.RefusedError{Reason: fmt.Sprintf("another conversion has just begun to go on with the one in %s", d.Name()), Hint: "wait until it has ended"}
		}
		return err
	}
	fault.Point("claim.raised")
	if err := watermark.EndEarlier(ctx, conn, r.ID, r.Generation); err != nil {
		return err
	}
	fault.Point("claim.fenced")
	return nil
}

// rename lets the control connection show which run it belongs to.
func (s *session) rename(ctx context.Context) error {
	return rename(ctx, s.control, s.record.ID, s.record.Generation)
}

func rename(ctx context.Context, conn *pgx.Conn, id string, generation int64) error {
	name := watermark.AppName(id, generation, watermark.ControlRole())
	if _, err := conn.Exec(ctx, `SELECT set_config('application_name', $1::text, false)`, name); err != nil {
		return fmt.Errorf("name the connection: %w", err)
	}
	return nil
}

// checkMode refuses to catch up in another mode than the database has.
func (s *session) checkMode(ctx context.Context) error {
	return s.dest.checkMode(ctx, s.control, s.layout, s.plan.Options.HistoryPreserving)
}

func (d *Destination) checkMode(ctx context.Context, q watermark.Querier, l *layout, hp bool) error {
	if hp && !l.has(objectHistory) {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s is history-free, the configuration says history-preserving", d.Name()),
			Hint:   "say history-preserving = false in [destination]",
		}
	}
	if hp || !l.has(objectHistory) {
		return nil
	}
	var some bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+l.name(objectHistory)+`)`).Scan(&some); err != nil {
		return fmt.Errorf("look for older revisions: %w", err)
	}
	if some {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s holds older revisions, the configuration says history-free", d.Name()),
			Hint:   "say history-preserving = true in [destination]",
		}
	}
	return nil
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Run is the record as claimed.
func (s *session) Run() *dest.Run { return &s.record.Run }

// application is the name of a connection of this session.
func (s *session) application(role string) string {
	return watermark.AppName(s.record.ID, s.record.Generation, role)
}

// tell notes a sentence, if it is one.
func (s *session) tell(sentence string) {
	if sentence != "" {
		s.plan.Note(sentence)
	}
}

// logged runs a step and tells of it before and after.
func (s *session) logged(name string, fn func() error) error {
	start := time.Now()
	s.plan.Log(dest.Step{Name: name})
	if err := fn(); err != nil {
		return err
	}
	s.plan.Log(dest.Step{Name: name, Took: time.Since(start), Done: true})
	return nil
}

// withControl runs fn on the control connection, which it opens again if the
// server was away. fn may run twice.
func (s *session) withControl(ctx context.Context, fn func(*pgx.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for again := false; ; again = true {
		if s.control == nil || s.control.IsClosed() {
			closeQuietly(s.control)
			var err error
			if s.control, err = s.dest.connect.reopen(ctx, s.application(watermark.ControlRole()), s.dest.config.Wait); err != nil {
				return err
			}
		}
		err := fn(s.control)
		if err == nil || again || ctx.Err() != nil || isElsewhere(err) || !lost(err) && !s.control.IsClosed() {
			return s.fenced(err)
		}
		closeQuietly(s.control)
		s.control = nil
	}
}

// fenced gives the error of a run that was taken over its sentence.
func (s *session) fenced(err error) error {
	switch {
	case err == nil:
	case s.tables.TakenOver(err):
		return s.takenOver()
	case s.tables.Forgotten(err):
		return fmt.Errorf("%w, in a crash or because a standby has taken over; go on with --incremental, which loads what is missing", watermark.ErrForgotten)
	}
	return err
}

func (s *session) takenOver() error {
	return fmt.Errorf("%w: it was continued or undone by somebody else while this process was thought to be dead; nothing more is written by this one", watermark.ErrTakenOver)
}

// Loaded looks once more for missing blobs, makes what was loaded durable and
// moves the run to its finishing steps, unless a chunk is missing or rejects or
// missing blobs are not accepted.
func (s *session) Loaded(ctx context.Context, src source.Source) error {
	fault.Point("loaded.begin")
	s.source.set(src)
	if err := s.uploadsFailed(); err != nil {
		return err
	}
	finishing, err := s.loadedWhole(ctx, func(pgx.Tx) error { return nil })
	if err != nil {
		return err
	}
	if !finishing {
		if err := s.lookAgain(ctx, src, dest.Loading); err != nil {
			return err
		}
		// Meanwhile the server may have crashed and forgotten chunks.
		if _, err := s.loadedWhole(ctx, func(tx pgx.Tx) error {
			if err := s.acceptable(ctx, tx); err != nil {
				return err
			}
			if s.ofViews(src) {
				if err := s.nameTransactions(ctx, tx); err != nil {
					return err
				}
			}
			fault.Point("loaded.checked")
			return s.setPhaseIn(ctx, tx, dest.Loading, dest.Finishing)
		}); err != nil {
			return err
		}
	}
	s.record.Phase = dest.Finishing
	fault.Point("loaded.done")
	return s.readTotals(ctx)
}

// loadedWhole checks that everything was written, and does what goes with it in
// the same transaction: a server that has crashed since would not commit it, even
// behind a pooler. finishing tells that the run is in its next phase already: an
// answer that was lost.
func (s *session) loadedWhole(ctx context.Context, with func(pgx.Tx) error) (finishing bool, err error) {
	err = s.withControl(ctx, func(conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return fmt.Errorf("read what the run has done: %w", err)
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		r, err := s.tables.Read(ctx, tx)
		if err != nil {
			return err
		}
		if r == nil || r.ID != s.record.ID || r.Generation != s.record.Generation {
			return watermark.ErrTakenOver
		}
		if finishing = r.Phase == dest.Finishing; finishing {
			return nil
		}
		if err := s.everything(r, s.ofViews(s.source.get())); err != nil {
			return err
		}
		s.record.Done, s.record.Totals, s.record.MaxOID = r.Done, r.Totals, max(s.record.MaxOID, r.MaxOID)
		if err := s.everyBlob(ctx, tx); err != nil {
			return err
		}
		if err := with(tx); err != nil {
			return err
		}
		if err := tx.Commit(ctx); err != nil {
			return fmt.Errorf("record that everything is loaded: %w", err)
		}
		return nil
	})
	return finishing, err
}

// everyBlob checks that there are as many rows of blobs as were written, and as
// many that are missing. One statement sees the tables as they were at one
// moment; uploads go on meanwhile.
func (s *session) everyBlob(ctx context.Context, q watermark.Querier) error {
	var rows, want, missing, wantMissing int64
	err := q.QueryRow(ctx, `SELECT (SELECT count(*) FROM `+s.layout.name(blobState)+`), (SELECT count(*) FROM `+s.tables.Missing+`),
		coalesce(sum(coalesce((result->>'blobs')::int8, 0) + coalesce((result->>'s3_blobs')::int8, 0)), 0)::int8,
		coalesce(sum((result->>'missing_blobs')::int8), 0)::int8 FROM `+s.tables.Chunk).Scan(&rows, &missing, &want, &wantMissing)
	if err != nil {
		return fmt.Errorf("count the blobs: %w", err)
	}
	if rows != want || missing != wantMissing {
		return fmt.Errorf("%s were written and %d found missing, but %d and %d are recorded: somebody else has written to %s, or this is a defect of zodb-convert, please report it; the destination is not complete",
			count(want, "blob"), wantMissing, rows, missing, s.dest.Name())
	}
	return nil
}

// setPhase moves the run on and makes that durable.
func (s *session) setPhase(ctx context.Context, conn *pgx.Conn, from, to dest.Phase) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("record that the run is %s: %w", to, err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if err := s.setPhaseIn(ctx, tx, from, to); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("record that the run is %s: %w", to, err)
	}
	return nil
}

// setPhaseIn moves the run on in a transaction, whose commit makes that durable
// and all that was committed before: a commit that waits for its WAL waits for
// that of all earlier ones. One transaction, because a pooler may give the next
// one to another session.
func (s *session) setPhaseIn(ctx context.Context, tx pgx.Tx, from, to dest.Phase) error {
	if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
		return fmt.Errorf("record that the run is %s: %w", to, err)
	}
	return s.tables.SetPhase(ctx, tx, s.record, from, to)
}

// everything tells whether everything that the source has is accounted for. Of
// several views of it no count tells that: what they lack, Differences finds.
func (s *session) everything(r *watermark.Record, ofViews bool) error {
	if err := remembers(r.Done, s.noted()); err != nil || ofViews {
		return err
	}
	info, t := s.plan.Info, r.Totals
	if t.Transactions != info.Transactions {
		return fmt.Errorf("the source has %s but %d were written: this is a defect of zodb-convert, please report it; the destination is not complete",
			count(info.Transactions, "transaction"), t.Transactions)
	}
	records := t.Objects + t.Revisions + t.Deleted + t.Superseded + t.Dropped + t.Rejected
	if records != info.Records {
		return fmt.Errorf("the source has %s but %d are accounted for: this is a defect of zodb-convert, please report it; the destination is not complete",
			count(info.Records, "record"), records)
	}
	return nil
}

// remembers fails if the server has lost chunks that this session has
// committed. Within a run commits do not wait for the disk, so that a server
// that crashes forgets the last ones; only Loaded makes them durable.
func remembers(done, written []source.Range) error {
	have := make(map[source.Range]bool, len(done))
	for _, d := range done {
		have[d] = true
	}
	var forgotten int64
	for _, w := range written {
		if !have[w] {
			forgotten++
		}
	}
	if forgotten == 0 {
		return nil
	}
	return fmt.Errorf("the server has crashed and lost the last %s that were written; go on with --incremental, which loads what is missing", count(forgotten, "chunk"))
}

// noted are the ranges that were committed until now.
func (s *session) noted() []source.Range {
	s.writtenMu.Lock()
	defer s.writtenMu.Unlock()
	return slices.Collect(maps.Keys(s.written))
}

// noteWritten remembers a range that is committed.
func (s *session) noteWritten(r source.Range) {
	s.writtenMu.Lock()
	defer s.writtenMu.Unlock()
	s.written[r] = true
}

// acceptable tells whether the rejects and the missing blobs, if any, are
// accepted.
func (s *session) acceptable(ctx context.Context, q watermark.Querier) error {
	n, root, err := s.tables.CountRejects(ctx, q)
	if err != nil {
		return err
	}
	c, err := s.tables.CountBlobs(ctx, q)
	if err != nil {
		return err
	}
	rejected := dest.RejectedError{Root: root}
	if n > 0 && (root || !s.plan.AcceptRejects) {
		rejected.Count = n
	}
	if !s.plan.AcceptMissingBlobs {
		rejected.MissingBlobs = c.Missing
		if s.plan.Continue {
			// They go when the destination is made equal to the source.
			rejected.MissingBlobs = max(c.Missing-s.passing, 0)
		}
	}
	if rejected.Count+rejected.MissingBlobs > 0 {
		return &rejected
	}
	return nil
}

// Rejects calls fn for every reject of the run.
func (s *session) Rejects(ctx context.Context, fn func(*dest.Reject) error) error {
	// Not repeated after a lost connection: fn would see rows twice.
	return s.withControl(ctx, func(conn *pgx.Conn) error {
		if err := conn.Ping(ctx); err != nil {
			return err
		}
		var seen bool
		err := s.tables.Rejects(ctx, conn, func(r *dest.Reject) error {
			seen = true
			return elsewhere(fn(r))
		})
		if seen && lost(err) {
			return elsewhere(fmt.Errorf("read the rejects: the connection was lost: %w", err))
		}
		return err
	})
}

// Complete removes the run's tables.
func (s *session) Complete(ctx context.Context) error {
	fault.Point("complete.begin")
	s.stopUploads() // they have nothing left to do
	attempts := 0
	err := s.withControl(ctx, func(conn *pgx.Conn) error {
		attempts++
		if attempts > 1 {
			if present, err := s.tables.Present(ctx, conn); err != nil || !present {
				return err // the answer to COMMIT was lost
			}
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			return fmt.Errorf("remove the run's record: %w", err)
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return fmt.Errorf("remove the run's record: %w", err)
		}
		if _, err := tx.Exec(ctx, s.tables.Fence(s.record, dest.CatchingUp)); err != nil {
			return fmt.Errorf("remove the run's record: %w", err)
		}
		if err := s.settledBlobs(ctx, tx); err != nil {
			return err
		}
		if err := s.tables.Drop(ctx, tx); err != nil {
			return err
		}
		fault.Point("complete.commit")
		if err := tx.Commit(ctx); err != nil {
			return fmt.Errorf("remove the run's record: %w", err)
		}
		return nil
	})
	if err == nil {
		fault.Point("complete.done")
	}
	return err
}

// settledBlobs refuses to forget blobs that nothing else would tell of: uploads
// that are owed, unless they are deferred, and missing ones that nobody has
// accepted.
func (s *session) settledBlobs(ctx context.Context, tx pgx.Tx) error {
	c, err := s.tables.CountBlobs(ctx, tx)
	if err != nil {
		return err
	}
	if c.Missing > 0 && !s.plan.AcceptMissingBlobs {
		return &dest.RejectedError{MissingBlobs: c.Missing}
	}
	if c.Owed > 0 && s.plan.Blobs != dest.Deferred {
		return fmt.Errorf("%s not done; go on with --incremental", count(c.Owed, "upload"))
	}
	return nil
}

// Close gives up the claim.
func (s *session) Close() error {
	s.cancel()
	s.stopUploads()
	s.mu.Lock()
	defer s.mu.Unlock()
	closeQuietly(s.control)
	s.control = nil
	if s.staging != nil {
		return s.staging.Close()
	}
	return nil
}

// serverMessage is what the server said, without the code.
func serverMessage(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return sentence(pg.Message)
	}
	return sentence(err.Error())
}
