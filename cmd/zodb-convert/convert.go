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
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

const convertHelp = `Move a ZODB (FileStorage, RelStorage) into zodb-pgjsonb: JSON in PostgreSQL.
Usage: zodb-convert [flags] CONFIG          CONFIG is TOML or ZConfig
       zodb-convert inspect|verify|status|init   look; compare; how far; draft

`

// s3Help stands for the flags that say the same as keys of CONFIG. Each on a
// line of its own would not leave room for the others.
const s3Help = `S3, as in CONFIG (everybody sees a typed key; better set AWS_SECRET_ACCESS_KEY):
  --s3-bucket NAME  --s3-prefix TEXT  --s3-endpoint-url URL  --s3-region NAME
  --s3-access-key KEY  --s3-secret-key KEY  --s3-path-style  --s3-ca-bundle PATH
`

// sitesHelp stands for the flags of origin.
const sitesHelp = `Sites (an end from a zope.conf; the database is NAME, main or the only one):
  --source-zope-conf FILE --source-db NAME --dest-zope-conf FILE --dest-db NAME
`

// convertOptions are the flags of the conversion.
type convertOptions struct {
	from        origin
	workers     int
	incremental bool
	dryRun      bool
	clear       bool
	yes         bool
	abort       bool
	memory      int64
	rejects     string
	retry       string
	sharing     bool

	background   bool
	deferred     string
	staging      string
	allowMissing bool
	upload       string
	check        bool
	s3           s3Flags
}

func newConvertCommand(a *app) *cobra.Command {
	o := &convertOptions{workers: defaultWorkers(), memory: pipeline.DefaultMemory}
	a.output.logFormat = "text"
	cmd := &cobra.Command{
		Use:           "zodb-convert [flags] CONFIG",
		Args:          func(cmd *cobra.Command, args []string) error { return o.arguments(cmd, args) },
		Version:       a.version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.s3.given = cmd.Flags().Changed
			a.keepS3Secrets(&o.s3.S3)
			if err := o.contradictions(&a.output); err != nil {
				return err
			}
			if o.upload != "" {
				return a.upload(cmd.Context(), o)
			}
			if o.retry != "" {
				return a.retry(cmd.Context(), o)
			}
			return a.convert(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP((*workersValue)(&o.workers), "workers", "w", "convert with `N` workers, 1 to 256")
	f.BoolVar(&o.incremental, "incremental", false, "go on with an interrupted run, or add what is new")
	f.BoolVar(&o.dryRun, "dry-run", false, "decode everything, write nothing")
	f.BoolVar(&o.clear, "clear", false, "empty the destination first")
	f.BoolVar(&o.yes, "yes", false, "do not ask before --clear; retry beside a site")
	f.BoolVar(&o.abort, "abort", false, "undo an interrupted run: empty what it loaded")
	f.Var((*sizeValue)(&o.memory), "memory", "take no more memory than `SIZE`")
	f.StringVar(&o.rejects, "rejects", "", "accept rejected records and list them in `PATH`")
	f.StringVar(&o.retry, "retry-rejects", "", "only store what can be stored now of `PATH`")
	f.BoolVar(&o.sharing, "preserve-sharing", false, "keep shared parts of a record shared, as pickles")
	a.output.flags(f, "tell errors only")
	f.Bool("version", false, "print the version")
	f.BoolP("help", "h", false, "print this")
	general := f.FlagUsages()
	blobs := o.blobFlags()
	f.AddFlagSet(blobs)
	f.AddFlagSet(o.from.siteFlags())
	f.AddFlagSet(o.s3.flags())
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetVersionTemplate("zodb-convert {{.Version}}\n")
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		fmt.Fprint(a.stdout, convertHelp, general, "\nBlobs:\n", blobs.FlagUsages(), "\n", sitesHelp, s3Help, exitStatus)
	})
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

// blobFlags are those about blobs.
func (o *convertOptions) blobFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("blobs", pflag.ContinueOnError)
	f.SortFlags = false
	f.BoolVar(&o.background, "background-blobs", false, "let uploads to S3 run beside the load")
	f.StringVar(&o.deferred, "deferred-blobs", "", "list them in the manifest `PATH`, upload none")
	f.StringVar(&o.staging, "staging-dir", "", "keep those of a database in `PATH` until then")
	f.StringVar(&o.upload, "upload-blobs", "", "upload what `MANIFEST` lists, and nothing else")
	f.BoolVar(&o.check, "check", false, "compare MANIFEST with the destination before")
	f.BoolVar(&o.allowMissing, "allow-missing-blobs", false, "finish although blob files are missing")
	return f
}

