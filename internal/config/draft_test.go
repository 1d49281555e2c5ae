package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// everyVariable gives each variable a value of its own.
func everyVariable(name string) (string, bool) { return "/value/of/" + name, true }

// reread reads a draft as CONFIG is read.
func reread(t *testing.T, draft string, getenv func(string) (string, bool)) *Config {
	t.Helper()
	c, err := Origin{Path: "draft.toml"}.parse([]byte(draft), getenv)
	if err != nil {
		t.Fatalf("%v in the draft:\n%s", err, draft)
	}
	return c
}

func TestADraftOfNothingIsRead(t *testing.T) {
	text, err := Draft{}.TOML(env())
	if err != nil {
		t.Fatal(err)
	}
	if c := reread(t, text, env()); c.Source.FileStorage == nil || c.Destination.DSN == "" || len(c.Unused) > 0 {
		t.Errorf("%+v", c)
	}
	for line := range strings.Lines(text) {
		if len(line) > 81 {
			t.Errorf("a long line: %q", line)
		}
	}
	// Every key that acts is in it, for each type, and taking the # away makes it
	// valid.
	first, rest, ok := strings.Cut(text, "\n# In place of these lines for type relstorage")
	other, destination, also := strings.Cut(rest, "\n[destination]\n")
	if !ok || !also {
		t.Fatalf("no RelStorage in\n%s", text)
	}
	_, other, _ = strings.Cut(other, "#\n")
	destination = "\n[destination]\n" + destination
	plain := strings.Builder{}
	for line := range strings.Lines(other) {
		plain.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "#"), "   "))
	}
	other = plain.String()
	c := reread(t, withKeys(t, first+destination, "filestorage", "pgjsonb"), everyVariable)
	if c.Source.FileStorage.BlobDir == "" || c.Destination.S3.SecretKey != "/value/of/AWS_SECRET_ACCESS_KEY" || len(c.Unused) > 0 {
		t.Errorf("%+v", c)
	}
	whole := withKeys(t, other, "relstorage")
	databases := strings.Split(whole, "\n[source.")
	if len(databases) != 4 {
		t.Fatalf("%d parts in\n%s", len(databases), whole)
	}
	for _, database := range databases[1:] {
		files(t, map[string]string{"replicas": "a\n"})
		text := databases[0] + "\n[source." + database + destination
		c, err := Origin{Path: "draft.toml"}.parse([]byte(text), everyVariable)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		s := c.Source.RelStorage
		if s == nil || s.KeepHistory == nil || s.BlobDir == "" || (s.SQLite3 == nil) != (len(c.Unused) == 0) {
			t.Errorf("%+v", c)
		}
		if m := s.MySQL; m != nil && (m.Password != "/value/of/MYSQL_PWD" || m.Database == "" || m.DefaultGroup == "" || m.Port == 0) {
			t.Errorf("%+v", m)
		}
	}
}

// withKeys takes the # before keys away, and looks for each that acts.
func withKeys(t *testing.T, draft string, types ...string) string {
	t.Helper()
	b := strings.Builder{}
	for line := range strings.Lines(draft) {
		for _, k := range Keys() {
			line = strings.Replace(line, "# "+k.Key+" = ", k.Key+" = ", 1)
		}
		b.WriteString(line)
	}
	for _, k := range Keys() {
		acts := k.Unused == "" && k.Key != "named_pipe"
		if has := strings.Contains(b.String(), "\n"+k.Key+" = "); slices.Contains(types, k.Type) && has != acts {
			t.Errorf("the key %s: %v", k.Key, has)
		}
	}
	return b.String()
}

// What a draft says is what the file says that it is made from, but for
// passwords.
func TestDraftsSayWhatTheFileSays(t *testing.T) {
	files, err := filepath.Glob("../../testdata/config/*/*.conf")
	if err != nil || len(files) < 40 {
		t.Fatal(files, err)
	}
	drafts := 0
	for _, path := range files {
		t.Run(filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path), func(t *testing.T) {
			draft, err := Draft{From: path}.TOML(everyVariable)
			text, e := os.ReadFile(path)
			if e != nil {
				t.Fatal(e)
			}
			want, wantErr := Draft{From: path}.read(text, everyVariable)
			c := &Config{}
			if wantErr == nil && want.source != nil {
				c.takeSource(want.source)
			}
			if (err == nil) != (wantErr == nil) && isZConfig(text) {
				t.Fatalf("%v, and the file itself: %v", err, wantErr)
			}
			if err != nil {
				return
			}
			if want.destination != nil {
				c.takeDestination(want.destination)
			}
			drafts++
			got := reread(t, draft, everyVariable)
			if want.source != nil {
				for _, s := range []*Source{&c.Source, &got.Source} {
					hidePasswords(s)
				}
				if d := cmp.Diff(c.Source, got.Source); d != "" {
					t.Error(d)
				}
			}
			if want.destination == nil {
				return
			}
			c.Destination.DSN, _, _ = withoutPassword(c.Destination.DSN)
			got.Destination.DSN, _, _ = withoutPassword(got.Destination.DSN)
			for _, key := range []*string{&c.Destination.S3.AccessKey, &c.Destination.S3.SecretKey, &got.Destination.S3.AccessKey, &got.Destination.S3.SecretKey} {
				if *key != "" {
					*key = "given"
				}
			}
			if d := cmp.Diff(c.Destination, got.Destination); d != "" {
				t.Error(d)
			}
		})
	}
	if drafts < 15 {
		t.Errorf("only %d drafts", drafts)
	}
}

