// Package pgserver reads connection strings of PostgreSQL as libpq takes them,
// and makes sentences of what goes wrong with a server. Nothing that it returns
// as text holds a password.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// clientOnly are libpq's parameters that are meant for the client. pgx hands
// what it does not know to the server, which would refuse them.
var clientOnly = []string{
	"fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
	"tcp_user_timeout", "gssencmode", "gsslib", "gssdelegation", "requiressl", "sslcompression", "sslcrl", "sslcrldir",
	"ssl_min_protocol_version", "ssl_max_protocol_version", "requirepeer", "load_balance_hosts", "replication",
	"hostaddr", "require_auth", "sslcertmode", "channel_binding",
}

// connectTimeout is how long one attempt to connect may take, if the
// connection string does not say.
const connectTimeout = 15 * time.Second

// DSNHint tells how a connection string is written.
const DSNHint = `it is written as libpq takes it: "dbname=zodb user=zodb host=localhost port=5432" or "postgresql://zodb@localhost:5432/zodb"`

// Parse reads a connection string; what it does not say comes from the
// environment. The error is the reason without the string, which may hold a
// password.
func Parse(dsn string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New(parseReason(err))
	}
	hostaddr := config.RuntimeParams["hostaddr"]
	for _, name := range clientOnly {
		delete(config.RuntimeParams, name)
	}
	if hostaddr != "" {
		// The name stays what certificates are checked against.
		config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{hostaddr}, nil }
	}
	config.RuntimeParams["client_encoding"] = "UTF8"
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	// Without keepalives a connection that a firewall has forgotten is noticed
	// only after hours.
	config.DialFunc = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	// Named prepared statements do not survive a pooler; ours run once anyway.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	return config, nil
}

func parseReason(err error) string {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil {
			return Sentence(cause.Error())
		}
	}
	return "it has an error"
}

// Address is where a server is, for messages.
func Address(c *pgconn.Config) string {
	if strings.HasPrefix(c.Host, "/") {
		return fmt.Sprintf("%s (port %d)", c.Host, c.Port)
	}
	return net.JoinHostPort(c.Host, fmt.Sprint(c.Port))
}

// Explain tells why a connection could not be made, and what to do, if anything
// is known to help.
func Explain(c *pgconn.Config, err error) (reason, hint string) {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return refused(c, pg)
	}
	where := Address(c)
	reason = fmt.Sprintf("PostgreSQL at %s cannot be reached: %s", where, RootCause(err))
	hint = "check host and port of the connection string, and that the server runs and listens there"
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		reason = fmt.Sprintf("the host %q of the connection string is not known: %s", dns.Name, dns.Err)
		hint = ""
	case errors.Is(err, context.DeadlineExceeded):
		reason = fmt.Sprintf("PostgreSQL at %s does not answer", where)
	case strings.Contains(err.Error(), "tls:") || strings.Contains(err.Error(), "x509:"):
		reason = fmt.Sprintf("no trusted TLS connection to PostgreSQL at %s: %s", where, RootCause(err))
		hint = "check sslmode and sslrootcert of the connection string"
	}
	return reason, hint
}

// refused explains what a server said.
func refused(c *pgconn.Config, pg *pgconn.PgError) (reason, hint string) {
	switch pg.Code {
	case "28P01", "28000":
		return fmt.Sprintf("PostgreSQL at %s does not let user %q in: %s", Address(c), c.User, Sentence(pg.Message)),
			"check the password (in the connection string, PGPASSWORD or ~/.pgpass) and the server's pg_hba.conf"
	case "3D000":
		return fmt.Sprintf("there is no database %q on PostgreSQL at %s", c.Database, Address(c)), ""
	}
	return fmt.Sprintf("PostgreSQL at %s refuses the connection: %s", Address(c), Sentence(pg.Message)), ""
}

// Lost tells whether an error means that the connection or the server went
// away, so that it makes sense to connect again.
func Lost(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "57P01", "57P02", "57P03", "57P05", "53300":
			return true
		}
		return strings.HasPrefix(pg.Code, "08")
	}
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ENOENT) || errors.As(err, &network) || pgconn.SafeToRetry(err)
}

// RootCause is the innermost error, which says what the operating system said.
func RootCause(err error) string {
	for {
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			if u.Unwrap() == nil {
				return Sentence(err.Error())
			}
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			all := u.Unwrap()
			if len(all) == 0 {
				return Sentence(err.Error())
			}
			err = all[0]
		default:
			return Sentence(err.Error())
		}
	}
}

// Sentence puts a text into one line.
func Sentence(s string) string { return strings.Join(strings.Fields(s), " ") }

// Close ends a connection and, where no query is under way, waits until the
// server has ended the session, at most as long as ctx lasts. A driver only hangs
// up: for some moments the session would still count against the limits of
// connections, and be taken for a site that uses the database.
func Close(ctx context.Context, conn *pgconn.PgConn) {
	if conn.IsClosed() {
		return // the driver may still be at work on it
	}
	if conn.IsBusy() || conn.SyncConn(ctx) != nil {
		_ = conn.Close(ctx)
		return
	}
	h, err := conn.Hijack()
	if err != nil {
		_ = conn.Close(ctx)
		return
	}
	defer h.Conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = h.Conn.SetDeadline(time.Now()) })
	defer stop()
	h.Frontend.Send(&pgproto3.Terminate{})
	if h.Frontend.Flush() == nil {
		_, _ = io.Copy(io.Discard, h.Conn)
	}
}
