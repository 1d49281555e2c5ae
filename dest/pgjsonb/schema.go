package pgjsonb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// The tables of zodb-pgjsonb 1.19.0.
const (
	transactionLog = "transaction_log"
	objectState    = "object_state"
	objectHistory  = "object_history"
	blobState      = "blob_state"
	packState      = "pack_state"
	schemaState    = "pgjsonb_schema_state"
	zoidSeq        = "zoid_seq"
	notifyFunction = "notify_commit"
	notifyTrigger  = "trg_notify_commit"
	tidIndex       = "idx_object_state_tid_zoid"
)

// objectColumns are those that COPY writes, in the order in which rows are
// encoded.
const objectColumns = "(zoid, tid, class_mod, class_name, state, state_size, refs)"

// wanted are the columns that a table must have to be zodb-pgjsonb's, with
// their types as format_type prints them.
var wanted = map[string]map[string]string{
	transactionLog: {"tid": "bigint", "username": "text", "description": "text", "extension": "bytea"},
	objectState: {"zoid": "bigint", "tid": "bigint", "class_mod": "text", "class_name": "text",
		"state": "jsonb", "state_size": "integer", "refs": "bigint[]"},
	objectHistory: {"zoid": "bigint", "tid": "bigint", "class_mod": "text", "class_name": "text",
		"state": "jsonb", "state_size": "integer", "refs": "bigint[]"},
	blobState:   {"zoid": "bigint", "tid": "bigint", "blob_size": "bigint", "data": "bytea", "s3_key": "text"},
	packState:   {"zoid": "bigint", "tid": "bigint"},
	schemaState: {"source": "text", "version": "text", "applied_at": "timestamp with time zone"},
}

// core are the tables that a schema has or has not together; history those that
// a history-preserving one has besides.
var (
	core    = []string{transactionLog, objectState, blobState}
	history = []string{objectHistory, packState}
)

// table is what the server knows of a table.
type table struct {
	name      string
	kind      string // relkind
	permanent bool
	owned     bool // by the role or one that it is a member of
	rowLevel  bool // row-level security applies to the role
	columns   map[string]column
}

type column struct {
	kind     string
	required bool // NOT NULL without a default
}

// layout is what stands in the schema that the run writes to.
type layout struct {
	schema string
	tables map[string]*table
	// sequence and function tell whether zoid_seq and notify_commit() exist.
	sequence, function bool
}

// has tells whether the core tables are there.
func (l *layout) has(name string) bool { return l.tables[name] != nil }

func (l *layout) name(table string) string { return quote(l.schema, table) }

// run are the tables of the run in this schema.
func (l *layout) run() watermark.Tables { return watermark.In(l.schema) }

// relStorageState is the oid of object_state if that is the one of a RelStorage,
// which has a table of the same name.
const relStorageState = `(SELECT a.attrelid FROM pg_catalog.pg_attribute a WHERE a.attrelid = to_regclass('object_state')
	AND a.attname = 'state' AND a.atttypid = 'pg_catalog.bytea'::pg_catalog.regtype)`

// readLayout finds the schema that the site will use, the way the site does: by
// the search path. A RelStorage further back there is in nobody's way.
func readLayout(ctx context.Context, q watermark.Querier) (*layout, error) {
	l := &layout{tables: map[string]*table{}}
	var schema *string
	err := q.QueryRow(ctx, `SELECT coalesce(
		(SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = coalesce(to_regclass('transaction_log'), nullif(to_regclass('object_state')::oid, `+relStorageState+`), to_regclass('zodb_convert_run'))),
		current_schema())`).Scan(&schema)
	if err != nil {
		return nil, fmt.Errorf("find the schema: %w", err)
	}
	if schema == nil {
		return nil, &dest.RefusedError{
			Reason: "no schema of the role's search path exists in the database",
			Hint:   "create the schema, or set search_path, for example with ALTER ROLE ... IN DATABASE ... SET search_path",
		}
	}
	l.schema = *schema
	if err := l.readTables(ctx, q); err != nil {
		return nil, fmt.Errorf("read the tables of schema %q: %w", l.schema, err)
	}
	return l, nil
}

