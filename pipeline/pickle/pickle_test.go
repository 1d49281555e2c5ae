package pickle

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
)

// show prints a tree as Python would, more or less.
func show(m *Machine, r Ref) string {
	n := m.Node(r)
	list := func(refs []Ref) string {
		parts := make([]string, len(refs))
		for i, kid := range refs {
			parts[i] = show(m, kid)
		}
		return strings.Join(parts, " ")
	}
	switch n.Kind {
	case None:
		return "None"
	case Bool:
		return map[int64]string{0: "False", 1: "True"}[n.Int()]
	case Int:
		return fmt.Sprint(n.Int())
	case Long, LongText:
		return m.Decimal(n) + "L"
	case Float:
		return fmt.Sprintf("%gf", n.Float64())
	case Str:
		return fmt.Sprintf("%q", m.Data(n))
	case Py2Str:
		return fmt.Sprintf("s%q", m.Data(n))
	case Bytes:
		return fmt.Sprintf("b%q", m.Data(n))
	case ByteArray:
		return fmt.Sprintf("bytearray(%q)", m.Data(n))
	case Global:
		return string(m.Data(m.Node(Ref(n.A)))) + "." + string(m.Data(m.Node(Ref(n.B))))
	case List:
		return "[" + list(m.Kids(n)) + "]"
	case Tuple:
		return "(" + list(m.Kids(n)) + ")"
	case Dict:
		return "{" + list(m.Kids(n)) + "}"
	case Set:
		return "set{" + list(m.Kids(n)) + "}"
	case FrozenSet:
		return "frozen{" + list(m.Kids(n)) + "}"
	case PersID:
		return "ref(" + show(m, Ref(n.A)) + ")"
	case Built:
		return show(m, Ref(n.A)) + "<-" + show(m, Ref(n.B))
	}
	s := [...]string{"call", "new", "newex", "inst"}[n.Made] + " " + show(m, Ref(n.A)) + show(m, Ref(n.B))
	if a := m.Appends(n); a != nil {
		s += "+[" + list(a) + "]"
	}
	if d := m.Items(n); d != nil {
		s += "+{" + list(d) + "}"
	}
	if state, ok := n.State(); ok {
		s += "<-" + show(m, state)
	}
	return s
}

