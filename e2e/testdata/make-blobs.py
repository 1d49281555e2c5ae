"""Writes blobs.fs and blobs.blobs: blobs of many sizes, replaced, undone and deleted, over many transactions.

usage: .venv/bin/python e2e/testdata/make-blobs.py EMPTY_FOLDER
"""

import os
import random
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "py"))

from BTrees.OOBTree import OOBTree  # noqa: E402
from ZODB.blob import Blob  # noqa: E402

from zodbdata import classes as c  # noqa: E402
from zodbdata.log import Log  # noqa: E402

# The tests put large blobs into S3 from this size on.
THRESHOLD = 1000
SIZES = (0, 1, 300, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, 2500)


def main(folder):
    log = Log(os.path.join(folder, "blobs.fs"), blob_dir=os.path.join(folder, "blobs.blobs"))
    rng = random.Random(17)
    log.root["files"] = OOBTree()
    log.commit("admin", "a site")
    for number in range(28):
        files = log.root["files"]
        for i in range(2):
            size = SIZES[(2 * number + i) % len(SIZES)]
            files[f"{number:02}{i}"] = c.Document(title=f"file {number} {i}", file=Blob(rng.randbytes(size)))
        log.commit("editor", f"upload {number}")
        if number % 3 == 2:
            with files[f"{number - 1:02}0"].file.open("w") as f:
                f.write(rng.randbytes(SIZES[number % len(SIZES)] + 1))
            replaced = log.commit("editor", "another file")
            if number % 2:
                with log.transaction(b"editor", b"undo") as t:
                    t.undo(replaced)
        if number % 4 == 3:
            del log.root["files"][f"{number - 2:02}1"]
            log.commit("admin", "delete")
        if number == 8:
            # Before this pack stands what is packed away: blobs that were
            # replaced or that nobody refers to any more.
            log.pack(replaced)
    log.close()


main(sys.argv[1])
