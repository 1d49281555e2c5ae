package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/inspect"
)

// fullReport has something in every place.
func fullReport() *inspect.Report {
	return &inspect.Report{
		Version: inspect.Version,
		Source: inspect.Source{
			Name: "/srv/plone/var/filestorage/Data.fs", Kind: "filestorage", Bytes: 3 << 30, Python2: true, OldStrings: 12,
			Transactions: 12345, First: "0x0392f1e6a0000000", FirstTime: time.Date(2014, 3, 1, 12, 0, 0, 0, time.UTC),
			Last: "0x03f0000000000000", LastTime: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC),
			HighestOID: "0x000000000001e240", Records: 250000, Objects: 123456, Current: 123000, Deleted: 456,
			BackRecords: 7, Compressed: 8, MaxRevision: 5, Revisions: []int64{100000, 20000, 3456},
			Packed: "yes", PackedTIDs: 1, DataBytes: 2 << 30,
			Classes:      []inspect.Class{{Class: "BTrees.OOBTree.OOBucket", Objects: 100000, Bytes: 1 << 30}, {Class: "app.na\nme.Odd", Objects: 2, Bytes: 300}},
			OtherClasses: inspect.Class{Objects: 22998, Bytes: 1 << 20, Classes: 31},
			Protocols:    []inspect.Protocol{{Protocol: 1, Records: 1}, {Protocol: 2, Records: 122999}},
			Largest:      []inspect.LargeRecord{{OID: "0x0000000000000005", TID: "0x03f0000000000000", Bytes: 20 << 20}},
			Blobs: inspect.Blobs{Place: "/srv/plone/var/blobstorage", Records: 30, Current: 20, Found: 28, Bytes: 5 << 30, CurrentBytes: 4 << 30,
				Missing: 2, Orphaned: 3},
			Tail: "100 bytes from offset 4000 to the end of the file were left out", Damage: "at offset 3000: no record", Falling: 1,
			HistoryFree:       inspect.Rows{Transactions: 12345, Objects: 122990, Rejected: 3, Blobs: 20, BlobBytes: 4 << 30},
			HistoryPreserving: inspect.Rows{Transactions: 12345, Objects: 122990, Revisions: 127000, Rejected: 5, Blobs: 28, BlobBytes: 5 << 30},
		},
		Altered: []inspect.Finding{
			{Cause: inspect.Rejected, Text: "the destination cannot hold these records", Count: 10,
				Classes: []inspect.Class{{Class: "app.Odd", Objects: 6}, {Objects: 3}}, First: []string{"0x0000000000000007", "0x0000000000000008"},
				Reasons: []inspect.Reason{{Reason: "a key holds NUL", Records: 9}, {Reason: "truncated pickle", Records: 1}}},
			{Cause: "shared-copied", Text: "parts that were shared become copies", Count: 1, First: []string{"0x0000000000000009"}},
		},
		Notable: []inspect.Finding{
			{Cause: inspect.Dangling, Text: "the objects that these refer to do not exist", Count: 1, Values: 2, First: []string{"0x0000000000000001"}, Targets: []string{"0x00000000000000ff"}},
			{Cause: inspect.CrossDatabase, Text: "these refer to other databases", Count: 2, Targets: []string{"other"}},
			{Cause: inspect.Unreachable, Text: "no path of references leads from the root to these objects, which a pack would remove", Count: 4},
		},
		Estimate: &inspect.Estimate{StateBytes: 3 << 30, DiskBytes: 9 << 30, BlobBytes: 1 << 30, S3Bytes: 3 << 30, S3Rate: 200 << 20, WALBytes: 12 << 30, Seconds: 754},
		Destination: &dest.Survey{
			Name: "PostgreSQL at localhost, database zodb_new", Problem: "it already holds 3 objects in 1 transaction", Server: "15.4", Role: "zodb", Encoding: "UTF8",
			LZ4: true, Condition: dest.Filled, Rights: []dest.Right{{Name: "CREATE in schema public", Hint: "GRANT CREATE ON SCHEMA public TO zodb"}, {Name: "CONNECT", Granted: true, Needed: true}, {Name: "EXECUTE on pg_x", Needed: true}},
			Connections: dest.Connections{Limit: "max_connections", Max: 97, Used: 7, Free: 90, Needed: 9},
			Settings:    []dest.Setting{{Name: "max_wal_size", Value: "1GB", Load: "8GB, for fewer checkpoints"}, {Name: "autovacuum on object_state", Value: "off", After: "on"}, {Name: "fsync", Value: "on"}, {Name: "synchronous_standby_names"}},
			Objects:     3, Bytes: 8192, BlobTiers: []dest.BlobTier{{Tier: "s3", Blobs: 2, Bytes: 300 << 10, Largest: 200 << 10}},
			Faults: []dest.Fault{{Kind: "index", Name: "idx_object_class", Problem: "is missing"}}, Advice: []string{"Raise max_wal_size for the load."}, Notes: []string{"the bytes are an estimate"},
		},
		Notes: []string{"the clock of the server is an hour ahead"},
	}
}

