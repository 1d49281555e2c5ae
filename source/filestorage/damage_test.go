package filestorage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/sourcetest"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Where things stand in the sample.
const (
	txnA, txnB, txnC, sampleEnd  = 4, 204, 308, 443
	trailerA, trailerB, trailerC = 196, 300, 435
	recA0, recA1, recB1          = 38, 129, 233
	recC1, recC2                 = 335, 385
	atStatus, atTlen             = 16, 8
	atRecTID, atPrev, atTloc     = 8, 16, 24
	atVlen, atPlen, atBack       = 32, 34, 42
	recHeaderSize                = 42
)

func u64(pos int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[pos:], v); return b }
}

func set(pos int, v byte) func([]byte) []byte {
	return func(b []byte) []byte { b[pos] = v; return b }
}

func both(a, b func([]byte) []byte) func([]byte) []byte {
	return func(x []byte) []byte { return b(a(x)) }
}

func tail(s string) func([]byte) []byte {
	return func(b []byte) []byte { return append(b, s...) }
}

func upTo(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func TestDamageIsNamedAndNeverPassedOver(t *testing.T) {
	for _, c := range []struct {
		name    string
		patch   func([]byte) []byte
		pos     int64
		last    zodb.TID
		problem string
	}{
		{"committing in the middle", set(txnB+atStatus, 'c'), txnB, tid1, "not committed"},
		{"unknown status in the middle", set(txnB+atStatus, 'x'), txnB, tid1, "status is 'x'"},
		{"status that is not ASCII in the middle", set(txnB+atStatus, 0xff), txnB, tid1, "status is 'ÿ'"},
		{"unknown status at the end", set(txnC+atStatus, 'x'), txnC, tid2, "status is 'x'"},
		{"unknown status at the start", set(txnA+atStatus, 0), txnA, 0, `status is '\x00'`},
		{"huge length", u64(txnB+atTlen, 1<<40), txnB, tid1, "claims 1099511627776 bytes"},
		{"largest length", u64(txnB+atTlen, math.MaxUint64), txnB, tid1, "claims 18446744073709551615 bytes"},
		{"length that overflows the offset", u64(txnB+atTlen, math.MaxInt64-100), txnB, tid1, "claims"},
		{"length below the header", u64(txnB+atTlen, 22), txnB, tid1, "its header has"},
		{"length 0", u64(txnB+atTlen, 0), txnB, tid1, "its header has"},
		{"length of the first transaction", u64(txnA+atTlen, 5000), txnA, 0, "claims 5000 bytes"},
		{"trailer differs", u64(trailerB, 97), txnB, tid1, "96 in front and 97 behind"},
		{"transaction overwritten with zeros", func(b []byte) []byte { clear(b[txnB:txnC]); return b }, txnB, tid1, "at offset 308"},
		{"tid 0", u64(txnB, 0), txnB, tid1, "tid is 0"},
		{"record of another transaction", u64(recB1+atTloc, 4), recB1, tid1, "starts at offset 4"},
		{"record of the last transaction", u64(recC2+atTloc, 5), recC2, tid2, "starts at offset 5"},
		{"Version", set(recB1+atVlen+1, 3), recB1, tid1, "Version"},
		{"data longer than the transaction", u64(recB1+atPlen, 26), recB1, tid1, "claims 26 bytes"},
		{"data as long as can be", u64(recB1+atPlen, math.MaxUint64), recB1, tid1, "claims 18446744073709551615 bytes"},
		{"data of 2^63 bytes", u64(recB1+atPlen, 1<<63), recB1, tid1, "claims 9223372036854775808 bytes"},
		{"data shorter, so that the next record is off", u64(recA0+atPlen, 48), recA1 - 1, 0, "starts at offset"},
		{"data shorter in the last record", u64(recB1+atPlen, 24), txnC - 9, tid1, "1 bytes are left"},
		{"no data and no room for a back pointer", func(b []byte) []byte {
			d := newData()
			d.add(' ', tid1, "", "", "", put{oid: 0, data: []byte("1234567")})
			binary.BigEndian.PutUint64(d.buf[27+atPlen:], 0)
			return d.buf
		}, 27, 0, "claims 0 bytes"},
		{"back pointer to itself", u64(recC1+atBack, recC1), recC1, tid2, "leads to offset 335, which is not before"},
		{"back pointer forwards", u64(recC1+atBack, recC2), recC1, tid2, "not before"},
		{"back pointer beyond the file", u64(recC1+atBack, 1<<40), recC1, tid2, "not before"},
		{"back pointer of all ones", u64(recC1+atBack, math.MaxUint64), recC1, tid2, "not before"},
		{"back pointer to the magic", u64(recC1+atBack, 1), recC1, tid2, "not before"},
		{"back pointer into data", u64(recC1+atBack, recA0+50), recC1, tid2, "where no record stands"},
		{"back pointer to a transaction", u64(recC1+atBack, txnB), recC1, tid2, "where no record stands"},
		{"back pointer to another oid", u64(recC1+atBack, recA0), recC1, tid2, "where a record of oid 0x0000000000000000 stands"},
		{"back pointer just before itself", u64(recC1+atBack, recC1-1), recC1, tid2, "not before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, file(t, c.patch(sample().buf)))
			for range 2 { // a second scan must not step over what stopped the first
				_, err := s.Scan(t.Context(), source.ScanOptions{})
				var damage *source.DamageError
				if !errors.As(err, &damage) {
					t.Fatalf("Scan gave %v, no damage", err)
				}
				if damage.Pos != c.pos || damage.LastTID != c.last || !strings.Contains(damage.Problem, c.problem) || damage.Hint == "" {
					t.Errorf("got offset %d, last tid %v, %q, hint %q; want offset %d, last tid %v, %q",
						damage.Pos, damage.LastTID, damage.Problem, damage.Hint, c.pos, c.last, c.problem)
				}
			}
			err := s.Read(t.Context(), source.ReadOptions{ChunkBytes: 1 << 20, Budget: noBudget{}}, func(c *source.Chunk) error { return nil })
			if err == nil {
				t.Error("Read worked without a successful Scan")
			}
		})
	}
}

