"""Runs what scripts/bench measures. The server is that of the PG* variables.

A run is one process from its start to its end, with an empty database made
before it and a checkpoint just done. Its peak memory is what the kernel says while it
runs (VmHWM), its CPU seconds are its own; those of the server are what all
backends used that ended during the run.
"""

import argparse
import contextlib
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import psycopg

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

from zodbdata.dump import transactions  # noqa: E402

DATA = {
    "documents": ("plone", 200_000, "records of 3.3 KB, about a hundred a transaction"),
    "edits": ("plone", 200_000, "records of 3.3 KB, a few a transaction, as editors write them"),
    "small": ("small-records", 2_000_000, "records of 300 bytes"),
    "huge": ("huge", 12, "records of 1 to 15 MB"),
}
# More arguments of scripts/mkdata.
MORE = {"edits": ["--folder-size", "3"]}
WAYS = ("w2", "w4", "w8", "floor", "python", "relstorage", "codec")
NAMES = {
    "w2": "this tool, -w 2", "w4": "this tool, -w 4", "w8": "this tool, -w 8", "floor": "floor: the finished rows by COPY",
    "python": "zodb-convert in Python, -w 8", "relstorage": "RelStorage's zodbconvert",
}
SETTINGS = (
    "server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_compression", "shared_buffers", "maintenance_work_mem",
    "max_parallel_maintenance_workers", "max_wal_size", "checkpoint_timeout", "autovacuum", "default_toast_compression",
)


def arguments():
    p = argparse.ArgumentParser(prog="bench")
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


def note(*words):
    print(*words, file=sys.stderr, flush=True)


# Databases.

def execute(sql, database="postgres"):
    with psycopg.connect(dbname=database, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else None


def fresh(database):
    execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    execute(f"CREATE DATABASE {database}")
    execute("CHECKPOINT")


def dsn(database):
    return f"dbname={database} user={os.environ['PGUSER']} host={os.environ['PGHOST']} port={os.environ['PGPORT']}"


# Runs.

class Result:
    def __init__(self, seconds, client, server, memory):
        self.seconds, self.client, self.server, self.memory = seconds, client, server, memory


class Failed(Exception):
    """A mover did not come to its end: reason, log."""


def failure(text):
    """The first error in the log of the Python tool."""
    found = re.search(r"^\S+ \S+ ERROR (.*)$", text, re.M)
    return found and found[1]


def last_line(text):
    return text.strip().rpartition("\n")[2]


def end_of_failed(process, log):
    """End a program that goes on for ever after an error, as the Python tool does when a worker fails."""
    while process.returncode is None:
        time.sleep(1)
        with open(log) as f:
            if failure(f.read()):
                time.sleep(5)
                if process.returncode is None:
                    os.kill(process.pid, signal.SIGKILL)
                return


def server_cpu(pid):
    """CPU seconds of all backends that have ended."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def own_cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def watch_memory(process, peak):
    """Note the peak memory of a running program. What the kernel tells at its end includes its parent's from before exec."""
    while process.returncode is None:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as f:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", f.read(), re.M)
            if found:
                peak[0] = int(found[1]) * 1024
        time.sleep(0.02)


def measured(options, command, log):
    """Run a command to its end."""
    before = server_cpu(options.server)
    with open(log, "w") as out:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=options.scratch, stdout=out, stderr=subprocess.STDOUT)
        watch = threading.Thread(target=end_of_failed, args=(process, log), daemon=True)
        watch.start()
        peak = [0]
        memory = threading.Thread(target=watch_memory, args=(process, peak), daemon=True)
        # Not before the program has taken the place of this one.
        time.sleep(0.01)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    watch.join()
    memory.join()
    if process.returncode:
        with open(log) as f:
            text = f.read()
        raise Failed(failure(text) or last_line(text) or f"exit code {process.returncode}", text)
    wait_for_backends()
    return Result(seconds, usage.ru_utime + usage.ru_stime, server_cpu(options.server) - before, peak[0])


def wait_for_backends():
    while execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")[0][0]:
        time.sleep(0.02)


def config(options, name, text):
    path = os.path.join(options.scratch, name)
    with open(path, "w") as f:
        f.write(text)
    return path


def run_tool(options, source, workers):
    fresh("bench_tool")
    path = config(options, "bench.toml", f"""\
[source]
type = "filestorage"
path = "{source}"

[destination]
type = "pgjsonb"
dsn = "{dsn('bench_tool')}"
""")
    return measured(options, ["zodb-convert", "-w", str(workers), "--log-format", "json", path], os.path.join(options.scratch, "tool.log"))


def run_python(options, source):
    fresh("bench_python")
    path = config(options, "bench-python.conf", f"""\
%import zodb_pgjsonb
<filestorage source>
  path {source}
  read-only true
</filestorage>
<pgjsonb destination>
  dsn {dsn('bench_python')}
  cache-warm-pct 0
</pgjsonb>
""")
    return measured(options, [os.path.join(options.others, "zodb-convert"), "-w", "8", path], os.path.join(options.scratch, "python.log"))