func TestLoadReadsEveryOpcode(t *testing.T) {
	cases := []struct{ name, pickle, want string }{
		{"none and bools", "(N\x88\x89t.", "(None True False)"},
		{"small integers", "(K\x00K\xffM\x00\x01J\xff\xff\xff\xfft.", "(0 255 256 -1)"},
		{"integers as text", "(I00\nI01\nI5\nI-70000\nI9223372036854775808\nt.", "(False True 5 -70000 9223372036854775808L)"},
		{"long as text", "(L5L\nL-5\nL123456789012345678901234567890L\nt.", "(5 -5 123456789012345678901234567890L)"},
		{"long", "(\x8a\x00\x8a\x01\xff\x8a\x02\xff\x00\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00\x8b\x01\x00\x00\x00\x80t.", "(0 -1 255 18446744073709551615L -128)"},
		{"long with idle bytes", "\x8a\x0b\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00.", "5"},
		{"floats", "(G?\xf8\x00\x00\x00\x00\x00\x00F1.5\nFnan\nF-inf\nF1e400\nt.", "(1.5f 1.5f NaNf -Inff +Inff)"},
		{"Python 2 strings", "(S'a\\n\\x41\\101\\'\\q'\nS\"\"  \nU\x02\xff!T\x01\x00\x00\x00xt.", `(s"a\nAA'\\q" s"" s"\xff!" s"x")`},
		{"unicode as text", "(V\\u20ac\\\\u0041\\U0001f600\xe9\nVx\\y\nt.", `("€\\\\u0041😀é" "x\\y")`},
		{"text", "(X\x02\x00\x00\x00\xc3\xa9\x8c\x01a\x8d\x01\x00\x00\x00\x00\x00\x00\x00bt.", `("é" "a" "b")`},
		{"bytes", "(C\x01aB\x01\x00\x00\x00b\x8e\x01\x00\x00\x00\x00\x00\x00\x00c\x96\x01\x00\x00\x00\x00\x00\x00\x00dt.", `(b"a" b"b" b"c" bytearray("d"))`},
		{"lists", "(](K\x01K\x02e]K\x03a(lt.", "([1 2] [3] [])"},
		{"tuples", "()K\x01\x85K\x01K\x02\x86K\x01K\x02K\x03\x87(tt.", "(() (1) (1 2) (1 2 3) ())"},
		{"dicts", "(}(K\x01K\x02K\x01K\x03u}K\x04K\x05s(K\x06K\x07dt.", "({1 2 1 3} {4 5} {6 7})"},
		{"sets", "(\x8f(K\x01K\x02\x90(K\x03\x91t.", "(set{1 2} frozen{3})"},
		{"globals", "(cm\nA.B\nX\x01\x00\x00\x00mX\x01\x00\x00\x00C\x93t.", "(m.A.B m.C)"},
		{"calls", "(cm\nf\nK\x01\x85Rcm\nC\n)\x81cm\nC\n)}\x92(im\nC\n(K\x01im\nC\n(cm\nC\nK\x02ot.", "(call m.f(1) new m.C() newex m.C(m.C () {}) inst m.C() inst m.C(1) inst m.C(2))"},
		{"items and state", "cm\nC\n)\x81(K\x01K\x02e(K\x03K\x04u(K\x05K\x06u}b.", "new m.C()+[1 2]+{3 4 5 6}<-{}"},
		{"state of a list", "]}b.", "[]<-{}"},
		{"persistent ids", "(P42\nC\x01aQt.", `(ref(b"42") ref(b"a"))`},
		{"memo", "(]q\x00]r\x01\x00\x00\x00]\x94h\x00j\x01\x00\x00\x00g2\np7\nh\x07t.", "([] [] [] [] [] [] [])"},
		{"memo far away", "(]r\xff\xff\xff\xffK\x01j\xff\xff\xff\xfft.", "([] 1 [])"},
		{"a number put twice", "(K\x01q\x000K\x02q\x00h\x00t.", "(2 2)"},
		{"stack", "(K\x01K\x020(K\x03K\x0412(0t.", "(1 1)"},
		{"framing", "\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00K\x01.", "1"},
		{"appends in turn", "(]q\x00]q\x010h\x00t.", "([] [])"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var m Machine
			m.Reset([]byte(c.pickle))
			r, err := m.Load()
			if err != nil {
				t.Fatal(err)
			}
			if got := show(&m, r); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if m.Offset() != len(c.pickle) {
				t.Errorf("stopped at %d of %d", m.Offset(), len(c.pickle))
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	cases := []struct {
		name, pickle, problem string
		offset                int
	}{
		{"nothing", "", "ends before STOP", 0},
		{"no STOP", "N", "ends before STOP", 1},
		{"STOP alone", ".", "needs more values", 0},
		{"STOP within a mark", "N(.", "needs more values", 2},
		{"unknown opcode", "N\xff.", "no such opcode", 1},
		{"extension 0", "\x83\x00\x00.", "no such code", 0},
		{"a negative extension", "\x84\x00\x00\x00\x80.", "no such code", 0},
		{"buffer", "\x97.", "outside of the pickle", 0},
		{"cut text", "X\x05\x00\x00\x00abc", "ends within", 0},
		{"a length of 4 GiB", "X\xff\xff\xff\xff.", "ends within", 0},
		{"a length of 16 EiB", "\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "ends within", 0},
		{"negative length", "\x8b\xff\xff\xff\xff.", "ends within", 0},
		{"a line without end", "I12", "ends within", 0},
		{"no number", "I1x\n.", "no decimal integer", 0},
		{"octal", "I017\n.", "no decimal integer", 0},
		{"no float", "F0x1p3\n.", "no number", 0},
		{"open quote", "S'a\n.", "not quoted", 0},
		{"backslash at the end", "S'\\'\n.", "backslash", 0},
		{"half an escape", "S'\\x4'\n.", "cut short", 0},
		{"half a unicode escape", "V\\u12\n.", "cut short", 0},
		{"beyond Unicode", "V\\U00110000\n.", "no character", 0},
		{"POP of nothing", "0.", "needs more values", 0},
		{"POP_MARK without mark", "N1.", "no mark", 1},
		{"TUPLE without mark", "Nt.", "no mark", 1},
		{"TUPLE2 across a mark", "N(N\x86.", "needs more values", 3},
		{"APPENDS at the bottom", "(Ne.", "needs more values", 2},
		{"APPEND to a dict", "}Na.", "appended to a dict", 2},
		{"SETITEM of a list", "]NNs.", "no items", 3},
		{"odd items", "}(Nu.", "no value", 3},
		{"ADDITEMS to a list", "](N\x90.", "added to a list", 3},
		{"state of None", "N}b.", "no state", 2},
		{"a memo number that was not put", "h\x05.", "nothing was put", 0},
		{"names that are no text", "NN\x93.", "not text", 2},
		{"OBJ without class", "(o.", "needs more values", 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var m Machine
			m.Reset([]byte(c.pickle))
			r, err := m.Load()
			var problem *Error
			if !errors.As(err, &problem) {
				t.Fatalf("%v, error %v", r, err)
			}
			if !strings.Contains(problem.Problem(), c.problem) || problem.Offset != c.offset {
				t.Errorf("%v, want %q at %d", err, c.problem, c.offset)
			}
		})
	}
}

func TestTwoPicklesShareTheMemo(t *testing.T) {
	var m Machine
	m.Reset([]byte("cm\nC\nq\x00.]q\x01(h\x00h\x00e.rest"))
	class, err := m.Load()
	if err != nil {
		t.Fatal(err)
	}
	state, err := m.Load()
	if err != nil {
		t.Fatal(err)
	}
	if got := show(&m, class) + " " + show(&m, state); got != "m.C [m.C m.C]" {
		t.Error(got)
	}
	m.Reset([]byte("h\x00."))
	if _, err := m.Load(); err == nil {
		t.Error("the memo outlives Reset")
	}
}

func TestOddities(t *testing.T) {
	cases := []struct {
		name, pickle string
		want         Oddity
	}{
		{"plain", "](K\x01K\x02e.", 0},
		{"shared", "]q\x00h\x00\x86.", 0},
		{"a list in itself", "]q\x00h\x00a.", MutatedAfterUse},
		{"a dict in itself", "}q\x00K\x01h\x00s.", MutatedAfterUse},
		{"a set in itself", "\x8fq\x00(h\x00\x90.", MutatedAfterUse},
		{"an object in its state", "cm\nC\n)\x81q\x00h\x00b.", MutatedAfterUse},
		{"an object in its items", "cm\nC\n)\x81q\x00h\x00a.", MutatedAfterUse},
		{"a copy of the stack in itself", "]2a.", MutatedAfterUse},
		{"a state on a list after use", "]q\x00h\x00}b\x86.", MutatedAfterUse},
		{"nothing appended after use", "]q\x00h\x00(e\x86.", 0},
		{"two states", "cm\nC\n)\x81}b}b.", BuiltTwice},
		{"two states of a list", "]}b}b.", BuiltTwice},
		{"a call dropped", "Ncm\nf\n)R0.", Dropped},
		{"a call dropped with a mark", "N(cm\nf\n)R1.", Dropped},
		{"a call left over", "cm\nf\n)RN.", Dropped},
		{"an atom dropped", "NK\x010.", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var m Machine
			m.Reset([]byte(c.pickle))
			if _, err := m.Load(); err != nil {
				t.Fatal(err)
			}
			if got := m.Odd(); got.Oddity != c.want {
				t.Errorf("got %v, want %d", got, c.want)
			}
		})
	}
}

func TestTextIsClassified(t *testing.T) {
	cases := []struct {
		text string
		want Flags
	}{
		{"", Plain | ASCII}, {"title", Plain | ASCII}, {"a longer plain text~", Plain | ASCII},
		{"é", Plain}, {"ein längerer Text über Äpfel", Plain}, {"日本語のテキスト", Plain}, {"😀 and more", Plain},
		{"a\nb", ASCII}, {"12345678\x00", ASCII}, {"1234567890\"", ASCII}, {"back\\slash and more", ASCII}, {"é\n", 0}, {"12345678é\t", 0},
		{"\xed\xa0\x80", Surrogates}, {"long enough text \xed\xbf\xbf tail", Surrogates}, {"\xed\xa0\xbd\xed\xb8\x80", Surrogates},
		{"\xff", Invalid}, {"12345678\xc3", Invalid}, {"\xc0\x80", Invalid}, {"\xe0\x80\x80", Invalid}, {"\xf4\x90\x80\x80", Invalid}, {"\xed\xa0", Invalid},
	}
	for _, c := range cases {
		for shift := range 9 {
			text := strings.Repeat("x", shift) + c.text
			if got := classify([]byte(text)); got != c.want {
				t.Errorf("%q: %b, want %b", text, got, c.want)
			}
		}
	}
}

// TestContainersGrow appends to lists in turn, so that none stays at the end.
func TestContainersGrow(t *testing.T) {
	const lists, rounds = 3, 120
	var p bytes.Buffer
	p.WriteString("(")
	for i := range lists {
		fmt.Fprintf(&p, "]q%c", i)
	}
	p.WriteString("t0")
	for r := range rounds {
		for i := range lists {
			fmt.Fprintf(&p, "h%cK%ca0", i, r)
		}
	}
	for i := range lists {
		fmt.Fprintf(&p, "h%c", i)
	}
	p.WriteString("\x87.")
	var m Machine
	m.Reset(p.Bytes())
	r, err := m.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range m.Kids(m.Node(r)) {
		kids := m.Kids(m.Node(list))
		if len(kids) != rounds {
			t.Fatalf("%d elements", len(kids))
		}
		for i, kid := range kids {
			if m.Node(kid).Int() != int64(i) {
				t.Fatalf("element %d is %s", i, show(&m, kid))
			}
		}
	}
	if len(m.kids) > 4*lists*rounds {
		t.Errorf("%d kids for %d elements", len(m.kids), lists*rounds)
	}
}

// TestMemoryIsBoundedByTheInput decodes what asks for much and holds little.
func TestMemoryIsBoundedByTheInput(t *testing.T) {
	cases := map[string]string{
		"memo numbers":       "N" + strings.Repeat("r\xff\xff\xff\x7fr\x00\x00\x00\x40", 100_000) + ".",
		"memo numbers apart": "N" + sparsePuts(100_000) + ".",
		"marks":              strings.Repeat("(", 1_000_000),
		"empty lists":        strings.Repeat("]", 1_000_000),
		"nested lists":       strings.Repeat("]", 500_000) + strings.Repeat("a", 499_999) + ".",
		"duplicates":         "]" + strings.Repeat("2", 1_000_000),
		"lengths":            "(" + strings.Repeat("X\xff\xff\xff\x7f", 100),
	}
	for name, input := range cases {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var m Machine
			m.Reset([]byte(input))
			_, _ = m.Load()
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20+150*uint64(len(input)) {
				t.Errorf("%d bytes for %d", took, len(input))
			}
		})
	}
}

