package relstorage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The columns that this package reads. Others differ between the releases of
// RelStorage (empty, is_empty, state_size, md5, prev_tid) and are not used.
var (
	stateColumns       = []string{"zoid", "tid", "state"}
	currentColumns     = []string{"zoid", "tid"}
	transactionColumns = []string{"tid", "username", "description", "extension"}
	chunkColumns       = []string{"zoid", "tid", "chunk_num", "chunk"}
)

// tables are the tables that a connection sees by their unqualified names, and
// their columns with types.
type tables map[string]map[string]string

// checkSchema tells by the tables whether the database keeps history, and
// refuses what RelStorage has not made.
func (s *Source) checkSchema(ctx context.Context, c conn) error {
	seen := tables{}
	err := c.query(ctx, s.engine.dialect().tables, func(r row) error {
		table, column := string(r.bytes(0)), string(r.bytes(1))
		if seen[table] == nil {
			seen[table] = map[string]string{}
		}
		seen[table][column] = strings.ToLower(string(r.bytes(2)))
		return nil
	})
	if err != nil {
		return s.failed("look at its tables", err)
	}
	history, err := seen.history()
	if err != nil {
		return fmt.Errorf("%s %w", s.engine.name(), err)
	}
	if want := s.opts.KeepHistory; want != nil && *want != history {
		is := map[bool]string{true: "keeps history (it has the tables transaction and current_object)", false: "is history-free (it has no table transaction)"}
		return fmt.Errorf("%s %s, but the configuration says keep-history %t; take that line out, or name the right database", s.engine.name(), is[history], *want)
	}
	s.history, s.tables = history, seen
	return nil
}

// history tells whether the schema is the history-preserving one. An error is
// the rest of a sentence about the database.
func (t tables) history() (bool, error) {
	if t["object_state"] == nil {
		if len(t) > 0 {
			return false, fmt.Errorf("has a table %s but no object_state: it holds no whole RelStorage that this role sees; check the database, its search_path and the rights of the role", slices.Sorted(maps.Keys(t))[0])
		}
		return false, fmt.Errorf("has no table object_state that this role sees: it holds no RelStorage; check the name of the database and its search_path")
	}
	history := t["transaction"] != nil
	if history != (t["current_object"] != nil) {
		have, lack := "transaction", "current_object"
		if !history {
			have, lack = lack, have
		}
		return false, fmt.Errorf("has a table %s but no %s: it is neither a history-preserving nor a history-free RelStorage", have, lack)
	}
	wanted := map[string][]string{"object_state": stateColumns}
	if history {
		wanted["transaction"], wanted["current_object"] = transactionColumns, currentColumns
	}
	if t["blob_chunk"] != nil {
		wanted["blob_chunk"] = chunkColumns
	}
	for _, table := range slices.Sorted(maps.Keys(wanted)) {
		for _, column := range wanted[table] {
			if _, ok := t[table][column]; !ok {
				return false, fmt.Errorf("has a table %s without a column %s: it was not made by a release of RelStorage that is known (1.5 to 4)", table, column)
			}
		}
	}
	return history, t.types(history)
}

// types checks that ids are numbers and the rest is bytes.
func (t tables) types(history bool) error {
	number := func(typ string) bool { return strings.Contains(typ, "int") }
	bytes := func(typ string) bool { return strings.Contains(typ, "bytea") || strings.Contains(typ, "blob") }
	type column struct {
		table, name string
		ok          func(string) bool
		want        string
	}
	list := []column{{"object_state", "zoid", number, "an integer"}, {"object_state", "tid", number, "an integer"}, {"object_state", "state", bytes, "bytes"}}
	if history {
		list = append(list, column{"transaction", "tid", number, "an integer"}, column{"current_object", "zoid", number, "an integer"}, column{"current_object", "tid", number, "an integer"})
		for _, name := range transactionColumns[1:] {
			list = append(list, column{"transaction", name, bytes, "bytes"})
		}
	}
	for _, c := range list {
		if typ := t[c.table][c.name]; typ == "jsonb" {
			return fmt.Errorf("is a database of zodb-pgjsonb, which is what a RelStorage is converted to; name the database, or the schema, of the source")
		} else if !c.ok(typ) {
			return fmt.Errorf("has a column %s.%s of type %s, not %s: it was not made by a release of RelStorage that is known (1.5 to 4)", c.table, c.name, typ, c.want)
		}
	}
	return nil
}

// has tells whether a table can be seen.
func (s *Source) has(table string) bool { return s.tables[table] != nil }
