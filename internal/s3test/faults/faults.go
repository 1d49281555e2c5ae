// Package faults is a proxy before an S3 server that plays a bad network and a
// bad server: answers 500 and 503, cut connections, lost answers, stalls,
// changed bytes, latency and a limited rate.
//
// The Host header is passed on, because clients sign it.
package faults

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault is something bad that happens to a request.
type Fault string

const (
	Error500 Fault = "500"     // answered without asking the server
	Error503 Fault = "503"     // SlowDown, in the same way
	Reset    Fault = "reset"   // the connection is cut in the middle of the body
	Lost     Fault = "lost"    // the server does what it is asked, then the connection is cut
	Stall    Fault = "stall"   // nothing is read and nothing answered
	Delay    Fault = "delay"   // it takes longer, by Settings.Delay
	Corrupt  Fault = "corrupt" // one byte of the body is changed; a request without a body is spared
)

// All are all faults.
func All() []Fault { return []Fault{Error500, Error503, Reset, Lost, Stall, Delay, Corrupt} }

// Parse reads a list such as "500,reset".
func Parse(list string) ([]Fault, error) {
	var kinds []Fault
	for name := range strings.SplitSeq(list, ",") {
		switch f := Fault(strings.TrimSpace(name)); {
		case f == "":
		case slices.Contains(All(), f):
			kinds = append(kinds, f)
		default:
			return nil, fmt.Errorf("unknown fault %q; there are %v", name, All())
		}
	}
	return kinds, nil
}

// Settings say what happens to requests.
type Settings struct {
	// Kinds are the faults, of which one is drawn for each request that Every or
	// Share chooses.
	Kinds []Fault
	// Every chooses each n-th request; Share a random part of them (0.33) that
	// depends on Seed. Only limits them to methods, if it is not empty.
	Every int
	Share float64
	Seed  uint64
	Only  []string
	// Delay is that of the fault Delay. StallTime bounds Stall; 0 is 2 minutes.
	Delay, StallTime time.Duration
	// Latency comes before every request, faulty or not.
	Latency time.Duration
	// Rate is how many bytes of bodies pass in a second, of all requests and
	// answers together; 0 for any number.
	Rate int64
}

// Proxy is an http.Handler. Close ends stalls.
type Proxy struct {
	reverse *httputil.ReverseProxy
	closed  chan struct{}
	once    sync.Once

	mu       sync.Mutex
	settings Settings
	random   *rand.Rand
	requests int
	injected map[Fault]int
	busy     int
	mostBusy int
	free     time.Time // when the rate allows the next byte
}

// New makes a proxy before target. transport is how the server is reached; nil
// for a plain one.
func New(target *url.URL, transport *http.Transport, settings Settings) *Proxy {
	if transport == nil {
		transport = &http.Transport{}
	}
	transport.MaxIdleConnsPerHost = 256
	transport.DisableCompression = true
	transport.ExpectContinueTimeout = time.Second
	p := &Proxy{closed: make(chan struct{}), injected: make(map[Fault]int)}
	p.reverse = &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = r.In.Host
		},
		// A server that is away shows as a connection that ends.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(r *http.Response) error {
			r.Body = &limited{ReadCloser: r.Body, proxy: p, ctx: r.Request.Context()}
			return nil
		},
	}
	p.Set(settings)
	return p
}

// Set changes what happens from now on. Draws begin anew.
func (p *Proxy) Set(s Settings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settings, p.random, p.free = s, rand.New(rand.NewPCG(s.Seed, 1)), time.Time{}
	p.requests = 0
}

// Injected counts the faults so far.
func (p *Proxy) Injected() map[Fault]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := make(map[Fault]int)
	for f, n := range p.injected {
		counts[f] = n
	}
	return counts
}

// Requests counts the requests since Set, and how many there were at once.
func (p *Proxy) Requests() (count, atOnce int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests, p.mostBusy
}

// Close ends what stalls.
func (p *Proxy) Close() { p.once.Do(func() { close(p.closed) }) }

// draw says what happens to a request; "" for nothing.
func (p *Proxy) draw(r *http.Request) (Fault, Settings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.settings
	if len(s.Only) > 0 && !slices.Contains(s.Only, r.Method) {
		return "", s
	}
	p.requests++
	chosen := s.Every > 0 && p.requests%s.Every == 0 || s.Share > 0 && p.random.Float64() < s.Share
	if !chosen || len(s.Kinds) == 0 {
		return "", s
	}
	fault := s.Kinds[p.random.IntN(len(s.Kinds))]
	if fault == Corrupt && r.ContentLength <= 0 {
		return "", s
	}
	p.injected[fault]++
	return fault, s
}

func (p *Proxy) enter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy += n
	p.mostBusy = max(p.mostBusy, p.busy)
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.enter(1)
	defer p.enter(-1)
	fault, s := p.draw(r)
	p.sleep(r.Context(), s.Latency)
	r.Body = &limited{ReadCloser: r.Body, proxy: p, ctx: r.Context()}
	switch fault {
	case Error500:
		refuse(w, r, http.StatusInternalServerError, "InternalError")
		return
	case Error503:
		refuse(w, r, http.StatusServiceUnavailable, "SlowDown")
		return
	case Reset:
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		cut(w)
		return
	case Lost:
		p.reverse.ServeHTTP(nowhere{http.Header{}}, r)
		cut(w)
		return
	case Stall:
		p.stall(w, s.StallTime)
		return
	case Delay:
		p.sleep(r.Context(), s.Delay)
	case Corrupt:
		r.Body = &corrupting{ReadCloser: r.Body, at: r.ContentLength / 2}
	}
	p.reverse.ServeHTTP(w, r)
}

func refuse(w http.ResponseWriter, r *http.Request, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Connection", "close")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>Please try again.</Message></Error>", code)
	}
}

// cut ends the connection with a reset.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// stall keeps the connection and does nothing with it.
func (p *Proxy) stall(w http.ResponseWriter, limit time.Duration) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	if limit == 0 {
		limit = 2 * time.Minute
	}
	p.sleep(context.Background(), limit)
}

func (p *Proxy) sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.closed:
	case <-ctx.Done():
	}
}

// pass waits until the rate allows n more bytes.
func (p *Proxy) pass(ctx context.Context, n int) {
	p.mu.Lock()
	rate := p.settings.Rate
	if rate <= 0 {
		p.mu.Unlock()
		return
	}
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	p.sleep(ctx, wait)
}

// limited is a body that passes at the proxy's rate.
type limited struct {
	io.ReadCloser
	proxy *Proxy
	ctx   context.Context
}

func (l *limited) Read(b []byte) (int, error) {
	n, err := l.ReadCloser.Read(b)
	l.proxy.pass(l.ctx, n)
	return n, err
}

// corrupting changes one byte.
type corrupting struct {
	io.ReadCloser
	at int64
}

func (c *corrupting) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if c.at >= 0 && c.at < int64(n) {
		b[c.at] ^= 1
	}
	c.at -= int64(n)
	return n, err
}

// nowhere takes an answer that nobody gets.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}
