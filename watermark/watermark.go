// Package watermark keeps in PostgreSQL what a run has durably done and who may
// go on with it.
//
// Seven tables live in the schema of the database that is being filled, from the
// first statement of a run until it succeeds or is undone:
//
//   - zodb_convert_run: one row, the record of the run. Creating the table
//     decides between two runs that start at once.
//   - zodb_convert_chunk: a row per range of the source that is written. It is
//     inserted by the transaction that writes the rows, so that there are both
//     or neither.
//   - zodb_convert_reject: the records that could not be written.
//   - zodb_convert_step: the finishing steps that are done.
//   - zodb_convert_missing: the blobs that were not found.
//   - zodb_convert_owed: the blobs that are not yet in S3 although their rows
//     say so. Such a row is written with the blob's own, and removed when S3 has
//     confirmed the upload.
//   - zodb_convert_gone: the objects in S3 that no row names any more. Such a row
//     is written when the blob's own is removed, and removed after the object.
//
// # Fencing
//
// A backend outlives its client: after a kill it may still commit a chunk or
// finish an index. So every writing transaction begins with Fence, which locks
// the run's row FOR SHARE and fails unless run, generation and phase are still the
// transaction's own. A resume raises the generation by UPDATE, which waits for
// every transaction that holds the lock; after it no earlier one can begin, and
// only then it reads what is done. Nothing relies on the state of a session:
// locks of a session die with a reconnect and mean nothing behind a pooler that
// shares out transactions.
//
// Whether the earlier run is alive is told by its control connection, an idle
// one that every run keeps open and that is recognised by its
// application_name. A wrong guess is harmless: the earlier run is fenced out.
package watermark

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Querier is a connection or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Names of the tables, without schema.
const (
	RunTable    = "zodb_convert_run"
	ChunkTable  = "zodb_convert_chunk"
	RejectTable = "zodb_convert_reject"
	StepTable   = "zodb_convert_step"

	MissingTable = "zodb_convert_missing"
	OwedTable    = "zodb_convert_owed"
	GoneTable    = "zodb_convert_gone"
)

// Tables are the tables of a run, qualified and quoted.
type Tables struct {
	Run, Chunk, Reject, Step string
	Missing, Owed, Gone      string
}

// In returns the tables in a schema.
func In(schema string) Tables {
	name := func(table string) string { return pgx.Identifier{schema, table}.Sanitize() }
	return Tables{
		Run: name(RunTable), Chunk: name(ChunkTable), Reject: name(RejectTable), Step: name(StepTable),
		Missing: name(MissingTable), Owed: name(OwedTable), Gone: name(GoneTable),
	}
}

// Record is a run as it is kept.
type Record struct {
	dest.Run
	// Restore is the destination's own note on how to undo what it did to the
	// schema.
	Restore json.RawMessage
	// MaxOID is the highest oid of the source, or of a reference in it, so far.
	MaxOID int64
}

// Kind tells the ranges of the load from those of catching up.
type Kind string

const (
	Load   Kind = "load"
	Follow Kind = "follow"
)

// Create makes the tables and inserts the run. Of two runs that do so at once
// one gets an error that Exists recognises.
func (t Tables) Create(ctx context.Context, q Querier, r *Record) error {
	// json, not jsonb: it keeps what a class name may hold, NUL included.
	for _, sql := range []string{
		`CREATE TABLE ` + t.Run + ` (
			one        boolean PRIMARY KEY DEFAULT true CHECK (one),
			id         text NOT NULL,
			generation bigint NOT NULL,
			phase      text NOT NULL,
			source     json NOT NULL,
			options    json NOT NULL,
			tool       text NOT NULL,
			host       text NOT NULL,
			pid        integer NOT NULL,
			started    timestamptz NOT NULL DEFAULT clock_timestamp(),
			claimed    timestamptz NOT NULL DEFAULT clock_timestamp(),
			max_oid    bigint NOT NULL,
			restore    json NOT NULL)`,
		`CREATE TABLE ` + t.Chunk + ` (
			kind       text NOT NULL,
			range_from bigint NOT NULL,
			from_sub   bigint NOT NULL DEFAULT 0,
			range_to   bigint NOT NULL,
			to_sub     bigint NOT NULL DEFAULT 0,
			max_oid    bigint NOT NULL,
			result     json NOT NULL,
			PRIMARY KEY (kind, range_from, from_sub))`,
		// A record stands at one position of the source, or has one oid and tid
		// where there are none; only catching up can see it again, after the run
		// that rejected it has succeeded.
		`CREATE TABLE ` + t.Reject + ` (
			pos    bigint NOT NULL,
			oid    bigint NOT NULL,
			tid    bigint NOT NULL,
			class  text NOT NULL,
			reason text NOT NULL,
			data   bytea,
			PRIMARY KEY (pos, oid, tid))`,
		`CREATE TABLE ` + t.Step + ` (
			name text PRIMARY KEY,
			done timestamptz NOT NULL DEFAULT clock_timestamp(),
			took interval NOT NULL)`,
	} {
		if _, err := q.Exec(ctx, sql); err != nil {
			return fmt.Errorf("create the tables of the run: %w", err)
		}
	}
	if err := t.Ensure(ctx, q); err != nil {
		return err
	}
	return t.insert(ctx, q, r)
}

