package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// A frontier are the objects that are reached and not yet looked at, in a list;
	// those that are too many for it wait in a bitmap.
	smallestFrontier = 1 << 12
	maxFrontier      = 1 << 20
	// stepsBetweenChecks is after how many objects it is asked whether to go on.
	stepsBetweenChecks = 1 << 14
)

// walk finds what the references in the temporary file lead to.
type walk struct {
	*references
	ctx     context.Context
	index   oidIndex
	offsets offsets
	reader  edgeReader
	steps   int

	reached  bitmap
	pending  bitmap // reached, not looked at, not in the frontier
	overflow bool   // pending is not empty
	frontier []int64
	most     int // of frontier
}

// walkFile finds what needs the temporary file. Only the end of ctx is an error:
// what cannot be found is said.
func (r *references) walkFile(ctx context.Context) ([]Finding, error) {
	partial, unread := int64(0), int64(0)
	for _, w := range r.writers {
		w.flush()
		w.out = nil
		partial += w.partial
		unread += w.unread
	}
	if r.gaveUp.Load() {
		r.file.empty() // of what was being written meanwhile
		r.unanswered(r.lost, andMissing)
		return nil, ctx.Err()
	}
	k := &walk{references: r, ctx: ctx, index: r.objects.sorted(), reader: edgeReader{from: r.file}}
	n := k.index.n
	need := indexMemory(n, int64(len(k.index.words)))
	if need > r.opts.Memory || n > math.MaxUint32 {
		r.unanswered(r.refused(n, need), andMissing)
		return nil, ctx.Err()
	}
	k.most = int(min(int64(r.frontier), smallestFrontier+(r.opts.Memory-need)/16))
	k.index.number()
	k.offsets = newOffsets(n)

	found, err := k.dangling()
	if err != nil {
		r.unanswered(err, andMissing)
		return nil, ctx.Err()
	}
	root, ok := k.index.rank(uint64(zodb.Root))
	switch {
	case n == 0:
		return nil, nil
	case unread > 0: // their oids have no edges in the file
		r.unanswered(errors.New("what the records refer to that cannot be read is not known"), "")
		return found, nil
	case !ok:
		r.unanswered(errors.New("there is no root object to begin with"), "")
		return found, nil
	}
	k.reached, k.pending = newBitmap(n), newBitmap(n)
	k.reach(root)
	var unreachable Finding
	if err = k.run(); err == nil {
		unreachable, err = k.unreachable(partial)
	}
	if err != nil {
		r.unanswered(err, "")
		return found, ctx.Err()
	}
	return append(found, unreachable), nil
}

// each calls fn for the edges of all objects, in the order of the file.
func (k *walk) each(fn func(at int64, e *edges) error) error {
	for at := int64(0); at < k.file.size; {
		if err := k.check(); err != nil {
			return err
		}
		next, err := k.reader.read(at, at)
		if err != nil {
			return err
		}
		if err := fn(at, &k.reader.edges); err != nil {
			return err
		}
		at = next
	}
	return nil
}

func (k *walk) check() error {
	if k.steps++; k.steps%stepsBetweenChecks == 0 {
		return k.ctx.Err()
	}
	return nil
}

// missing sums up references to what does not exist.
type missing struct {
	references, records int64
	targets             oidTable
	classes             census
	first               lowest
}

// add looks for the oids in the index.
func (m *missing) add(x *oidIndex, e *edges, oids []uint64) {
	before := m.references
	for _, oid := range oids {
		if _, ok := x.rank(oid); ok {
			continue
		}
		m.references++
		m.targets.add(oid)
		m.first.add(reference{from: e.oid, to: oid})
	}
	if m.references > before {
		m.records++
		m.classes.add(e.class, int64(e.size))
	}
}

// objects is how many objects are missing, and says so.
func (m *missing) objects() (n int64, text string) {
	for _, w := range m.targets.words {
		n += int64(bits.OnesCount64(w.bits))
	}
	if m.targets.memory.full.Load() {
		return n, fmt.Sprintf("more than %s objects", progress.Count(n))
	}
	return n, progress.Plural(n, "object")
}

