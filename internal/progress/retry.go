package progress

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

// RetrySummary is what came of retrying the records of a rejects file.
type RetrySummary struct {
	Report            *pipeline.RetryReport
	HistoryPreserving bool
	Elapsed           time.Duration
	Next              []string
}

// RetryLine is "retry_summary".
type RetryLine struct {
	Head
	File         string            `json:"file" doc:"the list of rejects read"`
	Destination  string            `json:"destination" doc:"the database written, without secrets"`
	Records      int64             `json:"records" doc:"records in the file"`
	Written      int64             `json:"written" doc:"written by this call"`
	There        int64             `json:"there" doc:"in the destination before this call"`
	Superseded   []SupersededEntry `json:"superseded" doc:"not written: the destination, or the list, has something newer of the same object"`
	Rejected     []RejectEntry     `json:"rejected" doc:"not written: this version cannot store them either, or a pack has removed their transaction"`
	Blobs        int64             `json:"blobs" doc:"missing blobs in the file, which does not hold their bytes, that are still missing"`
	BlobsThere   int64             `json:"blobs_there" doc:"missing blobs in the file that the destination has by now"`
	Forms        map[string]int64  `json:"special_forms" doc:"special forms written, by kind"`
	NewCodec     int64             `json:"new_codec" doc:"written records that only zodb-json-codec 1.7.0 or later reads"`
	Unreferenced int64             `json:"unreferenced" doc:"written objects to which nothing refers"`
	Dangling     int64             `json:"dangling" doc:"oids to which objects of the list refer that are there now, and which are not there"`
	Sessions     []string          `json:"sessions" doc:"who else was connected (--yes)"`
	PackBegan    bool              `json:"pack_began" doc:"a pack began while the records were committed, and may remove what they refer to"`
	Unwatched    string            `json:"unwatched" doc:"why that could not be looked up, empty as a rule"`
	Elapsed      float64           `json:"elapsed" doc:"seconds"`
	Next         []string          `json:"next" doc:"what to do now"`
}

// SupersededEntry is one of "superseded".
type SupersededEntry struct {
	OID   string `json:"oid" doc:"of the object"`
	TID   string `json:"tid" doc:"of the record in the file"`
	Newer string `json:"newer" doc:"tid of what is newer"`
	// Without it a reader would look for it in the destination.
	Listed bool `json:"listed" doc:"the newer revision is in the same list; it may be among the rejected"`
}

// Text gives the summary for people. verbose lists everything.
func (s *RetrySummary) Text(verbose bool) string {
	r := s.Report
	var b strings.Builder
	switch rest := r.Remaining(); {
	case r.Records+r.Blobs+r.BlobsThere == 0:
		fmt.Fprintf(&b, "\nDone: %s is empty.\n\n", r.File)
	case rest == 0:
		fmt.Fprintf(&b, "\nDone: everything that %s lists is in %s.\n\n", r.File, r.Destination)
	default:
		fmt.Fprintf(&b, "\nDone: what %s lists is in %s, but for %s.\n\n", r.File, r.Destination, s.remaining())
	}
	row(&b, "written", Count(r.Written), "")
	if r.There > 0 {
		row(&b, "there already", Count(r.There), "")
	}
	if r.Superseded > 0 {
		row(&b, "superseded", Count(r.Superseded), s.newer())
	}
	row(&b, "rejected", Count(r.Rejected), "")
	if r.Blobs > 0 {
		row(&b, "missing blobs", Count(r.Blobs), "their bytes are in no list of rejects")
	}
	if r.BlobsThere > 0 {
		row(&b, "blobs there", Count(r.BlobsThere), "")
	}
	for _, form := range slices.Sorted(maps.Keys(r.Forms)) {
		row(&b, form, Count(r.Forms[form]), "special form")
	}
	row(&b, "time", Duration(s.Elapsed), "")
	b.WriteString("\n")
	superseded := make([]string, len(r.Outdated))
	for i, o := range r.Outdated {
		text := "oid %v, tid %v: the destination has tid %v"
		if o.Listed {
			text = "oid %v, tid %v: a newer revision is in the same list, tid %v"
		}
		superseded[i] = fmt.Sprintf(text, o.OID, o.TID, o.Newer)
	}
	listed(&b, "Superseded", superseded, r.Superseded, verbose)
	rejected := make([]string, len(r.Rejects))
	for i := range r.Rejects {
		rejected[i] = rejectText(&r.Rejects[i])
	}
	listed(&b, "Rejected", rejected, r.Rejected, verbose)
	paragraph(&b, "Notes", s.notes())
	paragraph(&b, "Next", s.Next)
	return strings.TrimSuffix(b.String(), "\n")
}

