package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/manifest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// listed is what a manifest says about an object, small enough for millions of
// lines.
type listed struct {
	oid  zodb.OID
	tid  zodb.TID
	size int64
	row  bool // blob_state has it
}

func byRevision(a, b listed) int {
	return cmp.Or(cmp.Compare(a.oid, b.oid), cmp.Compare(a.tid, b.tid))
}

// compare refuses a manifest that blob_state contradicts: a line without its
// row, or of another size. Rows that the manifest does not list are told, since
// their objects should be in the bucket already.
func (u *uploader) compare(ctx context.Context, c *config.Config) error {
	lines := make([]listed, 0, u.sum.Blobs)
	if err := manifest.Each(u.options.upload, func(l manifest.Line) error {
		lines = append(lines, listed{oid: l.OID, tid: l.TID, size: l.Size})
		return nil
	}); err != nil {
		return err
	}
	slices.SortFunc(lines, byRevision)
	d, err := pgjsonb.Open(ctx, pgjsonb.Config{DSN: c.Destination.DSN})
	if err != nil {
		return err
	}
	defer d.Close()
	differences := &differences{}
	unlisted := int64(0)
	if err := d.S3Blobs(ctx, func(b pgjsonb.S3Blob) error {
		i, found := slices.BinarySearchFunc(lines, listed{oid: b.OID, tid: b.TID}, byRevision)
		if !found {
			unlisted++
		}
		// The Python tool may list a blob more than once.
		for ; i < len(lines) && lines[i].oid == b.OID && lines[i].tid == b.TID; i++ {
			lines[i].row = true
			if lines[i].size != b.Size {
				differences.add("oid %v, tid %v: the manifest says %d bytes, blob_state says %d", b.OID, b.TID, lines[i].size, b.Size)
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("compare with %s: %w", d.Name(), err)
	}
	for _, l := range lines {
		if !l.row {
			differences.add("oid %v, tid %v: blob_state names no such object in S3", l.oid, l.tid)
		}
	}
	if differences.count > 0 {
		noun := "differences"
		if differences.count == 1 {
			noun = "difference"
		}
		return &failure{err: fmt.Errorf("%s and blob_state in %s contradict each other: %s %s",
			u.options.upload, d.Name(), progress.Count(differences.count), noun), hints: differences.hints()}
	}
	if !u.output.quiet {
		u.printer().Note(time.Now(), fmt.Sprintf("compared with %s: every line of %s has its row in blob_state", d.Name(), u.options.upload))
		if unlisted > 0 {
			u.printer().Note(time.Now(), fmt.Sprintf("%s in blob_state that name objects in S3 are not in the manifest: these should be in the bucket already",
				progress.Plural(unlisted, "row")))
		}
	}
	return nil
}

// differences keeps the first of them.
type differences struct {
	count int64
	first []string
}

func (d *differences) add(format string, args ...any) {
	if d.count++; d.count <= dest.ListMax {
		d.first = append(d.first, fmt.Sprintf(format, args...))
	}
}

func (d *differences) hints() []string {
	if rest := d.count - int64(len(d.first)); rest > 0 {
		d.first = append(d.first, fmt.Sprintf("... and %s more", progress.Count(rest)))
	}
	return append(d.first, "nothing was uploaded; write the manifest anew with --incremental --deferred-blobs, or use the one of this destination")
}
