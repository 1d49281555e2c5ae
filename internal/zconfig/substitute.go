package zconfig

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/nearest"
)

// errTooLarge says that the substitutions in a file grow beyond every measure.
var errTooLarge = errors.New("the substituted values are larger than any configuration")

// substitute puts in what $name, ${name} and $(NAME) stand for. What it puts in
// is not looked at again.
func (p *parser) substitute(text string) (string, error) {
	if !strings.Contains(text, "$") {
		return text, nil
	}
	var out strings.Builder
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "$")
		out.WriteString(before)
		if !found {
			break
		}
		value, n, err := p.reference(after)
		if err != nil {
			return "", err
		}
		out.WriteString(value)
		if out.Len() > maxLine {
			return "", errTooLarge
		}
		rest = after[n:]
	}
	p.substituted += out.Len()
	if p.substituted > maxSubstituted {
		return "", errTooLarge
	}
	return out.String(), nil
}

// reference gives what stands for the text behind a $, and how much of the text
// it takes.
func (p *parser) reference(text string) (value string, n int, err error) {
	switch {
	case text == "":
		return "", 0, errors.New("a $ at the end of the value; a plain $ is written $$")
	case text[0] == '$':
		return "$", 1, nil
	case text[0] == '{':
		name, err := enclosed(text, "${", "}")
		if err != nil {
			return "", 0, err
		}
		d, ok := p.defines[strings.ToLower(name)]
		if !ok {
			return "", 0, fmt.Errorf("${%s} is not defined; write %%define %s above, or $(%s) for the environment variable", name, name, name)
		}
		return d.value, len(name) + 2, d.err
	case text[0] == '(':
		name, err := enclosed(text, "$(", ")")
		if err != nil {
			return "", 0, err
		}
		value, ok := p.getenv(name)
		if !ok {
			return "", 0, fmt.Errorf("the environment variable %s is not set", name)
		}
		return value, len(name) + 2, nil
	}
	name := leadingName(text)
	if name == "" {
		return "", 0, errors.New("a $ that no name follows; a plain $ is written $$")
	}
	d, ok := p.defines[strings.ToLower(name)]
	if !ok {
		return "", 0, p.undefined(name)
	}
	return d.value, len(name), d.err
}

// undefined is the error for a $ before a name that is not defined. It does not
// show the name: it may be part of a password in which nobody doubled the $.
func (p *parser) undefined(name string) error {
	known := slices.Sorted(maps.Keys(p.defines))
	if w := nearest.Word(strings.ToLower(name), known); w != "" && len(name) <= maxWord {
		return fmt.Errorf("what stands behind a $ is not defined; did you mean $%s? A plain $ is written $$", w)
	}
	return errors.New("what stands behind a $ is not defined; a plain $ is written $$, and %define defines a name")
}

// enclosed gives the name between the brackets that text starts with.
func enclosed(text, open, end string) (string, error) {
	name := leadingName(text[1:])
	if name == "" {
		return "", fmt.Errorf("%s is not followed by a name; a plain $ is written $$", open)
	}
	if !strings.HasPrefix(text[1+len(name):], end) {
		return "", fmt.Errorf("%s and a name are not followed by %s; a plain $ is written $$", open, end)
	}
	return name, nil
}

// leadingName gives the name that text starts with, or "".
func leadingName(text string) string {
	for i := 0; i < len(text); i++ {
		c := text[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return text[:i]
		}
	}
	return text
}
