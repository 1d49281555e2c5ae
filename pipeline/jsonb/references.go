package jsonb

import (
	"encoding/binary"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// Reference is a reference that keeps no object of its own database alive: a weak
// one, or one to another database. ZODB writes them as persistent ids that are
// lists:
//
//	['w', (oid,)]             weak; [oid] in databases from before 2008
//	['w', (oid, database)]    weak, to another database
//	['n', (database, oid)]    to an object of another database
//	['m', (database, oid, class)]
type Reference struct {
	OID zodb.OID
	// Database is the name of the other database, nil for the own one. It is valid
	// as long as the row is.
	Database []byte
	Weak     bool
}

// appendLoose adds what a persistent id that is a list refers to, if it is one of
// ZODB's.
func (e *Encoder) appendLoose(to []Reference, id *pickle.Node) []Reference {
	kids := e.machine.Kids(id)
	switch len(kids) {
	case 1:
		return e.appendReference(to, kids[0], nil, true)
	case 2:
		args := &e.nodes[kids[1]]
		if args.Kind != pickle.Tuple {
			return to
		}
		kind, parts := &e.nodes[kids[0]], e.machine.Kids(args)
		switch {
		case e.isTextOf(kind, "w") && len(parts) == 1:
			return e.appendReference(to, parts[0], nil, true)
		case e.isTextOf(kind, "w") && len(parts) == 2:
			return e.appendReference(to, parts[0], e.databaseName(parts[1]), true)
		case e.isTextOf(kind, "n") && len(parts) == 2, e.isTextOf(kind, "m") && len(parts) == 3:
			return e.appendReference(to, parts[1], e.databaseName(parts[0]), false)
		}
	}
	return to
}

func (e *Encoder) appendReference(to []Reference, oid pickle.Ref, database []byte, weak bool) []Reference {
	if n, ok := e.oidOf(&e.nodes[oid]); ok {
		return append(to, Reference{OID: n, Database: database, Weak: weak})
	}
	return to
}

// databaseName is never nil.
func (e *Encoder) databaseName(r pickle.Ref) []byte {
	if n := &e.nodes[r]; isText(n) || n.Kind == pickle.Bytes {
		return e.machine.Data(n)
	}
	return []byte{}
}

// oidOf returns the oid that a node is.
func (e *Encoder) oidOf(n *pickle.Node) (zodb.OID, bool) {
	if isOID(n) {
		data := e.machine.Data(n)
		if len(data) != oidSize {
			return 0, false
		}
		return zodb.OID(binary.BigEndian.Uint64(data)), true
	}
	oid, ok := e.calledOID(n)
	return zodb.OID(binary.BigEndian.Uint64(oid[:])), ok
}

// References finds what a record refers to, also if Encode rejects it. whole tells
// that its pickles could be read to their end; otherwise there may be more. The
// result is valid until the next call; the last row is gone.
func (e *Encoder) References(record []byte) (refs []zodb.OID, loose []Reference, whole bool) {
	e.reset(record)
	defer func() {
		if recover() != nil { // Encode tells where this program is wrong
			whole = false
		}
	}()
	whole = true
	for range 2 { // class and state
		if _, err := e.machine.Load(); err != nil {
			whole = false
			break
		}
	}
	e.nodes = e.machine.Nodes()
	for i := range e.nodes {
		n := &e.nodes[i]
		if n.Kind != pickle.PersID {
			continue
		}
		id := &e.nodes[n.A]
		switch id.Kind {
		case pickle.List:
			loose = e.appendLoose(loose, id)
			continue
		case pickle.Tuple:
			if id.B == 0 {
				continue
			}
			id = &e.nodes[e.machine.Kids(id)[0]]
		}
		if oid, ok := e.oidOf(id); ok {
			refs = append(refs, oid)
		}
	}
	return refs, loose, whole
}
