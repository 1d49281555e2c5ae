package sourcetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// wantBlob is a blob that the source must give.
type wantBlob struct {
	oid     zodb.OID
	tid     zodb.TID
	current bool
	*Blob
}

// blobs lists the blobs, oldest first; of several records of an oid in one
// transaction, which share one blob, the last.
func (c *Case) blobs() (list []wantBlob) {
	newest := map[zodb.OID]int{}
	for i, txn := range c.Want {
		for _, r := range txn.Records {
			newest[r.OID] = i
		}
	}
	for i, txn := range c.Want {
		last := map[zodb.OID]int{}
		for k, r := range txn.Records {
			last[r.OID] = k
		}
		for k, r := range txn.Records {
			if r.Blob != nil && last[r.OID] == k {
				list = append(list, wantBlob{r.OID, txn.TID, newest[r.OID] == i, r.Blob})
			}
		}
	}
	return list
}

// RunBlobs tests only what concerns blobs: a source whose records were tested,
// with its blobs in other places.
func RunBlobs(t *testing.T, c Case) {
	if c.Most == 0 {
		c.Most = defaultMost
	}
	if len(c.blobs()) == 0 {
		t.Fatal("the source has no blobs")
	}
	if !c.isLog(t) {
		for _, history := range []bool{false, true} {
			t.Run(map[bool]string{false: "history-free", true: "history-preserving"}[history], func(t *testing.T) {
				d := c.as(history)
				t.Run("Scan", d.testScan)
				d.runBlobs(t)
			})
		}
		return
	}
	t.Run("Scan", c.testScan)
	c.runBlobs(t)
}

func (c *Case) runBlobs(t *testing.T) {
	t.Run("Blobs are counted", c.testBlobCounts)
	t.Run("Large blobs", c.testLargeBlobs)
	t.Run("Blob", c.testBlobs)
	t.Run("Blob while reading", c.testBlobsWhileReading)
	readable := slices.ContainsFunc(c.blobs(), func(b wantBlob) bool { return !b.Missing && !b.Unreadable })
	if readable {
		t.Run("Blob is cancelled", c.testBlobCancelled)
	}
	if !readable || c.Scratch == nil {
		return
	}
	for _, change := range changes {
		t.Run("Blob that "+change.name, func(t *testing.T) { c.testChange(t, &change) })
	}
}

func (c *Case) testBlobCounts(t *testing.T) {
	_, info := c.open(t)
	want := source.Info{OrphanBlobs: c.Orphans}
	for _, b := range c.blobs() {
		if b.Missing || b.Unreadable {
			want.MissingBlobs++
			continue
		}
		want.BlobFiles++
		want.BlobBytes += b.Size
	}
	oids := map[zodb.OID]bool{}
	for _, txn := range c.Want {
		for _, r := range txn.Records {
			if r.Blob != nil {
				want.Blobs++
				oids[r.OID] = true
			}
		}
	}
	got := source.Info{OrphanBlobs: info.OrphanBlobs, MissingBlobs: info.MissingBlobs, BlobFiles: info.BlobFiles, BlobBytes: info.BlobBytes, Blobs: info.Blobs}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if info.BlobDir == "" {
		t.Error("BlobDir is empty")
	}
	if len(info.BlobOIDs) == 0 || len(info.BlobOIDs) > len(oids) {
		t.Errorf("BlobOIDs %v of %d", info.BlobOIDs, len(oids))
	}
	for _, oid := range info.BlobOIDs {
		if !oids[oid] {
			t.Errorf("%v among BlobOIDs is no blob", oid)
		}
	}
}

// testLargeBlobs scans with a limit at, below and above the size of each blob,
// up and down, as one source and anew.
func (c *Case) testLargeBlobs(t *testing.T) {
	var limits []int64
	for _, b := range c.blobs() {
		limits = append(limits, max(b.Size, 1), b.Size+1)
	}
	slices.Sort(limits)
	limits = slices.Compact(limits)
	var each []int64
	for _, i := range some(len(limits), c.Most) {
		each = append(each, limits[i])
	}
	limits = append(each, 0)
	slices.Reverse(each)
	one := c.Open(t)
	defer one.Close()
	for _, limit := range append(limits, each...) {
		var want []source.LargeBlob
		for _, b := range c.blobs() {
			if limit > 0 && b.Size >= limit && !b.Missing && !b.Unreadable {
				want = append(want, source.LargeBlob{OID: b.oid, TID: b.tid, Size: b.Size, Current: b.current})
			}
		}
		anew := c.Open(t)
		for _, s := range []source.Source{one, anew} {
			opts := c.scanOptions(0)
			opts.LargeBlob = limit
			info, err := s.Scan(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(info.LargeBlobs)
			for i := range got {
				got[i].Path = ""
			}
			slices.SortStableFunc(got, func(a, b source.LargeBlob) int { return int(a.OID) - int(b.OID) })
			slices.SortStableFunc(want, func(a, b source.LargeBlob) int { return int(a.OID) - int(b.OID) })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("blobs of %d bytes or more (-want +got):\n%s", limit, diff)
			}
		}
		anew.Close()
	}
}

