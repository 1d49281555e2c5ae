package inspect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
)

// writeReferences makes two databases that refer to each other with ZODB itself:
// weak references, one of which leads to an object that is deleted afterwards,
// dangling ones, and objects that nothing leads to, a ring among them.
const writeReferences = `
import sys
import transaction
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from BTrees.OOBTree import OOBTree
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.utils import load_current

databases = {}
main = DB(FileStorage(sys.argv[1]), databases=databases, database_name="main", xrefs=True)
other = DB(FileStorage(sys.argv[2]), databases=databases, database_name="other", xrefs=True)
connection = main.open()
root, there = connection.root(), connection.get_connection("other").root()
there["target"] = PersistentMapping(here=False)
transaction.commit()
root["tree"] = OOBTree({i: PersistentMapping(number=i) for i in range(500)})
root["kept"] = PersistentList([PersistentMapping(i=i) for i in range(20)])
root["doomed"] = [PersistentMapping(doomed=i) for i in range(5)]
root["ring"] = a = PersistentMapping(name="a")
a["b"] = PersistentMapping(name="b", a=a)
transaction.commit()
for i in range(0, 20, 3):
    root["kept"][i]["weak"] = WeakRef(root["doomed"][i % 5])
    root["kept"][i]["alive"] = WeakRef(root["tree"][i])
    root["kept"][i]["elsewhere"] = there["target"]
    root["kept"][i]["loosely"] = WeakRef(there["target"])
for i in range(100, 110):
    root["tree"][i]["doomed"] = root["doomed"][i % 2]
transaction.commit()
doomed = [o._p_oid for o in root["doomed"]]
del root["doomed"]
del root["ring"]
for i in range(200, 230):
    del root["tree"][i]
transaction.commit()
storage = main.storage
meta = TransactionMetaData()
storage.tpc_begin(meta)
for oid in doomed:
    storage.deleteObject(oid, load_current(storage, oid)[1], meta)
storage.tpc_vote(meta)
storage.tpc_finish(meta)
connection.close()
main.close()
other.close()
`

// askReferences finds what is to be found with ZODB's own function for references
// and its unpickler, in the simplest way.
const askReferences = `
import io
import json
import sys
import tempfile
import zlib
from ZODB.FileStorage.FileStorage import FileIterator
from ZODB.serialize import referencesf
from zodbpickle.fastpickle import Unpickler


def current(content):
    with tempfile.NamedTemporaryFile(suffix=".fs") as f:
        # ZODB on Python 3 takes no file of Python 2, although the format is the same.
        f.write(b"FS30" + content[4:])
        f.flush()
        records = {r.oid: r.data for t in FileIterator(f.name) for r in t}
    for oid, data in records.items():
        if data is not None:
            yield oid, zlib.decompress(data[2:]) if data.startswith(b".z") else data


def ids(data):
    found = []
    unpickler = Unpickler(io.BytesIO(data), encoding="bytes")
    unpickler.persistent_load = found.append
    unpickler.noload()
    unpickler.noload()
    return found


def text(name):
    return name.decode() if isinstance(name, bytes) else name


def loose(found):
    for id in found:
        if not isinstance(id, list):
            continue
        if len(id) == 1:
            yield id[0], None
        elif text(id[0]) == "w":
            yield id[1][0], text(id[1][1]) if len(id[1]) > 1 else None
        else:
            yield id[1][1], text(id[1][0])


def listed(refs):
    some = {oid: refs[oid] for oid in sorted(refs) if refs[oid]}
    return {"count": len(some), "first": ["0x" + oid.hex() for oid in some][:10]}


def absent(refs, known):
    gone = {oid: {t for t in refs[oid] if t not in known} for oid in refs}
    out = listed(gone)
    out["targets"] = ["0x" + min(gone[oid]).hex() for oid in sorted(gone) if gone[oid]][:10]
    return out


def ask(path):
    with open(path, "rb") as f:
        content = f.read()
    strong, weak, cross, unread = {}, {}, {}, 0
    for oid, data in current(content):
        strong[oid] = weak[oid] = cross[oid] = ()
        try:
            found = ids(data)
            if content.startswith(b"FS21"):
                # referencesf decodes the strings of Python 2 and fails.
                strong[oid] = {id[0] if isinstance(id, tuple) else id for id in found if not isinstance(id, list)}
            else:
                strong[oid] = set(referencesf(data))
        except Exception:
            unread += 1
            continue
        weak[oid] = {t for t, database in loose(found) if database is None}
        cross[oid] = {(t, database) for t, database in loose(found) if database is not None}
    root = bytes(8)
    reached, stack = set(), [root]
    while stack:
        oid = stack.pop()
        if oid in strong and oid not in reached:
            reached.add(oid)
            stack.extend(strong[oid])
    return {
        "dangling-reference": absent(strong, strong),
        "dangling-weak-reference": absent(weak, strong),
        "cross-database": listed(cross),
        "unreachable": listed({oid: [1] for oid in strong if oid not in reached} if root in strong else {}),
        "unread": {"count": unread},
        "references": {"count": sum(map(len, strong.values()))},
    }


for path in sys.argv[1:]:
    print(json.dumps(ask(path)))
`

