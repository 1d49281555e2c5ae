"""What a source holds, counted by the real ZODB.

Structure comes from the iterator of the real storage, the current objects from
the storage's own index, classes and bytes from ZODB.scripts.analyze, references
from ZODB.serialize.referencesf, files of blobs from ZODB.blob, opcodes from
pickletools. Of the tool only the rejects are taken, as a conversion has written
them: no tool of ZODB knows what a destination cannot hold.

ZODB.scripts.analyze counts all revisions and counts a class under the name that
the object's first revision had. So it is given the current records alone; with
all of them its sums are compared with what is counted here.
"""

import base64
import collections
import contextlib
import functools
import io
import json
import os
import pickletools
import shutil
import tempfile
import types

import zc.zlibstorage
import zodbpickle.slowpickle
from persistent.TimeStamp import TimeStamp
from ZODB.blob import BLOB_SUFFIX, LAYOUTS, FilesystemHelper, is_blob_record
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import FileIterator
from ZODB.POSException import POSKeyError
from ZODB.scripts import analyze
from ZODB.serialize import referencesf
from ZODB.utils import get_pickle_metadata, load_current, p64, repr_to_oid, z64

from zodbdata import relational

from .expected import read_rejects, text_of

ZLIB = b".z"
UNKNOWN = ""  # the class of what has none
MAGIC, OLD_MAGIC = b"FS30", b"FS21"
ROW = 32  # what the tool counts for a row beside its values
BLOB_TABLE = "the table blob_chunk"

Current = collections.namedtuple("Current", "tid data")
Row = collections.namedtuple("Row", "transactions objects revisions deleted rejected blobs blob_bytes")


class Counted:
    """Everything that is counted."""

    def __init__(self):
        self.kind, self.bytes, self.tail, self.python2, self.history = None, 0, 0, False, True
        self.tids, self.statuses, self.escaped = [], collections.Counter(), []
        self.records = 0
        self.back = self.compressed = 0
        self.oids = collections.Counter()   # {oid: revisions}
        self.revisions = {}                 # {(oid, tid): data or None}, the last of several
        self.current = {}                   # {oid: Current}
        self.rejects = {}                   # of the current ones and older ones, {(oid, tid): entry}
        self.place, self.files, self.orphans = "", {}, set()
        self.old_references = {}            # {(oid, tid): oids} as Python 2 has found them

    # What is derived of it.

    def times(self):
        return [TimeStamp(tid).timeTime() for tid in (self.tids[0], self.tids[-1])] if self.tids else None

    def falling(self):
        """The tids that are not above all before them."""
        made, highest = [], b""
        for tid in self.tids:
            if tid <= highest:
                made.append(tid)
            highest = max(highest, tid)
        return made

    def histogram(self):
        """Objects by number of revisions: 1, 2-3, 4-7, ..."""
        made = []
        for number in self.oids.values():
            place = number.bit_length() - 1
            made += [0] * (place + 1 - len(made))
            made[place] += 1
        return made

    def data_bytes(self, history):
        if history:
            return sum(len(data) for data in self.revisions.values() if data is not None)
        return sum(len(c.data) for c in self.current.values())

    def blob_records(self):
        """The keys of all revisions that are blobs, and of the current ones."""
        every = {key for key, data in self.revisions.items() if data is not None and is_blob(data)}
        return every, {(oid, c.tid) for oid, c in self.current.items()} & every

    def rows(self, history, known=None):
        """What a destination holds after a conversion; known are the rejects that are known."""
        lost = set(self.rejects) if known is None else known
        newest = {(oid, c.tid) for oid, c in self.current.items()}
        now = newest - lost
        every, _ = self.blob_records()
        blobs = ((every - lost) if history else (every & now)) & set(self.files)
        deleted = len(self.oids) - len(newest)
        older = len(self.revisions) - len(newest) - deleted - len(lost - newest) if history else 0
        return Row(len(self.tids), len(now), older, deleted, len(lost if history else lost & newest), len(blobs), sum(self.files[key] for key in blobs))


# Sources.

