// Package storage gives the storages that files in the language of ZConfig
// name: those for a conversion, and the zope.conf of a site.
//
// A file for a conversion names both ends. RelStorage's zodbconvert and
// zodb-convert for Python take
//
//	<filestorage source>
//	    path /srv/plone/var/filestorage/Data.fs
//	</filestorage>
//	<pgjsonb destination>
//	    dsn dbname=zodb_new user=zodb
//	</pgjsonb>
//
// and this package also <source><filestorage> ... </filestorage></source>. In a
// zope.conf storages stand in sections <zodb_db NAME>; whatever else there is
// in it is not looked at.
//
// The types of sections, their keys, datatypes and presets are those of the
// Python packages that bring them; a test compares with these. The package
// guarantees that no key is passed over: it acts on the result, or is an error
// because the result would not be what it asks for, or is listed as Unused with
// the reason, because it cannot change what is converted.
package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

// Options say how to read.
type Options struct {
	// Getenv gives the environment. Without it there are no variables.
	Getenv func(string) (string, bool)
	// IsDir tells whether a path is a directory. Without it the file system is
	// asked.
	IsDir func(string) bool
}

// Unknown marks, in what Getenv gives, a variable whose value is not known: none
// is made of it. It stands in no file.
const Unknown = "\x00"

func (o Options) checker() *checker {
	c := &checker{isDir: o.IsDir}
	if c.isDir == nil {
		c.isDir = func(path string) bool {
			info, err := os.Stat(path)
			return err == nil && info.IsDir()
		}
	}
	return c
}

// Source is a storage to read.
type Source struct {
	// One of these is set.
	FileStorage *FileStorage
	RelStorage  *RelStorage
	Pos         zconfig.Position
	Unused      []Unused
}

// FileStorage is a <filestorage>, with what stands around it.
type FileStorage struct {
	Path    string
	BlobDir string // "": none is named
}

// RelStorage is a <relstorage>. One of the databases is set.
type RelStorage struct {
	PostgreSQL *PostgreSQL
	MySQL      *MySQL
	SQLite3    *SQLite3
	// KeepHistory is nil if the key is not given: the schema tells as well.
	KeepHistory *bool
	BlobDir     string // "": blobs are in the database alone
	// SharedBlobDir tells that BlobDir is the only place that has them. It is nil
	// if the key is not given: before RelStorage 3.0 it then was true.
	SharedBlobDir *bool
	// ReplicaConf and ROReplicaConf name files that list servers.
	ReplicaConf, ROReplicaConf string
}

// PostgreSQL is where a RelStorage is. An empty DSN stands for what libpq takes.
type PostgreSQL struct{ DSN string }

// MySQL is where a RelStorage is.
type MySQL struct {
	Host, User, Password, Database, UnixSocket string
	Port                                       int64 // 0: the usual one
	ConnectTimeout                             int64 // seconds; 0: none
	Compress                                   bool
	DefaultFile, DefaultGroup                  string
}

// SQLite3 is where a RelStorage is: the directory that holds main.sqlite3.
type SQLite3 struct{ DataDir string }

// Destination is a storage to write.
type Destination struct {
	PGJSONB PGJSONB
	Pos     zconfig.Position
	Unused  []Unused
}

// PGJSONB is a <pgjsonb>.
type PGJSONB struct {
	DSN               string
	HistoryPreserving bool
	BlobThreshold     int64
	S3                S3
}

// S3 is the bucket of a <pgjsonb>. Without the name of one all blobs stay in
// PostgreSQL; the other fields are set all the same, as the name may come from
// elsewhere.
type S3 struct {
	Bucket, Prefix, EndpointURL, Region string
	AccessKey, SecretKey                string // both are set or none
	PlainHTTP                           bool
}

// Unused is a key without effect.
type Unused struct {
	Section string // the type of its section
	Key     string
	Pos     zconfig.Position
	Why     string
}

// Conversion is what a file for a conversion says.
type Conversion struct {
	Warnings []zconfig.Warning
	path     string
	source   *node
	dest     *node
}

// ReadConversion reads a file for a conversion. Every error is a
// *zconfig.Error.
func ReadConversion(path string, options Options) (*Conversion, error) {
	text, err := zconfig.ReadText(path)
	if err != nil {
		return nil, err
	}
	return ParseConversion(path, text, options)
}

