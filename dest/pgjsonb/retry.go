package pgjsonb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// createRetried makes the stage of records that are retried: there tells that the
// revision is in the database already, gone that its transaction is not; newer is
// the tid of what supersedes it in the database, listed of what does in the list. It
// goes with the session: what the records refer to is looked for behind COMMIT, too.
// What is to be told of a record is there as well, because a list may be longer than
// the memory that --memory allows.
const createRetried = `CREATE TEMPORARY TABLE zodb_convert_stage (seq bigint, zoid bigint, tid bigint, class_mod text,
	class_name text, state jsonb, state_size integer, refs bigint[], pos bigint, class bytea, reason bytea, there boolean, gone boolean, newer bigint, listed bigint)`

const retriedColumns = "(seq, zoid, tid, class_mod, class_name, state, state_size, refs, pos, class, reason)"

// retryWriter writes records that were rejected before, in one transaction.
type retryWriter struct {
	groupWriter
	connected bool
	met       map[int32]bool // sessions that the result has
	sent      bool           // COMMIT is

	given   int64
	record  *dest.Reject          // that is being staged
	special map[int64]specialForm // by seq
	show    int
	maxOID  int64
	result  dest.RetryResult
}

// specialForm is what is to be told of a record that is written.
type specialForm struct {
	forms    jsonb.Counts
	newCodec bool
}

// Retry writes what can be stored now of records that were rejected.
func (d *Destination) Retry(ctx context.Context, plan *dest.RetryPlan) (*dest.RetryResult, error) {
	conn, err := d.connect.open(ctx, "zodb-convert retry")
	if err != nil {
		return nil, d.plain(err)
	}
	defer closeQuietly(conn)
	s := &session{dest: d, control: conn, plan: d.complete(&dest.Plan{
		Options: dest.Options{HistoryPreserving: d.config.HistoryPreserving, PreserveSharing: d.config.PreserveSharing},
	})}
	w := &retryWriter{
		groupWriter: groupWriter{s: s, role: "retry", conn: conn, rows: newRecordRows(d, givenRecords{})},
		connected:   plan.Connected, met: map[int32]bool{}, show: plan.Show, special: map[int64]specialForm{},
	}
	if err := w.admit(ctx); err != nil {
		return nil, err
	}
	if err := w.findBlobs(ctx, plan.Blobs); err != nil {
		return nil, w.failed(ctx, err)
	}
	if err := w.write(ctx, plan); err != nil {
		return nil, w.failed(ctx, err)
	}
	return &w.result, nil
}

// failed gives an error its sentence.
func (w *retryWriter) failed(ctx context.Context, err error) error {
	var refused *dest.RefusedError
	var other *otherError
	switch {
	case ctx.Err() != nil && w.sent:
		return &dest.UncertainError{Err: ctx.Err()}
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &other):
		return other.err
	case errors.As(err, &refused):
		return refused
	case code(err) == "42501":
		return &dest.RefusedError{Reason: fmt.Sprintf("the role lacks a right in %s: %s", w.s.dest.Name(), serverMessage(err)), Hint: "let the owner of the database retry the records"}
	case strings.HasPrefix(code(err), "53"):
		return fmt.Errorf("PostgreSQL has run out of a resource: %s; nothing was changed: make room and try again", serverMessage(err))
	case (lost(err) || w.conn.IsClosed()) && w.sent:
		return &dest.UncertainError{Err: fmt.Errorf("the connection to PostgreSQL was lost (%s)", sentence(err.Error()))}
	case lost(err) || w.conn.IsClosed():
		return fmt.Errorf("the connection to PostgreSQL was lost (%s); nothing was changed: the same command goes on", sentence(err.Error()))
	}
	return fmt.Errorf("write rejected records into %s: %w; nothing was changed", w.s.dest.Name(), err)
}

