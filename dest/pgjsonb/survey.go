package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// surveyor asks a server for a survey, one question after the other. Each is a
// transaction that changes nothing, so that one that fails does not end those
// behind it. Nothing is set for a session: behind a pooler that is somebody
// else's, too.
type surveyor struct {
	d       *Destination
	conn    *pgx.Conn
	workers int
	// unopened is why there is no store of blobs although one is named.
	unopened error
	out      *dest.Survey

	pooled bool    // the connection is not one to the server itself
	layout *layout // nil: there is no schema
	server *server // nil: it did not say
	state  *dest.State
	// options are storage parameters of tables, "TABLE NAME", by what they are.
	options map[string]string
}

// surveyLimits bound a question: a server in production is asked, and tables that
// somebody has locked are not waited for.
const surveyLimits = "SET LOCAL statement_timeout = '20s'; SET LOCAL lock_timeout = '2s'; SET LOCAL jit = off"

// Survey looks at what is there, as State does, and goes on where that refuses.
func (d *Destination) Survey(ctx context.Context, workers int) *dest.Survey {
	return d.SurveyWithoutStore(ctx, workers, nil)
}

// SurveyWithoutStore is Survey where the store of blobs could not be opened, which
// is a problem then.
func (d *Destination) SurveyWithoutStore(ctx context.Context, workers int, unopened error) *dest.Survey {
	s := &surveyor{d: d, workers: workers, unopened: unopened, out: &dest.Survey{
		Name: d.Name(), Rights: []dest.Right{}, Settings: []dest.Setting{}, BlobTiers: []dest.BlobTier{},
		Faults: []dest.Fault{}, Advice: []string{}, Notes: []string{},
	}}
	conn, err := d.connect.dial(ctx, "zodb-convert inspect")
	if err != nil {
		s.problem(d.plain(err))
	} else {
		defer closeQuietly(conn)
		s.conn = conn
		s.lookAround(ctx)
		s.lookCloser(ctx)
	}
	s.lookAtBucket(ctx)
	return s.out
}

// lookAround asks what State asks, in its order: the first refusal is the one
// that State gives.
func (s *surveyor) lookAround(ctx context.Context) {
	s.need(ctx, func() (err error) {
		s.layout, err = readLayout(ctx, s.conn)
		return err
	})
	schema := "pg_catalog" // where nobody may create anything
	if s.layout != nil {
		schema = s.layout.schema
	}
	s.need(ctx, func() (err error) {
		s.server, err = readServer(ctx, s.conn, schema)
		return err
	})
	if s.server != nil {
		s.describe()
	}
	if s.layout == nil {
		return
	}
	if s.server != nil {
		s.problem(s.server.check(s.d, s.layout, s.workers))
	}
	s.problem(s.layout.check())
	s.readState(ctx)
	if s.state != nil {
		s.out.Condition, s.out.Objects = s.state.Condition, s.state.Objects
	}
}

// need asks for something without which there is no conversion.
func (s *surveyor) need(ctx context.Context, fn func() error) {
	if !s.conn.IsClosed() {
		s.problem(s.ask(ctx, fn))
	}
}

// readState finds out what is there. Where there is a problem already, such as
// that the role does not own the tables, this follows from it.
func (s *surveyor) readState(ctx context.Context) {
	if s.conn.IsClosed() {
		return
	}
	var state *dest.State
	find := func() (err error) {
		if state, err = readState(ctx, s.conn, s.layout); err == nil && state.Run != nil {
			state.Live, err = watermark.Working(ctx, s.conn, state.Run, s.d.host)
		}
		return err
	}
	err := s.ask(ctx, find)
	switch {
	case err == nil:
		s.state = state
	case s.out.Problem != "", code(err) == "55P03", code(err) == "57014" && ctx.Err() == nil:
		s.unanswered(ctx, "what the tables hold", err)
	default:
		s.problem(err)
	}
}

