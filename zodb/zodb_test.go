package zodb

import (
	"testing"
	"time"
)

func TestTIDIsTheTimeStampThatPythonGives(t *testing.T) {
	for _, c := range []struct {
		tid TID
		at  time.Time
	}{
		{0x03f6dcd2f1111111, time.Date(2024, 2, 29, 12, 34, 56, 5e8, time.UTC)},
		{0x03f6dcd300000000, time.Date(2024, 2, 29, 12, 35, 0, 0, time.UTC)},
		{0x03f6eac001111111, time.Date(2024, 3, 1, 0, 0, 0, 25e7, time.UTC)},
		{0, time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if got := TIDAt(c.at); got != c.tid {
			t.Errorf("TIDAt(%v) = %v, want %v", c.at, got, c.tid)
		}
		if got := c.tid.Time(); got.Sub(c.at).Abs() > 20*time.Nanosecond {
			t.Errorf("%v.Time() = %v, want %v", c.tid, got, c.at)
		}
	}
	if got := TID(0x03441422948b4395).Time().Round(time.Millisecond).Format("2006-01-02 15:04:05.000"); got != "2002-04-14 20:50:34.815" {
		t.Errorf("Time() = %s", got)
	}
}

func TestTIDWithoutARealDateDoesNotFail(t *testing.T) {
	for _, tid := range []TID{1<<63 - 1, 1<<64 - 1, TID(((2024-1900)*12+1)*minutesPerMonth+30*minutesPerDay) << 32} {
		if tid.Time().IsZero() {
			t.Errorf("%v has no time", tid)
		}
	}
}
