package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// neededIndex is an index as zodb-pgjsonb makes it. Its name does not count: what the
// planner uses is what is indexed, and how.
type neededIndex struct {
	kind    string // "key" or "index"
	table   string
	name    string
	method  string
	columns string // as pg_get_indexdef writes them, with their order
}

// neededIndexes are those that a site relies on.
func neededIndexes(historyPreserving bool) []neededIndex {
	all := []neededIndex{
		{"key", transactionLog, "transaction_log_pkey", "btree", "tid"},
		{"key", objectState, "object_state_pkey", "btree", "zoid"},
		{"key", blobState, "blob_state_pkey", "btree", "zoid, tid"},
		{"index", objectState, "idx_object_class", "btree", "class_mod, class_name"},
		{"index", objectState, "idx_object_refs", "gin", "refs"},
		{"index", objectState, tidIndex, "btree", "tid, zoid"},
	}
	if historyPreserving {
		all = append(all,
			neededIndex{"key", objectHistory, "object_history_pkey", "btree", "zoid, tid"},
			neededIndex{"key", packState, "pack_state_pkey", "btree", "zoid"},
			neededIndex{"index", objectHistory, "idx_history_tid", "btree", "tid"},
			neededIndex{"index", objectHistory, "idx_history_zoid_tid", "btree", "zoid, tid DESC"})
	}
	return all
}

// foundIndex is an index that is there.
type foundIndex struct {
	table, name, method, columns string
	primary, valid, partial      bool
	unique                       bool
	usual                        bool // operator classes and collations are those that queries use
	immediate                    bool // a key that is checked with each row
}

// odd is how an index that has the right columns is not as it has to be, "" if it
// is.
func (x *foundIndex) odd(want *neededIndex) string {
	switch {
	case x.partial:
		return "holds a part of the rows only"
	case !x.usual:
		return "has other operator classes or collations than queries use"
	case want.kind == "key" && !x.immediate:
		return "is deferrable: a site cannot write with it"
	case want.kind == "index" && x.unique && !strings.Contains(want.columns, "zoid"):
		return "is unique: a site cannot write with it"
	}
	return ""
}

// Schema compares what is there with what zodb-pgjsonb makes.
func (c *content) Schema(ctx context.Context, highest zodb.OID) (faults []dest.Fault, err error) {
	for _, look := range c.looks(highest) {
		if err := look.find(ctx, &faults); err != nil {
			return nil, c.fail(ctx, "read the schema", err)
		}
	}
	return faults, nil
}

// look is a question of which the answer is what is wrong.
type look struct {
	at   string // what it is about
	find func(context.Context, *[]dest.Fault) error
}

func (c *content) looks(highest zodb.OID) []look {
	return []look{
		{"the tables", c.tableFaults}, {"the search path", c.hidden}, {"the columns", c.columnFaults}, {"the indexes", c.indexFaults}, {"the foreign key", c.foreignKeyFaults},
		{"the trigger", c.triggerFaults},
		{"the sequence", func(ctx context.Context, f *[]dest.Fault) error { return c.sequenceFaults(ctx, f, highest) }},
		{"what a run leaves", c.leftovers},
	}
}

func add(faults *[]dest.Fault, kind, name, format string, args ...any) {
	*faults = append(*faults, dest.Fault{Kind: kind, Name: name, Problem: fmt.Sprintf(format, args...)})
}

// required are the columns in which there is no NULL.
var required = map[string][]string{
	transactionLog: {"tid"},
	objectState:    {"zoid", "tid", "class_mod", "class_name", "state_size", "refs"},
	objectHistory:  {"zoid", "tid", "class_mod", "class_name", "state_size", "refs"},
	blobState:      {"zoid", "tid", "blob_size"},
}

// columnFaults finds columns that may be NULL and must not; whether those that are
// read are there was checked when the view was taken.
func (c *content) columnFaults(ctx context.Context, faults *[]dest.Fault) error {
	for _, name := range c.siteTables() {
		if c.layout.tables[name] == nil {
			continue
		}
		rows, err := c.conn.Query(ctx, `SELECT attname FROM pg_catalog.pg_attribute
			WHERE attrelid = to_regclass($1::text) AND attname = ANY($2::text[]) AND NOT attnotnull ORDER BY attnum`, c.layout.name(name), required[name])
		if err != nil {
			return err
		}
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, column := range columns {
			add(faults, "column", name+"."+column, "may be NULL")
		}
	}
	return nil
}

// siteTables are those that a site uses.
func (c *content) siteTables() []string {
	tables := append([]string{schemaState}, core...)
	if c.HistoryPreserving() {
		tables = append(tables, history...)
	}
	return tables
}

