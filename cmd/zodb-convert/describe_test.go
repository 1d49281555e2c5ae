package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/internal/config"
)

// output runs the command and returns what it prints to stdout.
func output(t *testing.T, env map[string]string, args ...string) (int, string) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	errors, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer errors.Close()
	a := &app{stdout: out, stderr: errors, signals: &signals{}, version: "1.2.0 (commit c0ffee)",
		getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	code := a.run(t.Context(), args)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text)
}

// commandTree is the command with all that are added to it.
func commandTree(t *testing.T) *cobra.Command {
	t.Helper()
	a := &app{stdout: os.Stdout, stderr: os.Stderr, getenv: os.LookupEnv, signals: &signals{}}
	root := a.commands()
	if len(manCommands(root)) == 0 {
		t.Fatal("no commands")
	}
	return root
}

func manual(t *testing.T) string {
	t.Helper()
	code, page := output(t, map[string]string{"SOURCE_DATE_EPOCH": "1735689600"}, "man")
	if code != exitDone {
		t.Fatalf("man exits with %d", code)
	}
	return page
}

// part gives what stands between a section's heading and the next one.
func part(t *testing.T, page, heading string) string {
	t.Helper()
	m := regexp.MustCompile(`(?s)\n\.SH "?` + heading + `"?\n(.*?)(\n\.SH|$)`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no section %s", heading)
	}
	return m[1]
}

func TestManualPageHasEveryFlagKeyCommandAndExitCode(t *testing.T) {
	root, page := commandTree(t), manual(t)
	wantFlags := func(cmd *cobra.Command, text string) {
		n := 0
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			n++
			if !strings.Contains(text, `\fB`+manText("--"+f.Name)+`\fR`) {
				t.Errorf("%s: --%s is missing", cmd.Name(), f.Name)
			}
			if f.Shorthand != "" && !strings.Contains(text, `\fB\-`+f.Shorthand+`\fR`) {
				t.Errorf("%s: -%s is missing", cmd.Name(), f.Shorthand)
			}
		})
		if n < 1 {
			t.Errorf("%s has no flags", cmd.Name())
		}
	}
	wantFlags(root, part(t, page, "OPTIONS"))
	commands := strings.Split("\n"+part(t, page, "COMMANDS"), "\n.SS ")
	for _, c := range manCommands(root) {
		i := slices.IndexFunc(commands, func(text string) bool {
			return strings.HasPrefix(text, `"`+manText(root.Name()+" "+c.Name()))
		})
		if i < 0 {
			t.Errorf("the command %s is missing", c.Name())
			continue
		}
		wantFlags(c, commands[i])
	}
	keys := part(t, page, "CONFIGURATION")
	for _, k := range config.Keys() {
		if !strings.Contains(keys, `\fB`+manText(k.Key)+`\fR`) {
			t.Errorf("the key %s of [%s] is missing", k.Key, k.Section)
		}
	}
	codes := part(t, page, "EXIT STATUS")
	for _, code := range []string{"0", "1", "2", "3", "4", "130"} {
		if !strings.Contains(codes, ".TP\n\\fB"+code+"\\fR\n") {
			t.Errorf("exit code %s is missing", code)
		}
	}
}

// What the page says besides the definitions is about flags that there are.
func TestManualPageKnowsNoFlagThatIsGone(t *testing.T) {
	root, page := commandTree(t), manual(t)
	known := map[string]bool{}
	for _, c := range append(root.Commands(), root) {
		c.Flags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
	}
	plain := strings.ReplaceAll(page, `\-`, "-")
	for _, flag := range regexp.MustCompile(`--[a-z][a-z0-9-]+`).FindAllString(plain, -1) {
		if !known[flag] {
			t.Errorf("%s is no flag", flag)
		}
	}
	for name := range manDetails {
		if root.Flags().Lookup(name) == nil {
			t.Errorf("manDetails: --%s is no flag", name)
		}
	}
	for name := range manDefaults {
		if root.Flags().Lookup(name) == nil {
			t.Errorf("manDefaults: --%s is no flag", name)
		}
	}
}

func TestExamplesOfTheManualPageAreRightCommandLines(t *testing.T) {
	for _, e := range manExamples {
		words := strings.Fields(e.term)[1:]
		cmd, rest, err := commandTree(t).Find(words)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s: %v", e.term, err)
		} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			t.Errorf("%s: %v", e.term, err)
		}
	}
}

func TestManualPageIsTheSameOnEveryMachineAndDay(t *testing.T) {
	page := manual(t)
	if !strings.HasPrefix(page, ".TH ZODB-CONVERT 1 2025-01-01 \"zodb-convert 1.2.0\" \"User Commands\"\n") {
		t.Errorf("it begins with %q", page[:min(len(page), 100)])
	}
	// Neither the number of processors of this machine nor its folders.
	if home, err := os.UserHomeDir(); err == nil && len(home) > 1 && strings.Contains(page, home) {
		t.Errorf("it names %s", home)
	}
	if !strings.Contains(page, "Default: one for each") {
		t.Error("the number of workers is not told by a rule")
	}
	if code, _ := output(t, map[string]string{"SOURCE_DATE_EPOCH": "today"}, "man"); code != exitUsage {
		t.Errorf("a bad SOURCE_DATE_EPOCH: exit code %d", code)
	}
}

