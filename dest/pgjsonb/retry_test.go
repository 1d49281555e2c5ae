package pgjsonb_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// retryPlan gives records.
func retryPlan(records []dest.Reject) *dest.RetryPlan {
	return &dest.RetryPlan{Records: func(_ context.Context, fn func(*dest.Reject) error) error {
		for i := range records {
			if err := fn(&records[i]); err != nil {
				return err
			}
		}
		return nil
	}}
}

func retry(t testing.TB, d *database, history bool, records ...dest.Reject) (*dest.RetryResult, error) {
	t.Helper()
	dst := d.Open(t, history)
	defer dst.Close()
	return dst.Retry(t.Context(), retryPlan(records))
}

// rejected converts a database and gives what was rejected.
func rejected(t testing.TB, d *database, b *desttest.Builder, history bool) (all []dest.Reject) {
	t.Helper()
	dst := d.Open(t, history)
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) { p.AcceptRejects = true })
	if err != nil {
		t.Fatal(err)
	}
	defer l.session.Close()
	if err := l.finishSteps(); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Rejects(t.Context(), func(r *dest.Reject) error {
		one := *r
		one.Data = slices.Clone(r.Data)
		all = append(all, one)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	return all
}

const (
	first  = zodb.TID(5) << 50
	second = zodb.TID(6) << 50
	third  = zodb.TID(7) << 50
	fourth = zodb.TID(8) << 50
)

// revised is a database of objects with rejected revisions, or with good ones in
// their place.
func revised(good bool) *desttest.Builder {
	b := desttest.NewBuilder()
	revision := func(oid zodb.OID, tid zodb.TID) desttest.Record {
		if good {
			return thing(oid, fmt.Sprintf("%d of %d", tid>>50, oid))
		}
		return desttest.Record{OID: oid, Data: desttest.Bad(), Rejected: true}
	}
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"), thing(1, "a"), revision(5, first))
	b.Commit(desttest.Transaction{TID: second}, revision(1, second), revision(2, second), revision(3, second), revision(4, second))
	b.Commit(desttest.Transaction{TID: third}, revision(1, third), thing(2, "newer"), desttest.Record{OID: 3})
	b.Commit(desttest.Transaction{TID: fourth}, thing(0, "root again"), revision(6, fourth))
	return b
}

// mended gives rejects the data that a good source has.
func mended(rejects []dest.Reject) []dest.Reject {
	out := slices.Clone(rejects)
	for i := range out {
		r := &out[i]
		r.Data = thing(r.OID, fmt.Sprintf("%d of %d", r.TID>>50, r.OID)).Data
	}
	return out
}

func keys(list []dest.Outdated) (out []string) {
	for _, o := range list {
		out = append(out, fmt.Sprintf("%d@%d<%d", o.OID, o.TID>>50, o.Newer>>50))
	}
	return out
}

func TestRetriedRecordsStandAsIfTheyHadNeverBeenRejected(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, other := newDatabase(t), newDatabase(t)
		rejects := rejected(t, d, revised(false), history)
		convert(t, other, revised(true), history)
		if want := map[bool]int{false: 4, true: 7}[history]; len(rejects) != want {
			t.Fatalf("%d rejects, not %d", len(rejects), want)
		}
		schema := d.Schema(t)
		records := mended(rejects)
		slices.Reverse(records) // any order
		result, err := retry(t, d, history, records...)
		if err != nil {
			t.Fatal(err)
		}
		var superseded []string
		if history {
			superseded = []string{"3@6<7", "2@6<7"}
			// They are not written, and their tombstones stay: the other database has
			// them.
			other.exec(t, fmt.Sprintf("UPDATE object_history SET class_mod = '', class_name = '', state = NULL, state_size = 0 WHERE zoid IN (2, 3) AND tid = %d", second))
		}
		if diff := cmp.Diff(superseded, keys(result.Outdated)); diff != "" {
			t.Errorf("superseded (-want +got):\n%s", diff)
		}
		for _, o := range result.Outdated {
			if o.Listed {
				t.Errorf("the destination has what supersedes %+v", o)
			}
		}
		if want := int64(len(rejects) - len(superseded)); result.Written != want || len(result.Rejects) != 0 || result.There != 0 {
			t.Errorf("%+v, want %d written", result, want)
		}
		if diff := cmp.Diff(other.Rows(t), d.Rows(t)); diff != "" {
			t.Errorf("rows (-never rejected +retried):\n%s", diff)
		}
		if diff := cmp.Diff(schema, d.Schema(t)); diff != "" {
			t.Errorf("schema:\n%s", diff)
		}

		rows := d.Rows(t)
		again, err := retry(t, d, history, records...)
		if err != nil {
			t.Fatal(err)
		}
		if again.Written != 0 || again.There != result.Written || len(again.Outdated) != len(superseded) {
			t.Errorf("once more: %+v", again)
		}
		if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
			t.Errorf("once more (-before +after):\n%s", diff)
		}
	})
}

