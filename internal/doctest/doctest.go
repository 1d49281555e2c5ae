// Package doctest runs what the documentation shows.
//
// Every fenced block of README.md and of the pages in docs/ is checked, so that
// no page can show a command, a configuration, a query or an error that the
// tool does not have. By language of the block:
//
//	sh       runs with bash -eu in the page's own scratch folder
//	toml     is written to the file that the comment before it names, or else
//	         to migrate.toml, and has to be a right configuration
//	zconfig  has to be a right configuration for a conversion; one with a name
//	         is written to that file, and may also be that of a site
//	sql      runs with psql in the database zodb_new
//	xml      is a site's configuration (ZConfig): the real ZODB opens it and
//	         reads the root object; needs what scripts/setup installs
//	text     has to be, line by line, in what the block before it printed; …
//	         stands for anything
//	mermaid  is a drawing and is not run
//
// A page's blocks run in order and share the scratch folder and a real
// PostgreSQL, in which psql, createdb and the like work as they stand. The path
// of the example's Data.fs and its connection string are replaced by real ones.
//
// HTML comments before a block, which no reader sees, say more about it:
//
//	<!-- exit: 3 -->         the exit code that is expected; 0 otherwise
//	<!-- file: other.toml --> where a toml or zconfig block goes
//	<!-- refused -->          the tool refuses the configuration
//	<!-- in the clone -->    runs in the folder of the repository
//	<!-- tested: scripts/test runs it -->
//	                         is not run here; allowed for the scripts only
//
// What stands between "generated: name" and "end" is what the program says; the
// command's own tests compare it.
//
// A comment that begins with the word setup runs, without being shown:
//
//	<!-- setup
//	createdb zodb_new
//	-->
//
// In troubleshooting.md each heading that is a code span is a message of the
// tool, with … for a name or a number, and has to be in the source.
package doctest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// block is one thing on a page that is run or checked.
type block struct {
	line     int    // of the page, for messages
	language string // "setup" for a hidden one
	text     string
	exit     int
	file     string
	inClone  bool
	refused  bool
	tested   string // who runs it, if not this package
}

var (
	comment   = regexp.MustCompile(`^<!--\s*(.*?)\s*-->$`)
	exitCode  = regexp.MustCompile(`^exit: (\d+)$`)
	fileName  = regexp.MustCompile(`^file: ([\w.-]+)$`)
	testedBy  = regexp.MustCompile(`^tested: (.+)$`)
	languages = map[string]bool{"sh": true, "toml": true, "zconfig": true, "sql": true, "xml": true, "text": true, "mermaid": true}
)

// blocks finds the blocks of a page.
func blocks(page string) ([]block, error) {
	var found []block
	next := block{}
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimRight(lines[i], " ")
		var end string
		switch {
		case line == "<!-- setup":
			next.language, end = "setup", "-->"
		case strings.HasPrefix(line, "```"):
			next.language, end = strings.TrimPrefix(line, "```"), "```"
			if !languages[next.language] {
				return nil, fmt.Errorf("line %d: a block of the language %q cannot be checked", i+1, next.language)
			}
		case strings.HasPrefix(line, "<!-- generated: "):
			for i < len(lines) && lines[i] != "<!-- end -->" {
				i++
			}
			continue
		case comment.MatchString(line):
			if err := next.directive(comment.FindStringSubmatch(line)[1]); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			continue
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			return nil, fmt.Errorf("line %d: an indented block would not be checked", i+1)
		default:
			continue
		}
		next.line = i + 1
		start := i + 1
		for i++; i < len(lines) && strings.TrimRight(lines[i], " ") != end; i++ {
		}
		if i == len(lines) {
			return nil, fmt.Errorf("line %d: the block has no end", next.line)
		}
		next.text = strings.Join(lines[start:i], "\n") + "\n"
		found = append(found, next)
		next = block{}
	}
	return found, nil
}

func (b *block) directive(text string) (err error) {
	if m := exitCode.FindStringSubmatch(text); m != nil {
		b.exit, err = strconv.Atoi(m[1])
		return err
	}
	if m := fileName.FindStringSubmatch(text); m != nil {
		b.file = m[1]
		return nil
	}
	if m := testedBy.FindStringSubmatch(text); m != nil {
		b.tested = m[1]
		return nil
	}
	switch text {
	case "in the clone":
		b.inClone = true
		return nil
	case "refused":
		b.refused = true
		return nil
	}
	return fmt.Errorf("the comment %q says nothing that is known", text)
}

// missingLines gives the first line of want that is not in output after the
// lines before it, or "". Lines of want may hold …, white space counts as one
// blank.
func missingLines(want, output string) string {
	rest := strings.Split(output, "\n")
	for line := range strings.Lines(want) {
		line = strings.Join(strings.Fields(line), " ")
		if line == "" || line == "…" {
			continue
		}
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + "$")
		found := false
		for i, have := range rest {
			if pattern.MatchString(strings.Join(strings.Fields(have), " ")) {
				rest, found = rest[i+1:], true
				break
			}
		}
		if !found {
			return line
		}
	}
	return ""
}
