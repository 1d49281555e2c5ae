package main

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersionNamesReleaseCommitAndGo(t *testing.T) {
	built := func(version string, settings ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{Main: debug.Module{Version: version}}
		for i := 0; i < len(settings); i += 2 {
			info.Settings = append(info.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return info
	}
	for _, c := range []struct {
		name, release, commit string
		info                  *debug.BuildInfo
		want                  string
	}{
		{"a release", "1.2.0", "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff", built("(devel)"), "1.2.0 (commit c0ffeec0ffee, "},
		{"go install of a version", "", "", built("v1.2.0"), "v1.2.0 (commit devel, "},
		{"go build in a clone", "", "", built("v0.0.0-20260101000000-c0ffeec0ffee+dirty", "vcs.revision", "c0ffeec0ffee", "vcs.modified", "true"),
			"v0.0.0-20260101000000-c0ffeec0ffee+dirty (commit c0ffeec0ffee with changes, "},
		{"go build of unchanged files", "", "", built("(devel)", "vcs.revision", "c0ffee", "vcs.modified", "false"), "devel (commit c0ffee, "},
		{"nothing known", "", "", built(""), "devel (commit devel, "},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := versionOf(c.release, c.commit, c.info)
			want := c.want + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + ")"
			if got != want || strings.Contains(got, "\n") {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}
