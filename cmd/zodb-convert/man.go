package main

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/internal/config"
)

// newManCommand prints the manual page. Only packages are made by it, so that
// no help lists it.
func newManCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "man", Short: "Print the manual page", Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("man takes no arguments", "to read the page: zodb-convert man >zodb-convert.1 && man ./zodb-convert.1")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			date, err := a.sourceDate()
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, manPage(cmd.Root(), a.version, date))
			return err
		},
	}
	cmd.Flags().BoolP("help", "h", false, "print this")
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		fmt.Fprint(a.stdout, "Print the manual page.\n\nUsage: zodb-convert man >zodb-convert.1\n")
	})
	return cmd
}

// sourceDate is the day of the release, as SOURCE_DATE_EPOCH tells it to
// whatever builds one: the same release is the same page. Without it the page
// is of today.
func (a *app) sourceDate() (time.Time, error) {
	text, ok := a.getenv("SOURCE_DATE_EPOCH")
	if !ok {
		return time.Now().UTC(), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, usage(fmt.Sprintf("SOURCE_DATE_EPOCH is %q, and not a number of seconds", text))
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// manDescription and the lists after it are what no definition says.
const manDescription = `Moves a whole ZODB database from a FileStorage or a RelStorage into zodb-pgjsonb, where every object is JSON in PostgreSQL and blobs are in PostgreSQL or S3.

The source is never written to. A run can be killed at any moment; the same command with --incremental goes on with it. Nothing is written twice, and nothing is left out in silence: records that PostgreSQL cannot hold and blobs whose files are missing are counted and listed, and the run is not complete until somebody has accepted them.

Results go to the standard output, everything else to the standard error.`

// manEnvironment are the variables that count.
var manEnvironment = []manItem{
	{"AWS_ACCESS_KEY_ID", "With AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN: the keys of S3, if neither CONFIG nor a flag has them. AWS_PROFILE and the other variables of Amazon's tools count as well."},
	{"PGPASSWORD", "The password of the PostgreSQL user, if a DSN has none, for the source as well as for the destination. PGPASSFILE, PGSERVICE, PGSSLMODE, PGSSLROOTCERT and the other variables of libpq count as well."},
	{"SSL_CERT_FILE, SSL_CERT_DIR", "Where certificates of authorities are that servers are checked against, if not where the system has them."},
	{"GOMEMLIMIT", "Counts in place of the limit that --memory sets for the heap."},
	{"TMPDIR", "Where inspect keeps references meanwhile, in a file without a name, if --temp-dir does not say."},
	{"TERM", "Where it is dumb or not set, progress is lines in place of a bar."},
	{"Any other", "CONFIG may name it as ${NAME}."},
}

// manFiles are the files that are read or written besides those named by flags.
var manFiles = []manItem{
	{"Data.fs", "The source, if it is a FileStorage. It is opened for reading only, and nothing is written beside it."},
	{"main.sqlite3", "The source, if it is a RelStorage in SQLite. It is opened for reading only; SQLite itself keeps a file with -shm at its end beside it."},
	{"~/.pgpass, ~/.pg_service.conf", "Passwords and services, as psql reads them."},
	{"~/.aws/credentials, ~/.aws/config", "Keys and regions of S3, as Amazon's tools read them."},
	{"/usr/share/doc/zodb-convert", "The whole documentation, if a package brought it."},
}

// manSignals are those that the command listens to.
var manSignals = []manItem{
	{"SIGINT, SIGTERM, SIGHUP", "The run stops, says how to go on, and the exit status is 130. A second one ends the process at once; that is safe, too."},
	{"SIGUSR1", "A report is printed at once."},
}

// manExamples are a migration from beginning to end.
var manExamples = []manItem{
	{"zodb-convert inspect migrate.toml", "See what the source holds, and what of it will not arrive unchanged."},
	{"zodb-convert --dry-run migrate.toml", "See what would happen; nothing is written."},
	{"zodb-convert -w 8 migrate.toml", "Convert with eight workers."},
	{"zodb-convert --incremental -w 8 migrate.toml", "Go on after an interruption, or add what the source got since."},
	{"zodb-convert --rejects rejects.jsonl --incremental migrate.toml", "Finish although records are rejected, and list them."},
	{"zodb-convert --deferred-blobs blobs.tsv migrate.toml", "Convert without uploading blobs ..."},
	{"zodb-convert --upload-blobs blobs.tsv migrate.toml", "... and upload them later."},
	{"zodb-convert --retry-rejects rejects.jsonl migrate.toml", "Store what an earlier version has rejected and this one can store."},
	{"zodb-convert verify migrate.toml", "Compare the destination with the source, object by object."},
	{"zodb-convert status migrate.toml", "See how far an interrupted run came."},
}

// manItem is a term and what it means.
type manItem struct{ term, text string }

// manDefaults are defaults that depend on the machine.
var manDefaults = map[string]string{"workers": "one for each processor, 8 at most"}

// manDetails are what the line of a flag has no room for.
var manDetails = map[string]string{
	"workers":             "Each takes one connection of the server and decodes on one processor. As many connections read, if the source is a RelStorage.",
	"incremental":         "It finds out which of both is needed.",
	"clear":               "Says what it empties and asks on the terminal; where nobody can be asked it wants --yes.",
	"abort":               "Objects in S3 are never removed: another site may use them.",
	"memory":              "It is for the whole process and does not grow with the database. SIZE is a number of bytes, or one with KB, MB or GB.",
	"rejects":             "Without it, a run with rejected records stops when everything else is loaded. PATH holds data of the database and is readable by its owner only.",
	"yes":                 "With --retry-rejects, other sessions may be connected to the destination: a running site must be restarted afterwards.",
	"retry-rejects":       "PATH is what --rejects wrote, by an earlier version as a rule. All that can be stored is written or nothing, into a finished destination; the rest is listed. The source is not read. After an interruption the same command goes on.",
	"verbose":             "The start of each phase and step, and the keys of CONFIG that have no effect.",
	"quiet":               "And the reports that SIGUSR1 asks for.",
	"background-blobs":    "All of them are done before the run ends. Otherwise each blob is uploaded before the transaction with its record is committed.",
	"deferred-blobs":      "Blobs, that is, which would go to S3. Until --upload-blobs has uploaded them the source must not be packed.",
	"staging-dir":         "For a source whose blobs are in its database: there is no file that could be listed. What is there stays until somebody removes it.",
	"upload-blobs":        "MANIFEST is what --deferred-blobs wrote. What the bucket has already is not sent again.",
	"allow-missing-blobs": "They are listed in the file of --rejects, if there is one, and the exit status is 3.",
	"s3-access-key":       "Everybody on the machine sees it: better set AWS_ACCESS_KEY_ID.",
	"s3-secret-key":       "Everybody on the machine sees it: better set AWS_SECRET_ACCESS_KEY.",
}

// manPage writes the page. What can be said by the definitions of commands,
// flags and keys is said by them.
func manPage(root *cobra.Command, version string, date time.Time) string {
	p := &roff{}
	p.request("TH", "ZODB-CONVERT", "1", date.Format(time.DateOnly), "zodb-convert "+firstWord(version), "User Commands")
	// No hyphens, no spaces between letters: commands are copied from here.
	p.request("nh")
	p.request("ad", "l")
	p.section("NAME")
	p.text("zodb-convert \\- move a ZODB into zodb-pgjsonb, as JSON in PostgreSQL")
	p.section("SYNOPSIS")
	p.synopsis(root)
	p.section("DESCRIPTION")
	p.paragraphs(manDescription)
	p.section("OPTIONS")
	p.flags(root)
	p.section("COMMANDS")
	for _, c := range manCommands(root) {
		p.request("SS", manText(root.Name()+" "+c.Use))
		p.text(manText(c.Short + "."))
		p.flags(c)
	}
	p.section("CONFIGURATION")
	p.keys()
	p.section("EXIT STATUS")
	p.items(exitItems())
	for _, s := range []struct {
		name  string
		items []manItem
	}{{"SIGNALS", manSignals}, {"ENVIRONMENT", manEnvironment}, {"FILES", manFiles}, {"EXAMPLES", manExamples}} {
		p.section(s.name)
		p.items(s.items)
	}
	p.section("SEE ALSO")
	p.request("BR", "psql", "(1),")
	p.request("BR", "pg_dump", "(1)")
	return p.String()
}

// firstWord is the version without what stands in parentheses after it.
func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return word
}

// manCommands are the commands that a user is told about.
func manCommands(root *cobra.Command) (shown []*cobra.Command) {
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" {
			shown = append(shown, c)
		}
	}
	return shown
}

