"""The comparison of a source with a destination, object by object."""

import base64
import itertools
import sys

import ZODB
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64, z64

from . import destination
from .blobs import check_blobs
from .expected import extension_difference, references, text_of
from .values import Comparison, NoClass, Universe


class Report:
    """Counts everything, prints the first differences."""

    def __init__(self, limit):
        self._limit = limit
        self.counts = {}
        self.differences = 0

    def count(self, what, number=1):
        self.counts[what] = self.counts.get(what, 0) + number

    def differ(self, where, text):
        self.differences += 1
        if self.differences <= self._limit:
            print(f"DIFFERENT {where}: {text}", flush=True)

    def close(self):
        """Print the counts; return the exit code."""
        if self.differences > self._limit:
            print(f"... and {self.differences - self._limit} more differences")
        print(", ".join(f"{number} {what}" for what, number in self.counts.items()))
        print(f"{self.differences} differences" if self.differences else "equal")
        return 1 if self.differences else 0


def where(oid, tid=None):
    return f"oid {oid.hex()}" + (f" tid {tid.hex()}" if tid else "")


def compare(expected, site, report):
    """Compare everything that can be read without changing the destination."""
    check_rejects(expected, report)
    check_rows(expected, site, report)
    check_blobs(expected, site, report)
    with destination.opened(site) as storage:
        check_transactions(expected, site, storage, report)
        check_current(expected, storage, report)
        check_gone(expected, storage, report)
        if site.history:
            check_history(expected, site, storage, report)


def check_rejects(expected, report):
    """What the tool rejected must stand in the source, as it was."""
    known = {(oid, r.tid): r.data for oid, made in expected.revisions.items() for r in made}
    for (oid, tid), entry in expected.rejects.items():
        report.count("rejects")
        if known.get((oid, tid)) is None:
            report.differ(where(oid, tid), "rejected, but the source has no such record")
            continue
        raw = [v for k, v in entry.items() if k in ("data", "pickle", "raw", "record")]
        if not raw or base64.b64decode(raw[0]) != known[oid, tid]:
            report.differ(where(oid, tid), "the rejected pickle is not that of the source")
        if oid == z64:
            report.differ(where(oid, tid), "the root object was rejected")


def check_rows(expected, site, report):
    """The rows there are: no more, no less; class, size and references of each."""
    check_table(dict(keyed(expected.current())), site, "object_state", report)
    if site.history:
        check_table(dict(keyed(expected.older())), site, "object_history", report)
    elif destination.rows(site.dsn, "SELECT to_regclass('object_history')")[0][0]:
        report.differ("object_history", "a history-free database has this table")
    left = destination.rows(site.dsn, """
        SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'S', 'v') AND c.relnamespace = 'public'::regnamespace AND c.relname NOT IN
        ('transaction_log', 'object_state', 'object_history', 'pack_state', 'blob_state', 'pgjsonb_schema_state', 'zoid_seq', 'cache_warm_stats')
    """)
    for (name,) in left:
        report.differ(name, "is no table of zodb-pgjsonb and was left behind")
    # A row would make the add-ons of a site skip their tables.
    if number := destination.rows(site.dsn, "SELECT count(*) FROM pgjsonb_schema_state")[0][0]:
        report.differ("pgjsonb_schema_state", f"has {number} rows")
    highest = max((u64(oid) for oid in expected.revisions), default=0)
    sequence = destination.rows(site.dsn, "SELECT last_value, is_called FROM zoid_seq")[0]
    if sequence[0] + sequence[1] <= highest:
        report.differ("zoid_seq", f"gives {sequence[0] + sequence[1]} next, but the source has the oid {highest}")


def keyed(revisions):
    for oid, revision in revisions:
        yield (u64(oid), u64(revision.tid)), revision


