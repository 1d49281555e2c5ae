package filestorage_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source/sourcetest"
)

func TestSampleIsTheOneThatZODBReads(t *testing.T) {
	d := sample()
	sum := sha256.Sum256(d.buf)
	if got := hex.EncodeToString(sum[:]); got != "e4bef19215256064a5f283a4b941bcb266b96dae38792d786b517f601eadfefb" {
		t.Fatalf("sample has sha256 %s", got)
	}
}

func TestContract(t *testing.T) {
	for _, c := range []struct {
		name string
		data *data
	}{
		{"no transaction", newData()},
		{"sample", sample()},
		{"various", various()},
		{"undone transactions first and last", undoneAround()},
	} {
		t.Run(c.name, func(t *testing.T) { contract(t, file(t, c.data.buf), c.data.want) })
	}
}

// TestContractOnRealDatabases reads what the real ZODB has written, with the
// dump that its own reader has made of each.
func TestContractOnRealDatabases(t *testing.T) {
	paths, err := filepath.Glob("../../testdata/*.fs")
	if err != nil {
		t.Fatal(err)
	}
	dumps := 0
	for _, path := range paths {
		dump := strings.TrimSuffix(path, ".fs") + ".dump.jsonl"
		if _, err := os.Stat(dump); err != nil {
			continue // Python 2 wrote it, which ZODB does not read any more
		}
		dumps++
		t.Run(filepath.Base(path), func(t *testing.T) {
			want, err := sourcetest.LoadDump(dump)
			if err != nil {
				t.Fatal(err)
			}
			blobs := strings.TrimSuffix(path, ".fs") + ".blobs"
			if _, err := os.Stat(blobs); err != nil {
				contract(t, path, want)
				return
			}
			blobContract(t, path, blobs, want)
		})
	}
	if dumps == 0 {
		t.Error("there is no database in testdata")
	}
}

// TestPython2Databases reads each file of Python 2 to its end.
func TestPython2Databases(t *testing.T) {
	paths, err := filepath.Glob("../../testdata/*.fs")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		s := open(t, path)
		info := scan(t, s, 0)
		if !info.Python2 {
			continue
		}
		got := everything(t, s)
		stat, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Identity.End != stat.Size() || int64(strings.Count(got, "\n   ")) != info.Records {
			t.Errorf("%s: %d of %d bytes, %d records: %s", path, info.Identity.End, stat.Size(), info.Records, info.Tail)
		}
	}
}

func undoneAround() *data {
	d := newData()
	d.add('u', tid1-1, "", "", "", put{oid: 1, data: []byte("gone")})
	d.add(' ', tid1, "", "", "", put{oid: 1, data: []byte("here")}, put{oid: 2, data: []byte("too")})
	d.add('u', tid1+1, "", "", "")
	return d
}
