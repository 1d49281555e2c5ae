package inspect

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// firstListed is how many oids and classes a finding about references names.
const firstListed = dest.ListMax

// referenceOptions say what is to be found of references.
type referenceOptions struct {
	// Reachability asks for unreachable objects and for who refers to what does not
	// exist. It takes a temporary file.
	Reachability bool
	TempDir      string // for that file; "" for the system's
	// Memory is what may be taken beside the buffers of the writers.
	Memory int64
	// Raise tells by how much --memory has to grow so that Memory becomes need.
	Raise func(need int64) int64
	// Objects is about how many current records there are, 0 if nobody knows.
	Objects int64
	// Announce is told about how large the temporary file may become before it is
	// made, which is a guess, if it is not nil.
	Announce func(bytes int64)
}

// references collects what the current records of a source refer to: weakly,
// strongly, and beyond their database.
//
// With reachability the references go to a temporary file, and memory takes a few
// bits for an object while records are read and less than six bytes afterwards, if
// oids lie close together; up to 40 bytes if each is far from the next.
type references struct {
	opts    referenceOptions
	file    *edgeFile // nil without reachability
	memory  setMemory
	classes classNames
	objects oidSet
	// targets are what is referred to; without reachability.
	targets, weakTargets oidSet

	mu      sync.Mutex
	writers []*referenceWriter
	// lost is why collecting has ended early, once gaveUp is set.
	gaveUp atomic.Bool
	lost   error

	said []string
	// frontier is how many objects wait in a list while they are walked.
	frontier int
}

// newReferences makes ready to collect. Close must be called.
func newReferences(opts referenceOptions) (*references, error) {
	r := &references{opts: opts, frontier: maxFrontier}
	// The sorted index is made beside the sets that it is made of.
	r.memory.most = opts.Memory / 2
	r.classes.init()
	for _, s := range []*oidSet{&r.objects, &r.targets, &r.weakTargets} {
		s.init(&r.memory)
	}
	if !opts.Reachability {
		return r, nil
	}
	if need := indexMemory(opts.Objects, opts.Objects/wordBits); need > opts.Memory {
		return nil, r.refused(opts.Objects, need)
	}
	if opts.Announce != nil {
		opts.Announce(opts.Objects * announcedEdgeBytes)
	}
	var err error
	r.file, err = createEdgeFile(opts.TempDir)
	return r, err
}

// refused is what is said if there is too little memory.
func (r *references) refused(objects, need int64) error {
	const mb = 1 << 20
	return &dest.RefusedError{
		Reason: fmt.Sprintf("looking for unreachable objects among %d takes %d MB, and %d MB of --memory are left for it",
			objects, need/mb+1, r.opts.Memory/mb),
		Hint: fmt.Sprintf("raise --memory by %d MB or more, or leave that out with --no-reachability", r.opts.Raise(need)/mb+1),
	}
}