// A conversion is caught up after a retry as it would have been without.
func TestWhatWasRetriedIsCaughtUpLikeTheRest(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, other := newDatabase(t), newDatabase(t)
		bad, good := revised(false), revised(true)
		rejects := mended(rejected(t, d, bad, history))
		convert(t, other, good, history)
		result, err := retry(t, d, history, rejects...)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []*desttest.Builder{bad, good} {
			b.Commit(desttest.Transaction{TID: fourth + 1<<50}, thing(6, "again"), thing(7, "new"), desttest.Record{OID: 5})
		}
		for _, one := range []struct {
			d *database
			b *desttest.Builder
		}{{d, bad}, {other, good}} {
			l := catchUp(t, one.d, one.b, history)
			if err := l.follow(); err != nil {
				t.Fatal(err)
			}
			if err := l.session.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, o := range result.Outdated {
			other.exec(t, fmt.Sprintf("UPDATE object_history SET class_mod = '', class_name = '', state = NULL, state_size = 0 WHERE zoid = %d AND tid = %d", o.OID, o.TID))
		}
		if diff := cmp.Diff(other.Rows(t), d.Rows(t)); diff != "" {
			t.Errorf("rows (-never rejected +retried):\n%s", diff)
		}
	})
}

func TestNoOlderRevisionTakesThePlaceOfOneThatIsStillRejected(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
		b.Commit(desttest.Transaction{TID: second}, thing(0, "root"))
		b.Commit(desttest.Transaction{TID: third}, desttest.Record{OID: 1, Data: desttest.Bad(), Rejected: true})
		rejected(t, d, b, history)
		if history {
			d.exec(t, fmt.Sprintf("INSERT INTO object_history (zoid, tid, class_mod, class_name, state_size) VALUES (1, %d, '', '', 0)", second))
		}
		rows := d.Rows(t)
		older := dest.Reject{OID: 1, TID: second, Data: thing(1, "older").Data}
		newer := dest.Reject{OID: 1, TID: third, Data: desttest.Bad()}
		result, err := retry(t, d, history, older, newer)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"1@6<7"}, keys(result.Outdated)); diff != "" || !result.Outdated[0].Listed {
			t.Errorf("%+v %s", result.Outdated, diff)
		}
		if len(result.Rejects) != 1 || result.Rejects[0].TID != third || result.Rejects[0].Reason == "" || result.Rejects[0].Data != nil {
			t.Errorf("rejected: %+v", result.Rejects)
		}
		if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
			t.Errorf("something was written:\n%s", diff)
		}
		newer.Data = thing(1, "newer").Data
		if result, err = retry(t, d, history, older, newer); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int64{false: 1, true: 2}[history]; result.Written != want {
			t.Errorf("%+v", result)
		}
		if got := d.query(t, "SELECT tid, state FROM object_state WHERE zoid = 1"); len(got) != 1 || !strings.Contains(got[0], "newer") {
			t.Errorf("current: %v", got)
		}
	})
}

// A later version may store an older revision first, from another list.
func TestNewerRevisionReplacesOneThatWasRetriedBefore(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
		b.Commit(desttest.Transaction{TID: second}, desttest.Record{OID: 1, Data: desttest.Bad(), Rejected: true})
		rejected(t, d, b, history)
		for _, tid := range []zodb.TID{first, second} {
			if history && tid == first {
				continue // its own tombstone stands above
			}
			if result, err := retry(t, d, history, dest.Reject{OID: 1, TID: tid, Data: thing(1, "x").Data}); err != nil || result.Written != 1 {
				t.Fatalf("%+v %v", result, err)
			}
		}
		if got := d.query(t, "SELECT tid FROM object_state WHERE zoid = 1"); len(got) != 1 || got[0] != fmt.Sprint(uint64(second)) {
			t.Errorf("current: %v", got)
		}
	})
}

