package storage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

var (
	ignorePositions = cmpopts.IgnoreTypes(zconfig.Position{})
	ignoreUnused    = cmpopts.IgnoreFields(Source{}, "Unused")
)

func conversion(t *testing.T, file string) *Conversion {
	t.Helper()
	c, err := ReadConversion(filepath.Join(corpus, file), corpusOptions())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func zopeConf(t *testing.T, file string) *Zope {
	t.Helper()
	z, err := ReadZope(filepath.Join(corpus, file), corpusOptions())
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestSourcesOfConversions(t *testing.T) {
	t.Setenv("HOME", variables["HOME"])
	yes := true
	file := func(path, blobs string) Source { return Source{FileStorage: &FileStorage{Path: path, BlobDir: blobs}} }
	for _, c := range []struct {
		file string
		want Source
	}{
		{"convert/source-only.conf", file("Data.fs", "")},
		{"convert/empty-blob-dir.conf", file("/srv/plone/Data.fs", "")},
		{"convert/filestorage-blobs-to-relstorage-mysql.conf", file("/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobstorage")},
		{"convert/to-pgjsonb-blobstorage.conf", file("/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobstorage")},
		{"convert/to-pgjsonb-zlib.conf", file("/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobstorage")},
		{"convert/to-pgjsonb-s3.conf", file("/home/zope/plone/var/filestorage/Data.fs", "/home/zope/plone/var/blobstorage")},
		{"convert/capitals.conf", file("/srv/plone/Data.fs", "/srv/plone/blobs")},
		{"convert/windows.conf", file("/srv/plone/Data.fs", "/srv/plone/blobs")},
		{"convert/definitions.conf", file("/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobs$new")},
		{"convert/included.conf", file("/srv/included/Data.fs", "/srv/included/blobs")},
		{"nested/both.conf", file("/srv/plone/Data.fs", "/srv/plone/blobs")},
		{"nested/wrapped.conf", file("/srv/plone/Data.fs", "/srv/plone/blobs")},
		{"convert/relstorage-to-filestorage.conf", Source{RelStorage: &RelStorage{
			PostgreSQL: &PostgreSQL{DSN: "host=/run/postgresql dbname=plone"}, KeepHistory: &yes,
			BlobDir: "/srv/plone/var/blobstorage", SharedBlobDir: &yes, ReplicaConf: "/etc/plone/replicas", ROReplicaConf: "/etc/plone/ro-replicas",
		}}},
		{"convert/relstorage-sqlite.conf", Source{RelStorage: &RelStorage{SQLite3: &SQLite3{DataDir: "/srv/plone/var/sqlite"}}}},
		{"convert/numbers.conf", Source{RelStorage: &RelStorage{MySQL: &MySQL{Port: 10}}}},
		// Those that the real ZConfig does not take.
		{"convert/generated-import-pgjsonb.conf", file("/srv/old/var/filestorage/Data.fs", "/srv/old/var/blobstorage")},
		{"convert/byte-order-mark.conf", file("C.fs", "")},
		{"convert/old-macintosh.conf", file("Data.fs", "")},
		{"convert/without-import.conf", file("Data.fs", "")},
		{"convert/unknown-import.conf", file("Data.fs", "")},
		{"convert/generated-stale-replicas.conf", Source{RelStorage: &RelStorage{
			SQLite3: &SQLite3{DataDir: "/srv/plone/var/sqlite"},
		}}},
	} {
		t.Run(c.file, func(t *testing.T) {
			got, err := conversion(t, c.file).Source()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&c.want, got, ignorePositions, ignoreUnused); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDestinationsOfConversions(t *testing.T) {
	for _, c := range []struct {
		file string
		want PGJSONB
	}{
		{"convert/to-pgjsonb-minimal.conf", PGJSONB{DSN: "dbname=zodb user=zodb host=localhost port=5432", BlobThreshold: 100 << 10}},
		{"convert/to-pgjsonb-blobstorage.conf", PGJSONB{DSN: "postgresql://zodb@db.example.org:5433/zodb", HistoryPreserving: true, BlobThreshold: 100 << 10}},
		{"convert/to-pgjsonb-s3.conf", PGJSONB{DSN: "dbname=zodb user=zodb password=post$gres", BlobThreshold: 1 << 20, S3: S3{
			Bucket: "plone-blobs", Prefix: "plone-blobs/site-1/", EndpointURL: "https://s3.example.org", Region: "eu-central-1",
			AccessKey: "access", SecretKey: "secret/=+",
		}}},
		{"convert/to-pgjsonb-all-keys.conf", PGJSONB{DSN: "dbname=zodb", HistoryPreserving: true, S3: S3{
			Bucket: "b", EndpointURL: "http://minio:9000", Region: "us-east-1", AccessKey: "key", SecretKey: "secret", PlainHTTP: true,
		}}},
		{"convert/generated-import-pgjsonb.conf", PGJSONB{DSN: "dbname=plone user=plone host=postgres", BlobThreshold: 100 << 10, S3: S3{Bucket: "plone"}}},
		{"nested/both.conf", PGJSONB{DSN: "dbname=zodb", BlobThreshold: 100 << 10}},
	} {
		t.Run(c.file, func(t *testing.T) {
			got, err := conversion(t, c.file).Destination()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got.PGJSONB); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDatabasesOfSites(t *testing.T) {
	for _, c := range []struct{ file, name, path, blobs string }{
		{"zope/buildout-filestorage.conf", "", "/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobstorage"},
		{"zope/buildout-zlib.conf", "main", "/srv/plone/var/filestorage/Data.fs", ""},
		{"zope/generated-direct.conf", "", "/srv/plone/var/filestorage/Data.fs", "/srv/plone/var/blobs"},
		{"zope/several-databases.conf", "", "/srv/plone/var/instance/filestorage/Data.fs", "/srv/plone/var/instance/blobstorage"},
		{"zope/several-databases.conf", "catalog", "/srv/plone/var/instance/filestorage/Catalog.fs", ""},
		{"zope/several-databases.conf", "ARCHIVE", "/srv/plone/var/instance/filestorage/Archive.fs", ""},
		{"zope/no-main.conf", "extranet", "/srv/plone/var/filestorage/Extranet.fs", ""},
		{"zope/only-one.conf", "", "/srv/plone/parts/instance/var/filestorage/Data.fs", "/srv/plone/parts/instance/var/blobstorage"},
		{"zope/commented-out.conf", "", "/srv/plone/var/filestorage/New.fs", ""},
		{"zope/included-databases.conf", "", "/srv/plone/var/instance/filestorage/Data.fs", "/srv/plone/var/instance/blobstorage"},
		{"zope/included-databases.conf", "mount", "/srv/plone/var/instance/filestorage/Mount.fs", ""},
		{"zope/plain-skeleton.conf", "", "/home/zope/instance/var/Data.fs", ""},
		{"zope/old-pool-keys.conf", "", "/srv/plone/Data.fs", ""},
		{"legacy/plone4.conf", "", "/srv/plone4/var/filestorage/Data.fs", "/srv/plone4/var/blobstorage"},
		{"legacy/plone3-mounts.conf", "", "/opt/plone3/var/filestorage/Data.fs", ""},
		{"legacy/unset-environment.conf", "", "/srv/site/Data.fs", ""},
	} {
		t.Run(c.file+" "+c.name, func(t *testing.T) {
			got, err := zopeConf(t, c.file).Source(c.name)
			if err != nil {
				t.Fatal(err)
			}
			if got.FileStorage == nil || got.FileStorage.Path != c.path || got.FileStorage.BlobDir != c.blobs {
				t.Errorf("%+v", got.FileStorage)
			}
		})
	}
	t.Run("destination", func(t *testing.T) {
		got, err := zopeConf(t, "zope/generated-pgjsonb.conf").Destination("")
		if err != nil {
			t.Fatal(err)
		}
		want := PGJSONB{DSN: "dbname=plone user=plone password=post$gres host=postgres port=5432", BlobThreshold: 100 << 10, S3: S3{
			Bucket: "plone-blobs", EndpointURL: "http://minio:9000", AccessKey: "access", SecretKey: "secret/=+", PlainHTTP: true,
		}}
		if d := cmp.Diff(want, got.PGJSONB); d != "" {
			t.Error(d)
		}
	})
}

func TestWhatCannotBeConvertedIsRefused(t *testing.T) {
	pg := func(lines string) string { return "<pgjsonb destination>\n" + lines + "\n</pgjsonb>" }
	for _, c := range []struct{ name, text, want string }{
		{"create", "<filestorage source>\npath a\ncreate on\n</filestorage>", "x.conf:3: create is on, by which a site would empty the source"},
		{"empty path", "<filestorage source>\npath\n</filestorage>", "x.conf:2: the path of <filestorage> is empty"},
		{"two blob-dirs", "<blobstorage source>\nblob-dir a\n<filestorage>\npath b\nblob-dir c\n</filestorage>\n</blobstorage>", "x.conf:5: this blob-dir and that of the <blobstorage> around it are different; the other is that of x.conf:2; leave one of them out"},
		{"two blobstorages", "<blobstorage source>\nblob-dir a\n<blobstorage>\nblob-dir c\n<filestorage>\npath b\n</filestorage>\n</blobstorage>\n</blobstorage>", "x.conf:4: two <blobstorage> around each other"},
		{"blobstorage without a storage", "<blobstorage source>\nblob-dir a\n</blobstorage>", "x.conf:1: there is no storage in <blobstorage>"},
		{"empty blob-dir of a wrapper", "<blobstorage source>\nblob-dir\n<filestorage>\npath b\n</filestorage>\n</blobstorage>", "x.conf:2: the blob-dir of <blobstorage> is empty"},
		{"zeoclient", "<zeoclient source>\nserver 8100\n</zeoclient>", "x.conf:1: <zeoclient> is read through a ZEO server, which a conversion cannot do; stop the ZEO server and name its Data.fs"},
		{"demostorage", "<demostorage source/>", "x.conf:1: <demostorage> lays changes over another storage"},
		{"before", "<before source>\n<filestorage>\npath b\n</filestorage>\n</before>", "x.conf:1: <before> hides what is newer"},
		{"s3blobstorage", "<s3blobstorage source>\nbucket-name b\ncache-dir c\n<filestorage>\npath b\n</filestorage>\n</s3blobstorage>", "x.conf:1: <s3blobstorage> keeps blobs in S3"},
		{"mappingstorage", "<mappingstorage source/>", "x.conf:1: <mappingstorage> keeps nothing"},
		{"pgjsonb source", "<pgjsonb source>\ndsn dbname=x\n</pgjsonb>", "x.conf:1: <pgjsonb> cannot be the source"},
		{"berkeley", "<fullstorage source>\nenvdir a\n</fullstorage>", "x.conf:1: <fullstorage> cannot be the source: this version reads FileStorage and RelStorage only"},
		{"relstorage without a database", "<relstorage source>\n</relstorage>", "x.conf:1: there is no database in <relstorage>"},
		{"oracle", "<relstorage source>\n<oracle>\nuser a\npassword b\ndsn c\n</oracle>\n</relstorage>", "x.conf:2: a RelStorage in <oracle> cannot be read"},
		{"blobstorage around relstorage", "<blobstorage source>\nblob-dir a\n<relstorage>\n<postgresql/>\n</relstorage>\n</blobstorage>", "x.conf:2: a <blobstorage> cannot stand around a <relstorage>"},
		{"named pipe", "<relstorage source>\n<mysql>\nnamed_pipe on\n</mysql>\n</relstorage>", "x.conf:3: named_pipe is on, by which this program cannot connect; name host and port"},
		{"port", "<relstorage source>\n<mysql>\nport 65536\n</mysql>\n</relstorage>", "x.conf:3: the port of <mysql> is none"},
		{"shared blobs nowhere", "<relstorage source>\nshared-blob-dir yes\n<postgresql/>\n</relstorage>", "x.conf:2: shared-blob-dir is on, but no blob-dir is given"},
		{"no source", pg("dsn dbname=x"), "x.conf: no storage is named source; write <filestorage source>"},
		{"no destination", "<filestorage source>\npath a\n</filestorage>", "x.conf: no storage is named destination; write <pgjsonb destination>"},
		{"filestorage destination", "<filestorage destination>\npath a\n</filestorage>", "x.conf:1: <filestorage> cannot be the destination: this version writes pgjsonb only"},
		{"relstorage destination", "<relstorage destination>\n<postgresql/>\n</relstorage>", "x.conf:1: <relstorage> cannot be the destination"},
		{"compressed destination", "<zlibstorage destination>\n<pgjsonb>\ndsn dbname=x\n</pgjsonb>\n</zlibstorage>", "x.conf:1: <zlibstorage> would compress the records"},
		{"blobstorage around the destination", "<blobstorage destination>\nblob-dir a\n<pgjsonb>\ndsn dbname=x\n</pgjsonb>\n</blobstorage>", "x.conf:1: <blobstorage> would keep blobs outside of zodb-pgjsonb"},
		{"empty dsn", pg("dsn"), "x.conf:2: the dsn of <pgjsonb> is empty"},
		{"dsn that is none", pg("dsn zodb"), "x.conf:2: the dsn of <pgjsonb> is none"},
		{"threshold below zero", pg("dsn dbname=x\nblob-threshold -1"), "x.conf:3: blob-threshold is below 0"},
		{"access key alone", pg("dsn dbname=x\ns3-access-key a"), "x.conf:3: s3-access-key is given without s3-secret-key"},
		{"secret key alone", pg("dsn dbname=x\ns3-secret-key a"), "x.conf:3: s3-secret-key is given without s3-access-key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conv, err := ParseConversion("x.conf", []byte(c.text), corpusOptions())
			if err != nil {
				t.Fatal(err)
			}
			if conv.HasDestination() || c.name == "no destination" {
				_, err = conv.Destination()
			}
			if conv.HasSource() && c.name != "no destination" || c.name == "no source" {
				_, err = conv.Source()
			}
			var e *zconfig.Error
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestMistakesInTheCorpusAreTold(t *testing.T) {
	dir := corpus + "/convert/"
	for file, want := range map[string]string{
		"unknown-key":         ":3: unknown key blob_dir in <filestorage>; did you mean blob-dir?",
		"key-twice":           ":3: the key path is given a second time; the first is that of ",
		"missing-key":         ":1: the key path is missing in <filestorage source>",
		"missing-dsn":         ":2: the key dsn is missing in <pgjsonb destination>",
		"unknown-section":     ":1: unknown section <filestore source>; did you mean filestorage?",
		"unnamed":             ":1: <filestorage> is neither source nor destination; write <filestorage source> or <filestorage destination>",
		"another-name":        ":1: <filestorage sorce> is neither source nor destination; did you mean source?",
		"named-inside":        ":2: <zlibstorage> is neither source nor destination; write <zlibstorage source>",
		"two-sources":         ":4: a second source; the first is that of ",
		"database":            ":1: the section <zodb source> has no place here; here may stand <filestorage>, <pgjsonb>",
		"adapter":             ":1: the section <postgresql source> has no place here",
		"key-outside":         ":1: the key path stands outside of the storages",
		"not-closed":          ":1: the section <filestorage source> is not closed; write </filestorage> where it ends",
		"not-closed-at-end":   ":1: the section <filestorage source> is not closed",
		"two-storages":        ":6: a second section in <blobstorage source>, where one may stand",
		"same-name-inside":    ":5: a second section with the name a; the first is that of ",
		"storage-inside":      ":3: the section <mappingstorage> has no place in <filestorage source>; is the end of <filestorage source> missing above?",
		"no-storage-inside":   ":2: there is no storage in <zlibstorage source>",
		"boolean-number":      ":3: the key read-only wants yes, no, true, false, on or off",
		"size-one-letter":     ":4: the key blob-threshold wants a whole number of bytes, alone or with KB, MB or GB, such as 256MB",
		"float":               ":4: the key pool-timeout wants a number",
		"comment-behind":      ":3: the key create wants yes, no",
		"no-directory":        ":2: the key path wants a path in a directory that exists",
		"equals":              ":3: dsn... is no key; a key and its value are parted by a blank, not by =",
		"undefined":           ":2: the value of path: what stands behind a $ is not defined; a plain $ is written $$, and %define defines a name",
		"no-variable":         ":2: the value of path: the environment variable NOT_SET_ANYWHERE is not set",
		"dollar":              ":3: the value of dsn: a $ that no name follows; a plain $ is written $$",
		"directive":           ":1: unknown directive %set",
		"include-loop":        "parts/loop.conf:1: ",
		"include-missing":     ":1: the file ",
		"toml":                ":1: the key ... stands outside of the storages",
		"address":             ":2: the key server wants an address: HOST:PORT, a port, or the path of a socket",
		"closed-by-another":   ":3: </mappingstorage> ends another section than the one that is open, <filestorage source> of line 1",
		"default-of-variable": ":2: the value of path: $( and a name are not followed by )",
	} {
		t.Run(file, func(t *testing.T) {
			path := dir + "error-" + file + ".conf"
			_, err := ReadConversion(path, corpusOptions())
			if err == nil || !strings.HasPrefix(err.Error(), path+want) && !strings.HasPrefix(err.Error(), dir+want) {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

func TestDatabasesThatAreNotThere(t *testing.T) {
	at := func(file string) string { return filepath.Join(corpus, file) }
	for _, c := range []struct{ file, name, want string }{
		{"zope/no-main.conf", "", ": it has several databases, and none of them is named main: intranet, extranet; name one with --source-db"},
		{"zope/no-main.conf", "intranett", ": there is no <zodb_db intranett> in it; did you mean intranet?"},
		{"zope/several-databases.conf", "x", ": there is no <zodb_db x> in it; known are main, catalog, archive"},
		{"zope/only-one.conf", "main", ": there is no <zodb_db main> in it"},
		{"convert/source-only.conf", "", ": there is no <zodb_db> in it; is this a zope.conf?"},
		{"zope/error-two-storages.conf", "", ":15: a second section in <zodb_db main>"},
		{"zope/error-database-key.conf", "", ":12: unknown key cachesize in <zodb_db>; did you mean cache-size?"},
		{"zope/error-mount-point.conf", "", ":11: the key mount-point wants a path that starts with /"},
		{"zope/error-no-mount-point.conf", "", ":10: the key mount-point is missing in <zodb_db main>"},
		{"zope/error-interval.conf", "", ":12: the key pool-timeout wants a whole number of seconds"},
		{"zope/buildout-zeo.conf", "", ":13: <zeoclient> is read through a ZEO server"},
		{"legacy/plone3-mounts.conf", "members", ":13: <zeoclient> is read through a ZEO server"},
		{"legacy/beforestorage.conf", "", ":7: <before> hides"},
	} {
		t.Run(c.file+" "+c.name, func(t *testing.T) {
			_, err := zopeConf(t, c.file).Source(c.name)
			if err == nil || !strings.HasPrefix(err.Error(), at(c.file)+c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// What stands around the database that is asked for may need what is not there.
func TestSitesMayNeedVariablesElsewhere(t *testing.T) {
	text := "instancehome $(SITE)\nlog $(LOG)/x\n<zodb_db main>\nmount-point /\n<filestorage>\npath a.fs\n</filestorage>\n</zodb_db>\n" +
		"<zodb_db other>\nmount-point /o\n<filestorage>\npath $(OTHER)/a.fs\n</filestorage>\n</zodb_db>\n"
	z, err := ParseZope("zope.conf", []byte(text), Options{IsDir: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := z.Source(""); err != nil || got.FileStorage.Path != "a.fs" {
		t.Error(got, err)
	}
	if _, err := z.Source("other"); err == nil || err.Error() != "zope.conf:12: the value of path: the environment variable OTHER is not set" {
		t.Error(err)
	}
}

func TestRelativePathsOfSites(t *testing.T) {
	home, here := t.TempDir(), t.TempDir()
	t.Chdir(here)
	for _, path := range []string{home + "/both.fs", here + "/both.fs", home + "/home.fs", here + "/here.fs"} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(home, here+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(home+"/home.fs", here+"/same.fs"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(home+"/home.fs", home+"/same.fs"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{"home.fs", home + "/home.fs"}, {"here.fs", "here.fs"}, {"none.fs", home + "/none.fs"}, {"same.fs", home + "/same.fs"},
		{here + "/here.fs", here + "/here.fs"}, {"both.fs", ""},
	} {
		text := "instancehome " + home + "\n<zodb_db main>\nmount-point /\n<filestorage>\npath " + c.path + "\n</filestorage>\n</zodb_db>\n"
		z, err := ParseZope("zope.conf", []byte(text), Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := z.Source("")
		switch {
		case c.want == "":
			if err == nil || !strings.Contains(err.Error(), "zope.conf:5: the relative path of path exists in the instancehome and in the working directory") {
				t.Errorf("%s: %v", c.path, err)
			}
		case err != nil || got.FileStorage.Path != c.want:
			t.Errorf("%s: %+v, %v", c.path, got, err)
		}
	}
}

func TestKeysWithoutEffectAreListed(t *testing.T) {
	text := `<filestorage source>
path Data.fs
read-only on
quota 1GB
pack-gc off
create off
</filestorage>
<pgjsonb destination>
pool-size 3
dsn dbname=x
s3-region eu
blob-threshold 1MB
s3-read-timeout 5
cache-warm-pct 1
name x
</pgjsonb>
`
	c, err := ParseConversion("x.conf", []byte(text), corpusOptions())
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Source()
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Destination()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range append(s.Unused, d.Unused...) {
		got = append(got, u.Pos.String()+" "+u.Section+" "+u.Key+": "+u.Why)
	}
	want := []string{
		"x.conf:3 filestorage read-only: " + unwrites, "x.conf:4 filestorage quota: " + unwrites, "x.conf:5 filestorage pack-gc: " + forPack,
		"x.conf:9 pgjsonb pool-size: " + forConns, "x.conf:11 pgjsonb s3-region: " + WithoutBucket, "x.conf:12 pgjsonb blob-threshold: " + WithoutBucket,
		"x.conf:13 pgjsonb s3-read-timeout: " + newInRun, "x.conf:14 pgjsonb cache-warm-pct: " + forCache, "x.conf:15 pgjsonb name: " + label,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUnusedKeysOfDatabasesAreListed(t *testing.T) {
	s, err := zopeConf(t, "zope/generated-direct.conf").Source("")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range s.Unused {
		got = append(got, u.Section+" "+u.Key)
	}
	want := []string{"zodb_db mount-point", "zodb_db cache-size", "zodb_db large-record-size", "zodb_db pool-size", "zodb_db pool-timeout", "filestorage pack-keep-old"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A key that acts has to be asked for, or it is an error: none is passed over.
func TestEveryKeyIsEitherUsedOrListed(t *testing.T) {
	for _, name := range []string{"filestorage", "pgjsonb", "relstorage", "postgresql", "mysql", "sqlite3", "blobstorage", "zlibstorage", "zodb_db"} {
		t.Run(name, func(t *testing.T) {
			text, end := everyKey(typeOf(name))
			z, err := ParseZope("zope.conf", []byte(text), corpusOptions())
			if err != nil {
				t.Fatal(err)
			}
			if end == sourceName {
				_, err = z.Source("")
			} else {
				_, err = z.Destination("")
			}
			if err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
		})
	}
}

// everyKey writes a site whose storage has every key of a type.
func everyKey(t *sectionType) (text, end string) {
	sample := map[datatype]string{boolean: "off", integer: "1", float: "1.5", byteSize: "1MB", interval: "1h", dotted: "a.b", mountPoint: "/", address: "1"}
	var keys strings.Builder
	for _, k := range t.keys {
		v, ok := sample[k.is]
		if !ok {
			v = "dbname=x"
		}
		keys.WriteString(k.name + " " + v + "\n")
	}
	in := func(name, inner string) string { return "<" + name + ">\n" + inner + "</" + name + ">\n" }
	body := in(t.name, keys.String())
	end = sourceName
	switch t.class {
	case anAdapter:
		body = in("relstorage", body)
	case aDatabase:
		return in(t.name, keys.String()+"<filestorage>\npath a\n</filestorage>\n"), end
	}
	switch t.name {
	case "pgjsonb":
		end = destName
	case "relstorage":
		body = in(t.name, keys.String()+"<postgresql/>\n")
	case "blobstorage", "zlibstorage":
		body = in(t.name, keys.String()+"<filestorage>\npath a\n</filestorage>\n")
	}
	return "<zodb_db main>\nmount-point /\n" + body + "</zodb_db>\n", end
}

func TestNoMessageShowsAValue(t *testing.T) {
	const secret = "s3cr3t"
	for _, text := range []string{
		"<pgjsonb destination>\ndsn s3cr3t\n</pgjsonb>", "<pgjsonb destination>\ndsn=s3cr3t\n</pgjsonb>", "<pgjsonb destination>\npassword s3cr3t\n</pgjsonb>",
		"<pgjsonb destination>\ndsn dbname=x\npool-size s3cr3t\n</pgjsonb>", "<pgjsonb destination>\ndsn dbname=x\ns3-secret-key s3cr3t\n</pgjsonb>",
		"dsn='s3cr3t'", "<pgjsonb destination>\ndsn dbname=x\ns3-use-ssl s3cr3t\n</pgjsonb>", "dsn = \"password=s3cr3t\"", "<x:s3cr3t>\n</x:s3cr3t>",
	} {
		c, err := ParseConversion("x.conf", []byte(text), corpusOptions())
		if err == nil {
			_, err = c.Destination()
		}
		if err == nil {
			t.Errorf("no error in %q", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzRead looks for files that crash the package, or whose mistakes are told
// without a place.
func FuzzRead(f *testing.F) {
	paths, err := filepath.Glob(corpus + "/*/*.conf")
	if err != nil {
		f.Fatal(err)
	}
	if !slices.ContainsFunc(paths, func(p string) bool { return strings.HasSuffix(p, "plone4.conf") }) {
		f.Fatal("the corpus is missing")
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	check := func(t *testing.T, err error) {
		var e *zconfig.Error
		if err != nil && (!errors.As(err, &e) || e.Pos.File == "" || e.Reason == "") {
			t.Errorf("not an error with a place: %#v", err)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConversion("x.conf", text, corpusOptions())
		if check(t, err); err == nil {
			s, err := c.Source()
			if check(t, err); err == nil && (s.FileStorage == nil) == (s.RelStorage == nil) {
				t.Errorf("%+v", s)
			}
			d, err := c.Destination()
			if check(t, err); err == nil && d.PGJSONB.DSN == "" {
				t.Error("a destination without dsn")
			}
		}
		z, err := ParseZope("x.conf", text, corpusOptions())
		if check(t, err); err == nil {
			for _, name := range append(z.Names(), "") {
				_, err := z.Source(name)
				check(t, err)
				_, err = z.Destination(name)
				check(t, err)
			}
		}
	})
}
