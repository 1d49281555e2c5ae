package doctest

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/zodb-convert/zodb-convert/internal/config"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

const (
	// What the pages write, and what it is replaced by.
	exampleData   = "/srv/plone/var/filestorage/Data.fs"
	exampleDSN    = "dbname=zodb_new user=zodb host=localhost"
	exampleOldDSN = "dbname=zodb user=reader host=localhost"
	exampleBlobs  = "/srv/plone/var/blobstorage"
	exampleCache  = "/srv/plone/var/blobcache"
	exampleBucket = "plone-blobs"

	// The database that the pages convert.
	exampleSource = "plone.fs"

	root = "../.."
)

// scriptLine is a line that scripts/test runs itself, or that only brings a
// clone.
var scriptLine = regexp.MustCompile(`^(scripts/(demo|test|soak|bench|release)\b|git clone |cd )`)

var (
	postgres pgtest.Shared
	s3       s3test.Shared
)

func TestMain(m *testing.M) {
	code := m.Run()
	postgres.Close()
	s3.Close()
	os.Exit(code)
}

// build makes the programs that the pages and their setups use: zodb-convert
// and the one that can be struck, zodb-convert-faults.
func build(t *testing.T) (bin string) {
	t.Helper()
	bin = t.TempDir()
	for name, tags := range map[string]string{"zodb-convert": "", "zodb-convert-faults": "faults"} {
		out, err := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(bin, name), root+"/cmd/zodb-convert").CombinedOutput()
		if err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	return bin
}

func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages in docs/: %v", err)
	}
	return append([]string{root + "/README.md"}, found...)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWhatThePagesShowWorks(t *testing.T) {
	bin := build(t)
	for _, path := range pages(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			found, err := blocks(read(t, path))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if len(found) == 0 {
				return
			}
			r := newReader(t, path, bin)
			if strings.Contains(read(t, path), exampleBucket) {
				r.giveBucket()
			}
			r.follow(found)
		})
	}
}

// reader is somebody who follows a page.
type reader struct {
	t         *testing.T
	page, dir string
	examples  []string // what the page writes, and what it is replaced by
	env       []string
	output    string // of the block before
}

