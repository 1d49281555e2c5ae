package zconfig

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// The functions of this file read values as the datatypes of ZConfig do that
// bear their names. Their errors say what is wanted, not what was found.

var (
	errBoolean  = errors.New("yes, no, true, false, on or off")
	errInteger  = errors.New("a whole number")
	errFloat    = errors.New("a number")
	errByteSize = errors.New("a whole number of bytes, alone or with KB, MB or GB, such as 256MB")
	errInterval = errors.New("a whole number of seconds, or one with s, m, h or d, such as 5m")
	errDotted   = errors.New("a dotted name, such as package.module.name")
	errAddress  = errors.New("an address: HOST:PORT, a port, or the path of a socket")
	errDirPath  = errors.New("a path in a directory that exists")
	errBasicKey = errors.New("a letter, then letters, digits, -, . and _")
)

// Boolean takes neither 1 nor 0.
func Boolean(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "true", "on":
		return true, nil
	case "no", "false", "off":
		return false, nil
	}
	return false, errBoolean
}

var wholeNumber = regexp.MustCompile(`^[+-]?[0-9]+(_[0-9]+)*$`)

// Integer reads a number as Python does: with a sign, and with _ between digits.
// One beyond 64 bits is an error here.
func Integer(s string) (int64, error) {
	s = strings.TrimFunc(s, isSpace)
	if !wholeNumber.MatchString(s) {
		return 0, errInteger
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 10, 64)
	if err != nil {
		return 0, errInteger
	}
	return n, nil
}

var number = regexp.MustCompile(`(?i)^[+-]?(([0-9](_?[0-9])*)?\.?([0-9](_?[0-9])*)?(e[+-]?[0-9](_?[0-9])*)?|inf(inity)?|nan)$`)

// Float reads a number as Python does.
func Float(s string) (float64, error) {
	s = strings.TrimFunc(s, isSpace)
	if !number.MatchString(s) {
		return 0, errFloat
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, errFloat
	}
	return f, nil
}

// ByteSize knows KB, MB and GB, of 1024, in any case.
func ByteSize(s string) (int64, error) {
	return multiplied(s, []unit{{"kb", 1 << 10}, {"mb", 1 << 20}, {"gb", 1 << 30}}, errByteSize)
}

// TimeInterval gives seconds.
func TimeInterval(s string) (int64, error) {
	return multiplied(s, []unit{{"s", 1}, {"m", 60}, {"h", 60 * 60}, {"d", 24 * 60 * 60}}, errInterval)
}

type unit struct {
	suffix string
	factor int64
}

func multiplied(s string, units []unit, wanted error) (int64, error) {
	s = strings.ToLower(s)
	factor := int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = rest, u.factor
			break
		}
	}
	n, err := Integer(s)
	if err != nil || n > math.MaxInt64/factor || n < math.MinInt64/factor {
		return 0, wanted
	}
	return n * factor, nil
}

var (
	dotted   = regexp.MustCompile(`^[_a-zA-Z][_a-zA-Z0-9]*(\.[_a-zA-Z][_a-zA-Z0-9]*)*$`)
	basicKey = regexp.MustCompile(`^[a-zA-Z][-._a-zA-Z0-9]*$`)
)

// DottedName is the name of something in Python.
func DottedName(s string) (string, error) {
	if !dotted.MatchString(s) {
		return "", errDotted
	}
	return s, nil
}

// BasicKey gives the name of a key in lower case.
func BasicKey(s string) (string, error) {
	if !basicKey.MatchString(s) {
		return "", errBasicKey
	}
	return strings.ToLower(s), nil
}

// SocketAddress looks whether s may be an address; it is not resolved.
func SocketAddress(s string) (string, error) {
	if strings.Contains(s, "/") {
		return s, nil
	}
	host, port, found := "", s, true
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
		bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
		if strings.Contains(host, ":") && !bracketed {
			return s, nil // an IPv6 address without a port
		}
		found = port != ""
		host = strings.Trim(host, "[]")
	} else if _, err := Integer(s); err != nil {
		if s == "" || strings.ContainsFunc(s, isSpace) {
			return "", errAddress
		}
		return s, nil // a host without a port
	}
	if n, err := Integer(port); found && (err != nil || n < 0 || n > math.MaxUint16) {
		return "", errAddress
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return "", errAddress
		}
	}
	return s, nil
}

// ExistingDirPath gives a path with the home directory put in, if the directory
// that it is in exists as isDir tells. A path without a directory is right, an
// empty one, too.
func ExistingDirPath(s string, isDir func(string) bool) (string, error) {
	path := ExpandUser(s)
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return path, nil
	}
	dir := path[:i]
	if dir == "" || strings.Trim(dir, "/") == "" {
		dir = path[:i+1]
	}
	if !isDir(dir) {
		return "", errDirPath
	}
	return path, nil
}

// ExpandUser puts in the home directory for a leading ~ or ~user. The path stays
// as it is if there is no such user.
func ExpandUser(path string) string {
	rest, ok := strings.CutPrefix(path, "~")
	if !ok {
		return path
	}
	name, below := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		name, below = rest[:i], rest[i:]
	}
	home := ""
	if name == "" {
		home, _ = os.UserHomeDir()
	} else if u, err := user.Lookup(name); err == nil {
		home = u.HomeDir
	}
	if home == "" {
		return path
	}
	if home = strings.TrimRight(home, "/"); home+below == "" {
		return string(filepath.Separator)
	}
	return home + below
}
