package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set by the linker where a release is built (scripts/release).
var (
	release = "" // such as 1.2.0
	commit  = "" // whole
)

// unknown stands for a version or commit that the binary does not know.
const unknown = "devel"

// commitLength is how much of a commit names it.
const commitLength = 12

// version names the release, the commit and the Go that the binary was made of,
// on one line.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(release, commit, info)
}

// versionOf asks the build information for what the linker did not set: go
// install MODULE@VERSION knows the version, go build in a clone the commit.
func versionOf(release, commit string, info *debug.BuildInfo) string {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if release == "" && info.Main.Version != "(devel)" {
		release = info.Main.Version
	}
	changed := false
	if commit == "" {
		commit, changed = settings["vcs.revision"], settings["vcs.modified"] == "true"
	}
	commit = commit[:min(len(commit), commitLength)]
	if changed {
		commit += " with changes"
	}
	return fmt.Sprintf("%s (commit %s, %s %s/%s)",
		orUnknown(release), orUnknown(commit), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func orUnknown(s string) string {
	if s == "" {
		return unknown
	}
	return s
}
