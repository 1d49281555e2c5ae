package pgjsonb

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestWaitingForTheServerIsToldOnce(t *testing.T) {
	c, err := newConnector("host=" + t.TempDir() + " dbname=nowhere user=nobody password=secret")
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 10)
	c.onWait(func(text string) { told <- text })
	var group errgroup.Group
	for range 3 {
		group.Go(func() error {
			_, err := c.reopen(t.Context(), "test", tellAfter+3*time.Second)
			return err
		})
	}
	if err := group.Wait(); err == nil {
		t.Fatal("a server was found where there is none")
	}
	if len(told) != 1 {
		t.Fatalf("told %d times", len(told))
	}
	if text := <-told; !strings.Contains(text, " is away: ") || !strings.HasSuffix(text, "; waiting up to 6s for it") || strings.Contains(text, "secret") {
		t.Errorf("told %q", text)
	}
}
