package blobdir

import (
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// Layout is how the files are arranged.
type Layout int

// The layouts of blob directories.
const (
	Bushy Layout = iota
	Lawn
)

// String gives the name that .layout holds.
func (l Layout) String() string {
	if l == Lawn {
		return "lawn"
	}
	return "bushy"
}

func (l Layout) other() Layout { return Lawn - l }

const (
	suffix = ".blob"
	// bytes of an id, and levels of a bushy directory.
	levels = 8
)

// name is where a blob lies below the directory.
func (l Layout) name(oid zodb.OID, tid zodb.TID) string {
	b := make([]byte, 0, 5*levels+2+2*levels+len(suffix))
	if l == Bushy {
		for shift := 8 * (levels - 1); shift >= 0; shift -= 8 {
			b = append(b, '0', 'x')
			b = hex.AppendEncode(b, []byte{byte(oid >> shift)})
			b = append(b, filepath.Separator)
		}
	} else {
		b = appendID(b, uint64(oid))
		b = append(b, filepath.Separator)
	}
	b = appendID(b, uint64(tid))
	return string(append(b, suffix...))
}

// appendID writes an id as ZODB writes it in names.
func appendID(b []byte, id uint64) []byte {
	b = append(b, '0', 'x')
	shift := 8 * (levels - 1)
	for shift > 0 && id>>shift == 0 {
		shift -= 8
	}
	for ; shift >= 0; shift -= 8 {
		b = hex.AppendEncode(b, []byte{byte(id >> shift)})
	}
	return b
}

// parseID reads an id. Only the form that appendID writes counts: ZODB looks
// for no other name.
func parseID(s string) (id uint64, ok bool) {
	digits, ok := strings.CutPrefix(s, "0x")
	n := len(digits)
	if !ok || n == 0 || n%2 != 0 || n > 2*levels || n > 2 && digits[:2] == "00" {
		return 0, false
	}
	for _, c := range []byte(digits) {
		switch {
		case '0' <= c && c <= '9':
			id = id<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			id = id<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return id, true
}

// parseFile reads the name of a committed blob's file, without its directory.
func parseFile(s string) (tid zodb.TID, ok bool) {
	id, ok := strings.CutSuffix(s, suffix)
	if !ok {
		return 0, false
	}
	n, ok := parseID(id)
	return zodb.TID(n), ok
}

// place is a directory on the way to blobs.
type place struct {
	// depth counts from 0, the blob directory itself. A directory at depth 1
	// may be the first level of the layout bushy, or an oid of lawn, or both.
	depth int
	oid   uint64 // of the bytes that were read so far
	wide  bool   // an oid of lawn that takes more than a byte
}

// enter is the place of a directory in p, if it may lead to blobs.
func (p place) enter(name string) (place, bool) {
	id, ok := parseID(name)
	if !ok || p.wide || p.depth == levels {
		return place{}, false
	}
	wide := len(name) > 4
	if wide && p.depth > 0 {
		return place{}, false
	}
	return place{depth: p.depth + 1, oid: p.oid<<8 | id, wide: wide}, true
}

// blob is the blob that a file in p is, if it is one.
func (p place) blob(name string) (oid zodb.OID, tid zodb.TID, ok bool) {
	if p.depth != 1 && p.depth != levels {
		return 0, 0, false
	}
	tid, ok = parseFile(name)
	return zodb.OID(p.oid), tid, ok
}