// blobRecords are the records of all blobs, as Read gives them.
func (c *Case) blobRecords(t testing.TB, s source.Source, fn func(*source.Record)) {
	t.Helper()
	want := c.blobKeys()
	opts := source.ReadOptions{History: c.table == nil || c.table.history, ChunkBytes: 64 << 10, Budget: newBudget(t, 1<<50)}
	err := s.Read(t.Context(), opts, func(chunk *source.Chunk) error {
		defer chunk.Release()
		for i := range chunk.Records {
			if r := &chunk.Records[i]; want[blobKey{r.OID, r.TID}] != nil {
				fn(r)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
}

type blobKey struct {
	oid zodb.OID
	tid zodb.TID
}

func (c *Case) blobKeys() map[blobKey]*Blob {
	keys := map[blobKey]*Blob{}
	for _, b := range c.blobs() {
		keys[blobKey{b.oid, b.tid}] = b.Blob
	}
	return keys
}

func (c *Case) testBlobs(t *testing.T) {
	s, _ := c.open(t)
	want := c.blobKeys()
	var records []source.Record
	c.blobRecords(t, s, func(r *source.Record) {
		records = append(records, source.Record{OID: r.OID, TID: r.TID, Pos: r.Pos}) // are enough
	})
	if len(records) != len(want) {
		t.Fatalf("Read gave the records of %d blobs, want %d", len(records), len(want))
	}
	for i := range records {
		r := &records[i]
		if err := checkBlob(t.Context(), s, r, want[blobKey{r.OID, r.TID}], uint64(i)); err != nil {
			t.Errorf("oid %v, tid %v: %v", r.OID, r.TID, err)
		}
	}
	var group errgroup.Group
	for first := range 4 {
		group.Go(func() error {
			for i := range records {
				r := &records[(i+first*len(records)/4)%len(records)]
				if err := checkBlob(t.Context(), s, r, want[blobKey{r.OID, r.TID}], uint64(first)); err != nil {
					return fmt.Errorf("oid %v, tid %v, beside others: %w", r.OID, r.TID, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// testBlobsWhileReading asks for each blob in other goroutines while Read is
// under way.
func (c *Case) testBlobsWhileReading(t *testing.T) {
	s, _ := c.open(t)
	want := c.blobKeys()
	var group errgroup.Group
	c.blobRecords(t, s, func(r *source.Record) {
		r = &source.Record{OID: r.OID, TID: r.TID, Pos: r.Pos}
		group.Go(func() error { return checkBlob(t.Context(), s, r, want[blobKey{r.OID, r.TID}], uint64(r.OID)) })
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// checkBlob compares one blob with the truth.
func checkBlob(ctx context.Context, s source.Source, r *source.Record, want *Blob, seed uint64) error {
	b, err := s.Blob(ctx, r)
	if want.Missing || want.Unreadable {
		return wantBlobError(err, r, want.Missing)
	}
	switch {
	case err != nil:
		return err
	case b.OID != r.OID || b.TID != r.TID:
		return fmt.Errorf("it is the blob of oid %v, tid %v", b.OID, b.TID)
	case b.Size != want.Size:
		return fmt.Errorf("%d bytes, want %d", b.Size, want.Size)
	case (b.Note != "") != want.Elsewhere:
		return fmt.Errorf("the note is %q", b.Note)
	}
	for range 2 { // Open can be called again
		if err := checkBytes(ctx, b, want, seed); err != nil {
			return err
		}
	}
	return nil
}

// checkBytes reads a blob from front to back, and in any pieces from several
// goroutines at once.
func checkBytes(ctx context.Context, b *source.Blob, want *Blob, seed uint64) error {
	reader, err := b.Open(ctx)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer reader.Close()
	all, err := io.ReadAll(io.NewSectionReader(reader, 0, b.Size+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	sum := sha256.Sum256(all)
	if got := hex.EncodeToString(sum[:]); got != want.SHA256 || int64(len(all)) != want.Size {
		return fmt.Errorf("%d bytes with sha256 %s, want %d with %s", len(all), got, want.Size, want.SHA256)
	}
	var group errgroup.Group
	for n := range uint64(4) {
		group.Go(func() error {
			rng := rand.New(rand.NewPCG(seed, n))
			for range 8 {
				if err := checkPiece(reader, all, rng.Int64N(b.Size+2), rng.IntN(len(all)+3)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func checkPiece(reader source.BlobReader, all []byte, off int64, length int) error {
	p := make([]byte, length)
	n, err := reader.ReadAt(p, off)
	want := all[min(off, int64(len(all))):min(off+int64(length), int64(len(all)))]
	switch {
	case !bytes.Equal(p[:n], want):
		return fmt.Errorf("ReadAt of %d bytes at %d gave others", length, off)
	case n < length && err != io.EOF, n == length && err != nil && err != io.EOF:
		return fmt.Errorf("ReadAt of %d bytes at %d gave %d and %v", length, off, n, err)
	}
	return nil
}

// wantBlobError checks that err is that of a blob.
func wantBlobError(err error, r *source.Record, missing bool) error {
	var bad *source.BlobError
	switch {
	case !errors.As(err, &bad):
		return fmt.Errorf("got %v instead of a *source.BlobError", err)
	case bad.Missing != missing || bad.OID != r.OID || bad.TID != r.TID || bad.Problem == "" || bad.Path == "":
		return fmt.Errorf("got %#v, want one of oid %v, tid %v with Missing %v", bad, r.OID, r.TID, missing)
	}
	return nil
}

func (c *Case) testBlobCancelled(t *testing.T) {
	s, _ := c.open(t)
	r, b := c.someBlob(t, s, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Blob(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("Blob: %v", err)
	}
	if _, err := b.Open(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v", err)
	}
}

// someBlob is a blob of at least so many bytes.
func (c *Case) someBlob(t testing.TB, s source.Source, least int64) (*source.Record, *source.Blob) {
	t.Helper()
	var found *source.Record
	want := c.blobKeys()
	c.blobRecords(t, s, func(r *source.Record) {
		if w := want[blobKey{r.OID, r.TID}]; found == nil && !w.Missing && !w.Unreadable && w.Size >= least {
			found = &source.Record{OID: r.OID, TID: r.TID, Pos: r.Pos}
		}
	})
	if found == nil {
		t.Fatalf("no blob of %d bytes or more", least)
	}
	b, err := s.Blob(t.Context(), found)
	if err != nil {
		t.Fatal(err)
	}
	return found, b
}

// change is what may happen to a file, and what it makes of the blob.
type change struct {
	name    string
	do      func(path string) error
	missing bool // when it is opened; else it cannot be read
	reading bool // when it is read, if it was open already
}

var changes = []change{
	{name: "becomes shorter", do: func(path string) error { return resize(path, -1) }, reading: true},
	{name: "becomes longer", do: func(path string) error { return resize(path, 1) }, reading: true},
	{name: "becomes empty", do: func(path string) error { return os.Truncate(path, 0) }, reading: true},
	{name: "disappears", do: os.Remove, missing: true},
	{name: "is a directory", do: func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }},
	{name: "is a link to nothing", do: func(path string) error { return errors.Join(os.Remove(path), os.Symlink(path+".gone", path)) }, missing: true},
	{name: "is a link to itself", do: func(path string) error { return errors.Join(os.Remove(path), os.Symlink(path, path)) }},
}

func resize(path string, by int64) error {
	stat, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o600), os.Truncate(path, stat.Size()+by))
}

// testChange changes the file of a blob after it was found.
func (c *Case) testChange(t *testing.T, change *change) {
	s := c.Scratch(t)
	t.Cleanup(func() { s.Close() })
	if _, err := s.Scan(t.Context(), c.scanOptions(0)); err != nil {
		t.Fatal(err)
	}
	r, b := c.someBlob(t, s, 2)
	open, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := change.do(b.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context()); wantBlobError(err, r, change.missing) != nil {
		t.Errorf("Open: %v", wantBlobError(err, r, change.missing))
	}
	got, err := io.ReadAll(io.NewSectionReader(open, 0, b.Size))
	switch {
	case change.reading && wantBlobError(err, r, false) != nil:
		t.Errorf("reading went on: %v", wantBlobError(err, r, false))
	case !change.reading && (err != nil || int64(len(got)) != b.Size):
		t.Errorf("reading a file that is open already: %d bytes, %v", len(got), err)
	}
}
