package dest

import (
	"context"
	"crypto/sha256"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Content is what a finished destination holds, in one view: whatever a site
// writes meanwhile is not seen. It is read only, and a role that may only read is
// enough.
//
// Its methods are called one after the other, beside those of its readers.
type Content interface {
	HistoryPreserving() bool

	// Reader opens one of as many readers as were asked for. Each is used by one
	// goroutine.
	Reader(ctx context.Context) (ContentReader, error)

	// LastTID is the highest tid of a transaction, 0 without any.
	LastTID(ctx context.Context) (zodb.TID, error)
	// TIDs calls fn for every transaction, Keys for every row of an object, in any
	// order. Of an object without history, and of the newest state of one with it,
	// the key is Current.
	TIDs(ctx context.Context, fn func(zodb.TID) error) error
	Keys(ctx context.Context, fn func(source.Key) error) error
	// Blobs calls fn for every row of a blob, by oid and tid. Of these only Key,
	// Size and S3Key are set.
	Blobs(ctx context.Context, fn func(*BlobRow) error) error

	// Schema tells what of the tables is not as a site needs it, and what is left
	// of a run. No new oid may be given out that is not above highest.
	Schema(ctx context.Context, highest zodb.OID) ([]Fault, error)

	// Objects is where the blobs are whose rows name an object in S3; nil if no
	// bucket is configured.
	Objects() ObjectStore

	Close() error
}

// ContentReader looks rows up. What is passed to a function is valid during the
// call only.
type ContentReader interface {
	// Rows calls fn for every row of the objects and revisions that keys name: for
	// a Current key the object's state whatever its tid, with history also the
	// revision of just that tid. index is that of the key. There may be no row, or
	// several.
	Rows(ctx context.Context, keys []source.Key, fn func(index int, row *Row) error) error
	// Blobs calls fn for every row of the blobs that keys name, with the SHA-256 of
	// the bytes that are in PostgreSQL, as the server reads them.
	Blobs(ctx context.Context, keys []source.Key, fn func(index int, row *BlobRow) error) error
	// Transactions calls fn for every transaction that tids name.
	Transactions(ctx context.Context, tids []zodb.TID, fn func(index int, row *TransactionRow) error) error
	Close() error
}

// Row is the row of an object or of one of its revisions.
type Row struct {
	// Key is where it stands: Current in the table of states.
	Key          source.Key
	Module, Name []byte
	// State is JSON text as PostgreSQL returns it, nil for NULL.
	State []byte
	// Size is the size of the record that the row was made of.
	Size int64
	Refs []int64
}

// BlobRow is the row of a blob.
type BlobRow struct {
	Key  source.Key
	Size int64 // as the row says
	// S3Key, without the prefix, names an object in S3; "" if there is none.
	S3Key string
	// InRow tells that the bytes are in PostgreSQL; Length and SHA256 are theirs.
	InRow  bool
	Length int64
	SHA256 [sha256.Size]byte
}

// TransactionRow is the row of a transaction.
type TransactionRow struct {
	TID                          zodb.TID
	User, Description, Extension []byte
}

// Fault is something of the schema that is not as it has to be.
type Fault struct {
	Kind    string `json:"kind" doc:"table, column, key, index, foreign key, trigger, function, sequence or leftover"`
	Name    string `json:"name" doc:"of it"`
	Problem string `json:"problem" doc:"the rest of the sentence"`
}

func (f Fault) String() string { return f.Kind + " " + f.Name + " " + f.Problem }

// ObjectStore is where large blobs are. It is safe for concurrent use.
type ObjectStore interface {
	// Name is for messages.
	Name() string
	// Look tells what the store says of an object; nil if there is none.
	Look(ctx context.Context, key string) (*Object, error)
	// Hash downloads an object and gives the size and SHA-256 of its bytes; a size
	// of -1 if there is none. read is told of bytes as they come.
	Hash(ctx context.Context, key string, read func(n int64)) (size int64, sum [sha256.Size]byte, err error)
	// List calls fn for every object that may be a blob, by key, without the
	// prefix. A *RefusedError says that it is not allowed, which concerns nothing
	// else.
	List(ctx context.Context, fn func(key string, size int64) error) error
}

// Object is what a store says of an object without giving its bytes.
type Object struct {
	Size int64
	// SHA256 is the digest that was recorded with it, in hexadecimal digits, MD5
	// what the store itself has computed; "" if it does not say. That of an object
	// of several parts is the MD5 of those of the parts.
	SHA256, MD5 string
	// Parts is how many there were, 0 for one that was sent as a whole.
	Parts int
}
