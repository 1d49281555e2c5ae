package pgjsonb_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
)

func TestRefusedCatchUpLeavesNothingBehind(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	d.exec(t, "INSERT INTO transaction_log (tid, username) VALUES (288230376151711744, 'bob')")
	before := d.Schema(t)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, desttest.Sample(false), func(p *dest.Plan) { p.Continue = true })
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.session.Verify(t.Context(), l.src)
	isRefused(t, err, `"bob"`)
	if err := l.session.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, d.Schema(t)); diff != "" {
		t.Errorf("schema (-before +after):\n%s", diff)
	}
}

func TestSettingsOfTheDatabaseDoNotMatter(t *testing.T) {
	d := newDatabase(t)
	for _, setting := range []string{"datestyle = 'German'", "intervalstyle = 'iso_8601'", "quote_all_identifiers = on"} {
		d.exec(t, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET "+strings.ReplaceAll(setting, "'", "''")+"', current_database()); END $$")
	}
	convert(t, d, desttest.Sample(false), false)
	dst := d.Open(t, false)
	defer dst.Close()
	if _, err := dst.State(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
}

func TestIndexThatTheSiteMadeMeanwhileIsTakenOver(t *testing.T) {
	d := newDatabase(t)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, desttest.Sample(false), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(-1); err != nil {
		t.Fatal(err)
	}
	d.exec(t, "CREATE INDEX IF NOT EXISTS idx_object_state_tid_zoid ON object_state (tid, zoid)")
	if err := l.session.Loaded(t.Context(), l.src); err != nil {
		t.Fatal(err)
	}
	if err := l.session.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestClearDoesNotChangeTablesOfOthers(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	d.exec(t, "CREATE TABLE other (zoid bigint REFERENCES object_state (zoid) ON DELETE CASCADE); INSERT INTO other SELECT zoid FROM object_state LIMIT 2")
	dst := d.Open(t, false)
	defer dst.Close()
	_, err := begin(t, dst, desttest.Sample(false), func(p *dest.Plan) { p.Clear = true })
	isRefused(t, err, "other")
	if got := d.query(t, "SELECT count(*) FROM other"); got[0] != "2" {
		t.Errorf("%v rows are left", got)
	}
}
