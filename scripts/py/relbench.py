"""Runs what scripts/bench relstorage measures: conversions of databases of RelStorage.

The PostgreSQL of the PG* variables holds the source, where that is PostgreSQL, and
the destination. What a run is, and what is measured of it, stands in bench.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time

import bench
from bench import HERE, Failed, Floor, Result, config, dsn, execute, fresh, measured, note

RECORDS = 200_000
# Name: engine, whether the source keeps history, whether the destination does, records.
DATA = {
    "postgresql-hf": ("postgresql", False, False, RECORDS),
    "postgresql-hp": ("postgresql", True, True, RECORDS),
    "postgresql-hp-hf": ("postgresql", True, False, RECORDS),
    "mariadb-hf": ("mariadb", False, False, RECORDS // 4),
    "sqlite-hf": ("sqlite", False, False, RECORDS // 4),
}
WAYS = ("w2", "w4", "w8", "floor", "python", "zodbconvert")
NAMES = {**bench.NAMES, "floor": "floor: COPY of the source's rows to a file, the finished rows by COPY", "zodbconvert": "RelStorage's zodbconvert, into a RelStorage"}
SERVER = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


def arguments():
    p = argparse.ArgumentParser(prog="bench relstorage")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--rounds", type=int)
    p.add_argument("--data", default=",".join(DATA))
    p.add_argument("--ways", default=",".join(WAYS))
    for name in ("cache", "server", "others", "scratch"):
        p.add_argument("--" + name, required=True)
    options = p.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.data, options.ways = options.data.split(","), options.ways.split(",")
    for chosen, known in ((options.data, DATA), (options.ways, WAYS)):
        for name in chosen:
            if name not in known:
                p.error(f"unknown {name}; there are: {', '.join(known)}")
    return options


class Source:
    """A database that RelStorage's zodbconvert has filled. One with the same content is taken over from the data set before."""

    def __init__(self, options, name, before):
        self.engine, self.source_history, self.history, records = DATA[name]
        if before and (before.engine, before.source_history) == (self.engine, self.source_history):
            self.database, self.folder, self.records, self.bytes = before.database, before.folder, before.records, before.bytes
            return
        self.database = "bench_source"
        self.folder = os.path.join(options.scratch, "bench_source")
        if self.engine == "postgresql":
            fresh(self.database)
            execute(f"ALTER DATABASE {self.database} SET synchronous_commit = off")  # to fill it sooner
        elif self.engine == "mariadb":
            maria(f"DROP DATABASE IF EXISTS {self.database}; CREATE DATABASE {self.database}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.records = records // 10 if options.quick else records
        path = data_fs(options, self.records)
        note(f"==> {name}: zodbconvert {self.records:,} records into it")
        text = f"%import relstorage\n<filestorage source>\n  path {path}\n  read-only true\n</filestorage>\n" + self.section("destination")
        start = time.monotonic()
        subprocess.run(python_tool("relstorage.zodbconvert", config(options, "fill.conf", text)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        note(f"    {time.monotonic() - start:.0f} s")
        if self.engine == "postgresql":
            execute(f"ALTER DATABASE {self.database} RESET synchronous_commit")
            execute("VACUUM ANALYZE", self.database)
            execute("CHECKPOINT")
            self.bytes = execute("SELECT sum(state_size)::bigint FROM object_state", self.database)[0][0]
        else:
            self.bytes = None

    def section(self, name, database=None, folder=None):
        """A <relstorage> for a configuration."""
        database = database or self.database
        where = {
            "postgresql": f"<postgresql>\n    driver psycopg2\n    dsn {dsn(database)}\n  </postgresql>",
            "mariadb": f"<mysql>\n    driver PyMySQL\n    db {database}\n    user root\n    unix_socket {os.environ.get('MARIADB_SOCKET')}\n  </mysql>",
            "sqlite": f"<sqlite3>\n    data-dir {folder or self.folder}\n  </sqlite3>",
        }[self.engine]
        return f"<relstorage {name}>\n  keep-history {str(self.source_history).lower()}\n  {where}\n</relstorage>\n"


def maria(sql):
    subprocess.run(["mariadb", "--no-defaults", "--socket", os.environ["MARIADB_SOCKET"], "--user=root", "-e", sql], check=True)


def data_fs(options, records):
    bench.DATA["relstorage"] = ("plone", records, "records of 3.3 KB, a few a transaction")
    bench.MORE["relstorage"] = bench.MORE["edits"]
    quick, options.quick = options.quick, False
    try:
        return bench.source_of(options, "relstorage")
    finally:
        options.quick = quick


def python_tool(module, *arguments):
    """A program of Python, with what lets RelStorage speak to MariaDB."""
    return [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {HERE!r}); from zodbdata import relational; from {module} import main; sys.exit(main())", *arguments]


def pgjsonb(database, history):
    return f"<pgjsonb destination>\n  dsn {dsn(database)}\n  history-preserving {str(history).lower()}\n  cache-warm-pct 0\n</pgjsonb>\n"


def run_tool(options, source, workers):
    fresh("bench_tool")
    path = config(options, "bench.conf", "%import relstorage\n%import zodb_pgjsonb\n" + source.section("source") + pgjsonb("bench_tool", source.history))
    return measured(options, ["zodb-convert", "-w", str(workers), "--log-format", "json", path], os.path.join(options.scratch, "tool.log"))


def run_python(options, source):
    fresh("bench_python")
    path = config(options, "bench-python.conf", "%import relstorage\n%import zodb_pgjsonb\n" + source.section("source") + pgjsonb("bench_python", source.history))
    return measured(options, python_tool("zodb_convert.cli", "-w", "8", path), os.path.join(options.scratch, "python.log"))


def run_zodbconvert(options, source):
    folder = os.path.join(options.scratch, "bench_relstorage")
    if source.engine == "postgresql":
        fresh("bench_relstorage")
    elif source.engine == "mariadb":
        maria("DROP DATABASE IF EXISTS bench_relstorage; CREATE DATABASE bench_relstorage")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    path = config(options, "bench-relstorage.conf", "%import relstorage\n" + source.section("source") + source.section("destination", "bench_relstorage", folder))
    return measured(options, python_tool("relstorage.zodbconvert", path), os.path.join(options.scratch, "relstorage.log"))


class RelFloor(Floor):
    """Reads the source's rows into files first, over two connections."""

    def __init__(self, options, source):
        super().__init__(options)
        self._source = source
        self._history = source.history and execute("SELECT to_regclass('object_history') IS NOT NULL", "bench_tool")[0][0]
        if self._history:
            self._dump("history", "SELECT * FROM object_history")
            self.rows += execute("SELECT count(*) FROM object_history", "bench_tool")[0][0]

    def run(self):
        start, before = time.monotonic(), bench.server_cpu(self._options.server)
        client = bench.own_cpu()
        read = 0.0
        if self._source.engine == "postgresql":
            self._read()
            read = time.monotonic() - start
        result = super().run()
        return Result(result.seconds + read, bench.own_cpu() - client, bench.server_cpu(self._options.server) - before, None)

    def _read(self):
        database = self._source.database
        newest = "object_state"
        if self._source.source_history and not self._source.history:
            newest = "(SELECT o.* FROM current_object c JOIN object_state o USING (zoid, tid))"
        middle = execute(f"SELECT max(zoid) / 2 FROM {newest} o", database)[0][0]
        self._both(*(lambda n=n, where=where: self._copy_out(database, n, f"SELECT zoid, tid, state FROM {newest} o WHERE zoid {where}")
                     for n, where in enumerate((f"<= {middle}", f"> {middle}"))))

    def _copy_out(self, database, number, query):
        with bench.psycopg.connect(dbname=database) as connection, open(os.path.join(self._folder, f"read{number}"), "wb") as f:
            with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
                for block in copy:
                    f.write(block)

    def _load(self, table, name):
        super()._load(table, name)
        if self._history and name == "transaction_log":
            super()._load("object_history", "history")


def run(options, way, source, floor):
    if way == "floor":
        return floor.run()
    if way == "python":
        return run_python(options, source)
    if way == "zodbconvert":
        return run_zodbconvert(options, source)
    return run_tool(options, source, int(way[1:]))


def run_all(options, name, before):
    source = Source(options, name, before)
    best, failed = {}, {}
    note(f"==> {name}: first run, not counted")
    run_tool(options, source, 4)
    floor = RelFloor(options, source)
    for number in range(options.rounds):
        for way in options.ways:
            if way in failed:
                continue
            try:
                result = run(options, way, source, floor)
            except Failed as e:
                failed[way] = e.args[0]
                note(f"    round {number + 1} {NAMES[way]}: {e.args[0]}\n{e.args[1][-2000:]}")
                continue
            note(f"    round {number + 1} {NAMES[way]}: {result.seconds:.1f} s")
            if way not in best or result.seconds < best[way].seconds:
                best[way] = result
    return source, floor, best, failed


def way_name(way, source):
    # Where the source is no PostgreSQL there is nothing to COPY it with.
    return bench.NAMES["floor"] if way == "floor" and source.engine != "postgresql" else NAMES[way]


def report(name, source, floor, best, failed):
    kinds = {False: "history-free", True: "history-preserving"}
    size = f", states of {source.bytes / 1e6:,.0f} MB" if source.bytes else ""
    print(f"\n### {SERVER[source.engine]}, {kinds[source.source_history]}, into a {kinds[source.history]} destination: "
          f"{source.records:,} records of 3.3 KB, a few a transaction{size}, {floor.rows:,} rows\n")
    print("| way | seconds | times the floor | CPU s client | CPU s server | peak memory |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, r in best.items():
        ratio = f"{r.seconds / best['floor'].seconds:.2f}" if "floor" in best else "-"
        memory = "-" if r.memory is None else f"{r.memory / (1 << 20):,.0f} MB"
        print(f"| {way_name(way, source)} | {r.seconds:.1f} | {ratio} | {r.client:.1f} | {r.server:.1f} | {memory} |")
    for way, reason in failed.items():
        print(f"| {NAMES[way]} | failed: {reason} | | | | |")
    ours = min((r.seconds for w, r in best.items() if w[0] == "w"), default=None)
    for way in ("python", "zodbconvert"):
        if ours and way in best:
            print(f"\nThis tool is {best[way].seconds / ours:.1f} times as fast as {NAMES[way]}.")
    sys.stdout.flush()


def main():
    options = arguments()
    bench.machine()
    print(f"\nBest of {options.rounds}, runs interleaved. The source is on the same machine; PostgreSQL is one server for both.")
    source = None
    for name in options.data:
        source, *results = run_all(options, name, source)
        report(name, source, *results)


if __name__ == "__main__":
    main()
