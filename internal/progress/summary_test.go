package progress

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

// example is a run with something of everything.
func example() *Summary {
	tid := zodb.TIDAt(time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC))
	r := &pipeline.Report{
		Source:      source.Info{Identity: source.Identity{Name: "/srv/plone/var/filestorage/Data.fs"}},
		Destination: "zodb_new on db.example.org:5432",
		Totals: dest.Result{
			Transactions: 1204331, Objects: 8112004, Deleted: 1204, Superseded: 3220113, Dropped: 2, Rejected: 12,
			SourceBytes: 10952166604, PickleBytes: 10522669875, StateBytes: 15139909632,
			Forms: map[string]int64{"escaped key": 4, "set": 120000, "bytes": 12, "zz": 12},
			FormClasses: map[string]*dest.ClassCounts{
				"set":           {Classes: []dest.ClassCount{{Class: "shop.Order", Records: 3}, {Class: "plone.app.blob.field.BlobWrapper", Records: 80000}}, Others: 12},
				"shared-copied": {Classes: []dest.ClassCount{{Class: "shop.Order", Records: 1}}},
				"escaped key":   {Classes: []dest.ClassCount{{Class: "shop.Order", Records: 4}}},
			},
			NewCodec: 12, NewCodecClasses: []string{"plone.app.blob.field.BlobWrapper", "Products.CMFPlone.Portal.Site"},
			Metadata: 11, Escaped: []dest.Escaped{{TID: tid, User: []byte("M\xfcller"), Description: nil}},
		},
		Phases: []pipeline.PhaseTime{
			{Phase: pipeline.Scanning, Took: 40200 * time.Millisecond, Bytes: 10952166604},
			{Phase: pipeline.Preparing, Took: 100 * time.Millisecond},
			{Phase: pipeline.Loading, Took: 161 * time.Second, Bytes: 10952166604},
			{Phase: pipeline.Finishing, Took: 50 * time.Second},
			{Phase: pipeline.Scanning, Took: time.Second},
		},
		PeakMemory: 211 * mb,
		Growth:     source.Growth{Transactions: 17, Since: tid},
		Rejects: []dest.Reject{
			{OID: 4711, TID: tid, Pos: 123456, Class: "Products.Broken.Thing", Reason: "opcode EXT1 needs the extension registry of the writing program, which is not part of the database"},
			{OID: 4712, TID: tid, Pos: 123999, Reason: "the pickle ends early"},
		},
		RejectsFile: "rejects.jsonl",
		Notes:       []string{"the highest transaction 0x03ffffffffffffff lies in the future (2099-01-01 00:00:00): every new commit will get a tid above it"},
	}
	return &Summary{Outcome: Complete, Report: r, Workers: 8, Elapsed: 252 * time.Second,
		Next: []string{"The source has got 17 transactions since. To add what is new:", "  zodb-convert -w 8 --incremental migrate.toml"}}
}

// withBlobs is a run with blobs of every kind.
func withBlobs(s *Summary) {
	r := s.Report
	r.Source.Blobs, r.Source.BlobBytes, r.Source.BlobDir = 700, 5<<30, "/srv/plone/var/blobstorage"
	r.Source.MissingBlobs, r.Source.OrphanBlobs = 12, 3
	r.Totals.Blobs, r.Totals.BlobBytes, r.Totals.S3Blobs, r.Totals.S3Bytes, r.Totals.MissingBlobs = 400, 20*mb, 80, 4<<30, 12
	r.Manifest, r.Owed, r.OwedBytes = "owed.tsv", 80, 4<<30
	for i := range dest.ListMax {
		r.MissingBlobs = append(r.MissingBlobs, dest.MissingBlob{OID: zodb.OID(i), TID: 5, Pos: 77,
			Path: "/srv/plone/var/blobstorage/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x0000000000000005.blob", Reason: "is missing"})
	}
}

