// Package e2e holds tests of whole conversions by a process of its own that is
// killed, or whose server is stopped, at every place that package fault names.
// After a resume every table, the schema and the sequence must equal those of
// an uninterrupted run, and what was committed before must not have been
// written again.
//
// The tests need the tag "faults":
//
//	go test -tags faults ./e2e
//
// ZODB_CONVERT_KILLS and ZODB_CONVERT_STOPS set how many kills of the process
// and stops of the server there are (24 and 4 if unset).
package e2e
