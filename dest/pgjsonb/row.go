package pgjsonb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
	"github.com/zodb-convert/zodb-convert/source"
)

// The binary format of COPY: a signature, flags and the length of a header
// extension; then per row the number of fields and each with its length, -1 for
// NULL; -1 instead of a number of fields ends it. All numbers are big-endian.
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
)

const (
	jsonbVersion = 1  // the first byte of a binary jsonb; text follows
	int8OID      = 20 // element type of bigint[]
)

func appendInt16(b []byte, n int16) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }
func appendInt32(b []byte, n int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
func appendInt64(b []byte, n int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(n)) }

// appendBigint, appendInteger and appendText append a field with its length.
func appendBigint(b []byte, n int64) []byte  { return appendInt64(appendInt32(b, 8), n) }
func appendInteger(b []byte, n int32) []byte { return appendInt32(appendInt32(b, 4), n) }
func appendNull(b []byte) []byte             { return appendInt32(b, -1) }

func appendBoolean(b []byte, v bool) []byte {
	if v {
		return append(appendInt32(b, 1), 1)
	}
	return append(appendInt32(b, 1), 0)
}

func appendText[T string | []byte](b []byte, text T) []byte {
	return append(appendInt32(b, int32(len(text))), text...)
}

// appendRefs appends a bigint[] field. An empty array has no dimension.
func appendRefs(b []byte, refs []int64) []byte {
	if len(refs) == 0 {
		b = appendInt32(b, 12)
		b = appendInt32(b, 0) // dimensions
		b = appendInt32(b, 0) // no NULLs
		return appendInt32(b, int8OID)
	}
	b = appendInt32(b, int32(20+12*len(refs)))
	b = appendInt32(b, 1)
	b = appendInt32(b, 0)
	b = appendInt32(b, int8OID)
	b = appendInt32(b, int32(len(refs)))
	b = appendInt32(b, 1) // lower bound
	for _, r := range refs {
		b = appendBigint(b, r)
	}
	return b
}

// appendObjectHead and appendObjectTail are a row of object_state or
// object_history around the text of the state.
func appendObjectHead(b []byte, r *source.Record, row *jsonb.Row) []byte {
	return appendObjectFields(appendInt16(b, 7), r, row)
}

// appendObjectFields is appendObjectHead without the number of fields.
func appendObjectFields(b []byte, r *source.Record, row *jsonb.Row) []byte {
	b = appendBigint(b, int64(r.OID))
	b = appendBigint(b, int64(r.TID))
	b = appendText(b, row.Module)
	b = appendText(b, row.Name)
	b = appendInt32(b, int32(1+len(row.State)))
	return append(b, jsonbVersion)
}

func appendObjectTail(b []byte, size int, refs []int64) []byte {
	return appendRefs(appendInteger(b, int32(size)), refs)
}

// appendTombstone is a row of object_history that says that from this
// transaction on the object does not exist.
func appendTombstone(b []byte, r *source.Record) []byte {
	b = appendInt16(b, 7)
	b = appendBigint(b, int64(r.OID))
	b = appendBigint(b, int64(r.TID))
	b = appendText(b, "")
	b = appendText(b, "")
	b = appendNull(b)
	b = appendInteger(b, 0)
	return appendRefs(b, nil)
}

// rowStream is the io.Reader that COPY reads from: it makes one row when the
// bytes of the one before are gone, so that no more than one record's JSON is
// in memory. The state is not copied but handed out from where the codec left
// it, and the bytes of a blob are read to where they are sent from.
type rowStream struct {
	// next makes the next row with emit, or returns io.EOF.
	next func() error
	// err is what next failed with.
	err error

	head, tail []byte // reused
	segments   [3][]byte
	segment    int
	// body stands for the middle segment if it is not nil.
	body  *blobBody
	ended bool
	rows  int64
}

// reset makes the stream ready for another COPY.
func (s *rowStream) reset(next func() error) {
	s.closeBody()
	s.next, s.err, s.ended, s.rows = next, nil, false, 0
	s.head = append(s.head[:0], copyHeader...)
	s.segments = [3][]byte{s.head, nil, nil}
	s.segment = 0
}

// trim forgets the last rows, and gives large buffers back.
func (s *rowStream) trim() {
	s.closeBody()
	s.next, s.segments = nil, [3][]byte{}
	if cap(s.head) > keepBuffer {
		s.head = nil
	}
	if cap(s.tail) > keepBuffer {
		s.tail = nil
	}
}

// emit hands over a row whose head and tail were appended to the buffers.
func (s *rowStream) emit(state []byte) {
	s.segments = [3][]byte{s.head, state, s.tail}
	s.segment = 0
}

// emitBlob hands over a row with the bytes of a blob in its middle.
func (s *rowStream) emitBlob(b *blobBody) {
	s.emit(nil)
	s.body = b
}

func (s *rowStream) closeBody() {
	if s.body != nil {
		s.body.close()
		s.body = nil
	}
}

// Read gives the stream's bytes. pgx reads 64 kB at a time.
func (s *rowStream) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if s.segment == 1 && s.body != nil {
			k, err := s.body.read(p[n:])
			n += k
			if errors.Is(err, io.EOF) {
				s.closeBody()
			} else if err != nil {
				s.err = err
				return n, err
			}
			continue
		}
		if s.segment < len(s.segments) {
			k := copy(p[n:], s.segments[s.segment])
			n += k
			if s.segments[s.segment] = s.segments[s.segment][k:]; len(s.segments[s.segment]) == 0 {
				s.segment++
			}
			continue
		}
		if s.ended {
			return n, io.EOF
		}
		s.head, s.tail = s.head[:0], s.tail[:0]
		if err := s.next(); errors.Is(err, io.EOF) {
			s.ended = true
			s.head = append(s.head, copyTrailer...)
			s.emit(nil)
		} else if err != nil {
			s.err = err
			return n, err
		} else {
			s.rows++
		}
	}
	return n, nil
}

// blobBody is the bytes of a blob on their way into a row.
type blobBody struct {
	blob   *source.Blob
	reader source.BlobReader
	at     int64
	// told is told of bytes as they are read.
	told func(n int64)
}

// read reads on. io.EOF comes when all bytes were read, and there are no more
// of them than the row has said.
func (b *blobBody) read(p []byte) (int, error) {
	if b.at == b.blob.Size {
		var one [1]byte
		switch n, err := b.reader.ReadAt(one[:], b.at); {
		case n > 0:
			return 0, b.problem(fmt.Sprintf("has grown above %d bytes", b.blob.Size))
		case err == nil || errors.Is(err, io.EOF):
			return 0, io.EOF
		default:
			return 0, fmt.Errorf("read blob oid %v, tid %v: %w", b.blob.OID, b.blob.TID, err)
		}
	}
	p = p[:min(int64(len(p)), b.blob.Size-b.at)]
	n, err := b.reader.ReadAt(p, b.at)
	b.at += int64(n)
	b.told(int64(n))
	switch {
	case n == len(p) && (err == nil || errors.Is(err, io.EOF)):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, b.problem(fmt.Sprintf("ends after %d of %d bytes", b.at, b.blob.Size))
	}
	return n, fmt.Errorf("read blob oid %v, tid %v: %w", b.blob.OID, b.blob.TID, err)
}

func (b *blobBody) problem(text string) error {
	return &source.BlobError{OID: b.blob.OID, TID: b.blob.TID, Path: b.blob.Place(), Problem: text}
}

func (b *blobBody) close() { _ = b.reader.Close() } // it was only read

// lease lets a COPY read a stream until it is ended. When the connection breaks,
// CopyFrom returns while its goroutine may still be reading; without the lease
// that one would make rows of a chunk that somebody else has got meanwhile.
type lease struct {
	mu     sync.Mutex
	stream io.Reader // nil when ended
}

// Read reads from the stream.
func (l *lease) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream == nil {
		return 0, io.ErrClosedPipe
	}
	return l.stream.Read(p)
}

// end waits until nobody reads and lets nobody read any more.
func (l *lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stream = nil
}

// discard makes all rows without looking at them.
func (s *rowStream) discard(next func() error) error {
	s.reset(next)
	for {
		s.head, s.tail = s.head[:0], s.tail[:0]
		if err := next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
