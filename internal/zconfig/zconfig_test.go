package zconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// show writes a tree on one line: type name {key=value@line ...}.
func show(s *Section) string {
	var out strings.Builder
	if s.Type != "" {
		fmt.Fprintf(&out, "%s", s.Type)
		if s.Name != "" {
			fmt.Fprintf(&out, " %s", s.Name)
		}
		out.WriteString("{")
	}
	var parts []string
	for _, k := range s.Keys {
		parts = append(parts, fmt.Sprintf("%s=%s@%d", k.Name, k.Value, k.Pos.Line))
	}
	for _, inner := range s.Sections {
		parts = append(parts, show(inner))
	}
	out.WriteString(strings.Join(parts, " "))
	if s.Type != "" {
		out.WriteString("}")
	}
	return out.String()
}

func TestGrammar(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"comments and empty lines", "# a\n\n   # b\n\t\n", ""},
		{"no comments behind values", "a b # c", "a=b # c@1"},
		{"key without value", "a", "a=@1"},
		{"blanks around", "  a \t b  c \t", "a=b  c@1"},
		{"section", "<a>\n b c\n</a>", "a{b=c@2}"},
		{"named section", "<a b>\n</a>", "a b{}"},
		{"types and names are lower case", "<FileStorage SOURCE>\n</FILESTORAGE>", "filestorage source{}"},
		{"empty section", "<a/>", "a{}"},
		{"empty section with a blank", "<a />", "a{}"},
		{"empty section with a name", "<a  b />", "a b{}"},
		{"blank before the end of a header", "<a b >\n</a >", "a b{}"},
		{"nested", "<a>\n<b>\n<c/>\n</b>\nd e\n</a>", "a{d=e@5 b{c{}}}"},
		{"name in the end", "<a b>\n</a b>", "a b{}"},
		{"Windows line ends", "<a>\r\nb c\r\n</a>\r\n", "a{b=c@2}"},
		{"old Macintosh line ends", "<a>\rb c\r</a>", "a{b=c@2}"},
		{"byte order mark", "\xef\xbb\xbfa b", "a=b@1"},
		{"key before a parenthesis", "a(b) c", "a=(b) c@1"},
		{"no line end at the end", "<a>\n</a>", "a{}"},
		{"define", "%define A b\nc $A", "c=b@2"},
		{"define without value", "%define A\nc x${A}y", "c=xy@2"},
		{"names do not tell case", "%define Inst /srv\nc $INST/$inst/${iNsT}x", "c=/srv//srv//srvx@2"},
		{"name ends at what is none", "%define a b\nc $a-$a.$a/", "c=b-b.b/@2"},
		{"dollar", "a $$x$$", "a=$x$@1"},
		{"defined by others", "%define a 1\n%define b $a$a\nc $b", "c=11@3"},
		{"what is put in is not looked at again", "%define a $$b\nc $a", "c=$b@2"},
		{"environment", "a $(HOME_X)/b", "a=/h/b@1"},
		{"environment tells case", "a $(Low)", "a=low@1"},
		{"empty variable", "a x$(EMPTY)y", "a=xy@1"},
		{"same define twice", "%define a b\n%define A b\nc $a", "c=b@3"},
		{"indented directive in a section", "<a>\n  %define x y\n  %import relstorage\n  b $x\n</a>", "a{b=y@4}"},
		{"define is seen behind its section", "<a>\n%define x y\n</a>\nb $x", "b=y@4 a{}"},
		{"keys keep their case", "PATH x", "PATH=x@1"},
		{"no substitution in names", "a$b c\n<d$e f$g/>", "a$b=c@1 d$e f$g{}"},
		{"other white space", "\u00a0a\u2003b\x1f", "a=b@1"},
		{"value with brackets", "a <b>", "a=<b>@1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse("x.conf", []byte(c.text), Options{Getenv: env("HOME_X", "/h", "Low", "low", "EMPTY", ""), Packages: []string{"relstorage"}})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, show(f.Root)); d != "" {
				t.Error(d)
			}
			if len(f.Warnings) > 0 {
				t.Error(f.Warnings)
			}
		})
	}
}

func TestMistakesAreToldWithTheirLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"start without >", "\n<a", "x.conf:2: the line starts with < but does not end with >"},
		{"start with text behind", "<a> # b", "x.conf:1: the line starts with < but does not end with >"},
		{"three words", "<a b c>", "x.conf:1: this is no start of a section"},
		{"blank first", "< a>", "x.conf:1: this is no start of a section"},
		{"nothing in the header", "<>", "x.conf:1: this is no start of a section"},
		{"parenthesis", "<a(b)>", "x.conf:1: this is no start of a section"},
		{"end without >", "<a>\n</a", "x.conf:2: the line starts with </ but does not end with >"},
		{"end of another", "<a>\n<b>\n</a>", "x.conf:3: </a> ends another section than the one that is open, <b> of line 2; </b> is missing"},
		{"end of nothing", "</a>", "x.conf:1: </a> ends a section, but none is open here"},
		{"end with a blank first", "<a>\n</ a>", "x.conf:2: </...> ends another section than the one that is open, <a> of line 1"},
		{"end with another name", "<a b>\n</a c>", "x.conf:2: </a...> ends another section"},
		{"not closed", "\n<a b>\nc d\n", "x.conf:2: the section <a b> is not closed; write </a>"},
		{"no key", "(a", "x.conf:1: this is neither a key with a value nor a section"},
		{"unknown directive", "%includ a", "x.conf:1: unknown directive %includ; did you mean include?"},
		{"directive in capitals", "%DEFINE a b", "x.conf:1: unknown directive %DEFINE"},
		{"blank before the directive", "% define a b", "x.conf:1: unknown directive %"},
		{"define of nothing", "%define", "x.conf:1: %define is not followed by anything"},
		{"include of nothing", "%include  ", "x.conf:1: %include is not followed by anything"},
		{"bad name", "%define 1a b", "x.conf:1: 1a cannot be defined"},
		{"another value", "%define a b\n%define A c", "x.conf:2: A is defined a second time, with another value than in x.conf:1"},
		{"same text that is substituted", "%define a b\n%define c $a\n%define c $a", "x.conf:3: c is defined a second time"},
		{"not defined", "a $b", "x.conf:1: the value of a: what stands behind a $ is not defined; a plain $ is written $$, and %define defines a name"},
		{"defined later", "a $b\n%define b c", "x.conf:1: the value of a: what stands behind a $ is not defined"},
		{"not defined in braces", "a ${b}", "x.conf:1: the value of a: ${b} is not defined; write %define b above"},
		{"mistyped", "%define instance /x\na $instanc/y", "x.conf:2: the value of a: what stands behind a $ is not defined; did you mean $instance?"},
		{"not set", "a\nb $(NONE)", "x.conf:2: the value of b: the environment variable NONE is not set"},
		{"not set in a define", "%define b $(NONE)", "x.conf:1: %define b: the environment variable NONE is not set"},
		{"dollar at the end", "a b$", "x.conf:1: the value of a: a $ at the end of the value"},
		{"dollar before a digit", "a $1", "x.conf:1: the value of a: a $ that no name follows"},
		{"brace without name", "a ${}", "x.conf:1: the value of a: ${ is not followed by a name"},
		{"brace without end", "a ${b", "x.conf:1: the value of a: ${ and a name are not followed by }"},
		{"parenthesis without end", "a $(b", "x.conf:1: the value of a: $( and a name are not followed by )"},
		{"default of a variable", "a $(b:-c)", "x.conf:1: the value of a: $( and a name are not followed by )"},
		{"NUL", "a b\nc\x00 d", "x.conf:2: the line has a NUL byte in it"},
		{"not UTF-8", "a b\nc \xff", "x.conf:2: the line is not UTF-8; save the file as UTF-8"},
		{"UTF-16", "\xff\xfea\x00", "x.conf:1: the line has a NUL byte in it"},
		{"FileStorage", "FS30\x00", "x.conf: this is a FileStorage, not a configuration file"},
		{"URL", "%include https://user:pw@host/a", "x.conf:1: %include: only files are included, and this is something else (https:)"},
		{"package", "%include package:a:b", "x.conf:1: %include: only files are included, and this is something else (package:)"},
		{"file of another host", "%include file://host/a", "x.conf:1: %include: a file of another machine cannot be included"},
		{"fragment", "%include a#b", "x.conf:1: %include: a # in the name of a file is written %23"},
		{"no such file", "\n%include /nonexistent/a", "x.conf:2: the file \"/nonexistent/a\" that is included cannot be read: no such file or directory"},
		{"directory", "%include /", "x.conf:1: \"/\", which is included, is not a file"},
		{"device", "%include /dev/null", "x.conf:1: \"/dev/null\", which is included, is not a file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("x.conf", []byte(c.text), Options{})
			var e *Error
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestHostileFilesEndInAnError(t *testing.T) {
	lines := func(n int, line string) string { return strings.Repeat(line+"\n", n) }
	doubling := "%define a0 0123456789\n"
	for i := 1; i < 40; i++ {
		doubling += fmt.Sprintf("%%define a%d $a%d$a%d\n", i, i-1, i-1)
	}
	big := "%define big " + strings.Repeat("x", 60<<10) + "\n"
	for _, c := range []struct{ name, text, want string }{
		{"long line", "a b\nc " + strings.Repeat("x", 1<<20-100), "x.conf:2: the line is longer than any in a configuration"},
		{"large file", lines(1<<18, "# xy"), "x.conf:209716: this is larger than any configuration file (1 MB)"},
		{"deep nesting", lines(100_000, "<a>"), "x.conf:33: sections are nested deeper than 32"},
		{"values that double", doubling, "x.conf:14: %define a13: the substituted values are larger"},
		{"many large values", big + lines(1000, "k $big"), "x.conf:275: the value of k: the substituted values are larger"},
		{"many imports", lines(1001, "%import a"), "x.conf:1001: there are more %import"},
		{"NUL", "a b\nc \x00d", "x.conf:2: the line has a NUL byte in it"},
		{"not UTF-8", "a b\nc \xff", "x.conf:2: the line is not UTF-8"},
		{"UTF-16", "\xff\xfe<\x00a\x00>\x00\n\x00", "x.conf:1: the line has a NUL byte in it"},
		{"another program's data", "\x7fELF\x02\x01\x01\x00\x00", "x.conf:1: the line has a NUL byte in it"},
		{"a name without end", "a b\n<" + strings.Repeat("x", 60<<10), "x.conf:2: the line starts with < but does not end with >"},
		{"a section of dollar signs", "<a " + strings.Repeat("$", 60<<10) + ">", "x.conf:1: the section <a ...> is not closed"},
		{"open references", "<a>\nb " + strings.Repeat("${", 30<<10) + "\n</a>", "x.conf:2: the value of b: "},
		{"many ends", lines(1000, "</a>"), "x.conf:1: </a> ends a section"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("x.conf", []byte(c.text), Options{})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %.200v, want %s", err, c.want)
			}
		})
	}
}