// ParseConversion is ReadConversion for a text that has been read already.
func ParseConversion(path string, text []byte, options Options) (*Conversion, error) {
	f, err := zconfig.Parse(path, text, zconfig.Options{Getenv: options.Getenv, Packages: packages})
	if err != nil {
		return nil, err
	}
	c := &Conversion{Warnings: f.Warnings, path: path}
	return c, c.fill(options.checker(), f.Root)
}

// HasSource tells whether the file names a source.
func (c *Conversion) HasSource() bool { return c.source != nil }

// HasDestination tells whether the file names a destination.
func (c *Conversion) HasDestination() bool { return c.dest != nil }

// Source gives the source, which the file has to name.
func (c *Conversion) Source() (*Source, error) {
	if c.source == nil {
		return nil, &zconfig.Error{Pos: zconfig.Position{File: c.path}, Reason: "no storage is named source",
			Hint: "write <filestorage source>, with its path in it"}
	}
	return source(c.source, "")
}

// Destination gives the destination, which the file has to name.
func (c *Conversion) Destination() (*Destination, error) {
	if c.dest == nil {
		return nil, &zconfig.Error{Pos: zconfig.Position{File: c.path}, Reason: "no storage is named destination",
			Hint: "write <pgjsonb destination>, with its dsn in it"}
	}
	return destination(c.dest)
}

const (
	sourceName = "source"
	destName   = "destination"
)

// fill takes the two ends from the file.
func (c *Conversion) fill(check *checker, root *zconfig.Section) error {
	if len(root.Keys) > 0 {
		k := root.Keys[0]
		return &zconfig.Error{Pos: k.Pos, Reason: fmt.Sprintf("the key %s stands outside of the storages", k.Shown()),
			Hint: "a file for a conversion has <filestorage source> and <pgjsonb destination>; a zope.conf is given with --source-zope-conf or --dest-zope-conf"}
	}
	for _, s := range root.Sections {
		end, section, err := endOf(s)
		if err != nil {
			return err
		}
		n, err := check.section(section, aStorage)
		if err != nil {
			return err
		}
		into := &c.source
		if end == destName {
			into = &c.dest
		}
		if *into != nil {
			return zconfig.Errorf(s.Pos, "a second %s; the first is that of %s", end, (*into).pos)
		}
		*into = n
	}
	return nil
}

// endOf tells which end a section at the top is, and gives the storage.
func endOf(s *zconfig.Section) (end string, section *zconfig.Section, err error) {
	if s.Type == sourceName || s.Type == destName {
		section, err := nested(s)
		return s.Type, section, err
	}
	if s.Name == sourceName || s.Name == destName {
		return s.Name, s, nil
	}
	e := &zconfig.Error{Pos: s.Pos, Reason: fmt.Sprintf("%s is neither source nor destination", s.Header()),
		Hint: fmt.Sprintf("write <%s source> or <%s destination>", zconfig.Word(s.Type), zconfig.Word(s.Type))}
	switch t := typeOf(s.Type); {
	case t != nil && t.class == aDatabase:
		e.Hint = "a zope.conf is given with --source-zope-conf or --dest-zope-conf"
	case t == nil || t.class != aStorage:
		e.Reason = "unknown section " + s.Header()
		e.Hint = zconfig.Suggestion(s.Type, append(typesOf(aStorage), sourceName, destName), "<filestorage source> and <pgjsonb destination>")
	case s.Name != "":
		e.Hint = zconfig.Suggestion(s.Name, []string{sourceName, destName}, "source and destination")
	}
	return "", nil, e
}

// nested gives the storage in <source> or <destination>.
func nested(s *zconfig.Section) (*zconfig.Section, error) {
	switch {
	case s.Name != "":
		return nil, zconfig.Errorf(s.Pos, "the section %s takes no name", s.Header())
	case len(s.Keys) > 0:
		return nil, &zconfig.Error{Pos: s.Keys[0].Pos, Reason: fmt.Sprintf("the key %s stands in %s, but outside of a storage", s.Keys[0].Shown(), s.Header()),
			Hint: fmt.Sprintf("write <filestorage> around it, or <filestorage %s> instead of %s", s.Type, s.Header())}
	case len(s.Sections) == 0:
		return nil, zconfig.Errorf(s.Pos, "there is no storage in %s", s.Header())
	case len(s.Sections) > 1:
		return nil, zconfig.Errorf(s.Sections[1].Pos, "a second storage in %s", s.Header())
	}
	return s.Sections[0], nil
}

