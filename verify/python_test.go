package verify_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/verify"
)

// pythonTool copies a FileStorage with what the Python tool delegates to: a
// storage's copyTransactionsFrom. The transactions from the third argument up to
// the fourth are those that other workers had in their hands when it was killed;
// the tool then goes on behind the highest tid that it finds.
const pythonTool = `
import sys
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64, u64
from zodb_convert.copier import get_incremental_start_tid
from zodb_pgjsonb.storage import PGJsonbStorage

path, dsn, history, first, last = sys.argv[1:]
first, last = int(first), int(last)


class Killed:
    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def iterator(self, start=None, stop=None):
        for i, transaction in enumerate(self.source.iterator(start, stop)):
            if not first <= i < last:
                yield transaction


source = FileStorage(path, read_only=True)
storage = PGJsonbStorage(dsn, history_preserving=history == "true", cache_warm_pct=0)
if first < last:
    storage.copyTransactionsFrom(Killed(source))
    storage.copyTransactionsFrom(source, start_tid=get_incremental_start_tid(source, storage))
else:
    storage.copyTransactionsFrom(source)
storage.close()
`

// byPython is a database that the Python tool has converted.
func byPython(t *testing.T, name string, history bool, first, last int) *pair {
	t.Helper()
	p := &pair{path: filepath.Join("..", "testdata", name+".fs"), history: history, dsn: postgres.Server(t).NewDatabase(t)}
	runPython(t, pythonTool, p.path, p.dsn, fmt.Sprint(history), fmt.Sprint(first), fmt.Sprint(last))
	return p
}

// python is the interpreter with the real tools.
func python(t *testing.T) string {
	t.Helper()
	python := os.Getenv("ZODB_PYTHON")
	if python == "" {
		python, _ = filepath.Abs("../.venv/bin/python")
	}
	if out, err := exec.Command(python, "-c", "import zodb_pgjsonb, zodb_convert").CombinedOutput(); err != nil {
		throwaway.Missing(t, fmt.Errorf("no Python with zodb-pgjsonb and zodb-convert (scripts/setup installs it, ZODB_PYTHON names it): %w\n%s", err, out))
	}
	return python
}

// runPython runs a program of the real Python tools.
func runPython(t *testing.T, program string, args ...string) {
	t.Helper()
	pythonOutput(t, program, args...)
}

func pythonOutput(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(python(t), append([]string{"-c", program}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, stderr.Bytes())
	}
	return out
}

// found are the differences by kind and oid, without that of the sequence, which
// the Python tool never raises.
func found(t *testing.T, all []verify.Difference) (list []string) {
	t.Helper()
	sequence := 0
	for i := range all {
		if d := &all[i]; d.Kind == verify.SchemaFault && d.Path == "sequence zoid_seq" {
			sequence++
		} else {
			list = append(list, strings.TrimSpace(d.Kind+" "+strings.TrimLeft(strings.TrimPrefix(d.OID, "0x"), "0")))
		}
	}
	if sequence != 1 {
		t.Errorf("the sequence is named %d times", sequence)
	}
	slices.Sort(list)
	return list
}

// What the Python tool loses of these is known; the rest is the same.
func TestLossesOfThePythonToolAreFound(t *testing.T) {
	for _, c := range []struct {
		name    string
		history bool
		want    []string
	}{
		{"plone", false, []string{"not-deleted f9"}}, // came back
		{"plone", true, []string{"missing-revision f9", "missing-revision f9", "not-deleted f9"}},
		{"cyclic", false, []string{"value 1", "value 2", "value 3", "value 4", "value 5", "value 7", "value d"}},
		{"btrees", true, nil},
	} {
		t.Run(c.name+map[bool]string{true: "/history"}[c.history], func(t *testing.T) {
			t.Parallel()
			_, all := byPython(t, c.name, c.history, 0, 0).verify(t, verify.Options{})
			if got := found(t, all); !slices.Equal(got, c.want) {
				t.Errorf("found %v, want %v", got, c.want)
			}
		})
	}
}

// A run of several workers that is killed leaves holes, and the Python tool goes
// on behind the last transaction.
func TestHolesOfAKilledRunAreFound(t *testing.T) {
	whole, all := byPython(t, "btrees", false, 0, 0).verify(t, verify.Options{})
	if got := found(t, all); len(got) != 0 {
		t.Fatalf("of a whole run %v is found", got)
	}
	p := byPython(t, "btrees", false, 3, 6)
	r, all := p.verify(t, verify.Options{})
	kinds := map[string]int64{}
	for _, k := range r.Kinds {
		kinds[k.Kind] = k.Count
	}
	if kinds[verify.MissingTransaction] != 3 || kinds[verify.MissingObject] == 0 {
		t.Errorf("found %v", r.Kinds)
	}
	// Every object of these transactions is missing or an older one, and nothing else.
	if n := int64(len(found(t, all))); n != 3+kinds[verify.MissingObject]+kinds[verify.OtherTID] || r.Records != whole.Records {
		t.Errorf("found %v among %d records", r.Kinds, r.Records)
	}
}

const writeFloats = `
import sys
import persistent.mapping
import transaction
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

db = DB(FileStorage(sys.argv[1]))
root = db.open().root()
for i, value in enumerate([1.5, float("nan"), float("inf"), 1e300, -0.0, 1.7976931348623157e308, 0.1]):
    root[str(i)] = persistent.mapping.PersistentMapping(value=value)
    transaction.commit()
db.close()
`

// Numbers that the codec alters or cannot hold are found where they were.
func TestFloatsThatPythonLosesAreFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	runPython(t, writeFloats, path)
	p := &pair{path: path, dsn: postgres.Server(t).NewDatabase(t)}
	runPython(t, pythonTool, p.path, p.dsn, "false", "0", "0")
	_, all := p.verify(t, verify.Options{})
	if got := found(t, all); !slices.Equal(got, []string{"value 2", "value 3", "value 4", "value 5", "value 6"}) {
		t.Errorf("found %v", got)
	}
	for i := range all {
		if d := &all[i]; d.Kind == verify.OtherValue && (!strings.Contains(d.Path, "value") || d.Source == "" || d.Destination == "" || d.Source == d.Destination) {
			t.Errorf("not located: %s", d)
		} else {
			t.Log(d)
		}
	}
	own := &pair{path: path, dsn: postgres.Server(t).NewDatabase(t)}
	own.convert(t, pipeline.Options{})
	if _, all := own.verify(t, verify.Options{}); len(all) > 0 {
		t.Errorf("of our own conversion %v is found", all)
	}
}
