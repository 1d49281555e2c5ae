"""A FileStorage that is written with fixed tids.

The same calls give the same bytes: tids come from a clock that goes by one
minute and a bit with every transaction, never from the time of day.
"""

import base64
import contextlib
import importlib
import io
import os

import transaction
import zc.zlibstorage
import ZODB
import ZODB.blob
from persistent.TimeStamp import TimeStamp
from ZODB._compat import PersistentPickler
from ZODB.Connection import TransactionMetaData
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64
from zodbpickle import binary

# The package gives this name to the class in it.
_filestorage = importlib.import_module("ZODB.FileStorage.FileStorage")
# These databases need not survive a loss of power.
_filestorage.fsync = None

EPOCH = TimeStamp(2015, 3, 29, 0, 59, 12.375)
MINUTE = 1 << 32


class _Storage(_filestorage.FileStorage):
    """The tid of a new transaction is that of the clock; blobs have the wanted layout."""

    tick = u64(EPOCH.raw())

    def __init__(self, path, blob_layout, **options):
        self._blob_layout = blob_layout
        super().__init__(path, **options)

    def _blob_init(self, blob_dir, layout="automatic"):
        super()._blob_init(blob_dir, self._blob_layout)

    def tpc_begin(self, txn, tid=None, status=" "):
        if tid is None:
            # The fraction changes too, so that no two tids end alike.
            self.tick += MINUTE + 0x01234567
            tid = p64(self.tick)
        super().tpc_begin(txn, tid, status)


class Link:
    """Stands for a persistent reference in a state that serialize gets."""

    __slots__ = ("pid",)

    def __init__(self, pid):
        self.pid = pid


def link(oid, cls):
    return Link((binary(oid), cls))


class Serializer:
    """Makes records of states without a connection, as ZODB itself makes them."""

    def __init__(self):
        self._file = io.BytesIO()
        self._pickler = PersistentPickler(self._persistent_id, self._file, 3)

    @staticmethod
    def _persistent_id(obj):
        return obj.pid if type(obj) is Link else None

    def __call__(self, cls, state):
        self._pickler.clear_memo()
        self._file.seek(0)
        self._file.truncate()
        self._pickler.dump(cls)
        self._pickler.dump(state)
        return self._file.getvalue()


class Log:
    """One database file and its connection."""

    merges_undo = True  # undoes a change that another one followed, if the class can merge them

    def __init__(self, path, blob_dir=None, blob_layout="bushy", zlib=False):
        self.path = path
        self.blob_dir = blob_dir
        self.file = _Storage(path, blob_layout, create=True, blob_dir=blob_dir, pack_keep_old=False)
        self.storage = zc.zlibstorage.ZlibStorage(self.file) if zlib else self.file
        self.serialize = Serializer()
        self.manager = transaction.TransactionManager(explicit=False)
        self._connection = None
        self.after_close = None  # a profile may damage the file

    @property
    def connection(self):
        if self._connection is None:
            db = ZODB.DB(self.storage, database_name="main", databases={}, large_record_size=1 << 40)
            self._connection = db.open(self.manager)
        return self._connection

    @property
    def root(self):
        return self.connection.root()

    def commit_empty_root(self):
        """Make the root object, as the first opening of a new database does."""
        self.connection

    def commit(self, user="", description="", **extension):
        """Commit what was changed through the connection; return the tid."""
        txn = self.manager.get()
        txn.user = user
        txn.description = description
        for key, value in extension.items():
            txn.setExtendedInfo(key, value)
        self.manager.commit()
        return self.file.lastTransaction()

    @contextlib.contextmanager
    def transaction(self, user=b"", description=b"", extension=None):
        """A transaction below the connection: store, delete, undo."""
        meta = TransactionMetaData(user, description, extension)
        self.storage.tpc_begin(meta)
        writer = Writer(self, meta)
        try:
            yield writer
        except BaseException:
            self.storage.tpc_abort(meta)
            raise
        self.storage.tpc_vote(meta)
        writer.tid = self.storage.tpc_finish(meta)
        # The connection knows nothing of this: its objects are stale.
        self._leave()

    def new_oid(self):
        return self.file.new_oid()

    def pack(self, before, gc=True):
        """Pack to just before the transaction with this tid."""
        self._leave()
        self.storage.pack(TimeStamp(before).timeTime() - 0.001, referencesf, gc)

    def _leave(self):
        if self._connection is not None:
            self.manager.abort()
            self._connection.close()
            self._connection = None

    def close(self):
        self._leave()
        self.storage.close()
        if self.after_close is not None:
            self.after_close(self.path)
        for suffix in (".lock", ".tmp", ".index", ".old"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path + suffix)


class Writer:
    def __init__(self, log, meta):
        self._log, self._meta = log, meta
        self.tid = None

    def store(self, oid, cls, state):
        self.put(oid, self._log.serialize(cls, state))

    def put(self, oid, record):
        """Store ready bytes."""
        log = self._log
        old = z64
        if oid in log.file._index:
            old = log.file._read_data_header(log.file._index[oid], oid).tid
        log.storage.store(oid, old, record, "", self._meta)

    def delete(self, oid):
        serial = self._log.file._read_data_header(self._log.file._index[oid], oid).tid
        self._log.file.deleteObject(oid, serial, self._meta)

    def undo(self, tid):
        self._log.storage.undo(base64.encodebytes(tid).rstrip(b"\n"), self._meta)
