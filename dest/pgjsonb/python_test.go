package pgjsonb_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/internal/throwaway"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// pythonPath names a Python with the real zodb-pgjsonb. Where there is none the
// test fails under CI=true and says elsewhere that it did not run.
func pythonPath(t testing.TB) string {
	t.Helper()
	path := os.Getenv("ZODB_PYTHON")
	if path == "" {
		path, _ = filepath.Abs("../../.venv/bin/python")
	}
	if out, err := exec.Command(path, "-c", "import zodb_pgjsonb").CombinedOutput(); err != nil {
		throwaway.Missing(t, fmt.Errorf("no Python with zodb-pgjsonb (scripts/setup installs it, ZODB_PYTHON names it): %w\n%s", err, out))
	}
	return path
}

// python runs a program on the real zodb-pgjsonb.
func python(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(pythonPath(t), append([]string{"-c", program}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, stderr.Bytes())
	}
	return string(out)
}

// startSite lets the real storage open the database, as a site does.
const startSite = `
import sys
from zodb_pgjsonb.storage import PGJsonbStorage
s = PGJsonbStorage(sys.argv[1], history_preserving=sys.argv[2] == "true", cache_warm_pct=0)
s.close()
`

// files are the files of every relation: a table that was rewritten, or an
// index that was made again, has another one.
func (d *database) files(t *testing.T) []string {
	return d.query(t, `SELECT relname, relfilenode FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE nspname = 'public' ORDER BY 1; SELECT * FROM zoid_seq; SELECT count(*) FROM pgjsonb_schema_state`)
}

func modes(t *testing.T, run func(t *testing.T, history bool)) {
	t.Run("HistoryFree", func(t *testing.T) { run(t, false) })
	t.Run("HistoryPreserving", func(t *testing.T) { run(t, true) })
}

func TestSchemaIsThatOfTheSite(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		made := newDatabase(t)
		python(t, startSite, made.dsn, fmt.Sprint(history))
		for name, before := range map[string]func(*database){
			"absent": func(*database) {},
			"made by the site": func(d *database) {
				python(t, startSite, d.dsn, fmt.Sprint(history))
			},
			"of a site without history, older release": func(d *database) {
				python(t, startSite, d.dsn, "false")
				d.exec(t, "DROP INDEX idx_object_state_tid_zoid; DROP TABLE pgjsonb_schema_state")
			},
		} {
			t.Run(name, func(t *testing.T) {
				d := newDatabase(t)
				before(d)
				convert(t, d, desttest.Sample(history), history)
				if diff := cmp.Diff(made.Schema(t), d.Schema(t)); diff != "" {
					t.Fatalf("schema (-site +converted):\n%s", diff)
				}
				files := d.files(t)
				python(t, startSite, d.dsn, fmt.Sprint(history))
				if diff := cmp.Diff(made.Schema(t), d.Schema(t)); diff != "" {
					t.Errorf("the first start changes the schema:\n%s", diff)
				}
				if diff := cmp.Diff(files, d.files(t)); diff != "" {
					t.Errorf("the first start changes files or the sequence:\n%s", diff)
				}
			})
		}
	})
}

// dumpExtensions prints pickles of what an extension may hold and what the
// storage writes for them.
const dumpExtensions = `
import base64, datetime, decimal, pickle, collections
from zodbpickle import binary
import zodbpickle.pickle
from zodb_pgjsonb.serialization import _serialize_extension, _deserialize_extension
shared = ["x"]
values = [
    {}, {"a": 1}, {"a": None, "b": True, "c": False}, {"request_type": "POST", "ip": "10.0.0.1"},
    {"f": [0.0, -0.0, 1.0, 1.5, 1e15, 123456789012345680.0, 1e16, 1e22, 1e-4, 1e-5, 1.1e-7, 5e-324, 1.7976931348623157e308, 0.1, 1e100]},
    {"i": [0, -1, 2**31, -2**31, 2**63 - 1, -2**63, 2**63, 2**64, -2**64, 10**40, -10**40]},
    {"text": "zażółć \U0001f600 \"quoted\" back\\slash \n\r\t\f\b \x00\x1f\x7f\x80\u2028\uffff"},
    {"nested": {"deep": [[], {}, [{"x": [1, 2]}]]}}, {"same": [shared, shared]}, {"": ""},
    {"key \u00e9\n": 1}, {"long": "x" * 300},
]
kept = [{"b": b"bytes"}, {"t": (1, 2)}, {1: 2}, {"s": {1}}, {"n": float("nan")}, {"n": float("inf")},
    {"d": datetime.date(2020, 1, 1)}, {"k": {1: 2}}, {None: 1}, {True: 1},
    None, 1, "text", [1], (1,)]
def line(kind, p, want):
    print(kind, base64.b64encode(p).decode(), base64.b64encode(want).decode())
for protocol in range(4): # zodbpickle reads no more
    for v in values:
        p = pickle.dumps(v, protocol)
        line("json", p, _serialize_extension(p))
        assert _deserialize_extension(_serialize_extension(p)) == v
    for v in kept:
        p = pickle.dumps(v, protocol)
        line("kept", p, p)
    p = pickle.dumps({}, protocol)
    line("json", p, _serialize_extension(p))
# What Python 2 wrote: its str, and keys that come twice.
for p in [b"(dp0\nS'a'\np1\nS'b'\np2\ns.", b"}q\x00(U\x01aU\x01bU\x01cK\x01U\x01aK\x02u."]:
    line("json", p, _serialize_extension(p))
line("kept", b"}q\x00U\x01aU\x01\xffs.", b"}q\x00U\x01aU\x01\xffs.")
for p in [b"no pickle", b"\x80\x02}q\x00(U", b"."]:
    line("kept", p, p)
`