// lookCloser asks what matters to administrators besides.
func (s *surveyor) lookCloser(ctx context.Context) {
	if s.server == nil {
		return // nothing more will come
	}
	s.question(ctx, "whether there is a pooler", s.findPooler)
	s.question(ctx, "the rights of the role", s.readRights)
	if s.layout != nil {
		s.question(ctx, "the size of the tables", s.readSize)
		s.question(ctx, "the storage parameters of the tables", s.readOptions)
	}
	c := &conditions{surveyor: s}
	s.question(ctx, "where the write-ahead log goes", func(ctx context.Context) (err error) {
		c.shipping, err = readShipping(ctx, s.conn)
		return err
	})
	s.question(ctx, "its settings", func(ctx context.Context) (err error) {
		c.settings, err = readSettings(ctx, s.conn)
		return err
	})
	s.out.Settings = append(append(s.out.Settings, c.advise()...), s.vacuumOptions()...)
	s.out.Advice = append(s.out.Advice, s.general(c)...)
	if s.layout != nil && s.state != nil {
		s.lookInside(ctx)
	}
}

// lookInside tells what is there of a conversion.
func (s *surveyor) lookInside(ctx context.Context) {
	for _, note := range s.d.notes(s.server, s.layout) {
		s.recommend("%s.", strings.ToUpper(note[:1])+note[1:])
	}
	switch s.state.Condition {
	case dest.Interrupted:
		s.interrupted()
	case dest.Filled:
		s.readBlobs(ctx)
		s.readFaults(ctx)
		s.readFit(ctx)
	}
	if s.state.Objects > countExactly {
		s.note("The number of objects is PostgreSQL's estimate.")
	}
}

// describe tells what the server has said of itself.
func (s *surveyor) describe() {
	out, srv := s.out, s.server
	out.Server, out.Role, out.Encoding, out.LZ4 = srv.versionText, srv.role, srv.encoding, srv.lz4
	l := srv.tightest()
	out.Connections = dest.Connections{Limit: l.name, Max: l.max, Used: l.used, Free: max(l.free(), 0), Needed: s.d.needs(s.workers)}
}

// ask runs a question in a transaction of its own.
func (s *surveyor) ask(ctx context.Context, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; " + patience + "; " + surveyLimits
	if _, err := s.conn.PgConn().Exec(ctx, begin).ReadAll(); err != nil {
		return fmt.Errorf("ask %s: %w", s.d.Name(), err)
	}
	err := fn()
	if !s.conn.IsClosed() {
		_, e := s.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
		err = errors.Join(err, e)
	}
	return err
}

// question asks for something without which the rest is as true. what is the rest
// of the sentence "the server did not tell ...".
func (s *surveyor) question(ctx context.Context, what string, fn func(context.Context) error) (answered bool) {
	if s.conn.IsClosed() {
		return false // that it is away has been told
	}
	err := s.ask(ctx, func() error { return fn(ctx) })
	if err != nil {
		s.unanswered(ctx, what, err)
	}
	return err == nil
}

// unanswered tells why a question has no answer.
func (s *surveyor) unanswered(ctx context.Context, what string, err error) {
	switch {
	case ctx.Err() != nil:
		s.note("%s was not asked to the end: %s.", s.d.Name(), ctx.Err())
		closeQuietly(s.conn)
	case s.conn.IsClosed() || lost(err):
		s.note("The connection was lost when %s was asked for, and what would have come behind it is not here: %s.", what, serverMessage(err))
		closeQuietly(s.conn)
	case denied(err) && s.server != nil && s.layout != nil:
		schema, role := quote(s.layout.schema), quote(s.server.role)
		s.note("The role %q may not see %s: %s. To allow it: GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %s; GRANT SELECT ON SEQUENCE %s TO %s.",
			s.server.role, what, serverMessage(err), schema, role, s.layout.name(zoidSeq), role)
	case code(err) == "57014":
		s.note("The server did not tell %s within 20 seconds.", what)
	case code(err) == "55P03" && s.layout != nil:
		who := s.layout.blockers(ctx, s.conn, append(slices.Clone(core), history...))
		if who == "" {
			who = "another session"
		}
		s.note("The server did not tell %s: the tables are locked by %s. A conversion would wait for them.", what, who)
	default:
		s.note("The server did not tell %s: %s.", what, serverMessage(err))
	}
}

