package storage

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

const corpus = "../../../testdata/config"

// variables are the environment of the corpus; scripts/py/zconfigdump.py has
// the same.
var variables = map[string]string{
	"HOME": "/home/zope", "USER_NAME": "zope", "PGPASSWORD": "post$gres", "MYSQL_PASSWORD": "my sql",
	"S3_KEY": "access", "S3_SECRET": "secret/=+", "SITE_ROOT": "/srv/site",
}

func corpusOptions() Options {
	return Options{
		Getenv: func(name string) (string, bool) { v, ok := variables[name]; return v, ok },
		IsDir:  func(path string) bool { return !strings.HasPrefix(path, "/nonexistent") },
	}
}

// result is what has become of a file: one line of expected.jsonl.
type result struct {
	File     string             `json:"file"`
	Taken    bool               `json:"taken"`
	Sections map[string]section `json:"sections,omitempty"`
}

type section struct {
	Type     string         `json:"type"`
	Name     string         `json:"name"`
	Values   map[string]any `json:"values"`
	Sections []section      `json:"sections"`
}

// deviations are the files with which we do something else than ZConfig, and
// why. What is expected of them stands in TestDeviations.
var deviations = map[string]string{
	"convert/byte-order-mark.conf":          "a byte order mark, which an editor of Windows leaves, is no harm",
	"convert/old-macintosh.conf":            "ZConfig takes all of the file for one comment, RelStorage's zodbconvert for lines",
	"convert/generated-import-pgjsonb.conf": "the site generator writes </pgjsonb destination>",
	"convert/generated-export-pgjsonb.conf": "the site generator writes </pgjsonb source>",
	"convert/generated-stale-replicas.conf": "the site generator writes keys of RelStorage with - for _, and the reverse",
	"convert/without-import.conf":           "the types are known without %import",
	"convert/unknown-import.conf":           "a package that nobody needs may be missing; there is a warning",
	"zope/old-pool-keys.conf":               "keys of ZODB before 3.9 have no effect",
}

func TestFilesAreReadAsZConfigReadsThem(t *testing.T) {
	expected := readResults(t, readFile(t, filepath.Join(corpus, "expected.jsonl")))
	if len(expected) < 100 {
		t.Errorf("only %d files in expected.jsonl", len(expected))
	}
	ours := readCorpus(t)
	if len(ours) != len(expected) {
		t.Errorf("%d files in the corpus, %d in expected.jsonl", len(ours), len(expected))
	}
	for file, want := range expected {
		t.Run(file, func(t *testing.T) {
			got, ok := ours[file]
			if !ok {
				t.Fatal("there is no such file in the corpus")
			}
			d := cmp.Diff(want, got, cmpopts.EquateEmpty())
			if why, ok := deviations[file]; ok {
				if d == "" {
					t.Errorf("no deviation any more; it was expected because %s", why)
				}
				return
			}
			if d != "" {
				t.Errorf("ZConfig has -, this package has +:\n%s", d)
			}
		})
	}
}

// The recorded results are those of the real ZConfig, with the real schemas.
func TestExpectedFilesAreThoseOfTheRealZConfig(t *testing.T) {
	python := pythonWithSchemas(t)
	cmd := exec.Command(python, "../../../scripts/py/zconfigdump.py", corpus)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zconfigdump.py: %v", err)
	}
	path := filepath.Join(corpus, "expected.jsonl")
	if os.Getenv("UPDATE_EXPECTED") != "" {
		if err := os.WriteFile(path, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(readResults(t, readFile(t, path)), readResults(t, out)); d != "" {
		t.Errorf("expected.jsonl (-) is not what the real ZConfig gives (+); UPDATE_EXPECTED=1 go test writes it anew:\n%s", d)
	}
}

// pythonWithSchemas gives a Python with the packages of requirements-config.txt.
func pythonWithSchemas(t *testing.T) string {
	python := os.Getenv("ZCONFIG_PYTHON")
	if python == "" {
		python = "../../../.cache/venv-config/bin/python"
	}
	out, err := exec.Command(python, "-c", "import ZConfig, ZODB, Zope2.Startup, relstorage, zodb_pgjsonb").CombinedOutput()
	if err == nil {
		return python
	}
	throwaway.Missing(t, fmt.Errorf("no Python with Zope and RelStorage (scripts/setup config installs it, ZCONFIG_PYTHON names it): %w\n%s", err, out))
	return ""
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func readResults(t *testing.T, text []byte) map[string]result {
	t.Helper()
	results := map[string]result{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		results[r.File] = r
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return results
}

// readCorpus gives what this package makes of the corpus, in the form of
// expected.jsonl.
func readCorpus(t *testing.T) map[string]result {
	t.Helper()
	t.Setenv("HOME", variables["HOME"])
	results := map[string]result{}
	for folder, read := range map[string]func(string) (map[string]*node, error){
		"convert": conversionNodes, "nested": conversionNodes, "zope": zopeNodes, "legacy": zopeNodes,
	} {
		paths, err := filepath.Glob(filepath.Join(corpus, folder, "*.conf"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			r := result{File: folder + "/" + filepath.Base(path)}
			nodes, err := read(path)
			r.Taken = err == nil
			if err == nil {
				for name, n := range nodes {
					if r.Sections == nil {
						r.Sections = map[string]section{}
					}
					r.Sections[name] = dump(n)
				}
			}
			results[r.File] = throughJSON(t, r)
		}
	}
	return results
}

func conversionNodes(path string) (map[string]*node, error) {
	c, err := ReadConversion(path, corpusOptions())
	if err != nil {
		return nil, err
	}
	nodes := map[string]*node{}
	if c.source != nil {
		nodes[sourceName] = c.source
	}
	if c.dest != nil {
		nodes[destName] = c.dest
	}
	return nodes, nil
}

func zopeNodes(path string) (map[string]*node, error) {
	z, err := ReadZope(path, corpusOptions())
	if err != nil {
		return nil, err
	}
	nodes := map[string]*node{}
	for _, s := range z.databases {
		if nodes[s.Name], err = z.check.section(s, aDatabase); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

func dump(n *node) section {
	s := section{Type: n.is.name, Name: n.name, Values: map[string]any{}, Sections: []section{}}
	for name, values := range n.values {
		spec, err := n.is.find(&zconfig.Key{Name: name})
		if err != nil {
			panic(err)
		}
		var list []any
		for _, v := range values {
			list = append(list, plain(spec, v))
		}
		if s.Values[name] = list[0]; spec.multi {
			s.Values[name] = list
		}
	}
	for _, inner := range n.inner {
		s.Sections = append(s.Sections, dump(inner))
	}
	return s
}

func plain(spec *key, v value) any {
	switch spec.is {
	case boolean:
		return v.bool
	case integer, byteSize, interval:
		return v.number
	case float:
		return v.float
	case address:
		return "an address"
	}
	return v.text
}

// throughJSON makes numbers comparable with those that have been read.
func throughJSON(t *testing.T, r result) result {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out result
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