// Ensure makes what the tables of a run lack that an earlier release began: those
// for blobs, the numbers of ranges that have two of them, and keys for records
// that stand at no position. It changes nothing where nothing is missing.
func (t Tables) Ensure(ctx context.Context, q Querier) error {
	statements := append(t.createBlobs(),
		`ALTER TABLE `+t.Chunk+` ADD COLUMN IF NOT EXISTS from_sub bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS to_sub bigint NOT NULL DEFAULT 0`,
		ensureKey(t.Chunk, "kind", "range_from", "from_sub"),
		ensureKey(t.Reject, "pos", "oid", "tid"),
		ensureKey(t.Missing, "pos", "oid", "tid"))
	for _, sql := range statements {
		if _, err := q.Exec(ctx, sql); err != nil {
			return fmt.Errorf("create the tables of the run: %w", err)
		}
	}
	return nil
}

// ensureKey is the statement that gives a table this primary key if it has
// another one. Both happen, or neither.
func ensureKey(table string, columns ...string) string {
	name, list := Literal(table), strings.Join(columns, ", ")
	return `DO $zodb_convert$ DECLARE key name; BEGIN
		SELECT c.conname INTO key FROM pg_catalog.pg_constraint c WHERE c.conrelid = ` + name + `::regclass AND c.contype = 'p' AND
			(SELECT string_agg(a.attname, ', ' ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY k (num, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num) <> ` + Literal(list) + `;
		IF FOUND THEN
			EXECUTE format(` + Literal(`ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (`+list+`)`) + `, ` + name + `, key);
		END IF;
	END $zodb_convert$`
}

func (t Tables) insert(ctx context.Context, q Querier, r *Record) error {
	src, err := json.Marshal(r.Source)
	if err != nil {
		return fmt.Errorf("record the run's source: %w", err)
	}
	opts, err := marshalOptions(r)
	if err != nil {
		return err
	}
	err = q.QueryRow(ctx, `INSERT INTO `+t.Run+` (id, generation, phase, source, options, tool, host, pid, max_oid, restore)
		VALUES ($1::text, $2::int8, $3::text, $4::text::json, $5::text::json, $6::text, $7::text, $8::int4, $9::int8, $10::text::json)
		RETURNING started, claimed`,
		r.ID, r.Generation, string(r.Phase), string(src), opts, r.Tool, r.Host, int32(r.PID), r.MaxOID, string(r.Restore),
	).Scan(&r.Started, &r.Claimed)
	if err != nil {
		return fmt.Errorf("record the run: %w", err)
	}
	return nil
}

// options are kept in one column, which has what earlier releases put there and
// more.
type options struct {
	*dest.Options
	*dest.Start
}

func marshalOptions(r *Record) (string, error) {
	text, err := json.Marshal(options{&r.Options, &r.Start})
	if err != nil {
		return "", fmt.Errorf("record the run's options: %w", err)
	}
	return string(text), nil
}

// SetRestore replaces the destination's note.
func (t Tables) SetRestore(ctx context.Context, q Querier, note json.RawMessage) error {
	if _, err := q.Exec(ctx, `UPDATE `+t.Run+` SET restore = $1::text::json`, string(note)); err != nil {
		return fmt.Errorf("record how to put the schema back: %w", err)
	}
	return nil
}

