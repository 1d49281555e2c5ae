//go:build !unix

package main

import "os"

// notifyReport has no signal to listen to here.
func notifyReport(chan<- os.Signal) {}