func TestUnfinishedTailIsLeftOutAndSaid(t *testing.T) {
	type row struct {
		name  string
		patch func([]byte) []byte
		end   int64
		tail  string
	}
	rows := []row{
		{"committing at the end", set(txnC+atStatus, 'c'), txnC, "being committed"},
		{"committing and torn", both(set(txnC+atStatus, 'c'), upTo(400)), txnC, "being committed"},
		{"committing, then junk", both(set(txnC+atStatus, 'c'), tail("junk")), txnC, "none follows"},
		{"text at the end", tail("Traceback (most recent call last):\n  File \"x.py\"\n"), sampleEnd, "49 bytes from offset 443"},
		{"trailer of the last transaction differs", u64(trailerC, 7), txnC, "127 in front and 7 behind"},
		{"length of the last transaction differs", u64(txnC+atTlen, 126), txnC, "none follows"},
		{"zeros where the last transaction stood", func(b []byte) []byte { clear(b[txnC:]); return b }, txnC, "135 zero bytes"},
		{"zeros at the end of a torn transaction", func(b []byte) []byte { clear(b[txnC+50:]); return b }, txnC, "none follows"},
		{"a megabyte of zeros", tail(string(make([]byte, 1<<20))), sampleEnd, "1048576 zero bytes"},
		{"half a megabyte of spaces", tail(strings.Repeat(" ", 1<<19)), sampleEnd, "none follows"},
	}
	for n := txnC + 1; n < sampleEnd; n++ {
		rows = append(rows, row{fmt.Sprintf("torn after %d bytes", n-txnC), upTo(n), txnC, "from offset 308"})
	}
	for n := 1; n <= 40; n++ {
		rows = append(rows,
			row{fmt.Sprintf("%d stray bytes", n), tail(strings.Repeat("s", n)), sampleEnd, fmt.Sprintf("%d bytes from offset 443", n)},
			row{fmt.Sprintf("%d zeros", n), tail(string(make([]byte, n))), sampleEnd, fmt.Sprintf("%d zero bytes from offset 443", n)})
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, file(t, c.patch(sample().buf)))
			info, err := s.Scan(t.Context(), source.ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if info.Identity.End != c.end || !strings.Contains(info.Tail, c.tail) {
				t.Errorf("ends at %d with %q, want %d with %q", info.Identity.End, info.Tail, c.end, c.tail)
			}
			want := sample().want
			if c.end == txnC {
				want = want[:2]
			}
			if got := everything(t, s); got != text(want) {
				t.Errorf("got %s\nwant %s", got, text(want))
			}
		})
	}
}

