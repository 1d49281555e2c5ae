// Command archive packs files so that the same files always become the same
// bytes: in the order of their names, all of one time, owned by nobody in
// particular.
//
//	archive -time SECONDS OUT.tar.gz|OUT.zip DIRECTORY
//
// The archive holds DIRECTORY under its own last name. What may be executed
// stays so; all other permissions are the usual ones. Symbolic links and the
// like are refused. The programs tar and zip do this with options that not all
// of them have.
package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	seconds := flag.Int64("time", 0, "the time of all files, in `SECONDS` since 1970")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: archive -time SECONDS OUT.tar.gz|OUT.zip DIRECTORY")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	if err := pack(flag.Arg(0), flag.Arg(1), time.Unix(*seconds, 0).UTC()); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

// archive is what files are put into.
type archive interface {
	// add takes the next file; a folder has no content and a name with a slash
	// at its end.
	add(name string, mode fs.FileMode, size int64, content io.Reader) error
	Close() error
}

// pack writes the archive that the name of out asks for. A file that is not
// whole is not left behind.
func pack(out, dir string, when time.Time) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(fmt.Errorf("pack %s: %w", out, err), os.Remove(out))
		}
	}()
	var a archive
	switch {
	case strings.HasSuffix(out, ".tar.gz"):
		a, err = newTar(f, when)
	case strings.HasSuffix(out, ".zip"):
		a = &zipArchive{zip.NewWriter(f), when}
	default:
		err = errors.New("neither .tar.gz nor .zip")
	}
	if err != nil {
		return err
	}
	return errors.Join(addAll(a, dir), a.Close())
}

// addAll walks in the order of names, as WalkDir does.
func addAll(a archive, dir string) error {
	dir = filepath.Clean(dir)
	return filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		name := path.Join(filepath.Base(dir), filepath.ToSlash(below))
		if e.IsDir() {
			return a.add(name+"/", 0o755|fs.ModeDir, 0, strings.NewReader(""))
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no ordinary file", file)
		}
		return addFile(a, name, file)
	})
}

func addFile(a archive, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return a.add(name, mode, info.Size(), f)
}

type tarArchive struct {
	*tar.Writer
	gzip *gzip.Writer
	when time.Time
}

func newTar(out io.Writer, when time.Time) (*tarArchive, error) {
	// The head of the gzip stream has neither name nor time.
	z, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	return &tarArchive{tar.NewWriter(z), z, when}, nil
}

func (a *tarArchive) add(name string, mode fs.FileMode, size int64, content io.Reader) error {
	head := &tar.Header{Name: name, Mode: int64(mode.Perm()), Size: size, ModTime: a.when, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
	if mode.IsDir() {
		head.Typeflag = tar.TypeDir
	}
	if err := a.WriteHeader(head); err != nil {
		return err
	}
	_, err := io.Copy(a, content)
	return err
}

func (a *tarArchive) Close() error { return errors.Join(a.Writer.Close(), a.gzip.Close()) }

type zipArchive struct {
	*zip.Writer
	when time.Time
}

func (a *zipArchive) add(name string, mode fs.FileMode, _ int64, content io.Reader) error {
	head := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: a.when}
	head.SetMode(mode)
	if mode.IsDir() {
		head.Method = zip.Store
	}
	w, err := a.CreateHeader(head)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, content)
	return err
}
