package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/inspect"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
)

const inspectHelp = `Tell what the source holds and what of it will not arrive unchanged.

Usage: zodb-convert inspect [flags] CONFIG

Every record is read and decoded as a conversion does it; nothing is written on
either side. CONFIG needs no [destination]; if there is one, it is looked at,
too. The result goes to stdout.

`

const inspectExit = `
EXAMPLES
  zodb-convert inspect migrate.toml
  zodb-convert inspect -w 4 --no-reachability migrate.toml
  zodb-convert inspect --source-zope-conf /srv/plone/etc/zope.conf
  zodb-convert inspect --json migrate.toml | jq .altered

EXIT STATUS
  0    everything will arrive unchanged
  1    the source could not be read whole; the message says why
  2    the command line or CONFIG is wrong
  3    something will not arrive unchanged
  130  interrupted
  A destination that cannot be used is told and does not change them.
`

// inspectOptions are the flags of inspect.
type inspectOptions struct {
	from           origin
	workers        int
	memory         int64
	tempDir        string
	noReachability bool
	sharing        bool
	json           bool
}

func newInspectCommand(a *app) *cobra.Command {
	o := &inspectOptions{from: origin{config.Origin{DestinationOptional: true}}, workers: defaultWorkers(), memory: pipeline.DefaultMemory}
	cmd := &cobra.Command{
		Use:   "inspect [flags] CONFIG",
		Short: "Tell what the source holds and what of it will not arrive unchanged",
		Args:  o.from.take,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.inspect(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP((*workersValue)(&o.workers), "workers", "w", "decode with `N` workers, 1 to 256")
	f.Var((*sizeValue)(&o.memory), "memory", "take no more memory than `SIZE`")
	f.BoolVar(&o.sharing, "preserve-sharing", false, "tell of a conversion that has this flag, too")
	f.BoolVar(&o.noReachability, "no-reachability", false, "do not look for objects that nothing leads to")
	f.StringVar(&o.tempDir, "temp-dir", "", "keep references in a file in `DIR` meanwhile (default $TMPDIR)")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	a.output.flags(f, "tell errors and the result only")
	f.AddFlagSet(o.from.siteFlags())
	f.BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(a.stdout, inspectHelp, cmd.LocalFlags().FlagUsages(), inspectExit)
	})
	return cmd
}

// check refuses what contradicts itself or could not be used hours later.
func (o *inspectOptions) check(out *outputOptions) error {
	switch {
	case out.verbose && out.quiet:
		return usage("--verbose and --quiet contradict each other")
	case o.tempDir == "":
		return nil
	case o.noReachability:
		return usage("--temp-dir is of no use with --no-reachability: nothing is kept then")
	}
	if info, err := os.Stat(o.tempDir); err != nil || !info.IsDir() {
		return usage(fmt.Sprintf("--temp-dir %s: there is no such directory", o.tempDir))
	}
	return nil
}

// inspect is the command.
func (a *app) inspect(ctx context.Context, o *inspectOptions) error {
	if err := o.check(&a.output); err != nil {
		return err
	}
	c, err := a.readConfig(&o.from)
	if err != nil {
		return err
	}
	limitMemory(o.memory, a.getenv)
	i := &inspection{watched: watched{app: a}, options: o}
	for _, text := range a.aboutConfig(c) {
		i.note(text)
	}
	opts := inspect.Options{
		Workers: o.workers, Memory: o.memory,
		HistoryPreserving: c.Destination.HistoryPreserving, PreserveSharing: o.sharing, BlobThreshold: c.Destination.BlobThreshold,
		LargestBlob: pgjsonb.LargestBytea, S3: c.Destination.S3.Bucket != "",
		Reachability: !o.noReachability, TempDir: cmp.Or(o.tempDir, os.TempDir()),
	}
	var survey *dest.Survey
	if c.Destination.Given() {
		if survey, err = i.destination(ctx, c); err != nil {
			return err
		}
	}
	src, err := openSource(ctx, c, sourceOptions{path: o.from.sourcePath(), workers: o.workers, note: i.note})
	if err != nil {
		return err
	}
	defer src.Close()
	report, err := i.run(opts, func(opts inspect.Options) (*inspect.Report, error) { return inspect.Run(ctx, src, opts) })
	// What was counted before another error tells nothing of the source.
	if damage := (*source.DamageError)(nil); err != nil && !errors.As(err, &damage) {
		return err
	}
	report.Destination = survey
	return i.done(report, err)
}

// inspection is one call of inspect with its output.
type inspection struct {
	watched
	options *inspectOptions
}

// destination looks at the destination before the source is read: what is wrong
// there is told at once, and does not keep the source from being read. An error is a
// mistake in the configuration.
func (i *inspection) destination(ctx context.Context, c *config.Config) (*dest.Survey, error) {
	// The keys may be known on another machine only, the one that will convert.
	store, unopened := openStore(ctx, &c.Destination.S3)
	o := i.options
	dst, err := openDatabase(ctx, c, store, destinationOptions{path: o.from.destinationPath(), preserveSharing: o.sharing, note: i.note})
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	s := dst.SurveyWithoutStore(ctx, o.workers, unopened)
	// A server may quote anything.
	s.Problem = i.redact(oneLine(s.Problem))
	for _, sentences := range [][]string{s.Advice, s.Notes} {
		for n := range sentences {
			sentences[n] = i.redact(sentences[n])
		}
	}
	if s.Problem != "" && ctx.Err() == nil {
		i.note("no conversion could begin: " + s.Problem)
	}
	return s, nil
}

func (i *inspection) run(opts inspect.Options, look func(inspect.Options) (*inspect.Report, error)) (report *inspect.Report, err error) {
	i.watch("stopping", func(listener func(pipeline.Event)) {
		opts.Progress = listener
		report, err = look(opts)
	})
	return report, err
}

// done prints the report and gives the exit code. unread is why the source could not
// be read to its end.
func (i *inspection) done(r *inspect.Report, unread error) error {
	var err error
	if i.options.json {
		out := json.NewEncoder(i.stdout)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	} else {
		_, err = fmt.Fprint(i.stdout, visible(inspectText(r, unread)))
	}
	switch {
	case err != nil:
		return errors.Join(unread, fmt.Errorf("print the result: %w", err))
	case unread != nil:
		return unread
	case !r.Clean():
		return exitCode(exitRejects)
	}
	return nil
}
