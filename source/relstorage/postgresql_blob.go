package relstorage

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/internal/pgserver"
)

// Large objects. RelStorage keeps the bytes of a blob in large objects of
// PostgreSQL, whose oids are in blob_chunk: one for each blob, several for the
// large ones of releases before 3. Several rows name the same one after an undo.
//
// The table pg_largeobject itself is for superusers. What everybody may ask is
// which large objects there are, who owns them, and the functions that open one,
// which check the rights and see what the transaction sees. None of them holds a
// lock on a single object.

// postgresLargeObject gives the oid of a large object as a number, and its size.
//
// An error would cost the transaction, and with it the view. So what would be one
// is found out before.
func postgresLargeObject(column string, trusted bool) (object, size string) {
	may := ""
	if !trusted {
		may = `
			WHEN NOT (pg_catalog.current_setting('lo_compat_privileges')::bool
				OR (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
				OR EXISTS (SELECT 1 FROM pg_catalog.pg_largeobject_metadata m,
						pg_catalog.aclexplode(coalesce(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a
					WHERE m.oid = ` + column + ` AND a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
			) THEN ` + fmt.Sprint(noRight)
	}
	// 262144 is the mode for reading, 2 the end. The descriptor is closed in the same
	// row.
	return column + "::bigint", `CASE
			WHEN NOT EXISTS (SELECT 1 FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid = ` + column + `) THEN ` + fmt.Sprint(noObject) + may + `
			ELSE (SELECT pg_catalog.lo_lseek64(x.fd, 0, 2) + pg_catalog.lo_close(x.fd)
				FROM (SELECT pg_catalog.lo_open(` + column + `, 262144) AS fd OFFSET 0) x) END`
}

// brokenBlob is why the bytes of one blob cannot be read, as the rest of a
// sentence about the table.
type brokenBlob struct {
	problem string
	missing bool
	err     error
}

func (e *brokenBlob) Error() string { return e.problem }
func (e *brokenBlob) Unwrap() error { return e.err }

func brokenBy(err error) (bad *brokenBlob) {
	errors.As(err, &bad)
	return bad
}

const savepoint = "SAVEPOINT zodb_convert_blob"

// readBlob reads large objects. A savepoint keeps the view if one of them cannot
// be read.
func (c *postgresConn) readBlob(ctx context.Context, b *storedBlob, p []byte, off int64) (n int, err error) {
	for i := range b.chunks {
		chunk := &b.chunks[i]
		at := off + int64(n) - chunk.off
		if n == len(p) || at < 0 {
			break
		}
		if at >= chunk.size {
			continue
		}
		part := p[n:][:min(int64(len(p)-n), chunk.size-at)]
		k, err := c.readChunk(ctx, b, chunk, part, at)
		if n += k; err != nil || k < len(part) {
			return n, err
		}
	}
	return n, nil
}

// readChunk reads bytes of a row of blob_chunk in one round trip.
func (c *postgresConn) readChunk(ctx context.Context, b *storedBlob, chunk *blobChunk, p []byte, at int64) (n int, err error) {
	q := fmt.Sprintf("SELECT pg_catalog.lo_get(%d, %d, %d)", chunk.object, at, len(p))
	if chunk.object == 0 { // a release before the large objects
		q = fmt.Sprintf("SELECT pg_catalog.substr(chunk, %d, %d) FROM blob_chunk WHERE zoid = %d AND tid = %d AND chunk_num = %d",
			at+1, len(p), b.zoid, b.tid, chunk.num)
	}
	var batch pgconn.Batch
	batch.ExecParams(savepoint, nil, nil, nil, nil)
	batch.ExecParams(q, nil, nil, nil, inBinary)
	batch.ExecParams("RELEASE "+savepoint, nil, nil, nil, nil)
	results := c.pg.ExecBatch(ctx, &batch)
	for results.NextResult() {
		reader := results.ResultReader()
		for reader.NextRow() {
			if values := reader.Values(); len(values) == 1 {
				n = copy(p, values[0])
			}
		}
	}
	err = results.Close()
	if err == nil {
		return n, nil
	}
	if c.pg.IsClosed() || c.pg.TxStatus() != 'E' {
		return 0, c.gone(err)
	}
	if e := c.exec(ctx, "ROLLBACK TO "+savepoint); e != nil {
		return 0, c.gone(errors.Join(err, e))
	}
	return 0, c.ofObject(chunk, err)
}

// ofObject tells the errors of one large object from others.
func (c *postgresConn) ofObject(chunk *blobChunk, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	said := pgserver.Sentence(pg.Message)
	switch {
	case pg.Code == "42704":
		return &brokenBlob{fmt.Sprintf("%s (%d)", notThere, chunk.object), true, err}
	case pg.Code == "42501":
		return &brokenBlob{fmt.Sprintf("%s (%d)", notReadable, chunk.object), false, err}
	case strings.HasPrefix(pg.Code, "XX"), pg.Code == "58030", pg.Code == "58P01":
		return &brokenBlob{fmt.Sprintf("names a large object that the server cannot read (%d: %s)", chunk.object, said), false, err}
	}
	return err
}
