"""Writes a database of blobs with the real ZODB, by sizes.

usage: makeblobs.py [--seed N] OUT.fs BLOB_DIR SIZE[..SIZE][*COUNT] ...

A size is a number of bytes, or one with KB, MB or GB (powers of 1024) and then
perhaps +1 or -1; of a range each blob gets one at random. A transaction has
about 16 MB of them; they hang in a BTree. The bytes are random, no two files
are alike.
"""

import argparse
import os
import random
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from BTrees.OOBTree import OOBTree  # noqa: E402
from ZODB.blob import Blob  # noqa: E402

from zodbdata.log import Log  # noqa: E402

UNITS = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
TRANSACTION = 16 << 20
BLOCK = 1 << 20


def size_of(text):
    found = re.fullmatch(r"(\d+)(KB|MB|GB|)([+-]1)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no size")
    return int(found[1]) * UNITS[found[2]] + int(found[3] or 0)


def sizes_of(text):
    """Return smallest, largest and how many."""
    sizes, _, count = text.partition("*")
    low, _, high = sizes.partition("..")
    return size_of(low), size_of(high or low), int(count or 1)


def blobs(options):
    """Yield the name and size of every blob."""
    rng = random.Random(options.seed)
    for low, high, count in options.sizes:
        for number in range(count):
            size = rng.randint(low, high)
            yield f"{low}-{high}-{number:06}", size


def write(blob, size, rng):
    with blob.open("w") as f:
        while size > 0:
            f.write(rng.randbytes(min(size, BLOCK)))
            size -= BLOCK


def main():
    p = argparse.ArgumentParser(prog="makeblobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("out", metavar="OUT.fs")
    p.add_argument("folder", metavar="BLOB_DIR")
    p.add_argument("sizes", nargs="+", type=sizes_of, metavar="SIZE")
    options = p.parse_args()
    log = Log(options.out, blob_dir=options.folder)
    rng = random.Random(f"bytes {options.seed}")
    tree = log.root["files"] = OOBTree()
    pending = 0
    for name, size in blobs(options):
        blob = tree[name] = Blob()
        write(blob, size, rng)
        pending += size
        if pending >= TRANSACTION:
            log.commit("admin", "files")
            log.connection.cacheMinimize()
            tree, pending = log.root["files"], 0
    log.commit("admin", "the last files")
    log.close()


main()
