package inspect

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// What is counted by class and oid: the special forms by their numbers, and then
// these.
const (
	causeRejected = jsonb.NumForms + iota
	causeMissingBlob
	causeBlobTooLarge
	causeEscaped
	causeNewCodec
	numCauses
)

const (
	protocols = 6
	// maxClasses and maxReasons bound what is told apart: a source may have as many
	// classes as records.
	maxClasses    = 5000
	maxClassNames = 1 << 20 // bytes of their names
	maxReasons    = 1000
)

// counts is what one worker has found.
type counts struct {
	classes   map[string]*class
	nameBytes int
	// others are the classes beyond maxClasses and maxClassNames.
	others  class
	found   [numCauses]found
	reasons map[string]int64
	largest []largeRecord

	protocols              [protocols]int64
	back, compressed       int64
	deleted, blobs         int64
	oldStrings, oldClasses int64
	dataBytes              int64
	hf, hp                 Rows

	// For the estimate: what stands in transactions, in the rows of objects and of
	// history, and in blobs.
	logBytes                   int64
	states, older              weights
	inRow, inRowBlobs, s3Bytes int64
}

// class is what is known of a class.
type class struct {
	name           string
	objects, bytes int64
	found          []share // by cause; most classes have none or one
}

// share is what of a class was found for one cause.
type share struct {
	cause          int
	records, bytes int64
}

// find adds what was found for a cause.
func (k *class) find(cause int, records, bytes int64) {
	at, there := slices.BinarySearchFunc(k.found, cause, func(s share, cause int) int { return cmp.Compare(s.cause, cause) })
	if !there {
		k.found = slices.Insert(k.found, at, share{cause: cause})
	}
	k.found[at].records += records
	k.found[at].bytes += bytes
}

// of is what was found for a cause.
func (k *class) of(cause int) share {
	for _, s := range k.found {
		if s.cause == cause {
			return s
		}
	}
	return share{}
}

// found is what was found for one cause.
type found struct {
	records, values int64
	first           []uint64 // the lowest oids or tids
}

type largeRecord struct {
	oid   zodb.OID
	tid   zodb.TID
	class *class
	bytes int64
}

func newCounts() *counts {
	return &counts{classes: map[string]*class{}, reasons: map[string]int64{}, largest: make([]largeRecord, 0, dest.ListMax+1)}
}

// add counts a record, and so many values in it.
func (f *found) add(id uint64, values int64) {
	f.records++
	f.values += values
	f.list(id)
}

func (f *found) list(id uint64) {
	if len(f.first) == dest.ListMax && id >= f.first[dest.ListMax-1] {
		return
	}
	at, there := slices.BinarySearch(f.first, id)
	if there {
		return
	}
	f.first = slices.Insert(f.first, at, id)
	f.first = f.first[:min(len(f.first), dest.ListMax)]
}

// class finds a class by its name.
func (c *counts) class(name []byte) *class {
	if k := c.classes[string(name)]; k != nil {
		return k
	}
	return c.named(string(name))
}

func (c *counts) named(name string) *class {
	k := c.classes[name]
	switch {
	case k != nil:
	case len(c.classes) >= maxClasses, c.nameBytes >= maxClassNames:
		return &c.others
	default:
		c.nameBytes += len(name)
		k = &class{name: name}
		c.classes[name] = k
	}
	return k
}

// find counts a record of a class, of so many bytes, for a cause.
func (c *counts) find(cause int, k *class, rec *source.Record, size, values int64) {
	c.found[cause].add(uint64(rec.OID), values)
	k.find(cause, 1, size)
}

// reason counts why a record is rejected, without the numbers that differ between
// records.
func (c *counts) reason(text string) {
	c.because(numbers.ReplaceAllString(text, "${1}N"), 1)
}

func (c *counts) because(text string, n int64) {
	if _, known := c.reasons[text]; !known && len(c.reasons) >= maxReasons {
		text = otherReasons
	}
	c.reasons[text] += n
}

const otherReasons = "other reasons"

var numbers = regexp.MustCompile(`(^|[ (])(0x[0-9a-f]+|[0-9]{2,})\b`)

// large keeps the largest records.
func (c *counts) large(rec *source.Record, k *class, size int64) {
	if len(c.largest) == dest.ListMax && size < c.largest[dest.ListMax-1].bytes {
		return
	}
	c.keep(largeRecord{rec.OID, rec.TID, k, size})
}

