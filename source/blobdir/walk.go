package blobdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/zodb"
)

const (
	// walkers list directories at once. On a local disk a few would do; over
	// NFS each listing waits for the server.
	walkers = 16
	// walkNames is how many names of a directory are held at once.
	walkNames = 512
)

// Walk calls fn for the file of each committed blob, in no order and from
// several goroutines at once. It returns how many directories could not be
// listed; their blobs are left out. What disappears meanwhile is left out, too.
// Memory does not grow with the number of files.
func (d *Dir) Walk(ctx context.Context, fn func(oid zodb.OID, tid zodb.TID, path string) error) (unlisted int64, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(walkers)
	w := &walk{ctx: ctx, fn: fn, group: group}
	group.Go(func() error { return w.dir(d.path, place{}) })
	err = group.Wait()
	if err == nil && w.rootErr != nil {
		err = openError(d.path, w.rootErr)
	}
	return w.unlisted.Load(), err
}

type walk struct {
	ctx      context.Context
	fn       func(zodb.OID, zodb.TID, string) error
	group    *errgroup.Group
	unlisted atomic.Int64
	rootErr  error // written by the first goroutine only
}

// dir lists a directory.
func (w *walk) dir(path string, in place) error {
	f, err := os.Open(path)
	if err != nil {
		return w.failed(in, err)
	}
	defer f.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		list, err := f.ReadDir(walkNames)
		for _, e := range list {
			if err := w.entry(path, in, e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return w.failed(in, err)
		}
	}
}

// entry goes into a directory, in a goroutine of its own if one is free, or
// tells of a file. Links are followed by their name alone: what is no directory
// in the end is passed over when it is opened.
func (w *walk) entry(path string, in place, e fs.DirEntry) error {
	name := e.Name()
	link := e.Type()&fs.ModeSymlink != 0
	if oid, tid, ok := in.blob(name); ok && !e.IsDir() {
		return w.fn(oid, tid, filepath.Join(path, name))
	}
	next, ok := in.enter(name)
	if !ok || !e.IsDir() && !link {
		return nil
	}
	sub := filepath.Join(path, name)
	if !w.group.TryGo(func() error { return w.dir(sub, next) }) {
		return w.dir(sub, next)
	}
	return nil
}

// failed judges why a directory cannot be listed.
func (w *walk) failed(in place, err error) error {
	switch {
	case in.depth == 0:
		w.rootErr = err
	case is(err, syscall.ENOENT, syscall.ENOTDIR):
	case is(err, syscall.EACCES, syscall.EPERM, syscall.EIO, syscall.ESTALE, syscall.ELOOP):
		w.unlisted.Add(1)
	case errors.Is(err, context.Canceled):
		return err
	default:
		return fmt.Errorf("list the blob directory: %w", err)
	}
	return nil
}
