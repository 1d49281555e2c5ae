package zconfig

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/zodb-convert/zodb-convert/internal/nearest"
)

// maxWord is how much of a word a message shows.
const maxWord = 60

// Word shows a word of a file in a message: only what a name may consist of, so
// that a line such as password=secret, which is a word of its own, does not give
// away what must not be seen, and so that nothing disturbs a terminal.
func Word(word string) string {
	n := 0
	for i, r := range word {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._", r) || i > maxWord {
			return word[:n] + "..."
		}
		n = i + len(string(r))
	}
	return word
}

// Shown shows the name of the key in a message. A word that stands alone may be
// a password on a line of its own.
func (k *Key) Shown() string {
	if k.Value == "" && k.Err == nil && !strings.Contains(k.Name, "=") {
		return "..."
	}
	return Word(k.Name)
}

// Suggestion gives the known word that is nearest to the given one, or else
// tells what is known.
func Suggestion(word string, known []string, all string) string {
	if len(word) <= maxWord {
		if w := nearest.Word(word, known); w != "" {
			return fmt.Sprintf("did you mean %s?", w)
		}
	}
	return "known are " + all
}

// Header shows the start of a section in a message.
func (s *Section) Header() string {
	if s.Name != "" {
		return "<" + Word(s.Type) + " " + Word(s.Name) + ">"
	}
	return "<" + Word(s.Type) + ">"
}
