// Package fault names the places where a run may be struck: by a kill of the
// process or by a stop of the server.
//
// In the product Point does nothing and is compiled away. In a program built
// with the tag "faults" the environment says what happens:
//
//	ZODB_CONVERT_FAULT=chunk.copied:3:kill9
//	ZODB_CONVERT_FAULT=finish.done:1:sh=pg_ctl -D /path stop -m immediate
//
// strikes at the third and the first time that the point is reached. kill9
// sends SIGKILL to the own process, sh=COMMAND runs a command of the shell and
// goes on when it has ended. Several are separated by newlines. The name "*"
// counts every point. ZODB_CONVERT_FAULT_TRACE names a file to which the name of
// every point that is reached is appended, a line each: what can be struck, and
// how often.
//
// The points of the destination pgjsonb, in the order in which a run meets them:
//
//	claim.begin       the destination was looked at, nothing is written
//	claim.created     the tables of the run exist in an open transaction
//	claim.schema      the tables of the database exist in it, too
//	claim.bare        indexes and keys are down, not committed
//	claim.commit      before COMMIT of all that is sent
//	claim.committed   after its answer
//	claim.raise       a continued run: before the generation is raised
//	claim.raised      after it was, before older backends are looked for
//	claim.fenced      older backends are gone
//
//	chunk.begin       before the transaction of a chunk begins
//	chunk.log         the rows of transaction_log are copied
//	chunk.record      a record was encoded into object_state's stream
//	chunk.copied      the rows of object_state are copied
//	chunk.history     the rows of object_history are copied
//	chunk.rejects     the rejects are copied
//	chunk.commit      before the range is noted and COMMIT is sent
//	chunk.sent        COMMIT is sent, its answer is not read
//	chunk.committed   after its answer
//
//	blob.copied       the rows of blob_state are copied
//	blob.owed         and those of the uploads that are owed
//	blob.missing      and those of missing blobs
//	blob.staged       the bytes of a blob are in the staging directory, not yet on disk
//	blob.upload       before a blob is uploaded, or looked for in S3
//	blob.uploaded     it is in S3, its row or that no more is owed is not committed
//	blob.confirmed    before uploads that are done leave the table of owed ones
//	blob.settled      after that was committed
//	blob.found        the row of a blob that had been missing is copied
//	blob.added        after that was committed
//	blob.removed      replaced objects are removed from S3, which is not yet noted
//
//	loaded.begin      every chunk is written
//	loaded.checked    and found in the table of chunks
//	loaded.done       the run is in its finishing phase
//
//	finish.begin      before a finishing step's transaction begins
//	finish.fenced     in it, before the step's statements
//	finish.worked     after them
//	finish.commit     before COMMIT is sent
//	finish.sent       COMMIT is sent, its answer is not read
//	finish.done       after its answer
//	finish.phase      all steps are done, the phase is not yet changed
//	finish.end        the run is catching up
//
//	follow.begin      before the transaction of a group of chunks begins
//	follow.copied     the rows of a chunk are staged
//	follow.applied    and applied to the tables
//	follow.commit     before COMMIT is sent
//	follow.sent       COMMIT is sent, its answer is not read
//	follow.committed  after its answer
//
//	reconcile.begin      before the transaction that makes a database equal to a table
//	reconcile.copied     what a chunk of differences holds is staged
//	reconcile.applied    all of them are applied to the tables
//	reconcile.commit     before COMMIT is sent
//	reconcile.sent       COMMIT is sent, its answer is not read
//	reconcile.committed  after its answer
//
//	retry.begin       before the transaction that writes rejected records begins
//	retry.staged      the records are staged
//	retry.locked      the lock of the site is held
//	retry.applied     the records are written to the tables
//	retry.commit      before COMMIT is sent
//	retry.sent        COMMIT is sent, its answer is not read
//	retry.committed   after its answer
//
//	manifest.written  the manifest of deferred blobs is written, without its name
//	manifest.renamed  and has it
//
//	complete.begin    before the tables of the run are dropped
//	complete.commit   dropped, before COMMIT is sent
//	complete.done     after its answer
//
//	abort.begin       before a run is undone
//	abort.commit      undone, before COMMIT is sent
//	abort.done        after its answer
package fault
