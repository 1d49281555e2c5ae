package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// content is a dest.Content: one transaction whose snapshot the readers import.
// Nothing is set for a session, so that it works behind a pooler that shares out
// transactions.
type content struct {
	dest     *Destination
	layout   *layout
	conn     *pgx.Conn
	snapshot string // "" if there is no reader but one

	mu      sync.Mutex
	readers int // how many may still be opened
}

// beginView begins a transaction that changes nothing and may wait as long as it
// takes. Numbers come in full, whatever is set for the role.
func beginView(ctx context.Context, conn *pgx.Conn, snapshot string) error {
	statements := []string{"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
	if snapshot != "" {
		statements = append(statements, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(snapshot, "'", "''")+"'")
	}
	// Each of many small queries would be compiled anew.
	statements = append(statements, patience, "SET LOCAL jit = off")
	_, err := conn.PgConn().Exec(ctx, strings.Join(statements, "; ")).ReadAll()
	return err
}

// Content opens what the destination holds.
func (d *Destination) Content(ctx context.Context, readers int) (dest.Content, error) {
	conn, err := d.connect.open(ctx, "zodb-convert verify")
	if err != nil {
		return nil, d.plain(err)
	}
	c := &content{dest: d, conn: conn, readers: readers}
	if err := c.open(ctx); err != nil {
		closeQuietly(conn)
		return nil, err
	}
	return c, nil
}

func (c *content) open(ctx context.Context) (err error) {
	if err := beginView(ctx, c.conn, ""); err != nil {
		return fmt.Errorf("look at what %s holds: %w", c.dest.Name(), err)
	}
	if c.layout, err = readLayout(ctx, c.conn); err != nil {
		return err
	}
	if err := c.admit(ctx); err != nil {
		return err
	}
	if err := c.conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&c.snapshot); err != nil {
		return fmt.Errorf("share the view of %s: %w", c.dest.Name(), err)
	}
	return nil
}

// admit refuses what holds nothing that could be compared.
func (c *content) admit(ctx context.Context) error {
	l, name := c.layout, c.dest.Name()
	run, err := l.run().Read(ctx, c.conn)
	switch {
	case err != nil:
		return c.fail(ctx, "look for a run", err)
	case run != nil && run.Phase != dest.CatchingUp:
		return &dest.RefusedError{Reason: name + " holds an unfinished conversion", Hint: "go on with it first: --incremental"}
	}
	needed := core
	if c.HistoryPreserving() {
		needed = append(append([]string{}, core...), objectHistory)
	}
	for _, table := range needed {
		if l.has(table) {
			continue
		}
		if !l.has(transactionLog) && !l.has(objectState) {
			return &dest.RefusedError{Reason: fmt.Sprintf("%s has no tables of zodb-pgjsonb: nothing was converted into it", name)}
		}
		hint := ""
		if table == objectHistory {
			hint = "it was converted without history: leave history-preserving out of [destination]"
		}
		return &dest.RefusedError{Reason: fmt.Sprintf("%s has no table %s", name, table), Hint: hint}
	}
	return l.readable(name)
}

// denied tells whether a role lacks a right, which does not matter for tables
// that only a run needs.
func denied(err error) bool { return code(err) == "42501" }

// readable refuses tables whose columns are not those that are read.
func (l *layout) readable(name string) error {
	for _, table := range slices.Sorted(maps.Keys(wanted)) { // so that the same fault is told each time
		t := l.tables[table]
		if t == nil || table == packState || table == schemaState {
			continue
		}
		if t.rowLevel {
			return &dest.RefusedError{Reason: fmt.Sprintf("row-level security of table %s hides rows from the role", l.name(table)), Hint: "use its owner, or a role with BYPASSRLS"}
		}
		for _, column := range slices.Sorted(maps.Keys(wanted[table])) {
			kind := wanted[table][column]
			switch have, ok := t.columns[column]; {
			case !ok:
				return &dest.RefusedError{Reason: fmt.Sprintf("%s is not a database of zodb-pgjsonb 1.14 to 1.19: %s has no column %s", name, table, column)}
			case have.kind != kind:
				return &dest.RefusedError{Reason: fmt.Sprintf("%s is not a database of zodb-pgjsonb 1.14 to 1.19: column %s of %s is %s, not %s", name, column, table, have.kind, kind)}
			}
		}
	}
	return nil
}

func (c *content) HistoryPreserving() bool { return c.dest.config.HistoryPreserving }

func (c *content) Objects() dest.ObjectStore {
	if c.dest.config.S3 == nil {
		return nil
	}
	return c.dest.config.S3.Contents()
}

// fail gives an error of reading its sentence.
func (c *content) fail(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case isElsewhere(err):
		var other *otherError
		errors.As(err, &other)
		return other.err
	case denied(err):
		return &dest.RefusedError{Reason: fmt.Sprintf("the role may not read %s: %s", c.dest.Name(), serverMessage(err)),
			Hint: "GRANT SELECT on its tables and on the sequence zoid_seq", Cause: err}
	case lost(err):
		return fmt.Errorf("the connection to PostgreSQL was lost while %s was read (%s): the view is gone with it, begin again", c.dest.Name(), sentence(err.Error()))
	}
	return fmt.Errorf("%s of %s: %w", what, c.dest.Name(), err)
}

func (c *content) LastTID(ctx context.Context) (zodb.TID, error) {
	var tid int64
	if err := c.conn.QueryRow(ctx, "SELECT coalesce(max(tid), 0) FROM "+c.layout.name(transactionLog)).Scan(&tid); err != nil {
		return 0, c.fail(ctx, "read the transactions", err)
	}
	return zodb.TID(tid), nil
}

// scan calls fn for each row of a query without arguments.
func (c *content) scan(ctx context.Context, what, sql string, fn func(values [][]byte) error) error {
	rows := c.conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{1})
	return c.rows(ctx, what, rows, fn)
}

func (c *content) TIDs(ctx context.Context, fn func(zodb.TID) error) error {
	return c.scan(ctx, "read the transactions", "SELECT tid FROM "+c.layout.name(transactionLog), func(v [][]byte) error {
		return fn(zodb.TID(bigint(v[0])))
	})
}

func (c *content) Keys(ctx context.Context, fn func(source.Key) error) error {
	for _, table := range []string{objectState, objectHistory} {
		current := table == objectState
		if !current && !c.HistoryPreserving() {
			continue
		}
		err := c.scan(ctx, "read the keys", "SELECT zoid, tid FROM "+c.layout.name(table), func(v [][]byte) error {
			return fn(source.Key{OID: zodb.OID(bigint(v[0])), TID: zodb.TID(bigint(v[1])), Current: current})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *content) Blobs(ctx context.Context, fn func(*dest.BlobRow) error) error {
	sql := "SELECT zoid, tid, blob_size, s3_key, data IS NOT NULL FROM " + c.layout.name(blobState) + " ORDER BY zoid, tid"
	return c.scan(ctx, "read the blobs", sql, func(v [][]byte) error {
		return fn(&dest.BlobRow{
			Key:  source.Key{OID: zodb.OID(bigint(v[0])), TID: zodb.TID(bigint(v[1]))},
			Size: bigint(v[2]), S3Key: string(v[3]), InRow: v[4][0] != 0,
		})
	})
}

// Close ends the view. Readers must be closed before.
func (c *content) Close() error {
	closeQuietly(c.conn)
	return nil
}
