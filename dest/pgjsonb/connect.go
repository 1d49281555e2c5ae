package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/pgserver"
)

// connector opens connections to one database.
type connector struct {
	config *pgx.ConnConfig

	// tell is told, now and then, that the server is waited for.
	waitMu sync.Mutex
	tell   func(text string)
	told   time.Time
}

// onWait lets fn be told when connections have waited for the server for some
// seconds.
func (c *connector) onWait(fn func(text string)) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	c.tell = fn
}

const (
	// A server that is away is told of after tellAfter, and then every tellEvery.
	tellAfter, tellEvery = 3 * time.Second, 30 * time.Second
)

// waiting tells that the server is waited for. Many workers wait at once; one
// sentence does for all.
func (c *connector) waiting(err error, wait time.Duration) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	if c.tell == nil || time.Since(c.told) < tellEvery {
		return
	}
	c.told = time.Now()
	c.tell(fmt.Sprintf("%s is away: %s; waiting up to %v for it", c.name(), serverMessage(err), wait))
}

func newConnector(dsn string) (*connector, error) {
	config, err := pgserver.Parse(dsn)
	if err != nil {
		return nil, &dest.RefusedError{
			Reason: "the connection string of the destination cannot be read: " + err.Error(),
			Hint:   pgserver.DSNHint,
		}
	}
	return &connector{config: config}, nil
}

func (c *connector) name() string {
	return fmt.Sprintf("PostgreSQL database %q on %s", c.config.Database, c.address())
}

func (c *connector) address() string { return pgserver.Address(&c.config.Config) }

// settings make a session independent of what a role, a database or the server
// sets for its users. Not every release knows all of them.
//
// client_connection_check_interval lets the server notice within a second that
// a killed client is gone, also in the middle of a long statement.
const settings = `
SELECT set_config(s.name, v.value, false) FROM pg_catalog.pg_settings s JOIN (VALUES
	('DateStyle', 'ISO, MDY'), ('IntervalStyle', 'postgres'), ('quote_all_identifiers', 'off'),
	('lock_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
	('idle_session_timeout', '0'), ('transaction_timeout', '0'),
	('default_transaction_isolation', 'read committed'), ('default_transaction_read_only', 'off'),
	('default_transaction_deferrable', 'off'),
	('standard_conforming_strings', 'on'),
	('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
) v(name, value) ON v.name = s.name
WHERE s.setting IS DISTINCT FROM v.value AND s.context = 'user'`

// dial makes one connection and sets nothing for its session. application is what
// application_name shows.
func (c *connector) dial(ctx context.Context, application string) (*pgx.Conn, error) {
	config := c.config.Copy()
	config.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.explain(err)
	}
	return conn, nil
}

// open makes one connection and sets its session up.
func (c *connector) open(ctx context.Context, application string) (*pgx.Conn, error) {
	conn, err := c.dial(ctx, application)
	if err != nil {
		return nil, err
	}
	// The first one alone: looking at all settings takes some milliseconds.
	for _, sql := range []string{"SET statement_timeout = 0", settings} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			closeQuietly(conn)
			return nil, fmt.Errorf("set up the session: %w", err)
		}
	}
	// Not every platform that a server runs on can do this.
	if _, err := conn.Exec(ctx, "SET client_connection_check_interval = '1s'"); err != nil && conn.IsClosed() {
		return nil, fmt.Errorf("set up the session: %w", err)
	}
	return conn, nil
}

// explain turns an error of connecting into a sentence.
func (c *connector) explain(err error) error {
	reason, hint := pgserver.Explain(&c.config.Config, err)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "3D000":
			hint = fmt.Sprintf("create it: createdb --encoding=UTF8 --template=template0 --owner=%s %s", c.config.User, c.config.Database)
		case "53300":
			hint = "use fewer workers, or raise max_connections"
		}
	}
	return &connectError{refused: &dest.RefusedError{Reason: reason, Hint: hint}, err: err}
}

// connectError shows the sentence and keeps the cause.
type connectError struct {
	refused *dest.RefusedError
	err     error
}

func (e *connectError) Error() string   { return e.refused.Error() }
func (e *connectError) Unwrap() []error { return []error{e.refused, e.err} }

// otherError is one that is not of PostgreSQL, however much it may look like a
// connection that was lost: a file system that is gone, S3 that takes no
// connections, a file that ends early.
type otherError struct{ err error }

func (e *otherError) Error() string { return e.err.Error() }
func (e *otherError) Unwrap() error { return e.err }

// elsewhere marks the error of a source, of S3 or of a caller's function, so that
// lost does not take it for one of the connection: what failed would be repeated
// for ever.
func elsewhere(err error) error {
	if err == nil {
		return nil
	}
	return &otherError{err}
}

func isElsewhere(err error) bool {
	var other *otherError
	return errors.As(err, &other)
}

// lost tells whether an error means that the connection or the server went
// away, so that it makes sense to connect again.
func lost(err error) bool { return !isElsewhere(err) && pgserver.Lost(err) }

// reopen connects again to a server that went away, and gives up after wait.
func (c *connector) reopen(ctx context.Context, application string, wait time.Duration) (*pgx.Conn, error) {
	start := time.Now()
	deadline := start.Add(wait)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		conn, err := c.open(ctx, application)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !lost(err) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the server did not come back within %v: %w", wait, err)
		}
		if time.Since(start) > tellAfter {
			c.waiting(err, wait)
		}
		// Many workers lose their connections at the same moment.
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// closeQuietly ends a connection that may be broken.
func closeQuietly(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	pgserver.Close(ctx, conn.PgConn())
}
