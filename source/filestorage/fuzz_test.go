package filestorage_test

import (
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// maxAlloc is what reading a file may allocate beside a multiple of its size:
// two decompressors, and little else.
const maxAlloc = 4 << 20

// FuzzFile reads any bytes as a Data.fs. Whatever they are, there must be an end
// soon, without a panic and without more memory than the file explains. A file
// that a naive reader finds sound must be read to the same result.
func FuzzFile(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	path := filepath.Join(f.TempDir(), "Data.fs")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := allocated()
		s, info, err := scanFile(t, path)
		if got, most := allocated()-before, uint64(maxAlloc+20*len(b)); got > most {
			t.Errorf("Scan of %d bytes allocated %d", len(b), got)
		}
		want, sound := naive(b)
		if err != nil {
			if sound {
				t.Fatalf("a sound file: %v", err)
			}
			mayFail(t, err)
			return
		}
		defer s.Close()
		if sound && info.Identity.End != int64(max(4, len(b))) {
			t.Errorf("a sound file of %d bytes ends at %d: %s", len(b), info.Identity.End, info.Tail)
		}
		got := follow(t, s)
		if sound && !slices.Equal(got, lines(want)) {
			t.Errorf("got %s\nwant %s", got, lines(want))
		}
		if int64(len(got)) != info.Records {
			t.Errorf("%d records, Scan counted %d", len(got), info.Records)
		}
		readEveryWay(t, s, info, len(b))
	})
}

