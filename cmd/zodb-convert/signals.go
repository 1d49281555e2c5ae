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
	stop   func(name string)
}

// watchSignals returns a context that the first SIGINT, SIGTERM or SIGHUP
// cancels. The goroutine lives as long as the process, because a signal may
// come at any time.
func watchSignals(parent context.Context) (context.Context, *signals) {
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
				s.tellStop(signalName(sig))
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

// onStop says who is told of the first interruption, by its name.
func (s *signals) onStop(f func(name string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = f
}

func (s *signals) tellStop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		s.stop(name)
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
