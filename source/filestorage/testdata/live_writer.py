"""A ZODB server's part in a test: writes a FileStorage as told on stdin.

usage: live_writer.py PATH [BLOB_DIR]

Each line is a command; each answer ends with a line "." on stdout. dump prints
what ZODB's own iterator reads in the file at that moment, as JSON lines.
"""

import base64
import json
import os
import random
import sys
import zlib

import zc.zlibstorage
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import FileIterator
from ZODB.serialize import referencesf
from ZODB.utils import p64, z64

BLOB = b"\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N."
ROOT = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}q\x01."


class Server:
    def __init__(self, path, blob_dir=None):
        self.path = path
        self.file = FileStorage(path, create=True, blob_dir=blob_dir)
        self.storage = zc.zlibstorage.ZlibStorage(self.file)
        self.random = random.Random(5)
        self.open = None  # the transaction that was voted on

    def serial(self, oid):
        if oid not in self.file._index:
            return z64
        return self.file._read_data_header(self.file._index[oid], oid).tid

    def begin(self):
        meta = TransactionMetaData("user \u00fc", "written live", {"n": self.random.random()})
        self.storage.tpc_begin(meta)
        return meta

    def store(self, meta, records=None):
        for _ in range(self.random.randrange(1, 30) if records is None else records):
            oid = p64(self.random.randrange(200))
            size = self.random.choice([1, 50, 500, 5000, 50000])
            data = b"\x80\x03" + self.random.randbytes(size // 4) + b"plone" * (size // 8)
            if oid == z64:
                data = ROOT
            try:
                self.storage.store(oid, self.serial(oid), data, "", meta)
            except KeyError:  # deleted
                pass

    def vote(self, records=None):
        self.open = self.begin()
        self.store(self.open, records)
        self.storage.tpc_vote(self.open)

    def finish(self):
        self.storage.tpc_finish(self.open)

    def abort(self):
        self.storage.tpc_abort(self.open)

    def commit(self, records=None):
        self.vote(records)
        self.finish()

    def undo(self):
        last = self.file.undoLog(0, 1)[0]["id"]
        self.open = self.begin()
        self.storage.undo(last, self.open)
        self.storage.tpc_vote(self.open)
        self.finish()

    def delete(self):
        self.open = self.begin()
        oid = max(self.file._index.keys())
        self.file.deleteObject(oid, self.serial(oid), self.open)
        self.storage.tpc_vote(self.open)
        self.finish()

    def work(self, rounds):
        for _ in range(rounds):
            self.vote()
            if self.random.random() < 0.3:
                self.abort()
            else:
                self.finish()

    def blobs(self, rounds):
        """Transactions with blobs: committed, aborted, undone."""
        for _ in range(rounds):
            self.open = self.begin()
            for oid in self.random.sample(range(1000, 1020), self.random.randrange(1, 4)):
                path = os.path.join(self.file.temporaryDirectory(), "upload")
                with open(path, "wb") as f:
                    f.write(self.random.randbytes(self.random.choice([0, 1, 100, 5000])))
                self.storage.storeBlob(p64(oid), self.serial(p64(oid)), BLOB, path, "", self.open)
            self.storage.tpc_vote(self.open)
            if self.random.random() < 0.3:
                self.abort()
                continue
            self.finish()
            if self.random.random() < 0.3:
                self.undo()

    def pack(self):
        import time
        self.storage.pack(time.time() + 1, referencesf, gc=False)

    def dump(self):
        text = lambda b: base64.b64encode(b).decode()
        for txn in FileIterator(self.path):
            records = []
            for r in txn:
                data = r.data
                if data is not None and data[:2] == b".z":
                    data = zlib.decompress(data[2:])
                records.append({"oid": r.oid.hex(), "data": None if data is None else text(data)})
            print(json.dumps({
                "tid": txn.tid.hex(), "user": text(txn.user), "description": text(txn.description),
                "extension": text(txn.extension_bytes), "records": records}))


def main():
    server = Server(*sys.argv[1:])
    for line in sys.stdin:
        name, *args = line.split()
        getattr(server, name)(*map(int, args))
        print(".", flush=True)
    server.file.close()


main()
