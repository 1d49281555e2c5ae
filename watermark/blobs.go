package watermark

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Correction is the kind of a range that is none: its result corrects the
// totals, where a blob was found that had been missing.
const Correction Kind = "correction"

// The columns that COPY writes.
const (
	MissingColumns = "(pos, oid, tid, path, reason)"
	OwedColumns    = "(oid, tid, pos, size, path, key)"
)

// createBlobs makes the tables for blobs. A run that a release without them
// began gets them when it is continued.
func (t Tables) createBlobs() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS ` + t.Missing + ` (
			pos    bigint NOT NULL,
			oid    bigint NOT NULL,
			tid    bigint NOT NULL,
			path   text NOT NULL,
			reason text NOT NULL,
			PRIMARY KEY (pos, oid, tid))`,
		// A path is bytes: text would not take all of them.
		`CREATE TABLE IF NOT EXISTS ` + t.Owed + ` (
			oid    bigint NOT NULL,
			tid    bigint NOT NULL,
			pos    bigint NOT NULL,
			size   bigint NOT NULL,
			path   bytea NOT NULL,
			key    text NOT NULL,
			failed text,
			PRIMARY KEY (oid, tid))`,
		`CREATE TABLE IF NOT EXISTS ` + t.Gone + ` (
			oid bigint NOT NULL,
			tid bigint NOT NULL,
			key text NOT NULL,
			PRIMARY KEY (oid, tid))`,
	}
}

// BlobCounts is how many blobs wait for something.
type BlobCounts struct {
	Owed, OwedBytes, Missing, Gone int64
}

// CountBlobs counts them. A run of a release without the tables has none.
func (t Tables) CountBlobs(ctx context.Context, q Querier) (c BlobCounts, err error) {
	var present bool
	err = q.QueryRow(ctx, `SELECT to_regclass($1::text) IS NOT NULL AND to_regclass($2::text) IS NOT NULL AND to_regclass($3::text) IS NOT NULL`,
		t.Owed, t.Missing, t.Gone).Scan(&present)
	if err == nil && present {
		err = q.QueryRow(ctx, `SELECT count(*), coalesce(sum(size), 0)::int8, (SELECT count(*) FROM `+t.Missing+`), (SELECT count(*) FROM `+t.Gone+`) FROM `+t.Owed).
			Scan(&c.Owed, &c.OwedBytes, &c.Missing, &c.Gone)
	}
	if err != nil {
		return c, fmt.Errorf("count the blobs that are owed or missing: %w", err)
	}
	return c, nil
}

// MissingBlobs calls fn for every missing blob, by oid and tid.
func (t Tables) MissingBlobs(ctx context.Context, q Querier, fn func(*dest.MissingBlob) error) error {
	rows, err := q.Query(ctx, `SELECT pos, oid, tid, path, reason FROM `+t.Missing+` ORDER BY oid, tid`)
	if err != nil {
		return fmt.Errorf("read the list of missing blobs: %w", err)
	}
	var m dest.MissingBlob
	var oid, tid int64
	_, err = pgx.ForEachRow(rows, []any{&m.Pos, &oid, &tid, &m.Path, &m.Reason}, func() error {
		one := m
		one.OID, one.TID = zodb.OID(oid), zodb.TID(tid)
		return fn(&one)
	})
	if err != nil {
		return fmt.Errorf("read the list of missing blobs: %w", err)
	}
	return nil
}

// MissingAfter returns the records of missing blobs that stand behind the one of
// a record, at most n, in their order: by position, oid and tid. All of them
// stand behind nil.
func (t Tables) MissingAfter(ctx context.Context, q Querier, after *source.Record, n int) ([]source.Record, error) {
	if after == nil {
		after = &source.Record{Pos: -1}
	}
	rows, err := q.Query(ctx, `SELECT pos, oid, tid FROM `+t.Missing+` WHERE (pos, oid, tid) > ($1::int8, $2::int8, $3::int8)
		ORDER BY pos, oid, tid LIMIT $4::int4`, after.Pos, int64(after.OID), int64(after.TID), int32(n))
	if err != nil {
		return nil, fmt.Errorf("read the list of missing blobs: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r source.Record, err error) {
		var oid, tid int64
		err = row.Scan(&r.Pos, &oid, &tid)
		r.OID, r.TID = zodb.OID(oid), zodb.TID(tid)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the list of missing blobs: %w", err)
	}
	return found, nil
}

// Owed is an upload that is not done.
type Owed struct {
	dest.OwedBlob
	Pos    int64  // of its record
	Failed string // why it cannot be done; empty if that is not known
}

// OwedUploads calls fn for every owed upload that meets a condition, by oid and
// tid.
func (t Tables) OwedUploads(ctx context.Context, q Querier, condition string, limit int, fn func(*Owed) error) error {
	rows, err := q.Query(ctx, `SELECT oid, tid, pos, size, path, key, coalesce(failed, '') FROM `+t.Owed+` WHERE `+condition+
		` ORDER BY oid, tid LIMIT nullif($1::int8, 0)`, int64(limit))
	if err != nil {
		return fmt.Errorf("read which uploads are owed: %w", err)
	}
	var o Owed
	var oid, tid int64
	var path []byte
	_, err = pgx.ForEachRow(rows, []any{&oid, &tid, &o.Pos, &o.Size, &path, &o.Key, &o.Failed}, func() error {
		one := o
		one.OID, one.TID, one.Path = zodb.OID(oid), zodb.TID(tid), string(path)
		return fn(&one)
	})
	if err != nil {
		return fmt.Errorf("read which uploads are owed: %w", err)
	}
	return nil
}

// CorrectionSQL is the statement that corrects the totals.
func (t Tables) CorrectionSQL(result *dest.Result) (string, error) {
	id := rand.Int64()
	return t.ChunkSQL(Correction, source.Range{From: id, To: id}, 0, result)
}
