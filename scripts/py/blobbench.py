"""Runs what scripts/bench blobs measures. The servers are those of the PG* variables and of S3_ENDPOINT.

Everything is measured as bench.py does: a run is a process from its start to
its end, the runs of a comparison are interleaved, each starts with an empty
database or an empty bucket.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time

import boto3
import psycopg

from bench import ROOT, Result, config, dsn, execute, fresh, machine, measured, note, server_cpu, wait_for_backends

MEASURES = ("bytea", "uploader", "background")
BUCKET = "bench"
MEGABYTE = 1 << 20


def arguments():
    p = argparse.ArgumentParser(prog="bench blobs")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--rounds", type=int)
    p.add_argument("--measures", default=",".join(MEASURES))
    p.add_argument("--small", type=int, default=20_000)
    p.add_argument("--large", type=int, default=40)
    p.add_argument("--large-size", default="256MB")
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--transfers", type=int, default=8)
    for name in ("server", "scratch", "s3faults"):
        p.add_argument("--" + name, required=True)
    options = p.parse_args()
    if options.quick:
        options.small, options.large = options.small // 10, max(2, options.large // 10)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.measures = options.measures.split(",")
    for name in options.measures:
        if name not in MEASURES:
            p.error(f"unknown {name}; there are: {', '.join(MEASURES)}")
    return options


class Data:
    """A database with blobs, and a flat folder of links to their files for programs that copy folders."""

    def __init__(self, options, name, count, size):
        self.name, self.count, self.size = name, count, size
        self.path, self.blobs, self.flat = (os.path.join(options.scratch, name + end) for end in (".fs", ".blobs", ".flat"))
        note(f"==> mkdata {count:,} blobs of {size}")
        command = [os.path.join(ROOT, "scripts", "mkdata"), "--profile", "many-blobs", "--blobs", str(count), "--blob-size", size,
                   "--seed", "1", "--blob-dir", self.blobs, self.path]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        os.mkdir(self.flat)
        self.files = []  # path, zoid, tid
        for folder, _, names in os.walk(self.blobs):
            zoid = int("0x" + "".join(part[2:] for part in os.path.relpath(folder, self.blobs).split("/")), 16) if "0x" in folder else None
            for name in names:
                if name.endswith(".blob"):
                    path = os.path.join(folder, name)
                    self.files.append((path, zoid, int(name.removesuffix(".blob"), 16)))
                    os.link(path, os.path.join(self.flat, f"{zoid:016x}-{name}"))
        self.files.sort(key=lambda f: f[1])
        self.bytes = sum(os.path.getsize(path) for path, _, _ in self.files)
        # Written, so that nobody's clock runs while the disk is busy with it.
        os.sync()

    def remove(self):
        os.remove(self.path)
        shutil.rmtree(self.blobs)
        shutil.rmtree(self.flat)


def run_tool(options, data, *flags, threshold=None, endpoint=None):
    """A whole conversion; without a threshold all blobs go to PostgreSQL."""
    fresh("bench_tool")
    text = f"""\
[source]
type = "filestorage"
path = "{data.path}"
blob-dir = "{data.blobs}"

