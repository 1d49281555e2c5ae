package relstorage

import (
	"fmt"
	"math"
	"strings"

	"github.com/zodb-convert/zodb-convert/source/blobclass"
)

// pos is a place in reading order.
//
// Without history, transactions stand at {0, tid} and the objects, one current
// revision each, at {1, zoid}. With history, a revision stands at {tid, zoid} and
// the header of its transaction, before all of them, at {tid, headerSub}.
type pos struct{ a, b int64 }

// headerSub is below every zoid.
const headerSub = -1

func (p pos) less(q pos) bool { return p.a < q.a || p.a == q.a && p.b < q.b }

// start and the ends are those of all databases, so that the ranges of one view
// mean something in another.
var (
	start   = pos{0, 0}
	objects = pos{1, 0}
	flatEnd = pos{2, 0}
	logEnd  = pos{math.MaxInt64, 0}
)

// statements writes the queries. All numbers are part of the text: nothing is
// prepared on a server, which a pooler would lose.
type statements struct {
	d       *dialect
	history bool // of the schema
	// until is the highest tid that is looked at, 0 for any; see source.ScanOptions.
	until int64
	// orphans: some rows have no transaction.
	orphans bool
}

// and joins the conditions that are not empty.
func where(conditions ...string) string {
	var list []string
	for _, c := range conditions {
		if c != "" {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(list, " AND ")
}

// between is lo <= column < hi. Where there is no bound, there is no condition:
// numbers that should not be are to be seen.
func between(column string, lo, hi int64) string {
	switch {
	case lo <= 0 && hi == math.MaxInt64:
		return ""
	case lo <= 0:
		return fmt.Sprintf("%s < %d", column, hi)
	case hi == math.MaxInt64:
		return fmt.Sprintf("%s >= %d", column, lo)
	}
	return fmt.Sprintf("%s >= %d AND %s < %d", column, lo, column, hi)
}

func (q *statements) upTo(column string) string {
	if q.until == 0 {
		return ""
	}
	return fmt.Sprintf("%s <= %d", column, q.until)
}

// blobFlag is 1 for what is probably the record of a blob, which is small.
func (q *statements) blobFlag() string {
	return fmt.Sprintf("CASE WHEN %s > %d THEN 0 WHEN %s THEN 1 ELSE 0 END",
		q.d.size("o.state"), blobclass.MaxRecord, q.d.contains("o.state", []byte(blobclass.Module)))
}

func (q *statements) metadataSize() string {
	var list []string
	for _, c := range transactionColumns[1:] {
		list = append(list, "COALESCE("+q.d.size("t."+c)+", 0)")
	}
	return strings.Join(list, " + ")
}

// headers gives tid and, for columns, what is asked of each transaction. Rows
// without one have it all NULL.
func (q *statements) headers(lo, hi int64, columns string, n int, limit int) string {
	end := " ORDER BY 1"
	if limit > 0 {
		end += fmt.Sprintf(" LIMIT %d", limit)
	}
	if !q.history {
		return "SELECT DISTINCT o.tid FROM object_state o" + where(between("o.tid", lo, hi), q.upTo("o.tid")) + end
	}
	// Row 0 of the table is no transaction.
	s := "SELECT t.tid, " + columns + " FROM " + q.d.transaction + " t" + where("t.tid <> 0", between("t.tid", lo, hi), q.upTo("t.tid"))
	if q.orphans {
		// Beside DISTINCT, NULL would have a type that does not match.
		s += " UNION ALL SELECT x.tid" + strings.Repeat(", NULL", n) + " FROM (SELECT DISTINCT o.tid FROM object_state o" +
			where(between("o.tid", lo, hi), q.upTo("o.tid"), q.orphan()) + ") x"
	}
	return s + end
}

// orphan is the condition for a row without transaction.
func (q *statements) orphan() string {
	return "NOT EXISTS (SELECT 1 FROM " + q.d.transaction + " t WHERE t.tid = o.tid AND t.tid <> 0)"
}

// headerKeys gives tid and bytes of metadata, headerRows the metadata.
func (q *statements) headerKeys(lo, hi int64, limit int) string {
	return q.headers(lo, hi, q.metadataSize(), 1, limit)
}

func (q *statements) headerRows(lo, hi int64, limit int) string {
	return q.headers(lo, hi, "t.username, t.description, t.extension", 3, limit)
}

// currents is the FROM and WHERE of the current revisions.
func (q *statements) currents(lo, hi int64) string {
	if !q.history {
		return " FROM object_state o" + where(between("o.zoid", lo, hi), q.upTo("o.tid"))
	}
	return " FROM current_object c JOIN object_state o ON o.zoid = c.zoid AND o.tid = c.tid" +
		where(between("c.zoid", lo, hi), between("o.zoid", lo, hi), q.upTo("o.tid"))
}

// Keys are zoid, tid, size and whether it may be a blob.
func (q *statements) keyColumns() string {
	return "SELECT o.zoid, o.tid, " + q.d.size("o.state") + ", " + q.blobFlag()
}

func (q *statements) currentKeys(lo, hi int64) string {
	return q.keyColumns() + q.currents(lo, hi) + " ORDER BY o.zoid"
}

// Rows are zoid, tid, state and whether it is the current one.
func (q *statements) currentRows(lo, hi int64) string {
	return "SELECT o.zoid, o.tid, o.state, 1" + q.currents(lo, hi) + " ORDER BY o.zoid"
}

// span is the condition for the revisions from one position to another. Within
// one transaction it is written so that the index by zoid and tid serves.
func (q *statements) span(from, to pos) string {
	if from.a == to.a {
		return where(fmt.Sprintf("o.tid = %d", from.a), between("o.zoid", from.b, to.b), q.upTo("o.tid"))
	}
	var list []string
	if from.a > 0 {
		list = append(list, fmt.Sprintf("o.tid >= %d", from.a))
	}
	if from.b > 0 {
		list = append(list, fmt.Sprintf("NOT (o.tid = %d AND o.zoid < %d)", from.a, from.b))
	}
	switch {
	case to.a == math.MaxInt64:
	case to.b <= 0: // nothing of the last one
		list = append(list, fmt.Sprintf("o.tid < %d", to.a))
	default:
		list = append(list, fmt.Sprintf("o.tid <= %d", to.a), fmt.Sprintf("NOT (o.tid = %d AND o.zoid >= %d)", to.a, to.b))
	}
	return where(append(list, q.upTo("o.tid"))...)
}

func (q *statements) revisionKeys(from, to pos) string {
	return q.keyColumns() + " FROM object_state o" + q.span(from, to) + " ORDER BY o.tid, o.zoid"
}

func (q *statements) revisionRows(from, to pos) string {
	return "SELECT o.zoid, o.tid, o.state, " + q.revisionsFrom() + q.span(from, to) + " ORDER BY o.tid, o.zoid"
}

// revisionsFrom is the flag that tells whether a revision is current, and the
// FROM. A subquery is looked up by the index for each row; of a join, a planner
// may make a hash of all objects for each chunk.
func (q *statements) revisionsFrom() string {
	if !q.history {
		return "1 FROM object_state o"
	}
	return "CASE WHEN (SELECT c.tid FROM current_object c WHERE c.zoid = o.zoid) = o.tid THEN 1 ELSE 0 END FROM object_state o"
}
