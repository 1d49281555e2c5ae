package pgjsonb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/watermark"
)

// bare is what was taken down for the load, and how to put it back. It is kept
// in the run's record from the transaction on that takes it down.
type bare struct {
	// Loads tells that the run loads the database and did not only catch up
	// with one that was finished.
	Loads bool `json:"loads"`
	// Undo drops what the run made, in this order.
	Undo []string `json:"undo,omitempty"`
	// Tables are those that the run fills.
	Tables      []string     `json:"tables,omitempty"`
	ForeignKeys []foreignKey `json:"foreign_keys,omitempty"`
	Indexes     []index      `json:"indexes,omitempty"`
	Triggers    []trigger    `json:"triggers,omitempty"`
	// Kept are sentences on what could not be taken down.
	Kept []string `json:"kept,omitempty"`
}

// index is an index, and the constraint that it implements if any.
type index struct {
	Table      string      `json:"table"` // unqualified
	Name       string      `json:"name"`
	Definition string      `json:"definition"`
	Tablespace string      `json:"tablespace,omitempty"`
	Comment    string      `json:"comment,omitempty"`
	Clustered  bool        `json:"clustered,omitempty"`
	Identity   bool        `json:"replica_identity,omitempty"`
	Statistics []statistic `json:"statistics,omitempty"`
	Extensions []string    `json:"extensions,omitempty"`
	// Constraint is "p" or "u"; empty for an index that is none.
	Constraint        string `json:"constraint,omitempty"`
	Deferrable        bool   `json:"deferrable,omitempty"`
	Deferred          bool   `json:"deferred,omitempty"`
	ConstraintComment string `json:"constraint_comment,omitempty"`
}

// statistic is the statistics target of a column of an index.
type statistic struct {
	Column int `json:"column"`
	Target int `json:"target"`
}

type foreignKey struct {
	Table      string `json:"table"`
	Name       string `json:"name"`
	Definition string `json:"definition"`
	Comment    string `json:"comment,omitempty"`
}

// trigger is a trigger that is switched off. Enabled is pg_trigger's tgenabled.
type trigger struct {
	Table   string `json:"table"`
	Name    string `json:"name"`
	Enabled string `json:"enabled"`
}

func parseBare(note json.RawMessage) (*bare, error) {
	b := new(bare)
	if err := json.Unmarshal(note, b); err != nil {
		return nil, fmt.Errorf("read how to put the schema back: %w", err)
	}
	return b, nil
}

func (b *bare) note() (json.RawMessage, error) {
	note, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("record how to put the schema back: %w", err)
	}
	return note, nil
}

// takeDown reads and takes down what makes a load slow. With an empty search
// path PostgreSQL prints definitions with every name qualified, so that they
// mean the same whatever the path is when they are put back.
func (l *layout) takeDown(ctx context.Context, tx pgx.Tx, b *bare) error {
	if _, err := tx.Exec(ctx, `SET LOCAL search_path = pg_catalog`); err != nil {
		return fmt.Errorf("read the definitions of keys and indexes: %w", err)
	}
	if err := l.takeDownForeignKeys(ctx, tx, b); err != nil {
		return err
	}
	for _, name := range b.Tables {
		if err := l.takeDownIndexes(ctx, tx, name, b); err != nil {
			return err
		}
	}
	return l.switchOffTrigger(ctx, tx, b)
}

func (l *layout) takeDownForeignKeys(ctx context.Context, tx pgx.Tx, b *bare) error {
	rows, err := tx.Query(ctx, `SELECT conname, pg_get_constraintdef(oid), coalesce(obj_description(oid, 'pg_constraint'), '')
		FROM pg_constraint WHERE contype = 'f' AND conrelid = $1::text::regclass AND confrelid = $2::text::regclass ORDER BY conname`,
		l.name(objectState), l.name(transactionLog))
	if err != nil {
		return fmt.Errorf("read the foreign key: %w", err)
	}
	var keys []foreignKey
	k := foreignKey{Table: objectState}
	if _, err := pgx.ForEachRow(rows, []any{&k.Name, &k.Definition, &k.Comment}, func() error {
		keys = append(keys, k)
		return nil
	}); err != nil {
		return fmt.Errorf("read the foreign key: %w", err)
	}
	for _, k := range keys {
		if _, err := tx.Exec(ctx, `ALTER TABLE `+l.name(k.Table)+` DROP CONSTRAINT `+quote(k.Name)); err != nil {
			return fmt.Errorf("take down foreign key %s: %w", k.Name, err)
		}
	}
	b.ForeignKeys = keys
	return nil
}

