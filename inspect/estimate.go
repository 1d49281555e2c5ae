package inspect

import (
	"bytes"
	"math"
	"math/bits"
	"runtime"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

// What a row takes in PostgreSQL: facts of its storage, and what entries of
// indexes took when databases of 10,000 to 30,000 objects had been converted.
const (
	page       = 8192 - 24 // of the 8 KiB, without the header
	rowHead    = 24 + 4    // header and line pointer
	idBytes    = 8 + 8 + 4 + 4
	arrayHead  = 24 // of refs
	refBytes   = 8
	inlineMost = 2032 // a longer row is compressed, and its state moved out if that is not enough
	outBytes   = 1996 // of a value, in one row of a TOAST table
	outHead    = 40   // of such a row
	outIndex   = 22   // its entry in the index
	outPointer = 18
	bigintKey  = 23 // entry of an index on one bigint: pages are filled to 90 %
	pairKey    = 32 // on two
	classKey   = 8  // on the class: equal keys share an entry
	refKey     = 33 // of a reference in idx_object_refs
	tables     = 30 // pages that empty tables and indexes take
	walShare   = 0.95
	sampleOne  = 16 // of so many states one is looked at more closely
)

// weights are what rows of states take.
type weights struct {
	rows, stateBytes int64
	refs             int64
	sizes            [4 * 32]sizeWeights // by the size of the state, four to an octave
}

// sizeWeights are those of states of about the same size.
type sizeWeights struct {
	rows, bytes int64
	fixed       int64 // bytes of the rows beside the states
	// Of some states: their text, about what they take as jsonb, and a part of their
	// text before and after compression.
	text, binary, part, squeezed int64
}

func sizeClass(n int) int {
	if n < 4 {
		return n
	}
	octave := bits.Len(uint(n))
	return min(4*octave+n>>(octave-3)&3, len(weights{}.sizes)-1)
}

// weigh adds a row.
func (v *weights) weigh(row *jsonb.Row) {
	state := row.State
	v.rows++
	v.stateBytes += int64(len(state))
	v.refs += int64(len(row.Refs))
	k := &v.sizes[sizeClass(len(state))]
	k.rows++
	k.bytes += int64(len(state))
	k.fixed += int64(rowHead + idBytes + 2 + len(row.Module) + len(row.Name) + arrayHead + refBytes*len(row.Refs))
	if k.rows%sampleOne != 1 {
		return
	}
	k.text += int64(len(state))
	k.binary += int64(binarySize(state))
	if len(state) < inlineMost/2 {
		return // never compressed
	}
	part := state[:min(len(state), 64<<10)] // LZ4 looks back as far
	size := s2.EstimateBlockSize(part)
	if size < 0 || size > len(part) {
		size = len(part)
	}
	k.part += int64(len(part))
	k.squeezed += int64(size)
}

// binarySize is about what JSON text takes as jsonb: it has no quotes, and four
// bytes for each key and value, and for each container, instead of a comma, a colon
// or a bracket.
func binarySize(text []byte) int {
	n := len(text) + 8
	n -= bytes.Count(text, []byte{'"'})
	n += 3*bytes.Count(text, []byte{','}) + 3*bytes.Count(text, []byte{':'})
	return n + 8*(bytes.Count(text, []byte{'{'})+bytes.Count(text, []byte{'['}))
}

func (v *weights) add(o *weights) {
	v.rows += o.rows
	v.stateBytes += o.stateBytes
	v.refs += o.refs
	for i := range v.sizes {
		to, from := &v.sizes[i], &o.sizes[i]
		to.rows += from.rows
		to.bytes += from.bytes
		to.fixed += from.fixed
		to.text += from.text
		to.binary += from.binary
		to.part += from.part
		to.squeezed += from.squeezed
	}
}

// heap is what the rows take in a table and its TOAST table.
func (v *weights) heap() (total float64) {
	for i := range v.sizes {
		k := &v.sizes[i]
		if k.rows == 0 {
			continue
		}
		rows := float64(k.rows)
		state, fixed := float64(k.bytes)/rows*float64(k.binary)/float64(k.text), float64(k.fixed)/rows
		if state+fixed > inlineMost && k.part > 0 {
			state *= float64(k.squeezed) / float64(k.part)
		}
		if state+fixed > inlineMost {
			total += rows * (onPages(fixed+outPointer) + out(state))
		} else {
			total += rows * onPages(state+fixed)
		}
	}
	return total
}

// onPages is what a row takes with its share of what is left free on a page,
// because the next row does not fit: half a row.
func onPages(row float64) float64 { return row * 8192 / (page - row/2) }

// out is what a value takes in a TOAST table.
func out(size float64) float64 {
	rows := math.Ceil(size / outBytes)
	if rows <= 1 {
		return onPages(size+outHead) + outIndex
	}
	if rows > 20 { // nearly all of them are full, and four fill a page
		return rows * (8192/4 + outIndex)
	}
	return rows * (onPages(size/rows+outHead) + outIndex)
}

// estimate is what a conversion takes.
func (r *run) estimate(c *counts, took time.Duration) *Estimate {
	e := &Estimate{HistoryPreserving: r.opts.HistoryPreserving, S3Bytes: c.s3Bytes, BlobBytes: c.inRow}
	transactions := float64(c.hf.Transactions)
	disk := tables*8192 + transactions*(rowHead+8+6+4+bigintKey) + float64(c.logBytes)
	disk += c.states.heap() + float64(c.states.rows)*(bigintKey+pairKey+classKey) + float64(c.states.refs)*refKey
	e.StateBytes = c.states.stateBytes
	if e.HistoryPreserving {
		deletions := float64(c.hp.Revisions-c.older.rows) + float64(c.hp.Deleted)
		disk += c.older.heap() + deletions*(rowHead+idBytes+arrayHead) + (float64(c.older.rows)+deletions)*(2*pairKey+bigintKey)
		e.StateBytes += c.older.stateBytes
	}
	if c.inRowBlobs > 0 {
		disk += float64(c.inRowBlobs) * (rowHead + 24 + pairKey + outPointer + out(float64(c.inRow)/float64(c.inRowBlobs)))
	}
	if e.S3Bytes > 0 {
		e.S3Rate = s3Rate
	}
	e.DiskBytes = int64(disk)
	e.WALBytes = int64(disk * walShare)
	e.Seconds = int64(math.Ceil(max(r.seconds(c, e), took.Seconds()))) + startSeconds
	return e
}

// s3Rate is in bytes a second. It stands in the report: lines differ most.
const s3Rate = 200 << 20

// What conversions took on two cores of a server of 2024, client and PostgreSQL
// together: 8.7 CPU seconds for 200,000 records of 3.3 KB, 17.2 for 2,000,000 of
// 300 bytes; 3.8 seconds for 12,000 blobs of 1.35 GB, and 7.3 into a local S3.
const (
	stateByteSeconds = 13e-9
	rowSeconds       = 5e-6
	blobByteSeconds  = 4e-9
	startSeconds     = 1 // and end
)

// seconds is how long a conversion takes with the workers of this inspection, if
// the server has as many cores as this machine. It is never less than the
// inspection, which reads the same source.
func (r *run) seconds(c *counts, e *Estimate) float64 {
	rows := float64(c.hf.Transactions + c.states.rows)
	if e.HistoryPreserving {
		rows += float64(c.hp.Revisions)
	}
	cores := float64(min(r.opts.Workers, runtime.GOMAXPROCS(0)))
	return (float64(e.StateBytes)*stateByteSeconds+rows*rowSeconds)/cores + float64(e.BlobBytes)*blobByteSeconds + float64(e.S3Bytes)/s3Rate
}
