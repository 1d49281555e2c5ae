package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// oldestServer is the first release that is supported.
const oldestServer = 150000

// server is what a run needs to know of the server and its rights there.
type server struct {
	version     int
	versionText string
	encoding    string
	standby     bool
	readOnly    bool
	mayCreate   bool // in the schema
	mayTemp     bool
	plpgsql     bool
	role        string
	login       string // as whom it has connected: what is set for a role is that one's
	limits      []limit
	lz4         bool
}

// limit bounds how many connections there may be.
type limit struct {
	name      string
	max, used int
}

func (l limit) free() int { return l.max - l.used }

const databaseLimit, roleLimit = "the limit of the database", "the limit of the role"

// tightest is the limit that leaves the fewest connections.
func (s *server) tightest() limit {
	return slices.MinFunc(s.limits, func(a, b limit) int { return a.free() - b.free() })
}

// readLimits asks for the limits of the server, the database and the role, of
// which superusers have the first only. Which sessions are clients is shown for
// the own role's only; what is not shown counts as one.
func readLimits(ctx context.Context, q watermark.Querier) ([]limit, error) {
	rows, err := q.Query(ctx, `WITH clients AS (SELECT datname, usename FROM pg_catalog.pg_stat_activity
			WHERE datid IS NOT NULL AND pid <> pg_backend_pid() AND coalesce(backend_type, 'client backend') = 'client backend'),
		me AS (SELECT rolname, rolsuper, rolconnlimit, EXISTS (SELECT FROM pg_catalog.pg_roles u
				WHERE u.rolname = 'pg_use_reserved_connections' AND pg_has_role(r.oid, u.oid, 'USAGE')) AS reserved
			FROM pg_catalog.pg_roles r WHERE rolname = session_user)
		SELECT 'max_connections', (SELECT sum(CASE WHEN name = 'max_connections' THEN setting::int
				WHEN rolsuper OR reserved AND name = 'reserved_connections' THEN 0 ELSE -setting::int END)::int
			FROM pg_catalog.pg_settings WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')),
			(SELECT count(*)::int FROM clients) FROM me
		UNION ALL SELECT '`+databaseLimit+`', datconnlimit, (SELECT count(*)::int FROM clients WHERE datname = current_database())
			FROM pg_catalog.pg_database, me WHERE datname = current_database() AND datconnlimit >= 0 AND NOT rolsuper
		UNION ALL SELECT '`+roleLimit+`', rolconnlimit, (SELECT count(*)::int FROM clients WHERE usename = session_user)
			FROM me WHERE rolconnlimit >= 0 AND NOT rolsuper`)
	if err != nil {
		return nil, err
	}
	limits, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l limit, err error) {
		return l, row.Scan(&l.name, &l.max, &l.used)
	})
	if err == nil && len(limits) == 0 {
		err = errors.New("the role is not there any more")
	}
	return limits, err
}

// needs is how many connections a run with so many workers takes.
func (d *Destination) needs(workers int) int {
	if d.config.S3 != nil {
		workers++ // the connection that notes uploads
	}
	return workers + 1
}

