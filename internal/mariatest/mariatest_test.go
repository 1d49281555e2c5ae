//go:build unix

package mariatest_test

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/internal/mariatest"
)

var mariadb mariatest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	mariadb.Close()
	os.Exit(code)
}

func TestCommittedRowsOutliveStops(t *testing.T) {
	server := mariatest.Start(t)
	db := server.NewDatabase(t)
	server.Exec(t, db, "CREATE TABLE a (n BIGINT PRIMARY KEY, b LONGBLOB); INSERT INTO a VALUES (1, x'00ff')")
	before := server.Checksums(t, db)
	for _, mode := range []string{"immediate", "fast"} {
		if err := server.Stop(mode); err != nil {
			t.Fatal(err)
		}
		if err := server.Run(); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, server.Checksums(t, db)); d != "" {
			t.Errorf("after stop %q (-before +after):\n%s", mode, d)
		}
	}
}

func TestACopyHoldsTheSame(t *testing.T) {
	server := mariadb.Server(t)
	db := server.NewDatabase(t)
	server.Exec(t, db, "CREATE TABLE a (n BIGINT PRIMARY KEY, b LONGBLOB) ENGINE = InnoDB; INSERT INTO a VALUES (1, x'00ff'), (2, NULL)")
	if d := cmp.Diff(server.Checksums(t, db), server.Checksums(t, server.Copy(t, db))); d != "" {
		t.Errorf("the copy differs (-original +copy):\n%s", d)
	}
	if got := server.Query(t, db, "SELECT n, hex(b) FROM a ORDER BY n"); !cmp.Equal(got, []string{"1|00FF", "2|"}) {
		t.Errorf("rows: %q", got)
	}
}
