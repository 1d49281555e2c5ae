package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
)

const (
	goodLine = `{"kind":"record","oid":"0x0000000000000001","tid":"0x0000000000000002","offset":4,"class":"a.B","reason":"r","pickle":"gAJOLg=="}` + "\n"
	oldLine  = `{"oid":"0x0000000000000002","tid":"0x0000000000000002","class":"a.B","reason":"r","pickle":"gAJOLg=="}` + "\n"
	blobLine = `{"kind":"blob","oid":"0x0000000000000001","tid":"0x0000000000000002","path":"/b","class":"","reason":"is not there"}` + "\n"
)

func TestMalformedListOfRejectsIsRefusedBeforeTheDestinationIsAsked(t *testing.T) {
	dst, err := pgjsonb.Open(t.Context(), pgjsonb.Config{DSN: "host=/nonexistent dbname=none"})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for name, c := range map[string]struct{ text, says string }{
		"no JSON":               {goodLine + "hello\n", "line 2: it is no line of a list of rejects"},
		"another kind of JSON":  {`["a"]`, "line 1: it is no line of a list of rejects"},
		"a field too much":      {`{"oid":"0x0000000000000001","x":1}`, `line 1: it is no line of a list of rejects (unknown field "x")`},
		"cut off":               {goodLine + blobLine + goodLine[:70], "line 3: it ends in the middle of an object"},
		"two objects in a line": {strings.TrimSpace(goodLine) + oldLine, "line 1: something stands behind its object"},
		"a kind of later":       {strings.Replace(goodLine, `"record"`, `"index"`, 1), `line 1: its kind "index" is none that this version knows`},
		"no oid":                {strings.Replace(goodLine, `"oid":"0x0000000000000001",`, "", 1), `line 1: its oid "" is not 0x and 16 hexadecimal digits`},
		"an oid in decimal":     {strings.Replace(goodLine, "0x0000000000000001", "1", 1), `line 1: its oid "1" is not`},
		"no tid":                {strings.Replace(goodLine, "0x0000000000000002", "0x00000000000000zz", 1), `line 1: its tid "0x00000000000000zz" is not`},
		"a tid beyond bigint":   {strings.Replace(goodLine, "0x0000000000000002", "0xffffffffffffffff", 1), "line 1: oid 0x0000000000000001, tid 0xffffffffffffffff: no destination holds such numbers"},
		"no base64":             {strings.Replace(goodLine, "gAJOLg==", "%%%%", 1), "line 1: it is no line of a list of rejects"},
		"twice, with other data": {goodLine + "\n" + strings.Replace(goodLine, "gAJOLg==", "gAJLAS4=", 1),
			"line 3: oid 0x0000000000000001, tid 0x0000000000000002 stands in line 1 already, with other data"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "rejects.jsonl")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Retry(t.Context(), path, dst, 0, false)
			var refused *dest.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, path+", "+c.says) {
				t.Errorf("%v\nwant %s", err, c.says)
			}
		})
	}
}

// read gives what a list holds.
func read(t *testing.T, text string) (given []dest.Reject, list *rejectsFile) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rejects.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	list = &rejectsFile{path: path, file: f, seen: map[seenKey]seenLine{}}
	if err := list.lines(t.Context(), func(n int, line *RejectLine) error {
		_, err := list.note(n, line)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := list.records(t.Context(), func(r *dest.Reject) error {
		given = append(given, *r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return given, list
}

func TestJoinedListsGiveEachRecordOnce(t *testing.T) {
	given, _ := read(t, goodLine+blobLine+"\n"+oldLine+goodLine+blobLine+strings.TrimSpace(oldLine))
	if len(given) != 2 || given[0].OID != 1 || given[0].TID != 2 || given[0].Pos != 4 || given[1].OID != 2 || string(given[1].Data) != "\x80\x02N." {
		t.Errorf("%+v", given)
	}
}

func TestLineLongerThanTheBuffer(t *testing.T) {
	long, err := json.Marshal(RejectLine{Kind: RejectedRecord, OID: "0x0000000000000001", TID: "0x0000000000000002", Pickle: bytes.Repeat([]byte("x"), 300_000)})
	if err != nil {
		t.Fatal(err)
	}
	if given, _ := read(t, string(long)+"\n"+oldLine); len(given) != 2 || len(given[0].Data) != 300_000 {
		t.Errorf("%d records", len(given))
	}
}

func TestListThatChangesWhileItIsRead(t *testing.T) {
	_, list := read(t, goodLine+oldLine)
	if err := os.WriteFile(list.path, []byte(goodLine+strings.Replace(oldLine, "gAJOLg==", "gAJLAS4=", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	err := list.records(context.Background(), func(*dest.Reject) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "line 2: it has changed while the file was read") {
		t.Errorf("%v", err)
	}
}

// A list that has become shorter would look as if all of it had been given.
func TestListThatIsCutOffWhileItIsRead(t *testing.T) {
	for name, text := range map[string]string{"a record less": goodLine + oldLine, "a blob less": goodLine + blobLine} {
		t.Run(name, func(t *testing.T) {
			_, list := read(t, text)
			if err := os.Truncate(list.path, int64(len(goodLine))); err != nil {
				t.Fatal(err)
			}
			err := list.records(t.Context(), func(*dest.Reject) error { return nil })
			var refused *dest.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "it listed 2 revisions, and now 1") {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzRejectLine reads what may stand in a list. What is taken is a revision that
// can be written back.
func FuzzRejectLine(f *testing.F) {
	for _, text := range []string{goodLine, oldLine, blobLine, "{}", `{"kind":"x"}`, `{"oid":"0x1"}`, `[]`} {
		f.Add([]byte(strings.TrimSpace(text)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		line, err := parseReject(text)
		if err != nil {
			return
		}
		key, err := revisionOf(line)
		if err != nil {
			return
		}
		again := RejectLine{Kind: key.kind, OID: key.oid.String(), TID: key.tid.String(), Pickle: line.Pickle}
		out, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseReject(out)
		if err != nil {
			t.Fatal(err)
		}
		if k, err := revisionOf(back); err != nil || k != key || !bytes.Equal(back.Pickle, line.Pickle) {
			t.Errorf("%v becomes %v, %v", key, k, err)
		}
	})
}
