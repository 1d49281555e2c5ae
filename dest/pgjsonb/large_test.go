//go:build !race

// The race detector makes minutes of these seconds; scripts/test runs it without.

package pgjsonb_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
)

// readLarge loads an object and prints the length and SHA-256 of a text in it.
const readLarge = `
import hashlib
import io
import sys
import ZODB._compat
from ZODB.utils import p64
from zodb_pgjsonb.storage import PGJsonbStorage

storage = PGJsonbStorage(sys.argv[1], cache_warm_pct=0)
instance = storage.new_instance()
instance.poll_invalidations()
loader = ZODB._compat.Unpickler(io.BytesIO(instance.load(p64(1))[0]))
loader.load()
text = loader.load()["x"]
print(type(text).__name__, len(text), hashlib.sha256(text.encode()).hexdigest(), end="")
instance.release()
storage.close()
`

// TestAStateThatJSONBCannotHoldIsCompressed takes a text longer than jsonb has
// room for through PostgreSQL; the real storage loads all of it.
func TestAStateThatJSONBCannotHoldIsCompressed(t *testing.T) {
	const line = "a line of text, no two of which are quite the same: %08d\n"
	size := len(fmt.Sprintf(line, 0))
	lines := 1<<28/size + 1000
	var text bytes.Buffer
	text.Grow(lines * size)
	for i := range lines {
		fmt.Fprintf(&text, line, i)
	}
	var record bytes.Buffer
	record.WriteString("cpersistent.mapping\nPersistentMapping\n.}X\x01\x00\x00\x00xX")
	record.Write(binary.LittleEndian.AppendUint32(nil, uint32(text.Len())))
	record.Write(text.Bytes())
	record.WriteString("s.")

	b := desttest.NewBuilder()
	b.Commit(desttest.Transaction{TID: 1 << 50}, desttest.Record{OID: 0, Data: desttest.Data("m", "C", "root")}, desttest.Record{OID: 1, Data: record.Bytes()})
	d := newDatabase(t)
	dst := d.open(t, pgjsonb.Config{})
	defer dst.Close()
	l, err := begin(t, dst, b, func(p *dest.Plan) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.finish(); err != nil {
		t.Fatal(err)
	}
	if l.totals.Objects != 2 || l.totals.Forms["capsule-size"] != 1 {
		t.Errorf("%d objects, forms %v", l.totals.Objects, l.totals.Forms)
	}
	if n := d.query(t, "SELECT count(*) FROM object_state WHERE pg_column_size(state) > 200000000"); n[0] != "0" {
		t.Error("the state is not compressed")
	}
	// Written out, as the Python codec does, PostgreSQL does not take it.
	conn, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "SELECT to_jsonb(repeat('x', $1))", text.Len()); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("as jsonb: %v", err)
	}
	want := fmt.Sprintf("str %d %x", text.Len(), sha256.Sum256(text.Bytes()))
	if got := python(t, readLarge, d.dsn); strings.TrimSpace(got) != want {
		t.Errorf("the storage loads %s, want %s", got, want)
	}
}
