"""Large databases into which a known number of everything is planted that an inspection has to find.

What was planted stands in OUT.planted.json: findings by cause, the oids of
records with special forms, and numbers of the source.
"""

import io
import json
import os

import ZODB.blob
import zodbpickle
from BTrees.IOBTree import IOBTree
from ZODB.utils import p64, u64
from zodbpickle import binary

from . import classes as c
from .content import Content, WORDS
from .log import Link, link

OBJECTS = 50_000
NOWHERE = 0x6000000000000000  # oids that no object has
A_FOLDER = 100


class Plants:
    """Counts what is planted and writes it beside the database."""

    def __init__(self, log):
        self.log = log
        self.findings, self.forms, self.source = {}, {}, {}
        self.nowhere = NOWHERE

    def oid_of_nothing(self):
        self.nowhere += 1
        return p64(self.nowhere)

    def found(self, cause, number=1):
        self.findings[cause] = self.findings.get(cause, 0) + number

    def form(self, name, oid):
        self.forms.setdefault(name, []).append(oid.hex())

    def write(self, path):
        with open(path.removesuffix(".fs") + ".planted.json", "w") as f:
            json.dump({"findings": self.findings, "forms": self.forms, "source": self.source}, f, indent=1)


class Garden:
    """Objects in folders that the root refers to."""

    def __init__(self, log, random, options, size):
        self.log, self.content, self.random = log, Content(random, size), random
        self.total = options.objects or OBJECTS
        self.folders, self.made = [], []
        log.commit_empty_root()

    def fill(self, state_of, number):
        """Store objects: state_of(i, oid, folder) gives a class and a state, or the bytes of a record."""
        for start in range(0, number, A_FOLDER):
            folder, items = self.log.new_oid(), {}
            with self.log.transaction(b"editor", f"folder {len(self.folders)}".encode(), {"n": start}) as t:
                for i in range(start, min(number, start + A_FOLDER)):
                    oid = self.log.new_oid()
                    self.put(t, oid, state_of(i, oid, link(folder, c.Folder)))
                    items[f"item-{i}"] = link(oid, c.Entry)
                    self.made.append(oid)
                t.store(folder, c.Folder, {"id": f"folder-{len(self.folders)}", "items": items})
            self.folders.append(folder)

    @staticmethod
    def put(t, oid, made):
        if isinstance(made, bytes):
            t.put(oid, made)
        else:
            t.store(oid, *made)

    def link(self):
        """Let the root refer to the folders."""
        tree = self.log.root["folders"] = IOBTree()
        for number, oid in enumerate(self.folders):
            tree[number] = self.log.connection.get(oid)
        self.log.commit("admin", "folders linked")

    def document(self, i, oid, folder):
        return self.content.document(i, folder, None)


def references(garden, plants):
    """References that lead nowhere or elsewhere, and objects that nothing refers to."""
    log, made = garden.log, []

    def record(t, **references):
        oid = log.new_oid()
        t.store(oid, c.Odd, {name: Link(pid) for name, pid in references.items()})
        made.append(oid)

    def strong():
        return binary(plants.oid_of_nothing()), c.Entry

    with log.transaction(b"gardener", b"references") as t:
        for i in range(11):
            record(t, gone=strong(), **({"too": strong()} if i % 4 == 0 else {}))  # counted once
            plants.found("dangling-reference")
        for _ in range(4):
            record(t, weak=["w", (binary(plants.oid_of_nothing()),)])
            plants.found("dangling-weak-reference")
        for i in range(7):
            oid = binary(plants.oid_of_nothing())
            record(t, other=["m", ("other", oid, c.Entry)] if i % 2 else ["n", ("other", oid)])
            plants.found("cross-database")
        record(t, weak=["w", (binary(garden.made[0]),)])  # leads to an object that is there
    garden.folders += made
    # Islands: some refer to each other, one to what the root knows.
    with log.transaction(b"gardener", b"islands") as t:
        island = [log.new_oid() for _ in range(13)]
        for number, oid in enumerate(island):
            t.store(oid, c.Odd, {"next": link(island[(number + 1) % 6], c.Odd) if number < 6 else link(garden.made[number], c.Entry)})
            plants.found("unreachable")


def metadata(garden, plants):
    for raw in (b"\xfcser", b"nul\x00", b"\xff\xfe", b"Stra\xdfe", b"\x80", b"ok \xc3\x28"):
        with garden.log.transaction(raw, b"metadata that is no text") as t:
            t.store(garden.made[0], c.Entry, {"number": u64(garden.made[0])})
        plants.found("escaped-metadata")


