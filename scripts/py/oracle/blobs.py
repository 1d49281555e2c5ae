"""Blobs: where the source keeps their files, and their comparison."""

import collections
import filecmp
import hashlib
import itertools
import os

import ZODB
from ZODB.blob import LAYOUTS, FilesystemHelper
from ZODB.utils import p64, z64

from . import destination
from .values import Universe

CLASS = ("ZODB.blob", "Blob")

Blob = collections.namedtuple("Blob", "path size")


def files(expected, folder):
    """Return {(oid, tid): Blob} of the files of all revisions, and the set of those that are missing.

    The file is where the real ZODB looks for it; where it is not there, that
    of another layout counts.
    """
    found, missing = {}, set()
    names = FilesystemHelper(folder) if folder else None
    for oid, revision in revisions(expected):
        key = (oid, revision.tid)
        for path in places(names, *key) if names else ():
            if os.path.isfile(path):
                found[key] = Blob(path, os.path.getsize(path))
                break
        else:
            missing.add(key)
    return found, missing


def places(names, oid, tid):
    yield names.getBlobFilename(oid, tid)
    for layout in ("bushy", "lawn"):
        yield os.path.join(names.base_dir, LAYOUTS[layout].getBlobFilePath(oid, tid))


def revisions(expected):
    """Yield oid and revision of every blob record that was not rejected."""
    universe = Universe()
    for oid in expected.revisions:
        for revision in expected.history(oid):
            if revision.data is not None and is_blob(revision.data, universe):
                yield oid, revision


def is_blob(data, universe):
    if isinstance(data, bytes) and b"ZODB.blob" not in data:
        return False
    try:
        return tuple(universe.class_of(data)) == CLASS
    except Exception:
        return False  # told where records are compared


def wanted(expected, history):
    """Return {(oid, tid): Blob} of those that the destination must have."""
    if history:
        return dict(expected.blobs)
    current = {(oid, revision.tid) for oid, revision in expected.current()}
    return {key: blob for key, blob in expected.blobs.items() if key in current}


def where(oid, tid):
    return f"blob oid {oid.hex()} tid {tid.hex()}"


def check_blobs(expected, site, report):
    """Rows, tiers and bytes; and that the bucket has what the rows name, no more and no less."""
    check_blob_rows(expected, site, report)
    check_bucket(site, report)
    check_bytes(wanted(expected, site.history), site, report)
    check_opening(expected, site, report)


def check_blob_rows(expected, site, report):
    left = wanted(expected, site.history)
    rows = destination.rows(site.dsn, "SELECT zoid, tid, blob_size, octet_length(data), s3_key FROM blob_state")
    for zoid, tid, size, length, key in rows:
        oid_tid = p64(zoid), p64(tid)
        at = where(*oid_tid)
        report.count("rows of blob_state")
        blob = left.pop(oid_tid, None)
        if blob is None:
            report.differ(at, "has a row, but no file in the source, or another revision should be here")
            continue
        if size != blob.size:
            report.differ(at, f"blob_size is {size}, the file has {blob.size} bytes")
        if site.in_bucket(blob.size):
            if (length, key) != (None, destination.s3_key(zoid, tid)):
                report.differ(at, f"must be in S3, but {length} bytes are in the row, and the key is {key}")
        elif (length, key) != (blob.size, None):
            report.differ(at, f"must be in PostgreSQL with {blob.size} bytes, but {length} bytes are in the row, and the key is {key}")
    for oid_tid in left:
        report.differ(where(*oid_tid), "has no row")
    current = {(oid, revision.tid) for oid, revision in expected.current()}
    report.count("blobs that the source has not", len(expected.missing if site.history else expected.missing & current))


def check_bucket(site, report):
    """The keys of the rows are exactly those of the bucket: without a reader of its own nobody sees a lost object."""
    if site.s3 is None:
        return
    named = {site.s3.full(key): size for key, size in destination.rows(site.dsn, "SELECT s3_key, blob_size FROM blob_state WHERE s3_key IS NOT NULL")}
    for key, size in site.s3.objects():
        report.count("objects in S3")
        if key not in named:
            report.differ(f"S3 {key}", "is named by no row")
        elif named.pop(key) != size:
            report.differ(f"S3 {key}", f"has {size} bytes, its row says otherwise")
    for key in named:
        report.differ(f"S3 {key}", "is missing")


def check_bytes(blobs, site, report):
    """Every blob is loaded by the real storage, by oid and tid."""
    with destination.opened(site) as storage:
        for (oid, tid), blob in blobs.items():
            report.count("blobs")
            try:
                path = storage.loadBlob(oid, tid)
            except Exception as e:
                report.differ(where(oid, tid), f"loadBlob: {e!r}")
                continue
            if not filecmp.cmp(path, blob.path, shallow=False):
                report.differ(where(oid, tid), f"sha256 {digest(blob.path)} became {digest(path)}, {blob.size} bytes became {os.path.getsize(path)}")
            os.remove(path)  # the cache would hold all of them


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_opening(expected, site, report, limit=50):
    """A real connection opens blobs as a site does."""
    if z64 not in expected.revisions:
        return
    small = ((key, blob) for key, blob in wanted(expected, False).items() if blob.size < 64 << 20)
    with destination.opened(site) as storage:
        db = ZODB.DB(storage)
        connection = db.open()
        for (oid, tid), blob in itertools.islice(small, limit):
            report.count("blobs opened by a real connection")
            try:
                with connection.get(oid).open("r") as f, open(blob.path, "rb") as g:
                    equal = f.read() == g.read()
            except Exception as e:
                report.differ(where(oid, tid), f"open: {e!r}")
            else:
                if not equal:
                    report.differ(where(oid, tid), "opened by a connection it has other bytes")
        connection.close()
        db.close()


def linked(expected, folder):
    """Fill a folder with links to the blob files, in the layout that ZODB takes for a new one."""
    helper = FilesystemHelper(folder, "bushy")
    helper.create()
    for (oid, tid), blob in expected.blobs.items():
        os.symlink(blob.path, os.path.join(helper.getPathForOID(oid, create=True), os.path.basename(helper.getBlobFilename(oid, tid))))
    return folder
