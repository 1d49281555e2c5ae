package filestorage

import (
	"testing"

	"github.com/zodb-convert/zodb-convert/source/blobclass"
	"github.com/zodb-convert/zodb-convert/source/zrecord"
)

// FuzzBlobClass takes any bytes for the start of a record: no panic, and no blob
// without the names of its class.
func FuzzBlobClass(f *testing.F) {
	for _, seed := range []string{
		"\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.", "cZODB.blob\nBlob\np12\n.", "\x80\x03(cZODB.blob\nBlob\nNtq\x01.",
		"\x80\x02X\x09\x00\x00\x00ZODB.blobX\x04\x00\x00\x00Blob\x86N\x86.", "\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x09ZODB.blob\x94\x8c\x04Blob\x94\x93\x94.",
		"(U\x09ZODB.blobT\x04\x00\x00\x00Blobt)\x86r\x00\x00\x00\x00.", ".zx", "(((((((((", "N\x86", "c\n\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if new(inflater).isBlob(p, uint64(len(p))) && !blobclass.Is(p) && !zrecord.Is(p) {
			t.Errorf("%q is taken for a blob", p)
		}
	})
}
