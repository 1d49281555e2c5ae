package desttest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/source/filestorage"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Builder makes a Data.fs, transaction by transaction, and knows what a
// destination must hold after it.
type Builder struct {
	file  []byte
	last  map[zodb.OID]int64
	txns  []transaction
	where []int64 // end of each transaction
	lost  map[Revision]bool
}

type transaction struct {
	Transaction
	records []Record
}

// Transaction is the header of one transaction.
type Transaction struct {
	TID                          zodb.TID
	User, Description, Extension string
}

// Record is one record to write. Without Data and Back it is a deletion.
type Record struct {
	OID  zodb.OID
	Data []byte
	// Back is the position of an earlier record whose data this one has.
	Back int64
	// Rejected says that the destination cannot hold it.
	Rejected bool
	// Gone says that Back leads to a deletion.
	Gone bool
	// Blob is not nil in the record of a blob: the bytes of its file.
	Blob []byte
}

// BlobOf makes the record of a blob.
func BlobOf(oid zodb.OID, content []byte) Record {
	return Record{OID: oid, Data: []byte("\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N."), Blob: append([]byte{}, content...)}
}

// Lose lets the file of a blob be missing in what Source makes from now on; Find
// puts all of them back.
func (b *Builder) Lose(oid zodb.OID, tid zodb.TID) { b.lost[Revision{OID: oid, TID: tid}] = true }

// Find puts the lost files back.
func (b *Builder) Find() { clear(b.lost) }

// NewBuilder begins an empty database.
func NewBuilder() *Builder {
	return &Builder{file: []byte("FS30"), last: map[zodb.OID]int64{}, lost: map[Revision]bool{}}
}

// Commit appends a transaction and returns the positions of its records.
func (b *Builder) Commit(t Transaction, records ...Record) []int64 {
	begin := int64(len(b.file))
	head := binary.BigEndian.AppendUint64(nil, uint64(t.TID))
	head = binary.BigEndian.AppendUint64(head, 0) // its length, set below
	head = append(head, ' ')
	for _, s := range []string{t.User, t.Description, t.Extension} {
		head = binary.BigEndian.AppendUint16(head, uint16(len(s)))
	}
	b.file = append(b.file, head...)
	b.file = append(b.file, t.User+t.Description+t.Extension...)
	var at []int64
	for _, r := range records {
		pos := int64(len(b.file))
		at = append(at, pos)
		rec := binary.BigEndian.AppendUint64(nil, uint64(r.OID))
		rec = binary.BigEndian.AppendUint64(rec, uint64(t.TID))
		rec = binary.BigEndian.AppendUint64(rec, uint64(b.last[r.OID]))
		rec = binary.BigEndian.AppendUint64(rec, uint64(begin))
		rec = binary.BigEndian.AppendUint16(rec, 0)
		rec = binary.BigEndian.AppendUint64(rec, uint64(len(r.Data)))
		if len(r.Data) == 0 {
			rec = binary.BigEndian.AppendUint64(rec, uint64(r.Back))
		}
		b.file = append(append(b.file, rec...), r.Data...)
		b.last[r.OID] = pos
	}
	length := uint64(int64(len(b.file)) - begin)
	binary.BigEndian.PutUint64(b.file[begin+8:], length)
	b.file = binary.BigEndian.AppendUint64(b.file, length)
	b.txns = append(b.txns, transaction{t, slices.Clone(records)})
	b.where = append(b.where, int64(len(b.file)))
	return at
}

// Len is the number of transactions.
func (b *Builder) Len() int { return len(b.txns) }

// Prefix is the database as it was after its first n transactions.
func (b *Builder) Prefix(n int) *Builder {
	end := int64(4)
	if n > 0 {
		end = b.where[n-1]
	}
	// What is appended to it must not refer to records that it does not have.
	last := map[zodb.OID]int64{}
	for oid, pos := range b.last {
		if pos < end {
			last[oid] = pos
		}
	}
	return &Builder{file: b.file[:end:end], txns: b.txns[:n:n], where: b.where[:n:n], last: last, lost: b.lost}
}

// blobs calls fn for the blob of each revision. Of several records of an object
// in one transaction the last counts.
func (b *Builder) blobs(fn func(r Revision, content []byte)) {
	for _, t := range b.txns {
		last := map[zodb.OID]int{}
		for i, r := range t.records {
			last[r.OID] = i
		}
		for i, r := range t.records {
			if r.Blob != nil && last[r.OID] == i {
				fn(Revision{OID: r.OID, TID: t.TID}, r.Blob)
			}
		}
	}
}