var exitLine = regexp.MustCompile(`(?m)^  (\d+) +(\S.*)$`)

// exitItems are the exit codes as the help has them.
func exitItems() (items []manItem) {
	for _, m := range exitLine.FindAllStringSubmatch(exitStatus, -1) {
		items = append(items, manItem{m[1], sentence(m[2])})
	}
	return items
}

// sentence makes one of the words that a definition has.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + strings.TrimRight(text[1:], ".") + "."
}

// roff is a page in the language of man(7).
type roff struct{ strings.Builder }

// request writes one, with arguments that are escaped already.
func (p *roff) request(name string, args ...string) {
	p.WriteString("." + name)
	for _, a := range args {
		if a == "" || strings.Contains(a, " ") {
			a = `"` + a + `"`
		}
		p.WriteString(" " + a)
	}
	p.WriteString("\n")
}

func (p *roff) section(name string) { p.request("SH", manText(name)) }

// text writes lines of text that is escaped already.
func (p *roff) text(text string) { p.WriteString(manWrap(text) + "\n") }

func (p *roff) paragraphs(text string) {
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			p.request("PP")
		}
		p.text(manText(paragraph))
	}
}

// item writes a term and, indented, what it means.
func (p *roff) item(term, text string) {
	p.request("TP")
	p.WriteString(term + "\n")
	p.text(manText(text))
}

