package relstorage

import (
	"encoding/binary"
	"strconv"
	"strings"
	"testing"
)

func FuzzRowNumbers(f *testing.F) {
	for _, s := range []string{"", "0", "-1", "9223372036854775807", "9223372036854775808", "1e3", "\x00\x00\x00\x00\x00\x00\x00\x05"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := row{values: [][]byte{b}}.int(0)
		if want, bad := strconv.ParseInt(string(b), 10, 64); b != nil && (err == nil) != (bad == nil) || err == nil && b != nil && n != want {
			t.Errorf("%q is %d, %v", b, n, err)
		}
		n, err = row{values: [][]byte{b}, binary: true}.int(0)
		if len(b) == 8 && (err != nil || uint64(n) != binary.BigEndian.Uint64(b)) {
			t.Errorf("%x is %d, %v", b, n, err)
		}
		if err == nil && b != nil && len(b) != 1 && len(b) != 2 && len(b) != 4 && len(b) != 8 {
			t.Errorf("%x became %d", b, n)
		}
	})
}

func FuzzConnectionString(f *testing.F) {
	f.Add("dbname=zodb user=zope password=hidden-word host=a,b port=1,2", "db1:5433")
	f.Add("postgresql://zope:hidden-word@[::1]:5432/zodb?options=-csearch_path%3Dx", "::1")
	f.Add("options='-c a=b --c-d=e\\ f -x'", "h")
	f.Add("host='", "host:0")
	f.Fuzz(func(t *testing.T, dsn, replica string) {
		if strings.ContainsAny(dsn, "/") && strings.Contains(dsn, "ssl") || strings.Contains(dsn, "service") || strings.Contains(dsn, "passfile") {
			return // names files of this machine
		}
		opts := &Options{PostgreSQL: &PostgreSQL{DSN: dsn}}
		if replica != "" {
			opts.Replicas = []string{replica}
		}
		e, err := newPostgreSQL(opts)
		if err != nil {
			if strings.Contains(err.Error(), "hidden-word") {
				t.Errorf("the password is shown: %v", err)
			}
			return
		}
		p := e.(*postgres)
		if len(p.servers) == 0 {
			t.Fatal("no server")
		}
		for _, c := range p.servers {
			if replica != "" && !strings.Contains(replica, c.Host) {
				t.Errorf("it reads from %q, not from the replica %q", c.Host, replica)
			}
			if c.Password != "" && len(c.Password) > 4 && !strings.Contains(c.Database+c.Host, c.Password) && strings.Contains(e.name(), c.Password) {
				t.Error("the password is in the name")
			}
		}
	})
}

// What is added for a replica must not become a part of the last value.
func TestReplicaAfterAnyConnectionString(t *testing.T) {
	for _, dsn := range []string{"", "dbname=zodb", "dbname=zodb password=", "password= ", `password=secret\\`, `password=secret\\\\`, "password=+", "host=other port=99", "postgresql://zope@other/zodb"} {
		e, err := newPostgreSQL(&Options{PostgreSQL: &PostgreSQL{DSN: dsn}, Replicas: []string{"replica:7"}})
		if err != nil {
			t.Errorf("%q: %v", dsn, err)
			continue
		}
		if c := e.(*postgres).servers[0]; c.Host != "replica" || c.Port != 7 || strings.Contains(c.Password, "host") {
			t.Errorf("%q: it reads from %s:%d", dsn, c.Host, c.Port)
		}
	}
}

func TestOptionsOfTheConnectionString(t *testing.T) {
	for _, c := range []struct {
		options, want string
		ok            bool
	}{
		{"", "", true},
		{"-c search_path=zope,public", "search_path=zope,public;", true},
		{`-csearch_path=a\ b --work-mem=4MB`, "search_path=a b;work_mem=4MB;", true},
		{"-c", "", false},
		{"-d 5", "", false},
		{"-c name", "", false},
	} {
		list, ok := parseOptions(c.options)
		got := ""
		for _, x := range list {
			got += x[0] + "=" + x[1] + ";"
		}
		if got != c.want || ok != c.ok {
			t.Errorf("%q: %q, %v", c.options, got, ok)
		}
	}
}
