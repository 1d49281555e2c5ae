package throwaway

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func TestTheChosenProgramComesFirstThenTheNewestOfThePlaces(t *testing.T) {
	root := t.TempDir()
	program := func(parts ...string) string {
		path := filepath.Join(append([]string{root}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chosen := program("elsewhere", "serverd")
	program("9", "bin", "serverd")
	newest := program("10", "bin", "serverd")
	later := program("later", "serverd")
	onPath := program("path", "only-there")
	t.Setenv("PATH", filepath.Dir(onPath))
	places := []string{filepath.Join(root, "[0-9]*", "bin"), filepath.Join(root, "later")}
	for _, c := range []struct {
		name, chosen string
		places       []string
		program      string
		want         string
		err          error
	}{
		{"chosen", chosen, places, "serverd", chosen, nil},
		{"chosen and missing", filepath.Join(root, "nowhere"), places, "serverd", "", os.ErrNotExist},
		{"newest", "", places, "serverd", newest, nil},
		{"next place", "", places[1:], "serverd", later, nil},
		{"PATH", "", places, "only-there", onPath, nil},
		{"nowhere", "", places, "no-such-server", "", ErrNotFound},
	} {
		got, err := Find(c.chosen, c.places, c.program)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestAServerThatEndsWhileStartingShowsItsLog(t *testing.T) {
	if runtime.GOOS == "windows" {
		Missing(t, errors.New("there is no sh on Windows"))
	}
	s, err := Start(exec.Command("sh", "-c", "echo the port is taken; exit 3"), filepath.Join(t.TempDir(), "log"), syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Wait(func(context.Context) error { return errors.New("refused") })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the port is taken") {
		t.Errorf("the error is %v", err)
	}
}
