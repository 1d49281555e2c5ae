package s3blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/zodb-convert/zodb-convert/internal/s3test"
	"github.com/zodb-convert/zodb-convert/internal/s3test/faults"
	"github.com/zodb-convert/zodb-convert/source"
)

func createInput(s *Store, key string) *s3.CreateMultipartUploadInput {
	key = s.FullKey(key)
	return &s3.CreateMultipartUploadInput{Bucket: &s.config.Bucket, Key: &key}
}

// abortLost gives up the uploads that a server has begun without being able to
// say so: nobody knows them.
func abortLost(t *testing.T, s *Store, kind faults.Fault) {
	t.Helper()
	if kind != faults.Lost {
		return
	}
	out, err := s.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &s.config.Bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		if _, err := s.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{
			Bucket: &s.config.Bucket, Key: u.Key, UploadId: u.UploadId}); err != nil {
			t.Fatal(err)
		}
	}
}

// wantWhole checks an error of the store as a whole, by its sentence and hint.
func wantWhole(t *testing.T, err error, reason, hint string) {
	t.Helper()
	var mine *Error
	if !errors.As(err, &mine) {
		t.Fatalf("no *Error, but %T %v", err, err)
	}
	if !mine.Whole || !strings.Contains(mine.Reason, reason) || !strings.Contains(mine.Hint, hint) {
		t.Errorf("whole is %v, the error is\n%v", mine.Whole, err)
	}
	t.Log(err)
}

func TestProbeNamesTheCauseAndWhatToDo(t *testing.T) {
	server, secure := shared.Server(t), s3test.Start(t, s3test.TLS())
	gone := s3test.Start(t)
	gone.Stop()
	bucket := server.NewBucket(t)
	secureBucket := secure.NewBucket(t)
	for name, one := range map[string]struct {
		server       *s3test.Server
		change       func(*Config)
		reason, hint string
	}{
		"no bucket":          {server, func(c *Config) { c.Bucket = "not-there" }, "there is no bucket not-there at http://", "create it"},
		"access key":         {server, func(c *Config) { c.AccessKey = "AKnobodyhasit" }, "does not know the access key", "correct the access key"},
		"secret key":         {server, func(c *Config) { c.SecretKey = "nobodyhasitatall" }, "the secret key is not that of the access key", "correct the secret key"},
		"region":             {server, func(c *Config) { c.Region = "eu-nowhere-1" }, "is not in the region eu-nowhere-1", "give its region: us-east-1"},
		"name of the server": {server, func(c *Config) { c.EndpointURL = "http://s3.invalid" }, "the name s3.invalid cannot be resolved", "correct the endpoint"},
		"refused":            {gone, func(c *Config) { c.Wait = time.Second }, "takes no connections at http://", "see whether"},
		"unknown authority":  {secure, func(c *Config) { c.CAFile = "" }, "signed by an authority that is not known", "CA file"},
		"http to https":      {secure, func(c *Config) { c.EndpointURL = "http://" + secure.Addr() }, "the server speaks https", "https://"},
		"https to http":      {server, func(c *Config) { c.EndpointURL = "https://" + server.Addr() }, "the server speaks http,", "http://"},
		"https by default":   {server, func(c *Config) { c.EndpointURL = server.Addr() }, "the server speaks http,", "s3-use-ssl"},
		"another name":       {secure, func(c *Config) { c.EndpointURL = "https://localhost:" + fmt.Sprint(secure.Port()) }, "the server's certificate is not good", "for its name"},
	} {
		t.Run(name, func(t *testing.T) {
			config := configFor(one.server, bucket)
			if one.server == secure {
				config.Bucket = secureBucket
			}
			config.Wait = 2 * time.Second
			one.change(&config)
			err := mustOpen(t, config).Probe(t.Context())
			wantWhole(t, err, one.reason, one.hint)
			wantSilent(t, err.Error(), config, one.server)
			wantSilent(t, fmt.Sprintf("%+v %#v", err, errors.Unwrap(err)), config, one.server)
		})
	}
}

// skewed signs as if it were another time.
type skewed struct {
	s3.HTTPSignerV4
	by time.Duration
}

func (s skewed) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, opts ...func(*v4.SignerOptions)) error {
	return s.HTTPSignerV4.SignHTTP(ctx, c, r, hash, service, region, at.Add(s.by), opts...)
}

func TestProbeFindsAWrongClock(t *testing.T) {
	server := shared.Server(t)
	for _, by := range []time.Duration{-time.Hour, time.Hour} {
		s, err := open(t.Context(), configFor(server, server.NewBucket(t)), func(o *s3.Options) {
			o.HTTPSignerV4 = skewed{v4.NewSigner(func(so *v4.SignerOptions) { so.DisableURIPathEscaping = true }), by}
		})
		if err != nil {
			t.Fatal(err)
		}
		wantWhole(t, s.Probe(t.Context()), "the clock of this machine is wrong: here it is 20", "NTP")
	}
}

