package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
)

var sectionNames = []string{"source", "destination"}

// storageType is a type of storage that a section may name, or a section in that
// of one.
type storageType struct {
	name string
	// named: the key type tells the type.
	named bool
	keys  []key
	// begin notes that there is such a section.
	begin func(*Config)
	// loose: - and _ in a key are the same.
	loose bool
	// inner are sections, of which one may be there, or must.
	inner      []storageType
	needsInner bool
	// other describes keys that are not in keys; nil if there are none.
	other *key
	// refused is why there must not be such a section.
	refused string
}

// known gives the name of the key or section that is meant by what is written.
func (t *storageType) known(written string) string {
	if !t.loose {
		return written
	}
	same := func(name string) bool {
		return strings.ReplaceAll(name, "_", "-") == strings.ReplaceAll(written, "_", "-")
	}
	for _, name := range t.names() {
		if same(name) {
			return name
		}
	}
	return written
}

// names lists everything that may stand in the section.
func (t *storageType) names() []string {
	var names []string
	if t.named {
		names = append(names, "type")
	}
	for _, k := range t.keys {
		names = append(names, k.name)
	}
	for _, in := range t.inner {
		names = append(names, in.name)
	}
	return names
}

func (t *storageType) innerNames(section string) string {
	var names []string
	for _, in := range t.inner {
		if in.refused == "" {
			names = append(names, "["+section+"."+in.name+"]")
		}
	}
	return strings.Join(names, ", ")
}

// key is one key of a section.
type key struct {
	name     string
	required bool
	// read checks the value and, if it has an effect, stores it.
	read func(r *reader, section, name string, value toml.Primitive) error
	// unused tells why the key has no effect; "" if it has one.
	unused string
	// doc and value are for the reference, example is for drafts.
	doc, value, example string
}

const runtime = "it matters to a running site only"

