"""Proves that the oracle sees differences.

Databases are loaded by the Python tool, what it is known to lose is put right
by SQL, and the oracle must find nothing. Then one thing at a time is changed,
and the oracle must find it.
"""

import contextlib
import io
import os
import random
import tempfile
import types

import psycopg
import psycopg.conninfo
from ZODB.FileStorage import FileStorage
from ZODB.utils import u64

from zodbdata.log import Log
from zodbdata.profiles import PROFILES

from . import compare, destination
from .expected import read_source
from .exercise import exercise

# Each must be seen. {zoid} is an object with a dict as state, {tid} its tid.
CHANGES = {
    "another text in a state": "UPDATE object_state SET state = jsonb_set(state, '{{title}}', '\"changed\"') WHERE zoid = {zoid}",
    "an attribute more": "UPDATE object_state SET state = state || '{{\"added\": 1}}' WHERE zoid = {zoid}",
    "an attribute less": "UPDATE object_state SET state = state - 'title' WHERE zoid = {zoid}",
    "an int became a float": "UPDATE object_state SET state = jsonb_set(state, '{{layout,version}}', '1.50001') WHERE zoid = {zoid}",
    "a bool became an int": "UPDATE object_state SET state = jsonb_set(state, '{{exclude_from_nav}}', '1') WHERE zoid = {zoid}",
    "a tuple became a list": "UPDATE object_state SET state = jsonb_set(state, '{{creators}}', state->'creators'->'@t') WHERE zoid = {zoid}",
    "another reference": "UPDATE object_state SET state = jsonb_set(state, '{{__parent__,@ref,0}}', '\"0000000000000001\"') WHERE zoid = {zoid}",
    "another class of a reference": "UPDATE object_state SET state = jsonb_set(state, '{{__parent__,@ref,1}}', '\"a.B\"') WHERE zoid = {zoid}",
    "a reference less in refs": "UPDATE object_state SET refs = '{{}}' WHERE zoid = {zoid}",
    "a reference more in refs": "UPDATE object_state SET refs = refs || 4711::bigint WHERE zoid = {zoid}",
    "another class": "UPDATE object_state SET class_name = 'Other' WHERE zoid = {zoid}",
    "another size": "UPDATE object_state SET state_size = state_size + 1 WHERE zoid = {zoid}",
    "a state of NULL": "UPDATE object_state SET state = NULL WHERE zoid = {zoid}",
    "an object less": "DELETE FROM object_state WHERE zoid = {zoid}",
    "an object more": "INSERT INTO object_state SELECT 999999, tid, class_mod, class_name, state, state_size, refs FROM object_state WHERE zoid = {zoid}",
    "another tid": "UPDATE object_state SET tid = (SELECT max(tid) FROM transaction_log) WHERE zoid = {zoid}",
    "another user": "UPDATE transaction_log SET username = username || ' ' WHERE tid = {tid}",
    "another description": "UPDATE transaction_log SET description = '' WHERE tid = {tid}",
    "another extension": "UPDATE transaction_log SET extension = '{{\"a\": 1}}' WHERE tid = (SELECT max(tid) FROM transaction_log WHERE extension <> '')",
    "an extension less": "UPDATE transaction_log SET extension = '' WHERE tid = (SELECT max(tid) FROM transaction_log WHERE extension <> '')",
    "a transaction more": "INSERT INTO transaction_log (tid) VALUES (4711)",
    "an empty transaction less": "DELETE FROM transaction_log WHERE tid = (SELECT min(t.tid) FROM transaction_log t"
                                 " WHERE NOT EXISTS (SELECT 1 FROM object_state o WHERE o.tid = t.tid))",
    "an index less": "DROP INDEX idx_object_state_tid_zoid",
    "a sequence that is too low": "SELECT setval('zoid_seq', 1, false)",
    "a table left behind": "CREATE TABLE zodb_convert_left (a int)",
    "a deleted object that came back": "INSERT INTO object_state SELECT {gone}, tid, class_mod, class_name, state, state_size, refs"
                                       " FROM object_state WHERE zoid = {zoid}",
}
CHANGES_OF_HISTORY = {
    "an old revision less": "DELETE FROM object_history WHERE ctid = (SELECT ctid FROM object_history WHERE state IS NOT NULL LIMIT 1)",
    "a tombstone less": "DELETE FROM object_history WHERE zoid = {gone} AND state IS NULL",
    "another text in an old revision": "UPDATE object_history SET state = jsonb_set(state, '{{title}}', '\"changed\"') WHERE state ? 'title'",
    "a revision in both tables": "INSERT INTO object_history SELECT * FROM object_state WHERE zoid = {zoid}",
}


