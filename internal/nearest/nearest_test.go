package nearest

import "testing"

func TestWord(t *testing.T) {
	known := []string{"path", "blob-dir", "type", "s3-bucket-name", "history-preserving"}
	for _, c := range []struct{ word, want string }{
		{"path", "path"},
		{"pth", "path"},
		{"paht", "path"},
		{"blob_dir", "blob-dir"},
		{"blobdir", "blob-dir"},
		{"s3-bucket", "s3-bucket-name"},
		{"history_preserving", "history-preserving"},
		{"keep-history", ""},
		{"x", ""},
		{"", ""},
		{"wholly-different-key", ""},
	} {
		if got := Word(c.word, known); got != c.want {
			t.Errorf("Word(%q) = %q, want %q", c.word, got, c.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0},
		{"abc", "acb", 1}, {"abcd", "badc", 2}, {"kitten", "sitting", 3},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
