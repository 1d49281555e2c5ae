"""A RelStorage that is written with fixed tids, by the real RelStorage.

Log stands for zodbdata.log.Log, so that the same profiles fill it: the same
calls give the same transactions and records, whatever the server. What a
RelStorage does not do is told by merges_undo and undoes.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import subprocess
import tempfile

import transaction
import zc.zlibstorage
import ZODB
import ZODB.blob
from persistent.TimeStamp import TimeStamp
from relstorage.adapters.mysql import MySQLAdapter
from relstorage.adapters.mysql.schema import MySQLSchemaInstaller, MySQLVersionDetector
from relstorage.adapters.postgresql import PostgreSQLAdapter
from relstorage.adapters.sqlite.adapter import Sqlite3Adapter
from relstorage.options import Options
from relstorage.storage import RelStorage
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError, StorageError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64

from .dump import base64_text
from .log import EPOCH, MINUTE, Serializer

# MySQL takes no notice of foreign keys in the line of a column. MariaDB since
# 10.5 does, and refuses these, whose two ends have different types: RelStorage
# cannot make a history-preserving database there. Those that exist were made
# before; this gives the same tables.
MySQLSchemaInstaller.CREATE_OBJECT_STATE_TMPLS = tuple(
    re.sub(r'\s+REFERENCES "transaction"', "", text) for text in MySQLSchemaInstaller.CREATE_OBJECT_STATE_TMPLS
)

_server_version = MySQLVersionDetector._fetch_version_from_server


def _version(self, cursor):
    """MariaDB's numbers are above those of MySQL 8, but it does not speak MySQL 8's SQL."""
    version = _server_version(self, cursor)
    return "5.7.19" if "MariaDB" in version else version


MySQLVersionDetector._fetch_version_from_server = _version


class Place:
    """Where a database is: postgresql:DSN, mysql:KEY=VALUE,... or sqlite:FOLDER."""

    def __init__(self, text):
        self.engine, _, self.where = text.partition(":")
        if self.engine not in ("postgresql", "mysql", "sqlite") or not self.where:
            raise ValueError(f"{text!r} is no postgresql:DSN, mysql:KEY=VALUE,... or sqlite:FOLDER")
        self.parameters = {}
        if self.engine == "mysql":
            self.parameters = dict(part.split("=", 1) for part in self.where.split(","))
            if "port" in self.parameters:
                self.parameters["port"] = int(self.parameters["port"])

    def adapter(self, options, clock=None):
        """An adapter of RelStorage; with a clock, one that takes its tids from it."""
        if self.engine == "postgresql":
            return _ticking(PostgreSQLAdapter, clock)(dsn=self.where, options=options)
        if self.engine == "mysql":
            return _ticking(MySQLAdapter, clock)(options=options, **self.parameters)
        return _ticking(Sqlite3Adapter, clock)(self.where, {}, options=options)


class Clock:
    """The clock of zodbdata.log, and a counter of oids."""

    def __init__(self):
        self.tick = u64(EPOCH.raw())
        self.oid = 0

    def next(self):
        self.tick += MINUTE + 0x01234567
        return self.tick


class _OIDs:
    """Hands out the oids of a clock: which one is next differs from engine to engine."""

    def __init__(self, real, clock):
        self._real, self._clock = real, clock

    def new_oids_no_cursor(self):
        self._clock.oid += 16
        return list(range(self._clock.oid, self._clock.oid - 16, -1))

    def set_min_oid(self, cursor, oid):
        if oid < 1 << 24:  # what a profile took from somewhere far up is no reason to go on from there
            self._clock.oid = max(self._clock.oid, -(-oid // 16) * 16)
        self._real.set_min_oid(cursor, oid)

    def new_instance(self):
        return self

    def __getattr__(self, name):
        return getattr(self._real, name)


def _ticking(cls, clock):
    if clock is None:
        return cls

    class Ticking(cls):
        def _create(self):
            super()._create()
            if not isinstance(self.oidallocator, _OIDs):
                self.oidallocator = _OIDs(self.oidallocator, clock)

        def lock_database_and_choose_next_tid(self, cursor, username, description, extension):
            self.locker.hold_commit_lock(cursor, ensure_current=True)
            tid = clock.next()
            self.txncontrol.add_transaction(cursor, tid, username, description, extension)
            return tid

        def lock_database_and_move(self, store_connection, load_connection, transaction_has_blobs, ude, **options):
            if options.get("committing_tid_int") is None:
                options["committing_tid_int"] = self.lock_database_and_choose_next_tid(store_connection.cursor, *ude)
            return super().lock_database_and_move(store_connection, load_connection, transaction_has_blobs, ude, **options)

    return Ticking


def opened(place, history, blob_dir=None, shared=False, create=False, clock=None, read_only=False):
    """The real RelStorage on a database. Without create it issues no DDL."""
    options = Options(
        keep_history=history, blob_dir=blob_dir, shared_blob_dir=shared, create_schema=create, read_only=read_only, cache_prefix="zodbdata",
        cache_local_mb=1, commit_lock_timeout=60, pack_batch_timeout=0.0,
    )
    return RelStorage(place.adapter(options, clock), options=options)


class Log:
    """One database and its connection."""

    merges_undo = False   # RelStorage undoes no change that another one followed

    def __init__(self, place, history, blob_dir=None, shared=False, zlib=False):
        self.history = history
        self.clock = Clock()
        self._folder = tempfile.TemporaryDirectory(prefix="zodbdata-")
        self.blob_dir = blob_dir if shared else None
        self.raw = opened(place, history, blob_dir or os.path.join(self._folder.name, "blobs"), shared, True, self.clock)
        self.storage = zc.zlibstorage.ZlibStorage(self.raw) if zlib else self.raw
        self.file = _File(self)
        self.serialize = Serializer()
        self.manager = transaction.TransactionManager(explicit=False)
        self._db = self._connection = None
        self.after_close = None

    @property
    def connection(self):
        if self._connection is None:
            if self._db is None:
                self._db = ZODB.DB(self.storage, database_name="main", databases={}, large_record_size=1 << 40)
            self._connection = self._db.open(self.manager)
        return self._connection

    @property
    def root(self):
        return self.connection.root()

    def commit_empty_root(self):
        self.connection

    def commit(self, user="", description="", **extension):
        txn = self.manager.get()
        txn.user = user
        txn.description = description
        for key, value in extension.items():
            txn.setExtendedInfo(key, value)
        self.manager.commit()
        return p64(self.clock.tick)

    @contextlib.contextmanager
    def transaction(self, user=b"", description=b"", extension=None):
        """A transaction below the connection: store, delete, undo."""
        self._leave()
        meta = TransactionMetaData(user, description, extension)
        self.storage.tpc_begin(meta)
        try:
            with contextlib.ExitStack() as reading:
                writer = Writer(self, meta, reading)
                yield writer
            self.storage.tpc_vote(meta)
            writer.tid = self.storage.tpc_finish(meta) or p64(self.clock.tick)
        except BaseException:
            self.storage.tpc_abort(meta)
            raise

    def new_oid(self):
        return self.raw.new_oid()

    def query(self, statement):
        """The rows of a SELECT."""
        with self.raw._load_connection.isolated_connection() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def execute(self, *statements):
        """What RelStorage itself would not do."""
        with self.raw._store_connection_pool.borrowing() as connection:
            for statement in statements:
                connection.cursor.execute(statement)
            connection.connection.commit()

    def pack(self, before, gc=True, prepack_only=False):
        """Pack to just before the transaction with this tid."""
        self._leave()
        self.raw._options.pack_gc = gc
        self.storage.pack(TimeStamp(before).timeTime() - 0.001, referencesf, prepack_only=prepack_only)

    def interrupt_pack(self, before, after):
        """Begin to pack, and stop when so many rows were removed."""
        self.pack(before, prepack_only=True)
        packundo = self.raw._adapter.packundo
        removed = []

        def remove(oid, tid):
            removed.append(oid)
            if len(removed) >= after:
                raise Interrupted

        try:
            packundo.pack(packundo._find_pack_tid(), packed_func=remove)
        except Interrupted:
            return
        raise AssertionError(f"the pack ended after {len(removed)} rows")

    def _leave(self):
        if self._connection is not None:
            self.manager.abort()
            self._connection.cacheMinimize()
            self._connection.close()
            self._connection = None

    def close(self):
        self._leave()
        self.file.set_max_oid(p64(self.clock.oid + 1))  # for those who go on without the clock
        (self._db or self.storage).close()
        self._folder.cleanup()


class Interrupted(Exception):
    """Somebody ended the pack."""


class _File:
    """What profiles ask of the FileStorage itself."""

    def __init__(self, log):
        self._log = log

    def __len__(self):
        return len(self._log.query("SELECT DISTINCT zoid FROM object_state"))

    @property
    def tick(self):
        return self._log.clock.tick

    @tick.setter
    def tick(self, value):
        self._log.clock.tick = value

    def temporaryDirectory(self):
        return self._log.raw.temporaryDirectory()

    def set_max_oid(self, oid):
        raw = self._log.raw
        with raw._store_connection_pool.borrowing() as connection:
            raw._oids.set_min_oid(connection, u64(oid))
            connection.connection.commit()


class Writer:
    """What a transaction does. It is read on one connection of its own, until reading
    ends: to connect for each object would take most of the time."""

    def __init__(self, log, meta, reading):
        self._log, self._meta, self._reading = log, meta, reading
        self._cursor = None
        self.tid = None

    def _current(self, oid):
        if self._cursor is None:
            self._cursor = self._reading.enter_context(self._log.raw._load_connection.isolated_connection())
        table = "current_object" if self._log.history else "object_state"
        self._cursor.execute(f"SELECT tid FROM {table} WHERE zoid = {u64(oid)}")
        rows = self._cursor.fetchall()
        return p64(rows[0][0] if rows else 0)

    def store(self, oid, cls, state):
        self.put(oid, self._log.serialize(cls, state))

    def put(self, oid, record):
        self._log.storage.store(oid, self._current(oid), record, "", self._meta)

    def delete(self, oid):
        self._log.raw.deleteObject(oid, self._current(oid), self._meta)

    def undo(self, tid):
        """History-free, nothing can be undone: the transaction stays without any effect."""
        if self._log.history:
            self._log.storage.undo(base64.encodebytes(tid).rstrip(b"\n"), self._meta)


def keeps_history(place):
    """Whether the schema is the one with history."""
    try:
        opened(place, True, read_only=True).close()
    except StorageError as e:
        if "Schema mismatch" not in str(e):
            raise
        return False
    return True


def transactions(storage):
    """Yield the transactions that a RelStorage gives as plain dicts of bytes, as dump.transactions does."""
    iterator = storage.iterator()
    try:
        for txn in iterator:
            yield {
                "tid": txn.tid, "status": txn.status, "user": txn.user, "description": txn.description, "extension": txn.extension_bytes,
                "records": [
                    {"oid": r.oid, "tid": r.tid, "data": zc.zlibstorage.decompress(r.data) if r.data else None, "data_txn": None}
                    for r in txn
                ],
            }
    finally:
        iterator.close()


def lines(place, history, blob_dir=None, shared=False):
    """What the real RelStorage reads, as dump.lines has it for a FileStorage."""
    with tempfile.TemporaryDirectory(prefix="zodbdata-") as folder:
        storage = opened(place, history, blob_dir if shared else os.path.join(folder, "blobs"), shared)
        try:
            for txn in transactions(storage):
                yield json.dumps({
                    "tid": txn["tid"].hex(), "status": txn["status"], "user": base64_text(txn["user"]),
                    "description": base64_text(txn["description"]), "extension": base64_text(txn["extension"]),
                    "records": [_record(storage, r) for r in txn["records"]],
                }) + "\n"
        finally:
            storage.close()


def _record(storage, r):
    data = r["data"]
    made = {"oid": r["oid"].hex(), "tid": r["tid"].hex(), "data": None if data is None else base64_text(data), "data_txn": None}
    if data is not None and ZODB.blob.is_blob_record(data):
        made["blob"] = _blob(storage, r["oid"], r["tid"])
    return made


def blob_file(storage, oid, tid):
    """The path of a blob's bytes, or None."""
    try:
        return storage.loadBlob(oid, tid)
    except POSKeyError:
        return None


