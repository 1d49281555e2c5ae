//go:build unix

// Command s3faults is a proxy before an S3 server that plays a bad network, for
// scripts:
//
//	s3faults --target http://127.0.0.1:7070 [--listen 127.0.0.1:0] [--fault 500,reset,lost]
//		[--share 0.33 | --every 3] [--seed 1] [--latency 20ms] [--rate 50000000]
//
// It prints the URL of the endpoint that it makes on a line, and ends with SIGINT
// or SIGTERM. On SIGUSR1 it stops to make faults, on SIGUSR2 it begins again.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "s3faults:", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		settings = faults.Settings{}
		target   = flag.String("target", "", "URL of the S3 server")
		listen   = flag.String("listen", "127.0.0.1:0", "where to take requests")
		kinds    = flag.String("fault", "", "faults, separated by commas: "+fmt.Sprint(faults.All()))
	)
	flag.IntVar(&settings.Every, "every", 0, "each n-th request is faulty")
	flag.Float64Var(&settings.Share, "share", 0, "this part of the requests is faulty")
	flag.Uint64Var(&settings.Seed, "seed", 1, "of the draws")
	flag.DurationVar(&settings.Latency, "latency", 0, "before every request")
	flag.DurationVar(&settings.Delay, "delay", 5*time.Second, "of the fault delay")
	flag.DurationVar(&settings.StallTime, "stall", 2*time.Minute, "at most, of the fault stall")
	flag.Int64Var(&settings.Rate, "rate", 0, "bytes of bodies in a second, all requests together")
	flag.Parse()
	server, err := url.Parse(*target)
	if err != nil || server.Host == "" {
		return fmt.Errorf("--target %q is no URL", *target)
	}
	if settings.Kinds, err = faults.Parse(*kinds); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	proxy := faults.New(server, nil, settings)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Println("http://" + listener.Addr().String())
	return serve(ctx, &http.Server{Handler: proxy}, listener, proxy, settings)
}

func serve(ctx context.Context, server *http.Server, listener net.Listener, proxy *faults.Proxy, settings faults.Settings) error {
	switches := make(chan os.Signal, 1)
	signal.Notify(switches, syscall.SIGUSR1, syscall.SIGUSR2)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	for {
		select {
		case s := <-switches:
			now := settings
			if s == syscall.SIGUSR1 {
				now.Kinds = nil
			}
			proxy.Set(now)
		case <-ctx.Done():
			proxy.Close()
			return server.Close()
		case err := <-ended:
			return err
		}
	}
}
