package zconfig

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits that no real configuration comes near to.
const (
	maxFile        = 1 << 20
	maxLine        = 64 << 10
	maxNesting     = 32
	maxIncluded    = 100      // files, one more than once counted as often
	maxIncludeNest = 10       // files that include one another
	maxTotal       = 4 << 20  // bytes of all files
	maxSubstituted = 16 << 20 // bytes of all values with substitutions
	maxImports     = 1000
)

// Read reads the file at path. Every error is an *Error.
func Read(path string, options Options) (*File, error) {
	text, err := ReadText(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text, options)
}

// ReadText gives what the file at path holds, if it may be a configuration.
func ReadText(path string) ([]byte, error) {
	at := Position{File: path}
	f, err := os.Open(path)
	if err != nil {
		return nil, Errorf(at, "the configuration cannot be read: %s", cause(err))
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, Errorf(at, "this is a directory, not a configuration file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, Errorf(at, "the configuration cannot be read: %s", cause(err))
	}
	return text, nil
}

// Parse is Read for a text that has been read already. Included files are found
// from path.
func Parse(path string, text []byte, options Options) (*File, error) {
	p := &parser{options: options, file: &File{Root: &Section{Pos: Position{File: path, Line: 1}}}, defines: map[string]define{}}
	if err := p.parse(path, text, p.file.Root, 0); err != nil {
		return nil, err
	}
	return p.file, nil
}

// parser is the state that a file and those that it includes share.
type parser struct {
	options     Options
	file        *File
	defines     map[string]define
	active      []string // the files that include one another
	total       int      // bytes read so far
	included    int
	imports     int
	substituted int
}

// define is what a %define gave.
type define struct {
	value string
	err   error
	pos   Position
}

func (p *parser) getenv(name string) (string, bool) {
	if p.options.Getenv == nil {
		return "", false
	}
	return p.options.Getenv(name)
}

// scope is a file that is being read: the sections in it that are open. Those
// of the files that include it cannot be closed in it.
type scope struct {
	*parser
	open []*Section
	at   Position
	base int // how many sections are open around the file
}

// parse reads one file into a section.
func (p *parser) parse(path string, text []byte, into *Section, nesting int) error {
	if err := p.acceptable(path, text); err != nil {
		return err
	}
	p.active = append(p.active, path)
	defer func() { p.active = p.active[:len(p.active)-1] }()
	s := &scope{parser: p, open: []*Section{into}, at: Position{File: path}, base: nesting}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		s.at.Line++
		if err := s.line(line); err != nil {
			return err
		}
	}
	if len(s.open) > 1 {
		last := s.open[len(s.open)-1]
		return &Error{Pos: last.Pos, Reason: fmt.Sprintf("the section %s is not closed", last.Header()),
			Hint: fmt.Sprintf("write </%s> where it ends", last.Type)}
	}
	return nil
}

// acceptable refuses what is no configuration at all.
func (p *parser) acceptable(path string, text []byte) error {
	at := Position{File: path}
	p.total += len(text)
	switch {
	case bytes.HasPrefix(text, []byte("FS21")) || bytes.HasPrefix(text, []byte("FS30")):
		return Errorf(at, "this is a FileStorage, not a configuration file")
	case len(text) > maxFile:
		at.Line = 1 + bytes.Count(text[:maxFile], []byte("\n"))
		return Errorf(at, "this is larger than any configuration file (1 MB)")
	case p.total > maxTotal:
		return Errorf(at, "this file and those that were read before it are larger together than any configuration (4 MB)")
	}
	return nil
}

// cutLine gives the first line without its end, which is \n, \r\n or a lone \r,
// and what follows.
func cutLine(text []byte) (line, rest []byte) {
	i := bytes.IndexAny(text, "\r\n")
	switch {
	case i < 0:
		return text, nil
	case text[i] == '\r' && i+1 < len(text) && text[i+1] == '\n':
		return text[:i], text[i+2:]
	}
	return text[:i], text[i+1:]
}

func (s *scope) line(raw []byte) error {
	switch {
	case len(raw) > maxLine:
		return s.fail("the line is longer than any in a configuration (64 KB)", "")
	case bytes.IndexByte(raw, 0) >= 0:
		return s.fail("the line has a NUL byte in it", "is this a configuration file, written as UTF-8?")
	case !utf8.Valid(raw):
		return s.fail("the line is not UTF-8", "save the file as UTF-8")
	}
	line := strings.TrimFunc(string(raw), isSpace)
	switch {
	case line == "" || line[0] == '#':
		return nil
	case strings.HasPrefix(line, "</"):
		return s.end(line)
	case line[0] == '<':
		return s.start(line)
	case line[0] == '%':
		return s.directive(line[1:])
	}
	return s.key(line)
}

