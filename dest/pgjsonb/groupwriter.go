package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/source"
)

// groupWriter is a connection that takes a group of chunks into one transaction
// and applies them together.
type groupWriter struct {
	s    *session
	role string
	conn *pgx.Conn
	rows recordRows
}

// connect connects, waiting for a server that is away.
func (g *groupWriter) connect(ctx context.Context) (err error) {
	g.conn, err = g.s.dest.connect.reopen(ctx, g.s.application(g.role), g.s.dest.config.Wait)
	if err != nil {
		return g.s.dest.plain(err)
	}
	return nil
}

// Close ends the connection; what is not committed is not written.
func (g *groupWriter) Close() error {
	closeQuietly(g.conn)
	return nil
}

func (g *groupWriter) exec(ctx context.Context, sql ...string) error {
	_, err := g.conn.PgConn().Exec(ctx, strings.Join(sql, "; ")).ReadAll()
	return err
}

// take takes a chunk, and once more without the records that the server does not
// take. stage must leave nothing where it fails.
func (g *groupWriter) take(ctx context.Context, stage func() error) error {
	err := g.readable(ctx, stage)
	if !ofData(err) {
		return err
	}
	cause := err
	if err := g.rows.findRefused(ctx, g.conn, stageTable); err != nil {
		return err
	}
	if len(g.rows.refused) == 0 {
		return cause // no single record is to blame
	}
	return g.readable(ctx, stage)
}

// readable takes a chunk, as often as files of blobs turn out to be unreadable
// while they are sent.
func (g *groupWriter) readable(ctx context.Context, stage func() error) error {
	for {
		err := stage()
		if err == nil {
			return nil
		}
		g.rows.blobs.takeBack(g.s.plan.BlobBytes)
		again, e := g.rows.unreadableBlob(ctx, err)
		if e != nil {
			return e
		}
		if !again {
			return err
		}
	}
}

// sparing runs fn so that a failure on data, or on the file of a blob, leaves the
// transaction as it was before.
func (g *groupWriter) sparing(ctx context.Context, fn func() error) error {
	if err := g.exec(ctx, "SAVEPOINT chunk"); err != nil {
		return err
	}
	err := fn()
	if bad := (*source.BlobError)(nil); ofData(err) || errors.As(err, &bad) {
		if e := g.exec(ctx, "ROLLBACK TO SAVEPOINT chunk", "RELEASE SAVEPOINT chunk"); e != nil {
			return e
		}
		return err
	}
	if err != nil {
		return err
	}
	return g.exec(ctx, "RELEASE SAVEPOINT chunk")
}

// kept makes sure that the rows r are in a table: somebody else's trigger may
// have left one out.
func (g *groupWriter) kept(ctx context.Context, rows, table string) error {
	var missing int64
	err := g.conn.QueryRow(ctx, "SELECT count(*) FROM (SELECT zoid, tid FROM "+rows+") n WHERE NOT EXISTS (SELECT FROM "+
		table+" o WHERE o.zoid = n.zoid AND o.tid = n.tid)").Scan(&missing)
	if err != nil {
		return fmt.Errorf("look for the new rows: %w", err)
	}
	if missing > 0 {
		return fmt.Errorf("PostgreSQL has not kept %s: a trigger leaves rows out, which would be lost; disable it for the conversion", count(missing, "new row"))
	}
	return nil
}
