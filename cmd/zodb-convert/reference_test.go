package main

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
	"github.com/zodb-convert/zodb-convert/verify"
)

var update = flag.Bool("update", false, "write docs/reference.md and the results in the scripts anew")

const (
	referencePage  = "../../docs/reference.md"
	inspectionPage = "../../docs/inspect.md"
)

var generated = regexp.MustCompile(`(?s)(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->\n)`)

// The reference says what the program says.
func TestReferenceIsWhatTheProgramSays(t *testing.T) {
	saysWhatTheProgramSays(t, referencePage, map[string]string{
		"help":        fence(helpOf(t)),
		"status-help": fence(helpOf(t, "status")),
		"init-help":   fence(helpOf(t, "init")),
		"verify-help": fence(helpOf(t, "verify")),
		"verify-json": fieldsOf(verify.Result{}) + "\nEach of `kinds` and `declared`:\n\n" + fieldsOf(verify.Count{}) +
			"\nEach of `first`, and each line of `--report`:\n\n" + fieldsOf(verify.Difference{}),
		"inspect-help": fence(helpOf(t, "inspect")),
		"status-json":  fieldsOf(statusJSON{}) + "\n`run`:\n\n" + fieldsOf(runJSON{}),
		"keys":         keyTable(),
		"zconfig":      zconfigTables(),
		"json":         jsonTables(),
	})
}

// So does the page about inspect, for the version of the JSON that it names.
func TestPageOfInspectionsIsWhatTheProgramSays(t *testing.T) {
	saysWhatTheProgramSays(t, inspectionPage, map[string]string{
		"inspect-json": fmt.Sprintf("`version` is %d.\n\n", inspect.Version) + tables([]table{
			{"The object", inspect.Report{}},
			{"`source`", inspect.Source{}},
			{"Each of `classes`, and `other_classes`", inspect.Class{}},
			{"Each of `protocols`", inspect.Protocol{}},
			{"Each of `largest`", inspect.LargeRecord{}},
			{"`blobs`", inspect.Blobs{}},
			{"`history_free` and `history_preserving`", inspect.Rows{}},
			{"Each of `altered` and `notable`", inspect.Finding{}},
			{"Each of `reasons`", inspect.Reason{}},
			{"`estimate`", inspect.Estimate{}},
			{"`destination`", dest.Survey{}},
			{"Each of `rights`", dest.Right{}},
			{"`connections`", dest.Connections{}},
			{"Each of `settings`", dest.Setting{}},
			{"Each of `blob_tiers`", dest.BlobTier{}},
			{"Each of `faults`", dest.Fault{}},
		}),
	})
}

// The page tells of every cause that is no special form what to do about it.
func TestEveryCauseOfAFindingIsExplained(t *testing.T) {
	page, err := os.ReadFile(inspectionPage)
	if err != nil {
		t.Fatal(err)
	}
	source, err := parser.ParseFile(token.NewFileSet(), "../../inspect/report.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	causes := 0
	ast.Inspect(source, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		text, ok := spec.Values[0].(*ast.BasicLit)
		if !ok || text.Kind != token.STRING {
			return true
		}
		causes++
		if cause := strings.Trim(text.Value, `"`); !strings.Contains(string(page), "\n| `"+cause+"` | ") {
			t.Errorf("docs/inspect.md does not explain %q", cause)
		}
		return true
	})
	if causes < 10 {
		t.Errorf("only %d causes are found", causes)
	}
}