func (s *scope) start(line string) error {
	inner, ok := strings.CutSuffix(line[1:], ">")
	if !ok {
		return s.fail("the line starts with < but does not end with >", "a section starts with <type> or <type name>, alone on its line")
	}
	inner, empty := strings.CutSuffix(inner, "/")
	inner = strings.TrimRightFunc(inner, isSpace)
	words := strings.FieldsFunc(inner, isSpace)
	if len(words) < 1 || len(words) > 2 || !strings.HasPrefix(inner, words[0]) || strings.ContainsAny(inner, "()") {
		return s.fail("this is no start of a section", "it looks like <type> or <type name>, where neither has blanks or parentheses in it")
	}
	section := &Section{Type: strings.ToLower(words[0]), Pos: s.at}
	if len(words) == 2 {
		section.Name = strings.ToLower(words[1])
	}
	if s.base+len(s.open) > maxNesting {
		return s.fail(fmt.Sprintf("sections are nested deeper than %d", maxNesting), "")
	}
	outer := s.open[len(s.open)-1]
	outer.Sections = append(outer.Sections, section)
	if !empty {
		s.open = append(s.open, section)
	}
	return nil
}

func (s *scope) end(line string) error {
	inner, ok := strings.CutSuffix(line[2:], ">")
	if !ok {
		return s.fail("the line starts with </ but does not end with >", "")
	}
	inner = strings.ToLower(strings.TrimRightFunc(inner, isSpace))
	if len(s.open) == 1 {
		return s.fail(fmt.Sprintf("%s ends a section, but none is open here", "</"+Word(inner)+">"), "")
	}
	section := s.open[len(s.open)-1]
	words := strings.FieldsFunc(inner, isSpace)
	named := section.Name != "" && slices.Equal(words, []string{section.Type, section.Name}) && strings.HasPrefix(inner, section.Type)
	if inner != section.Type && !named {
		return s.fail(fmt.Sprintf("%s ends another section than the one that is open, %s of line %d",
			"</"+Word(inner)+">", section.Header(), section.Pos.Line), fmt.Sprintf("</%s> is missing", section.Type))
	}
	s.open = s.open[:len(s.open)-1]
	return nil
}

func (s *scope) key(line string) error {
	name, value, ok := cutKey(line)
	if !ok {
		return s.fail("this is neither a key with a value nor a section", "a key starts with a letter")
	}
	key := Key{Name: name, Pos: s.at}
	if key.Value, key.Err = s.substitute(value); key.Err != nil {
		err := s.fail(fmt.Sprintf("the value of %s: %v", Word(name), key.Err), "")
		if !s.options.Lenient || errors.Is(key.Err, errTooLarge) {
			return err
		}
		key.Err = err
	}
	section := s.open[len(s.open)-1]
	section.Keys = append(section.Keys, key)
	return nil
}

// cutKey gives the first word of a line and the rest. A parenthesis ends a word,
// too, and no blank need stand before it: that is how ZConfig has it.
func cutKey(line string) (name, value string, ok bool) {
	i := strings.IndexFunc(line, func(r rune) bool { return isSpace(r) || r == '(' || r == ')' })
	if i < 0 {
		return line, "", true
	}
	return line[:i], strings.TrimLeftFunc(line[i:], isSpace), i > 0
}

func (s *scope) directive(line string) error {
	name, argument, ok := cutKey(line)
	known := []string{"define", "import", "include"}
	switch {
	case !ok || !slices.Contains(known, name):
		return s.fail(fmt.Sprintf("unknown directive %s", "%"+Word(name)), Suggestion(name, known, "%define, %import and %include"))
	case argument == "":
		return s.fail(fmt.Sprintf("%%%s is not followed by anything", name), "")
	case name == "define":
		return s.define(argument)
	}
	argument, err := s.substitute(argument)
	if err != nil {
		return s.fail(fmt.Sprintf("%%%s: %v", name, err), "")
	}
	if name == "include" {
		return s.include(argument)
	}
	return s.imported(argument)
}