func TestProbeFindsMissingRights(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	config := configFor(server, bucket)
	config.AccessKey, config.SecretKey = server.NewUser(t)
	s := mustOpen(t, config)
	for _, one := range []struct {
		allowed []string
		missing string
	}{
		{[]string{"s3:GetObject", "s3:DeleteObject", "s3:ListBucket"}, "s3:PutObject"},
		{[]string{"s3:PutObject", "s3:DeleteObject"}, "s3:GetObject"},
		{[]string{"s3:PutObject", "s3:GetObject"}, "s3:DeleteObject"},
	} {
		server.Allow(t, bucket, config.AccessKey, one.allowed...)
		err := s.Probe(t.Context())
		wantWhole(t, err, "the credentials may not", "allow "+one.missing+" on the objects site/one/*")
		wantSilent(t, err.Error(), config, server)
	}
}

// These are the rights that the documentation names.
func TestTheNamedRightsAreEnough(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	config := configFor(server, bucket)
	config.AccessKey, config.SecretKey = server.NewUser(t)
	s := mustOpen(t, config)
	server.Allow(t, bucket, config.AccessKey, "s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	small, large := fileBlob(t, 1, 100), fileBlob(t, 2, partSize+1)
	for _, blob := range []*source.Blob{small, large} {
		key := Key(blob.OID, blob.TID)
		if has, err := s.Has(t.Context(), key, blob); has || err != nil {
			t.Errorf("before: has is %v, %v", has, err)
		}
		if err := s.Put(t.Context(), key, blob, nil); err != nil {
			t.Error(err)
		}
		if has, err := s.Has(t.Context(), key, blob); !has || err != nil {
			t.Errorf("after: has is %v, %v", has, err)
		}
	}
	wantStored(t, server, bucket, small, large)
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Put(ctx, Key(3, 3), fileBlob(t, 3, 5*partSize), func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	wantStored(t, server, bucket, small, large)
	for _, key := range []string{Key(1, 0x42), Key(2, 0x42), Key(9, 9)} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	wantStored(t, server, bucket)
}

func wantSilent(t *testing.T, text string, config Config, server *s3test.Server) {
	t.Helper()
	for _, secret := range []string{config.AccessKey, config.SecretKey, server.AccessKey, server.SecretKey} {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("a key is in\n%s", text)
		}
	}
}

func TestNothingPrintsTheKeys(t *testing.T) {
	server := shared.Server(t)
	config := configFor(server, server.NewBucket(t))
	s := mustOpen(t, config)
	exposed := struct {
		Config  Config
		Pointer *Config
		Store   *Store
		store   *Store
	}{config, &config, s, s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, value := range []any{config, &config, s, exposed, &exposed, []any{config, s}} {
			wantSilent(t, fmt.Sprintf(verb, value), config, server)
		}
	}
	// What the SDK would log at its most talkative goes nowhere.
	o := s.client.Options()
	if o.ClientLogMode != 0 {
		t.Errorf("the SDK logs %b", o.ClientLogMode)
	}
	var logged bytes.Buffer
	log.SetOutput(&logged)
	defer log.SetOutput(os.Stderr)
	stderr := captureStderr(t, func() {
		loud, err := open(t.Context(), config, func(o *s3.Options) {
			o.ClientLogMode = aws.LogSigning | aws.LogRequest | aws.LogRequestWithBody | aws.LogResponseWithBody | aws.LogRetries
		})
		if err != nil {
			t.Error(err)
			return
		}
		if err := loud.Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if logged.Len() > 0 || stderr != "" {
		t.Errorf("logged: %s%s", logged.String(), stderr)
	}
}

func captureStderr(t *testing.T, f func()) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stderr")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = file
	f()
	os.Stderr = old
	file.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestConfigurationsThatCannotBeRightAreRefused(t *testing.T) {
	good := Config{Bucket: "b", AccessKey: "AKsome", SecretKey: "verysecret"}
	for name, one := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no bucket":         {func(c *Config) { c.Bucket = "" }, "no bucket is named"},
		"bucket with path":  {func(c *Config) { c.Bucket = "b/c" }, "no name of a bucket"},
		"bucket as URL":     {func(c *Config) { c.Bucket = "s3://b" }, "no name of a bucket"},
		"prefix with space": {func(c *Config) { c.Prefix = "a b" }, "characters that are not allowed"},
		"prefix upwards":    {func(c *Config) { c.Prefix = "a/../b" }, "two dots"},
		"access key alone":  {func(c *Config) { c.SecretKey = "" }, "without a secret key"},
		"secret key alone":  {func(c *Config) { c.AccessKey = "" }, "without an access key"},
		"user in endpoint":  {func(c *Config) { c.EndpointURL = "https://me:verysecret@s3.example.com" }, "holds a user name"},
		"other scheme":      {func(c *Config) { c.EndpointURL = "ftp://s3.example.com" }, "no URL"},
		"no host":           {func(c *Config) { c.EndpointURL = "https://" }, "no URL"},
		"no CA file":        {func(c *Config) { c.CAFile = "/does/not/exist" }, "the CA file cannot be read"},
		"CA file of junk":   {func(c *Config) { c.CAFile = "cause_test.go" }, "CA"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			one.change(&config)
			_, err := Open(t.Context(), config)
			if err == nil || !strings.Contains(err.Error(), one.want) {
				t.Fatalf("the error is %v", err)
			}
			if strings.Contains(err.Error(), "verysecret") || strings.Contains(fmt.Sprintf("%+v", config), "verysecret") {
				t.Errorf("a key is in %v", err)
			}
		})
	}
}

func TestDefaultsDependOnTheServer(t *testing.T) {
	for _, v := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"} {
		t.Setenv(v, "")
		os.Unsetenv(v)
	}
	t.Setenv("AWS_CONFIG_FILE", "/does/not/exist")
	yes, no := true, false
	for name, one := range map[string]struct {
		config    Config
		env       string
		endpoint  string
		region    string
		pathStyle bool
		plain     bool
	}{
		"Amazon":                {Config{}, "", "", "us-east-1", false, false},
		"Amazon by its region":  {Config{Region: "eu-west-1"}, "", "", "eu-west-1", false, false},
		"Amazon by name":        {Config{EndpointURL: "https://s3.eu-west-1.amazonaws.com"}, "", "https://s3.eu-west-1.amazonaws.com", "us-east-1", false, false},
		"another":               {Config{EndpointURL: "https://s3.example.com:9000"}, "", "https://s3.example.com:9000", "us-east-1", true, false},
		"without a scheme":      {Config{EndpointURL: "s3.example.com"}, "", "https://s3.example.com", "us-east-1", true, false},
		"plain":                 {Config{EndpointURL: "s3.example.com:9000", PlainHTTP: true}, "", "http://s3.example.com:9000", "us-east-1", true, true},
		"the scheme counts":     {Config{EndpointURL: "https://s3.example.com", PlainHTTP: true}, "", "https://s3.example.com", "us-east-1", true, false},
		"style of another":      {Config{EndpointURL: "https://s3.example.com", PathStyle: &no}, "", "https://s3.example.com", "us-east-1", false, false},
		"style of Amazon":       {Config{PathStyle: &yes}, "", "", "us-east-1", true, false},
		"environment":           {Config{}, "http://10.0.0.1:9000", "http://10.0.0.1:9000", "us-east-1", true, true},
		"option or environment": {Config{EndpointURL: "https://s3.example.com"}, "http://10.0.0.1", "https://s3.example.com", "us-east-1", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			if one.env != "" {
				t.Setenv("AWS_ENDPOINT_URL_S3", one.env)
			}
			c := one.config
			c.Bucket, c.AccessKey, c.SecretKey, c.Prefix = "b", "AKsome", "secret", "p//"
			s := mustOpen(t, c)
			if o := s.client.Options(); s.endpoint != one.endpoint || o.Region != one.region || o.UsePathStyle != one.pathStyle || s.plain != one.plain {
				t.Errorf("endpoint %q, region %q, path style %v, plain %v", s.endpoint, o.Region, o.UsePathStyle, s.plain)
			}
			if s.Name() != "s3://b/p" || s.FullKey("k") != "p/k" {
				t.Errorf("%s, %s", s.Name(), s.FullKey("k"))
			}
		})
	}
}

