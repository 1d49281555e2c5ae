package storage

import (
	"fmt"
	"strings"
	"testing"
)

// What the reference says of a storage is what happens when it is an end.
func TestSectionsAreDocumentedAsTheyAreTaken(t *testing.T) {
	for _, d := range Sections() {
		is := typeOf(d.Section)
		body, _ := everyKey(is)
		_, body, _ = strings.Cut(body, "mount-point /\n")
		body = strings.TrimSuffix(body, "</zodb_db>\n")
		if is.inner == aStorage && !strings.Contains(body, "<filestorage>") {
			body = strings.Replace(body, "</"+d.Section+">", "<filestorage>\npath a\n</filestorage>\n</"+d.Section+">", 1)
		}
		for end, want := range map[string]string{sourceName: d.Source, destName: d.Destination} {
			text := fmt.Sprintf("<%s>\n%s</%s>\n", end, body, end)
			c, err := ParseConversion("x.conf", []byte(text), corpusOptions())
			if err != nil {
				t.Errorf("%v in\n%s", err, text)
				continue
			}
			if end == sourceName {
				_, err = c.Source()
			} else {
				_, err = c.Destination()
			}
			got := ""
			if err != nil {
				got = reason(err)
			}
			if got != want {
				t.Errorf("%s as the %s: %q, documented as %q", d.Section, end, got, want)
			}
		}
	}
}
