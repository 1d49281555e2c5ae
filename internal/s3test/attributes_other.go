//go:build !linux

package s3test

// hasAttributes tells whether the server can keep metadata in extended
// attributes of the files in dir. Unknown here: files of their own do as well.
func hasAttributes(string) bool { return false }
