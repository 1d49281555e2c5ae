package throwaway

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the server stop at once when the test process dies.
func dieWithParent(cmd *exec.Cmd, death syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	cmd.SysProcAttr.Setpgid = true
}
