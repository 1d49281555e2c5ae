package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/nearest"
	"github.com/zodb-convert/zodb-convert/internal/progress"
	"github.com/zodb-convert/zodb-convert/source"
)

// Exit codes. exitStatus tells the user about them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRejects     = 3
	exitDifferences = 4
	exitInterrupted = 130
)

const exitStatus = `EXIT STATUS
  0    done
  1    failed or refused; the message says why and what to do
  2    the command line or CONFIG is wrong; nothing was touched
  3    done but for rejects or missing blobs; inspect: not all arrives unchanged
  4    verify has found differences
  130  interrupted; --incremental goes on, --retry-rejects by the same command
`

// app is one call of the command.
type app struct {
	stdin          *os.File
	stdout, stderr *os.File
	getenv         func(string) (string, bool)
	version        string
	signals        *signals

	output  outputOptions
	secrets []string // what no message may show
	keys    []string // of S3: what nothing that is printed may show
}

// outputOptions say how to talk to the user.
type outputOptions struct {
	logFormat      string
	verbose, quiet bool
}

// flags adds them to those of a command; quiet is what -q leaves of it.
func (o *outputOptions) flags(f *pflag.FlagSet, quiet string) {
	f.Var((*formatValue)(&o.logFormat), "log-format", "`text` or json, one object a line")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "tell more")
	f.BoolVarP(&o.quiet, "quiet", "q", false, quiet)
}

// run does what the arguments say and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.commands()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var done exitCode
	if errors.As(err, &done) {
		return int(done)
	}
	p := a.problem(err)
	a.printer().Problem(p)
	return p.ExitCode
}

// commands is the command with those below it.
func (a *app) commands() *cobra.Command {
	root := newConvertCommand(a)
	root.AddCommand(newStatusCommand(a), newVerifyCommand(a), newInspectCommand(a), newInitCommand(a))
	a.describe(root)
	return root
}

// printer gives what the output options ask for.
func (a *app) printer() progress.Printer {
	var p progress.Printer
	out := redacting{a}
	switch {
	case a.output.logFormat == "json":
		p = progress.NewJSON(out, a.output.verbose)
	case a.capableTerminal():
		p = progress.NewTerminal(out, a.output.verbose, a.columns)
	default:
		p = progress.NewText(out, a.output.verbose)
	}
	if a.output.quiet {
		p = progress.Quiet(p)
	}
	return p
}

// capableTerminal tells whether stderr is a terminal on which a line can be
// drawn again.
func (a *app) capableTerminal() bool {
	kind, _ := a.getenv("TERM")
	return kind != "" && kind != "dumb" && term.IsTerminal(int(a.stderr.Fd()))
}

