package relstorage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeFiles makes files below a new folder.
func writeFiles(t testing.TB, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOptionFiles(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		given MySQL
		want  MySQL
	}{
		{"client group", map[string]string{"my.cnf": "[mysqld]\nuser=mysql\n[client]\nuser = zope\npassword=\"a # b\\\"c\" # a comment\nhost='db.example'\nport=3307\n[mysql]\nhost=other\n"},
			MySQL{}, MySQL{User: "zope", Password: `a # b"c`, Host: "db.example", Port: 3307}},
		{"a named group wins", map[string]string{"my.cnf": "[client]\nuser=a\ndatabase=x\n[site]\nuser=b\nsocket=/run/s\ncompress\n"},
			MySQL{DefaultGroup: "site"}, MySQL{DefaultGroup: "site", User: "b", Database: "x", UnixSocket: "/run/s", Compress: true}},
		{"what is configured wins", map[string]string{"my.cnf": "[client]\nuser=a\npassword=p\nport=1\nconnect_timeout = 7\n"},
			MySQL{User: "me", Port: 3306}, MySQL{User: "me", Password: "p", Port: 3306, ConnectTimeout: 7}},
		{"a socket is not for another host", map[string]string{"my.cnf": "[client]\nsocket=/run/s\nuser=a\n"},
			MySQL{Host: "far"}, MySQL{Host: "far", User: "a"}},
		{"inclusions", map[string]string{"my.cnf": "[client]\nuser=a\n!includedir conf.d\n!include one.conf\n", "conf.d/b.cnf": "[client]\nuser=b\n", "conf.d/a.cnf": "[client]\nuser=c\nhost=h\n", "conf.d/ignored.txt": "[client]\nhost=i\n", "one.conf": "; note\n[client]\npassword = one  # two\n"},
			MySQL{}, MySQL{User: "b", Host: "h", Password: "one"}},
		{"escapes", map[string]string{"my.cnf": "[client]\npassword = a\\sb\\tc\\\\d\\e\nuser=\n"},
			MySQL{User: "u"}, MySQL{User: "u", Password: "a b\tc\\d\\e"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(writeFiles(t, c.files), "my.cnf")
			c.given.DefaultFile, c.want.DefaultFile = file, file
			got, _, err := withOptionFiles(c.given)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestBadOptionFilesAreNamed(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no end of a group", "[client\n", "my.cnf:1: the group has no ]"},
		{"unknown directive", "\n!source x\n", "my.cnf:2"},
		{"missing inclusion", "!include gone.cnf\n", "gone.cnf"},
		{"a circle", "!include my.cnf\n", "include each other"},
		{"port", "[client]\nport=http\n", `port "http"`},
		{"timeout", "[client]\nconnect-timeout=soon\n", `connect-timeout "soon"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := writeFiles(t, map[string]string{"my.cnf": c.text})
			_, _, err := withOptionFiles(MySQL{DefaultFile: filepath.Join(dir, "my.cnf")})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %q", err, c.want)
			}
		})
	}
}

func TestTLSIsWhatTheOptionFileSays(t *testing.T) {
	for _, c := range []struct {
		name         string
		keys         map[string]string
		tls, plain   bool
		checksServer bool
		err          string
	}{
		{"nothing", nil, true, true, false, ""},
		{"preferred", map[string]string{"ssl-mode": "preferred"}, true, true, false, ""},
		{"required", map[string]string{"ssl-mode": "REQUIRED"}, true, false, false, ""},
		{"ssl", map[string]string{"ssl": "1"}, true, false, false, ""},
		{"disabled", map[string]string{"ssl-mode": "DISABLED"}, false, false, false, ""},
		{"skip-ssl", map[string]string{"skip-ssl": "1"}, false, false, false, ""},
		{"no authority to check by", map[string]string{"ssl-mode": "VERIFY_CA"}, false, false, false, "needs an ssl-ca"},
		{"missing authority", map[string]string{"ssl-ca": filepath.Join(t.TempDir(), "ca.pem")}, false, false, false, "ca.pem"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, plain, err := mysqlTLS(c.keys)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("the error is %v", err)
				}
				return
			}
			if err != nil || (config != nil) != c.tls || plain != c.plain {
				t.Errorf("TLS %v, plain %v, %v", config != nil, plain, err)
			}
		})
	}
}

func FuzzOptionFile(f *testing.F) {
	f.Add("[client]\nuser=a\npassword=\"x\\\"\n!include my.cnf\n[site] \nskip-ssl\n")
	f.Add("[client]\nport=\\\n=\n#\n;\n[]\n!")
	f.Fuzz(func(t *testing.T, text string) {
		dir := writeFiles(t, map[string]string{"my.cnf": text})
		// Outside of the folder there is nothing to include.
		if strings.Contains(text, "!") && !strings.Contains(text, "!include my.cnf") {
			return
		}
		o, _, err := withOptionFiles(MySQL{DefaultFile: filepath.Join(dir, "my.cnf"), DefaultGroup: "site", User: "given"})
		if err == nil && o.User != "given" {
			t.Errorf("the user is %q", o.User)
		}
	})
}
