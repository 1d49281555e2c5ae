package s3blob

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

const (
	defaultWait   = 2 * time.Minute
	defaultStall  = 30 * time.Second
	defaultRegion = "us-east-1"
	// connections is how many are kept open between requests: as many as there
	// can be requests at once.
	connections = maxBuffers + maxParts
)

// Open reads the configuration and finds the credentials. The server is not
// asked yet.
func Open(ctx context.Context, config Config) (*Store, error) {
	return open(ctx, config, nil)
}

// open lets tests change the client.
func open(ctx context.Context, config Config, tune func(*s3.Options)) (*Store, error) {
	endpoint, err := config.check()
	if err != nil {
		return nil, err
	}
	settings, err := config.load(ctx)
	if err != nil {
		return nil, err
	}
	redact, err := findKeys(ctx, settings)
	if err != nil {
		return nil, err
	}
	s := &Store{config: config, redact: redact, opened: time.Now(),
		parts: make(chan struct{}, maxParts), buffers: make(chan []byte, maxBuffers)}
	s.config.AccessKey, s.config.SecretKey = "", ""
	for range maxBuffers {
		s.buffers <- nil
	}
	if s.config.Wait == 0 {
		s.config.Wait = defaultWait
	}
	if s.config.Stall == 0 {
		s.config.Stall = defaultStall
	}
	s.client = s3.NewFromConfig(settings, func(o *s3.Options) {
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
		s.endpoint = safeURL(aws.ToString(o.BaseEndpoint))
		s.plain = strings.HasPrefix(s.endpoint, "http://") || s.endpoint == "" && config.PlainHTTP
		o.EndpointOptions.DisableHTTPS = config.PlainHTTP
		o.UsePathStyle = !isAmazon(s.endpoint)
		if config.PathStyle != nil {
			o.UsePathStyle = *config.PathStyle
		}
		if o.Region == "" {
			o.Region = defaultRegion
		}
		s.config.Region = o.Region
		// The loop in retry.go knows more: which part, how long, what else works.
		o.Retryer = aws.NopRetryer{}
		o.RetryMaxAttempts = 0
		// Every body is signed with its own hash. The SDK's checksums come on top
		// of that, many stores do not know them, and over https they replace it.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		// A wrong clock is to be told, not hidden for one request in two.
		o.DisableClockSkewCorrection = true
		// Requests hold keys and signatures.
		o.ClientLogMode = 0
		o.Logger = logging.Nop{}
		if tune != nil {
			tune(o)
		}
	})
	return s, nil
}

var (
	goodPrefix = regexp.MustCompile(`^[a-zA-Z0-9._/-]*$`)
	goodBucket = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
)

// check says what is wrong with the configuration as it stands, and gives the
// endpoint with its scheme. It strips the slashes at the end of the prefix.
func (c *Config) check() (endpoint string, err error) {
	refuse := func(reason, hint string) (string, error) {
		return "", &Error{Op: "open the S3 bucket", Reason: reason, Hint: hint, Whole: true}
	}
	c.Prefix = strings.TrimRight(c.Prefix, "/")
	switch {
	case c.Bucket == "":
		return refuse("no bucket is named", "")
	case !goodBucket.MatchString(c.Bucket) && !strings.HasPrefix(c.Bucket, "arn:"):
		return refuse(fmt.Sprintf("%q is no name of a bucket", c.Bucket), "give the name alone, without s3:// and without a path")
	case !goodPrefix.MatchString(c.Prefix):
		return refuse(fmt.Sprintf("the prefix %q has characters that are not allowed", c.Prefix),
			"letters, digits, dots, hyphens, underscores and slashes are")
	case strings.Contains(c.Prefix, ".."):
		return refuse(fmt.Sprintf("the prefix %q has two dots in a row", c.Prefix), "zodb-pgjsonb does not take it")
	case c.AccessKey == "" && c.SecretKey != "":
		return refuse("a secret key is given without an access key", "give both or neither")
	case c.AccessKey != "" && c.SecretKey == "":
		return refuse("an access key is given without a secret key", "give both or neither")
	case c.EndpointURL == "":
		return "", nil
	}
	endpoint = c.EndpointURL
	if !strings.Contains(endpoint, "://") {
		scheme := "https://"
		if c.PlainHTTP {
			scheme = "http://"
		}
		endpoint = scheme + endpoint
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "":
		// The text may hold a password, so it is not repeated.
		return refuse("the endpoint is no URL of an http or https server", "it looks like https://s3.example.com:9000")
	case u.User != nil:
		return refuse("the endpoint holds a user name", "give the keys apart from it")
	}
	return endpoint, nil
}

