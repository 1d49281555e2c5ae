package relstorage

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Numbers of errors that MySQL and MariaDB share.
const (
	deniedDatabase  = 1044
	deniedLogin     = 1045
	unknownDatabase = 1049
	shutdown        = 1053
	unknownColumn   = 1054
	tooMany         = 1040
	hostBlocked     = 1129
	hostRefused     = 1130
	deniedTable     = 1142
	deniedColumn    = 1143
	noSuchTable     = 1146
	packetTooLarge  = 1153
	aborted         = 1184
	tooManyOfUser   = 1203
	lockTimeout     = 1205
	deadlock        = 1213
	overLimit       = 1226
	deniedPrivilege = 1227
	truncated       = 1301
	interrupted     = 1317
	tableChanged    = 1412
	deniedSocket    = 1698
	queryTimeout    = 3024
	noTLS           = 3159
	maxStatement    = 1969 // MariaDB: max_statement_time
	killed          = 1927 // MariaDB: the connection was killed
	sessionKilled   = 3169
	inactive        = 4031
)

// numberOf is the number of a server's error, 0 if it is none.
func numberOf(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// gone marks an error that has cost the connection.
func (c *mysqlConn) gone(err error) error {
	if err == nil {
		return nil
	}
	switch numberOf(err) {
	case shutdown, aborted, killed, sessionKilled, inactive:
		return &goneError{err}
	case deadlock:
		// The server has ended the transaction, and the snapshot with it.
		return &goneError{err}
	}
	if !c.dc.IsValid() || errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) {
		return &goneError{err}
	}
	return err
}

// lost implements engine.
func (e *mysqlEngine) lost(err error) bool {
	var gone *goneError
	return errors.As(err, &gone)
}

// plain implements engine. No error of the server or the driver holds a password.
func (e *mysqlEngine) plain(err error) error {
	var plain *plainError
	var connecting *connectFailure
	switch {
	case err == nil || errors.As(err, &plain) || errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &connecting):
		kind := "MySQL"
		if _, maria := e.server(); maria {
			kind = "MariaDB"
		}
		c := connecting.config
		return &plainError{text: fmt.Sprintf("the source: %s database %q on %s as user %q: %s", kind, c.DBName, c.Addr, c.User, mysqlReason(connecting.err)), err: err}
	case numberOf(err) != 0:
		return &plainError{text: e.name() + ": " + mysqlReason(err), err: err}
	case e.lost(err):
		return &plainError{text: e.name() + ": the connection was lost, and with it the state that was read; go on with --incremental", err: err}
	}
	return err
}

// mysqlReason is the rest of a sentence about an error: what is wrong, and what
// to do.
func mysqlReason(err error) string {
	var server *mysql.MySQLError
	if !errors.As(err, &server) {
		return mysqlConnectReason(err)
	}
	said := strings.TrimSuffix(server.Message, ".")
	switch server.Number {
	case deniedLogin, deniedSocket:
		return fmt.Sprintf("the server refuses the login (%s); check user and passwd", said)
	case unknownDatabase:
		return fmt.Sprintf("the server has no such database (%s); check db", said)
	case deniedDatabase:
		return fmt.Sprintf("there is no such database, or the user may not use it (%s); check db, or grant SELECT on it to that user", said)
	case deniedTable, deniedColumn:
		return fmt.Sprintf("the user may not read a table (%s); grant SELECT on all tables of RelStorage to that user", said)
	case deniedPrivilege:
		return fmt.Sprintf("the user lacks a right (%s)", said)
	case noSuchTable, unknownColumn:
		return fmt.Sprintf("it is not the schema of a RelStorage (%s); check db, and that no upgrade is under way", said)
	case tooMany, tooManyOfUser, overLimit:
		return fmt.Sprintf("the server gives no further connection (%s); read with fewer, or raise max_connections or the limit of the user", said)
	case hostBlocked, hostRefused:
		return fmt.Sprintf("the server refuses this host (%s); grant the user access from here", said)
	case noTLS:
		return fmt.Sprintf("the server wants TLS (%s); set ssl-mode = REQUIRED in the option file", said)
	case tableChanged:
		return fmt.Sprintf("somebody has changed a table while it was read (%s); let the change of the schema end, and go on with --incremental", said)
	case lockTimeout:
		return fmt.Sprintf("somebody has locked a table (%s); let the change of the schema end, and start again", said)
	case deadlock:
		return fmt.Sprintf("the server has ended the transaction (%s), and with it the state that was read; go on with --incremental", said)
	case packetTooLarge, truncated:
		return fmt.Sprintf("a value is larger than a packet of the server may be (%s); raise max_allowed_packet on the server, up to 1G, and go on with --incremental", said)
	case interrupted, queryTimeout, maxStatement:
		return fmt.Sprintf("somebody, or a limit of the server, has ended a query (%s); lift the limit for this user, and go on with --incremental", said)
	case shutdown, aborted, killed, sessionKilled, inactive:
		return fmt.Sprintf("the server has ended the connection (%s), and with it the state that was read; go on with --incremental", said)
	}
	return fmt.Sprintf("%s (error %d)", said, server.Number)
}

// mysqlConnectReason is about an error that is not the server's.
func mysqlConnectReason(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "it does not answer in time; check host and port, or raise connect_timeout"
	case errors.As(err, &dns):
		return fmt.Sprintf("the host %s is not known; check host", dns.Name)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Sprintf("the server cannot be reached (%v); check that it runs, host, port and unix_socket", op.Err)
	case errors.Is(err, mysql.ErrNoTLS):
		return "the server knows no TLS, which ssl-mode of the option file asks for"
	case errors.Is(err, mysql.ErrCleartextPassword), errors.Is(err, mysql.ErrOldPassword), errors.Is(err, mysql.ErrUnknownPlugin):
		return "the server asks for the password in a way that is not supported; make the user log in with mysql_native_password, caching_sha2_password or ed25519"
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn):
		return "the connection was cut while logging in; check that host and port are those of MySQL or MariaDB"
	}
	return err.Error()
}

// isMariaDB tells the two by what SELECT VERSION() gives. A proxy may put
// another version before MariaDB's own.
func isMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }
