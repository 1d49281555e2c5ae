// Package zrecord inflates the records that zc.zlibstorage has compressed: the
// bytes ".z" and a zlib stream in the place of the pickles. Which records of a
// database are, is told by nothing else; most have some of both kinds.
//
// As there, what follows the stream is ignored, and a stream of nothing means the
// record itself.
package zrecord

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zlib"
)

// MaxInflated is the size above which a compressed record is refused.
const MaxInflated = 2 << 30

// Is tells whether a record is compressed. No pickle starts with a dot.
func Is(raw []byte) bool { return len(raw) >= 2 && raw[0] == '.' && raw[1] == 'z' }

// Inflater is the state of a decompressor, about 40 KB, to be used again, by one
// goroutine at a time. The library inflates records of 3 KB at 470 MB/s, the
// standard one at 360. The zero value is ready to use.
type Inflater struct {
	src bytes.Reader
	zr  io.ReadCloser
}

func (z *Inflater) reset(stream []byte) (err error) {
	z.src.Reset(stream)
	if z.zr == nil {
		z.zr, err = zlib.NewReader(&z.src)
		return err
	}
	return z.zr.(zlib.Resetter).Reset(&z.src, nil)
}

// Prefix inflates the first bytes of a compressed record into p, as far as it can
// be done, and gives their number.
func (z *Inflater) Prefix(raw, p []byte) int {
	if z.reset(raw[2:]) != nil {
		return 0
	}
	n, _ := io.ReadFull(z.zr, p)
	return n
}

// Inflate gives the data of a compressed record, in scratch, which grows as
// needed. An error is the end of a sentence about the record.
func (z *Inflater) Inflate(raw []byte, scratch *[]byte) ([]byte, error) {
	out, err := z.inflate(raw[2:], (*scratch)[:0])
	*scratch = out
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		out = append(out, raw...) // raw may be a buffer that is used again
		*scratch = out
	}
	return out, nil
}

// inflate appends what stream holds to out. Memory is taken as the output
// grows, never by a size that the stream claims.
func (z *Inflater) inflate(stream, out []byte) ([]byte, error) {
	if err := z.reset(stream); err != nil {
		return out, streamError(err)
	}
	for {
		if len(out) == cap(out) {
			out = append(out, make([]byte, max(4096, min(len(out), MaxInflated-len(out)+1)))...)[:len(out)]
		}
		n, err := z.zr.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case err == io.EOF:
			return out, nil
		case err != nil:
			return out, streamError(err)
		case len(out) > MaxInflated:
			return out, fmt.Errorf("it takes more than %d bytes", MaxInflated)
		}
	}
}

func streamError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends early")
	}
	return err
}
