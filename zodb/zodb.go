// Package zodb holds the two numbers that identify everything in a ZODB: the
// object id and the transaction id, with their text forms and times.
//
// Both are 8 raw bytes on disk and compare as unsigned big-endian integers.
// A tid is a time stamp in an artificial calendar of 12 months of 31 days
// (persistent.TimeStamp): the high 32 bits count minutes since 1900, the low
// 32 bits are the fraction of the minute.
package zodb

import (
	"fmt"
	"math/bits"
	"time"
)

// OID is an object id. The root object has OID 0.
type OID uint64

// TID is a transaction id, which is also the serial of every record that the
// transaction wrote.
type TID uint64

// Root is the oid of the root object.
const Root OID = 0

// Limit is the first oid or tid that a destination with signed 64-bit columns
// does not take: 2^63 - 2^32. The distance to 2^63 leaves room for the ids that
// the application allocates after the conversion.
const Limit = 1<<63 - 1<<32

// String gives the form that Python's ZODB prints: 0x and 16 hex digits.
func (o OID) String() string { return fmt.Sprintf("0x%016x", uint64(o)) }

// String gives 0x and 16 hex digits.
func (t TID) String() string { return fmt.Sprintf("0x%016x", uint64(t)) }

const (
	minutesPerDay   = 24 * 60
	minutesPerMonth = 31 * minutesPerDay
	minutesPerYear  = 12 * minutesPerMonth
)

// Time returns the moment that the tid encodes, in UTC. A tid may encode a
// date that no calendar has (31 February); it is then normalised the way
// time.Date does.
func (t TID) Time() time.Time {
	minutes := uint64(t) >> 32
	low := uint64(uint32(t))
	hi, lo := bits.Mul64(low, uint64(time.Minute)) // 68 bits
	nanos := hi<<32 | lo>>32
	return time.Date(
		int(minutes/minutesPerYear)+1900,
		time.Month(minutes/minutesPerMonth%12+1),
		int(minutes/minutesPerDay%31)+1,
		int(minutes/60%24), int(minutes%60),
		int(nanos/uint64(time.Second)), int(nanos%uint64(time.Second)), time.UTC)
}

// TIDAt returns the tid that a transaction at the given moment would get,
// truncated to the resolution of a tid (14 nanoseconds). Moments before 1900
// give 0.
func TIDAt(at time.Time) TID {
	at = at.UTC()
	if at.Year() < 1900 {
		return 0
	}
	minutes := uint64(at.Year()-1900)*minutesPerYear +
		uint64(at.Month()-1)*minutesPerMonth +
		uint64(at.Day()-1)*minutesPerDay +
		uint64(at.Hour())*60 + uint64(at.Minute())
	nanos := uint64(at.Second())*uint64(time.Second) + uint64(at.Nanosecond())
	fraction, _ := bits.Div64(nanos>>32, nanos<<32, uint64(time.Minute))
	return TID(minutes<<32 | fraction)
}