// dangling notes where each object's edges are and finds references to what does
// not exist.
func (k *walk) dangling() ([]Finding, error) {
	memory := &setMemory{most: k.opts.Memory / 8}
	strong, weak := &missing{targets: oidTable{memory: memory}}, &missing{targets: oidTable{memory: memory}}
	err := k.each(func(at int64, e *edges) error {
		rank, ok := k.index.rank(e.oid)
		if !ok {
			return k.reader.fail(errDamagedEdges)
		}
		k.offsets.set(rank, at)
		strong.add(&k.index, e, e.strong)
		weak.add(&k.index, e, e.weak)
		return nil
	})
	return []Finding{
		k.missing(Dangling, strong, "Objects refer to what the source has not, or not any more (%s to %s): "+
			"an application that follows one gets a POSKeyError, in the source as in the destination."),
		k.missing(WeakDangling, weak, "Objects refer weakly to what does not exist (%s to %s), which is harmless: weak references are made for that."),
	}, err
}

func (k *walk) missing(cause string, m *missing, format string) Finding {
	n, objects := m.objects()
	f := Finding{Cause: cause, Count: m.records, Missing: n, Classes: k.frequent(m.classes)}
	f.Text = fmt.Sprintf(format, progress.Plural(m.references, "reference"), objects)
	f.list(m.first)
	return f
}

// list names references.
func (f *Finding) list(first lowest) {
	for _, r := range first {
		to := zodb.OID(r.to).String()
		if r.database != nil {
			to = fmt.Sprintf("%s in %s", to, quoted(string(r.database)))
		}
		f.First = append(f.First, zodb.OID(r.from).String())
		f.Targets = append(f.Targets, to)
	}
}

// quoted is the name of a database as text of one line that is not too long.
func quoted(name string) string {
	const most = 64
	if len(name) > most {
		name = name[:most] + "..."
	}
	return fmt.Sprintf("%q", strings.ToValidUTF8(name, "?"))
}

// frequent are the classes of most records.
func (r *references) frequent(c census) []Class {
	var out []Class
	for id, n := range c {
		if n.Objects > 0 {
			n.Class = r.classes.name(uint32(id))
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Class) int {
		return cmp.Or(cmp.Compare(b.Objects, a.Objects), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Class, b.Class))
	})
	return out[:min(len(out), firstListed)]
}

// reach marks an object, which is looked at later.
func (k *walk) reach(rank uint32) {
	if k.reached.has(rank) {
		return
	}
	k.reached.set(rank)
	if len(k.frontier) < k.most {
		k.frontier = append(k.frontier, k.offsets.at(rank))
		return
	}
	k.pending.set(rank)
	k.overflow = true
}

// run follows references until nothing new is reached. The objects of a frontier
// are read in the order of the file, so that reading is mostly sequential.
func (k *walk) run() error {
	var batch []int64
	for {
		if len(k.frontier) == 0 && k.overflow {
			k.refill()
		}
		if len(k.frontier) == 0 {
			return nil
		}
		batch, k.frontier = k.frontier, batch[:0]
		slices.Sort(batch)
		for i, at := range batch {
			if err := k.check(); err != nil {
				return err
			}
			next := int64(math.MaxInt64)
			if i+1 < len(batch) {
				next = batch[i+1]
			}
			if _, err := k.reader.read(at, next); err != nil {
				return err
			}
			for _, oid := range k.reader.edges.strong {
				if rank, ok := k.index.rank(oid); ok {
					k.reach(rank)
				}
			}
		}
	}
}

// refill makes a frontier of objects that were too many for the last ones.
func (k *walk) refill() {
	k.overflow = false
	for i, w := range k.pending {
		for ; w != 0; w &= w - 1 {
			if len(k.frontier) == k.most {
				k.overflow = true
				return
			}
			bit := bits.TrailingZeros64(w)
			k.frontier = append(k.frontier, k.offsets.at(uint32(i*64+bit)))
			k.pending[i] &^= 1 << bit
		}
	}
}