def run_relstorage(options, source):
    fresh("bench_relstorage")
    path = config(options, "bench-relstorage.conf", f"""\
%import relstorage
<filestorage source>
  path {source}
  read-only true
</filestorage>
<relstorage destination>
  keep-history false
  <postgresql>
    driver psycopg2
    dsn {dsn('bench_relstorage')}
  </postgresql>
</relstorage>
""")
    return measured(options, [os.path.join(options.others, "zodbconvert"), path], os.path.join(options.scratch, "relstorage.log"))


class Floor:
    """The finished rows of one data set, and how to load them again."""

    def __init__(self, options):
        self._options = options
        self._folder = os.path.join(options.scratch, "floor")
        os.makedirs(self._folder, exist_ok=True)
        self.rows = execute("SELECT count(*) FROM object_state", "bench_tool")[0][0]
        middle = execute("SELECT zoid FROM object_state ORDER BY zoid OFFSET (SELECT count(*) / 2 FROM object_state) LIMIT 1", "bench_tool")[0][0]
        self._dump("transaction_log", "SELECT * FROM transaction_log")
        self._dump("half1", f"SELECT * FROM object_state WHERE zoid < {middle}")
        self._dump("half2", f"SELECT * FROM object_state WHERE zoid >= {middle}")
        self._tables = self._schema("pre-data")
        self._constraints = self._schema("post-data")

    def _dump(self, name, query):
        with psycopg.connect(dbname="bench_tool") as connection, open(os.path.join(self._folder, name), "wb") as f:
            with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
                for block in copy:
                    f.write(block)

    def _schema(self, section):
        text = subprocess.run(["pg_dump", f"--section={section}", "bench_tool"], capture_output=True, text=True, check=True).stdout
        text = re.sub(r"^(--|\\|SET |SELECT pg_catalog.set_config).*\n", "", text, flags=re.M)
        # A function's body holds semicolons, each at the end of an indented line.
        return [s.strip() for s in re.split(r"(?<=;)\n\n", text) if s.strip()]

    def run(self):
        """The clock stops when the rows can be used; there is no client to speak of."""
        fresh("bench_floor")
        before, client = server_cpu(self._options.server), own_cpu()
        start = time.monotonic()
        for statement in self._tables:
            execute(statement, "bench_floor")
        self._load("transaction_log", "transaction_log")
        self._both(lambda: self._load("object_state", "half1"), lambda: self._load("object_state", "half2"))
        keys = [s for s in self._constraints if "PRIMARY KEY" in s or s.startswith("CREATE INDEX")]
        large = [s for s in keys if "object_state" in s]
        # The longest first; whoever is done takes the next.
        large.sort(key=lambda s: ("gin" not in s, "PRIMARY KEY" not in s))
        self._parallel(large + [s for s in keys if s not in large])
        for statement in self._constraints:
            if statement not in keys:
                execute(statement, "bench_floor")
        self._parallel(["ANALYZE object_state", "ANALYZE transaction_log"])
        seconds = time.monotonic() - start
        wait_for_backends()
        return Result(seconds, own_cpu() - client, server_cpu(self._options.server) - before, None)

    def _load(self, table, name):
        with psycopg.connect(dbname="bench_floor") as connection, open(os.path.join(self._folder, name), "rb") as f:
            connection.execute("SET synchronous_commit = off")
            with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
                while block := f.read(1 << 18):
                    copy.write(block)

    def _parallel(self, statements):
        left = list(statements)

        def work():
            with psycopg.connect(dbname="bench_floor", autocommit=True) as connection:
                while True:
                    try:
                        statement = left.pop(0)
                    except IndexError:
                        return
                    connection.execute(statement)

        self._both(work, work)

    @staticmethod
    def _both(*functions):
        failures = []

        def guarded(function):
            try:
                function()
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


# Data.

