package verify_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/verify"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// modes runs a test without and with history.
func modes(t *testing.T, fn func(t *testing.T, history bool)) {
	for _, history := range []bool{false, true} {
		t.Run(map[bool]string{false: "without history", true: "with history"}[history], func(t *testing.T) {
			t.Parallel()
			fn(t, history)
		})
	}
}

// A blob that the source does not have (any more) is a declared deviation where
// the destination has left it out, too. Where it has bytes, nothing is known of
// them: a blob directory that is the wrong one must not pass for a comparison.
func TestBlobsWhoseFileIsNotThereAreNotCompared(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		b := desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), desttest.BlobOf(1, []byte("first")), desttest.BlobOf(2, []byte("second")))
		p := built(t, history, b)
		if r, all := p.verify(t, verify.Options{}); len(all) > 0 || r.Blobs != 2 {
			t.Fatalf("untouched: %d blobs, %v", r.Blobs, all)
		}
		b.Lose(2, 5<<40)
		r, all := p.verify(t, verify.Options{})
		if len(all) != 1 || all[0].Kind != verify.NotCompared || all[0].OID != "0x0000000000000002" || r.Blobs != 1 {
			t.Errorf("%d blobs, %v", r.Blobs, all)
		}
		m := newMutator(t, p, 0)
		m.exec(t, "DELETE FROM blob_state WHERE zoid = 2")
		r, all = p.verify(t, verify.Options{})
		if len(all) != 0 || len(r.Declared) != 1 || r.Declared[0].Kind != verify.SourceBlobLost {
			t.Errorf("declared %v, %v", r.Declared, all)
		}
	})
}

// An object of which a revision was rejected is a declared deviation, whenever that
// came.
func TestRejectedRevisionsAreDeclaredWheneverTheyCame(t *testing.T) {
	bad := func(oid zodb.OID) desttest.Record {
		return desttest.Record{OID: oid, Data: desttest.Bad(), Rejected: true}
	}
	modes(t, func(t *testing.T, history bool) {
		b := desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"), thing(2, "b"), bad(3), bad(4))
		b.Commit(desttest.Transaction{TID: 6 << 40}, bad(1))
		p := built(t, history, b)
		for _, when := range []string{"loaded", "caught up"} {
			r, all := p.verify(t, verify.Options{})
			if len(all) > 0 || len(r.Declared) == 0 {
				t.Fatalf("%s: declared %v, %v", when, r.Declared, all)
			}
			b.Commit(desttest.Transaction{TID: zodb.TID(7+b.Len()) << 40}, bad(2), thing(4, "good"), bad(5))
			b.Commit(desttest.Transaction{TID: zodb.TID(7+b.Len()) << 40}, desttest.Record{OID: 3})
			if _, err := pipeline.Run(t.Context(), p.source(t), p.destination(t), pipeline.Options{Workers: 2, Incremental: true, Rejects: t.TempDir() + "/rejects.jsonl"}); err != nil {
				t.Fatal(err)
			}
		}
		r, all := p.verify(t, verify.Options{})
		if len(all) > 0 || len(r.Declared) == 0 {
			t.Errorf("declared %v, %v", r.Declared, all)
		}
		if r, all := p.verify(t, verify.Options{Strict: true}); r.Differences == 0 || int(r.Differences) != len(all) || !all[0].Declared {
			t.Errorf("strict: %v", all)
		}
	})
}

