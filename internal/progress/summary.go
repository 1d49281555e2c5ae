package progress

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

// Outcome is how a run ended.
type Outcome string

const (
	Complete Outcome = "complete" // the destination is the source
	DryRun   Outcome = "dry run"  // everything was decoded, nothing written
	Rejected Outcome = "rejected" // stopped before finishing: rejected records or missing blobs
)

// Summary is what came of a run.
type Summary struct {
	Outcome           Outcome
	Report            *pipeline.Report
	HistoryPreserving bool
	// Workers and Elapsed are of this start.
	Workers int
	Elapsed time.Duration
	// Next is what to do now, a line each.
	Next []string
}

// CodecNeeded is the first zodb-json-codec that reads every form that package
// jsonb writes.
const CodecNeeded = "1.7.0"

const textWidth = 100

// Text gives the summary for people. Lists are capped, so that it fits on a
// screen.
func (s *Summary) Text() string {
	var b strings.Builder
	b.WriteString("\n" + s.title() + "\n\n")
	s.counts(&b)
	s.times(&b)
	s.forms(&b)
	s.classes(&b)
	s.codec(&b)
	s.python2(&b)
	s.metadata(&b)
	s.rejects(&b)
	s.missingBlobs(&b)
	paragraph(&b, "Notes", s.Report.Notes)
	paragraph(&b, "Next", s.Next)
	return strings.TrimSuffix(b.String(), "\n")
}

func (s *Summary) title() string {
	r := s.Report
	from, to := r.Source.Identity.Name, r.Destination
	switch s.Outcome {
	case DryRun:
		return fmt.Sprintf("Dry run: %s was read and decoded, nothing was written to %s.", from, to)
	case Rejected:
		return fmt.Sprintf("Not finished: %s. %s is incomplete.", s.faults(from), to)
	}
	if r.Source.Transactions > 0 && nothingNew(&r.Totals) {
		return fmt.Sprintf("Done: nothing was new, %s is in %s.", from, to)
	}
	var but []string
	if r.Totals.Rejected > 0 {
		but = append(but, Plural(r.Totals.Rejected, "rejected record"))
	}
	if r.Totals.MissingBlobs > 0 {
		but = append(but, Plural(r.Totals.MissingBlobs, "missing blob"))
	}
	if r.Owed > 0 {
		but = append(but, fmt.Sprintf("%s that %s lists", Plural(r.Owed, "upload"), manifestName(r)))
	}
	if len(but) > 0 {
		return fmt.Sprintf("Done: %s is in %s, but for %s.", from, to, strings.Join(but, " and "))
	}
	return fmt.Sprintf("Done: %s is in %s.", from, to)
}

// nothingNew tells whether a run found the destination as it should be.
func nothingNew(t *dest.Result) bool {
	return t.Transactions+t.Objects+t.Revisions+t.Deleted+t.Gone+t.GoneTransactions == 0
}

// faults says what keeps a run from being finished.
func (s *Summary) faults(source string) string {
	var parts []string
	part := func(n int64, noun, one, many string) {
		if n == 0 {
			return
		}
		verb, of := many, ""
		if n == 1 {
			verb = one
		}
		if parts == nil {
			of = " of " + source
		}
		parts = append(parts, Plural(n, noun)+of+" "+verb)
	}
	part(s.Report.Totals.Rejected, "record", "was rejected", "were rejected")
	part(s.Report.Totals.MissingBlobs, "blob", "is missing", "are missing")
	return strings.Join(parts, " and ")
}

func manifestName(r *pipeline.Report) string {
	if r.Manifest == pipeline.ToStdout {
		return "the output"
	}
	return r.Manifest
}

