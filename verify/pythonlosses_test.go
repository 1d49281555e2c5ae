package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/verify"
)

const codecOracle = "../scripts/py/codecoracle.py"

// storable passes on what the Python codec and PostgreSQL take at all.
const storable = `
import json
import sys
import zodb_json_codec

for text in sys.stdin:
    line = json.loads(text)
    if line.get("endless"):
        continue
    try:
        module, name, state, refs = zodb_json_codec.decode_zodb_record_for_pg_json(bytes.fromhex(line["record_hex"]))
    except ValueError:
        continue
    if "\\u0000" not in state and "\0" not in module + name:
        print(json.dumps(line))
`

// TestEveryLossOfThePythonCodecIsFound: what the codec is known to lose is stored
// by the Python tool, and verify names each of these objects.
func TestEveryLossOfThePythonCodecIsFound(t *testing.T) {
	pipe := func(input []byte, args ...string) []byte {
		cmd := exec.Command(python(t), args...)
		cmd.Stdin = bytes.NewReader(input)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("python %.100s: %v\n%s", args, err, stderr.Bytes())
		}
		return out
	}
	path := filepath.Join(t.TempDir(), "Data.fs")
	lines := pipe(pipe(pipe(nil, codecOracle, "losses"), "-c", storable), codecOracle, "database", path)
	p := &pair{path: path, dsn: postgres.Server(t).NewDatabase(t)}
	runPython(t, pythonTool, p.path, p.dsn, "false", "0", "0")
	r, all := p.verify(t, verify.Options{})
	kinds := map[string][]string{}
	for i := range all {
		kinds[all[i].OID] = append(kinds[all[i].OID], all[i].Kind)
	}
	stored := 0
	for decoder := json.NewDecoder(bytes.NewReader(lines)); decoder.More(); {
		var l struct {
			Loss string `json:"loss"`
			OID  uint64 `json:"oid"`
		}
		if err := decoder.Decode(&l); err != nil {
			t.Fatal(err)
		}
		stored++
		found := kinds[fmt.Sprintf("0x%016x", l.OID)]
		t.Logf("%s: %v", l.Loss, found)
		// Copies are what this tool makes of shared parts, too; and a reference is
		// the same, whether or not its object has a place.
		same := l.Loss == "one list, dict, set or object twice" || strings.HasPrefix(l.Loss, "references to an oid beyond")
		if same != (len(found) == 0) {
			t.Errorf("%s: found %v", l.Loss, found)
		}
	}
	copied := slices.ContainsFunc(r.Declared, func(c verify.Count) bool { return c.Kind == "shared-copied" })
	if stored < 25 || !copied {
		t.Errorf("%d losses are stored, declared %v", stored, r.Declared)
	}
}
