package pgjsonb_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// kill ends the backends of our runs in a database, as an administrator or a
// failing network would.
func (d *database) kill(t testing.TB) {
	d.server.Exec(t, d.server.DSN("postgres"), fmt.Sprintf(
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s' AND application_name LIKE 'zodb-convert %%'", d.name()))
}

func TestLostConnectionsAreMadeAgain(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.Sample(history)
		dst := d.Open(t, history)
		defer dst.Close()
		l, err := begin(t, dst, b, func(p *dest.Plan) {
			p.Log = func(s dest.Step) {
				if !s.Done && strings.HasPrefix(s.Name, "index ") {
					d.kill(t)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		l.between = func(int) { d.kill(t) }
		if err := l.finish(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Want(history), d.Contents(t, history)); diff != "" {
			t.Error(diff)
		}
		if l.totals.Transactions != int64(b.Len()) {
			t.Errorf("%d transactions were counted, want %d", l.totals.Transactions, b.Len())
		}
		// While catching up, too.
		more := desttest.Sample(history)
		for i := range 5 {
			more.Commit(desttest.Transaction{TID: 1<<59 + zodb.TID(i)<<20}, desttest.Record{OID: 3, Data: desttest.Data("a", "B", fmt.Sprint(i))})
		}
		if l, err = begin(t, dst, more, func(p *dest.Plan) { p.Continue = true }); err != nil {
			t.Fatal(err)
		}
		l.between = func(int) { d.kill(t) }
		if err := l.follow(); err != nil {
			t.Fatal(err)
		}
		if err := l.session.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(more.Want(history), d.Contents(t, history)); diff != "" {
			t.Error(diff)
		}
	})
}

// ownServer is a server that a test may stop, with a database on it.
func ownServer(t *testing.T) *database {
	// A flush every 10 s lets a crash forget commits that did not wait for it.
	s := pgtest.Start(t, pgtest.Setting("wal_writer_delay", "10s"), pgtest.Setting("wal_writer_flush_after", "100MB"))
	s.NewRole(t, "zope", "zope-secret")
	return &database{server: s, dsn: strings.Replace(s.NewDatabase(t, "OWNER zope"), "user=postgres", "user=zope", 1)}
}

func TestServerThatIsRestartedIsWaitedFor(t *testing.T) {
	d, b := ownServer(t), desttest.Sample(false)
	dst := d.open(t, pgjsonb.Config{Wait: 20 * time.Second})
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.between = func(chunk int) {
		if chunk != 4 {
			return
		}
		if err := d.server.Stop("fast"); err != nil {
			t.Error(err)
		}
		time.AfterFunc(time.Second, func() {
			if err := d.server.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.Want(false), d.Contents(t, false)); diff != "" {
		t.Error(diff)
	}
}

func TestServerThatForgetsChunksInACrashStopsTheRun(t *testing.T) {
	d, b := ownServer(t), desttest.Sample(false)
	dst := d.open(t, pgjsonb.Config{Wait: 20 * time.Second})
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	forgot := false
	l.between = func(chunk int) {
		if chunk != 6 || forgot {
			return
		}
		forgot = true
		if err := d.server.Stop("immediate"); err != nil {
			t.Error(err)
		}
		if err := d.server.Run(); err != nil {
			t.Error(err)
		}
	}
	err = l.finish()
	if err == nil || !strings.Contains(err.Error(), "lost the last") || !strings.Contains(err.Error(), "--incremental") {
		t.Fatalf("a crash that forgets commits gives %v", err)
	}
	l.session.Close()
	if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue = true }); err != nil {
		t.Fatal(err)
	}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.Want(false), d.Contents(t, false)); diff != "" {
		t.Error(diff)
	}
}

func TestServerThatStaysAwayStopsTheRun(t *testing.T) {
	d, b := ownServer(t), desttest.Sample(false)
	dst := d.open(t, pgjsonb.Config{Wait: 500 * time.Millisecond})
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.between = func(chunk int) {
		if chunk == 2 {
			if err := d.server.Stop("immediate"); err != nil {
				t.Error(err)
			}
		}
	}
	err = l.finish()
	if err == nil || !strings.Contains(err.Error(), "--incremental") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a server that is away gives %q", err)
	}
}

func TestRunThatWasTakenOverWritesNothingMore(t *testing.T) {
	d, b := newDatabase(t), desttest.Sample(false)
	dst := d.Open(t, false)
	defer dst.Close()
	first, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.load(2); err != nil {
		t.Fatal(err)
	}
	// The network hides the first run from the second.
	var second *loading
	first.between = func(chunk int) {
		if chunk != 1 {
			return
		}
		d.kill(t)
		var err error
		for range 50 {
			if second, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue = true }); err == nil {
				return
			}
			d.kill(t)
		}
		t.Errorf("the run cannot be taken over: %v", err)
	}
	err = first.load(-1)
	if !errors.Is(err, watermark.ErrTakenOver) {
		t.Fatalf("the first run goes on: %v", err)
	}
	if err := first.session.Loaded(t.Context(), first.src); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("the first run ends its load: %v", err)
	}
	if err := first.session.Finish(t.Context()); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("the first run finishes: %v", err)
	}
	if err := first.session.Complete(t.Context()); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("the first run completes: %v", err)
	}
	if err := second.finish(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.Want(false), d.Contents(t, false)); diff != "" {
		t.Error(diff)
	}
}