func sparsePuts(n int) string {
	var b []byte
	for i := range n {
		b = binary.LittleEndian.AppendUint32(append(b, 'r'), uint32(i*40_000))
	}
	return string(b)
}

func TestResetGivesLargeMemoryBack(t *testing.T) {
	var m Machine
	m.Reset([]byte("(" + strings.Repeat("]", 2_000_000) + "t."))
	if _, err := m.Load(); err != nil {
		t.Fatal(err)
	}
	m.Reset([]byte("N."))
	if cap(m.nodes) > keepNodes || cap(m.kids) > keepNodes || cap(m.stack) > keepNodes {
		t.Errorf("kept %d nodes, %d kids, %d of the stack", cap(m.nodes), cap(m.kids), cap(m.stack))
	}
	if _, err := m.Load(); err != nil {
		t.Fatal(err)
	}
}

func TestNodeIsSmall(t *testing.T) {
	if got := binary.Size(Node{}); got > 24 {
		t.Errorf("%d bytes", got)
	}
}

func TestFloatText(t *testing.T) {
	for text, bits := range map[string]uint64{"nan": 0x7ff8 << 48, "-nan": 0xfff8 << 48, " 1.5 ": math.Float64bits(1.5), "-0.0": 1 << 63} {
		if v, ok := parseFloat(text); !ok || math.Float64bits(v) != bits {
			t.Errorf("%q: %x", text, math.Float64bits(v))
		}
	}
}

