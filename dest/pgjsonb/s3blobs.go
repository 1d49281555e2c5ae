package pgjsonb

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// S3Blob is a row of blob_state that names an object in S3.
type S3Blob struct {
	OID  zodb.OID
	TID  zodb.TID
	Size int64
}

// S3Blobs calls fn for every row of blob_state that names an object in S3, by
// oid and tid. A row whose key is not the one that belongs to its object is an
// error: nobody could have uploaded what it names.
func (d *Destination) S3Blobs(ctx context.Context, fn func(S3Blob) error) error {
	conn, err := d.connect.open(ctx, "zodb-convert")
	if err != nil {
		return d.plain(err)
	}
	defer closeQuietly(conn)
	l, err := readLayout(ctx, conn)
	if err != nil {
		return err
	}
	present := false
	if err := conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", l.name("blob_state")).Scan(&present); err != nil {
		return fmt.Errorf("look for blob_state: %w", err)
	}
	if !present {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s has no table blob_state: nothing was converted into it", d.Name())}
	}
	rows, err := conn.Query(ctx, "SELECT zoid, tid, blob_size, s3_key FROM "+l.name("blob_state")+" WHERE s3_key IS NOT NULL ORDER BY zoid, tid")
	if err != nil {
		return fmt.Errorf("read blob_state: %w", err)
	}
	var (
		zoid, tid, size int64
		key             string
	)
	_, err = pgx.ForEachRow(rows, []any{&zoid, &tid, &size, &key}, func() error {
		b := S3Blob{OID: zodb.OID(zoid), TID: zodb.TID(tid), Size: size}
		if want := s3blob.Key(b.OID, b.TID); key != want {
			return fmt.Errorf("the row of oid %v, tid %v names the key %.80q and not %s", b.OID, b.TID, key, want)
		}
		return fn(b)
	})
	if err != nil {
		return fmt.Errorf("read blob_state: %w", err)
	}
	return nil
}
