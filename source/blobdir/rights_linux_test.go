package blobdir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// asNobody takes root's rights away until the test ends: root may read all.
func asNobody(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := syscall.Seteuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Seteuid(0); err != nil {
			t.Fatal(err)
		}
	})
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(path, 0o755) })
}

// reachable lets everybody come to dir, whose parents a test makes for itself.
func reachable(t *testing.T, dir string) string {
	t.Helper()
	// Of the two that t.TempDir makes, the upper one is private.
	for _, parent := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUnreadableIsNotMissing(t *testing.T) {
	const oid3 = "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x03/0x0a.blob"
	dir := reachable(t, tree(t, map[string]string{bushy1: "secret", oid3: "in a secret place", lawn2: "readable", "0x04/0x0a.blob": "in the other layout"}))
	d := open(t, dir)
	chmod(t, filepath.Join(dir, bushy1), 0)
	chmod(t, filepath.Dir(filepath.Join(dir, oid3)), 0)
	chmod(t, filepath.Join(dir, "0x04"), 0)
	asNobody(t)
	for oid := range zodb.OID(5) {
		if oid != 0 && oid != 2 {
			_, err := d.Find(t.Context(), oid, 10)
			wantUnreadable(t, err, "may not be read by this user")
		}
	}
	if got := read(t, d, 2, 11); got != "readable" {
		t.Errorf("got %q", got)
	}
	n := 0
	unlisted, err := d.Walk(t.Context(), func(zodb.OID, zodb.TID, string) error { n++; return nil })
	if err != nil {
		t.Error(err)
	}
	if unlisted != 2 {
		t.Errorf("%d directories not listed, want 2", unlisted)
	}
}

func TestDirectoryWithoutRights(t *testing.T) {
	dir := reachable(t, tree(t, map[string]string{".layout": "bushy", bushy1: ""}))
	chmod(t, filepath.Join(dir, ".layout"), 0)
	t.Run("of .layout", func(t *testing.T) {
		asNobody(t)
		if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "may not read") || !strings.Contains(err.Error(), ".layout") {
			t.Errorf("got %v", err)
		}
	})
	chmod(t, dir, 0)
	t.Run("of the directory", func(t *testing.T) {
		asNobody(t)
		if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "may not read") {
			t.Errorf("got %v", err)
		}
	})
}

func TestPipesAreNotWaitedFor(t *testing.T) {
	dir := tree(t, map[string]string{lawn2: ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "0x02", "0x0c.blob"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, dir).Find(t.Context(), 2, 12)
	wantUnreadable(t, err, "is no regular file")
}

// TestErrorsOfTheDiskConcernOneBlob reads a file that the kernel fails with EIO.
func TestErrorsOfTheDiskConcernOneBlob(t *testing.T) {
	b, err := File(1, 2, "/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.ReadAt(make([]byte, 1), 0)
	wantUnreadable(t, err, "input/output error")
}

// TestErrorsOfTheMachineDoNotConcernBlobs uses up all file handles.
func TestErrorsOfTheMachineDoNotConcernBlobs(t *testing.T) {
	d := open(t, tree(t, map[string]string{bushy1: ""}))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 3
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, find := d.Find(t.Context(), 1, 10)
	_, walk := d.Walk(t.Context(), func(zodb.OID, zodb.TID, string) error { return nil })
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	var bad *source.BlobError
	if !errors.Is(find, syscall.EMFILE) || errors.As(find, &bad) {
		t.Errorf("Find: %v", find)
	}
	if !errors.Is(walk, syscall.EMFILE) {
		t.Errorf("Walk: %v", walk)
	}
}
