package progress

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// retried is what came of a list with something of everything.
func retried() *RetrySummary {
	tid := zodb.TIDAt(time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC))
	r := &pipeline.RetryReport{
		File: "rejects.jsonl", Destination: "zodb_new on db.example.org:5432", Records: 1217, Blobs: 2,
		RetryResult: dest.RetryResult{
			Written: 1200, There: 1, BlobsThere: 5, Forms: map[string]int64{"capsule-cycle": 3, "set": 12}, NewCodec: 4, Unreferenced: 1, Dangling: 3,
			Superseded: 2, SupersededByListed: 1, Rejected: 14,
			Outdated:  []dest.Outdated{{OID: 7, TID: tid, Newer: tid + 1}, {OID: 8, TID: tid, Newer: tid + 2, Listed: true}},
			Sessions:  []string{"process 12 (application \"unnamed\", user zope, idle, since 2024-05-06 07:08:09)"},
			PackBegan: true, Unwatched: "the connection was lost",
		},
	}
	for i := range zodb.OID(14) {
		r.Rejects = append(r.Rejects, dest.Reject{OID: 100 + i, TID: tid, Pos: 663, Class: "shop.odd.WithNewargs", Reason: "the object needs arguments to be made (__getnewargs__)"})
	}
	return &RetrySummary{Report: r, Elapsed: 1234 * time.Millisecond, Next: []string{"Keep rejects.jsonl."}}
}

func TestRetrySummary(t *testing.T) {
	golden(t, "retry.golden", retried().Text(false)+"\n")
	if text := retried().Text(true); strings.Count(text, "__getnewargs__") != 14 || strings.Contains(text, "more") {
		t.Errorf("not all is listed:\n%s", text)
	}
	short := retried()
	short.Report.Rejects = short.Report.Rejects[:dest.ListMax]
	if text := short.Text(false); text != retried().Text(false) {
		t.Errorf("with the first rejects only:\n%s", text)
	}
	whole := &RetrySummary{Report: &pipeline.RetryReport{File: "r", Destination: "d", Records: 1, RetryResult: dest.RetryResult{Written: 1}}}
	if text := whole.Text(false); !strings.HasPrefix(text, "\nDone: everything that r lists is in d.\n") {
		t.Errorf("%s", text)
	}
	empty := &RetrySummary{Report: &pipeline.RetryReport{File: "r", Destination: "d"}}
	if text := empty.Text(false); !strings.HasPrefix(text, "\nDone: r is empty.\n") {
		t.Errorf("%s", text)
	}
}

// Programs get everything, and lists where there is nothing.
func TestRetrySummaryAsJSON(t *testing.T) {
	var out bytes.Buffer
	NewJSON(&out, false).Retried(retried())
	var line RetryLine
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line.Event != "retry_summary" || len(line.Rejected) != 14 || len(line.Superseded) != 2 || line.Superseded[0].Listed || !line.Superseded[1].Listed || line.Superseded[0].Newer <= line.Superseded[0].TID || line.Written != 1200 {
		t.Errorf("%+v", line)
	}
	out.Reset()
	NewJSON(&out, false).Retried(&RetrySummary{Report: &pipeline.RetryReport{}})
	if text := out.String(); strings.Contains(text, "null") {
		t.Errorf("%s", text)
	}
}
