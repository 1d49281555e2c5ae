package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/verify"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const verifyHelp = `Compare the destination with the source, object by object.

Usage: zodb-convert verify [flags] CONFIG

Both are read anew and neither is written. The result goes to stdout.

`

const verifyExit = `
EXAMPLES
  zodb-convert verify migrate.toml
  zodb-convert verify -w 4 --report differences.jsonl migrate.toml
  zodb-convert verify --sample 5 migrate.toml
  zodb-convert verify --json migrate.toml | jq .kinds

EXIT STATUS
  0    everything is there and the same, but for what the conversion declares
  1    they could not be compared; the message says why
  2    the command line or CONFIG is wrong
  4    there are differences
  130  interrupted
`

// verifyOptions are the flags of verify.
type verifyOptions struct {
	from     origin
	workers  int
	memory   int64
	sample   float64
	since    zodb.TID
	report   string
	strict   bool
	download bool
	json     bool
}

func newVerifyCommand(a *app) *cobra.Command {
	o := &verifyOptions{workers: defaultWorkers(), memory: verify.DefaultMemory, sample: 100}
	cmd := &cobra.Command{
		Use:   "verify [flags] CONFIG",
		Short: "Compare the destination with the source",
		Args:  o.from.take,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.verify(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP((*workersValue)(&o.workers), "workers", "w", "compare with `N` workers, 1 to 256")
	f.Var((*sizeValue)(&o.memory), "memory", "take no more memory than `SIZE`")
	f.StringVar(&o.report, "report", "", "list every difference in `PATH`, one JSON object a line")
	f.BoolVar(&o.strict, "strict", false, "count what the conversion declares as differences")
	f.BoolVar(&o.download, "download-blobs", false, "compare blobs in S3 by their bytes")
	f.Var((*percentValue)(&o.sample), "sample", "compare `PERCENT` of the objects")
	f.Var((*tidValue)(&o.since), "since", "leave out what is older than `TID`")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	a.output.flags(f, "tell errors and the result only")
	f.AddFlagSet(o.from.siteFlags())
	f.BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(a.stdout, verifyHelp, cmd.LocalFlags().FlagUsages(), verifyExit)
	})
	return cmd
}

// percentValue is a number above 0 and up to 100.
type percentValue float64

func (v *percentValue) String() string { return strconv.FormatFloat(float64(*v), 'g', -1, 64) }
func (v *percentValue) Type() string   { return "PERCENT" }
func (v *percentValue) Set(text string) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(n > 0 && n <= 100) {
		return errors.New("wants a number above 0 and up to 100")
	}
	*v = percentValue(n)
	return nil
}

// tidValue is a tid in hexadecimal digits, as this program prints them.
type tidValue zodb.TID

func (v *tidValue) String() string {
	if *v == 0 {
		return ""
	}
	return zodb.TID(*v).String()
}
func (v *tidValue) Type() string { return "TID" }
func (v *tidValue) Set(text string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
	if err != nil || len(text) < 16 {
		return errors.New("wants a tid of 16 hexadecimal digits")
	}
	*v = tidValue(n)
	return nil
}

// verify is the command.
func (a *app) verify(ctx context.Context, o *verifyOptions) error {
	if a.output.verbose && a.output.quiet {
		return usage("--verbose and --quiet contradict each other")
	}
	c, err := a.readConfig(&o.from)
	if err != nil {
		return err
	}
	if err := o.checkReport(c); err != nil {
		return err
	}
	limitMemory(o.memory, a.getenv)
	v := &verification{watched: watched{app: a}, options: o}
	dst, err := openDestination(ctx, c, destinationOptions{path: o.from.destinationPath(), note: v.note})
	if err != nil {
		return err
	}
	defer dst.Close()
	src, err := openSource(ctx, c, sourceOptions{path: o.from.sourcePath(), workers: o.workers, note: v.note})
	if err != nil {
		return err
	}
	defer src.Close()
	content, err := dst.Content(ctx, verify.Readers(o.workers))
	if err != nil {
		return err
	}
	defer content.Close()
	report, err := newReport(o.report)
	if err != nil {
		return err
	}
	result, err := v.run(func(opts verify.Options) (*verify.Result, error) {
		opts.Report = report.write
		return verify.Run(ctx, src, content, opts)
	})
	if err := report.close(err); err != nil {
		v.broken(result)
		return err
	}
	result.Destination = dst.Name()
	return v.done(result)
}

// checkReport refuses a path that no list can be written to.
func (o *verifyOptions) checkReport(c *config.Config) error {
	there, err := checkOutputPath("--report", o.report, append(o.from.files(), sourceFiles(&c.Source)...)...)
	if err == nil && there && !isReport(o.report) {
		err = usage(fmt.Sprintf("--report %s: exists and is not a list of differences; name another file", o.report))
	}
	return err
}

// isReport tells whether the file is empty or of an earlier comparison.
func isReport(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if first, err := in.Peek(1); err != nil || first[0] != '{' {
		return len(first) == 0
	}
	var d verify.Difference
	lines := json.NewDecoder(in)
	lines.DisallowUnknownFields()
	return lines.Decode(&d) == nil && d.Kind != ""
}

// verification is one call of verify with its output.
type verification struct {
	watched
	options *verifyOptions
}

func (v *verification) run(compare func(verify.Options) (*verify.Result, error)) (result *verify.Result, err error) {
	o := v.options
	opts := verify.Options{Workers: o.workers, Memory: o.memory, Since: o.since, Download: o.download, Strict: o.strict}
	if o.sample < 100 {
		opts.Percent = o.sample
	}
	v.watch("stopping", func(listener func(pipeline.Event)) {
		opts.Progress = listener
		result, err = compare(opts)
	})
	return result, err
}

// broken tells of the differences that were found until the comparison failed.
func (v *verification) broken(r *verify.Result) {
	if r.Differences > 0 {
		v.note(fmt.Sprintf("%s found until then, the first: %s", progress.Plural(r.Differences, "difference"), visible(r.First[0].String())))
	}
}

// done prints the result and gives the exit code.
func (v *verification) done(r *verify.Result) error {
	var err error
	if v.options.json {
		out := json.NewEncoder(v.stdout)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	} else {
		_, err = fmt.Fprint(v.stdout, visible(verifyText(r, v.options)))
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if r.Differences > 0 {
		return exitCode(exitDifferences)
	}
	return nil
}

func verifyText(r *verify.Result, o *verifyOptions) string {
	var b strings.Builder
	row := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", key, fmt.Sprintf(format, args...))
	}
	row("source", "%s", r.Source)
	row("destination", "%s", r.Destination)
	what := "objects"
	if r.HistoryPreserving {
		what = "revisions"
	}
	row("compared", "%s, %s %s (%s of them deleted)", progress.Plural(r.Transactions, "transaction"), progress.Count(r.Records), what, progress.Count(r.Deleted))
	if r.Blobs > 0 {
		row("blobs", "%s, %s", progress.Count(r.Blobs), progress.Bytes(r.BlobBytes))
	}
	if n := r.StoreChecked; n > 0 {
		row("", "%s in S3 by size and the checksum that the store names", progress.Count(n))
	}
	if n := r.Downloaded; n > 0 {
		row("", "%s in S3 by their bytes", progress.Count(n))
	}
	if r.LeftOut > 0 {
		row("left out", "%s %s, as --sample or --since says", progress.Count(r.LeftOut), what)
	}
	if r.NotConverted > 0 {
		row("not converted", "%s of the source that the destination has not got yet", progress.Plural(r.NotConverted, "transaction"))
	}
	if r.NotConvertedRecords > 0 {
		row("", "%s %s of the source that they have changed were not compared", progress.Count(r.NotConvertedRecords), what)
	}
	if r.SiteTransactions > 0 {
		row("since then", "%s of a site in the destination: %s of the source's objects changed, %s in all",
			progress.Plural(r.SiteTransactions, "transaction"), progress.Count(r.SiteChanged), progress.Plural(r.SiteRows, "row"))
	}
	for i, c := range r.Declared {
		key := ""
		if i == 0 {
			key = "declared"
		}
		row(key, "%s", strings.TrimSpace(progress.Count(c.Count)+" "+c.Kind+" "+c.Class))
	}
	for _, n := range r.Notes {
		row("note", "%s", n)
	}
	if r.Differences == 0 {
		row("differences", "none")
		return b.String()
	}
	row("differences", "%s", progress.Count(r.Differences))
	for _, c := range r.Kinds {
		row("", "%s %s", progress.Count(c.Count), c.Kind)
	}
	b.WriteString("\n")
	for i := range r.First {
		fmt.Fprintf(&b, "%s\n", r.First[i].String())
	}
	if rest := r.Differences - int64(len(r.First)); rest > 0 {
		hint := "--report PATH lists all"
		if o.report != "" {
			hint = "all are in " + o.report
		}
		fmt.Fprintf(&b, "... and %s more; %s\n", progress.Count(rest), hint)
	}
	return b.String()
}

// report is the file of --report: it appears when it is whole. Without a path it
// does nothing.
type report struct {
	path  string
	file  *os.File
	out   *bufio.Writer
	lines *json.Encoder
}

func newReport(path string) (*report, error) {
	if path == "" {
		return &report{}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("write the list of differences: %w", err)
	}
	out := bufio.NewWriterSize(f, 64<<10)
	return &report{path: path, file: f, out: out, lines: json.NewEncoder(out)}, nil
}

func (r *report) write(d *verify.Difference) error {
	if r.file == nil {
		return nil
	}
	if err := r.lines.Encode(d); err != nil {
		return fmt.Errorf("write the list of differences %s: %w", r.path, err)
	}
	return nil
}

// close puts the file in its place, unless the comparison failed, and gives the
// first error.
func (r *report) close(err error) error {
	if r.file == nil {
		return err
	}
	if err != nil {
		_ = r.file.Close()
		os.Remove(r.file.Name())
		return err
	}
	err = r.out.Flush()
	if e := r.file.Sync(); err == nil {
		err = e
	}
	if e := r.file.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(r.file.Name(), r.path)
	}
	if err != nil {
		os.Remove(r.file.Name())
		return fmt.Errorf("write the list of differences %s: %w", r.path, err)
	}
	return nil
}