func (l *layout) readTables(ctx context.Context, q watermark.Querier) error {
	names := make([]string, 0, len(wanted))
	for name := range wanted {
		names = append(names, name)
	}
	rows, err := q.Query(ctx, `SELECT c.relname, c.relkind::text, c.relpersistence = 'p', pg_has_role(c.relowner, 'USAGE'), row_security_active(c.oid)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[])`, l.schema, names)
	if err != nil {
		return err
	}
	var t table
	_, err = pgx.ForEachRow(rows, []any{&t.name, &t.kind, &t.permanent, &t.owned, &t.rowLevel}, func() error {
		found := t
		found.columns = map[string]column{}
		l.tables[found.name] = &found
		return nil
	})
	if err != nil {
		return err
	}
	rows, err = q.Query(ctx, `SELECT c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
			a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[]) AND a.attnum > 0 AND NOT a.attisdropped`, l.schema, names)
	if err != nil {
		return err
	}
	var name, attribute string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&name, &attribute, &c.kind, &c.required}, func() error {
		if t := l.tables[name]; t != nil {
			t.columns[attribute] = c
		}
		return nil
	})
	if err != nil {
		return err
	}
	return q.QueryRow(ctx, `SELECT
		EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1::text AND c.relname = 'zoid_seq' AND c.relkind = 'S'),
		EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
			WHERE n.nspname = $1::text AND p.proname = 'notify_commit' AND p.pronargs = 0)`, l.schema).Scan(&l.sequence, &l.function)
}

// check refuses tables that are not those of zodb-pgjsonb as we know it.
func (l *layout) check() error {
	if t := l.tables[objectState]; t != nil && t.columns["state"].kind == "bytea" {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("schema %q holds a RelStorage, which can be a source and is never written to", l.schema),
			Hint:   "the destination needs a schema of its own: name another database, or another schema with options='-c search_path=NAME' in its dsn",
		}
	}
	if !l.has(transactionLog) {
		for _, name := range append(slices.Clone(core), history...) {
			if l.has(name) {
				return &dest.RefusedError{
					Reason: fmt.Sprintf("schema %q has a table %s but no %s: it is not a database of zodb-pgjsonb", l.schema, name, transactionLog),
					Hint:   "use an empty schema",
				}
			}
		}
	}
	for _, name := range core {
		if l.has(transactionLog) && !l.has(name) {
			return l.another("it has no table " + name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) { // so that the same fault is told each time
		if t := l.tables[name]; t != nil {
			if err := l.checkTable(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *layout) another(reason string) error {
	return &dest.RefusedError{
		Reason: fmt.Sprintf("the tables in schema %q are not those of zodb-pgjsonb 1.14 to 1.19: %s", l.schema, reason),
		Hint:   "use an empty schema",
	}
}

func (l *layout) checkTable(t *table) error {
	if t.kind != "r" {
		return l.another(t.name + " is not an ordinary table")
	}
	if !t.permanent {
		return l.another(t.name + " is an unlogged table, which a crash empties")
	}
	for _, name := range slices.Sorted(maps.Keys(wanted[t.name])) {
		kind := wanted[t.name][name]
		switch have, ok := t.columns[name]; {
		case !ok:
			return l.another(fmt.Sprintf("%s has no column %s", t.name, name))
		case have.kind != kind:
			return l.another(fmt.Sprintf("column %s of %s is %s, not %s", name, t.name, have.kind, kind))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.columns)) {
		if _, known := wanted[t.name][name]; !known && t.columns[name].required {
			return l.another(fmt.Sprintf("column %s of %s may not be empty and has no default", name, t.name))
		}
	}
	if !t.owned {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("the role does not own table %s, whose keys and indexes are made after the load", l.name(t.name)),
			Hint:   fmt.Sprintf("ALTER TABLE %s OWNER TO the role, or make it a member of the owner", l.name(t.name)),
		}
	}
	if t.rowLevel {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("row-level security of table %s applies to the role", l.name(t.name)),
			Hint:   "disable it for the load",
		}
	}
	return nil
}

// notifyBody is the source of the trigger function: PostgreSQL keeps it as
// written, blanks included, and pg_dump shows it.
const notifyBody = "\nBEGIN\n    PERFORM pg_notify('zodb_invalidations', NEW.tid::text);\n    RETURN NEW;\nEND;\n"

// createCore returns the statements that make what zodb-pgjsonb makes on an
// empty database. Constraints and indexes get PostgreSQL's own names there, and
// so they do here.
func (l *layout) createCore() []string {
	log, state, blob := l.name(transactionLog), l.name(objectState), l.name(blobState)
	return []string{
		`CREATE TABLE ` + log + ` (tid bigint PRIMARY KEY, username text DEFAULT '', description text DEFAULT '', extension bytea DEFAULT '')`,
		`CREATE TABLE ` + state + ` (zoid bigint PRIMARY KEY, tid bigint NOT NULL REFERENCES ` + log + ` (tid),
			class_mod text NOT NULL, class_name text NOT NULL, state jsonb, state_size integer NOT NULL, refs bigint[] NOT NULL DEFAULT '{}')`,
		`CREATE TABLE ` + blob + ` (zoid bigint NOT NULL, tid bigint NOT NULL, blob_size bigint NOT NULL, data bytea, s3_key text, PRIMARY KEY (zoid, tid))`,
		`CREATE INDEX idx_object_class ON ` + state + ` (class_mod, class_name)`,
		`CREATE INDEX idx_object_refs ON ` + state + ` USING gin (refs)`,
		`CREATE OR REPLACE FUNCTION ` + l.name(notifyFunction) + `() RETURNS trigger AS $$` + notifyBody + `$$ LANGUAGE plpgsql`,
		`CREATE TRIGGER ` + notifyTrigger + ` AFTER INSERT ON ` + log + ` FOR EACH ROW EXECUTE FUNCTION ` + l.name(notifyFunction) + `()`,
	}
}

func (l *layout) createHistory() []string {
	rows := l.name(objectHistory)
	return []string{
		`CREATE TABLE ` + rows + ` (zoid bigint NOT NULL, tid bigint NOT NULL, class_mod text NOT NULL, class_name text NOT NULL,
			state jsonb, state_size integer NOT NULL, refs bigint[] NOT NULL DEFAULT '{}', PRIMARY KEY (zoid, tid))`,
		`CREATE INDEX idx_history_tid ON ` + rows + ` (tid)`,
		`CREATE INDEX idx_history_zoid_tid ON ` + rows + ` (zoid, tid DESC)`,
	}
}

func (l *layout) createPackState() string {
	return `CREATE TABLE ` + l.name(packState) + ` (zoid bigint PRIMARY KEY, tid bigint NOT NULL)`
}

func (l *layout) createSchemaState() string {
	return `CREATE TABLE ` + l.name(schemaState) + ` (source text PRIMARY KEY, version text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`
}

// ensure makes what is missing, as the first start of the site would, and
// returns the DROP statements that undo it, last made first.
func (l *layout) ensure(ctx context.Context, q watermark.Querier, historyPreserving bool) (undo []string, err error) {
	make := func(drop string, statements ...string) error {
		for _, sql := range statements {
			if _, err := q.Exec(ctx, sql); err != nil {
				return fmt.Errorf("create the schema: %w", err)
			}
		}
		if drop != "" {
			undo = append([]string{drop}, undo...)
		}
		return nil
	}
	if !l.has(transactionLog) {
		if !l.function {
			undo = append(undo, `DROP FUNCTION `+l.name(notifyFunction)+`()`)
		}
		drop := `DROP TABLE ` + strings.Join([]string{l.name(objectState), l.name(transactionLog), l.name(blobState)}, ", ")
		if err := make(drop, l.createCore()...); err != nil {
			return nil, err
		}
	}
	if historyPreserving && !l.has(objectHistory) {
		if err := make(`DROP TABLE `+l.name(objectHistory), l.createHistory()...); err != nil {
			return nil, err
		}
		if !l.has(packState) {
			if err := make(`DROP TABLE `+l.name(packState), l.createPackState()); err != nil {
				return nil, err
			}
		}
	}
	// A later release added it; the site makes it at its next start.
	var present bool
	if err := q.QueryRow(ctx, `SELECT to_regclass($1::text) IS NOT NULL`, l.name(tidIndex)).Scan(&present); err != nil {
		return nil, fmt.Errorf("create the schema: %w", err)
	}
	if !present {
		drop := `DROP INDEX ` + l.name(tidIndex)
		if !l.has(transactionLog) {
			drop = "" // goes with its table
		}
		if err := make(drop, `CREATE INDEX `+tidIndex+` ON `+l.name(objectState)+` (tid, zoid)`); err != nil {
			return nil, err
		}
	}
	if !l.sequence {
		if err := make(`DROP SEQUENCE `+l.name(zoidSeq), `CREATE SEQUENCE `+l.name(zoidSeq)+` START WITH 1`); err != nil {
			return nil, err
		}
	}
	if !l.has(schemaState) {
		if err := make(`DROP TABLE `+l.name(schemaState), l.createSchemaState()); err != nil {
			return nil, err
		}
	}
	return undo, nil
}

// compressed are the columns that the site asks to be compressed with lz4.
func (l *layout) compressed() [][2]string {
	return [][2]string{{objectState, "state"}, {objectHistory, "state"}, {blobState, "data"}}
}

// marks are the statements that put back what a load changes of tables that
// were there before it: the compression of columns, and the sequence.
func (l *layout) marks(ctx context.Context, tx pgx.Tx) (statements []string, err error) {
	for _, c := range l.compressed() {
		if !l.has(c[0]) {
			continue
		}
		var method string
		err := tx.QueryRow(ctx, `SELECT CASE attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' ELSE 'DEFAULT' END
			FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass AND attname = $2::text`, l.name(c[0]), c[1]).Scan(&method)
		if err != nil {
			return nil, fmt.Errorf("look at the compression of %s: %w", c[0], err)
		}
		statements = append(statements, `ALTER TABLE `+l.name(c[0])+` ALTER COLUMN `+c[1]+` SET COMPRESSION `+method)
	}
	if l.sequence {
		var last int64
		var called bool
		if err := tx.QueryRow(ctx, `SELECT last_value, is_called FROM `+l.name(zoidSeq)).Scan(&last, &called); err != nil {
			return nil, fmt.Errorf("look at the sequence: %w", err)
		}
		statements = append(statements, fmt.Sprintf("SELECT setval('%s', %d, %v)", strings.ReplaceAll(l.name(zoidSeq), "'", "''"), last, called))
	}
	return statements, nil
}

// lz4 sets the compression of the large columns, which must be done before rows
// are written. A server that was built without lz4 keeps pglz, as the site
// would.
func (l *layout) lz4(ctx context.Context, tx pgx.Tx, historyPreserving bool) error {
	for _, c := range l.compressed() {
		if c[0] == objectHistory && !historyPreserving && !l.has(objectHistory) {
			continue
		}
		sub, err := tx.Begin(ctx)
		if err != nil {
			return fmt.Errorf("set the compression of %s: %w", c[0], err)
		}
		_, err = sub.Exec(ctx, `ALTER TABLE `+l.name(c[0])+` ALTER COLUMN `+c[1]+` SET COMPRESSION lz4`)
		if err == nil {
			err = sub.Commit(ctx)
		} else if code(err) == "0A000" || code(err) == "22023" {
			err = sub.Rollback(ctx)
		}
		if err != nil {
			return fmt.Errorf("set the compression of %s: %w", c[0], err)
		}
	}
	return nil
}