def read_file(path, blob_dir=None, rejects=None):
    """Count a FileStorage, from a copy: nothing is written beside the original."""
    made = Counted()
    made.kind, made.rejects = "filestorage", read_rejects(rejects)
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        copy = os.path.join(folder, "Data.fs")
        shutil.copyfile(path, copy)
        made.python2 = _readable(copy)
        if os.path.getsize(copy):
            _transactions(made, _iterated(copy, made), True)
        if made.python2:
            _as_python2_says(made, path)
        _check_sums(made, copy)
        _index(made, copy)
    if blob_dir:
        _blobs(made, blob_dir)
    return made


def read_relational(place, shared_blob_dir=None, rejects=None):
    """Count a RelStorage."""
    made = Counted()
    made.kind, made.rejects = "relstorage", read_rejects(rejects)
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        made.history = relational.keeps_history(place)
        storage = relational.opened(place, made.history, shared_blob_dir or os.path.join(folder, "cache"), bool(shared_blob_dir), read_only=True)
        try:
            _transactions(made, storage.iterator(), False)  # an undo writes the pickles again
            _walk(made, storage)
            if shared_blob_dir:
                _blobs(made, shared_blob_dir)
            made.place = " and ".join(filter(None, (BLOB_TABLE, made.place)))
            _chunks(made, storage)
        finally:
            storage.close()
    return made


def _chunks(made, storage):
    """The blobs that are rows, by loadBlob, which gives the shared files, too."""
    every, _ = made.blob_records()
    for key in every:
        path = relational.blob_file(storage, *key)
        if path is not None:
            made.files[key] = os.path.getsize(path)
    with storage._load_connection.isolated_connection() as cursor:
        cursor.execute("SELECT DISTINCT zoid, tid FROM blob_chunk")
        made.orphans |= {(p64(oid), p64(tid)) for oid, tid in cursor.fetchall()} - every


def _readable(path):
    """Let the real FileStorage of Python 3 take a file of Python 2: only the magic differs."""
    with open(path, "r+b") as f:
        if f.read(4) != OLD_MAGIC:
            return False
        f.seek(0)
        f.write(MAGIC)
    return True


def _iterated(path, made):
    """The real iterator; where it ends is where the last whole transaction does."""
    iterator = FileIterator(path)
    position = 4
    for txn in iterator:
        yield txn
        position = txn._tend + 8
    left = os.path.getsize(path) - position
    made.bytes, made.tail = position - 4, left  # without the magic


def _transactions(made, txns, file):
    for txn in txns:
        made.tids.append(txn.tid)
        made.statuses[txn.status] += 1
        if any(text_of(raw).encode() != raw for raw in (txn.user, txn.description)):
            made.escaped.append(txn.tid)
        if not file:
            made.bytes += ROW + len(txn.user) + len(txn.description) + len(txn.extension_bytes) + sum(ROW + len(record.data or b"") for record in txn)
        last = {}  # of several records of an object in one transaction the last counts
        for record in txn:
            made.records += 1
            last[record.oid] = record
        for oid, record in last.items():
            made.oids[oid] += 1
            back = file and record.data_txn is not None
            made.back += back
            # The data of a back pointer is that of another record.
            made.compressed += bool(record.data) and record.data[:2] == ZLIB and not back
            made.revisions[oid, txn.tid] = zc.zlibstorage.decompress(record.data) if record.data else None


def _as_python2_says(made, path):
    """The dump that Python 2 made of the same file has to say the same."""
    dump, values = (path.removesuffix(".fs") + end for end in (".dump.jsonl", ".values.jsonl"))
    tids, revisions = [], {}
    with open(dump) as f:
        for line in f:
            txn = json.loads(line)
            tids.append(bytes.fromhex(txn["tid"]))
            for r in txn["records"]:
                revisions[bytes.fromhex(r["oid"]), bytes.fromhex(r["tid"])] = None if r["data"] is None else base64.b64decode(r["data"])
    assert (tids, revisions) == (made.tids, made.revisions), f"Python 3 reads {path} otherwise than Python 2"
    with open(values) as f:
        for line in f:
            entry = json.loads(line)
            made.old_references[bytes.fromhex(entry["oid"]), bytes.fromhex(entry["tid"])] = [bytes.fromhex(oid) for oid in entry["references"]]