// With Since and Percent whatever is in what is compared is found, and nothing
// else.
func TestChangesAreFoundInWhatIsComparedOnly(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		b := desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 4 << 40}, thing(0, "root"))
		for i := range 6 {
			tid := zodb.TID(5+i) << 40
			b.Commit(desttest.Transaction{TID: tid}, thing(zodb.OID(2*i+1), "a"), thing(zodb.OID(2*i+2), "b"), thing(100, fmt.Sprint(i)))
		}
		p := built(t, history, b)
		m := newMutator(t, p, 0)
		m.exec(t, "SELECT setval('zoid_seq', 100000)")
		since := zodb.TID(8 << 40)
		for _, c := range []struct {
			what, sql string
			kinds     []string // with Since
		}{
			{"nothing", "SELECT", nil},
			{"an old row goes", "DELETE FROM object_state WHERE zoid = 1", nil},
			{"a new row goes", "DELETE FROM object_state WHERE zoid = 11", []string{verify.MissingObject}},
			{"a new row gets an old tid", "UPDATE object_state SET tid = $1 WHERE zoid = 11", []string{verify.OtherTID}},
			{"an old row gets a new tid", "UPDATE object_state SET tid = $2 WHERE zoid = 1", []string{verify.OtherTID}},
			{"a row too much of a new tid", "INSERT INTO object_state SELECT 77, $2, class_mod, class_name, state, state_size FROM object_state WHERE zoid = 1", []string{verify.ExtraObject}},
			{"a row too much of an old tid", "INSERT INTO object_state SELECT 77, $1, class_mod, class_name, state, state_size FROM object_state WHERE zoid = 1", nil},
			{"an old transaction goes", "DELETE FROM transaction_log WHERE tid = $1", nil},
			{"a new transaction goes", "DELETE FROM transaction_log WHERE tid = $2", []string{verify.MissingTransaction}},
			{"a transaction too much", "INSERT INTO transaction_log (tid) SELECT $2 + 1", []string{verify.ExtraTransaction}},
			{"an old transaction too much", "INSERT INTO transaction_log (tid) SELECT $1 + 1", nil},
			{"a new transaction", "UPDATE transaction_log SET username = 'other' WHERE tid = $2", []string{verify.OtherTransaction}},
		} {
			sql := "WITH old AS (SELECT $1::int8, $2::int8) " + c.sql
			m.exec(t, sql, int64(5<<40), int64(9<<40))
			check := func(opts verify.Options, want []string) {
				t.Helper()
				r, all := p.verify(t, opts)
				var kinds []string
				for _, d := range all {
					kinds = append(kinds, d.Kind)
				}
				if fmt.Sprint(kinds) != fmt.Sprint(want) || r.Differences != int64(len(all)) {
					t.Errorf("%s, %+v: %v, want %v", c.what, opts, all, want)
				}
			}
			check(verify.Options{Since: since}, c.kinds)
			check(verify.Options{Since: since, Percent: 99.999999}, c.kinds)
			_, all := p.verify(t, verify.Options{})
			if (len(all) > 0) != (c.what != "nothing") {
				t.Errorf("%s: %v", c.what, all)
			}
			m.restore(t)
			m.exec(t, "SELECT setval('zoid_seq', 100000)")
		}
	})
}

// A NULL where zodb-pgjsonb has none is a difference, and no failure. The key and
// the columns that allow it are told, too.
func TestNullsAreDifferences(t *testing.T) {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40, User: "user", Description: "text"}, thing(0, "root"), thing(1, "a"), desttest.BlobOf(2, []byte("bytes")))
	p := built(t, true, b)
	m := newMutator(t, p, 0)
	for _, sql := range []string{
		"ALTER TABLE object_state DROP CONSTRAINT object_state_pkey", "ALTER TABLE blob_state DROP CONSTRAINT blob_state_pkey",
		"ALTER TABLE object_history DROP CONSTRAINT object_history_pkey", "ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey",
		"ALTER TABLE transaction_log DROP CONSTRAINT transaction_log_pkey", "ALTER TABLE transaction_log ALTER tid DROP NOT NULL",
		"ALTER TABLE blob_state ALTER zoid DROP NOT NULL, ALTER tid DROP NOT NULL, ALTER blob_size DROP NOT NULL",
		"ALTER TABLE object_history ALTER zoid DROP NOT NULL, ALTER tid DROP NOT NULL",
		`ALTER TABLE object_state ALTER zoid DROP NOT NULL, ALTER tid DROP NOT NULL, ALTER class_mod DROP NOT NULL,
			ALTER class_name DROP NOT NULL, ALTER state_size DROP NOT NULL, ALTER refs DROP NOT NULL`,
	} {
		m.exec(t, sql)
	}
	faults, _ := p.verify(t, verify.Options{})
	for _, c := range []struct{ sql, kind string }{
		{"UPDATE object_state SET refs = NULL WHERE zoid = 1", verify.OtherRefs},
		{"UPDATE object_state SET refs = '{NULL}' WHERE zoid = 1", verify.OtherRefs},
		{"UPDATE object_state SET refs = '{{1,2},{3,4}}' WHERE zoid = 1", verify.OtherRefs},
		{"UPDATE object_state SET state_size = NULL WHERE zoid = 1", verify.OtherSize},
		{"UPDATE object_state SET class_mod = NULL WHERE zoid = 1", verify.OtherClass},
		{"UPDATE object_state SET class_name = NULL WHERE zoid = 1", verify.OtherClass},
		{"UPDATE object_state SET tid = NULL WHERE zoid = 1", verify.OtherTID},
		{"UPDATE object_state SET state = NULL WHERE zoid = 1", verify.Unreadable},
		{"UPDATE object_state SET state = 'null' WHERE zoid = 1", verify.OtherValue},
		{"UPDATE object_state SET zoid = NULL WHERE zoid = 1", verify.MissingObject + " " + verify.ExtraObject},
		{"INSERT INTO object_history (zoid, tid, class_mod, class_name, state_size) VALUES (NULL, NULL, '', '', 0)", verify.ExtraRevision},
		{"INSERT INTO transaction_log (tid) VALUES (NULL)", verify.ExtraTransaction},
		{"UPDATE transaction_log SET username = NULL", verify.OtherTransaction},
		{"UPDATE transaction_log SET description = NULL", verify.OtherTransaction},
		{"UPDATE blob_state SET blob_size = NULL", verify.OtherBlob},
		{"UPDATE blob_state SET data = NULL", verify.MissingBlob},
		{"UPDATE blob_state SET zoid = NULL", verify.MissingBlob + " " + verify.ExtraBlob},
		{"INSERT INTO blob_state (zoid, tid, blob_size) VALUES (NULL, NULL, NULL)", verify.ExtraBlob},
	} {
		m.exec(t, c.sql)
		r, all := p.verify(t, verify.Options{})
		var kinds []string
		for _, d := range all {
			if d.Kind != verify.SchemaFault {
				kinds = append(kinds, d.Kind)
			}
		}
		if got := strings.Join(kinds, " "); got != c.kind || r.Differences-int64(len(kinds)) != faults.Differences {
			t.Errorf("%s: %v", c.sql, all)
		}
		m.restore(t)
	}
}