// admit refuses a database that is not a finished destination.
func (w *retryWriter) admit(ctx context.Context) error {
	s, name := w.s, w.s.dest.Name()
	l, err := readLayout(ctx, w.conn)
	if err != nil {
		return err
	}
	srv, err := readServer(ctx, w.conn, l.schema)
	if err != nil {
		return err
	}
	if err := srv.check(s.dest, l, -1); err != nil { // the only connection is open
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	s.layout, s.tables = l, l.run()
	if err := w.finished(ctx); err != nil {
		return err
	}
	if !l.has(transactionLog) {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s has no tables of zodb-pgjsonb: nothing was converted into it", name)}
	}
	if !l.sequence {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s has no sequence %s: it was not converted to its end", name, zoidSeq)}
	}
	if err := s.checkMode(ctx); err != nil {
		return err
	}
	return w.aloneSoon(ctx)
}

// finished refuses a database in which a conversion is under way.
func (w *retryWriter) finished(ctx context.Context) error {
	run, err := w.s.tables.Read(ctx, w.conn)
	if err != nil {
		return err
	}
	if run != nil {
		return w.s.dest.unfinished(run)
	}
	return nil
}

// sessionsQuery lists who else is connected to the database. zodb-pgjsonb gives
// its connections no name, so that any session may be a site's; each process of
// one holds a connection as long as it runs. Of another role's sessions the server
// may show little.
const sessionsQuery = `SELECT pid, coalesce(nullif(application_name, ''), 'unnamed'), coalesce(usename, '?'), coalesce(state, '?'),
		coalesce(to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS'), '?')
	FROM pg_catalog.pg_stat_activity
	WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
	AND coalesce(backend_type, 'client backend') = 'client backend' AND NOT starts_with(coalesce(application_name, ''), 'zodb-convert')
	ORDER BY pid`

// A pack of zodb-pgjsonb first makes the temporary table reachable_oids of all
// that can be reached, in one statement; each of those that delete what is not in
// it is a transaction of its own, and the last drops it. So the state and the query
// of its session, which other roles do not see anyway, tell little. The table does:
// every role sees it in the catalog as soon as it is made, and until then the locks
// of the statement that makes it.
const (
	// tracesQuery gives who reads object_state, $1, and makes a table.
	tracesQuery = `SELECT DISTINCT r.pid FROM pg_catalog.pg_locks r JOIN pg_catalog.pg_locks m ON m.pid = r.pid AND m.database = r.database
		WHERE r.locktype = 'relation' AND r.granted AND r.mode = 'AccessShareLock' AND r.relation = $1::text::regclass
		AND r.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		AND m.locktype = 'relation' AND m.granted AND m.mode = 'AccessExclusiveLock'
		AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = m.relation)`
	packedQuery = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = 'reachable_oids' AND relpersistence = 't')"
)

// company is who else is in the database.
type company struct {
	sessions []string // a phrase each
	packing  bool
	packer   string // one of sessions, where it is known
}

