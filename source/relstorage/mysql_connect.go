package relstorage

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"
)

// defaultSockets are where the servers of the usual packages listen.
var defaultSockets = []string{"/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"}

// mysqlConfigs says how to connect to each server that may be read from, in the
// order in which they are tried.
func mysqlConfigs(o MySQL, replicas []string) ([]*driver.Config, error) {
	o, keys, err := withOptionFiles(o)
	if err != nil {
		return nil, err
	}
	if o.Database == "" {
		return nil, errors.New("no database of MySQL or MariaDB is named; set db in <mysql>")
	}
	if o.User == "" {
		// As the client library does.
		if u, err := user.Current(); err == nil {
			o.User = u.Username
		}
	}
	base, err := mysqlConfig(&o, keys)
	if err != nil {
		return nil, err
	}
	if len(replicas) == 0 {
		base.Net, base.Addr = mysqlAddress(&o)
		return []*driver.Config{base}, withoutTLS(base)
	}
	var list []*driver.Config
	for _, r := range replicas {
		host, port, err := replicaAddress(r)
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.Net, c.Addr = "tcp", net.JoinHostPort(host, strconv.Itoa(firstOf(port, o.Port, 3306)))
		list = append(list, c)
	}
	return list, nil
}

func replicaAddress(replica string) (host string, port int, err error) {
	host = replica
	if h, p, err := net.SplitHostPort(replica); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("the replica %q is not written as HOST or HOST:PORT", replica)
		}
		host, port = h, int(n)
	}
	if host == "" || strings.ContainsAny(host, " /,") {
		return "", 0, fmt.Errorf("the replica %q is not written as HOST or HOST:PORT", replica)
	}
	return host, port, nil
}

func firstOf(numbers ...int) int {
	for _, n := range numbers {
		if n != 0 {
			return n
		}
	}
	return 0
}

// mysqlAddress is where the server is. Without a port, "localhost" and no host at
// all are the unix socket, as for the client library: it is another login than
// 127.0.0.1, and the one that local roles are made for.
func mysqlAddress(o *MySQL) (network, address string) {
	if o.UnixSocket != "" {
		return "unix", o.UnixSocket
	}
	if o.Port == 0 && (o.Host == "" || o.Host == "localhost") && runtime.GOOS != "windows" {
		for _, path := range defaultSockets {
			if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
				return "unix", path
			}
		}
	}
	host := o.Host
	if host == "" {
		host = "127.0.0.1"
	}
	return "tcp", net.JoinHostPort(host, strconv.Itoa(firstOf(o.Port, 3306)))
}

// withoutTLS leaves TLS away on a unix socket.
func withoutTLS(c *driver.Config) error {
	if c.Net == "unix" {
		c.TLS, c.AllowFallbackToPlaintext = nil, false
	}
	return nil
}

// mysqlConfig is what all connections have in common. Bytes come as they are:
// with the collation "binary" the server recodes nothing. (The statement SET NAMES
// would undo that, so no other charset is asked for.)
func mysqlConfig(o *MySQL, keys map[string]string) (*driver.Config, error) {
	c := driver.NewConfig()
	c.User, c.Passwd, c.DBName = o.User, o.Password, o.Database
	c.Collation = "binary"
	c.Timeout = time.Duration(firstOf(o.ConnectTimeout, 10)) * time.Second
	c.Logger = &driver.NopLogger{} // every error is returned as well
	c.ConnectionAttributes = "program_name:zodb-convert"
	c.CheckConnLiveness = false // of database/sql's pool
	c.DialFunc = dialBuffered
	if err := c.Apply(driver.EnableCompression(o.Compress)); err != nil {
		return nil, err
	}
	var err error
	c.TLS, c.AllowFallbackToPlaintext, err = mysqlTLS(keys)
	return c, err
}

// bufferedConn reads ahead: the driver has room for 4 KiB and would ask the system
// for each row.
type bufferedConn struct {
	net.Conn
	ahead *bufio.Reader
}

