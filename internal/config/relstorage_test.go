package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// relStorageOf reads a [source] of type relstorage.
func relStorageOf(lines string) (*Config, error) {
	text := "[source]\ntype = 'relstorage'\n" + lines + "\n[destination]\ntype = 'pgjsonb'\ndsn = 'd'\n"
	return parse("c.toml", []byte(text), env("PW", "se$cret ${PW}", "PORT", "3307"), sectionNames)
}

func TestRelStorages(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name, lines string
		want        storage.RelStorage
	}{
		{"nothing but the database", "[source.postgresql]", storage.RelStorage{PostgreSQL: &storage.PostgreSQL{}}},
		{"password from the environment", "[source.postgresql]\ndsn = 'dbname=a password=${PW}'\ndriver = 'psycopg2'",
			storage.RelStorage{PostgreSQL: &storage.PostgreSQL{DSN: "dbname=a password=se$cret ${PW}"}}},
		{"every key", "keep-history = false\nblob-dir = 'b'\nshared-blob-dir = 'yes'\nreplica-conf = 'r'\nro-replica-conf = 'o'\npostgresql = {dsn = ''}",
			storage.RelStorage{PostgreSQL: &storage.PostgreSQL{}, KeepHistory: &no, BlobDir: "b", SharedBlobDir: &yes, ReplicaConf: "r", ROReplicaConf: "o"}},
		{"underscores for dashes", "keep_history = true\nblob_dir = 'b'\nshared_blob_dir = false\n[source.sqlite3]\ndata_dir = 's'",
			storage.RelStorage{SQLite3: &storage.SQLite3{DataDir: "s"}, KeepHistory: &yes, BlobDir: "b", SharedBlobDir: &no}},
		{"mysql", "[source.mysql]\ndb = 'd'\nuser = 'u'\npasswd = '${PW}'\nhost = 'h'\nport = '${PORT}'\nunix-socket = 's'\nconnect-timeout = 7\n" +
			"compress = 'on'\nread-default-file = 'f'\nread-default-group = 'g'\nnamed_pipe = false",
			storage.RelStorage{MySQL: &storage.MySQL{Database: "d", User: "u", Password: "se$cret ${PW}", Host: "h", Port: 3307, UnixSocket: "s",
				ConnectTimeout: 7, Compress: true, DefaultFile: "f", DefaultGroup: "g"}}},
		{"sqlite has no replicas", "replica-conf = 'r'\n[source.sqlite3]\ndata-dir = 's'", storage.RelStorage{SQLite3: &storage.SQLite3{DataDir: "s"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := relStorageOf(c.lines)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(Source{RelStorage: &RelStorage{RelStorage: c.want}}, got.Source); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMistakesInRelStoragesAreNamedWithTheirLine(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"no database", "keep-history = true", "c.toml:1: there is no database in [source]; write one of the sections [source.postgresql], [source.mysql], [source.sqlite3]"},
		{"two databases", "[source.postgresql]\n[source.mysql]", "c.toml:4: there are two databases in [source]: postgresql and mysql; name one of them"},
		{"oracle", "[source.oracle]\nuser = 'a'", "c.toml:3: [source.oracle]: a RelStorage in Oracle cannot be read: this version reads it in PostgreSQL, MySQL, MariaDB and SQLite"},
		{"database as a value", "postgresql = 'dbname=a'", "c.toml:3: source.postgresql is not a section; write [source.postgresql] on a line of its own"},
		{"unknown database", "[source.postgres]\ndsn = 'a'", `c.toml:3: unknown key "postgres" in [source]; did you mean "postgresql"?`},
		{"unknown key", "keep-histroy = true\n[source.postgresql]", `c.toml:3: unknown key "keep-histroy" in [source]; did you mean "keep-history"?`},
		{"key of the database outside of it", "dsn = 'dbname=a'\n[source.postgresql]", `c.toml:3: unknown key "dsn" in [source]; known are type, keep-history,`},
		{"unknown key of a database", "[source.mysql]\npasword = 'a'", `c.toml:4: unknown key "pasword" in [source.mysql]; did you mean "passwd"?`},
		{"path of SQLite", "[source.sqlite3]\npath = 'a'", `c.toml:4: unknown key "path" in [source.sqlite3]; known are data-dir, driver, gevent_yield_interval, pragmas`},
		{"no directory of SQLite", "[source.sqlite3]", `c.toml:3: the key "data-dir" is missing in [source.sqlite3]`},
		{"key twice", "blob-dir = 'a'\nblob_dir = 'b'\n[source.postgresql]", `c.toml:4: the key "blob_dir" in [source] is given a second time; - and _ in it are the same`},
		{"shared blobs nowhere", "shared-blob-dir = true\n[source.postgresql]", "c.toml:1: shared-blob-dir in [source] is true, but no blob-dir is given"},
		{"named pipe", "[source.mysql]\nnamed_pipe = true", "c.toml:4: named_pipe in [source.mysql] is true, by which this program cannot connect; name host and port, or unix_socket"},
		{"port", "[source.mysql]\nport = 65536", `c.toml:4: the key "port" in [source.mysql] wants a whole number from 0 to 65535`},
		{"port in words", "[source.mysql]\nport = 'mysql'", `c.toml:4: the key "port" in [source.mysql] wants a whole number from 0 to 65535`},
		{"boolean", "keep-history = 1\n[source.postgresql]", `c.toml:3: the key "keep-history" in [source] wants true or false`},
		{"table without effect", "[source.cache-prefix]\n[source.postgresql]", `c.toml:3: the key "cache-prefix" in [source] wants a string in quotes`},
		{"pragma in a pragma", "[source.sqlite3]\ndata-dir = 'a'\n[source.sqlite3.pragmas.a]", `c.toml:5: the key "a" in [source.sqlite3.pragmas] wants a value`},
		{"unset variable", "[source.mysql]\npasswd = '${NOT_SET}'", `c.toml:4: the key "passwd" in [source.mysql]: the environment variable NOT_SET is not set`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := relStorageOf(c.lines)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
}

// What has no effect in ZConfig has none here, for the same reason, and is listed.
func TestKeysOfRelStorageWithoutEffectAreListed(t *testing.T) {
	samples := map[string]string{"boolean": "true", "size": "'1MB'", "number": "1", "time": "'1h'"}
	for _, section := range []string{"relstorage", "postgresql", "mysql", "sqlite3", "pragmas"} {
		n := 0
		for _, k := range storage.Keys() {
			if k.Section != section || k.Unused == "" {
				continue
			}
			n++
			value := samples[k.Value]
			if value == "" {
				value = "'a'"
			}
			line := k.Key + " = " + value + "\n"
			text, in := line+"[source.postgresql]", "source"
			switch section {
			case "pragmas":
				text, in = "[source.sqlite3]\ndata-dir = 'a'\n[source.sqlite3.pragmas]\n"+line+"synchronous = 'off'\n", "source.sqlite3.pragmas"
			case "sqlite3":
				text, in = "[source.sqlite3]\ndata-dir = 'a'\n"+line, "source.sqlite3"
			case "postgresql", "mysql":
				text, in = "[source."+section+"]\n"+line, "source."+section
			}
			c, err := relStorageOf(text)
			if err != nil {
				t.Errorf("%s: %v", k.Key, err)
				continue
			}
			if len(c.Unused) == 0 || c.Unused[0].Section != in || c.Unused[0].Key != k.Key || c.Unused[0].Why != k.Unused || c.Unused[0].Line < 3 {
				t.Errorf("%s: %+v", k.Key, c.Unused)
			}
		}
		if n == 0 {
			t.Errorf("no key of %s", section)
		}
	}
}

func TestReplicasAreRead(t *testing.T) {
	const zDatabase = "<postgresql/>\n</relstorage>\n"
	files(t, map[string]string{
		"replicas": "# the standbys\r\n\r\n  one.example.org:5433  \r\n10.0.0.2\n[::1]:5432\n/run/postgresql", "ro": "two\n", "none": "# none\n",
		"bad": "one\ntwo three\n", "password": "one:s3cr3t\n", "huge": strings.Repeat("#", maxBytes+1),
	})
	for _, c := range []struct {
		name, keys string
		want       []string
		wrong      string
	}{
		{"one list", "replica-conf replicas\n", []string{"one.example.org:5433", "10.0.0.2", "[::1]:5432", "/run/postgresql"}, ""},
		{"that for reading", "replica-conf missing\nro-replica-conf ro\n", []string{"two"}, ""},
		{"no list", "", nil, ""},
		{"no file", "replica-conf missing\n", nil, "missing: the list of replicas cannot be read: no such file or directory; it is named as replica-conf"},
		{"directory", "ro-replica-conf .\n", nil, ".: the list of replicas cannot be read: is a directory; it is named as ro-replica-conf"},
		{"empty", "replica-conf none\n", nil, "none: there is no replica in the list; it is named as replica-conf"},
		{"no address", "replica-conf bad\n", nil, "bad:2: this is no address of a replica; a line is HOST or HOST:PORT, or a comment that starts with #"},
		{"no port", "replica-conf password\n", nil, "password:1: this is no address of a replica"},
		{"huge", "replica-conf huge\n", nil, "huge: this is larger than any list of replicas (1 MB)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.conf")
			write(t, path, "<relstorage source>\n"+c.keys+zDatabase+zDest)
			got, err := Read(path, env("PW", "x"))
			var e *Error
			switch {
			case c.wrong != "" && (!errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.wrong) || strings.Contains(err.Error(), "s3cr3t")):
				t.Errorf("got %v, want %s", err, c.wrong)
			case c.wrong == "" && err != nil:
				t.Error(err)
			case c.wrong == "":
				if d := cmp.Diff(c.want, got.Source.RelStorage.Replicas); d != "" {
					t.Error(d)
				}
			}
			// The source's machine may be gone.
			if _, err := (Origin{Path: path, DestinationOnly: true}).Read(env("PW", "x")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for line, want := range map[string]bool{
		"a": true, "a.b:1": true, "a:65535": true, "[::1]": true, "[fe80::1]:1": true, "/run/pg": true, "10.0.0.1": true,
		"": false, ":1": false, "a:": false, "a:0": false, "a:65536": false, "a:b": false, "::1": false, "a:1:2": false, "[]": false, "[a": false, "a]": false,
		"a b": false, "host=a": false, "u@h": false, "a'": false,
	} {
		if got := isAddress(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

const relStorageSite = `instancehome /srv/site
%import relstorage
<zodb_db main>
  mount-point /
  <relstorage>
    keep-history off
    blob-dir var/$(STAGE)
    shared-blob-dir off
    cache-local-mb 100
    <mysql>
      db plone
      user plone
      passwd geheim
      port 3307
      compress on
    </mysql>
  </relstorage>
</zodb_db>
<zodb_db other>
  mount-point /other
  <relstorage>
    <postgresql>
      dsn dbname='plone' password='geheim'
    </postgresql>
  </relstorage>
</zodb_db>
<zodb_db third>
  mount-point /third
  <relstorage>
    <mysql>
      passwd $(PW)
    </mysql>
  </relstorage>
</zodb_db>
<zodb_db fourth>
  mount-point /fourth
  <relstorage>
    <postgresql>
      dsn password=geheim
    </postgresql>
  </relstorage>
</zodb_db>
`

func TestDraftsOfRelStorages(t *testing.T) {
	files(t, map[string]string{"zope.conf": relStorageSite})
	for _, c := range []struct {
		database string
		lines    []string
	}{
		{"main", []string{`type = "relstorage"`, "keep-history = false", `blob-dir = "/srv/site/var/${STAGE}"`, "shared-blob-dir = false", "[source.mysql]",
			`db = "plone"`, `user = "plone"`, "# " + variableNote, `passwd = "${MYSQL_PWD}"`, "port = 3307", "compress = true", `# host = "localhost"`,
			"# Taken from zope.conf:5."}},
		{"other", []string{"[source.postgresql]", "# " + passwordNote, `dsn = "dbname='plone'"`, "# keep-history = true"}},
		{"third", []string{"[source.mysql]", `passwd = "${PW}"`}},
		{"fourth", []string{"[source.postgresql]", "# " + passwordNote, `dsn = ""`}},
	} {
		text, err := Draft{From: "zope.conf", SourceDatabase: c.database}.TOML(env())
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range c.lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s is missing in\n%s", line, text)
			}
		}
		if strings.Contains(text, "geheim") || strings.Count(text, "[source.") != 1 || strings.Contains(text, "filestorage") {
			t.Errorf("more than that is in\n%s", text)
		}
		reread(t, text, everyVariable)
	}
}
