package throwaway

import (
	"fmt"
	"syscall"
	"testing"
)

// SmallDisk mounts a file system of 64 KB. That takes the superuser.
func SmallDisk(tb testing.TB) (dir string) {
	tb.Helper()
	dir = tb.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		Missing(tb, fmt.Errorf("a full disk is not tested: mount a small one: %w", err))
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount the small disk: %v", err)
		}
	})
	return dir
}
