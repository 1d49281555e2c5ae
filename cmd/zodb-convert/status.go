package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/source/relstorage"
)

const statusHelp = `Tell what the destination holds and how far an interrupted run came.

Usage: zodb-convert status [flags] CONFIG

Nothing is written. The result goes to stdout. The speed of a run that is at
work is measured for 2 seconds.

`

const statusExit = `
EXAMPLES
  zodb-convert status migrate.toml
  zodb-convert status --json migrate.toml | jq .run.phase
  zodb-convert status --dest-zope-conf /srv/plone/etc/zope.conf

EXIT STATUS
  0    done
  1    failed; the message says why
  2    the command line or CONFIG is wrong
`

func newStatusCommand(a *app) *cobra.Command {
	asJSON := false
	from := origin{config.Origin{DestinationOnly: true}}
	cmd := &cobra.Command{
		Use:   "status [--json] CONFIG",
		Short: "Tell how far an interrupted run came",
		Args:  from.take,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), &from, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().AddFlagSet(from.siteFlags())
	cmd.Flags().BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(a.stdout, statusHelp, cmd.LocalFlags().FlagUsages(), statusExit)
	})
	return cmd
}

func (a *app) status(ctx context.Context, from *origin, asJSON bool) error {
	c, err := a.readConfig(from)
	if err != nil {
		return err
	}
	dst, err := openDestination(ctx, c, destinationOptions{path: from.destinationPath()})
	if err != nil {
		return err
	}
	defer dst.Close()
	state, err := dst.State(ctx, 1)
	if err != nil {
		return err
	}
	state, rate, err := measured(ctx, dst, state)
	if err != nil {
		return err
	}
	if asJSON {
		out := json.NewEncoder(a.stdout)
		out.SetIndent("", "  ")
		return out.Encode(statusLine(dst.Name(), from.resumeText(), state, rate))
	}
	_, err = fmt.Fprint(a.stdout, visible(statusText(dst.Name(), from.resumeText(), state, rate)))
	return err
}

// measuring is how long a run at work is watched. The record of a run has no
// times by which its speed could be told.
const measuring = 2 * time.Second

