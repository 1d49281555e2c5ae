//go:build !linux

package throwaway

import (
	"errors"
	"testing"
)

// SmallDisk is for Linux.
func SmallDisk(tb testing.TB) (dir string) {
	tb.Helper()
	Missing(tb, errors.New("a full disk is not tested: only Linux mounts one for a test"))
	return ""
}
