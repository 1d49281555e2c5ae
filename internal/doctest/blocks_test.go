package doctest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBlocksOfAPage(t *testing.T) {
	page := strings.ReplaceAll(`Words.

<!-- setup
createdb x
-->
<!-- exit: 3 -->
~~~sh
false
true
~~~
~~~text
done
~~~
<!-- file: a.toml -->
~~~toml
a = 1
~~~
<!-- generated: help -->
~~~text
usage
~~~
<!-- end -->
<!-- tested: scripts/test runs it -->
~~~sh
scripts/demo
~~~
`, "~~~", "```")
	got, err := blocks(page)
	if err != nil {
		t.Fatal(err)
	}
	want := []block{
		{line: 3, language: "setup", text: "createdb x\n"},
		{line: 7, language: "sh", text: "false\ntrue\n", exit: 3},
		{line: 11, language: "text", text: "done\n"},
		{line: 15, language: "toml", text: "a = 1\n", file: "a.toml"},
		{line: 24, language: "sh", text: "scripts/demo\n", tested: "scripts/test runs it"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(block{})); diff != "" {
		t.Error(diff)
	}
}

func TestBlocksThatCannotBeCheckedAreRefused(t *testing.T) {
	for name, page := range map[string]string{
		"no language":      "~~~\nrm -rf\n~~~\n",
		"unknown language": "~~~python\nx\n~~~\n",
		"no end":           "~~~sh\nx\n",
		"indented":         "- a\n  ~~~sh\n  x\n  ~~~\n",
		"unknown comment":  "<!-- exti: 3 -->\n~~~sh\nx\n~~~\n",
	} {
		if got, err := blocks(strings.ReplaceAll(page, "~~~", "```")); err == nil {
			t.Errorf("%s: no error, but %v", name, got)
		}
	}
}

func TestOutputIsComparedLineByLine(t *testing.T) {
	const output = "start\n  transactions   12\nobjects 7 of 9\nend\n"
	for _, c := range []struct{ want, missing string }{
		{"start\nend\n", ""},
		{"transactions 12\n", ""},
		{"objects … of …\n…\nend", ""},
		{"end\nstart\n", "start"},
		{"objects 7\n", "objects 7"},
		{"transactions 1.\n", "transactions 1."},
	} {
		if got := missingLines(c.want, output); got != c.missing {
			t.Errorf("%q: missing is %q, want %q", c.want, got, c.missing)
		}
	}
}
