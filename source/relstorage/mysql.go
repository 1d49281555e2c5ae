package relstorage

import "errors"

func newMySQL(opts *Options) (engine, error) {
	return nil, errors.New("relstorage: MySQL is not read")
}
