package sourcetest

import (
	"context"
	"crypto/sha256"
	"sync"
	"testing"
)

// budget is a source.Budget that watches how it is used.
type budget struct {
	t     testing.TB
	limit int64
	// waits is called when somebody has to wait.
	waits func()

	mu     sync.Mutex
	used   int64
	change chan struct{} // closed when used falls
}

func newBudget(t testing.TB, limit int64) *budget {
	return &budget{t: t, limit: limit, change: make(chan struct{})}
}

// Acquire waits until n bytes are free; more than the limit, until it is alone.
func (b *budget) Acquire(ctx context.Context, n int64) error {
	if n < 0 {
		b.t.Errorf("Acquire(%d)", n)
	}
	for {
		b.mu.Lock()
		if b.used == 0 || b.used+n <= b.limit {
			defer b.mu.Unlock()
			if err := ctx.Err(); err != nil {
				return err
			}
			b.used += n
			return nil
		}
		change := b.change
		b.mu.Unlock()
		if b.waits != nil {
			b.waits()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

func (b *budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used -= n; n < 0 || b.used < 0 {
		b.t.Errorf("Release(%d) leaves %d bytes", n, b.used)
	}
	close(b.change)
	b.change = make(chan struct{})
}

func (b *budget) held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

func (b *budget) checkEmpty() {
	b.t.Helper()
	if n := b.held(); n != 0 {
		b.t.Errorf("%d bytes were never released", n)
	}
}

func fingerprint(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:8]
}
