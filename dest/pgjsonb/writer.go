package pgjsonb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime/debug"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/fault"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/watermark"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// keepBuffer is up to which size a buffer is kept for the next record.
const keepBuffer = 1 << 20

// What the columns of object_state take.
const (
	// maxState is what a field may have; PostgreSQL itself takes less from
	// most documents, because one jsonb container holds 2^28 bytes.
	maxState = 1<<30 - 64
	// maxClass is what a row of the index on the class may have: a third of a
	// page, less its header and two lengths.
	maxClass = 2704 - 8 - 2*8
	maxSize  = math.MaxInt32 // state_size
)

// writer writes the chunks of a load over a connection of its own.
type writer struct {
	s    *session
	role string
	conn *pgx.Conn
	rows recordRows
}

// Writer opens a writer.
func (s *session) Writer(ctx context.Context, src source.Source) (dest.Writer, error) {
	s.source.set(src)
	w := &writer{s: s, role: fmt.Sprintf("w%d", s.workers.Add(1)), rows: newRecordRows(s.dest, src)}
	return w, w.open(ctx)
}

// open connects, waiting for a server that is away.
func (w *writer) open(ctx context.Context) (err error) {
	w.conn, err = w.s.dest.connect.reopen(ctx, w.s.application(w.role), w.s.dest.config.Wait)
	if err != nil {
		return w.s.dest.plain(err)
	}
	// Loaded makes all of it durable at once.
	if _, err = w.conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return fmt.Errorf("set up the session: %w", err)
	}
	return nil
}

// Close ends the connection.
func (w *writer) Close() error {
	closeQuietly(w.conn)
	return nil
}

// Write writes one chunk exactly once, whatever happens to the connection.
func (w *writer) Write(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	fault.Point("chunk.begin")
	w.rows.start(c, w.s.plan.Options.HistoryPreserving)
	defer w.rows.stop()
	for {
		if err := w.s.uploadsFailed(); err != nil {
			return nil, err
		}
		result, err := w.attempt(ctx, c)
		if err == nil {
			w.s.noteWritten(c.Range)
			w.s.tellUploads()
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		// The range is noted already: a COMMIT whose answer was lost took effect
		// after all.
		settled := code(err) == "23505" && strings.Contains(err.Error(), watermark.ChunkTable)
		if !settled && !lost(err) && !w.conn.IsClosed() {
			return nil, w.s.fenced(stopped(c, err))
		}
		result, err = w.settle(ctx, c, err)
		if result != nil || err != nil {
			return result, err
		}
	}
}

// stopped says what a run that cannot go on is told.
func stopped(c *source.Chunk, err error) error {
	if strings.HasPrefix(code(err), "53") {
		return fmt.Errorf("PostgreSQL has run out of a resource: %s; make room and go on with --incremental", serverMessage(err))
	}
	return fmt.Errorf("write chunk %v: %w", c.Range, err)
}

// settle connects again after the connection was lost and finds out whether the
// chunk was committed. A nil result without an error means that it was not.
func (w *writer) settle(ctx context.Context, c *source.Chunk, cause error) (*dest.Result, error) {
	old := w.conn.PgConn().PID()
	closeQuietly(w.conn)
	if err := w.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the connection to PostgreSQL was lost (%s): %w; go on with --incremental", sentence(cause.Error()), err)
	}
	// The old backend may not have noticed. If it commits after we have looked,
	// the key of the chunk's row lets only one of us succeed.
	if err := watermark.Terminate(ctx, w.conn, w.s.record.ID, old); err != nil && !lost(err) {
		return nil, err
	}
	if err := w.s.stillThere(ctx); err != nil {
		return nil, err
	}
	result, err := w.s.tables.ChunkResult(ctx, w.conn, watermark.Load, c.Range)
	if lost(err) {
		return nil, nil // the next attempt finds out
	}
	if err != nil {
		return nil, w.s.fenced(err)
	}
	if result != nil {
		w.s.noteWritten(c.Range)
	}
	return result, nil
}

// stillThere makes sure, after the server was away, that it remembers what was
// committed and that the control connection shows the run as alive.
func (s *session) stillThere(ctx context.Context) error {
	return s.withControl(ctx, func(conn *pgx.Conn) error {
		written := s.noted() // before the look: other writers go on meanwhile
		done, err := s.tables.Loaded(ctx, conn)
		if err != nil {
			return err
		}
		return remembers(done, written)
	})
}

