package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

// retry writes those records of a list of rejects that this version can store.
func (a *app) retry(ctx context.Context, o *convertOptions) error {
	c, err := a.readConfig(&o.from)
	if err != nil {
		return err
	}
	if err := checkRetryPath(o.retry); err != nil {
		return err
	}
	limitMemory(o.memory, a.getenv)
	printer := a.printer()
	dst, err := openDestination(ctx, c, destinationOptions{path: o.from.destinationPath(), preserveSharing: o.sharing, note: func(text string) {
		printer.Note(time.Now(), a.redact(text))
	}})
	if err != nil {
		return err
	}
	defer dst.Close()
	started := time.Now()
	report, err := pipeline.Retry(ctx, o.retry, dst, a.shown(), o.yes)
	if err != nil {
		return interruptedRetry(err)
	}
	printer.Retried(&progress.RetrySummary{
		Report: report, HistoryPreserving: c.Destination.HistoryPreserving, Elapsed: time.Since(started), Next: o.afterRetry(report),
	})
	if report.Remaining() > 0 {
		return exitCode(exitRejects)
	}
	return nil
}

// shown is how many entries of a list are printed, 0 for all.
func (a *app) shown() int {
	if a.output.verbose || a.output.logFormat == "json" && !a.output.quiet {
		return 0
	}
	return dest.ListMax
}

// interruptedRetry says what an interruption has left. The general advice is for
// conversions.
func interruptedRetry(err error) error {
	uncertain := (*dest.UncertainError)(nil)
	switch {
	case !errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &uncertain):
		return &failure{err, []string{"PostgreSQL was about to commit: either all records were written or none; the same command tells which, and goes on"}}
	}
	return &failure{err, []string{"nothing was changed; the same command goes on"}}
}

// checkRetryPath refuses what is no file.
func checkRetryPath(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return usage(fmt.Sprintf("--retry-rejects %s: there is no such file", path))
	case err != nil:
		return usage(fmt.Sprintf("--retry-rejects %s: %v", path, errors.Unwrap(err)))
	case !info.Mode().IsRegular():
		return usage(fmt.Sprintf("--retry-rejects %s: is not a file", path))
	}
	return nil
}

// afterRetry says what to do when the records are written.
func (o *convertOptions) afterRetry(r *pipeline.RetryReport) []string {
	var lines []string
	if n := int64(len(r.Sessions)); n > 0 && r.Written > 0 {
		noun := "other sessions were"
		if n == 1 {
			noun = "other session was"
		}
		lines = append(lines, fmt.Sprintf("%s %s connected. If a site is running, restart every process of it: its caches do not learn of what was written. The first is %s.",
			progress.Count(n), noun, r.Sessions[0]))
	}
	if r.Rejected > 0 {
		lines = append(lines, fmt.Sprintf("Keep %s: a later version may store what is left. What is written already does no harm in it.", quote(r.File)))
	}
	if r.Blobs > 0 {
		lines = append(lines, "Only a new conversion, with the files in their place, brings missing blobs. With --clear it would discard everything that was written to the destination since the last one: convert into an empty database, and copy what is missing from there.")
	}
	return lines
}
