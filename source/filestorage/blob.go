package filestorage

import (
	"bytes"
	"context"
	"io"

	"github.com/zodb-convert/zodb-convert/source"
)

const (
	// blobClass is how much of a record's data the test for blobs looks at. The
	// class pickle of a blob takes about 25 bytes.
	blobClass = 64
	// blobPrefix is what of the stored form is read for the test. A compressed
	// record that is longer is no blob: zc.zlibstorage leaves blob records as
	// they are, because compression would make their 25 bytes longer.
	blobPrefix = 128
)

func isCompressed(data []byte) bool { return len(data) >= 2 && data[0] == '.' && data[1] == 'z' }

// isBlob tells whether the record of size bytes whose stored data starts with
// prefix is that of a blob: its first pickle is the class ZODB.blob.Blob, and
// nothing else. Something that merely refers to a blob, or a class in a tuple
// with arguments, does not count.
func (z *inflater) isBlob(prefix []byte, size uint64) bool {
	if uint64(len(prefix)) > size {
		prefix = prefix[:size]
	}
	if isCompressed(prefix) {
		if size > blobPrefix || z.reset(prefix[2:]) != nil {
			return false
		}
		plain := z.head[:]
		n, _ := io.ReadFull(z.zr, plain)
		prefix = plain[:n]
	}
	return isBlobClass(prefix)
}

var (
	blobGlobal  = []byte("cZODB.blob\nBlob\n")
	blobModule  = []byte("\x8c\x09ZODB.blob")
	blobName    = []byte("\x8c\x04Blob")
	stackGlobal = []byte("\x93")
)

func isBlobClass(p []byte) bool {
	if len(p) > 2 && p[0] == 0x80 { // PROTO
		p = p[2:]
	}
	if len(p) > 9 && p[0] == 0x95 { // FRAME
		p = p[9:]
	}
	rest, ok := bytes.CutPrefix(p, blobGlobal)
	if !ok {
		for _, part := range [][]byte{blobModule, blobName, stackGlobal} {
			if rest, ok = bytes.CutPrefix(p, part); !ok {
				return false
			}
			p = skipMemo(rest)
		}
		rest = p
	}
	rest = skipMemo(rest)
	return len(rest) > 0 && rest[0] == '.'
}

// skipMemo passes over instructions that store the top of the stack.
func skipMemo(p []byte) []byte {
	for len(p) > 0 {
		n := 0
		switch p[0] {
		case 0x94: // MEMOIZE
			n = 1
		case 'q': // BINPUT
			n = 2
		case 'r': // LONG_BINPUT
			n = 5
		case 'p': // PUT
			n = bytes.IndexByte(p, '\n') + 1
		}
		if n == 0 || n > len(p) {
			return p
		}
		p = p[n:]
	}
	return p
}

// Blob implements source.Source.
func (s *Source) Blob(_ context.Context, r *source.Record) (*source.Blob, error) {
	return nil, &source.BlobError{OID: r.OID, TID: r.TID, Missing: true, Problem: "cannot be looked for: no blob directory was given"}
}