// problem keeps the first reason why no conversion could begin, and tells of
// others.
func (s *surveyor) problem(err error) {
	if err == nil {
		return
	}
	text := sentence(err.Error())
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		text = fmt.Sprintf("%s was not asked to the end: %s", s.d.Name(), text)
	}
	switch {
	case s.out.Problem == "":
		s.out.Problem = text
	case s.out.Problem != text:
		s.recommend("There is another problem: %s.", text)
	}
}

func (s *surveyor) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(s.out.Notes, text) {
		s.out.Notes = append(s.out.Notes, text)
	}
}

func (s *surveyor) recommend(format string, args ...any) {
	s.out.Advice = append(s.out.Advice, fmt.Sprintf(format, args...))
}

// findPooler compares the process that has said hello with the one that answers.
func (s *surveyor) findPooler(ctx context.Context) error {
	var pid uint32
	if err := s.conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	if s.pooled = pid != s.conn.PgConn().PID(); s.pooled {
		s.recommend("%s is reached through a pooler: name the server itself in the dsn for the conversion, because a pooler has its own limits of connections and of time, which are not seen here.", s.d.Name())
	}
	return nil
}

// readRights lists what a conversion needs to be allowed to do.
func (s *surveyor) readRights(ctx context.Context) error {
	srv, role, database := s.server, quote(s.server.role), quote(s.d.connect.config.Database)
	add := func(name string, needed, granted bool, hint string) {
		if granted {
			hint = ""
		}
		s.out.Rights = append(s.out.Rights, dest.Right{Name: name, Granted: granted, Needed: needed, Hint: hint})
	}
	if s.layout != nil {
		schema := quote(s.layout.schema)
		add(fmt.Sprintf("create tables, a function and a trigger in schema %q", s.layout.schema), true, srv.mayCreate,
			fmt.Sprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", schema, role))
	}
	add("create temporary tables", true, srv.mayTemp, fmt.Sprintf("GRANT TEMPORARY ON DATABASE %s TO %s", database, role))
	add("use the language plpgsql, for the trigger", true, srv.plpgsql, fmt.Sprintf("CREATE EXTENSION plpgsql, or GRANT USAGE ON LANGUAGE plpgsql TO %s", role))
	if s.layout != nil {
		s.tableRights(add, role)
	}
	var lock, see bool
	err := s.conn.QueryRow(ctx, `SELECT has_function_privilege('pg_catalog.pg_advisory_xact_lock(bigint)', 'EXECUTE'),
		(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
			OR coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = 'pg_read_all_stats'), false)`).Scan(&lock, &see)
	if err != nil {
		return err
	}
	add("take the lock under which sites commit (pg_advisory_xact_lock)", true, lock,
		"GRANT EXECUTE ON FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) TO "+role)
	add("see what sessions of other roles do (pg_stat_activity)", false, see, "GRANT pg_read_all_stats TO "+role+"; it helps to name who holds a lock")
	return nil
}

// tableRights are those on the tables that are there.
func (s *surveyor) tableRights(add func(name string, needed, granted bool, hint string), role string) {
	for _, name := range slices.Sorted(maps.Keys(s.layout.tables)) {
		t, full := s.layout.tables[name], s.layout.name(name)
		add("alter the table "+name+", as its owner", true, t.owned, fmt.Sprintf("ALTER TABLE %s OWNER TO %s, or GRANT the role of its owner TO %s", full, role, role))
		if t.rowLevel {
			add("see all rows of the table "+name, true, false, fmt.Sprintf("ALTER TABLE %s DISABLE ROW LEVEL SECURITY for the time of the load", full))
		}
	}
}

// readSize sums tables and indexes, parts that are stored apart included.
func (s *surveyor) readSize(ctx context.Context) error {
	return s.conn.QueryRow(ctx, `SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[]) AND c.relkind = 'r'`,
		s.layout.schema, slices.Collect(maps.Keys(s.layout.tables))).Scan(&s.out.Bytes)
}

// readOptions reads what is set for tables alone.
func (s *surveyor) readOptions(ctx context.Context) error {
	rows, err := s.conn.Query(ctx, `SELECT c.relname || ' ' || o.option_name, o.option_value
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid,
			LATERAL (SELECT * FROM pg_options_to_table(c.reloptions)
				UNION ALL SELECT 'toast.' || option_name, option_value FROM pg_options_to_table(t.reloptions)) o
		WHERE n.nspname = $1::text AND c.relname = ANY($2::text[])`, s.layout.schema, slices.Collect(maps.Keys(s.layout.tables)))
	if err != nil {
		return err
	}
	s.options = map[string]string{}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		s.options[name] = value
		return nil
	})
	return err
}

