package inspect

import (
	"fmt"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// conclude fills in what was found.
func (r *run) conclude(c *counts) {
	s := &r.report.Source
	s.Deleted, s.Current = c.deleted, c.hf.Objects+c.hf.Rejected
	s.BackRecords, s.Compressed, s.DataBytes = c.back, c.compressed, c.dataBytes
	s.OldStrings = c.oldStrings
	s.Python2 = s.Python2 || c.oldStrings+c.oldClasses > 0
	if r.revisions.full {
		r.note("the revisions of each object were not counted: that takes more memory than --memory leaves for it")
	} else {
		s.Revisions, s.MaxRevision = r.revisions.histogram()
	}
	s.Classes, s.OtherClasses = c.top()
	if c.others.objects > 0 {
		r.note(fmt.Sprintf("there are more classes than are told apart; %d are, and the others are in one sum", len(c.classes)))
	}
	for p, n := range c.protocols {
		if n > 0 {
			s.Protocols = append(s.Protocols, Protocol{Protocol: p, Records: n})
		}
	}
	for _, l := range c.largest {
		s.Largest = append(s.Largest, LargeRecord{OID: l.oid.String(), TID: l.tid.String(), Class: l.class.name, Bytes: l.bytes})
	}
	s.Blobs.Current, s.Blobs.CurrentBytes = c.blobs, c.hf.BlobBytes
	s.HistoryFree, s.HistoryPreserving = c.hf, c.hp
	if !r.opts.HistoryPreserving {
		h := &s.HistoryPreserving
		h.Blobs, h.BlobBytes = s.Blobs.Found, s.Blobs.Bytes
		if h.Revisions > 0 {
			r.note("older revisions were counted and not decoded, since the destination is one without history: with history some of them may be rejected")
		}
	}
	if n := r.damage.records; n > 0 {
		s.Unread = n
		r.note(fmt.Sprintf("the data of %s cannot be read; what they hold is in none of the numbers of rows, and a conversion stops at the first of them", progress.Plural(n, "record")))
	}
	if s.Python2 {
		r.note("Python 2 has written it: whatever the application needs to run on Python 3 with it, such as zodbupdate, is to be done before the conversion")
	}
	r.list(c)
}

// list makes the findings.
func (r *run) list(c *counts) {
	for i := range numCauses {
		cause := (i + jsonb.NumForms) % numCauses // the forms come last
		f := &c.found[cause]
		if f.records == 0 {
			continue
		}
		text, altered := explain(cause)
		found := Finding{Cause: causeName(cause), Text: text, Count: f.records, Classes: c.classesOf(cause)}
		if cause < jsonb.NumForms {
			found.Values = f.values
		}
		for _, id := range f.first {
			found.First = append(found.First, zodb.OID(id).String()) // tids look the same
		}
		if cause == causeRejected {
			found.Reasons = c.topReasons()
		}
		if cause == causeMissingBlob && r.info.BlobDir == "" {
			found.Text = noPlace
		}
		if altered {
			r.report.Altered = append(r.report.Altered, found)
		} else {
			r.report.Notable = append(r.report.Notable, found)
		}
	}
	if f := &c.found[causeRejected]; len(f.first) > 0 && f.first[0] == uint64(zodb.Root) {
		r.note("the root object is among the rejected records: without it the database cannot be opened, and no conversion is finished")
	}
	r.structure(c)
}

// noPlace is what keeps a conversion from beginning.
const noPlace = "The configuration does not say where the files of blobs are; no conversion begins before it does."

// structure lists what the scan has found.
func (r *run) structure(c *counts) {
	info := r.info
	if c.found[causeMissingBlob].records == 0 && r.placeless() {
		f := Finding{Cause: MissingBlob, Text: noPlace, Count: info.Blobs}
		for _, oid := range info.BlobOIDs[:min(len(info.BlobOIDs), dest.ListMax)] {
			f.First = append(f.First, oid.String())
		}
		r.report.Altered = append(r.report.Altered, f)
	}
	notable := func(f Finding) { r.report.Notable = append(r.report.Notable, f) }
	if !info.HasRoot && info.Transactions > 0 {
		notable(Finding{Cause: NoRoot, Count: 1,
			Text: "There is no root object (oid 0): the application will make a new, empty one."})
	}
	if info.BlobDir != "" && info.OrphanBlobs > 0 {
		notable(Finding{Cause: OrphanedBlob, Count: info.OrphanBlobs,
			Text: "Blobs that no record refers to are not converted."})
	}
	if info.Tail != "" {
		notable(Finding{Cause: TornTail, Count: 1,
			Text: "What stands behind the last whole transaction is left out, as ZODB leaves it out: " + info.Tail + "."})
	}
	if info.FallingTIDs > 0 {
		r.falling()
	}
	if info.Records > 0 && info.MaxOID >= zodb.Limit {
		r.highID("oid", info.MaxOID.String())
	}
	if info.MaxTID >= zodb.Limit {
		r.highID("tid", info.MaxTID.String())
	}
}

// placeless tells whether a conversion asks for the place of blobs. It does for those
// that it will not write, too, because they are older or deleted; of a table without
// history it does not look at them.
func (r *run) placeless() bool {
	_, table := r.src.(source.Table)
	return r.info.Blobs > 0 && r.info.BlobDir == "" && (r.opts.HistoryPreserving || !table)
}

// highID tells of an oid or tid that keeps a conversion from beginning.
func (r *run) highID(kind, id string) {
	r.report.Altered = append(r.report.Altered, Finding{Cause: HighID, Count: 1, First: []string{id},
		Text: "The highest " + kind + " is more than a bigint column can hold with room for new ones: the conversion is refused."})
}

// falling tells of tids that are not in order. Without history they do no harm,
// unless two are equal.
func (r *run) falling() {
	f := Finding{Cause: FallingTID, Count: r.info.FallingTIDs,
		Text: "The tids of transactions fall; the order in the source counts, and a destination without history does not show it."}
	if r.opts.HistoryPreserving {
		f.Text = "The tids of transactions fall, so the history has no order: a conversion with history is refused; convert without history, or pack the source first."
	}
	equal := (*source.TIDOrder)(nil)
	for i := range r.info.Falling {
		if len(f.First) < dest.ListMax {
			f.First = append(f.First, r.info.Falling[i].TID.String())
		}
		if r.info.Falling[i].Equal && equal == nil {
			equal = &r.info.Falling[i]
		}
	}
	if equal != nil {
		f.Text = fmt.Sprintf("Two transactions have the tid %v, which is their key in the destination: the conversion is refused.", equal.TID)
	}
	if equal != nil || r.opts.HistoryPreserving {
		r.report.Altered = append(r.report.Altered, f)
		return
	}
	r.report.Notable = append(r.report.Notable, f)
}

// causeName is the stable name of a cause.
func causeName(cause int) string {
	if cause < jsonb.NumForms {
		return jsonb.Form(cause).String()
	}
	return [...]string{
		causeRejected - jsonb.NumForms:     Rejected,
		causeNewCodec - jsonb.NumForms:     NewCodec,
		causeMissingBlob - jsonb.NumForms:  MissingBlob,
		causeBlobTooLarge - jsonb.NumForms: BlobTooLarge,
		causeEscaped - jsonb.NumForms:      EscapedMetadata,
	}[cause-jsonb.NumForms]
}

// explain says what a cause means, and whether the application will see the
// difference, or miss something, once the site runs on the destination.
func explain(cause int) (text string, altered bool) {
	if cause < jsonb.NumForms {
		form := jsonb.Form(cause)
		text = formTexts[form]
		if form.LostOnSave() {
			text += " When the application next saves such an object, zodb-pgjsonb alters it or fails."
		}
		return text, form == jsonb.SharedCopied
	}
	switch cause {
	case causeRejected:
		return "Records have no form in the destination: they are not converted, and a conversion stops unless --rejects names a file for them.", true
	case causeNewCodec:
		// zodb-pgjsonb is content with 1.6.1, which alters them without a word.
		return "Records are read back right by zodb-json-codec 1.7.0 and later only: a site with an earlier one, which zodb-pgjsonb allows, alters them in silence.", true
	case causeMissingBlob:
		return "The bytes of blobs are missing or cannot be read: a conversion stops unless --allow-missing-blobs is given, and the objects have no data then.", true
	case causeBlobTooLarge:
		return "Blobs are larger than zodb-pgjsonb reads from PostgreSQL: name a bucket for large blobs, s3-bucket-name in [destination].", true
	}
	return `User or description of transactions hold bytes that are not UTF-8, or NUL: they read back as \xHH.`, true
}

// formTexts say what each special form means to whoever runs the site.
var formTexts = [jsonb.NumForms]string{
	jsonb.FloatSpecial:    "Numbers are not-a-number, infinite or negative zero; they are kept by a form of their own.",
	jsonb.FloatLarge:      "Numbers of 1e16 and more are written with all their digits, so that they stay floats.",
	jsonb.DictPairs:       "Dicts have keys that look like markers of the codec; they are kept as pairs.",
	jsonb.DictCall:        "States look like arguments of a constructor; they are kept by a form of their own.",
	jsonb.Python2Text:     "Strings of Python 2 that are ASCII become text, as for every application on Python 3.",
	jsonb.Python2Bytes:    "Strings of Python 2 that are not ASCII become bytes, as for every application on Python 3.",
	jsonb.Python2Class:    "The names of classes are strings of Python 2; they become text.",
	jsonb.SurrogateText:   "Text has characters that are no characters (lone surrogates); it is kept by a form of its own.",
	jsonb.NulText:         "Text has NUL characters where the codec has no place for them; it is kept by a form of its own.",
	jsonb.DatetimeGeneric: "Dates or times have no short form; they are kept by a form of their own.",
	jsonb.KnownGeneric:    "Values of a known type have no short form; they are kept by a form of their own.",
	jsonb.BTreeGeneric:    "BTrees have a state that BTrees do not make; it is kept by a form of its own.",
	jsonb.RefGeneric:      "References to objects have no short form; they are kept by a form of their own.",
	jsonb.RefInCallable:   "References to objects stand within a callable; they are kept, and a pack finds them.",
	jsonb.OldInstance:     "Instances of old-style classes of Python 2 are kept as instances.",
	jsonb.ByteArray:       "Bytearrays are kept by a form of their own.",
	jsonb.IntText:         "Integers beyond 64 bits were written as text; they are kept as integers.",
	jsonb.SharedCopied: "Lists, dicts or instances that one record holds twice become two equal ones: a later change of one is not seen " +
		"in the other; --preserve-sharing keeps them one.",
	jsonb.ItemsReordered: "Subclasses of list or dict get their items before their state, not after it; the values are the same.",

	jsonb.CapsuleCycle:     "States hold a value that contains itself; they are kept as capsules, into which SQL cannot look.",
	jsonb.CapsuleState:     "States hold an object that gets its own state twice, or by a call; they are kept as capsules, into which SQL cannot look.",
	jsonb.CapsuleDepth:     "States are nested too deeply for JSON; they are kept as capsules, into which SQL cannot look.",
	jsonb.CapsuleExpansion: "The shared parts of states would take too much room; they are kept as capsules, into which SQL cannot look.",
	jsonb.CapsuleSize:      "States are larger than jsonb holds; they are kept as compressed capsules, into which SQL cannot look.",
	jsonb.CapsuleExtension: "States have codes of Python's extension registry; they are kept as capsules, into which SQL cannot look.",
	jsonb.CapsuleShared:    "States hold parts that are shared; they are kept as capsules, into which SQL cannot look.",
}
