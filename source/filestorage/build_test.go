package filestorage_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// data is a Data.fs in the making, byte by byte, and what a reader must find in
// it. It shares no code with the reader.
type data struct {
	buf  []byte
	want []sourcetest.Transaction
	last map[zodb.OID]int64
	// plain is the data of each record by its offset, to resolve back pointers.
	plain map[int64][]byte
}

// put is one record to write: its data, or stored if that differs (compressed),
// or a back pointer.
type put struct {
	oid    zodb.OID
	data   []byte
	stored []byte
	back   int64
}

func newData() *data {
	return &data{buf: []byte("FS30"), last: map[zodb.OID]int64{}, plain: map[int64][]byte{}}
}

// add appends a transaction and returns the offsets of its records.
func (d *data) add(status byte, tid zodb.TID, user, desc, ext string, puts ...put) (at []int64) {
	tpos := len(d.buf)
	txn := sourcetest.Transaction{TID: tid, User: []byte(user), Description: []byte(desc), Extension: []byte(ext)}
	b := binary.BigEndian.AppendUint64(nil, uint64(tid))
	b = binary.BigEndian.AppendUint64(b, 0)
	b = append(b, status)
	for _, s := range []string{user, desc, ext} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	}
	b = append(b, user+desc+ext...)
	for _, p := range puts {
		pos := int64(tpos + len(b))
		at = append(at, pos)
		stored, plain := p.stored, p.data
		if stored == nil {
			stored = p.data
		}
		b = binary.BigEndian.AppendUint64(b, uint64(p.oid))
		b = binary.BigEndian.AppendUint64(b, uint64(tid))
		b = binary.BigEndian.AppendUint64(b, uint64(d.last[p.oid]))
		b = binary.BigEndian.AppendUint64(b, uint64(tpos))
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint64(b, uint64(len(stored)))
		if len(stored) > 0 {
			b = append(b, stored...)
		} else {
			b = binary.BigEndian.AppendUint64(b, uint64(p.back))
			plain = d.plain[p.back]
		}
		d.last[p.oid], d.plain[pos] = pos, plain
		txn.Records = append(txn.Records, sourcetest.Record{OID: p.oid, Data: plain})
	}
	binary.BigEndian.PutUint64(b[8:], uint64(len(b)))
	d.buf = append(d.buf, b...)
	d.buf = binary.BigEndian.AppendUint64(d.buf, uint64(len(b)))
	if status == ' ' || status == 'p' {
		d.want = append(d.want, txn)
	}
	return at
}

func compressed(plain []byte, behind string) []byte {
	var b bytes.Buffer
	b.WriteString(".z")
	w := zlib.NewWriter(&b)
	w.Write(plain)
	w.Close()
	b.WriteString(behind)
	return b.Bytes()
}

const (
	rootPickle = "\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}q\x01."
	blobPickle = "\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N."
)

const (
	tid1 zodb.TID = 0x03f6dcd2f1111111
	tid2 zodb.TID = 0x03f6dcd300000000
	tid3 zodb.TID = 0x03f6eac001111111
)

// sample is a small file with something of everything that is usual: 443 bytes,
// a packed transaction, an undo and a deletion. The real ZODB has read the same
// bytes to the same result.
func sample() *data {
	d := newData()
	at := d.add(' ', tid1, "/ admin", "init", "", put{oid: 0, data: []byte(rootPickle)}, put{oid: 1, data: []byte(blobPickle)})
	d.add('p', tid2, "", "", "\x80\x03}q\x00.", put{oid: 1, data: []byte(blobPickle)})
	d.add(' ', tid3, "", "undo", "", put{oid: 1, back: at[1]}, put{oid: 2})
	return d
}

// various is a file with everything that is unusual but sound.
func various() *data {
	rng := rand.New(rand.NewPCG(7, 7))
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = 0x80
		return b
	}
	d := sample()
	tid := tid3
	next := func() zodb.TID { tid += zodb.TID(rng.IntN(1000) + 1); return tid }
	// An oid several times in a transaction, among few records and among many.
	d.add(' ', next(), "", "twice", "", put{oid: 5, data: []byte("a")}, put{oid: 6, data: []byte("b")}, put{oid: 5, data: []byte("c")})
	var many []put
	for i := range 100 {
		many = append(many, put{oid: zodb.OID(i % 60), data: bytesOf(1 + rng.IntN(90))})
	}
	d.add(' ', next(), "user", "many", "", many...)
	// No records; the longest header; undone by an old ZODB.
	d.add(' ', next(), "empty", "", "")
	long := string(bytes.Repeat([]byte{0xff, 0}, 32767)) + "\n"
	d.add('p', next(), long, long, long, put{oid: 6, data: []byte("x")})
	d.add('u', next(), "gone", "", "", put{oid: 6, data: []byte("y")}, put{oid: 99, data: []byte("y")})
	d.add('u', next(), "gone", "", "", put{oid: 99, data: bytesOf(600 << 10)})
	// Compressed.
	text := bytes.Repeat([]byte("pickle "), 10000)
	at := d.add(' ', next(), "", "zlib", "",
		put{oid: 200, data: text, stored: compressed(text, "")},
		put{oid: 201, data: text[:30], stored: compressed(text[:30], "trailing")},
		put{oid: 202, data: compressed(nil, "")})
	// A chain of back pointers to compressed data, and one that ends at nothing.
	at2 := d.add(' ', next(), "", "undo", "", put{oid: 200, back: at[0]}, put{oid: 203})
	d.add(' ', next(), "", "undo of undo", "", put{oid: 200, back: at2[0]}, put{oid: 203, back: at2[1]})
	d.add(' ', next(), "", "undo with data", "", put{oid: 201, back: at[1]}, put{oid: 202, back: at[2]})
	// Records above the grid of the cuts; oids of every size.
	d.add(' ', next(), "", "large", "", put{oid: 300, data: bytesOf(700 << 10)}, put{oid: 301, data: []byte("s")}, put{oid: 302, data: bytesOf(300 << 10)})
	d.add(' ', next(), "", "far oids", "", put{oid: 1<<63 - 1, data: []byte("f")}, put{oid: 1<<64 - 1, data: []byte("g")}, put{oid: 1 << 40, data: []byte("h")})
	// tids that fall and that are equal, next to each other and not.
	d.add(' ', tid1+1, "", "falls", "", put{oid: 5, data: []byte("falls")})
	d.add(' ', tid1+1, "", "equal", "", put{oid: 5, data: []byte("equal")})
	d.add(' ', tid2, "", "equal to one long ago", "", put{oid: 5, data: []byte("old")})
	// Many small transactions, and a last one that deletes.
	for range 400 {
		var puts []put
		for range rng.IntN(5) {
			puts = append(puts, put{oid: zodb.OID(rng.IntN(300)), data: bytesOf(1 + rng.IntN(3000))})
		}
		d.add(' ', next(), "u", "d", "", puts...)
	}
	d.add(' ', next(), "", "deletes", "", put{oid: 5}, put{oid: 0, data: []byte(rootPickle)})
	return d
}

// file writes b to a file and gives its path.
func file(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *filestorage.Source {
	t.Helper()
	s, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func contract(t *testing.T, path string, want []sourcetest.Transaction) {
	sourcetest.Run(t, sourcetest.Case{
		Open: func(t testing.TB) source.Source { return open(t, path) },
		Want: want,
	})
}