const readAhead = 128 << 10

func dialBuffered(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer // with keep-alives
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &bufferedConn{c, bufio.NewReaderSize(c, readAhead)}, nil
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.ahead.Read(p) }

// mysqlTLS says how to encrypt. Without a word about it a server that can do TLS
// is talked to with TLS, and nobody's certificate is checked: RelStorage's own
// drivers do no more. An authority in the option file makes it count.
func mysqlTLS(keys map[string]string) (config *tls.Config, plainAllowed bool, err error) {
	mode := strings.ToUpper(keys["ssl-mode"])
	off := mode == "DISABLED" || keys["skip-ssl"] == "1" || keys["ssl"] == "0" || strings.EqualFold(keys["ssl"], "off")
	if off {
		return nil, false, nil
	}
	// Old releases know no newer version, and anything is better than nothing where
	// nothing is allowed, too.
	config = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	plainAllowed = mode == "" && keys["ssl"] == "" || mode == "PREFERRED"
	if cert, key := keys["ssl-cert"], keys["ssl-key"]; cert != "" && key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, false, fmt.Errorf("ssl-cert and ssl-key of the option file: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	ca := keys["ssl-ca"]
	if ca == "" {
		if mode == "VERIFY_CA" || mode == "VERIFY_IDENTITY" {
			return nil, false, fmt.Errorf("ssl-mode %s of the option file needs an ssl-ca", mode)
		}
		return config, plainAllowed, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, false, fmt.Errorf("ssl-ca of the option file: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, false, fmt.Errorf("ssl-ca of the option file: %s holds no certificate", ca)
	}
	config.MinVersion = tls.VersionTLS12
	if verify := keys["ssl-verify-server-cert"]; mode == "VERIFY_IDENTITY" || verify != "" && verify != "0" {
		config.InsecureSkipVerify = false
	} else {
		// The chain counts, the name does not: InsecureSkipVerify leaves both to this.
		config.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(config.RootCAs, s.PeerCertificates) }
	}
	return config, false, nil
}

func verifyChain(roots *x509.CertPool, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("the server has no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	return err
}

// connect opens a connection to one server and sets its session up.
func (e *mysqlEngine) connect(ctx context.Context, config *driver.Config) (*mysqlConn, error) {
	connector, err := driver.NewConnector(config)
	if err != nil {
		return nil, err
	}
	// The timeout of the driver ends with the connection to the port.
	limited, cancel := context.WithTimeoutCause(ctx, config.Timeout, errSilent)
	defer cancel()
	dc, err := connector.Connect(limited)
	if err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = errSilent
		}
		return nil, &connectFailure{config, err}
	}
	c := &mysqlConn{engine: e, dc: dc.(mysqlDriverConn)}
	if err := c.settle(ctx); err != nil {
		_ = c.close()
		return nil, err
	}
	return c, nil
}

// errSilent is a server that does not finish a login.
var errSilent = errors.New("it does not answer in time")

// connectFailure is an error of connecting.
type connectFailure struct {
	config *driver.Config
	err    error
}

func (e *connectFailure) Error() string { return e.err.Error() }
func (e *connectFailure) Unwrap() error { return e.err }

// Sessions stay idle, and statements run, as long as a conversion takes. What a
// release does not know it refuses, which is fine.
var mysqlSettings = []string{
	"sql_mode = ''",
	"wait_timeout = 2147483",
	"net_write_timeout = 3600",
	"net_read_timeout = 3600",
	"lock_wait_timeout = 300",
	"max_statement_time = 0",                // MariaDB
	"idle_transaction_timeout = 0",          // MariaDB
	"idle_readonly_transaction_timeout = 0", // MariaDB
	"max_execution_time = 0",                // MySQL
}

func (c *mysqlConn) settle(ctx context.Context) error {
	for _, s := range mysqlSettings {
		if err := c.exec(ctx, "SET SESSION "+s); err != nil && c.engine.lost(err) {
			return err
		}
	}
	return c.exec(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
}