// safeURL is a URL without user, password and query.
func safeURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	if u.Host == "" {
		before, after, found := strings.Cut(text, "@")
		if found {
			return after
		}
		return before
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

func isAmazon(endpoint string) bool {
	if endpoint == "" {
		return true
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}

// load reads environment and profile, and lays what is configured over them.
func (c *Config) load(ctx context.Context) (aws.Config, error) {
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithHTTPClient(httpClient()),
		awsconfig.WithLogger(logging.Nop{}),
		awsconfig.WithClientLogMode(0),
	}
	if c.Region != "" {
		options = append(options, awsconfig.WithRegion(c.Region))
	}
	if c.AccessKey != "" {
		options = append(options, awsconfig.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, "")))
	}
	fail := func(what string, err error, hint string) (aws.Config, error) {
		reason := redactor(c.AccessKey, c.SecretKey)(what + ": " + err.Error())
		return aws.Config{}, &Error{Op: "open the S3 bucket " + c.Bucket, Reason: reason, Hint: hint, Whole: true}
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return fail("the CA file cannot be read", err, "")
		}
		options = append(options, awsconfig.WithCustomCABundle(bytes.NewReader(pem)))
	}
	settings, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		if c.CAFile != "" && strings.Contains(err.Error(), "CA bundle") {
			return fail("the CA file "+c.CAFile, err, "it must hold certificates in PEM form")
		}
		return fail("the settings of the AWS environment cannot be read", err,
			"look at the variables AWS_* and at the files in ~/.aws")
	}
	return settings, nil
}

// httpClient makes many small requests cheap: connections stay open. HTTP/2
// would squeeze all of them into one.
func httpClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) {
			d.Timeout = 10 * time.Second
			d.KeepAlive = 30 * time.Second
		}).
		WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConns = connections
			t.MaxIdleConnsPerHost = connections
			t.IdleConnTimeout = 30 * time.Second
			t.TLSHandshakeTimeout = 10 * time.Second
			t.ForceAttemptHTTP2 = false
			t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			t.WriteBufferSize = 32 << 10
			t.DisableCompression = true
		})
}

// findKeys makes sure that there are credentials, and returns what hides them.
func findKeys(ctx context.Context, settings aws.Config) (redact func(string) string, err error) {
	// A machine role is asked for over the network.
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	found, err := settings.Credentials.Retrieve(limited)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("find the S3 credentials: %w", ctx.Err())
	}
	if err != nil {
		redact := redactor(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN"))
		return nil, &Error{Op: "find the S3 credentials", Reason: redact(err.Error()), Whole: true,
			Hint: "give an access key and a secret key in the configuration, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY," +
				" in a profile (AWS_PROFILE), or give the machine a role"}
	}
	return redactor(found.AccessKeyID, found.SecretAccessKey, found.SessionToken), nil
}

// redactor hides texts. Very short ones are no keys, and hiding them would eat
// words.
func redactor(secrets ...string) func(string) string {
	var pairs []string
	for _, secret := range secrets {
		if len(secret) >= 4 {
			pairs = append(pairs, secret, "***")
		}
	}
	return strings.NewReplacer(pairs...).Replace
}
