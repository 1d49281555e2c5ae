package relstorage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/internal/pgserver"
)

// postgres is a PostgreSQL database.
type postgres struct {
	servers []*pgconn.Config // tried in this order
	local   [][2]string      // settings of the connection string, for each transaction
	note    func(string)

	mu   sync.Mutex
	used *pgconn.Config // the server that answered last
	// standby: it is one.
	standby bool
}

var _ engine = (*postgres)(nil)

func newPostgreSQL(opts *Options) (engine, error) {
	e := &postgres{note: opts.Note}
	dsns, err := withReplicas(opts.PostgreSQL.DSN, opts.Replicas)
	if err != nil {
		return nil, err
	}
	for _, dsn := range dsns {
		config, err := pgserver.Parse(dsn)
		if err != nil {
			return nil, unreadable(err)
		}
		e.local = takeLocal(config.RuntimeParams)
		config.RuntimeParams["application_name"] = "zodb-convert source"
		e.servers = append(e.servers, single(&config.Config)...)
	}
	e.used = e.servers[0]
	return e, nil
}

// withReplicas gives the connection string once for each replica, or as it is if
// there are none.
func withReplicas(dsn string, replicas []string) ([]string, error) {
	if len(replicas) == 0 {
		return []string{dsn}, nil
	}
	if _, err := pgserver.Parse(dsn); err != nil { // what is added must not complete it
		return nil, unreadable(err)
	}
	var list []string
	for _, r := range replicas {
		host, port := r, ""
		if h, p, err := net.SplitHostPort(r); err == nil {
			host, port = h, p
		}
		if n, err := strconv.ParseUint(port, 10, 16); host == "" || strings.ContainsAny(host, `'\ ,`) || port != "" && (err != nil || n == 0) {
			return nil, fmt.Errorf("the replica %q is not written as HOST or HOST:PORT", r)
		}
		if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
			u, err := url.Parse(dsn)
			if err != nil {
				return nil, unreadable(errors.New("it is no URL"))
			}
			q := u.Query()
			q.Set("host", host)
			if port != "" {
				q.Set("port", port)
			}
			u.RawQuery = q.Encode()
			list = append(list, u.String())
			continue
		}
		s := closed(dsn) + " host='" + host + "'"
		if port != "" {
			s += " port=" + port
		}
		list = append(list, s)
	}
	return list, nil
}

