package pgjsonb

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// step is one finishing step: statements that are one transaction.
type step struct {
	name       string
	statements []string
}

// stage are steps that may run side by side.
type stage []step

// stages are the finishing steps in their order. They follow from the note in
// the run's record, so that a continued run has the same ones.
func (s *session) stages() []stage {
	l := s.layout
	var build, attach, keys, last stage
	for _, x := range s.bare.Indexes {
		build = append(build, step{"index " + x.Name, l.build(x)})
		if sql := l.attach(x); len(sql) > 0 {
			attach = append(attach, step{"key " + x.Name, sql})
		}
	}
	for _, k := range s.bare.ForeignKeys {
		keys = append(keys, step{"foreign key " + k.Name, l.key(k)})
	}
	for _, t := range s.bare.Triggers {
		last = append(last, step{"trigger " + t.Name, l.switchOn(t)})
	}
	last = append(last, step{"sequence " + zoidSeq, []string{l.raiseSequence(s.record.MaxOID)}})
	var analyze stage
	for _, t := range s.bare.Tables {
		if totals := &s.record.Totals; t == blobState && totals.Blobs+totals.S3Blobs == 0 {
			continue
		}
		analyze = append(analyze, step{"statistics " + t, []string{"ANALYZE " + l.name(t)}})
	}
	stages := []stage{build}
	// These exclude each other by their locks.
	for _, one := range append(append(attach, keys...), last...) {
		stages = append(stages, stage{one})
	}
	return append(stages, analyze)
}

// raiseSequence sets the sequence of new oids above every oid that the source
// has, deleted and dangling ones included. It never goes back.
func (l *layout) raiseSequence(maxOID int64) string {
	name := l.name(zoidSeq)
	return fmt.Sprintf("SELECT setval('%s', %d, false) FROM %s WHERE last_value < %d OR last_value = %d AND is_called",
		strings.ReplaceAll(name, "'", "''"), maxOID+1, name, maxOID+1, maxOID+1)
}

// Finish puts back what was taken down, step by step.
func (s *session) Finish(ctx context.Context) error {
	f := finisher{s: s}
	defer f.close()
	err := s.withControl(ctx, func(conn *pgx.Conn) (err error) {
		f.done, err = s.tables.StepsDone(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	for _, stage := range s.stages() {
		if err := s.uploadsFailed(); err != nil {
			return err
		}
		if err := f.run(ctx, stage); err != nil {
			return err
		}
	}
	fault.Point("finish.phase")
	err = s.withControl(ctx, func(conn *pgx.Conn) error {
		return s.setPhase(ctx, conn, dest.Finishing, dest.CatchingUp)
	})
	if err != nil {
		return err
	}
	s.record.Phase = dest.CatchingUp
	s.upTo = s.plan.Info.MaxTID
	fault.Point("finish.end")
	return nil
}

// finisher runs steps over up to Plan.Workers connections, which it keeps.
type finisher struct {
	s    *session
	done map[string]bool

	mu   sync.Mutex
	idle []*pgx.Conn
	made int
}

func (f *finisher) close() {
	for _, c := range f.idle {
		closeQuietly(c)
	}
}

func (f *finisher) run(ctx context.Context, steps stage) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, f.s.plan.Workers))
	for _, st := range steps {
		if f.done[st.name] {
			continue
		}
		group.Go(func() error { return f.s.logged(st.name, func() error { return f.step(ctx, st) }) })
	}
	return group.Wait()
}

// take returns a connection for a step; give takes it back.
func (f *finisher) take(ctx context.Context) (*pgx.Conn, error) {
	f.mu.Lock()
	if n := len(f.idle); n > 0 {
		conn := f.idle[n-1]
		f.idle = f.idle[:n-1]
		f.mu.Unlock()
		return conn, nil
	}
	f.made++
	role := fmt.Sprintf("f%d", f.made)
	f.mu.Unlock()
	conn, err := f.s.dest.connect.reopen(ctx, f.s.application(role), f.s.dest.config.Wait)
	if err != nil {
		return nil, f.s.dest.plain(err)
	}
	if _, err := conn.Exec(ctx, buildMemory); err != nil {
		closeQuietly(conn)
		return nil, fmt.Errorf("set up the session: %w", err)
	}
	return conn, nil
}

