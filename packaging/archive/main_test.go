package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var when = time.Date(2025, 6, 1, 12, 30, 10, 0, time.UTC)

// tree makes a folder of files that are written in the given order.
func tree(t *testing.T, order ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tool-1.0")
	content := map[string]string{"tool": "program", "docs/a.md": "a", "docs/b.md": "", "README.md": "read me"}
	for _, name := range order {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if name == "tool" {
			mode = 0o700
		}
		if err := os.WriteFile(file, []byte(content[name]), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var wantEntries = []string{
	"tool-1.0/ 755 ", "tool-1.0/README.md 644 read me", "tool-1.0/docs/ 755 ",
	"tool-1.0/docs/a.md 644 a", "tool-1.0/docs/b.md 644 ", "tool-1.0/tool 755 program",
}

func TestSameFilesAreTheSameBytes(t *testing.T) {
	for _, kind := range []string{".tar.gz", ".zip"} {
		t.Run(kind, func(t *testing.T) {
			var all [][]byte
			for _, dir := range []string{
				tree(t, "tool", "docs/a.md", "docs/b.md", "README.md"), tree(t, "README.md", "docs/b.md", "docs/a.md", "tool"),
			} {
				out := filepath.Join(t.TempDir(), "out"+kind)
				if err := pack(out, dir, when); err != nil {
					t.Fatal(err)
				}
				data, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, data)
			}
			if !bytes.Equal(all[0], all[1]) {
				t.Error("the archives differ")
			}
			entries := fromTar
			if kind == ".zip" {
				entries = fromZip
			}
			if d := cmp.Diff(wantEntries, entries(t, all[0])); d != "" {
				t.Error(d)
			}
		})
	}
}

func fromTar(t *testing.T, data []byte) (entries []string) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(when) || h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s: %v, owner %d %q", h.Name, h.ModTime, h.Uid, h.Uname)
		}
		entries = append(entries, fmt.Sprintf("%s %o %s", h.Name, h.Mode, content))
	}
}

func fromZip(t *testing.T, data []byte) (entries []string) {
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if !f.Modified.Equal(when) {
			t.Errorf("%s: %v", f.Name, f.Modified)
		}
		entries = append(entries, fmt.Sprintf("%s %o %s", f.Name, f.Mode().Perm(), content))
	}
	return entries
}

func TestWhatCannotBePackedLeavesNoFile(t *testing.T) {
	linked := tree(t, "README.md")
	if err := os.Symlink("README.md", filepath.Join(linked, "link")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ out, dir string }{
		"symbolic link": {"out.tar.gz", linked},
		"no folder":     {"out.zip", filepath.Join(linked, "none")},
		"unknown kind":  {"out.rar", tree(t, "README.md")},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), c.out)
			if err := pack(out, c.dir, when); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is there: %v", err)
			}
		})
	}
}
