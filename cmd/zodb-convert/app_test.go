package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

func TestErrorsBecomeASentenceHintsAndACode(t *testing.T) {
	a := &app{}
	a.keepSecret("host=h user=u password='hunter 2' dbname=d")
	for _, c := range []struct {
		name string
		err  error
		want *progress.Problem
	}{
		{"usage", usage("no", "do this"), &progress.Problem{ExitCode: 2, Message: "no", Hints: []string{"do this"}}},
		{"configuration", &config.Error{Path: "c.toml", Line: 3, Reason: "bad key", Hint: "good key"},
			&progress.Problem{ExitCode: 2, Message: "c.toml:3: bad key", Hints: []string{"good key"}}},
		{"refusal within other errors", fmt.Errorf("look at it: %w", &dest.RefusedError{Reason: "not empty", Hint: "empty it"}),
			&progress.Problem{ExitCode: 1, Message: "look at it: not empty", Hints: []string{"empty it"}}},
		{"damage", &failure{err: &source.DamageError{Path: "Data.fs", Pos: 4, Problem: "bad length", Hint: "use fsrecover"}, hints: []string{"more"}},
			&progress.Problem{ExitCode: 1, Message: "Data.fs: damaged at offset 4: bad length; no good transaction before it", Hints: []string{"use fsrecover", "more"}}},
		{"interrupted", &failure{err: fmt.Errorf("load: %w", context.Canceled), hints: []string{"go on"}},
			&progress.Problem{ExitCode: 130, Message: "interrupted", Hints: []string{"go on"}}},
		{"several lines", errors.New("failed to connect to `user=u`:\n\t1.2.3.4:5432: refused\n\t[::1]:5432: refused"),
			&progress.Problem{ExitCode: 1, Message: "failed to connect to `user=u`: 1.2.3.4:5432: refused; [::1]:5432: refused"}},
		{"secret", errors.New("server said hunter 2"), &progress.Problem{ExitCode: 1, Message: "server said xxxxx"}},
		{"secret in a hint", usage("no", "hunter 2"), &progress.Problem{ExitCode: 2, Message: "no", Hints: []string{"xxxxx"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, a.problem(c.err)); d != "" {
				t.Error(d)
			}
		})
	}
}