// arguments is the rule for arguments: one CONFIG, which --upload-blobs may do
// without. Neither it nor --abort nor --retry-rejects reads the source, whose
// disk may be gone.
func (o *convertOptions) arguments(cmd *cobra.Command, args []string) error {
	o.from.DestinationOnly = o.upload != "" || o.abort || o.retry != ""
	if o.upload != "" && len(args) == 0 && o.from.DestinationSite == "" {
		return nil
	}
	return o.from.take(cmd, args)
}

// defaultWorkers is one for each processor. More than eight seldom help: the
// server is then the slower side.
func defaultWorkers() int { return min(runtime.GOMAXPROCS(0), 8) }

// contradictions refuses flags that do not go together.
func (o *convertOptions) contradictions(out *outputOptions) error {
	type pair struct {
		a, b   bool
		reason string
	}
	deferred, upload, retry := o.deferred != "", o.upload != "", o.retry != ""
	for _, p := range []pair{
		{o.clear, o.incremental, "--clear and --incremental contradict each other: one empties the destination, the other goes on with it"},
		{o.clear, o.dryRun, "--clear and --dry-run contradict each other: one empties the destination, the other writes nothing"},
		{o.abort, o.clear, "--abort and --clear are two different things: --abort undoes an interrupted run, --clear starts a new one"},
		{o.abort, o.incremental, "--abort and --incremental contradict each other: one undoes an interrupted run, the other goes on with it"},
		{o.abort, o.dryRun, "--abort and --dry-run contradict each other: --abort writes"},
		{o.abort, o.rejects != "", "--rejects is of no use with --abort"},
		{o.abort, o.sharing, "--preserve-sharing is of no use with --abort, which converts nothing"},
		{o.abort, deferred || o.background || o.allowMissing, "the flags for blobs are of no use with --abort"},
		{o.dryRun, o.rejects != "", "--rejects is of no use with --dry-run, which writes nothing; the summary lists the first rejected records"},
		{o.dryRun, deferred || o.background, "--background-blobs and --deferred-blobs are of no use with --dry-run, which uploads nothing"},
		{o.background, deferred, "--background-blobs and --deferred-blobs contradict each other: one uploads all blobs before the run ends, the other none"},
		{o.staging != "", !deferred, "--staging-dir is of use with --deferred-blobs only: otherwise no blob has to wait for its upload"},
		{upload, o.clear || o.incremental || o.dryRun || o.abort || o.sharing || o.background || deferred || o.allowMissing,
			"--upload-blobs uploads and converts nothing: only -w, --memory, --rejects, --check, --s3-... and the flags for output go with it"},
		{retry, upload, "--retry-rejects and --upload-blobs are two different things"},
		{retry, o.clear || o.incremental || o.dryRun || o.abort || o.background || deferred || o.allowMissing || o.rejects != "" || o.s3.given("workers"),
			"--retry-rejects writes what a list of rejects holds and converts nothing: only --yes, --preserve-sharing, --memory and the flags for output go with it"},
		{o.check, !upload, "--check is of use with --upload-blobs only"},
		{out.verbose, out.quiet, "--verbose and --quiet contradict each other"},
	} {
		if p.a && p.b {
			return usage(p.reason)
		}
	}
	return nil
}

// blobMode is when large blobs are uploaded.
func (o *convertOptions) blobMode() dest.BlobMode {
	switch {
	case o.background:
		return dest.Background
	case o.deferred != "":
		return dest.Deferred
	}
	return dest.Inline
}

