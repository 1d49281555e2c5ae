package s3blob

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	firstPause, longestPause = 100 * time.Millisecond, 5 * time.Second
	// maxChanged is how often bytes may be changed on their way.
	maxChanged = 5
	// probeWait is how long Probe waits for a server that is away: an
	// administrator sits before it.
	probeWait = 10 * time.Second
	// probeAttempts is how often a probe is written that somebody removes.
	probeAttempts = 5
	// A server that is away is told of after tellAfter, and then every tellEvery.
	tellAfter, tellEvery = 5 * time.Second, 30 * time.Second
)

// waits tells somebody that requests wait for the server.
type waits struct {
	mu   sync.Mutex
	tell func(text string)
	last time.Time
}

// OnWait lets fn be told in a sentence that requests have waited for the server
// for some seconds, and why: now and then, as long as that lasts, from any
// goroutine.
func (s *Store) OnWait(fn func(text string)) {
	s.waits.mu.Lock()
	defer s.waits.mu.Unlock()
	s.waits.tell = fn
}

func (w *waits) say(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tell == nil || time.Since(w.last) < tellEvery {
		return
	}
	w.last = time.Now()
	w.tell(text)
}

// right is a kind of request, in the words of the one who has to allow it.
type right struct{ what, rights string }

var (
	mayPut    = right{"write objects", "s3:PutObject"}
	mayHead   = right{"look at objects", "s3:GetObject"}
	mayDelete = right{"remove objects", "s3:DeleteObject"}
	mayAbort  = right{"give up unfinished uploads", "s3:AbortMultipartUpload"}
)

// task is one request that is repeated until it succeeds or cannot.
type task struct {
	op    string // for messages
	key   string // with the prefix
	right right
	// wait and stall are those of the store if they are 0.
	wait, stall time.Duration
	// do is one attempt. It tells w about progress.
	do func(ctx context.Context, w *watch) error
}

// cancelled is why a request was given up with its context.
func (t task) cancelled(ctx context.Context) error {
	if t.key == "" {
		return fmt.Errorf("%s: %w", t.op, ctx.Err())
	}
	return fmt.Errorf("%s %s: %w", t.op, t.key, ctx.Err())
}

// run does a request, and again after a pause as long as its error may pass. It
// gives up when it has failed for as long as the store waits. If meanwhile no
// request at all has succeeded, the store is away.
func (s *Store) run(ctx context.Context, t task) error {
	if t.wait == 0 {
		t.wait = s.config.Wait
	}
	if t.stall == 0 {
		t.stall = s.config.Stall
	}
	var since time.Time // of the first failure
	changed := 0
	for attempt := 0; ; attempt++ {
		err := s.attempt(ctx, t)
		if err == nil {
			s.answered.Store(int64(time.Since(s.opened)))
			return nil
		}
		if ctx.Err() != nil {
			return t.cancelled(ctx)
		}
		var broken *readError
		if errors.As(err, &broken) {
			return broken.err
		}
		c := s.diagnose(t.right, err)
		if c.changed {
			changed++
		}
		if !c.retry || changed >= maxChanged {
			return s.fail(t, c, err)
		}
		if since.IsZero() {
			since = time.Now()
		}
		left := t.wait - time.Since(since)
		if left <= 0 {
			c.whole = s.answered.Load() <= int64(since.Sub(s.opened))
			c.reason = fmt.Sprintf("%s, for %v in %d attempts", c.reason, time.Since(since).Round(time.Second), attempt+1)
			return s.fail(t, c, err)
		}
		if time.Since(since) > tellAfter && s.answered.Load() <= int64(since.Sub(s.opened)) {
			s.waits.say(fmt.Sprintf("%s does not do what is asked: %s; waiting up to %v for it", s.Name(), s.redact(c.reason), t.wait))
		}
		if !sleep(ctx, min(backoff(attempt), left)) {
			return t.cancelled(ctx)
		}
	}
}

// fail is the error for those outside. What it wraps has no key in its text.
func (s *Store) fail(t task, c cause, err error) *Error {
	return &Error{Op: t.op, Key: t.key, Reason: s.redact(c.reason), Hint: c.hint, Whole: c.whole, Err: &redacted{s.redact(err.Error()), err}}
}

// redacted is an error whose text has lost the keys.
type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }

// Is and As look into the error without giving its text away.
func (r *redacted) Is(target error) bool { return errors.Is(r.err, target) }

// attempt does a request once. It ends it when it makes no progress.
func (s *Store) attempt(ctx context.Context, t task) error {
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{stall: t.stall}
	w.timer = time.AfterFunc(t.stall, func() { cancel(errStalled) })
	defer w.timer.Stop()
	err := t.do(limited, w)
	if err != nil && context.Cause(limited) == errStalled {
		return errStalled
	}
	return err
}

// watch ends a request that makes no progress.
type watch struct {
	stall time.Duration
	timer *time.Timer
}

// backoff doubles, up to a bound, and is spread so that those who failed
// together do not come back together.
func backoff(attempt int) time.Duration {
	pause := longestPause
	if attempt < 10 {
		pause = min(pause, firstPause<<attempt)
	}
	return pause/2 + rand.N(pause/2)
}

// sleep waits; false if the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isCode tells whether the server has answered with an error code.
func isCode(err error, code string) bool {
	var mine *redacted
	if errors.As(err, &mine) {
		err = mine.err
	}
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == code
}

// isStatus tells whether the server has answered with a status.
func isStatus(err error, status int) bool {
	var mine *redacted
	if errors.As(err, &mine) {
		err = mine.err
	}
	var response *smithyhttp.ResponseError
	return errors.As(err, &response) && response.HTTPStatusCode() == status
}
