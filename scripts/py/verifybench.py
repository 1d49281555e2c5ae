"""Runs what scripts/bench verify measures: verify beside the conversion before it, and inspections.

What a run is, and what is measured of it, stands in bench.py. In each round a
database is converted, verified and inspected, one after the other, so that what
is compared was measured within the same minute.
"""

import argparse
import os
import statistics
import sys

import bench
from bench import Failed, config, dsn, fresh, measured, note

WAYS = ("convert", "verify", "inspect", "reachability", "inspect-w", "reachability-w")


def arguments():
    p = argparse.ArgumentParser(prog="bench verify")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--rounds", type=int)
    p.add_argument("--data", default=",".join(bench.DATA))
    p.add_argument("--workers", default="4")
    p.add_argument("--ways", default=",".join(WAYS))
    for name in ("cache", "server", "scratch"):
        p.add_argument("--" + name, required=True)
    options = p.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.data, options.ways = options.data.split(","), options.ways.split(",")
    options.workers = [int(n) for n in options.workers.split(",")]
    for chosen, known in ((options.data, bench.DATA), (options.ways, WAYS)):
        for name in chosen:
            if name not in known:
                p.error(f"unknown {name}; there are: {', '.join(known)}")
    if "verify" in options.ways and "convert" not in options.ways:
        p.error("verify needs convert")
    return options


def source_section(path):
    return f'[source]\ntype = "filestorage"\npath = "{path}"\n'


def run_convert(options, path, workers):
    fresh("bench_tool")
    text = source_section(path) + f'\n[destination]\ntype = "pgjsonb"\ndsn = "{dsn("bench_tool")}"\n'
    return measured(options, ["zodb-convert", "-w", str(workers), "--log-format", "json", config(options, "bench.toml", text)], os.path.join(options.scratch, "tool.log"))


def run_verify(options, workers):
    return measured(options, ["zodb-convert", "verify", "-w", str(workers), "--log-format", "json", os.path.join(options.scratch, "bench.toml")],
                    os.path.join(options.scratch, "verify.log"))


def run_inspect(options, path, workers, *flags):
    """One worker gets one core: everything, the garbage collector included, runs on it."""
    command = ["zodb-convert", "inspect", "-q", "-w", str(workers), *flags, config(options, "inspect.toml", source_section(path))]
    if workers == 1:
        command = ["env", "GOMAXPROCS=1", *command]
    return measured(options, command, os.path.join(options.scratch, "inspect.log"))


def plan(options):
    """Yield the ways of a round: key, name, function of the path."""
    for workers in options.workers:
        if "convert" in options.ways:
            yield ("convert", workers), f"zodb-convert -w {workers}", lambda path, w=workers: run_convert(options, path, w)
        if "verify" in options.ways:
            yield ("verify", workers), f"verify -w {workers}", lambda path, w=workers: run_verify(options, w)
    for way, workers in (("inspect", 1), ("reachability", 1), ("inspect-w", options.workers[-1]), ("reachability-w", options.workers[-1])):
        if way not in options.ways:
            continue
        flags = ("--no-reachability",) if way.startswith("inspect") else ()
        core = ", one core" if workers == 1 else ""
        yield (way, workers), " ".join(("inspect -w", str(workers), *flags)) + core, lambda path, w=workers, f=flags: run_inspect(options, path, w, *f)


def run_all(options, name):
    path = bench.source_of(options, name)
    note(f"==> {name}: first run, not counted")
    run_convert(options, path, options.workers[0])
    results, names, failed = {}, {}, {}
    for number in range(options.rounds):
        for key, text, function in plan(options):
            if key in failed:
                continue
            names[key] = text
            try:
                result = function(path)
            except Failed as e:
                failed[key] = e.args[0]
                note(f"    round {number + 1} {text}: {e.args[0]}\n{e.args[1][-2000:]}")
                continue
            note(f"    round {number + 1} {text}: {result.seconds:.1f} s")
            results.setdefault(key, []).append(result)
    return path, names, results, failed


def report(options, name, path, names, results, failed):
    size = os.path.getsize(path)
    print(f"\n### {name}: {bench.DATA[name][2]}; Data.fs of {size / 1e6:,.0f} MB\n")
    print("| way | seconds | median | MB/s | MB per CPU s client | times the conversion, of each round | CPU s client | CPU s server | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for key, text in names.items():
        if key in failed:
            print(f"| {text} | failed: {failed[key]} | | | | | | | |")
            continue
        runs = results[key]
        best = min(runs, key=lambda r: r.seconds)
        ratios = "-"
        if key[0] == "verify":
            ratios = ", ".join(f"{v.seconds / c.seconds:.2f}" for v, c in zip(runs, results["convert", key[1]]))
        memory = "-" if best.memory is None else f"{best.memory / (1 << 20):,.0f} MB"
        print(f"| {text} | {best.seconds:.1f} | {statistics.median(r.seconds for r in runs):.1f} | {size / 1e6 / best.seconds:.0f} | {size / 1e6 / best.client:.0f} | {ratios} "
              f"| {best.client:.1f} | {best.server:.1f} | {memory} |")
    sys.stdout.flush()


def main():
    options = arguments()
    bench.machine()
    print(f"\nBest and median of {options.rounds}, runs interleaved.")
    for name in options.data:
        report(options, name, *run_all(options, name))


if __name__ == "__main__":
    main()