// look finds out who else is in the database.
func (w *retryWriter) look(ctx context.Context) (*company, error) {
	// Within a transaction the server shows what it showed first.
	if err := w.exec(ctx, "SELECT pg_catalog.pg_stat_clear_snapshot()"); err != nil {
		return nil, fmt.Errorf("look for other sessions: %w", err)
	}
	c := new(company)
	// In this order: whose table is not yet in the catalog has the locks.
	rows, _ := w.conn.Query(ctx, tracesQuery, w.s.layout.name(objectState))
	tracing, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err == nil {
		err = w.conn.QueryRow(ctx, packedQuery).Scan(&c.packing)
	}
	if err != nil {
		return nil, fmt.Errorf("look for a pack: %w", err)
	}
	var pid int32
	var app, user, state, since string
	rows, _ = w.conn.Query(ctx, sessionsQuery)
	_, err = pgx.ForEachRow(rows, []any{&pid, &app, &user, &state, &since}, func() error {
		one := fmt.Sprintf("process %d (application %q, user %s, %s, since %s)", pid, app, user, state, since)
		c.sessions = append(c.sessions, one)
		if slices.Contains(tracing, pid) {
			c.packing, c.packer = true, one
		}
		if !w.met[pid] {
			w.met[pid] = true
			w.result.Sessions = append(w.result.Sessions, one)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for other sessions: %w", err)
	}
	// Without a session the table is what a crash of the server has left.
	c.packing = c.packing && len(c.sessions) > 0
	return c, nil
}

// alone refuses a database to which somebody else is connected, unless that is
// allowed. A pack is not: it removes what the records refer to and nothing else
// did when it began.
func (w *retryWriter) alone(ctx context.Context) error {
	c, err := w.look(ctx)
	if err != nil {
		return err
	}
	switch {
	case c.packing:
		return &dest.RefusedError{
			Reason: fmt.Sprintf("%s is being packed by %s, which would remove what the records refer to", w.s.dest.Name(), cmp.Or(c.packer, "a session that does not show itself")),
			Hint:   "wait until the pack has ended; if it has failed, restart the process of the site that packed, whose temporary table reachable_oids is still there",
		}
	case len(c.sessions) == 0 || w.connected:
		return nil
	}
	noun := "another session is"
	if len(c.sessions) > 1 {
		noun = fmt.Sprintf("%d other sessions are", len(c.sessions))
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s connected to %s, which may be a running site: %s", noun, w.s.dest.Name(), strings.Join(c.sessions[:min(len(c.sessions), dest.ListMax)], ", ")),
		Hint:   "stop the site, or end these sessions; with --yes the records are written nevertheless, and a running site must be restarted afterwards, because its caches do not learn of them",
	}
}

// endingSession is how long a session may take to end after its client has gone.
const endingSession = time.Second

// aloneSoon is alone for a site, or a tool, that was stopped just before: the
// server shows its session a moment longer.
func (w *retryWriter) aloneSoon(ctx context.Context) error {
	for deadline := time.Now().Add(endingSession); ; {
		clear(w.met)
		w.result.Sessions = nil
		err := w.alone(ctx)
		if err == nil || w.connected || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(endingSession / 20):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lookBack finds out who came between the last look and the answer to COMMIT. A
// failure to do so does not undo what is written.
func (w *retryWriter) lookBack(ctx context.Context) {
	if w.result.Written == 0 {
		return
	}
	c, err := w.look(ctx)
	if err == nil && len(c.sessions) > 0 {
		w.result.PackBegan = c.packing
		err = w.looseEnds(ctx)
	}
	if err != nil {
		w.result.Unwatched = sentence(err.Error())
	}
}

// findBlobs counts the blobs that are there by now: the site has them from
// elsewhere.
func (w *retryWriter) findBlobs(ctx context.Context, blobs []dest.Blob) error {
	for batch := range slices.Chunk(blobs, 10_000) {
		oids, tids := make([]int64, len(batch)), make([]int64, len(batch))
		for i, b := range batch {
			oids[i], tids[i] = int64(b.OID), int64(b.TID)
		}
		var n int64
		err := w.conn.QueryRow(ctx, `SELECT count(*) FROM unnest($1::bigint[], $2::bigint[]) AS b(zoid, tid) WHERE EXISTS (SELECT FROM `+
			w.s.layout.name(blobState)+` x WHERE x.zoid = b.zoid AND x.tid = b.tid)`, oids, tids).Scan(&n)
		if err != nil {
			return fmt.Errorf("look for the missing blobs: %w", err)
		}
		w.result.BlobsThere += n
	}
	return nil
}

// givenRecords gives records that hold their own data.
type givenRecords struct{}

func (givenRecords) Data(_ context.Context, r *source.Record, _ *[]byte) ([]byte, error) {
	return r.Raw, nil
}

func (givenRecords) Blob(_ context.Context, r *source.Record) (*source.Blob, error) {
	return nil, &source.BlobError{OID: r.OID, TID: r.TID, Problem: "is not in a list of rejects"}
}

// write is the transaction. What takes long, to decode the records and to send
// them, comes before the lock.
func (w *retryWriter) write(ctx context.Context, plan *dest.RetryPlan) (err error) {
	defer func() {
		if err != nil && !w.conn.IsClosed() {
			_ = w.exec(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	fault.Point("retry.begin")
	if err := w.exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", "SET LOCAL synchronous_commit = on", patience, createRetried); err != nil {
		return err
	}
	if err := plan.Records(ctx, func(r *dest.Reject) error { return w.give(ctx, r) }); err != nil {
		return err
	}
	fault.Point("retry.staged")
	if err := w.exec(ctx, "ANALYZE "+stageTable+" (seq, zoid, tid)", "SELECT pg_advisory_xact_lock(0)"); err != nil {
		return err
	}
	fault.Point("retry.locked")
	for _, step := range []func(context.Context) error{
		w.finished, w.alone, w.judge, w.known, w.settle, w.apply, w.looseEnds, w.alone,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	fault.Point("retry.commit")
	w.sent = true
	answer := w.conn.PgConn().Exec(ctx, "COMMIT")
	fault.Point("retry.sent")
	if err := committed(answer); err != nil {
		return err
	}
	fault.Point("retry.committed")
	w.lookBack(ctx)
	return nil
}

// give stages a record.
func (w *retryWriter) give(ctx context.Context, r *dest.Reject) error {
	if r.OID >= zodb.Limit || r.TID >= zodb.Limit {
		return elsewhere(&dest.RefusedError{Reason: fmt.Sprintf("oid %v, tid %v: a bigint column cannot hold them with room for new ones", r.OID, r.TID)})
	}
	seq := w.given
	w.given++
	w.record = r
	w.rows.start(&source.Chunk{Records: []source.Record{{OID: r.OID, TID: r.TID, Pos: r.Pos, Raw: r.Data, Current: true}}}, false)
	defer w.rows.stop()
	clear(w.rows.refused)
	err := w.take(ctx, func() error {
		w.rows.reset()
		delete(w.special, seq)
		return w.sparing(ctx, func() error {
			return w.rows.copy(ctx, w.conn, "COPY "+stageTable+" "+retriedColumns+" FROM STDIN (FORMAT binary)", w.staged(ctx, seq))
		})
	})
	w.maxOID = max(w.maxOID, w.rows.maxOID)
	return err
}

// staged gives the row of the record.
func (w *retryWriter) staged(ctx context.Context, seq int64) func() error {
	done := false
	return func() error {
		if done {
			return io.EOF
		}
		done = true
		return w.stageRecord(ctx, seq)
	}
}

func (w *retryWriter) stageRecord(ctx context.Context, seq int64) error {
	rows := &w.rows
	record := &rows.chunk.Records[0]
	rows.maxOID = max(rows.maxOID, int64(record.OID))
	b := appendBigint(appendInt16(rows.stream.head, 11), seq)
	row, size, bad, err := rows.encode(ctx, record, 0)
	switch {
	case err != nil:
		return err
	case len(record.Raw) == 0:
		bad = &reject{class: w.record.Class, reason: "its data is not in the list of rejects"}
	case bad != nil:
	case isBlob(row):
		bad = &reject{class: className(row.Module, row.Name), reason: "it is a blob, whose bytes are not in the list of rejects"}
	default:
		rows.count(row, size, true)
		if special := (specialForm{row.Forms, row.NewCodec}); special != (specialForm{}) {
			w.special[seq] = special
		}
		rows.stream.head = appendObjectFields(b, record, row)
		rows.stream.tail = w.appendTold(appendObjectTail(rows.stream.tail, size, row.Refs), w.record.Class, "")
		rows.stream.emit(row.State)
		return nil
	}
	b = appendBigint(b, int64(record.OID))
	b = appendBigint(b, int64(record.TID))
	for range 5 {
		b = appendNull(b)
	}
	rows.stream.head = w.appendTold(b, bad.class, bad.reason)
	rows.stream.emit(nil)
	return nil
}

// appendTold appends what is told of a record that is not written.
func (w *retryWriter) appendTold(b []byte, class, reason string) []byte {
	return appendText(appendText(appendBigint(b, w.record.Pos), class), reason)
}

// What the statements below ask of rows of the stage.
const (
	// storable is a row r that is to be written if its transaction is there.
	storable = "r.class_mod IS NOT NULL AND NOT r.there AND r.newer IS NULL AND r.listed IS NULL"
	// retried is a row r that is to be written.
	retried = storable + " AND NOT r.gone"
	// retriedAfter: so is a newer revision of the same object.
	retriedAfter = "EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = r.zoid AND n.tid > r.tid AND n.class_mod IS NOT NULL AND NOT n.there AND NOT n.gone AND n.newer IS NULL AND n.listed IS NULL)"
	// tombstone is a row x of object_history that says that the object does not
	// exist. A rejected revision has one, too.
	tombstone = "x.class_mod = '' AND x.state IS NULL"
)

// judge finds out what of the stage may be written. A revision is there with its
// own tid; above it may be nothing but what is written along with it.
func (w *retryWriter) judge(ctx context.Context) error {
	state, old := w.s.layout.name(objectState), w.s.layout.name(objectHistory)
	there := "EXISTS (SELECT FROM " + state + " x WHERE x.zoid = r.zoid AND x.tid = r.tid)"
	newer := "(SELECT x.tid FROM " + state + " x WHERE x.zoid = r.zoid AND x.tid > r.tid)"
	listed := "(SELECT max(n.tid) FROM " + stageTable + " n WHERE n.zoid = r.zoid AND n.tid > r.tid"
	if w.s.plan.Options.HistoryPreserving {
		there += " OR EXISTS (SELECT FROM " + old + " x WHERE x.zoid = r.zoid AND x.tid = r.tid AND NOT (" + tombstone + "))"
		newer += ", (SELECT max(x.tid) FROM " + old + " x WHERE x.zoid = r.zoid AND x.tid > r.tid AND NOT (" + tombstone +
			" AND EXISTS (SELECT FROM " + stageTable + " n WHERE n.zoid = x.zoid AND n.tid = x.tid)))"
		listed += " AND (n.class_mod IS NULL OR n.gone)"
	}
	err := w.exec(ctx,
		"CREATE INDEX ON "+stageTable+" (zoid, tid)",
		"UPDATE "+stageTable+" r SET there = "+there+", gone = NOT EXISTS (SELECT FROM "+w.s.layout.name(transactionLog)+" t WHERE t.tid = r.tid)",
		"UPDATE "+stageTable+" r SET newer = greatest("+newer+"), listed = "+listed+")")
	if err != nil {
		return fmt.Errorf("compare the records with what is there: %w", err)
	}
	return nil
}

// known refuses records of another source: the database has no transaction of
// theirs. Without history no pack removes a transaction, so that none of what is to
// be written may be missing.
func (w *retryWriter) known(ctx context.Context) error {
	which := "(r.gone AND NOT EXISTS (SELECT FROM " + stageTable + " n WHERE n.there OR NOT n.gone))"
	if !w.s.plan.Options.HistoryPreserving {
		which += " OR (r.gone AND " + storable + ")"
	}
	var oid, tid, n int64
	err := w.conn.QueryRow(ctx, `SELECT coalesce((array_agg(zoid ORDER BY seq))[1], 0), coalesce((array_agg(tid ORDER BY seq))[1], 0), count(*)
		FROM `+stageTable+` r WHERE `+which).Scan(&oid, &tid, &n)
	if err != nil {
		return fmt.Errorf("look for the transactions of the records: %w", err)
	}
	if n == 0 {
		return nil
	}
	return &dest.RefusedError{
		Reason: fmt.Sprintf("%s does not have the transactions of %s, the first is that of oid %v, tid %v: it was not converted from the source of these records, or a pack has removed the transactions",
			w.s.dest.Name(), count(n, "record"), zodb.OID(oid), zodb.TID(tid)),
		Hint: "name the destination that the list of rejects belongs to",
	}
}

// settle notes what becomes of each record.
func (w *retryWriter) settle(ctx context.Context) error {
	rows, err := w.conn.Query(ctx, "SELECT seq, zoid, tid, pos, class, reason, there, gone, coalesce(newer, 0), coalesce(listed, 0), class_mod IS NOT NULL FROM "+stageTable+" ORDER BY seq")
	if err != nil {
		return fmt.Errorf("compare the records with what is there: %w", err)
	}
	r := &w.result
	var forms jsonb.Counts
	var seq, oid, tid, pos, newer, listed, settled int64
	var class, reason pgtype.DriverBytes
	var there, gone, decoded bool
	_, err = pgx.ForEachRow(rows, []any{&seq, &oid, &tid, &pos, &class, &reason, &there, &gone, &newer, &listed, &decoded}, func() error {
		settled++
		switch {
		case there:
			r.There++
		case max(newer, listed) != 0:
			r.Superseded++
			if listed > newer {
				r.SupersededByListed++
			}
			if w.shows(len(r.Outdated)) {
				r.Outdated = append(r.Outdated, dest.Outdated{OID: zodb.OID(oid), TID: zodb.TID(tid), Newer: zodb.TID(max(newer, listed)), Listed: listed > newer})
			}
		case !decoded || gone:
			r.Rejected++
			if !w.shows(len(r.Rejects)) {
				break
			}
			record := dest.Reject{OID: zodb.OID(oid), TID: zodb.TID(tid), Pos: pos, Class: string(class), Reason: string(reason)}
			if decoded {
				record.Reason = "the destination does not have its transaction any more: a pack has removed it"
			}
			r.Rejects = append(r.Rejects, record)
		default:
			r.Written++
			special := w.special[seq]
			for i, n := range special.forms {
				forms[i] += n
			}
			if special.newCodec {
				r.NewCodec++
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("compare the records with what is there: %w", err)
	}
	if settled != w.given {
		return fmt.Errorf("PostgreSQL has kept %d of %s", settled, count(w.given, "record"))
	}
	r.Forms = forms.AddTo(nil)
	return nil
}

// shows tells whether a list has room for one more.
func (w *retryWriter) shows(n int) bool { return w.show == 0 || n < w.show }

// apply writes the rows. The newest revision of an object becomes the current one:
// there is nothing above it. A tombstone of the same tid is what stood for the
// rejected revision.
func (w *retryWriter) apply(ctx context.Context) error {
	state, old := w.s.layout.name(objectState), w.s.layout.name(objectHistory)
	older := stageTable + " r WHERE " + retried + " AND " + retriedAfter
	newest := stageTable + " r WHERE " + retried + " AND NOT " + retriedAfter
	if w.s.plan.Options.HistoryPreserving {
		replaced := state + " x WHERE EXISTS (SELECT FROM " + stageTable + " r WHERE r.zoid = x.zoid AND " + retried + ")"
		err := w.exec(ctx,
			"INSERT INTO "+old+" ("+columnList+") SELECT "+columnList+" FROM "+replaced+" ON CONFLICT (zoid, tid) DO NOTHING",
			"DELETE FROM "+old+" x USING "+stageTable+" r WHERE r.zoid = x.zoid AND r.tid = x.tid AND "+tombstone+" AND "+retried,
			"INSERT INTO "+old+" ("+columnList+") SELECT "+columnList+" FROM "+older)
		if err != nil {
			return err
		}
		if err := w.kept(ctx, replaced, old); err != nil {
			return err
		}
		if err := w.kept(ctx, older, old); err != nil {
			return err
		}
	}
	err := w.exec(ctx, "INSERT INTO "+state+" ("+columnList+") SELECT "+columnList+" FROM "+newest+
		" ON CONFLICT (zoid) DO UPDATE SET tid = EXCLUDED.tid, "+assignments)
	if err != nil {
		return err
	}
	if err := w.kept(ctx, newest, state); err != nil {
		return err
	}
	fault.Point("retry.applied")
	if w.result.Written == 0 {
		return nil
	}
	return w.exec(ctx, w.s.layout.raiseSequence(w.maxOID))
}

// looseEnds counts written objects to which nothing refers, and objects to which
// they, or those that were there, refer and which are not there.
func (w *retryWriter) looseEnds(ctx context.Context) error {
	state := w.s.layout.name(objectState)
	newest := retried + " AND NOT " + retriedAfter
	current := "r.there AND EXISTS (SELECT FROM " + state + " x WHERE x.zoid = r.zoid AND x.tid = r.tid)"
	err := w.conn.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM `+stageTable+` r WHERE `+newest+` AND r.zoid <> 0 AND NOT EXISTS (SELECT FROM `+state+` x WHERE x.refs @> ARRAY[r.zoid] AND x.zoid <> r.zoid)),
		(SELECT count(DISTINCT ref) FROM (SELECT unnest(r.refs) AS ref FROM `+stageTable+` r WHERE `+newest+` OR `+current+`) refs
			WHERE NOT EXISTS (SELECT FROM `+state+` x WHERE x.zoid = ref))`).
		Scan(&w.result.Unreferenced, &w.result.Dangling)
	if err != nil {
		return fmt.Errorf("look for what the written objects refer to: %w", err)
	}
	return nil
}
