package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/internal/progress"
)

// sheet is a text of sections for people.
type sheet struct{ strings.Builder }

const (
	sheetWidth = 100
	// keyWidth is the column of names in a section, countWidth that of numbers.
	keyWidth   = 18
	countWidth = 14
)

// title begins a section.
func (s *sheet) title(text string) {
	if s.Len() > 0 {
		s.WriteString("\n")
	}
	s.WriteString(text + "\n")
}

// row writes a name and what it is; what does not fit into the line stands below
// itself.
func (s *sheet) row(key, format string, args ...any) {
	s.hang(fmt.Sprintf("  %-*s ", keyWidth, key), fmt.Sprintf(format, args...))
}

// counted writes a number and what there are so many of.
func (s *sheet) counted(n int64, format string, args ...any) {
	s.hang(fmt.Sprintf("  %*s  ", countWidth, progress.Count(n)), fmt.Sprintf(format, args...))
}

// below goes on below counted.
func (s *sheet) below(format string, args ...any) {
	s.hang(strings.Repeat(" ", countWidth+4), fmt.Sprintf(format, args...))
}

// hang writes a text behind the beginning of a line, broken at blanks.
func (s *sheet) hang(begin, text string) {
	line, empty := begin, true
	for _, word := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > sheetWidth {
			s.WriteString(line + "\n")
			line, empty = strings.Repeat(" ", len(begin)), true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	s.WriteString(strings.TrimRight(line, " ") + "\n")
}

// table writes rows with aligned columns; the last one is free.
func (s *sheet) table(rows [][]string) {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, r := range rows {
		line := ""
		for i, cell := range r {
			if i == len(r)-1 {
				line += "  " + cell
				continue
			}
			line += "  " + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + cell
		}
		s.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// inLine keeps a name, which may be anything, within its line.
var inLine = strings.NewReplacer("\n", `\x0a`, "\r", `\x0d`, "\t", `\x09`).Replace

// inspectText is the report for people. unread is why the source could not be read
// to its end, nil if it was.
func inspectText(r *inspect.Report, unread error) string {
	s := &sheet{}
	s.source(&r.Source)
	s.classes(&r.Source)
	s.largest(r.Source.Largest)
	s.blobs(&r.Source.Blobs)
	s.findings("What will not arrive unchanged", r.Altered)
	s.findings("Worth knowing", r.Notable)
	s.rows(&r.Source)
	s.estimate(r.Estimate)
	if r.Destination != nil {
		s.survey(r.Destination)
	}
	s.sentences("Notes", r.Notes)
	s.verdict(r, unread)
	return s.String()
}

func (s *sheet) source(src *inspect.Source) {
	s.title("Source " + inLine(src.Name))
	kind := src.Kind
	if src.Python2 {
		kind += ", written by Python 2"
	}
	s.row("kind", "%s", kind)
	s.row("size", "%s without blobs", progress.Bytes(src.Bytes))
	s.row("transactions", "%s", progress.Count(src.Transactions))
	if src.Transactions > 0 {
		s.row("first", "%s, tid %s", moment(src.FirstTime), src.First)
		s.row("last", "%s, tid %s", moment(src.LastTime), src.Last)
	}
	s.row("records", "%s", recordsText(src))
	s.row("objects", "%s, %s deleted", progress.Count(src.Current), progress.Count(src.Deleted))
	if src.Objects > 0 {
		s.row("highest oid", "%s", src.HighestOID)
	}
	if text := revisionsText(src); text != "" {
		s.row("revisions", "%s", text)
	}
	s.row("packed", "%s", packedText(src))
	s.row("pickles", "%s", picklesText(src))
	if src.OldStrings > 0 {
		s.row("Python 2 strings", "in %s", progress.Plural(src.OldStrings, "current record"))
	}
	if src.Falling > 0 {
		s.row("falling tids", "%s", progress.Plural(src.Falling, "transaction"))
	}
	if src.Tail != "" {
		s.row("left out", "%s", src.Tail)
	}
	if src.Damage != "" {
		s.row("damage", "%s", src.Damage)
	}
	if src.Unread > 0 {
		s.row("unreadable", "%s", progress.Plural(src.Unread, "record"))
	}
}

func moment(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

func recordsText(src *inspect.Source) string {
	text := progress.Count(src.Records) + ", all revisions"
	if src.BackRecords > 0 {
		text += fmt.Sprintf("; %s by undo", progress.Count(src.BackRecords))
	}
	if src.Compressed > 0 {
		text += fmt.Sprintf("; %s compressed", progress.Count(src.Compressed))
	}
	return text
}

// revisionsText is left out where every object has one revision.
func revisionsText(src *inspect.Source) string {
	if src.MaxRevision < 2 {
		return ""
	}
	var parts []string
	for i, n := range src.Revisions {
		if n == 0 {
			continue
		}
		from, to := int64(1)<<i, int64(2)<<i-1
		span := progress.Count(from)
		if to > from {
			span += " to " + progress.Count(to)
		}
		parts = append(parts, fmt.Sprintf("%s: %s", span, progress.Plural(n, "object")))
	}
	return fmt.Sprintf("%s; at most %s", strings.Join(parts, ", "), progress.Count(src.MaxRevision))
}

func packedText(src *inspect.Source) string {
	if src.PackedTIDs > 0 {
		return fmt.Sprintf("%s, it has marked %s", src.Packed, progress.Plural(src.PackedTIDs, "transaction"))
	}
	return src.Packed
}

func picklesText(src *inspect.Source) string {
	text := progress.Bytes(src.DataBytes)
	var parts []string
	for _, p := range src.Protocols {
		parts = append(parts, fmt.Sprintf("%d: %s", p.Protocol, progress.Plural(p.Records, "current record")))
	}
	if len(parts) > 0 {
		text += ", by protocol " + strings.Join(parts, ", ")
	}
	return text
}

func (s *sheet) classes(src *inspect.Source) {
	if len(src.Classes) == 0 {
		return
	}
	s.title("Classes of current objects")
	rows := [][]string{{"objects", "bytes", "class"}}
	for _, c := range src.Classes {
		rows = append(rows, []string{progress.Count(c.Objects), progress.Bytes(c.Bytes), className(c.Class)})
	}
	if o := src.OtherClasses; o.Objects > 0 {
		others := fmt.Sprintf("%s other classes", progress.Count(o.Classes))
		if o.Classes == 1 {
			others = "1 other class"
		}
		rows = append(rows, []string{progress.Count(o.Objects), progress.Bytes(o.Bytes), others})
	}
	s.table(rows)
}

func className(class string) string { return cmp.Or(inLine(class), "unknown class") }

func (s *sheet) largest(records []inspect.LargeRecord) {
	if len(records) == 0 {
		return
	}
	s.title("Largest records")
	rows := [][]string{{"bytes", "oid", "class"}}
	for _, l := range records {
		rows = append(rows, []string{progress.Bytes(l.Bytes), l.OID, className(l.Class)})
	}
	s.table(rows)
}

func (s *sheet) blobs(b *inspect.Blobs) {
	s.title("Blobs")
	if b.Records+b.Orphaned == 0 {
		s.row("records", "none")
		return
	}
	s.row("records", "%s, %s of them current", progress.Count(b.Records), progress.Count(b.Current))
	if b.Place == "" {
		s.row("found", "not looked for: the configuration does not say where they are")
		return
	}
	s.row("found", "%s, %s, in %s", progress.Count(b.Found), progress.Bytes(b.Bytes), inLine(b.Place))
	if b.CurrentBytes != b.Bytes {
		s.row("", "%s of them current", progress.Bytes(b.CurrentBytes))
	}
	if b.Missing > 0 {
		s.row("missing", "%s", progress.Count(b.Missing))
	}
	if b.Orphaned > 0 {
		s.row("orphaned", "%s that no record refers to", progress.Count(b.Orphaned))
	}
}

// findings tells what was found by cause.
func (s *sheet) findings(title string, found []inspect.Finding) {
	if len(found) == 0 {
		return
	}
	s.title(title)
	for i := range found {
		f := &found[i]
		s.counted(f.Count, "%s", f.Cause)
		s.below("%s", f.Text)
		if f.Values > f.Count {
			s.below("%s in these records", progress.Plural(f.Values, "value"))
		}
		for _, reason := range f.Reasons {
			s.below("%s %s", progress.Count(reason.Records), inLine(reason.Reason))
		}
		var classes []string
		others := f.Count
		for _, c := range f.Classes {
			classes = append(classes, className(c.Class)+" "+progress.Count(c.Objects))
			others -= c.Objects
		}
		if len(classes) > 0 && others > 0 {
			classes = append(classes, "other classes "+progress.Count(others))
		}
		if len(classes) > 0 {
			s.below("%s", strings.Join(classes, ", "))
		}
		if text := firstText(f); text != "" {
			s.below("%s", text)
		}
	}
}

// firstText names the first of a finding, of references with what they refer to.
func firstText(f *inspect.Finding) string {
	names := f.First
	switch {
	case len(f.First) == 0:
		names = f.Targets
	case len(f.First) == len(f.Targets):
		names = make([]string, len(f.First))
		for i := range names {
			names[i] = f.First[i] + " to " + f.Targets[i]
		}
	}
	text := inLine(strings.Join(names, ", "))
	if len(names) > 0 && int64(len(names)) < f.Count {
		text = "first " + text
	}
	return text
}

// rows tells what both kinds of destinations will hold.
func (s *sheet) rows(src *inspect.Source) {
	s.title("What a destination will hold")
	free, preserving := &src.HistoryFree, &src.HistoryPreserving
	rows := [][]string{{"history-free", "history-preserving", ""}}
	for _, r := range []struct {
		name    string
		of      func(*inspect.Rows) int64
		content func(int64) string
	}{
		{"transactions", func(r *inspect.Rows) int64 { return r.Transactions }, progress.Count},
		{"objects", func(r *inspect.Rows) int64 { return r.Objects }, progress.Count},
		{"older revisions", func(r *inspect.Rows) int64 { return r.Revisions }, progress.Count},
		{"rejected records", func(r *inspect.Rows) int64 { return r.Rejected }, progress.Count},
		{"blobs", func(r *inspect.Rows) int64 { return r.Blobs }, progress.Count},
		{"bytes of blobs", func(r *inspect.Rows) int64 { return r.BlobBytes }, progress.Bytes},
	} {
		rows = append(rows, []string{r.content(r.of(free)), r.content(r.of(preserving)), r.name})
	}
	s.table(rows)
}

func (s *sheet) estimate(e *inspect.Estimate) {
	if e == nil {
		return
	}
	kind := "without history"
	if e.HistoryPreserving {
		kind = "with history"
	}
	s.title("About what a conversion takes, into a destination " + kind)
	if e.S3Bytes > 0 {
		s.row("time", "%s with as many workers as this inspection had, if the server keeps up and S3 takes %s a second", secondsText(e.Seconds), progress.Bytes(e.S3Rate))
	} else {
		s.row("time", "%s with as many workers as this inspection had, if the server keeps up", secondsText(e.Seconds))
	}
	s.row("JSON", "%s", progress.Bytes(e.StateBytes))
	disk := progress.Bytes(e.DiskBytes) + " for tables and indexes"
	if e.BlobBytes > 0 {
		disk += fmt.Sprintf(", %s of it blobs", progress.Bytes(e.BlobBytes))
	}
	s.row("disk", "%s", disk)
	s.row("write-ahead log", "%s, of which the server keeps max_wal_size or little more at a time", progress.Bytes(e.WALBytes))
	if e.S3Bytes > 0 {
		s.row("S3", "%s", progress.Bytes(e.S3Bytes))
	}
}

// secondsText is a time without fractions, which an estimate has not.
func secondsText(n int64) string {
	switch {
	case n <= 1:
		return "a second or less"
	case n < 10:
		return fmt.Sprintf("%ds", n)
	}
	return progress.Duration(time.Duration(n) * time.Second)
}

// survey tells what the destination's server says.
func (s *sheet) survey(d *dest.Survey) {
	s.title("Destination " + inLine(d.Name))
	if d.Problem != "" {
		s.row("problem", "%s", d.Problem)
	}
	for _, r := range []struct{ key, value string }{
		{"server", d.Server}, {"role", inLine(d.Role)}, {"encoding", d.Encoding}, {"condition", string(d.Condition)},
	} {
		if r.value != "" {
			s.row(r.key, "%s", r.value)
		}
	}
	if d.Server == "" {
		return // nobody could be asked
	}
	s.row("lz4", "%s", yesOrNo(d.LZ4))
	if c := d.Connections; c.Max > 0 {
		s.row("connections", "%d of %d are free (%s), a conversion takes %d", c.Free, c.Max, inLine(c.Limit), c.Needed)
	}
	for _, r := range d.Rights {
		if r.Granted {
			continue
		}
		name := r.Name
		if r.Needed {
			name += ", which a conversion needs"
		}
		s.row("may not", "%s", strings.TrimSuffix(inLine(name+": "+r.Hint), ": "))
	}
	if d.Objects+d.Bytes > 0 {
		s.row("holds", "%s, %s", progress.Plural(d.Objects, "object"), progress.Bytes(d.Bytes))
	}
	for _, t := range d.BlobTiers {
		s.row("blobs in "+t.Tier, "%s, %s, the largest %s", progress.Count(t.Blobs), progress.Bytes(t.Bytes), progress.Bytes(t.Largest))
	}
	for _, f := range d.Faults {
		s.row("fault", "%s", inLine(f.String()))
	}
	s.settings(d.Settings)
	s.sentences("Advice", d.Advice)
	s.sentences("Notes on the destination", d.Notes)
}

// sentences are a section of them, or nothing.
func (s *sheet) sentences(title string, list []string) {
	if len(list) == 0 {
		return
	}
	s.title(title)
	for _, sentence := range list {
		s.hang("  ", sentence)
	}
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// settings are shown with what to change in them; those that are well as they are
// share a paragraph.
func (s *sheet) settings(list []dest.Setting) {
	if len(list) == 0 {
		return
	}
	s.title("Settings of the server")
	var well []string
	for _, set := range list {
		value := inLine(cmp.Or(set.Value, "''"))
		if set.Load+set.After == "" {
			well = append(well, set.Name+" "+value)
			continue
		}
		s.hang("  ", set.Name+" "+value)
		if set.Load != "" {
			s.hang("      for the load    ", set.Load)
		}
		if set.After != "" {
			s.hang("      afterwards      ", set.After)
		}
	}
	if len(well) > 0 {
		s.hang("  ", "well as they are: "+strings.Join(well, ", "))
	}
}

// verdict is the last line: what the exit code says.
func (s *sheet) verdict(r *inspect.Report, unread error) {
	s.title("Result")
	switch {
	case unread != nil && !r.Source.CutOff && r.Source.Unread > 0:
		s.hang("  ", fmt.Sprintf("The data of %s cannot be read: the numbers are of all others.", progress.Plural(r.Source.Unread, "record")))
	case unread != nil:
		s.hang("  ", "The source could not be read to its end: the numbers are of what stands before the damage.")
	case r.Clean():
		s.hang("  ", "Everything will arrive unchanged.")
	default:
		var parts []string
		for _, f := range r.Altered {
			parts = append(parts, f.Cause+" "+progress.Count(f.Count))
		}
		s.hang("  ", "Not everything will arrive unchanged: "+strings.Join(parts, ", ")+".")
	}
}
