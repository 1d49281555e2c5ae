// Package config reads the files that name the source and the destination of a
// conversion: one in TOML or in the language of ZConfig, told apart by what is in
// it, and the zope.conf of sites. For ZConfig see package storage; in TOML the
// file looks like this:
//
//	[source]
//	type = "filestorage"
//	path = "/srv/plone/var/filestorage/Data.fs"
//
//	[destination]
//	type = "pgjsonb"
//	dsn = "dbname=zodb_new user=zodb host=localhost"
//	history-preserving = false
//	s3-bucket-name = "plone-blobs"
//
// A RelStorage has its database in a section of its own:
//
//	[source]
//	type = "relstorage"
//
//	[source.postgresql]
//	dsn = "dbname=zodb user=zodb host=localhost"
//
// The keys are those that ZConfig takes for the same storages, so that what is
// written about them elsewhere holds here. Sizes are written as there: a number
// of bytes, or one with KB, MB or GB (of 1024). ${NAME} in a value stands for
// the environment variable, $${ for a plain ${. Relative paths start at the
// working directory, as in ZConfig, and ~/ at the home directory.
//
// The package guarantees that nothing in the file is passed over in silence: a
// key that is not known, a value of the wrong type and a variable that is not
// set are errors with file and line, and a key that is known but has no effect
// is listed in Config.Unused. No message contains a value of the file, because
// values hold passwords.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/zodb-convert/zodb-convert/internal/nearest"
	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// Config is what the files say.
type Config struct {
	Source      Source
	Destination PGJSONB
	// Unused are the keys that are right but that this version has no use for.
	Unused []Unused
	// Warnings are worth a word: FILE:LINE and a sentence.
	Warnings []string
}

// Source is what to read: one of these, or nothing where no source is needed.
type Source struct {
	FileStorage *FileStorage
	RelStorage  *RelStorage
}

func (s Source) given() bool { return s.FileStorage != nil || s.RelStorage != nil }

// FileStorage is a [source] of type "filestorage".
type FileStorage struct {
	Path    string
	BlobDir string
}

// DefaultBlobThreshold is what zodb-pgjsonb takes for blob-threshold, too.
const DefaultBlobThreshold = 100 << 10

// PGJSONB is a [destination] of type "pgjsonb".
type PGJSONB struct {
	DSN               string
	HistoryPreserving bool
	// BlobThreshold is the size from which on blobs go to S3, if there is a
	// bucket.
	BlobThreshold int64
	S3            S3
}

// Given tells whether there is a destination. It always is, but for an Origin
// with DestinationOptional.
func (p *PGJSONB) Given() bool { return p.DSN != "" }

// S3 is the bucket of a [destination]. Without the name of one all blobs stay
// in PostgreSQL.
type S3 struct {
	Bucket, Prefix, EndpointURL, Region string
	// AccessKey and SecretKey are both set or both empty: then the environment,
	// a profile or the machine's role tell them.
	AccessKey, SecretKey string
	// PlainHTTP is s3-use-ssl = false.
	PlainHTTP bool
	// PathStyle is nil if the key is not given.
	PathStyle *bool
	CABundle  string
}

// WithoutBucket is why keys of S3 have no effect where no bucket is named.
const WithoutBucket = storage.WithoutBucket

// Unused is a key without effect.
type Unused struct {
	Path    string // the file
	Section string // source or destination, or <TYPE> in ZConfig
	Key     string
	Line    int
	Why     string
}

// Error is what is wrong with a configuration file.
type Error struct {
	Path   string
	Line   int // 0: the file as a whole
	Reason string
	Hint   string
}

func (e *Error) Error() string {
	s := e.Path + ": "
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d: ", e.Path, e.Line)
	}
	s += e.Reason
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// maxBytes is far above any configuration; it keeps a database that was named
// instead of one out of memory.
const maxBytes = 1 << 20

