"""What the real FileStorage reads in a file, as JSON lines.

One line for each transaction: tid (hex), status, user, description, extension
(base64), and records, each with oid and tid (hex), data (base64 of the pickles,
None for an object that was deleted) and data_txn (hex or None). With the blob
directory, a record that is a blob has also blob: the size and sha256 of what
the real ZODB finds as its bytes, or None if it finds nothing.
"""

import base64
import hashlib
import json
import os

import zc.zlibstorage
import ZODB.blob
from ZODB.FileStorage.FileStorage import FileIterator


def base64_text(data):
    return base64.b64encode(data).decode("ascii")


def transactions(path):
    """Yield the transactions of a file as plain dicts of bytes, without writing beside it."""
    # The four bytes of the magic are a database without transactions; so is
    # an empty file, of which the iterator does not want to know.
    if os.path.getsize(path) == 0:
        return
    iterator = FileIterator(path)
    try:
        for txn in iterator:
            yield {
                "tid": txn.tid, "status": txn.status, "user": txn.user, "description": txn.description, "extension": txn.extension_bytes,
                "records": [
                    {"oid": r.oid, "tid": r.tid, "data": None if r.data is None else zc.zlibstorage.decompress(r.data), "data_txn": r.data_txn}
                    for r in txn
                ],
            }
    finally:
        iterator.close()


def blob(helper, oid, tid):
    """Size and sha256 of a blob, as loadBlob finds its file."""
    path = helper.getBlobFilename(oid, tid)
    if not os.path.exists(path):
        return None
    with open(path, "rb") as f:
        return {"size": os.path.getsize(path), "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def lines(path, blob_dir=None):
    # Not a storage, which would write the layout and a folder tmp.
    helper = blob_dir and ZODB.blob.FilesystemHelper(blob_dir)
    for txn in transactions(path):
        yield json.dumps({
            "tid": txn["tid"].hex(), "status": txn["status"], "user": base64_text(txn["user"]),
            "description": base64_text(txn["description"]), "extension": base64_text(txn["extension"]),
            "records": [
                {
                    "oid": r["oid"].hex(), "tid": r["tid"].hex(), "data": None if r["data"] is None else base64_text(r["data"]),
                    "data_txn": r["data_txn"] and r["data_txn"].hex(),
                    **({"blob": blob(helper, r["oid"], r["tid"])} if helper and ZODB.blob.is_blob_record(r["data"]) else {}),
                }
                for r in txn["records"]
            ],
        }) + "\n"
