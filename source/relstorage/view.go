package relstorage

import (
	"context"
	"errors"
	"sync"
	"time"
)

// view is the connections that see one state of the database.
//
// A connection is taken for one bounded operation only (the rows of one chunk,
// one page of keys, one slice of a blob), and never while somebody waits for
// memory or for a consumer: everything also works with a single one.
type view struct {
	engine engine
	note   string // why there are fewer connections than asked for, or ""
	free   chan conn
	n      int // connections

	mu   sync.Mutex
	end  error         // why the view is over
	over chan struct{} // closed when end is set
}

// extraConnections are there beside those that read rows, for blobs.
const extraConnections = 2

// newView opens up to n connections that see the newest state.
func (s *Source) newView(ctx context.Context, n int) (*view, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conns, note, err := s.engine.view(ctx, n)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, s.engine.plain(err)
	}
	v := &view{engine: s.engine, note: note, free: make(chan conn, len(conns)), n: len(conns), over: make(chan struct{})}
	for _, c := range conns {
		v.free <- c
	}
	return v, nil
}

// grace is how long an operation may go on after it was cancelled. Breaking one
// off costs the connection, and often the view; most end at once by themselves.
const grace = 2 * time.Second

// do calls fn with a connection of the view. What fn passes on as its context is
// cancelled somewhat later than ctx.
func (v *view) do(ctx context.Context, fn func(conn) error) error {
	c, err := v.take(ctx)
	if err != nil {
		return err
	}
	err = fn(&patient{conn: c})
	if err != nil {
		lost := v.engine.lost(err)
		err = v.engine.plain(err)
		if lost {
			v.lose(c, err)
		}
	}
	v.free <- c
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (v *view) take(ctx context.Context) (conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-v.over:
		return nil, v.ended()
	default:
	}
	select {
	case c := <-v.free:
		return c, nil
	case <-v.over:
		return nil, v.ended()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lose ends the view with one of its connections: what that saw cannot be seen
// again by another.
func (v *view) lose(c conn, why error) {
	_ = c.close()
	v.finish(why)
}

func (v *view) finish(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.end == nil {
		v.end = why
		close(v.over)
	}
}

func (v *view) ended() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.end
}

var errIdle = errors.New("relstorage: the view was let go")

// close ends the connections, and waits for those that are in use.
func (v *view) close() {
	v.finish(errIdle)
	for range v.n {
		_ = (<-v.free).close()
	}
}

// patient gives the queries of a connection more time to end than their context.
type patient struct{ conn }

func (p *patient) query(ctx context.Context, q string, fn func(row) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hard, stop := lenient(ctx)
	defer stop()
	return p.conn.query(hard, q, func(r row) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return fn(r)
	})
}

func (p *patient) readBlob(ctx context.Context, b *storedBlob, data []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	hard, stop := lenient(ctx)
	defer stop()
	return p.conn.readBlob(hard, b, data, off)
}

// lenient is cancelled some time after ctx is.
func lenient(ctx context.Context) (context.Context, func()) {
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var timer *time.Timer
	var mu sync.Mutex
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		timer = time.AfterFunc(grace, cancel)
	})
	return hard, func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
		cancel()
	}
}
