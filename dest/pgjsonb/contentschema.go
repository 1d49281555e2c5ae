package pgjsonb

import (
	"context"
	"fmt"
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
		{"the tables", c.tableFaults}, {"the indexes", c.indexFaults}, {"the foreign key", c.foreignKeyFaults},
		{"the trigger", c.triggerFaults},
		{"the sequence", func(ctx context.Context, f *[]dest.Fault) error { return c.sequenceFaults(ctx, f, highest) }},
		{"what a run leaves", c.leftovers},
	}
}

func add(faults *[]dest.Fault, kind, name, format string, args ...any) {
	*faults = append(*faults, dest.Fault{Kind: kind, Name: name, Problem: fmt.Sprintf(format, args...)})
}

// tableFaults finds missing tables; the columns of those that are read were
// checked when the view was taken.
func (c *content) tableFaults(_ context.Context, faults *[]dest.Fault) error {
	tables := append([]string{schemaState}, core...)
	if c.HistoryPreserving() {
		tables = append(tables, history...)
	}
	for _, name := range tables {
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
		problem := "is missing on " + want.table
		for _, have := range found {
			if have.table != want.table || want.kind == "key" && !have.primary {
				continue
			}
			if have.method == want.method && have.columns == want.columns && !have.partial {
				if problem = ""; !have.valid {
					problem = "is not valid: it was not built to its end"
				}
				if problem == "" {
					break
				}
			} else if have.name == want.name || want.kind == "key" {
				problem = fmt.Sprintf("is %s (%s) and not %s (%s)", have.method, have.columns, want.method, want.columns)
				if have.partial {
					problem += ", and holds a part of the rows only"
				}
			}
		}
		if problem != "" {
			add(faults, want.kind, want.name, "%s", problem)
		}
	}
	return nil
}

func (c *content) readIndexes(ctx context.Context) ([]foundIndex, error) {
	rows, err := c.conn.Query(ctx, `SELECT t.relname, i.relname, a.amname,
			(SELECT string_agg(pg_catalog.pg_get_indexdef(x.indexrelid, k.n, true) || CASE WHEN x.indoption[k.n - 1] & 1 = 1 THEN ' DESC' ELSE '' END, ', ' ORDER BY k.n)
				FROM generate_series(1, x.indnkeyatts::int) k (n)),
			x.indisprimary, x.indisvalid AND x.indisready AND x.indislive, x.indpred IS NOT NULL
		FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class t ON t.oid = x.indrelid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
			JOIN pg_catalog.pg_am a ON a.oid = i.relam JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
		WHERE n.nspname = $1::text ORDER BY t.relname, i.relname`, c.layout.schema)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (x foundIndex, err error) {
		return x, row.Scan(&x.table, &x.name, &x.method, &x.columns, &x.primary, &x.valid, &x.partial)
	})
}

// foreignKeyFaults looks for the one foreign key, from objects to transactions.
func (c *content) foreignKeyFaults(ctx context.Context, faults *[]dest.Fault) error {
	var there, valid bool
	err := c.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(k.convalidated), false)
		FROM pg_catalog.pg_constraint k
		WHERE k.contype = 'f' AND k.conrelid = to_regclass($1::text) AND k.confrelid = to_regclass($2::text)
		AND k.conkey = ARRAY(SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = k.conrelid AND attname = 'tid')
		AND k.confkey = ARRAY(SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = k.confrelid AND attname = 'tid')`,
		c.layout.name(objectState), c.layout.name(transactionLog)).Scan(&there, &valid)
	switch {
	case err != nil:
		return err
	case !there:
		add(faults, "foreign key", "object_state_tid_fkey", "is missing: object_state (tid) to transaction_log (tid)")
	case !valid:
		add(faults, "foreign key", "object_state_tid_fkey", "is not validated")
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
			coalesce(bool_or(t.tgtype & $2::int = $3::int), false), coalesce(bool_or(p.prosrc LIKE '%pg_notify%zodb_invalidations%'), false)
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
		add(faults, "function", notifyFunction, "does not notify the channel zodb_invalidations")
	}
	return nil
}

// sequenceFaults looks at which oid would be given out next.
func (c *content) sequenceFaults(ctx context.Context, faults *[]dest.Fault, highest zodb.OID) error {
	if !c.layout.sequence {
		add(faults, "sequence", zoidSeq, "is missing")
		return nil
	}
	var next, stored, step int64
	err := c.conn.QueryRow(ctx, `SELECT q.last_value + CASE WHEN q.is_called THEN s.seqincrement ELSE 0 END, s.seqincrement,
			(SELECT coalesce(max(zoid), -1) FROM `+c.layout.name(objectState)+`)
		FROM `+c.layout.name(zoidSeq)+` q, pg_catalog.pg_sequence s WHERE s.seqrelid = $1::text::regclass`, c.layout.name(zoidSeq)).
		Scan(&next, &step, &stored)
	if err != nil {
		return err
	}
	if limit := max(stored, int64(highest)); next <= limit {
		add(faults, "sequence", zoidSeq, "gives out oid %d next, and oids up to %d are in use: new objects would overwrite others", next, limit)
	}
	if step < 1 {
		add(faults, "sequence", zoidSeq, "counts by %d", step)
	}
	return nil
}

// leftovers are tables of a run that has come to its end.
func (c *content) leftovers(ctx context.Context, faults *[]dest.Fault) error {
	names := []string{watermark.RunTable, watermark.ChunkTable, watermark.RejectTable, watermark.StepTable,
		watermark.MissingTable, watermark.OwedTable, watermark.GoneTable}
	rows, err := c.conn.Query(ctx, `SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[]) ORDER BY 1`, c.layout.schema, names)
	if err != nil {
		return err
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(left) > 0 {
		add(faults, "leftover", strings.Join(left, ", "), "is left of a conversion that was not completed: go on with --incremental")
	}
	return err
}
