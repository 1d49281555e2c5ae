"""Is a site: small random changes to a database of RelStorage, by the real RelStorage.

usage: python site.py CONFIG --seed N [--steps N] [--pause SECONDS] [--pack EVERY] [--blobs] [--body BYTES]
       python site.py CONFIG --export Data.fs [--blobs]

CONFIG is a ZConfig file with a <zodb>. A step adds objects, changes some, moves or deletes references, deletes an
object that is garbage, replaces a blob, packs (every EVERY steps, with garbage collection) or undoes what was done
before (where the storage keeps history). Each step is a line "STEP NAME" on stdout before it is begun; "done COUNTS",
the numbers of the steps as JSON, is the last one. Without --steps it goes on until the standard input ends. The same
seed gives the same steps on the same database.

--export writes what the real RelStorage reads into a FileStorage, and its blobs into Data.blobs.

A server that goes away is waited for: the step is given up, the next one is tried.
"""

import argparse
import collections
import json
import os
import random
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "py"))

import transaction  # noqa: E402
import ZODB.config  # noqa: E402
from BTrees.OOBTree import OOBTree  # noqa: E402
from ZODB.blob import Blob  # noqa: E402
from ZODB.Connection import TransactionMetaData  # noqa: E402
from ZODB.FileStorage import FileStorage  # noqa: E402
from ZODB.POSException import POSKeyError, StorageError, UndoError  # noqa: E402

from zodbdata import classes as c  # noqa: E402
from zodbdata import relational  # noqa: E402, F401  (lets RelStorage write to MariaDB)

FOLDERS = 5
WORDS = "pack undo blob view chunk night window Grüße 数据 łódź".split()
# A blob of a piece of blob-chunk-size, of several, of none.
BLOB_SIZES = (0, 1, 300, 999, 1000, 5000, 70_000, 2_200_000)


class Site:
    def __init__(self, db, options):
        self.db = db
        self.rng = random.Random(options.seed)
        self.options = options
        self.serial = 0
        self.garbage = []

    def text(self, most):
        n = self.rng.randrange(most // 2, most)
        return self.rng.randbytes(n // 2).hex() + " ".join(self.rng.choices(WORDS, k=8))

    def document(self):
        self.serial += 1
        doc = c.Document(title=f"document {self.serial}", body=self.text(self.options.body), parts=[])
        doc.parts = [c.Comment(text=self.text(200)) for _ in range(self.rng.randrange(3))]
        if self.options.blobs and self.rng.random() < 0.4:
            doc.file = Blob(self.bytes())
        return doc

    def bytes(self):
        weights = (2, 2, 4, 4, 4, 4, 2, 0.3)
        return self.rng.randbytes(self.rng.choices(BLOB_SIZES, weights)[0])

    def run(self, name):
        txn = transaction.TransactionManager()
        if name == "pack":
            self.db.pack(time.time())
        elif name == "undo":
            self.undo(txn)
        elif name == "delete":
            self.delete()
        else:
            conn = self.db.open(txn)
            try:
                folders = conn.root()["folders"]
                getattr(self, name)(folders)
                txn.get().setUser(self.rng.choice(("admin", "editor", "Jörg")))
                txn.get().note(f"{name} {self.serial}")
                if self.rng.random() < 0.3:
                    txn.get().setExtendedInfo("request", {"seed": self.options.seed, "serial": self.serial})
                txn.commit()
            finally:
                txn.abort()
                conn.close()

    def prepare(self):
        txn = transaction.TransactionManager()
        conn = self.db.open(txn)
        try:
            if "folders" not in conn.root():
                conn.root()["folders"] = [OOBTree() for _ in range(FOLDERS)]
                txn.commit()
            self.serial = max((int(k) for f in conn.root()["folders"] for k in f), default=0)
        finally:
            txn.abort()
            conn.close()

    def pick(self, folders):
        folder = self.rng.choice(folders)
        keys = list(folder)
        return (folder, self.rng.choice(keys)) if keys else (folder, None)

    def add(self, folders):
        for _ in range(self.rng.randrange(1, 4)):
            doc = self.document()
            self.rng.choice(folders)[f"{self.serial:08}"] = doc

    def change(self, folders):
        for _ in range(self.rng.randrange(1, 4)):
            folder, key = self.pick(folders)
            if key:
                folder[key].body = self.text(self.options.body)

    def upload(self, folders):
        folder, key = self.pick(folders)
        if key is None:
            return
        doc = folder[key]
        if isinstance(getattr(doc, "file", None), Blob):
            with doc.file.open("w") as f:
                f.write(self.bytes())
        else:
            doc.file = Blob(self.bytes())

    def move(self, folders):
        folder, key = self.pick(folders)
        if key:
            doc = folder[key]
            del folder[key]
            self.rng.choice(folders)[key] = doc

    def remove(self, folders):
        folder, key = self.pick(folders)
        if key:
            self.garbage.append(folder[key]._p_oid)
            del folder[key]

    def delete(self):
        """Delete an object as garbage collectors of their own do."""
        if not self.garbage:
            return
        oid = self.garbage.pop()
        txn = TransactionMetaData("gc", "delete")
        storage = self.db.storage.new_instance()
        try:
            storage.poll_invalidations()
            _, tid = storage.load(oid)
            storage.tpc_begin(txn)
            try:
                storage.deleteObject(oid, tid, txn)
                storage.tpc_vote(txn)
                storage.tpc_finish(txn)
            except BaseException:
                storage.tpc_abort(txn)
                raise
        finally:
            storage.release()

    def undo(self, txn):
        # Not the making of the site, nor a deletion.
        log = [t for t in self.db.undoLog(0, 6) if t["description"] not in (b"", "", b"delete", "delete")]
        if log:
            txn.get().note("undo")
            self.db.undo(self.rng.choice(log)["id"], txn.get())
            txn.commit()

    def names(self):
        steps = {"add": 6, "change": 5, "move": 1, "remove": 3, "delete": 1}
        if self.db.supportsUndo():
            steps["undo"] = 3
        if self.options.blobs:
            steps["upload"] = 4
        number = 0
        while not self.options.steps or number < self.options.steps:
            number += 1
            if self.options.pack and number % self.options.pack == 0:
                yield number, "pack"
            else:
                yield number, self.rng.choices(list(steps), steps.values())[0]


def export(options):
    db = ZODB.config.databaseFromURL(options.config)
    out = FileStorage(options.export, blob_dir=options.export.removesuffix(".fs") + ".blobs" if options.blobs else None)
    out.copyTransactionsFrom(db.storage)
    out.close()
    db.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--pack", type=int, default=0)
    parser.add_argument("--body", type=int, default=12_000)
    parser.add_argument("--blobs", action="store_true")
    options = parser.parse_args()
    if options.export:
        export(options)
        return
    stop = threading.Event()
    if not options.steps:
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()

    db = ZODB.config.databaseFromURL(options.config)
    site = Site(db, options)
    site.prepare()
    counts = collections.Counter()
    for number, name in site.names():
        if stop.is_set():
            break
        print(number, name, flush=True)
        try:
            site.run(name)
            counts[name] += 1
        except (UndoError, POSKeyError):
            counts[f"{name} refused"] += 1  # what it is about was packed away or changed since
        except (StorageError, OSError) as e:
            if options.steps:
                raise
            print(f"{name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
            counts[f"{name} given up"] += 1
            time.sleep(0.2)
        time.sleep(options.pause)
    print("done", json.dumps(counts), flush=True)
    db.close()


main()
