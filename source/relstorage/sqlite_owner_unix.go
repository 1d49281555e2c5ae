//go:build unix

package relstorage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// fileID names a file, whatever its path: its number in the file system. That of
// the device is left out, since it may be another after the next start of the
// machine.
func fileID(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return path, nil
	}
	return "inode " + strconv.FormatUint(uint64(stat.Ino), 10), nil
}

// mayJoin refuses to make files beside a database that its site could not write
// to afterwards: they would belong to the user who reads. (SQLite gives those
// that root makes to the owner of the database.) The head of the file is only
// looked at while no connection can be there: closing it would take away the
// locks of this process.
func mayJoin(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	me := os.Geteuid()
	if !ok || me == 0 || me == int(stat.Uid) {
		return nil
	}
	if _, err := os.Stat(path + "-shm"); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	wal, err := usesWAL(path)
	if err != nil || !wal {
		// SQLite says more about what cannot be read.
		return nil
	}
	return fmt.Errorf("the source: %s belongs to %s, and to read it, files would have to be made beside it that belong to %s, which the site could not write to; run this as %[2]s",
		path, userName(int(stat.Uid)), userName(me))
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "user " + strconv.Itoa(uid)
}

// usesWAL looks at the bytes 18 and 19 of a database, which are 2 in WAL mode.
func usesWAL(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var head [20]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return false, err
	}
	return head[18] == 2 && head[19] == 2, nil
}
