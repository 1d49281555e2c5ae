package s3test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
)

// through puts an object through an endpoint, once.
func through(ctx context.Context, tb testing.TB, s *Server, endpoint, bucket, key string, size int) error {
	tb.Helper()
	client := s3.New(s.Client(tb).Options(), func(o *s3.Options) {
		o.BaseEndpoint, o.Retryer = &endpoint, aws.NopRetryer{}
	})
	_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(make([]byte, size))})
	return err
}

func TestFaultsDoWhatTheirNamesSay(t *testing.T) {
	s := shared.Server(t)
	code := func(err error) string {
		var api smithy.APIError
		if errors.As(err, &api) {
			return api.ErrorCode()
		}
		return ""
	}
	for _, one := range []struct {
		fault  faults.Fault
		is     func(error) bool
		stored bool
	}{
		{faults.Error500, func(err error) bool { return code(err) == "InternalError" }, false},
		{faults.Error503, func(err error) bool { return code(err) == "SlowDown" }, false},
		{faults.Reset, func(err error) bool { return err != nil && code(err) == "" }, false},
		{faults.Lost, func(err error) bool { return err != nil && code(err) == "" }, true},
		{faults.Stall, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, false},
		{faults.Corrupt, func(err error) bool { return code(err) == "XAmzContentSHA256Mismatch" }, false},
		{faults.Delay, func(err error) bool { return err == nil }, true},
	} {
		t.Run(string(one.fault), func(t *testing.T) {
			bucket := s.NewBucket(t)
			proxy := s.NewProxy(t, faults.Settings{Kinds: []faults.Fault{one.fault}, Every: 1, Delay: 300 * time.Millisecond})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			if err := through(ctx, t, s, proxy.URL(), bucket, "k", 100_000); !one.is(err) {
				t.Errorf("the client gets %v", err)
			}
			if took := time.Since(began); one.fault == faults.Delay && took < 300*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			if _, stored := s.Snapshot(t, bucket)["k"]; stored != one.stored {
				t.Errorf("stored is %v", stored)
			}
			if n := proxy.Injected()[one.fault]; n != 1 {
				t.Errorf("%d faults", n)
			}
		})
	}
}

func TestFaultsHitTheRequestsThatTheyAreMeantFor(t *testing.T) {
	s := shared.Server(t)
	bucket := s.NewBucket(t)
	proxy := s.NewProxy(t, faults.Settings{})
	failures := func(settings faults.Settings) (list []int) {
		proxy.Set(settings)
		for i := range 60 {
			if through(t.Context(), t, s, proxy.URL(), bucket, "k", 10) != nil {
				list = append(list, i)
			}
		}
		return list
	}
	kinds := []faults.Fault{faults.Error500}
	if got := failures(faults.Settings{Kinds: kinds, Every: 20}); len(got) != 3 || got[0] != 19 {
		t.Errorf("every 20th: %v", got)
	}
	first := failures(faults.Settings{Kinds: kinds, Share: 0.33, Seed: 5})
	again := failures(faults.Settings{Kinds: kinds, Share: 0.33, Seed: 5})
	if len(first) < 10 || len(first) > 30 || len(first) != len(again) || first[0] != again[0] {
		t.Errorf("a third: %v, again %v", first, again)
	}
	if got := failures(faults.Settings{Kinds: kinds, Every: 1, Only: []string{"GET"}}); len(got) != 0 {
		t.Errorf("none of this method: %v", got)
	}
}

func TestLatencyAndRateSlowEverythingDown(t *testing.T) {
	s := shared.Server(t)
	bucket := s.NewBucket(t)
	proxy := s.NewProxy(t, faults.Settings{Latency: 50 * time.Millisecond})
	took := func(size int) time.Duration {
		began := time.Now()
		if err := through(t.Context(), t, s, proxy.URL(), bucket, "k", size); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	if d := took(10); d < 50*time.Millisecond {
		t.Errorf("with latency: %v", d)
	}
	proxy.Set(faults.Settings{Rate: 1_000_000})
	if d := took(500_000); d < 450*time.Millisecond || d > 20*time.Second {
		t.Errorf("half a megabyte at one in a second: %v", d)
	}
}

func TestTheCommandIsAProxyForScripts(t *testing.T) {
	s := shared.Server(t)
	bucket := s.NewBucket(t)
	binary := filepath.Join(t.TempDir(), "s3faults")
	if out, err := exec.Command("go", "build", "-o", binary, "./cmd/s3faults").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(binary, "--target", s.URL(), "--fault", "500", "--every", "2")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	endpoint := strings.TrimSpace(line)
	for i, wantError := range []bool{false, true, false, true} {
		if err := through(t.Context(), t, s, endpoint, bucket, "k", 10); (err != nil) != wantError {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}