// newer says where what is newer is.
func (s *RetrySummary) newer() string {
	switch s.Report.SupersededByListed {
	case 0:
		return "the destination has something newer"
	case s.Report.Superseded:
		return "the list has something newer"
	}
	return "the destination or the list has something newer"
}

// remaining says how much is not in the destination.
func (s *RetrySummary) remaining() string {
	var parts []string
	if n := s.Report.Superseded + s.Report.Rejected; n > 0 {
		parts = append(parts, Plural(n, "record"))
	}
	if n := s.Report.Blobs; n > 0 {
		parts = append(parts, Plural(n, "blob"))
	}
	return strings.Join(parts, " and ")
}

// notes are what matters besides.
func (s *RetrySummary) notes() []string {
	r := s.Report
	var notes []string
	if r.NewCodec > 0 {
		notes = append(notes, fmt.Sprintf("%s written in forms that only zodb-json-codec %s or later reads.", Plural(r.NewCodec, "record")+" "+verb(r.NewCodec), CodecNeeded))
	}
	if r.Unreferenced > 0 {
		notes = append(notes, fmt.Sprintf("Nothing in the destination refers to %s that %s written: deleted since, or referred to from elsewhere only. The next pack removes such objects.",
			Plural(r.Unreferenced, "object"), verb(r.Unreferenced)))
	}
	if r.Dangling > 0 {
		notes = append(notes, fmt.Sprintf("What is there of the list refers to %s that the destination does not have: rejected as well, lost in the source already, or removed by a pack since.",
			Plural(r.Dangling, "object")))
	}
	if r.PackBegan {
		notes = append(notes, fmt.Sprintf("A pack began while the records were committed, and may remove what they refer to. When it has ended, type the same command again: it writes what is gone of %s, and counts what they refer to and is missing.", r.File))
	}
	if r.Unwatched != "" {
		notes = append(notes, fmt.Sprintf("Everything is committed, but whether a pack began meanwhile could not be looked up: %s.", r.Unwatched))
	}
	return notes
}

// verb is that of a number of things.
func verb(n int64) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// listed writes a list of so many lines, or its beginning.
func listed(b *strings.Builder, title string, lines []string, total int64, verbose bool) {
	if len(lines) == 0 {
		return
	}
	b.WriteString(title + "\n")
	shown := lines
	if !verbose {
		shown = lines[:min(len(lines), dest.ListMax)]
	}
	for _, line := range shown {
		wrap(b, line, "  ")
	}
	if rest := total - int64(len(shown)); rest > 0 {
		fmt.Fprintf(b, "  ... and %s more; -v lists all\n", Count(rest))
	}
	b.WriteString("\n")
}

// Retried implements Printer.
func (t *Text) Retried(s *RetrySummary) { t.line("%s", s.Text(t.verbose)) }

// Retried implements Printer.
func (j *JSON) Retried(s *RetrySummary) {
	r := s.Report
	line := RetryLine{
		Head: head("retry_summary", time.Now()), File: r.File, Destination: r.Destination,
		Records: r.Records, Written: r.Written, There: r.There, Superseded: []SupersededEntry{}, Rejected: []RejectEntry{},
		Blobs: r.Blobs, BlobsThere: r.BlobsThere, Forms: r.Forms, NewCodec: r.NewCodec, Unreferenced: r.Unreferenced, Dangling: r.Dangling,
		Sessions: orEmpty(r.Sessions), PackBegan: r.PackBegan, Unwatched: r.Unwatched, Elapsed: s.Elapsed.Seconds(), Next: orEmpty(s.Next),
	}
	if line.Forms == nil {
		line.Forms = map[string]int64{}
	}
	for _, o := range r.Outdated {
		line.Superseded = append(line.Superseded, SupersededEntry{OID: o.OID.String(), TID: o.TID.String(), Newer: o.Newer.String(), Listed: o.Listed})
	}
	for _, e := range r.Rejects {
		line.Rejected = append(line.Rejected, RejectEntry{OID: e.OID.String(), TID: e.TID.String(), Offset: e.Pos, Class: e.Class, Reason: e.Reason})
	}
	j.print(line)
}

func (quiet) Retried(*RetrySummary) {}