func TestWhatCannotBeRetriedSaysWhy(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"), thing(1, "a"))
	convert(t, d, b, false)
	d.exec(t, "ALTER TABLE object_state ADD CONSTRAINT small CHECK (state_size < 1000)")
	rows := d.Rows(t)
	result, err := retry(t, d, false,
		dest.Reject{OID: 10, TID: first, Data: desttest.Bad()},
		dest.Reject{OID: 11, TID: first, Data: desttest.BlobOf(11, nil).Data},
		dest.Reject{OID: 12, TID: first, Class: "app.Huge"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range result.Rejects {
		got = append(got, fmt.Sprintf("%d %s: %s", r.OID, r.Class, r.Reason))
	}
	for i, want := range []string{"10 mod.name: ", "11 ZODB.blob.Blob: it is a blob, whose bytes are not in the list", "12 app.Huge: its data is not in the list"} {
		if i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}

	dst := d.Open(t, false)
	defer dst.Close()
	plan := retryPlan([]dest.Reject{{OID: 10, TID: first, Class: "a\x00\xff", Pos: 7}, {OID: 11, TID: first}})
	plan.Show = 1
	if result, err = dst.Retry(t.Context(), plan); err != nil || result.Rejected != 2 || len(result.Rejects) != 1 || result.Rejects[0].Class != "a\x00\xff" || result.Rejects[0].Pos != 7 {
		t.Errorf("%+v %v", result, err)
	}

	// One that the tables do not take stops all of them.
	if _, err := retry(t, d, false,
		dest.Reject{OID: 13, TID: first, Data: thing(13, "good").Data},
		dest.Reject{OID: 14, TID: first, Data: thing(14, strings.Repeat("x", 2000)).Data}); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("a row that is not taken gives %v", err)
	}
	if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
}

// The site may have got a blob from elsewhere.
func TestMissingBlobsThatAreThereByNow(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
		convert(t, d, b, history)
		d.exec(t, fmt.Sprintf("INSERT INTO blob_state (zoid, tid, blob_size, data) VALUES (5, %d, 3, 'abc'), (6, %d, 3, 'abc')", first, second))
		dst := d.Open(t, history)
		defer dst.Close()
		plan := retryPlan(nil)
		plan.Blobs = []dest.Blob{{OID: 5, TID: first}, {OID: 6, TID: first}, {OID: 7, TID: first}}
		result, err := dst.Retry(t.Context(), plan)
		if err != nil || result.BlobsThere != 1 {
			t.Errorf("%+v %v", result, err)
		}
	})
}

func TestSequenceIsAboveRetriedObjects(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	convert(t, d, b, false)
	if _, err := retry(t, d, false, dest.Reject{OID: 1 << 40, TID: first, Data: thing(1<<40, "far").Data}); err != nil {
		t.Fatal(err)
	}
	if got := d.query(t, "SELECT nextval('zoid_seq') > 1::bigint << 40"); got[0] != "t" {
		t.Error("the next oid is taken")
	}
}

func TestRetryIsRefusedWhereItDoesNotBelong(t *testing.T) {
	record := dest.Reject{OID: 1, TID: second, Data: thing(1, "x").Data}
	small := desttest.NewBuilder()
	small.Commit(desttest.Transaction{TID: first}, thing(0, "root"))

	t.Run("nothing there", func(t *testing.T) {
		_, err := retry(t, newDatabase(t), false, record)
		isRefused(t, err, "nothing was converted into it")
	})
	t.Run("another source", func(t *testing.T) {
		d := newDatabase(t)
		convert(t, d, small, false)
		rows := d.Rows(t)
		_, err := retry(t, d, false, dest.Reject{OID: 2, TID: first, Data: thing(2, "x").Data}, record)
		isRefused(t, err, "the transactions of 1 record", second.String(), "was not converted from the source")
		if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
			t.Errorf("something was written:\n%s", diff)
		}
	})
	t.Run("an unfinished run", func(t *testing.T) {
		d := newDatabase(t)
		dst := d.Open(t, false)
		defer dst.Close()
		l, err := begin(t, dst, revised(true), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.load(1); err != nil {
			t.Fatal(err)
		}
		_, err = retry(t, d, false, record)
		isRefused(t, err, "unfinished conversion")
	})
	t.Run("a run that begins meanwhile", func(t *testing.T) {
		d := newDatabase(t)
		convert(t, d, small, false)
		rows := d.Rows(t)
		dst := d.Open(t, false)
		defer dst.Close()
		_, err := dst.Retry(t.Context(), &dest.RetryPlan{Records: func(_ context.Context, fn func(*dest.Reject) error) error {
			catchUp(t, d, small, false)
			return fn(&dest.Reject{OID: 2, TID: first, Data: thing(2, "x").Data})
		}})
		isRefused(t, err, "unfinished conversion")
		if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
			t.Errorf("something was written:\n%s", diff)
		}
	})
	t.Run("another kind", func(t *testing.T) {
		d := newDatabase(t)
		convert(t, d, small, false)
		_, err := retry(t, d, true, record)
		isRefused(t, err, "is history-free")
		d = newDatabase(t)
		convert(t, d, revised(true), true)
		_, err = retry(t, d, false, record)
		isRefused(t, err, "holds older revisions")
	})
}

