package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signals are what the user sends to the process: the first interruption
// cancels the context, the second ends the process at once; SIGUSR1 asks for a
// report.
type signals struct {
	mu     sync.Mutex
	report func()
}

// watchSignals returns a context that the first SIGINT, SIGTERM or SIGHUP
// cancels, after telling heard its name. The goroutine lives as long as the
// process, because a signal may come at any time.
func watchSignals(parent context.Context, heard func(name string)) (context.Context, *signals) {
	ctx, cancel := context.WithCancel(parent)
	s := &signals{}
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	// Under nohup the hangup is ignored, and that is what the user wants.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(stop, syscall.SIGHUP)
	}
	ask := make(chan os.Signal, 1)
	notifyReport(ask)
	go func() {
		for {
			select {
			case sig := <-stop:
				if ctx.Err() != nil {
					os.Exit(exitInterrupted)
				}
				cancel()
				heard(signalName(sig))
			case <-ask:
				s.askReport()
			}
		}
	}()
	return ctx, s
}

// onReport says what SIGUSR1 does. Until then, and after onReport(nil), it does
// nothing.
func (s *signals) onReport(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = f
}

func (s *signals) askReport() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.report != nil {
		s.report()
	}
}

func signalName(s os.Signal) string {
	switch s {
	case syscall.SIGTERM:
		return "terminated"
	case syscall.SIGHUP:
		return "hung up"
	}
	return "interrupted"
}