// seeds are the sample, each of its usual kinds of damage, and a file of
// everything that is small.
func seeds() (list [][]byte) {
	d := sample()
	at := d.add(' ', tid3+1, "u", "d", "e", put{oid: 5, data: []byte("a")}, put{oid: 5, data: []byte("b")}, put{oid: 6, data: []byte("zlib"), stored: compressed([]byte(strings.Repeat("zlib", 100)), "x")})
	d.add('u', tid3+2, "", "", "", put{oid: 6, data: []byte("gone")})
	d.add(' ', tid3+3, "", "", "", put{oid: 6, back: at[2]})
	d.add(' ', tid3+3, "", "", "")
	d.add('c', tid3+4, "", "", "", put{oid: 6, data: []byte("not yet")})
	list = append(list, nil, []byte("FS21"), sample().buf, d.buf)
	for _, patch := range []func([]byte) []byte{
		set(txnB+atStatus, 'c'), set(txnB+atStatus, 'x'), u64(txnB+atTlen, 1<<40), u64(trailerB, 97), u64(recB1+atTloc, 4),
		set(recB1+atVlen+1, 3), u64(recB1+atPlen, 1<<63), u64(recC1+atBack, recC1), u64(recC1+atBack, recB1), upTo(400), tail("junk"),
	} {
		list = append(list, patch(sample().buf))
	}
	return list
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func scanFile(t *testing.T, path string) (*filestorage.Source, *source.Info, error) {
	s, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err != nil {
		return nil, nil, notFileStorage{err}
	}
	info, err := s.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, info, nil
}

// notFileStorage is the error of Open.
type notFileStorage struct{ error }

// mayFail tells whether an error is of the kinds that bytes can cause.
func mayFail(t *testing.T, err error) {
	t.Helper()
	var damage *source.DamageError
	var other notFileStorage
	if !errors.As(err, &damage) && !errors.As(err, &other) {
		t.Fatalf("an error of another kind: %v", err)
	}
}

// naive reads a file that is sound to its last byte, in the simplest way.
func naive(b []byte) (list []sourcetest.Transaction, sound bool) {
	if len(b) == 0 {
		return nil, true
	}
	if len(b) < 4 || string(b[:4]) != "FS30" && string(b[:4]) != "FS21" {
		return nil, false
	}
	data := map[int]sourcetest.Record{}
	hops := map[int]int{}
	for pos := 4; pos < len(b); {
		if len(b)-pos < 31 {
			return nil, false
		}
		h := b[pos:]
		n := binary.BigEndian.Uint64(h[8:])
		u, d, e := int(binary.BigEndian.Uint16(h[17:])), int(binary.BigEndian.Uint16(h[19:])), int(binary.BigEndian.Uint16(h[21:]))
		head := 23 + u + d + e
		if n > uint64(len(h)-8) || int(n) < head || binary.BigEndian.Uint64(h[n:]) != n || !slices.Contains([]byte(" pu"), h[16]) {
			return nil, false
		}
		txn := sourcetest.Transaction{TID: zodb.TID(binary.BigEndian.Uint64(h)), User: h[23 : 23+u], Description: h[23+u : 23+u+d], Extension: h[23+u+d : head]}
		if txn.TID == 0 {
			return nil, false
		}
		for at := head; at < int(n) && h[16] != 'u'; {
			r := h[at:n]
			if len(r) < 50 && (len(r) < 43 || binary.BigEndian.Uint64(r[34:]) == 0) {
				return nil, false
			}
			oid, tloc, plen := zodb.OID(binary.BigEndian.Uint64(r)), binary.BigEndian.Uint64(r[24:]), binary.BigEndian.Uint64(r[34:])
			if tloc != uint64(pos) || r[32] != 0 || r[33] != 0 || plen > uint64(len(r)-42) {
				return nil, false
			}
			rec := sourcetest.Record{OID: oid}
			size := int(plen)
			if plen > 0 {
				rec.Data = r[42 : 42+plen]
			} else if back := binary.BigEndian.Uint64(r[42:]); back != 0 {
				target, ok := data[int(back)]
				if back >= uint64(len(b)) || !ok || target.OID != oid {
					return nil, false
				}
				rec.Data = target.Data
				hops[pos+at] = hops[int(back)] + 1
			}
			if plen == 0 {
				size = 8
			}
			data[pos+at] = rec
			txn.Records = append(txn.Records, rec)
			at += 42 + size
		}
		if h[16] != 'u' {
			list = append(list, txn)
		}
		pos += int(n) + 8
	}
	for _, n := range hops {
		if n > 10_000 {
			return nil, false
		}
	}
	return list, true
}

// lines is the naive reader's result in the form of follow.
func lines(list []sourcetest.Transaction) (out []string) {
	for _, x := range list {
		for _, r := range x.Records {
			out = append(out, recordLine(x.TID, r.OID, inflated(r.Data)))
		}
	}
	return out
}

// inflated is data as it must be given, nil if it cannot be.
func inflated(data []byte) []byte {
	rest, ok := strings.CutPrefix(string(data), ".z")
	if !ok {
		return data
	}
	zr, err := zlib.NewReader(strings.NewReader(rest))
	if err != nil {
		return nil
	}
	plain, err := io.ReadAll(zr)
	if err != nil {
		return nil
	}
	if len(plain) == 0 {
		return data
	}
	return plain
}

func recordLine(tid zodb.TID, oid zodb.OID, data []byte) string {
	return fmt.Sprintf("%v %v %d %x", tid, oid, len(data), data)
}

func follow(t *testing.T, s *filestorage.Source) (list []string) {
	t.Helper()
	err := s.Follow(t.Context(), 4, source.ReadOptions{ChunkBytes: 1 << 20, Budget: noBudget{}}, func(c *source.Chunk) error {
		defer c.Release()
		for i := range c.Records {
			list = append(list, recordText(t, s, &c.Records[i]))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Follow after a successful scan: %v", err)
	}
	return list
}

// recordText reads a record's data. Only compressed data may be wrong after a
// successful scan.
func recordText(t *testing.T, s *filestorage.Source, r *source.Record) string {
	t.Helper()
	var scratch []byte
	b, err := s.Data(t.Context(), r, &scratch)
	if err != nil {
		if mayFail(t, err); !strings.Contains(err.Error(), "inflate") {
			t.Fatalf("Data after a successful scan: %v", err)
		}
	}
	return recordLine(r.TID, r.OID, b)
}

// readEveryWay compares what Read gives in chunks of several sizes.
func readEveryWay(t *testing.T, s *filestorage.Source, info *source.Info, size int) {
	t.Helper()
	for _, history := range []bool{false, true} {
		var first string
		for _, chunkBytes := range []int64{1, 100, 1 << 20} {
			var got strings.Builder
			n := int64(0)
			before := allocated()
			budget := &counting{}
			err := s.Read(t.Context(), source.ReadOptions{History: history, ChunkBytes: chunkBytes, Budget: budget}, func(c *source.Chunk) error {
				defer c.Release()
				n += int64(len(c.Records)) + c.Superseded + c.Dropped
				for _, r := range c.Records {
					fmt.Fprintln(&got, r.Pos, r.Back, r.Deleted, r.Current, len(r.Raw))
				}
				return nil
			})
			if err != nil || n != info.Records || budget.n != 0 {
				t.Fatalf("Read by %d bytes: %d of %d records, %d bytes kept, %v", chunkBytes, n, info.Records, budget.n, err)
			}
			if got, most := allocated()-before, uint64(maxAlloc+200*size); got > most {
				t.Errorf("Read of %d bytes by %d allocated %d", size, chunkBytes, got)
			}
			if first == "" {
				first = got.String()
			} else if got.String() != first {
				t.Errorf("Read by %d bytes gave other records than by 1 byte", chunkBytes)
			}
		}
	}
}
