"""The RelStorage databases of testdata/relstorage: what each contains, and how the files are made.

Every database is made on every engine. The real RelStorage then reads all of
them, and what it gives must be the same everywhere: there is one truth for all
engines.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile

import psycopg2
import pymysql

from . import profiles, relational
from .edges import edges

ENGINES = ("postgresql", "mysql", "sqlite")
SUFFIXES = {"postgresql": "pg.sql.gz", "mysql": "maria.sql.gz", "sqlite": "sqlite3.gz"}

# Those that profiles fill, mostly those of the FileStorage databases: name, profile, objects.
WRITTEN = (
    ("history", profiles.history, None), ("packed", profiles.packed, None), ("zlib", profiles.zlib, 12), ("blobs", profiles.blobs, None),
    ("shared", profiles.blobs, None), ("plone", profiles.plone, 260), ("edges", edges, None),
)
# Those that RelStorage's own zodbconvert copies from a FileStorage of testdata/.
COPIED = ("odd", "rejects")


class Options:
    """Those of mkdata."""

    record_size = 1500
    folder_size = None
    big_transaction = 0
    keep_all = False

    def __init__(self, objects):
        self.objects = objects


class Server:
    """Makes and drops databases of one engine."""

    def __init__(self, engine, folder, postgresql, mysql_socket):
        self.engine, self.folder, self.postgresql, self.socket = engine, folder, postgresql, mysql_socket

    def new(self, name):
        name = "zodbdata_" + name.replace("-", "_")
        if self.engine == "postgresql":
            self._postgresql(f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
            return relational.Place(f"postgresql:{self.postgresql} dbname={name}")
        if self.engine == "mysql":
            connection = pymysql.connect(unix_socket=self.socket, user="root")
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {name}")
                cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
            connection.close()
            return relational.Place(f"mysql:unix_socket={self.socket},user=root,db={name}")
        path = os.path.join(self.folder, name)
        shutil.rmtree(path, ignore_errors=True)
        return relational.Place(f"sqlite:{path}")

    def _postgresql(self, *statements):
        connection = psycopg2.connect(self.postgresql + " dbname=postgres")
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)
        connection.close()


def write(place, name, profile, objects, history, blob_dir):
    """Let a profile fill a database; return what RelStorage then reads."""
    shared = name == "shared"
    log = relational.Log(place, history, blob_dir, shared=shared, zlib=name == "zlib")
    try:
        profile(log, random.Random(f"{name} 1"), Options(objects))
    finally:
        log.close()
    truth = "".join(relational.lines(place, history, blob_dir, shared)).encode()
    if shared:
        log.after_close(None)
    return truth


CONVERT = """
<filestorage source>
  path {path}
</filestorage>
<relstorage destination>
  keep-history {history}
  create-schema true
  <{engine}>
    {parameters}
  </{engine}>
</relstorage>
"""


def copy(place, path, history, folder):
    """Let RelStorage's zodbconvert copy a FileStorage; return what RelStorage then reads."""
    source = os.path.join(folder, "Data.fs")
    shutil.copyfile(path, source)
    if place.engine == "postgresql":
        parameters = f"dsn {place.where}"
    elif place.engine == "mysql":
        parameters = "\n    ".join(f"{key} {value}" for key, value in place.parameters.items())
    else:
        parameters = f"data-dir {place.where}"
    config = os.path.join(folder, "convert.conf")
    with open(config, "w") as f:
        f.write(CONVERT.format(path=source, history=str(history).lower(), engine=place.engine.replace("sqlite", "sqlite3"), parameters=parameters))
    # Not in this process: it would take the configuration of the log for its own.
    program = "import sys\nimport zodbdata.relational\nfrom relstorage.zodbconvert import main\nmain(sys.argv)"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    done = subprocess.run([sys.executable, "-c", program, config], capture_output=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr.decode() + f"mkdata: zodbconvert failed for {path}")
    return "".join(relational.lines(place, history)).encode()


