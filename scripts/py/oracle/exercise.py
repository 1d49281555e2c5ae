"""Commits, undoes and packs in the destination, as a site will."""

import time

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

from . import destination
from .compare import Objects, where
from .expected import references


def exercise(expected, dsn, history, report):
    """New objects at once; then undo (with a history) and pack."""
    commit_new_objects(expected, dsn, history, report)
    if z64 not in expected.revisions:
        return
    if history:
        undo(expected, dsn, report)
    pack(expected, dsn, history, report)


def commit_new_objects(expected, dsn, history, report):
    """They get oids that no object ever had, and nothing else changes."""
    if z64 not in expected.revisions:
        return
    highest = max(u64(oid) for oid in expected.revisions)
    for _, revision in expected.current():
        highest = max([highest, *(r for r in references(revision.data) if r < 1 << 62)])
    before = destination.fingerprint(dsn)
    with destination.opened(dsn, history) as storage:
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
    after = destination.fingerprint(dsn)
    touched = [z for z in before if after.get(z) != before[z]]
    if touched or after.keys() - before.keys() != oids:
        report.differ("commit of new objects", f"changed existing objects: {touched[:5]}, new rows {len(after) - len(before)}")


def undo(expected, dsn, report):
    """A change of the root object, and its undo."""
    with destination.opened(dsn, True) as storage:
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
    with destination.opened(dsn, True) as storage:
        found, tid = storage.load(z64)
        if tid <= changed:
            report.differ("undo", "wrote no new revision")
        root = dict(expected.current()).get(z64)
        if root is not None:
            Objects(report).check(where(z64) + " after the undo", root.data, found)


def pack(expected, dsn, history, report):
    """Everything that can be reached from the root survives as it was, everything else of HF goes."""
    current = dict(expected.current())
    reachable, left = set(), [z64]
    while left:
        oid = left.pop()
        if oid not in reachable and oid in current:
            reachable.add(oid)
            left.extend(p64(r) for r in references(current[oid].data))
    before = destination.fingerprint(dsn)
    with destination.opened(dsn, history) as storage:
        storage.pack(time.time(), referencesf)
    after = destination.fingerprint(dsn)
    for oid in reachable:
        report.count("objects after pack")
        zoid = u64(oid)
        if zoid not in after:
            report.differ(where(oid), "was packed away, although the root leads to it")
        elif after[zoid] != before[zoid]:
            report.differ(where(oid), "was changed by the pack")
    if not history and after.keys() != {u64(oid) for oid in reachable}:
        report.differ("pack", f"left {len(after)} rows, {len(reachable)} can be reached")
    with destination.opened(dsn, history) as storage:
        for oid in list(reachable)[:100]:
            try:
                storage.load(oid)
            except POSKeyError:
                report.differ(where(oid), "cannot be loaded after the pack")
