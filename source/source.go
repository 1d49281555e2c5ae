// Package source says what every source of a conversion gives: transactions
// and records, read in chunks.
//
// There are two kinds. A Log (FileStorage) only grows: a position in it means the
// same for ever, and what is new stands behind the old. A Table (RelStorage) is
// looked at through a view, a state that does not change while it is read; the
// next view may lack what the one before had. What is new in it is found by
// comparing keys.
//
// A source promises:
//   - It never writes, locks or repairs anything, and never reads past the end
//     that its first scan fixed.
//   - Read gives every record of the scanned range exactly once, or counts it
//     as dropped or superseded; the same source with the same options is cut
//     into the same chunks, so that an interrupted load can be continued by
//     chunk. A Table that has changed since is cut anew between the ranges that
//     are done.
//   - Memory is taken from the Budget before it is used, and never on the word
//     of a length field that was not checked against the size of the source.
//   - Damage is a *DamageError; nothing that was read before it is wrong.
//
// sourcetest holds the contract that each source passes.
package source

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// Source is one database to read. Its methods are called one after the other,
// except Data, which is safe for concurrent use.
type Source interface {
	// Scan reads the structure of the source, checks it, and fixes the end of
	// what Read will give. A second call may look further than the first.
	Scan(ctx context.Context, opts ScanOptions) (*Info, error)

	// Read gives the scanned range newest first, to load an empty destination.
	// It calls emit for each chunk that is not in opts.Done, in reading order,
	// one at a time. emit owns the chunk and must Release it.
	Read(ctx context.Context, opts ReadOptions, emit func(*Chunk) error) error

	// Data returns the pickles of a record: those in the chunk, those that a
	// back pointer leads to, inflated where they were compressed. The result is
	// valid until the chunk is released or scratch is used again; scratch grows
	// as needed. nil without an error means that the record is a deletion after
	// all (a back pointer that ends at an undone creation).
	Data(ctx context.Context, r *Record, scratch *[]byte) ([]byte, error)

	// Blob finds the bytes of the blob whose record is r; r.OID, r.TID and r.Pos
	// are enough. A *BlobError says that they are missing or cannot be read, and
	// concerns this blob only; any other error concerns the whole source. Safe
	// for concurrent use, also with Read.
	Blob(ctx context.Context, r *Record) (*Blob, error)

	// Transactions calls fn for every transaction of the scanned range, oldest
	// first. The bytes in the Transaction are valid during the call only.
	Transactions(ctx context.Context, fn func(*Transaction) error) error

	// Growth looks at the source again and counts the whole transactions beyond
	// the scanned end.
	Growth(ctx context.Context) (Growth, error)

	Close() error
}

// Log is a source that only grows.
type Log interface {
	Source

	// Follow gives the scanned range from the position from on, oldest first,
	// to catch up: every record of every transaction that starts at from or
	// later, in the order in which they were written, several records of one
	// oid included. Chunk.EndsTransaction tells where a destination may commit.
	Follow(ctx context.Context, from int64, opts ReadOptions, emit func(*Chunk) error) error

	// OIDs returns the distinct oids that the transaction at a position wrote,
	// ascending.
	OIDs(ctx context.Context, pos int64) ([]zodb.OID, error)
}

// Table is a source of rows that are replaced and removed. Each Scan takes a new
// view, of the state that is the newest then; Read, Differences, Transactions,
// Data and Blob are about that view.
//
// After Scan with ScanOptions.Until, Read gives what is not newer than that: a
// load that goes on in another view than it was begun in leaves out what came or
// changed since, and may lack what went. Differences mends both.
type Table interface {
	Source

	// Differences compares what a destination holds with the whole view, whatever
	// ScanOptions.Until was, and gives what must be written and removed so that
	// both are equal: chunks of records and transactions that the destination
	// lacks, and the keys of those that the source lacks (Chunk.Gone,
	// Chunk.GoneTransactions). Records come ascending by oid and tid; those that
	// stand there as Current and should not, or the other way round, are given
	// too. The last chunk, and only that, has EndsTransaction; without any
	// difference there is no chunk. It reads have to the end but never twice.
	//
	// A destination that holds something newer than the source is a *ForeignError.
	Differences(ctx context.Context, have *Have, opts DifferenceOptions, emit func(*Chunk) error) error

	// Idle lets go of the view, which otherwise lasts until the next Scan or
	// Close: a server keeps what was deleted as long as somebody may look at it.
	// Blob takes a view of its own then.
	Idle()
}