func (a *app) columns() int {
	if width, _, err := term.GetSize(int(a.stderr.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}

// exitCode ends the command with a code; everything has been said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a mistake on the command line.
type usageError struct {
	reason string
	hints  []string
}

func (e *usageError) Error() string { return e.reason }

func usage(reason string, hints ...string) error { return &usageError{reason, hints} }

// failure is an error with what to do about it.
type failure struct {
	err   error
	hints []string
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// problem turns an error into a sentence, hints and an exit code.
func (a *app) problem(err error) *progress.Problem {
	p := &progress.Problem{ExitCode: exitFailed, Message: err.Error()}
	var (
		usage   *usageError
		conf    *config.Error
		refused *dest.RefusedError
		damage  *source.DamageError
		failed  *failure
	)
	hint := ""
	switch {
	case errors.As(err, &usage):
		p.ExitCode, p.Hints = exitUsage, usage.hints
	case errors.As(err, &conf):
		p.ExitCode, hint = exitUsage, conf.Hint
	case errors.As(err, &refused):
		hint = refused.Hint
	case errors.As(err, &damage):
		hint = damage.Hint
	case errors.Is(err, context.Canceled):
		p.ExitCode, p.Message = exitInterrupted, "interrupted"
	}
	if strings.Contains(p.Message, "there is no such") {
		// The cause is for programs; it says the same.
		p.Message = strings.TrimSuffix(p.Message, ": "+fs.ErrNotExist.Error())
	}
	if hint != "" {
		// Error puts the hint behind the sentence; here it gets its own line.
		p.Message = strings.TrimSuffix(p.Message, "; "+hint)
		p.Hints = append(p.Hints, hint)
	}
	if errors.As(err, &failed) {
		p.Hints = append(p.Hints, failed.hints...)
	}
	p.Message = a.redact(oneLine(p.Message))
	for i, h := range p.Hints {
		p.Hints[i] = a.redact(h)
	}
	return p
}

// oneLine joins the lines that some libraries spread an error over.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	out := strings.Join(lines, "; ")
	return strings.ReplaceAll(out, ":; ", ": ")
}

// keepSecret notes the password of a DSN. The libraries redact their messages;
// this is for what they and the server do not know to be secret.
func (a *app) keepSecret(dsn string) {
	if c, err := pgconn.ParseConfig(dsn); err == nil && len(c.Password) >= 4 {
		a.secrets = append(a.secrets, c.Password)
	}
}

// keepSourceSecrets notes the password of a RelStorage.
func (a *app) keepSourceSecrets(s *config.RelStorage) {
	switch {
	case s.PostgreSQL != nil:
		a.keepSecret(s.PostgreSQL.DSN)
	case s.MySQL != nil && len(s.MySQL.Password) >= 4:
		a.secrets = append(a.secrets, s.MySQL.Password)
	}
}

// keepS3Secrets notes the keys of S3, those of the environment included. The
// S3 library quotes the access key here and there, and a server may quote
// anything.
func (a *app) keepS3Secrets(s *config.S3) {
	keys := []string{s.AccessKey, s.SecretKey}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		key, _ := a.getenv(name)
		keys = append(keys, key)
	}
	for _, key := range keys {
		if len(key) >= 4 {
			a.secrets = append(a.secrets, key)
		}
		// A shorter word would be found in what is none.
		if len(key) >= 8 {
			a.keys = append(a.keys, key)
		}
	}
}

// redacting is stderr without the keys of S3, and without what would disturb a
// terminal. The printers write whole lines.
type redacting struct{ *app }

func (r redacting) Write(p []byte) (int, error) {
	text := visible(string(p))
	for _, key := range r.keys {
		text = strings.ReplaceAll(text, key, "xxxxx")
		if quoted, err := json.Marshal(key); err == nil {
			text = strings.ReplaceAll(text, string(quoted[1:len(quoted)-1]), "xxxxx")
		}
	}
	if _, err := io.WriteString(r.stderr, text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// visible shows control characters, which names of classes, users and files may
// hold, by their number. Bytes that are not UTF-8 stay: where that is not the
// locale's encoding, names of files are to be shown, and copied, as they are.
func visible(text string) string {
	if strings.IndexFunc(text, disturbing) < 0 {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		if disturbing(r) {
			fmt.Fprintf(&b, `\x%02x`, r)
			continue
		}
		b.WriteString(text[i : i+runeLength(text[i:], r)])
	}
	return b.String()
}

// runeLength is that of the first rune, or 1 for a byte that begins none.
func runeLength(text string, first rune) int {
	if first == utf8.RuneError {
		_, n := utf8.DecodeRuneInString(text)
		return n
	}
	return utf8.RuneLen(first)
}

func disturbing(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\n\r\t", r) }

// redact takes secrets out of a text. The names of programs stay: a password may
// be part of them (zodb, on machines where it is also the user), and a command that
// is to be typed would begin with xxxxx-convert.
func (a *app) redact(text string) string {
	for _, s := range a.secrets {
		if programNames.MatchString(s) {
			text = strings.ReplaceAll(text, s, "xxxxx")
		}
	}
	names := programNames.FindAllString(text, -1)
	for i, between := range programNames.Split(text, -1) {
		for _, s := range a.secrets {
			between = strings.ReplaceAll(between, s, "xxxxx")
		}
		if i == 0 {
			text = between
			continue
		}
		text += names[i-1] + between
	}
	return text
}

var programNames = regexp.MustCompile(`\b(zodb-convert|zodb-pgjsonb|zodb-json-codec)\b`)

// readConfig reads the configuration and notes what is secret in it.
func (a *app) readConfig(from *origin) (*config.Config, error) {
	c, err := from.Read(a.getenv)
	if err != nil {
		return nil, err
	}
	a.keepSecret(c.Destination.DSN)
	if s := c.Source.RelStorage; s != nil {
		a.keepSourceSecrets(s)
	}
	a.keepS3Secrets(&c.Destination.S3)
	return c, nil
}

// nearestCommand gives the command that was meant, or "".
func nearestCommand(cmd *cobra.Command, word string) string {
	var commands []string
	for _, c := range cmd.Commands() {
		commands = append(commands, c.Name())
	}
	return nearest.Word(word, commands)
}

// flagError turns what is wrong with a flag into a sentence.
func flagError(cmd *cobra.Command, err error) error {
	var (
		unknown *pflag.NotExistError
		invalid *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
	)
	switch {
	case errors.As(err, &unknown):
		return unknownFlag(cmd, unknown)
	case errors.As(err, &invalid):
		return usage(fmt.Sprintf("--%s %s: %v", invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(invalid)))
	case errors.As(err, &missing):
		return usage(fmt.Sprintf("--%s wants a value", missing.GetFlag().Name))
	}
	return usage(err.Error())
}

func unknownFlag(cmd *cobra.Command, err *pflag.NotExistError) error {
	name := err.GetSpecifiedName()
	if letters := err.GetSpecifiedShortnames(); letters != "" {
		return usage(fmt.Sprintf("unknown flag -%s", name), "zodb-convert --help lists the flags")
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := nearest.Word(name, names); near != "" {
		return usage(fmt.Sprintf("unknown flag --%s; did you mean --%s?", name, near))
	}
	return usage(fmt.Sprintf("unknown flag --%s", name), "zodb-convert --help lists the flags")
}

// quote gives a word as a shell takes it.
func quote(word string) string {
	if word != "" && strings.IndexFunc(word, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:@%+,", r)
	}) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
