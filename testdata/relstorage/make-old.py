# Writes a database by an older release of RelStorage, and what that release reads in it.
#
# usage: python make-old.py ENGINE PLACE history|free BLOBS.dump.jsonl BLOBS.blobs OUT.dump.jsonl
#
# ENGINE is postgresql (PLACE: a DSN), mysql (PLACE: SOCKET,DATABASE) or sqlite (PLACE: a folder; RelStorage 3). The
# transactions are those of a FileStorage with blobs, as copyTransactionsFrom hands them on; then an object is deleted
# by the release's own deleteObject. For Python 2.7 with RelStorage 2.1.1 and Python 3.7 with RelStorage 3.0.1; README.md
# tells how to install them.
import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile

from relstorage.options import Options
from ZODB.blob import is_blob_record
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64

try:
    from relstorage.storage import RelStorage
    from ZODB.Connection import TransactionMetaData
except ImportError:
    raise SystemExit("ZODB 5 and RelStorage 2 or 3 are wanted")


def hex_of(raw):
    return binascii.hexlify(raw).decode("ascii")


class Record(object):
    version = data_txn = None

    def __init__(self, oid, tid, data):
        self.oid, self.tid, self.data = oid, tid, data


class Transaction(object):
    """What copyTransactionsFrom wants of one."""

    def __init__(self, entry, number, history):
        self.tid = binascii.unhexlify(entry["tid"])
        self.status = str(entry["status"])
        self.user = base64.b64decode(entry["user"])
        self.description = base64.b64decode(entry["description"])
        if number == 3:
            self.description = b"Latin-1: \xfc, NUL: \x00"
        self.extension = self._extension = {"number": number} if number == 4 else {}
        self.extension_bytes = b"}q\x01U\x06numberq\x02K\x04s." if number == 4 else b""
        self.records = []
        for r in entry["records"]:
            if r["data"] is not None or history:
                data = r["data"] and base64.b64decode(r["data"])
                self.records.append(Record(binascii.unhexlify(r["oid"]), self.tid, data))

    def __iter__(self):
        return iter(self.records)

    def data(self, ob):
        raise KeyError(ob)

    def set_data(self, ob, value):
        pass


class Iterator(list):
    def close(self):
        pass


class Source(object):
    def __init__(self, dump, blobs, history):
        self.dump, self.blobs, self.history = dump, blobs, history

    def iterator(self):
        with open(self.dump) as f:
            return Iterator(Transaction(json.loads(line), n, self.history) for n, line in enumerate(f))

    def openCommittedBlobFile(self, oid, tid):
        path = os.path.join(self.blobs, *("0x" + hex_of(oid)[i:i + 2] for i in range(0, 16, 2)))
        path = os.path.join(path, "0x" + hex_of(tid) + ".blob")
        if not os.path.exists(path):
            raise POSKeyError(oid)
        return open(path, "rb")


def adapter(engine, place, options):
    if engine == "postgresql":
        from relstorage.adapters.postgresql import PostgreSQLAdapter
        return PostgreSQLAdapter(dsn=place, options=options)
    if engine == "mysql":
        from relstorage.adapters.mysql import MySQLAdapter
        on_mariadb()
        socket, database = place.split(",")
        return MySQLAdapter(options=options, unix_socket=socket, user="root", db=database)
    from relstorage.adapters.sqlite.adapter import Sqlite3Adapter
    return Sqlite3Adapter(place, {}, options=options)


def on_mariadb():
    """MariaDB takes neither the foreign keys of its tables nor, from RelStorage 3, the SQL of MySQL 8; see relational.py."""
    from relstorage.adapters.scriptrunner import ScriptRunner
    run_script = ScriptRunner.run_script

    def without(self, cursor, script, *args, **kwargs):
        return run_script(self, cursor, re.sub('REFERENCES "?transaction"?', "", script), *args, **kwargs)

    ScriptRunner.run_script = without
    try:
        from relstorage.adapters.mysql.schema import MySQLVersionDetector
    except ImportError:
        return
    MySQLVersionDetector._fetch_version_from_server = lambda self, cursor: "5.7.19"


def opened(engine, place, history, folder):
    options = Options(keep_history=history, blob_dir=os.path.join(folder, "blobs"), shared_blob_dir=False, blob_chunk_size=1000, cache_prefix="old")
    return RelStorage(adapter(engine, place, options), options=options)


def read(storage, out):
    iterator = storage.iterator()
    for txn in iterator:
        records = []
        for r in txn:
            made = {"oid": hex_of(r.oid), "tid": hex_of(r.tid), "data": base64.b64encode(r.data).decode("ascii") if r.data else None, "data_txn": None}
            if r.data and is_blob_record(r.data):
                made["blob"] = blob(storage, r.oid, r.tid)
            records.append(made)
        # Not txn.extension, which is unpickled.
        out.write(json.dumps({
            "tid": hex_of(txn.tid), "status": txn.status, "user": text(txn.user), "description": text(txn.description),
            "extension": text(raw_extension(storage, txn)), "records": records,
        }, sort_keys=True) + "\n")


def text(raw):
    return base64.b64encode(raw).decode("ascii")


def raw_extension(storage, txn):
    if not storage._options.keep_history:
        return b""
    adapter = storage._adapter
    connection, cursor = adapter.connmanager.open_for_load()
    try:
        name = '"transaction"' if "sqlite" in type(adapter).__module__.lower() else "transaction"
        cursor.execute("SELECT extension FROM %s WHERE tid = %d" % (name, u64(txn.tid)))
        return bytes(cursor.fetchone()[0] or b"")
    finally:
        (getattr(adapter.connmanager, "rollback_and_close", None) or adapter.connmanager.close)(connection, cursor)


def blob(storage, oid, tid):
    try:
        path = storage.loadBlob(oid, tid)
    except POSKeyError:
        return None
    with open(path, "rb") as f:
        data = f.read()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main():
    engine, place, history, dump, blobs, out = sys.argv[1:]
    history = history == "history"
    folder = tempfile.mkdtemp()
    storage = opened(engine, place, history, folder)
    try:
        storage.copyTransactionsFrom(Source(dump, blobs, history))
        last = [r for txn in storage.iterator() for r in txn if r.data and u64(r.oid) > 0][-1]
        meta = TransactionMetaData()
        storage.tpc_begin(meta)
        try:
            storage.deleteObject(last.oid, last.tid, meta)
        except AttributeError:  # RelStorage 2 has it without history only
            storage.tpc_abort(meta)
        else:
            storage.tpc_vote(meta)
            storage.tpc_finish(meta)
        storage.close()
        storage = opened(engine, place, history, folder)
        with open(out, "w") as f:
            read(storage, f)
    finally:
        storage.close()
        shutil.rmtree(folder)


main()