// Read reads the configuration file at path. getenv gives the environment.
// Every error is an *Error.
func Read(path string, getenv func(string) (string, bool)) (*Config, error) {
	return Origin{Path: path}.Read(getenv)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Path: path, Reason: "the configuration cannot be read: " + cause(err)}
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return nil, &Error{Path: path, Reason: "this is a directory, not a configuration file"}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, &Error{Path: path, Reason: "the configuration cannot be read: " + cause(err)}
	}
	if bytes.HasPrefix(text, []byte("FS21")) || bytes.HasPrefix(text, []byte("FS30")) {
		return nil, &Error{Path: path, Reason: "this is a FileStorage, not a configuration file",
			Hint: "write a file that names it as the path of the source"}
	}
	if len(text) > maxBytes {
		return nil, &Error{Path: path, Line: 1 + bytes.Count(text[:maxBytes], []byte("\n")), Reason: "this is larger than any configuration file (1 MB)"}
	}
	return text, nil
}

// cause leaves out the operation and the path, which the message names already.
func cause(err error) string {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return err.Error()
}

func parse(path string, text []byte, getenv func(string) (string, bool), required []string) (*Config, error) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if err := limits(path, text); err != nil {
		return nil, err
	}
	var top map[string]toml.Primitive
	meta, err := toml.Decode(string(text), &top)
	if err != nil {
		return nil, syntaxError(path, err)
	}
	r := &reader{path: path, meta: meta, getenv: getenv, required: required}
	r.out.Destination.BlobThreshold = DefaultBlobThreshold
	return r.config(top)
}

// Limits that no real configuration comes near to. The time that the library
// takes grows with the square of the depth of tables and of dotted keys.
const (
	maxLine   = 8 << 10
	maxBraces = 500
	maxLines  = 10_000
)

// limits refuses what would keep the library busy for long.
func limits(path string, text []byte) error {
	number, braces := 0, 0
	for line := range bytes.Lines(text) {
		number++
		braces += bytes.Count(line, []byte("{"))
		reason := ""
		switch {
		case len(line) > maxLine:
			reason = "the line is longer than any in a configuration (8 KB)"
		case braces > maxBraces:
			reason = "there are more { up to here than in any configuration"
		case number > maxLines:
			reason = fmt.Sprintf("a configuration has no more than %d lines", maxLines)
		}
		if reason != "" {
			return &Error{Path: path, Line: number, Reason: reason}
		}
	}
	return nil
}

// syntaxError keeps the message and the line and drops the quotation of the
// file that the library offers: the line may hold a password.
func syntaxError(path string, err error) error {
	if e := (toml.ParseError{}); errors.As(err, &e) {
		return &Error{Path: path, Line: e.Position.Line, Reason: "not TOML: " + short(e.Message)}
	}
	return &Error{Path: path, Reason: "not TOML: " + short(err.Error())}
}

// reader turns the parsed file into a Config.
type reader struct {
	path     string
	meta     toml.MetaData
	getenv   func(string) (string, bool)
	required []string // sections that have to be there
	out      Config
}

func (r *reader) config(top map[string]toml.Primitive) (*Config, error) {
	for _, key := range r.inFileOrder(nil) {
		if !slices.Contains(sectionNames, key) {
			return nil, r.unknownTop(key, top[key])
		}
	}
	for _, name := range sectionNames {
		value, ok := top[name]
		if !ok && !slices.Contains(r.required, name) {
			continue
		}
		if !ok {
			return nil, &Error{Path: r.path, Reason: fmt.Sprintf("the section [%s] is missing", name)}
		}
		if err := r.section(name, value); err != nil {
			return nil, err
		}
	}
	return &r.out, nil
}