func (p *roff) items(items []manItem) {
	for _, i := range items {
		p.item(`\fB`+manText(i.term)+`\fR`, i.text)
	}
}

func (p *roff) synopsis(root *cobra.Command) {
	_, arguments, _ := strings.Cut(root.Use, " ")
	lines := []string{arguments, "--upload-blobs MANIFEST [flags] [CONFIG]"}
	for _, c := range manCommands(root) {
		lines = append(lines, c.Use)
	}
	for i, l := range lines {
		if i > 0 {
			p.request("br")
		}
		p.text(`\fB` + manText(root.Name()) + `\fR ` + manText(l))
	}
}

// flags describes those of the command, in its own order.
func (p *roff) flags(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, meaning := pflag.UnquoteUsage(f)
		term := `\fB` + manText("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			term = `\fB` + manText("-"+f.Shorthand) + `\fR, ` + term
		}
		if value != "" {
			term += ` \fI` + manText(value) + `\fR`
		}
		text := sentence(meaning)
		if details := manDetails[f.Name]; details != "" {
			text += " " + details
		}
		p.item(term, text+manDefault(f))
	})
}

// manDefault is the default of a flag as the end of its description, if there
// is one to tell.
func manDefault(f *pflag.Flag) string {
	value := f.DefValue
	if text := manDefaults[f.Name]; text != "" {
		value = text
	}
	switch value {
	case "", "false", "0", "[]":
		return ""
	}
	return " Default: " + value + "."
}

func (p *roff) keys() {
	p.text(manText("CONFIG is a TOML file, or one in ZConfig as zodbconvert takes it. These are the sections and keys of TOML; the storages of ZConfig have the same keys:"))
	place := ""
	idle := map[string][]string{} // keys by why they have no effect
	var reasons []string
	flush := func() {
		for _, why := range reasons {
			p.request("TP")
			p.WriteString("Without effect\n")
			p.text(strings.Join(idle[why], ", ") + ": " + manText(why) + ".")
		}
		idle, reasons = map[string][]string{}, nil
	}
	for _, k := range config.Keys() {
		if here := fmt.Sprintf("[%s] of type %s", k.Section, k.Type); here != place {
			flush()
			place = here
			p.request("SS", manText(place))
		}
		if k.Unused != "" {
			if idle[k.Unused] == nil {
				reasons = append(reasons, k.Unused)
			}
			idle[k.Unused] = append(idle[k.Unused], `\fB`+manText(k.Key)+`\fR`)
			continue
		}
		text := sentence(k.Doc)
		if k.Required {
			text += " Required."
		}
		p.item(`\fB`+manText(k.Key)+`\fR = \fI`+manText(k.Value)+`\fR`, text)
	}
	flush()
}

// manEscapes are the characters that roff would take for something else:
// hyphens, accents and quotes would not be what can be typed.
var manEscapes = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `~`, `\(ti`, `^`, `\(ha`, "`", `\(ga`, `'`, `\(aq`, `"`, `\(dq`)

// manText escapes text.
func manText(text string) string {
	var b strings.Builder
	for _, r := range manEscapes.Replace(text) {
		if r < 0x80 {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}

// manWrap breaks the lines of escaped text. A line must not begin with what
// begins a request.
func manWrap(text string) string {
	const width = 76
	var lines []string
	for line := range strings.Lines(text) {
		now := ""
		for _, word := range strings.Fields(line) {
			switch {
			case now == "":
			case len(now)+len(word) >= width:
				lines, now = append(lines, now), ""
			default:
				now += " "
			}
			if now == "" && strings.HasPrefix(word, ".") {
				now = `\&`
			}
			now += word
		}
		lines = append(lines, now)
	}
	return strings.Join(lines, "\n")
}