def check_table(wanted, site, name, report):
    universe = Universe()
    for zoid, tid, module, class_name, size, refs, is_null in destination.table(site.dsn, name):
        revision = wanted.pop((zoid, tid), None)
        at = f"{name} zoid {zoid} tid {tid:016x}"
        report.count(f"rows of {name}")
        if revision is None:
            report.differ(at, "has no record in the source (or another revision should be here)")
        elif revision.data is None:
            if (module, class_name, size, list(refs), is_null) != ("", "", 0, [], True):
                report.differ(at, f"is no tombstone: {module}.{class_name}, {size} bytes, references {refs}, {'NULL' if is_null else 'a state'}")
        else:
            check_columns(revision.data, (module, class_name), size, refs, is_null, universe, at, report)
    for zoid, tid in wanted:
        report.differ(f"{name} zoid {zoid} tid {tid:016x}", "is missing")


def check_columns(data, cls, size, refs, is_null, universe, at, report):
    if is_null:
        report.differ(at, "the state is NULL, which means that the object is deleted")
    if size != len(data):
        report.differ(at, f"state_size is {size}, the record has {len(data)} bytes")
    try:
        wanted = references(data)
    except Exception as e:
        report.differ(at, f"the source's references cannot be read ({e!r}), but the record was stored")
        return
    found = {r & (1 << 64) - 1 for r in refs}
    if found != wanted:
        report.differ(at, f"references {sorted(wanted ^ found)[:5]} are missing or too many")
    try:
        name = universe.class_of(data)
    except Exception as e:
        report.differ(at, f"{e!r}, but the record was stored as {cls}")
    else:
        if tuple(name) != cls:
            report.differ(at, f"the class {name} became {cls}")


def check_transactions(expected, site, storage, report):
    stored = {p64(t): (u, d, bytes(e)) for t, u, d, e in destination.rows(site.dsn, "SELECT tid, username, description, extension FROM transaction_log")}
    for tid in stored.keys() - expected.metadata.keys():
        report.differ(f"tid {tid.hex()}", "is no transaction of the source")
    read = {t.tid: t for t in storage.iterator()}
    for tid, source in expected.metadata.items():
        report.count("transactions")
        at = f"tid {tid.hex()}"
        if tid not in stored or tid not in read:
            report.differ(at, "is missing")
            continue
        user, description, extension = stored[tid]
        if user != text_of(source.user):
            report.differ(at, f"user {source.user!r} became {user!r}")
        if description != text_of(source.description):
            report.differ(at, f"description {source.description[:60]!r} became {description[:60]!r}")
        if text := extension_difference(source.extension, extension):
            report.differ(at, text)
        if (read[tid].user, read[tid].description) != (user.encode(), description.encode()):
            report.differ(at, f"zodb-pgjsonb reads {read[tid].user!r}, {read[tid].description!r}")


class Objects:
    """Compares records of both sides."""

    def __init__(self, report):
        self._report = report
        self._universe = Universe()

    def check(self, at, data, found):
        try:
            cls, state = self._universe.record(data)
        except NoClass as e:
            self._report.differ(at, f"{e}, but the record was stored")
            return
        except Exception as e:
            # Python cannot load it there either; there is nothing to compare.
            self._report.count("records that the source's own ZODB cannot load")
            print(f"note: {at}: the source's own record does not load: {e!r}")
            return
        try:
            other_cls, other = self._universe.record(found)
        except Exception as e:
            self._report.differ(at, f"cannot be loaded: {e!r}")
            return
        if tuple(cls) != tuple(other_cls):
            self._report.differ(at, f"class {cls} became {other_cls}")
        elif text := Comparison(ignore_making=not isinstance(data, bytes)).difference(state, other):
            self._report.differ(at, f"{'.'.join(cls)} {text}")
        if references(data) != references(found):
            self._report.differ(at, "zodb-pgjsonb's record has other references")


def check_current(expected, storage, report):
    objects = Objects(report)
    for oid, revision in expected.current():
        report.count("objects")
        try:
            found, tid = storage.load(oid)
        except Exception as e:
            report.differ(where(oid, revision.tid), f"load: {e!r}")
            continue
        if tid != revision.tid:
            report.differ(where(oid, revision.tid), f"load gives the tid {tid.hex()}")
        objects.check(where(oid, revision.tid), revision.data, found)


def check_gone(expected, storage, report):
    for oid in expected.gone():
        report.count("deleted or rejected objects")
        try:
            found, tid = storage.load(oid)
        except POSKeyError:
            continue
        report.differ(where(oid), f"is deleted or rejected, but load gives its revision {tid.hex()}")


