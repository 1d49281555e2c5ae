package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// describe adds what the program tells about itself: completions for shells and
// the manual page. Both are made of the definitions of commands and flags, so
// that it is called when all of them are there.
func (a *app) describe(root *cobra.Command) {
	root.AddCommand(newCompletionCommand(a), newManCommand(a))
	completeArguments(root)
	for _, c := range root.Commands() {
		completeArguments(c)
	}
}

const completionHelp = `Print what lets a shell complete commands, flags and values of zodb-convert.

Usage: zodb-convert completion bash|zsh|fish

Packages bring these files along. Otherwise put them where the shell looks.

EXAMPLES
  zodb-convert completion bash >~/.local/share/bash-completion/completions/zodb-convert
  zodb-convert completion zsh >DIRECTORY_OF_FPATH/_zodb-convert
  zodb-convert completion fish >~/.config/fish/completions/zodb-convert.fish

EXIT STATUS
  0    done
  2    the command line is wrong
`

// shells are those that there are completions for.
var shells = []string{"bash", "zsh", "fish"}

func newCompletionCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print what lets a shell complete the command line",
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && slices.Contains(shells, args[0]) {
				return nil
			}
			return usage("one of the shells "+strings.Join(shells, ", ")+" is wanted", "such as: zodb-convert completion bash")
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return shells, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			default:
				return root.GenFishCompletion(a.stdout, true)
			}
		},
	}
	cmd.Flags().BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(*cobra.Command, []string) { fmt.Fprint(a.stdout, completionHelp) })
	return cmd
}

// fileValues are the words by which flags call a value that is a file.
var fileValues = []string{"PATH", "FILE", "DIR", "MANIFEST", "CONFIG"}

// wordValues are the values of the flags that know a few words only.
var wordValues = map[string][]string{"log-format": {"text", "json"}}

// completeArguments says what may stand where the command takes an argument or
// a flag takes a value. What is left to the shell are names of files.
func completeArguments(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = completeConfig
		if !strings.Contains(cmd.Use, "CONFIG") {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.NoOptDefVal != "" {
			return // stands alone
		}
		value, _ := pflag.UnquoteUsage(f)
		complete := cobra.NoFileCompletions
		if words := wordValues[f.Name]; words != nil {
			complete = cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
		} else if slices.Contains(fileValues, value) {
			return // the shell's own way
		}
		// Fails for a flag that a command has declared a completion for.
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete)
	})
}

// completeConfig is for the one CONFIG that a command takes. Shells complete
// names of files by themselves where they are given no words. Where commands
// begin like the word, these would hide the files: they are given as well then.
func completeConfig(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	hidden := slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool {
		return c.IsAvailableCommand() && strings.HasPrefix(c.Name(), word)
	})
	if !hidden {
		return nil, cobra.ShellCompDirectiveDefault
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, word) || strings.HasPrefix(name, ".") {
			continue
		}
		if isDirectory(e) {
			name += "/"
		}
		names = append(names, name)
	}
	return names, cobra.ShellCompDirectiveDefault
}

// isDirectory follows symbolic links.
func isDirectory(e os.DirEntry) bool {
	info, err := os.Stat(e.Name())
	return err == nil && info.IsDir()
}
