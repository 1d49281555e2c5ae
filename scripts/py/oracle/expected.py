"""What the source holds, by the real FileStorage, from a copy of the file."""

import collections
import io
import json
import os
import shutil
import tempfile

from ZODB._compat import loads
from ZODB.blob import FilesystemHelper
from ZODB.serialize import referencesf
from ZODB.utils import u64

from zodbdata import relational
from zodbdata.dump import transactions

from . import blobs

Revision = collections.namedtuple("Revision", "tid data")
Metadata = collections.namedtuple("Metadata", "user description extension")


class Expected:
    """Transactions and revisions of a source.

    metadata    {tid: Metadata}, bytes as they stand in the file
    revisions   {oid: [Revision, ...]} in file order, the last of an oid and transaction only
    rejects     {(oid, tid): raw pickle}, from the file that the tool wrote
    blobs       {(oid, tid): Blob}, the files of the blobs
    missing     {(oid, tid)} of the blobs without a file
    """

    def __init__(self, txns, rejects=None, blob_dir=None):
        self.metadata, self.revisions, self.superseded = {}, {}, 0
        for txn in txns:
            self.metadata[txn["tid"]] = Metadata(txn["user"], txn["description"], txn["extension"])
            for record in txn["records"]:
                made = self.revisions.setdefault(record["oid"], [])
                if made and made[-1].tid == txn["tid"]:
                    made.pop()
                    self.superseded += 1
                made.append(Revision(txn["tid"], record["data"]))
        self.rejects = rejects or {}
        self.blobs, self.missing = blobs.files(self, blob_dir)

    def current(self):
        """Yield oid and newest revision of every object that must be there."""
        for oid, made in self.revisions.items():
            newest = made[-1]
            if newest.data is not None and (oid, newest.tid) not in self.rejects:
                yield oid, newest

    def history(self, oid):
        """The revisions that a history must have.

        At a rejected one the object is not there, as after a deletion: an
        older revision must not be seen in its place.
        """
        return [Revision(r.tid, None) if (oid, r.tid) in self.rejects else r for r in self.revisions[oid]]

    def older(self):
        """Yield oid and revision of all that is not current: older ones, deletions, rejects."""
        for oid in self.revisions:
            made = self.history(oid)
            for number, revision in enumerate(made):
                if number < len(made) - 1 or revision.data is None:
                    yield oid, revision

    def gone(self):
        """Yield the oids that must not be found."""
        for oid, made in self.revisions.items():
            if made[-1].data is None or (oid, made[-1].tid) in self.rejects:
                yield oid


def read_source(path, rejects_path=None, blob_dir=None):
    """Read a copy: nothing is written beside the original, and it may grow meanwhile."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        copy = os.path.join(folder, "Data.fs")
        shutil.copyfile(path, copy)
        return Expected(transactions(copy), read_rejects(rejects_path), blob_dir)


def read_relational(storage, folder, rejects_path=None):
    """Read what a real RelStorage gives. Its blobs are copied into the folder, in the layout bushy."""
    expected = Expected(relational.transactions(storage), read_rejects(rejects_path))
    names = FilesystemHelper(folder)
    names.create()
    for oid, tid in sorted(expected.missing):  # none has a file yet
        path = relational.blob_file(storage, oid, tid)
        if path is not None:
            names.createPathForOID(oid)
            shutil.copyfile(path, names.getBlobFilename(oid, tid))
    expected.blobs, expected.missing = blobs.files(expected, folder)
    return expected


def read_rejects(path):
    rejects = {}
    if path:
        with open(path) as f:
            for line in f:
                entry = json.loads(line)
                if entry.get("kind", "record") != "record":
                    continue  # a blob without a file: its object is there
                rejects[_eight(entry["oid"]), _eight(entry["tid"])] = entry
    return rejects


def _eight(text):
    """An oid or tid as the tool prints it: hex digits, with or without 0x."""
    return int(text, 16).to_bytes(8, "big")


def references(data):
    """The objects that a record refers to, as ZODB's own garbage collection sees them."""
    if not isinstance(data, bytes):
        return data.references
    return {u64(oid) for oid in referencesf(data)}


def text_of(raw):
    """User and description in the destination: bytes that are no UTF-8 as \\xHH, NUL as \\x00."""
    return raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def json_of(value):
    """The JSON form of an extension, or None if JSON does not give it back as it was."""
    if type(value) is not dict or not value:
        return None
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return text if _same(json.loads(text), value) else None


def _same(a, b):
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return a.keys() == b.keys() and all(type(k) is str for k in b) and all(_same(a[k], b[k]) for k in a)
    if type(a) is list:
        return len(a) == len(b) and all(map(_same, a, b))
    return repr(a) == repr(b)


def extension_difference(source, stored):
    """Compare the extension's bytes in the source with those in the destination."""
    if stored == source:
        if not source or json_of(_loaded(source)) is None:
            return None
        return "extension: plain JSON was stored as a pickle"
    value = _loaded(source)
    if not source or type(value) is not dict:
        return f"extension: {source[:60]!r} became {stored[:60]!r}"
    if not value and stored in (b"", b"{}"):
        return None
    if json_of(value) is None:
        return f"extension: {value!r} is no plain JSON, its pickle became {stored[:60]!r}"
    try:
        found = json.loads(stored)
    except ValueError as e:
        return f"extension: {stored[:60]!r} is no JSON: {e}"
    return None if _same(found, value) else f"extension: {value!r} became {found!r}"


def _loaded(raw):
    try:
        return loads(raw)
    except Exception:
        return None
