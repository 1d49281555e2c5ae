package pgjsonb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
)

// surveyor asks a server for a survey, one question after the other. Each is a
// transaction that changes nothing, so that one that fails does not end those
// behind it, and nothing is set for a session: behind a pooler that is somebody
// else's, too.
type surveyor struct {
	d       *Destination
	conn    *pgx.Conn
	workers int
	out     *dest.Survey

	layout *layout // nil: there is no schema
	server *server // nil: it did not say
	state  *dest.State
}

// surveyLimits bound a question: a server in production is asked, and tables that
// somebody has locked are not waited for.
const surveyLimits = "SET LOCAL statement_timeout = '20s'; SET LOCAL lock_timeout = '2s'; SET LOCAL jit = off"

// Survey looks at what is there, as State does, and goes on where that refuses.
func (d *Destination) Survey(ctx context.Context, workers int) *dest.Survey {
	s := &surveyor{d: d, workers: workers, out: &dest.Survey{Name: d.Name()}}
	conn, err := d.connect.dial(ctx, "zodb-convert inspect")
	if err != nil {
		s.problem(d.plain(err))
		return s.out
	}
	defer closeQuietly(conn)
	s.conn = conn
	s.lookAround(ctx)
	return s.out
}

// lookAround asks what State asks, in its order: the first refusal is the one
// that State gives.
func (s *surveyor) lookAround(ctx context.Context) {
	err := s.ask(ctx, func() (err error) {
		s.layout, err = readLayout(ctx, s.conn)
		return err
	})
	s.problem(err)
	schema := "pg_catalog" // where nobody may create anything
	if s.layout != nil {
		schema = s.layout.schema
	}
	err = s.ask(ctx, func() (err error) {
		s.server, err = readServer(ctx, s.conn, schema)
		return err
	})
	s.problem(err)
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
	err = s.ask(ctx, func() (err error) {
		s.state, err = readState(ctx, s.conn, s.layout)
		return err
	})
	s.problem(err)
	if s.state != nil {
		s.out.Condition, s.out.Objects = s.state.Condition, s.state.Objects
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
	begin := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; " + patience + "; " + surveyLimits
	if _, err := s.conn.PgConn().Exec(ctx, begin).ReadAll(); err != nil {
		return fmt.Errorf("ask %s: %w", s.d.Name(), err)
	}
	err := fn()
	if s.conn.IsClosed() {
		return err
	}
	_, e := s.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
	return errors.Join(err, e)
}

// problem keeps the first reason why no conversion could begin.
func (s *surveyor) problem(err error) {
	if err != nil && s.out.Problem == "" {
		s.out.Problem = sentence(err.Error())
	}
}
