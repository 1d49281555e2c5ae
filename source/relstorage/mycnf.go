package relstorage

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// A my.cnf is an option file of MySQL's and MariaDB's client library: groups of
// keys, of which a later one wins, and inclusions of other files. Of the keys
// those are read that tell where the database is and who asks.
//
// RelStorage hands read_default_file and read_default_group to its driver.
// mysqlclient lets the library read the groups that every client reads, and the
// named one besides; PyMySQL reads the named one alone. Both let what is
// configured win over what is in the file.

// clientGroups are read by every client of the library.
var clientGroups = []string{"client", "client-server", "client-mariadb"}

// defaultOptionFiles are read when a group is named but no file.
func defaultOptionFiles() []string {
	if runtime.GOOS == "windows" {
		return []string{`C:\Windows\my.ini`, `C:\Windows\my.cnf`, `C:\my.ini`, `C:\my.cnf`}
	}
	files := []string{"/etc/my.cnf", "/etc/mysql/my.cnf"}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".my.cnf"))
	}
	return files
}

// optionFile is what was read.
type optionFile struct {
	groups []string
	keys   map[string]string // with - for _
}

// readOptionFiles reads the option files that o names.
func readOptionFiles(o *MySQL) (map[string]string, error) {
	f := optionFile{groups: clientGroups, keys: map[string]string{}}
	if o.DefaultGroup != "" {
		f.groups = append(slices.Clone(f.groups), o.DefaultGroup)
	}
	switch {
	case o.DefaultFile != "":
		if err := f.read(o.DefaultFile, 0); err != nil {
			return nil, fmt.Errorf("read_default_file: %w", err)
		}
	case o.DefaultGroup != "":
		for _, name := range defaultOptionFiles() {
			if err := f.read(name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("read_default_group: %w", err)
			}
		}
	}
	return f.keys, nil
}

// deepest is how far inclusions are followed: one that includes itself ends there.
const deepest = 10

func (f *optionFile) read(name string, depth int) error {
	if depth > deepest {
		return fmt.Errorf("%s: the files include each other", name)
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	wanted := false
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			group, _, ok := strings.Cut(line[1:], "]")
			if !ok {
				return fmt.Errorf("%s:%d: the group has no ]", name, number)
			}
			wanted = slices.Contains(f.groups, strings.TrimSpace(group))
		case line[0] == '!':
			if err := f.include(name, line, depth); err != nil {
				return fmt.Errorf("%s:%d: %w", name, number, err)
			}
		case wanted:
			f.option(line)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (f *optionFile) include(name, line string, depth int) error {
	directive, target, _ := strings.Cut(line, " ")
	target = strings.TrimSpace(target)
	if target != "" && !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(name), target)
	}
	switch {
	case target == "":
		return fmt.Errorf("%s names nothing", directive)
	case directive == "!include":
		return f.read(target, depth+1)
	case directive == "!includedir":
		// Glob sorts; a folder that is not there includes nothing.
		for _, pattern := range []string{"*.cnf", "*.ini"} {
			files, _ := filepath.Glob(filepath.Join(target, pattern))
			for _, file := range files {
				if err := f.read(file, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return fmt.Errorf("%.40q is neither !include nor !includedir", directive)
}

func (f *optionFile) option(line string) {
	key, value, found := strings.Cut(line, "=")
	key = strings.ReplaceAll(strings.TrimSpace(key), "_", "-")
	if !found {
		// A mark of its own: skip-ssl.
		key, _, _ = strings.Cut(key, "#")
		f.keys[strings.TrimSpace(key)] = "1"
		return
	}
	f.keys[key] = optionValue(strings.TrimSpace(value))
}

// optionValue takes quotes, escapes and a comment behind the value away.
func optionValue(s string) string {
	var b strings.Builder
	quote := byte(0)
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		quote, s = s[0], s[1:]
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			if at := strings.IndexByte("btnrs", s[i]); at >= 0 {
				b.WriteByte("\b\t\n\r "[at])
			} else {
				if s[i] != '\\' && s[i] != '"' && s[i] != '\'' {
					b.WriteByte('\\')
				}
				b.WriteByte(s[i])
			}
		case quote != 0 && c == quote:
			return b.String()
		case quote == 0 && c == '#':
			return strings.TrimSpace(b.String())
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// withOptionFiles is o with what option files add to it, and the keys of these.
func withOptionFiles(o MySQL) (MySQL, map[string]string, error) {
	keys, err := readOptionFiles(&o)
	if err != nil {
		return o, nil, err
	}
	for key, field := range map[string]*string{
		"host": &o.Host, "user": &o.User, "password": &o.Password, "socket": &o.UnixSocket, "database": &o.Database,
	} {
		// A socket of the file is not meant for a host that the configuration names.
		if *field == "" && !(key == "socket" && o.Host != "" && o.Host != keys["host"]) {
			*field = keys[key]
		}
	}
	if s := keys["port"]; o.Port == 0 && s != "" {
		if o.Port, err = strconv.Atoi(s); err != nil {
			return o, nil, fmt.Errorf("the port %.20q of the option file is no number", s)
		}
	}
	if s := keys["connect-timeout"]; o.ConnectTimeout == 0 && s != "" {
		if o.ConnectTimeout, err = strconv.Atoi(s); err != nil {
			return o, nil, fmt.Errorf("connect-timeout %.20q of the option file is no number", s)
		}
	}
	if s, ok := keys["compress"]; ok && s != "0" {
		o.Compress = true
	}
	return o, keys, nil
}
