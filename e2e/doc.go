// Package e2e holds tests of whole conversions by a process of its own that is
// killed, or whose server is stopped, at every place that package fault names.
// After a resume every table, the schema and the sequence must equal those of
// an uninterrupted run, and what was committed before must not have been
// written again.
//
// With blobs the bucket must be equal as well, in each of the ways inline,
// background and deferred. S3 fails a third of the requests, goes away for 20
// seconds or for good, the disk is full when the manifest is written, and the
// upload of a manifest is killed at any moment.
//
// With RelStorage as source the real RelStorage writes it (testdata/site.py), on
// PostgreSQL, MariaDB and SQLite, before or while it is converted, packing as it
// goes; the source's server is stopped as well. In the end the destination must
// equal a conversion of the site as it is then.
//
// The tests need the tag "faults":
//
//	go test -tags faults ./e2e
//
// ZODB_CONVERT_KILLS and ZODB_CONVERT_STOPS set how many kills of the process
// and stops of the server there are (24 and 4 if unset), ZODB_CONVERT_BLOB_KILLS
// and ZODB_CONVERT_BLOB_STOPS those with blobs, the kills for each way of blobs
// (12 and 3), ZODB_CONVERT_UPLOAD_KILLS how many uploads of a manifest are
// killed up to three times (5). ZODB_CONVERT_RELSTORAGE_KILLS,
// ZODB_CONVERT_RELSTORAGE_STOPS and ZODB_CONVERT_RELSTORAGE_ROUNDS are the kills,
// the places at which each server stops and the rounds with a site at work, for
// each kind of RelStorage (12, 2 and 1).
package e2e
