"""A RelStorage with what a FileStorage cannot have, or not so."""

from persistent.mapping import PersistentMapping
from ZODB.utils import p64, u64, z64

from . import classes as c
from .log import link

LARGE = (1, 255, 2**31, 2**32 + 1, 2**48, 2**62, 2**63 - 2**33 - 5)


def edges(log, random, options):
    """For RelStorage only: large oids, a transaction with many rows, gaps, a deleted object, a pack that was interrupted."""
    log.commit_empty_root()
    entries = []
    for number in LARGE:
        entries.append(link(p64(number), c.Entry))
        with log.transaction(b"tool", b"oid %d" % number) as t:
            t.store(p64(number), c.Entry, {"number": number})
    # Many rows in one transaction, with gaps between their oids; nothing refers to every third.
    many = [p64(1000 + 7 * i) for i in range(1500)]
    with log.transaction(b"import", b"many at once") as t:
        for i, oid in enumerate(many):
            t.put(oid, log.serialize(c.Entry, {"number": i}))
    with log.transaction(b"tool", b"root") as t:
        t.store(z64, PersistentMapping, {"data": {"entries": entries, "many": [link(oid, c.Entry) for i, oid in enumerate(many) if i % 3]}})
    # Edited, so that a pack has something to remove; in between, nothing happened.
    for edit in range(6):
        with log.transaction(b"editor", b"edit %d" % edit, {"edit": edit}) as t:
            for number in LARGE[: 1 + edit]:
                t.store(p64(number), c.Entry, {"number": number, "edit": edit})
        with log.transaction(b"cron", b"nothing to do"):
            pass
    with log.transaction(b"gc", b"one is gone") as t:
        t.delete(p64(LARGE[-1]))
    middle = t.tid
    for edit in range(3):
        with log.transaction(b"editor", b"after the pack", {"edit": edit}) as t:
            t.store(p64(1), c.Entry, {"number": 1, "after": edit})
    log.interrupt_pack(middle, after=200)
    with log.transaction(b"editor", b"after the interruption") as t:
        t.store(p64(255), c.Entry, {"number": 255, "last": True})