// attempt writes the chunk, and once more without the records that the server
// does not take.
func (w *writer) attempt(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	clear(w.rows.refused)
	result, err := w.try(ctx, c)
	if !ofData(err) {
		return result, err
	}
	cause := err
	if err := w.exec(ctx, w.begin()); err != nil {
		return nil, err
	}
	err = w.rows.findRefused(ctx, w.conn, w.s.layout.name(objectState))
	if e := w.exec(ctx, "ROLLBACK"); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	if len(w.rows.refused) == 0 {
		return nil, cause // no single record is to blame
	}
	return w.try(ctx, c)
}

func (w *writer) begin() string {
	return "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; " + w.s.tables.Fence(w.s.record, dest.Loading)
}

func (w *writer) exec(ctx context.Context, sql string) error {
	_, err := w.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// try is one transaction; with blobs, as often as files turn out to be
// unreadable while they are sent.
func (w *writer) try(ctx context.Context, c *source.Chunk) (*dest.Result, error) {
	for {
		result, err := w.transaction(ctx, c)
		if err == nil {
			return result, nil
		}
		w.rows.blobs.takeBack(w.s.plan.BlobBytes)
		again, e := w.rows.unreadableBlob(ctx, err)
		if e != nil {
			return nil, e
		}
		if !again {
			return nil, err
		}
	}
}

// transaction writes the chunk. BEGIN and the fence travel with the first COPY, the
// note of the range with COMMIT: a chunk costs three round trips, with history
// four. Blobs come behind all other rows.
func (w *writer) transaction(ctx context.Context, c *source.Chunk) (_ *dest.Result, err error) {
	defer func() {
		if err != nil && !w.conn.IsClosed() && w.conn.PgConn().TxStatus() != 'I' {
			_ = w.exec(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	r, l := &w.rows, w.s.layout
	r.reset()
	before := w.begin() + "; "
	copyInto := func(table, columns string, next func() error) error {
		err := r.copy(ctx, w.conn, before+"COPY "+table+" "+columns+" FROM STDIN (FORMAT binary)", next)
		before = ""
		return err
	}
	if len(c.Transactions) > 0 {
		if err := copyInto(l.name(transactionLog), "(tid, username, description, extension)", r.transactions()); err != nil {
			return nil, err
		}
	}
	fault.Point("chunk.log")
	if err := copyInto(l.name(objectState), objectColumns, r.objects(ctx, true)); err != nil {
		return nil, err
	}
	fault.Point("chunk.copied")
	if r.history {
		if err := copyInto(l.name(objectHistory), objectColumns, r.objects(ctx, false)); err != nil {
			return nil, err
		}
		fault.Point("chunk.history")
	}
	if len(r.rejects) > 0 {
		if err := copyInto(w.s.tables.Reject, watermark.RejectColumns, r.rejected(ctx)); err != nil {
			return nil, err
		}
		fault.Point("chunk.rejects")
	}
	if err := r.copyBlobs(ctx, w.s, w.conn); err != nil {
		return nil, err
	}
	return r.result, w.commit(ctx, c)
}

// commit notes the range and commits.
func (w *writer) commit(ctx context.Context, c *source.Chunk) error {
	r := &w.rows
	r.total()
	note, err := w.s.tables.ChunkSQL(watermark.Load, c.Range, r.maxOID, r.result)
	if err != nil {
		return err
	}
	fault.Point("chunk.commit")
	answer := w.conn.PgConn().Exec(ctx, note+"; COMMIT")
	fault.Point("chunk.sent")
	if err := committed(answer); err != nil {
		return err
	}
	fault.Point("chunk.committed")
	return nil
}

// committed reads the answers up to that of COMMIT. A transaction that has
// failed answers ROLLBACK, without an error.
func committed(answer *pgconn.MultiResultReader) error {
	results, err := answer.ReadAll()
	if err != nil {
		return err
	}
	if tag := results[len(results)-1].CommandTag.String(); tag != "COMMIT" {
		return fmt.Errorf("COMMIT was answered with %s", tag)
	}
	return nil
}

// ofData tells whether the server refused what was sent, so that another record
// may well be taken: bad values, program limits, and the errors without a class
// of their own by which it refuses sizes.
func ofData(err error) bool {
	c := code(err)
	return strings.HasPrefix(c, "22") || strings.HasPrefix(c, "54") || c == "XX000" || c == "23514"
}

// recordRows makes the rows of a chunk.
type recordRows struct {
	dest    *Destination
	src     recordSource
	encoder recordEncoder
	stream  rowStream
	scratch []byte // pickles that are not in the chunk
	text    []byte

	extensions extensions

	chunk   *source.Chunk
	history bool
	// refused are the records, by index, that the server does not take, with
	// what it says.
	refused map[int]string

	// What the attempt has found so far.
	result  *dest.Result // handed out
	forms   jsonb.Counts // added to the result when it is complete
	maxOID  int64
	rejects []reject
	// gone are current records without a state: in history they get a row that
	// says so.
	gone []int

	blobs blobRows
}

// recordSource is what of a source.Source the rows are made of.
type recordSource interface {
	Data(ctx context.Context, r *source.Record, scratch *[]byte) ([]byte, error)
	Blob(ctx context.Context, r *source.Record) (*source.Blob, error)
}

// recordEncoder is a *jsonb.Encoder.
type recordEncoder interface {
	Encode(record []byte) (*jsonb.Row, error)
	Trim()
}

// reject is a record, by index, that cannot be written.
type reject struct {
	index         int
	class, reason string
}

func newRecordRows(d *Destination, src recordSource) recordRows {
	encoder := jsonb.NewEncoder(jsonb.Options{PreserveSharing: d.config.PreserveSharing})
	return recordRows{dest: d, src: src, encoder: encoder, refused: map[int]string{}}
}

// start takes a new chunk.
func (r *recordRows) start(c *source.Chunk, history bool) {
	r.chunk, r.history = c, history
	r.blobs.start()
}

// stop gives back what the large records of the chunk took: the budget counts
// them until the chunk is released, and this writer may not get another one.
func (r *recordRows) stop() {
	r.chunk = nil
	r.blobs.stop()
	r.encoder.Trim()
	r.stream.trim()
	if cap(r.scratch) > keepBuffer {
		r.scratch = nil
	}
}

// reset forgets what an earlier attempt has found.
func (r *recordRows) reset() {
	r.result, r.forms, r.maxOID = new(dest.Result), jsonb.Counts{}, 0
	r.rejects, r.gone = r.rejects[:0], r.gone[:0]
	r.blobs.reset()
}

// total completes the result.
func (r *recordRows) total() {
	r.result.Superseded += r.chunk.Superseded
	r.result.Dropped += r.chunk.Dropped
	r.result.SourceBytes = r.chunk.Bytes
	r.result.Forms = r.forms.AddTo(r.result.Forms)
}

// copy sends a stream of rows.
func (r *recordRows) copy(ctx context.Context, conn *pgx.Conn, sql string, next func() error) error {
	r.stream.reset(next)
	rows := &lease{stream: &r.stream}
	tag, err := conn.PgConn().CopyFrom(ctx, rows, sql)
	rows.end()
	return r.copied(tag, err)
}

// copyFiles is copy for rows that are made of files.
func (r *recordRows) copyFiles(ctx context.Context, conn *pgx.Conn, sql string, next func() error) error {
	r.stream.reset(next)
	files := readAhead(&r.stream)
	rows := &lease{stream: files}
	tag, err := conn.PgConn().CopyFrom(ctx, rows, sql)
	rows.end()
	files.close()
	return r.copied(tag, err)
}

// copied is the outcome of a COPY.
func (r *recordRows) copied(tag pgconn.CommandTag, err error) error {
	r.stream.closeBody()
	if r.stream.err != nil {
		// The server only says that the client gave up.
		return elsewhere(r.stream.err)
	}
	if err == nil && tag.RowsAffected() != r.stream.rows {
		return fmt.Errorf("PostgreSQL has kept %d of %s: a trigger leaves rows out, which would be lost; disable it for the conversion",
			tag.RowsAffected(), count(r.stream.rows, "row"))
	}
	return err
}

// transactions gives the rows of transaction_log.
func (r *recordRows) transactions() func() error {
	i := 0
	return func() error {
		if i == len(r.chunk.Transactions) {
			return io.EOF
		}
		t := &r.chunk.Transactions[i]
		i++
		r.stream.head = appendTransaction(r.stream.head, t, &r.text, &r.extensions, r.result)
		r.stream.emit(nil)
		r.result.Transactions++
		return nil
	}
}

// objects gives the rows of object_state, or those of object_history.
func (r *recordRows) objects(ctx context.Context, current bool) func() error {
	i, gone := 0, 0
	return func() error {
		for i < len(r.chunk.Records) {
			index := i
			i++
			record := &r.chunk.Records[index]
			// Without history every record is the newest of its object.
			if r.history && record.Current != current {
				continue
			}
			made, err := r.object(ctx, index, current)
			if err != nil || made {
				return err
			}
		}
		if !current && gone < len(r.gone) {
			record := &r.chunk.Records[r.gone[gone]]
			gone++
			r.stream.head = appendTombstone(r.stream.head, record)
			r.stream.emit(nil)
			return nil
		}
		return io.EOF
	}
}

// object makes the row of one record. made is false if it has none.
func (r *recordRows) object(ctx context.Context, index int, current bool) (made bool, err error) {
	record := &r.chunk.Records[index]
	r.maxOID = max(r.maxOID, int64(record.OID))
	row, size, bad, err := r.encode(ctx, record, index)
	if err != nil {
		return false, err
	}
	if bad != nil {
		r.rejects = append(r.rejects, *bad)
		r.result.Rejected++
	}
	if row == nil {
		return r.without(index, current, bad != nil), nil
	}
	fault.Point("chunk.record")
	r.count(row, size, current)
	if isBlob(row) {
		r.blobs.records = append(r.blobs.records, index)
	}
	r.stream.head = appendObjectHead(r.stream.head, record, row)
	r.stream.tail = appendObjectTail(r.stream.tail, size, row.Refs)
	r.stream.emit(row.State)
	return true, nil
}

// without settles a record that has no state: a deletion or a reject. Where
// there is history it gets a row there.
func (r *recordRows) without(index int, current, rejected bool) (made bool) {
	if current {
		if !rejected {
			r.result.Deleted++
		}
		if r.history {
			r.gone = append(r.gone, index)
		}
		return false
	}
	if !rejected {
		r.result.Revisions++
	}
	r.stream.head = appendTombstone(r.stream.head, &r.chunk.Records[index])
	r.stream.emit(nil)
	return true
}

// encode turns a record into a row. It returns neither row nor reject for a
// deletion. The row is valid until the next call. A record that makes this
// program fail is a reject: one of a hundred million must not end the run.
func (r *recordRows) encode(ctx context.Context, record *source.Record, index int) (row *jsonb.Row, size int, bad *reject, err error) {
	if record.Deleted {
		return nil, 0, nil, nil
	}
	defer func() {
		if p := recover(); p != nil {
			row, size, err = nil, 0, nil
			bad = &reject{index, "", fmt.Sprintf("reading it failed, which is a mistake in this program: %v", p)}
			r.failed(record, bad.reason, debug.Stack())
		}
	}()
	data, err := r.src.Data(ctx, record, &r.scratch)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("read oid %v, tid %v: %w", record.OID, record.TID, err)
	}
	if data == nil {
		return nil, 0, nil, nil
	}
	row, err = r.encoder.Encode(data)
	if err != nil {
		var rejected *jsonb.RejectError
		if !errors.As(err, &rejected) {
			return nil, 0, nil, fmt.Errorf("encode oid %v, tid %v%s: %w", record.OID, record.TID, place(record.Pos), err)
		}
		if rejected.Stack != nil {
			r.failed(record, rejected.Reason, rejected.Stack)
		}
		return nil, 0, &reject{index, rejected.Class, rejected.Reason}, nil
	}
	reason := r.refused[index]
	switch {
	case reason != "":
	case len(data) > maxSize:
		reason = fmt.Sprintf("its %d bytes are more than the column state_size takes", len(data))
	case len(row.State) > maxState:
		reason = fmt.Sprintf("its state is %d bytes of JSON, PostgreSQL takes no value of a gigabyte", len(row.State))
	case len(row.Module)+len(row.Name) > maxClass:
		reason = fmt.Sprintf("the name of its class is %d bytes long, the index on classes takes %d", len(row.Module)+len(row.Name), maxClass)
	}
	if reason != "" {
		return nil, 0, &reject{index, className(row.Module, row.Name), reason}, nil
	}
	return row, len(data), nil, nil
}

// place says where a record stands, if the source has positions.
func place(pos int64) string {
	if pos == 0 {
		return ""
	}
	return fmt.Sprintf(" at %d", pos)
}

// failed tells of the first records that this program has failed on.
func (r *recordRows) failed(record *source.Record, reason string, stack []byte) {
	if n := r.dest.failed.Add(1); n <= dest.ListMax && r.dest.config.Note != nil {
		r.dest.config.Note(fmt.Sprintf("oid %v, tid %v at %d: %s\n%s", record.OID, record.TID, record.Pos, reason, stack))
	}
}

func className(module, name []byte) string { return string(module) + "." + string(name) }

// count adds a written row to the result.
func (r *recordRows) count(row *jsonb.Row, size int, current bool) {
	if current {
		r.result.Objects++
	} else {
		r.result.Revisions++
	}
	r.result.PickleBytes += int64(size)
	r.result.StateBytes += int64(len(row.State))
	for form, n := range row.Forms {
		if n == 0 {
			continue
		}
		r.forms[form] += n
		if form := jsonb.Form(form); form.LostOnSave() || form == jsonb.SharedCopied {
			r.text = append(append(append(r.text[:0], row.Module...), '.'), row.Name...)
			r.result.ClassesOf(form.String()).Count(r.text, 1)
		}
	}
	if row.NewCodec {
		r.result.NewCodec++
		if len(r.result.NewCodecClasses) < dest.ListMax {
			one := dest.Result{NewCodecClasses: []string{className(row.Module, row.Name)}}
			r.result.Add(&one)
		}
	}
	for _, ref := range row.Refs {
		if ref > r.maxOID && ref < zodb.Limit {
			r.maxOID = ref
		}
	}
}

// rejected gives the rows of the table of rejects.
func (r *recordRows) rejected(ctx context.Context) func() error {
	i := 0
	return func() error {
		if i == len(r.rejects) {
			return io.EOF
		}
		j := &r.rejects[i]
		i++
		record := &r.chunk.Records[j.index]
		data, err := r.dataOfReject(ctx, record)
		if err != nil {
			return fmt.Errorf("read oid %v, tid %v: %w", record.OID, record.TID, err)
		}
		reason := j.reason
		if len(data) > maxState {
			data = nil
			reason += " (it is too large to be kept with the list of rejects)"
		}
		b := r.stream.head
		b = appendInt16(b, 6)
		b = appendBigint(b, record.Pos)
		b = appendBigint(b, int64(record.OID))
		b = appendBigint(b, int64(record.TID))
		b = r.appendLine(b, j.class)
		b = r.appendLine(b, reason)
		if data == nil {
			b = appendNull(b)
		} else {
			b = appendInt32(b, int32(len(data)))
		}
		r.stream.head = b
		r.stream.emit(data)
		return nil
	}
}

// dataOfReject reads a record once more. One that makes this program fail is
// listed without its data.
func (r *recordRows) dataOfReject(ctx context.Context, record *source.Record) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			data, err = nil, nil
		}
	}()
	return r.src.Data(ctx, record, &r.scratch)
}

