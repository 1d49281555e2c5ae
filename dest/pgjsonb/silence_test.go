package pgjsonb_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

func TestBlobThatCameAfterTheLoadIsListedAsMissingWithoutABlobDirectory(t *testing.T) {
	d, b := newDatabase(t), desttest.Sample(false)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Commit(desttest.Transaction{TID: 1 << 59}, desttest.Record{OID: 77, Data: desttest.BlobOf(77, nil).Data})
	l.src = b.Source(t)
	if _, err := l.src.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	var missing []zodb.OID
	if err := l.session.MissingBlobs(t.Context(), func(m *dest.MissingBlob) error {
		missing = append(missing, m.OID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(missing) != 1 || missing[0] != 77 {
		t.Errorf("missing: %v", missing)
	}
	var rejected *dest.RejectedError
	if err := l.session.Complete(t.Context()); !errors.As(err, &rejected) || rejected.MissingBlobs != 1 {
		t.Errorf("a run that lacks a blob ends with %v", err)
	}
}

func TestRunThatWasUndoneDoesNotWriteIntoTheNextOne(t *testing.T) {
	d, b := newDatabase(t), desttest.Sample(false)
	dst := d.Open(t, false)
	defer dst.Close()
	first, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := desttest.NewBuilder()
	other.Commit(desttest.Transaction{TID: 5}, desttest.Record{OID: 0, Data: desttest.Data("a", "B", "root")})
	var second *loading
	first.between = func(int) {
		if second != nil {
			return
		}
		// The network hides the first run from an administrator.
		err := errors.New("not tried")
		for i := 0; i < 50 && err != nil; i++ {
			d.kill(t)
			_, err = dst.Abort(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if second, err = begin(t, dst, other, nil); err != nil {
			t.Fatal(err)
		}
		if err := second.load(-1); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.load(-1); !errors.Is(err, watermark.ErrTakenOver) {
		t.Errorf("the first run goes on: %v", err)
	}
	if err := second.session.Loaded(t.Context(), second.src); err != nil {
		t.Fatal(err)
	}
	if err := second.session.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := second.session.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(other.Want(false), d.Contents(t, false)); diff != "" {
		t.Error(diff)
	}
}

func TestTriggerThatLeavesRowsOutStopsTheRun(t *testing.T) {
	d, b := madeByTheSite(t, false), desttest.Sample(false)
	d.exec(t, `CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.zoid = 3 THEN RETURN NULL; END IF; RETURN NEW; END $$;
		CREATE TRIGGER swallow BEFORE INSERT ON object_state FOR EACH ROW EXECUTE FUNCTION swallow()`)
	_, err := run(t, d, b, false, nil)
	if err == nil || !strings.Contains(err.Error(), "a trigger leaves rows out") {
		t.Errorf("a trigger that leaves a row out gives %v", err)
	}
}

func TestTriggerThatLeavesRowsOutStopsCatchingUp(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.Sample(history)
		convert(t, d, b, history)
		b.Commit(desttest.Transaction{TID: 1 << 59}, desttest.Record{OID: 90, Data: desttest.Data("a", "B", "x")})
		d.exec(t, `CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.zoid = 90 THEN RETURN NULL; END IF; RETURN NEW; END $$;
			CREATE TRIGGER swallow BEFORE INSERT ON object_state FOR EACH ROW EXECUTE FUNCTION swallow()`)
		dst := d.Open(t, history)
		defer dst.Close()
		l, err := begin(t, dst, b, func(p *dest.Plan) { p.Continue = true })
		if err != nil {
			t.Fatal(err)
		}
		if err := l.follow(); err == nil || !strings.Contains(err.Error(), "a trigger leaves rows out") {
			t.Errorf("a trigger that leaves a row out gives %v", err)
		}
	})
}

func TestServerThatForgetsTheEndOfTheLoadStopsTheRun(t *testing.T) {
	d, b := newDatabase(t), desttest.Sample(false)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	// What a standby knows that was two transactions behind and has taken over.
	d.exec(t, "UPDATE zodb_convert_run SET phase = 'loading'; DELETE FROM object_state; DELETE FROM transaction_log; DELETE FROM zodb_convert_chunk")
	d.kill(t)
	for what, end := range map[string]func(context.Context) error{"finishes": l.session.Finish, "completes": l.session.Complete} {
		if err := end(t.Context()); !errors.Is(err, watermark.ErrForgotten) {
			t.Errorf("a run whose server has forgotten chunks %s: %v", what, err)
		}
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

func TestCatchingUpWithRejectsCannotBeForgotten(t *testing.T) {
	d, b := newDatabase(t), desttest.Sample(false)
	convert(t, d, b, false)
	b.Commit(desttest.Transaction{TID: 1 << 59}, desttest.Record{OID: 3, Data: desttest.Bad()})
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.Continue = true })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.follow(); err != nil {
		t.Fatal(err)
	}
	l.session.Close()
	d.kill(t)
	_, err = dst.Abort(t.Context())
	isRefused(t, err, "1 record", "rejected", "--rejects")
	if l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptRejects = true, true }); err != nil {
		t.Fatal(err)
	}
	var rejects int
	if err := l.session.Rejects(t.Context(), func(*dest.Reject) error { rejects++; return nil }); err != nil || rejects != 1 {
		t.Errorf("%d rejects are left: %v", rejects, err)
	}
	if err := l.session.Close(); err != nil {
		t.Fatal(err)
	}
	d.kill(t)
	_, err = begin(t, dst, desttest.NewBuilder(), func(p *dest.Plan) { p.Clear = true })
	if err != nil {
		t.Fatalf("the database cannot be emptied: %v", err)
	}
}
