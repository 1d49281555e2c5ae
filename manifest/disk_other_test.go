//go:build !linux

package manifest

import "testing"

func smallDisk(t *testing.T) string {
	t.Helper()
	t.Skip("A FULL DISK IS NOT TESTED: only Linux mounts one for a test")
	return ""
}