def run(dsn):
    failures = checks = 0
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        path = os.path.join(folder, "Data.fs")
        log = Log(path)
        PROFILES["plone"](log, random.Random(5), types.SimpleNamespace(objects=260, record_size=1500, folder_size=None, big_transaction=0, keep_all=False))
        log.close()
        expected = read_source(path)
        for history in (False, True):
            for name, wanted, found in judge(dsn, path, expected, history):
                checks += 1
                ok = wanted == found
                failures += not ok
                print(f"{'ok  ' if ok else 'FAIL'} {'HP' if history else 'HF'} {name}: {'differences' if found else 'equal'}", flush=True)
    print(f"{checks - failures} passed, {failures} failed")
    return 1 if failures else 0


def judge(dsn, path, expected, history):
    """Yield name of a change, whether a difference is wanted, and whether one was found."""
    databases = Databases(dsn, "oracle_hp" if history else "oracle_hf")
    base = databases.create("base")
    try:
        with contextlib.closing(FileStorage(path, read_only=True)) as source, destination.opened(base, history) as storage:
            storage.copyTransactionsFrom(source)
        yield "as the Python tool loaded it, deleted objects alive", True, found(expected, path, base, history)
        zoid, tid, gone = repair(base, expected, history)
        yield "put right", False, found(expected, path, base, history)
        for name, sql in {**CHANGES, **(CHANGES_OF_HISTORY if history else {})}.items():
            changed = databases.create("changed", "base")
            with psycopg.connect(changed) as connection:
                # The foreign key keeps out what a broken tool might leave.
                connection.execute("ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey")
                connection.execute(sql.format(zoid=zoid, tid=tid, gone=gone))
            yield name, True, found(expected, path, changed, history)
            databases.drop("changed")
        yield "after commits, undo and pack", False, found(expected, path, base, history, exercise)
    finally:
        databases.close()


def found(expected, path, dsn, history, then=None):
    report = compare.Report(3)
    with contextlib.redirect_stdout(io.StringIO()):
        compare.check_first_start(expected, dsn, history, report)
        compare.compare(expected, dsn, history, report)
        if then:
            then(expected, dsn, history, report)
    return report.differences > 0


def repair(dsn, expected, history):
    """Delete what the Python tool left alive, and give zoid_seq its value."""
    gone = [(u64(oid), u64(expected.revisions[oid][-1].tid)) for oid in expected.gone()]
    with psycopg.connect(dsn) as connection:
        for zoid, tid in gone:
            if history:
                connection.execute("INSERT INTO object_history SELECT * FROM object_state WHERE zoid = %s", (zoid,))
                connection.execute("INSERT INTO object_history VALUES (%s, %s, '', '', NULL, 0, '{}')", (zoid, tid))
            connection.execute("DELETE FROM object_state WHERE zoid = %s", (zoid,))
        highest = max(u64(oid) for oid in expected.revisions)
        connection.execute("SELECT setval('zoid_seq', %s, false)", (highest + 1,))
        zoid, tid = connection.execute("SELECT zoid, tid FROM object_state WHERE state ? 'layout' ORDER BY zoid LIMIT 1").fetchone()
    return zoid, tid, gone[0][0]


class Databases:
    """Databases that go when the test ends."""

    def __init__(self, dsn, prefix):
        self._dsn, self._prefix, self._names = dsn, f"{prefix}_{os.getpid()}", set()

    def _admin(self, sql):
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(sql)

    def create(self, name, template=None):
        full = f"{self._prefix}_{name}"
        self._admin(f"CREATE DATABASE {full}" + (f" TEMPLATE {self._prefix}_{template}" if template else ""))
        self._names.add(name)
        return psycopg.conninfo.make_conninfo(self._dsn, dbname=full)

    def drop(self, name):
        self._admin(f"DROP DATABASE {self._prefix}_{name} WITH (FORCE)")
        self._names.discard(name)

    def close(self):
        for name in sorted(self._names):
            self.drop(name)
