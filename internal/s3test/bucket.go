package s3test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	cryptorand "crypto/rand"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Client is a client that may do everything.
func (s *Server) Client(tb testing.TB) *s3.Client {
	tb.Helper()
	transport, err := s.transport()
	if err != nil {
		tb.Fatalf("s3test: %v", err)
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.URL()), Region: Region, UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		HTTPClient:                 &http.Client{Transport: transport},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})
}

// NewBucket creates an empty bucket and returns its name.
func (s *Server) NewBucket(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("bucket-%d", s.buckets.Add(1))
	if _, err := s.Client(tb).CreateBucket(tb.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		tb.Fatalf("s3test: create %s: %v", name, err)
	}
	return name
}

// Object is what is known of an object without its key.
type Object struct {
	Size     int64
	SHA256   string // of the bytes, hexadecimal
	Metadata map[string]string
}

// Snapshot reads every object of a bucket. Two buckets can be compared by it.
func (s *Server) Snapshot(tb testing.TB, bucket string) map[string]Object {
	tb.Helper()
	client := s.Client(tb)
	objects := make(map[string]Object)
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(tb.Context())
		if err != nil {
			tb.Fatalf("s3test: list %s: %v", bucket, err)
		}
		for _, entry := range page.Contents {
			objects[*entry.Key] = read(tb, client, bucket, *entry.Key)
		}
	}
	return objects
}

func read(tb testing.TB, client *s3.Client, bucket, key string) Object {
	tb.Helper()
	out, err := client.GetObject(tb.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		tb.Fatalf("s3test: get %s of %s: %v", key, bucket, err)
	}
	defer out.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, out.Body)
	if err != nil {
		tb.Fatalf("s3test: read %s of %s: %v", key, bucket, err)
	}
	return Object{Size: n, SHA256: fmt.Sprintf("%x", h.Sum(nil)), Metadata: out.Metadata}
}

// Get returns the bytes of an object.
func (s *Server) Get(tb testing.TB, bucket, key string) []byte {
	tb.Helper()
	out, err := s.Client(tb).GetObject(tb.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		tb.Fatalf("s3test: get %s of %s: %v", key, bucket, err)
	}
	defer out.Body.Close()
	data, err := io.ReadAll(out.Body)
	if err != nil {
		tb.Fatalf("s3test: read %s of %s: %v", key, bucket, err)
	}
	return data
}

// Put writes an object as another client would.
func (s *Server) Put(tb testing.TB, bucket, key string, data []byte, metadata map[string]string) {
	tb.Helper()
	_, err := s.Client(tb).PutObject(tb.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data), Metadata: metadata})
	if err != nil {
		tb.Fatalf("s3test: put %s into %s: %v", key, bucket, err)
	}
}

// Uploads lists the keys of multipart uploads that were begun and neither
// completed nor aborted.
func (s *Server) Uploads(tb testing.TB, bucket string) []string {
	tb.Helper()
	out, err := s.Client(tb).ListMultipartUploads(tb.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		tb.Fatalf("s3test: list the uploads of %s: %v", bucket, err)
	}
	var keys []string
	for _, u := range out.Uploads {
		keys = append(keys, *u.Key)
	}
	return keys
}

// NewUser adds an account without any right.
func (s *Server) NewUser(tb testing.TB) (accessKey, secretKey string) {
	tb.Helper()
	accessKey, secretKey = "USER"+cryptorand.Text(), cryptorand.Text()+cryptorand.Text()
	cmd := exec.Command(s.binary, "admin", "--endpoint-url", s.URL(), "--allow-insecure",
		"create-user", "--access", accessKey, "--secret", secretKey, "--role", "user")
	cmd.Env = append(os.Environ(), "ADMIN_ACCESS_KEY_ID="+s.AccessKey, "ADMIN_SECRET_ACCESS_KEY="+s.SecretKey)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("s3test: create a user: %v\n%s", err, out)
	}
	return accessKey, secretKey
}

// Allow gives an account exactly these rights ("s3:PutObject", ...) on the
// objects of a bucket, those that are of the bucket itself on that. It replaces
// what was allowed before.
func (s *Server) Allow(tb testing.TB, bucket, accessKey string, actions ...string) {
	tb.Helper()
	type statement struct {
		Effect    string
		Principal map[string]string
		Action    []string
		Resource  string
	}
	var statements []statement
	add := func(resource string, ofBucket bool) {
		st := statement{Effect: "Allow", Principal: map[string]string{"AWS": accessKey}, Resource: resource}
		for _, a := range actions {
			if strings.Contains(a, "Bucket") == ofBucket {
				st.Action = append(st.Action, a)
			}
		}
		if len(st.Action) > 0 {
			statements = append(statements, st)
		}
	}
	add("arn:aws:s3:::"+bucket, true)
	add("arn:aws:s3:::"+bucket+"/*", false)
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		tb.Fatal(err)
	}
	text := string(policy)
	if _, err := s.Client(tb).PutBucketPolicy(tb.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: &text}); err != nil {
		tb.Fatalf("s3test: set the policy of %s: %v", bucket, err)
	}
}