// The programs that show manual pages have nothing to say against it.
func TestManualPageIsRightRoff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zodb-convert.1")
	if err := os.WriteFile(path, []byte(manual(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, checker := range [][]string{
		{"mandoc", "-T", "lint", "-W", "style", path},
		{"groff", "-man", "-ww", "-z", "-T", "utf8", path},
	} {
		t.Run(checker[0], func(t *testing.T) { silent(t, checker) })
	}
}

func TestManualTextIsTakenLiterally(t *testing.T) {
	for text, want := range map[string]string{
		`a-b`: `a\-b`, `C:\x`: `C:\ex`, "~/x": `\(ti/x`, `'it' "is"`: `\(aqit\(aq \(dqis\(dq`, "Größe": `Gr\[u00F6]\[u00DF]e`,
	} {
		if got := manText(text); got != want {
			t.Errorf("manText(%q) = %q, want %q", text, got, want)
		}
	}
	long := strings.Repeat(".dotted ", 40)
	for line := range strings.Lines(manWrap(long)) {
		if strings.HasPrefix(line, ".") || len(line) > 80 {
			t.Errorf("the line %q", line)
		}
	}
}

func TestCompletionsAreRightShell(t *testing.T) {
	for _, shell := range shells {
		t.Run(shell, func(t *testing.T) {
			code, script := output(t, nil, "completion", shell)
			if code != exitDone || !strings.Contains(script, "zodb-convert") {
				t.Fatalf("exit code %d: %q", code, script)
			}
			path := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
				t.Fatal(err)
			}
			silent(t, []string{shell, "-n", path})
		})
	}
	for _, args := range [][]string{{"completion"}, {"completion", "tcsh"}, {"completion", "bash", "zsh"}, {"man", "page"}} {
		if code, out := output(t, nil, args...); code != exitUsage || out != "" {
			t.Errorf("%v: exit code %d, %q", args, code, out)
		}
	}
}

// silent runs a program that has to succeed and say nothing. One that is not
// installed is left to the tests of packages, which install all of them
// (scripts/lib/release.sh).
func silent(t *testing.T, command []string) {
	t.Helper()
	if _, err := exec.LookPath(command[0]); err != nil && command[0] != "bash" {
		t.Logf("%s is not installed: nothing is checked with it here", command[0])
		return
	}
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}

func TestCompletions(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"site.toml", "status.toml", "migrate.toml", ".hidden.toml"} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("settings", 0o755); err != nil {
		t.Fatal(err)
	}
	const noFiles, files = ":4", ":0"
	for _, c := range []struct {
		line      string // the last word is the one to complete
		want      []string
		not       []string
		directive string
	}{
		{"", []string{"status", "completion", "site.toml", "migrate.toml", "settings/"}, []string{"man", ".hidden.toml"}, files},
		{"s", []string{"status", "site.toml", "status.toml", "settings/"}, []string{"migrate.toml", "completion"}, files},
		{"mi", nil, nil, files},        // the shell completes names of files by itself
		{"settings/", nil, nil, files}, // and folders
		{"migrate.toml ", nil, []string{"site.toml"}, noFiles},
		{"--rej", []string{"--rejects"}, []string{"--clear"}, noFiles},
		{"--log-format ", []string{"text", "json"}, []string{"site.toml"}, noFiles},
		{"--log-format=j", []string{"json"}, nil, noFiles},
		{"--workers ", nil, []string{"site.toml"}, noFiles},
		{"--s3-bucket ", nil, []string{"site.toml"}, noFiles},
		{"--rejects ", nil, nil, files},
		{"--s3-ca-bundle ", nil, nil, files},
		{"--upload-blobs ", nil, nil, files},
		{"--source-zope-conf ", nil, nil, files},
		{"status ", nil, nil, files},
		{"status --j", []string{"--json"}, nil, noFiles},
		{"in", []string{"inspect", "init"}, []string{"site.toml"}, files},
		{"inspect --no", []string{"--no-reachability"}, nil, noFiles},
		{"inspect --temp-dir ", nil, nil, files},
		{"status a.toml ", nil, []string{"site.toml"}, noFiles},
		{"completion ", []string{"bash", "zsh", "fish"}, []string{"site.toml"}, noFiles},
	} {
		t.Run(c.line, func(t *testing.T) {
			code, out := output(t, nil, append([]string{"__complete"}, strings.Split(c.line, " ")...)...)
			if code != exitDone {
				t.Fatalf("exit code %d", code)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if d := lines[len(lines)-1]; d != c.directive {
				t.Errorf("directive %s, want %s", d, c.directive)
			}
			var words []string
			for _, l := range lines[:len(lines)-1] {
				word, _, _ := strings.Cut(l, "\t")
				words = append(words, word)
			}
			if len(c.want) == 0 && len(words) > 0 {
				t.Errorf("completions %q, and none is wanted", words)
			}
			for _, w := range c.want {
				if !slices.Contains(words, w) {
					t.Errorf("%s is missing in %q", w, words)
				}
			}
			for _, w := range c.not {
				if slices.Contains(words, w) {
					t.Errorf("%s is in %q", w, words)
				}
			}
		})
	}
}

// Every flag with a value has a way to complete it: names of files, words, or
// nothing.
func TestEveryValueHasACompletion(t *testing.T) {
	root := commandTree(t)
	for _, cmd := range append(root.Commands(), root) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.NoOptDefVal != "" {
				return
			}
			value, _ := pflag.UnquoteUsage(f)
			_, declared := cmd.GetFlagCompletionFunc(f.Name)
			if !declared && !slices.Contains(fileValues, value) {
				t.Errorf("%s --%s %s", cmd.Name(), f.Name, value)
			}
			if strings.Contains(value, "PATH") && declared {
				t.Errorf("%s --%s %s: files are not completed", cmd.Name(), f.Name, value)
			}
		})
	}
}