// The site has changed what an earlier retry wrote, and packed it away.
func TestWhatWasPackedAwayDoesNotStopTheRest(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	b.Commit(desttest.Transaction{TID: second}, desttest.Record{OID: 1, Data: desttest.Bad(), Rejected: true}, desttest.Record{OID: 4, Data: desttest.Bad(), Rejected: true})
	b.Commit(desttest.Transaction{TID: third}, desttest.Record{OID: 2, Data: desttest.Bad(), Rejected: true}, thing(3, "x"))
	list := map[zodb.OID]dest.Reject{}
	for _, r := range rejected(t, d, b, true) {
		list[r.OID] = r
	}
	good := func(oid zodb.OID) dest.Reject {
		r := list[oid]
		r.Data = thing(oid, "good now").Data
		return r
	}
	result, err := retry(t, d, true, good(1), list[2], list[4])
	if err != nil || result.Written != 1 || len(result.Rejects) != 2 {
		t.Fatalf("%+v %v", result, err)
	}
	// What zodb-pgjsonb's statements do.
	d.exec(t, fmt.Sprintf(`INSERT INTO transaction_log (tid) VALUES (%[1]d);
		INSERT INTO object_history SELECT zoid, tid, class_mod, class_name, state, state_size, refs FROM object_state WHERE zoid = 1;
		UPDATE object_state SET tid = %[1]d WHERE zoid = 1;
		DELETE FROM object_history WHERE zoid = 1 AND tid <= %[2]d OR zoid = 4;
		DELETE FROM transaction_log t WHERE tid <= %[1]d AND NOT EXISTS (SELECT FROM object_state s WHERE s.tid = t.tid)`, fourth, second))
	result, err = retry(t, d, true, good(1), good(2), good(4))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1@6<8"}, keys(result.Outdated)); diff != "" || result.Written != 1 {
		t.Errorf("%+v %s", result, diff)
	}
	if len(result.Rejects) != 1 || result.Rejects[0].OID != 4 || !strings.Contains(result.Rejects[0].Reason, "a pack has removed it") {
		t.Errorf("rejected: %+v", result.Rejects)
	}
	// An older revision does not take the place of one whose transaction is gone.
	rows := d.Rows(t)
	older := good(4)
	older.TID = first
	result, err = retry(t, d, true, good(2), good(4), older)
	if err != nil || len(result.Outdated) != 1 || !result.Outdated[0].Listed || result.Written != 0 {
		t.Errorf("%+v %v", result, err)
	}
	if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
	// A list none of whose transactions is there is that of another source.
	_, err = retry(t, d, true, good(4))
	isRefused(t, err, "the transactions of 1 record", "was not converted from the source")
}

func TestErrorOfTheCallerIsHisOwn(t *testing.T) {
	d, b := newDatabase(t), desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
	convert(t, d, b, false)
	dst := d.Open(t, false)
	defer dst.Close()
	mine := errors.New("mine")
	rows := d.Rows(t)
	_, err := dst.Retry(t.Context(), &dest.RetryPlan{Records: func(_ context.Context, fn func(*dest.Reject) error) error {
		if err := fn(&dest.Reject{OID: 1, TID: first, Data: thing(1, "x").Data}); err != nil {
			return err
		}
		return mine
	}})
	if !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
}