const indexQuery = `SELECT ic.relname, pg_get_indexdef(i.indexrelid), coalesce(ts.spcname, ''),
	coalesce(obj_description(i.indexrelid, 'pg_class'), ''), i.indisclustered, i.indisreplident,
	coalesce((SELECT json_agg(json_build_object('column', a.attnum, 'target', a.attstattarget) ORDER BY a.attnum)
		FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0)::text, '[]'),
	ARRAY(SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'x'
		ORDER BY 1),
	coalesce(con.contype::text, ''), coalesce(con.condeferrable, false), coalesce(con.condeferred, false),
	coalesce(obj_description(con.oid, 'pg_constraint'), ''),
	ts.oid IS NULL OR has_tablespace_privilege(ts.oid, 'CREATE')
FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
LEFT JOIN pg_tablespace ts ON ts.oid = ic.reltablespace
LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')
WHERE i.indrelid = $1::text::regclass ORDER BY ic.relname`

func (l *layout) takeDownIndexes(ctx context.Context, tx pgx.Tx, table string, b *bare) error {
	rows, err := tx.Query(ctx, indexQuery, l.name(table))
	if err != nil {
		return fmt.Errorf("read the indexes of %s: %w", table, err)
	}
	var found []index
	var mayCreate []bool
	var x index
	var statistics string
	var may bool
	_, err = pgx.ForEachRow(rows, []any{&x.Name, &x.Definition, &x.Tablespace, &x.Comment, &x.Clustered, &x.Identity, &statistics,
		&x.Extensions, &x.Constraint, &x.Deferrable, &x.Deferred, &x.ConstraintComment, &may}, func() error {
		one := x
		one.Table = table
		x.Extensions = nil
		found, mayCreate = append(found, one), append(mayCreate, may)
		return json.Unmarshal([]byte(statistics), &found[len(found)-1].Statistics)
	})
	if err != nil {
		return fmt.Errorf("read the indexes of %s: %w", table, err)
	}
	for i, x := range found {
		reason := ""
		switch {
		case x.Constraint == "x":
			reason = "it is an exclusion constraint"
		case x.Constraint != "" && strings.Contains(x.Definition, " USING gist "):
			reason = "it covers ranges"
		case !mayCreate[i]:
			reason = fmt.Sprintf("the role may not create in tablespace %s", x.Tablespace)
		default:
			if reason, err = l.drop(ctx, tx, x); err != nil {
				return err
			}
		}
		if reason == "" {
			b.Indexes = append(b.Indexes, x)
			continue
		}
		b.Kept = append(b.Kept, fmt.Sprintf("%s of %s stays during the load, which makes it slower: %s", x.Name, table, reason))
	}
	return nil
}

// drop takes one index down. If other objects depend on it, it stays, and
// reason says so.
func (l *layout) drop(ctx context.Context, tx pgx.Tx, x index) (reason string, err error) {
	sub, err := tx.Begin(ctx)
	if err != nil {
		return "", fmt.Errorf("take down %s: %w", x.Name, err)
	}
	sql := `DROP INDEX ` + l.name(x.Name)
	if x.Constraint != "" {
		sql = `ALTER TABLE ` + l.name(x.Table) + ` DROP CONSTRAINT ` + quote(x.Name)
	}
	_, err = sub.Exec(ctx, sql)
	if err == nil {
		err = sub.Commit(ctx)
	} else if code(err) == "2BP01" {
		var pg *pgconn.PgError
		errors.As(err, &pg)
		reason = sentence(pg.Detail)
		if reason == "" {
			reason = sentence(pg.Message)
		}
		err = sub.Rollback(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("take down %s: %w", x.Name, err)
	}
	return reason, nil
}

// switchOffTrigger switches off the trigger that notifies of every row of
// transaction_log. Other people's triggers stay: we do not know what they are
// for.
func (l *layout) switchOffTrigger(ctx context.Context, tx pgx.Tx, b *bare) error {
	t := trigger{Table: transactionLog, Name: notifyTrigger}
	err := tx.QueryRow(ctx, `SELECT tgenabled::text FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgname = $2::text AND tgenabled <> 'D'`,
		l.name(t.Table), t.Name).Scan(&t.Enabled)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, `ALTER TABLE `+l.name(t.Table)+` DISABLE TRIGGER `+quote(t.Name))
	}
	if err != nil {
		return fmt.Errorf("switch off trigger %s: %w", t.Name, err)
	}
	b.Triggers = append(b.Triggers, t)
	return nil
}