// appendLine appends a text field with what PostgreSQL does not take escaped.
func (r *recordRows) appendLine(b []byte, text string) []byte {
	r.text, _ = dest.AppendEscaped(r.text[:0], []byte(text))
	return appendText(b, r.text)
}

// findRefused finds the records that the server does not take, by halving the
// chunk in transactions that are rolled back.
func (r *recordRows) findRefused(ctx context.Context, conn *pgx.Conn, table string) error {
	return r.halve(ctx, conn, table, 0, len(r.chunk.Records))
}

func (r *recordRows) halve(ctx context.Context, conn *pgx.Conn, table string, from, to int) error {
	err := r.probe(ctx, conn, table, from, to)
	if !ofData(err) {
		return err
	}
	if to-from == 1 {
		r.refused[from] = "PostgreSQL does not take it: " + serverMessage(err)
		return nil
	}
	middle := (from + to) / 2
	if err := r.halve(ctx, conn, table, from, middle); err != nil {
		return err
	}
	return r.halve(ctx, conn, table, middle, to)
}

// probe copies the records from..to and takes them back.
func (r *recordRows) probe(ctx context.Context, conn *pgx.Conn, table string, from, to int) error {
	i := from
	next := func() error {
		for i < to {
			index := i
			i++
			record := &r.chunk.Records[index]
			row, size, _, err := r.encode(ctx, record, index)
			if err != nil {
				return err
			}
			if row == nil {
				continue
			}
			r.stream.head = appendObjectHead(r.stream.head, record, row)
			r.stream.tail = appendObjectTail(r.stream.tail, size, row.Refs)
			r.stream.emit(row.State)
			return nil
		}
		return io.EOF
	}
	err := r.copy(ctx, conn, "SAVEPOINT probe; COPY "+table+" "+objectColumns+" FROM STDIN (FORMAT binary)", next)
	if err != nil && !ofData(err) {
		return err
	}
	if _, e := conn.PgConn().Exec(ctx, "ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe").ReadAll(); e != nil {
		return e
	}
	return err
}