def blobs(log, random, options):
    """Documents and blobs, whose files are missing here and there; references of every kind; islands."""
    garden, plants = Garden(log, random, options, 1800), Plants(log)
    held = max(60, garden.total // 100)
    garden.fill(garden.document, garden.total - 2 * held)
    references(garden, plants)
    metadata(garden, plants)
    garden.link()
    files = log.root["files"] = IOBTree()
    for number in range(held):
        files[number] = c.NamedBlobFile(filename=f"{number}.bin", _blob=ZODB.blob.Blob(random.randbytes(random.randrange(1, 20_000))))
    log.commit("editor", "blobs")
    for number in range(0, held, 5):
        with log.root["files"][number]._blob.open("w") as f:
            f.write(random.randbytes(number))
    log.commit("editor", "a fifth of them again")
    held_blobs = [log.root["files"][n]._blob for n in range(held)]
    for blob in held_blobs:
        blob._p_activate()
    current = [(blob._p_oid, blob._p_serial) for blob in held_blobs]
    lost = random.sample(current, 9)
    plants.found("missing-blob", len(lost))
    plants.found("orphaned-blob", 5)
    plants.source["blobs.current"] = held
    plants.source["blobs.records"] = held + len(range(0, held, 5))
    plants.source["blobs.missing"] = len(lost)

    def close(path):
        helper = ZODB.blob.FilesystemHelper(log.blob_dir)
        for key in lost:
            os.remove(helper.getBlobFilename(*key))
        for number in range(5):
            path_of = helper.getBlobFilename(plants.nowhere + number, 0x03a0000000000000)
            os.makedirs(os.path.dirname(path_of), exist_ok=True)
            with open(path_of, "wb") as f:
                f.write(b"an orphan")
        plants.write(path)

    log.after_close = close


def revisions(log, random, options):
    """Compressed records, one to forty revisions, undone ones, deleted objects; packed up to its first third."""
    garden, plants = Garden(log, random, options, 900), Plants(log)
    garden.fill(garden.document, garden.total)
    garden.link()
    made = garden.made

    def edit(number, share):
        with log.transaction(b"editor", f"edit {number}".encode()) as t:
            for oid in random.sample(made[:share], min(share, 400)):
                t.store(oid, *garden.document(number, oid, None))
        return t.tid

    rounds = max(6, garden.total // 1000)
    tids = [edit(number, len(made) // (1 + number % 7)) for number in range(rounds)]
    log.pack(tids[rounds // 3])
    # One after the other, back from the newest: a later edit of the same object would be in the way.
    before = len(tids)
    for number in range(before, before + 8):
        tids.append(edit(number, len(made) // 9))
        with log.transaction(b"editor", b"Undo") as t:
            t.undo(tids[-1])
        if number % 2:
            with log.transaction(b"editor", b"Redo") as again:
                again.undo(t.tid)
    busy = made[7]
    for number in range(40):
        with log.transaction(b"cron", b"tick") as t:
            t.store(busy, c.Entry, {"number": number})
    references(garden, plants)
    with log.transaction(b"admin", b"the plants are found by the root") as t:
        holder = log.new_oid()
        t.store(holder, c.Folder, {"items": [link(oid, c.Odd) for oid in garden.folders[-22 - 1:]]})
    log.root["plants"] = log.connection.get(holder)
    log.commit("admin", "plants linked")
    # What is deleted is not referred to any more, but the objects in their folders are.
    gone = random.sample(made[len(made) // 2:], 60)
    with log.transaction(b"gc", b"deleted") as t:
        for oid in gone:
            t.delete(oid)
    plants.source["deleted"] = len(gone)
    plants.found("dangling-reference", len({made.index(oid) // A_FOLDER for oid in gone}))
    log.after_close = plants.write


def mixed(log, random, options):
    """Protocols 0 to 3, strings of Python 2, records that no destination takes, special forms."""
    garden, plants = Garden(log, random, options, 1000), Plants(log)
    strings = [0]

    def state_of(i, oid, folder):
        kind = i % 10
        if kind < 4:
            return garden.document(i, oid, folder)
        if kind < 8:
            strings[0] += 1
            return python2(i, kind, random)
        # No references: protocol 0 has none.
        return pickled(c.Entry, {"number": i, "title": random.choice(WORDS), "half": i / 2}, kind - 8)

    garden.fill(state_of, garden.total)
    cycle = [1]
    cycle.append(cycle)
    shared = ["shared"]
    planted = (
        ("shared-copied", 17, {"a": shared, "b": {"c": shared}}), ("capsule-cycle", 9, {"ring": cycle}),
        ("float-special", 5, {"a": float("nan"), "b": [float("inf"), -0.0]}), ("surrogates", 6, {"a": "a\udcffb"}),
        ("dict-pairs", 8, {"a": {"@t": [1]}}),
    )

    def special(i, oid, folder):
        for name, number, state in planted:
            if i < number:
                plants.form(name, oid)
                return c.Odd, state
            i -= number
        raise AssertionError(i)

    garden.fill(special, sum(number for _, number, _ in planted))
    rejects = (
        (23, pickled((c.WithNewargs, (1, "a")), {"a": 1}, 3)), (4, pickled(c.Odd, {"a": "cut off"}, 3)[:-3]),
        (2, pickled(c.Odd, {}, 3)[:-1] + b"\xff."),  # no opcode
    )
    plants.found("rejected", sum(number for number, _ in rejects))
    bad = [record for number, record in rejects for _ in range(number)]
    garden.fill(lambda i, oid, folder: bad[i], len(bad))
    references(garden, plants)
    metadata(garden, plants)
    garden.link()
    plants.source["python2_strings"] = strings[0]
    plants.source["python2"] = True
    log.after_close = plants.write


def pickled(described, state, protocol):
    """A record in a protocol that ZODB wrote or writes."""
    file = io.BytesIO()
    pickler = zodbpickle.pickle.Pickler(file, protocol)
    pickler.dump(described)
    pickler.dump(state)
    return file.getvalue()


def python2(i, kind, random):
    """A record as Python 2 has written it: its strings are bytes or text, nobody knows which."""
    word = random.choice(WORDS).encode("utf-8" if kind % 2 else "latin-1", "ignore")[:200]
    parts = [b"U\x05title", b"U" + bytes([len(word)]) + word, b"U\x06number", b"J" + i.to_bytes(4, "little")]
    head = b"\x80\x02" if kind < 6 else b""
    return head + b"cshop.orders\nEntry\nq\x01." + head + b"}q\x02(" + b"".join(parts) + b"u."