// stored tells whether object_state has a storage parameter.
func (s *surveyor) stored(parameter string) bool {
	_, there := s.options[objectState+" "+parameter]
	return there
}

// vacuumOptions are the storage parameters that concern autovacuum.
func (s *surveyor) vacuumOptions() (out []dest.Setting) {
	for _, key := range slices.Sorted(maps.Keys(s.options)) {
		table, option, _ := strings.Cut(key, " ")
		if !strings.Contains(option, "autovacuum") {
			continue
		}
		shown := dest.Setting{Name: table + "." + option, Value: s.options[key]}
		if strings.HasSuffix(option, "autovacuum_enabled") && isOff(shown.Value) {
			shown.After = fmt.Sprintf("on (ALTER TABLE %s RESET (%s)) before the site starts: without it the table grows with each change", s.layout.name(table), option)
		}
		out = append(out, shown)
	}
	return out
}

// isOff reads a boolean as PostgreSQL does.
func isOff(value string) bool {
	v := strings.ToLower(value)
	return v == "0" || v == "of" || v == "off" || v != "" && (strings.HasPrefix("false", v) || strings.HasPrefix("no", v))
}

// interrupted tells how to go on.
func (s *surveyor) interrupted() {
	if s.state.Live {
		s.recommend("A conversion is at work on %s: wait until it has ended.", s.d.Name())
		return
	}
	s.recommend("%s holds an unfinished conversion: go on with it with --incremental, or undo it with --abort.", s.d.Name())
	if s.state.Owed > 0 {
		s.recommend("It still has to upload %s to S3, which --incremental does.", count(s.state.Owed, "blob"))
	}
	if s.state.Missing > 0 {
		s.recommend("It did not find %s: put the files where they belong before it goes on, which looks for them once more.", count(s.state.Missing, "blob"))
	}
}

// readFaults looks at the schema as a site needs it, with the sequence compared
// with what is there only.
func (s *surveyor) readFaults(ctx context.Context) {
	c := &content{dest: s.d, layout: s.layout, conn: s.conn}
	for _, look := range c.looks(zodb.OID(0)) {
		faults := s.out.Faults
		if s.question(ctx, look.at, func(ctx context.Context) error { return look.find(ctx, &faults) }) {
			s.out.Faults = faults
		}
	}
}

// readFit tells what --incremental would not take.
func (s *surveyor) readFit(ctx context.Context) {
	if s.state.RootOnly {
		s.recommend("%s holds a root object and nothing else, as a site makes one when it is started on a new database: stop the site, and convert with --clear.", s.d.Name())
		return
	}
	s.recommend("%s holds data already: --incremental adds what is newer in its source, --clear empties it first.", s.d.Name())
	s.fits(ctx, "its older revisions", func(ctx context.Context) error {
		return s.d.checkMode(ctx, s.conn, s.layout, s.d.config.HistoryPreserving)
	})
	if s.unopened != nil {
		return // no place is known, which does not mean that none is named
	}
	s.fits(ctx, "its blobs in S3", func(ctx context.Context) error { return s.d.checkPlace(ctx, s.conn, s.layout) })
}

// fits tells of a refusal.
func (s *surveyor) fits(ctx context.Context, what string, check func(context.Context) error) {
	s.question(ctx, what, func(ctx context.Context) error {
		err := check(ctx)
		var refused *dest.RefusedError
		if errors.As(err, &refused) {
			s.recommend("--incremental would be refused: %s.", sentence(refused.Error()))
			return nil
		}
		return err
	})
}