// Bytes are those of a blob, nil if there is none.
func (b *Builder) Bytes(oid zodb.OID, tid zodb.TID) (found []byte) {
	b.blobs(func(r Revision, content []byte) {
		if r.OID == oid && r.TID == tid {
			found = content
		}
	})
	return found
}

// writeBlobs makes a blob directory. It returns "" if there is no blob.
func (b *Builder) writeBlobs(t testing.TB) (dir string) {
	t.Helper()
	b.blobs(func(r Revision, content []byte) {
		if dir == "" {
			dir = filepath.Join(t.TempDir(), "blobs")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, ".layout"), []byte("bushy"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if b.lost[r] {
			return
		}
		path := BlobPath(dir, r.OID, r.TID)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o400); err != nil {
			t.Fatal(err)
		}
	})
	return dir
}

// BlobPath is where a blob lies in a blob directory of layout bushy.
func BlobPath(dir string, oid zodb.OID, tid zodb.TID) string {
	path := dir
	for shift := 56; shift >= 0; shift -= 8 {
		path = filepath.Join(path, fmt.Sprintf("0x%02x", byte(oid>>shift)))
	}
	digits := strings.TrimLeft(fmt.Sprintf("%016x", uint64(tid)), "0")
	return filepath.Join(path, "0x"+strings.Repeat("0", len(digits)%2)+digits+".blob")
}

// Source writes the file and opens it. The end of the test closes it.
func (b *Builder) Source(t testing.TB) source.Log {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	if err := os.WriteFile(path, b.file, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := filestorage.Open(t.Context(), path, filestorage.Options{BlobDir: b.writeBlobs(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Contents is what a destination holds, as far as any kind of destination can
// tell.
type Contents struct {
	Transactions []zodb.TID
	// Current is the tid of the newest revision of each object that exists.
	Current map[zodb.OID]zodb.TID
	// Older are the other revisions, ascending; Gone ones say that the object
	// does not exist. History-preserving only.
	Older []Revision
	// Blobs are those that there are, by oid and tid.
	Blobs []Blob
}

// Blob is one revision of a blob.
type Blob struct {
	OID  zodb.OID
	TID  zodb.TID
	Size int64
}

// Revision is one revision of one object.
type Revision struct {
	OID  zodb.OID
	TID  zodb.TID
	Gone bool
}

// Want is what a destination must hold after a conversion.
func (b *Builder) Want(history bool) Contents {
	want := Contents{Current: map[zodb.OID]zodb.TID{}}
	type state struct {
		tid  zodb.TID
		gone bool
	}
	all := map[zodb.OID][]state{}
	for _, t := range b.txns {
		want.Transactions = append(want.Transactions, t.TID)
		for _, r := range t.records {
			gone := r.Rejected || r.Gone || r.Data == nil && r.Back == 0
			s := all[r.OID]
			if n := len(s); n > 0 && s[n-1].tid == t.TID {
				s = s[:n-1] // the last of one transaction counts
			}
			all[r.OID] = append(s, state{t.TID, gone})
		}
	}
	for oid, states := range all {
		newest := len(states) - 1
		for i, s := range states {
			switch {
			case i == newest && !s.gone:
				want.Current[oid] = s.tid
			case history:
				want.Older = append(want.Older, Revision{oid, s.tid, s.gone})
			}
		}
	}
	b.blobs(func(r Revision, content []byte) {
		if (history || want.Current[r.OID] == r.TID) && !b.lost[r] {
			want.Blobs = append(want.Blobs, Blob{r.OID, r.TID, int64(len(content))})
		}
	})
	slices.Sort(want.Transactions)
	SortRevisions(want.Older)
	slices.SortFunc(want.Blobs, func(a, b Blob) int {
		return cmp.Or(cmp.Compare(a.OID, b.OID), cmp.Compare(a.TID, b.TID))
	})
	return want
}

// SortRevisions brings revisions into the order that Contents has.
func SortRevisions(r []Revision) {
	slices.SortFunc(r, func(a, b Revision) int {
		if a.OID != b.OID {
			if a.OID < b.OID {
				return -1
			}
			return 1
		}
		if a.TID < b.TID {
			return -1
		}
		return 1
	})
}

// Data makes a record of a class with a state of one text.
func Data(module, name, text string) []byte {
	b := []byte("\x80\x02c" + module + "\n" + name + "\nq\x01.\x80\x02}q\x02X\x04\x00\x00\x00textq\x03X")
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(append(b, text...), "q\x04s."...)
}

// Bad is a record that is no pickle, which every destination that looks into
// records rejects.
func Bad() []byte { return []byte("\x80\x02cmod\nname\nq\x01.\x80\x02\xff\xff\xff.") }
