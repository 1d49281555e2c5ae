package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
)

var update = flag.Bool("update", false, "write docs/reference.md and the results in the scripts anew")

const referencePage = "../../docs/reference.md"

var generated = regexp.MustCompile(`(?s)(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->\n)`)

// The reference says what the program says.
func TestReferenceIsWhatTheProgramSays(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{
		"help":        fence(helpOf(t)),
		"status-help": fence(helpOf(t, "status")),
		"init-help":   fence(helpOf(t, "init")),
		"status-json": fieldsOf(statusJSON{}) + "\n`run`:\n\n" + fieldsOf(runJSON{}),
		"keys":        keyTable(),
		"json":        jsonTables(),
	}
	seen := map[string]bool{}
	want := generated.ReplaceAllStringFunc(string(page), func(block string) string {
		m := generated.FindStringSubmatch(block)
		text, ok := blocks[m[2]]
		if !ok {
			t.Errorf("the page has an unknown block %q", m[2])
		}
		seen[m[2]] = true
		return m[1] + "\n" + text + "\n" + m[3]
	})
	for name := range blocks {
		if !seen[name] {
			t.Errorf("the page lacks the block %q", name)
		}
	}
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, string(page)); d != "" {
		t.Errorf("docs/reference.md is not up to date; go test ./cmd/zodb-convert -run Reference -update writes it:\n%s", d)
	}
}

// helpOf gives the help text of a command.
func helpOf(t *testing.T, command ...string) string {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	a := &app{stdout: out, stderr: out, getenv: os.LookupEnv, signals: &signals{}}
	if code := a.run(t.Context(), append(command, "--help")); code != exitDone {
		t.Fatalf("--help exits with %d", code)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	// The number of processors is not the program's.
	return regexp.MustCompile(`1 to 256 \(default \d+\)`).ReplaceAllString(string(text), "1 to 256 (default 4)")
}

func fence(text string) string { return "```text\n" + text + "```\n" }

func keyTable() string {
	var b strings.Builder
	b.WriteString("| section | key | value | meaning |\n|---|---|---|---|\n")
	for _, k := range config.Keys() {
		doc := k.Doc
		if k.Required {
			doc += " (required)"
		}
		if k.Unused != "" {
			doc += "; no effect: " + k.Unused
		}
		fmt.Fprintf(&b, "| `[%s]` | `%s` | %s | %s |\n", k.Section, k.Key, k.Value, doc)
	}
	return b.String()
}

// jsonTables describes the lines of --log-format json by the types that are
// printed.
func jsonTables() string {
	var b strings.Builder
	for _, l := range []struct {
		title string
		line  any
	}{
		{"Every line", progress.Head{}},
		{"`phase` (one starts), `phase_end`, `progress` (every 5 seconds), `report` (after SIGUSR1)", progress.StatusLine{}},
		{"Each of `steps`", progress.StepTime{}},
		{"`step`: one is done; with `-v` also: it starts", progress.StepLine{}},
		{"`note`: what the user should know", progress.NoteLine{}},
		{"`error`: the last line of a command that fails", progress.ErrorLine{}},
		{"`summary`: what came of the run", progress.SummaryLine{}},
		{"Each of `phases`", progress.PhaseEntry{}},
		{"Each of `escaped`", progress.EscapedEntry{}},
		{"`growth`", progress.GrowthEntry{}},
		{"Each of `rejects`", progress.RejectEntry{}},
		{"Each of `missing`", progress.MissingEntry{}},
		{"`upload_summary`: what came of --upload-blobs", progress.UploadLine{}},
		{"Each of `failures`", progress.FailedBlob{}},
	} {
		fmt.Fprintf(&b, "%s:\n\n%s\n", l.title, fieldsOf(l.line))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// fieldsOf gives the fields of a JSON object as a table.
func fieldsOf(v any) string {
	var b strings.Builder
	b.WriteString("| field | type | meaning |\n|---|---|---|\n")
	for f := range reflect.TypeOf(v).Fields() {
		if f.Anonymous {
			continue // Head, which every line has
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, jsonType(f.Type), f.Tag.Get("doc"))
	}
	return b.String()
}

func jsonType(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[[]byte](), t.Name() == "Time":
		return "string"
	case t == reflect.TypeFor[dest.Result](), t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		return "object"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonType(t.Elem()) + " or null"
	case reflect.Slice:
		return "list"
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	}
	return "number"
}

// Every documented field has a meaning, and names are as JSON's users expect.
func TestEveryFieldIsDocumented(t *testing.T) {
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z]+)*$`)
	for _, v := range []any{progress.Head{}, progress.StatusLine{}, progress.StepTime{}, progress.StepLine{}, progress.NoteLine{},
		progress.ErrorLine{}, progress.SummaryLine{}, progress.PhaseEntry{}, progress.EscapedEntry{}, progress.GrowthEntry{},
		progress.RejectEntry{}, progress.MissingEntry{}, progress.UploadLine{}, progress.FailedBlob{}, statusJSON{}, runJSON{}} {
		for f := range reflect.TypeOf(v).Fields() {
			if f.Anonymous {
				continue
			}
			if !name.MatchString(f.Tag.Get("json")) || f.Tag.Get("doc") == "" {
				t.Errorf("%T.%s: json %q, doc %q", v, f.Name, f.Tag.Get("json"), f.Tag.Get("doc"))
			}
		}
	}
}

func TestHelpFitsOnAScreen(t *testing.T) {
	text := helpOf(t)
	if n := strings.Count(text, "\n"); n > 40 {
		t.Errorf("%d lines", n)
	}
	for line := range strings.Lines(text) {
		if len(line) > 81 {
			t.Errorf("longer than 80: %q", line)
		}
	}
	for _, code := range []int{exitDone, exitFailed, exitUsage, exitRejects, exitInterrupted} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^  %d +\S`, code)).MatchString(text) {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}
