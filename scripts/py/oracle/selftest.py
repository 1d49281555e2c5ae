"""Proves that the oracle sees differences.

Databases are loaded by the Python tool, what it is known to lose is put right
by SQL, and the oracle must find nothing. Then one thing at a time is changed,
and the oracle must find it.
"""

import contextlib
import dataclasses
import io
import os
import random
import tempfile
import types

import psycopg
import psycopg.conninfo
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.utils import u64

from zodbdata.log import Log
from zodbdata.profiles import PROFILES

from . import blobs, compare, destination
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


# {small} and {large} are blobs in PostgreSQL and in S3, {twin} one of small's size.
CHANGES_OF_BLOBS = {
    "another byte": "UPDATE blob_state SET data = set_byte(data, 7, (get_byte(data, 7) + 1) % 256) WHERE zoid = {small}",
    "the last byte less": "UPDATE blob_state SET data = substr(data, 1, length(data) - 1) WHERE zoid = {small}",
    "two blobs swapped": "UPDATE blob_state a SET data = b.data FROM blob_state b WHERE (a.zoid, b.zoid) IN (({small}, {twin}), ({twin}, {small}))",
    "another blob_size": "UPDATE blob_state SET blob_size = blob_size + 1 WHERE zoid = {small}",
    "another blob_size in S3": "UPDATE blob_state SET blob_size = blob_size + 1 WHERE zoid = {large}",
    "another tid": "UPDATE blob_state SET tid = tid + 1 WHERE zoid = {small}",
    "another tid in S3": "UPDATE blob_state SET tid = tid + 1 WHERE zoid = {large}",
    "a row less": "DELETE FROM blob_state WHERE zoid = {small}",
    "an empty blob less": "DELETE FROM blob_state WHERE blob_size = 0",
    "a row of S3 less": "DELETE FROM blob_state WHERE zoid = {large}",
    "a row more": "INSERT INTO blob_state SELECT zoid, tid - 1, blob_size, data, s3_key FROM blob_state WHERE zoid = {small}",
    "a row for an object that is no blob": "INSERT INTO blob_state SELECT 0, tid, blob_size, data, s3_key FROM blob_state WHERE zoid = {small}",
    "neither data nor a key": "UPDATE blob_state SET data = NULL WHERE zoid = {small}",
    "no key": "UPDATE blob_state SET s3_key = NULL WHERE zoid = {large}",
    "a wrong key": "UPDATE blob_state SET s3_key = replace(s3_key, '.blob', '.blobs') WHERE zoid = {large}",
    "the key of another": "UPDATE blob_state a SET s3_key = b.s3_key FROM blob_state b WHERE a.zoid = {large} AND b.s3_key <> a.s3_key",
    "data and a key": "UPDATE blob_state SET data = '' WHERE zoid = {large}",
    "the object of the blob less": "DELETE FROM object_state WHERE zoid = {small}",
}
# {old} and {old_tid} are a replaced revision in PostgreSQL.
CHANGES_OF_OLD_BLOBS = {
    "another byte of an old revision":
        "UPDATE blob_state SET data = set_byte(data, 7, (get_byte(data, 7) + 1) % 256) WHERE zoid = {old} AND tid = {old_tid}",
    "an old revision less": "DELETE FROM blob_state WHERE zoid = {old} AND tid = {old_tid}",
}
# What is done to an object of the bucket: a function of its bytes, None for none.
CHANGES_OF_OBJECTS = {
    "another byte in S3": lambda content: content[:7] + bytes([content[7] ^ 1]) + content[8:],
    "the last byte less in S3": lambda content: content[:-1],
    "a byte more in S3": lambda content: content + b"x",
    "nothing in S3": lambda content: b"",
    "an object less": lambda content: None,
}
STRANGERS = ("oracle/blobs/00000000000000aa/00000000000000bb.blob", "oracle/probe", "blobs/00000000000000aa/00000000000000bb.blob", "oracle2/x")
THRESHOLD = 2000


