package pgjsonb

import "io"

const (
	// aheadBlocks blocks of aheadBytes are read before they are asked for.
	aheadBlocks = 4
	aheadBytes  = 64 << 10
)

// ahead reads a stream in a goroutine of its own, so that the files of blobs are
// opened and read while the server works on what it has got: a COPY alone does
// one after the other.
type ahead struct {
	full chan block
	free chan []byte
	quit chan struct{}
	rest []byte // of the block that is being handed out
	held []byte // that block
	err  error  // behind it
}

type block struct {
	bytes []byte
	err   error
}

// readAhead begins to read from a stream. close ends it.
func readAhead(from io.Reader) *ahead {
	a := &ahead{full: make(chan block, aheadBlocks), free: make(chan []byte, aheadBlocks), quit: make(chan struct{})}
	for range aheadBlocks {
		a.free <- make([]byte, aheadBytes)
	}
	go a.fill(from)
	return a
}

func (a *ahead) fill(from io.Reader) {
	defer close(a.full)
	for {
		var p []byte
		select {
		case p = <-a.free:
		case <-a.quit:
			return
		}
		n, err := from.Read(p[:aheadBytes])
		a.full <- block{p[:n], err} // there is room for every block
		if err != nil {
			return
		}
	}
}

// Read gives the bytes of the stream, and then its error.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.held != nil {
			a.free <- a.held
			a.held = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.held, a.rest, a.err = b.bytes, b.bytes, b.err
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// close waits until nothing is read any more.
func (a *ahead) close() {
	close(a.quit)
	for range a.full { // what nobody has asked for
	}
}