def make(out, testdata, postgresql, mysql_socket, only=(), engines=ENGINES, old=()):
    """Make all databases; old are pairs of a name and a Python with an older RelStorage."""
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zodbdata-") as folder:
        servers = [Server(engine, folder, postgresql, mysql_socket) for engine in engines]
        for name, profile, objects in WRITTEN + tuple((name, None, None) for name in COPIED):
            for history in (True, False):
                if not only or name in only:
                    one(out, testdata, folder, servers, name, profile, objects, history)
        for name, python in old:
            for history in (True, False):
                by_older_release(out, testdata, folder, servers, name, python, history)


def one(out, testdata, folder, servers, name, profile, objects, history):
    base = os.path.join(out, f"{name}-{'hp' if history else 'hf'}")
    truths = {}
    for server in servers:
        place = server.new(os.path.basename(base))
        blob_dir = None
        if name == "shared":
            blob_dir = base + ".blobs"
            shutil.rmtree(blob_dir, ignore_errors=True)
        if profile is None:
            truths[server.engine] = copy(place, os.path.join(testdata, name + ".fs"), history, folder)
        else:
            truths[server.engine] = write(place, name, profile, objects, history, blob_dir)
        relational.dump_database(place, f"{base}.{SUFFIXES[server.engine]}")
    keep_truth(base, truths)


# RelStorage up to 3.0 kept a blob of more than 2 GB in several large objects;
# this makes such of small ones.
SPLIT = """
DO $$
DECLARE r record;
BEGIN
    FOR r IN SELECT zoid, tid, chunk FROM blob_chunk WHERE length(lo_get(chunk)) > 30 LOOP
        INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (r.zoid, r.tid, 1, lo_from_bytea(0, lo_get(r.chunk, 20, 1000000)));
        UPDATE blob_chunk SET chunk = lo_from_bytea(0, lo_get(r.chunk, 0, 20)) WHERE zoid = r.zoid AND tid = r.tid AND chunk_num = 0;
        PERFORM lo_unlink(r.chunk);
    END LOOP;
END $$
"""


def by_older_release(out, testdata, folder, servers, name, python, history):
    """Let an older release write, and read, on the engines that it knows."""
    base = os.path.join(out, f"{name}-{'hp' if history else 'hf'}")
    truths = {}
    for server in servers:
        if server.engine == "sqlite" and name == "release21":
            continue
        place = server.new(os.path.basename(base))
        where = f"{server.socket},{place.parameters['db']}" if server.engine == "mysql" else place.where
        dump = os.path.join(folder, "old.jsonl")
        subprocess.run([
            python, "-B", os.path.join(testdata, "relstorage", "make-old.py"), server.engine, where, "history" if history else "free",
            os.path.join(testdata, "blobs.dump.jsonl"), os.path.join(testdata, "blobs.blobs"), dump,
        ], check=True)
        with open(dump, "rb") as f:
            truths[server.engine] = f.read()
        if server.engine == "postgresql" and name == "release21":
            connection = psycopg2.connect(place.where)
            connection.cursor().execute(SPLIT)
            connection.commit()
            connection.close()
        relational.dump_database(place, f"{base}.{SUFFIXES[server.engine]}")
    keep_truth(base, truths)


def keep_truth(base, truths):
    """Write what was read, which must be the same on every engine."""
    first, truth = next(iter(truths.items()))
    for engine, other in truths.items():
        if other != truth:
            for kind, data in ((first, truth), (engine, other)):
                with open(f"{base}.{kind}.jsonl", "wb") as f:
                    f.write(data)
            sys.exit(f"mkdata: {os.path.basename(base)}: {engine} gives something else than {first}; compare {base}.*.jsonl")
    relational.write_gzip(base + ".dump.jsonl.gz", truth)
    print(f"{base}: {truth.count(b'\n')} transactions", file=sys.stderr)