// saysWhatTheProgramSays compares what is generated of a page, or writes it anew.
func saysWhatTheProgramSays(t *testing.T, path string, blocks map[string]string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
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
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := gocmp.Diff(want, string(page)); d != "" {
		t.Errorf("docs/%s is not up to date; go test ./cmd/zodb-convert -run WhatTheProgramSays -update writes it:\n%s", filepath.Base(path), d)
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

// keyTable describes the keys of TOML. Those without effect share a row.
func keyTable() string {
	var b strings.Builder
	b.WriteString("| section | key | value | meaning |\n|---|---|---|---|\n")
	var idle []config.KeyDoc
	flush := func() {
		if len(idle) > 0 {
			var names []string
			for _, k := range idle {
				names = append(names, "`"+k.Key+"`")
			}
			fmt.Fprintf(&b, "| `[%s]` | %s | | no effect: %s |\n", idle[0].Section, strings.Join(names, ", "), idle[0].Unused)
		}
		idle = nil
	}
	for _, k := range config.Keys() {
		if len(idle) > 0 && (k.Section != idle[0].Section || k.Unused != idle[0].Unused) {
			flush()
		}
		if k.Unused != "" {
			idle = append(idle, k)
			continue
		}
		doc := k.Doc
		if k.Required {
			doc += " (required)"
		}
		fmt.Fprintf(&b, "| `[%s]` | `%s` | %s | %s |\n", k.Section, k.Key, k.Value, doc)
	}
	flush()
	return b.String()
}

// zconfigTables describes sections and keys of ZConfig. Keys with one effect in
// common share a row.
func zconfigTables() string {
	meaning := map[string]string{
		"create":               "refused if it is on",
		"filestorage blob-dir": "the directory of its blobs; needed if the database has any",
		"blobstorage blob-dir": "the same, around the storage",
	}
	for _, k := range config.Keys() {
		in := k.Type
		if _, database, ok := strings.Cut(k.Section, "."); ok {
			in = database
		}
		meaning[in+" "+k.Key] = k.Doc
	}
	var b strings.Builder
	b.WriteString("| section | key | value | meaning |\n|---|---|---|---|\n")
	var idle []storage.KeyDoc
	flush := func() {
		if len(idle) > 0 {
			var names []string
			for _, k := range idle {
				names = append(names, "`"+k.Key+"`")
			}
			fmt.Fprintf(&b, "| `<%s>` | %s | | no effect: %s |\n", idle[0].Section, strings.Join(names, ", "), idle[0].Unused)
		}
		idle = nil
	}
	for _, k := range storage.Keys() {
		if len(idle) > 0 && (k.Section != idle[0].Section || k.Unused != idle[0].Unused) {
			flush()
		}
		if k.Unused != "" {
			idle = append(idle, k)
			continue
		}
		doc := cmp.Or(meaning[k.Section+" "+k.Key], meaning[k.Key])
		if k.Required {
			doc += " (required)"
		}
		fmt.Fprintf(&b, "| `<%s>` | `%s` | %s | %s |\n", k.Section, k.Key, k.Value, doc)
	}
	flush()
	b.WriteString("\n| storage | as the source | as the destination |\n|---|---|---|\n")
	for _, d := range storage.Sections() {
		fmt.Fprintf(&b, "| `<%s>` | %s | %s |\n", d.Section, taken(d.Source), taken(d.Destination))
	}
	return b.String()
}

func taken(refused string) string {
	if refused == "" {
		return "taken"
	}
	return "refused: " + regexp.MustCompile("<[a-z0-9]+>").ReplaceAllString(refused, "`$0`")
}

// jsonTables describes the lines of --log-format json by the types that are
// printed.
func jsonTables() string {
	return tables([]table{
		{"Every line", progress.Head{}},
		{"`phase` (one starts), `phase_end`, `progress` (every 5 seconds), `report` (after SIGUSR1)", progress.StatusLine{}},
		{"Each of `steps`", progress.StepTime{}},
		{"`step`: one is done; with `-v` also: it starts", progress.StepLine{}},
		{"`note`: what the user should know", progress.NoteLine{}},
		{"`error`: the last line of a command that fails", progress.ErrorLine{}},
		{"`summary`: what came of the run", progress.SummaryLine{}},
		{"Each of `phases`", progress.PhaseEntry{}},
		{"Each of `form_classes`", progress.FormEntry{}},
		{"Each of `escaped`", progress.EscapedEntry{}},
		{"`growth`", progress.GrowthEntry{}},
		{"Each of `rejects`", progress.RejectEntry{}},
		{"Each of `missing`", progress.MissingEntry{}},
		{"`upload_summary`: what came of --upload-blobs", progress.UploadLine{}},
		{"Each of `failures`", progress.FailedBlob{}},
		{"`retry_summary`: what came of --retry-rejects", progress.RetryLine{}},
		{"Each of `superseded`", progress.SupersededEntry{}},
	})
}

// table is an object of JSON.
type table struct {
	title  string
	object any
}

func tables(list []table) string {
	var b strings.Builder
	for _, l := range list {
		fmt.Fprintf(&b, "%s:\n\n%s\n", l.title, fieldsOf(l.object))
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
		if !f.IsExported() {
			continue
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
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	for _, v := range []any{progress.Head{}, progress.StatusLine{}, progress.StepTime{}, progress.StepLine{}, progress.NoteLine{},
		progress.ErrorLine{}, progress.SummaryLine{}, progress.PhaseEntry{}, progress.EscapedEntry{}, progress.GrowthEntry{},
		progress.RejectEntry{}, progress.MissingEntry{}, progress.UploadLine{}, progress.FailedBlob{}, progress.RetryLine{}, progress.SupersededEntry{}, statusJSON{}, runJSON{},
		verify.Result{}, verify.Count{}, verify.Difference{},
		inspect.Report{}, inspect.Source{}, inspect.Class{}, inspect.Protocol{}, inspect.LargeRecord{}, inspect.Blobs{}, inspect.Rows{}, inspect.Finding{},
		inspect.Reason{}, inspect.Estimate{}, dest.Survey{}, dest.Right{}, dest.Connections{}, dest.Setting{}, dest.BlobTier{}, dest.Fault{}} {
		for f := range reflect.TypeOf(v).Fields() {
			if f.Anonymous || !f.IsExported() {
				continue
			}
			if field, _, _ := strings.Cut(f.Tag.Get("json"), ","); !name.MatchString(field) || f.Tag.Get("doc") == "" {
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
	for _, code := range []int{exitDone, exitFailed, exitUsage, exitRejects, exitDifferences, exitInterrupted} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^  %d +\S`, code)).MatchString(text) {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}

// blank takes out of the reference what is generated.
func blank(page string) string { return generated.ReplaceAllString(page, "") }

// What the prose calls a flag is one, and every flag is in the page.
func TestFlagsInTheReferenceAreThoseOfTheProgram(t *testing.T) {
	text, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	known := map[string]bool{}
	root := commandTree(t)
	for _, c := range append(manCommands(root), root) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			known["--"+f.Name] = true
			if !strings.Contains(page, "--"+f.Name) {
				t.Errorf("--%s of %s is not in the page", f.Name, c.Name())
			}
		})
	}
	flags := regexp.MustCompile(`--[a-z][a-z0-9-]*`).FindAllString(blank(page), -1)
	if len(flags) < 10 {
		t.Fatalf("only %d flags in the prose", len(flags))
	}
	for _, f := range flags {
		if !known[f] && f != "--s3-" {
			t.Errorf("the page names %s, which is no flag", f)
		}
	}
}

// What stands in code marks in the prose and looks like a key is one.
func TestKeysInTheReferenceAreThoseOfTheProgram(t *testing.T) {
	text, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"instancehome": true, "zodb-convert": true}
	for _, k := range config.Keys() {
		known[k.Key] = true
	}
	for _, k := range storage.Keys() {
		known[k.Key] = true
	}
	for _, m := range regexp.MustCompile("`([a-z0-9]+(?:-[a-z0-9]+)+)`").FindAllStringSubmatch(blank(string(text)), -1) {
		if !known[m[1]] {
			t.Errorf("the page names %s, which is no key", m[1])
		}
	}
}

// For every exit code that help and reference list there is a script that makes
// the program end with it.
func TestEveryExitCodeIsSeen(t *testing.T) {
	codes := map[string]bool{}
	for _, m := range exitLine.FindAllStringSubmatch(exitStatus, -1) {
		codes[m[1]] = false
	}
	if len(codes) != 6 {
		t.Fatalf("%d exit codes are documented", len(codes))
	}
	scripts, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal(scripts, err)
	}
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^exits (\d+) `).FindAllStringSubmatch(string(text), -1) {
			if _, ok := codes[m[1]]; !ok {
				t.Errorf("%s: exit code %s is not documented", path, m[1])
			}
			codes[m[1]] = true
		}
		if strings.Contains(string(text), "\nexec zodb-convert ") {
			codes["0"] = true // exec fails on any other
		}
	}
	for code, seen := range codes {
		if !seen {
			t.Errorf("no script ends with %s", code)
		}
	}
}