def source_of(options, name):
    profile, objects, text = DATA[name]
    if options.quick:
        objects = max(3, objects // 10)
    os.makedirs(options.cache, exist_ok=True)
    path = os.path.join(options.cache, f"{name}-{objects}.fs")
    programs = [os.path.join(HERE, "zodbdata", f) for f in os.listdir(os.path.join(HERE, "zodbdata")) if f.endswith(".py")]
    if not os.path.exists(path) or os.path.getmtime(path) < max(map(os.path.getmtime, programs)):
        note(f"==> mkdata {objects:,} {text}")
        if os.path.exists(path + ".new"):
            os.remove(path + ".new")
        command = [os.path.join(ROOT, "scripts", "mkdata"), "--profile", profile, "--objects", str(objects), "--seed", "1", "--keep-all", *MORE.get(name, ()), path + ".new"]
        subprocess.run(command, check=True)
        os.rename(path + ".new", path)
    with open(path, "rb") as f:
        while f.read(1 << 24):  # into the page cache
            pass
    return path


def records_of(options, path):
    """The newest records as a file of lengths (4 bytes, big-endian) and pickles, at most 300 MB."""
    out = path.removesuffix(".fs") + ".records"
    if not os.path.exists(out) or os.path.getmtime(out) < os.path.getmtime(path):
        left = 300 << 20
        with open(out + ".new", "wb") as f:
            for txn in transactions(path):
                for record in txn["records"]:
                    data = record["data"]
                    if data is not None and left > 0:
                        f.write(len(data).to_bytes(4, "big") + data)
                        left -= len(data)
        os.rename(out + ".new", out)
    return out


# The codec alone.

RUST = """
import sys, time, zodb_json_codec
raw, records, position = open(sys.argv[1], "rb").read(), [], 0
while position < len(raw):
    size = int.from_bytes(raw[position:position + 4], "big")
    record = raw[position + 4:position + 4 + size]
    position += 4 + size
    try:
        zodb_json_codec.decode_zodb_record_for_pg_json(record)
        records.append(record)
    except ValueError:
        pass  # it has limits
decode, best, total = zodb_json_codec.decode_zodb_record_for_pg_json, 0, sum(map(len, records))
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    for record in records:
        decode(record)
    best = max(best, total / 1e6 / (time.perf_counter() - start))
print(best)
"""


def codec(options, path):
    """MB of pickle a second on one core: this tool's codec and the Rust one, in turn."""
    records = records_of(options, path)
    ours = rust = 0.0
    program = os.path.join(options.scratch, "codecbench")
    subprocess.run(["go", "build", "-o", program, "./internal/codecbench"], check=True, cwd=ROOT)
    for _ in range(options.rounds):
        text = subprocess.run([program, records], check=True, capture_output=True, text=True, env={**os.environ, "GOMAXPROCS": "1"}).stdout
        ours = max(ours, float(text.split()[0]))
        text = subprocess.run([sys.executable, "-c", RUST, records, "2"], check=True, capture_output=True, text=True).stdout
        rust = max(rust, float(text))
    return ours, rust


# The tables.

def run_all(options, name):
    path = source_of(options, name)
    best, floor, failed = {}, None, {}
    ways = [w for w in options.ways if w != "codec"]
    note(f"==> {name}: first run, not counted")
    if any(w in ("floor", "w2", "w4", "w8") for w in ways):
        run_tool(options, path, 4)
        floor = Floor(options)
    for number in range(options.rounds):
        for way in ways:
            if way in failed:
                continue
            try:
                result = run(options, way, path, floor)
            except Failed as e:
                failed[way] = e.args[0]
                note(f"    round {number + 1} {NAMES[way]}: {e.args[0]}\n{e.args[1][-2000:]}")
                continue
            note(f"    round {number + 1} {NAMES[way]}: {result.seconds:.1f} s")
            if way not in best or result.seconds < best[way].seconds:
                best[way] = result
    return path, floor, best, failed


def run(options, way, path, floor):
    if way == "floor":
        return floor.run()
    if way == "python":
        return run_python(options, path)
    if way == "relstorage":
        return run_relstorage(options, path)
    return run_tool(options, path, int(way[1:]))


def report(options, name, path, floor, best, failed):
    size = os.path.getsize(path)
    rows = f", {floor.rows:,} rows" if floor else ""
    print(f"\n### {name}: {DATA[name][2]}; Data.fs of {size / 1e6:,.0f} MB{rows}\n")
    print("| way | seconds | MB/s | times the floor | CPU s client | CPU s server | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, r in best.items():
        ratio = f"{r.seconds / best['floor'].seconds:.2f}" if "floor" in best else "-"
        memory = "-" if r.memory is None else f"{r.memory / (1 << 20):,.0f} MB"
        print(f"| {NAMES[way]} | {r.seconds:.1f} | {size / 1e6 / r.seconds:.0f} | {ratio} | {r.client:.1f} | {r.server:.1f} | {memory} |")
    for way, reason in failed.items():
        print(f"| {NAMES[way]} | failed: {reason} | | | | | |")
    ours = min((r.seconds for w, r in best.items() if w[0] == "w"), default=None)
    if ours:
        for way in ("python", "relstorage"):
            if way in best:
                print(f"\nThis tool is {best[way].seconds / ours:.1f} times as fast as {NAMES[way]}.")
    sys.stdout.flush()


def machine():
    model = ""
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) >> 20
    print(f"{len(os.sched_getaffinity(0))} cores ({model}), {memory} GiB, {platform.system()} {platform.release()}. PostgreSQL: ", end="")
    print(", ".join(f"{n} = {execute(f'SHOW {n}')[0][0]}" for n in SETTINGS) + ".")


def main():
    options = arguments()
    machine()
    print(f"\nBest of {options.rounds}, runs interleaved.")
    codecs = {}
    for name in options.data:
        if set(options.ways) - {"codec"}:
            report(options, name, *run_all(options, name))
        if "codec" in options.ways:
            codecs[name] = codec(options, source_of(options, name))
    if codecs:
        print("\n### The codec alone: one core, MB of pickle a second\n\n| records | this tool | Rust codec of the Python package | ratio |\n|---|---:|---:|---:|")
        for name, (ours, rust) in codecs.items():
            print(f"| {name} | {ours:.0f} | {rust:.0f} | {ours / rust:.1f} |")


if __name__ == "__main__":
    main()
