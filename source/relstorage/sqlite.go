package relstorage

import "errors"

func newSQLite(opts *Options) (engine, error) {
	return nil, errors.New("relstorage: SQLite is not read")
}