// DifferenceOptions control Table.Differences.
type DifferenceOptions struct {
	ReadOptions // without Done
	// Progress is told how many keys are compared, and about how many there are,
	// if it is not nil.
	Progress func(done, total int64)
}

// Key names a revision.
type Key struct {
	OID zodb.OID
	TID zodb.TID
	// Current: it is the object's state, not a part of its history. A deletion
	// never is.
	Current bool
	// Rejected: the destination knows it and cannot hold it, which counts as if it
	// did. Have only.
	Rejected bool
}

// Have is what a destination holds. An error ends a sequence.
type Have struct {
	// Transactions are ascending.
	Transactions iter.Seq2[zodb.TID, error]
	// Keys are ascending by oid, then tid, each once.
	Keys iter.Seq2[Key, error]
}

// ForeignError is a destination that somebody else has written to since the
// source was converted.
type ForeignError struct {
	TID     zodb.TID
	OID     zodb.OID
	Problem string // the rest of the sentence "the destination ..."
}

func (e *ForeignError) Error() string { return "the destination " + e.Problem }

// ScanOptions control Scan.
type ScanOptions struct {
	// Until is the End of an earlier Identity, to look at exactly that part
	// again; 0 for everything that is there now.
	Until int64
	// History tells that Read will ask for every revision.
	History bool
	// MaxSeen is how many bytes the set of seen oids may take, 0 for any. Of a
	// larger set Scan tells about how large it is (Info.Objects and
	// Info.SeenBytes are then estimates), and Read refuses to make it.
	MaxSeen int64
	// LargeBlob is from which size on blobs are listed in Info.LargeBlobs; 0 for
	// none.
	LargeBlob int64
	// Progress is told how far the scan is, if it is not nil.
	Progress func(done, total int64)
}

// ReadOptions control Read and Follow.
type ReadOptions struct {
	// History asks for every revision; without it only the newest record of
	// each oid is given and the others are counted as superseded.
	History bool
	// ChunkBytes is about how much of the source a chunk holds. A single larger
	// record is a chunk of its own.
	ChunkBytes int64
	// Done are the ranges that need not be read again, in any order. What they
	// decided (which oid was seen) is taken from the source's record headers.
	Done []Range
	// Budget bounds the bytes in flight. Never nil.
	Budget Budget
}

// Budget is a bound on bytes in flight. Acquire waits until n bytes are free;
// an n above the whole budget waits until it is alone.
type Budget interface {
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

// Range is a contiguous part of the source in reading order, From inclusive, To
// exclusive. What the numbers count is the source's business (FileStorage:
// file offsets). Sub orders what has the same number (RelStorage: the oids of a
// transaction); it is 0 where there is no such thing.
type Range struct {
	From    int64 `json:"from"`
	FromSub int64 `json:"from_sub,omitempty"`
	To      int64 `json:"to"`
	ToSub   int64 `json:"to_sub,omitempty"`
}

func (r Range) String() string {
	if r.FromSub == 0 && r.ToSub == 0 {
		return fmt.Sprintf("%d-%d", r.From, r.To)
	}
	return fmt.Sprintf("%d/%d-%d/%d", r.From, r.FromSub, r.To, r.ToSub)
}

// Chunk is what one destination transaction writes: the transactions whose
// header lies in Range, and the records that do.
type Chunk struct {
	Range        Range
	Transactions []Transaction
	Records      []Record // in reading order, without those that are counted below

	// Superseded counts older revisions that were left out because History was
	// not asked for; Dropped those that a later record of the same oid in the
	// same transaction replaces.
	Superseded, Dropped int64

	// Bytes is what the range occupies in the source, for progress.
	Bytes int64

	// EndsTransaction tells that the last record of the chunk is also the last
	// one of its transaction. Follow and Differences only.
	EndsTransaction bool

	// Gone and GoneTransactions are what the destination has and the source has
	// not. Of an oid that has a current record in the chunk, or elsewhere in the
	// source, only the named revisions go. Differences only.
	Gone             []Key
	GoneTransactions []zodb.TID

	// OnRelease gives the memory back. Set by the source, called by Release.
	OnRelease func()
}

// Release gives the chunk's memory back to the source and its budget. The
// chunk and everything in it must not be used afterwards. It may be called
// more than once.
func (c *Chunk) Release() {
	if f := c.OnRelease; f != nil {
		c.OnRelease = nil
		f()
	}
}

// Transaction is the header of one transaction.
type Transaction struct {
	TID zodb.TID
	// Pos and End are where it starts and where the next one would; 0 in a Table.
	Pos, End int64
	// User, Description and Extension are the bytes as stored. Extension is
	// empty or a pickled dict.
	User, Description, Extension []byte
}

// Record is one revision of one object.
type Record struct {
	OID zodb.OID
	TID zodb.TID // of its transaction
	Pos int64    // where it stands in the source, for messages; 0 in a Table
	// Raw is what the source stores; use Source.Data to get the pickles.
	Raw []byte
	// Back is the position of the record that holds the data, if not 0.
	Back int64
	// Deleted marks a record without data: the object does not exist from this
	// transaction on.
	Deleted bool
	// Current marks the newest record of its oid. Read and Differences only. In a
	// view that is newer than Until, an oid of which something newer was left out
	// has none.
	Current bool
}

// Identity names the part of a source that a run converts. Two identities of a
// Log are equal exactly if reading both gives the same transactions and records;
// those of a Table if they are the same database, looked at up to the same End.
type Identity struct {
	Kind string `json:"kind"` // "filestorage", ...
	Name string `json:"name"` // for messages: the absolute path; not compared
	End  int64  `json:"end"`  // position after the last transaction; in a Table the highest tid
	// Digest covers the header of every transaction and record before End; in a
	// Table what names the database on its server, and whether it keeps history.
	Digest string `json:"digest"`
}

// Same tells whether o is the same part of the same source. Name is left out: a
// file may have been moved.
func (i Identity) Same(o Identity) bool {
	return i.Kind == o.Kind && i.End == o.End && i.Digest == o.Digest
}

// Info is what a scan found.
type Info struct {
	Identity     Identity
	Transactions int64
	Records      int64 // data records, all revisions
	Objects      int64 // distinct oids, deleted ones included
	Bytes        int64 // size of the scanned range
	FirstTID     zodb.TID
	LastTID      zodb.TID // of the last transaction
	MaxTID       zodb.TID // the highest; differs from LastTID if tids fall
	MaxOID       zodb.OID
	HasRoot      bool
	Blobs        int64      // records that are blobs, all revisions
	BlobOIDs     []zodb.OID // the first of them
	// BlobDir is where the source looks for blobs, for messages (a path, or the
	// table that holds them); "" if it was not told where, and then the next four
	// are 0.
	BlobDir      string
	BlobBytes    int64 // bytes of all blobs that records refer to
	BlobFiles    int64 // blobs that were found in BlobDir
	MissingBlobs int64 // records whose blob is missing or cannot be read
	OrphanBlobs  int64 // blobs that no record refers to
	// FirstMissing are the first of these, in the order of the source.
	FirstMissing []LostBlob
	// LargeBlobs are those of ScanOptions.LargeBlob bytes or more.
	LargeBlobs []LargeBlob
	// Fileless are the blobs whose bytes are in no file, by size: Fileless[i]
	// counts those of less than 2^i bytes that are not in Fileless[i-1]. Without
	// ScanOptions.History, the newest of each oid. Table only.
	Fileless    [64]BlobCount
	LargestData int64 // bytes of the largest record
	SeenBytes   int64 // what the set of seen oids takes in memory
	// Undescribed: no transaction has a user or a description, because nothing
	// keeps them there.
	Undescribed bool
	Python2     bool // written by Python 2 (FileStorage: FS21)
	// Falling are places where a tid is not above the one before: the first of
	// FallingTIDs.
	Falling     []TIDOrder
	FallingTIDs int64
	// Packed counts transactions that a pack has marked; -1 where none is ever
	// marked.
	Packed int64
	// Tail is empty or says in one sentence what stands after End and why it
	// was left out.
	Tail string
	// Warnings are sentences about what is odd but harmless.
	Warnings []string
}

// BlobCount is how many blobs there are, and their bytes.
type BlobCount struct{ Blobs, Bytes int64 }

// LargeBlob is a blob that a destination may have no room for.
type LargeBlob struct {
	OID  zodb.OID
	TID  zodb.TID
	Size int64
	Path string
	// Current: its record is the newest one of its oid.
	Current bool
}

// LostBlob is a blob that is missing or cannot be read.
type LostBlob struct {
	*BlobError
	Pos int64 // of its record
}

// Blob is the bytes of one revision of a blob.
type Blob struct {
	OID  zodb.OID
	TID  zodb.TID
	Size int64
	// Path is the absolute path of the file that holds them; "" if it is none.
	Path string
	// Note is empty or says in one sentence that the bytes were not where they
	// should be (under another tid, in the other layout).
	Note string
	// Open opens them. It can be called again. Fewer or more than Size bytes,
	// and whatever concerns this blob only, is a *BlobError, from Open or from
	// a read.
	Open func(ctx context.Context) (BlobReader, error)
}

// Place is where the bytes are, for messages.
func (b *Blob) Place() string {
	if b.Path != "" {
		return b.Path
	}
	return "its copy in the database"
}

// BlobReader reads a blob. ReadAt is safe for concurrent use.
type BlobReader interface {
	io.ReaderAt
	io.Closer
}

// BlobError is a blob that is missing or cannot be read.
type BlobError struct {
	OID zodb.OID
	TID zodb.TID
	// Path is where it was looked for: a file, or a table.
	Path string
	// Missing: there is no such file or row. Else it is there and cannot be read.
	Missing bool
	// Gone: neither has the view the record any more, which is of an earlier one;
	// Differences tells to remove it. Table only, after Scan with Until.
	Gone bool
	// Problem is the rest of the sentence "PATH ...".
	Problem string
}

func (e *BlobError) Error() string {
	return fmt.Sprintf("blob oid %v, tid %v: %s %s", e.OID, e.TID, e.Path, e.Problem)
}

// TIDOrder is a transaction whose tid is not above all earlier ones.
type TIDOrder struct {
	TID  zodb.TID
	Pos  int64
	Prev zodb.TID // the highest tid before it, or the equal one
	// PrevPos is where Prev stands.
	PrevPos int64
	Equal   bool // some earlier transaction has the same tid
}

// Growth is what stands beyond the scanned end.
type Growth struct {
	Transactions int64
	Since        zodb.TID // tid of the first of them
	// Replaced tells that the name leads to another database by now (packed).
	Replaced bool
}

// DamageError is a source that breaks its own format.
type DamageError struct {
	Path    string
	Pos     int64    // 0 in a Table
	LastTID zodb.TID // last good transaction before it, 0 if none
	// Until is the end of what stands before it, as ScanOptions.Until takes it; 0
	// if nothing does, or if that cannot be told.
	Until   int64
	Problem string
	Hint    string // what to do
}

func (e *DamageError) Error() string {
	s := e.sentence()
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *DamageError) sentence() string {
	if e.Pos == 0 {
		return fmt.Sprintf("%s: damaged: %s", e.Path, e.Problem)
	}
	last := "no good transaction before it"
	if e.LastTID != 0 {
		last = fmt.Sprintf("last good transaction before it %v (%s)", e.LastTID, e.LastTID.Time().Format("2006-01-02 15:04:05"))
	}
	return fmt.Sprintf("%s: damaged at offset %d: %s; %s", e.Path, e.Pos, e.Problem, last)
}