// convert is the command.
func (a *app) convert(ctx context.Context, o *convertOptions) error {
	c, err := a.readConfig(&o.from)
	if err != nil {
		return err
	}
	if err := o.s3.over(c); err != nil {
		return err
	}
	if err := o.checkPaths(c); err != nil {
		return err
	}
	if o.blobMode() != dest.Inline && c.Destination.S3.Bucket == "" {
		return usage("--background-blobs and --deferred-blobs are about uploads to S3, and no bucket is named",
			"name one with s3-bucket-name in CONFIG or --s3-bucket; or leave the flag out: all blobs go to PostgreSQL then")
	}
	limitMemory(o.memory, a.getenv)

	r := &conversion{watched: watched{app: a}, options: o, config: c}
	dst, err := openDestination(ctx, c, destinationOptions{path: o.from.destinationPath(), preserveSharing: o.sharing, note: r.note})
	if err != nil {
		return err
	}
	defer dst.Close()
	if o.abort {
		return a.abort(ctx, dst)
	}
	src, err := openSource(ctx, c, sourceOptions{path: o.from.sourcePath(), workers: o.workers, note: r.note})
	if err != nil {
		return err
	}
	defer src.Close()
	if err := a.confirmClear(ctx, o, dst); err != nil {
		return err
	}
	r.opts = pipeline.Options{
		Workers: o.workers, Memory: o.memory,
		Incremental: o.incremental, Clear: o.clear, DryRun: o.dryRun,
		Rejects: o.rejects, Tool: a.version,
		Blobs: o.blobMode(), Manifest: o.deferred, StagingDir: o.staging, Stdout: a.stdout,
		AllowMissingBlobs: o.allowMissing,
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
	watched
	options *convertOptions
	config  *config.Config
	opts    pipeline.Options
	reached pipeline.Phase
}

func (c *conversion) run(ctx context.Context, convert func(context.Context, pipeline.Options) (*pipeline.Report, error)) error {
	started := time.Now()
	var report *pipeline.Report
	var err error
	c.watch("ending what is under way", func(listener func(pipeline.Event)) {
		c.opts.Progress = func(ev pipeline.Event) {
			if ev.Kind == pipeline.PhaseStarted {
				c.reached = ev.Phase
			}
			listener(ev)
		}
		for _, text := range c.aboutConfig(c.config) {
			c.note(text)
		}
		report, err = convert(ctx, c.opts)
	})

	summary := &progress.Summary{
		Report: report, HistoryPreserving: c.config.Destination.HistoryPreserving,
		Workers: c.opts.Workers, Elapsed: time.Since(started),
	}
	var (
		rejected *dest.RejectedError
		refused  *dest.RefusedError
	)
	switch {
	case err == nil:
		summary.Outcome, summary.Next = progress.Complete, c.next(report)
		if c.opts.DryRun {
			summary.Outcome = progress.DryRun
		}
		c.printer().Summary(summary)
		return c.done(report)
	case errors.As(err, &rejected):
		summary.Outcome = progress.Rejected
		c.printer().Summary(summary)
	case c.opts.DryRun && c.reached == pipeline.Loading && errors.As(err, &refused):
		// Everything was read; this is how a conversion would have begun.
		summary.Outcome = progress.DryRun
		c.printer().Summary(summary)
	}
	return &failure{err: err, hints: c.goOn(err)}
}

// aboutConfig names what in CONFIG is probably right and, at -v, the keys that have
// no effect.
func (a *app) aboutConfig(c *config.Config) []string {
	sentences := slices.Clone(c.Warnings)
	if !a.output.verbose {
		return sentences
	}
	for _, u := range c.Unused {
		section := u.Section
		if !strings.HasPrefix(section, "<") {
			section = "[" + section + "]"
		}
		sentences = append(sentences, fmt.Sprintf("%s:%d: the key %q in %s has no effect: %s", u.Path, u.Line, u.Key, section, u.Why))
	}
	return sentences
}

// done gives the exit code of a run without error.
func (c *conversion) done(r *pipeline.Report) error {
	if r.Totals.Rejected+r.Totals.MissingBlobs > 0 && !c.opts.DryRun {
		return exitCode(exitRejects)
	}
	return nil
}

// next says what to do after a run without error.
func (c *conversion) next(r *pipeline.Report) []string {
	if c.opts.DryRun {
		return c.afterDryRun(r)
	}
	var lines []string
	if r.Owed > 0 {
		lines = append(lines, "Blobs are still to be uploaded. "+c.leaveBlobs())
		if r.Manifest == pipeline.ToStdout {
			lines = append(lines, "To upload them, give the output, as a file, to zodb-convert --upload-blobs.")
		} else {
			lines = append(lines, "To upload them:", "  "+c.uploadCommand(r.Manifest))
		}
	}
	switch g := r.Growth; {
	case g.Replaced && c.config.Source.RelStorage != nil:
		lines = append(lines, "The source is another database by now, or was set back: what it got since cannot be added. Convert it anew with --clear.")
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

// leaveBlobs says what must stay as it is until the uploads are done.
func (c *conversion) leaveBlobs() string {
	source := "do not pack the source, and leave its blobs in place."
	switch r := c.config.Source.RelStorage; {
	case c.opts.StagingDir == "":
		return "Until then " + source
	case r == nil || r.BlobDir == "":
		return fmt.Sprintf("Until then leave %s as it is; afterwards remove it.", c.opts.StagingDir)
	}
	return fmt.Sprintf("Until then leave %s as it is, %s", c.opts.StagingDir, source)
}

// afterDryRun gives the command of the real run.
func (c *conversion) afterDryRun(r *pipeline.Report) []string {
	var flags []string
	if r.Totals.Rejected > 0 {
		flags = []string{"--rejects", "rejects.jsonl"}
	}
	var lines []string
	switch r.Found {
	case dest.Filled:
		what := "add what is newer in the source"
		if c.config.Source.RelStorage != nil {
			what = "make it equal to the source"
		}
		lines = append(lines, "The destination holds objects already. To "+what+":",
			"  "+c.command(append([]string{"--incremental"}, flags...)...), "To empty it first and convert everything:")
		flags = append([]string{"--clear"}, flags...)
	case dest.Interrupted:
		lines = append(lines, "The destination holds an unfinished conversion. To go on with it:")
		flags = append([]string{"--incremental"}, flags...)
	default:
		lines = append(lines, "To convert:")
	}
	lines = append(lines, "  "+c.command(flags...))
	if r.Totals.Rejected > 0 {
		lines = append(lines, "Without --rejects the run stops before its finishing steps while records are rejected.")
	}
	return lines
}

// goOn says what to do after a run that failed or was interrupted.
func (c *conversion) goOn(err error) []string {
	var (
		refused  *dest.RefusedError
		rejected *dest.RejectedError
		uploads  *dest.UploadError
		changed  *filestorage.ChangedError
		setBack  *relstorage.ChangedError
		foreign  *source.ForeignError
	)
	switch {
	case errors.As(err, &foreign):
		return nil // going on would meet the same
	case errors.As(err, &setBack):
		return []string{"name the right database, or undo the run with: " + c.plain("--abort")}
	case errors.As(err, &changed) && c.opts.Incremental:
		return []string{"use the original file, or undo the run with: " + c.plain("--abort")}
	case errors.As(err, &refused) && !c.writing():
		return nil
	case errors.As(err, &rejected) && rejected.Root:
		return []string{"undo the run with: " + c.plain("--abort")}
	case errors.As(err, &rejected):
		return c.accept(rejected)
	case errors.As(err, &uploads):
		return c.again(uploads)
	case c.opts.DryRun, !c.opts.Incremental && !c.writing() && c.reached != pipeline.Preparing:
		return []string{"nothing was written"}
	}
	return []string{
		"what is loaded is kept; go on with: " + c.command("--incremental"),
	}
}

// accept says how to finish a run with rejected records or missing blobs.
func (c *conversion) accept(r *dest.RejectedError) []string {
	flags := []string{"--incremental"}
	if r.Count > 0 && c.opts.Rejects == "" {
		flags = append(flags, "--rejects", "rejects.jsonl")
	}
	var hints []string
	if r.MissingBlobs > 0 {
		hints = append(hints, "put the missing files in place and go on, they are looked for again: "+c.command(flags...))
		hints = append(hints, "or finish without them: "+c.command(append(flags, "--allow-missing-blobs")...))
	} else {
		hints = append(hints, "everything else is loaded; to accept the rejects, list them in a file and finish:", "  "+c.command(flags...))
	}
	return append(hints, "to undo the run: "+c.plain("--abort"))
}

// again lists uploads that failed.
func (c *conversion) again(e *dest.UploadError) []string {
	hints := make([]string, 0, len(e.Failed)+2)
	for _, f := range e.Failed {
		hints = append(hints, fmt.Sprintf("%s: %v", f.Place(), f.Err))
	}
	if rest := e.Count - int64(len(e.Failed)); rest > 0 {
		hints = append(hints, fmt.Sprintf("... and %s more", progress.Count(rest)))
	}
	return append(hints, "everything else is done; try these once more with: "+c.command("--incremental"))
}

// writing tells whether the run had come to where it writes.
func (c *conversion) writing() bool {
	return slices.Contains([]pipeline.Phase{pipeline.Loading, pipeline.Finishing, pipeline.CatchingUp, pipeline.Uploading}, c.reached)
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
	if c.options.sharing {
		line += " --preserve-sharing"
	}
	line += blobFlags(c.opts.Blobs, c.opts.Manifest, c.opts.StagingDir)
	if c.opts.AllowMissingBlobs {
		line += " --allow-missing-blobs"
	}
	line += c.options.s3.text()
	for _, f := range flags {
		line += " " + quote(f)
	}
	return line + c.options.from.text()
}

// blobFlags are those that say when blobs are uploaded, as they are typed.
func blobFlags(mode dest.BlobMode, manifest, staging string) string {
	switch mode {
	case dest.Background:
		return " --background-blobs"
	case dest.Deferred:
		line := " --deferred-blobs " + quote(manifest)
		if staging != "" {
			line += " --staging-dir " + quote(staging)
		}
		return line
	}
	return ""
}

// uploadCommand uploads what a manifest lists.
func (c *conversion) uploadCommand(manifest string) string {
	return "zodb-convert --upload-blobs " + quote(manifest) + c.options.s3.text() + c.options.from.destinationText()
}

func (c *conversion) plain(flag string) string {
	return "zodb-convert " + flag + c.options.from.text()
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

// checkPaths refuses files that could not be written at the end of the run, or
// that would replace something else.
func (o *convertOptions) checkPaths(c *config.Config) error {
	needed := append(o.from.files(), sourceFiles(&c.Source)...)
	if err := checkRejectsPath(o.rejects, needed...); err != nil {
		return err
	}
	if o.deferred == pipeline.ToStdout {
		return nil
	}
	_, err := checkOutputPath("--deferred-blobs", o.deferred, needed...)
	if err == nil && o.deferred != "" && filepath.Clean(o.deferred) == filepath.Clean(o.rejects) {
		err = usage(fmt.Sprintf("--deferred-blobs and --rejects both name %s", o.rejects))
	}
	return err
}

// sourceFiles are the files of the source that nothing may be written over.
func sourceFiles(s *config.Source) []string {
	switch {
	case s.FileStorage != nil:
		return []string{s.FileStorage.Path}
	case s.RelStorage != nil && s.RelStorage.SQLite3 != nil:
		dir := s.RelStorage.SQLite3.DataDir
		return []string{filepath.Join(dir, "main.sqlite3"), filepath.Join(dir, "main.sqlite3-wal"), filepath.Join(dir, "main.sqlite3-shm"), filepath.Join(dir, "oids.sqlite3")}
	}
	return nil
}

// checkOutputPath refuses a path where no file can be written, or only in the
// place of something else. It tells whether there is a file.
func checkOutputPath(flag, path string, needed ...string) (there bool, err error) {
	if path == "" {
		return false, nil
	}
	refuse := func(reason string) error { return usage(fmt.Sprintf("%s %s: %s", flag, path, reason)) }
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || !dir.IsDir() {
		return false, refuse("there is no such directory")
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, refuse(errors.Unwrap(err).Error())
	case !info.Mode().IsRegular():
		return false, refuse("is not a file")
	}
	for _, n := range needed {
		if sameFile(info, n) {
			return false, refuse("is needed for something else")
		}
	}
	return true, nil
}

// checkRejectsPath refuses what a list of rejects cannot be written to.
func checkRejectsPath(path string, needed ...string) error {
	there, err := checkOutputPath("--rejects", path, needed...)
	if err == nil && there && !isRejectsFile(path) {
		err = usage(fmt.Sprintf("--rejects %s: exists and is not a list of rejects; name another file", path))
	}
	return err
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
