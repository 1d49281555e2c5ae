package config

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/zodb-convert/zodb-convert/internal/zconfig/storage"
)

// RelStorage is a [source] of type "relstorage".
type RelStorage struct {
	storage.RelStorage
	// Replicas are the servers that ro-replica-conf lists, or else replica-conf:
	// each HOST or HOST:PORT.
	Replicas []string
}

const relStorageInOracle = "a RelStorage in Oracle cannot be read: this version reads it in PostgreSQL, MySQL, MariaDB and SQLite"

// relStorage describes the section. What has no effect is as in ZConfig.
var relStorage = storageType{
	name: "relstorage", named: true, loose: true, needsInner: true,
	begin: func(c *Config) { c.Source.RelStorage = &RelStorage{} },
	keys: append([]key{
		{name: "keep-history", value: "boolean", doc: "what the tables must be, if it is given: history-preserving or history-free; they tell it themselves", example: `true`,
			read: boolInto(func(c *Config, b bool) { c.Source.RelStorage.KeepHistory = &b })},
		{name: "blob-dir", value: "path", doc: "the directory of blobs that are not in the database; a cache of those that are is left alone", example: `"/srv/plone/var/blobstorage"`,
			read: textInto(func(c *Config, s string) { c.Source.RelStorage.BlobDir = home(s) })},
		{name: "shared-blob-dir", value: "boolean", doc: "whether blob-dir holds the only copy of the blobs; each blob tells it itself", example: `true`,
			read: boolInto(func(c *Config, b bool) { c.Source.RelStorage.SharedBlobDir = &b })},
		{name: "replica-conf", value: "path", doc: "a file that lists servers to read from, each HOST or HOST:PORT on a line of its own", example: `"/etc/plone/replicas"`,
			read: textInto(func(c *Config, s string) { c.Source.RelStorage.ReplicaConf = home(s) })},
		{name: "ro-replica-conf", value: "path", doc: "the same; it counts before replica-conf", example: `"/etc/plone/ro-replicas"`,
			read: textInto(func(c *Config, s string) { c.Source.RelStorage.ROReplicaConf = home(s) })},
	}, idleKeys("relstorage")...),
	inner: []storageType{
		{
			name: "postgresql", loose: true, begin: func(c *Config) { c.Source.RelStorage.PostgreSQL = &storage.PostgreSQL{} },
			keys: append([]key{
				{name: "dsn", value: "string", doc: "the PostgreSQL database, as libpq takes it (key=value or URL)", example: `"dbname=zodb user=zodb host=localhost"`,
					read: textOrNothing(func(c *Config, s string) { c.Source.RelStorage.PostgreSQL.DSN = s })},
			}, idleKeys("postgresql")...),
		},
		{
			name: "mysql", loose: true, begin: func(c *Config) { c.Source.RelStorage.MySQL = &storage.MySQL{} },
			keys: append([]key{
				{name: "db", value: "string", doc: "the name of the database", example: `"zodb"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.Database })},
				{name: "user", value: "string", doc: "the user", example: `"zodb"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.User })},
				{name: "passwd", value: "string", doc: "the password", example: `"${MYSQL_PWD}"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.Password })},
				{name: "host", value: "string", doc: "the server", example: `"localhost"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.Host })},
				{name: "port", value: "number", doc: "its port (default: 3306)", example: `3306`,
					read: numberInto(math.MaxUint16, func(c *Config, n int64) { c.Source.RelStorage.MySQL.Port = n })},
				{name: "unix_socket", value: "path", doc: "its socket, in place of host and port", example: `"/run/mysqld/mysqld.sock"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.UnixSocket })},
				{name: "connect_timeout", value: "number", doc: "how many seconds to wait for the server", example: `10`,
					read: numberInto(math.MaxInt32, func(c *Config, n int64) { c.Source.RelStorage.MySQL.ConnectTimeout = n })},
				{name: "compress", value: "boolean", doc: "whether to compress what goes over the line (default: false)", example: `true`,
					read: boolInto(func(c *Config, b bool) { c.Source.RelStorage.MySQL.Compress = b })},
				{name: "read_default_file", value: "path", doc: "a my.cnf that has what is not given here", example: `"/etc/plone/my.cnf"`, read: mysqlPath},
				{name: "read_default_group", value: "string", doc: "the group in it (default: client)", example: `"client"`, read: mysqlText(func(m *storage.MySQL) *string { return &m.DefaultGroup })},
				{name: "named_pipe", value: "boolean", doc: "refused if it is true", read: noNamedPipe},
			}, idleKeys("mysql")...),
		},
		{
			name: "sqlite3", loose: true, begin: func(c *Config) { c.Source.RelStorage.SQLite3 = &storage.SQLite3{} },
			keys: append([]key{
				{name: "data-dir", required: true, value: "path", doc: "the directory that holds main.sqlite3", example: `"/srv/plone/var/sqlite"`,
					read: textInto(func(c *Config, s string) { c.Source.RelStorage.SQLite3.DataDir = home(s) })},
			}, idleKeys("sqlite3")...),
			inner: []storageType{{name: "pragmas", other: &key{read: anything, unused: storage.WithoutWriting}}},
		},
		{name: "oracle", refused: relStorageInOracle},
	},
}

// idleKeys are those of a section of ZConfig that have no effect.
func idleKeys(section string) []key {
	readers := map[string]func(*reader, string, string, toml.Primitive) error{
		"boolean": boolInto(func(*Config, bool) {}), "size": sizeOnly, "number": anything, "time": anything,
	}
	var keys []key
	for _, k := range storage.Keys() {
		if k.Section != section || k.Unused == "" {
			continue
		}
		read := readers[k.Value]
		if read == nil {
			read = textOnly
		}
		keys = append(keys, key{name: k.Key, value: k.Value, unused: k.Unused, read: read})
	}
	return keys
}

func mysqlText(field func(*storage.MySQL) *string) func(*reader, string, string, toml.Primitive) error {
	return textOrNothing(func(c *Config, s string) { *field(c.Source.RelStorage.MySQL) = s })
}

func mysqlPath(r *reader, section, name string, value toml.Primitive) error {
	return textInto(func(c *Config, s string) { c.Source.RelStorage.MySQL.DefaultFile = home(s) })(r, section, name, value)
}

func noNamedPipe(r *reader, section, name string, value toml.Primitive) error {
	on, err := r.boolean(section, name, value)
	if err == nil && on {
		err = r.fail(r.line(value), fmt.Sprintf("%s in [%s] is true, by which this program cannot connect", name, section), "name host and port, or unix_socket")
	}
	return err
}

// numberInto reads a whole number from 0 to most, or a string with one.
func numberInto(most int64, set func(*Config, int64)) func(*reader, string, string, toml.Primitive) error {
	return func(r *reader, section, name string, value toml.Primitive) error {
		var v any
		if err := r.meta.PrimitiveDecode(value, &v); err != nil {
			return syntaxError(r.path, err)
		}
		n, ok := v.(int64)
		if _, isText := v.(string); isText {
			s, err := r.text(section, name, value)
			if err != nil {
				return err
			}
			n, err = strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			ok = err == nil
		}
		if !ok || n < 0 || n > most {
			return r.wrongType(section, name, value, fmt.Sprintf("a whole number from 0 to %d", most))
		}
		set(&r.out, n)
		return nil
	}
}

// anything is for a key without effect whose value may be of several types.
func anything(r *reader, section, name string, value toml.Primitive) error {
	if _, isTable := r.table(value); isTable {
		return r.wrongType(section, name, value, "a value")
	}
	return nil
}

// readReplicas reads the list of servers that counts.
func (s *RelStorage) readReplicas() error {
	path, key := s.ROReplicaConf, "ro-replica-conf"
	if path == "" {
		path, key = s.ReplicaConf, "replica-conf"
	}
	if path == "" {
		return nil
	}
	named := fmt.Sprintf("it is named as %s", key)
	text, err := readLimited(path)
	if err != nil {
		return &Error{Path: path, Reason: "the list of replicas cannot be read: " + cause(err), Hint: named}
	}
	if len(text) > maxBytes {
		return &Error{Path: path, Reason: "this is larger than any list of replicas (1 MB)", Hint: named}
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if !isAddress(string(line)) {
			return &Error{Path: path, Line: number, Reason: "this is no address of a replica", Hint: "a line is HOST or HOST:PORT, or a comment that starts with #"}
		}
		s.Replicas = append(s.Replicas, string(line))
	}
	if len(s.Replicas) == 0 {
		return &Error{Path: path, Reason: "there is no replica in the list", Hint: named}
	}
	return nil
}

// readLimited reads no more than one byte above maxBytes.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxBytes+1))
}

// isAddress tells whether a line is HOST or HOST:PORT. An address of IPv6 stands
// in brackets.
func isAddress(line string) bool {
	if strings.ContainsAny(line, " \t='\"\\@") {
		return false
	}
	host, port, given := line, "", false
	if i := strings.LastIndexByte(line, ':'); i > strings.LastIndexByte(line, ']') {
		host, port, given = line[:i], line[i+1:], true
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return false
		}
	} else if strings.ContainsAny(host, "[]:") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host != "" && (!given || err == nil && n > 0)
}