// write makes files in a new directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestIncludedFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"zope.conf":       "%define a 1\n<s>\n%include etc/inner.conf\n</s>\n%include etc/../etc/b%20c.conf\nd $b\n",
		"etc/inner.conf":  "x $a\n%define b 2\n%include deeper.conf\n",
		"etc/deeper.conf": "<t>\ny $b\n</t>",
		"etc/b c.conf":    "z 1",
	})
	f, err := Read(filepath.Join(dir, "zope.conf"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("z=1@1 d=2@6 s{x=1@1 t{y=2@2}}", show(f.Root)); d != "" {
		t.Error(d)
	}
	if got, want := f.Root.Sections[0].Sections[0].Pos.String(), filepath.Join(dir, "etc/deeper.conf")+":1"; got != want {
		t.Errorf("the section stands at %s, not at %s", got, want)
	}
}

func TestIncludedFilesWithMistakes(t *testing.T) {
	chain := map[string]string{"twice": "%include leaf\n%include leaf\n", "leaf": "a b"}
	for i := range 20 {
		chain[fmt.Sprintf("chain%d", i)] = fmt.Sprintf("%%include chain%d\n", i+1)
	}
	for i := range 5 {
		chain[fmt.Sprintf("tree%d", i)] = strings.Repeat(fmt.Sprintf("%%include tree%d\n", i+1), 10)
	}
	chain["tree5"] = ""
	chain["loop"] = "\n%include loop2\n"
	chain["loop2"] = "# x\n\n%include loop\n"
	chain["self"] = "%include self"
	chain["closes"] = "<a>\n%include end\n"
	chain["end"] = "\n</a>\n"
	chain["opens"] = "%include start\n</a>\n"
	chain["start"] = "<a>\n"
	chain["nul"] = "%include zero"
	chain["zero"] = "a\n\x00\n"
	chain["dbs"] = "%include Data.fs"
	chain["Data.fs"] = "FS21"
	chain["large"] = strings.Repeat("%include part\n", 10)
	chain["part"] = strings.Repeat("#\n", 1<<18)
	dir := write(t, chain)
	if err := os.Symlink("linked", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "linked"), []byte("%include link"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, want string }{
		{"chain0", "chain10:1: more than 10 files include one another"},
		{"tree0", "more than 100 files are included"},
		{"loop", "loop2:3: \"" + dir + "/loop\" is included while it is being read"},
		{"self", "self:1: \"" + dir + "/self\" is included while it is being read"},
		{"linked", "linked:1: \"" + dir + "/link\" is included while it is being read"},
		{"closes", "end:2: </a> ends a section, but none is open here"},
		{"opens", "start:1: the section <a> is not closed"},
		{"nul", "zero:2: the line has a NUL byte in it"},
		{"dbs", "Data.fs: this is a FileStorage"},
		{"large", "part: this file and those that were read before it are larger together than any configuration"},
	} {
		t.Run(c.file, func(t *testing.T) {
			_, err := Read(filepath.Join(dir, c.file), Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := Read(filepath.Join(dir, "twice"), Options{}); err != nil {
		t.Errorf("including a file twice: %v", err)
	}
}

func TestUnknownPackagesAreWarnedOf(t *testing.T) {
	f, err := Parse("x.conf", []byte("%define a other\n%import relstorage\n%import my.$a\n"), Options{Packages: []string{"relstorage"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Warnings) != 1 || f.Warnings[0].String() != "x.conf:3: %import of my.other, which is not known here: its sections are not, either" {
		t.Error(f.Warnings)
	}
}

func TestLenientReadingLeavesValuesToThoseWhoNeedThem(t *testing.T) {
	text := "%define a $(NONE)\n<x>\nb $a\n</x>\nc d$\ne f"
	f, err := Parse("x.conf", []byte(text), Options{Lenient: true})
	if err != nil {
		t.Fatal(err)
	}
	b, c, e := f.Root.Sections[0].Keys[0], f.Root.Keys[0], f.Root.Keys[1]
	if b.Err == nil || !strings.Contains(b.Err.Error(), "x.conf:3: the value of b: $a, which line 1 of x.conf defines: the environment variable NONE is not set") {
		t.Error(b.Err)
	}
	if c.Err == nil || c.Value != "" || e.Err != nil || e.Value != "f" {
		t.Error(c, e)
	}
}

// No message shows a value, nor what is written where a name should be and may
// be a value.
func TestNoMessageShowsAValue(t *testing.T) {
	const secret = "s3cr3t"
	for _, text := range []string{
		"password=s3cr3t $x", "password $$s3cr3t$", "password s3cr3t$(NONE)", "password ${s3cr3t", "password pa$s3cr3t/", "password $(s3cr3t", "<a password=s3cr3t", "<a b>\n</a password=s3cr3t>",
		"<a (password=s3cr3t)>", "%define a s3cr3t\n%define a b", "%define a=s3cr3t b", "%a=s3cr3t", "<a b=s3cr3t>",
		"password s3cr3t\x00", "password s3cr3t\xff", "%define p s3cr3t\n(a $p",
		"%include https://user:s3cr3t@host/",
	} {
		_, err := Parse("x.conf", []byte(text), Options{})
		if err == nil {
			t.Errorf("no error in %q", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"../../testdata/config/*.conf", "../../testdata/config/*/*.conf"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, lenient := range []bool{false, true} {
			file, err := Parse("x.conf", text, Options{Getenv: env("A", "b"), Lenient: lenient})
			var e *Error
			if err != nil && (!errors.As(err, &e) || e.Reason == "" || e.Pos.File == "") {
				t.Errorf("not an *Error with a reason: %#v", err)
			}
			if err == nil {
				lines := strings.Count(strings.ReplaceAll(string(text), "\r", "\n"), "\n") + 1
				checkTree(t, file.Root, lines, maxNesting+1)
			}
		}
	})
}

// checkTree looks at what every tree has to be.
func checkTree(t *testing.T, s *Section, lines, depth int) {
	if depth < 0 {
		t.Error("nested too deep")
		return
	}
	for _, k := range s.Keys {
		if k.Name == "" || k.Pos.Line < 1 || k.Pos.File == "x.conf" && k.Pos.Line > lines {
			t.Errorf("%+v", k)
		}
	}
	for _, inner := range s.Sections {
		if inner.Type == "" || inner.Pos.Line < 1 {
			t.Errorf("%+v", inner)
		}
		checkTree(t, inner, lines, depth-1)
	}
}
