package blobdir

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/zodb"
)

func TestNamesAreThoseOfZODB(t *testing.T) {
	for _, c := range []struct {
		oid         zodb.OID
		tid         zodb.TID
		bushy, lawn string
	}{
		{2, 0x040d2886fae38355, "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x02/0x040d2886fae38355.blob", "0x02/0x040d2886fae38355.blob"},
		{0, 0, "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x00.blob", "0x00/0x00.blob"},
		{0x100, 1, "0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x00/0x01.blob", "0x0100/0x01.blob"},
		{0xabc, 0xabc, "0x00/0x00/0x00/0x00/0x00/0x00/0x0a/0xbc/0x0abc.blob", "0x0abc/0x0abc.blob"},
		{1<<64 - 1, 1<<63 + 5, "0xff/0xff/0xff/0xff/0xff/0xff/0xff/0xff/0x8000000000000005.blob", "0xffffffffffffffff/0x8000000000000005.blob"},
	} {
		if got := filepath.ToSlash(Bushy.name(c.oid, c.tid)); got != c.bushy {
			t.Errorf("bushy: %s, want %s", got, c.bushy)
		}
		if got := filepath.ToSlash(Lawn.name(c.oid, c.tid)); got != c.lawn {
			t.Errorf("lawn: %s, want %s", got, c.lawn)
		}
	}
}

// parsePath goes down a path as a walk does.
func parsePath(path string) (oid zodb.OID, tid zodb.TID, ok bool) {
	names := strings.Split(path, "/")
	in := place{}
	for _, name := range names[:len(names)-1] {
		if in, ok = in.enter(name); !ok {
			return 0, 0, false
		}
	}
	return in.blob(names[len(names)-1])
}

func TestForeignNamesAreNoBlobs(t *testing.T) {
	const deep = "0x00/0x00/0x00/0x00/0x00/0x00/0x00/"
	for _, path := range []string{
		"", ".layout", "0x01.blob", "tmp/BUC123", "tmp/0x01.blob", "0x01/.lock", "0x01/0x02.blob.tmp", "0x01/0x02x7r2kq.tmp", "0x01/02.blob",
		"0x01/0x.blob", "0x/0x02.blob", "0x1/0x02.blob", "0x01/0x2.blob", "0x01/0x0002.blob", "0x0001/0x02.blob", "0X01/0x02.blob",
		"0x01/0xAB.blob", "0xAB/0x01.blob", "0x01/0x02.Blob", "0x01/0xzz.blob", "0x010203040506070809/0x02.blob", "0x01/0x010203040506070809.blob",
		"0x00/0x00/0x02.blob", deep + "0x01", deep + "0x01/0x02", deep + "0x01/0x02/0x03.blob", deep + "0x0100/0x02.blob", "0x0100/0x00/0x02.blob",
		"23/0.03d167f919308700.blob", "0x01/ 0x02.blob", "0x01/0x02\n.blob", "0x01/0x02.blob\n", "savepoints3x9/0x02-0x03.spb",
	} {
		if oid, tid, ok := parsePath(path); ok {
			t.Errorf("%q is taken for the blob oid %v, tid %v", path, oid, tid)
		}
	}
}

// FuzzName makes sure that every path that is taken for a blob is the one that
// is looked for when that blob is wanted, and nothing else.
func FuzzName(f *testing.F) {
	for _, path := range []string{
		"0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x02/0x040d2886fae38355.blob", "0x02/0x040d2886fae38355.blob", "0x00/0x00.blob", "0x0100/0x01.blob",
		"0xffffffffffffffff/0x8000000000000005.blob", "0x1/0x.blob", "tmp/x", "23/0.03d167f919308700.blob", "0x00/0x00/0x00.blob", "",
	} {
		f.Add(path, uint64(1), uint64(2))
	}
	f.Fuzz(func(t *testing.T, path string, oid, tid uint64) {
		if o, i, ok := parsePath(path); ok {
			if path != filepath.ToSlash(Bushy.name(o, i)) && path != filepath.ToSlash(Lawn.name(o, i)) {
				t.Errorf("%q is taken for the blob oid %v, tid %v", path, o, i)
			}
		}
		for _, l := range []Layout{Bushy, Lawn} {
			name := filepath.ToSlash(l.name(zodb.OID(oid), zodb.TID(tid)))
			if o, i, ok := parsePath(name); !ok || o != zodb.OID(oid) || i != zodb.TID(tid) {
				t.Errorf("%v: %s is read as oid %v, tid %v, %v", l, name, o, i, ok)
			}
		}
	})
}
