// Command zodb-convert moves a ZODB database into zodb-pgjsonb, where every
// object is JSON in PostgreSQL.
//
//	zodb-convert -w 8 migrate.toml
//
// The source is never written to. A run can be killed at any moment and goes on
// with --incremental; nothing is written twice or left out. Results go to
// stdout, everything else to stderr, and the exit status is one of those that
// --help lists.
package main

import (
	"context"
	"os"
)

func main() {
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.LookupEnv, version: version(),
	}
	// Before anything else: SIGUSR1 must not end the process.
	ctx, signals := watchSignals(context.Background())
	a.signals = signals
	os.Exit(a.run(ctx, os.Args[1:]))
}
