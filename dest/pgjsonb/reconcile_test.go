package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// comparing is a run with a table that a test takes step by step.
type comparing struct {
	t       testing.TB
	src     source.Table
	dst     dest.Destination
	session dest.Session
	// between is called before each chunk of differences, with its number.
	between func(chunk int)
}

// compareWith begins a run.
func compareWith(t testing.TB, dst dest.Destination, b *desttest.Table, more bool) *comparing {
	t.Helper()
	r := &comparing{t: t, src: b.Source(), dst: dst}
	t.Cleanup(func() { dst.Close() })
	var until int64
	state, err := dst.State(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if state.Condition == dest.Interrupted {
		until = state.Run.Source.End
	}
	info, err := r.src.Scan(t.Context(), source.ScanOptions{Until: until, History: dst.HistoryPreserving()})
	if err != nil {
		t.Fatal(err)
	}
	r.session, err = dst.Begin(t.Context(), &dest.Plan{
		Info: info, Workers: 1, Tool: "test", Continue: more, Log: func(dest.Step) {},
		Options: dest.Options{HistoryPreserving: dst.HistoryPreserving(), ChunkBytes: chunkBytes},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.session.Close() })
	return r
}

// load loads and finishes.
func (r *comparing) load() {
	r.t.Helper()
	ctx := r.t.Context()
	w, err := r.session.Writer(ctx, r.src)
	if err != nil {
		r.t.Fatal(err)
	}
	defer w.Close()
	err = r.src.Read(ctx, source.ReadOptions{History: r.dst.HistoryPreserving(), Budget: unbounded{}}, func(c *source.Chunk) error {
		_, err := w.Write(ctx, c)
		return err
	})
	if err == nil {
		err = r.session.Loaded(ctx, r.src)
	}
	if err == nil {
		err = r.session.Finish(ctx)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// compare compares the newest state with the destination.
func (r *comparing) compare() (total dest.Result, err error) {
	ctx := r.t.Context()
	history := r.dst.HistoryPreserving()
	if _, err := r.src.Scan(ctx, source.ScanOptions{History: history}); err != nil {
		return total, err
	}
	have, free, err := r.session.Have(ctx)
	if err != nil {
		return total, err
	}
	defer free()
	w, err := r.session.Reconciler(ctx, r.src)
	if err != nil {
		return total, err
	}
	defer w.Close()
	n := 0
	return total, r.src.Differences(ctx, have, source.DifferenceOptions{ReadOptions: source.ReadOptions{History: history, Budget: unbounded{}}}, func(c *source.Chunk) error {
		if r.between != nil {
			r.between(n)
		}
		n++
		result, err := w.Write(ctx, c)
		if err == nil {
			total.Add(result)
		}
		return err
	})
}

// give lets the reconciler write chunks that a test has made.
func (r *comparing) give(chunks ...*source.Chunk) (total dest.Result) {
	r.t.Helper()
	ctx := r.t.Context()
	_, free, err := r.session.Have(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	defer free()
	w, err := r.session.Reconciler(ctx, r.src)
	if err != nil {
		r.t.Fatal(err)
	}
	defer w.Close()
	for _, c := range chunks {
		result, err := w.Write(ctx, c)
		if err != nil {
			r.t.Fatal(err)
		}
		total.Add(result)
	}
	return total
}

func (r *comparing) complete() {
	r.t.Helper()
	if err := r.session.Complete(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func (d *database) checkTable(t testing.TB, b *desttest.Table, history bool) {
	t.Helper()
	if diff := cmp.Diff(b.Want(history), d.Contents(t, history)); diff != "" {
		t.Fatalf("contents (-want +got):\n%s", diff)
	}
}

// someTable has objects 0 to 49, one a transaction.
func someTable(history bool) *desttest.Table {
	b := desttest.NewTable(history)
	for oid := range zodb.OID(50) {
		b.Commit(desttest.Transaction{TID: zodb.TID(oid+1) << 40}, thing(oid, "first"))
	}
	return b
}

// changed changes each other object.
func changed(b *desttest.Table) {
	for oid := zodb.OID(0); oid < 50; oid += 2 {
		b.Commit(desttest.Transaction{TID: zodb.TID(oid+100) << 40}, thing(oid, "second"))
	}
}

func TestDatabaseThatASiteHasWrittenToIsNotMadeEqualToTheSource(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), someTable(history)
		r := compareWith(t, d.Open(t, history), b, true)
		r.load()
		changed(b)
		// Below the highest tid of the source by now, so that only the count tells.
		d.exec(t, fmt.Sprintf("INSERT INTO transaction_log (tid, username) VALUES (%d, 'editor')", int64(60)<<40))
		_, err := r.compare()
		var foreign *source.ForeignError
		if !errors.As(err, &foreign) || !strings.Contains(err.Error(), "51 transactions") {
			t.Fatalf("a site that has written since the load gives %v", err)
		}
		isRefused(t, r.session.Foreign(t.Context(), foreign), "51 transactions", d.name(), "--clear")
		d.exec(t, fmt.Sprintf("DELETE FROM transaction_log WHERE tid = %d", int64(60)<<40))
		if _, err := r.compare(); err != nil {
			t.Fatal(err)
		}
		r.complete()
		d.checkTable(t, b, history)

		// Of a finished database only tids tell. Such a run leaves nothing.
		d.exec(t, fmt.Sprintf("INSERT INTO transaction_log (tid) VALUES (%d)", int64(9)<<50))
		r = compareWith(t, d.Open(t, history), b, true)
		before := d.Rows(t)
		if _, err = r.compare(); !errors.As(err, &foreign) {
			t.Fatalf("a site that has written gives %v", err)
		}
		isRefused(t, r.session.Foreign(t.Context(), foreign), "above all of the source")
		if diff := cmp.Diff(before, d.Rows(t)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		if got := d.query(t, "SELECT to_regclass('zodb_convert_run') IS NULL"); got[0] != "t" {
			t.Error("the run is still there")
		}
		if history {
			return
		}
		// A source without history gives no transaction a user, so that one tells
		// whatever its tid.
		d.exec(t, fmt.Sprintf("UPDATE transaction_log SET tid = %d, username = 'editor' WHERE tid = %d", int64(60)<<40, int64(9)<<50))
		r = compareWith(t, d.Open(t, history), b, true)
		if _, err = r.compare(); !errors.As(err, &foreign) {
			t.Fatalf("a site that has written below the highest tid gives %v", err)
		}
		isRefused(t, r.session.Foreign(t.Context(), foreign), "1 transaction with a user or a description")
	})
}

func TestSiteThatWritesWhileItIsCompared(t *testing.T) {
	for name, sql := range map[string]string{
		"a new transaction":   "INSERT INTO transaction_log (tid) VALUES (1152921504606846976)",
		"one that is no more": fmt.Sprintf("DELETE FROM object_state WHERE tid = %[1]d; DELETE FROM transaction_log WHERE tid = %[1]d", int64(4)<<40),
	} {
		t.Run(name, func(t *testing.T) {
			d, b := newDatabase(t), someTable(true)
			r := compareWith(t, d.Open(t, false), b, false)
			r.load()
			r.complete()
			changed(b)
			r = compareWith(t, d.Open(t, false), b, true)
			r.between = func(chunk int) {
				if chunk == 2 {
					d.exec(t, sql)
				}
			}
			_, err := r.compare()
			if err == nil || !strings.Contains(err.Error(), "stop the site") {
				t.Fatalf("a site that writes meanwhile gives %v", err)
			}
			if n := d.query(t, "SELECT count(*) FROM object_state WHERE state->>'text' = 'second'"); n[0] != "0" {
				t.Errorf("%s objects were written", n[0])
			}
		})
	}
}

func TestConnectionThatIsLostWhileComparingChangesNothing(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		for _, place := range []int{0, 1, 3} {
			d, b := newDatabase(t), someTable(true)
			r := compareWith(t, d.Open(t, history), b, true)
			r.load()
			before := d.Contents(t, history)
			changed(b)
			r.between = func(chunk int) {
				if chunk == place {
					d.kill(t)
				}
			}
			_, err := r.compare()
			if err == nil || !strings.Contains(err.Error(), "go on with --incremental") || strings.Contains(err.Error(), "\n") {
				t.Fatalf("lost before chunk %d: %v", place, err)
			}
			if diff := cmp.Diff(before, d.Contents(t, history)); diff != "" {
				t.Fatalf("(-before +after):\n%s", diff)
			}
			r.session.Close()
			r = compareWith(t, d.Open(t, history), b, true)
			if _, err := r.compare(); err != nil {
				t.Fatal(err)
			}
			r.complete()
			d.checkTable(t, b, history)
		}
	})
}

// A commit whose answer is lost is looked up: it took effect, or never will.
func TestAnswerToTheCommitThatIsLost(t *testing.T) {
	for _, arrives := range []bool{true, false} {
		t.Run(fmt.Sprintf("arrives=%v", arrives), func(t *testing.T) {
			d, b := newDatabase(t), someTable(true)
			r := compareWith(t, d.Open(t, true), b, false)
			r.load()
			r.complete()
			changed(b)
			// COMMIT takes a while, because of a trigger that is put off until then.
			d.exec(t, `CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$ LANGUAGE plpgsql;
				CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON object_state DEFERRABLE INITIALLY DEFERRED
				FOR EACH ROW WHEN (NEW.zoid = 0) EXECUTE FUNCTION wait()`)
			p := newProxy(t, d)
			r = compareWith(t, d.open(t, pgjsonb.Config{HistoryPreserving: true, DSN: p.dsn(d)}), b, true)
			ended := make(chan struct{})
			var total dest.Result
			var err error
			go func() {
				defer close(ended)
				total, err = r.compare()
			}()
			d.until(t, `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%COMMIT%' AND wait_event = 'PgSleep' AND datname = current_database()`)
			if arrives {
				p.deafen()
				d.until(t, `SELECT count(*) FROM object_state WHERE state->>'text' = 'second'`)
				p.cut()
			} else {
				d.kill(t)
			}
			<-ended
			want := "25"
			if arrives {
				if err != nil || total.Objects != 25 {
					t.Fatalf("a commit whose answer was lost gives %d objects and %v", total.Objects, err)
				}
				r.complete()
				d.checkTable(t, b, true)
			} else {
				if err == nil || !strings.Contains(err.Error(), "go on with --incremental") {
					t.Fatalf("a commit that did not take place gives %v", err)
				}
				want = "0"
			}
			if got := d.query(t, `SELECT count(*) FROM object_state WHERE state->>'text' = 'second'`); got[0] != want {
				t.Errorf("%s objects were written, want %s", got[0], want)
			}
		})
	}
}

// until waits for a count that is not 0.
func (d *database) until(t testing.TB, sql string) {
	t.Helper()
	for range 400 {
		if d.query(t, sql)[0] != "0" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("in vain: %s", sql)
}

// proxy lets connections to the server through, until it is told otherwise.
type proxy struct {
	listener net.Listener
	server   string

	mu    sync.Mutex
	deaf  chan struct{} // closed: what the server says stays here
	pairs []net.Conn
}

func newProxy(t testing.TB, d *database) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var host, port string
	for _, f := range strings.Fields(d.dsn) {
		if k, v, _ := strings.Cut(f, "="); k == "host" {
			host = v
		} else if k == "port" {
			port = v
		}
	}
	p := &proxy{listener: listener, server: host + "/.s.PGSQL." + port, deaf: make(chan struct{})}
	go p.accept()
	t.Cleanup(func() { listener.Close(); p.cut() })
	return p
}

func (p *proxy) dsn(d *database) string {
	_, port, _ := net.SplitHostPort(p.listener.Addr().String())
	var out []string
	for _, f := range strings.Fields(d.dsn) {
		switch k, _, _ := strings.Cut(f, "="); k {
		case "host":
			f = "host=127.0.0.1"
		case "port":
			f = "port=" + port
		}
		out = append(out, f)
	}
	return strings.Join(append(out, "sslmode=disable", "password=zope-secret"), " ")
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", p.server)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.pairs = append(p.pairs, client, server)
		deaf := p.deaf
		p.mu.Unlock()
		go func() { _, _ = io.Copy(server, client); server.Close() }()
		go p.answers(client, server, deaf)
	}
}

func (p *proxy) answers(client, server net.Conn, deaf chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			client.Close()
			return
		}
		select {
		case <-deaf:
			continue
		default:
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// deafen keeps what the server says from the connections that are there.
func (p *proxy) deafen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.deaf)
	p.deaf = make(chan struct{})
}

