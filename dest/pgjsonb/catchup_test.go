package pgjsonb_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

func thing(oid zodb.OID, text string) desttest.Record {
	return desttest.Record{OID: oid, Data: desttest.Data("app", "Thing", text)}
}

// catchUp opens a run that catches up.
func catchUp(t *testing.T, d *database, b *desttest.Builder, history bool) *loading {
	t.Helper()
	dst := d.Open(t, history)
	t.Cleanup(func() { dst.Close() })
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.Continue = true })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTidsThatFallBehindTheLoad(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"))
		convert(t, d, b, history)
		b.Commit(desttest.Transaction{TID: 9 << 40}, thing(1, "b"))
		b.Commit(desttest.Transaction{TID: 7 << 40}, thing(1, "c"), thing(2, "d"))
		l := catchUp(t, d, b.Prefix(1), history)
		l.src = b.Source(t)
		if _, err := l.src.Scan(t.Context(), scanAll); err != nil {
			t.Fatal(err)
		}
		err := l.follow()
		if history {
			isRefused(t, err, "0x0000070000000000", "0x0000090000000000")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := l.session.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Want(false), d.Contents(t, false)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSiteThatWritesWhileItIsCaughtUp(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"))
	convert(t, d, b, false)
	for i := range zodb.TID(20) {
		b.Commit(desttest.Transaction{TID: (9 + i) << 40}, thing(1, strings.Repeat("x", 500)))
	}
	l := catchUp(t, d, b, false)
	l.between = func(chunk int) {
		if chunk == 3 {
			d.exec(t, "INSERT INTO transaction_log (tid) VALUES (1152921504606846976)")
		}
	}
	if err := l.follow(); err == nil || !strings.Contains(err.Error(), "1 transaction more") {
		t.Errorf("a site that writes meanwhile gives %v", err)
	}
}

func TestColumnsOfAddOnsOutliveCatchingUp(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"), thing(2, "b"))
	convert(t, d, b, false)
	d.exec(t, "ALTER TABLE object_state ADD COLUMN path text; UPDATE object_state SET path = '/' || zoid")
	b.Commit(desttest.Transaction{TID: 6 << 40}, thing(1, "c"), thing(3, "d"), desttest.Record{OID: 2})
	l := catchUp(t, d, b, false)
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"0|/0|root", "1|/1|c", "3||d"}
	if diff := cmp.Diff(want, d.query(t, "SELECT zoid, path, state->>'text' FROM object_state ORDER BY zoid")); diff != "" {
		t.Error(diff)
	}
}