// storages describes what may stand in the file. The order is that of the
// reference.
var storages = map[string][]storageType{
	"source": {{
		name: "filestorage", named: true, begin: func(c *Config) { c.Source.FileStorage = &FileStorage{} },
		keys: []key{
			{name: "path", required: true, value: "path", doc: "the Data.fs to read; it is never written to", example: `"/srv/plone/var/filestorage/Data.fs"`,
				read: textInto(func(c *Config, s string) { c.Source.FileStorage.Path = home(s) })},
			{name: "blob-dir", value: "path", doc: "the directory of its blobs; needed if the database has any", example: `"/srv/plone/var/blobstorage"`,
				read: textInto(func(c *Config, s string) { c.Source.FileStorage.BlobDir = home(s) })},
		},
	}, relStorage},
	"destination": {{
		name: "pgjsonb", named: true,
		keys: []key{
			{name: "dsn", required: true, value: "string", doc: "the PostgreSQL database, as libpq takes it (key=value or URL)", example: `"dbname=zodb_new user=zodb host=localhost"`,
				read: textInto(func(c *Config, s string) { c.Destination.DSN = s })},
			{name: "history-preserving", value: "boolean", doc: "keep every revision of each object (default: false)", example: `false`,
				read: boolInto(func(c *Config, b bool) { c.Destination.HistoryPreserving = b })},
			{name: "blob-threshold", value: "size", doc: "blobs of this size and above go to S3, if a bucket is named (default: 100KB)", example: `"100KB"`,
				read: sizeInto(func(c *Config, n int64) { c.Destination.BlobThreshold = n })},
			{name: "s3-bucket-name", value: "string", doc: "the S3 bucket for blobs; without it all of them go to PostgreSQL", example: `"plone-blobs"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.Bucket = s })},
			{name: "s3-prefix", value: "string", doc: "what the keys in the bucket start with (default: nothing)", example: `"plone/"`,
				read: textOrNothing(func(c *Config, s string) { c.Destination.S3.Prefix = s })},
			{name: "s3-endpoint-url", value: "string", doc: "the S3 server, if it is not Amazon's", example: `"https://s3.example.org"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.EndpointURL = s })},
			{name: "s3-region", value: "string", doc: "the S3 region", example: `"eu-central-1"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.Region = s })},
			{name: "s3-access-key", value: "string", doc: "the S3 access key; without it AWS_ACCESS_KEY_ID, a profile or the machine's role counts", example: `"${AWS_ACCESS_KEY_ID}"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.AccessKey = s })},
			{name: "s3-secret-key", value: "string", doc: "the S3 secret key; goes with s3-access-key", example: `"${AWS_SECRET_ACCESS_KEY}"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.SecretKey = s })},
			{name: "s3-use-ssl", value: "boolean", doc: "whether to use TLS with a server whose URL does not say (default: true)", example: `true`,
				read: boolInto(func(c *Config, b bool) { c.Destination.S3.PlainHTTP = !b })},
			{name: "s3-path-style", value: "boolean", doc: "whether the bucket stands in the path of a URL and not in the host name (default: true, but for Amazon's servers)", example: `true`,
				read: boolInto(func(c *Config, b bool) { c.Destination.S3.PathStyle = &b })},
			{name: "s3-ca-bundle", value: "path", doc: "certificates (PEM) that the S3 server's is checked against, if not those of the system", example: `"/etc/ssl/certs/s3.pem"`,
				read: textInto(func(c *Config, s string) { c.Destination.S3.CABundle = home(s) })},
			{name: "blob-temp-dir", value: "path", doc: "where a site keeps blobs while it writes them", unused: runtime, read: textOnly},
			{name: "blob-cache-dir", value: "path", doc: "where a site keeps blobs that it has read", unused: runtime, read: textOnly},
			{name: "blob-cache-size", value: "size", doc: "how much of them", unused: runtime, read: sizeOnly},
		},
	}},
}

// KeyDoc describes a key for the reference.
type KeyDoc struct {
	Section, Type, Key, Value, Doc string
	Required                       bool
	Unused                         string // why it has no effect, or ""
}

// Keys lists every key that a configuration may hold.
func Keys() []KeyDoc {
	var docs []KeyDoc
	for _, section := range sectionNames {
		for _, s := range storages[section] {
			docs = append(docs, KeyDoc{Section: section, Type: s.name, Key: "type", Value: fmt.Sprintf("%q", s.name), Doc: "the kind of storage", Required: true})
			docs = append(docs, s.docs(section, s.name)...)
		}
	}
	return docs
}

// docs describes the keys of a section and of those in it.
func (t *storageType) docs(section, storage string) []KeyDoc {
	var docs []KeyDoc
	for _, k := range t.keys {
		docs = append(docs, KeyDoc{Section: section, Type: storage, Key: k.name, Value: k.value, Doc: k.doc, Required: k.required, Unused: k.unused})
	}
	for i := range t.inner {
		docs = append(docs, t.inner[i].docs(section+"."+t.inner[i].name, storage)...)
	}
	return docs
}

func textInto(set func(*Config, string)) func(*reader, string, string, toml.Primitive) error {
	return func(r *reader, section, name string, value toml.Primitive) error {
		s, err := r.text(section, name, value)
		if err == nil && s == "" {
			err = r.fail(r.line(value), fmt.Sprintf("the key %q in [%s] is empty", name, section), "")
		}
		if err == nil {
			set(&r.out, s)
		}
		return err
	}
}

// textOrNothing is textInto for a key that may be empty.
func textOrNothing(set func(*Config, string)) func(*reader, string, string, toml.Primitive) error {
	return func(r *reader, section, name string, value toml.Primitive) error {
		s, err := r.text(section, name, value)
		if err == nil {
			set(&r.out, s)
		}
		return err
	}
}

func textOnly(r *reader, section, name string, value toml.Primitive) error {
	_, err := r.text(section, name, value)
	return err
}

func boolInto(set func(*Config, bool)) func(*reader, string, string, toml.Primitive) error {
	return func(r *reader, section, name string, value toml.Primitive) error {
		b, err := r.boolean(section, name, value)
		if err == nil {
			set(&r.out, b)
		}
		return err
	}
}

func sizeInto(set func(*Config, int64)) func(*reader, string, string, toml.Primitive) error {
	return func(r *reader, section, name string, value toml.Primitive) error {
		n, err := r.size(section, name, value)
		if err == nil {
			set(&r.out, n)
		}
		return err
	}
}

func sizeOnly(r *reader, section, name string, value toml.Primitive) error {
	_, err := r.size(section, name, value)
	return err
}

// text reads a string and puts in the environment.
func (r *reader) text(section, name string, value toml.Primitive) (string, error) {
	var v any
	if err := r.meta.PrimitiveDecode(value, &v); err != nil {
		return "", syntaxError(r.path, err)
	}
	s, ok := v.(string)
	if !ok {
		return "", r.wrongType(section, name, value, "a string in quotes")
	}
	s, err := expand(s, r.getenv)
	if err != nil {
		return "", r.fail(r.line(value), fmt.Sprintf("the key %q in [%s]: %v", name, section, err), "")
	}
	return s, nil
}

// boolean reads a TOML boolean, or a string as ZConfig takes it, which may come
// from the environment.
func (r *reader) boolean(section, name string, value toml.Primitive) (bool, error) {
	var v any
	if err := r.meta.PrimitiveDecode(value, &v); err != nil {
		return false, syntaxError(r.path, err)
	}
	if b, ok := v.(bool); ok {
		return b, nil
	}
	if _, ok := v.(string); ok {
		s, err := r.text(section, name, value)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(s) {
		case "true", "yes", "on":
			return true, nil
		case "false", "no", "off":
			return false, nil
		}
	}
	return false, r.wrongType(section, name, value, "true or false")
}

// size reads a number of bytes or a string such as "256MB".
func (r *reader) size(section, name string, value toml.Primitive) (int64, error) {
	var v any
	if err := r.meta.PrimitiveDecode(value, &v); err != nil {
		return 0, syntaxError(r.path, err)
	}
	switch v := v.(type) {
	case int64:
		if v >= 0 {
			return v, nil
		}
	case string:
		s, err := r.text(section, name, value)
		if err != nil {
			return 0, err
		}
		if n, err := ParseSize(s); err == nil {
			return n, nil
		}
	}
	return 0, r.wrongType(section, name, value, `a size such as "100KB", "256MB" or "2GB"`)
}

func (r *reader) wrongType(section, name string, value toml.Primitive, want string) error {
	return r.fail(r.line(value), fmt.Sprintf("the key %q in [%s] wants %s", name, section, want), "")
}

// home puts the home directory in for a leading ~/, as ZConfig does.
func home(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if dir, err := os.UserHomeDir(); err == nil {
			return filepath.Join(dir, rest)
		}
	}
	return path
}