func TestCredentialsAreFoundInTheirPlaces(t *testing.T) {
	server := s3test.Start(t, s3test.TLS())
	bucket := server.NewBucket(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "credentials")
	text := fmt.Sprintf("[site]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, server.SecretKey)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CA_BUNDLE", server.CAFile)
	config := Config{Bucket: bucket, EndpointURL: server.URL()}
	_, err := Open(t.Context(), config)
	wantWhole(t, err, "", "AWS_ACCESS_KEY_ID")

	t.Run("profile", func(t *testing.T) {
		t.Setenv("AWS_PROFILE", "site")
		if err := mustOpen(t, config).Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
		t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
		s := mustOpen(t, config)
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		if got := s.redact(server.AccessKey + server.SecretKey); strings.Contains(got, server.SecretKey) || strings.Contains(got, server.AccessKey) {
			t.Error("keys of the environment are not hidden")
		}
	})
}

func TestACompletedUploadWhoseAnswerIsLostCounts(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	proxy := server.NewProxy(t, faults.Settings{})
	config := configFor(server, bucket)
	config.EndpointURL = proxy.URL()
	s := mustOpen(t, config)
	b := fileBlob(t, 1, 2*partSize)
	// Create is the first POST, Complete the second.
	proxy.Set(faults.Settings{Kinds: []faults.Fault{faults.Lost}, Every: 2, Only: []string{"POST"}})
	if err := s.Put(t.Context(), Key(b.OID, b.TID), b, nil); err != nil {
		t.Fatal(err)
	}
	if n := proxy.Injected()[faults.Lost]; n != 1 {
		t.Errorf("%d answers were lost", n)
	}
	wantStored(t, server, bucket, b)
}
