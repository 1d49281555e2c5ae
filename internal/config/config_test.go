package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const whole = `
[source]
type = "filestorage"
path = "/srv/Data.fs"

[destination]
type = "pgjsonb"
dsn = "dbname=zodb password=${PW}"
history-preserving = true
`

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestReadsWhatTheFileSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "migrate.toml")
	if err := os.WriteFile(path, []byte("\xef\xbb\xbf"+whole), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path, env("PW", "se$cret ${PW}"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Source:      Source{FileStorage: &FileStorage{Path: "/srv/Data.fs"}},
		Destination: PGJSONB{DSN: "dbname=zodb password=se$cret ${PW}", HistoryPreserving: true, BlobThreshold: 100 << 10},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestValues(t *testing.T) {
	source := func(lines string) string {
		return "[source]\ntype='filestorage'\n" + lines + "\n[destination]\ntype='pgjsonb'\ndsn='x'\n"
	}
	destination := func(lines string) string {
		return "[source]\ntype='filestorage'\npath='x'\n[destination]\ntype='pgjsonb'\n" + lines + "\n"
	}
	homeDir, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		got        func(*Config) any
		want       any
	}{
		{"relative path stays", source("path='Data.fs'"), func(c *Config) any { return c.Source.FileStorage.Path }, "Data.fs"},
		{"home directory", source("path='~/Data.fs'"), func(c *Config) any { return c.Source.FileStorage.Path }, filepath.Join(homeDir, "Data.fs")},
		{"escaped variable", source("path='a$${PW}b'"), func(c *Config) any { return c.Source.FileStorage.Path }, "a${PW}b"},
		{"lone dollar", source("path='a$PW$$b$'"), func(c *Config) any { return c.Source.FileStorage.Path }, "a$PW$$b$"},
		{"boolean in words", destination("dsn='x'\nhistory-preserving='On'"), func(c *Config) any { return c.Destination.HistoryPreserving }, true},
		{"boolean from the environment", destination("dsn='x'\nhistory-preserving='${HP}'"), func(c *Config) any { return c.Destination.HistoryPreserving }, true},
		{"boolean default", destination("dsn='x'"), func(c *Config) any { return c.Destination.HistoryPreserving }, false},
		{"inline table", "source = {type='filestorage', path='p'}\ndestination = {type='pgjsonb', dsn='d'}", func(c *Config) any { return c.Source.FileStorage.Path + c.Destination.DSN }, "pd"},
		{"dotted keys", "source.type='filestorage'\nsource.path='p'\ndestination.type='pgjsonb'\ndestination.dsn='d'", func(c *Config) any { return c.Source.FileStorage.Path + c.Destination.DSN }, "pd"},
		{"blob directory", source("path='p'\nblob-dir='~/b'"), func(c *Config) any { return c.Source.FileStorage.BlobDir }, filepath.Join(homeDir, "b")},
		{"threshold", destination("dsn='x'\nblob-threshold='1MB'"), func(c *Config) any { return c.Destination.BlobThreshold }, int64(1 << 20)},
		{"threshold of nothing", destination("dsn='x'\nblob-threshold=0"), func(c *Config) any { return c.Destination.BlobThreshold }, int64(0)},
		{"threshold default", destination("dsn='x'"), func(c *Config) any { return c.Destination.BlobThreshold }, int64(100 << 10)},
		{"S3", destination("dsn='x'\ns3-bucket-name='b'\ns3-prefix='p'\ns3-endpoint-url='http://s'\ns3-region='r'\ns3-access-key='a'\ns3-secret-key='${PW}'\ns3-use-ssl=false\ns3-path-style='no'\ns3-ca-bundle='~/ca.pem'"),
			func(c *Config) any { return c.Destination.S3 }, S3{Bucket: "b", Prefix: "p", EndpointURL: "http://s", Region: "r",
				AccessKey: "a", SecretKey: "secret", PlainHTTP: true, PathStyle: new(bool), CABundle: filepath.Join(homeDir, "ca.pem")}},
		{"S3 defaults", destination("dsn='x'\ns3-bucket-name='b'\ns3-prefix=''"), func(c *Config) any { return c.Destination.S3 }, S3{Bucket: "b"}},
		{"keys with a bucket have an effect", destination("dsn='x'\nblob-threshold='100KB'\ns3-bucket-name='b'"), func(c *Config) any { return len(c.Unused) }, 0},
		{"keys without a bucket have none", destination("dsn='x'\nblob-cache-size=1\nblob-threshold='100KB'\ns3-region='r'"), func(c *Config) any { return c.Unused },
			[]Unused{{"c.toml", "destination", "blob-cache-size", 7, runtime}, {"c.toml", "destination", "blob-threshold", 8, WithoutBucket}, {"c.toml", "destination", "s3-region", 9, WithoutBucket}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := parse("c.toml", []byte(c.text), env("PW", "secret", "HP", "yes"), sectionNames)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, c.got(config)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMistakesAreNamedWithTheirLine(t *testing.T) {
	const src = "[source]\ntype='filestorage'\npath='x'\n"
	const dst = "[destination]\ntype='pgjsonb'\ndsn='x'\n"
	for _, c := range []struct{ name, text, want string }{
		{"unknown key with a near one", "[source]\ntype='filestorage'\npth='x'\n" + dst,
			`c.toml:3: unknown key "pth" in [source]; did you mean "path"?`},
		{"underscore instead of dash", src + "blob_dir='b'\n" + dst,
			`c.toml:4: unknown key "blob_dir" in [source]; did you mean "blob-dir"?`},
		{"unknown key without a near one", src + "zzz='x'\n" + dst,
			`c.toml:4: unknown key "zzz" in [source]; known are type, path, blob-dir`},
		{"key of a running site", src + dst + "cache-local-mb=3\n",
			`c.toml:7: unknown key "cache-local-mb" in [destination]; known are type, dsn, history-preserving, blob-threshold, s3-bucket-name, s3-prefix, s3-endpoint-url, s3-region, s3-access-key, s3-secret-key, s3-use-ssl, s3-path-style, s3-ca-bundle, blob-temp-dir, blob-cache-dir, blob-cache-size`},
		{"first mistake of several", "[source]\ntype='filestorage'\naaaa='x'\nbbbb='y'\n" + dst,
			`c.toml:3: unknown key "aaaa" in [source]; known are type, path, blob-dir`},
		{"key outside of a section", "path='x'\n" + src + dst,
			`c.toml:1: the key "path" stands outside of a section; put it under [source] or [destination]`},
		{"unknown section with a near one", src + dst + "[sources]\nx=1\n",
			`c.toml:7: unknown section [sources]; did you mean "source"?`},
		{"subsection", src + dst + "[source.postgresql]\ndsn='x'\n",
			`c.toml:7: unknown key "postgresql" in [source]; known are type, path, blob-dir`},
		{"missing section", src, `c.toml: the section [destination] is missing`},
		{"empty file", "", `c.toml: the section [source] is missing`},
		{"section as array", "[[source]]\ntype='filestorage'\n" + dst,
			`c.toml:1: source is not a section; write [source] on a line of its own`},
		{"section as value", "source=3\n" + dst, `c.toml:1: source is not a section; write [source] on a line of its own`},
		{"missing type", "[source]\npath='x'\n" + dst,
			`c.toml:1: the key "type" is missing in [source]; write type = "filestorage" or "relstorage"`},
		{"unknown type", "[source]\ntype='zeo'\n" + dst,
			`c.toml:2: unknown type "zeo" of [source]; this version takes "filestorage", "relstorage"`},
		{"type of another section", src + "[destination]\ntype='filestorage'\n",
			`c.toml:5: unknown type "filestorage" of [destination]; this version takes "pgjsonb"`},
		{"missing key", "[source]\ntype='filestorage'\n" + dst, `c.toml:1: the key "path" is missing in [source]`},
		{"empty value", "[source]\ntype='filestorage'\npath=''\n" + dst, `c.toml:3: the key "path" in [source] is empty`},
		{"number for a string", "[source]\ntype='filestorage'\npath=3\n" + dst, `c.toml:3: the key "path" in [source] wants a string in quotes`},
		{"string for a boolean", src + dst + "history-preserving='maybe'\n",
			`c.toml:7: the key "history-preserving" in [destination] wants true or false`},
		{"number for a boolean", src + dst + "history-preserving=1\n",
			`c.toml:7: the key "history-preserving" in [destination] wants true or false`},
		{"bad size", src + dst + "blob-threshold='5m'\n",
			`c.toml:7: the key "blob-threshold" in [destination] wants a size such as "100KB", "256MB" or "2GB"`},
		{"negative size", src + dst + "blob-threshold=-1\n",
			`c.toml:7: the key "blob-threshold" in [destination] wants a size such as "100KB", "256MB" or "2GB"`},
		{"access key alone", src + dst + "s3-access-key='a'\n",
			`c.toml:7: the key "s3-access-key" in [destination] is given without "s3-secret-key"; give both, or none of them: the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's role count then`},
		{"secret key alone", src + dst + "s3-bucket-name='b'\ns3-secret-key='a'\n",
			`c.toml:8: the key "s3-secret-key" in [destination] is given without "s3-access-key"; give both, or none of them: the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's role count then`},
		{"empty bucket", src + dst + "s3-bucket-name=''\n", `c.toml:7: the key "s3-bucket-name" in [destination] is empty`},
		{"unset variable", src + "[destination]\ntype='pgjsonb'\ndsn='${NO_SUCH}'\n",
			`c.toml:6: the key "dsn" in [destination]: the environment variable NO_SUCH is not set`},
		{"unset variable of S3", src + dst + "s3-secret-key='${NO_SUCH}'\n",
			`c.toml:7: the key "s3-secret-key" in [destination]: the environment variable NO_SUCH is not set`},
		{"unfinished variable", src + "[destination]\ntype='pgjsonb'\ndsn='${NO_SUCH'\n",
			`c.toml:6: the key "dsn" in [destination]: ${ is not followed by the name of an environment variable and }; a plain ${ is written $${`},
		{"duplicate key", src + "path='y'\n" + dst, `c.toml:4: not TOML: Key 'source.path' has already been defined.`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse("c.toml", []byte(c.text), env(), sectionNames)
			if err == nil {
				t.Fatal("no error")
			}
			if got := err.Error(); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

// A TOML syntax error on the line of a password must not quote it.
func TestNoMessageHoldsASecret(t *testing.T) {
	const src = "[source]\ntype='filestorage'\npath='x'\n[destination]\ntype='pgjsonb'\n"
	for _, text := range []string{
		"dsn = \"password=s3cr3t\n",
		"dsn = password=s3cr3t\n",
		"dsn = s3cr3t\n",
		"dsn = 'x' s3cr3t\n",
		"dsn = [\"s3cr3t\"]\n",
		"dsn = \"s3cr3t \\q\"\n",
		"dsn = 's3cr3t${}'\n",
		"dsn = 'x'\ns3-use-ssl = 's3cr3t'\n",
		"dsn = 'x'\nblob-threshold = 's3cr3t'\n",
	} {
		_, err := parse("c.toml", []byte(src+text), env(), sectionNames)
		if err == nil {
			t.Errorf("%q: no error", text)
		} else if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTheSourceMayBeLeftOutWhereOnlyTheDestinationCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("[destination]\ntype='pgjsonb'\ndsn='d'\ns3-bucket-name='b'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Origin{Path: path, DestinationOnly: true}.Read(env())
	if err != nil {
		t.Fatal(err)
	}
	if c.Destination.S3.Bucket != "b" || c.Source.given() {
		t.Errorf("%+v", c)
	}
	if _, err := Read(path, env()); err == nil {
		t.Error("Read takes it without [source]")
	}
}

func TestFilesThatAreNoConfiguration(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "none"), "the configuration cannot be read: no such file or directory"},
		{"directory", dir, "this is a directory, not a configuration file"},
		{"Data.fs", write("Data.fs", "FS30\x00\x01"), "this is a FileStorage, not a configuration file"},
		{"old Data.fs", write("Old.fs", "FS21"), "this is a FileStorage, not a configuration file"},
		{"huge", write("huge", strings.Repeat("#", maxBytes+1)), "this is larger than any configuration file (1 MB)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Read(c.path, env())
			var e *Error
			if !errors.As(err, &e) || e.Reason != c.want || e.Path != c.path {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64 // -1: an error
	}{
		{"0", 0}, {"12", 12}, {"100KB", 100 << 10}, {"256MB", 256 << 20}, {"2gb", 2 << 30},
		{" 3 Mb ", 3 << 20}, {"8589934591GB", 8589934591 << 30},
		{"8589934592GB", -1}, {"5m", -1}, {"1.5gb", -1}, {"-1", -1}, {"", -1}, {"KB", -1}, {"1TB", -1}, {"1 2KB", -1},
	} {
		got, err := ParseSize(c.text)
		if err != nil {
			got = -1
		}
		if got != c.want {
			t.Errorf("ParseSize(%q) = %d (%v), want %d", c.text, got, err, c.want)
		}
	}
}

// databases counts those that a RelStorage has.
func databases(s *RelStorage) (n int) {
	for _, is := range []bool{s.PostgreSQL != nil, s.MySQL != nil, s.SQLite3 != nil} {
		if is {
			n++
		}
	}
	return n
}

// FuzzParse looks for files that crash the reader, or whose mistakes are told
// without the file's name.
func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("source = {type='filestorage', path='p'}\ndestination = {type='pgjsonb', dsn='d'}"))
	f.Add([]byte("[source]\ntype='filestorage'\npath='${X}'\n[[destination]]\ntype=1979-05-27\n"))
	f.Add([]byte("[source]\ntype='relstorage'\nkeep_history=true\n[source.mysql]\nport='3306'\n[destination]\ntype='pgjsonb'\ndsn='d'\n"))
	f.Add([]byte("[source]\ntype='relstorage'\nsqlite3={data-dir='d', pragmas={a=1}}\n[source.oracle]\n[destination]\ntype='pgjsonb'\ndsn='d'\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parse("c.toml", text, env("PW", "x"), sectionNames)
		var e *Error
		switch {
		case err == nil && (!c.Source.given() || c.Destination.DSN == ""):
			t.Error("a configuration without source or dsn was accepted")
		case err == nil && c.Source.RelStorage != nil && databases(c.Source.RelStorage) != 1:
			t.Errorf("not one database: %+v", c.Source.RelStorage)
		case err != nil && (!errors.As(err, &e) || e.Path != "c.toml" || e.Reason == ""):
			t.Errorf("not an *Error with a reason: %#v", err)
		}
	})
}
