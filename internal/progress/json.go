package progress

import (
	"encoding/json"
	"io"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// JSON prints one object a line. The names of the fields are kept; new ones may
// come.
type JSON struct {
	lines   *json.Encoder
	verbose bool
}

// NewJSON returns a Printer of JSON lines. verbose adds the starts of steps.
func NewJSON(out io.Writer, verbose bool) *JSON {
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	return &JSON{lines: lines, verbose: verbose}
}

// Head starts every line.
type Head struct {
	Event string `json:"event" doc:"what the line tells"`
	Time  string `json:"time" doc:"when, in UTC (RFC 3339)"`
}

func head(event string, at time.Time) Head {
	return Head{Event: event, Time: at.UTC().Format("2006-01-02T15:04:05.000Z07:00")}
}

// StatusLine is "phase" (one starts), "phase_end", "progress" (every 5 seconds)
// and "report" (after SIGUSR1).
type StatusLine struct {
	Head
	Phase          string     `json:"phase" doc:"scan, prepare, load, finish, catch up, upload, done; with verify scan, compare; with inspect scan, inspect; empty before the first"`
	Elapsed        float64    `json:"elapsed" doc:"seconds since the phase started"`
	Bytes          int64      `json:"bytes" doc:"of the source, done in this phase"`
	TotalBytes     int64      `json:"total_bytes" doc:"of the source, to be done in this phase; 0 if unknown"`
	Keys           int64      `json:"keys" doc:"of a RelStorage, compared with the destination in the phase catch up, which counts no bytes of the source"`
	TotalKeys      int64      `json:"total_keys" doc:"keys to be compared"`
	EarlierBytes   int64      `json:"earlier_bytes" doc:"part of bytes that an earlier, interrupted start did"`
	Objects        int64      `json:"objects" doc:"objects and older revisions written so far"`
	Rejected       int64      `json:"rejected" doc:"records rejected so far"`
	BlobBytes      int64      `json:"blob_bytes" doc:"of blobs, written or uploaded in this phase"`
	TotalBlobBytes int64      `json:"total_blob_bytes" doc:"of blobs, to be written or uploaded at most; 0 if unknown"`
	Uploads        int64      `json:"uploads" doc:"blobs uploaded in the phase upload, of whose blobs bytes and total_bytes are then"`
	TotalUploads   int64      `json:"total_uploads" doc:"blobs to be uploaded in the phase upload"`
	BytesPerSecond int64      `json:"bytes_per_second" doc:"smoothed; source and blobs"`
	ObjectsPerSec  int64      `json:"objects_per_second" doc:"smoothed"`
	SecondsLeft    *float64   `json:"seconds_left" doc:"null while it is not known"`
	Steps          []StepTime `json:"steps" doc:"steps that are running"`
}

// StepTime is a running step.
type StepTime struct {
	Name    string  `json:"name" doc:"what is being done"`
	Elapsed float64 `json:"elapsed" doc:"seconds since the step started"`
}

// StepLine is "step": one is done, or starts (with -v).
type StepLine struct {
	Head
	Name string  `json:"name" doc:"what was done"`
	Done bool    `json:"done" doc:"false: it starts now"`
	Took float64 `json:"took" doc:"seconds"`
}

// NoteLine is "note".
type NoteLine struct {
	Head
	Text string `json:"text" doc:"a sentence"`
}

// ErrorLine is "error": the last line of a command that fails.
type ErrorLine struct {
	Head
	ExitCode int      `json:"exit_code" doc:"as in EXIT STATUS"`
	Message  string   `json:"message" doc:"a sentence"`
	Hints    []string `json:"hints" doc:"what to do"`
}

// SummaryLine is "summary".
type SummaryLine struct {
	Head
	Outcome           Outcome          `json:"outcome" doc:"complete, dry run or rejected"`
	Source            string           `json:"source" doc:"the database read"`
	Destination       string           `json:"destination" doc:"the database written, without secrets"`
	HistoryPreserving bool             `json:"history_preserving" doc:"whether every revision was wanted"`
	Resumed           bool             `json:"resumed" doc:"whether an interrupted run was continued"`
	Transactions      int64            `json:"transactions" doc:"written, earlier starts of the run included (so are all counts)"`
	CaughtUp          int64            `json:"caught_up" doc:"part of transactions that came after the first start"`
	Objects           int64            `json:"objects" doc:"current revisions"`
	Revisions         int64            `json:"revisions" doc:"older revisions (history-preserving)"`
	Deleted           int64            `json:"deleted" doc:"objects whose newest record is a deletion"`
	Removed           int64            `json:"removed" doc:"rows removed because the source no longer has them (RelStorage)"`
	RemovedTx         int64            `json:"removed_transactions" doc:"transactions removed for that"`
	Superseded        int64            `json:"superseded" doc:"older revisions left out (history-free)"`
	Dropped           int64            `json:"dropped" doc:"records written again later in the same transaction"`
	Rejected          int64            `json:"rejected" doc:"records that have no form in the destination"`
	Forms             map[string]int64 `json:"special_forms" doc:"special forms by kind"`
	FormClasses       []FormEntry      `json:"form_classes" doc:"special forms by class: those that last until the application saves the object, because zodb-pgjsonb does not write them itself, and shared-copied"`
	NewCodec          int64            `json:"new_codec" doc:"records that only zodb-json-codec 1.7.0 or later reads"`
	NewCodecClasses   []string         `json:"new_codec_classes" doc:"the first classes among them"`
	Metadata          int64            `json:"escaped_metadata" doc:"transactions whose user or description had to be escaped"`
	Escaped           []EscapedEntry   `json:"escaped" doc:"the first of them"`
	Blobs             int64            `json:"blobs" doc:"blobs written to PostgreSQL"`
	BlobBytes         int64            `json:"blob_bytes" doc:"their bytes"`
	S3Blobs           int64            `json:"s3_blobs" doc:"blobs whose rows name an object in S3, uploaded or listed in the manifest"`
	S3Bytes           int64            `json:"s3_bytes" doc:"their bytes"`
	MissingBlobs      int64            `json:"missing_blobs" doc:"blobs that were not found or could not be read"`
	Missing           []MissingEntry   `json:"missing" doc:"the first of them"`
	BlobDir           string           `json:"blob_dir" doc:"where the source's blobs were looked for"`
	OrphanBlobs       int64            `json:"orphan_blobs" doc:"blob files that no record refers to; they are left out"`
	Manifest          string           `json:"manifest" doc:"the file that lists the blobs still to be uploaded"`
	Owed              int64            `json:"owed" doc:"how many it lists"`
	OwedBytes         int64            `json:"owed_bytes" doc:"their bytes"`
	SourceBytes       int64            `json:"source_bytes" doc:"of the source"`
	PickleBytes       int64            `json:"pickle_bytes" doc:"of pickles decoded"`
	StateBytes        int64            `json:"state_bytes" doc:"of JSON written"`
	Elapsed           float64          `json:"elapsed" doc:"seconds of this start"`
	Phases            []PhaseEntry     `json:"phases" doc:"what took how long"`
	PeakMemory        int64            `json:"peak_memory" doc:"bytes"`
	Workers           int              `json:"workers" doc:"as used"`
	Growth            GrowthEntry      `json:"growth" doc:"what the source got since its end was fixed"`
	Rejects           []RejectEntry    `json:"rejects" doc:"the first rejected records"`
	RejectsFile       string           `json:"rejects_file" doc:"the file that lists all of them, and all missing blobs"`
	Notes             []string         `json:"notes" doc:"sentences"`
	Next              []string         `json:"next" doc:"what to do now"`
}

// FormEntry is one of "form_classes".
type FormEntry struct {
	Form    string           `json:"form" doc:"the kind"`
	Records int64            `json:"records" doc:"how many have it"`
	Classes map[string]int64 `json:"classes" doc:"records by class, for the first classes that were met"`
}

// EscapedEntry is one of "escaped".
type EscapedEntry struct {
	TID         string `json:"tid" doc:"of the transaction"`
	User        []byte `json:"user" doc:"the original bytes, base64"`
	Description []byte `json:"description" doc:"the original bytes, base64"`
}

// PhaseEntry is one of "phases".
type PhaseEntry struct {
	Phase string  `json:"phase" doc:"its name"`
	Took  float64 `json:"took" doc:"seconds"`
	Bytes int64   `json:"bytes" doc:"of the source"`
}

// GrowthEntry is "growth".
type GrowthEntry struct {
	Transactions int64  `json:"transactions" doc:"how many"`
	Since        string `json:"since" doc:"tid of the first, empty if none"`
	Replaced     bool   `json:"replaced" doc:"the source is another database by now (packed)"`
}

// RejectEntry is one of "rejects".
type RejectEntry struct {
	OID    string `json:"oid" doc:"of the object"`
	TID    string `json:"tid" doc:"of its transaction"`
	Offset int64  `json:"offset" doc:"where the record stands in the source"`
	Class  string `json:"class" doc:"module and name, empty if unknown"`
	Reason string `json:"reason" doc:"a sentence"`
}

// MissingEntry is one of "missing".
type MissingEntry struct {
	OID    string `json:"oid" doc:"of the blob"`
	TID    string `json:"tid" doc:"of its transaction"`
	Offset int64  `json:"offset" doc:"where its record stands in the source; 0 for a RelStorage"`
	Path   string `json:"path" doc:"where it was looked for: a file, or a table"`
	Reason string `json:"reason" doc:"the rest of the sentence: the blob file PATH ..."`
}

// Every is 5 seconds.
func (*JSON) Every() time.Duration { return linesEvery }

func (j *JSON) PhaseStarted(s Status) { j.status("phase", s) }
func (j *JSON) PhaseEnded(s Status)   { j.status("phase_end", s) }
func (j *JSON) Update(s Status)       { j.status("progress", s) }
func (j *JSON) Report(s Status)       { j.status("report", s) }

func (j *JSON) status(event string, s Status) {
	line := StatusLine{
		Head: head(event, s.Now), Phase: string(s.Phase),
		Bytes: s.Done, TotalBytes: s.Total, EarlierBytes: s.Earlier,
		Objects: s.Objects, Rejected: s.Rejected,
		BlobBytes: s.BlobBytes, TotalBlobBytes: s.BlobTotal,
		Uploads: s.Uploads, TotalUploads: s.UploadTotal,
		BytesPerSecond: int64(s.ByteRate + 0.5), ObjectsPerSec: int64(s.ObjectRate + 0.5),
		Steps: []StepTime{},
	}
	if s.Keys {
		line.Keys, line.TotalKeys = s.Done, s.Total
		line.Bytes, line.TotalBytes, line.BytesPerSecond = 0, 0, 0
	}
	if !s.Since.IsZero() {
		line.Elapsed = s.Now.Sub(s.Since).Seconds()
	}
	if s.Left >= 0 {
		left := s.Left.Seconds()
		line.SecondsLeft = &left
	}
	for _, step := range s.Steps {
		line.Steps = append(line.Steps, StepTime{Name: step.Name, Elapsed: s.Now.Sub(step.Since).Seconds()})
	}
	j.print(line)
}

func (j *JSON) Step(at time.Time, s dest.Step) {
	if s.Done || j.verbose {
		j.print(StepLine{Head: head("step", at), Name: s.Name, Done: s.Done, Took: s.Took.Seconds()})
	}
}

func (j *JSON) Note(at time.Time, text string) {
	j.print(NoteLine{Head: head("note", at), Text: text})
}

func (j *JSON) Problem(p *Problem) {
	j.print(ErrorLine{Head: head("error", time.Now()), ExitCode: p.ExitCode, Message: p.Message, Hints: orEmpty(p.Hints)})
}

func (j *JSON) Summary(s *Summary) {
	r, t := s.Report, &s.Report.Totals
	line := SummaryLine{
		Head: head("summary", time.Now()), Outcome: s.Outcome,
		Source: r.Source.Identity.Name, Destination: r.Destination,
		HistoryPreserving: s.HistoryPreserving, Resumed: r.Resumed,
		Transactions: t.Transactions, CaughtUp: r.CaughtUp,
		Objects: t.Objects, Revisions: t.Revisions, Deleted: t.Deleted,
		Removed: t.Gone, RemovedTx: t.GoneTransactions, Superseded: t.Superseded, Dropped: t.Dropped, Rejected: t.Rejected,
		Forms: t.Forms, FormClasses: formEntries(t), NewCodec: t.NewCodec, NewCodecClasses: orEmpty(t.NewCodecClasses),
		Metadata: t.Metadata, Escaped: []EscapedEntry{},
		Blobs: t.Blobs, BlobBytes: t.BlobBytes, S3Blobs: t.S3Blobs, S3Bytes: t.S3Bytes,
		MissingBlobs: s.missing(), Missing: []MissingEntry{},
		BlobDir: r.Source.BlobDir, OrphanBlobs: r.Source.OrphanBlobs,
		Manifest: r.Manifest, Owed: r.Owed, OwedBytes: r.OwedBytes,
		SourceBytes: t.SourceBytes, PickleBytes: t.PickleBytes, StateBytes: t.StateBytes,
		Elapsed: s.Elapsed.Seconds(), Phases: []PhaseEntry{},
		PeakMemory: r.PeakMemory, Workers: s.Workers,
		Growth:  growthEntry(r.Growth),
		Rejects: []RejectEntry{}, RejectsFile: r.RejectsFile,
		Notes: orEmpty(r.Notes), Next: orEmpty(s.Next),
	}
	if line.Forms == nil {
		line.Forms = map[string]int64{}
	}
	for _, e := range t.Escaped {
		line.Escaped = append(line.Escaped, EscapedEntry{TID: e.TID.String(), User: e.User, Description: e.Description})
	}
	for _, p := range s.phaseTimes() {
		line.Phases = append(line.Phases, PhaseEntry{Phase: string(p.Phase), Took: p.Took.Seconds(), Bytes: p.Bytes})
	}
	for _, m := range r.MissingBlobs {
		line.Missing = append(line.Missing, MissingEntry{
			OID: m.OID.String(), TID: m.TID.String(), Offset: m.Pos, Path: m.Path, Reason: m.Reason})
	}
	for _, e := range r.Rejects {
		line.Rejects = append(line.Rejects, RejectEntry{
			OID: e.OID.String(), TID: e.TID.String(), Offset: e.Pos, Class: e.Class, Reason: e.Reason})
	}
	j.print(line)
}

func growthEntry(g source.Growth) GrowthEntry {
	e := GrowthEntry{Transactions: g.Transactions, Replaced: g.Replaced}
	if g.Transactions > 0 {
		e.Since = g.Since.String()
	}
	return e
}

// orEmpty lets a list without entries be [] instead of null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// print writes one line. There is no better place than stderr to tell that
// stderr cannot be written.
func (j *JSON) print(line any) { _ = j.lines.Encode(line) }
