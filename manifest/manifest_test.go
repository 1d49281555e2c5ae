package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/zodb"
)

func line(path string, oid, tid, size int) Line {
	return Line{Path: path, OID: zodb.OID(oid), TID: zodb.TID(tid), Size: int64(size)}
}

func lines(all ...Line) Lines {
	return func(add func(Line) error) error {
		for _, l := range all {
			if err := add(l); err != nil {
				return err
			}
		}
		return nil
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestALineIsWhatThePythonToolWrites(t *testing.T) {
	var b bytes.Buffer
	total, err := Encode(&b, lines(line("/srv/b/0x03f8654c26666666.blob", 42, 0x03f8654c26666666, 5242880), line("/srv/a b", 1<<62, 1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	want := "/srv/b/0x03f8654c26666666.blob\tblobs/000000000000002a/03f8654c26666666.blob\t42\t5242880\n" +
		"/srv/a b\tblobs/4000000000000000/0000000000000001.blob\t4611686018427387904\t0\n"
	if b.String() != want || total != (Total{2, 5242880}) {
		t.Errorf("%v\n got %s\nwant %s", total, b.String(), want)
	}
}

func TestEveryPathComesBack(t *testing.T) {
	for _, path := range []string{"/a", "/a b", "/ümlaut", "/a\tb", "/a\nb", "/a\rb", `"a"`, `"`, "/a\"b", "/a\\tb", "/\xff\xfe", "/\xff\tb", " a ",
		"/" + strings.Repeat("x\t", 1<<19)} {
		text, err := line(path, 1, 2, 3).AppendText(nil)
		if err != nil {
			t.Fatal(err)
		}
		r := NewReader(bytes.NewReader(text), "m")
		got, err := r.Next()
		if err != nil || got.Path != path {
			t.Errorf("%.40q became %.40q, %v", path, got.Path, err)
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%.40q: more than one line: %v", path, err)
		}
	}
}

func TestMalformedLinesAreNamed(t *testing.T) {
	const good = "/a\tblobs/0000000000000001/0000000000000002.blob\t1\t3"
	for _, c := range []struct{ name, text, want string }{
		{"no tab", "/a", "m:3: 4 columns with tabs between them are wanted (path, key, oid, size), and there are 1"},
		{"a column too many", good + "\tx", "m:3: 4 columns with tabs between them are wanted (path, key, oid, size), and there are 5"},
		{"no path", good[2:], "m:3: the path is empty"},
		{"quoted path without end", `"a` + good[2:], `m:3: the path "a starts with a double quote and is not a quoted string`},
		{"key with prefix", strings.Replace(good, "blobs", "p/blobs", 1), `m:3: the key "p/blobs/0000000000000001/0000000000000002.blob" is not blobs/OID/TID.blob with 16 hexadecimal digits each`},
		{"key in capitals", strings.Replace(good, "01/", "0A/", 1), `m:3: the key "blobs/000000000000000A/0000000000000002.blob" is not blobs/OID/TID.blob with 16 hexadecimal digits each`},
		{"key with a sign", strings.Replace(good, "/00", "/+0", 1), `m:3: the key "blobs/+000000000000001/0000000000000002.blob" is not blobs/OID/TID.blob with 16 hexadecimal digits each`},
		{"key of another object", strings.Replace(good, "\t1\t", "\t2\t", 1), "m:3: the oid 2 is not that of the key blobs/0000000000000001/0000000000000002.blob, 1"},
		{"oid in hexadecimal", strings.Replace(good, "\t1\t", "\t0x1\t", 1), `m:3: the oid "0x1" is not a decimal number`},
		{"negative size", strings.Replace(good, "\t3", "\t-3", 1), `m:3: the size "-3" is not a number of bytes`},
		{"no size", strings.TrimSuffix(good, "3"), `m:3: the size "" is not a number of bytes`},
		{"huge size", good + "99999999999999999999", `m:3: the size "399999999999999999999" is not a number of bytes`},
		{"too long", "/" + strings.Repeat("x", maxLine+100), "m:3: the line is too long for a manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader(strings.NewReader("\n"+good+"\r\n"+c.text+"\n"), "m")
			if l, err := r.Next(); err != nil || l != line("/a", 1, 2, 3) || r.Line() != 2 {
				t.Fatalf("the line before: %v, %v", l, err)
			}
			_, err := r.Next()
			if e := (*Error)(nil); !errors.As(err, &e) || e.Error() != c.want {
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestUpdateKeepsWhatIsStillOwed(t *testing.T) {
	text := func(all ...Line) string {
		var b bytes.Buffer
		if _, err := Encode(&b, lines(all...)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	a, b, c, d := line("/a", 1, 1, 1), line("/b", 1, 2, 2), line("/c", 2, 1, 3), line("/d", 9, 1, 4)
	moved := line("/elsewhere/b", 1, 2, 2)
	for _, k := range []struct {
		name    string
		earlier []Line
		gone    []Line
		added   []Line
		want    []Line
	}{
		{"no lines", nil, nil, nil, nil},
		{"only earlier ones", []Line{a, c}, nil, nil, []Line{a, c}},
		{"only new ones", nil, nil, []Line{a, c}, []Line{a, c}},
		{"both", []Line{a, c}, nil, []Line{b, d}, []Line{a, b, c, d}},
		{"the new one of two counts", []Line{a, b, c}, nil, []Line{moved}, []Line{a, moved, c}},
		{"replaced blobs go", []Line{a, c}, []Line{a}, []Line{b}, []Line{b, c}},
		{"doubled lines", []Line{a, a, c, c}, nil, nil, []Line{a, c}},
		{"not sorted, as the Python tool leaves it", []Line{d, a, c, a}, []Line{c}, []Line{b}, []Line{a, b, d}},
	} {
		t.Run(k.name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "m"), text(k.earlier...))
			gone := map[string]bool{}
			for _, l := range k.gone {
				gone[l.Key()] = true
			}
			total, err := Update(path, func(key string) bool { return gone[key] }, lines(k.added...))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(text(k.want...), readText(t, path)); d != "" {
				t.Error(d)
			}
			if total.Lines != int64(len(k.want)) {
				t.Errorf("%d lines are told", total.Lines)
			}
		})
	}
}

func TestWhatGoesWrongLeavesTheManifestAsItWas(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "m"), "")
	if _, err := Write(path, lines(line("/a", 1, 1, 1))); err != nil {
		t.Fatal(err)
	}
	before := readText(t, path)
	broken := errors.New("broken")
	many := func(add func(Line) error) error {
		for i := range 10000 {
			if err := add(line("/a", i, 1, 1)); err != nil {
				return err
			}
		}
		return broken
	}
	if _, err := Write(path, many); !errors.Is(err, broken) {
		t.Errorf("Write: %v", err)
	}
	if _, err := Update(path, nil, many); !errors.Is(err, broken) {
		t.Errorf("Update: %v", err)
	}
	if _, err := Write(path, lines(Line{})); err == nil {
		t.Error("a line without a file is written")
	}
	if readText(t, path) != before {
		t.Error("the manifest has changed")
	}
	write(t, path, "nonsense\n")
	if _, err := Update(path, nil, lines()); err == nil || err.Error() != path+":1: 4 columns with tabs between them are wanted (path, key, oid, size), and there are 1" {
		t.Errorf("an unreadable manifest: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// A full disk is a real one: a file system of 64 KB.
func TestAFullDiskLeavesNothing(t *testing.T) {
	dir := throwaway.SmallDisk(t)
	path := filepath.Join(dir, "m")
	_, err := Write(path, func(add func(Line) error) error {
		for i := range 100000 {
			if err := add(line("/some/longer/path/to/a/blob", i, 1, 1)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("%v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCheckCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	if _, err := Write(path, lines(line("/a", 1, 1, 10), line("/b", 2, 1, 5))); err != nil {
		t.Fatal(err)
	}
	if total, err := Check(path); err != nil || total != (Total{2, 15}) {
		t.Errorf("%v, %v", total, err)
	}
	if _, err := Check(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a manifest that is not there: %v", err)
	}
}

// FuzzReader looks for manifests that crash the reader, and for lines that are
// not the same when they are written again.
func FuzzReader(f *testing.F) {
	f.Add([]byte("/a\tblobs/0000000000000001/0000000000000002.blob\t1\t3\n"))
	f.Add([]byte("\"/a\\tb\\xff\"\tblobs/0000000000000001/0000000000000002.blob\t1\t3\r\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := NewReader(bytes.NewReader(text), "m")
		for n := 0; ; n++ {
			l, err := r.Next()
			if err != nil {
				if e := (*Error)(nil); !errors.Is(err, io.EOF) && (!errors.As(err, &e) || e.Line == 0) {
					t.Errorf("neither an *Error with its line nor the end: %v", err)
				}
				return
			}
			again, err := l.AppendText(nil)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := Parse(strings.TrimSuffix(string(again), "\n")); err != nil || back != l {
				t.Errorf("%+v became %+v, %v", l, back, err)
			}
			if n > len(text) {
				t.Fatal("more lines than bytes")
			}
		}
	})
}

func ExampleLine_AppendText() {
	text, _ := Line{Path: "/srv/b.blob", OID: 42, TID: 0x03f8654c26666666, Size: 5}.AppendText(nil)
	fmt.Print(string(bytes.ReplaceAll(text, []byte("\t"), []byte(" | "))))
	// Output: /srv/b.blob | blobs/000000000000002a/03f8654c26666666.blob | 42 | 5
}
