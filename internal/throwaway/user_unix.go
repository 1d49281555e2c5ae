//go:build unix

package throwaway

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// User is as whom a server runs that refuses to run as root, or should not.
// nil is the current user.
type User struct{ uid, gid uint32 }

// Unprivileged is nil for a test that does not run as root, else the user of a
// name.
func Unprivileged(name string) (*User, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("the server is not to run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("uid of user %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("gid of user %s: %w", name, err)
	}
	return &User{uint32(uid), uint32(gid)}, nil
}

// Dir makes a folder for a server. Its path is short: that of a unix socket has
// room for about 100 bytes, which a test's own temporary folder can exceed.
func (u *User) Dir(name string) (string, error) {
	dir, err := os.MkdirTemp("/tmp", name)
	if err != nil || u == nil {
		return dir, err
	}
	err = os.Chown(dir, int(u.uid), int(u.gid))
	if err == nil {
		// The tests, running as root, are not the owner.
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

// Run makes cmd run as the user.
func (u *User) Run(cmd *exec.Cmd) {
	if u == nil {
		return
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid}
}