// hidePasswords leaves of a source what a draft takes over.
func hidePasswords(s *Source) {
	if s.RelStorage == nil {
		return
	}
	if p := s.RelStorage.PostgreSQL; p != nil {
		p.DSN, _, _ = withoutPassword(p.DSN)
	}
	if m := s.RelStorage.MySQL; m != nil && m.Password != "" {
		m.Password = "given"
	}
}

const draftSite = `%define HOME $(SITE)/var
instancehome /srv/site
<zodb_db main>
  mount-point /
  <filestorage>
    path $HOME/Data.fs
    blob-dir blobs/$(STAGE)
  </filestorage>
</zodb_db>
%import zodb_pgjsonb
<zodb_db new>
  mount-point /new
  <pgjsonb>
    dsn dbname=new user=zodb password=geheim
    history-preserving on
    s3-bucket-name b$${x}
    s3-access-key accesskey
    s3-secret-key $(S3_SECRET)
    s3-use-ssl off
    blob-threshold 1MB
  </pgjsonb>
</zodb_db>
`

func TestDraftsKeepVariablesAndNoSecrets(t *testing.T) {
	files(t, map[string]string{"zope.conf": draftSite})
	text, err := Draft{From: "zope.conf", SourceDatabase: "main", DestinationDatabase: "New"}.TOML(env())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`path = "${SITE}/var/Data.fs"`, `blob-dir = "/srv/site/blobs/${STAGE}"`, `dsn = "dbname=new user=zodb"`, "history-preserving = true",
		`s3-bucket-name = "b$${x}"`, `s3-access-key = "${AWS_ACCESS_KEY_ID}"`, `s3-secret-key = "${S3_SECRET}"`, "s3-use-ssl = false",
		"blob-threshold = 1048576", "# Taken from zope.conf:5.", "# Taken from zope.conf:13.", "# " + passwordNote, "# " + keyNote,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
	for _, secret := range []string{"geheim", "accesskey"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in it", secret)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A variable that tells the path of an included file or a size has to have a
// value.
func TestDraftsUseValuesWhereNamesWillNotDo(t *testing.T) {
	files(t, map[string]string{
		"included.conf": "%include $(PW).inc\n", "a.inc": zSource,
		"size.conf": "%import zodb_pgjsonb\n<pgjsonb destination>\n  dsn dbname=a password=$(PW)\n  blob-threshold $(PW)\n</pgjsonb>\n",
	})
	text, err := Draft{From: "included.conf"}.TOML(env("PW", "a"))
	if err != nil || !strings.Contains(text, "\npath = \"Data.fs\"\n") {
		t.Errorf("%v:\n%s", err, text)
	}
	text, err = Draft{From: "size.conf"}.TOML(env("PW", "123456"))
	if err != nil || !strings.Contains(text, "\nblob-threshold = 123456\n") || !strings.Contains(text, "\ndsn = \"dbname=a\"\n") {
		t.Errorf("%v:\n%s", err, text)
	}
	if _, err = (Draft{From: "size.conf"}).TOML(env()); err == nil || !strings.HasPrefix(err.Error(), "size.conf:3: the value of dsn: the environment variable PW is not set") {
		t.Error(err)
	}
}

func TestDraftsOfWhatCannotBeTaken(t *testing.T) {
	files(t, map[string]string{
		"zope.conf": draftSite, "both.toml": tSource + tDest, "empty.conf": "", "source.conf": zSource,
		"two.conf": strings.ReplaceAll(draftSite, "main", "old"), "oracle.conf": "<relstorage source>\n<oracle>\nuser a\npassword b\ndsn c\n</oracle>\n</relstorage>\n",
	})
	for _, c := range []struct {
		draft Draft
		want  string
	}{
		{Draft{From: "none.conf"}, "none.conf: the configuration cannot be read: no such file or directory"},
		{Draft{From: "both.toml"}, "both.toml: this is not in ZConfig, the language of zope.conf; a file in TOML needs no draft: give it as CONFIG"},
		{Draft{From: "empty.conf"}, "empty.conf: this is not in ZConfig"},
		{Draft{From: "zope.conf", SourceDatabase: "mian"}, "zope.conf: there is no <zodb_db mian> in it; did you mean main?"},
		{Draft{From: "two.conf"}, "two.conf: it has several databases, and none of them is named main: old, new; name one with --source-db or --dest-db"},
		{Draft{From: "zope.conf", DestinationDatabase: "main"}, "zope.conf:5: <filestorage> cannot be the destination"},
		{Draft{From: "source.conf", SourceDatabase: "main"}, "source.conf: there is no <zodb_db> in it, so that no database can be named"},
		{Draft{From: "oracle.conf"}, "oracle.conf:2: a RelStorage in <oracle> cannot be read"},
	} {
		if _, err := c.draft.TOML(env("SITE", "/site", "STAGE", "a", "S3_SECRET", "x")); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.draft, err)
		}
	}
}

