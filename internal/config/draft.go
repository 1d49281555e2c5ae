package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// Draft is a file in TOML to begin with. What can be taken from a file in
// ZConfig is filled in; the rest is examples.
//
// A draft holds no password and no key: what is one is left to the environment,
// which also keeps the names of variables that the file has.
type Draft struct {
	// From is a zope.conf or a file for a conversion, or empty.
	From string
	// SourceDatabase and DestinationDatabase name databases of a zope.conf.
	// Without either, that with the name main or the only one is what it can be.
	SourceDatabase, DestinationDatabase string
}

// TOML gives the text of the file. getenv gives the environment. Every error is
// an *Error.
func (d Draft) TOML(getenv func(string) (string, bool)) (string, error) {
	w := &draftWriter{values: map[string]map[string]draftValue{}, taken: map[string]string{}, types: map[string]string{}}
	if d.From == "" {
		return w.file(""), nil
	}
	text, err := readFile(d.From)
	if err != nil {
		return "", err
	}
	if !isZConfig(text) {
		return "", &Error{Path: d.From, Reason: "this is not in ZConfig, the language of zope.conf",
			Hint: "a file in TOML needs no draft: give it as CONFIG"}
	}
	// With the names of variables in place of their values not every file can be
	// read: one may tell a size, or the path of another file.
	c, err := d.read(text, named)
	if err == nil {
		err = w.take(c)
	}
	if err != nil {
		w.taken, w.err = map[string]string{}, nil
		if c, err = d.read(text, getenv); err == nil {
			err = w.take(c)
		}
	}
	if err != nil {
		return "", asError(err)
	}
	return w.file(d.From), nil
}

// ends are what a file in ZConfig tells.
type ends struct {
	source      *storage.Source
	destination *storage.Destination
}