// runningSite is a site that does what it is told, a word a line, and answers.
const runningSite = `
import sys
import transaction, ZODB
from persistent.mapping import PersistentMapping
from ZODB.utils import p64
from zodb_pgjsonb.storage import PGJsonbStorage
db = ZODB.DB(PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0))
conn = db.open()
print("up", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "commit":
        conn.root()["changed"] = 1
        transaction.commit()
    elif word == "begin": # holds the lock of a commit
        t = transaction.get()
        i = conn._storage
        i.tpc_begin(t)
        record, serial = i.load(p64(1))
        i.store(p64(1), serial, record, "", t)
        i.tpc_vote(t)
    elif word == "pack":
        db.pack()
    elif word == "finish":
        i.tpc_finish(t)
    print("done", flush=True)
conn.close()
db.close()
`

type site struct {
	in  io.WriteCloser
	out *bufio.Scanner
	cmd *exec.Cmd
	err bytes.Buffer
}

func startRunningSite(t *testing.T, d *database, history bool) *site {
	t.Helper()
	return startScript(t, runningSite, d, history)
}

func startScript(t *testing.T, script string, d *database, history bool) *site {
	t.Helper()
	s := &site{cmd: exec.Command(pythonPath(t), "-c", script, d.dsn, fmt.Sprint(history))}
	s.cmd.Stderr = &s.err
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop() })
	s.answers(t, "up")
	return s
}

func (s *site) answers(t *testing.T, want string) {
	t.Helper()
	if !s.out.Scan() || s.out.Text() != want {
		s.stop()
		t.Fatalf("the site says %q: %s", s.out.Text(), s.err.String())
	}
}

func (s *site) say(t *testing.T, word string) {
	t.Helper()
	if _, err := io.WriteString(s.in, word+"\n"); err != nil {
		t.Fatal(err)
	}
}

func (s *site) do(t *testing.T, word string) {
	t.Helper()
	s.say(t, word)
	s.answers(t, "done")
}

func (s *site) stop() {
	s.in.Close()
	_ = s.cmd.Wait()
}

// siteDatabase lets a site make its root and an object with oid 1.
func siteDatabase(t *testing.T, d *database, history bool) {
	t.Helper()
	python(t, makeSite, d.dsn, fmt.Sprint(history))
}

const makeSite = `
import sys
import transaction, ZODB
from persistent.mapping import PersistentMapping
from zodb_pgjsonb.storage import PGJsonbStorage
db = ZODB.DB(PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0))
conn = db.open()
a = conn.root()["a"] = PersistentMapping()
transaction.commit()
conn.close()
db.close()
`

func TestRunningSiteIsNotRetriedBesideUnlessAllowed(t *testing.T) {
	d := newDatabase(t)
	siteDatabase(t, d, false)
	tid := zodb.TID(number(t, d.query(t, "SELECT min(tid) FROM transaction_log")[0]))
	record := dest.Reject{OID: 100, TID: tid, Data: thing(100, "x").Data}
	s := startRunningSite(t, d, false)
	rows := d.Rows(t)
	_, err := retry(t, d, false, record)
	isRefused(t, err, "connected to PostgreSQL database", "may be a running site", "user zope", "--yes")
	if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
	dst := d.Open(t, false)
	defer dst.Close()
	plan := retryPlan([]dest.Reject{record})
	plan.Connected = true
	result, err := dst.Retry(t.Context(), plan)
	if err != nil || result.Written != 1 || len(result.Sessions) == 0 {
		t.Fatalf("%+v %v", result, err)
	}
	s.do(t, "commit")
	s.stop()
	if result, err := retry(t, d, false, record); err != nil || result.There != 1 || len(result.Sessions) != 0 {
		t.Errorf("without the site: %+v %v", result, err)
	}
}

func TestSiteThatStartsMeanwhileIsNoticed(t *testing.T) {
	d := newDatabase(t)
	siteDatabase(t, d, false)
	tid := zodb.TID(number(t, d.query(t, "SELECT min(tid) FROM transaction_log")[0]))
	dst := d.Open(t, false)
	defer dst.Close()
	_, err := dst.Retry(t.Context(), &dest.RetryPlan{Records: func(_ context.Context, fn func(*dest.Reject) error) error {
		startRunningSite(t, d, false)
		return fn(&dest.Reject{OID: 100, TID: tid, Data: thing(100, "x").Data})
	}})
	isRefused(t, err, "may be a running site")
	if got := d.query(t, "SELECT count(*) FROM object_state WHERE zoid = 100"); got[0] != "0" {
		t.Error("it was written")
	}
}

