//go:build !unix

package pipeline

import "runtime"

// peakMemory returns what the Go runtime took from the system, in bytes: it
// gives little back, so this is close to the peak.
func peakMemory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}