// row writes one line of the table.
func row(b *strings.Builder, name, value, remark string) {
	line := fmt.Sprintf("  %-15s %16s  %s", name, value, remark)
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

func (s *Summary) counts(b *strings.Builder) {
	r, t := s.Report, &s.Report.Totals
	remark := ""
	if r.CaughtUp > 0 {
		remark = Count(r.CaughtUp) + " of them came after the first start"
	}
	row(b, "transactions", Count(t.Transactions), remark)
	row(b, "objects", Count(t.Objects), "")
	if s.HistoryPreserving {
		row(b, "older revisions", Count(t.Revisions), "")
	}
	row(b, "deleted", Count(t.Deleted), "")
	if t.Gone+t.GoneTransactions > 0 {
		row(b, "removed", Count(t.Gone), fmt.Sprintf("rows that the source no longer has; and %s", Plural(t.GoneTransactions, "transaction")))
	}
	if !s.HistoryPreserving && (t.Superseded > 0 || !inTables(r)) {
		row(b, "superseded", Count(t.Superseded), "older revisions, which a history-free database leaves out")
	}
	if t.Dropped > 0 {
		row(b, "dropped", Count(t.Dropped), "written again later in the same transaction")
	}
	row(b, "rejected", Count(t.Rejected), rejectsRemark(r))
	s.blobs(b)
	row(b, "special forms", Count(sum(t.Forms)), "")
	row(b, "source", Bytes(t.SourceBytes), sizes(t))
}

// inTables tells whether the source is one of rows, of which older ones are not
// read if nobody wants them. Its records have no place in it.
func inTables(r *pipeline.Report) bool { return r.Source.Identity.Kind == "relstorage" }

// at is where a record stands, as a part of a sentence, if the source has places.
func at(pos int64) string {
	if pos == 0 {
		return ""
	}
	return fmt.Sprintf(", at %d", pos)
}

// blobProblem is what is wrong with a blob; where it was looked for, a file or a
// table, if that does not follow on a line of its own.
func blobProblem(path, reason string) (problem, place string) {
	if path != "" && !filepath.IsAbs(path) {
		return path + " " + reason, ""
	}
	return "the blob file " + reason, path
}

// blobs are left out where there are none.
func (s *Summary) blobs(b *strings.Builder) {
	r, t := s.Report, &s.Report.Totals
	inPostgreSQL, inS3 := " in PostgreSQL", " in S3"
	if s.Outcome == DryRun {
		inPostgreSQL = " for PostgreSQL"
		if r.Source.Blobs > 0 {
			row(b, "source's blobs", Count(r.Source.Blobs), s.sourceBlobs())
		}
	}
	if s.Outcome == DryRun || r.Owed > 0 {
		inS3 = " for S3"
	}
	if t.Blobs > 0 {
		row(b, "blobs", Count(t.Blobs), Bytes(t.BlobBytes)+inPostgreSQL)
	}
	if t.S3Blobs > 0 {
		row(b, "blobs", Count(t.S3Blobs), Bytes(t.S3Bytes)+inS3)
	}
	if r.Manifest != "" && s.Outcome != DryRun {
		row(b, "to be uploaded", Count(r.Owed), Bytes(r.OwedBytes)+", listed in "+manifestName(r))
	}
	if n := s.missing(); n > 0 {
		row(b, "missing blobs", Count(n), s.missingRemark())
	}
	if r.Source.OrphanBlobs > 0 {
		row(b, "orphan blobs", Count(r.Source.OrphanBlobs), "files that no record refers to; they are left out")
	}
}

// sourceBlobs tells of the blobs that the scan of a dry run has found.
func (s *Summary) sourceBlobs() string {
	src, t := &s.Report.Source, &s.Report.Totals
	text := Bytes(src.BlobBytes)
	if !s.HistoryPreserving && src.Blobs > t.Blobs+t.S3Blobs+t.MissingBlobs {
		text += " with older revisions, which a history-free database leaves out"
	}
	if src.BlobDir != "" {
		text += "; in " + src.BlobDir
	}
	return text
}

// missing is how many blobs are missing. A dry run opens none: it tells what the
// scan found.
func (s *Summary) missing() int64 {
	if s.Outcome == DryRun {
		return s.Report.Source.MissingBlobs
	}
	return s.Report.Totals.MissingBlobs
}

// missingRemark says of a dry run how many of the missing blobs the conversion
// would want.
func (s *Summary) missingRemark() string {
	r := s.Report
	if s.Outcome != DryRun || s.HistoryPreserving || r.Source.MissingBlobs == r.Totals.MissingBlobs {
		return rejectsRemark(r)
	}
	return fmt.Sprintf("older revisions included; the conversion needs %s of them", Count(r.Totals.MissingBlobs))
}

func rejectsRemark(r *pipeline.Report) string {
	if r.RejectsFile == "" {
		return ""
	}
	return "listed in " + r.RejectsFile
}

func sizes(t *dest.Result) string {
	if t.PickleBytes == 0 {
		return ""
	}
	return fmt.Sprintf("pickles %s, JSON %s", Bytes(t.PickleBytes), Bytes(t.StateBytes))
}

func sum(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (s *Summary) times(b *strings.Builder) {
	var parts []string
	for _, p := range s.phaseTimes() {
		parts = append(parts, fmt.Sprintf("%s %s", p.Phase, Duration(p.Took)))
	}
	row(b, "time", Duration(s.Elapsed), strings.Join(parts, ", "))
	if bytes, took := s.moved(); bytes > 0 && took > 0 {
		row(b, "rate", Bytes(int64(float64(bytes)/took.Seconds()))+"/s", s.objectRate(took))
	}
	row(b, "peak memory", Bytes(s.Report.PeakMemory), workers(s.Workers))
	b.WriteString("\n")
}

func workers(n int) string {
	if n == 0 {
		return ""
	}
	return "with " + Plural(int64(n), "worker")
}

// phaseTimes adds up phases that ran more than once, such as the second scan of
// a continued run.
func (s *Summary) phaseTimes() []pipeline.PhaseTime {
	var out []pipeline.PhaseTime
	for _, p := range s.Report.Phases {
		if p.Phase == pipeline.Finished {
			continue
		}
		i := slices.IndexFunc(out, func(o pipeline.PhaseTime) bool { return o.Phase == p.Phase })
		if i < 0 {
			out = append(out, p)
			continue
		}
		out[i].Took += p.Took
		out[i].Bytes += p.Bytes
	}
	return out
}

// moved is what this start decoded and how long that took.
func (s *Summary) moved() (bytes int64, took time.Duration) {
	for _, p := range s.Report.Phases {
		if p.Phase == pipeline.Loading || p.Phase == pipeline.CatchingUp {
			bytes += p.Bytes
			took += p.Took
		}
	}
	return bytes, took
}

// objectRate is left out for a continued run, whose totals are not of this
// start alone.
func (s *Summary) objectRate(took time.Duration) string {
	if s.Report.Resumed {
		return "since this start"
	}
	t := &s.Report.Totals
	remark := fmt.Sprintf("%s objects/s", Count(int64(float64(t.Objects+t.Revisions)/took.Seconds())))
	// A dry run opens no blob.
	if moved := t.BlobBytes + t.S3Bytes - s.Report.OwedBytes; moved > 0 && s.Outcome != DryRun {
		for _, p := range s.Report.Phases {
			if p.Phase == pipeline.Uploading {
				took += p.Took
			}
		}
		remark += fmt.Sprintf(", blobs %s/s", Bytes(int64(float64(moved)/took.Seconds())))
	}
	return remark
}

func (s *Summary) forms(b *strings.Builder) {
	t := &s.Report.Totals
	if len(t.Forms) == 0 {
		return
	}
	names := slices.SortedFunc(maps.Keys(t.Forms), func(x, y string) int {
		return cmp.Or(cmp.Compare(t.Forms[y], t.Forms[x]), strings.Compare(x, y))
	})
	b.WriteString("Special forms: values that JSON has no plain form for\n")
	for _, name := range names[:min(len(names), dest.ListMax)] {
		fmt.Fprintf(b, "  %16s  %s\n", Count(t.Forms[name]), name)
	}
	more(b, len(names))
	b.WriteString("\n")
}

// classes tells which classes the objects are of whose values do not last, or
// have lost their sharing already.
func (s *Summary) classes(b *strings.Builder) {
	entries := formEntries(&s.Report.Totals)
	if len(entries) == 0 {
		return
	}
	// zodb-pgjsonb then writes the value itself, in its own way.
	title := "Lost when the application saves the object again"
	if s.Report.Totals.FormClasses[jsonb.SharedCopied.String()] != nil {
		title += " (shared-copied: already)"
	}
	wrap(b, title, "")
	for _, e := range entries[:min(len(entries), dest.ListMax)] {
		classes := slices.SortedFunc(maps.Keys(e.Classes), func(x, y string) int {
			return cmp.Or(cmp.Compare(e.Classes[y], e.Classes[x]), strings.Compare(x, y))
		})
		others := e.Records
		var parts []string
		for _, class := range classes {
			parts = append(parts, class+" "+Count(e.Classes[class]))
			others -= e.Classes[class]
		}
		if others > 0 {
			parts = append(parts, "other classes "+Count(others))
		}
		wrap(b, e.Form+": "+strings.Join(parts, ", "), "  ")
	}
	more(b, len(entries))
	b.WriteString("\n")
}

// formEntries are the forms that are told by class, the commonest first.
func formEntries(t *dest.Result) []FormEntry {
	entries := []FormEntry{}
	for form, counts := range t.FormClasses {
		e := FormEntry{Form: form, Records: counts.Records(), Classes: make(map[string]int64)}
		for _, c := range counts.Classes {
			e.Classes[c.Class] = c.Records
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(x, y FormEntry) int {
		return cmp.Or(cmp.Compare(y.Records, x.Records), strings.Compare(x.Form, y.Form))
	})
	return entries
}

// more tells how many entries of a list are not shown.
func more(b *strings.Builder, n int) {
	if n > dest.ListMax {
		fmt.Fprintf(b, "  ... and %s more\n", Count(int64(n-dest.ListMax)))
	}
}

func (s *Summary) codec(b *strings.Builder) {
	t := &s.Report.Totals
	if t.NewCodec == 0 {
		return
	}
	verb := "use"
	if t.NewCodec == 1 {
		verb = "uses"
	}
	text := fmt.Sprintf("The site must run zodb-json-codec %s or later: %s %s a form that older ones do not read",
		CodecNeeded, Plural(t.NewCodec, "record"), verb)
	if len(t.NewCodecClasses) > 0 {
		text += ", first in the classes " + strings.Join(t.NewCodecClasses, ", ")
	}
	wrap(b, text+".", "")
	b.WriteString("\n")
}

// python2 tells what the application needs besides. Python 3 cannot tell the bytes
// of Python 2 from its text.
func (s *Summary) python2(b *strings.Builder) {
	forms := s.Report.Totals.Forms
	text, raw := forms[jsonb.Python2Text.String()], forms[jsonb.Python2Bytes.String()]
	if text+raw == 0 {
		return
	}
	wrap(b, fmt.Sprintf("Python 2 has written %s: %s ASCII and became text, %s not and became bytes. If the application "+
		"wants something else, zodbupdate --convert-py3 has to make it of the Data.fs, before the conversion; "+
		"after it, it reaches only attributes for which there are rules.", Plural(text+raw, "str value"), isAre(text), isAre(raw)), "")
	b.WriteString("\n")
}

func isAre(n int64) string {
	if n == 1 {
		return "1 is"
	}
	return Count(n) + " are"
}

func (s *Summary) metadata(b *strings.Builder) {
	t := &s.Report.Totals
	if t.Metadata == 0 {
		return
	}
	fmt.Fprintf(b, "Escaped: user or description of %s is not text; what stood there, in base64\n", Plural(t.Metadata, "transaction"))
	for _, e := range t.Escaped[:min(len(t.Escaped), dest.ListMax)] {
		fmt.Fprintf(b, "  %v  user %s  description %s\n", e.TID, encoded(e.User), encoded(e.Description))
	}
	if rest := t.Metadata - int64(min(len(t.Escaped), dest.ListMax)); rest > 0 {
		fmt.Fprintf(b, "  ... and %s more\n", Count(rest))
	}
	b.WriteString("\n")
}

// encoded gives bytes in base64, short enough for a line.
func encoded(raw []byte) string {
	if len(raw) == 0 {
		return "-"
	}
	text := base64.StdEncoding.EncodeToString(raw)
	if len(text) > 48 {
		return text[:48] + "..."
	}
	return text
}

func (s *Summary) rejects(b *strings.Builder) {
	n := s.Report.Totals.Rejected
	if n == 0 || len(s.Report.Rejects) == 0 {
		return
	}
	b.WriteString("Rejected\n")
	for i := range s.Report.Rejects[:min(len(s.Report.Rejects), dest.ListMax)] {
		wrap(b, rejectText(&s.Report.Rejects[i]), "  ")
	}
	if rest := n - int64(min(len(s.Report.Rejects), dest.ListMax)); rest > 0 {
		fmt.Fprintf(b, "  ... and %s more\n", Count(rest))
	}
	b.WriteString("\n")
}

// rejectText is one rejected record.
func rejectText(j *dest.Reject) string {
	return fmt.Sprintf("oid %v, tid %v%s, %s: %s", j.OID, j.TID, at(j.Pos), cmp.Or(j.Class, "unknown class"), j.Reason)
}

func (s *Summary) missingBlobs(b *strings.Builder) {
	list := s.Report.MissingBlobs
	if len(list) == 0 {
		return
	}
	b.WriteString("Missing blobs\n")
	for _, m := range list[:min(len(list), dest.ListMax)] {
		problem, place := blobProblem(m.Path, m.Reason)
		wrap(b, fmt.Sprintf("oid %v, tid %v%s: %s", m.OID, m.TID, at(m.Pos), problem), "  ")
		if place != "" {
			wrap(b, "  "+place, "  ")
		}
	}
	if rest := s.missing() - int64(min(len(list), dest.ListMax)); rest > 0 {
		fmt.Fprintf(b, "  ... and %s more\n", Count(rest))
	}
	b.WriteString("\n")
}

// paragraph writes a heading and its lines, or nothing.
func paragraph(b *strings.Builder, heading string, lines []string) {
	if len(lines) == 0 {
		return
	}
	b.WriteString(heading + "\n")
	for _, l := range lines[:min(len(lines), dest.ListMax)] {
		wrap(b, l, "  ")
	}
	more(b, len(lines))
	b.WriteString("\n")
}

// wrap breaks a text at blanks; what follows the first line stands deeper.
// A line that starts with a blank is a command to be copied: it stays whole.
func wrap(b *strings.Builder, text, indent string) {
	if strings.HasPrefix(text, " ") {
		b.WriteString(indent + text + "\n")
		return
	}
	line := indent
	for i, word := range strings.Fields(text) {
		if i > 0 && len(line)+1+len(word) > textWidth {
			b.WriteString(line + "\n")
			line = indent + "  " + word
			continue
		}
		if i > 0 {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
}
