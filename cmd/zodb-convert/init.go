package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/zodb-convert/zodb-convert/internal/config"
)

const initHelp = `Print a CONFIG to begin with, with a comment on every key.

Usage: zodb-convert init [flags] >migrate.toml

What can be taken from FILE is filled in. It may be a zope.conf or another file
in ZConfig. Passwords and keys are not copied; $(NAME) becomes ${NAME}.

`

const initExamples = `
EXAMPLES
  zodb-convert init >migrate.toml
  zodb-convert init --from /srv/plone/etc/zope.conf >migrate.toml
  zodb-convert init --from zope.conf --source-db main --dest-db new >migrate.toml

EXIT STATUS
  0    done
  2    the command line or FILE is wrong; the message says where
`

func newInitCommand(a *app) *cobra.Command {
	draft := config.Draft{}
	cmd := &cobra.Command{
		Use:   "init [--from FILE]",
		Short: "Print a CONFIG to begin with",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return usage(fmt.Sprintf("init takes no arguments, and there is %s", quote(args[0])),
					"the draft goes to stdout: zodb-convert init --from zope.conf >migrate.toml")
			case draft.From == "" && (draft.SourceDatabase != "" || draft.DestinationDatabase != ""):
				return usage("--source-db and --dest-db name databases of --from, which is missing")
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			text, err := draft.TOML(a.getenv)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&draft.From, "from", "", "take what there is from `FILE`, such as a zope.conf")
	f.StringVar(&draft.SourceDatabase, "source-db", "", "`NAME` of the database in it that is the source")
	f.StringVar(&draft.DestinationDatabase, "dest-db", "", "`NAME` of the database in it that is the destination")
	f.BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(a.stdout, initHelp, cmd.LocalFlags().FlagUsages(), initExamples)
	})
	return cmd
}