func TestSummaryText(t *testing.T) {
	plain := func() *Summary {
		return &Summary{Outcome: Complete, Workers: 2, Elapsed: 1500 * time.Millisecond, Report: &pipeline.Report{
			Source:      source.Info{Identity: source.Identity{Name: "Data.fs"}},
			Destination: "zodb on localhost:5432",
			Totals:      dest.Result{Transactions: 2, Objects: 3, SourceBytes: 4000},
			Phases:      []pipeline.PhaseTime{{Phase: pipeline.Loading, Took: time.Second, Bytes: 4000}},
			PeakMemory:  30 * mb,
		}}
	}
	for _, c := range []struct {
		name   string
		change func(*Summary) *Summary
	}{
		{"plain", func(s *Summary) *Summary { return s }},
		{"everything", func(*Summary) *Summary { return example() }},
		{"history-preserving", func(s *Summary) *Summary {
			s.HistoryPreserving, s.Report.Totals.Revisions = true, 7
			return s
		}},
		{"dry-run", func(s *Summary) *Summary {
			s.Outcome, s.Report.DryRun = DryRun, true
			return s
		}},
		{"rejected", func(s *Summary) *Summary {
			s.Outcome, s.Report.Totals.Rejected = Rejected, 1
			s.Report.Rejects = []dest.Reject{{OID: 1, TID: 2, Pos: 3, Class: "a.B", Reason: "no form"}}
			return s
		}},
		{"blobs", func(s *Summary) *Summary {
			withBlobs(s)
			return s
		}},
		{"python2", func(s *Summary) *Summary {
			s.Report.Totals.Forms = map[string]int64{"python2-text": 12000, "python2-bytes": 1}
			return s
		}},
		{"missing-blobs", func(s *Summary) *Summary {
			withBlobs(s)
			s.Outcome, s.Report.Totals.Rejected = Rejected, 1
			return s
		}},
		{"dry-run-blobs", func(s *Summary) *Summary {
			withBlobs(s)
			s.Outcome, s.Report.MissingBlobs, s.Report.Manifest, s.Report.Owed, s.Report.OwedBytes = DryRun, nil, "", 0, 0
			s.Report.Totals.MissingBlobs = 2
			return s
		}},
		{"dry-run-without-older-blobs", func(s *Summary) *Summary {
			withBlobs(s)
			s.Outcome, s.Report.MissingBlobs, s.Report.Manifest, s.Report.Owed, s.Report.OwedBytes = DryRun, nil, "", 0, 0
			s.Report.Source.Blobs = 492
			return s
		}},
		{"nothing-new", func(s *Summary) *Summary {
			s.Report.Totals, s.Report.Source.Transactions = dest.Result{}, 2
			return s
		}},
		{"table", func(s *Summary) *Summary {
			r := s.Report
			r.Source.Identity = source.Identity{Kind: "relstorage", Name: `RelStorage in PostgreSQL database "zodb" on db:5432`}
			r.Source.Transactions = 2
			r.Totals = dest.Result{Gone: 3, GoneTransactions: 1, Rejected: 1, MissingBlobs: 2}
			r.Rejects = []dest.Reject{{OID: 1, TID: 2, Class: "a.B", Reason: "no form"}}
			r.MissingBlobs = []dest.MissingBlob{
				{OID: 3, TID: 2, Path: "the table blob_chunk", Reason: "has no row of it"},
				{OID: 4, TID: 2, Path: "/srv/blobs/0x04/0x02.blob", Reason: "is missing, and the table blob_chunk has no row of it"},
			}
			return s
		}},
		{"resumed", func(s *Summary) *Summary {
			s.Report.Resumed, s.Report.CaughtUp = true, 1
			return s
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			golden(t, "summary-"+c.name+".golden", c.change(plain()).Text()+"\n")
		})
	}
}

// The fullest summary that can be must still be readable.
func TestSummaryListsAreCapped(t *testing.T) {
	s := example()
	for i := range 100 {
		s.Report.Totals.Forms[fmt.Sprintf("form %d", i)] = int64(i + 1)
		s.Report.Totals.Escaped = append(s.Report.Totals.Escaped, dest.Escaped{TID: zodb.TID(i), User: bytes.Repeat([]byte{0xff}, 1000)})
		s.Report.Rejects = append(s.Report.Rejects, dest.Reject{Reason: "x"})
		s.Report.Notes = append(s.Report.Notes, fmt.Sprint("note ", i))
	}
	s.Report.Totals.Metadata, s.Report.Totals.Rejected = 1000, 1000
	text := s.Text()
	if n := strings.Count(text, "\n"); n > 80 {
		t.Errorf("%d lines", n)
	}
	for _, want := range []string{"... and 94 more", "... and 990 more", "... and 91 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestSummaryJSON(t *testing.T) {
	var out bytes.Buffer
	NewJSON(&out, false).Summary(example())
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "time")
	indented, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "summary.json", string(indented)+"\n")
}

// A run without anything special has empty lists, never null.
func TestJSONHasNoNullLists(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out, false)
	j.Summary(&Summary{Report: &pipeline.Report{}})
	j.Problem(&Problem{ExitCode: 2, Message: "m"})
	j.Report(Status{Left: 1})
	if strings.Contains(out.String(), "null") {
		t.Error(out.String())
	}
}

// Every number that a conversion counts must reach the user both ways.
func TestEveryCountIsShown(t *testing.T) {
	s := &Summary{Report: &pipeline.Report{}, HistoryPreserving: true}
	both := &Summary{Report: &pipeline.Report{}}
	v := reflect.ValueOf(&s.Report.Totals).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int64 && f.CanSet() {
			f.SetInt(int64(10001 + i*37))
		}
	}
	both.Report.Totals = s.Report.Totals
	var out bytes.Buffer
	NewJSON(&out, false).Summary(s)
	text := s.Text() + both.Text()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() != reflect.Int64 {
			continue
		}
		name := v.Type().Field(i).Name
		if !strings.Contains(out.String(), fmt.Sprint(f.Int())) {
			t.Errorf("%s is not in the JSON summary", name)
		}
		shown := Count(f.Int())
		if strings.HasSuffix(name, "Bytes") {
			shown = Bytes(f.Int())
		}
		if !strings.Contains(text, shown) {
			t.Errorf("%s is not in the text summary", name)
		}
	}
}
