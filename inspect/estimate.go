package inspect

import (
	"math/bits"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

// What a row takes in PostgreSQL. Facts of its storage, on pages of 8 KiB.
const (
	pageUse    = 8192.0 / (8192 - 24)
	rowHead    = 24 + 4 // header and line pointer
	idBytes    = 8 + 8 + 4 + 4
	arrayHead  = 24 // of refs
	refBytes   = 8
	inlineMost = 2000   // a longer row is compressed, and moved out if that is not enough
	outBytes   = 1996   // of a value, in one row of a TOAST table
	outRow     = 2048.0 // what such a row takes
	outIndex   = 22.0   // its entry in the index
	outPointer = 18.0
	inflated   = 1.08 // jsonb beside its text
	bigintKey  = 22.5 // entry of an index on one bigint: 20 bytes, and pages are filled to 90 %
	pairKey    = 31   // on two
	classKey   = 7.5  // on the class: equal keys share an entry
	refKey     = 26   // of a reference in idx_object_refs
	sampleOne  = 16   // of so many large states one is compressed
)

// weights are what rows of states take.
type weights struct {
	rows, stateBytes int64
	refs             int64
	small            float64 // bytes of rows that stay as they are
	// large are those that do not, by size: large[i] are states of less than 2^i
	// bytes that are not in large[i-1].
	large [40]struct {
		rows, bytes     int64
		fixed           int64 // bytes of the row beside the state
		sample, squeeze int64 // bytes of some of them, before and after compression
	}
}

// sampler chooses states to compress.
type sampler struct{ seen int }

// weigh adds a row.
func (w *worker) weigh(to *weights, row *jsonb.Row) {
	fixed := rowHead + idBytes + 2 + len(row.Module) + len(row.Name) + arrayHead + refBytes*len(row.Refs)
	state := len(row.State)
	to.rows++
	to.stateBytes += int64(state)
	to.refs += int64(len(row.Refs))
	if float64(fixed)+float64(state)*inflated <= inlineMost {
		to.small += float64(fixed) + float64(state)*inflated + 4
		return
	}
	l := &to.large[min(bits.Len(uint(state)), len(to.large)-1)]
	l.rows++
	l.bytes += int64(state)
	l.fixed += int64(fixed)
	if w.sampler.seen++; w.sampler.seen%sampleOne != 1 {
		return
	}
	part := row.State[:min(state, 64<<10)] // a window of LZ4
	size := s2.EstimateBlockSize(part)
	if size < 0 || size > len(part) {
		size = len(part)
	}
	l.sample += int64(len(part))
	l.squeeze += int64(size)
}

func (v *weights) add(o *weights) {
	v.rows += o.rows
	v.stateBytes += o.stateBytes
	v.refs += o.refs
	v.small += o.small
	for i := range v.large {
		to, from := &v.large[i], &o.large[i]
		to.rows += from.rows
		to.bytes += from.bytes
		to.fixed += from.fixed
		to.sample += from.sample
		to.squeeze += from.squeeze
	}
}

// heap is what the rows take in a table and its TOAST table.
func (v *weights) heap() float64 {
	total := v.small
	for i := range v.large {
		l := &v.large[i]
		if l.rows == 0 {
			continue
		}
		ratio := 1.0
		if l.sample > 0 {
			ratio = float64(l.squeeze) / float64(l.sample)
		}
		rows := float64(l.rows)
		state, fixed := float64(l.bytes)/rows*inflated*ratio, float64(l.fixed)/rows
		if state+fixed <= inlineMost {
			total += rows * (state + fixed + 4)
		} else {
			total += rows * (fixed + outPointer + out(state))
		}
	}
	return total * pageUse
}

// out is what a value takes in a TOAST table.
func out(size float64) float64 {
	rows := max(size/outBytes, 1)
	return rows * (outRow/outBytes*min(size, outBytes) + outIndex)
}

// estimate is what a conversion takes.
func (r *run) estimate(c *counts, took time.Duration) *Estimate {
	e := &Estimate{HistoryPreserving: r.opts.HistoryPreserving, S3Bytes: c.s3Bytes, BlobBytes: c.inRow}
	log := (float64(c.hf.Transactions)*(rowHead+8+6+4) + float64(c.logBytes)) * pageUse
	disk := log + float64(c.hf.Transactions)*bigintKey
	disk += c.states.heap() + float64(c.states.rows)*(bigintKey+pairKey+classKey) + float64(c.states.refs)*refKey
	e.StateBytes = c.states.stateBytes
	if e.HistoryPreserving {
		deletions := float64(c.hp.Revisions-c.older.rows) + float64(c.hp.Deleted)
		disk += c.older.heap() + deletions*(rowHead+idBytes+arrayHead) + (float64(c.older.rows)+deletions)*(2*pairKey+bigintKey)
		e.StateBytes += c.older.stateBytes
	}
	disk += float64(c.hf.Blobs)*(rowHead+24+pairKey+outPointer) + out(float64(c.inRow))
	e.DiskBytes = int64(disk)
	e.WALBytes = int64(disk)
	e.Seconds = int64(took.Seconds() + 1)
	return e
}
