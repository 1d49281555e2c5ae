package s3test

import "golang.org/x/sys/unix"

// hasAttributes tells whether the server can keep metadata in extended
// attributes of the files in dir.
func hasAttributes(dir string) bool {
	return unix.Setxattr(dir, "user.s3test", []byte{1}, 0) == nil
}