const fullText = `Source /srv/plone/var/filestorage/Data.fs
  kind               filestorage, written by Python 2
  size               3.0 GB without blobs
  transactions       12,345
  first              2014-03-01 12:00:00 UTC, tid 0x0392f1e6a0000000
  last               2024-05-06 07:08:09 UTC, tid 0x03f0000000000000
  records            250,000, all revisions; 7 by undo; 8 compressed
  objects            123,000, 456 deleted
  highest oid        0x000000000001e240
  revisions          1: 100,000 objects, 2 to 3: 20,000 objects, 4 to 7: 3,456 objects; at most 5
  packed             yes, it has marked 1 transaction
  pickles            2.0 GB, by protocol 1: 1 current record, 2: 122,999 current records
  Python 2 strings   in 12 current records
  falling tids       1 transaction
  left out           100 bytes from offset 4000 to the end of the file were left out
  damage             at offset 3000: no record

Classes of current objects
  objects   bytes  class
  100,000  1.0 GB  BTrees.OOBTree.OOBucket
        2   300 B  app.na\x0ame.Odd
   22,998  1.0 MB  31 other classes

Largest records
  bytes                 oid  class
  20 MB  0x0000000000000005  unknown class

Blobs
  records            30, 20 of them current
  found              28, 5.0 GB, in /srv/plone/var/blobstorage
                     4.0 GB of them current
  missing            2
  orphaned           3 that no record refers to

What will not arrive unchanged
              10  rejected
                  the destination cannot hold these records
                  9 a key holds NUL
                  1 truncated pickle
                  app.Odd 6, unknown class 3, other classes 1
                  first 0x0000000000000007, 0x0000000000000008
               1  shared-copied
                  parts that were shared become copies
                  0x0000000000000009

Worth knowing
               1  dangling-reference
                  the objects that these refer to do not exist
                  2 values in these records
                  0x0000000000000001 to 0x00000000000000ff
               2  cross-database
                  these refer to other databases
                  first other
               4  unreachable
                  no path of references leads from the root to these objects, which a pack would
                  remove

What a destination will hold
  history-free  history-preserving
        12,345              12,345  transactions
       122,990             122,990  objects
             0             127,000  older revisions
             3                   5  rejected records
            20                  28  blobs
        4.0 GB              5.0 GB  bytes of blobs

About what a conversion takes, into a destination without history
  time               12m34s with as many workers as this inspection had, if the server keeps up and
                     S3 takes 200 MB a second
  JSON               3.0 GB
  disk               9.0 GB for tables and indexes, 1.0 GB of it blobs
  write-ahead log    12 GB, of which the server keeps max_wal_size or little more at a time
  S3                 3.0 GB

Destination PostgreSQL at localhost, database zodb_new
  problem            it already holds 3 objects in 1 transaction
  server             15.4
  role               zodb
  encoding           UTF8
  condition          filled
  lz4                yes
  connections        90 of 97 are free (max_connections), a conversion takes 9
  may not            CREATE in schema public: GRANT CREATE ON SCHEMA public TO zodb
  may not            EXECUTE on pg_x, which a conversion needs
  holds              3 objects, 8.0 KB
  blobs in s3        2, 300 KB, the largest 200 KB
  fault              index idx_object_class is missing

Settings of the server
  max_wal_size 1GB
      for the load    8GB, for fewer checkpoints
  autovacuum on object_state off
      afterwards      on
  well as they are: fsync on, synchronous_standby_names ''

Advice
  Raise max_wal_size for the load.

Notes on the destination
  the bytes are an estimate

Notes
  the clock of the server is an hour ahead

Result
  Not everything will arrive unchanged: rejected 10, shared-copied 1.
`

func TestInspectionAsText(t *testing.T) {
	if d := gocmp.Diff(fullText, inspectText(fullReport(), nil)); d != "" {
		t.Error(d)
	}
}

func TestResultOfAnInspectionIsItsLastLine(t *testing.T) {
	clean := &inspect.Report{}
	for _, c := range []struct {
		name   string
		report *inspect.Report
		unread error
		want   string
	}{
		{"clean", clean, nil, "\n  Everything will arrive unchanged.\n"},
		{"altered", fullReport(), nil, "\n  Not everything will arrive unchanged: rejected 10, shared-copied 1.\n"},
		{"damaged", clean, errors.New("damage"), "\n  The source could not be read to its end: the numbers are of what stands before the damage.\n"},
	} {
		if text := inspectText(c.report, c.unread); !strings.HasSuffix(text, c.want) {
			t.Errorf("%s: it ends with %q", c.name, text[max(0, len(text)-120):])
		}
	}
}

// What is not there leaves no empty lines, headings or names behind.
func TestInspectionOfNothingIsShort(t *testing.T) {
	const want = `Source Data.fs
  kind               filestorage
  size               4 B without blobs
  transactions       0
  records            0, all revisions
  objects            0, 0 deleted
  packed             unknown
  pickles            0 B

Blobs
  records            none

What a destination will hold
  history-free  history-preserving
             0                   0  transactions
             0                   0  objects
             0                   0  older revisions
             0                   0  rejected records
             0                   0  blobs
           0 B                 0 B  bytes of blobs

Destination PostgreSQL at nowhere
  problem            it cannot be reached

Result
  Everything will arrive unchanged.
`
	r := &inspect.Report{
		Source:      inspect.Source{Name: "Data.fs", Kind: "filestorage", Bytes: 4, Packed: "unknown"},
		Destination: &dest.Survey{Name: "PostgreSQL at nowhere", Problem: "it cannot be reached"},
	}
	if d := gocmp.Diff(want, inspectText(r, nil)); d != "" {
		t.Error(d)
	}
}
