"""What the destination holds, by SQL and by the real zodb-pgjsonb."""

import contextlib
import dataclasses
import os
import re
import subprocess
import tempfile

import boto3
import psycopg
import psycopg.conninfo
from zodb_pgjsonb.storage import PGJsonbStorage
from zodb_s3blobs.cache import S3BlobCache
from zodb_s3blobs.s3client import S3Client

# PostgreSQL cannot print a larger bytea, which is how zodb-pgjsonb reads it: a
# row with two digits for each byte must stay below a gigabyte.
LARGEST = (512 << 20) - (1 << 10)


class S3:
    """A bucket; who asks is in the environment, as Amazon's libraries have it."""

    def __init__(self, endpoint, bucket, prefix=""):
        self.endpoint, self.bucket, self.prefix = endpoint, bucket, prefix

    def client(self):
        """The client that zodb-pgjsonb takes."""
        return S3Client(
            self.bucket, prefix=self.prefix, endpoint_url=self.endpoint, aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"], region_name=os.environ.get("AWS_DEFAULT_REGION"),
        )

    def raw(self):
        return boto3.client("s3", endpoint_url=self.endpoint)

    def full(self, key):
        return f"{self.prefix}/{key}" if self.prefix else key

    def objects(self):
        """Yield key and size of everything in the bucket, whatever the prefix."""
        for page in self.raw().get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["Size"]


def s3_key(zoid, tid):
    """Where zodb-pgjsonb puts a blob, without the prefix."""
    return f"blobs/{zoid:016x}/{tid:016x}.blob"


@dataclasses.dataclass(frozen=True)
class Site:
    """A destination and how a site is configured to open it."""

    dsn: str
    history: bool = False
    s3: S3 | None = None
    threshold: int = 100 << 10

    def in_bucket(self, size):
        """Whether a blob of this size belongs into S3."""
        return self.s3 is not None and (size >= self.threshold or size > LARGEST)


@contextlib.contextmanager
def opened(site):
    """The storage as a site opens it. Blobs that it loads go with it."""
    with tempfile.TemporaryDirectory(prefix="oracle-blobs-") as folder:
        more = {}
        if site.s3:
            more = {"s3_client": site.s3.client(), "blob_cache": S3BlobCache(os.path.join(folder, "cache"), max_size=1 << 50)}
        storage = PGJsonbStorage(
            site.dsn, history_preserving=site.history, blob_temp_dir=folder, blob_cache_size=1 << 50, blob_threshold=site.threshold, **more)
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
