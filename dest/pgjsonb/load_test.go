package pgjsonb_test

import (
	"context"
	"errors"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/source"
)

// unbounded is a budget without bound.
type unbounded struct{}

func (unbounded) Acquire(ctx context.Context, _ int64) error { return ctx.Err() }
func (unbounded) Release(int64)                              {}

const chunkBytes = 700

// loading is a run that a test takes step by step.
type loading struct {
	t       testing.TB
	src     source.Log
	session dest.Session
	totals  dest.Result
	// between is called before each chunk.
	between func(chunk int)
}

func begin(t testing.TB, dst dest.Destination, b *desttest.Builder, change func(*dest.Plan)) (*loading, error) {
	t.Helper()
	l := &loading{t: t, src: b.Source(t)}
	info, err := l.src.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plan := &dest.Plan{
		Info: info, Workers: 1, Tool: "test", Log: func(dest.Step) {},
		Options: dest.Options{HistoryPreserving: dst.HistoryPreserving(), ChunkBytes: chunkBytes},
	}
	if change != nil {
		change(plan)
	}
	if l.session, err = dst.Begin(t.Context(), plan); err != nil {
		return nil, err
	}
	t.Cleanup(func() { l.session.Close() })
	return l, nil
}

var errEnough = errors.New("enough")

// load writes chunks with one writer, at most so many.
func (l *loading) load(most int) error {
	w, err := l.session.Writer(l.t.Context(), l.src)
	if err != nil {
		return err
	}
	defer w.Close()
	n := 0
	opts := source.ReadOptions{History: l.session.Run().Options.HistoryPreserving, ChunkBytes: chunkBytes, Done: l.session.Run().Done, Budget: unbounded{}}
	err = l.src.Read(l.t.Context(), opts, func(c *source.Chunk) error {
		defer c.Release()
		if n == most {
			return errEnough
		}
		if l.between != nil {
			l.between(n)
		}
		n++
		r, err := w.Write(l.t.Context(), c)
		if err == nil {
			l.totals.Add(r)
		}
		return err
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// follow catches up.
func (l *loading) follow() error {
	from, err := l.session.Verify(l.t.Context(), l.src)
	if err != nil {
		return err
	}
	w, err := l.session.Follower(l.t.Context(), l.src)
	if err != nil {
		return err
	}
	defer w.Close()
	opts := source.ReadOptions{History: l.session.Run().Options.HistoryPreserving, ChunkBytes: chunkBytes, Budget: unbounded{}}
	n := 0
	return l.src.Follow(l.t.Context(), from, opts, func(c *source.Chunk) error {
		defer c.Release()
		if l.between != nil {
			l.between(n)
		}
		n++
		_, err := w.Write(l.t.Context(), c)
		return err
	})
}

func (l *loading) finish() error {
	if err := l.finishSteps(); err != nil {
		return err
	}
	return l.session.Complete(l.t.Context())
}

// finishSteps leaves the run's record there.
func (l *loading) finishSteps() error {
	if err := l.load(-1); err != nil {
		return err
	}
	if err := l.session.Loaded(l.t.Context(), l.src); err != nil {
		return err
	}
	return l.session.Finish(l.t.Context())
}

func run(t testing.TB, d *database, b *desttest.Builder, history bool, change func(*dest.Plan)) (*loading, error) {
	t.Helper()
	dst := d.Open(t, history)
	defer dst.Close()
	l, err := begin(t, dst, b, change)
	if err != nil {
		return nil, err
	}
	defer l.session.Close()
	return l, l.finish()
}

func convert(t testing.TB, d *database, b *desttest.Builder, history bool) *loading {
	t.Helper()
	l, err := run(t, d, b, history, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// scanAll looks at everything.
var scanAll source.ScanOptions