def _check_sums(made, path):
    """ZODB.scripts.analyze over the whole file has to come to the same sums."""
    if not made.tids:
        return
    with contextlib.redirect_stdout(io.StringIO()) as said:
        report = analyze.Report()
        for txn in FileIterator(path):
            analyze.analyze_trans(report, txn)
    assert (report.TIDS, report.OIDS) == (len(made.tids), made.records), f"analyze counts {report.TIDS} transactions and {report.OIDS} records"
    if not said.getvalue():  # it leaves out what it cannot read
        assert report.COIDS == len({oid for (oid, _), data in made.revisions.items() if data is not None}), "analyze counts other objects"


def _index(made, path):
    """The current objects are those of the real storage's index."""
    if os.path.getsize(path) == 0:
        return
    storage = FileStorage(path)  # for writing: only so is a last transaction that was cut off left out
    try:
        assert set(storage._index.keys()) <= set(made.oids), "the index knows oids that the iterator does not"
        for oid in storage._index.keys():
            with contextlib.suppress(POSKeyError):
                data, tid = load_current(storage, oid)
                made.current[oid] = Current(tid, zc.zlibstorage.decompress(data))
    finally:
        storage.close()


def _walk(made, storage):
    """The current objects by record_iternext, as a copy of a storage takes them."""
    following = None
    while True:
        try:
            oid, tid, data, following = storage.record_iternext(following)
        except (POSKeyError, StopIteration, ValueError):
            break
        if data:
            made.current[oid] = Current(tid, zc.zlibstorage.decompress(data))
        if following is None:
            break


def _blobs(made, folder):
    """Where the real ZODB looks for the file of each blob, and which files nothing refers to."""
    made.place = folder
    helper = FilesystemHelper(folder)
    every, _ = made.blob_records()
    taken = set()
    for key in every:
        for layout in (helper.layout, *LAYOUTS.values()):
            path = os.path.join(helper.base_dir, layout.getBlobFilePath(*key))
            if os.path.isfile(path):
                made.files[key] = os.path.getsize(path)
                taken.add(path)
                break
    for _, path in helper.listOIDs():
        for name in os.listdir(path):
            full = os.path.join(path, name)
            if name.endswith(BLOB_SUFFIX) and full not in taken:
                made.orphans.add((helper.splitBlobFilename(full)[0], repr_to_oid(name.removesuffix(BLOB_SUFFIX))))


def is_blob(data):
    """As the real storage asks, of bytes that may be no pickle."""
    return bool(is_blob_record(data))


# Records.

class Classes:
    """Current objects and their bytes by class, by ZODB.scripts.analyze."""

    def __init__(self, counted):
        report = analyze.Report()
        self.of = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for oid, c in counted.current.items():
                analyze.analyze_rec(report, types.SimpleNamespace(oid=oid, data=c.data))
                self.of[oid] = report.OIDMAP.get(oid, UNKNOWN)
                if "\0" in self.of[oid]:  # no name of a class for anybody else, and no text in PostgreSQL
                    name = self.of[oid]
                    self.of[oid] = UNKNOWN
                    for sums in report.TYPEMAP, report.TYPESIZE:
                        sums.pop(name, None)
        self.objects, self.bytes = report.TYPEMAP, report.TYPESIZE
        unknown = [oid for oid, name in self.of.items() if name == UNKNOWN]
        if unknown:
            self.objects[UNKNOWN], self.bytes[UNKNOWN] = len(unknown), sum(len(counted.current[oid].data) for oid in unknown)


def class_of(data):
    """By ZODB.utils, as the servers of ZODB name a record in their logs."""
    return ".".join(get_pickle_metadata(data))