[destination]
type = "pgjsonb"
dsn = "{dsn('bench_tool')}"
"""
    if threshold is not None:
        empty_bucket()
        text += f'blob-threshold = {threshold}\ns3-bucket-name = "{BUCKET}"\ns3-endpoint-url = "{endpoint or os.environ["S3_ENDPOINT"]}"\n'
    path = config(options, "blobs.toml", text)
    return measured(options, ["zodb-convert", "-w", str(options.workers), *flags, path], os.path.join(options.scratch, "tool.log"))


def empty_bucket():
    """The server keeps a bucket as a folder."""
    shutil.rmtree(os.path.join(os.environ["S3_DIR"], BUCKET), ignore_errors=True)
    boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT"]).create_bucket(Bucket=BUCKET)
    os.sync()


def objects():
    """How many objects and bytes there are in the bucket."""
    pages = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT"]).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    sizes = [entry["Size"] for page in pages for entry in page.get("Contents", ())]
    return len(sizes), sum(sizes)


# Blobs into PostgreSQL, beside COPY of the same rows.

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)


def copy_files(database, files):
    """COPY rows of blob_state, made of the files as they are read."""
    with psycopg.connect(dbname=database) as connection:
        connection.execute("SET synchronous_commit = off")
        with connection.cursor().copy("COPY blob_state (zoid, tid, blob_size, data) FROM STDIN (FORMAT binary)") as copy:
            copy.write(HEADER)
            for path, zoid, tid in files:
                with open(path, "rb", buffering=0) as f:
                    left = os.fstat(f.fileno()).st_size
                    copy.write(struct.pack("!hiqiqiqi", 4, 8, zoid, 8, tid, 8, left, left))
                    while left:
                        block = f.read(min(left, MEGABYTE))
                        copy.write(block)
                        left -= len(block)
            copy.write(b"\xff\xff")


def run_copy(options, data):
    """Two processes, each with one connection and every other file; then the key and ANALYZE."""
    fresh("bench_copy")
    before = server_cpu(options.server)
    start = time.monotonic()
    execute("CREATE TABLE blob_state (zoid bigint NOT NULL, tid bigint NOT NULL, blob_size bigint NOT NULL, data bytea, s3_key text)", "bench_copy")
    with contextlib.suppress(psycopg.Error):
        execute("ALTER TABLE blob_state ALTER COLUMN data SET COMPRESSION lz4", "bench_copy")
    halves = [multiprocessing.Process(target=copy_files, args=("bench_copy", data.files[i::2])) for i in range(2)]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
        if half.exitcode:
            raise RuntimeError("COPY failed")
    execute("ALTER TABLE blob_state ADD PRIMARY KEY (zoid, tid)", "bench_copy")
    execute("ANALYZE blob_state", "bench_copy")
    seconds = time.monotonic() - start
    wait_for_backends()
    return Result(seconds, 0.0, server_cpu(options.server) - before, None)


def bytea(options, data):
    ways = {"this tool, blobs into bytea": lambda: run_tool(options, data), "COPY of the same rows": lambda: run_copy(options, data)}
    results = interleaved(options, ways)
    check("rows", execute("SELECT count(*), sum(length(data)) FROM blob_state", "bench_tool")[0], (len(data.files), data.bytes))
    table(data, results, "COPY of the same rows")
    for name in ("bench_tool", "bench_copy"):
        execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


# Uploads, beside rclone.

def run_upload(options, manifest, endpoint=None):
    empty_bucket()
    command = ["zodb-convert", "--upload-blobs", manifest, "-w", str(options.transfers), "--s3-bucket", BUCKET,
               "--s3-endpoint-url", endpoint or os.environ["S3_ENDPOINT"], "--s3-region", "us-east-1"]
    return measured(options, command, os.path.join(options.scratch, "upload.log"))


def run_rclone(options, data):
    """Files of a flat folder; the listing of the empty bucket is one request.

    versitygw does not answer Expect: 100-continue at once, for which rclone would
    wait a second with each part.
    """
    empty_bucket()
    command = ["rclone", "copy", "--transfers", str(options.transfers), "--checksum", "--s3-provider", "Other", "--s3-env-auth",
               "--s3-endpoint", os.environ["S3_ENDPOINT"], "--s3-region", "us-east-1", "--s3-no-check-bucket", "--expect-continue-timeout", "0", "--config", "/dev/null",
               data.flat, f":s3:{BUCKET}/blobs"]
    return measured(options, command, os.path.join(options.scratch, "rclone.log"))


def uploader(options, data):
    if not shutil.which("rclone"):
        raise SystemExit("bench: rclone is missing; install it with the package manager")
    manifest = os.path.join(options.scratch, "manifest.tsv")
    rows = run_tool(options, data, "--deferred-blobs", manifest, threshold=0)
    ways = {
        "--upload-blobs": lambda: run_upload(options, manifest),
        "rclone copy": lambda: run_rclone(options, data),
        "whole conversion, inline": lambda: run_tool(options, data, threshold=0),
    }
    results = interleaved(options, ways, lambda: check("objects", objects(), (len(data.files), data.bytes)))
    results["conversion without uploads"] = [rows]
    table(data, results, "rclone copy")
    os.remove(manifest)
    empty_bucket()


# Uploads in the background.

@contextlib.contextmanager
def slow(options, rate):
    """A line to S3 of so many bytes a second, and 20 ms more for each request."""
    process = subprocess.Popen([options.s3faults, "--target", os.environ["S3_ENDPOINT"], "--rate", str(int(rate)), "--latency", "20ms"],
                               stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def background(options, data):
    """A part of the blobs goes to S3, at the rate at which that takes as long as the rest."""
    sizes = sorted((os.path.getsize(path) for path, _, _ in data.files), reverse=True)
    # So few that 20 ms for each request do not take all of the time.
    threshold = sizes[len(sizes) // 50]
    manifest = os.path.join(options.scratch, "manifest.tsv")

    def alone():
        if os.path.exists(manifest):
            os.remove(manifest)
        return run_tool(options, data, "--deferred-blobs", manifest, threshold=threshold)

    seconds = statistics.median(alone().seconds for _ in range(options.rounds))
    chosen = [s for s in sizes if s >= threshold]
    rate = sum(chosen) / seconds
    for _ in range(5):
        with slow(options, rate) as endpoint:
            took = run_upload(options, manifest, endpoint).seconds
        note(f"    {len(chosen)} blobs, {sum(chosen) / 1e6:.0f} MB, at {rate / 1e6:.1f} MB/s: {took:.1f} s, PostgreSQL alone {seconds:.1f} s")
        if 0.9 < took / seconds < 1.1:
            break
        rate *= took / seconds
    with slow(options, rate) as endpoint:
        ways = {
            "PostgreSQL alone (deferred)": alone,
            "S3 alone (--upload-blobs)": lambda: run_upload(options, manifest, endpoint),
            "background": lambda: run_tool(options, data, "--background-blobs", threshold=threshold, endpoint=endpoint),
        }
        results = interleaved(options, ways)
        check("objects", objects(), (len(chosen), sum(chosen)))
    larger = max(list(results)[:2], key=lambda name: best(results[name]).seconds)
    print(f"\nS3: {len(chosen):,} of the blobs, {sum(chosen) / 1e6:,.0f} MB, held to {rate / 1e6:.1f} MB/s and 20 ms a request.")
    table(data, results, larger)
    os.remove(manifest)
    empty_bucket()


# Rounds and tables.

def check(what, found, wanted):
    if tuple(map(int, found)) != tuple(wanted):
        raise SystemExit(f"bench: {what}: {found} instead of {wanted}")


def interleaved(options, ways, after=lambda: None):
    """{way: [Result, ...]}"""
    results = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, run in ways.items():
            result = run()
            note(f"    round {number + 1} {name}: {result.seconds:.1f} s")
            results[name].append(result)
            after()
    return results


def best(results):
    return min(results, key=lambda r: r.seconds)


def table(data, results, base):
    print(f"\n### {data.count:,} blobs of {data.size}: {data.bytes / 1e6:,.0f} MB\n")
    print(f"| way | seconds, best | median | MB/s | speed, {base} = 1 | CPU s client | CPU s server | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, runs in results.items():
        r, middle = best(runs), statistics.median(run.seconds for run in runs)
        memory = "-" if r.memory is None else f"{max(run.memory for run in runs) / MEGABYTE:,.0f} MB"
        ratio = f"{best(results[base]).seconds / r.seconds:.2f} ({statistics.median(run.seconds for run in results[base]) / middle:.2f})"
        print(f"| {name} | {r.seconds:.1f} | {middle:.1f} | {data.bytes / 1e6 / r.seconds:.0f} | {ratio} | {r.client:.1f} | {r.server:.1f} | {memory} |")
    sys.stdout.flush()


def main():
    options = arguments()
    machine()
    print(f"\n{options.rounds} rounds, runs interleaved; -w {options.workers}, {options.transfers} transfers. Ratios of the best, of the medians in brackets.")
    for name, count, size in (("small", options.small, "20KB-200KB"), ("large", options.large, options.large_size)):
        if not count:
            continue
        data = Data(options, name, count, size)
        for measure in options.measures:
            if measure == "background" and name == "large":
                continue
            print(f"\n## {measure}")
            globals()[measure](options, data)
        data.remove()


main()
