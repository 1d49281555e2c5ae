//go:build linux || darwin

package staging

import (
	"errors"
	"os"
	"syscall"
)

var errLocked = errors.New("it is locked")

// lock takes a lock that ends with the file, and so with the process.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return errLocked
	case errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.ENOLCK):
		return nil // a file system without locks
	}
	return err
}
