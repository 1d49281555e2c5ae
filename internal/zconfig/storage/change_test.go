package storage

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// end reads one end of a conversion and gives it without places.
func end(t *testing.T, text string) (string, error) {
	t.Helper()
	c, err := ParseConversion("x.conf", []byte("%import zodb_pgjsonb\n"+text), corpusOptions())
	if err != nil {
		return "", err
	}
	if c.HasDestination() {
		d, err := c.Destination()
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%+v", d.PGJSONB), nil
	}
	s, err := c.Source()
	if err != nil {
		return "", err
	}
	show := fmt.Sprintf("%+v %+v", s.FileStorage, s.RelStorage)
	if r := s.RelStorage; r != nil {
		show += fmt.Sprintf(" %+v %+v %+v", r.PostgreSQL, r.MySQL, r.SQLite3)
	}
	return show, nil
}

// What would change the data that arrives, or where they come from and go to, is
// followed or refused.
func TestKeysThatChangeTheDataActOrAreRefused(t *testing.T) {
	const (
		files  = "<filestorage source>\n path Data.fs\n%s\n</filestorage>\n"
		rel    = "<relstorage source>\n%s\n<postgresql/>\n</relstorage>\n"
		pg     = "<pgjsonb destination>\n dsn dbname=zodb\n%s\n</pgjsonb>\n"
		bucket = "<pgjsonb destination>\n dsn dbname=zodb\n s3-bucket-name b\n%s\n</pgjsonb>\n"
		dsn    = "<pgjsonb destination>\n dsn dbname=zodb %s\n</pgjsonb>\n"
		around = "<blobstorage source>\n blob-dir one\n<filestorage>\n path Data.fs\n%s\n</filestorage>\n</blobstorage>\n"
	)
	for _, c := range []struct {
		in, keys string
		refused  string // "": the result is another one
	}{
		{files, "create true", "create is on"},
		{files, "blob-dir blobs", ""},
		{around, "blob-dir two", "this blob-dir and that of the <blobstorage> around it are different"},
		{rel, "keep-history false", ""},
		{rel, "blob-dir blobs", ""},
		{rel, "blob-dir blobs\nshared-blob-dir true", ""},
		{rel, "shared-blob-dir true", "shared-blob-dir is on, but no blob-dir is given"},
		{pg, "history-preserving true", ""},
		{pg, "blob-threshold 1", ""},
		{pg, "blob-threshold -1", "blob-threshold is below 0"},
		{pg, "s3-bucket-name b", ""},
		{bucket, "s3-prefix p", ""},
		{bucket, "s3-endpoint-url http://s3", ""},
		{bucket, "s3-region eu", ""},
		{bucket, "s3-use-ssl false", ""},
		{bucket, "s3-access-key a\ns3-secret-key b", ""},
		{bucket, "s3-access-key a", "s3-access-key is given without s3-secret-key"},
		{bucket, "s3-secret-key b", "s3-secret-key is given without s3-access-key"},
		{dsn, "options=-csearch_path=other", ""},
		// What these storages do not have is no key of theirs.
		{pg, "create true", "unknown key create in <pgjsonb>"},
		{pg, "read-only true", "unknown key read-only in <pgjsonb>"},
		{pg, "keep-history false", "unknown key keep-history in <pgjsonb>"},
		{pg, "schema other", "unknown key schema in <pgjsonb>"},
		{pg, "blob-dir blobs", "unknown key blob-dir in <pgjsonb>"},
		{files, "keep-history false", "unknown key keep-history in <filestorage>"},
		{files, "shared-blob-dir true", "unknown key shared-blob-dir in <filestorage>"},
	} {
		t.Run(c.keys, func(t *testing.T) {
			without, err := end(t, fmt.Sprintf(c.in, ""))
			if err != nil {
				t.Fatal(err)
			}
			with, err := end(t, fmt.Sprintf(c.in, c.keys))
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused == "" && with == without:
				t.Errorf("it does nothing: %s", with)
			case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("got %v", err)
			case err != nil && !strings.HasPrefix(err.Error(), "x.conf:"):
				t.Errorf("no place: %v", err)
			}
		})
	}
}

// Whoever adds a key has to think about it if it is of a kind that may change
// the data.
func TestNoKeyThatMayChangeTheDataIsIdleWithoutThought(t *testing.T) {
	var idleOnes []string
	for _, is := range sectionTypes {
		for _, k := range is.keys {
			may := slices.ContainsFunc([]string{"create", "read-only", "history", "shared", "s3-", "dsn", "path"}, func(s string) bool {
				return strings.Contains(k.name, s)
			}) || k.name == "blob-dir" || k.name == "blob-threshold"
			if may && k.effect == idle {
				idleOnes = append(idleOnes, is.name+" "+k.name+": "+k.why)
			}
		}
	}
	want := []string{
		"filestorage read-only: " + unwrites,
		"pgjsonb s3-connect-timeout: " + newInRun, "pgjsonb s3-read-timeout: " + newInRun, "pgjsonb s3-download-connect-timeout: " + newInRun,
		"pgjsonb s3-download-read-timeout: " + newInRun, "pgjsonb s3-download-max-attempts: " + newInRun, "pgjsonb cache-shared-mb: " + forCache,
		"relstorage read-only: " + unwrites, "relstorage create-schema: " + unwrites,
	}
	if d := cmp.Diff(want, idleOnes); d != "" {
		t.Error(d)
	}
}
