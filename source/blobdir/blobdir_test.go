package blobdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// tree writes files, by their names below a new directory, and gives its path.
// A name that ends with a slash is an empty directory.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "blobstorage")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t testing.TB, dir string) *Dir {
	t.Helper()
	d, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	bushy1 = "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x0a.blob" // oid 1, tid 10
	lawn2  = "0x02/0x0b.blob"                                    // oid 2, tid 11
)

func TestLayoutIsFoundOut(t *testing.T) {
	many := map[string]string{"0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x0a.blob": ""}
	for i := range 600 {
		many[fmt.Sprintf("0x%04x/0x01.blob", i+0x1000)] = ""
	}
	for _, c := range []struct {
		name    string
		files   map[string]string
		layout  Layout
		warning string
	}{
		{"empty", nil, Bushy, ""},
		{"only hidden files", map[string]string{".nfs0001": ""}, Bushy, ""},
		{"only tmp", map[string]string{"tmp/": ""}, Bushy, ""},
		{"new bushy", map[string]string{".layout": "bushy", "tmp/": ""}, Bushy, ""},
		{"new lawn", map[string]string{".layout": "lawn\n", "tmp/": ""}, Lawn, ""},
		{"bushy", map[string]string{".layout": "bushy", bushy1: ""}, Bushy, ""},
		{"lawn", map[string]string{".layout": " lawn\n", lawn2: ""}, Lawn, ""},
		{"bushy without .layout", map[string]string{bushy1: ""}, Bushy, ""},
		{"lawn without .layout", map[string]string{lawn2: "", "tmp/": ""}, Lawn, ""},
		{"lawn with empty .layout", map[string]string{lawn2: "", ".layout": ""}, Lawn, ""},
		{"bushy that says lawn", map[string]string{".layout": "lawn", bushy1: ""}, Bushy, ".layout says lawn"},
		{"lawn that says bushy", map[string]string{".layout": "bushy", lawn2: ""}, Lawn, ".layout says bushy"},
		{"both", map[string]string{lawn2: "", bushy1: ""}, Bushy, "both layouts"},
		{"both that say lawn", map[string]string{".layout": "lawn", lawn2: "", bushy1: ""}, Lawn, "both layouts"},
		{"bushy among very much lawn", many, Bushy, "both layouts"},
		{"oids above 2^56", map[string]string{"0x7f/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x0a.blob": ""}, Bushy, ""},
		{"something else", map[string]string{"Data.fs": "FS30"}, Bushy, "is it the blob directory"},
		{"empty directories of numbers", map[string]string{"23/": ""}, Bushy, "is it the blob directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, tree(t, c.files))
			if d.Layout() != c.layout || (d.Warning() == "") != (c.warning == "") || !strings.Contains(d.Warning(), c.warning) {
				t.Errorf("layout %v, warning %q; want %v, %q", d.Layout(), d.Warning(), c.layout, c.warning)
			}
			if !filepath.IsAbs(d.Path()) {
				t.Errorf("path %s", d.Path())
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		below string
		want  string
	}{
		{"what does not exist", nil, "blobs", "no such blob directory"},
		{"a file", map[string]string{"file": ""}, "file", "is no directory"},
		{"a client's cache", map[string]string{".layout": "zeocache"}, "", "cache of a client"},
		{"a client's cache without .layout", map[string]string{"23/0.03d167f919308700.blob": ""}, "", "cache of a client"},
		{"an unknown layout", map[string]string{".layout": "shrub", bushy1: ""}, "", `says "shrub"`},
		{"a layout in capitals", map[string]string{".layout": "BUSHY"}, "", `says "BUSHY"`},
		{"a very long layout", map[string]string{".layout": strings.Repeat("bushy", 1000)}, "", "says"},
		{"a directory as .layout", map[string]string{".layout/x": ""}, "", "read the layout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(t.Context(), filepath.Join(tree(t, c.files), c.below))
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestNothingIsWritten compares all there is before and after.
func TestNothingIsWritten(t *testing.T) {
	dir := tree(t, map[string]string{bushy1: "one", lawn2: "two"})
	list := func() (all []string) {
		err := filepath.Walk(dir, func(path string, stat os.FileInfo, err error) error {
			if err == nil {
				all = append(all, fmt.Sprint(path, stat.Mode(), stat.Size(), stat.ModTime()))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := list()
	d := open(t, dir)
	read(t, d, 1, 10)
	read(t, d, 2, 11)
	d.Find(t.Context(), 3, 3)
	if _, err := d.Walk(t.Context(), func(zodb.OID, zodb.TID, string) error { return nil }); err != nil {
		t.Error(err)
	}
	if after := list(); !slices.Equal(before, after) {
		t.Errorf("before\n%q\nafter\n%q", before, after)
	}
}

func read(t testing.TB, d *Dir, oid zodb.OID, tid zodb.TID) string {
	t.Helper()
	b, err := d.Find(t.Context(), oid, tid)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.NewSectionReader(r, 0, b.Size))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFindLooksInBothLayouts(t *testing.T) {
	d := open(t, tree(t, map[string]string{bushy1: "one", lawn2: "two", "0x01/0x0a.blob": "the same in the other layout"}))
	for _, c := range []struct {
		oid  zodb.OID
		tid  zodb.TID
		text string
		note bool
	}{{1, 10, "one", false}, {2, 11, "two", true}} {
		b, err := d.Find(t.Context(), c.oid, c.tid)
		if err != nil {
			t.Fatal(err)
		}
		if b.OID != c.oid || b.TID != c.tid || (b.Note != "") != c.note || !filepath.IsAbs(b.Path) || b.Size != int64(len(c.text)) {
			t.Errorf("%+v", b)
		}
		if got := read(t, d, c.oid, c.tid); got != c.text {
			t.Errorf("got %q, want %q", got, c.text)
		}
	}
	_, err := d.Find(t.Context(), 2, 12)
	var bad *source.BlobError
	if !errors.As(err, &bad) || !bad.Missing || bad.OID != 2 || bad.TID != 12 || bad.Path != filepath.Join(d.Path(), Bushy.name(2, 12)) {
		t.Errorf("got %#v", err)
	}
}

// wantUnreadable checks that err is that of a blob that is there.
func wantUnreadable(t testing.TB, err error, problem string) {
	t.Helper()
	var bad *source.BlobError
	if !errors.As(err, &bad) || bad.Missing || !strings.Contains(bad.Problem, problem) {
		t.Errorf("got %#v, want one whose problem is %q", err, problem)
	}
}

func TestWalkGivesEveryBlobOnce(t *testing.T) {
	files := map[string]string{
		".layout": "bushy", "tmp/BUC1": "", "tmp/0x01.blob": "", "tmp/savepoints1/0x01-0x02.spb": "", ".removed": "", "0x05": "a file",
		"0x01/0x0a.blob.tmp": "", "0x01/.lock": "", "0x00/0x01/0x02.blob": "too high", "readme.blob": "", "0x07/": "",
		"0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x0b.blob/": "", "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/deep/0x0b.blob": "",
	}
	want := map[string]bool{}
	for i := range zodb.OID(300) {
		oid := i * i * i * i
		for tid := range zodb.TID(i%3 + 1) {
			layout := Layout(i % 2)
			name := layout.name(oid, 100+tid)
			files[name] = "x"
			want[fmt.Sprintf("%v %v %s", oid, 100+tid, name)] = true
		}
	}
	d := open(t, tree(t, files))
	if err := os.Symlink(filepath.Join(d.Path(), "nowhere"), filepath.Join(d.Path(), "0x06")); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]bool{}
	unlisted, err := d.Walk(t.Context(), func(oid zodb.OID, tid zodb.TID, path string) error {
		mu.Lock()
		defer mu.Unlock()
		name, err := filepath.Rel(d.Path(), path)
		key := fmt.Sprintf("%v %v %s", oid, tid, name)
		if !want[key] || got[key] {
			t.Errorf("unexpected: %s", key)
		}
		got[key] = true
		return err
	})
	if err != nil || unlisted != 0 || len(got) != len(want) {
		t.Errorf("%d of %d blobs, %d unlisted: %v", len(got), len(want), unlisted, err)
	}

	stop := errors.New("stop")
	if _, err := d.Walk(t.Context(), func(zodb.OID, zodb.TID, string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Walk gave %v instead of the callback's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = d.Walk(ctx, func(zodb.OID, zodb.TID, string) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Rename(d.Path(), d.Path()+".gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Walk(t.Context(), func(zodb.OID, zodb.TID, string) error { return nil }); err == nil {
		t.Error("Walk of a directory that is gone: no error")
	}
}

func TestReaderNoticesThatTheFileChanges(t *testing.T) {
	const text = "0123456789"
	for _, c := range []struct {
		name    string
		now     string
		off     int64
		length  int
		n       int
		problem string
	}{
		{"shorter, read whole", "01234", 0, 10, 5, "up to byte 5 only"},
		{"shorter, read behind its end", "01234", 7, 3, 0, "only"},
		{"shorter, read before its end", "01234", 1, 3, 3, ""},
		{"longer, read whole", text + "x", 0, 10, 10, "more than the 10 bytes"},
		{"longer, read with room", text + "x", 0, 20, 10, "more than the 10 bytes"},
		{"longer, read in the middle", text + "x", 2, 3, 3, ""},
		{"longer, read at the end", text + "x", 10, 5, 0, "more than the 10 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, tree(t, map[string]string{bushy1: text}))
			b, err := d.Find(t.Context(), 1, 10)
			if err != nil {
				t.Fatal(err)
			}
			r, err := b.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := errors.Join(os.Chmod(b.Path, 0o600), os.WriteFile(b.Path, []byte(c.now), 0o600)); err != nil {
				t.Fatal(err)
			}
			n, err := r.ReadAt(make([]byte, c.length), c.off)
			if n != c.n {
				t.Errorf("%d bytes, want %d", n, c.n)
			}
			if c.problem == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantUnreadable(t, err, c.problem)
			_, err = b.Open(t.Context())
			wantUnreadable(t, err, fmt.Sprintf("has %d bytes by now", len(c.now)))
		})
	}
}

// TestStaleFilesAreOpenedAgain does by hand what a stale NFS handle leads to.
func TestStaleFilesAreOpenedAgain(t *testing.T) {
	d := open(t, tree(t, map[string]string{bushy1: "0123456789"}))
	b, err := d.Find(t.Context(), 1, 10)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := opened.(*reader)
	stale := r.current()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if f, err := r.reopen(stale); err != nil || f == stale || f != r.current() {
				t.Errorf("reopen: %v", err)
			}
		})
	}
	group.Wait()
	if len(r.files) != 2 {
		t.Errorf("%d files are open for one that was stale", len(r.files))
	}
	p := make([]byte, 4)
	if _, err := r.ReadAt(p, 3); err != nil || string(p) != "3456" {
		t.Errorf("read %q, %v", p, err)
	}
	if err := errors.Join(os.Chmod(b.Path, 0o600), os.Truncate(b.Path, 3)); err != nil {
		t.Fatal(err)
	}
	_, err = r.reopen(r.current())
	wantUnreadable(t, err, "has 3 bytes by now")
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileOfAManifest(t *testing.T) {
	dir := tree(t, map[string]string{"anywhere/at all": "text", "pipe/": ""})
	t.Chdir(dir)
	b, err := File(7, 8, "anywhere/at all")
	if err != nil {
		t.Fatal(err)
	}
	if b.OID != 7 || b.TID != 8 || b.Size != 4 || b.Path != filepath.Join(dir, "anywhere/at all") {
		t.Errorf("%+v", b)
	}
	var bad *source.BlobError
	for _, path := range []string{"anywhere/else", "anywhere/at all/below"} {
		if _, err := File(7, 8, path); !errors.As(err, &bad) || !bad.Missing {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, err = File(7, 8, "pipe")
	wantUnreadable(t, err, "is no regular file")
	_, err = File(7, 8, strings.Repeat("x", 5000))
	wantUnreadable(t, err, "cannot be read")
}
