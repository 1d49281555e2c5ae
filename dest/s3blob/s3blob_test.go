package s3blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

var shared s3test.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	shared.Close()
	os.Exit(code)
}

// configFor is how to reach a bucket of a server.
func configFor(server *s3test.Server, bucket string) Config {
	return Config{Bucket: bucket, Prefix: "site/one", EndpointURL: server.URL(), CAFile: server.CAFile,
		AccessKey: server.AccessKey, SecretKey: server.SecretKey}
}

func mustOpen(t testing.TB, config Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fileBlob writes size random bytes into a file.
func fileBlob(t testing.TB, oid zodb.OID, size int64) *source.Blob {
	t.Helper()
	path := filepath.Join(t.TempDir(), fmt.Sprintf("%x.blob", uint64(oid)))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var seed [32]byte
	seed[0], seed[1] = byte(oid), byte(size)
	if _, err := io.CopyN(f, rand.NewChaCha8(seed), size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return &source.Blob{OID: oid, TID: 0x42, Size: size, Path: path,
		Open: func(context.Context) (source.BlobReader, error) { return os.Open(path) }}
}

func digestOfFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// wantStored checks that the bucket holds exactly these blobs, each under its
// key with the prefix, with its bytes and its checksum, and nothing unfinished.
func wantStored(t *testing.T, server *s3test.Server, bucket string, blobs ...*source.Blob) {
	t.Helper()
	objects := server.Snapshot(t, bucket)
	if len(objects) != len(blobs) {
		t.Errorf("%d objects for %d blobs", len(objects), len(blobs))
	}
	for _, b := range blobs {
		want := digestOfFile(t, b.Path)
		got := objects["site/one/"+Key(b.OID, b.TID)]
		if got.Size != b.Size || got.SHA256 != want || got.Metadata["sha256"] != want {
			t.Errorf("a blob of %d bytes, %s, is stored as %+v", b.Size, want, got)
		}
	}
	if uploads := server.Uploads(t, bucket); len(uploads) != 0 {
		t.Errorf("unfinished uploads are left: %v", uploads)
	}
}

func TestKeysAreThoseOfTheStorage(t *testing.T) {
	if got := Key(0x1f, 0x03f0_0000_0000_00ab); got != "blobs/000000000000001f/03f00000000000ab.blob" {
		t.Error(got)
	}
}

var sizes = map[string]int64{
	"nothing": 0, "one byte": 1, "a buffer": bufferSize, "a buffer and a byte": bufferSize + 1,
	"a part less a byte": partSize - 1, "a part": partSize, "a part and a byte": partSize + 1,
	"two parts": 2 * partSize, "40 MB": 40_000_000,
}

func TestBlobsOfEverySizeArriveWhole(t *testing.T) {
	servers := map[string]func(*testing.T) *s3test.Server{
		"http":  func(t *testing.T) *s3test.Server { return shared.Server(t) },
		"https": func(t *testing.T) *s3test.Server { return s3test.Start(t, s3test.TLS()) },
	}
	for scheme, server := range servers {
		server := server(t)
		for name, size := range sizes {
			t.Run(scheme+"/"+name, func(t *testing.T) {
				bucket := server.NewBucket(t)
				s := mustOpen(t, configFor(server, bucket))
				b := fileBlob(t, 7, size)
				key := Key(b.OID, b.TID)
				if has, err := s.Has(t.Context(), key, b); has || err != nil {
					t.Fatalf("before: has is %v, %v", has, err)
				}
				var sent atomic.Int64
				if err := s.Put(t.Context(), key, b, func(n int64) { sent.Add(n) }); err != nil {
					t.Fatal(err)
				}
				if sent.Load() != size {
					t.Errorf("%d of %d bytes are told", sent.Load(), size)
				}
				wantStored(t, server, bucket, b)
				if has, err := s.Has(t.Context(), key, b); !has || err != nil {
					t.Errorf("after: has is %v, %v", has, err)
				}
				for range 2 {
					if err := s.Delete(t.Context(), key); err != nil {
						t.Error(err)
					}
				}
				wantStored(t, server, bucket)
			})
		}
	}
}

func TestPartsGrowWithTheBlob(t *testing.T) {
	for _, size := range []int64{1, partSize, partSize * maxPartCount, partSize*maxPartCount + 1, 1 << 40, 5 << 40} {
		part := partSizeFor(size)
		if n := (size + part - 1) / part; n > maxPartCount || part < partSize || part%(1<<20) != 0 {
			t.Errorf("%d bytes are %d parts of %d", size, n, part)
		}
	}
}

func TestProbeLeavesNothing(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantStored(t, server, bucket)
}

func TestProbeRemovesWhatAKilledOneHasLeft(t *testing.T) {
	server := shared.Server(t)
	bucket, refused := server.NewBucket(t), server.NewBucket(t)
	config := configFor(server, refused)
	config.AccessKey, config.SecretKey = server.NewUser(t)
	server.Allow(t, refused, config.AccessKey, "s3:PutObject")
	if err := mustOpen(t, config).Probe(t.Context()); err == nil {
		t.Fatal("a probe that may not be removed succeeds")
	}
	for key := range server.Snapshot(t, refused) {
		server.Put(t, bucket, key, []byte("of a killed one"), nil)
	}
	if err := mustOpen(t, configFor(server, bucket)).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantStored(t, server, bucket)
}

func TestProbesOfOneHostDoNotDisturbEachOther(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	var group errgroup.Group
	for range 3 {
		group.Go(func() error { return mustOpen(t, configFor(server, bucket)).Probe(t.Context()) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	wantStored(t, server, bucket)
}

func TestHasKnowsAnObjectByItsBytesOnly(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	b := fileBlob(t, 1, 1000)
	data, err := os.ReadFile(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(data)
	changed[500] ^= 1
	sum := func(data []byte) map[string]string {
		return map[string]string{"sha256": fmt.Sprintf("%x", sha256.Sum256(data))}
	}
	for name, one := range map[string]struct {
		data     []byte
		metadata map[string]string
		want     bool
	}{
		"the same":                            {data, sum(data), true},
		"the same from another program":       {data, nil, true},
		"changed":                             {changed, sum(changed), false},
		"changed by another program":          {changed, nil, false},
		"shorter":                             {data[:999], sum(data[:999]), false},
		"the same with another sum beside it": {data, sum(changed), false},
	} {
		t.Run(name, func(t *testing.T) {
			server.Put(t, bucket, s.FullKey("k"), one.data, one.metadata)
			if has, err := s.Has(t.Context(), "k", b); has != one.want || err != nil {
				t.Errorf("has is %v, %v", has, err)
			}
		})
	}
}

func TestHasTellsALargeObjectOfAnotherProgramFromNone(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	b := fileBlob(t, 1, partSize+1)
	// In parts and without our checksum: nothing tells that the bytes are right.
	id, err := s.client.CreateMultipartUpload(t.Context(), createInput(s, "k"))
	if err != nil {
		t.Fatal(err)
	}
	u := &upload{Store: s, key: s.FullKey("k"), blob: b, sent: func(int64) {}}
	f, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u.file = &blobReader{b, f}
	d, err := u.digest(t.Context(), partSize)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := u.sendParts(t.Context(), id.UploadId, d, partSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.complete(t.Context(), id.UploadId, parts); err != nil {
		t.Fatal(err)
	}
	if has, err := s.Has(t.Context(), "k", b); has || err != nil {
		t.Errorf("has is %v, %v", has, err)
	}
}

func TestAThirdOfRequestsFail(t *testing.T) {
	server := shared.Server(t)
	for _, kind := range []faults.Fault{faults.Error500, faults.Error503, faults.Reset, faults.Lost, faults.Stall, faults.Corrupt} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			bucket := server.NewBucket(t)
			proxy := server.NewProxy(t, faults.Settings{Kinds: []faults.Fault{kind}, Share: 0.33, Seed: 3})
			config := configFor(server, bucket)
			config.EndpointURL, config.Stall = proxy.URL(), time.Second
			s := mustOpen(t, config)
			blobs := []*source.Blob{fileBlob(t, 100, partSize), fileBlob(t, 101, 3*partSize+1)}
			for i := range 12 {
				blobs = append(blobs, fileBlob(t, zodb.OID(i+1), int64(i)*10_000+1))
			}
			for _, b := range blobs {
				if err := s.Put(t.Context(), Key(b.OID, b.TID), b, nil); err != nil {
					t.Fatal(err)
				}
				if has, err := s.Has(t.Context(), Key(b.OID, b.TID), b); !has || err != nil {
					t.Errorf("has is %v, %v", has, err)
				}
			}
			if proxy.Injected()[kind] == 0 {
				t.Error("no fault has happened")
			}
			proxy.Set(faults.Settings{})
			abortLost(t, s, kind)
			wantStored(t, server, bucket, blobs...)
		})
	}
}

func TestAServerThatIsAwayIsWaitedFor(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	small, large := fileBlob(t, 1, 1000), fileBlob(t, 2, 2*partSize)
	server.Stop()
	told := make(chan string, 2)
	s.OnWait(func(text string) { told <- text })
	done := make(chan error, 2)
	for _, b := range []*source.Blob{small, large} {
		go func() { done <- s.Put(t.Context(), Key(b.OID, b.TID), b, nil) }()
	}
	select {
	case err := <-done:
		t.Fatalf("an upload to nowhere ends: %v", err)
	case text := <-told:
		if !strings.Contains(text, s.Name()+" does not do what is asked: ") || !strings.HasSuffix(text, "; waiting up to 2m0s for it") {
			t.Errorf("told %q", text)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody is told of it")
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	wantStored(t, server, bucket, small, large)
	if len(told) > 0 {
		t.Errorf("told again: %q", <-told)
	}
}

func TestAServerThatStaysAwayIsGivenUp(t *testing.T) {
	server := s3test.Start(t)
	config := configFor(server, server.NewBucket(t))
	config.Wait = 2 * time.Second
	s := mustOpen(t, config)
	server.Stop()
	began := time.Now()
	err := s.Put(t.Context(), "k", fileBlob(t, 1, 1000), nil)
	wantWhole(t, err, "takes no connections", "see whether the S3 server runs")
	if took := time.Since(began); took < time.Second || took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}

// One object that the server cannot take must not look like a server that is
// away.
func TestAnObjectThatAlwaysFailsIsNotTheStore(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	proxy := server.NewProxy(t, faults.Settings{Kinds: []faults.Fault{faults.Error500}, Every: 1, Only: []string{"PUT"}})
	config := configFor(server, bucket)
	config.EndpointURL, config.Wait = proxy.URL(), 2*time.Second
	s := mustOpen(t, config)
	stop, stopped := make(chan struct{}), make(chan struct{})
	b := fileBlob(t, 1, 10)
	go func() {
		defer close(stopped)
		for {
			if _, err := s.Has(t.Context(), "other", b); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	err := s.Put(t.Context(), "k", b, nil)
	close(stop)
	<-stopped
	var mine *Error
	if !errors.As(err, &mine) || mine.Whole {
		t.Errorf("%#v", err)
	}
}

func TestBytesThatAreAlwaysChangedAreAnError(t *testing.T) {
	server := shared.Server(t)
	for name, size := range map[string]int64{"small": 1000, "streamed": 2 << 20, "in parts": partSize + 100} {
		t.Run(name, func(t *testing.T) {
			bucket := server.NewBucket(t)
			proxy := server.NewProxy(t, faults.Settings{Kinds: []faults.Fault{faults.Corrupt}, Every: 1, Only: []string{"PUT"}})
			config := configFor(server, bucket)
			config.EndpointURL = proxy.URL()
			s := mustOpen(t, config)
			err := s.Put(t.Context(), "k", fileBlob(t, 1, size), nil)
			var mine *Error
			if !errors.As(err, &mine) || mine.Whole || !bytes.Contains([]byte(err.Error()), []byte("other bytes have arrived than were sent")) {
				t.Errorf("the error is %v", err)
			}
			wantStored(t, server, bucket)
		})
	}
}

func TestCancelEndsSoon(t *testing.T) {
	server := shared.Server(t)
	for name, settings := range map[string]faults.Settings{
		"while it stalls":    {Kinds: []faults.Fault{faults.Stall}, Every: 4},
		"while it is slow":   {Rate: 1 << 20},
		"while it is failed": {Kinds: []faults.Fault{faults.Error503}, Every: 1},
	} {
		for size, b := range map[string]*source.Blob{"small": fileBlob(t, 1, 300_000), "large": fileBlob(t, 2, 40_000_000)} {
			if name == "while it stalls" && size == "small" {
				settings.Every = 1
			}
			t.Run(name+"/"+size, func(t *testing.T) {
				bucket := server.NewBucket(t)
				proxy := server.NewProxy(t, settings)
				config := configFor(server, bucket)
				config.EndpointURL = proxy.URL()
				s := mustOpen(t, config)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					for {
						if err := s.Put(ctx, "k", b, nil); err != nil {
							done <- err
							return
						}
					}
				}()
				time.Sleep(500 * time.Millisecond)
				began := time.Now()
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("the error is %v", err)
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}

func TestAFailedUploadIsAborted(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	b := fileBlob(t, 1, 5*partSize)
	broken := errors.New("the disk is broken")
	open := b.Open
	b.Open = func(ctx context.Context) (source.BlobReader, error) {
		r, err := open(ctx)
		return &breaking{BlobReader: r, err: &source.BlobError{OID: 1, TID: 2, Path: b.Path, Problem: broken.Error()}, left: 7 * partSize}, err
	}
	err := s.Put(t.Context(), "k", b, nil)
	var blob *source.BlobError
	if !errors.As(err, &blob) || blob.Problem != broken.Error() {
		t.Errorf("the error is %v", err)
	}
	wantStored(t, server, bucket)

	ctx, cancel := context.WithCancel(t.Context())
	b = fileBlob(t, 1, 5*partSize)
	err = s.Put(ctx, "k", b, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	wantStored(t, server, bucket)
}

// breaking is a file that cannot be read any more after so many bytes.
type breaking struct {
	source.BlobReader
	err  error
	left int64
	read atomic.Int64
}

func (r *breaking) ReadAt(p []byte, off int64) (int, error) {
	if r.read.Add(int64(len(p))) > r.left {
		return 0, r.err
	}
	return r.BlobReader.ReadAt(p, off)
}

func TestABlobThatCannotBeReadIsItsOwnError(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	s := mustOpen(t, configFor(server, bucket))
	for name, size := range map[string]int64{"small": 1000, "streamed": 2 << 20, "in parts": partSize + 100} {
		t.Run(name, func(t *testing.T) {
			b := fileBlob(t, 1, size)
			b.Size += 5
			err := s.Put(t.Context(), "k", b, nil)
			var blob *source.BlobError
			if !errors.As(err, &blob) || blob.Path != b.Path {
				t.Errorf("a file that is too short: %v", err)
			}
			b.Open = func(context.Context) (source.BlobReader, error) {
				return nil, &source.BlobError{OID: 1, Path: b.Path, Missing: true, Problem: "is not there"}
			}
			if err := s.Put(t.Context(), "k", b, nil); !errors.As(err, &blob) || !blob.Missing {
				t.Errorf("a file that is not there: %v", err)
			}
			wantStored(t, server, bucket)
		})
	}
}

func TestAFileThatChangesIsFoundOut(t *testing.T) {
	server := shared.Server(t)
	for name, size := range map[string]int64{"streamed": 2 << 20, "in parts": partSize + 100} {
		t.Run(name, func(t *testing.T) {
			bucket := server.NewBucket(t)
			s := mustOpen(t, configFor(server, bucket))
			b := fileBlob(t, 1, size)
			open := b.Open
			b.Open = func(ctx context.Context) (source.BlobReader, error) {
				r, err := open(ctx)
				return &changing{BlobReader: r, after: size}, err
			}
			err := s.Put(t.Context(), "k", b, nil)
			var blob *source.BlobError
			if !errors.As(err, &blob) || blob.Problem != "has changed while it was read" {
				t.Errorf("the error is %v", err)
			}
			wantStored(t, server, bucket)
		})
	}
}

// changing is a file whose first byte is another one after so many bytes have
// been read.
type changing struct {
	source.BlobReader
	after int64
	read  atomic.Int64
}

func (r *changing) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.BlobReader.ReadAt(p, off)
	if r.read.Add(int64(n)) > r.after && off == 0 {
		p[0] ^= 1
	}
	return n, err
}

func TestMemoryDoesNotGrowWithWhatIsSent(t *testing.T) {
	server := shared.Server(t)
	s := mustOpen(t, configFor(server, server.NewBucket(t)))
	var blobs []*source.Blob
	for i := range 12 {
		blobs = append(blobs, fileBlob(t, zodb.OID(i), 3*partSize))
	}
	for i := range 120 {
		blobs = append(blobs, fileBlob(t, zodb.OID(100+i), bufferSize))
	}
	live := func() int64 {
		// What the last collection has found in use.
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		runtime.GC()
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before := live()
	done := make(chan error, len(blobs))
	for _, b := range blobs {
		go func() { done <- s.Put(t.Context(), Key(b.OID, b.TID), b, nil) }()
	}
	most := int64(0)
	for left := len(blobs); left > 0; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			left--
		case <-time.After(5 * time.Millisecond):
			most = max(most, live()-before)
		}
	}
	t.Logf("at most %d bytes", most)
	if most > 32<<20 || most == 0 {
		t.Errorf("%d bytes were held", most)
	}
}

// A probe that cannot be removed is named, whichever right is missing first.
func TestProbeThatStaysIsNamed(t *testing.T) {
	server := shared.Server(t)
	for _, rights := range [][]string{{"s3:PutObject"}, {"s3:PutObject", "s3:GetObject"}} {
		bucket := server.NewBucket(t)
		config := configFor(server, bucket)
		config.AccessKey, config.SecretKey = server.NewUser(t)
		server.Allow(t, bucket, config.AccessKey, rights...)
		err := mustOpen(t, config).Probe(t.Context())
		left := server.Snapshot(t, bucket)
		if len(left) != 1 || err == nil {
			t.Fatalf("%v: %v, left %v", rights, err, left)
		}
		for key := range left {
			if !strings.Contains(err.Error(), "the probe "+key+" could not be removed") {
				t.Errorf("%v: %v", rights, err)
			}
		}
	}
}