// writer returns what one worker adds records to. The worker's encoder is used for
// rejects, so that a large one does not take the memory of two.
func (r *references) writer(encoder *jsonb.Encoder) *referenceWriter {
	w := &referenceWriter{references: r, encoder: encoder, classIDs: map[string]uint32{}, others: map[string]*otherDatabase{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writers = append(r.writers, w)
	return w
}

// giveUp ends what needs the temporary file: after hours of reading, one question
// without an answer is better than a report without any.
func (r *references) giveUp(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gaveUp.Load() {
		return
	}
	r.lost = why
	r.gaveUp.Store(true)
	r.objects.release()
	r.file.empty()
}

// unanswered says which questions have no answer.
func (r *references) unanswered(why error, what string) {
	r.said = append(r.said, fmt.Sprintf("Unreachable objects%s were not looked for: %v.", what, why))
}

const andMissing = " and references to what does not exist"

// Close removes the temporary file.
func (r *references) Close() error {
	if r.file == nil {
		return nil
	}
	return r.file.close()
}

// notes are sentences about what could not be found.
func (r *references) notes() []string { return r.said }

// referenceWriter takes the current records that one goroutine has decoded.
type referenceWriter struct {
	*references
	classIDs  map[string]uint32
	className []byte
	strong    []uint64
	weak      []uint64
	encoder   *jsonb.Encoder
	partial   int64 // records whose references are not all known
	unread    int64 // records of which nothing is known

	out     []byte
	others  map[string]*otherDatabase
	crossed census
	records int64 // that refer to another database
	first   lowest
}

// otherDatabase is what refers to another database.
type otherDatabase struct{ references, weak int64 }

// add adds a current record that has a row. size is that of its pickles.
func (w *referenceWriter) add(oid zodb.OID, row *jsonb.Row, size int64) {
	w.className = append(append(append(w.className[:0], row.Module...), '.'), row.Name...)
	w.strong = w.strong[:0]
	for _, ref := range row.Refs {
		w.strong = append(w.strong, uint64(ref))
	}
	w.record(uint64(oid), size, row.Loose)
}

// addUnread adds a current record whose data cannot be read: it exists, whatever it
// refers to.
func (w *referenceWriter) addUnread(oid zodb.OID) {
	w.unread++
	w.object(uint64(oid))
}

// addRejected adds a current record that has no row. Its references are looked for
// in its pickles; class is "" if it is not known. The encoder's last row is gone.
func (w *referenceWriter) addRejected(oid zodb.OID, class string, record []byte) {
	refs, loose, whole := w.encoder.References(record)
	if !whole {
		w.partial++
	}
	w.className = append(w.className[:0], class...)
	w.strong = w.strong[:0]
	for _, ref := range refs {
		w.strong = append(w.strong, uint64(ref))
	}
	w.record(uint64(oid), int64(len(record)), loose)
}

func (w *referenceWriter) record(oid uint64, size int64, loose []jsonb.Reference) {
	w.weak = w.weak[:0]
	if len(loose) > 0 {
		w.loose(oid, size, loose)
	}
	if !w.object(oid) {
		return
	}
	if w.file == nil {
		for _, t := range w.strong {
			w.targets.add(t)
		}
		for _, t := range w.weak {
			w.weakTargets.add(t)
		}
		return
	}
	w.out = appendEdges(w.out, &edges{oid: oid, class: w.class(), size: uint64(size), strong: compacted(w.strong), weak: compacted(w.weak)})
	if len(w.out) >= edgeBlock {
		w.flush()
	}
}

// object adds an oid, and tells whether what it refers to is of any use. The set has
// no room if oids lie far from each other; how far the rest do, nobody knows.
func (w *referenceWriter) object(oid uint64) bool {
	if w.gaveUp.Load() {
		return false
	}
	if w.objects.add(oid) {
		return true
	}
	if w.file != nil {
		w.giveUp(w.refused(w.opts.Objects, 2*w.opts.Memory))
	}
	return false
}

// flush writes what has been collected to the file.
func (w *referenceWriter) flush() {
	if len(w.out) > 0 && !w.gaveUp.Load() {
		if err := w.file.append(w.out); err != nil {
			w.giveUp(err)
		}
	}
	w.out = w.out[:0]
	if cap(w.out) > 4*edgeBlock {
		w.out = nil
	}
}

// loose sorts references into weak ones and those to other databases.
func (w *referenceWriter) loose(oid uint64, size int64, loose []jsonb.Reference) {
	crossed := false
	for i := range loose {
		l := &loose[i]
		if l.Database == nil {
			w.weak = append(w.weak, uint64(l.OID))
			continue
		}
		crossed = true
		o := w.others[string(l.Database)]
		if o == nil {
			name := string(l.Database)
			if len(w.others) >= maxDatabases {
				name = manyDatabases
			}
			if o = w.others[name]; o == nil {
				o = new(otherDatabase)
				w.others[name] = o
			}
		}
		o.references++
		if l.Weak {
			o.weak++
		}
		w.first.add(reference{oid, uint64(l.OID), l.Database})
	}
	if crossed {
		w.records++
		w.crossed.add(w.class(), size)
	}
}

const (
	// maxDatabases is how many names of other databases are told apart.
	maxDatabases  = 1000
	manyDatabases = "(others)"
)

// class is the number of the record's class.
func (w *referenceWriter) class() uint32 {
	id, ok := w.classIDs[string(w.className)]
	if !ok {
		id = w.classes.id(string(w.className))
		if len(w.classIDs) >= maxHeld {
			clear(w.classIDs)
		}
		if id != 0 {
			w.classIDs[w.classes.name(id)] = id
		}
	}
	return id
}

// findings tells what was found, after all writers are done.
func (r *references) findings(ctx context.Context) ([]Finding, error) {
	found := []Finding{r.crossDatabase()}
	var more []Finding
	var err error
	if r.file == nil {
		more = r.danglingTargets()
	} else {
		more, err = r.walkFile(ctx)
	}
	if err != nil {
		return nil, err
	}
	found = append(found, more...)
	n := 0
	for _, f := range found {
		if f.Count > 0 {
			found[n] = f
			n++
		}
	}
	return found[:n], nil
}

// setMemory is what sets of oids take together.
type setMemory struct {
	used atomic.Int64
	most int64
	full atomic.Bool
}

// take tells whether there is room for n more bytes.
func (m *setMemory) take(n int64) bool {
	if m.used.Add(n) > m.most {
		m.used.Add(-n)
		m.full.Store(true)
		return false
	}
	return true
}

// classNames gives numbers to the names of classes. 0 is that of all that are too
// many.
type classNames struct {
	mu    sync.Mutex
	ids   map[string]uint32
	names []string
	bytes int
}

const maxClassBytes = 16 << 20

func (c *classNames) init() { c.ids, c.names = map[string]uint32{}, []string{""} }

func (c *classNames) id(name string) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.ids[name]
	if !ok && c.bytes < maxClassBytes {
		id = uint32(len(c.names))
		c.ids[name] = id
		c.names = append(c.names, name)
		c.bytes += len(name) + 64
	}
	return id
}

func (c *classNames) name(id uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[id]
}

var errDamagedEdges = errors.New("it does not hold what was written to it")
