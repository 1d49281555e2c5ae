package s3test

import (
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
)

// Proxy is a server of its own before the S3 server.
type Proxy struct {
	*faults.Proxy
	addr string
}

// NewProxy starts a proxy before the server, over http. The end of the test
// stops it.
func (s *Server) NewProxy(tb testing.TB, settings faults.Settings) *Proxy {
	tb.Helper()
	target, err := url.Parse(s.URL())
	if err != nil {
		tb.Fatal(err)
	}
	transport, err := s.transport()
	if err != nil {
		tb.Fatalf("s3test: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("s3test: %v", err)
	}
	p := &Proxy{faults.New(target, transport, settings), listener.Addr().String()}
	server := &http.Server{Handler: p.Proxy}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	tb.Cleanup(func() {
		p.Close()
		server.Close()
		<-done
		transport.CloseIdleConnections()
	})
	return p
}

// URL is the endpoint.
func (p *Proxy) URL() string { return "http://" + p.addr }
