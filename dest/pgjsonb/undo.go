package pgjsonb

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// Abort empties what an interrupted run loaded and puts the schema back as it
// was. A run that only caught up with a finished database is ended: what it has
// added are whole transactions, and they stay.
func (d *Destination) Abort(ctx context.Context) (left string, err error) {
	conn, err := d.connect.open(ctx, "zodb-convert")
	if err != nil {
		return "", d.plain(err)
	}
	defer closeQuietly(conn)
	l, err := readLayout(ctx, conn)
	if err != nil {
		return "", err
	}
	record, err := l.run().Read(ctx, conn)
	if err != nil {
		return "", err
	}
	if record == nil {
		return "", &dest.RefusedError{Reason: fmt.Sprintf("there is no unfinished conversion in %s", d.Name())}
	}
	if err := d.mayForget(ctx, conn, l, record); err != nil {
		return "", err
	}
	return d.undo(ctx, conn, l, record)
}

// mayForget refuses to end a run that has caught up with rejects, or with blobs
// that are missing or not yet uploaded. What they replaced is gone and stays so;
// without the run's record nothing would tell that these objects are missing.
func (d *Destination) mayForget(ctx context.Context, conn *pgx.Conn, l *layout, r *watermark.Record) error {
	b, err := parseBare(r.Restore)
	if err != nil {
		return err
	}
	if b.Loads {
		return d.written(ctx, conn, l)
	}
	t := l.run()
	n, _, err := t.CountRejects(ctx, conn)
	if err != nil {
		return err
	}
	c, err := t.CountBlobs(ctx, conn)
	if err != nil {
		return err
	}
	if c.Owed+c.Missing > 0 {
		return &dest.RefusedError{
			Reason: fmt.Sprintf("the unfinished run has caught up with %s, of which %s missing and %d not yet uploaded: ending it would leave nothing that tells which",
				d.Name(), count(c.Missing, "blob"), c.Owed),
			Hint: "finish it with --incremental (and --allow-missing-blobs), or convert again with --clear",
		}
	}
	if n == 0 {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("the unfinished run has caught up with %s, of which %s rejected: ending it would leave nothing that tells which",
			d.Name(), count(n, "record")),
		Hint: "list them and finish with --incremental --rejects PATH, or convert again with --clear",
	}
}

// written refuses to empty a database that has more transactions than the run
// has written: a site was started on it.
func (d *Destination) written(ctx context.Context, conn *pgx.Conn, l *layout) error {
	// One look at both: the run may still be writing.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("look for other writers: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	r, err := l.run().Read(ctx, tx)
	if err != nil || r == nil {
		return err
	}
	var n int64
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM `+l.name(transactionLog)).Scan(&n); err != nil {
		return fmt.Errorf("look for other writers: %w", err)
	}
	ours := r.Totals.Transactions - r.Totals.GoneTransactions
	if n <= ours {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("a site has written %s to %s since: to undo the conversion would destroy them",
			count(n-ours, "transaction"), d.Name()),
		Hint: "if they are not wanted, convert again with --clear",
	}
}

// undo takes a run over and undoes it, in one transaction. left tells what stays
// in S3.
func (d *Destination) undo(ctx context.Context, conn *pgx.Conn, l *layout, r *watermark.Record) (left string, err error) {
	alive, err := watermark.Alive(ctx, conn, r, d.host)
	if err != nil {
		return "", err
	}
	if alive {
		return "", d.busy(r)
	}
	b, err := parseBare(r.Restore)
	if err != nil {
		return "", err
	}
	t := l.run()
	if err := d.takeOver(ctx, conn, t, r, r.Tool); err != nil {
		return "", err
	}
	fault.Point("abort.begin")
	tx, err := conn.Begin(ctx)
	if err != nil {
		return "", fmt.Errorf("undo the conversion: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, t.Fence(r, "")); err != nil {
		return "", fmt.Errorf("undo the conversion: %w", err)
	}
	if left, err = d.staysInS3(ctx, tx, l, r, b); err != nil {
		return "", err
	}
	if b.Loads {
		if err := l.putBack(ctx, tx, b); err != nil {
			return "", fmt.Errorf("undo the conversion: %w", err)
		}
	}
	if err := t.Drop(ctx, tx); err != nil {
		return "", err
	}
	fault.Point("abort.commit")
	if err := tx.Commit(ctx); err != nil {
		return "", fmt.Errorf("undo the conversion: %w", err)
	}
	fault.Point("abort.done")
	return left, nil
}

// staysInS3 says how many objects nothing names any more when a run is undone:
// those that its rows name, but for the ones that are not yet uploaded, and
// those that newer transactions have replaced.
func (d *Destination) staysInS3(ctx context.Context, tx pgx.Tx, l *layout, r *watermark.Record, b *bare) (string, error) {
	c, err := l.run().CountBlobs(ctx, tx)
	if err != nil {
		return "", err
	}
	n := c.Gone
	if b.Loads {
		named, err := l.countInS3(ctx, tx)
		if err != nil {
			return "", err
		}
		n += named - c.Owed
	}
	return leftInS3(n, d.config.S3, &r.Options), nil
}

// putBack empties the tables and makes what is not there again of what was
// taken down. What a finishing step has made already is recognised by its name.
func (l *layout) putBack(ctx context.Context, tx pgx.Tx, b *bare) error {
	exec := func(statements []string) error {
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}
	tables := make([]string, len(b.Tables))
	for i, t := range b.Tables {
		tables[i] = l.name(t)
	}
	if err := empty(ctx, tx, tables); err != nil {
		return err
	}
	for _, x := range b.Indexes {
		index, constraint, err := l.present(ctx, tx, x.Table, x.Name)
		if err != nil {
			return err
		}
		if !index {
			if err := exec(l.build(x)); err != nil {
				return err
			}
		}
		if x.Constraint == "" || !constraint {
			if err := exec(l.attach(x)); err != nil {
				return err
			}
		}
	}
	for _, k := range b.ForeignKeys {
		_, constraint, err := l.present(ctx, tx, k.Table, k.Name)
		if err != nil {
			return err
		}
		if !constraint {
			if err := exec(l.key(k)); err != nil {
				return err
			}
		}
	}
	for _, t := range b.Triggers {
		if err := exec(l.switchOn(t)); err != nil {
			return err
		}
	}
	return exec(b.Undo)
}

// present tells whether an index and a constraint of a table exist.
func (l *layout) present(ctx context.Context, q watermark.Querier, table, name string) (index, constraint bool, err error) {
	err = q.QueryRow(ctx, `SELECT to_regclass($1::text) IS NOT NULL,
		EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = $2::text::regclass AND conname = $3::text)`,
		l.name(name), l.name(table), name).Scan(&index, &constraint)
	return index, constraint, err
}