def _blob(storage, oid, tid):
    path = blob_file(storage, oid, tid)
    if path is None:
        return None
    with open(path, "rb") as f:
        return {"size": os.path.getsize(path), "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def write_gzip(path, data):
    """The same data gives the same bytes."""
    with open(path, "wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as z:
        z.write(data)


def dump_database(place, path):
    """Write a dump that one client without any tools loads statement by statement, compressed.

    PostgreSQL and MariaDB: SQL text. SQLite: the file.
    """
    if place.engine == "sqlite":
        import sqlite3
        file = os.path.join(place.where, "main.sqlite3")
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        with open(file, "rb") as f:
            write_gzip(path, f.read())
        return
    if place.engine == "postgresql":
        command = ["pg_dump", "--no-owner", "--no-privileges", "--rows-per-insert=50", "--blobs", place.where]
    else:
        command = ["mariadb-dump", "--no-defaults", "--hex-blob", "--skip-comments", "--skip-dump-date", "--skip-add-locks", "--skip-disable-keys",
                   "--skip-tz-utc", "--socket", place.parameters["unix_socket"], "--user", place.parameters["user"], place.parameters["db"]]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    # Commands of the clients, and comments with versions.
    text = re.sub(rb"(?m)^(\\(un)?restrict .*|--.*|/\*M!999999.*)\n", b"", text)
    write_gzip(path, re.sub(rb"\n{2,}", b"\n", text))