// everything gives what Follow gives from the start as text.
func everything(t *testing.T, s *filestorage.Source) string {
	t.Helper()
	var list []sourcetest.Transaction
	at := map[zodb.TID]int{}
	err := s.Follow(t.Context(), 4, source.ReadOptions{ChunkBytes: 1 << 20, Budget: noBudget{}}, func(c *source.Chunk) error {
		defer c.Release()
		for _, x := range c.Transactions {
			at[x.TID] = len(list)
			list = append(list, sourcetest.Transaction{TID: x.TID, User: bytes.Clone(x.User), Description: bytes.Clone(x.Description), Extension: bytes.Clone(x.Extension)})
		}
		var scratch []byte
		for i := range c.Records {
			r := &c.Records[i]
			b, err := s.Data(t.Context(), r, &scratch)
			if err != nil {
				return err
			}
			x := &list[at[r.TID]]
			x.Records = append(x.Records, sourcetest.Record{OID: r.OID, Data: bytes.Clone(b)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text(list)
}

func text(list []sourcetest.Transaction) string {
	var b strings.Builder
	for _, x := range list {
		fmt.Fprintf(&b, "\n%v %q %q %q", x.TID, x.User, x.Description, x.Extension)
		for _, r := range x.Records {
			fmt.Fprintf(&b, "\n   %v %q deleted %v", r.OID, r.Data, r.Data == nil)
		}
	}
	return b.String()
}

// TestDataThatLooksLikeADatabase has whole databases and fakes in the data of
// records: they are no transactions of this file.
func TestDataThatLooksLikeADatabase(t *testing.T) {
	d := sample()
	start := len(d.buf)
	inner := sample().buf
	d.add(' ', tid3+1, "", "", "", put{oid: 8, data: append(inner, "more"...)})
	for _, cut := range []int{1, 5, 60} { // torn, with the whole inner database in it
		s := open(t, file(t, d.buf[:len(d.buf)-cut]))
		if info := scan(t, s, 0); info.Identity.End != int64(start) || !strings.Contains(info.Tail, "none follows") {
			t.Errorf("torn by %d: ends at %d, want %d: %s", cut, info.Identity.End, start, info.Tail)
		}
	}
	contract(t, file(t, d.buf), d.want)
}

// TestBackPointerToAFake has a record header within the data of a record, made
// to look like the target of a back pointer.
func TestBackPointerToAFake(t *testing.T) {
	const at = 27 + recHeaderSize // where the data of the first record stands
	fake := func(tlen uint64, user uint16, plen uint64) []byte {
		b := binary.BigEndian.AppendUint64(nil, uint64(tid1)) // a transaction at at
		b = binary.BigEndian.AppendUint64(b, tlen)
		b = append(b, ' ')
		b = binary.BigEndian.AppendUint16(b, user)
		b = append(b, 0, 0, 0, 0)
		for _, x := range []uint64{3, uint64(tid1), 0, at} { // a record behind it
			b = binary.BigEndian.AppendUint64(b, x)
		}
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint64(b, plen)
		return append(b, "0123456789 0123456789"...)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"its transaction is longer than the file", fake(1<<40, 0, 10)},
		{"its transaction has a longer header", fake(100, 200, 10)},
		{"its transaction's header reaches into it", fake(100, 30, 10)},
		{"its transaction ends before it", fake(23, 0, 10)},
		{"its data is longer than its transaction", fake(70, 0, 10)},
		{"its data reaches to the one that points to it", fake(400, 0, 140)},
		{"its data is longer than anything", fake(400, 0, 1<<63)},
	} {
		d := newData()
		d.add(' ', tid1, "", "", "", put{oid: 3, data: c.data})
		d.add(' ', tid2, "", "", "", put{oid: 3, back: at + 23}, put{oid: 4, data: make([]byte, 500)})
		_, err := open(t, file(t, d.buf)).Scan(t.Context(), source.ScanOptions{})
		if err == nil || !strings.Contains(err.Error(), "where no record stands") {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestOddButSoundFilesAreRead(t *testing.T) {
	all := func(w []sourcetest.Transaction) []sourcetest.Transaction { return w }
	for _, c := range []struct {
		name    string
		patch   func([]byte) []byte
		want    func([]sourcetest.Transaction) []sourcetest.Transaction
		warning string
	}{
		{"undone transaction", set(txnB+atStatus, 'u'), func(w []sourcetest.Transaction) []sourcetest.Transaction { return append(w[:1:1], w[2]) }, "1 transactions are marked as undone"},
		{"undone transaction with nonsense in it", both(set(txnB+atStatus, 'u'), u64(recB1, 77)), func(w []sourcetest.Transaction) []sourcetest.Transaction { return append(w[:1:1], w[2]) }, "undone"},
		{"wrong previous record", u64(recB1+atPrev, 1<<60), all, ""},
		{"record with another tid", u64(recB1+atRecTID, 5), all, "1 records carry another tid than their transaction (the first at offset 233)"},
		{"packed", set(txnA+atStatus, 'p'), all, ""},
		{"Python 2", func(b []byte) []byte { copy(b, "FS21"); return b }, all, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := sample()
			path := file(t, c.patch(d.buf))
			s := open(t, path)
			info, err := s.Scan(t.Context(), source.ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(info.Warnings, "\n"); !strings.Contains(got, c.warning) || c.warning == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
			if info.Python2 != (c.name == "Python 2") {
				t.Errorf("Python2 is %v", info.Python2)
			}
			contract(t, path, c.want(d.want))
		})
	}
}

func TestTIDsThatDoNotRise(t *testing.T) {
	d := newData()
	pos := map[string]int64{}
	for _, x := range []struct {
		name string
		tid  zodb.TID
	}{{"a", 10}, {"b", 20}, {"b again", 20}, {"falls", 5}, {"a long ago", 10}, {"falls again", 5}, {"rises", 30}, {"below", 29}} {
		pos[x.name] = int64(len(d.buf))
		d.add(' ', x.tid, x.name, "", "", put{oid: 0, data: []byte("x")})
	}
	s := open(t, file(t, d.buf))
	info, err := s.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []source.TIDOrder{
		{TID: 20, Pos: pos["b again"], Prev: 20, PrevPos: pos["b"], Equal: true},
		{TID: 5, Pos: pos["falls"], Prev: 20, PrevPos: pos["b"]},
		{TID: 10, Pos: pos["a long ago"], Prev: 10, PrevPos: pos["a"], Equal: true},
		{TID: 5, Pos: pos["falls again"], Prev: 5, PrevPos: pos["falls"], Equal: true},
		{TID: 29, Pos: pos["below"], Prev: 30, PrevPos: pos["rises"]},
	}
	if got := fmt.Sprintf("%+v", info.Falling); got != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %s\nwant %+v", got, want)
	}
	if info.FirstTID != 10 || info.LastTID != 29 || info.MaxTID != 30 {
		t.Errorf("first %v, last %v, highest %v", info.FirstTID, info.LastTID, info.MaxTID)
	}
}

func TestManyFallingTIDsAreCappedButEqualOnesNamed(t *testing.T) {
	d := newData()
	d.add(' ', 1<<40, "", "", "")
	for i := range 1500 {
		d.add(' ', zodb.TID(i+1), "", "", "")
	}
	d.add(' ', 3, "", "", "")
	s := open(t, file(t, d.buf))
	info, err := s.Scan(t.Context(), source.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(info.Falling); n != 1001 || !info.Falling[1000].Equal || info.Falling[1000].TID != 3 {
		t.Errorf("%d places listed, the last %+v", n, info.Falling[n-1])
	}
	if got := strings.Join(info.Warnings, "\n"); !strings.Contains(got, "1501 transactions") {
		t.Errorf("warnings %q", got)
	}
}

func TestCompressedRecordsThatCannotBeInflated(t *testing.T) {
	good := compressed(bytes.Repeat([]byte("pickle"), 100), "")
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1 // the checksum
	for name, stored := range map[string][]byte{
		"nothing but the mark": []byte(".z"),
		"no zlib header":       []byte(".zhello world"),
		"torn":                 good[:len(good)-10],
		"wrong checksum":       flipped,
	} {
		t.Run(name, func(t *testing.T) {
			d := newData()
			at := d.add(' ', tid1, "", "", "", put{oid: 7, data: stored})
			d.add(' ', tid2, "", "", "", put{oid: 7, back: at[0]})
			s := open(t, file(t, d.buf))
			if _, err := s.Scan(t.Context(), source.ScanOptions{}); err != nil {
				t.Fatal(err)
			}
			n := 0
			err := s.Read(t.Context(), source.ReadOptions{History: true, ChunkBytes: 1 << 20, Budget: noBudget{}}, func(c *source.Chunk) error {
				defer c.Release()
				for i := range c.Records {
					n++
					var scratch []byte
					r := &c.Records[i]
					_, err := s.Data(t.Context(), r, &scratch)
					var damage *source.DamageError
					if !errors.As(err, &damage) {
						t.Fatalf("Data gave %v, no damage", err)
					}
					if want := map[zodb.TID]zodb.TID{tid1: 0, tid2: tid1}[r.TID]; damage.LastTID != want {
						t.Errorf("last good transaction %v, want %v", damage.LastTID, want)
					}
					for _, part := range []string{"oid 0x0000000000000007", r.TID.String(), fmt.Sprintf("offset %d", r.Pos), "inflate"} {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("%q is not in %q", part, err)
						}
					}
				}
				return nil
			})
			if err != nil || n != 2 {
				t.Errorf("%d records: %v", n, err)
			}
		})
	}
}

func TestBlobsAreCounted(t *testing.T) {
	frame := "\x95\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		name   string
		data   string
		isBlob bool
	}{
		{"protocol 3", blobPickle, true},
		{"protocol 2", "\x80\x02cZODB.blob\nBlob\nq\x00.\x80\x02N.", true},
		{"protocol 1", "cZODB.blob\nBlob\nq\x01.N.", true},
		{"protocol 0", "cZODB.blob\nBlob\np12\n.N.", true},
		{"long memo", "\x80\x03cZODB.blob\nBlob\nr\x00\x00\x01\x00.N.", true},
		{"protocol 4", "\x80\x04" + frame + "\x8c\x09ZODB.blob\x94\x8c\x04Blob\x94\x93\x94.\x80\x04N.", true},
		{"protocol 4 without memo", "\x80\x04\x8c\x09ZODB.blob\x8c\x04Blob\x93.N.", true},
		{"compressed", string(compressed([]byte(blobPickle), "")), true},
		{"a state of another kind", "\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03}q\x01.", true},
		{"class in a pair", "\x80\x03cZODB.blob\nBlob\nq\x00N\x86q\x01.\x80\x03N.", true},
		{"class in a pair, with a mark", "(cZODB.blob\nBlob\nq\x00Ntq\x01.N.", true},
		{"names in a pair, as zodb-pgjsonb gives them", "\x80\x02X\x09\x00\x00\x00ZODB.blobX\x04\x00\x00\x00Blob\x86N\x86.\x80\x02N.", true},
		{"names in a pair, with memo", "\x80\x03(U\x09ZODB.blobq\x00U\x04Blobq\x01tq\x02N\x86q\x03.\x80\x03N.", true},
		{"names of another class in a pair", "\x80\x02X\x09\x00\x00\x00ZODB.blobX\x05\x00\x00\x00Blobs\x86N\x86.\x80\x02N.", false},
		{"a name longer than the record", "\x80\x02X\xff\xff\xff\xffZODB.blob", false},
		{"a pair without its first", "\x80\x03N\x86.N.", false},
		{"class and class", "cZODB.blob\nBlob\ncZODB.blob\nBlob\n\x86.N.", false},
		{"reference to a blob", "\x80\x03cx\ny\nq\x00.\x80\x03C\x08\x00\x00\x00\x00\x00\x00\x00\x01q\x01cZODB.blob\nBlob\nq\x02\x86q\x03Q.", false},
		{"another class of the module", "\x80\x03cZODB.blob\nBlobFile\nq\x00.\x80\x03N.", false},
		{"torn class", "\x80\x03cZODB.blob\nBlob\nq", false},
		{"no end", "\x80\x03cZODB.blob\nBlob\n", false},
		{"protocol only", "\x80", false},
		{"compressed junk", ".zcZODB.blob\nBlob\nq\x00.", false},
		{"compressed something", string(compressed([]byte(rootPickle), "")), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newData()
			at := d.add(' ', tid1, "", "", "", put{oid: 9, data: []byte(c.data)})
			d.add(' ', tid2, "", "", "", put{oid: 9, back: at[0]}, put{oid: 10})
			s := open(t, file(t, d.buf))
			info, err := s.Scan(t.Context(), source.ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			want, oids := int64(0), "[]"
			if c.isBlob {
				want, oids = 2, "[0x0000000000000009]"
			}
			if got := fmt.Sprint(info.BlobOIDs); info.Blobs != want || got != oids {
				t.Errorf("%d blob records of %s, want %d of %s", info.Blobs, got, want, oids)
			}
		})
	}
}

func TestLongChainsOfBackPointers(t *testing.T) {
	d := newData()
	at := d.add(' ', 1, "", "", "", put{oid: 3, data: []byte("the data")})
	for i := range 9_990 {
		at = d.add(' ', zodb.TID(i+2), "", "", "", put{oid: 3, back: at[0]})
	}
	s := open(t, file(t, d.buf))
	if _, err := s.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	dataAt := func(s *filestorage.Source, pos int64) (string, error) {
		r := source.Record{OID: 3, TID: 1, Pos: pos, Back: int64(binary.BigEndian.Uint64(d.buf[pos+atBack:]))}
		var scratch []byte
		b, err := s.Data(t.Context(), &r, &scratch)
		return string(b), err
	}
	if b, err := dataAt(s, at[0]); err != nil || b != "the data" {
		t.Errorf("got %q, %v", b, err)
	}
	for i := range 11 { // one more than is allowed
		at = d.add(' ', zodb.TID(i+10_000), "", "", "", put{oid: 3, back: at[0]})
	}
	const problem = "a chain of more than 10000"
	if _, err := open(t, file(t, d.buf)).Scan(t.Context(), source.ScanOptions{}); err == nil || !strings.Contains(err.Error(), problem) {
		t.Errorf("Scan over a chain that is too long: %v", err)
	}
	path := file(t, d.buf[:len(d.buf)-8-23-50]) // without the last transaction
	s = open(t, path)
	if _, err := s.Scan(t.Context(), source.ScanOptions{}); err != nil {
		t.Errorf("Scan over the longest chain: %v", err)
	}
	if err := os.WriteFile(path, d.buf, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dataAt(s, at[0]); err == nil || !strings.Contains(err.Error(), problem) {
		t.Errorf("Data at the end of a chain that is too long: %v", err)
	}
}