// FuzzLoad reads any bytes as the two pickles of a record.
func FuzzLoad(f *testing.F) {
	file, err := os.Open("../../testdata/codec-vectors.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var v struct {
			Record string `json:"record_hex"`
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			f.Fatal(err)
		}
		if record, err := hex.DecodeString(v.Record); err == nil && len(record) > 0 {
			f.Add(record)
		}
	}
	if err := lines.Err(); err != nil {
		f.Fatal(err)
	}
	var used Machine
	f.Fuzz(func(t *testing.T, record []byte) {
		used.Reset(record)
		for range 2 {
			r, err := used.Load()
			if err != nil {
				var problem *Error
				if !errors.As(err, &problem) || problem.Offset < 0 || problem.Offset > len(record) || problem.Error() == "" {
					t.Fatalf("%#v", err)
				}
				break
			}
			checkTree(t, &used, r, len(record))
		}
		if limit := int(sharedNodes) + 4*len(record) + 16; len(used.nodes) > limit {
			t.Errorf("%d nodes for %d bytes", len(used.nodes), len(record))
		}
	})
}

// checkTree walks a graph without recursion: every reference leads to a node, all
// data are there, and a cycle was noted.
func checkTree(t *testing.T, m *Machine, root Ref, size int) {
	t.Helper()
	const open, closed = 1, 2
	state := make(map[Ref]uint8)
	stack := []Ref{root}
	for len(stack) > 0 {
		r := stack[len(stack)-1]
		if state[r] != 0 {
			state[r] = closed
			stack = stack[:len(stack)-1]
			continue
		}
		state[r] = open
		for _, kid := range parts(m, r) {
			if int(kid) >= len(m.nodes) {
				t.Fatalf("node %d of %d", kid, len(m.nodes))
			}
			switch state[kid] {
			case 0:
				stack = append(stack, kid)
			case open:
				if m.Odd().Oddity == 0 {
					t.Fatalf("a cycle of %d bytes that was not noted", size)
				}
			}
		}
	}
}

func parts(m *Machine, r Ref) []Ref {
	n := m.Node(r)
	switch n.Kind {
	case List, Tuple, Dict, Set, FrozenSet:
		return m.Kids(n)
	case PersID:
		return []Ref{Ref(n.A)}
	case Global, Built:
		return []Ref{Ref(n.A), Ref(n.B)}
	case Call:
		all := []Ref{Ref(n.A), Ref(n.B)}
		if s, ok := n.State(); ok {
			all = append(all, s)
		}
		return append(append(all, m.Items(n)...), m.Appends(n)...)
	case Str, Py2Str, Bytes, ByteArray, Long, LongText:
		_ = m.Data(n)
	}
	return nil
}
