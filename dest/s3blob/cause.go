package s3blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// cause is what an error of a request means.
type cause struct {
	reason, hint string
	// retry: it may be over soon.
	retry bool
	// changed: what arrived is not what was sent.
	changed bool
	// whole: it concerns every object, not this one.
	whole bool
}

// errStalled ends a request that makes no progress.
var errStalled = errors.New("the request makes no progress")

// diagnose finds the cause of a request's error.
func (s *Store) diagnose(op right, err error) cause {
	if errors.Is(err, errStalled) {
		return cause{reason: fmt.Sprintf("the server has not answered for %v", s.config.Stall), retry: true}
	}
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.HTTPStatusCode() != 0 {
		return s.answerCause(op, response, err)
	}
	return s.networkCause(err)
}

// answerCause is for what the server has answered.
func (s *Store) answerCause(op right, response *smithyhttp.ResponseError, err error) cause {
	status, code, message := response.HTTPStatusCode(), "", ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), api.ErrorMessage()
	}
	if c, known := s.codeCause(op, code, response); known {
		return c
	}
	switch {
	case status == http.StatusMovedPermanently || code == "AuthorizationHeaderMalformed" || code == "IllegalLocationConstraintException":
		return s.regionCause(response, message)
	case status == http.StatusBadRequest && s.plain && spokeToTLS(err):
		return s.wrongScheme()
	case status == http.StatusForbidden:
		return cause{
			reason: fmt.Sprintf("the credentials may not %s", op.what), whole: true,
			hint: fmt.Sprintf("allow %s on the objects %s", op.rights, s.FullKey("*")),
		}
	case status >= 500 && status != http.StatusNotImplemented, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return cause{reason: "the server answers " + answer(status, code, message), retry: true}
	}
	return cause{reason: "the server answers " + answer(status, code, message)}
}

func answer(status int, code, message string) string {
	text := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if code != "" && code != http.StatusText(status) {
		text += ", " + code
	}
	if message != "" && message != http.StatusText(status) {
		text += " (" + strings.TrimSuffix(message, ".") + ")"
	}
	return text
}

// codeCause is for the codes that say more than the status.
func (s *Store) codeCause(op right, code string, response *smithyhttp.ResponseError) (_ cause, known bool) {
	switch code {
	case "NoSuchBucket":
		return cause{reason: fmt.Sprintf("there is no bucket %s%s", s.config.Bucket, s.at()), whole: true,
			hint: "create it, or correct the name or the endpoint"}, true
	case "InvalidBucketName":
		return cause{reason: fmt.Sprintf("%q cannot be the name of a bucket", s.config.Bucket), whole: true, hint: "correct the name"}, true
	case "InvalidAccessKeyId":
		return cause{reason: "the server does not know the access key", whole: true,
			hint: "correct the access key, or the endpoint if the key is that of another server"}, true
	case "SignatureDoesNotMatch":
		return cause{reason: "the secret key is not that of the access key", whole: true, hint: "correct the secret key"}, true
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return cause{reason: "the session of the credentials has ended", whole: true, hint: "get new ones and continue"}, true
	case "RequestTimeTooSkewed", "RequestExpired":
		return s.clockCause(response), true
	case "AccountProblem", "InvalidPayer", "NotSignedUp", "AllAccessDisabled":
		return cause{reason: "the account is blocked: " + code, whole: true, hint: "ask who owns it"}, true
	case "BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest":
		return cause{reason: "other bytes have arrived than were sent (" + code + ")", retry: true, changed: true,
			hint: "something on the way to the server changes data: a proxy, a network card, memory"}, true
	case "IncompleteBody", "RequestTimeout":
		return cause{reason: "not all bytes have arrived (" + code + ")", retry: true}, true
	case "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError", "OperationAborted":
		return cause{reason: "the server answers " + answer(response.HTTPStatusCode(), code, ""), retry: true}, true
	case "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage":
		return cause{reason: "the store is full (" + code + ")", whole: true, hint: "make room and continue"}, true
	}
	return cause{}, false
}

func (s *Store) clockCause(response *smithyhttp.ResponseError) cause {
	c := cause{reason: "the clock of this machine is wrong", whole: true, hint: "set the clock (NTP)"}
	if date, err := http.ParseTime(response.Response.Header.Get("Date")); err == nil {
		c.reason += fmt.Sprintf(": here it is %s, at the server %s", time.Now().UTC().Format(time.DateTime), date.UTC().Format(time.DateTime))
	}
	return c
}

