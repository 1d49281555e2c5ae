package pgjsonb_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// dba is what an administrator and add-ons do to an empty database that the
// site has made.
const dba = `
ALTER TABLE object_state ADD COLUMN path text, ADD COLUMN idx jsonb DEFAULT '{}';
CREATE INDEX idx_os_path ON object_state (path text_pattern_ops) WHERE path IS NOT NULL;
CREATE INDEX idx_os_upper ON object_state (upper(class_name), (state->>'text')) WITH (fillfactor = 70);
ALTER INDEX idx_os_upper ALTER COLUMN 1 SET STATISTICS 500;
COMMENT ON INDEX idx_os_upper IS 'it''s the catalog''s';
COMMENT ON INDEX object_state_pkey IS 'the key';
COMMENT ON CONSTRAINT object_state_pkey ON object_state IS 'a "constraint"';
COMMENT ON CONSTRAINT object_state_tid_fkey ON object_state IS 'refers';
COMMENT ON TRIGGER trg_notify_commit ON transaction_log IS 'tells';
ALTER TABLE object_state CLUSTER ON idx_object_class;
ALTER TABLE object_state REPLICA IDENTITY USING INDEX object_state_pkey;
ALTER TABLE object_state ADD CONSTRAINT both_unique UNIQUE (zoid, tid) DEFERRABLE INITIALLY DEFERRED;
CREATE UNIQUE INDEX "Odd ""name""" ON transaction_log (tid DESC) INCLUDE (username);
ALTER TABLE transaction_log ENABLE ALWAYS TRIGGER trg_notify_commit;
CREATE STATISTICS classes ON class_mod, class_name FROM object_state;
CREATE TABLE elsewhere (zoid bigint REFERENCES object_state);
CREATE TABLE seen (n int DEFAULT 0);
INSERT INTO seen VALUES (0);
CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN UPDATE public.seen SET n = n + 1; RETURN NULL; END$$;
CREATE TRIGGER others AFTER INSERT ON object_state FOR EACH STATEMENT EXECUTE FUNCTION counts();
GRANT SELECT ON object_state TO PUBLIC;
`

// madeByTheSite is a database as the site makes it, without the site: a run
// that is undone after it has made the schema would leave nothing, so it is a
// finished one of an empty source.
func madeByTheSite(t *testing.T, history bool) *database {
	d := newDatabase(t)
	convert(t, d, desttest.NewBuilder(), history)
	return d
}