// hidden finds tables, and a sequence, of which the search path names others first:
// a site reads those.
func (c *content) hidden(ctx context.Context, faults *[]dest.Fault) error {
	for _, name := range append(c.siteTables(), zoidSeq) {
		var first *string
		err := c.conn.QueryRow(ctx, `SELECT to_regclass($1::text)::oid::regclass::text WHERE to_regclass($1::text) <> to_regclass($2::text)`,
			quote(name), c.layout.name(name)).Scan(&first)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || err == nil && first == nil:
		case err != nil:
			return err
		default:
			kind := "table"
			if name == zoidSeq {
				kind = "sequence"
			}
			add(faults, kind, name, "is not the one that a site uses: the search path has another schema with %s first", *first)
		}
	}
	return nil
}

// tableFaults finds missing tables.
func (c *content) tableFaults(_ context.Context, faults *[]dest.Fault) error {
	for _, name := range c.siteTables() {
		switch t := c.layout.tables[name]; {
		case t == nil:
			add(faults, "table", name, "is missing")
		case t.kind != "r" && t.kind != "p":
			add(faults, "table", name, "is no ordinary table")
		case !t.permanent:
			add(faults, "table", name, "is unlogged: a crash of the server empties it")
		}
	}
	return nil
}

func (c *content) indexFaults(ctx context.Context, faults *[]dest.Fault) error {
	found, err := c.readIndexes(ctx)
	if err != nil {
		return err
	}
	for _, want := range neededIndexes(c.HistoryPreserving()) {
		if c.layout.tables[want.table] == nil {
			continue // told already
		}
		if problem := want.problem(found); problem != "" {
			add(faults, want.kind, want.name, "%s", problem)
		}
	}
	return nil
}

// problem tells what is wrong with the index among those that were found, "" if it
// is there.
func (want *neededIndex) problem(found []foundIndex) string {
	problem := "is missing on " + want.table
	for i := range found {
		have := &found[i]
		if have.table != want.table || want.kind == "key" && !have.primary {
			continue
		}
		if have.method != want.method || have.columns != want.columns {
			if have.name == want.name || want.kind == "key" {
				problem = fmt.Sprintf("is %s (%s) and not %s (%s)", have.method, have.columns, want.method, want.columns)
			}
			continue
		}
		odd := have.odd(want)
		if odd == "" && have.valid {
			return ""
		}
		if problem = odd; odd == "" {
			problem = "is not valid: it was not built to its end"
		}
	}
	return problem
}

func (c *content) readIndexes(ctx context.Context) ([]foundIndex, error) {
	rows, err := c.conn.Query(ctx, `SELECT t.relname, i.relname, a.amname,
			(SELECT string_agg(pg_catalog.pg_get_indexdef(x.indexrelid, k.n, true) || (ARRAY['', ' DESC NULLS LAST', ' NULLS FIRST', ' DESC'])[(x.indoption[k.n - 1] & 3) + 1], ', ' ORDER BY k.n)
				FROM generate_series(1, x.indnkeyatts::int) k (n)),
			x.indisprimary, x.indisvalid AND x.indisready AND x.indislive, x.indpred IS NOT NULL, x.indisunique,
			(SELECT coalesce(bool_and(o.opcdefault AND (u.attcollation IS NULL OR x.indcollation[k.n - 1] = u.attcollation)), true)
				FROM generate_series(1, x.indnkeyatts::int) k (n) JOIN pg_catalog.pg_opclass o ON o.oid = x.indclass[k.n - 1]
				LEFT JOIN pg_catalog.pg_attribute u ON u.attrelid = x.indrelid AND u.attnum = x.indkey[k.n - 1]),
			x.indimmediate
		FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class t ON t.oid = x.indrelid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
			JOIN pg_catalog.pg_am a ON a.oid = i.relam JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
		WHERE n.nspname = $1::text ORDER BY t.relname, i.relname`, c.layout.schema)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (x foundIndex, err error) {
		return x, row.Scan(&x.table, &x.name, &x.method, &x.columns, &x.primary, &x.valid, &x.partial, &x.unique, &x.usual, &x.immediate)
	})
}