// measured gives the latest state and, for a run that is loading, how many bytes
// of the source it loads in a second; nil if that cannot be told.
func measured(ctx context.Context, dst dest.Destination, first *dest.State) (*dest.State, *float64, error) {
	if !loading(first) {
		return first, nil, nil
	}
	began := time.Now()
	select {
	case <-time.After(measuring):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	last, err := dst.State(ctx, 1)
	if err != nil {
		return nil, nil, err
	}
	if !loading(last) || last.Run.ID != first.Run.ID {
		return last, nil, nil
	}
	rate := float64(loaded(last.Run)-loaded(first.Run)) / time.Since(began).Seconds()
	return last, &rate, nil
}

func loading(s *dest.State) bool { return s.Live && s.Run != nil && s.Run.Phase == dest.Loading }

// statusJSON is what --json prints.
type statusJSON struct {
	Destination  string         `json:"destination" doc:"its name, without secrets"`
	Condition    dest.Condition `json:"condition" doc:"absent, empty, interrupted or filled"`
	Transactions int64          `json:"transactions" doc:"in a filled destination"`
	Objects      int64          `json:"objects" doc:"in a filled destination"`
	Run          *runJSON       `json:"run" doc:"the unfinished run, or null"`
	Notes        []string       `json:"notes" doc:"sentences"`
}

// runJSON is the unfinished run.
type runJSON struct {
	ID         string      `json:"id" doc:"names the run"`
	Generation int64       `json:"generation" doc:"how often it was started"`
	Phase      dest.Phase  `json:"phase" doc:"loading, finishing or catching up"`
	Source     string      `json:"source" doc:"the database it reads"`
	Bytes      int64       `json:"bytes" doc:"of the source, loaded"`
	TotalBytes int64       `json:"total_bytes" doc:"of the source, to be loaded; 0 for a RelStorage if an earlier release began the run"`
	Rate       *float64    `json:"bytes_per_second" doc:"of a run that loads at this moment"`
	Tool       string      `json:"tool" doc:"version that started it"`
	Host       string      `json:"host" doc:"where it was started last"`
	PID        int         `json:"pid" doc:"process there"`
	Started    time.Time   `json:"started" doc:"first start"`
	Claimed    time.Time   `json:"claimed" doc:"latest start"`
	Live       bool        `json:"live" doc:"whether that process is seen at work"`
	Totals     dest.Result `json:"totals" doc:"counts so far"`
	// What the run still has to settle.
	Owed         int64  `json:"owed" doc:"uploads to S3 that are not done"`
	OwedBytes    int64  `json:"owed_bytes" doc:"their bytes"`
	MissingBlobs int64  `json:"missing_blobs" doc:"blobs that were not found or could not be read"`
	Bucket       string `json:"bucket" doc:"where in S3 large blobs go, empty if nowhere"`
	Prefix       string `json:"prefix" doc:"what their keys start with"`
	// How to go on with a run that is not live.
	GoOnWith string `json:"go_on_with" doc:"the command that goes on, empty if the run is live"`
	UndoWith string `json:"undo_with" doc:"the command that undoes it, empty if the run is live"`
}

func statusLine(name, from string, s *dest.State, rate *float64) *statusJSON {
	out := &statusJSON{
		Destination: name, Condition: s.Condition,
		Transactions: s.Transactions, Objects: s.Objects, Notes: s.Notes,
	}
	if out.Notes == nil {
		out.Notes = []string{}
	}
	if r := s.Run; r != nil {
		out.Run = &runJSON{
			ID: r.ID, Generation: r.Generation, Phase: r.Phase, Source: r.Source.Name,
			Bytes: loaded(r), TotalBytes: total(r), Rate: rate,
			Tool: r.Tool, Host: r.Host, PID: r.PID,
			Started: r.Started, Claimed: r.Claimed, Live: s.Live, Totals: r.Totals,
			Owed: s.Owed, OwedBytes: s.OwedBytes, MissingBlobs: s.Missing,
			Bucket: r.Options.Bucket, Prefix: r.Options.Prefix,
		}
		if !s.Live {
			out.Run.GoOnWith, out.Run.UndoWith = goOnWith(from, r), undoWith(from)
		}
	}
	return out
}

// inTables tells whether the ranges of a run count something else than bytes: its
// source has no positions, and its end is a tid.
func inTables(r *dest.Run) bool { return r.Source.Kind == relstorage.Kind }

// loaded is how much of the source the chunks that are done cover.
func loaded(r *dest.Run) (n int64) {
	if inTables(r) {
		return r.Totals.SourceBytes
	}
	for _, d := range r.Done {
		n += d.To - d.From
	}
	return n
}

// goOnWith is the command that goes on as the run was started last. With other
// options in CONFIG than it had it would be refused.
func goOnWith(from string, r *dest.Run) string {
	line := "zodb-convert --incremental"
	if r.Options.PreserveSharing {
		line += " --preserve-sharing"
	}
	return line + blobFlags(r.Start.Blobs, r.Start.Manifest, r.Start.StagingDir) + from
}

func undoWith(from string) string { return "zodb-convert --abort" + from }

// total is how large the source is, and 0 if only a scan of it could tell.
func total(r *dest.Run) int64 {
	if inTables(r) {
		return r.Start.SourceBytes
	}
	return r.Source.End
}

// beginning is what a FileStorage has before its first transaction.
const beginning = int64(len("FS30"))

// percent is how much of the source is loaded. What is not all is not 100.
func percent(r *dest.Run) int64 {
	switch {
	case inTables(r) && r.Phase != dest.Loading, !inTables(r) && r.Source.End-loaded(r) <= beginning:
		return 100
	case inTables(r):
		// It may have grown between two starts, and chunks are loaded that it has
		// lost since.
		return int64(min(float64(loaded(r))/float64(total(r))*100, 99))
	}
	return int64(float64(loaded(r)) / float64(total(r)) * 100)
}

func loadedText(r *dest.Run) string {
	if total(r) == 0 {
		return progress.Bytes(loaded(r))
	}
	return fmt.Sprintf("%s of %s (%d%%)", progress.Bytes(loaded(r)), progress.Bytes(total(r)), percent(r))
}

func statusText(name, from string, s *dest.State, rate *float64) string {
	var b strings.Builder
	row := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", key, fmt.Sprintf(format, args...))
	}
	row("destination", "%s", name)
	condition := string(s.Condition)
	if s.Live {
		condition = "a run is at work"
	}
	row("condition", "%s", condition)
	switch s.Condition {
	case dest.Filled:
		row("holds", "%s", contents(s))
		row("highest tid", "%v (%s UTC)", s.LastTID, s.LastTID.Time().Format(time.DateTime))
	case dest.Interrupted:
		r := s.Run
		row("source", "%s", r.Source.Name)
		row("started", "%s on %s (pid %d), by version %s", r.Started.Format(time.DateTime), r.Host, r.PID, r.Tool)
		if r.Generation > 1 {
			row("latest start", "%s, the %d. one", r.Claimed.Format(time.DateTime), r.Generation)
		}
		row("phase", "%s", r.Phase)
		row("loaded", "%s", loadedText(r))
		if rate != nil {
			row("rate", "%s/s", progress.Bytes(int64(*rate)))
		}
		row("objects", "%s", progress.Count(r.Totals.Objects+r.Totals.Revisions))
		row("rejected", "%s", progress.Count(r.Totals.Rejected))
		if r.Options.Bucket != "" {
			row("bucket", "%s", strings.TrimSuffix(r.Options.Bucket+"/"+r.Options.Prefix, "/"))
			row("owed uploads", "%s, %s", progress.Count(s.Owed), progress.Bytes(s.OwedBytes))
		}
		if n := r.Totals.Blobs + r.Totals.S3Blobs; n+s.Missing > 0 {
			row("blobs", "%s", progress.Count(n))
			row("missing blobs", "%s", progress.Count(s.Missing))
		}
		if s.Live {
			row("report", "kill -USR1 %d on %s lets it print one", r.PID, r.Host)
			break
		}
		row("go on with", "%s", goOnWith(from, r))
		if s.Owed > 0 && r.Start.Blobs != dest.Deferred {
			row("", "which waits for S3; to list in PATH what is owed, and upload it later, add --deferred-blobs PATH")
		}
		row("undo with", "%s", undoWith(from))
	}
	return b.String()
}
