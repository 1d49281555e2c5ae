"""Commits, undoes and packs in the destination, as a site will."""

import time

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from ZODB.blob import Blob
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

from . import blobs, destination
from .compare import Objects, where
from .expected import references


def exercise(expected, site, report):
    """New objects and blobs at once; then undo (with a history) and pack."""
    commit_new_objects(expected, site, report)
    commit_blobs(expected, site, report)
    if z64 not in expected.revisions:
        return
    if site.history:
        undo(expected, site, report)
    pack(expected, site, report)


def commit_new_objects(expected, site, report):
    """They get oids that no object ever had, and nothing else changes."""
    if z64 not in expected.revisions:
        return
    highest = max(u64(oid) for oid in expected.revisions)
    for _, revision in expected.current():
        highest = max([highest, *(r for r in references(revision.data) if r < 1 << 62)])
    before = destination.fingerprint(site.dsn)
    with destination.opened(site) as storage:
        db = ZODB.DB(storage)
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        made = [PersistentMapping(number=i) for i in range(20)]
        for obj in made:
            connection.add(obj)
        made[0]["other"] = made[1]
        manager.commit()
        oids = {u64(obj._p_oid) for obj in made}
        tid = made[0]._p_serial
        connection.close()
        db.close()
    report.count("new objects committed", len(oids))
    if min(oids) <= highest and highest < 1 << 62:
        report.differ("new_oid", f"gave {min(oids)}, but the source knows {highest}")
    if tid <= max(expected.metadata):
        report.differ("new tid", f"{tid.hex()} is not later than the last of the source")
    after = destination.fingerprint(site.dsn)
    touched = [z for z in before if after.get(z) != before[z]]
    if touched or after.keys() - before.keys() != oids:
        report.differ("commit of new objects", f"changed existing objects: {touched[:5]}, new rows {len(after) - len(before)}")


def commit_blobs(expected, site, report):
    """A blob below and one above the threshold, written and replaced; nobody refers to them, so that a pack takes them."""
    if z64 not in expected.revisions:
        return
    with destination.opened(site) as storage:
        db = ZODB.DB(storage)
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        written = {}
        for size in (site.threshold - 1, site.threshold):
            blob = Blob(b"a" * size)
            connection.add(blob)
            manager.commit()
            blob._p_activate()
            written[blob._p_oid, blob._p_serial] = b"a" * size
            with blob.open("w") as f:
                f.write(b"b" * size)
            manager.commit()
            blob._p_activate()
            written[blob._p_oid, blob._p_serial] = b"b" * size
        connection.close()
        db.close()
    with destination.opened(site) as storage:
        for (oid, tid), content in written.items():
            report.count("new blobs")
            try:
                with open(storage.loadBlob(oid, tid), "rb") as f:
                    equal = f.read() == content
            except Exception as e:
                report.differ(blobs.where(oid, tid), f"was just written, but loadBlob: {e!r}")
            else:
                if not equal:
                    report.differ(blobs.where(oid, tid), "does not have the bytes that were just written")
    blobs.check_bucket(site, report)


def undo(expected, site, report):
    """A change of the root object, and its undo."""
    with destination.opened(site) as storage:
        db = ZODB.DB(storage)
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        root = connection.root()
        root["changed by the oracle"] = 1
        manager.commit()
        root._p_activate()
        changed = root._p_serial
        db.undo(changed, manager.get())
        manager.commit()
        connection.close()
        db.close()
    report.count("undo")
    with destination.opened(site) as storage:
        found, tid = storage.load(z64)
        if tid <= changed:
            report.differ("undo", "wrote no new revision")
        root = dict(expected.current()).get(z64)
        if root is not None:
            Objects(report).check(where(z64) + " after the undo", root.data, found)


def pack(expected, site, report):
    """Everything that can be reached from the root survives as it was, everything else of HF goes."""
    current = dict(expected.current())
    reachable, left = set(), [z64]
    while left:
        oid = left.pop()
        if oid not in reachable and oid in current:
            reachable.add(oid)
            left.extend(p64(r) for r in references(current[oid].data))
    before = destination.fingerprint(site.dsn)
    with destination.opened(site) as storage:
        # Revisions that are newer than the time of the pack stay, and a source
        # may have tids of the future.
        last = TimeStamp(storage.lastTransaction()).timeTime()
        storage.pack(max(time.time(), last + 1), referencesf)
    after = destination.fingerprint(site.dsn)
    for oid in reachable:
        report.count("objects after pack")
        zoid = u64(oid)
        if zoid not in after:
            report.differ(where(oid), "was packed away, although the root leads to it")
        elif after[zoid] != before[zoid]:
            report.differ(where(oid), "was changed by the pack")
    if not site.history and after.keys() != {u64(oid) for oid in reachable}:
        report.differ("pack", f"left {len(after)} rows, {len(reachable)} can be reached")
    check_packed_blobs(expected, reachable, site, report)
    with destination.opened(site) as storage:
        for oid in list(reachable)[:100]:
            try:
                storage.load(oid)
            except POSKeyError:
                report.differ(where(oid), "cannot be loaded after the pack")


def check_packed_blobs(expected, reachable, site, report):
    """Blobs that can be reached survive, the others go, from S3 as well."""
    left = {key: blob for key, blob in blobs.wanted(expected, False).items() if key[0] in reachable}
    blobs.check_bytes(left, site, report)
    blobs.check_bucket(site, report)
    rows = {(p64(zoid), p64(tid)) for zoid, tid in destination.rows(site.dsn, "SELECT zoid, tid FROM blob_state")}
    # The pack of a database with a history takes an object that was deleted and
    # is still referred to for one that can be reached, and keeps its newest blob.
    current = dict(expected.current())
    dangling = {p64(r) for oid in reachable for r in references(current[oid].data) if r < 1 << 63} - current.keys()
    rows = {key for key in rows if key in left or key[0] not in dangling}
    if rows != left.keys():
        report.differ("pack", f"left {len(rows)} rows of blobs, {len(left)} can be reached")
