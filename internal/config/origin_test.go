package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files makes files in a new directory and goes there.
func files(t *testing.T, texts map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range texts {
		write(t, name, text)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const (
	zSource = "<filestorage source>\n  path Data.fs\n  blob-dir blobs\n  quota 1GB\n</filestorage>\n"
	zDest   = "%import zodb_pgjsonb\n<pgjsonb destination>\n  dsn dbname=zodb password=$(PW)\n  s3-region eu\n</pgjsonb>\n"
	tSource = "[source]\ntype = \"filestorage\"\npath = \"Data.fs\"\n"
	tDest   = "[destination]\ntype = \"pgjsonb\"\ndsn = \"dbname=zodb\"\n"
	oldSite = "instancehome /srv/old\n<zodb_db main>\n  mount-point /\n  <filestorage>\n    path Old.fs\n  </filestorage>\n</zodb_db>\n" +
		"<zodb_db other>\n  mount-point /other\n  <filestorage>\n    path Other.fs\n  </filestorage>\n</zodb_db>\n"
	newSite = "<zodb_db main>\n  mount-point /\n  %import zodb_pgjsonb\n  <pgjsonb>\n    dsn dbname=new\n  </pgjsonb>\n</zodb_db>\n"
)

func TestOrigins(t *testing.T) {
	files(t, map[string]string{
		"both.conf": zSource + zDest, "source.conf": zSource, "dest.conf": zDest,
		"both.toml": tSource + tDest, "source.toml": tSource, "dest.toml": tDest, "old.conf": oldSite, "new.conf": newSite, "none.toml": "",
		"relstorage-source.conf": "<relstorage source>\n<postgresql/>\n</relstorage>\n" + zDest,
	})
	for _, c := range []struct {
		name            string
		origin          Origin
		path, blobs, db string
	}{
		{"ZConfig", Origin{Path: "both.conf"}, "Data.fs", "blobs", "dbname=zodb password=x y"},
		{"TOML", Origin{Path: "both.toml"}, "Data.fs", "", "dbname=zodb"},
		{"both from sites", Origin{SourceSite: "old.conf", DestinationSite: "new.conf"}, "/srv/old/Old.fs", "", "dbname=new"},
		{"another database", Origin{SourceSite: "old.conf", SourceDatabase: "other", DestinationSite: "new.conf"}, "/srv/old/Other.fs", "", "dbname=new"},
		{"source from a site, ZConfig", Origin{Path: "dest.conf", SourceSite: "old.conf"}, "/srv/old/Old.fs", "", "dbname=zodb password=x y"},
		{"source from a site, TOML", Origin{Path: "dest.toml", SourceSite: "old.conf"}, "/srv/old/Old.fs", "", "dbname=zodb"},
		{"destination from a site, ZConfig", Origin{Path: "source.conf", DestinationSite: "new.conf"}, "Data.fs", "blobs", "dbname=new"},
		{"destination from a site, TOML", Origin{Path: "source.toml", DestinationSite: "new.conf"}, "Data.fs", "", "dbname=new"},
		{"destination only", Origin{Path: "dest.conf", DestinationOnly: true}, "", "", "dbname=zodb password=x y"},
		{"source only, ZConfig", Origin{Path: "source.conf", DestinationOptional: true}, "Data.fs", "blobs", ""},
		{"source only, TOML", Origin{Path: "source.toml", DestinationOptional: true}, "Data.fs", "", ""},
		{"source only, from a site", Origin{SourceSite: "old.conf", DestinationOptional: true}, "/srv/old/Old.fs", "", ""},
		{"source from a site, and an empty file", Origin{Path: "none.toml", SourceSite: "old.conf", DestinationOptional: true}, "/srv/old/Old.fs", "", ""},
		{"a destination that may be missing and is not", Origin{Path: "both.conf", DestinationOptional: true}, "Data.fs", "blobs", "dbname=zodb password=x y"},
		{"the same, from a site", Origin{Path: "source.toml", DestinationSite: "new.conf", DestinationOptional: true}, "Data.fs", "", "dbname=new"},
		{"destination only, of a source that cannot be read", Origin{Path: "relstorage-source.conf", DestinationOnly: true}, "", "", "dbname=zodb password=x y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.origin.Read(env("PW", "x y"))
			if err != nil {
				t.Fatal(err)
			}
			source := FileStorage{}
			if got.Source.given() {
				source = *got.Source.FileStorage
			}
			if source.Path != c.path || source.BlobDir != c.blobs || got.Destination.DSN != c.db || got.Destination.Given() != (c.db != "") || got.Destination.BlobThreshold != DefaultBlobThreshold {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestOriginsWithMistakes(t *testing.T) {
	files(t, map[string]string{
		"both.conf": zSource + zDest, "source.conf": zSource, "dest.toml": tDest, "both.toml": tSource + tDest, "old.conf": oldSite, "new.conf": newSite,
		"relstorage.conf": "<relstorage source>\n<postgresql/>\n</relstorage>\n", "FS.conf": "%include Data.fs\n", "wrong.toml": tSource + "[destination]\ntype = \"pgjsonb\"\n", "Data.fs": "FS21",
	})
	for _, c := range []struct {
		name   string
		origin Origin
		want   string
	}{
		{"no destination", Origin{Path: "source.conf"}, "source.conf: no storage is named destination; write <pgjsonb destination>"},
		{"no source", Origin{Path: "dest.toml"}, "dest.toml: the section [source] is missing"},
		{"no source, and none of the other is needed", Origin{Path: "dest.toml", DestinationOptional: true}, "dest.toml: the section [source] is missing"},
		{"a destination that may be missing and is wrong", Origin{Path: "wrong.toml", DestinationOptional: true}, "wrong.toml:4: the key \"dsn\" is missing in [destination]"},
		{"source twice", Origin{Path: "source.conf", SourceSite: "old.conf", DestinationSite: "new.conf"}, "source.conf: the source is given twice: here, and by --source-zope-conf; take one of them out"},
		{"destination twice", Origin{Path: "both.toml", DestinationSite: "new.conf"}, "both.toml: the destination is given twice: here, and by --dest-zope-conf"},
		{"relstorage", Origin{Path: "relstorage.conf"}, "relstorage.conf: no storage is named destination; write <pgjsonb destination>"},
		{"no such database", Origin{SourceSite: "old.conf", SourceDatabase: "othr", DestinationSite: "new.conf"}, "old.conf: there is no <zodb_db othr> in it; did you mean other?"},
		{"no site", Origin{SourceSite: "none.conf"}, "none.conf: the configuration cannot be read: no such file or directory"},
		{"site as the file", Origin{Path: "old.conf"}, "old.conf:1: the key instancehome stands outside of the storages; a file for a conversion has"},
		{"file as the site", Origin{SourceSite: "both.conf"}, "both.conf: there is no <zodb_db> in it; is this a zope.conf?"},
		{"mistake in the other end of a site", Origin{SourceSite: "old.conf", DestinationSite: "old.conf"}, "old.conf:4: <filestorage> cannot be the destination: this version writes pgjsonb only"},
		{"included FileStorage", Origin{Path: "FS.conf"}, "Data.fs: this is a FileStorage, not a configuration file"},
		{"variable", Origin{Path: "both.conf"}, "both.conf:8: the value of dsn: the environment variable PW is not set"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.origin.Read(env())
			var e *Error
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestTheLanguageIsToldByTheFirstLine(t *testing.T) {
	for _, c := range []struct {
		text string
		want bool
	}{
		{"", false}, {"# only this\n", false}, {"[source]\n", false}, {"<filestorage source>\n", true}, {"# [source]\n\n  <source>\n", true},
		{"%define A b\n[x]", true}, {"%import relstorage", true}, {"source = {type='filestorage'}\n<a>", false}, {"source.type = 'filestorage'", false},
		{"path Data.fs\n[a]", true}, {"instancehome /srv/a=b", true}, {"\"a b\" = 1", false}, {"a . b = 1", false}, {"x=1", false}, {"instancehome $INSTANCE\r\n", true},
		{"\r\r# x\r<a>\r", true}, {"clienthome", true},
	} {
		if got := isZConfig([]byte(c.text)); got != c.want {
			t.Errorf("%q: %v", c.text, got)
		}
	}
}

func TestUnusedKeysOfZConfigHaveTheirPlace(t *testing.T) {
	files(t, map[string]string{"both.conf": "%import unknown.package\n" + zSource + zDest})
	got, err := Read("both.conf", env("PW", "x"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Unused{
		{"both.conf", "<filestorage>", "quota", 5, "the source is never written to"},
		{"both.conf", "<pgjsonb>", "s3-region", 10, WithoutBucket},
	}
	if d := cmp.Diff(want, got.Unused); d != "" {
		t.Error(d)
	}
	if len(got.Warnings) != 1 || !strings.HasPrefix(got.Warnings[0], "both.conf:1: %import of unknown.package") {
		t.Error(got.Warnings)
	}
}

// FuzzOrigin looks for files whose language is guessed wrong with a crash, or
// without a reason.
func FuzzOrigin(f *testing.F) {
	f.Add([]byte(zSource + zDest))
	f.Add([]byte(tSource + tDest))
	f.Add([]byte(oldSite))
	paths, err := filepath.Glob("../../testdata/config/convert/*.conf")
	if err != nil || len(paths) < 50 {
		f.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Origin{Path: "x"}.parse(text, env("PW", "x"))
		var e *Error
		switch {
		case err == nil && (!c.Source.given() || c.Destination.DSN == ""):
			t.Error("a configuration without path or dsn was accepted")
		case err != nil && (!errors.As(err, &e) || e.Path == "" || e.Reason == ""):
			t.Errorf("not an *Error with a reason: %#v", err)
		}
	})
}
