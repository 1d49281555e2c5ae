package staging

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var id = source.Identity{Kind: "relstorage", Name: "a database", End: 5, Digest: "d"}

type reader struct{ io.ReaderAt }

func (reader) Close() error { return nil }

// blob is a blob that says to have so many bytes.
func blob(oid zodb.OID, size int64, from io.ReaderAt) *source.Blob {
	return &source.Blob{OID: oid, TID: 7, Size: size, Open: func(context.Context) (source.BlobReader, error) { return reader{from}, nil }}
}

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func TestBlobsAreWhole(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "new"))
	var told atomic.Int64
	var group errgroup.Group
	sizes := []int{0, 1, copyBuffer - 1, copyBuffer, copyBuffer + 1, 3*copyBuffer + 5}
	for i, n := range sizes {
		for range 3 { // and the same by several at once
			group.Go(func() error {
				_, err := d.Put(t.Context(), blob(zodb.OID(i), int64(n), bytes.NewReader(bytes.Repeat([]byte{byte(i)}, n))), func(n int64) { told.Add(n) })
				return err
			})
		}
	}
	if err := errors.Join(group.Wait(), d.Sync()); err != nil {
		t.Fatal(err)
	}
	var total int64
	for i, n := range sizes {
		got, err := os.ReadFile(filepath.Join(d.Path(), name(zodb.OID(i), 7)))
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, n)) {
			t.Errorf("%d bytes became %d, %v", n, len(got), err)
		}
		total += int64(n)
	}
	if told.Load() != 3*total {
		t.Errorf("told of %d bytes, want %d", told.Load(), 3*total)
	}
	if n, err := d.Staged(); err != nil || n != (source.BlobCount{Blobs: int64(len(sizes)), Bytes: total}) {
		t.Errorf("%+v, %v", n, err)
	}
	if n, known, err := d.Free(); err != nil || known && n <= 0 {
		t.Errorf("%d, %t, %v", n, known, err)
	}
}

func TestBlobsThatAreNotWhatTheySayLeaveNothing(t *testing.T) {
	d := open(t, t.TempDir())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		ctx  context.Context
		blob *source.Blob
		bad  bool
		is   error
	}{
		{"shorter", t.Context(), blob(1, 10, strings.NewReader("123456789")), true, nil},
		{"longer", t.Context(), blob(1, 8, strings.NewReader("123456789")), true, nil},
		{"much longer", t.Context(), blob(1, copyBuffer, bytes.NewReader(make([]byte, 3*copyBuffer))), true, nil},
		{"cancelled", cancelled, blob(1, 9, strings.NewReader("123456789")), false, context.Canceled},
		{"broken", t.Context(), &source.Blob{Size: 9, Open: func(context.Context) (source.BlobReader, error) { return nil, broken }}, false, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told int64
			_, err := d.Put(c.ctx, c.blob, func(n int64) { told += n })
			var bad *source.BlobError
			if errors.As(err, &bad) != c.bad || err == nil || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v", err)
			}
			if told != 0 {
				t.Errorf("told of %d bytes", told)
			}
			if got := names(t, d.Path()); got != ownerName {
				t.Errorf("left: %s", got)
			}
		})
	}
}

func TestEachDatabaseHasADirectoryWhichOneProcessUses(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	var used *InUseError
	if _, err := Open(path, id); !errors.As(err, &used) || used.Path != d.Path() {
		t.Errorf("used: %v", err)
	}
	other := id
	other.Digest = "e"
	second, err := Open(path, other)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.Path() == d.Path() || filepath.Dir(second.Path()) != path {
		t.Errorf("another database has %s", second.Path())
	}
	d.Close()
	grown := id
	grown.End, grown.Name = 50, "by another name"
	again, err := Open(path, grown)
	if err != nil {
		t.Fatalf("the same database later: %v", err)
	}
	defer again.Close()
	text, err := os.ReadFile(filepath.Join(again.Path(), ownerName))
	if again.Path() != d.Path() || err != nil || !strings.Contains(string(text), "by another name") {
		t.Errorf("%s, %s, %v", again.Path(), text, err)
	}
}

// A full disk is a real one: a file system of 64 KB.
func TestAFullDiskLeavesNothing(t *testing.T) {
	dir := throwaway.SmallDisk(t)
	d, err := Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if free, known, err := d.Free(); err != nil || !known || free > 64<<10 {
		t.Errorf("%d free, %t, %v", free, known, err)
	}
	_, err = d.Put(t.Context(), blob(1, 100<<10, bytes.NewReader(make([]byte, 100<<10))), func(int64) {})
	if bad := (*source.BlobError)(nil); !errors.Is(err, syscall.ENOSPC) || errors.As(err, &bad) {
		t.Errorf("%v", err)
	}
	if got := names(t, d.Path()); got != ownerName {
		t.Errorf("left: %s", got)
	}
}