func newReader(t *testing.T, page, bin string) *reader {
	server := postgres.Server(t)
	dir := t.TempDir()
	data, err := filepath.Abs(filepath.Join(root, "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	const admin = "postgres"
	server.Exec(t, server.DSN(admin), "DROP DATABASE IF EXISTS zodb_new WITH (FORCE)")
	server.Exec(t, server.DSN(admin), "DROP ROLE IF EXISTS zodb")
	server.Exec(t, server.DSN(admin), "DROP DATABASE IF EXISTS zodb WITH (FORCE)")
	server.Exec(t, server.DSN(admin), "DROP ROLE IF EXISTS reader")
	r := &reader{t: t, page: page, dir: dir,
		examples: []string{
			"sudo -u postgres ", "",
			exampleData, filepath.Join(dir, "Data.fs"),
			exampleBlobs, filepath.Join(dir, "blobstorage"),
			exampleCache, filepath.Join(dir, "blobcache"),
			exampleDSN, server.DSNAs("zodb_new", "zodb"),
			exampleOldDSN, server.DSNAs("zodb", "reader")},
		env: append(os.Environ(),
			"PATH="+bin+":"+filepath.Dir(server.Tool("psql"))+":"+os.Getenv("PATH"),
			"GOBIN="+filepath.Join(dir, "bin"), "TESTDATA="+data,
			"PGHOST="+server.Dir(), "PGPORT="+strconv.Itoa(server.Port()), "PGUSER="+pgtest.Superuser,
			"SOURCE_DSN="+server.DSNAs("zodb", "reader"), "MYSQL_PWD=secret"),
	}
	r.write(filepath.Join(dir, "Data.fs"), read(t, filepath.Join(data, exampleSource)))
	if err := os.Mkdir(filepath.Join(dir, "blobstorage"), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

// giveBucket gives the reader a real bucket. Keys and server come from the
// environment, as the pages recommend.
func (r *reader) giveBucket() {
	server := s3.Server(r.t)
	r.examples = append(r.examples, exampleBucket, server.NewBucket(r.t))
	r.env = append(r.env, "AWS_ENDPOINT_URL="+server.URL(), "AWS_REGION="+s3test.Region, "AWS_DEFAULT_REGION="+s3test.Region,
		"AWS_ACCESS_KEY_ID="+server.AccessKey, "AWS_SECRET_ACCESS_KEY="+server.SecretKey)
}

func (r *reader) follow(found []block) {
	r.t.Helper()
	replace := strings.NewReplacer(r.examples...)
	for _, b := range found {
		text := replace.Replace(b.text)
		where := r.dir
		if b.inClone {
			where = root
		}
		switch b.language {
		case "setup":
			r.runAt(b, where, text)
		case "sh":
			if b.tested != "" {
				r.checkScripts(b)
				continue
			}
			r.runAt(b, where, text)
		case "sql":
			name := filepath.Join(r.dir, "query.sql")
			r.write(name, text)
			r.runAt(b, r.dir, "psql -X -v ON_ERROR_STOP=1 -P pager=off -d zodb_new -f "+name)
		case "toml":
			name := b.file
			if name == "" {
				name = "migrate.toml"
			}
			r.write(filepath.Join(r.dir, name), text)
			// The database may not be there yet; the file has to be right.
			if code := r.run(r.dir, "zodb-convert status "+name); code == 2 {
				r.t.Errorf("%s:%d: the configuration is wrong:\n%s", r.page, b.line, r.output)
			}
		case "xml":
			r.openSite(b, text)
		case "zconfig":
			r.readConversion(b, text)
		case "text":
			if line := missingLines(text, r.output); line != "" {
				r.t.Errorf("%s:%d: not printed: %s\nprinted was:\n%s", r.page, b.line, line, r.output)
			}
		}
	}
}

// readConversion reads a file in ZConfig that a page shows.
func (r *reader) readConversion(b block, text string) {
	path := filepath.Join(r.t.TempDir(), "migrate.conf")
	if b.file != "" {
		path = filepath.Join(r.dir, b.file)
	}
	r.write(path, text)
	origins := []config.Origin{{Path: path}}
	if strings.Contains(text, "<zodb_db") {
		// Of a site it is either end.
		origins = []config.Origin{{DestinationSite: path, DestinationOnly: true}, {SourceSite: path, Path: r.destination()}}
	}
	var errs []error
	for _, o := range origins {
		_, err := o.Read(func(string) (string, bool) { return "secret", true })
		if err == nil && b.refused {
			r.t.Errorf("%s:%d: the configuration is right", r.page, b.line)
		}
		if err == nil || b.refused {
			return
		}
		errs = append(errs, err)
	}
	r.t.Errorf("%s:%d: %v", r.page, b.line, errors.Join(errs...))
}

// destination is a file that names a destination and no more.
func (r *reader) destination() string {
	path := filepath.Join(r.t.TempDir(), "destination.toml")
	r.write(path, "[destination]\ntype = \"pgjsonb\"\ndsn = \"dbname=x\"\n")
	return path
}

// checkScripts makes sure that a block that others test holds nothing else.
func (r *reader) checkScripts(b block) {
	for line := range strings.Lines(b.text) {
		command, _, _ := strings.Cut(strings.TrimSpace(line), "#")
		if command == "" {
			continue
		}
		if !scriptLine.MatchString(command) {
			r.t.Errorf("%s:%d: %q is tested by nobody", r.page, b.line, command)
		}
		if strings.HasPrefix(command, "scripts/") {
			if info, err := os.Stat(filepath.Join(root, strings.Fields(command)[0])); err != nil || info.Mode()&0o111 == 0 {
				r.t.Errorf("%s:%d: %s is no program: %v", r.page, b.line, command, err)
			}
		}
	}
}

// openSite lets the real ZODB open the database that a Zope configuration names.
func (r *reader) openSite(b block, text string) {
	python := os.Getenv("ZODB_PYTHON")
	if python == "" {
		venv, err := filepath.Abs(filepath.Join(root, ".venv/bin/python"))
		if err != nil {
			r.t.Fatal(err)
		}
		python = venv
	}
	if _, err := os.Stat(python); err != nil {
		if os.Getenv("CI") == "true" {
			r.t.Fatal(err)
		}
		r.t.Logf("SKIPPED %s:%d: scripts/setup has not installed the real ZODB: %v", r.page, b.line, err)
		return
	}
	// Zope's section is ZODB's, with a place where to mount it.
	text = strings.NewReplacer("<zodb_db", "<zodb", "</zodb_db", "</zodb", "mount-point /\n", "\n").Replace(text)
	r.write(filepath.Join(r.dir, "site.conf"), text)
	const open = `
import sys, ZODB.config
db = ZODB.config.databaseFromString(open(sys.argv[1]).read())
with db.transaction() as connection:
    print(len(connection.root()), "entries in the root object")
db.close()
`
	r.write(filepath.Join(r.dir, "open.py"), open)
	r.runAt(b, r.dir, python+" open.py site.conf")
}

func (r *reader) runAt(b block, where, text string) {
	r.t.Helper()
	if code := r.run(where, text); code != b.exit {
		r.t.Fatalf("%s:%d: exit code %d instead of %d from\n%s\nprinted was:\n%s", r.page, b.line, code, b.exit, text, r.output)
	}
}

// run keeps what was printed and returns the exit code.
func (r *reader) run(where, script string) int {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "bash", "-eu", "-o", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = where, r.env
	out, err := cmd.CombinedOutput()
	r.output = string(out)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func (r *reader) write(name, text string) {
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func TestPagesLinkToWhatThereIs(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)\s]*)?\)`)
	for _, path := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, path), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: the link leads nowhere: %v", path, err)
			}
		}
	}
}

// The summary names the kinds of special forms; the page has to explain each.
func TestEverySpecialFormIsExplained(t *testing.T) {
	page := read(t, root+"/docs/fidelity.md")
	for f := range jsonb.NumForms {
		if name := jsonb.Form(f).String(); !strings.Contains(page, "\n| `"+name+"` | ") {
			t.Errorf("docs/fidelity.md does not explain %q", name)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|").FindAllStringSubmatch(page, -1) {
		known := false
		for f := range jsonb.NumForms {
			known = known || jsonb.Form(f).String() == m[1]
		}
		if !known {
			t.Errorf("docs/fidelity.md explains %q, which there is not", m[1])
		}
	}
}

// A page about errors is worth something only as long as the errors are those
// of the tool.
func TestMessagesInTroubleshootingAreTheTools(t *testing.T) {
	source := stringsOfTheSource(t)
	messages := 0
	for i, line := range strings.Split(read(t, root+"/docs/troubleshooting.md"), "\n") {
		heading, ok := strings.CutPrefix(line, "### `")
		if !ok {
			continue
		}
		messages++
		heading = strings.Trim(heading, "`… ")
		if !strings.Contains(source, heading) {
			t.Errorf("docs/troubleshooting.md:%d: no message of the tool holds %q", i+1, heading)
		}
	}
	if messages < 10 {
		t.Errorf("only %d messages are explained", messages)
	}
}

// verb is where a message has a name or a number: a verb of fmt, with the
// quotes or brackets that it stands in left as they are.
var verb = regexp.MustCompile(`%[+#]?[a-z]`)

// stringsOfTheSource gives the string constants of the product, one a line, with
// … for what differs; those that are joined with + count as one.
func stringsOfTheSource(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && strings.HasPrefix(name, ".") && path != root {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s, ok := constant(e); ok {
					all.WriteString(verb.ReplaceAllString(s, "…") + "\n")
					return false
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// constant gives the text of a string literal or of a sum of them.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.BinaryExpr:
		x, okX := constant(e.X)
		y, okY := constant(e.Y)
		return x + y, e.Op == token.ADD && okX && okY
	}
	return "", false
}

// What the tool itself says is ASCII, which every locale can show.
func TestMessagesAreASCII(t *testing.T) {
	for line := range strings.Lines(strings.ReplaceAll(stringsOfTheSource(t), "…", "")) {
		if strings.IndexFunc(line, func(r rune) bool { return r > 0x7e && r != unicode.ReplacementChar && unicode.IsPrint(r) }) >= 0 && !strings.Contains(line, "\u017c") {
			t.Errorf("%q", line)
		}
	}
}