// fragile fails on the record of one object, as a mistake in this program would
// let it.
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

// A record on which this program fails is rejected by a conversion, which declares
// it; where there is a row it is not compared.
func TestARecordThatTheSourceFailsOnIsNotCompared(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		b := desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"), thing(2, "b"))
		p := built(t, history, b)
		p.open = func(t testing.TB) source.Source { return fragile{b.Source(t), 1} }
		r, all := p.verify(t, verify.Options{})
		if len(all) != 1 || all[0].Kind != verify.NotCompared || all[0].OID != "0x0000000000000001" || r.Records != 3 {
			t.Errorf("%d records, %v", r.Records, all)
		}
		p = &pair{history: history, dsn: postgres.Server(t).NewDatabase(t), open: p.open}
		p.convert(t, pipeline.Options{})
		r, all = p.verify(t, verify.Options{})
		if len(all) != 0 || len(r.Declared) != 1 || r.Declared[0].Kind != verify.Rejected {
			t.Errorf("declared %v, %v", r.Declared, all)
		}
	})
}

// A site reads the tables that its search path names first, whatever stands
// further back.
func TestTablesThatOthersHideAreTold(t *testing.T) {
	p := converted(t, "history", false)
	m := newMutator(t, p, 0)
	m.exec(t, "CREATE SCHEMA another; CREATE TABLE another.object_state AS TABLE object_state; CREATE SEQUENCE another.zoid_seq")
	if _, all := p.verify(t, verify.Options{}); len(all) > 0 {
		t.Fatalf("out of the way: %v", all)
	}
	p.dsn += " options='-c search_path=another,public'"
	_, all := p.verify(t, verify.Options{})
	if len(all) != 2 || all[0].Path != "table object_state" || all[1].Path != "sequence zoid_seq" {
		t.Errorf("found %v", all)
	}
}

// forgetful keeps back a record, as a mistake in a source would let it.
type forgetful struct{ source.Log }

func (f forgetful) Read(ctx context.Context, opts source.ReadOptions, emit func(*source.Chunk) error) error {
	return f.Log.Read(ctx, opts, func(c *source.Chunk) error {
		c.Records = c.Records[:len(c.Records)-1]
		return emit(c)
	})
}

// What a source does not give is in neither side of a comparison, and must not pass
// for compared.
func TestASourceThatDoesNotGiveEverythingIsNotCompared(t *testing.T) {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), thing(1, "a"), thing(2, "b"))
	p := built(t, false, b)
	p.open = func(t testing.TB) source.Source { return forgetful{b.Source(t)} }
	if _, _, err := p.try(t, verify.Options{}); err == nil || !strings.Contains(err.Error(), "has 3 records, and 2 were read") {
		t.Errorf("%v", err)
	}
}

// torn is a source in which the file of a blob breaks off while it is read.
type torn struct{ source.Log }

func (s torn) Blob(ctx context.Context, r *source.Record) (*source.Blob, error) {
	b, err := s.Log.Blob(ctx, r)
	if err == nil {
		b.Open = func(context.Context) (source.BlobReader, error) {
			return nil, &source.BlobError{OID: r.OID, TID: r.TID, Path: b.Path, Problem: "cannot be read"}
		}
	}
	return b, err
}

// A blob whose file cannot be read is missing in the source for a conversion, and
// so it is here.
func TestBlobsThatCannotBeReadAreMissingInTheSource(t *testing.T) {
	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 5 << 40}, thing(0, "root"), desttest.BlobOf(1, []byte("bytes")))
	p := &pair{dsn: postgres.Server(t).NewDatabase(t), open: func(t testing.TB) source.Source { return torn{b.Source(t)} }}
	p.convert(t, pipeline.Options{})
	r, all := p.verify(t, verify.Options{})
	if len(all) != 0 || len(r.Declared) != 1 || r.Declared[0].Kind != verify.SourceBlobLost {
		t.Errorf("declared %v, %v", r.Declared, all)
	}
	p.open = func(t testing.TB) source.Source { return b.Source(t) }
	if _, all := p.verify(t, verify.Options{}); len(all) != 1 || all[0].Kind != verify.MissingBlob {
		t.Errorf("readable again: %v", all)
	}
}
