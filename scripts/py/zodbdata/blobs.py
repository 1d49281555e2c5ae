"""Databases with blobs: a small history of everything that happens to them, and any number of files of any size."""

import os
import re

import ZODB.blob
from BTrees.IOBTree import IOBTree
from ZODB.utils import p64

from . import classes as c

UNITS = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}

# Around everything at which a blob is handled in another way: the default of
# blob-threshold, the size of a part of an upload, what PostgreSQL gives as text.
EDGES = "0,1,102399,102400,102401,5MB,5242881,300MB,500MB"


def size(text):
    """A number of bytes; units as in ZConfig, where 1KB has 1024."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", text.strip().upper())
    if match is None:
        raise ValueError(f"{text!r} is no size: give a number of bytes, or one with KB, MB or GB")
    return int(match[1]) * UNITS[match[2]]


def sizes(text, count, random):
    """Yield the sizes of count blobs: of one range, or a list again and again; without a count, of the list once."""
    if text == "edges":
        text = EDGES
    if "-" in text:
        low, high = (size(part) for part in text.split("-", 1))
        for _ in range(count or 1):
            yield random.randint(low, high)
        return
    each = [size(part) for part in text.split(",")]
    for i in range(count or len(each)):
        yield each[i % len(each)]


class Filler:
    """Writes files of which no two pieces are alike, at the speed of the disk.

    A pool of random bytes is written again and again, and each piece of it
    starts with the number of its file and its own.
    """

    PIECE = 1 << 20

    def __init__(self, random):
        self.pool = memoryview(random.randbytes(17 << 20))

    def write(self, path, number, length):
        with open(path, "wb", buffering=0) as f:
            for piece in range(-(-length // self.PIECE)):
                left = min(self.PIECE, length - piece * self.PIECE)
                head = (number << 32 | piece).to_bytes(16, "big")[:left]
                start = (number * 7919 + piece * 104729) % (len(self.pool) - self.PIECE)
                for part in (memoryview(head), self.pool[start:start + left - len(head)]):
                    while part:
                        part = part[f.write(part):]


def many(log, random, options):
    """Blobs of the wanted number and sizes, each in an object that refers to it."""
    filler = Filler(random)
    path = os.path.join(log.file.temporaryDirectory(), "filler")
    files = log.root["files"] = IOBTree()
    log.commit("admin", "no files yet")
    held = number = 0
    for number, length in enumerate(sizes(options.blob_size, options.blobs, random), 1):
        filler.write(path, number, length)
        blob = ZODB.blob.Blob()
        log.connection.add(blob)  # so that the file is renamed within the directory
        blob.consumeFile(path)
        files[number] = c.NamedBlobFile(filename=f"file-{number}.bin", contentType="application/octet-stream", _blob=blob)
        held += length
        if number % 100 == 0 or held >= 64 << 20:
            log.commit("editor", f"up to file {number}")
            held = 0
    log.commit("editor", f"up to file {number}")


def history(log, random, options):
    """Everything that happens to blobs."""
    log.file.set_max_oid(p64(0xfd))  # oids of one byte and of two
    root = log.root
    root["empty"] = ZODB.blob.Blob()
    with root["empty"].open("w"):
        pass
    for name, length in (("small", 300), ("larger", 5000), ("packed", 40), ("deleted", 50), ("again", 60), ("unlinked", 70), ("first", 80)):
        root[name] = ZODB.blob.Blob(random.randbytes(length))
    root["doc"] = c.Document(title="refers to blobs", file=root["small"], same=root["small"], image=root["larger"])
    log.commit("admin", "blobs")

    def write(name, data, description):
        with log.root[name].open("w") as f:
            f.write(data)
        return log.commit("editor", description)

    def undo(*tids):
        with log.transaction(b"editor", b"Undo") as t:
            for tid in tids:
                t.undo(tid)
        return t.tid

    # Two revisions of which the first is packed away, in transactions that stay.
    write("packed", b"packed, too", "an edit before the pack")
    write("packed", b"before the pack", "the last edit before the pack")
    del log.root["unlinked"]
    log.commit("editor", "unlinked, to be packed away")
    log.pack(write("small", b"after the pack", "small edited after the pack"))
    # Undone, redone, undone: back records of back records.
    edit = write("small", b"small, second revision", "small edited")
    undone = undo(edit)
    undo(undo(undone))
    write("small", b"small, third revision", "small edited again")
    # To nothing and back.
    write("larger", b"", "larger emptied")
    write("larger", random.randbytes(3000), "larger filled")
    # A creation undone; and one undone and redone.
    log.root["never"] = ZODB.blob.Blob(b"its creation is undone")
    undo(log.commit("editor", "created by mistake"))
    log.root["redone"] = ZODB.blob.Blob(b"its creation is undone and redone")
    undo(undo(log.commit("editor", "created after all")))
    # Deleted while others still refer to it; deleted and restored.
    for name in "deleted", "again":
        oid = log.root[name]._p_oid
        with log.transaction(b"gc", b"deleted") as t:
            t.delete(oid)
    undo(t.tid)
    # Only one of several blobs of a transaction is newer than the rest.
    with log.root["first"].open("w") as f:
        f.write(b"first, second revision")
    log.root["last"] = ZODB.blob.Blob(b"the last")
    log.root["doc"].title = "refers to blobs still"
    log.commit("editor", "two at once")
    log.after_close = lambda path: leftovers(log.blob_dir)


def leftovers(blob_dir):
    """What crashes and interrupted copies leave behind, and no record refers to."""
    helper = ZODB.blob.FilesystemHelper(blob_dir)

    def put(path, data):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)

    # A tid that is not above those of the database; a file with a newer one may
    # belong to a transaction that is about to be committed.
    put(helper.getBlobFilename(0xffff, 0x03a0000000000000), b"an orphan")
    put(helper.getBlobFilename(0x01, 0x03a0000000000000), b"")
    put(os.path.join(helper.getPathForOID(0x01), "0x03a0000000000000x7r2kq.tmp"), b"torn")
    put(os.path.join(helper.temp_dir, "BUC0a1b2c"), b"not committed")
    put(os.path.join(helper.temp_dir, "savepoints3x9", "0x02-0x03a0000000000000.spb"), b"savepoint")