// closed makes sure that what is added to keywords and values does not become a
// part of the last value, which may be empty or end in a backslash.
func closed(dsn string) string {
	open := strings.TrimRight(dsn, `\`)
	if (len(dsn)-len(open))%2 == 1 {
		dsn = dsn[:len(dsn)-1]
	}
	if strings.HasSuffix(strings.TrimRight(dsn, " \t\n\r\v\f"), "=") {
		dsn += "''"
	}
	return dsn
}

func unreadable(err error) error {
	return fmt.Errorf("the connection string of the source cannot be read: %w; %s", err, pgserver.DSNHint)
}

// takeLocal takes the settings of the server out of what is sent when a
// connection starts: a pooler refuses or forgets them. Options that are no
// settings stay.
func takeLocal(params map[string]string) (local [][2]string) {
	if options, ok := params["options"]; ok {
		if list, ok := parseOptions(options); ok {
			local = list
			delete(params, "options")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		switch name {
		case "client_encoding", "application_name", "options":
			continue
		}
		local = append(local, [2]string{name, params[name]})
		delete(params, name)
	}
	return local
}

// parseOptions reads "-c name=value --name=value" as the server would, with
// spaces escaped by a backslash.
func parseOptions(s string) (list [][2]string, ok bool) {
	var words []string
	var word strings.Builder
	in := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
			in = true
		case c == ' ' || c == '\t' || c == '\n':
			if in {
				words = append(words, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "-c" && i+1 < len(words):
			i++
			w = words[i]
		case strings.HasPrefix(w, "--"):
			w = w[2:]
		case strings.HasPrefix(w, "-c") && len(w) > 2:
			w = w[2:]
		default:
			return nil, false
		}
		name, value, found := strings.Cut(w, "=")
		if !found || name == "" {
			return nil, false
		}
		list = append(list, [2]string{strings.ReplaceAll(name, "-", "_"), value})
	}
	return list, true
}

// single takes a configuration of several hosts apart: the connections of a view
// must not lead to different servers. What is tried for one host, with TLS and
// without, stays together.
func single(config *pgconn.Config) (list []*pgconn.Config) {
	fallbacks := config.Fallbacks
	first := config.Copy()
	first.Fallbacks = nil
	list = append(list, first)
	for _, f := range fallbacks {
		last := list[len(list)-1]
		if f.Host == last.Host && f.Port == last.Port {
			last.Fallbacks = append(last.Fallbacks, f)
			continue
		}
		next := config.Copy()
		next.Host, next.Port, next.TLSConfig, next.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
		list = append(list, next)
	}
	return list
}

func (e *postgres) config() *pgconn.Config {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.used
}

func (e *postgres) name() string {
	c := e.config()
	return fmt.Sprintf("RelStorage in PostgreSQL database %q on %s", c.Database, pgserver.Address(c))
}

func (e *postgres) close() error { return nil }

// followTimeout is how long a further connection of a view may take: a pooler
// lets one wait that it has no server for.
const followTimeout = 5 * time.Second

// view implements engine. The first connection exports its snapshot, the others
// import it.
func (e *postgres) view(ctx context.Context, n int) ([]conn, string, error) {
	leader, err := e.lead(ctx)
	if err != nil {
		return nil, "", err
	}
	conns := []conn{leader}
	if n == 1 {
		if err := leader.settle(ctx); err != nil {
			leader.close()
			return nil, "", err
		}
		return conns, "", nil
	}
	snapshot, err := leader.export(ctx)
	if err != nil {
		if !refusedBy(err) {
			leader.close()
			return nil, "", err
		}
		note := fmt.Sprintf("%s cannot share what it sees between connections (%s): it is read with one", e.name(), pgserver.Sentence(message(err)))
		if err := leader.again(ctx); err != nil {
			leader.close()
			return nil, "", err
		}
		return conns, note, nil
	}
	if err := leader.settle(ctx); err != nil {
		leader.close()
		return nil, "", err
	}
	note := ""
	for len(conns) < n {
		c, err := e.follow(ctx, snapshot)
		if ctx.Err() != nil {
			closeAll(conns)
			return nil, "", ctx.Err()
		}
		if err != nil {
			note = fmt.Sprintf("%s is read with %d connections instead of %d, because it gave no more: %s", e.name(), len(conns), n, pgserver.Sentence(message(err)))
			break
		}
		conns = append(conns, c)
	}
	return conns, note, nil
}

func closeAll(conns []conn) {
	for _, c := range conns {
		_ = c.close()
	}
}

// lead begins a transaction on the first server that answers.
func (e *postgres) lead(ctx context.Context) (*postgresConn, error) {
	var problems []error
	for _, config := range e.servers {
		pg, err := pgconn.ConnectConfig(ctx, config)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			problems = append(problems, connectError(config, err))
			continue
		}
		e.mu.Lock()
		e.used = config
		e.mu.Unlock()
		c := &postgresConn{pg: pg, engine: e}
		if err := c.exec(ctx, begin); err != nil {
			c.close()
			return nil, err
		}
		return c, nil
	}
	return nil, errors.Join(problems...)
}

// follow opens a connection that sees what the exported snapshot saw.
func (e *postgres) follow(ctx context.Context, snapshot string) (*postgresConn, error) {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	pg, err := pgconn.ConnectConfig(ctx, e.config())
	if err != nil {
		return nil, connectError(e.config(), err)
	}
	c := &postgresConn{pg: pg, engine: e}
	if err = c.exec(ctx, begin); err == nil {
		err = c.exec(ctx, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(snapshot, "'", "''")+"'")
	}
	if err == nil {
		err = c.settle(ctx)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// postgresConn is a connection that is in a transaction of its view.
type postgresConn struct {
	pg     *pgconn.PgConn
	engine *postgres
}

const begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE"

// settings hold for the transaction, since behind a pooler there is no session.
// Not every release knows all of them. A lock is waited for only while somebody
// changes the schema. Several connections are parallel enough. Without
// row_security, a policy that hides rows from the role is an error.
const settings = `
SELECT pg_catalog.set_config(s.name, v.value, true) FROM pg_catalog.pg_settings s JOIN (VALUES
	('statement_timeout', '0'), ('lock_timeout', '300000'),
	('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'), ('transaction_timeout', '0'),
	('jit', 'off'), ('max_parallel_workers_per_gather', '0'), ('row_security', 'off'),
	('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
) v(name, value) ON v.name = s.name
WHERE s.context = 'user'`

// settle makes the transaction independent of what is set for the role. It comes
// after the snapshot, which must be the first thing in a transaction.
func (c *postgresConn) settle(ctx context.Context) error {
	if err := c.exec(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
		return err
	}
	if err := c.exec(ctx, settings); err != nil {
		return fmt.Errorf("set up a transaction: %w", err)
	}
	standby, err := number(ctx, c, "SELECT pg_catalog.pg_is_in_recovery()")
	if err != nil {
		return err
	}
	c.engine.mu.Lock()
	c.engine.standby = standby != 0
	c.engine.mu.Unlock()
	for _, s := range c.engine.local {
		q := "SELECT pg_catalog.set_config(" + quote(s[0]) + ", " + quote(s[1]) + ", true)"
		if err := c.exec(ctx, q); err != nil {
			return fmt.Errorf("the setting %s of the connection string: %w", s[0], c.engine.plain(err))
		}
	}
	return c.exec(ctx, ownSchema)
}

// ownSchema puts the schema that holds the RelStorage first in the search path. A
// server looks names up anew in each statement, whatever the snapshot: a table of
// the same name that is made meanwhile in an earlier schema, as by a conversion
// into that one, would be read instead.
const ownSchema = `
SELECT pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', pg_catalog.quote_ident(found.nspname), NULLIF(pg_catalog.current_setting('search_path'), '')), true)
FROM (SELECT n.nspname FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY s(name, place)
	JOIN pg_catalog.pg_namespace n ON n.nspname = s.name
	JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'object_state'
	JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'state' AND a.atttypid = 'pg_catalog.bytea'::pg_catalog.regtype
	ORDER BY s.place LIMIT 1) found`

// again begins anew after an error.
func (c *postgresConn) again(ctx context.Context) error {
	if err := c.exec(ctx, "ROLLBACK"); err != nil {
		return err
	}
	if err := c.exec(ctx, begin); err != nil {
		return err
	}
	return c.settle(ctx)
}

func (c *postgresConn) export(ctx context.Context) (snapshot string, err error) {
	err = c.query(ctx, "SELECT pg_catalog.pg_export_snapshot()", func(r row) error {
		snapshot = string(r.bytes(0))
		return nil
	})
	return snapshot, err
}

// quote makes a literal; that of a string with backslashes needs an E.
func quote(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return "E'" + strings.ReplaceAll(s, `\`, `\\`) + "'"
	}
	return "'" + s + "'"
}

func (c *postgresConn) exec(ctx context.Context, q string) error {
	_, err := c.pg.Exec(ctx, q).ReadAll()
	return c.gone(err)
}

// inBinary asks for all columns in binary form.
var inBinary = []int16{1}

// query implements conn. The values point into the buffer of the connection.
func (c *postgresConn) query(ctx context.Context, q string, fn func(row) error) error {
	result := c.pg.ExecParams(ctx, q, nil, nil, nil, inBinary)
	for result.NextRow() {
		if err := fn(row{values: result.Values(), binary: true}); err != nil {
			// The rest is read and forgotten, which keeps the connection.
			if _, closed := result.Close(); closed != nil {
				return c.gone(errors.Join(err, closed))
			}
			return err
		}
	}
	_, err := result.Close()
	return c.gone(err)
}

// goneError is one after which a connection does not see its view any more.
type goneError struct{ err error }

func (e *goneError) Error() string { return e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// gone marks an error that has cost the connection or its transaction.
func (c *postgresConn) gone(err error) error {
	if err == nil || !c.pg.IsClosed() && c.pg.TxStatus() == 'T' {
		return err
	}
	return &goneError{err}
}

func (c *postgresConn) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	pgserver.Close(ctx, c.pg)
	return nil
}

// identity implements engine. What a role may not ask is left out.
func (e *postgres) identity(ctx context.Context, c conn) (string, error) {
	var allowed bool
	err := c.query(ctx, `SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
		FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		WHERE p.proname = 'pg_control_system' AND n.nspname = 'pg_catalog'`, func(r row) error {
		n, err := r.int(0)
		allowed = n != 0
		return err
	})
	if err != nil {
		return "", err
	}
	// Without it the oids of database and table tell databases of one server apart
	// and, by chance, those of several.
	system := "'unknown'"
	if allowed {
		system = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())"
	}
	var id string
	err = c.query(ctx, `SELECT `+system+` || ' ' || d.oid::text || ' ' || n.nspname || CASE WHEN `+system+` = 'unknown' THEN ' ' || t.oid::text ELSE '' END
		FROM pg_catalog.pg_database d, pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
		WHERE d.datname = current_database() AND t.relname = 'object_state' AND pg_catalog.pg_table_is_visible(t.oid)`, func(r row) error {
		id = string(r.bytes(0))
		return nil
	})
	return id, err
}

// behind implements engine. How far the primary is a standby does not know.
func (e *postgres) behind(ctx context.Context, c conn) (warning string, err error) {
	e.mu.Lock()
	standby := e.standby
	e.mu.Unlock()
	if !standby {
		return "", nil
	}
	last := ""
	err = c.query(ctx, "SELECT pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')", func(r row) error {
		if v := r.bytes(0); v != nil {
			last = fmt.Sprintf(" (the last commit that it has got is of %s UTC)", v)
		}
		return nil
	})
	return fmt.Sprintf("%s is a standby: what the primary has committed since is not converted%s; read the primary at the end, when the site is stopped", e.name(), last), err
}

var postgresDialect = dialect{
	transaction: "transaction",
	size:        func(column string) string { return "octet_length(" + column + ")" },
	contains: func(column string, part []byte) string {
		return fmt.Sprintf(`position('\x%x'::bytea in %s) > 0`, part, column)
	},
	largeObject: postgresLargeObject,
	tables: `SELECT c.relname::text, a.attname::text, pg_catalog.format_type(a.atttypid, NULL)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND pg_catalog.pg_table_is_visible(c.oid)
			AND c.relname IN ('transaction', 'object_state', 'current_object', 'blob_chunk', 'pack_object')
		ORDER BY 1, a.attnum`,
}

func (e *postgres) dialect() *dialect { return &postgresDialect }

// connectError is an error of connecting as a sentence.
func connectError(config *pgconn.Config, err error) error {
	reason, hint := pgserver.Explain(config, err)
	if strings.Contains(message(err), "unsupported startup parameter") {
		hint = "it is a PgBouncer: take the parameter out of the connection string, or name it in ignore_startup_parameters"
	}
	if hint != "" {
		reason += "; " + hint
	}
	return &plainError{text: "the source: " + reason, err: err}
}

// plainError shows a sentence and keeps the cause.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

// message is what the server said, or else the error.
func message(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Message
	}
	return err.Error()
}

// refusedBy tells whether the server has answered with an error.
func refusedBy(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && !pgserver.Lost(err)
}

// plain implements engine.
func (e *postgres) plain(err error) error {
	var plain *plainError
	var pg *pgconn.PgError
	switch {
	case err == nil || errors.As(err, &plain):
		return err
	case errors.As(err, &pg):
		return &plainError{text: e.name() + ": " + explainPostgres(pg), err: err}
	case pgserver.Lost(err):
		return &plainError{text: e.name() + ": " + e.cut(pgserver.RootCause(err)), err: err}
	}
	return err
}

// cut is the rest of a sentence about a connection that was cut. A standby that
// cancels what is in the way of its recovery ends idle connections without a word
// that could be read.
func (e *postgres) cut(why string) string {
	e.mu.Lock()
	standby := e.standby
	e.mu.Unlock()
	if standby {
		return fmt.Sprintf("the connection was lost (%s), and with it the state that was read; if the standby did that because of a conflict with recovery, which its log tells, %s", why, standbyHint)
	}
	return fmt.Sprintf("the connection was lost (%s), and with it the state that was read; go on with --incremental", why)
}

const standbyHint = "raise max_standby_streaming_delay on it (-1 waits as long as it takes), set hot_standby_feedback = on, or read from the primary, and go on with --incremental"

// explainPostgres is the rest of a sentence about an error of the server.
func explainPostgres(pg *pgconn.PgError) string {
	said := pgserver.Sentence(pg.Message)
	switch {
	case strings.Contains(said, "statement pooling") || strings.Contains(said, "transaction blocks not allowed"):
		return "it is reached through a PgBouncer in statement mode, which has no transactions; connect to PostgreSQL itself, or use transaction or session mode"
	case pg.Code == "42501" && strings.Contains(said, "row-level security"):
		return fmt.Sprintf("the role does not see all rows: %s; read it as a role with BYPASSRLS, or as the owner of the tables", said)
	case pg.Code == "42501":
		return fmt.Sprintf("the role may not read it: %s; grant SELECT on all tables of RelStorage to it", said)
	case pg.Code == "40001" || pg.Code == "57014" && strings.Contains(said, "recovery"),
		strings.Contains(said, "conflict with recovery"):
		return fmt.Sprintf("the standby has cancelled what was read (%s); %s", said, standbyHint)
	case pg.Code == "72000" || strings.Contains(said, "snapshot too old"):
		return fmt.Sprintf("it has removed what was read (%s); set old_snapshot_threshold = -1 on the server", said)
	case pg.Code == "55P03":
		return fmt.Sprintf("somebody has locked a table for minutes (%s); let the change of the schema end, and start again", said)
	case pg.Code == "53100", pg.Code == "53200":
		return fmt.Sprintf("the server is short of room: %s", said)
	case strings.HasPrefix(pg.Code, "57P"):
		return fmt.Sprintf("the server has ended the connection (%s), and with it the state that was read; go on with --incremental", said)
	}
	return fmt.Sprintf("%s (SQLSTATE %s)", said, pg.Code)
}

// lost implements engine. An error of a statement aborts its transaction, and
// with it what it saw.
func (e *postgres) lost(err error) bool {
	var gone *goneError
	return errors.As(err, &gone)
}