// asked is what Python says.
type asked struct {
	Count   int64    `json:"count"`
	First   []string `json:"first"`
	Targets []string `json:"targets"`
}

func python(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	python := os.Getenv("ZODB_PYTHON")
	if python == "" {
		python, _ = filepath.Abs("../.venv/bin/python")
	}
	if out, err := exec.Command(python, "-c", "import ZODB, BTrees").CombinedOutput(); err != nil {
		throwaway.Missing(t, fmt.Errorf("no Python with ZODB (scripts/setup installs it, ZODB_PYTHON names it): %w\n%s", err, out))
	}
	cmd := exec.Command(python, append([]string{"-c", program}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, stderr.Bytes())
	}
	return out
}

// What is found is what ZODB's own tools find.
func TestReferencesAreThoseThatZODBFinds(t *testing.T) {
	made := t.TempDir()
	main, other := filepath.Join(made, "main.fs"), filepath.Join(made, "other.fs")
	python(t, writeReferences, main, other)
	paths, err := filepath.Glob("../testdata/*.fs")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d databases, %v", len(paths), err)
	}
	paths = append(paths, main, other)
	answers := bytes.Split(bytes.TrimSpace(python(t, askReferences, paths...)), []byte("\n"))
	if len(answers) != len(paths) {
		t.Fatalf("%d answers about %d databases", len(answers), len(paths))
	}
	causes := []string{Dangling, WeakDangling, CrossDatabase, Unreachable}
	total := map[string]int64{}
	for i, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var want map[string]asked
			if err := json.Unmarshal(answers[i], &want); err != nil {
				t.Fatal(err)
			}
			if n := want["unread"].Count; n > 0 && filepath.Base(path) != "rejects.fs" {
				t.Errorf("ZODB does not read %d records", n)
			}
			found := inspected(t, path)
			for _, cause := range causes {
				got, want := found[cause], want[cause]
				if got.Count != want.Count || !slices.Equal(got.First, want.First) || cause != CrossDatabase && !slices.Equal(got.Targets, want.Targets) {
					t.Errorf("%s: %+v, ZODB finds %+v", cause, got, want)
				}
			}
			for name, a := range want {
				total[name] += a.Count
			}
		})
	}
	t.Logf("compared: %v", total)
	for _, cause := range append(causes, "references") {
		if total[cause] == 0 {
			t.Errorf("no database has any %s", cause)
		}
	}
}

// inspected is what an inspection finds, by cause.
func inspected(t *testing.T, path string) map[string]Finding {
	t.Helper()
	src, err := filestorage.Open(t.Context(), path, filestorage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	report, err := Run(t.Context(), src, Options{Workers: 2, Reachability: true, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Finding{}
	for _, f := range append(report.Notable, report.Altered...) {
		found[f.Cause] = f
	}
	return found
}
