//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

func notifyReport(c chan<- os.Signal) { signal.Notify(c, syscall.SIGUSR1) }
