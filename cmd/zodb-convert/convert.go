package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

const convertHelp = `Move a ZODB (FileStorage) into zodb-pgjsonb: every object as JSON in PostgreSQL.
Usage: zodb-convert [flags] CONFIG          convert what CONFIG (TOML) names
       zodb-convert status [--json] CONFIG  what an interrupted run has done

`

// convertOptions are the flags of the conversion.
type convertOptions struct {
	config      string
	workers     int
	incremental bool
	dryRun      bool
	clear       bool
	yes         bool
	abort       bool
	memory      int64
	rejects     string
}

func newConvertCommand(a *app) *cobra.Command {
	o := &convertOptions{workers: defaultWorkers(), memory: pipeline.DefaultMemory}
	a.output.logFormat = "text"
	cmd := &cobra.Command{
		Use:           "zodb-convert [flags] CONFIG",
		Args:          oneConfig,
		Version:       a.version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.config = args[0]
			return a.convert(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP((*workersValue)(&o.workers), "workers", "w", "decode and write with `N` workers, 1 to 256")
	f.BoolVar(&o.incremental, "incremental", false, "go on with an interrupted run, or add what is new")
	f.BoolVar(&o.dryRun, "dry-run", false, "decode everything, write nothing")
	f.BoolVar(&o.clear, "clear", false, "empty the destination first")
	f.BoolVar(&o.yes, "yes", false, "do not ask before --clear")
	f.BoolVar(&o.abort, "abort", false, "undo an interrupted run: empty what it loaded")
	f.Var((*sizeValue)(&o.memory), "memory", "take no more memory than `SIZE`")
	f.StringVar(&o.rejects, "rejects", "", "accept rejected records and list them in `PATH`")
	f.Var((*formatValue)(&a.output.logFormat), "log-format", "`text` or json, one object a line")
	f.BoolVarP(&a.output.verbose, "verbose", "v", false, "tell more")
	f.BoolVarP(&a.output.quiet, "quiet", "q", false, "tell errors only")
	f.Bool("version", false, "print the version")
	f.BoolP("help", "h", false, "print this")
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetVersionTemplate("zodb-convert {{.Version}}\n")
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(a.stdout, convertHelp, cmd.LocalFlags().FlagUsages(), "\n", exitStatus)
	})
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

// defaultWorkers is one for each processor. More than eight seldom help: the
// server is then the slower side.
func defaultWorkers() int { return min(runtime.GOMAXPROCS(0), 8) }

// check refuses flags that contradict each other.
func (o *convertOptions) check(out *outputOptions) error {
	type pair struct {
		a, b   bool
		reason string
	}
	for _, p := range []pair{
		{o.clear, o.incremental, "--clear and --incremental contradict each other: one empties the destination, the other goes on with it"},
		{o.clear, o.dryRun, "--clear and --dry-run contradict each other: one empties the destination, the other writes nothing"},
		{o.abort, o.clear, "--abort and --clear are two different things: --abort undoes an interrupted run, --clear starts a new one"},
		{o.abort, o.incremental, "--abort and --incremental contradict each other: one undoes an interrupted run, the other goes on with it"},
		{o.abort, o.dryRun, "--abort and --dry-run contradict each other: --abort writes"},
		{o.abort, o.rejects != "", "--rejects is of no use with --abort"},
		{o.dryRun, o.rejects != "", "--rejects is of no use with --dry-run, which writes nothing; the summary lists the first rejected records"},
		{out.verbose, out.quiet, "--verbose and --quiet contradict each other"},
	} {
		if p.a && p.b {
			return usage(p.reason)
		}
	}
	return nil
}

// convert is the command.
func (a *app) convert(ctx context.Context, o *convertOptions) error {
	if err := o.check(&a.output); err != nil {
		return err
	}
	c, err := a.readConfig(o.config)
	if err != nil {
		return err
	}
	if err := checkRejectsPath(o.rejects, o.config, c.Source.Path); err != nil {
		return err
	}
	limitMemory(o.memory, a.getenv)

	dst, err := openDestination(ctx, c, o.config)
	if err != nil {
		return err
	}
	defer dst.Close()
	if o.abort {
		return a.abort(ctx, dst)
	}
	src, err := openSource(ctx, c)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := a.confirmClear(ctx, o, dst); err != nil {
		return err
	}
	r := &conversion{app: a, options: o, config: c}
	r.opts = pipeline.Options{
		Workers: o.workers, Memory: o.memory,
		Incremental: o.incremental, Clear: o.clear, DryRun: o.dryRun,
		Rejects: o.rejects, Tool: a.version,
	}
	return r.run(ctx, func(ctx context.Context, opts pipeline.Options) (*pipeline.Report, error) {
		return pipeline.Run(ctx, src, dst, opts)
	})
}

// limitMemory makes the garbage collector work harder before the process takes
// more than the user allowed. An eighth is left for what the runtime does not
// count (the program itself, thread stacks, pages not yet given back): with
// records of 15 MB and 8 workers, peaks of the resident set were measured up to
// 12 MB above the limit that is set here. A GOMEMLIMIT set by the user counts
// instead.
func limitMemory(memory int64, getenv func(string) (string, bool)) {
	if _, set := getenv("GOMEMLIMIT"); !set {
		debug.SetMemoryLimit(memory - memory/8)
	}
}

// conversion is one run with its output.
type conversion struct {
	*app
	options *convertOptions
	config  *config.Config
	opts    pipeline.Options
	reached pipeline.Phase
}

func (c *conversion) run(ctx context.Context, convert func(context.Context, pipeline.Options) (*pipeline.Report, error)) error {
	printer := c.printer()
	display := progress.Start(printer)
	c.opts.Progress = func(ev pipeline.Event) {
		if ev.Kind == pipeline.PhaseStarted {
			c.reached = ev.Phase
		}
		display.Event(ev)
	}
	c.signals.onReport(display.Report)
	c.signals.onStop(func(name string) {
		display.Event(pipeline.Event{Kind: pipeline.Note, Time: time.Now(),
			Text: name + ": finishing what is under way; once more to stop at once"})
	})
	c.tellUnused(display)
	started := time.Now()
	report, err := convert(ctx, c.opts)
	c.signals.onReport(nil)
	c.signals.onStop(nil)
	display.Close()

	summary := &progress.Summary{
		Report: report, HistoryPreserving: c.config.Destination.HistoryPreserving,
		Workers: c.opts.Workers, Elapsed: time.Since(started),
	}
	var rejected *dest.RejectedError
	switch {
	case err == nil:
		summary.Outcome, summary.Next = progress.Complete, c.next(report)
		if c.opts.DryRun {
			summary.Outcome = progress.DryRun
		}
		printer.Summary(summary)
		return c.done(report)
	case errors.As(err, &rejected):
		summary.Outcome = progress.Rejected
		printer.Summary(summary)
	}
	return &failure{err: err, hints: c.goOn(err)}
}

// tellUnused names the keys of CONFIG that have no effect, at -v.
func (c *conversion) tellUnused(d *progress.Display) {
	if !c.output.verbose {
		return
	}
	for _, u := range c.config.Unused {
		d.Event(pipeline.Event{Kind: pipeline.Note, Time: time.Now(),
			Text: fmt.Sprintf("%s:%d: the key %q in [%s] has no effect: %s", c.options.config, u.Line, u.Key, u.Section, u.Why)})
	}
}

// done gives the exit code of a run without error.
func (c *conversion) done(r *pipeline.Report) error {
	if r.Totals.Rejected > 0 && !c.opts.DryRun {
		return exitCode(exitRejects)
	}
	return nil
}

// next says what to do after a run without error.
func (c *conversion) next(r *pipeline.Report) []string {
	if c.opts.DryRun {
		if r.Totals.Rejected > 0 {
			return []string{"A real run stops before its finishing steps while records are rejected; this accepts and lists them:",
				"  " + c.command("--rejects", "rejects.jsonl")}
		}
		return []string{"To convert:", "  " + c.command()}
	}
	var lines []string
	switch g := r.Growth; {
	case g.Replaced:
		lines = append(lines, "The source is another database by now (packed or replaced): what it got since cannot be added. Convert it anew with --clear.")
	case g.Transactions > 0:
		lines = append(lines,
			fmt.Sprintf("The source has got %s since, from %s on. To add what is new:",
				progress.Plural(g.Transactions, "transaction"), g.Since.Time().Format(time.DateTime)+" UTC"),
			"  "+c.command("--incremental"))
	default:
		lines = append(lines, "If the source changes before the site is stopped, this adds what is new:", "  "+c.command("--incremental"))
	}
	return append(lines, "Then point the <pgjsonb> section of the site's configuration at the destination and start it.")
}

// goOn says what to do after a run that failed or was interrupted.
func (c *conversion) goOn(err error) []string {
	var (
		refused  *dest.RefusedError
		rejected *dest.RejectedError
		changed  *filestorage.ChangedError
	)
	switch {
	case errors.As(err, &changed) && c.opts.Incremental:
		return []string{"use the original file, or undo the run with: " + c.plain("--abort")}
	case errors.As(err, &refused) && !c.writing():
		return nil
	case errors.As(err, &rejected) && rejected.Root:
		return []string{"undo the run with: " + c.plain("--abort")}
	case errors.As(err, &rejected):
		return []string{
			"everything else is loaded; to accept the rejects, list them in a file and finish:",
			"  " + c.command("--incremental", "--rejects", "rejects.jsonl"),
			"to undo the run: " + c.plain("--abort"),
		}
	case c.opts.DryRun, !c.opts.Incremental && !c.writing() && c.reached != pipeline.Preparing:
		return []string{"nothing was written"}
	}
	return []string{
		"what is loaded is kept; go on with: " + c.command("--incremental"),
	}
}

// writing tells whether the run had come to where it writes.
func (c *conversion) writing() bool {
	return slices.Contains([]pipeline.Phase{pipeline.Loading, pipeline.Finishing, pipeline.CatchingUp}, c.reached)
}

// command is the command line that does the same with other flags.
func (c *conversion) command(flags ...string) string {
	line := "zodb-convert -w " + strconv.Itoa(c.opts.Workers)
	if c.opts.Memory != pipeline.DefaultMemory {
		line += " --memory " + sizeText(c.opts.Memory)
	}
	if c.opts.Rejects != "" {
		line += " --rejects " + quote(c.opts.Rejects)
	}
	for _, f := range flags {
		line += " " + quote(f)
	}
	return line + " " + quote(c.options.config)
}

func (c *conversion) plain(flag string) string {
	return "zodb-convert " + flag + " " + quote(c.options.config)
}

// abort undoes an interrupted run.
func (a *app) abort(ctx context.Context, dst dest.Destination) error {
	state, err := dst.State(ctx, 1)
	if err != nil {
		return err
	}
	if state.Condition != dest.Interrupted {
		return &dest.RefusedError{Reason: fmt.Sprintf("%s holds no interrupted run, so there is nothing to undo", dst.Name())}
	}
	left, err := dst.Abort(ctx)
	if err != nil {
		return fmt.Errorf("undo the run in %s: %w", dst.Name(), err)
	}
	if !a.output.quiet {
		a.printer().Note(time.Now(), fmt.Sprintf("the run that %s held is undone", dst.Name()))
	}
	if left != "" {
		a.printer().Note(time.Now(), left)
	}
	return nil
}

// confirmClear says what --clear empties and asks, or wants --yes.
func (a *app) confirmClear(ctx context.Context, o *convertOptions, dst dest.Destination) error {
	if !o.clear {
		return nil
	}
	state, err := dst.State(ctx, o.workers)
	if err != nil {
		return err
	}
	what := contents(state)
	if what == "" {
		return nil
	}
	sentence := fmt.Sprintf("--clear will empty %s, which holds %s", dst.Name(), what)
	if o.yes {
		a.printer().Note(time.Now(), sentence)
		return nil
	}
	text, err := a.ask(ctx, sentence+".\nType yes to empty it: ")
	switch {
	case errors.Is(err, errNobody):
		return usage(sentence, "nobody can be asked here: say --yes if that is meant")
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil || text != "yes":
		return &failure{err: errors.New("not confirmed"), hints: []string{"nothing was changed"}}
	}
	return nil
}

// contents says what would be lost, or "".
func contents(s *dest.State) string {
	switch s.Condition {
	case dest.Interrupted:
		return fmt.Sprintf("%s in %s and an unfinished conversion started %s on %s",
			progress.Plural(s.Objects, "object"), progress.Plural(s.Transactions, "transaction"), s.Run.Started.Format(time.DateTime), s.Run.Host)
	case dest.Filled:
		if s.RootOnly {
			return "a root object and nothing else"
		}
		return progress.Plural(s.Objects, "object") + " in " + progress.Plural(s.Transactions, "transaction")
	}
	return ""
}

// checkRejectsPath refuses a rejects file that could not be written at the end
// of the run, or that would replace something else.
func checkRejectsPath(path, config, database string) error {
	if path == "" {
		return nil
	}
	refuse := func(reason string) error { return usage(fmt.Sprintf("--rejects %s: %s", path, reason)) }
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || !dir.IsDir() {
		return refuse("there is no such directory")
	}
	there, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	switch {
	case err != nil:
		return refuse(errors.Unwrap(err).Error())
	case !there.Mode().IsRegular():
		return refuse("is not a file")
	case sameFile(there, config), sameFile(there, database):
		return refuse("is needed for something else")
	case !isRejectsFile(path):
		return refuse("exists and is not a list of rejects; name another file")
	}
	return nil
}

func sameFile(info os.FileInfo, path string) bool {
	other, err := os.Stat(path)
	return err == nil && os.SameFile(info, other)
}

// isRejectsFile tells whether the file is empty or of an earlier start.
func isRejectsFile(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if first, err := in.Peek(1); err != nil || first[0] != '{' {
		return len(first) == 0
	}
	var line pipeline.RejectLine
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	return d.Decode(&line) == nil && line.OID != "" && line.TID != ""
}