// waits waits until somebody waits for a lock. It looks from another database: a
// retry takes who is connected to its own for a site.
func waits(t *testing.T, d *database, kind string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if d.server.Query(t, d.server.DSN("postgres"), "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = '"+d.name()+
			"' AND locktype = '"+kind+"' AND NOT granted")[0] != "0" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody waits for a lock (%s)", kind)
		}
	}
}

// The site commits a newer revision of the object meanwhile: the lock lets the
// retry see it.
func TestRetryWaitsForACommitOfTheSite(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d := newDatabase(t)
		siteDatabase(t, d, history)
		last := zodb.TID(number(t, d.query(t, "SELECT max(tid) FROM transaction_log")[0]))
		d.exec(t, fmt.Sprintf("INSERT INTO transaction_log (tid) VALUES (%d)", last+1))
		s := startRunningSite(t, d, history)
		s.do(t, "begin")
		dst := d.Open(t, history)
		defer dst.Close()
		plan := retryPlan([]dest.Reject{{OID: 1, TID: last + 1, Data: thing(1, "rejected").Data}})
		plan.Connected = true
		done := make(chan outcome, 1)
		go func() {
			result, err := dst.Retry(t.Context(), plan)
			done <- outcome{result, err}
		}()
		waits(t, d, "advisory")
		s.do(t, "finish")
		o := <-done
		if o.err != nil {
			t.Fatal(o.err)
		}
		newest := zodb.TID(number(t, d.query(t, "SELECT max(tid) FROM transaction_log")[0]))
		if want := []dest.Outdated{{OID: 1, TID: last + 1, Newer: newest}}; o.result.Written != 0 || !cmp.Equal(want, o.result.Outdated) {
			t.Errorf("%+v, want superseded %+v", o.result, want)
		}
	})
}

// A pack that is under way would remove what the records refer to. This one waits
// for a row that it is to remove.
func TestRetryIsRefusedWhileTheDatabaseIsPacked(t *testing.T) {
	d := newDatabase(t)
	siteDatabase(t, d, false)
	tid := zodb.TID(number(t, d.query(t, "SELECT min(tid) FROM transaction_log")[0]))
	d.exec(t, fmt.Sprintf("INSERT INTO object_state (zoid, tid, class_mod, class_name, state, state_size) VALUES (50, %d, 'app', 'Thing', '{}', 1)", tid))
	conn, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "BEGIN; SELECT FROM object_state WHERE zoid = 50 FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	s := startRunningSite(t, d, false)
	s.say(t, "pack")
	waits(t, d, "transactionid")
	dst := d.Open(t, false)
	defer dst.Close()
	record := dest.Reject{OID: 100, TID: tid, Data: thing(100, "x").Data}
	plan := retryPlan([]dest.Reject{record})
	plan.Connected = true
	_, err = dst.Retry(t.Context(), plan)
	isRefused(t, err, "is being packed")
	if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	s.answers(t, "done")
	if result, err := dst.Retry(t.Context(), plan); err != nil || result.Written != 1 {
		t.Errorf("after the pack: %+v %v", result, err)
	}
}

// chainFile makes a Data.fs with root["a"] -> a -> b -> c and prints the record of
// a: oid, tid, pickles.
const chainFile = `
import base64, sys
import transaction, ZODB, ZODB.FileStorage
from persistent.mapping import PersistentMapping
from ZODB.utils import u64
storage = ZODB.FileStorage.FileStorage(sys.argv[1])
db = ZODB.DB(storage)
conn = db.open()
conn.root()["other"] = PersistentMapping(x=1)
transaction.commit()
a, b, c = (PersistentMapping(name=n) for n in "abc")
conn.root()["a"], a["b"], b["c"] = a, b, c
transaction.commit()
record, serial = storage.load(a._p_oid)
print(u64(a._p_oid), u64(serial), base64.b64encode(record).decode())
conn.close()
db.close()
`

// followChain packs, and reads the chain as an application does.
const followChain = `
import sys, time
import ZODB
from zodb_pgjsonb.storage import PGJsonbStorage
storage = PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0)
db = ZODB.DB(storage)
def follow():
    conn = db.open()
    a = conn.root()["a"]
    assert a["name"] == "a" and a["b"]["name"] == "b" and a["b"]["c"]["name"] == "c"
    if sys.argv[3] == "change":
        import transaction
        a["changed"] = True
        transaction.commit()
    conn.close()
follow()
time.sleep(1.1) # the clock of a pack has whole seconds
db.pack(time.time())
conn = db.open()
conn.cacheMinimize()
conn.close()
follow()
print(len(storage))
db.close()
`

