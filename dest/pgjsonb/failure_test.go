package pgjsonb_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// noted collects what a destination tells.
type noted struct {
	mu    sync.Mutex
	texts []string
}

func (n *noted) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.texts = append(n.texts, text)
}

// TestARecordThatThisProgramFailsOnIsARejectWithTheStackInTheLog: everything
// else is written.
func TestARecordThatThisProgramFailsOnIsARejectWithTheStackInTheLog(t *testing.T) {
	b := desttest.NewBuilder()
	var records []desttest.Record
	for oid := range 30 {
		text := fmt.Sprint("record ", oid)
		if oid == 7 || oid == 29 {
			text = "poison"
		}
		records = append(records, desttest.Record{OID: zodb.OID(oid), Data: desttest.Data("m", "C", text)})
	}
	b.Commit(desttest.Transaction{TID: 1 << 50}, records...)

	d, log := newDatabase(t), &noted{}
	dst := d.open(t, pgjsonb.Config{Note: log.note})
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptRejects = true })
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.session.Writer(t.Context(), l.src)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	pgjsonb.FailOn(w, "poison")
	opts := source.ReadOptions{ChunkBytes: chunkBytes, Budget: unbounded{}}
	if err := l.src.Read(t.Context(), opts, func(c *source.Chunk) error {
		defer c.Release()
		r, err := w.Write(t.Context(), c)
		if err == nil {
			l.totals.Add(r)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if l.totals.Objects != 28 || l.totals.Rejected != 2 {
		t.Errorf("%d objects, %d rejects", l.totals.Objects, l.totals.Rejected)
	}
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	var rejected []string
	if err := l.session.Rejects(t.Context(), func(r *dest.Reject) error {
		rejected = append(rejected, fmt.Sprint(uint64(r.OID)))
		if !strings.Contains(r.Reason, "mistake in this program") || !strings.Contains(r.Reason, "out of range") || strings.Contains(r.Reason, "goroutine") {
			t.Errorf("reason %q", r.Reason)
		}
		if !strings.Contains(string(r.Data), "poison") {
			t.Errorf("the record is not kept: %q", r.Data)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"7", "29"}, rejected); diff != "" {
		t.Errorf("rejects:\n%s", diff)
	}
	if len(log.texts) != 2 {
		t.Fatalf("%d notes", len(log.texts))
	}
	for _, text := range log.texts {
		if !strings.Contains(text, "export_test.go") || !strings.HasPrefix(text, "oid ") || !strings.Contains(text, "goroutine") {
			t.Errorf("no stack in %q", text)
		}
	}
}

// TestManyFailuresAreNotAllTold: a mistake of ours may hit every record.
func TestManyFailuresAreNotAllTold(t *testing.T) {
	b := desttest.NewBuilder()
	for i := range 40 {
		b.Commit(desttest.Transaction{TID: 1<<50 + zodb.TID(i)<<20}, desttest.Record{OID: zodb.OID(i), Data: desttest.Data("m", "C", "poison")})
	}
	log := &noted{}
	dst := newDatabase(t).open(t, pgjsonb.Config{Note: log.note})
	defer dst.Close()
	src := b.Source(t)
	if _, err := src.Scan(t.Context(), scanAll); err != nil {
		t.Fatal(err)
	}
	w := dst.DryWriter(src)
	defer w.Close()
	pgjsonb.FailOn(w, "poison")
	var total dest.Result
	if err := src.Read(t.Context(), source.ReadOptions{ChunkBytes: chunkBytes, Budget: unbounded{}}, func(c *source.Chunk) error {
		defer c.Release()
		r, err := w.Write(t.Context(), c)
		if err == nil {
			total.Add(r)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if total.Rejected != 40 || len(log.texts) != dest.ListMax {
		t.Errorf("%d rejects, %d notes", total.Rejected, len(log.texts))
	}
}

// fragile is a source that fails on some records.
type fragile struct {
	source.Log
	on zodb.OID
}

func (f fragile) Data(ctx context.Context, r *source.Record, scratch *[]byte) ([]byte, error) {
	if r.OID == f.on {
		panic("a mistake in the source")
	}
	return f.Log.Data(ctx, r, scratch)
}

func TestARecordThatTheSourceFailsOnIsAReject(t *testing.T) {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 1 << 50}, desttest.Record{OID: 0, Data: desttest.Data("m", "C", "root")},
		desttest.Record{OID: 1, Data: desttest.Data("m", "C", "one")}, desttest.Record{OID: 2, Data: desttest.Data("m", "C", "two")})
	d, log := newDatabase(t), &noted{}
	dst := d.open(t, pgjsonb.Config{Note: log.note})
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptRejects = true })
	if err != nil {
		t.Fatal(err)
	}
	l.src = fragile{l.src, 1}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	if l.totals.Objects != 2 || l.totals.Rejected != 1 || len(log.texts) != 1 {
		t.Errorf("%d objects, %d rejects, notes %q", l.totals.Objects, l.totals.Rejected, log.texts)
	}
}

// shared is a record that holds one list twice.
const shared = "cm\nShared\n.}(X\x01\x00\x00\x00a]q\x00K\x01aX\x01\x00\x00\x00bh\x00u."

func TestSharingIsPreservedOnRequestAndForTheWholeRun(t *testing.T) {
	b := desttest.NewBuilder()
	for i := range 60 {
		b.Commit(desttest.Transaction{TID: 1<<50 + zodb.TID(i)<<20}, desttest.Record{OID: zodb.OID(i), Data: []byte(shared)})
	}
	d := newDatabase(t)
	dst := d.open(t, pgjsonb.Config{PreserveSharing: true})
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(1); err != nil {
		t.Fatal(err)
	}
	l.session.Close()

	plain := d.open(t, pgjsonb.Config{})
	defer plain.Close()
	_, err = begin(t, plain, b, func(p *dest.Plan) { p.Continue = true })
	isRefused(t, err, "--preserve-sharing is true there and false now")

	l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue = true })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	total := l.session.Run().Totals
	if total.Forms["capsule-shared"] != 60 || total.Forms["shared-copied"] != 0 {
		t.Errorf("forms %v", total.Forms)
	}
	want := map[string]*dest.ClassCounts{"capsule-shared": {Classes: []dest.ClassCount{{Class: "m.Shared", Records: 60}}}}
	if diff := cmp.Diff(want, total.FormClasses); diff != "" {
		t.Errorf("form classes (-want +got):\n%s", diff)
	}
	if n := d.query(t, "SELECT count(*) FROM object_state WHERE state #>> '{@reduce,callable,@reduce,args,@t,1,@t,0,@cls,0}' = 'pickle'")[0]; n != "60" {
		t.Errorf("%s capsules", n)
	}
}