// inFileOrder gives the keys directly under parent as the file has them, so
// that the first mistake in the file is the one that is told.
func (r *reader) inFileOrder(parent []string) []string {
	var names []string
	for _, k := range r.meta.Keys() {
		if len(k) > len(parent) && slices.Equal(k[:len(parent)], parent) {
			if name := k[len(parent)]; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func (r *reader) unknownTop(key string, value toml.Primitive) error {
	line := r.line(value)
	if _, ok := r.table(value); !ok {
		return r.fail(line, fmt.Sprintf("the key %q stands outside of a section", key), "put it under [source] or [destination]")
	}
	return r.fail(line, fmt.Sprintf("unknown section [%s]", key), suggest(key, sectionNames, "[source] and [destination]"))
}

// section reads one section by the description of its type.
func (r *reader) section(name string, value toml.Primitive) error {
	values, ok := r.table(value)
	if !ok {
		return r.notTable(name, value)
	}
	t, err := r.typeOf(name, value, values)
	if err != nil {
		return err
	}
	if err := r.fill(name, t, value, values); err != nil {
		return err
	}
	if name == "destination" {
		return r.s3(name, values)
	}
	return r.relStorage(name, value, values)
}

func (r *reader) notTable(name string, value toml.Primitive) error {
	return r.fail(r.line(value), fmt.Sprintf("%s is not a section", name), fmt.Sprintf("write [%s] on a line of its own", name))
}

// fill reads the keys of a section and the sections in it.
func (r *reader) fill(section string, t *storageType, value toml.Primitive, values map[string]toml.Primitive) error {
	if t.begin != nil {
		t.begin(&r.out)
	}
	given := map[string]bool{}
	inner := ""
	for _, written := range r.inFileOrder(strings.Split(section, ".")) {
		name := t.known(written)
		if name == "type" && t.named {
			continue
		}
		if given[name] {
			return r.fail(r.line(values[written]), fmt.Sprintf("the key %q in [%s] is given a second time", written, section), "- and _ in it are the same")
		}
		given[name] = true
		i := slices.IndexFunc(t.inner, func(in storageType) bool { return in.name == name })
		if i < 0 {
			if err := r.key(section, t, name, values[written]); err != nil {
				return err
			}
			continue
		}
		if inner != "" {
			return r.fail(r.line(values[written]), fmt.Sprintf("there are two databases in [%s]: %s and %s", section, inner, name), "name one of them")
		}
		inner = name
		if err := r.inner(section, &t.inner[i], values[written]); err != nil {
			return err
		}
	}
	return r.complete(section, t, value, given, inner)
}

// complete looks for what is missing.
func (r *reader) complete(section string, t *storageType, value toml.Primitive, given map[string]bool, inner string) error {
	for _, k := range t.keys {
		if k.required && !given[k.name] {
			return r.fail(r.line(value), fmt.Sprintf("the key %q is missing in [%s]", k.name, section), "")
		}
	}
	if t.needsInner && inner == "" {
		return r.fail(r.line(value), fmt.Sprintf("there is no database in [%s]", section),
			fmt.Sprintf("write one of the sections %s", t.innerNames(section)))
	}
	return nil
}

// inner reads a section in another one.
func (r *reader) inner(around string, t *storageType, value toml.Primitive) error {
	section := around + "." + t.name
	values, ok := r.table(value)
	switch {
	case !ok:
		return r.notTable(section, value)
	case t.refused != "":
		return r.fail(r.line(value), fmt.Sprintf("[%s]: %s", section, t.refused), "")
	}
	return r.fill(section, t, value, values)
}

// relStorage looks at what the keys of a RelStorage say together.
func (r *reader) relStorage(section string, value toml.Primitive, values map[string]toml.Primitive) error {
	s := r.out.Source.RelStorage
	if s == nil {
		return nil
	}
	if s.SharedBlobDir != nil && *s.SharedBlobDir && s.BlobDir == "" {
		return r.fail(r.line(value), fmt.Sprintf("shared-blob-dir in [%s] is true, but no blob-dir is given", section), "")
	}
	if s.SQLite3 == nil {
		return nil
	}
	s.ReplicaConf, s.ROReplicaConf = "", ""
	for _, written := range r.inFileOrder([]string{section}) {
		if name := relStorage.known(written); name == "replica-conf" || name == "ro-replica-conf" {
			r.out.Unused = append(r.out.Unused, Unused{Path: r.path, Section: section, Key: name, Line: r.line(values[written]), Why: storage.WithoutReplicas})
		}
	}
	return nil
}

// s3 looks at what the keys of S3 say together.
func (r *reader) s3(section string, values map[string]toml.Primitive) error {
	const access, secret = "s3-access-key", "s3-secret-key"
	for _, pair := range [][2]string{{access, secret}, {secret, access}} {
		given, ok := values[pair[0]]
		if _, other := values[pair[1]]; ok && !other {
			return r.fail(r.line(given), fmt.Sprintf("the key %q in [%s] is given without %q", pair[0], section, pair[1]),
				"give both, or none of them: the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's role count then")
		}
	}
	if r.out.Destination.S3.Bucket != "" {
		return nil
	}
	for _, key := range r.inFileOrder([]string{section}) {
		if key == "blob-threshold" || strings.HasPrefix(key, "s3-") {
			r.out.Unused = append(r.out.Unused, Unused{Path: r.path, Section: section, Key: key, Line: r.line(values[key]), Why: WithoutBucket})
		}
	}
	slices.SortFunc(r.out.Unused, func(a, b Unused) int { return a.Line - b.Line })
	return nil
}

// table gives the keys of a value that is a table. For one that is not, the
// library leaves the map nil without an error.
func (r *reader) table(value toml.Primitive) (map[string]toml.Primitive, bool) {
	var values map[string]toml.Primitive
	err := r.meta.PrimitiveDecode(value, &values)
	return values, err == nil && values != nil
}

// typeOf gives the description of a section by its type.
func (r *reader) typeOf(section string, value toml.Primitive, values map[string]toml.Primitive) (*storageType, error) {
	types := storages[section]
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = fmt.Sprintf("%q", t.name)
	}
	p, ok := values["type"]
	if !ok {
		return nil, r.fail(r.line(value), fmt.Sprintf("the key \"type\" is missing in [%s]", section), "write type = "+strings.Join(names, " or "))
	}
	name, err := r.text(section, "type", p)
	if err != nil {
		return nil, err
	}
	for i := range types {
		if types[i].name == name {
			return &types[i], nil
		}
	}
	return nil, r.fail(r.line(p), fmt.Sprintf("unknown type %q of [%s]", name, section),
		"this version takes "+strings.Join(names, ", "))
}

// key reads one key of a section.
func (r *reader) key(section string, t *storageType, name string, value toml.Primitive) error {
	i := slices.IndexFunc(t.keys, func(k key) bool { return k.name == name })
	if i < 0 && t.other != nil {
		r.out.Unused = append(r.out.Unused, Unused{Path: r.path, Section: section, Key: name, Line: r.line(value), Why: t.other.unused})
		return t.other.read(r, section, name, value)
	}
	if i < 0 {
		names := t.names()
		return r.fail(r.line(value), fmt.Sprintf("unknown key %q in [%s]", name, section), suggest(name, names, strings.Join(names, ", ")))
	}
	k := t.keys[i]
	if err := k.read(r, section, k.name, value); err != nil {
		return err
	}
	if k.unused != "" {
		r.out.Unused = append(r.out.Unused, Unused{Path: r.path, Section: section, Key: k.name, Line: r.line(value), Why: k.unused})
	}
	return nil
}

func (r *reader) fail(line int, reason, hint string) error {
	return &Error{Path: r.path, Line: line, Reason: short(reason), Hint: short(hint)}
}

// short cuts a message that repeats a name without end.
func short(message string) string {
	const most = 1000
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most], "") + "..."
}

// suggest gives the nearest known word, or all of them.
func suggest(word string, known []string, all string) string {
	if w := nearest.Word(word, known); w != "" {
		return fmt.Sprintf("did you mean %q?", w)
	}
	return "known are " + all
}

// line tells on which line of the file a value stands. The library tells
// positions only with errors, so this asks for one.
func (r *reader) line(p toml.Primitive) int {
	var e toml.ParseError
	if errors.As(r.meta.PrimitiveDecode(p, new(probe)), &e) {
		return e.Position.Line
	}
	return 0
}

type probe struct{}

var errProbe = errors.New("probe")

// UnmarshalTOML refuses every value.
func (*probe) UnmarshalTOML(any) error { return errProbe }