func TestWhatAnAdministratorHasMadeIsPutBack(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d := madeByTheSite(t, history)
		space := filepath.Join(d.server.Dir(), fmt.Sprintf("space-%v", history))
		super := d.server.DSN(d.name())
		d.server.Exec(t, super, fmt.Sprintf("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; mkdir %s'", space))
		d.server.Exec(t, super, fmt.Sprintf("CREATE TABLESPACE space_%v OWNER zope LOCATION '%s'", history, space))
		d.exec(t, dba+fmt.Sprintf("ALTER INDEX idx_object_refs SET TABLESPACE space_%v", history))
		before := d.Schema(t)

		dst := d.Open(t, history)
		defer dst.Close()
		var notes []string
		l, err := begin(t, dst, desttest.Sample(history), func(p *dest.Plan) {
			p.Note = func(text string) { notes = append(notes, text) }
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.query(t, "SELECT indexrelid::regclass FROM pg_index WHERE indrelid IN ('object_state'::regclass, 'transaction_log'::regclass) ORDER BY 1"); len(got) != 1 || got[0] != "object_state_pkey" {
			t.Errorf("during the load there are %v", got)
		}
		if !strings.Contains(strings.Join(notes, "\n"), "object_state_pkey of object_state stays") {
			t.Errorf("nothing is said of the key that stays: %q", notes)
		}
		if err := l.finish(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, d.Schema(t)); diff != "" {
			t.Errorf("schema (-before +after):\n%s", diff)
		}
		if got := d.query(t, "SELECT n > 0 FROM seen"); got[0] != "t" {
			t.Error("somebody else's trigger was switched off")
		}
		if diff := cmp.Diff(desttest.Sample(history).Want(history), d.Contents(t, history)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAbortPutsTheSchemaBackFromEveryMoment(t *testing.T) {
	// The finishing step behind which the run ends; "" is within the load.
	for _, last := range []string{"", "index idx_os_upper", "key both_unique", "foreign key object_state_tid_fkey", "statistics object_state"} {
		t.Run("after "+last, func(t *testing.T) {
			d := madeByTheSite(t, false)
			d.exec(t, dba)
			d.exec(t, "ALTER TABLE object_state ALTER COLUMN state SET COMPRESSION pglz; SELECT setval('zoid_seq', 7)")
			before := d.Schema(t)
			dst := d.Open(t, false)
			defer dst.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l, err := begin(t, dst, desttest.Sample(false), func(p *dest.Plan) {
				p.Log = func(s dest.Step) {
					if s.Done && s.Name == last {
						cancel()
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if last == "" {
				err = l.load(5)
			} else if err = l.load(-1); err == nil {
				if err = l.session.Loaded(ctx, l.src); err == nil {
					if err := l.session.Finish(ctx); !errors.Is(err, context.Canceled) {
						t.Fatalf("Finish was not cancelled: %v", err)
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.session.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := dst.Abort(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, d.Schema(t)); diff != "" {
				t.Errorf("schema (-before +after):\n%s", diff)
			}
			if got := d.query(t, "SELECT count(*) FROM transaction_log; SELECT count(*) FROM object_state"); got[0] != "0" || got[1] != "0" {
				t.Errorf("%v rows are left", got)
			}
			if got := d.query(t, "SELECT last_value, is_called FROM zoid_seq"); got[0] != "7|t" {
				t.Errorf("the sequence was put back to %v", got)
			}
		})
	}
}

func TestAbortDoesNotDestroyWhatASiteHasWritten(t *testing.T) {
	d := newDatabase(t)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, desttest.Sample(false), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.finishSteps(); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Close(); err != nil {
		t.Fatal(err)
	}
	const site = "INSERT INTO transaction_log (tid) SELECT max(tid) + 1 FROM transaction_log"
	d.exec(t, site)
	_, err = dst.Abort(t.Context())
	isRefused(t, err, "a site has written 1 transaction", "--clear")
	d.exec(t, "DELETE FROM transaction_log WHERE tid = (SELECT max(tid) FROM transaction_log)")
	if _, err := dst.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRecordsThatTheServerDoesNotTakeAreRejected(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d := madeByTheSite(t, history)
		for _, table := range []string{"object_state", "object_history"} {
			if table == "object_state" || history {
				d.exec(t, "ALTER TABLE "+table+" ADD CONSTRAINT clean CHECK (state IS NULL OR state->>'text' NOT LIKE 'poison%')")
			}
		}
		poison := func(oid zodb.OID) desttest.Record {
			return desttest.Record{OID: oid, Data: desttest.Data("app", "Bad", "poison"), Rejected: true}
		}
		good := func(oid zodb.OID) desttest.Record {
			return desttest.Record{OID: oid, Data: desttest.Data("app", "Good", "fine")}
		}
		long := desttest.Record{OID: 50, Data: desttest.Data("app", strings.Repeat("Long", 900), "x"), Rejected: true}
		b := desttest.NewBuilder()
		b.Commit(desttest.Transaction{TID: 1 << 40}, good(0), good(1), good(2), good(3), long)
		b.Commit(desttest.Transaction{TID: 2 << 40}, good(4), poison(1), good(5), poison(2), good(6), poison(7))
		b.Commit(desttest.Transaction{TID: 3 << 40}, good(2))
		l, err := run(t, d, b, history, func(p *dest.Plan) { p.AcceptRejects = true })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Want(history), d.Contents(t, history)); diff != "" {
			t.Error(diff)
		}
		if want := int64(len("127l")) - map[bool]int64{true: 0, false: 1}[history]; l.totals.Rejected != want {
			t.Errorf("%d records were rejected, want %d", l.totals.Rejected, want)
		}

		// While catching up the list of rejects outlives the process, too.
		bad := desttest.Record{OID: 3, Data: desttest.Bad(), Rejected: true}
		b.Commit(desttest.Transaction{TID: 4 << 40}, good(8), bad, good(9), good(1))
		dst := d.Open(t, history)
		defer dst.Close()
		l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptRejects = true, true })
		if err != nil {
			t.Fatal(err)
		}
		if err := l.follow(); err != nil {
			t.Fatal(err)
		}
		l.session.Close()
		l, err = begin(t, dst, b, func(p *dest.Plan) { p.Continue, p.AcceptRejects = true, true })
		if err != nil {
			t.Fatal(err)
		}
		var rejects []dest.Reject
		if err := l.session.Rejects(t.Context(), func(r *dest.Reject) error { rejects = append(rejects, *r); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(rejects) != 1 || rejects[0].OID != 3 || rejects[0].TID != 4<<40 || rejects[0].Reason == "" || string(rejects[0].Data) != string(bad.Data) {
			t.Errorf("the rejects are %+v", rejects)
		}
		if err := l.session.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Want(history), d.Contents(t, history)); diff != "" {
			t.Error(diff)
		}
	})
}