// cut ends the connections that are there.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pairs {
		c.Close()
	}
	p.pairs = nil
}

// Revisions may become current that were history, and the other way round.
func TestRevisionsChangePlaces(t *testing.T) {
	d, b := newDatabase(t), desttest.NewTable(true)
	first, second, third := zodb.TID(1<<40), zodb.TID(2<<40), zodb.TID(3<<40)
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"), thing(1, "a"), thing(2, "a"), desttest.BlobOf(3, []byte("old")), thing(4, "a"))
	b.Commit(desttest.Transaction{TID: second}, thing(1, "b"), thing(2, "b"), desttest.BlobOf(3, []byte("new")), desttest.Record{OID: 4})
	r := compareWith(t, d.Open(t, true), b, true)
	r.load()
	record := func(oid zodb.OID, tid zodb.TID, text string, current bool) source.Record {
		one := source.Record{OID: oid, TID: tid, Current: current, Raw: thing(oid, text).Data}
		if text == "" {
			one.Raw, one.Deleted = nil, true
		}
		return one
	}
	blob := desttest.BlobOf(3, nil).Data
	total := r.give(
		&source.Chunk{Transactions: []source.Transaction{{TID: third}}, Records: []source.Record{
			record(1, first, "a", true), record(1, second, "b", false), // places changed
			record(2, second, "b", false), record(2, third, "", true), // deleted
		}},
		&source.Chunk{
			Records: []source.Record{
				{OID: 3, TID: first, Raw: blob, Current: true}, // what came after it is gone
				record(4, third, "c", true),                    // made again, and its deletion forgotten
			},
			Gone: []source.Key{{OID: 3, TID: second, Current: true}, {OID: 4, TID: second}}, EndsTransaction: true,
		})
	want := desttest.Contents{
		Transactions: []zodb.TID{first, second, third},
		Current:      map[zodb.OID]zodb.TID{0: first, 1: first, 3: first, 4: third},
		Older: []desttest.Revision{{OID: 1, TID: second}, {OID: 2, TID: first}, {OID: 2, TID: second}, {OID: 2, TID: third, Gone: true},
			{OID: 4, TID: first}},
		Blobs: []desttest.Blob{{OID: 3, TID: first, Size: 3}},
	}
	if diff := cmp.Diff(want, d.Contents(t, true)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if total.Gone != 2 || total.Deleted != 1 || total.Objects != 3 || total.Revisions != 2 {
		t.Errorf("counted are %+v", total)
	}
	if got := string(d.Blob(t, 3, first)); got != "old" {
		t.Errorf("the blob is %q", got)
	}
}

func TestTriggerThatKeepsRowsStopsTheComparison(t *testing.T) {
	d, b := newDatabase(t), someTable(true)
	r := compareWith(t, d.Open(t, false), b, false)
	r.load()
	r.complete()
	d.exec(t, `CREATE FUNCTION keep() RETURNS trigger AS $$ BEGIN RETURN NULL; END $$ LANGUAGE plpgsql;
		CREATE TRIGGER keep BEFORE DELETE ON object_state FOR EACH ROW EXECUTE FUNCTION keep()`)
	b.Commit(desttest.Transaction{TID: 90 << 40}, desttest.Record{OID: 7})
	r = compareWith(t, d.Open(t, false), b, true)
	if _, err := r.compare(); err == nil || !strings.Contains(err.Error(), "trigger") {
		t.Errorf("a trigger that keeps rows gives %v", err)
	}
}

func TestColumnsOfAddOnsOutliveTheComparison(t *testing.T) {
	d, b := newDatabase(t), someTable(false)
	r := compareWith(t, d.Open(t, false), b, false)
	r.load()
	r.complete()
	d.exec(t, "ALTER TABLE object_state ADD COLUMN path text; UPDATE object_state SET path = '/' || zoid")
	changed(b)
	r = compareWith(t, d.Open(t, false), b, true)
	if _, err := r.compare(); err != nil {
		t.Fatal(err)
	}
	r.complete()
	d.checkTable(t, b, false)
	if got := d.query(t, "SELECT count(*) FROM object_state WHERE path = '/' || zoid"); got[0] != "50" {
		t.Errorf("%s of 50 objects have kept their paths", got[0])
	}
}

// What is there is given in order, each key once, to readers that take turns.
func TestKeysOfTwoPlacesAreGivenInOrder(t *testing.T) {
	d := newDatabase(t)
	r := compareWith(t, d.Open(t, true), someTable(true), false)
	r.load()
	d.exec(t, `INSERT INTO object_history SELECT zoid, tid - n, class_mod, class_name, state, state_size FROM object_state, generate_series(0, 300) n;
		INSERT INTO zodb_convert_reject VALUES (0, 3, 17, '', '', NULL), (0, 60, 17, '', '', NULL)`)
	have, free, err := r.session.Have(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	tids, stop := iter.Pull2(have.Transactions)
	defer stop()
	var last source.Key
	n, current, rejected := 0, 0, 0
	for k, err := range have.Keys {
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && (k.OID < last.OID || k.OID == last.OID && k.TID <= last.TID) {
			t.Fatalf("%v stands behind %v", k, last)
		}
		if k.Current {
			current++
			if tid, err, _ := tids(); err != nil || tid != k.TID {
				t.Fatalf("transaction %v is given for %v (%v)", tid, k, err)
			}
		}
		if k.Rejected {
			rejected++
		}
		n, last = n+1, k
	}
	if n != 50*301+2 || current != 50 || rejected != 2 {
		t.Errorf("%d keys are given, %d of them current and %d rejected", n, current, rejected)
	}
	ctx, cancel := context.WithCancel(t.Context())
	broken, freeBroken, err := r.session.Have(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer freeBroken()
	cancel()
	for _, err := range broken.Transactions {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a context that has ended gives %v", err)
		}
	}
}
