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
)

const statusHelp = `Tell what the destination holds and how far an interrupted run came.

Usage: zodb-convert status [flags] CONFIG

Nothing is written. The result goes to stdout.

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
	dst, err := openDestination(ctx, c, from.destinationPath())
	if err != nil {
		return err
	}
	defer dst.Close()
	state, err := dst.State(ctx, 1)
	if err != nil {
		return err
	}
	if asJSON {
		out := json.NewEncoder(a.stdout)
		out.SetIndent("", "  ")
		return out.Encode(statusLine(dst.Name(), state))
	}
	_, err = fmt.Fprint(a.stdout, statusText(dst.Name(), from.resumeText(), state))
	return err
}

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
	TotalBytes int64       `json:"total_bytes" doc:"of the source, to be loaded"`
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
}

func statusLine(name string, s *dest.State) *statusJSON {
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
			Bytes: loaded(r), TotalBytes: r.Source.End,
			Tool: r.Tool, Host: r.Host, PID: r.PID,
			Started: r.Started, Claimed: r.Claimed, Live: s.Live, Totals: r.Totals,
			Owed: s.Owed, OwedBytes: s.OwedBytes, MissingBlobs: s.Missing,
			Bucket: r.Options.Bucket, Prefix: r.Options.Prefix,
		}
	}
	return out
}

// loaded is how much of the source the chunks that are done cover.
func loaded(r *dest.Run) (n int64) {
	for _, d := range r.Done {
		n += d.To - d.From
	}
	return n
}

func statusText(name, from string, s *dest.State) string {
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
		row("loaded", "%s of %s", progress.Bytes(loaded(r)), progress.Bytes(r.Source.End))
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
			break
		}
		row("go on with", "zodb-convert --incremental%s", from)
		row("undo with", "zodb-convert --abort%s", from)
	}
	return b.String()
}
