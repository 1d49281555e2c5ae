package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licence is a text that comes with a module.
type licence struct {
	ids  []string // of SPDX (https://spdx.org/licenses/); none for a mere notice
	text string
}

var (
	licenceFile = regexp.MustCompile(`(?i)^(licen[cs]es?|copying|notice|patents)(-[a-z0-9_]+)*(\.(txt|md|rst))?$`)
	// That of a logo says where an image comes from, which is in no binary.
	mereNotice = regexp.MustCompile(`(?i)^(notice|patents)|-logo$`)
)

// Sentences by which licences are known. Texts of several licences in one file
// match several.
var known = []struct {
	id      string
	has, no string
}{
	{id: "Apache-2.0", has: "Apache License Version 2.0"},
	{id: "Apache-2.0", has: `Licensed under the Apache License, Version 2.0`},
	{id: "MIT", has: "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{id: "BSD-3-Clause", has: "Neither the name of"},
	{id: "BSD-3-Clause", has: "Neither the names of"},
	{id: "BSD-2-Clause", has: "Redistribution and use in source and binary forms", no: "names? of|ZPL|Zope Public License"},
	{id: "ISC", has: "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{id: "MPL-2.0", has: "Mozilla Public License Version 2.0"},
	{id: "blessing", has: "SQLite Is Public Domain"},
	{id: "ZPL-2.1", has: "Zope Public License (ZPL) Version 2.1"},
}

// identify names the licences in a text.
func identify(text string) (ids []string) {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	for _, k := range known {
		if !strings.Contains(text, strings.ToLower(k.has)) || slices.Contains(ids, k.id) {
			continue
		}
		if k.no != "" && regexp.MustCompile("(?i)"+k.no).MatchString(text) {
			continue
		}
		ids = append(ids, k.id)
	}
	return ids
}

// readLicences reads the licences of the module in dir: that of the whole and
// those of parts that come from elsewhere. In GOROOT it is the first alone: what
// is below has it, too.
func readLicences(dir string) (found []licence, err error) {
	if dir == "" {
		return nil, fmt.Errorf("its files are not in Go's cache")
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if path != dir && (e.Name() == "testdata" || isOther(dir)) {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() || !licenceFile.MatchString(e.Name()) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		l := licence{text: string(bytes.TrimSpace(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))))}
		if l.ids = identify(l.text); len(l.ids) == 0 && !mereNotice.MatchString(e.Name()) {
			return fmt.Errorf("%s is of no known kind", e.Name())
		}
		found = append(found, l)
		return nil
	})
	if err == nil && !slices.ContainsFunc(found, func(l licence) bool { return len(l.ids) > 0 }) {
		err = fmt.Errorf("there is no file LICENSE")
	}
	return found, err
}

// isOther tells whether folders below dir are not part of it: those of GOROOT
// have one licence, and in the tool's own module test data and what is installed
// have theirs.
func isOther(dir string) bool {
	if dir == "." {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "src", "runtime"))
	return err == nil
}

// choices lists the licences for a bill.
func choices(licences []licence) (list []licenceChoice) {
	seen := map[string]bool{}
	for _, l := range licences {
		for _, id := range l.ids {
			if !seen[id] {
				c := licenceChoice{}
				c.Licence.ID = id
				list, seen[id] = append(list, c), true
			}
		}
	}
	return list
}

// licenceText is the file with the licences of all modules. A text that many
// share stands there once.
func (r *release) licenceText() []byte {
	users := map[string][]string{}
	for _, m := range r.modules {
		for _, l := range m.licences {
			users[l.text] = append(users[l.text], m.describe())
		}
	}
	for _, u := range users {
		slices.Sort(u)
	}
	texts := slices.SortedFunc(maps.Keys(users), func(a, b string) int {
		if c := strings.Compare(users[a][0], users[b][0]); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	var b bytes.Buffer
	b.WriteString("zodb-convert is linked with the modules below. These are their licences and notices.\n")
	line := strings.Repeat("=", 78)
	for _, t := range texts {
		fmt.Fprintf(&b, "\n%s\n%s\n%s\n\n%s\n", line, strings.Join(slices.Compact(users[t]), "\n"), line, t)
	}
	return b.Bytes()
}

func (m *module) describe() string {
	if m.name == standard {
		return "Go's standard library " + m.version
	}
	return m.name + " " + m.version
}
