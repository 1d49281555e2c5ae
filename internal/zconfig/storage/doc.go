package storage

import (
	"errors"
	"slices"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

// KeyDoc describes a key for the reference.
type KeyDoc struct {
	Section, Key, Value, Preset string
	Required                    bool
	Unused                      string // why it has no effect, or ""
}

// documented are the sections that a conversion can follow.
var documented = []string{"filestorage", "pgjsonb", "relstorage", "postgresql", "mysql", "sqlite3", "pragmas", "blobstorage", "zlibstorage", "zodb_db"}

var datatypeNames = map[datatype]string{
	text: "string", boolean: "boolean", integer: "number", float: "number", byteSize: "size", interval: "time", dirPath: "path",
	dotted: "name", address: "address", mountPoint: "path",
}

// Keys lists the keys of the sections that a conversion can follow.
func Keys() []KeyDoc {
	var docs []KeyDoc
	for _, name := range documented {
		for _, k := range typeOf(name).keys {
			d := KeyDoc{Section: name, Key: k.name, Value: datatypeNames[k.is], Preset: k.preset, Required: k.required}
			if k.effect == idle {
				d.Unused = k.why
			}
			docs = append(docs, d)
		}
	}
	return docs
}

// SectionDoc describes a storage for the reference: why it is refused as an end
// of a conversion, or "".
type SectionDoc struct{ Section, Source, Destination string }

// Sections lists the storages that are known.
func Sections() []SectionDoc {
	read := []string{"filestorage", "relstorage", "blobstorage", "zlibstorage", "serverzlibstorage"}
	var docs []SectionDoc
	for i := range sectionTypes {
		t := &sectionTypes[i]
		if t.class != aStorage {
			continue
		}
		d := SectionDoc{Section: t.name}
		n := &node{is: t}
		if !slices.Contains(read, t.name) {
			d.Source = reason(unreadable(n))
		}
		if t.name != "pgjsonb" {
			d.Destination = reason(unwritable(n))
		}
		docs = append(docs, d)
	}
	return docs
}

func reason(err error) string {
	if e := (*zconfig.Error)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return err.Error()
}