// build returns the statements that make an index again.
func (l *layout) build(x index) []string {
	sql := []string{
		// A site that was started meanwhile makes an index that it misses.
		fmt.Sprintf(`DO $made$ BEGIN
			IF pg_catalog.pg_get_indexdef(to_regclass(%[1]s)) = %[2]s THEN EXECUTE 'DROP INDEX ' || %[1]s; END IF;
		END $made$`, watermark.Literal(l.name(x.Name)), watermark.Literal(x.Definition)),
		// Also where it is empty: the session may have another default.
		`SET LOCAL default_tablespace = ` + watermark.Literal(x.Tablespace),
		x.Definition,
	}
	if x.Comment != "" {
		sql = append(sql, `COMMENT ON INDEX `+l.name(x.Name)+` IS `+watermark.Literal(x.Comment))
	}
	for _, s := range x.Statistics {
		sql = append(sql, fmt.Sprintf(`ALTER INDEX %s ALTER COLUMN %d SET STATISTICS %d`, l.name(x.Name), s.Column, s.Target))
	}
	for _, e := range x.Extensions {
		sql = append(sql, `ALTER INDEX `+l.name(x.Name)+` DEPENDS ON EXTENSION `+quote(e))
	}
	return sql
}

// attach returns the statements that make an index what it was to its table. It
// needs a lock that excludes building other indexes.
func (l *layout) attach(x index) []string {
	var sql []string
	table := `ALTER TABLE ` + l.name(x.Table)
	if x.Constraint != "" {
		kind := " UNIQUE"
		if x.Constraint == "p" {
			kind = " PRIMARY KEY"
		}
		add := table + ` ADD CONSTRAINT ` + quote(x.Name) + kind + ` USING INDEX ` + quote(x.Name)
		if x.Deferrable {
			add += " DEFERRABLE"
		}
		if x.Deferred {
			add += " INITIALLY DEFERRED"
		}
		sql = append(sql, add)
	}
	if x.ConstraintComment != "" {
		sql = append(sql, `COMMENT ON CONSTRAINT `+quote(x.Name)+` ON `+l.name(x.Table)+` IS `+watermark.Literal(x.ConstraintComment))
	}
	if x.Clustered {
		sql = append(sql, table+` CLUSTER ON `+quote(x.Name))
	}
	if x.Identity {
		sql = append(sql, table+` REPLICA IDENTITY USING INDEX `+quote(x.Name))
	}
	return sql
}

// key returns the statements that make a foreign key again.
func (l *layout) key(k foreignKey) []string {
	sql := []string{`ALTER TABLE ` + l.name(k.Table) + ` ADD CONSTRAINT ` + quote(k.Name) + ` ` + k.Definition}
	if k.Comment != "" {
		sql = append(sql, `COMMENT ON CONSTRAINT `+quote(k.Name)+` ON `+l.name(k.Table)+` IS `+watermark.Literal(k.Comment))
	}
	return sql
}

// switchOn returns the statement that makes a trigger fire as before.
func (l *layout) switchOn(t trigger) []string {
	how := map[string]string{"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}[t.Enabled]
	return []string{`ALTER TABLE ` + l.name(t.Table) + ` ` + how + ` TRIGGER ` + quote(t.Name)}
}

// code is the SQLSTATE of an error of the server, or empty.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
