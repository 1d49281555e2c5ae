package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
)

// origin is where the configuration comes from: CONFIG, and the flags that take
// an end of the conversion from a site.
type origin struct{ config.Origin }

// siteFlags are those for both ends, or for the destination alone.
func (o *origin) siteFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("sites", pflag.ContinueOnError)
	f.SortFlags = false
	if !o.DestinationOnly {
		f.StringVar(&o.SourceSite, "source-zope-conf", "", "take the source from the zope.conf `FILE`")
		f.StringVar(&o.SourceDatabase, "source-db", "", "`NAME` of its database (default main, or the only one)")
	}
	f.StringVar(&o.DestinationSite, "dest-zope-conf", "", "take the destination from the zope.conf `FILE`")
	f.StringVar(&o.DestinationDatabase, "dest-db", "", "`NAME` of its database (default main, or the only one)")
	return f
}

// take notes CONFIG, which may be left out if every end comes from a site.
func (o *origin) take(cmd *cobra.Command, args []string) error {
	switch {
	case o.SourceDatabase != "" && o.SourceSite == "":
		return usage("--source-db names a database of --source-zope-conf, which is missing")
	case o.DestinationDatabase != "" && o.DestinationSite == "":
		return usage("--dest-db names a database of --dest-zope-conf, which is missing")
	case len(args) == 0 && o.DestinationSite != "" && (o.SourceSite != "" || o.DestinationOnly):
		return nil
	case len(args) == 0 && o.SourceSite != "" && o.DestinationOptional:
		return nil
	case len(args) == 0 && (o.SourceSite != "" || o.DestinationSite != ""):
		missing := "the destination: name it with --dest-zope-conf or in CONFIG"
		if o.DestinationSite != "" {
			missing = "the source: name it with --source-zope-conf or in CONFIG"
		}
		return usage("nothing tells " + missing)
	}
	if err := oneConfig(cmd, args); err != nil {
		return err
	}
	o.Path = args[0]
	return nil
}

// oneConfig is the rule for arguments of every command.
func oneConfig(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 1 && !meansCommand(cmd, args[0]):
		return nil
	case len(args) == 0:
		return usage("CONFIG is missing: name the file that says what to convert", "zodb-convert --help tells more")
	}
	if c := nearestCommand(cmd, args[0]); c != "" {
		return usage(fmt.Sprintf("unknown command %q; did you mean %q?", args[0], c))
	}
	return usage(fmt.Sprintf("one CONFIG is wanted, and there are %d: %s", len(args), strings.Join(args[:min(len(args), dest.ListMax)], ", ")))
}

// meansCommand tells whether a word is a mistyped command rather than a file.
func meansCommand(cmd *cobra.Command, word string) bool {
	if strings.ContainsAny(word, `./\`) || nearestCommand(cmd, word) == "" {
		return false
	}
	_, err := os.Stat(word)
	return errors.Is(err, os.ErrNotExist)
}

// destinationPath is the file that names the destination.
func (o *origin) destinationPath() string {
	if o.DestinationSite != "" {
		return o.DestinationSite
	}
	return o.Path
}

// sourcePath is the file that names the source.
func (o *origin) sourcePath() string {
	if o.SourceSite != "" {
		return o.SourceSite
	}
	return o.Path
}

// files are those that must not be written over.
func (o *origin) files() []string { return []string{o.Path, o.SourceSite, o.DestinationSite} }

// text is the flags and CONFIG as they are typed, for a command that goes on.
func (o *origin) text() string {
	var b strings.Builder
	for _, f := range []struct{ flag, value string }{
		{" --source-zope-conf ", o.SourceSite}, {" --source-db ", o.SourceDatabase},
		{" --dest-zope-conf ", o.DestinationSite}, {" --dest-db ", o.DestinationDatabase}, {" ", o.Path},
	} {
		if f.value != "" {
			b.WriteString(f.flag + quote(f.value))
		}
	}
	return b.String()
}

// destinationText is text for a command that needs no source.
func (o *origin) destinationText() string {
	d := *o
	d.SourceSite, d.SourceDatabase = "", ""
	if d.DestinationSite != "" {
		d.Path = ""
	}
	return d.text()
}

// resumeText is text for a command that goes on with the run, where only the
// destination may have been named.
func (o *origin) resumeText() string {
	if o.Path == "" && o.SourceSite == "" {
		return " --source-zope-conf FILE" + o.text()
	}
	return o.text()
}
