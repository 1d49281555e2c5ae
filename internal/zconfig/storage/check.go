package storage

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

// node is a section whose keys and sections are those that its type has.
type node struct {
	is     *sectionType
	name   string
	pos    zconfig.Position
	values map[string][]value // of the keys that are given or have a preset
	inner  []*node
	around []*node // the database, if it is the storage of one
}

// value is the value of a key. Which of the fields counts depends on the
// datatype.
type value struct {
	key    string
	text   string
	bool   bool
	number int64
	float  float64
	pos    zconfig.Position
	given  bool
}

// checker checks sections.
type checker struct {
	isDir func(string) bool
	// base is where relative paths start, if not at the working directory.
	base string
}

func typeOf(name string) *sectionType {
	if other, ok := otherTypes[name]; ok {
		name = other
	}
	i := slices.IndexFunc(sectionTypes, func(t sectionType) bool { return t.name == name })
	if i < 0 {
		return nil
	}
	return &sectionTypes[i]
}

// typesOf lists the names of the types of a class.
func typesOf(c class) []string {
	var names []string
	for _, t := range sectionTypes {
		if t.class == c {
			names = append(names, t.name)
		}
	}
	return names
}

// section checks a section that should be of the given class. The depth of
// sections is limited already, so this may call itself.
func (c *checker) section(s *zconfig.Section, wanted class) (*node, error) {
	t := typeOf(s.Type)
	switch {
	case t == nil:
		known := typesOf(wanted)
		return nil, &zconfig.Error{Pos: s.Pos, Reason: fmt.Sprintf("unknown section %s", s.Header()),
			Hint: zconfig.Suggestion(s.Type, known, "<"+strings.Join(known, ">, <")+">")}
	case t.class != wanted:
		return nil, &zconfig.Error{Pos: s.Pos, Reason: fmt.Sprintf("the section %s has no place here", s.Header()),
			Hint: "here may stand <" + strings.Join(typesOf(wanted), ">, <") + ">"}
	}
	n := &node{is: t, name: s.Name, pos: s.Pos, values: map[string][]value{}}
	for i := range s.Keys {
		if err := c.key(n, &s.Keys[i]); err != nil {
			return nil, err
		}
	}
	if err := c.inner(n, s); err != nil {
		return nil, err
	}
	for i := range t.keys {
		if err := c.complete(n, &t.keys[i], s); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// inner checks the sections in a section.
func (c *checker) inner(n *node, s *zconfig.Section) error {
	if err := uniqueNames(s.Sections); err != nil {
		return err
	}
	for _, section := range s.Sections {
		if n.is.inner == none {
			return &zconfig.Error{Pos: section.Pos, Reason: fmt.Sprintf("the section %s has no place in %s", section.Header(), s.Header()),
				Hint: "is the end of " + s.Header() + " missing above?"}
		}
		child, err := c.section(section, n.is.inner)
		if err != nil {
			return err
		}
		if len(n.inner) == n.is.max {
			return zconfig.Errorf(section.Pos, "a second section in %s, where one may stand", s.Header())
		}
		n.inner = append(n.inner, child)
	}
	if len(n.inner) < n.is.min {
		return zconfig.Errorf(s.Pos, "there is no storage in %s", s.Header())
	}
	return nil
}

func uniqueNames(sections []*zconfig.Section) error {
	first := map[string]zconfig.Position{}
	for _, s := range sections {
		if s.Name == "" {
			continue
		}
		if at, ok := first[s.Name]; ok {
			return zconfig.Errorf(s.Pos, "a second section with the name %s; the first is that of %s", zconfig.Word(s.Name), at)
		}
		first[s.Name] = s.Pos
	}
	return nil
}

// key checks one key and keeps its value.
func (c *checker) key(n *node, given *zconfig.Key) error {
	spec, err := n.is.find(given)
	if err != nil {
		return err
	}
	if given.Err != nil {
		return given.Err
	}
	if before := n.values[spec.name]; len(before) > 0 && !spec.multi {
		return zconfig.Errorf(given.Pos, "the key %s is given a second time; the first is that of %s", spec.name, before[0].pos)
	}
	v, err := c.value(spec, given.Value, given.Pos)
	if err != nil {
		return err
	}
	v.given = true
	n.values[spec.name] = append(n.values[spec.name], v)
	return nil
}

// find gives the description of a key.
func (t *sectionType) find(given *zconfig.Key) (*key, error) {
	name, err := zconfig.BasicKey(given.Name)
	if err != nil {
		hint := "a key has " + err.Error()
		if strings.Contains(given.Name, "=") {
			hint = "a key and its value are parted by a blank, not by ="
		}
		return nil, &zconfig.Error{Pos: given.Pos, Reason: fmt.Sprintf("%s is no key", given.Shown()), Hint: hint}
	}
	if other, ok := t.other[name]; ok {
		name = other
	}
	for i := range t.keys {
		if t.keys[i].name == name {
			return &t.keys[i], nil
		}
	}
	if t.anyKey {
		return &key{name: name, multi: true, effect: idle, why: t.keys[0].why}, nil
	}
	if hint, ok := t.former[name]; ok {
		return nil, &zconfig.Error{Pos: given.Pos, Reason: fmt.Sprintf("the key %s in <%s> is out of date", zconfig.Word(given.Name), t.name), Hint: hint}
	}
	var names []string
	for _, k := range t.keys {
		names = append(names, k.name)
	}
	shown, hint := given.Shown(), zconfig.Suggestion(name, names, strings.Join(names, ", "))
	if strings.HasPrefix(hint, "did you mean") {
		shown = zconfig.Word(given.Name)
	}
	return nil, &zconfig.Error{Pos: given.Pos, Reason: fmt.Sprintf("unknown key %s in <%s>", shown, t.name), Hint: hint}
}

// complete puts in the preset of a key that is not given.
func (c *checker) complete(n *node, spec *key, s *zconfig.Section) error {
	switch {
	case len(n.values[spec.name]) > 0:
		return nil
	case spec.required:
		return zconfig.Errorf(s.Pos, "the key %s is missing in %s", spec.name, s.Header())
	case spec.preset == "" && !spec.presetEmpty:
		return nil
	}
	v, err := c.value(spec, spec.preset, s.Pos)
	n.values[spec.name] = []value{v}
	return err
}

// value reads a value.
func (c *checker) value(spec *key, written string, at zconfig.Position) (value, error) {
	v := value{key: spec.name, text: written, pos: at}
	var err error
	switch spec.is {
	case boolean:
		v.bool, err = zconfig.Boolean(written)
	case integer:
		v.number, err = zconfig.Integer(written)
	case float:
		v.float, err = zconfig.Float(written)
	case byteSize:
		v.number, err = zconfig.ByteSize(written)
	case interval:
		v.number, err = zconfig.TimeInterval(written)
	case dotted:
		v.text, err = zconfig.DottedName(written)
	case address:
		v.text, err = zconfig.SocketAddress(written)
	case dirPath:
		v.text, err = zconfig.ExistingDirPath(written, c.isDirectory)
	case mountPoint:
		if !strings.HasPrefix(written, "/") {
			err = errors.New("a path that starts with /")
		}
	}
	if err != nil {
		return v, zconfig.Errorf(at, "the key %s wants %v", spec.name, err)
	}
	return v, nil
}