func (f *finisher) give(conn *pgx.Conn) {
	if conn.IsClosed() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = append(f.idle, conn)
}

// buildMemory raises what an index build may take. How much memory the server
// has cannot be asked; shared_buffers, which an administrator sizes by it, is
// the best hint there is. What is configured is never lowered.
const buildMemory = `SELECT set_config('maintenance_work_mem', greatest(m.setting::int8, least(b.setting::int8 * 8, 512 * 1024)) || 'kB', false)
	FROM pg_catalog.pg_settings m, pg_catalog.pg_settings b WHERE m.name = 'maintenance_work_mem' AND b.name = 'shared_buffers'`

// step runs one step until it is recorded as done, connecting again if the
// server was away.
func (f *finisher) step(ctx context.Context, st step) error {
	for again := false; ; again = true {
		conn, err := f.take(ctx)
		if err != nil {
			return err
		}
		err = f.try(ctx, conn, st)
		if err == nil {
			f.give(conn)
			return nil
		}
		gone := lost(err) || conn.IsClosed()
		old := conn.PgConn().PID()
		closeQuietly(conn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// After a lost connection the backend that was left behind may have been
		// faster: then what the step makes is there.
		exists := again && (code(err) == "42P07" || code(err) == "42710" || code(err) == "23505")
		if !gone && !exists {
			if fenced := f.s.fenced(err); fenced != err {
				return fenced
			}
			return stoppedStep(st, err)
		}
		done, e := f.settle(ctx, st, old)
		if e != nil || done {
			return e
		}
		if exists {
			return stoppedStep(st, err)
		}
	}
}

func stoppedStep(st step, err error) error {
	if strings.HasPrefix(code(err), "53") {
		return fmt.Errorf("PostgreSQL has run out of a resource while making %s: %s; make room and go on with --incremental", st.name, serverMessage(err))
	}
	return fmt.Errorf("%s: %w; when the cause is removed go on with --incremental", st.name, err)
}

// settle ends the backend of a lost connection and finds out whether the step
// was committed.
func (f *finisher) settle(ctx context.Context, st step, old uint32) (done bool, err error) {
	err = f.s.withControl(ctx, func(conn *pgx.Conn) error {
		if err := watermark.Terminate(ctx, conn, f.s.record.ID, old); err != nil {
			return err
		}
		steps, err := f.s.tables.StepsDone(ctx, conn)
		done = steps[st.name]
		return err
	})
	return done, err
}

// try is the transaction of a step.
func (f *finisher) try(ctx context.Context, conn *pgx.Conn, st step) error {
	start := time.Now()
	fault.Point("finish.begin")
	pg := conn.PgConn()
	exec := func(sql ...string) error {
		_, err := pg.Exec(ctx, strings.Join(sql, "; ")).ReadAll()
		return err
	}
	rollback := func(err error) error {
		if !conn.IsClosed() {
			_ = exec("ROLLBACK")
		}
		return err
	}
	s := f.s
	if err := exec("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", s.tables.Fence(s.record, dest.Finishing), "SET LOCAL synchronous_commit = on"); err != nil {
		return rollback(err)
	}
	fault.Point("finish.fenced")
	for _, sql := range st.statements {
		if err := exec(sql); err != nil {
			return rollback(err)
		}
	}
	fault.Point("finish.worked")
	if err := exec(s.tables.StepSQL(st.name, time.Since(start))); err != nil {
		return rollback(err)
	}
	fault.Point("finish.commit")
	answer := pg.Exec(ctx, "COMMIT")
	fault.Point("finish.sent")
	if err := committed(answer); err != nil {
		return err
	}
	fault.Point("finish.done")
	return nil
}
