package relstorage

import (
	"fmt"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// ChangedError is a database that lacks what it had when a conversion of it began.
type ChangedError struct {
	Name      string
	Now, Then zodb.TID // its highest tids
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s: its highest transaction is %v, and it was %v when the conversion began: it was set back, or another one was put in its place",
		e.Name, e.Now, e.Then)
}