// foreignKeyFaults looks for the one foreign key, from objects to transactions.
func (c *content) foreignKeyFaults(ctx context.Context, faults *[]dest.Fault) error {
	var there, valid, plain, enabled bool
	err := c.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(k.convalidated), false),
			coalesce(bool_and(k.confdeltype IN ('a', 'r') AND k.confupdtype IN ('a', 'r')), true),
			coalesce(bool_and(NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgconstraint = k.oid AND t.tgenabled NOT IN ('O', 'A'))), true)
		FROM pg_catalog.pg_constraint k
		WHERE k.contype = 'f' AND k.conrelid = to_regclass($1::text) AND k.confrelid = to_regclass($2::text)
		AND k.conkey = ARRAY(SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = k.conrelid AND attname = 'tid')
		AND k.confkey = ARRAY(SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = k.confrelid AND attname = 'tid')`,
		c.layout.name(objectState), c.layout.name(transactionLog)).Scan(&there, &valid, &plain, &enabled)
	switch {
	case err != nil:
		return err
	case !there:
		add(faults, "foreign key", "object_state_tid_fkey", "is missing: object_state (tid) to transaction_log (tid)")
	case !valid:
		add(faults, "foreign key", "object_state_tid_fkey", "is not validated")
	case !plain:
		add(faults, "foreign key", "object_state_tid_fkey", "changes or deletes objects with their transactions")
	case !enabled:
		add(faults, "foreign key", "object_state_tid_fkey", "is not enforced: its triggers are disabled")
	}
	return nil
}

// Bits of pg_trigger.tgtype.
const (
	triggerRow    = 1
	triggerBefore = 2
	triggerInsert = 4
)

// triggerFaults looks for the trigger by which sites learn of each other's
// commits.
func (c *content) triggerFaults(ctx context.Context, faults *[]dest.Fault) error {
	var n int
	var enabled, kind, notifies bool
	err := c.conn.QueryRow(ctx, `SELECT count(*)::int, coalesce(bool_or(t.tgenabled IN ('O', 'A')), false),
			coalesce(bool_or(t.tgtype & $2::int = $3::int AND t.tgqual IS NULL), false),
			coalesce(bool_or(regexp_replace(p.prosrc, '--[^\n]*|/\*.*?\*/', '', 'g') ~* 'pg_notify.*zodb_invalidations.*new\.tid'), false)
		FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
		WHERE t.tgrelid = to_regclass($1::text) AND t.tgname = 'trg_notify_commit' AND NOT t.tgisinternal`,
		c.layout.name(transactionLog), triggerRow|triggerBefore|triggerInsert, triggerRow|triggerInsert).Scan(&n, &enabled, &kind, &notifies)
	switch {
	case err != nil:
		return err
	case n == 0:
		add(faults, "trigger", notifyTrigger, "is missing on transaction_log: other processes of the site do not see what one commits")
	case !enabled:
		add(faults, "trigger", notifyTrigger, "is disabled: other processes of the site do not see what one commits")
	case !kind:
		add(faults, "trigger", notifyTrigger, "does not run after the insertion of each row")
	case !notifies:
		add(faults, "function", notifyFunction, "does not tell the channel zodb_invalidations the tid")
	}
	return nil
}

// sequenceFaults looks at which oid would be given out next.
func (c *content) sequenceFaults(ctx context.Context, faults *[]dest.Fault, highest zodb.OID) error {
	if !c.layout.sequence {
		add(faults, "sequence", zoidSeq, "is missing")
		return nil
	}
	stored := `SELECT max(zoid) AS zoid FROM ` + c.layout.name(objectState)
	if c.HistoryPreserving() {
		stored += ` UNION ALL SELECT max(zoid) FROM ` + c.layout.name(objectHistory)
	}
	var next, used, step int64
	err := c.conn.QueryRow(ctx, `SELECT q.last_value + CASE WHEN q.is_called THEN s.seqincrement ELSE 0 END, s.seqincrement,
			(SELECT coalesce(max(zoid), -1) FROM (`+stored+`) x)
		FROM `+c.layout.name(zoidSeq)+` q, pg_catalog.pg_sequence s WHERE s.seqrelid = $1::text::regclass`, c.layout.name(zoidSeq)).
		Scan(&next, &step, &used)
	if err != nil {
		return err
	}
	if limit := max(used, int64(highest)); next <= limit {
		add(faults, "sequence", zoidSeq, "gives out oid %d next, and oids up to %d are in use: new objects would overwrite others", next, limit)
	}
	if step < 1 {
		add(faults, "sequence", zoidSeq, "counts by %d", step)
	}
	return nil
}

// pythonWatermark is the table of the Python tool's parallel copy.
const pythonWatermark = "migration_watermark"

// leftovers are tables of a run that has come to its end.
func (c *content) leftovers(ctx context.Context, faults *[]dest.Fault) error {
	names := []string{watermark.RunTable, watermark.ChunkTable, watermark.RejectTable, watermark.StepTable,
		watermark.MissingTable, watermark.OwedTable, watermark.GoneTable, pythonWatermark}
	rows, err := c.conn.Query(ctx, `SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[]) ORDER BY 1`, c.layout.schema, names)
	if err != nil {
		return err
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if i := slices.Index(left, pythonWatermark); i >= 0 {
		left = slices.Delete(left, i, i+1)
		add(faults, "leftover", pythonWatermark, "is left of a parallel run of the Python zodb-convert that did not come to its end: transactions may be missing")
	}
	if err == nil && len(left) > 0 {
		add(faults, "leftover", strings.Join(left, ", "), "is left of a conversion that was not completed: go on with --incremental")
	}
	return err
}