func (s *scope) define(argument string) error {
	given, value := argument, ""
	if i := strings.IndexFunc(argument, isSpace); i >= 0 {
		given, value = argument[:i], strings.TrimLeftFunc(argument[i:], isSpace)
	}
	name := strings.ToLower(given)
	if before, ok := s.defines[name]; ok && (before.err != nil || before.value != value) {
		return s.fail(fmt.Sprintf("%s is defined a second time, with another value than in %s", Word(given), before.pos), "")
	}
	if name == "" || leadingName(name) != name {
		return s.fail(fmt.Sprintf("%s cannot be defined: a name has letters, digits and _, and starts with no digit", Word(given)), "")
	}
	d := define{pos: s.at}
	if d.value, d.err = s.substitute(value); d.err != nil {
		err := s.fail(fmt.Sprintf("%%define %s: %v", given, d.err), "")
		if !s.options.Lenient || errors.Is(d.err, errTooLarge) {
			return err
		}
		d.err = fmt.Errorf("$%s, which line %d of %s defines: %w", given, s.at.Line, s.at.File, d.err)
	}
	s.defines[name] = d
	return nil
}

// imported takes note of an %import. The types of sections that the known
// packages bring are known anyway.
func (s *scope) imported(name string) error {
	if s.imports++; s.imports > maxImports {
		return s.fail("there are more %import than in any configuration", "")
	}
	if !slices.Contains(s.options.Packages, name) {
		s.file.Warnings = append(s.file.Warnings, Warning{Pos: s.at,
			Text: fmt.Sprintf("%%import of %s, which is not known here: its sections are not, either", Word(name))})
	}
	return nil
}

func (s *scope) include(argument string) error {
	path, err := includePath(filepath.Dir(s.at.File), argument)
	if err != nil {
		return s.fail(fmt.Sprintf("%%include: %v", err), "")
	}
	if s.included++; s.included > maxIncluded {
		return s.fail(fmt.Sprintf("more than %d files are included", maxIncluded), "does a file include itself?")
	}
	info, err := os.Stat(path)
	if err != nil {
		return s.fail(fmt.Sprintf("the file %s that is included cannot be read: %s", strconv.Quote(path), cause(err)), "")
	}
	if !info.Mode().IsRegular() {
		return s.fail(fmt.Sprintf("%s, which is included, is not a file", strconv.Quote(path)), "")
	}
	for _, outer := range s.active {
		if o, err := os.Stat(outer); err == nil && os.SameFile(o, info) {
			return s.fail(fmt.Sprintf("%s is included while it is being read", strconv.Quote(path)), "a file cannot include itself, not through others either")
		}
	}
	if len(s.active) > maxIncludeNest {
		return s.fail(fmt.Sprintf("more than %d files include one another", maxIncludeNest), "")
	}
	text, err := ReadText(path)
	if err != nil {
		return err
	}
	return s.parse(path, text, s.open[len(s.open)-1], s.base+len(s.open)-1)
}

// includePath gives the path of an included file. The argument is a URL that is
// taken relative to that of the including file.
func includePath(dir, argument string) (string, error) {
	path := argument
	if scheme, rest, ok := strings.Cut(argument, ":"); ok && isScheme(scheme) {
		if !strings.EqualFold(scheme, "file") {
			return "", fmt.Errorf("only files are included, and this is something else (%s:)", strings.ToLower(scheme))
		}
		path = rest
		if host, ok := strings.CutPrefix(rest, "//"); ok {
			if path = strings.TrimPrefix(host, "localhost"); !strings.HasPrefix(path, "/") {
				return "", errors.New("a file of another machine cannot be included")
			}
		}
	}
	path, fragment, _ := strings.Cut(path, "#")
	if fragment != "" {
		return "", errors.New("a # in the name of a file is written %23")
	}
	path = unescape(path)
	if strings.ContainsRune(path, 0) {
		return "", errors.New("the name of the file has a NUL byte in it")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return filepath.Clean(path), nil
}

// isScheme tells "file" from a drive letter and from a path with a colon.
func isScheme(s string) bool {
	for i, r := range s {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", r)) {
			return false
		}
	}
	return len(s) > 1
}

// unescape replaces %XX by the byte; a % that is something else stays.
func unescape(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func (s *scope) fail(reason, hint string) error {
	return &Error{Pos: s.at, Reason: reason, Hint: hint}
}

// isSpace is what Python takes for white space.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f }