func (c *counts) keep(r largeRecord) {
	at, _ := slices.BinarySearchFunc(c.largest, r, func(a, b largeRecord) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.oid, b.oid), cmp.Compare(a.tid, b.tid))
	})
	c.largest = slices.Insert(c.largest, at, r)
	c.largest = c.largest[:min(len(c.largest), dest.ListMax)]
}

// crowded tells whether it takes more than a worker of many should.
func (c *counts) crowded() bool { return len(c.classes) > maxHeld || len(c.reasons) > maxHeld }

// maxHeld is how many classes or reasons a worker keeps to itself.
const maxHeld = 200

// merge adds what another worker has found.
func (c *counts) merge(o *counts) {
	for name, k := range o.classes {
		c.named(name).merge(k)
	}
	c.others.merge(&o.others)
	for i := range o.found {
		f := &o.found[i]
		c.found[i].records += f.records
		c.found[i].values += f.values
		for _, id := range f.first {
			c.found[i].list(id)
		}
	}
	for text, n := range o.reasons {
		c.because(text, n)
	}
	for _, r := range o.largest {
		c.keep(r)
	}
	for i, n := range o.protocols {
		c.protocols[i] += n
	}
	for _, sum := range []struct{ to, from *int64 }{
		{&c.back, &o.back}, {&c.compressed, &o.compressed}, {&c.deleted, &o.deleted}, {&c.blobs, &o.blobs},
		{&c.oldStrings, &o.oldStrings}, {&c.oldClasses, &o.oldClasses}, {&c.dataBytes, &o.dataBytes},
		{&c.logBytes, &o.logBytes},
		{&c.inRow, &o.inRow}, {&c.inRowBlobs, &o.inRowBlobs}, {&c.s3Bytes, &o.s3Bytes},
	} {
		*sum.to += *sum.from
	}
	c.hf.add(&o.hf)
	c.hp.add(&o.hp)
	c.states.add(&o.states)
	c.older.add(&o.older)
}

func (k *class) merge(o *class) {
	k.objects += o.objects
	k.bytes += o.bytes
	for _, s := range o.found {
		k.find(s.cause, s.records, s.bytes)
	}
}

func (r *Rows) add(o *Rows) {
	r.Transactions += o.Transactions
	r.Objects += o.Objects
	r.Revisions += o.Revisions
	r.Deleted += o.Deleted
	r.Rejected += o.Rejected
	r.Blobs += o.Blobs
	r.BlobBytes += o.BlobBytes
}

// top lists the classes with the largest sums of bytes, and sums up the rest.
func (c *counts) top() (first []Class, rest Class) {
	all := make([]*class, 0, len(c.classes))
	for _, k := range c.classes {
		if k.objects > 0 {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b *class) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(b.objects, a.objects), strings.Compare(a.name, b.name))
	})
	first = []Class{}
	for i, k := range all {
		if i < TopClasses {
			first = append(first, Class{Class: k.name, Objects: k.objects, Bytes: k.bytes})
			continue
		}
		rest.Objects += k.objects
		rest.Bytes += k.bytes
		rest.Classes++
	}
	rest.Objects += c.others.objects
	rest.Bytes += c.others.bytes
	return first, rest
}

// classesOf lists the classes of the records that were found for a cause, the
// most frequent first.
func (c *counts) classesOf(cause int) (list []Class) {
	for _, k := range c.classes {
		if s := k.of(cause); s.records > 0 {
			list = append(list, Class{Class: k.name, Objects: s.records, Bytes: s.bytes})
		}
	}
	slices.SortFunc(list, func(a, b Class) int {
		return cmp.Or(cmp.Compare(b.Objects, a.Objects), strings.Compare(a.Class, b.Class))
	})
	if len(list) > dest.ListMax {
		list = list[:dest.ListMax]
	}
	return list
}

// topReasons lists why records are rejected, the most frequent reason first.
func (c *counts) topReasons() (list []Reason) {
	for text, n := range c.reasons {
		list = append(list, Reason{Reason: text, Records: n})
	}
	slices.SortFunc(list, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Records, a.Records), strings.Compare(a.Reason, b.Reason))
	})
	if len(list) > dest.ListMax {
		list = list[:dest.ListMax]
	}
	return list
}