func readServer(ctx context.Context, q watermark.Querier, schema string) (*server, error) {
	s := new(server)
	err := q.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'),
		current_setting('server_encoding'), pg_is_in_recovery(),
		(SELECT reset_val = 'on' FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'),
		has_schema_privilege($1::text, 'CREATE') AND has_schema_privilege($1::text, 'USAGE'),
		has_database_privilege(current_database(), 'TEMPORARY'),
		coalesce((SELECT has_language_privilege(oid, 'USAGE') FROM pg_catalog.pg_language WHERE lanname = 'plpgsql'), false),
		current_user::text, session_user::text,
		coalesce((SELECT 'lz4' = ANY(enumvals) FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression'), false)`,
		schema).Scan(&s.version, &s.versionText, &s.encoding, &s.standby, &s.readOnly, &s.mayCreate, &s.mayTemp, &s.plpgsql, &s.role, &s.login, &s.lz4)
	if err != nil {
		return nil, fmt.Errorf("ask the server what it is: %w", err)
	}
	if s.limits, err = readLimits(ctx, q); err != nil {
		return nil, fmt.Errorf("ask the server for free connections: %w", err)
	}
	return s, nil
}

// comparing is how many connections compare the destination with a table and
// write to it meanwhile, beside the one that holds the run.
const comparing = 2

// check refuses a server that a run could not finish on.
func (s *server) check(d *Destination, l *layout, workers int) error {
	refuse := func(reason, hint string) error { return &dest.RefusedError{Reason: reason, Hint: hint} }
	free, needed := s.tightest().free(), d.needs(workers)
	switch {
	case s.version < oldestServer:
		return refuse(fmt.Sprintf("PostgreSQL %s at %s is too old", s.versionText, d.connect.address()), "use PostgreSQL 15 or newer")
	case s.encoding != "UTF8":
		return refuse(fmt.Sprintf("%s has encoding %s, which cannot hold all text", d.Name(), s.encoding),
			"create the database with ENCODING 'UTF8' TEMPLATE template0")
	case s.standby:
		return refuse(fmt.Sprintf("PostgreSQL at %s is a standby, which cannot be written to", d.connect.address()), "connect to the primary server")
	case s.readOnly:
		return refuse(fmt.Sprintf("%s is read-only", d.Name()), "switch default_transaction_read_only off")
	case !s.mayCreate:
		return refuse(fmt.Sprintf("user %q may not create tables in schema %q of %s", s.role, l.schema, d.Name()),
			fmt.Sprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", quote(l.schema), quote(s.role)))
	case !s.mayTemp:
		return refuse(fmt.Sprintf("user %q may not create temporary tables in %s", s.role, d.Name()),
			fmt.Sprintf("GRANT TEMPORARY ON DATABASE %s TO %s", quote(d.connect.config.Database), quote(s.role)))
	case !s.plpgsql:
		return refuse(fmt.Sprintf("user %q may not use the language plpgsql in %s, which zodb-pgjsonb needs for a trigger", s.role, d.Name()),
			"CREATE EXTENSION plpgsql, or GRANT USAGE ON LANGUAGE plpgsql")
	case free < needed:
		what := "this run"
		if d.config.S3 != nil {
			what += " and the uploads to S3"
		}
		return refuse(fmt.Sprintf("PostgreSQL at %s has %d free connections, %d are needed for %s", d.connect.address(), max(free, 0), needed, what),
			fmt.Sprintf("use fewer workers (-w), of which each takes one (to compare a RelStorage with the destination takes %d), or raise max_connections or the connection limit of database or role", comparing+1))
	}
	return nil
}

// State looks at what is there and writes nothing.
func (d *Destination) State(ctx context.Context, workers int) (*dest.State, error) {
	conn, err := d.connect.open(ctx, "zodb-convert")
	if err != nil {
		return nil, d.plain(err)
	}
	defer closeQuietly(conn)
	l, err := readLayout(ctx, conn)
	if err != nil {
		return nil, err
	}
	srv, err := readServer(ctx, conn, l.schema)
	if err != nil {
		return nil, err
	}
	if err := srv.check(d, l, workers); err != nil {
		return nil, err
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	state, err := readState(ctx, conn, l)
	if err != nil {
		return nil, err
	}
	if state.Run != nil {
		if state.Live, err = watermark.Working(ctx, conn, state.Run, d.host); err != nil {
			return nil, err
		}
	}
	state.Notes = d.notes(srv, l)
	return state, nil
}

// plain gives a refused connection as the error that callers know.
func (d *Destination) plain(err error) error {
	var refused *dest.RefusedError
	if errors.As(err, &refused) {
		return refused
	}
	return err
}

func (d *Destination) notes(s *server, l *layout) []string {
	var notes []string
	if !s.lz4 {
		notes = append(notes, fmt.Sprintf("PostgreSQL at %s was built without lz4: states are compressed with pglz, which is slower to read", d.connect.address()))
	}
	if l.has(objectHistory) && !d.config.HistoryPreserving {
		notes = append(notes, "the destination has the tables of a history-preserving storage, but only the newest revision of each object is written: the site must run with history-preserving off")
	}
	return notes
}

func readState(ctx context.Context, q watermark.Querier, l *layout) (*dest.State, error) {
	record, err := l.run().Read(ctx, q)
	if err != nil {
		return nil, err
	}
	state := &dest.State{Condition: dest.Absent}
	if record != nil {
		if err := l.readContents(ctx, q, state); err != nil {
			return nil, err
		}
		state.Condition, state.Run = dest.Interrupted, &record.Run
		c, err := l.run().CountBlobs(ctx, q)
		state.Owed, state.OwedBytes, state.Missing = c.Owed, c.OwedBytes, c.Missing
		return state, err
	}
	if !l.has(transactionLog) {
		return state, nil
	}
	return state, l.readContents(ctx, q, state)
}

// countExactly is how many rows are counted; beyond, the planner's estimate is
// good enough for a message.
const countExactly = 100_000

func (l *layout) readContents(ctx context.Context, q watermark.Querier, state *dest.State) error {
	rows := func(table string) (n int64, err error) {
		if !l.has(table) {
			return 0, nil
		}
		err = q.QueryRow(ctx, fmt.Sprintf(`SELECT CASE WHEN n <= %d THEN n ELSE greatest(n, (SELECT reltuples::int8 FROM pg_catalog.pg_class WHERE oid = '%s'::regclass)) END
			FROM (SELECT count(*) AS n FROM (SELECT FROM %s LIMIT %d) AS found) AS counted`,
			countExactly, l.name(table), l.name(table), countExactly+1)).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("count the rows of %s: %w", table, err)
		}
		return n, nil
	}
	var blobs, old int64
	var err error
	for _, t := range []struct {
		name string
		n    *int64
	}{{transactionLog, &state.Transactions}, {objectState, &state.Objects}, {blobState, &blobs}, {objectHistory, &old}} {
		if *t.n, err = rows(t.name); err != nil {
			return err
		}
	}
	state.Condition = dest.Empty
	if state.Transactions+state.Objects+blobs+old == 0 {
		return nil
	}
	state.Condition = dest.Filled
	var last *int64
	var root bool
	err = q.QueryRow(ctx, `SELECT (SELECT max(tid) FROM `+l.name(transactionLog)+`), EXISTS (SELECT FROM `+l.name(objectState)+` WHERE zoid = 0)`).Scan(&last, &root)
	if err != nil {
		return fmt.Errorf("find the last transaction: %w", err)
	}
	if last != nil {
		state.LastTID = zodb.TID(*last)
	}
	state.RootOnly = root && state.Objects == 1 && blobs == 0 && old == 0
	return nil
}

// CheckSource refuses what cannot be written, before the load.
func (d *Destination) CheckSource(info *source.Info) error {
	refuse := func(hint, format string, args ...any) error {
		return &dest.RefusedError{Reason: fmt.Sprintf(format, args...), Hint: hint}
	}
	name := info.Identity.Name
	switch {
	case info.Records > 0 && info.MaxOID >= zodb.Limit:
		return refuse("", "%s has an object with oid %v, which a bigint column cannot hold with room for new ones", name, info.MaxOID)
	case info.MaxTID >= zodb.Limit:
		return refuse("", "%s has a transaction with tid %v, which a bigint column cannot hold with room for new ones", name, info.MaxTID)
	}
	for _, f := range info.Falling {
		if f.Equal {
			return refuse("", "%s has two transactions with tid %v, at %d and %d; a transaction's tid is its key in the destination", name, f.TID, f.PrevPos, f.Pos)
		}
		if d.config.HistoryPreserving {
			return refuse("convert it without history, or pack it first",
				"the tids of %s fall: transaction %v at %d stands behind %v at %d, so its history has no order", name, f.TID, f.Pos, f.Prev, f.PrevPos)
		}
	}
	return d.checkBlobs(info)
}

// blockers names the sessions that hold locks on the tables.
func (l *layout) blockers(ctx context.Context, q watermark.Querier, tables []string) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = l.name(t)
	}
	rows, err := q.Query(ctx, `SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), coalesce(a.usename, '?'),
			coalesce(a.state, '?'), coalesce(to_char(coalesce(a.query_start, a.xact_start, a.backend_start), 'YYYY-MM-DD HH24:MI:SS'), '?')
		FROM pg_catalog.pg_locks k JOIN pg_catalog.pg_stat_activity a ON a.pid = k.pid
		WHERE k.granted AND k.locktype = 'relation' AND k.pid <> pg_backend_pid() AND k.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		AND k.relation IN (SELECT to_regclass(n)::oid FROM unnest($1::text[]) n) ORDER BY 1`, names)
	if err != nil {
		return ""
	}
	var text string
	var pid int32
	var app, user, state, since string
	_, err = pgx.ForEachRow(rows, []any{&pid, &app, &user, &state, &since}, func() error {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("process %d (application %q, user %s, %s, its last query started %s)", pid, app, user, state, since)
		return nil
	})
	if err != nil {
		return ""
	}
	return text
}
