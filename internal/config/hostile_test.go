package config

import (
	"errors"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"
)

func TestHostileFilesEndInAnErrorWithALine(t *testing.T) {
	whole := "[source]\ntype='filestorage'\npath='x'\n"
	nest := func(open string, n int) string { return strings.Repeat(open, n) }
	for _, c := range []struct {
		name, text string
		line       bool // the error names a line
	}{
		{"long line", whole + "blob-dir='" + strings.Repeat("x", 900<<10), true},
		{"long key", whole + strings.Repeat("x", 900<<10) + "=1", true},
		{"NUL", whole + "blob-dir='\x00'", true},
		{"NUL outside of a string", whole + "\x00", true},
		{"not UTF-8", whole + "blob-dir='\xff'", true},
		{"UTF-16", "\xff\xfe[\x00s\x00]\x00", true},
		{"nested arrays", whole + "blob-dir=" + nest("[", 1<<20-100), true},
		{"nested tables", whole + "blob-dir=" + nest("{a=", 1<<18), true},
		{"dotted key", whole + strings.TrimSuffix(nest("a.", 1<<19-100), ".") + "=1", true},
		{"dotted section", "[" + strings.TrimSuffix(nest("a.", 1<<19-100), ".") + "]", true},
		{"many keys", whole + func() string {
			var b strings.Builder
			for i := range 50_000 {
				b.WriteString("k" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + "_" + strconv.Itoa(i) + "=1\n")
			}
			return b.String()
		}(), true},
		{"many sections", strings.Repeat("[[source]]\n", 50_000), true},
		{"dotted keys in every line", strings.Repeat(strings.Repeat("a.", 4000)+"b=1\n", 20), true},
		{"nested tables in short lines", whole + "blob-dir=" + nest("{a=\n", 5000), true},
		{"nested arrays in short lines", whole + "blob-dir=" + nest("[[[[[[[[[[[[[[[[[[[[\n", 9000), true},
		{"not ended", whole + "blob-dir='''", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after goruntime.MemStats
			goruntime.ReadMemStats(&before)
			_, err := parse("c.toml", []byte(c.text), env(), sectionNames)
			goruntime.ReadMemStats(&after)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("not an *Error: %v", err)
			}
			if c.line && e.Line < 1 {
				t.Errorf("no line: %.300v", err)
			}
			if len(err.Error()) > 3000 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			t.Logf("%.200v; %d MB allocated", err, (after.TotalAlloc-before.TotalAlloc)>>20)
		})
	}
}
