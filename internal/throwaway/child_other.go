//go:build unix && !linux

package throwaway

import (
	"os/exec"
	"syscall"
)

func dieWithParent(cmd *exec.Cmd, _ syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}
