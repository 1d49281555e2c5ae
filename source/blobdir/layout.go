package blobdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	markerName = ".layout"
	// maxMarker is how much of .layout is read; ZODB writes a word.
	maxMarker = 64
	// maxProbes is how many directories are looked into to find out the layout,
	// and probeNames how many names of each.
	maxProbes  = 32
	probeNames = 256
)

// marker is what .layout says, without white space around it; "" if there is
// none.
func (d *Dir) marker() (string, error) {
	path := filepath.Join(d.path, markerName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", openError(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMarker))
	if err != nil {
		return "", fmt.Errorf("read the layout of the blob directory: %w", err)
	}
	text := strings.TrimSpace(string(b))
	switch text {
	case "zeocache":
		return "", &CacheError{d.path, path + " says zeocache"}
	case "", Bushy.String(), Lawn.String():
		return text, nil
	}
	return "", fmt.Errorf("%s: says %q, but a blob directory has the layout bushy or lawn; nothing is known about where its blobs lie", path, text)
}

// CacheError is a directory that is the blob cache of a client.
type CacheError struct {
	Path string
	Why  string // it is thought to be one
}

func (e *CacheError) Error() string {
	return fmt.Sprintf("%s: is the blob cache of a client (%s), it holds only some of the blobs; give the blob directory of the server", e.Path, e.Why)
}

// evidence is what was found on disk.
type evidence struct{ bushy, lawn, cache, any bool }

// sniff looks at some of the names in the directory.
func (d *Dir) sniff(ctx context.Context) (evidence, error) {
	var found evidence
	f, err := os.Open(d.path)
	if err != nil {
		return found, openError(d.path, err)
	}
	defer f.Close()
	// All oids up to 2^56 begin with this byte; among very many directories of
	// lawn it may be the last to be listed.
	found.probe(filepath.Join(d.path, "0x00"), "0x00")
	for probes := 0; probes < maxProbes; {
		if err := ctx.Err(); err != nil {
			return found, err
		}
		list, err := f.ReadDir(probeNames)
		for _, e := range list {
			name := e.Name()
			if strings.HasPrefix(name, ".") || name == "tmp" {
				continue
			}
			found.any = true
			if probes < maxProbes && found.probe(filepath.Join(d.path, name), name) {
				probes++
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return found, openError(d.path, err)
		}
	}
	return found, nil
}

// probe looks into a directory if its name is one of those of a layout, and
// tells whether it did. What cannot be read says nothing.
func (x *evidence) probe(path, name string) bool {
	in, named := place{}.enter(name)
	if !named && !isCacheDir(name) {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	list, _ := f.ReadDir(probeNames)
	for _, e := range list {
		switch {
		case !named:
			x.cache = x.cache || isCacheFile(e.Name())
		case strings.HasSuffix(e.Name(), suffix):
			_, _, ok := in.blob(e.Name())
			x.lawn = x.lawn || ok
		default:
			_, ok := in.enter(e.Name())
			x.bushy = x.bushy || ok
		}
	}
	return true
}

// isCacheDir tells whether a client's cache has directories of that name: the
// remainder of an oid by 997.
func isCacheDir(name string) bool {
	return len(name) <= 3 && strings.Trim(name, "0123456789") == ""
}

// isCacheFile tells whether a client's cache has files of that name: the
// quotient, a dot, and 16 digits of the tid.
func isCacheFile(name string) bool {
	id, ok := strings.CutSuffix(name, suffix)
	quotient, tid, dot := strings.Cut(id, ".")
	return ok && dot && quotient != "" && strings.Trim(quotient, "0123456789") == "" &&
		len(tid) == 16 && strings.Trim(tid, "0123456789abcdef") == ""
}

// choose decides where blobs are looked for first.
func (d *Dir) choose(marker string, found evidence) error {
	said := Bushy
	if marker == Lawn.String() {
		said = Lawn
	}
	d.layout = said
	switch {
	case found.bushy && found.lawn:
		d.warning = fmt.Sprintf("%s: holds blobs in both layouts, bushy and lawn; they are looked for in both", d.path)
	case !found.bushy && !found.lawn:
		if found.cache {
			return &CacheError{d.path, "by the names in it"}
		}
		if found.any && marker == "" {
			d.warning = fmt.Sprintf("%s: nothing in it has the name of a blob; is it the blob directory of this database?", d.path)
		}
	case found.bushy:
		d.layout = Bushy
	default:
		d.layout = Lawn
	}
	if marker != "" && d.layout != said {
		d.warning = fmt.Sprintf("%s: .layout says %s, but its blobs lie in the layout %s; what is on disk counts", d.path, said, d.layout)
	}
	return nil
}