// convertFile converts a Data.fs.
func convertFile(t *testing.T, d *database, path string, history bool) {
	t.Helper()
	src, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	info, err := src.Scan(t.Context(), scanAll)
	if err != nil {
		t.Fatal(err)
	}
	dst := d.Open(t, history)
	defer dst.Close()
	l := &loading{t: t, src: src}
	l.session, err = dst.Begin(t.Context(), &dest.Plan{
		Info: info, Workers: 1, Tool: "test", Log: func(dest.Step) {},
		Options: dest.Options{HistoryPreserving: history, ChunkBytes: chunkBytes},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.session.Close()
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
}

// chain makes chainFile; the record is that of a.
func chain(t *testing.T) (path string, record dest.Reject) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "Data.fs")
	var oid, tid uint64
	var text string
	if _, err := fmt.Sscan(python(t, chainFile, path), &oid, &tid, &text); err != nil {
		t.Fatal(err)
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return path, dest.Reject{OID: zodb.OID(oid), TID: zodb.TID(tid), Data: data}
}

// TestSiteReadsAndPacksWhatWasRetried takes the row of an object away, leaves what
// a rejected record leaves, and retries it from a line made of the source.
func TestSiteReadsAndPacksWhatWasRetried(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		path, record := chain(t)
		d := newDatabase(t)
		convertFile(t, d, path, history)
		rows := d.Rows(t)
		d.exec(t, fmt.Sprintf("DELETE FROM object_state WHERE zoid = %d", record.OID))
		if history {
			d.exec(t, fmt.Sprintf("INSERT INTO object_history (zoid, tid, class_mod, class_name, state_size) VALUES (%d, %d, '', '', 0)", record.OID, record.TID))
		}
		result, err := retry(t, d, history, record)
		if err != nil || result.Written != 1 || result.Unreferenced != 0 || result.Dangling != 0 {
			t.Fatalf("%+v %v", result, err)
		}
		if diff := cmp.Diff(rows, d.Rows(t)); diff != "" {
			t.Errorf("rows (-converted +retried):\n%s", diff)
		}
		if got := strings.TrimSpace(python(t, followChain, d.dsn, fmt.Sprint(history), "change")); got != "5" {
			t.Errorf("%s objects after the pack", got)
		}
		// The site has changed it since.
		result, err = retry(t, d, history, record)
		if err != nil || len(result.Outdated) != 1 {
			t.Errorf("%+v %v", result, err)
		}
	})
}

// A pack between the conversion and the retry has removed what only the rejected
// object referred to: that is told. So is an object to which nothing refers.
func TestLooseEndsOfRetriedObjectsAreTold(t *testing.T) {
	path, record := chain(t)
	d := newDatabase(t)
	convertFile(t, d, path, false)
	d.exec(t, fmt.Sprintf("DELETE FROM object_state WHERE zoid >= %d", record.OID)) // a, b, c
	result, err := retry(t, d, false, record,
		dest.Reject{OID: 1000, TID: record.TID, Data: thing(1000, "nobody's").Data})
	if err != nil || result.Written != 2 || result.Unreferenced != 1 || result.Dangling != 1 {
		t.Errorf("%+v %v", result, err)
	}
}

// Sharing is kept where it is asked for, as by a conversion.
func TestRetryKeepsSharing(t *testing.T) {
	shared := []byte("\x80\x02capp\nThing\nq\x00.\x80\x02}q\x01(X\x01\x00\x00\x00aq\x02]q\x03X\x01\x00\x00\x00bq\x04h\x03u.")
	for _, keep := range []bool{false, true} {
		d, b := newDatabase(t), desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: first}, thing(0, "root"))
		convert(t, d, b, false)
		dst := d.open(t, pgjsonb.Config{PreserveSharing: keep})
		defer dst.Close()
		result, err := dst.Retry(t.Context(), retryPlan([]dest.Reject{{OID: 1, TID: first, Data: shared}}))
		if err != nil || result.Written != 1 {
			t.Fatalf("%+v %v", result, err)
		}
		form := map[bool]string{false: "shared-copied", true: "capsule-shared"}[keep]
		if result.Forms[form] != 1 {
			t.Errorf("sharing %v: %v", keep, result.Forms)
		}
	}
}
