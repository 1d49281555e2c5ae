"""Counts what `go test -json` tells, and prints what a person wants of it.

usage: go test -json ... | tally.py COUNTS

Prints a line for each package, and the whole output of everything that failed.
Writes "PASSED FAILED" to the file COUNTS. Tests and subtests count alike; a
package that does not build or that ends badly counts as one failure. A skipped
test is no pass: it is named, and with CI=true it is a failure.
"""

import json
import os
import sys


def main(counts_path):
    strict = os.environ.get("CI") == "true"
    passed = failed = 0
    output = {}
    broken = set()
    for line in sys.stdin:
        try:
            event = json.loads(line)
        except ValueError:
            sys.stdout.write(line)
            continue
        package = event.get("Package") or event.get("ImportPath", "")
        test = event.get("Test")
        key = (package, test)
        action = event["Action"]
        if action in ("output", "build-output"):
            output.setdefault(key, []).append(event["Output"])
        elif action == "build-fail":
            sys.stdout.write("".join(output.pop(key, [])))
        elif test is not None and action == "pass":
            passed += 1
            output.pop(key, None)
        elif test is not None and action in ("fail", "skip"):
            bad = action == "fail" or strict
            failed += bad
            broken.add(package)
            text = "".join(output.pop(key, []))
            print(f"{'FAIL' if bad else 'SKIP'}  {package} {test}\n{text}", end="", flush=True)
        elif test is None and action in ("pass", "fail"):
            if action == "fail":
                if package not in broken:
                    failed += 1
                text = "".join(output.get(key, []))
                left = [t for (p, n), ts in output.items() if p == package and n for t in ts]
                print("".join(left) + text, end="")
            print(f"{'ok  ' if action == 'pass' else 'FAIL'}  {package}  {event.get('Elapsed', 0):.1f} s", flush=True)
            output = {k: v for k, v in output.items() if k[0] != package}
    with open(counts_path, "w") as f:
        f.write(f"{passed} {failed}\n")


main(*sys.argv[1:])