def run(dsn, endpoint):
    failures = checks = 0
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        for history in (False, True):
            for judge in (records, blobs_of_all_places):
                for name, wanted, found in judge(dsn, endpoint, folder, history):
                    checks += 1
                    ok = wanted == found
                    failures += not ok
                    print(f"{'ok  ' if ok else 'FAIL'} {'HP' if history else 'HF'} {name}: {'differences' if found else 'equal'}", flush=True)
    print(f"{checks - failures} passed, {failures} failed")
    return 1 if failures else 0


def written(path, write, blob_dir=None):
    """Write a database unless it is there; return what is expected of it."""
    if not os.path.exists(path):
        log = Log(path, blob_dir=blob_dir)
        write(log)
        log.close()
    return read_source(path, blob_dir=blob_dir)


def site_of(log):
    PROFILES["plone"](log, random.Random(5), types.SimpleNamespace(objects=260, record_size=1500, folder_size=None, big_transaction=0, keep_all=False))


def records(dsn, endpoint, folder, history):
    """Yield name of a change, whether a difference is wanted, and whether one was found."""
    path = os.path.join(folder, "Data.fs")
    expected = written(path, site_of)
    databases = Databases(dsn, "oracle_hp" if history else "oracle_hf")
    base = destination.Site(databases.create("base"), history)
    try:
        with contextlib.closing(FileStorage(path, read_only=True)) as source, destination.opened(base) as storage:
            storage.copyTransactionsFrom(source)
        yield "as the Python tool loaded it, deleted objects alive", True, found(expected, base)
        zoid, tid, gone = repair(base, expected)
        yield "put right", False, found(expected, base)
        changes = {**CHANGES, **(CHANGES_OF_HISTORY if history else {})}
        for name, changed in databases.changed(base, changes, zoid=zoid, tid=tid, gone=gone):
            yield name, True, found(expected, changed)
        yield "after commits, undo and pack", False, found(expected, base, exercise)
    finally:
        databases.close()


def blobs_of_all_places(dsn, endpoint, folder, history):
    """The same for blobs in PostgreSQL and in S3."""
    path, blob_dir = os.path.join(folder, "Blobs.fs"), os.path.join(folder, "blobs")
    expected = written(path, documents_with_files, blob_dir)
    s3 = destination.S3(endpoint, f"oracle-{os.getpid()}-{'hp' if history else 'hf'}", "oracle")
    s3.raw().create_bucket(Bucket=s3.bucket)
    databases = Databases(dsn, "oracle_blobs_hp" if history else "oracle_blobs_hf")
    base = destination.Site(databases.create("base"), history, s3, THRESHOLD)
    try:
        with contextlib.closing(FileStorage(path, blob_dir=blob_dir)) as source, destination.opened(base) as storage:
            storage.copyTransactionsFrom(source)
        if not history:
            yield "blobs as the Python tool loaded them, replaced ones alive", True, found(expected, base)
        repair_blobs(base, expected)
        yield "blobs put right", False, found(expected, base)
        yield "taken for a site without a bucket", True, found(expected, dataclasses.replace(base, s3=None))
        yield "with another threshold", True, found(expected, dataclasses.replace(base, threshold=THRESHOLD + 1))
        yield "with another prefix", True, found(expected, dataclasses.replace(base, s3=destination.S3(endpoint, s3.bucket, "other")))
        changes = {**CHANGES_OF_BLOBS, **(CHANGES_OF_OLD_BLOBS if history else {})}
        names = names_of_blobs(expected)
        for name, changed in databases.changed(base, changes, **names):
            yield name, True, found(expected, changed)
        large = s3.full(destination.s3_key(names["large"], names["large_tid"]))
        for name, changed in CHANGES_OF_OBJECTS.items():
            with put(s3, large, changed):
                yield name, True, found(expected, base)
        for key in STRANGERS:
            with put(s3, key, lambda _: b"x"):
                yield f"an object more, {key}", True, found(expected, base)
        yield "and everything as it was", False, found(expected, base)
        yield "after new blobs and a pack", False, found(expected, base, exercise)
    finally:
        databases.close()


