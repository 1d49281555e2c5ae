package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// Origin says where a configuration comes from.
type Origin struct {
	// Path is a file for a conversion, in TOML or ZConfig. It may be empty if
	// each end that is needed comes from a site, and may leave out an end that does.
	Path string
	// SourceSite and DestinationSite are zope.conf files, and the names of the
	// databases in them: empty for main, or the only one.
	SourceSite, SourceDatabase           string
	DestinationSite, DestinationDatabase string
	// DestinationOnly is for those who need no source: it may be left out, and
	// its directories need not be there.
	DestinationOnly bool
	// DestinationOptional is for those who look at the source and need no
	// destination. One that is there has to be right.
	DestinationOptional bool
}

// Read reads the files. getenv gives the environment. Every error is an *Error.
func (o Origin) Read(getenv func(string) (string, bool)) (*Config, error) {
	c := &Config{Destination: PGJSONB{BlobThreshold: DefaultBlobThreshold}}
	if o.Path != "" {
		var err error
		if c, err = o.readFile(getenv); err != nil {
			return nil, err
		}
	}
	options := storage.Options{Getenv: getenv}
	if o.SourceSite != "" && !o.DestinationOnly {
		if err := c.sourceSite(o, options); err != nil {
			return nil, asError(err)
		}
	}
	if o.DestinationSite != "" {
		if err := c.destinationSite(o, options); err != nil {
			return nil, asError(err)
		}
	}
	if r := c.Source.RelStorage; r != nil && !o.DestinationOnly {
		if err := r.readReplicas(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// readFile reads the file for a conversion. An end that comes from a site must
// not stand in it.
func (o Origin) readFile(getenv func(string) (string, bool)) (*Config, error) {
	text, err := readFile(o.Path)
	if err != nil {
		return nil, err
	}
	return o.parse(text, getenv)
}

func (o Origin) parse(text []byte, getenv func(string) (string, bool)) (*Config, error) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	read := parse
	if isZConfig(text) {
		read = o.parseZConfig
	}
	var required []string
	if o.SourceSite == "" && !o.DestinationOnly {
		required = append(required, "source")
	}
	if o.DestinationSite == "" && !o.DestinationOptional {
		required = append(required, "destination")
	}
	c, err := read(o.Path, text, getenv, required)
	if err != nil {
		return nil, err
	}
	for _, end := range []struct {
		name, site, flag string
		given            bool
	}{
		{"source", o.SourceSite, "--source-zope-conf", c.Source.given()},
		{"destination", o.DestinationSite, "--dest-zope-conf", c.Destination.Given()},
	} {
		if end.given && end.site != "" {
			return nil, &Error{Path: o.Path, Reason: fmt.Sprintf("the %s is given twice: here, and by %s", end.name, end.flag),
				Hint: "take one of them out"}
		}
	}
	return c, nil
}

// isZConfig tells which language a file is in by its first line that says
// something. What starts neither a section nor a table is a key: in TOML = parts
// it from its value.
func isZConfig(text []byte) bool {
	for line := range bytes.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		switch line[0] {
		case '<', '%':
			return true
		case '[', '"', '\'':
			return false
		}
		name, _, _ := bytes.Cut(line, []byte("="))
		return len(name) == len(line) || bytes.ContainsAny(bytes.TrimSpace(name), " \t") && !bytes.ContainsAny(name, `."'`)
	}
	return false
}

// parseZConfig is parse for the language of ZConfig.
func (o Origin) parseZConfig(path string, text []byte, getenv func(string) (string, bool), required []string) (*Config, error) {
	options := storage.Options{Getenv: getenv}
	if o.DestinationOnly {
		// The source's disk may be gone.
		options.IsDir = func(string) bool { return true }
	}
	file, err := storage.ParseConversion(path, text, options)
	if err != nil {
		return nil, asError(err)
	}
	c := &Config{Destination: PGJSONB{BlobThreshold: DefaultBlobThreshold}}
	c.warn(file.Warnings)
	if file.HasSource() && !o.DestinationOnly || slices.Contains(required, "source") {
		s, err := file.Source()
		if err != nil {
			return nil, asError(err)
		}
		c.takeSource(s)
	}
	if file.HasDestination() || slices.Contains(required, "destination") {
		d, err := file.Destination()
		if err != nil {
			return nil, asError(err)
		}
		c.takeDestination(d)
	}
	return c, nil
}

func (c *Config) sourceSite(o Origin, options storage.Options) error {
	site, err := storage.ReadZope(o.SourceSite, options)
	if err != nil {
		return err
	}
	s, err := site.Source(o.SourceDatabase)
	if err != nil {
		return err
	}
	c.takeSource(s)
	return nil
}

func (c *Config) destinationSite(o Origin, options storage.Options) error {
	site, err := storage.ReadZope(o.DestinationSite, options)
	if err != nil {
		return err
	}
	d, err := site.Destination(o.DestinationDatabase)
	if err != nil {
		return err
	}
	c.takeDestination(d)
	return nil
}

func (c *Config) takeSource(s *storage.Source) {
	c.Source = Source{}
	if s.FileStorage != nil {
		c.Source.FileStorage = &FileStorage{Path: s.FileStorage.Path, BlobDir: s.FileStorage.BlobDir}
	} else {
		c.Source.RelStorage = &RelStorage{RelStorage: *s.RelStorage}
	}
	c.unused(s.Unused)
}

func (c *Config) takeDestination(d *storage.Destination) {
	p := d.PGJSONB
	c.Destination = PGJSONB{
		DSN: p.DSN, HistoryPreserving: p.HistoryPreserving, BlobThreshold: p.BlobThreshold,
		S3: S3{
			Bucket: p.S3.Bucket, Prefix: p.S3.Prefix, EndpointURL: p.S3.EndpointURL, Region: p.S3.Region,
			AccessKey: p.S3.AccessKey, SecretKey: p.S3.SecretKey, PlainHTTP: p.S3.PlainHTTP,
		},
	}
	c.unused(d.Unused)
}

func (c *Config) unused(list []storage.Unused) {
	for _, u := range list {
		c.Unused = append(c.Unused, Unused{Path: u.Pos.File, Section: "<" + u.Section + ">", Key: u.Key, Line: u.Pos.Line, Why: u.Why})
	}
}

func (c *Config) warn(list []zconfig.Warning) {
	for _, w := range list {
		c.Warnings = append(c.Warnings, w.String())
	}
}

// asError makes an error about a file in ZConfig one of this package.
func asError(err error) error {
	if e := (*zconfig.Error)(nil); errors.As(err, &e) {
		return &Error{Path: e.Pos.File, Line: e.Pos.Line, Reason: short(e.Reason), Hint: short(e.Hint)}
	}
	return err
}
