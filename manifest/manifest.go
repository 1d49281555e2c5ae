// Package manifest reads and writes the list of blobs that are still to be
// uploaded to S3.
//
// It is the text that zodb-pgjsonb and the Python zodb-convert write and read:
// a line for each blob, without a heading, of four columns with a tab between
// them:
//
//	/srv/plone/var/blobstorage/0x00/…/0x03f8….blob	blobs/000000000000002a/03f8654c26666666.blob	42	5242880
//
// the path of the file, the key in the bucket (without the prefix that the
// configuration of the bucket adds), the oid as a decimal number, and the size
// in bytes.
//
// A path that holds a tab, a newline or a carriage return, or that starts with
// a double quote, is written as a quoted string with the escapes of C and Go.
// The other tools have no form for such paths at all. Those that are written
// here are absolute, so that no other path starts with a double quote.
//
// The package guarantees that a manifest appears as a whole or not at all, and
// that nothing malformed is read: a line is an error with its number, never
// passed over.
package manifest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// Line is one blob to be uploaded.
type Line struct {
	Path string
	OID  zodb.OID
	TID  zodb.TID
	Size int64
}

// Key is where the blob belongs in the bucket, without the prefix.
func (l Line) Key() string {
	return fmt.Sprintf("blobs/%016x/%016x.blob", uint64(l.OID), uint64(l.TID))
}

// AppendText appends the line with its newline.
func (l Line) AppendText(b []byte) ([]byte, error) {
	if l.Path == "" {
		return b, fmt.Errorf("blob oid %v, tid %v has no file", l.OID, l.TID)
	}
	if strings.ContainsAny(l.Path, "\t\n\r") || l.Path[0] == '"' {
		b = strconv.AppendQuote(b, l.Path)
	} else {
		b = append(b, l.Path...)
	}
	b = fmt.Appendf(b, "\t%s\t%d\t%d\n", l.Key(), uint64(l.OID), l.Size)
	return b, nil
}

// Parse reads a line, without its newline.
func Parse(text string) (Line, error) {
	columns := strings.Split(text, "\t")
	if len(columns) != 4 {
		return Line{}, fmt.Errorf("4 columns with tabs between them are wanted (path, key, oid, size), and there are %d", len(columns))
	}
	path, err := parsePath(columns[0])
	if err != nil {
		return Line{}, err
	}
	l := Line{Path: path}
	if l.OID, l.TID, err = parseKey(columns[1]); err != nil {
		return Line{}, err
	}
	oid, err := strconv.ParseUint(columns[2], 10, 64)
	if err != nil {
		return Line{}, fmt.Errorf("the oid %.40q is not a decimal number", columns[2])
	}
	if zodb.OID(oid) != l.OID {
		return Line{}, fmt.Errorf("the oid %d is not that of the key %s, %d", oid, columns[1], uint64(l.OID))
	}
	size, err := strconv.ParseUint(columns[3], 10, 63)
	if err != nil {
		return Line{}, fmt.Errorf("the size %.40q is not a number of bytes", columns[3])
	}
	l.Size = int64(size)
	return l, nil
}

func parsePath(text string) (string, error) {
	if text == "" {
		return "", errors.New("the path is empty")
	}
	if strings.ContainsRune(text, 0) {
		return "", errors.New("the path holds a NUL byte")
	}
	if text[0] != '"' {
		return text, nil
	}
	path, err := strconv.Unquote(text)
	if err != nil || path == "" || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("the path %.80s starts with a double quote and is not a quoted string", text)
	}
	return path, nil
}

// parseKey takes the keys that zodb-pgjsonb looks for and no other: an object
// under another key would not be found by anybody.
func parseKey(key string) (zodb.OID, zodb.TID, error) {
	rest, ok := strings.CutPrefix(key, "blobs/")
	rest, ok2 := strings.CutSuffix(rest, ".blob")
	oid, tid, ok3 := strings.Cut(rest, "/")
	o, err := parseHex(oid)
	t, err2 := parseHex(tid)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil {
		return 0, 0, fmt.Errorf("the key %.80q is not blobs/OID/TID.blob with 16 hexadecimal digits each", key)
	}
	return zodb.OID(o), zodb.TID(t), nil
}

func parseHex(s string) (uint64, error) {
	if len(s) != 16 || strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 16, 64)
}

// compare orders lines as they are written: by oid, then by tid.
func compare(a, b Line) int {
	switch {
	case a.OID < b.OID, a.OID == b.OID && a.TID < b.TID:
		return -1
	case a.OID == b.OID && a.TID == b.TID:
		return 0
	}
	return 1
}