// Zope is what a zope.conf says.
type Zope struct {
	Warnings  []zconfig.Warning
	path      string
	databases []*zconfig.Section
	check     *checker
}

// ReadZope reads a zope.conf. Nothing but its syntax is judged before one of its
// databases is asked for. Every error is a *zconfig.Error.
func ReadZope(path string, options Options) (*Zope, error) {
	text, err := zconfig.ReadText(path)
	if err != nil {
		return nil, err
	}
	return ParseZope(path, text, options)
}

// ParseZope is ReadZope for a text that has been read already.
func ParseZope(path string, text []byte, options Options) (*Zope, error) {
	f, err := zconfig.Parse(path, text, zconfig.Options{Getenv: options.Getenv, Packages: packages, Lenient: true})
	if err != nil {
		return nil, err
	}
	z := &Zope{path: path, check: options.checker(), Warnings: f.Warnings}
	for _, s := range f.Root.Sections {
		if t := typeOf(s.Type); t != nil && t.class == aDatabase {
			z.databases = append(z.databases, s)
		}
	}
	for _, k := range f.Root.Keys {
		if strings.EqualFold(k.Name, "instancehome") && k.Err == nil {
			z.check.base = zconfig.ExpandUser(k.Value)
		}
	}
	return z, nil
}

// Names gives the names of the databases in the order of the file.
func (z *Zope) Names() []string {
	var names []string
	for _, s := range z.databases {
		names = append(names, s.Name)
	}
	return names
}

// mainDatabase is the one that holds a site.
const mainDatabase = "main"

// Source gives the storage of the database with the given name as a source.
// Without a name it is that of the database main, or else of the only one.
func (z *Zope) Source(name string) (*Source, error) {
	n, err := z.storage(name, "--source-db")
	if err != nil {
		return nil, err
	}
	return source(n, z.check.base)
}

// Destination is Source for a destination.
func (z *Zope) Destination(name string) (*Destination, error) {
	n, err := z.storage(name, "--dest-db")
	if err != nil {
		return nil, err
	}
	return destination(n)
}

// Writable tells whether the database with the given name is in a storage that
// can be written.
func (z *Zope) Writable(name string) (bool, error) {
	n, err := z.storage(name, "--source-db or --dest-db")
	return err == nil && n.is.name == "pgjsonb", err
}

// storage checks the database that is meant and gives its storage.
func (z *Zope) storage(name, flag string) (*node, error) {
	s, err := z.database(name, flag)
	if err != nil {
		return nil, err
	}
	n, err := z.check.section(s, aDatabase)
	if err != nil {
		return nil, err
	}
	if len(n.inner) == 0 {
		return nil, zconfig.Errorf(s.Pos, "there is no storage in %s", s.Header())
	}
	storage := n.inner[0]
	// Keys of the database count as keys of its storage: none of them acts.
	storage.outer(n)
	return storage, nil
}

// database finds the database that is meant.
func (z *Zope) database(name, flag string) (*zconfig.Section, error) {
	at := zconfig.Position{File: z.path}
	var shown []string
	for _, n := range z.Names() {
		if n == "" {
			n = "one without a name"
		}
		shown = append(shown, zconfig.Word(n))
	}
	all := strings.Join(shown, ", ")
	wanted := strings.ToLower(name)
	if name == "" {
		wanted = mainDatabase
	}
	found := slices.DeleteFunc(slices.Clone(z.databases), func(s *zconfig.Section) bool { return s.Name != wanted })
	switch {
	case len(z.databases) == 0:
		return nil, &zconfig.Error{Pos: at, Reason: "there is no <zodb_db> in it", Hint: "is this a zope.conf?"}
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, zconfig.Errorf(found[1].Pos, "a second database with the name %s; the first is that of %s", zconfig.Word(wanted), found[0].Pos)
	case name != "":
		return nil, &zconfig.Error{Pos: at, Reason: fmt.Sprintf("there is no <zodb_db %s> in it", zconfig.Word(name)),
			Hint: zconfig.Suggestion(wanted, z.Names(), all)}
	case len(z.databases) == 1:
		return z.databases[0], nil
	}
	return nil, &zconfig.Error{Pos: at, Reason: "it has several databases, and none of them is named main: " + all,
		Hint: "name one with " + flag}
}

func (c *checker) isDirectory(dir string) bool {
	return c.isDir(dir) || c.base != "" && !filepath.IsAbs(dir) && c.isDir(filepath.Join(c.base, dir))
}
