package verify_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/verify"
)

// theSite is the code of the site of testdata/py2-site.fs for Python 3, with the
// rule that zodbupdate finds: in which attribute a str of Python 2 is text in
// Latin-1.
var theSite = map[string]string{
	"shop/__init__.py": "",
	"shop/models.py": `
import persistent

class Address: pass
class Product(persistent.Persistent): pass

rules = {"shop.models Product description": "latin1"}
`,
	"shop-1.0.dist-info/METADATA":         "Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n",
	"shop-1.0.dist-info/entry_points.txt": "[zodbupdate.decode]\nrules = shop.models:rules\n",
}

const zodbupdate = `
import sys
from zodbupdate.main import main

main()
`

// readSite prints what an application on Python 3 gets to see of the site, from
// a FileStorage or from PostgreSQL.
const readSite = `
import json
import sys
import ZODB
import ZODB.FileStorage
import ZODB.serialize
from zodb_pgjsonb.storage import PGJsonbStorage

path, dsn = sys.argv[1:]
db = ZODB.DB(PGJsonbStorage(dsn, cache_warm_pct=0) if dsn else ZODB.FileStorage.FileStorage(path, read_only=True))
connection = db.open()
app = connection.root()["app"]
products = app["products"]


def shown(value):
    return "bytes " + value.decode("latin1") if isinstance(value, bytes) else "text " + value


def loaded(get):
    try:
        get()
        return "loads"
    except Exception as e:
        return type(e).__name__


product = products["product-006"]
weak = loaded(product._p_activate)
if weak != "loads":
    # Without it nothing of the object can be seen.
    ZODB.serialize.ObjectReader.loaders["w"] = lambda *args: None
print(json.dumps({
    "description": shown(product.description), "plain": shown(products["product-007"].description), "title": shown(product.title),
    "list": [shown(v) for v in app["list"]],
    "keys": sorted({type(k).__name__ for k in app["bytes"]}), "words": app["words"]["word 7"], "day": str(product.created),
    "tags": sorted(product.tags), "weak": weak if weak != "loads" or product.weak() is app["list"] else "another object",
}))
connection.close()
db.close()
`

// site is what readSite tells.
type site struct {
	Description string   `json:"description"`
	Plain       string   `json:"plain"`
	Title       string   `json:"title"`
	List        []string `json:"list"`
	Keys        []string `json:"keys"`
	Words       int      `json:"words"`
	Day         string   `json:"day"`
	Tags        []string `json:"tags"`
	Weak        string   `json:"weak"`
}

// installSite puts the code of the site where Python finds it.
func installSite(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range theSite {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PYTHONPATH", dir)
}

// seen is what an application gets to see, of the FileStorage if there is no dsn.
func seen(t *testing.T, path, dsn string) (s site) {
	t.Helper()
	if err := json.Unmarshal(pythonOutput(t, readSite, path, dsn), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// declaredOld counts what verify declares of Python 2.
func declaredOld(r *verify.Result) (n int64) {
	for _, c := range r.Declared {
		if strings.HasPrefix(c.Kind, "python2") {
			n += c.Count
		}
	}
	return n
}

// wantSite is what the application gets to see of a site whose strings are bytes
// where Python 2 had no ASCII.
func wantSite() site {
	return site{Description: "bytes Beschreibung ü", Plain: "text description", Title: "text Tür 6", List: []string{"text a", "text b", "bytes ä"},
		Keys: []string{"bytes"}, Words: 7, Day: "2009-10-31 01:31:05.000128", Tags: []string{"a", "b1"}, Weak: "loads"}
}

// TestZodbupdateBeforeTheConversion: what zodbupdate has made of a Data.fs of
// Python 2 arrives as it is.
func TestZodbupdateBeforeTheConversion(t *testing.T) {
	installSite(t)
	data, err := os.ReadFile("../testdata/py2-site.fs")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "Data.fs")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	runPython(t, zodbupdate, "-f", path, "--convert-py3", "--encoding", "utf-8")
	p := &pair{path: path, dsn: postgres.Server(t).NewDatabase(t)}
	p.convert(t, pipeline.Options{})
	r, all := p.verify(t, verify.Options{})
	if len(all) > 0 || declaredOld(r) > 0 {
		t.Errorf("differences %v, declared %v", all, r.Declared)
	}
	want := wantSite()
	want.Description = "text Beschreibung ü" // by the rule
	want.Weak = "StateLoadError"             // because of weak references, of which zodbupdate 3.0 makes something else
	for what, got := range map[string]site{"source": seen(t, path, ""), "destination": seen(t, "", p.dsn)} {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
}

// TestZodbupdateAfterTheConversion: no byte is lost on the way, and zodbupdate
// still makes text of the attributes that have a rule, and of nothing else.
func TestZodbupdateAfterTheConversion(t *testing.T) {
	installSite(t)
	p := converted(t, "py2-site", false)
	r, all := p.verify(t, verify.Options{})
	if len(all) > 0 || declaredOld(r) == 0 {
		t.Errorf("differences %v, declared %v", all, r.Declared)
	}
	want := wantSite()
	if got := seen(t, "", p.dsn); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("converted: %v, want %v", got, want)
	}
	config := filepath.Join(t.TempDir(), "storage.conf")
	text := fmt.Sprintf("%%import zodb_pgjsonb\n<pgjsonb>\n  dsn %s\n  cache-warm-pct 0\n</pgjsonb>\n", p.dsn)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	runPython(t, zodbupdate, "-c", config, "--convert-py3", "--encoding", "utf-8")
	want.Description, want.Weak = "text Beschreibung ü", "StateLoadError"
	if got := seen(t, "", p.dsn); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after zodbupdate: %v, want %v", got, want)
	}
	// Nothing of the conversion is taken for lost.
	if r, all := p.verify(t, verify.Options{}); len(all) > 0 || r.SiteTransactions != 1 || r.SiteChanged == 0 {
		t.Errorf("differences %v, %d transactions since, %d objects changed", all, r.SiteTransactions, r.SiteChanged)
	}
}
