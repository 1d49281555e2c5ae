package jsonb

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

// read gives the record for the state that a forward vector tells.
func read(t *testing.T, v *recordedVector) []byte {
	t.Helper()
	record, err := AppendRecord(nil, v.Module, v.Name, asPostgreSQLPrints(t, v.StateJSON))
	if err != nil {
		t.Fatalf("%s: %v", v.ID, err)
	}
	return record
}

// asPostgreSQLPrints does to numbers what jsonb does, which prints no exponents
// and knows no negative zero. The rest of the text means the same without it.
func asPostgreSQLPrints(t *testing.T, state string) []byte {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(state))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	printed, err := json.Marshal(plainNumbers(value))
	if err != nil {
		t.Fatal(err)
	}
	return printed
}

func plainNumbers(value any) any {
	switch v := value.(type) {
	case json.Number:
		if exact, ok := new(big.Rat).SetString(v.String()); ok && exact.IsInt() && strings.ContainsAny(v.String(), "eE") {
			return json.Number(exact.Num().String())
		}
		if v == "-0.0" {
			return json.Number("0.0")
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	}
	return value
}

// TestEqualAgreesWithTheRecordedComparison compares what went into the Python
// codec with what came out, for every vector where something came out, and
// judges as the recorded comparison did.
func TestEqualAgreesWithTheRecordedComparison(t *testing.T) {
	back := make(map[string]recordedVector)
	for _, v := range recordedVectors(t, "rev") {
		back[v.ID] = v
	}
	judged := make(map[string]int)
	for _, v := range recordedVectors(t, "fwd") {
		if v.RoundTrip == "error" {
			continue
		}
		a := v.record(t)
		var b []byte
		if reader, found := back[v.ID+"-rev"]; !found {
			b = read(t, &v)
		} else if reader.Error == "" {
			b = reader.record(t)
		} else {
			continue
		}
		strict, err := Equal(a, b)
		if err != nil {
			t.Errorf("%s: %v", v.ID, err)
			continue
		}
		lax, err := Comparison{IgnoreSharing: true}.Equal(a, b)
		if err != nil {
			t.Errorf("%s: sharing ignored: %v", v.ID, err)
			continue
		}
		onlySharing := strings.Contains(v.Note, "identity only")
		verdict := v.RoundTrip
		if onlySharing {
			verdict += " (identity only)"
		}
		judged[verdict]++
		if (strict == "") != (v.RoundTrip == "ok") {
			t.Errorf("%s is %s: %s\n  strict: %q", v.ID, verdict, v.Note, strict)
		}
		if (lax == "") != (v.RoundTrip == "ok" || onlySharing) {
			t.Errorf("%s is %s: %s\n  sharing ignored: %q", v.ID, verdict, v.Note, lax)
		}
	}
	t.Log(judged)
	if judged["ok"] == 0 || judged["lossy"] == 0 || judged["lossy (identity only)"] == 0 {
		t.Error("a verdict was never compared")
	}
}

// TestFaithfulFormsEqualTheirSource holds the comparison to its word that
// different ways to pickle a value are one: each source is lost or changed by
// the Python encoder, each form was recorded to load as the source.
func TestFaithfulFormsEqualTheirSource(t *testing.T) {
	forms := map[string]string{ // form: source
		"form-negzero":                     "float-negzero",
		"form-value-ns-dict":               "value-ns-dict",
		"form-marker-t":                    "userdict-t",
		"form-marker-d":                    "userdict-d",
		"form-marker-ref":                  "userdict-ref",
		"form-marker-reduce":               "userdict-reduce",
		"form-marker-inst":                 "userdict-inst",
		"form-marker-nested-in-set-args":   "userdict-t-nested-in-d",
		"form-surrogate":                   "str-surrogate",
		"form-surrogate-key":               "str-surrogate-key",
		"form-uuid-safe":                   "uuid-safe",
		"form-dt-offset-seconds":           "dt-offset-seconds",
		"form-time-pytz":                   "time-pytz",
		"form-time-zoneinfo":               "time-zoneinfo",
		"form-dt-fold":                     "dt-fold-proto4",
		"form-bytearray8":                  "bytearray-proto5",
		"form-capsule-shared-list":         "shared-list",
		"form-capsule-cycle-list":          "cycle-list",
		"form-capsule-cycle-instance":      "cycle-instance",
		"form-capsule-cycle-parent-child":  "cycle-parent-child",
		"form-capsule-cycle-tuple4":        "cycle-tuple4",
		"form-capsule-cycle-dict-subclass": "cycle-dict-subclass",
		"form-capsule-z-cycle-list":        "cycle-list",
	}
	sources := make(map[string]recordedVector)
	for _, v := range recordedVectors(t, "fwd") {
		sources[v.ID] = v
	}
	compared := 0
	for _, form := range recordedVectors(t, "rev") {
		source, wanted := sources[forms[form.ID]]
		if !wanted {
			continue
		}
		compared++
		module, name := source.Module, source.Name
		if module == "" { // the Python encoder failed before it told the class
			module, name = "plone.dexterity.content", "Item"
		}
		back, err := new(Reader).AppendUnsanitized(nil, module, name, form.State)
		if err != nil {
			t.Errorf("%s: %v", form.ID, err)
			continue
		}
		if difference, err := Equal(source.record(t), back); difference != "" || err != nil {
			t.Errorf("%s: %s %v", form.ID, difference, err)
		}
	}
	if compared != len(forms) {
		t.Errorf("compared %d forms of %d", compared, len(forms))
	}
}

// withClass makes a record of a state pickle.
func withClass(state string) []byte { return []byte("cm\nC\n." + state) }

func TestEqualJudges(t *testing.T) {
	const same = ""
	cases := []struct {
		name, a, b string
		want       string // part of the difference
	}{
		{"memo or not", "(X\x01\x00\x00\x00aq\x00h\x00t.", "(X\x01\x00\x00\x00aX\x01\x00\x00\x00at.", same},
		{"one list twice", "(]q\x00h\x00t.", "(]]t.", "[1]: list shared in the first record"},
		{"two lists made one", "(]]t.", "(]q\x00h\x00t.", "[1]: list separate in the first record"},
		{"int and float", "K\x01.", "G?\xf0\x00\x00\x00\x00\x00\x00.", "int 1 became float 1"},
		{"int and bool", "K\x01.", "\x88.", "int 1 became True"},
		{"INT 01 is a bool", "I01\n.", "\x88.", same},
		{"int of any opcode", "L255L\n.", "K\xff.", same},
		{"negative int", "J\xff\xff\xff\xff.", "\x8a\x01\xff.", same},
		{"LONG4 with idle bytes", "\x8b\x03\x00\x00\x00\x05\x00\x00.", "K\x05.", same},
		{"negative zero", "G\x80\x00\x00\x00\x00\x00\x00\x00.", "F0.0\n.", "float"},
		{"not a number", "Fnan\n.", "cbuiltins\nfloat\nX\x03\x00\x00\x00nan\x85R.", same},
		{"not a number, with a payload", "G\x7f\xf8\x00\x00\x00\x00\x00\x01.",
			"c_operator\ngetitem\nc_struct\nunpack\nX\x02\x00\x00\x00<dC\x08\x01\x00\x00\x00\x00\x00\xf8\x7f\x86RK\x00\x86R.", same},
		{"another payload", "G\x7f\xf8\x00\x00\x00\x00\x00\x01.", "Fnan\n.", "float NaN"},
		{"infinity", "F-inf\n.", "cbuiltins\nfloat\nX\x04\x00\x00\x00-inf\x85R.", same},
		{"old ASCII string is text", "U\x02ab.", "X\x02\x00\x00\x00ab.", same},
		{"old string is not bytes", "U\x02ab.", "C\x02ab.", `str b"ab" became bytes b"ab"`},
		{"old string in quotes", "S'a\\n\\x41\\101\\q'\n.", "X\x06\x00\x00\x00a\nAA\\q.", same},
		{"raw unicode", "V\\u20ac\\\\u20ac\xe9\n.", "X\x0c\x00\x00\x00\xe2\x82\xac\\\\u20ac\xc3\xa9.", same},
		{"oid of Python 2", "(U\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nC\ntQ.", "(C\x08\x00\x00\x00\x00\x00\x00\x00\x05cm\nC\ntQ.", same},
		{"oid", "(C\x01\x05cm\nC\ntQ.", "(C\x01\x06cm\nC\ntQ.", "/pid[0]"},
		{"weak reference of Python 2", "](U\x01w(U\x02\x00\x05teQ.", "](U\x01w(C\x02\x00\x05teQ.", same},
		{"parts of persistent ids are not shared", "(]q\x00Qh\x00Qt.", "(]Q]Qt.", same},
		{"the state of what cannot change is not shared", "(cuuid\nUUID\n)\x81q\x00}X\x03\x00\x00\x00intK\x05sbh\x00t.",
			"(cuuid\nUUID\n)\x81}X\x03\x00\x00\x00intK\x05sbcuuid\nUUID\n)\x81}X\x03\x00\x00\x00intK\x05sbt.", same},
		{"a list in an id and twice beside it", "(]q\x00Qh\x00h\x00t.", "(]Q]]t.", "[2]: list shared in the first record"},
		{"date payload of Python 2", "cdatetime\ndate\nU\x04\x07\xe4\x01\x02\x85R.", "cdatetime\ndate\nC\x04\x07\xe4\x01\x02\x85R.", same},
		{"dict order", "}(K\x01NK\x02Nu.", "}(K\x02NK\x01Nu.", same},
		{"key twice", "}(K\x01NK\x01\x88u.", "}(K\x01\x88u.", same},
		{"key lost", "}(K\x01NK\x02Nu.", "}(K\x02Nu.", "lost int 1, gained none"},
		{"set order", "c__builtin__\nset\n](K\x01K\x02e\x85R.", "\x8f(K\x02K\x01\x90.", same},
		{"set element", "\x8f(K\x02\x90.", "\x8f(K\x01\x90.", "lost int 2, gained int 1"},
		{"frozenset", "(K\x01\x91.", "cbuiltins\nfrozenset\n](K\x01e\x85R.", same},
		{"bytes by protocol 2", "c_codecs\nencode\n(X\x03\x00\x00\x00a\xc3\xbfX\x06\x00\x00\x00latin1tR.", "C\x02a\xff.", same},
		{"bytes by protocol 2, none", "c__builtin__\nbytes\n)R.", "C\x00.", same},
		{"call is not new", "cm\nA\n)R.", "cm\nA\n)\x81.", "object of m.A (called) became object of m.A (made)"},
		{"new by a call", "cm\nA\nK\x01\x85\x81.", "ccopyreg\n__newobj__\ncm\nA\nK\x01\x86R.", same},
		{"new with keywords", "cm\nA\n)}K\x01K\x02s\x92.", "ccopyreg\n__newobj_ex__\n(cm\nA\n)}K\x01K\x02stR.", same},
		{"old-style instance", "(im\nA\n}b.", "cm\nA\n)\x81}b.", same},
		{"old-style instance with arguments", "(cm\nA\nK\x01o.", "cm\nA\nK\x01\x85R.", same},
		{"state and items reconstructed", "cm\nA\n)\x81(K\x01e(K\x02K\x03u}b.",
			"ccopy\n_reconstruct\n(NNccopyreg\n__newobj__\ncm\nA\n\x85}](K\x01e](K\x02K\x03\x86etR.", same},
		{"items of a dict subclass in order", "cm\nD\n)\x81(K\x01NK\x02Nu.", "cm\nD\n)\x81(K\x02NK\x01Nu.", ".key[0]"},
		{"ordered dict", "ccollections\nOrderedDict\n)R(K\x02NK\x01Nu.",
			"ccollections\nOrderedDict\n](K\x02N\x86K\x01N\x86e\x85R.", same},
		{"default dict", "ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(K\x02Nu.",
			"ccollections\ndefaultdict\n(c__builtin__\nlist\n](K\x02N\x86etR.", same},
		{"deque", "ccollections\ndeque\n(()K\x03ttR(K\x01e.", "x", "error"},
		{"time span", "cdatetime\ntimedelta\n(K\x00J\x80\x51\x01\x00K\x00tR.", "cdatetime\ntimedelta\n(K\x01K\x00K\x00tR.", same},
		{"state twice", "cm\nA\n)\x81}b}b.", "cm\nA\n)\x81}b.", "2 BUILD states became 1"},
		{"state by a setter", "cm\nA\n)\x81q\x00cm\nf\nh\x00}\x86R0.", "cm\nA\n)\x81.", "1 BUILD states became 0"},
		{"recursive list", "]q\x00h\x00a.", "]q\x00h\x00a.", same},
		{"recursive list cut", "]q\x00h\x00a.", "]]a.", "[0]: list"},
		{"recursive key", "cm\nA\n)\x81q\x00}(h\x00Nub.", "cm\nA\n)\x81q\x00}(h\x00Nub.", same},
		{"equal objects in a set", "\x8f(cm\nA\n)\x81cm\nA\n)\x81\x90.", "\x8f(cm\nA\n)\x81\x90.", "set elements differ"},
		{"unpickled", "](K\x01e.", "cpickle\nloads\nC\x05](K\x01e\x85R.", "error"},
		{"pickle in a pickle", "](K\x01e.", "cpickle\nloads\nC\x06](K\x01e.\x85R.", same},
		{"None by its type", "N.", "ctypes\nNoneType\n)R.", same},
		{"module", "cm\nA\n.", "cn\nA\n.", "global m:A became global n:A"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := Equal(withClass(c.a), withClass(c.b))
			if c.want == "error" {
				if err == nil {
					t.Fatalf("no error, but %q", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestEqualIgnoresSharingOnRequest(t *testing.T) {
	for _, c := range []struct{ a, b string }{
		{"(]q\x00h\x00t.", "(]]t."},
		{"(]]t.", "(]q\x00h\x00t."},
		{"]q\x00h\x00a.", "]]q\x00h\x00aa."}, // a list in itself, unrolled once
	} {
		if got, err := (Comparison{IgnoreSharing: true}).Equal(withClass(c.a), withClass(c.b)); got != "" || err != nil {
			t.Errorf("%q %q: %s %v", c.a, c.b, got, err)
		}
	}
}

func TestEqualTakesOldStringsForBytesOnRequest(t *testing.T) {
	a, b := withClass("U\x02\xe9!."), withClass("C\x02\xe9!.")
	if got, _ := Equal(a, b); got == "" {
		t.Error("a Python 2 string that is not ASCII counts as bytes without request")
	}
	if got, err := (Comparison{OldStringsAreBytes: true}).Equal(a, b); got != "" || err != nil {
		t.Errorf("%s %v", got, err)
	}
}

func TestEqualComparesClasses(t *testing.T) {
	cases := []struct{ a, b, want string }{
		{"cm\nC\n.", "X\x01\x00\x00\x00mX\x01\x00\x00\x00C\x86N\x86.", ""},
		{"cm\nC\n)\x86.", "U\x01mU\x01C\x86N\x86.", ""},
		{"cm\nC\nK\x01\x85\x86.", "cm\nC\n.", "constructor arguments"},
		{"cm\nC\nK\x01\x85\x86.", "cm\nC\nK\x02\x85\x86.", "class/args[0]: int 1 became int 2"},
		{"cm\nC\n.", "cm\nD\n.", "m.C became m.D"},
		{"N.", "cm\nC\n.", "none of the forms"},
	}
	for _, c := range cases {
		got, err := Equal([]byte(c.a+"N."), []byte(c.b+"N."))
		if err != nil || (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q %q: got %q %v, want %q", c.a, c.b, got, err, c.want)
		}
	}
}

// TestEqualEndsOnHostileRecords runs records that are small and mean something
// huge, or end early: the comparison must end, without a panic.
func TestEqualEndsOnHostileRecords(t *testing.T) {
	doubled := "]" + strings.Repeat("q\x00(h\x00h\x00t", 200) + "."
	packed := func(n int) string { // zlib.decompress of zeros
		var raw bytes.Buffer
		w := zlib.NewWriter(&raw)
		if _, err := w.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return "czlib\ndecompress\nB" + string(binary.LittleEndian.AppendUint32(nil, uint32(raw.Len()))) + raw.String() + "\x85R."
	}
	cases := []struct {
		name, state string
		want        string // part of the error, or "" for equal
	}{
		{"shared tuples, doubled 200 times", doubled, ""},
		{"shared tuples as a key", "}" + strings.TrimSuffix(doubled, ".") + "Ns.", ""},
		{"nesting of many lists", strings.Repeat("]", 150_000) + strings.Repeat("a", 149_999) + ".", "levels of nesting"},
		{"nesting of many tuples as a key", "})" + strings.Repeat("\x85", 150_000) + "Ns.", "too complex"},
		{"a bomb", packed(20 << 20), "too large"},
		{"a long number", "L" + strings.Repeat("9", 30_000) + "\n.", ""},
		{"a length without data", "T\xff\xff\xff\xff.", "unexpected end"},
		{"a memo of many entries", "]" + strings.Repeat("\x94", 100_000) + ".", ""},
		{"many lists, copied often", "](" + strings.Repeat("]", 10_000) + "e\x85q\x00" + strings.Repeat("cbuiltins\nlist\nh\x00R", 1000) + ".", "too large"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			record := withClass(c.state)
			got, err := Comparison{MaxMemory: 64 << 20}.Equal(record, record)
			if c.want == "" && (err != nil || got != "") {
				t.Errorf("%s %v", got, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	for _, v := range recordedVectors(t, "fwd") {
		record := v.record(t)
		for n := 0; n < len(record); n += 1 + len(record)/30 {
			// Only the end is asked for: most of these are errors, not all.
			_, _ = Equal(record[:n], record)
		}
	}
}

func FuzzEqual(f *testing.F) {
	for _, v := range recordedVectors(f, "fwd") {
		if record, err := hex.DecodeString(v.RecordHex); err == nil {
			f.Add(record)
		}
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		for _, c := range []Comparison{{MaxMemory: 16 << 20}, {MaxMemory: 16 << 20, IgnoreSharing: true}} {
			difference, err := c.Equal(record, append([]byte(nil), record...))
			if err == nil && difference != "" {
				t.Errorf("a record differs from itself: %s", difference)
			}
		}
	})
}
