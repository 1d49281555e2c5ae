//go:build !linux

package staging

import (
	"os"
	"testing"
)

func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("a full disk is not tested: only Linux mounts one for a test")
	}
	t.Skip("A FULL DISK IS NOT TESTED: only Linux mounts one for a test")
	return ""
}
