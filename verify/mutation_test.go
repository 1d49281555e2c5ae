package verify_test

import (
	"bytes"
	"context"
	"encoding/json"

	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/verify"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Every deliberate single change of a destination is found and located, and
// nothing else is. ZODB_CONVERT_MUTATIONS is how many there are for each
// database.
func TestEveryMutationIsFoundAndLocated(t *testing.T) {
	n := 6
	if text := os.Getenv("ZODB_CONVERT_MUTATIONS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for i, db := range []struct {
		name    string
		history bool
	}{
		{"plone", false}, {"plone", true}, {"history", true}, {"blobs", false}, {"blobs", true}, {"btrees", false},
		{"odd", true}, {"py2-values", false}, {"py2-site", true}, {"rejects", false}, {"rejects", true}, {"cyclic", false}, {"zlib", true},
	} {
		t.Run(db.name+map[bool]string{true: "/history"}[db.history], func(t *testing.T) {
			t.Parallel()
			m := newMutator(t, converted(t, db.name, db.history), uint64(i))
			for range n {
				m.one(t)
			}
			m.untouched(t)
		})
	}
}

// Every kind of fault of the schema is found.
func TestEveryFaultOfTheSchemaIsFound(t *testing.T) {
	m := newMutator(t, converted(t, "history", true), 0)
	for _, f := range []struct{ where, sql, undo string }{
		{"index idx_object_class", `DROP INDEX idx_object_class`, `CREATE INDEX idx_object_class ON object_state (class_mod, class_name)`},
		{"index idx_object_refs", `DROP INDEX idx_object_refs`, `CREATE INDEX idx_object_refs ON object_state USING gin (refs)`},
		{"index idx_object_state_tid_zoid", `DROP INDEX idx_object_state_tid_zoid`, `CREATE INDEX idx_object_state_tid_zoid ON object_state (tid, zoid)`},
		{"index idx_history_tid", `DROP INDEX idx_history_tid`, `CREATE INDEX idx_history_tid ON object_history (tid)`},
		{"index idx_history_zoid_tid", `DROP INDEX idx_history_zoid_tid`, `CREATE INDEX idx_history_zoid_tid ON object_history (zoid, tid DESC)`},
		{"index idx_object_class", `DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod)`,
			`DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod, class_name)`},
		{"index idx_object_class", `DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod, class_name) WHERE zoid > 7`,
			`DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod, class_name)`},
		{"index idx_object_class", `UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_object_class'::regclass`,
			`UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'idx_object_class'::regclass`},
		{"key object_state_pkey", `ALTER TABLE object_state DROP CONSTRAINT object_state_pkey`, `ALTER TABLE object_state ADD PRIMARY KEY (zoid)`},
		{"key object_history_pkey", `ALTER TABLE object_history DROP CONSTRAINT object_history_pkey`, `ALTER TABLE object_history ADD PRIMARY KEY (zoid, tid)`},
		{"key blob_state_pkey", `ALTER TABLE blob_state DROP CONSTRAINT blob_state_pkey`, `ALTER TABLE blob_state ADD PRIMARY KEY (zoid, tid)`},
		{"key pack_state_pkey", `ALTER TABLE pack_state DROP CONSTRAINT pack_state_pkey`, `ALTER TABLE pack_state ADD PRIMARY KEY (zoid)`},
		{"foreign key object_state_tid_fkey", `ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey`,
			`ALTER TABLE object_state ADD CONSTRAINT object_state_tid_fkey FOREIGN KEY (tid) REFERENCES transaction_log (tid)`},
		{"foreign key object_state_tid_fkey", `UPDATE pg_constraint SET convalidated = false WHERE conname = 'object_state_tid_fkey'`,
			`UPDATE pg_constraint SET convalidated = true WHERE conname = 'object_state_tid_fkey'`},
		{"trigger trg_notify_commit", `ALTER TABLE transaction_log DISABLE TRIGGER trg_notify_commit`, `ALTER TABLE transaction_log ENABLE TRIGGER trg_notify_commit`},
		{"function notify_commit", `CREATE OR REPLACE FUNCTION notify_commit() RETURNS trigger AS $$BEGIN RETURN NEW; END$$ LANGUAGE plpgsql`,
			`CREATE OR REPLACE FUNCTION notify_commit() RETURNS trigger AS $$BEGIN PERFORM pg_notify('zodb_invalidations', NEW.tid::text); RETURN NEW; END$$ LANGUAGE plpgsql`},
		{"trigger trg_notify_commit", `DROP TRIGGER trg_notify_commit ON transaction_log`,
			`CREATE TRIGGER trg_notify_commit AFTER INSERT ON transaction_log FOR EACH ROW EXECUTE FUNCTION notify_commit()`},
		{"sequence zoid_seq", `SELECT setval('zoid_seq', (SELECT max(zoid) FROM object_state), false)`, ``},
		{"sequence zoid_seq", `SELECT setval('zoid_seq', 1, true)`, ``},
		{"sequence zoid_seq", `ALTER SEQUENCE zoid_seq RENAME TO other_seq`, `ALTER SEQUENCE other_seq RENAME TO zoid_seq`},
		{"leftover zodb_convert_chunk", `CREATE TABLE zodb_convert_chunk (x int)`, `DROP TABLE zodb_convert_chunk`},
		{"leftover zodb_convert_owed", `CREATE TABLE zodb_convert_owed (x int)`, `DROP TABLE zodb_convert_owed`},
		{"leftover migration_watermark", `CREATE TABLE migration_watermark (x int)`, `DROP TABLE migration_watermark`},
		{"table pgjsonb_schema_state", `ALTER TABLE pgjsonb_schema_state RENAME TO other`, `ALTER TABLE other RENAME TO pgjsonb_schema_state`},
		{"table pack_state", `ALTER TABLE pack_state RENAME TO other`, `ALTER TABLE other RENAME TO pack_state`},
		{"index idx_object_class", `DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod COLLATE "C", class_name)`,
			`DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod, class_name)`},
		{"index idx_object_class", `DROP INDEX idx_object_class; CREATE INDEX idx_object_class ON object_state (class_mod, class_name text_pattern_ops)`,
			`DROP INDEX idx_object_class; CREATE INDEX another_name ON object_state (class_mod, class_name)`},
		{"index idx_history_zoid_tid", `DROP INDEX idx_history_zoid_tid; CREATE INDEX idx_history_zoid_tid ON object_history (zoid, tid DESC NULLS LAST)`,
			`DROP INDEX idx_history_zoid_tid; CREATE INDEX idx_history_zoid_tid ON object_history (zoid, tid DESC) INCLUDE (class_mod)`},
		{"key object_state_pkey", `ALTER TABLE object_state DROP CONSTRAINT object_state_pkey; ALTER TABLE object_state ADD PRIMARY KEY (zoid) DEFERRABLE`,
			`ALTER TABLE object_state DROP CONSTRAINT object_state_pkey; ALTER TABLE object_state ADD PRIMARY KEY (zoid)`},
		{"foreign key object_state_tid_fkey", `ALTER TABLE object_state DISABLE TRIGGER ALL`, `ALTER TABLE object_state ENABLE TRIGGER ALL`},
		{"foreign key object_state_tid_fkey", `ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey;
			ALTER TABLE object_state ADD CONSTRAINT object_state_tid_fkey FOREIGN KEY (tid) REFERENCES transaction_log (tid) ON DELETE CASCADE`,
			`ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey;
			ALTER TABLE object_state ADD CONSTRAINT another_name FOREIGN KEY (tid) REFERENCES transaction_log (tid)`},
		{"function notify_commit", `CREATE OR REPLACE FUNCTION notify_commit() RETURNS trigger AS $$BEGIN
			-- PERFORM pg_notify('zodb_invalidations', NEW.tid::text);
			RETURN NEW; END$$ LANGUAGE plpgsql`,
			`CREATE OR REPLACE FUNCTION notify_commit() RETURNS trigger AS $$BEGIN PERFORM pg_notify('zodb_invalidations', NEW.tid::text); RETURN NEW; END$$ LANGUAGE plpgsql`},
		{"trigger trg_notify_commit", `DROP TRIGGER trg_notify_commit ON transaction_log;
			CREATE TRIGGER trg_notify_commit AFTER INSERT ON transaction_log FOR EACH ROW WHEN (NEW.username <> '') EXECUTE FUNCTION notify_commit()`,
			`DROP TRIGGER trg_notify_commit ON transaction_log;
			CREATE TRIGGER trg_notify_commit AFTER INSERT ON transaction_log FOR EACH ROW EXECUTE FUNCTION notify_commit()`},
		{"column object_state.refs", `ALTER TABLE object_state ALTER refs DROP NOT NULL`, `ALTER TABLE object_state ALTER refs SET NOT NULL`},
		{"column object_history.state_size", `ALTER TABLE object_history ALTER state_size DROP NOT NULL`, `ALTER TABLE object_history ALTER state_size SET NOT NULL`},
		{"sequence zoid_seq", `INSERT INTO object_history SELECT 1000000, tid, class_mod, class_name, state, state_size FROM object_history LIMIT 1`, ``},
		{"table blob_state", `ALTER TABLE blob_state SET UNLOGGED`, `ALTER TABLE blob_state SET LOGGED`},
	} {
		m.exec(t, f.sql)
		_, all := m.pair.verify(t, verify.Options{})
		all = slices.DeleteFunc(all, func(d verify.Difference) bool { return d.Kind == verify.ExtraRevision })
		if len(all) != 1 || all[0].Kind != verify.SchemaFault || all[0].Path != f.where {
			t.Errorf("%s: %d differences: %v", f.sql, len(all), all)
		}
		if f.undo != "" {
			m.exec(t, f.undo)
		}
		m.restore(t)
	}
	m.untouched(t)
}

// mutator changes a destination, one row at a time.
type mutator struct {
	pair   *pair
	conn   *pgx.Conn
	random *rand.Rand
	tables []string
	seq    int64
	gone   []int64        // oids that the source has deleted
	known  map[int64]bool // all that it has
	tids   []int64
	rows   []objectRow
	blobs  []blobRow
}

type objectRow struct {
	table     string
	zoid, tid int64
	mod, name string
	state     []byte
	refs      []int64
}

type blobRow struct{ zoid, tid, size int64 }

func newMutator(t *testing.T, p *pair, seed uint64) *mutator {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	m := &mutator{pair: p, conn: conn, random: rand.New(rand.NewPCG(7, seed)), known: map[int64]bool{}, tables: []string{"transaction_log", "object_state", "blob_state"}}
	if p.history {
		m.tables = append(m.tables, "object_history")
	}
	m.exec(t, "SET session_replication_role = replica") // rows may contradict each other
	m.exec(t, "CREATE SCHEMA kept")
	for _, table := range m.tables {
		m.exec(t, "CREATE TABLE kept."+table+" AS TABLE public."+table)
	}
	if err := conn.QueryRow(t.Context(), "SELECT last_value FROM zoid_seq").Scan(&m.seq); err != nil {
		t.Fatal(err)
	}
	m.read(t)
	return m
}

func (m *mutator) read(t *testing.T) {
	t.Helper()
	for _, table := range m.tables {
		if !strings.HasPrefix(table, "object_") {
			continue
		}
		m.rows = append(m.rows, query(t, m, "SELECT zoid, tid, class_mod, class_name, state::text, refs FROM "+table+" ORDER BY zoid, tid",
			func(r pgx.CollectableRow) (o objectRow, err error) {
				o.table = table
				return o, r.Scan(&o.zoid, &o.tid, &o.mod, &o.name, &o.state, &o.refs)
			})...)
	}
	m.tids = query(t, m, "SELECT tid FROM transaction_log ORDER BY tid", pgx.RowTo[int64])
	m.blobs = query(t, m, "SELECT zoid, tid, blob_size FROM blob_state ORDER BY zoid, tid", func(r pgx.CollectableRow) (b blobRow, err error) {
		return b, r.Scan(&b.zoid, &b.tid, &b.size)
	})
	src := m.pair.source(t)
	if _, err := src.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	var scratch []byte
	err := src.Read(t.Context(), source.ReadOptions{ChunkBytes: 1 << 20, Budget: endless{}}, func(c *source.Chunk) error {
		defer c.Release()
		for i := range c.Records {
			data, err := src.Data(t.Context(), &c.Records[i], &scratch)
			m.known[int64(c.Records[i].OID)] = true
			if err == nil && data == nil {
				m.gone = append(m.gone, int64(c.Records[i].OID))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

type endless struct{}

func (endless) Acquire(context.Context, int64) error { return nil }
func (endless) Release(int64)                        {}

func query[T any](t *testing.T, m *mutator, sql string, fn pgx.RowToFunc[T]) []T {
	t.Helper()
	rows, err := m.conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, fn)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (m *mutator) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := m.conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (m *mutator) restore(t *testing.T) {
	t.Helper()
	for _, table := range m.tables {
		m.exec(t, "DELETE FROM "+table)
		m.exec(t, "INSERT INTO "+table+" SELECT * FROM kept."+table)
	}
	m.exec(t, "SELECT setval('zoid_seq', $1, false)", m.seq)
}

func (m *mutator) untouched(t *testing.T) {
	t.Helper()
	if _, all := m.pair.verify(t, verify.Options{}); len(all) > 0 {
		t.Errorf("restored, there are %d differences: %v", len(all), all)
	}
}

// mutation is a change and what must be said of it.
type mutation struct {
	what  string
	sql   string
	args  []any
	kinds []string
	oids  []int64 // each must be named, and no other
	tid   int64   // must be named if there is no oid
}

// one makes one change, verifies, and takes it back.
func (m *mutator) one(t *testing.T) {
	t.Helper()
	var c *mutation
	for c == nil {
		c = m.choose()
	}
	m.exec(t, c.sql, c.args...)
	_, all := m.pair.verify(t, verify.Options{})
	m.judge(t, c, all)
	m.restore(t)
}

func (m *mutator) judge(t *testing.T, c *mutation, all []verify.Difference) {
	t.Helper()
	fail := func(why string) {
		t.Errorf("%s: %s\n%s %v\nfound %v", c.what, why, c.sql, c.args, all)
	}
	if len(all) == 0 {
		fail("not found")
		return
	}
	named := map[string]bool{}
	for _, d := range all {
		named[d.OID] = true
		switch {
		case !slices.Contains(c.kinds, d.Kind):
			fail("called " + d.Kind)
			return
		case len(c.oids) == 0 && d.TID != zodb.TID(c.tid).String():
			fail("located elsewhere")
			return
		case len(c.oids) > 0 && !slices.ContainsFunc(c.oids, func(o int64) bool { return zodb.OID(o).String() == d.OID }):
			fail("located elsewhere")
			return
		}
	}
	for _, o := range c.oids {
		if !named[zodb.OID(o).String()] {
			fail("not located at " + zodb.OID(o).String())
		}
	}
}

func (m *mutator) choose() *mutation {
	choices := []func() *mutation{m.value, m.value, m.value, m.row, m.row, m.transaction, m.refs}
	if len(m.blobs) > 1 {
		choices = append(choices, m.blob, m.blob, m.blob)
	}
	return choices[m.random.IntN(len(choices))]()
}

func (m *mutator) pick() *objectRow {
	for {
		if r := &m.rows[m.random.IntN(len(m.rows))]; r.state != nil {
			return r
		}
	}
}

// value changes something in a state.
func (m *mutator) value() *mutation {
	r := m.pick()
	d := json.NewDecoder(bytes.NewReader(r.state))
	d.UseNumber()
	var tree any
	if d.Decode(&tree) != nil {
		return nil
	}
	var changes []func()
	var what []string
	change := func(name string, f func()) { changes, what = append(changes, f), append(what, name) }
	holder := []any{tree}
	m.leaves(tree, func(v any) { holder[0] = v }, change)
	if len(changes) == 0 {
		return nil
	}
	i := m.random.IntN(len(changes))
	changes[i]()
	state, err := json.Marshal(holder[0])
	if err != nil || void(r, state) {
		return nil
	}
	return &mutation{what: what[i], sql: "UPDATE " + r.table + " SET state = $3::text::jsonb WHERE zoid = $1 AND tid = $2",
		args: []any{r.zoid, r.tid, string(state)}, oids: []int64{r.zoid}, kinds: []string{verify.OtherValue, verify.Unreadable, verify.OtherRefs}}
}

// void tells whether readers see nothing of a change: a third element of a pair,
// for example, which they pass over.
func void(r *objectRow, state []byte) bool {
	was, err := jsonb.AppendRecord(nil, r.mod, r.name, r.state)
	now, e := jsonb.AppendRecord(nil, r.mod, r.name, state)
	return err == nil && e == nil && bytes.Equal(was, now)
}

// leaves collects the changes that a tree can get.
func (m *mutator) leaves(v any, set func(any), change func(string, func())) {
	switch v := v.(type) {
	case json.Number:
		change("a digit", func() {
			text := []byte(v.String())
			for at := range text {
				if i := (at + m.random.IntN(len(text))) % len(text); text[i] >= '0' && text[i] <= '8' {
					text[i]++
					break
				}
			}
			if json.Number(text) == v {
				text = append([]byte("1"), bytes.TrimPrefix(text, []byte("-"))...)
			}
			set(json.Number(text))
		})
	case bool:
		change("a truth value", func() { set(!v) })
	case string:
		change("a letter", func() { set("x" + v) })
	case nil:
		change("a null", func() { set(json.Number("7")) })
	case []any:
		for i := range v {
			m.leaves(v[i], func(n any) { v[i] = n }, change)
		}
		if len(v) > 0 {
			change("an element less", func() { set(v[:len(v)-1]) })
			change("an element more", func() { set(append(slices.Clone(v), "one more")) })
		}
	case map[string]any:
		plain := true
		for k := range v {
			plain = plain && !strings.HasPrefix(k, "@")
		}
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if k == "buffers" {
				continue // a capsule refers to some objects only to keep them alive
			}
			m.leaves(v[k], func(n any) { v[k] = n }, change)
			change("a key less", func() { delete(v, k) })
			if plain {
				change("another key", func() { v[k+"x"] = v[k]; delete(v, k) })
			}
		}
		if plain {
			change("a key more", func() { v["one more"] = "key" })
		}
	}
}

// row changes a column, or a row as a whole.
func (m *mutator) row() *mutation {
	r := m.pick()
	at := func(set string) string { return "UPDATE " + r.table + " SET " + set + " WHERE zoid = $1 AND tid = $2" }
	c := &mutation{args: []any{r.zoid, r.tid}, oids: []int64{r.zoid}}
	history := r.table == "object_history"
	switch m.random.IntN(9) {
	case 0:
		c.what, c.sql, c.kinds = "module", at("class_mod = class_mod || 'x'"), []string{verify.OtherClass}
	case 1:
		c.what, c.sql, c.kinds = "class", at("class_name = class_name || 'x'"), []string{verify.OtherClass}
	case 2:
		c.what, c.sql, c.kinds = "state_size", at("state_size = state_size + 1"), []string{verify.OtherSize}
	case 3:
		c.what, c.sql, c.kinds = "NULL state", at("state = NULL"), []string{verify.Unreadable}
	case 4:
		c.what, c.sql, c.kinds = "missing row", "DELETE FROM "+r.table+" WHERE zoid = $1 AND tid = $2", []string{verify.MissingObject, verify.MissingRevision}
	case 5:
		other := m.tids[m.random.IntN(len(m.tids))]
		if slices.ContainsFunc(m.rows, func(o objectRow) bool { return o.zoid == r.zoid && o.tid == other }) {
			return nil
		}
		c.what, c.sql = "tid", at("tid = $3")
		c.args = append(c.args, other)
		c.kinds = []string{verify.OtherTID}
		if history {
			c.kinds = []string{verify.MissingRevision, verify.ExtraRevision, verify.NotDeleted}
		}
	case 6:
		zoid := m.unused()
		c.what, c.oids = "extra row", []int64{zoid}
		c.sql = "INSERT INTO " + r.table + " SELECT $3, tid, class_mod, class_name, state, state_size, refs FROM " + r.table + " WHERE zoid = $1 AND tid = $2"
		c.args, c.kinds = append(c.args, zoid), []string{verify.ExtraObject, verify.ExtraRevision}
	case 7:
		if len(m.gone) == 0 {
			return nil
		}
		zoid := m.gone[m.random.IntN(len(m.gone))]
		c.what, c.oids = "a deleted object that is there", []int64{zoid}
		c.sql = "INSERT INTO object_state SELECT $3, tid, class_mod, class_name, state, state_size, refs FROM " + r.table + " WHERE zoid = $1 AND tid = $2"
		c.args, c.kinds = append(c.args, zoid), []string{verify.NotDeleted}
	case 8:
		o := m.pick()
		if o.table != "object_state" || history || o.zoid == r.zoid || bytes.Equal(o.state, r.state) {
			return nil
		}
		c.what, c.oids = "swapped states", []int64{r.zoid, o.zoid}
		c.sql = `UPDATE object_state a SET state = b.state, class_mod = b.class_mod, class_name = b.class_name, refs = b.refs
			FROM object_state b WHERE a.zoid IN ($1, $2) AND b.zoid IN ($1, $2) AND a.zoid <> b.zoid`
		c.args, c.kinds = []any{r.zoid, o.zoid}, []string{verify.OtherValue, verify.OtherClass, verify.OtherRefs, verify.Unreadable}
	}
	return c
}

// unused is an oid that neither side has, below those that will be given out.
func (m *mutator) unused() int64 {
	for zoid := m.seq - 1; ; zoid-- {
		if !slices.ContainsFunc(m.rows, func(r objectRow) bool { return r.zoid == zoid }) && !m.known[zoid] {
			return zoid
		}
	}
}

func (m *mutator) refs() *mutation {
	r := m.pick()
	c := &mutation{sql: "UPDATE " + r.table + " SET refs = $3 WHERE zoid = $1 AND tid = $2", oids: []int64{r.zoid}, kinds: []string{verify.OtherRefs}}
	refs := slices.Clone(r.refs)
	if len(refs) == 0 || m.random.IntN(2) == 0 {
		c.what, refs = "a reference more", append(refs, 123456789)
	} else {
		less := refs[m.random.IntN(len(refs))]
		c.what, refs = "a reference less", slices.DeleteFunc(refs, func(o int64) bool { return o == less })
	}
	c.args = []any{r.zoid, r.tid, refs}
	return c
}

func (m *mutator) transaction() *mutation {
	// The last one is what tells how far the destination has come.
	tid := m.tids[m.random.IntN(len(m.tids)-1)]
	c := &mutation{args: []any{tid}, tid: tid, kinds: []string{verify.OtherTransaction}}
	at := func(set string) string { return "UPDATE transaction_log SET " + set + " WHERE tid = $1" }
	switch m.random.IntN(5) {
	case 0:
		c.what, c.sql = "user", at("username = username || 'x'")
	case 1:
		c.what, c.sql = "description", at("description = 'other ' || description")
	case 2:
		c.what, c.sql = "extension", at(`extension = convert_to('{"one": "more"}', 'UTF8')`)
	case 3:
		c.what, c.sql, c.kinds = "missing transaction", "DELETE FROM transaction_log WHERE tid = $1", []string{verify.MissingTransaction}
	case 4:
		c.what, c.sql, c.kinds = "extra transaction", "INSERT INTO transaction_log (tid) VALUES ($1)", []string{verify.ExtraTransaction}
		c.args, c.tid = []any{tid - 1}, tid-1
		if slices.Contains(m.tids, tid-1) {
			return nil
		}
	}
	return c
}

func (m *mutator) blob() *mutation {
	b := m.blobs[m.random.IntN(len(m.blobs))]
	c := &mutation{args: []any{b.zoid, b.tid}, oids: []int64{b.zoid}, kinds: []string{verify.OtherBlob}}
	at := func(set string) string { return "UPDATE blob_state SET " + set + " WHERE zoid = $1 AND tid = $2" }
	switch m.random.IntN(8) {
	case 0:
		if b.size == 0 {
			return nil
		}
		c.what, c.sql = "a byte", at("data = set_byte(data, $3, get_byte(data, $3) # 1)")
		c.args = append(c.args, m.random.Int64N(b.size))
	case 1:
		if b.size == 0 {
			return nil
		}
		c.what, c.sql = "a byte less", at("data = substring(data FOR octet_length(data) - 1)")
	case 2:
		c.what, c.sql = "a byte more", at(`data = data || '\x00'::bytea`)
	case 3:
		c.what, c.sql = "size", at("blob_size = blob_size + 1")
	case 4:
		c.what, c.sql, c.kinds = "no bytes", at("data = NULL"), []string{verify.MissingBlob}
	case 5:
		c.what, c.sql, c.kinds = "missing blob", "DELETE FROM blob_state WHERE zoid = $1 AND tid = $2", []string{verify.MissingBlob}
	case 6:
		zoid := m.unused()
		c.what, c.sql, c.kinds = "extra blob", "INSERT INTO blob_state SELECT $3, tid, blob_size, data FROM blob_state WHERE zoid = $1 AND tid = $2", []string{verify.ExtraBlob}
		c.args, c.oids = append(c.args, zoid), []int64{zoid}
	case 7:
		o := m.blobs[m.random.IntN(len(m.blobs))]
		if o.size == b.size {
			return nil
		}
		c.what, c.oids = "swapped blobs", []int64{b.zoid, o.zoid}
		c.sql = `UPDATE blob_state a SET data = b.data, blob_size = b.blob_size FROM blob_state b
			WHERE (a.zoid = $1 AND a.tid = $2 AND b.zoid = $3 AND b.tid = $4) OR (a.zoid = $3 AND a.tid = $4 AND b.zoid = $1 AND b.tid = $2)`
		c.args = append(c.args, o.zoid, o.tid)
	}
	return c
}
