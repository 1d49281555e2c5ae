package s3blob

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAccessIsSeenWithoutWriting(t *testing.T) {
	server := shared.Server(t)
	bucket := server.NewBucket(t)
	config := configFor(server, bucket)
	ask := func() Access {
		t.Helper()
		a, err := mustOpen(t, config).Access(t.Context(), Key(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if got := ask(); got != (Access{List: Yes, Read: Yes}) {
		t.Errorf("of an empty bucket its owner is told %+v", got)
	}
	server.Put(t, bucket, config.Prefix+"/"+Key(1, 2), []byte("blob"), nil)
	before := server.Snapshot(t, bucket)
	config.AccessKey, config.SecretKey = server.NewUser(t)
	for _, c := range []struct {
		actions []string
		want    Access
	}{
		{[]string{"s3:GetObject", "s3:ListBucket"}, Access{List: Yes, Read: Yes}},
		{[]string{"s3:ListBucket"}, Access{List: Yes, Read: No}},
		// Whether it is the object that is missing or the right is not said.
		{[]string{"s3:GetObject"}, Access{List: No, Read: Unknown}},
		{[]string{"s3:PutObject", "s3:DeleteObject"}, Access{List: No, Read: Unknown}},
	} {
		server.Allow(t, bucket, config.AccessKey, c.actions...)
		if got := ask(); got != c.want {
			t.Errorf("with %v there is %+v, want %+v", c.actions, got, c.want)
		}
	}
	// A key that is there tells more.
	server.Allow(t, bucket, config.AccessKey, "s3:GetObject")
	if got, err := mustOpen(t, config).Access(t.Context(), Key(1, 2)); err != nil || got != (Access{List: No, Read: Yes}) {
		t.Errorf("with an object that is there: %+v, %v", got, err)
	}
	if diff := cmp.Diff(before, server.Snapshot(t, bucket)); diff != "" {
		t.Errorf("the bucket was changed (-before +after):\n%s", diff)
	}
}

func TestAccessToABucketThatCannotBeUsedIsAnError(t *testing.T) {
	server := shared.Server(t)
	for name, change := range map[string]func(*Config){
		"no bucket":    func(c *Config) { c.Bucket = "no-such-bucket" },
		"wrong secret": func(c *Config) { c.SecretKey = "wrong" },
		"unknown user": func(c *Config) { c.AccessKey = "nobody" },
	} {
		config := configFor(server, server.NewBucket(t))
		change(&config)
		got, err := mustOpen(t, config).Access(t.Context(), Key(0, 0))
		var mine *Error
		if !errors.As(err, &mine) || mine.Reason == "" || got.Read != Unknown {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