func TestPasswordsAreTakenOutOfConnectionStrings(t *testing.T) {
	const v = storage.Unknown + "PW" + storage.Unknown
	for _, c := range []struct {
		dsn, want   string
		removed, ok bool
	}{
		{"dbname=a user=b", "dbname=a user=b", false, true},
		{"dbname=a password=s3cret user=b", "dbname=a user=b", true, true},
		{"password='s3cr\\'et x' dbname=a", "dbname=a", true, true},
		{"password = s3cret dbname = a", "dbname=a", true, true},
		{`dbname=a password=s3\ cret`, "dbname=a", true, true},
		{"dbname=a password=s3'cret", "dbname=a", true, true},
		{"dbname=a password=" + v, "dbname=a password=" + v, false, true},
		{"dbname=a password='" + v + "'", "dbname=a password='" + v + "'", false, true},
		{"dbname=a password=s3" + v, "dbname=a", true, true},
		{"dbname=a sslpassword=s3cret sslkey=k", "dbname=a sslkey=k", true, true},
		{"dbname=a password= s3cret", "dbname=a", true, true},
		{"dbname=a s3cret", "", false, false},
		{"dbname='a password=s3cret", "", false, false},
		{v, v, false, true},
		{"postgresql://b@h/a", "postgresql://b@h/a", false, true},
		{"postgresql://b:s3cret@h:5432/a?sslmode=require", "postgresql://b@h:5432/a?sslmode=require", true, true},
		{"postgres://b:s3%2Fcret@h/a", "postgres://b@h/a", true, true},
		{"postgresql://b:s3@cret@h/a", "postgresql://b@h/a", true, true},
		{"postgresql://b:" + v + "@h/a", "postgresql://b:" + v + "@h/a", false, true},
		{"postgresql://h/a?user=b&password=s3cret", "postgresql://h/a?user=b", true, true},
		{"postgresql://h/a?pass%77ord=s3cret", "postgresql://h/a", true, true},
		{"postgresql://h/a?password=" + v, "postgresql://h/a?password=" + v, false, true},
		{"postgresql://b:s3/cret@h/a", "", false, false},
		{"postgresql://b:s3#cret@h/a", "", false, false},
		{"postgresql://" + v + "/a", "postgresql://" + v + "/a", false, true},
	} {
		got, removed, ok := withoutPassword(c.dsn)
		if ok != c.ok || ok && (got != c.want || removed != c.removed) {
			t.Errorf("%q: %q, %v, %v", c.dsn, got, removed, ok)
		}
		if ok && strings.Contains(got, "cret") {
			t.Errorf("%q: %q shows the password", c.dsn, got)
		}
	}
}

// FuzzDraft looks for files whose draft cannot be read, or says something else.
func FuzzDraft(f *testing.F) {
	f.Add("/srv/Data.fs", "dbname=a password=GEHEIM", "b")
	f.Add("$(HOME)/$$x\"y\\", "postgresql://u:GEHEIM@h/d?password=GEHEIM", "$${x}")
	f.Add("~/x", "dbname='a b' password='GEHEIM\\''", "é\t")
	f.Fuzz(func(t *testing.T, path, dsn, bucket string) {
		name := filepath.Join(t.TempDir(), "f.conf")
		text := "%import zodb_pgjsonb\n<filestorage source>\n path " + path + "\n</filestorage>\n<pgjsonb destination>\n dsn " + dsn +
			"\n s3-bucket-name " + bucket + "\n</pgjsonb>\n"
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		draft, err := Draft{From: name}.TOML(everyVariable)
		if err != nil {
			return
		}
		got := reread(t, draft, everyVariable)
		e, err := Draft{From: name}.read([]byte(text), everyVariable)
		if err != nil {
			return // with names in place of these values it can be
		}
		if e.source != nil && e.source.FileStorage == nil {
			return
		}
		if e.source != nil && (got.Source.FileStorage.Path != home(e.source.FileStorage.Path) || e.destination != nil && got.Destination.S3.Bucket != e.destination.PGJSONB.S3.Bucket) {
			t.Errorf("%+v of\n%s", got, text)
		}
	})
}
