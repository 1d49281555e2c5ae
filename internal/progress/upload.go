package progress

import (
	"fmt"
	"strings"
	"time"

	"github.com/zodb-convert/zodb-convert/dest"
)

// UploadSummary is what came of uploading a manifest.
type UploadSummary struct {
	Manifest, Store string
	// What the manifest lists.
	Blobs, Bytes int64
	// Skipped are those that the bucket had already.
	Uploaded, UploadedBytes, Skipped, SkippedBytes int64
	Failures                                       int64
	Failed                                         []FailedBlob // the first of them
	// Stopped: not everything was tried.
	Stopped bool
	Elapsed time.Duration
}

// FailedBlob is a blob that cannot be uploaded.
type FailedBlob struct {
	OID    string `json:"oid" doc:"of the blob"`
	TID    string `json:"tid" doc:"of its transaction"`
	Path   string `json:"path" doc:"its file"`
	Reason string `json:"reason" doc:"the rest of the sentence: the blob file PATH ..."`
}

// UploadLine is "upload_summary".
type UploadLine struct {
	Head
	Manifest      string       `json:"manifest" doc:"the manifest read"`
	Store         string       `json:"store" doc:"the bucket and the prefix"`
	Blobs         int64        `json:"blobs" doc:"in the manifest"`
	Bytes         int64        `json:"bytes" doc:"their bytes"`
	Uploaded      int64        `json:"uploaded" doc:"blobs uploaded"`
	UploadedBytes int64        `json:"uploaded_bytes" doc:"their bytes"`
	Skipped       int64        `json:"skipped" doc:"blobs that the bucket had already"`
	SkippedBytes  int64        `json:"skipped_bytes" doc:"their bytes"`
	Failed        int64        `json:"failed" doc:"blobs that are missing, have changed or were not taken"`
	Failures      []FailedBlob `json:"failures" doc:"the first of them"`
	Stopped       bool         `json:"stopped" doc:"whether not everything was tried"`
	Elapsed       float64      `json:"elapsed" doc:"seconds"`
}

// Text gives the summary for people.
func (s *UploadSummary) Text() string {
	var b strings.Builder
	switch {
	case s.Stopped:
		fmt.Fprintf(&b, "\nStopped: what %s lists is not all in %s.\n\n", s.Manifest, s.Store)
	case s.Failures > 0:
		fmt.Fprintf(&b, "\nNot finished: what %s lists is in %s, but for %s.\n\n", s.Manifest, s.Store, Plural(s.Failures, "blob"))
	default:
		fmt.Fprintf(&b, "\nDone: what %s lists is in %s.\n\n", s.Manifest, s.Store)
	}
	row(&b, "uploaded", Count(s.Uploaded), Bytes(s.UploadedBytes))
	row(&b, "skipped", Count(s.Skipped), "in the bucket already, "+Bytes(s.SkippedBytes))
	row(&b, "failed", Count(s.Failures), "")
	if rest := s.Blobs - s.Uploaded - s.Skipped - s.Failures; rest > 0 {
		row(&b, "not tried", Count(rest), "")
	}
	row(&b, "time", Duration(s.Elapsed), "")
	if rate := float64(s.UploadedBytes) / s.Elapsed.Seconds(); s.Elapsed > 0 && rate >= 1 {
		row(&b, "rate", Bytes(int64(rate))+"/s", "")
	}
	if len(s.Failed) > 0 {
		b.WriteString("\nMissing or changed\n")
		for _, f := range s.Failed {
			wrap(&b, fmt.Sprintf("oid %s, tid %s: the blob file %s", f.OID, f.TID, f.Reason), "  ")
			wrap(&b, "  "+f.Path, "  ")
		}
		if rest := s.Failures - int64(min(len(s.Failed), dest.ListMax)); rest > 0 {
			fmt.Fprintf(&b, "  ... and %s more\n", Count(rest))
		}
	}
	return b.String()
}

// Uploaded implements Printer.
func (t *Text) Uploaded(s *UploadSummary) { t.line("%s", s.Text()) }

// Uploaded implements Printer.
func (j *JSON) Uploaded(s *UploadSummary) {
	line := UploadLine{
		Head: head("upload_summary", time.Now()), Manifest: s.Manifest, Store: s.Store,
		Blobs: s.Blobs, Bytes: s.Bytes, Uploaded: s.Uploaded, UploadedBytes: s.UploadedBytes,
		Skipped: s.Skipped, SkippedBytes: s.SkippedBytes,
		Failed: s.Failures, Failures: s.Failed, Stopped: s.Stopped, Elapsed: s.Elapsed.Seconds(),
	}
	if line.Failures == nil {
		line.Failures = []FailedBlob{}
	}
	j.print(line)
}

func (quiet) Uploaded(*UploadSummary) {}
