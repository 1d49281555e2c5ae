// Package zconfig reads the configuration language of Zope and ZODB.
//
// The language is line based. A line is empty, a comment (#), the start of a
// section (<type>, <type name>, or <type name/> for an empty one), its end
// (</type>), a directive (%define, %import, %include) or a key with a value,
// which may be empty:
//
//	%define INSTANCE /srv/plone
//	<zodb_db main>
//	    mount-point /
//	    <filestorage>
//	        path $INSTANCE/var/filestorage/Data.fs
//	    </filestorage>
//	</zodb_db>
//
// Directives may stand anywhere. In values, $name and ${name} stand for what
// %define gave, $(NAME) for the environment variable, and $$ for a dollar sign.
// Types and names of sections, keys and defined names do not tell upper from
// lower case. There are no comments behind values and no continued lines.
//
// The package gives the tree of sections and keys as it stands, with the file
// and the line of each; which of them are right is for others to say (package
// storage). It guarantees
//   - that it takes what the Python package ZConfig 4.3 takes, and besides a
//     byte order mark, a lone carriage return as the end of a line, and the name
//     repeated in the end of a section (</pgjsonb destination>), which a widely
//     used generator of configurations writes;
//   - that every error is an *Error with file and line, which tells names but
//     never a value, because values hold passwords;
//   - that no input takes more than a few megabytes or recurses: lines, files,
//     nesting, included files and what substitutions grow to are all limited;
//   - that nothing is fetched from the network and only regular files are
//     included.
package zconfig

import (
	"errors"
	"fmt"
	"io/fs"
)

// Position is a line of a file.
type Position struct {
	File string
	Line int
}

func (p Position) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Section is a section of a file, or the file as a whole.
type Section struct {
	// Type and Name are in lower case. Both are empty for the whole file.
	Type, Name string
	Pos        Position
	Keys       []Key
	Sections   []*Section
}

// Key is a key with its value.
type Key struct {
	Name  string // as written
	Value string
	Pos   Position
	// Err is what is wrong with the value, such as a name that is not defined.
	// It is set only if Options.Lenient is; then Value is empty.
	Err error
}

// File is a file that has been read, with all that it includes.
type File struct {
	Root *Section
	// Warnings are not errors, but worth a word.
	Warnings []Warning
}

// Warning is something that is probably right.
type Warning struct {
	Pos  Position
	Text string
}

func (w Warning) String() string { return w.Pos.String() + ": " + w.Text }

// Options say how to read.
type Options struct {
	// Getenv gives the environment. Without it there are no variables.
	Getenv func(string) (string, bool)
	// Packages are those whose %import needs no warning.
	Packages []string
	// Lenient leaves a substitution that fails to those who need the value:
	// the rest of a zope.conf may need an environment that only the site has.
	Lenient bool
}

// Error is what is wrong with a file.
type Error struct {
	Pos    Position // without a line: the file as a whole
	Reason string
	Hint   string
}

func (e *Error) Error() string {
	s := e.Pos.File + ": "
	if e.Pos.Line > 0 {
		s = e.Pos.String() + ": "
	}
	s += e.Reason
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Errorf makes an *Error without a hint.
func Errorf(at Position, format string, args ...any) *Error {
	return &Error{Pos: at, Reason: fmt.Sprintf(format, args...)}
}

// cause leaves out the operation and the path, which the message names already.
func cause(err error) string {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return err.Error()
}