def check_history(expected, site, storage, report):
    """Every revision, by its tid and by the time before the next one."""
    objects = Objects(report)
    null = {(p64(z), p64(t)) for name in ("object_state", "object_history")
            for z, t in destination.rows(site.dsn, f"SELECT zoid, tid FROM {name} WHERE state = 'null'::jsonb")}
    for oid in expected.revisions:
        made = expected.history(oid)
        if len(made) > 1:
            check_list(oid, made, storage, report)
        for revision in made:
            report.count("revisions")
            at = where(oid, revision.tid)
            try:
                found = storage.loadSerial(oid, revision.tid)
            except Exception as e:
                report.differ(at, f"loadSerial: {e!r}")
                continue
            if revision.data is not None:
                objects.check(at, revision.data, found)
            before(oid, revision, found, (oid, revision.tid) in null, storage, at, report)


def check_list(oid, made, storage, report):
    listed = [h["tid"] for h in storage.history(oid, size=len(made) + 10)]
    if listed != [r.tid for r in reversed(made)]:
        report.differ(where(oid), f"history lists {len(listed)} revisions, the source has {len(made)} (or other tids)")


def before(oid, revision, serial, is_null, storage, at, report):
    """loadBefore must give this revision just after its tid, and nothing for a deletion.

    The JSON state null is what zodb-pgjsonb itself stores for a state of None
    (an empty BTree); its loadBefore takes that for a deletion. That is not held
    against the conversion: loadSerial has just given the state.
    """
    try:
        found = storage.loadBefore(oid, p64(u64(revision.tid) + 1))
    except POSKeyError:
        if revision.data is not None and not is_null:
            report.differ(at, "loadBefore: POSKeyError")
        return
    if revision.data is None:
        report.differ(at, "is a deletion, but loadBefore gives a state")
    elif found is None or found[:2] != (serial, revision.tid):
        report.differ(at, f"loadBefore gives {found and found[1].hex()}")


def check_first_start(expected, site, report):
    """The first start of a site must find nothing to change."""
    schema, physical = destination.schema(site.dsn), destination.physical(site.dsn)
    with destination.opened(site) as storage:
        if z64 in expected.revisions:
            db = ZODB.DB(storage)
            connection = db.open()
            connection.root()._p_activate()
            connection.close()
            db.close()
    report.count("first start")
    for line in difference_of_lines(schema, destination.schema(site.dsn)):
        report.differ("pg_dump -s after the first start", line)
    after = destination.physical(site.dsn)
    for name in sorted(physical.keys() | after.keys()):
        if physical.get(name) != after.get(name):
            report.differ(f"{name} after the first start", f"{physical.get(name)} became {after.get(name)}")


def difference_of_lines(a, b):
    import difflib
    return [line for line in difflib.unified_diff(a.splitlines(), b.splitlines(), lineterm="", n=0) if line[:3] not in ("---", "+++")]


def check_activation(expected, source, site, report, limit):
    """A real Connection activates what one on the source activates."""
    if z64 not in expected.revisions:
        return
    oids = [oid for oid, _ in itertools.islice(expected.current(), limit)]
    loads = activated(ZODB.DB(source), oids)
    with destination.opened(site) as storage:
        for oid, error in activated(ZODB.DB(storage), oids).items():
            report.count("objects activated by a real connection")
            if error is not None and loads[oid] is None:
                report.differ(where(oid), f"cannot be activated: {error}")


def activated(db, oids):
    errors = {}
    connection = db.open()
    try:
        for oid in oids:
            try:
                connection.get(oid)._p_activate()
                errors[oid] = None
            except Exception as e:
                errors[oid] = f"{e!r} {e.__cause__!r}"
    finally:
        connection.close()
        db.close()
    return errors


def deeply(function):
    """Run function on a stack that deeply nested values cannot exhaust."""
    import threading
    result = []
    threading.stack_size(512 << 20)
    sys.setrecursionlimit(200_000)

    def run():
        try:
            result.append(function())
        except BaseException as e:
            result.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]
