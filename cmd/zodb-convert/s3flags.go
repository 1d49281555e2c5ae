package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/zodb-convert/zodb-convert/internal/config"
)

// s3Flags are the flags that say the same as the keys s3-... of CONFIG. They
// count before them, each for itself.
type s3Flags struct {
	config.S3
	pathStyle bool
	given     func(flag string) bool
}

func (s *s3Flags) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("s3", pflag.ContinueOnError)
	f.SortFlags = false
	for _, t := range s.texts() {
		f.StringVar(t.value, t.flag, "", t.usage)
	}
	f.BoolVar(&s.pathStyle, "s3-path-style", false, "put the bucket into the path of URLs, not into the host name")
	return f
}

type s3Text struct {
	flag, usage string
	value       *string
	secret      bool
}

func (s *s3Flags) texts() []s3Text {
	return []s3Text{
		{"s3-bucket", "the `NAME` of the bucket", &s.Bucket, false},
		{"s3-prefix", "the `TEXT` that its keys start with", &s.Prefix, false},
		{"s3-endpoint-url", "the server's `URL`, if it is not Amazon's", &s.EndpointURL, false},
		{"s3-region", "the `NAME` of the region", &s.Region, false},
		{"s3-access-key", "the access `KEY`", &s.AccessKey, true},
		{"s3-secret-key", "the secret `KEY`", &s.SecretKey, true},
		{"s3-ca-bundle", "`PATH` of certificates that the server's is checked against", &s.CABundle, false},
	}
}

// over puts the flags over what CONFIG says.
func (s *s3Flags) over(c *config.Config) error {
	to := s3Flags{S3: c.Destination.S3}
	from, into := s.texts(), to.texts()
	for i, t := range from {
		if s.given(t.flag) {
			*into[i].value = *t.value
		}
	}
	if s.given("s3-path-style") {
		to.PathStyle = &s.pathStyle
	}
	if (to.AccessKey == "") != (to.SecretKey == "") {
		return usage("--s3-access-key and --s3-secret-key go together",
			"better than on the command line, where everybody on the machine sees them, keys stand in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	if to.Bucket == "" {
		for _, t := range append(from, s3Text{flag: "s3-path-style"}) {
			if s.given(t.flag) {
				return usage("--"+t.flag+" is of no use without a bucket", "name it with --s3-bucket, or as s3-bucket-name in CONFIG")
			}
		}
	} else {
		c.Unused = slices.DeleteFunc(c.Unused, func(u config.Unused) bool { return u.Why == config.WithoutBucket })
	}
	c.Destination.S3 = to.S3
	return nil
}

// text is the flags as they are typed, for a command that goes on. Secrets are
// shown as "...".
func (s *s3Flags) text() string {
	if s.given == nil {
		return ""
	}
	var b strings.Builder
	for _, t := range s.texts() {
		if !s.given(t.flag) {
			continue
		}
		value := quote(*t.value)
		if t.secret {
			value = "..."
		}
		b.WriteString(" --" + t.flag + " " + value)
	}
	if s.given("s3-path-style") {
		b.WriteString(" --s3-path-style=" + strconv.FormatBool(s.pathStyle))
	}
	return b.String()
}