// A password that is part of the name of the program does not spoil the command
// that goes on, and is not shown elsewhere.
func TestRedactionLeavesCommandsWhole(t *testing.T) {
	a := &app{}
	a.keepSecret("host=h user=u password=zodb dbname=d")
	a.keepSecret("host=h user=u password=my-zodb-convert-word dbname=d")
	got := a.redact("my-zodb-convert-word, password=zodb failed; go on with: zodb-convert -w 4 --incremental m.toml, of zodb-pgjsonb, zodb")
	if want := "xxxxx, password=xxxxx failed; go on with: zodb-convert -w 4 --incremental m.toml, of zodb-pgjsonb, xxxxx"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Whatever is printed, and in whatever form, the keys of S3 are not in it.
func TestNothingThatIsPrintedShowsAKey(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	env := map[string]string{"AWS_SECRET_ACCESS_KEY": "of/the+environment=", "AWS_SESSION_TOKEN": "a\"quoted\\token"}
	a := &app{stderr: out, getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	a.keepS3Secrets(&config.S3{AccessKey: "AKIAEXAMPLE", SecretKey: "secretkey"})
	for _, format := range []string{"text", "json"} {
		a.output.logFormat = format
		for _, key := range []string{"AKIAEXAMPLE", "secretkey", "of/the+environment=", "a\"quoted\\token"} {
			a.printer().Note(time.Now(), "<"+key+">")
			a.printer().Problem(a.problem(errors.New("server said " + key)))
			a.printer().Summary(&progress.Summary{Report: &pipeline.Report{Notes: []string{"note " + key}}})
		}
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "<xxxxx>"); n != 8 {
		t.Errorf("%d notes of 8 are without their key", n)
	}
	for _, part := range []string{"AKIA", "secretkey", "environment=", "token"} {
		if strings.Contains(string(text), part) {
			t.Errorf("%q is shown in\n%s", part, text)
		}
	}
}

func TestQuoteGivesWhatAShellReads(t *testing.T) {
	for word, want := range map[string]string{
		"migrate.toml": "migrate.toml", "a b.toml": "'a b.toml'", "it's": `'it'\''s'`, "": "''", "$HOME": "'$HOME'", "größe": "'größe'",
	} {
		if got := quote(word); got != want {
			t.Errorf("quote(%q) = %s, want %s", word, got, want)
		}
	}
}

func TestSizeTextIsWhatParseSizeReads(t *testing.T) {
	for n, want := range map[int64]string{256 << 20: "256MB", 1 << 30: "1GB", 1536 << 20: "1536MB", 1000: "1000", 1 << 10: "1KB", 0: "0"} {
		if got := sizeText(n); got != want {
			t.Errorf("sizeText(%d) = %s, want %s", n, got, want)
		}
		if back, err := config.ParseSize(sizeText(n)); err != nil || back != n {
			t.Errorf("ParseSize(sizeText(%d)) = %d, %v", n, back, err)
		}
	}
}

// outcome runs a conversion that ends as given, and returns exit code and
// stderr.
func outcome(t *testing.T, o convertOptions, reached pipeline.Phase, report *pipeline.Report, end error) (int, string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	a := &app{stderr: out, getenv: os.LookupEnv, signals: &signals{}}
	o.from.Path = "migrate.toml"
	c := &conversion{watched: watched{app: a}, options: &o, config: &config.Config{}, opts: pipeline.Options{
		Workers: 8, Memory: pipeline.DefaultMemory, Incremental: o.incremental, DryRun: o.dryRun, Rejects: o.rejects,
		Blobs: o.blobMode(), Manifest: o.deferred, AllowMissingBlobs: o.allowMissing}}
	err = c.run(t.Context(), func(_ context.Context, opts pipeline.Options) (*pipeline.Report, error) {
		opts.Progress(pipeline.Event{Kind: pipeline.PhaseStarted, Phase: reached})
		return report, end
	})
	code := exitDone
	var done exitCode
	switch {
	case errors.As(err, &done):
		code = int(done)
	case err != nil:
		p := a.problem(err)
		a.printer().Problem(p)
		code = p.ExitCode
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text)
}

func TestEveryEndSaysWhatToDoNext(t *testing.T) {
	rejected := &dest.RejectedError{Count: 3}
	grown := source.Growth{Transactions: 17, Since: zodb.TIDAt(zodb.TID(0x03f8654c26666666).Time())}
	for _, c := range []struct {
		name    string
		options convertOptions
		reached pipeline.Phase
		report  pipeline.Report
		err     error
		code    int
		want    []string
		not     string
	}{
		{name: "done", reached: pipeline.Finished, want: []string{"Done: ", "zodb-convert -w 8 --incremental migrate.toml"}},
		{name: "done, and the source has grown", reached: pipeline.Finished, report: pipeline.Report{Growth: grown},
			want: []string{"The source has got 17 transactions since", "zodb-convert -w 8 --incremental migrate.toml"}},
		{name: "done, and the source was replaced", reached: pipeline.Finished, report: pipeline.Report{Growth: source.Growth{Replaced: true}},
			want: []string{"packed or replaced", "--clear"}, not: "--incremental migrate.toml"},
		{name: "rejects accepted", options: convertOptions{rejects: "r.jsonl"}, reached: pipeline.Finished, code: exitRejects,
			report: pipeline.Report{Totals: dest.Result{Rejected: 3}, RejectsFile: "r.jsonl"},
			want:   []string{"but for 3 rejected records", "listed in r.jsonl"}},
		{name: "rejects not accepted", reached: pipeline.Loading, code: exitFailed, err: rejected,
			report: pipeline.Report{Totals: dest.Result{Rejected: 3}},
			want: []string{"Not finished: 3 records", "zodb-convert: 3 records were rejected\n",
				"zodb-convert -w 8 --incremental --rejects rejects.jsonl migrate.toml", "zodb-convert --abort migrate.toml"}},
		{name: "root rejected", reached: pipeline.Loading, code: exitFailed, err: &dest.RejectedError{Count: 1, Root: true},
			want: []string{"zodb-convert: the root object was rejected", "zodb-convert --abort migrate.toml"}, not: "--incremental"},
		{name: "missing blobs not accepted", options: convertOptions{background: true}, reached: pipeline.Loading, code: exitFailed, err: &dest.RejectedError{MissingBlobs: 2},
			report: pipeline.Report{Totals: dest.Result{MissingBlobs: 2}},
			want: []string{"Not finished: 2 blobs", "zodb-convert: 2 blobs are missing\n",
				"looked for again: zodb-convert -w 8 --background-blobs --incremental migrate.toml",
				"zodb-convert -w 8 --background-blobs --incremental --allow-missing-blobs migrate.toml", "zodb-convert --abort migrate.toml"}, not: "--rejects"},
		{name: "rejects and missing blobs not accepted", reached: pipeline.Loading, code: exitFailed, err: &dest.RejectedError{Count: 1, MissingBlobs: 1},
			want: []string{"1 record was rejected, 1 blob is missing\n", "zodb-convert -w 8 --incremental --rejects rejects.jsonl --allow-missing-blobs migrate.toml"}},
		{name: "missing blobs accepted", options: convertOptions{allowMissing: true}, reached: pipeline.Finished, code: exitRejects,
			report: pipeline.Report{Totals: dest.Result{MissingBlobs: 3}}, want: []string{"but for 3 missing blobs", "zodb-convert -w 8 --allow-missing-blobs --incremental migrate.toml"}},
		{name: "deferred", options: convertOptions{deferred: "my list"}, reached: pipeline.Finished, report: pipeline.Report{Manifest: "my list", Owed: 7},
			want: []string{"but for 7 uploads that my list lists", "do not pack the source", "zodb-convert --upload-blobs 'my list' migrate.toml",
				"zodb-convert -w 8 --deferred-blobs 'my list' --incremental migrate.toml"}},
		{name: "uploads failed", options: convertOptions{background: true}, reached: pipeline.Uploading, code: exitFailed,
			err:  &dest.UploadError{Count: 12, Failed: []dest.FailedUpload{{OwedBlob: dest.OwedBlob{Path: "/b/1"}, Err: errors.New("too large")}}},
			want: []string{"zodb-convert: 12 uploads have failed", "  /b/1: too large\n", "... and 11 more", "zodb-convert -w 8 --background-blobs --incremental migrate.toml"}},
		{name: "interrupted while it uploads", options: convertOptions{background: true}, reached: pipeline.Uploading, code: exitInterrupted, err: context.Canceled,
			want: []string{"go on with: zodb-convert -w 8 --background-blobs --incremental migrate.toml"}},
		{name: "interrupted while it loads", reached: pipeline.Loading, code: exitInterrupted, err: context.Canceled,
			want: []string{"zodb-convert: interrupted\n", "go on with: zodb-convert -w 8 --incremental migrate.toml"}},
		{name: "interrupted with rejects accepted", options: convertOptions{rejects: "my rejects"}, reached: pipeline.Loading, code: exitInterrupted, err: context.Canceled,
			want: []string{"zodb-convert -w 8 --rejects 'my rejects' --incremental migrate.toml"}},
		{name: "interrupted while it scans", reached: pipeline.Scanning, code: exitInterrupted, err: context.Canceled,
			want: []string{"nothing was written"}, not: "--incremental"},
		{name: "failed while it finishes", reached: pipeline.Finishing, code: exitFailed, err: errors.New("disk full"),
			want: []string{"zodb-convert: disk full\n", "go on with: zodb-convert -w 8 --incremental migrate.toml"}},
		{name: "refused", reached: pipeline.Preparing, code: exitFailed, err: &dest.RefusedError{Reason: "foreign tables", Hint: "drop them"},
			want: []string{"zodb-convert: foreign tables\n  drop them\n"}, not: "--incremental"},
		{name: "server gone for good while it loads", reached: pipeline.Loading, code: exitFailed, err: &dest.RefusedError{Reason: "cannot be reached"},
			want: []string{"zodb-convert: cannot be reached\n", "go on with: zodb-convert -w 8 --incremental migrate.toml"}},
		{name: "catching up refused", options: convertOptions{incremental: true}, reached: pipeline.Scanning, code: exitFailed,
			err: &dest.RefusedError{Reason: "the site has written"}, want: []string{"the site has written"}, not: "go on"},
		{name: "dry run", options: convertOptions{dryRun: true}, reached: pipeline.Loading,
			want: []string{"Dry run: ", "zodb-convert -w 8 migrate.toml"}},
		{name: "dry run of a filled destination", options: convertOptions{dryRun: true}, reached: pipeline.Loading, report: pipeline.Report{Found: dest.Filled},
			want: []string{"zodb-convert -w 8 --incremental migrate.toml", "zodb-convert -w 8 --clear migrate.toml"}, not: "-w 8 migrate.toml"},
		{name: "dry run of an interrupted one", options: convertOptions{dryRun: true}, reached: pipeline.Loading, report: pipeline.Report{Found: dest.Interrupted},
			want: []string{"zodb-convert -w 8 --incremental migrate.toml"}, not: "--clear"},
		{name: "dry run of what cannot be converted", options: convertOptions{dryRun: true}, reached: pipeline.Loading, code: exitFailed,
			err:  &dest.RefusedError{Reason: "5 blob records", Hint: "name the blob directory"},
			want: []string{"Dry run: ", "zodb-convert: 5 blob records\n  name the blob directory\n", "nothing was written"}, not: "To convert"},
		{name: "dry run with rejects", options: convertOptions{dryRun: true}, reached: pipeline.Loading,
			report: pipeline.Report{Totals: dest.Result{Rejected: 3}},
			want:   []string{"zodb-convert -w 8 --rejects rejects.jsonl migrate.toml"}},
		{name: "dry run interrupted", options: convertOptions{dryRun: true}, reached: pipeline.Loading, code: exitInterrupted, err: context.Canceled,
			want: []string{"nothing was written"}, not: "--incremental"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, text := outcome(t, c.options, c.reached, &c.report, c.err)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is missing", want)
				}
			}
			if c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("%q must not be there", c.not)
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}

func TestRejectsFileOfAnEarlierStartMayBeWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config, database := write("c.toml", "[source]"), write("Data.fs", "FS30")
	if err := os.Symlink(database, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		ok   bool
	}{
		{"", true},
		{filepath.Join(dir, "new"), true},
		{write("empty", ""), true},
		{write("earlier", `{"oid":"0x01","tid":"0x02","offset":3,"class":"a.B","reason":"r","pickle":"gAJ9Lg=="}`+"\n"), true},
		{write("other.json", `{"a":1}`), false},
		{write("text", "hello"), false},
		{write("list.json", "[]"), false},
		{config, false}, {database, false}, {filepath.Join(dir, "link"), false}, {dir, false},
		{filepath.Join(dir, "none", "new"), false},
		{filepath.Join(config, "new"), false},
	} {
		if err := checkRejectsPath(c.path, config, database); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

func TestNothingThatIsPrintedDisturbsATerminal(t *testing.T) {
	for text, want := range map[string]string{
		"plain\r\n\ttext":     "plain\r\n\ttext",
		"\x1b[2J\x07\x00\x7f": `\x1b[2J\x07\x00\x7f`,
		"caf\u00e9 \u009b31m": "caf\u00e9 \\x9b31m",
		"caf\xe9 \x1b\ufffd":  "caf\xe9 \\x1b\ufffd",
	} {
		if got := visible(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
