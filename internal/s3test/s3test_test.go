package s3test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

var shared Shared

func TestMain(m *testing.M) {
	code := m.Run()
	shared.Close()
	os.Exit(code)
}

func TestBucketsAreApartAndSnapshotsTellWhatIsInThem(t *testing.T) {
	s := shared.Server(t)
	a, b := s.NewBucket(t), s.NewBucket(t)
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	s.Put(t, a, "some/key", data, map[string]string{"colour": "green"})
	got := s.Snapshot(t, a)
	want := Object{Size: 100_000, SHA256: fmt.Sprintf("%x", sha256.Sum256(data)), Metadata: map[string]string{"colour": "green"}}
	if len(got) != 1 || fmt.Sprint(got["some/key"]) != fmt.Sprint(want) {
		t.Errorf("the snapshot is %v", got)
	}
	if !bytes.Equal(s.Get(t, a, "some/key"), data) {
		t.Error("other bytes come back")
	}
	if got := s.Snapshot(t, b); len(got) != 0 {
		t.Errorf("another bucket holds %v", got)
	}
}

func TestAStoppedServerRefusesAndComesBackWithItsObjects(t *testing.T) {
	s := Start(t)
	bucket := s.NewBucket(t)
	s.Put(t, bucket, "kept", []byte("x"), nil)
	s.Stop()
	if c, err := net.DialTimeout("tcp", s.Addr(), time.Second); err == nil {
		c.Close()
		t.Fatal("a stopped server takes connections")
	}
	if err := s.Run(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Snapshot(t, bucket)["kept"]; !ok {
		t.Error("the object is gone")
	}
}

func TestTLSNeedsTheAuthority(t *testing.T) {
	s := Start(t, TLS())
	bucket := s.NewBucket(t)
	client := s3.New(s.Client(t).Options(), func(o *s3.Options) { o.HTTPClient = &http.Client{} })
	if _, err := client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &bucket}); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("without the authority: %v", err)
	}
}

func TestAUserMayDoWhatIsAllowed(t *testing.T) {
	s := shared.Server(t)
	bucket, key := s.NewBucket(t), "k"
	access, secret := s.NewUser(t)
	user := s3.New(s.Client(t).Options(), func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(access, secret, "")
	})
	put := func() error {
		_, err := user.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")})
		return err
	}
	s.Allow(t, bucket, access, "s3:GetObject", "s3:ListBucket")
	if err := put(); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Errorf("put without the right: %v", err)
	}
	s.Allow(t, bucket, access, "s3:PutObject")
	if err := put(); err != nil {
		t.Errorf("put with the right: %v", err)
	}
}
