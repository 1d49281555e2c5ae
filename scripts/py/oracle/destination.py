"""What the destination holds, by SQL and by the real zodb-pgjsonb."""

import contextlib
import os
import re
import subprocess

import psycopg
import psycopg.conninfo
from zodb_pgjsonb.storage import PGJsonbStorage


@contextlib.contextmanager
def opened(dsn, history):
    """The storage as a site opens it."""
    storage = PGJsonbStorage(dsn, history_preserving=history)
    try:
        yield storage
    finally:
        storage.close()


def rows(dsn, sql):
    with psycopg.connect(dsn) as connection:
        return connection.execute(sql).fetchall()


def table(dsn, name):
    """Yield zoid, tid, class, size, references and "is a tombstone" of every row."""
    with psycopg.connect(dsn) as connection, connection.cursor("rows") as cursor:
        cursor.itersize = 5000
        cursor.execute(f"SELECT zoid, tid, class_mod, class_name, state_size, refs, state IS NULL FROM {name}")
        yield from cursor


# The cache warmer of zodb-pgjsonb makes this table on its first start.
_WARMER = re.compile(r"^--\n-- Name: cache_warm_stats.*?(?=^--\n-- (?:Name|PostgreSQL)|\Z)", re.M | re.S)


def schema(dsn):
    """What pg_dump -s prints, without what differs from call to call."""
    server = rows(dsn, "SHOW server_version_num")[0][0]
    dumped = subprocess.run([_pg_dump(int(server) // 10000), "--schema-only", "--dbname", dsn], capture_output=True, text=True)
    if dumped.returncode:
        raise RuntimeError(f"pg_dump: {dumped.stderr}")
    text = re.sub(r"^\\(un)?restrict .*\n", "", dumped.stdout, flags=re.M)
    return _WARMER.sub("", text)


def _pg_dump(major):
    for folder in (os.environ.get("PGTEST_BINDIR"), f"/usr/lib/postgresql/{major}/bin"):
        if folder and os.path.exists(os.path.join(folder, "pg_dump")):
            return os.path.join(folder, "pg_dump")
    return "pg_dump"


def physical(dsn):
    """The file of every relation, and the value of zoid_seq."""
    files = rows(dsn, """
        SELECT n.nspname || '.' || c.relname, pg_relation_filenode(c.oid)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND c.relname NOT LIKE 'cache\\_warm\\_stats%'
    """)
    value = rows(dsn, "SELECT last_value, is_called FROM zoid_seq") if rows(dsn, "SELECT to_regclass('zoid_seq')")[0][0] else []
    return dict(files + [("zoid_seq's value", v) for v in value])


def fingerprint(dsn):
    """{zoid: (tid, hash of the row)} of all current objects."""
    return {
        zoid: (tid, digest)
        for zoid, tid, digest in rows(dsn, "SELECT zoid, tid, md5(class_mod || ' ' || class_name || state::text || refs::text) FROM object_state")
    }