// Exists tells whether an error of Create means that another run was first.
func Exists(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P07" || pg.Code == "23505" || pg.Code == "42710")
}

// Present tells whether there is a run in a schema.
func (t Tables) Present(ctx context.Context, q Querier) (bool, error) {
	var present bool
	if err := q.QueryRow(ctx, `SELECT to_regclass($1::text) IS NOT NULL`, t.Run).Scan(&present); err != nil {
		return false, fmt.Errorf("look for a run: %w", err)
	}
	return present, nil
}

// Read returns the run with what it has done. It returns nil if there is none.
func (t Tables) Read(ctx context.Context, q Querier) (*Record, error) {
	present, err := t.Present(ctx, q)
	if err != nil || !present {
		return nil, err
	}
	r := new(Record)
	var phase, src, opts, restore string
	var pid int32
	err = q.QueryRow(ctx, `SELECT id, generation, phase, source::text, options::text, tool, host, pid, started, claimed, max_oid, restore::text
		FROM `+t.Run).Scan(&r.ID, &r.Generation, &phase, &src, &opts, &r.Tool, &r.Host, &pid, &r.Started, &r.Claimed, &r.MaxOID, &restore)
	if err != nil {
		return nil, fmt.Errorf("read the run's record: %w", err)
	}
	r.Phase, r.PID, r.Restore = dest.Phase(phase), int(pid), json.RawMessage(restore)
	if err := json.Unmarshal([]byte(src), &r.Source); err != nil {
		return nil, fmt.Errorf("read the run's source: %w", err)
	}
	both := options{&r.Options, &r.Start}
	if err := json.Unmarshal([]byte(opts), &both); err != nil {
		return nil, fmt.Errorf("read the run's options: %w", err)
	}
	return r, t.readDone(ctx, q, r)
}

