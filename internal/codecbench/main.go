// Codecbench measures the codec alone: it encodes the records of a file again
// and again and prints the best MB of pickle a second, on as many cores as
// GOMAXPROCS allows (the encoder itself uses one).
//
// The file holds each record behind its length, 4 bytes in big-endian order, as
// scripts/py/bench.py writes it for this program and for the Rust codec.
//
//	codecbench [-passes N] [-cpuprofile FILE] RECORDS
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

func main() {
	passes := flag.Int("passes", 3, "how often all records are encoded; the fastest pass counts")
	profile := flag.String("cpuprofile", "", "write a CPU profile to `FILE`")
	flag.Parse()
	if err := run(flag.Args(), *passes, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "codecbench:", err)
		os.Exit(1)
	}
}

func run(args []string, passes int, profile string) error {
	if len(args) != 1 {
		return errors.New("wants one file of records")
	}
	records, total, err := read(args[0])
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	encoder := jsonb.NewEncoder(jsonb.Options{})
	var best time.Duration
	written := 0
	for range passes {
		start := time.Now()
		written = 0
		for i, record := range records {
			row, err := encoder.Encode(record)
			if err != nil {
				return fmt.Errorf("%s: record %d: %w", args[0], i, err)
			}
			written += len(row.State)
		}
		if took := time.Since(start); best == 0 || took < best {
			best = took
		}
	}
	fmt.Printf("%.1f MB/s, %d records, %d bytes of pickle, %d of JSON\n", float64(total)/1e6/best.Seconds(), len(records), total, written)
	return nil
}

func read(path string) (records [][]byte, total int, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	for at := 0; at < len(raw); {
		if len(raw)-at < 4 {
			return nil, 0, fmt.Errorf("%s@%d: a length is cut off", path, at)
		}
		size := int(binary.BigEndian.Uint32(raw[at:]))
		at += 4
		if len(raw)-at < size {
			return nil, 0, fmt.Errorf("%s@%d: a record of %d bytes is cut off", path, at, size)
		}
		records = append(records, raw[at:at+size])
		at += size
		total += size
	}
	return records, total, nil
}
