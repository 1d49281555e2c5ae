package desttest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// BlobSample is a database with what blobs can be: empty, around
// BlobThreshold, many of them in one chunk, replaced, replaced several times,
// undone, deleted, written twice in a transaction that is larger than a chunk,
// replaced by an object that is no blob.
func BlobSample(bool) *Builder {
	b := NewBuilder()
	rng := rand.New(rand.NewPCG(3, 4))
	tid := zodb.TID(0x03f7000000000001)
	next := func() Transaction {
		tid += 0x10000000 + zodb.TID(rng.Uint64N(1000))
		return Transaction{TID: tid}
	}
	content := func(size int) []byte {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	thing := func(oid zodb.OID, size int) Record {
		return Record{OID: oid, Data: Data("app.things", "Thing", string(bytes.Repeat([]byte("y"), size)))}
	}
	b.Commit(next(), thing(0, 10))
	var sizes []Record
	for i, size := range []int{0, 1, BlobThreshold - 1, BlobThreshold, BlobThreshold + 1, 70_000, 300_000} {
		sizes = append(sizes, BlobOf(zodb.OID(1+i), content(size)))
	}
	first := b.Commit(next(), sizes...)
	var many []Record
	for oid := zodb.OID(100); oid < 140; oid++ {
		many = append(many, BlobOf(oid, content(int(oid)*11)))
	}
	b.Commit(next(), many...)
	b.Commit(next(), thing(50, 500), BlobOf(3, content(2000)), BlobOf(5, content(2100)))
	b.Commit(next(), BlobOf(3, content(2200)), Record{OID: 4})
	twice := content(1800)
	b.Commit(next(), BlobOf(8, twice), thing(51, 100), BlobOf(8, twice))
	b.Commit(next(), Record{OID: 5, Back: first[4], Blob: sizes[4].Blob})
	b.Commit(next(), BlobOf(9, content(3000)), BlobOf(3, content(10)))
	b.Commit(next(), Record{OID: 9}, thing(6, 40))
	b.Commit(next(), BlobOf(11, twice), thing(52, 5000), thing(0, 20), BlobOf(3, content(1100)), thing(53, 3000), BlobOf(11, twice), BlobOf(12, content(5)))
	for range 4 {
		b.Commit(next(), thing(54, 1500), BlobOf(3, content(1200)), BlobOf(13, content(30)))
	}
	return b
}

func (s suite) testBlobs(t *testing.T) {
	t.Run("AreConverted", s.testBlobsConverted)
	t.Run("ContinueAfterEveryChunk", s.testContinues)
	t.Run("CatchUpFromEveryTransaction", s.testCatchesUp)
	t.Run("AreCountedByTheDryWriter", s.testDry)
	t.Run("MissingAreListedAndMayBeAccepted", s.testMissing)
	t.Run("MissingAreFoundAgain", s.testFound)
	t.Run("MissingAreFoundAgainWhileCatchingUp", s.testFoundLater)
	t.Run("AbortLeavesNothing", s.testAbort)
}

func (s suite) testBlobsConverted(t *testing.T) {
	db, b := s.New(t), s.sample(s.history)
	c := s.must(t, db, b, nil)
	s.check(t, db, b)
	s.checkBytes(t, db, b)
	var want dest.Result
	for _, blob := range b.Want(s.history).Blobs {
		want.Blobs++
		want.BlobBytes += blob.Size
	}
	if got := c.totals; got.Blobs+got.S3Blobs != want.Blobs || got.BlobBytes+got.S3Bytes != want.BlobBytes || got.MissingBlobs != 0 {
		t.Errorf("the totals are %+v, want %d blobs of %d bytes", got, want.Blobs, want.BlobBytes)
	}
	if len(c.missing) > 0 {
		t.Errorf("missing: %v", c.missing)
	}
	d := db.Open(t, s.history)
	defer d.Close()
	var there dest.Result
	for _, tier := range d.Survey(t.Context(), 1).BlobTiers {
		there.Blobs += tier.Blobs
		there.BlobBytes += tier.Bytes
	}
	if there.Blobs != want.Blobs || there.BlobBytes != want.BlobBytes {
		t.Errorf("the survey counts %d blobs of %d bytes, want %d of %d", there.Blobs, there.BlobBytes, want.Blobs, want.BlobBytes)
	}
}

// checkBytes compares the bytes of every blob that there must be.
func (s suite) checkBytes(t *testing.T, db Database, b *Builder) {
	t.Helper()
	for _, blob := range b.Want(s.history).Blobs {
		if !bytes.Equal(db.Blob(t, blob.OID, blob.TID), b.Bytes(blob.OID, blob.TID)) {
			t.Errorf("blob oid %v, tid %v has other bytes", blob.OID, blob.TID)
		}
	}
}

// lose loses the files of some blobs that are current, and returns how many a
// destination misses.
func (s suite) lose(b *Builder) int {
	want := b.Want(s.history).Blobs
	n := 0
	for i, blob := range want {
		if i%5 == 2 {
			b.Lose(blob.OID, blob.TID)
			n++
		}
	}
	return n
}

func (s suite) testMissing(t *testing.T) {
	db, b := s.New(t), s.sample(s.history)
	lost := s.lose(b)
	c, err := s.convert(t, db, b, nil)
	var rejected *dest.RejectedError
	if !errors.As(err, &rejected) || rejected.Count != 0 || rejected.MissingBlobs != int64(lost) {
		t.Fatalf("%d missing blobs give %v", lost, err)
	}
	if len(c.missing) != lost {
		t.Fatalf("%d missing blobs are listed, want %d", len(c.missing), lost)
	}
	for _, m := range c.missing {
		if m.Path == "" || m.Reason == "" || !b.lost[Revision{OID: m.OID, TID: m.TID}] {
			t.Errorf("%+v is listed", m)
		}
	}
	if state := s.condition(t, db, dest.Interrupted); state.Missing != int64(lost) {
		t.Errorf("the state counts %d missing blobs, want %d", state.Missing, lost)
	}
	c = s.must(t, db, b, func(c *conversion) { c.continues, c.acceptMissing = true, true })
	if c.chunks != 0 {
		t.Errorf("%d chunks were read again to accept missing blobs", c.chunks)
	}
	if c.totals.MissingBlobs != int64(lost) || len(c.missing) != lost {
		t.Errorf("%d missing blobs are counted and %d listed, want %d", c.totals.MissingBlobs, len(c.missing), lost)
	}
	s.check(t, db, b)
	s.checkBytes(t, db, b)
}

func (s suite) testFound(t *testing.T) {
	b := s.sample(s.history)
	whole := s.New(t)
	want := s.must(t, whole, b, nil)
	rows := look(t, whole)
	db := s.New(t)
	s.lose(b)
	if _, err := s.convert(t, db, b, nil); err == nil {
		t.Fatal("missing blobs are accepted")
	}
	// Some of them.
	for r := range b.lost {
		delete(b.lost, r)
		break
	}
	var rejected *dest.RejectedError
	if _, err := s.convert(t, db, b, func(c *conversion) { c.continues = true }); !errors.As(err, &rejected) || rejected.MissingBlobs != int64(len(b.lost)) {
		t.Fatalf("%d missing blobs give %v", len(b.lost), err)
	}
	b.Find()
	c := s.must(t, db, b, func(c *conversion) { c.continues = true })
	if diff := cmp.Diff(want.totals, c.totals); diff != "" {
		t.Errorf("totals (-undisturbed +found again):\n%s", diff)
	}
	s.same(t, rows, look(t, db))
}

func (s suite) testFoundLater(t *testing.T) {
	b := s.sample(s.history)
	whole := s.New(t)
	s.must(t, whole, b, nil)
	rows := look(t, whole)
	db := s.New(t)
	s.must(t, db, b.Prefix(3), nil)
	for _, blob := range b.Want(s.history).Blobs {
		// Blob 5 was undone: its bytes are found under the tid that they come from.
		if blob.TID > b.txns[2].TID && blob.OID != 5 {
			b.Lose(blob.OID, blob.TID)
		}
	}
	var rejected *dest.RejectedError
	c, err := s.convert(t, db, b, func(c *conversion) { c.continues = true })
	if !errors.As(err, &rejected) || rejected.MissingBlobs != int64(len(b.lost)) || len(c.missing) < len(b.lost) {
		t.Fatalf("%d blobs that are missing while catching up give %v", len(b.lost), err)
	}
	s.check(t, db, b)
	b.Find()
	s.must(t, db, b, func(c *conversion) { c.continues = true })
	s.same(t, rows, look(t, db))
	s.checkBytes(t, db, b)
}