// readDone adds up the chunks.
func (t Tables) readDone(ctx context.Context, q Querier, r *Record) error {
	sub, err := t.subColumns(ctx, q)
	if err != nil {
		return err
	}
	rows, err := q.Query(ctx, `SELECT kind, range_from, `+sub[0]+`, range_to, `+sub[1]+`, max_oid, result::text FROM `+t.Chunk+` ORDER BY 1, 2, 3`)
	if err != nil {
		return fmt.Errorf("read what the run has done: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind, text string
		var done source.Range
		var maxOID int64
		if err := rows.Scan(&kind, &done.From, &done.FromSub, &done.To, &done.ToSub, &maxOID, &text); err != nil {
			return fmt.Errorf("read what the run has done: %w", err)
		}
		var result dest.Result
		if err := json.Unmarshal([]byte(text), &result); err != nil {
			return fmt.Errorf("read the result of chunk %v: %w", done, err)
		}
		if Kind(kind) == Load {
			r.Done = append(r.Done, done)
		}
		r.MaxOID = max(r.MaxOID, maxOID)
		r.Totals.Add(&result)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read what the run has done: %w", err)
	}
	return nil
}

// subColumns are the columns for the second numbers of a range, or what stands
// for them where an earlier release has made the table and nothing may be written.
func (t Tables) subColumns(ctx context.Context, q Querier) (sub [2]string, err error) {
	var present bool
	err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1::text) AND attname = 'from_sub')`, t.Chunk).Scan(&present)
	switch {
	case err != nil:
		return sub, fmt.Errorf("read what the run has done: %w", err)
	case present:
		return [2]string{"from_sub", "to_sub"}, nil
	}
	return [2]string{"0::int8", "0::int8"}, nil
}

// Loaded returns the ranges of the load that are done.
func (t Tables) Loaded(ctx context.Context, q Querier) ([]source.Range, error) {
	rows, err := q.Query(ctx, `SELECT range_from, from_sub, range_to, to_sub FROM `+t.Chunk+` WHERE kind = $1::text`, string(Load))
	if err != nil {
		return nil, fmt.Errorf("read what the run has done: %w", err)
	}
	done, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r source.Range, err error) {
		err = row.Scan(&r.From, &r.FromSub, &r.To, &r.ToSub)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("read what the run has done: %w", err)
	}
	return done, nil
}

// ChunkResult returns the result of a range if it is done, nil if not.
func (t Tables) ChunkResult(ctx context.Context, q Querier, kind Kind, r source.Range) (*dest.Result, error) {
	recorded := source.Range{From: r.From, FromSub: r.FromSub}
	var text string
	err := q.QueryRow(ctx, `SELECT range_to, to_sub, result::text FROM `+t.Chunk+` WHERE kind = $1::text AND range_from = $2::int8 AND from_sub = $3::int8`,
		string(kind), r.From, r.FromSub).Scan(&recorded.To, &recorded.ToSub, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look whether chunk %v is done: %w", r, err)
	}
	if recorded != r {
		return nil, fmt.Errorf("chunk %v is recorded as %v: the source is cut in another way than before", r, recorded)
	}
	result := new(dest.Result)
	if err := json.Unmarshal([]byte(text), result); err != nil {
		return nil, fmt.Errorf("read the result of chunk %v: %w", r, err)
	}
	return result, nil
}

// ChunkSQL is the statement that notes a range as done, for the end of the
// transaction that writes it.
func (t Tables) ChunkSQL(kind Kind, r source.Range, maxOID int64, result *dest.Result) (string, error) {
	text, err := json.Marshal(result)
	if err != nil {
		return "", fmt.Errorf("note chunk %v: %w", r, err)
	}
	return fmt.Sprintf("INSERT INTO %s (kind, range_from, from_sub, range_to, to_sub, max_oid, result) VALUES ('%s', %d, %d, %d, %d, %d, %s)",
		t.Chunk, kind, r.From, r.FromSub, r.To, r.ToSub, maxOID, Literal(string(text))), nil
}

// RejectColumns is what COPY takes for Tables.Reject.
const RejectColumns = "(pos, oid, tid, class, reason, data)"

// Rejects calls fn for every reject, oldest position first; by oid and tid where
// there are none.
func (t Tables) Rejects(ctx context.Context, q Querier, fn func(*dest.Reject) error) error {
	rows, err := q.Query(ctx, `SELECT pos, oid, tid, class, reason, data FROM `+t.Reject+` ORDER BY pos, oid, tid`)
	if err != nil {
		return fmt.Errorf("read the rejects: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r dest.Reject
		var oid, tid int64
		if err := rows.Scan(&r.Pos, &oid, &tid, &r.Class, &r.Reason, &r.Data); err != nil {
			return fmt.Errorf("read the rejects: %w", err)
		}
		r.OID, r.TID = zodb.OID(oid), zodb.TID(tid)
		if err := fn(&r); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the rejects: %w", err)
	}
	return nil
}

// CountRejects tells how many there are and whether the root is among them.
func (t Tables) CountRejects(ctx context.Context, q Querier) (n int64, root bool, err error) {
	err = q.QueryRow(ctx, `SELECT count(*), coalesce(bool_or(oid = 0), false) FROM `+t.Reject).Scan(&n, &root)
	if err != nil {
		return 0, false, fmt.Errorf("count the rejects: %w", err)
	}
	return n, root, nil
}

// SetPhase moves the run on from one phase to the next; it may have been moved
// already. It fails if the run was taken over, or is in an earlier phase.
func (t Tables) SetPhase(ctx context.Context, q Querier, r *Record, from, to dest.Phase) error {
	tag, err := q.Exec(ctx, `UPDATE `+t.Run+` SET phase = $1::text WHERE id = $2::text AND generation = $3::int8 AND phase IN ($1::text, $4::text)`,
		string(to), r.ID, r.Generation, string(from))
	if err != nil {
		return fmt.Errorf("record that the run is %s: %w", to, err)
	}
	if tag.RowsAffected() == 1 {
		return nil
	}
	var ours bool
	err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+t.Run+` WHERE id = $1::text AND generation = $2::int8)`, r.ID, r.Generation).Scan(&ours)
	switch {
	case err != nil:
		return fmt.Errorf("record that the run is %s: %w", to, err)
	case ours:
		return ErrForgotten
	}
	return ErrTakenOver
}

// Raise claims the run: it waits until no transaction of an earlier generation
// is open and lets none begin. r is the run as it was read, but for how this
// generation is started; it gets the new generation. It fails if somebody else was
// faster.
func (t Tables) Raise(ctx context.Context, q Querier, r *Record, tool, host string, pid int) error {
	opts, err := marshalOptions(r)
	if err != nil {
		return err
	}
	err = q.QueryRow(ctx, `UPDATE `+t.Run+` SET generation = generation + 1, tool = $1::text, host = $2::text, pid = $3::int4,
		claimed = clock_timestamp(), options = $6::text::json WHERE generation = $4::int8 AND id = $5::text RETURNING generation, claimed`,
		tool, host, int32(pid), r.Generation, r.ID, opts).Scan(&r.Generation, &r.Claimed)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrTakenOver
	}
	if err != nil {
		return fmt.Errorf("claim the run: %w", err)
	}
	r.Tool, r.Host, r.PID = tool, host, pid
	return nil
}

// Drop removes the tables; they may be gone already.
func (t Tables) Drop(ctx context.Context, q Querier) error {
	_, err := q.Exec(ctx, `DROP TABLE IF EXISTS `+strings.Join([]string{t.Run, t.Chunk, t.Reject, t.Step, t.Missing, t.Owed, t.Gone}, ", "))
	if err != nil {
		return fmt.Errorf("drop the tables of the run: %w", err)
	}
	return nil
}

// StepSQL notes a finishing step as done.
func (t Tables) StepSQL(name string, took time.Duration) string {
	return fmt.Sprintf("INSERT INTO %s (name, took) VALUES (%s, interval '%d milliseconds')", t.Step, Literal(name), took.Milliseconds())
}

// StepsDone returns the names of the finishing steps that are done.
func (t Tables) StepsDone(ctx context.Context, q Querier) (map[string]bool, error) {
	rows, err := q.Query(ctx, `SELECT name FROM `+t.Step)
	if err != nil {
		return nil, fmt.Errorf("read which finishing steps are done: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read which finishing steps are done: %w", err)
	}
	done := make(map[string]bool, len(names))
	for _, n := range names {
		done[n] = true
	}
	return done, nil
}

// ErrTakenOver is what a run gets that another one has taken over, continued,
// finished or undone.
var ErrTakenOver = errors.New("another run has taken this one over")

// ErrForgotten is what a run gets that is in an earlier phase than it was: the
// server has lost commits that it had confirmed.
var ErrForgotten = errors.New("the server has lost what it had confirmed")

// The SQLSTATEs that Fence raises.
const (
	takenOver = "ZC001"
	forgotten = "ZC002"
)

// Fence is the statement that begins every writing transaction, behind BEGIN.
// It needs no answer: where the run or its generation is not the own one any
// more, it fails and the transaction with it, see TakenOver. The id is compared
// because a run that was undone and begun anew has the same generations again.
//
// phase is the one that the transaction belongs to, empty for any. A standby
// that takes over may lack what the server has confirmed last, chunks included;
// commits are lost in their order, so the phase tells, see Forgotten.
func (t Tables) Fence(r *Record, phase dest.Phase) string {
	check := ""
	if phase != "" {
		check = fmt.Sprintf("ELSIF p <> %s THEN RAISE EXCEPTION USING ERRCODE = '%s', MESSAGE = 'the run is in phase ' || p; ",
			Literal(string(phase)), forgotten)
	}
	return fmt.Sprintf("DO $zodb_convert$ DECLARE p text; BEGIN SELECT phase INTO p FROM %s WHERE id = %s AND generation = %d FOR SHARE; "+
		"IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '%s', MESSAGE = 'taken over'; %sEND IF; END $zodb_convert$",
		t.Run, Literal(r.ID), r.Generation, takenOver, check)
}

// Forgotten tells whether an error means that the run is in an earlier phase
// than it was.
func (t Tables) Forgotten(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, ErrForgotten) || errors.As(err, &pg) && pg.Code == forgotten
}

// TakenOver tells whether an error means that Fence found another generation,
// or no run at all.
func (t Tables) TakenOver(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return errors.Is(err, ErrTakenOver)
	}
	return pg.Code == takenOver || pg.Code == "42P01" && strings.Contains(pg.Message, "zodb_convert_")
}

// Literal quotes a string for SQL that standard_conforming_strings reads.
func Literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