// regionCause is for a bucket that is in another region than was said.
func (s *Store) regionCause(response *smithyhttp.ResponseError, message string) cause {
	c := cause{reason: fmt.Sprintf("the bucket %s is not in the region %s", s.config.Bucket, s.config.Region), whole: true,
		hint: "give its region, or the endpoint of its region"}
	region := response.Response.Header.Get("X-Amz-Bucket-Region")
	// "The authorization header is malformed; the region 'a' is wrong; expecting
	// 'b'", with quotes of either kind.
	if _, after, found := strings.Cut(message, "expecting "); region == "" && found {
		region = strings.Trim(after, "'\" .")
	}
	if region != "" && region != s.config.Region {
		c.hint = "give its region: " + region
	}
	return c
}

// networkCause is for requests without an answer.
func (s *Store) networkCause(err error) cause {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &dns):
		c := cause{reason: fmt.Sprintf("the name %s cannot be resolved", dns.Name), whole: true, retry: true,
			hint: "correct the endpoint" + s.orPathStyle()}
		// Before the first answer a name that does not exist is a wrong one.
		if dns.IsNotFound && s.answered.Load() == 0 {
			c.retry = false
		}
		return c
	case errors.As(err, &authority):
		return cause{reason: "the server's certificate is signed by an authority that is not known here", whole: true,
			hint: "name the authority's certificates in a CA file, or in AWS_CA_BUNDLE"}
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return cause{reason: "the server's certificate is not good: " + certificateProblem(err), whole: true,
			hint: "correct the endpoint, or let the server have a certificate for its name"}
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return s.wrongScheme()
	case s.plain && s.answered.Load() == 0 && (spokeToTLS(err) || wasCut(err) && s.speaksTLS()):
		return s.wrongScheme()
	}
	if !isNetwork(err) {
		// Nothing was sent: there are no credentials any more, or the like.
		return cause{reason: err.Error(), whole: true}
	}
	return cause{reason: networkReason(err) + s.at(), retry: true,
		hint: "see whether the S3 server runs and can be reached from here"}
}

// orPathStyle is about endpoints that do not know a host name for each bucket.
func (s *Store) orPathStyle() string {
	if s.client.Options().UsePathStyle {
		return ""
	}
	return ", or use path style"
}

func certificateProblem(err error) string {
	var hostname x509.HostnameError
	if errors.As(err, &hostname) {
		return hostname.Error()
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		return invalid.Error()
	}
	return err.Error()
}

// spokeToTLS tells whether a server that wants TLS was spoken to without: it
// answers with a TLS alert, or in words.
func spokeToTLS(err error) bool {
	text := err.Error()
	var answer *smithy.DeserializationError
	if errors.As(err, &answer) {
		text += string(answer.Snapshot)
	}
	return strings.Contains(text, `malformed HTTP response "\x15\x03`) || strings.Contains(text, "HTTP request to an HTTPS server") ||
		strings.Contains(text, "plain HTTP request was sent to HTTPS port")
}

// wasCut tells whether the connection ended without an answer.
func wasCut(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || strings.Contains(err.Error(), "EOF")
}

// speaksTLS tries whether a server that cuts connections wants TLS: some say
// nothing else to plain http. Nothing is sent over it, so the certificate does
// not matter.
func (s *Store) speaksTLS() bool {
	u, err := url.Parse(s.endpoint)
	if err != nil || u.Host == "" {
		return false
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	dialer := &net.Dialer{Timeout: 3 * time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (s *Store) wrongScheme() cause {
	if s.plain {
		return cause{reason: "the server speaks https, and it was asked over http" + s.at(), whole: true,
			hint: "write https:// before the endpoint, or set s3-use-ssl to true"}
	}
	return cause{reason: "the server speaks http, and it was asked over https" + s.at(), whole: true,
		hint: "write http:// before the endpoint, or set s3-use-ssl to false"}
}

// at names the server.
func (s *Store) at() string {
	if s.endpoint == "" {
		return " at Amazon's S3"
	}
	return " at " + s.endpoint
}

func networkReason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the server takes no connections"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the server has cut the connection"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no way to the server"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "the server does not answer"
	case strings.Contains(err.Error(), "EOF"):
		return "the server has ended the connection without an answer"
	}
	return "the request has failed (" + innermost(err).Error() + ")"
}

// isNetwork tells whether a request was sent, or would have been.
func isNetwork(err error) bool {
	var sent *smithyhttp.RequestSendError
	return errors.As(err, &sent) || errors.Is(err, context.DeadlineExceeded)
}

func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
