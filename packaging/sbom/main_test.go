package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLicencesAreKnownByTheirWords(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"MIT", "Permission is hereby granted, free of charge,\nto any person obtaining a copy", []string{"MIT"}},
		{"three clauses", "Redistribution and use in source and binary forms, with ...\n * Neither the name of Google", []string{"BSD-3-Clause"}},
		{"three clauses of several", "Redistribution and use in source and binary forms\n * Neither the names of the authors", []string{"BSD-3-Clause"}},
		{"public domain", "SQLite Is Public Domain\n\nAll of the code", []string{"blessing"}},
		{"two clauses", "Redistribution and use in source and\n binary forms, with or without", []string{"BSD-2-Clause"}},
		{"Apache", "                Apache License\n          Version 2.0, January 2004", []string{"Apache-2.0"}},
		{"Zope", "Zope Public License (ZPL) Version 2.1\nRedistribution and use in source and binary forms\n3. Names of the copyright holders", []string{"ZPL-2.1"}},
		{"two in one file", "Apache License Version 2.0\nPermission is hereby granted, free of charge, to any person obtaining a copy", []string{"Apache-2.0", "MIT"}},
		{"none", "All rights reserved.", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, identify(c.text)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestModuleWithoutAKnownLicenceStopsTheRelease(t *testing.T) {
	const mit = "Permission is hereby granted, free of charge, to any person obtaining a copy"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // of the error
	}{
		{"licence", map[string]string{"LICENSE": mit, "a.go": ""}, ""},
		{"licence of a part", map[string]string{"LICENSE.txt": mit, "part/COPYING": mit, "license-check.yml": "x"}, ""},
		{"none", map[string]string{"a.go": ""}, "there is no file LICENSE"},
		{"a notice alone", map[string]string{"NOTICE": "Copyright"}, "there is no file LICENSE"},
		{"unknown", map[string]string{"LICENSE.md": "do what you want"}, "LICENSE.md is of no known kind"},
		{"a part's is unknown", map[string]string{"LICENSE": mit, "part/LICENCE": "ask me"}, "LICENCE is of no known kind"},
		{"test data", map[string]string{"LICENSE": mit, "testdata/LICENSE": "example"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				file := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			found, err := readLicences(dir)
			switch {
			case c.want == "" && (err != nil || len(found) == 0):
				t.Errorf("%d licences, %v", len(found), err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// The program describes itself: its own binary is built from one module.
func TestBillOfARealBinary(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "sbom")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Chdir("../..") // where the licence of the tool itself is
	write := func(out string) (bill, []byte, []byte) {
		t.Helper()
		r := &release{version: "1.2.0", commit: "c0ffee", time: time.Unix(1735689600, 0).UTC(), modules: map[string]*module{}}
		file, licences := filepath.Join(dir, out+".json"), filepath.Join(dir, out+".txt")
		if err := r.write([]string{binary + "=" + file}, licences); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(licences)
		if err != nil {
			t.Fatal(err)
		}
		var b bill
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Fatal(err)
		}
		return b, raw, text
	}
	b, raw, text := write("a")
	if _, again, textAgain := write("b"); !bytes.Equal(raw, again) || !bytes.Equal(text, textAgain) {
		t.Error("twice the same gives different files")
	}
	if b.Format != "CycloneDX" || b.SpecVersion != "1.6" || b.Metadata.Timestamp != "2025-01-01T00:00:00Z" {
		t.Errorf("%s %s of %s", b.Format, b.SpecVersion, b.Metadata.Timestamp)
	}
	c := b.Metadata.Component
	if c.Version != "1.2.0" || c.URL != "pkg:golang/github.com/zodb-convert/zodb-convert@v1.2.0" || c.Licences[0].Licence.ID != "ZPL-2.1" {
		t.Errorf("%+v", c)
	}
	licences := map[string]string{}
	for _, c := range b.Components {
		licences[c.Name] = c.Licences[0].Licence.ID
		if c.Name != standard && len(c.Hashes) != 1 {
			t.Errorf("%s has %d hashes", c.Name, len(c.Hashes))
		}
	}
	if d := cmp.Diff(map[string]string{standard: "BSD-3-Clause", "github.com/google/uuid": "BSD-3-Clause"}, licences); d != "" {
		t.Error(d)
	}
	for _, want := range []string{"\nGo's standard library ", "\ngithub.com/google/uuid v", "Redistribution and use"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the licences lack %q", want)
		}
	}
}

func TestOtherFilesThanThoseLinkedStopTheRelease(t *testing.T) {
	r := &release{modules: map[string]*module{}}
	m := &module{name: "github.com/google/uuid", version: "v1.6.0", sum: "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
	r.modules[m.String()] = m
	if err := r.findLicences(); err == nil || !strings.Contains(err.Error(), "are not those that were linked") {
		t.Errorf("error %v", err)
	}
}