// unreachable counts what was not reached.
func (k *walk) unreachable(partial int64) (Finding, error) {
	f := Finding{Cause: Unreachable}
	for _, w := range k.reached {
		f.Count -= int64(bits.OnesCount64(w))
	}
	if f.Count += k.index.n; f.Count == 0 {
		return f, nil
	}
	var classes census
	var first lowest
	size := int64(0)
	err := k.each(func(_ int64, e *edges) error {
		if rank, ok := k.index.rank(e.oid); ok && !k.reached.has(rank) {
			classes.add(e.class, int64(e.size))
			first.add(reference{from: e.oid})
			size += int64(e.size)
		}
		return nil
	})
	f.Classes = k.frequent(classes)
	for _, r := range first {
		f.First = append(f.First, zodb.OID(r.from).String())
	}
	f.Text = fmt.Sprintf("No path of references leads from the root to these objects, whose records have %s: a pack with garbage collection "+
		"removes them, unless another database refers to them", progress.Bytes(size))
	if partial > 0 {
		f.Text += fmt.Sprintf("; they may be fewer, since the references of %s could not be read", progress.Plural(partial, "rejected record"))
	}
	f.Text += "."
	return f, err
}

// danglingTargets finds what does not exist without the temporary file: who refers
// to it is not known then.
func (r *references) danglingTargets() []Finding {
	if r.memory.full.Load() {
		r.said = append(r.said, "References to what does not exist were not looked for: there is too little memory for the set of all oids.")
		return nil
	}
	have := r.objects.sorted()
	return []Finding{
		missingTargets(Dangling, &have, &r.targets, "Objects refer to these, which the source has not, or not any more: "+
			"an application that follows such a reference gets a POSKeyError, in the source as in the destination."),
		missingTargets(WeakDangling, &have, &r.weakTargets, "Objects refer weakly to these, which do not exist, which is harmless: weak references are made for that."),
	}
}

func missingTargets(cause string, have *oidIndex, of *oidSet, text string) Finding {
	f := Finding{Cause: cause, Text: text}
	targets := of.sorted()
	targets.minus(have, func(oid uint64) {
		f.Count++
		if len(f.Targets) < firstListed {
			f.Targets = append(f.Targets, zodb.OID(oid).String())
		}
	})
	f.Missing = f.Count
	return f
}

// crossDatabase tells which objects refer to other databases.
func (r *references) crossDatabase() Finding {
	f := Finding{Cause: CrossDatabase}
	all := map[string]otherDatabase{}
	var classes census
	var first lowest
	for _, w := range r.writers {
		f.Count += w.records
		for name, o := range w.others {
			sum := all[name]
			all[name] = otherDatabase{sum.references + o.references, sum.weak + o.weak}
		}
		for id, c := range w.crossed {
			for id >= len(classes) {
				classes = append(classes, Class{})
			}
			classes[id].Objects += c.Objects
			classes[id].Bytes += c.Bytes
		}
		for _, ref := range w.first {
			first.add(ref)
		}
	}
	if f.Count == 0 {
		return f
	}
	f.Classes = r.frequent(classes)
	f.list(first)
	names := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(cmp.Compare(all[b].references, all[a].references), cmp.Compare(a, b))
	})
	var parts []string
	for _, name := range names[:min(len(names), firstListed)] {
		part := fmt.Sprintf("%s to %s", progress.Plural(all[name].references, "reference"), quoted(name))
		if n := all[name].weak; n > 0 {
			part += fmt.Sprintf(" (%d weak)", n)
		}
		parts = append(parts, part)
	}
	if n := len(names) - len(parts); n > 0 {
		parts = append(parts, fmt.Sprintf("and to %d more", n))
	}
	f.Text = fmt.Sprintf("Objects refer to other databases (%s): such a database must be mounted under the same name as before, "+
		"and whether it has what is referred to was not looked at.", strings.Join(parts, ", "))
	return f
}