def documents_with_files(log):
    """Blobs around the threshold, replaced, undone, deleted, empty."""
    rng = random.Random(6)
    root = log.root
    for name, size in (("empty", 0), ("small", 700), ("twin", 700), ("below", THRESHOLD - 1), ("at", THRESHOLD), ("large", 50_000), ("gone", 900)):
        root[name] = Blob(rng.randbytes(size))
    log.commit("admin", "blobs")
    for name, size in (("below", 1200), ("at", 3 * THRESHOLD)):
        with root[name].open("w") as f:
            f.write(rng.randbytes(size))
    undone = log.commit("admin", "replaced")
    with log.transaction(b"admin", b"undone") as t:
        t.undo(undone)
    with log.root["below"].open("w") as f:
        f.write(rng.randbytes(300))
    del log.root["gone"]
    log.commit("admin", "replaced again")


def names_of_blobs(expected):
    """Objects that are changed: their zoids, by what stands in the changes."""
    current = {oid: (revision.tid, expected.blobs[oid, revision.tid].size) for oid, revision in expected.current() if (oid, revision.tid) in expected.blobs}
    small, twin = sorted(oid for oid, (_, size) in current.items() if size == 700)
    large = next(oid for oid, (_, size) in current.items() if size == 50_000)
    below = next(oid for oid, (_, size) in current.items() if size == 300)
    old_tid = next(tid for oid, tid in expected.blobs if oid == below and expected.blobs[oid, tid].size == 1200)
    return {"small": u64(small), "twin": u64(twin), "large": u64(large), "large_tid": u64(current[large][0]), "old": u64(below), "old_tid": u64(old_tid)}


def repair_blobs(site, expected):
    """What the Python tool leaves: blobs of replaced revisions, in a database without a history."""
    keep = {(u64(oid), u64(tid)) for oid, tid in blobs.wanted(expected, site.history)}
    client = site.s3.client()
    with psycopg.connect(site.dsn) as connection:
        for zoid, tid, key in connection.execute("SELECT zoid, tid, s3_key FROM blob_state").fetchall():
            if (zoid, tid) not in keep:
                connection.execute("DELETE FROM blob_state WHERE zoid = %s AND tid = %s", (zoid, tid))
                if key:
                    client.delete_object(key)
        connection.execute("SELECT setval('zoid_seq', %s, false)", (max(u64(oid) for oid in expected.revisions) + 1,))


@contextlib.contextmanager
def put(s3, key, changed):
    """Change an object, and put back what was there."""
    client = s3.raw()
    before = None
    with contextlib.suppress(client.exceptions.NoSuchKey):
        before = client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()

    def write(content):
        if content is None:
            client.delete_object(Bucket=s3.bucket, Key=key)
        else:
            client.put_object(Bucket=s3.bucket, Key=key, Body=content)

    write(changed(before))
    try:
        yield
    finally:
        write(before)


def found(expected, site, then=None):
    report = compare.Report(3)
    with contextlib.redirect_stdout(io.StringIO()):
        compare.check_first_start(expected, site, report)
        compare.compare(expected, site, report)
        if then:
            then(expected, site, report)
    return report.differences > 0


def repair(site, expected):
    """Delete what the Python tool left alive, and give zoid_seq its value."""
    gone = [(u64(oid), u64(expected.revisions[oid][-1].tid)) for oid in expected.gone()]
    with psycopg.connect(site.dsn) as connection:
        for zoid, tid in gone:
            if site.history:
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

    def changed(self, base, changes, **names):
        """Yield the name of each change and a site on a copy with it."""
        for name, sql in changes.items():
            site = dataclasses.replace(base, dsn=self.create("changed", "base"))
            with psycopg.connect(site.dsn) as connection:
                # The foreign key keeps out what a broken tool might leave.
                connection.execute("ALTER TABLE object_state DROP CONSTRAINT object_state_tid_fkey")
                if not connection.execute(sql.format(**names)).rowcount:
                    raise RuntimeError(f"nothing was changed by: {name}")
            yield name, site
            self.drop("changed")

    def drop(self, name):
        self._admin(f"DROP DATABASE {self._prefix}_{name} WITH (FORCE)")
        self._names.discard(name)

    def close(self):
        for name in sorted(self._names):
            self.drop(name)