class _Opaque:
    """Stands for every class and function of a pickle, and for what they make."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _OldStrings(zodbpickle.slowpickle.Unpickler):
    """Reads a pickle with the classes left out, and keeps the strings of Python 2 that are no part of a reference."""

    def __init__(self, file):
        super().__init__(file)
        self.found = {}

    def decode_string(self, value):
        made = _Old(value)
        self.found[id(made)] = made
        return made

    def find_class(self, module, name):
        return self._forget if module == "datetime" else _Opaque

    def _forget(self, *parts):
        """What a date is made of is no string to anybody."""
        for part in _flat(parts):
            self.found.pop(id(part), None)
        return _Opaque()

    def persistent_load(self, pid):
        self._forget(pid)


class _Old(bytes):
    """A string of Python 2."""


def _flat(value):
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    else:
        yield value


Pickle = collections.namedtuple("Pickle", "protocol old_strings")
OLD = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
# pickletools takes all strings of Python 2 for ASCII.
pickletools.stringnl.reader = functools.partial(pickletools.read_stringnl, decode=False)


def state_pickle(data):
    """The protocol of a record's pickles, which one pickler has written, and whether its state has strings of Python 2.

    One that is no record to its end is read as far as it is one, and its strings are not looked for.
    """
    file = io.BytesIO(data)
    protocol, highest, old = None, 0, False
    try:
        for number in range(2):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "PROTO":
                    protocol = argument
                highest = max(highest, opcode.proto)
                old = old or number == 1 and opcode.name in OLD
    except Exception:
        old = False
    if old:
        walk = _OldStrings(io.BytesIO(data))
        walk.load()  # the second pickle takes from the memo of the first
        walk.found.clear()
        walk.load()
        old = bool(walk.found)
    # Before protocol 2 a pickle does not say what it is.
    return Pickle(min(highest, 1) if protocol is None else protocol, old)


class _References(zodbpickle.pickle.Unpickler):
    """ZODB's unpickler, with the rule of ZODB._compat.loads for strings of Python 2."""

    def __init__(self, file, found):
        super().__init__(file, encoding="ASCII", errors="bytes")
        self.persistent_load = found.append


def pids(data):
    """All persistent ids of a record, as they stand there, and what ended the reading too early."""
    found = []
    unpickler = _References(io.BytesIO(data), found)
    try:
        unpickler.noload()
        unpickler.noload()
    except Exception as e:
        return found, e
    return found, None


Edges = collections.namedtuple("Edges", "strong weak abroad")


def edges(data, known=None, rejected=False):
    """The oids that a record refers to: so that they live, weakly, and in other databases.

    One that is rejected is read as far as it can be.
    """
    weak, abroad, strong = [], [], []

    def elsewhere(oid, database):
        abroad.append((_oid(oid), database))

    found, failure = pids(data)
    if failure is not None and not rejected:
        raise failure
    for pid in found:
        if isinstance(pid, list):
            if pid[0] in ("m", "n"):
                elsewhere(pid[1][1], pid[1][0])
            elif pid[0] == "w" and len(pid[1]) > 1:
                elsewhere(*pid[1])
            elif pid[0] == "w":
                weak.append(_oid(pid[1][0]))
            else:
                weak.append(_oid(pid[0]))
        else:
            strong.append(_oid(pid[0] if isinstance(pid, tuple) else pid))
    if failure is not None:
        return Edges(strong, weak, abroad)
    try:
        real = referencesf(data)
    except UnicodeDecodeError:  # it takes all strings of Python 2 for ASCII
        real = strong if known is None else known
    assert sorted(set(real)) == sorted(set(strong)), "referencesf finds other references"
    return Edges(strong, weak, abroad)


def _oid(value):
    return value.encode("ascii") if isinstance(value, str) else bytes(value)


class Graph:
    """What refers to what among the current objects."""

    def __init__(self, counted):
        self.edges = {}
        for oid, c in counted.current.items():
            key = (oid, c.tid)
            self.edges[oid] = edges(c.data, counted.old_references.get(key), key in counted.rejects)
        there = set(counted.current)
        each = self.edges.items()
        self.dangling = {(oid, o) for oid, e in each for o in e.strong if o not in there}
        self.weak_dangling = {(oid, o) for oid, e in each for o in e.weak if o not in there}
        self.abroad = {(oid, *o) for oid, e in each for o in e.abroad}  # with the name of the other database
        self.unreachable = there - self._reached() if z64 in there else set()

    def _reached(self):
        reached, left = {z64}, [z64]
        while left:
            e = self.edges.get(left.pop())
            for oid in e.strong if e else ():
                if oid not in reached:
                    reached.add(oid)
                    left.append(oid)
        return reached