func TestExtensionIsWhatTheSiteWrites(t *testing.T) {
	b := desttest.NewBuilder()
	var want, kinds []string
	out := python(t, dumpExtensions)
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
		pickled, err := base64.StdEncoding.DecodeString(f[1])
		if err != nil {
			t.Fatal(err)
		}
		stored, err := base64.StdEncoding.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fmt.Sprintf("%s %q", f[0], pickled))
		want = append(want, fmt.Sprintf("%x", stored))
		b.Commit(desttest.Transaction{TID: 1<<50 + zodb.TID(len(want))<<20, Extension: string(pickled)})
	}
	if len(want) < 100 {
		t.Fatalf("only %d extensions", len(want))
	}
	d := newDatabase(t)
	convert(t, d, b, false)
	for i, got := range d.query(t, "SELECT encode(extension, 'hex') FROM transaction_log ORDER BY tid") {
		if got != want[i] {
			t.Errorf("%s:\nstored %s\n  want %s", kinds[i], unhex(got), unhex(want[i]))
		}
	}
}

func unhex(s string) string {
	var b []byte
	if _, err := fmt.Sscanf(s, "%x", &b); err != nil && s != "" {
		return s
	}
	return fmt.Sprintf("%q", b)
}

// readSite prints what the real storage reads.
const readSite = `
import sys
from ZODB.utils import p64, u64
from ZODB.POSException import POSKeyError
from zodb_pgjsonb.storage import PGJsonbStorage
history = sys.argv[2] == "true"
s = PGJsonbStorage(sys.argv[1], history_preserving=history, cache_warm_pct=0)
i = s.new_instance()
i.poll_invalidations()
for oid in map(int, sys.argv[3].split(",")):
    try:
        print(oid, u64(i.load(p64(oid))[1]))
    except POSKeyError:
        print(oid, "gone")
last = u64(s.lastTransaction())
new = u64(s.new_oid())
print("next", new > max(map(int, sys.argv[3].split(","))))
i.release()
s.close()
`

func TestSiteReadsWhatWasWrittenAndMissesWhatWasDeleted(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d := newDatabase(t)
		b := desttest.Sample(history)
		b.Commit(desttest.Transaction{TID: 1 << 59}, desttest.Record{OID: 3, Data: desttest.Bad(), Rejected: true})
		_, err := run(t, d, b, history, func(p *dest.Plan) { p.AcceptRejects = true })
		if err != nil {
			t.Fatal(err)
		}
		want := b.Want(history)
		var oids, lines []string
		for oid := zodb.OID(0); oid <= 600; oid++ {
			oids = append(oids, fmt.Sprint(uint64(oid)))
			if tid, ok := want.Current[oid]; ok {
				lines = append(lines, fmt.Sprintf("%d %d", uint64(oid), uint64(tid)))
			} else {
				lines = append(lines, fmt.Sprintf("%d gone", uint64(oid)))
			}
		}
		lines = append(lines, "next True")
		got := strings.Split(strings.TrimSpace(python(t, readSite, d.dsn, fmt.Sprint(history), strings.Join(oids, ","))), "\n")
		if diff := cmp.Diff(lines, got); diff != "" {
			t.Errorf("(-want +read):\n%s", diff)
		}
	})
}

// openBlobs opens the blobs that are named, by the storage and those that are
// current as an application does, and prints what is in them.
const openBlobs = `
import sys, hashlib, tempfile
import ZODB
from ZODB.utils import p64, u64
from ZODB.POSException import POSKeyError
from zodb_pgjsonb.storage import PGJsonbStorage
history = sys.argv[2] == "true"
with tempfile.TemporaryDirectory() as temp:
    s = PGJsonbStorage(sys.argv[1], history_preserving=history, cache_warm_pct=0, blob_temp_dir=temp)
    db = ZODB.DB(s)
    conn = db.open()
    i = s.new_instance()
    i.poll_invalidations()
    for name in sys.argv[3].split(","):
        oid, tid = map(int, name.split(":"))
        with open(i.loadBlob(p64(oid), p64(tid)), "rb") as f:
            data = f.read()
        try:
            current = u64(i.load(p64(oid))[1]) == tid
        except POSKeyError: # deleted, or no blob any more
            current = False
        if current:
            with conn.get(p64(oid)).open("r") as f:
                assert f.read() == data
        print(oid, tid, hashlib.sha256(data).hexdigest())
    i.release()
    conn.close()
    db.close()
`

func TestSiteOpensEveryBlob(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d, b := newDatabase(t), desttest.BlobSample(history)
		b.Commit(desttest.Transaction{TID: 1 << 59}, desttest.BlobOf(900, bytes.Repeat([]byte("0123456789"), 600_000)))
		convert(t, d, b, history)
		var names, want []string
		for _, blob := range b.Want(history).Blobs {
			names = append(names, fmt.Sprintf("%d:%d", uint64(blob.OID), uint64(blob.TID)))
			want = append(want, fmt.Sprintf("%d %d %x", uint64(blob.OID), uint64(blob.TID), sha256.Sum256(b.Bytes(blob.OID, blob.TID))))
		}
		if len(want) < 50 {
			t.Fatalf("only %d blobs", len(want))
		}
		got := strings.Split(strings.TrimSpace(python(t, openBlobs, d.dsn, fmt.Sprint(history), strings.Join(names, ","))), "\n")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +read):\n%s", diff)
		}
	})
}