func (d Draft) read(text []byte, getenv func(string) (string, bool)) (*ends, error) {
	// The draft may be made on another machine than that of the site.
	options := storage.Options{Getenv: getenv, IsDir: func(string) bool { return true }}
	site, err := storage.ParseZope(d.From, text, options)
	if err != nil {
		return nil, err
	}
	if len(site.Names()) > 0 {
		return d.readSite(site)
	}
	if d.SourceDatabase != "" || d.DestinationDatabase != "" {
		return nil, &Error{Path: d.From, Reason: "there is no <zodb_db> in it, so that no database can be named", Hint: "leave --source-db and --dest-db out"}
	}
	file, err := storage.ParseConversion(d.From, text, options)
	if err != nil {
		return nil, err
	}
	e := &ends{}
	if file.HasSource() {
		if e.source, err = file.Source(); err != nil {
			return nil, err
		}
	}
	if file.HasDestination() {
		if e.destination, err = file.Destination(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (d Draft) readSite(site *storage.Zope) (e *ends, err error) {
	e = &ends{}
	readsSource, readsDestination := d.SourceDatabase != "", d.DestinationDatabase != ""
	if !readsSource && !readsDestination {
		if readsDestination, err = site.Writable(""); err != nil {
			return nil, err
		}
		readsSource = !readsDestination
	}
	if readsSource {
		if e.source, err = site.Source(d.SourceDatabase); err != nil {
			return nil, err
		}
	}
	if readsDestination {
		if e.destination, err = site.Destination(d.DestinationDatabase); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// named gives the name of a variable in the place of its value.
func named(name string) (string, bool) {
	return storage.Unknown + name + storage.Unknown, true
}

var (
	namedVariable  = regexp.MustCompile(storage.Unknown + `([A-Za-z_][A-Za-z0-9_]*)` + storage.Unknown)
	namedVariables = regexp.MustCompile(`^(` + namedVariable.String() + `)+$`)
)

// draftValue is the value of a key, as TOML, and what to say about it.
type draftValue struct{ toml, note string }

// draftWriter writes a draft.
type draftWriter struct {
	values map[string]map[string]draftValue // by section and key
	taken  map[string]string                // where a section comes from
	types  map[string]string                // of [source]; "source." is the section in it
	indent int                              // of the lines that are written
	err    error
}

func (w *draftWriter) set(section, key, toml, note string) {
	if w.values[section] == nil {
		w.values[section] = map[string]draftValue{}
	}
	w.values[section][key] = draftValue{toml, note}
}

func (w *draftWriter) flag(section, key string, value *bool) {
	if value != nil {
		w.set(section, key, strconv.FormatBool(*value), "")
	}
}

func (w *draftWriter) number(section, key string, value int64) {
	if value != 0 {
		w.set(section, key, strconv.FormatInt(value, 10), "")
	}
}

// text sets a key to a text that is not empty.
func (w *draftWriter) text(section, key, value, note string) {
	if value == "" {
		return
	}
	text, ok := quoteTOML(value)
	if !ok {
		w.err = &Error{Reason: fmt.Sprintf("the value of %s cannot be written with the names of variables", key)}
	}
	w.set(section, key, text, note)
}

const (
	variableNote = "The password is not copied: set the variable."
	passwordNote = "The password is not copied. PGPASSWORD and ~/.pgpass count as with psql."
	dsnNote      = "It cannot be taken over without a password that may be in it: set %s to the whole of it, or write it here without the password."
	keyNote      = "The key is not copied: set the variable."
	changeNote   = "CHANGE THIS."
)

// take fills in what is known.
func (w *draftWriter) take(e *ends) error {
	c := &Config{}
	w.values, w.types = map[string]map[string]draftValue{}, map[string]string{}
	if e.source != nil {
		c.takeSource(e.source)
		w.taken["source"] = e.source.Pos.String()
		if f := c.Source.FileStorage; f != nil {
			w.text("source", "path", f.Path, "")
			w.text("source", "blob-dir", f.BlobDir, "")
		} else {
			w.relStorage(c.Source.RelStorage)
		}
	}
	if e.destination != nil {
		c.takeDestination(e.destination)
		w.taken["destination"] = e.destination.Pos.String()
		w.destination(&c.Destination)
	}
	return w.err
}

func (w *draftWriter) relStorage(s *RelStorage) {
	w.types["source"] = "relstorage"
	w.flag("source", "keep-history", s.KeepHistory)
	w.text("source", "blob-dir", s.BlobDir, "")
	w.flag("source", "shared-blob-dir", s.SharedBlobDir)
	w.text("source", "replica-conf", s.ReplicaConf, "")
	w.text("source", "ro-replica-conf", s.ROReplicaConf, "")
	switch {
	case s.PostgreSQL != nil:
		w.types["source."] = "postgresql"
		w.dsn("source.postgresql", s.PostgreSQL.DSN, "RELSTORAGE_DSN")
	case s.SQLite3 != nil:
		w.types["source."] = "sqlite3"
		w.text("source.sqlite3", "data-dir", s.SQLite3.DataDir, "")
	default:
		w.types["source."] = "mysql"
		w.mysql(s.MySQL)
	}
}

func (w *draftWriter) mysql(m *storage.MySQL) {
	const section = "source.mysql"
	w.text(section, "db", m.Database, "")
	w.text(section, "user", m.User, "")
	switch {
	case namedVariables.MatchString(m.Password):
		w.text(section, "passwd", m.Password, "")
	case m.Password != "":
		w.set(section, "passwd", `"${MYSQL_PWD}"`, variableNote)
	}
	w.text(section, "host", m.Host, "")
	w.number(section, "port", m.Port)
	w.text(section, "unix_socket", m.UnixSocket, "")
	w.number(section, "connect_timeout", m.ConnectTimeout)
	if m.Compress {
		w.set(section, "compress", "true", "")
	}
	w.text(section, "read_default_file", m.DefaultFile, "")
	w.text(section, "read_default_group", m.DefaultGroup, "")
}

// dsn sets the key dsn to a connection string without its password.
func (w *draftWriter) dsn(section, value, variable string) {
	switch dsn, removed, ok := withoutPassword(value); {
	case !ok:
		w.set(section, "dsn", `"${`+variable+`}"`, fmt.Sprintf(dsnNote, variable))
	case dsn == "" && removed:
		w.set(section, "dsn", `""`, passwordNote)
	case removed:
		w.text(section, "dsn", dsn, passwordNote)
	default:
		w.text(section, "dsn", dsn, "")
	}
}

func (w *draftWriter) destination(p *PGJSONB) {
	const section = "destination"
	if w.dsn(section, p.DSN, "ZODB_DSN"); w.values[section]["dsn"].toml == `""` {
		w.set(section, "dsn", `"${ZODB_DSN}"`, fmt.Sprintf(dsnNote, "ZODB_DSN"))
	}
	w.set(section, "history-preserving", fmt.Sprint(p.HistoryPreserving), "")
	if p.BlobThreshold != DefaultBlobThreshold {
		w.set(section, "blob-threshold", fmt.Sprint(p.BlobThreshold), "")
	}
	w.text(section, "s3-bucket-name", p.S3.Bucket, "")
	w.text(section, "s3-prefix", p.S3.Prefix, "")
	w.text(section, "s3-endpoint-url", p.S3.EndpointURL, "")
	w.text(section, "s3-region", p.S3.Region, "")
	for _, key := range []struct{ name, value, variable string }{
		{"s3-access-key", p.S3.AccessKey, "${AWS_ACCESS_KEY_ID}"},
		{"s3-secret-key", p.S3.SecretKey, "${AWS_SECRET_ACCESS_KEY}"},
	} {
		switch {
		case namedVariables.MatchString(key.value):
			w.text(section, key.name, key.value, "")
		case key.value != "":
			w.set(section, key.name, `"`+key.variable+`"`, keyNote)
		}
	}
	if p.S3.PlainHTTP {
		w.set(section, "s3-use-ssl", "false", "")
	}
}

// file gives the whole text.
func (w *draftWriter) file(from string) string {
	var b strings.Builder
	b.WriteString("# What zodb-convert reads, and where it writes to.\n")
	if from != "" {
		fmt.Fprintf(&b, "# Made from %s.\n", oneLine(from))
	}
	b.WriteString("#\n# ${NAME} in a value is the environment variable NAME. A key with # before it is\n" +
		"# not set. Look at it, then try it; nothing is written by\n#\n#   zodb-convert --dry-run FILE\n")
	for _, section := range sectionNames {
		w.section(&b, section)
	}
	return b.String()
}

// section writes a section and that in it. Where nothing tells the type of the
// source, all that may be it follow as comments.
func (w *draftWriter) section(b *strings.Builder, section string) {
	types := storages[section]
	at := max(slices.IndexFunc(types, func(t storageType) bool { return t.name == w.types[section] }), 0)
	fmt.Fprintf(b, "\n[%s]\n", section)
	if from := w.taken[section]; from != "" {
		fmt.Fprintf(b, "# Taken from %s.\n", oneLine(from))
	}
	w.storage(b, section, &types[at])
	if w.taken[section] != "" {
		return
	}
	for i := range types {
		if i == at {
			continue
		}
		var other strings.Builder
		w.indent = len("#   ")
		fmt.Fprintf(&other, "[%s]\n", section)
		w.storage(&other, section, &types[i])
		w.indent = 0
		fmt.Fprintf(b, "\n# In place of these lines for type %s, with one of its sections:\n#\n", types[i].name)
		for line := range strings.Lines(other.String()) {
			if line == "\n" {
				b.WriteString("#\n")
				continue
			}
			b.WriteString("#   " + line)
		}
	}
}

// storage writes the keys of a type.
func (w *draftWriter) storage(b *strings.Builder, section string, t *storageType) {
	if t.named {
		fmt.Fprintf(b, "type = %q\n", t.name)
	}
	for _, k := range t.keys {
		if k.unused == "" && k.example != "" {
			w.key(b, section, k)
		}
	}
	chosen := w.types[section+"."]
	for i := range t.inner {
		in := &t.inner[i]
		if in.refused != "" || len(in.keys) == 0 || chosen != "" && in.name != chosen {
			continue
		}
		fmt.Fprintf(b, "\n[%s.%s]\n", section, in.name)
		w.storage(b, section+"."+in.name, in)
	}
}

func (w *draftWriter) key(b *strings.Builder, section string, k key) {
	b.WriteString("\n")
	w.comment(b, strings.ToUpper(k.doc[:1])+k.doc[1:]+".")
	v, known := w.values[section][k.name]
	switch {
	case known:
		w.comment(b, v.note)
		fmt.Fprintf(b, "%s = %s\n", k.name, v.toml)
	case k.required:
		w.comment(b, changeNote)
		fmt.Fprintf(b, "%s = %s\n", k.name, k.example)
	default:
		fmt.Fprintf(b, "# %s = %s\n", k.name, k.example)
	}
}

// comment writes words as lines with # before them.
func (w *draftWriter) comment(b *strings.Builder, text string) {
	width := 80 - w.indent
	line := "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width && line != "#" {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		b.WriteString(line + "\n")
	}
}

// oneLine keeps a name in its comment.
func oneLine(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, name)
}

// quoteTOML gives a text as a string of TOML in which variables are named. Where
// a dollar sign stands before one of them there is no such string.
func quoteTOML(text string) (string, bool) {
	var b strings.Builder
	b.WriteByte('"')
	for len(text) > 0 {
		at := namedVariable.FindStringSubmatchIndex(text)
		if at == nil {
			quoteInto(&b, text)
			break
		}
		if at[0] > 0 && text[at[0]-1] == '$' {
			return "", false
		}
		quoteInto(&b, text[:at[0]])
		b.WriteString("${" + text[at[2]:at[3]] + "}")
		text = text[at[1]:]
	}
	b.WriteByte('"')
	return b.String(), true
}

func quoteInto(b *strings.Builder, text string) {
	for _, r := range strings.ReplaceAll(text, "${", "$${") {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
}

// withoutPassword takes passwords out of a connection string, but for those that
// a variable has. It is not ok if the string cannot be read.
func withoutPassword(dsn string) (out string, removed, ok bool) {
	for _, scheme := range []string{"postgresql://", "postgres://"} {
		if rest, is := strings.CutPrefix(dsn, scheme); is {
			rest, removed, ok = urlWithoutPassword(rest)
			return scheme + rest, removed, ok
		}
	}
	if namedVariables.MatchString(dsn) {
		return dsn, false, true
	}
	return settingsWithoutPassword(dsn)
}

// isPassword tells the settings that nobody else may see.
func isPassword(name string) bool { return name == "password" || name == "sslpassword" }

// urlWithoutPassword is for what follows postgresql://.
func urlWithoutPassword(rest string) (out string, removed, ok bool) {
	plain := namedVariable.ReplaceAllString(rest, "x")
	if u, err := url.Parse("postgresql://" + plain); err != nil || strings.Contains(u.Path, "@") || u.Fragment != "" {
		return "", false, false
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, password, given := strings.Cut(authority[:i], ":")
		if given && !namedVariables.MatchString(password) {
			authority, removed = user+authority[i:], password != ""
		}
	}
	path, query, _ := strings.Cut(tail, "?")
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		switch {
		case err != nil:
			return "", false, false
		case isPassword(name) && !namedVariables.MatchString(value):
			removed = true
		case pair != "":
			kept = append(kept, pair)
		}
	}
	if len(kept) > 0 {
		path += "?" + strings.Join(kept, "&")
	}
	return authority + path, removed, true
}

// setting is one of a connection string in the form key=value, where blanks may
// stand around = and a value in quotes may hold them. A backslash takes the
// special meaning from what follows.
var setting = regexp.MustCompile(`^\s*([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|)(\s+|$)`)

func settingsWithoutPassword(dsn string) (out string, removed, ok bool) {
	var kept []string
	for rest := strings.TrimSpace(dsn); rest != ""; {
		m := setting.FindStringSubmatchIndex(rest)
		if m == nil {
			return "", false, false
		}
		name, value := rest[m[2]:m[3]], rest[m[4]:m[5]]
		if isPassword(name) && !namedVariables.MatchString(strings.Trim(value, "'")) {
			removed = true
		} else {
			kept = append(kept, name+"="+value)
		}
		rest = rest[m[1]:]
	}
	return strings.Join(kept, " "), removed, true
}
