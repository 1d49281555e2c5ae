// Package jsonb turns the records of a ZODB into rows with JSONB as the released
// Python codec (zodb-json-codec 1.7.0 with zodb-pgjsonb 1.19.0) stores them, and
// such rows back into records as that codec's reader does.
//
// # Encoder
//
// A record is two pickles, one for the class and one for the state. Encode
// writes the state as the Python codec would, wherever that reads back what went
// in: "same" means the same jsonb, that is structure, strings, and numbers with
// their decimal scale. Where the Python codec loses or alters a value, or fails,
// Encode writes another form that the released reader reads back right and that
// SQL can still look into, and counts it by its Form. What has no such form, as
// a graph with a cycle, becomes a capsule: a call that unpickles it. What even
// that does not hold is a *RejectError: nothing is altered in silence.
//
// Parts that are referenced twice become copies, as the Python codec makes them;
// they are counted, too (SharedCopied). With Options.PreserveSharing such a state
// is a capsule.
//
// Strings of Python 2 are text or bytes, and the pickle does not tell which.
// ASCII becomes text, as Python 3 would read it; anything else, which Python 3
// cannot load at all, becomes bytes. Oids in persistent ids and the payload of
// dates are bytes always, class names are text.
//
// Some forms are read by zodb-json-codec 1.7.0 and newer only (NewCodec). They
// are written where the Python codec writes them; a form of our own is one that
// codec 1.6.1 reads, too, if there is one.
//
// # Reader
//
// A Reader makes the record again that the Python reader makes of a row, byte by
// byte, and Equal compares two records as graphs of values.
//
// # Judge
//
// A Judge tells whether a row holds what a record says. It uses nothing of the
// encoder, which it is there to judge: it has executors of pickles of its own.
package jsonb
