"""Judges the report of an inspection by what the real ZODB counts.

Every number of the report has to be right, or to be named in NOT_JUDGED with
the reason. blindness proves that: it changes one number, name or entry after
the other, and each change has to be seen.
"""

import calendar
import copy
import datetime
import re

from ZODB.utils import u64

from .counts import Classes, Graph, class_of, state_pickle

VERSION = 1
TOP = 20   # classes that are listed
FIRST = 10 # oids of a finding, at most

# What no tool of ZODB tells. Each is a pattern of paths.
NOT_JUDGED = {
    r"source\.name": "a name",
    r"source\.(tail|damage)": "a sentence; whether there is one is judged",
    r"(altered|notable)\[\d+\]\.(text|reasons.*)": "sentences",
    r"destination(\..*)?": "what the server says of itself; its tests are those of package dest",
    r"estimate(\..*)?": "an estimate; how far it is off is told beside",
    r"notes(\[.*)?": "sentences",
}

# Where a cause belongs. Forms are named by the encoder; which of them there are
# is judged by the conversion's own count.
ALTERED = {
    "rejected", "dangling-reference", "cross-database", "dangling-weak-reference", "escaped-metadata", "missing-blob", "blob-too-large", "torn-tail",
}
NOTABLE = {"unreachable", "orphaned-blob", "falling-tid", "no-root"}


def hexed(number):
    return number.hex()


class Truth:
    """The counts in the form of the report."""

    def __init__(self, counted, history, planted=None, reachability=True):
        self.counted, self.history = counted, history
        self.classes = Classes(counted)
        self.states = {oid: state_pickle(c.data) for oid, c in counted.current.items()}
        self.graph = Graph(counted)
        every, now = counted.blob_records()
        self.source = self._source(every, now)
        self.findings = self._findings(every, reachability)
        self.findings.update({cause: (number, None) for cause, number in (planted or {}).items() if cause not in self.findings})

    def _source(self, every, now):
        c = self.counted
        times = c.times()
        made = {
            "kind": c.kind, "bytes": c.bytes, "transactions": len(c.tids), "falling_tids": len(c.falling()),
            "first_tid": hexed(c.tids[0]) if c.tids else "", "last_tid": hexed(c.tids[-1]) if c.tids else "",
            "first_time": times and times[0], "last_time": times and times[1],
            "highest_oid": hexed(max(c.oids)) if c.oids else "",
            "records": c.records, "objects": len(c.oids), "current": len(c.current), "deleted": len(c.oids) - len(c.current),
            "back_pointers": c.back, "compressed": c.compressed, "most_revisions": max(c.oids.values(), default=0), "revisions": c.histogram(),
            "packed_transactions": c.statuses["p"], "data_bytes": c.data_bytes(self.history),
            "python2_strings": sum(bool(s and s.old_strings) for s in self.states.values()),
            "blobs.place": c.place, "blobs.records": len(every), "blobs.current": len(now), "blobs.found": len(c.files),
            "blobs.bytes": sum(c.files.values()), "blobs.current_bytes": sum(c.files[k] for k in now if k in c.files),
            "blobs.missing": len(every - set(c.files)) if c.place else 0, "blobs.orphaned": len(c.orphans),
            "history_free": c.rows(False)._asdict(), "history_preserving": c.rows(True)._asdict(),
        }
        made["python2"] = c.python2 or made["python2_strings"] > 0
        made["packed"] = "yes" if made["packed_transactions"] else "no"
        return {key: value for key, value in made.items() if value is not None}

    def _findings(self, every, reachability):
        """{cause: (count, what may be named)}; what may be named are oids or tids."""
        c, g = self.counted, self.graph
        wanted = set(c.revisions) if self.history else {(oid, current.tid) for oid, current in c.current.items()}
        rejected = set(c.rejects) & wanted
        missing = (every & wanted) - set(c.files) if c.place else set()
        made = {
            "rejected": (len(rejected), {oid for oid, _ in rejected}),
            "dangling-reference": (len(g.dangling), g.dangling),
            "dangling-weak-reference": (len(g.weak_dangling), g.weak_dangling),
            "cross-database": (len(g.abroad), g.abroad),
            "escaped-metadata": (len(c.escaped), set(c.escaped)),
            "missing-blob": (len(missing), {oid for oid, _ in missing}),
            "orphaned-blob": (len(c.orphans), {oid for oid, _ in c.orphans}),
            "falling-tid": (len(c.falling()), set(c.falling())),
            "torn-tail": (int(bool(c.tail)), None),
            "no-root": (int(bool(c.current) and bytes(8) not in c.current), None),
        }
        if reachability:
            made["unreachable"] = (len(g.unreachable), g.unreachable)
        return made


class Judge:
    def __init__(self, truth, forms=None):
        self.truth = truth
        self.forms = forms
        self._sizes = sorted((len(c.data) for c in truth.counted.current.values()), reverse=True)

    def differences(self, report):
        """Yield what differs, as path and text."""
        if report.get("version") != VERSION:
            yield "version", f"is {report.get('version')} instead of {VERSION}"
        yield from self._exact(report["source"])
        yield from self._classes(report["source"])
        yield from self._protocols(report["source"])
        yield from self._largest(report["source"])
        yield from self._sentences(report["source"])
        yield from self._findings(report)

    def _exact(self, source):
        for path, wanted in self.truth.source.items():
            found = source
            for part in path.split("."):
                found = found.get(part) if isinstance(found, dict) else None
            if path.endswith("_time"):
                if wanted is not None and (found is None or abs(seconds(found) - wanted) > 2e-6):
                    yield f"source.{path}", f"is {found}, the tid says {datetime.datetime.fromtimestamp(wanted, datetime.timezone.utc)}"
            elif found != wanted:
                yield f"source.{path}", f"is {found!r} instead of {wanted!r}"

    def _classes(self, source):
        """The largest, in order; those of the same size in any."""
        truth, listed, rest = self.truth.classes, source["classes"] or [], source["other_classes"]
        if len(listed) != min(TOP, len(truth.objects)):
            yield "source.classes", f"has {len(listed)} entries, there are {len(truth.objects)} classes"
        sizes = [entry["bytes"] for entry in listed]
        if sizes != sorted(truth.bytes.values(), reverse=True)[:len(sizes)]:
            yield "source.classes", "are not the largest, or not in order"
        for number, entry in enumerate(listed):
            wanted = {"class": entry["class"], "objects": truth.objects.get(entry["class"]), "bytes": truth.bytes.get(entry["class"])}
            if entry != wanted:
                yield f"source.classes[{number}]", f"is {entry} instead of {wanted}"
        names = {entry["class"] for entry in listed}
        if len(names) < len(listed):
            yield "source.classes", "has a class twice"
        left = [name for name in truth.objects if name not in names]
        wanted = {"class": "", "objects": sum(truth.objects[n] for n in left), "bytes": sum(truth.bytes[n] for n in left)}
        if left:
            wanted["classes"] = len(left)
        if rest != wanted:
            yield "source.other_classes", f"is {rest} instead of {wanted}"

    def _protocols(self, source):
        wanted = {}
        for state in self.truth.states.values():
            if state is not None:
                wanted[state.protocol] = wanted.get(state.protocol, 0) + 1
        found = {entry["protocol"]: entry["records"] for entry in source["protocols"] or []}
        if found != wanted or len(found) != len(source["protocols"] or []):
            yield "source.protocols", f"is {source['protocols']} instead of {wanted}"

    def _largest(self, source):
        listed, current = source["largest"] or [], self.truth.counted.current
        sizes = [entry["bytes"] for entry in listed]
        if sizes != self._sizes[:len(sizes)] or not sizes and current:
            yield "source.largest", f"have {sizes[:5]} ... bytes instead of {self._sizes[:5]} ..."
        if len({entry["oid"] for entry in listed}) < len(listed):
            yield "source.largest", "has an object twice"
        for number, entry in enumerate(listed):
            oid = unhexed(entry["oid"])
            c = current.get(oid)
            if c is None:
                yield f"source.largest[{number}]", f"{entry['oid']} is no current object"
                continue
            wanted = {"oid": entry["oid"], "tid": hexed(c.tid), "class": class_of(c.data), "bytes": len(c.data)}
            if entry != wanted:
                yield f"source.largest[{number}]", f"is {entry} instead of {wanted}"

    def _sentences(self, source):
        if bool(source["tail"]) != bool(self.truth.counted.tail):
            yield "source.tail", f"is {source['tail']!r}, {self.truth.counted.tail} bytes stand behind the last transaction"
        if source["damage"]:
            yield "source.damage", f"is {source['damage']!r}, the real storage reads it to its end"

    def _findings(self, report):
        wanted = {cause: found for cause, found in self.truth.findings.items() if found[0]}
        seen = set()
        for part, own in (("altered", ALTERED), ("notable", NOTABLE)):
            for number, finding in enumerate(report[part] or []):
                cause, at = finding["cause"], f"{part}[{number}]"
                if cause in seen:
                    yield at, f"{cause} is there twice"
                seen.add(cause)
                if cause in ALTERED | NOTABLE and cause not in own:
                    yield at, f"{cause} does not belong there"
                if cause in wanted:
                    yield from self._finding(at, finding, *wanted[cause])
                elif cause in self.truth.findings:
                    yield at, f"{cause} is told {finding['count']} times, there is none"
                else:
                    yield from self._form(at, finding)
        for cause, (number, _) in wanted.items():
            if cause not in seen:
                yield "altered", f"{cause} is not told, there are {number}"
        for cause in self.forms or ():
            if cause not in seen:
                yield "notable", f"{cause} is not told, the conversion counts it"

    def _finding(self, at, finding, number, known):
        if finding["count"] != number:
            yield f"{at}.count", f"is {finding['count']} of {finding['cause']} instead of {number}"
        first = finding.get("first") or []
        if known is not None:
            if len(first) != min(FIRST, len(known)) or len(set(first)) != len(first):
                yield f"{at}.first", f"names {len(first)} of {len(known)}"
            for name in first:
                if unhexed(name) not in known:
                    yield f"{at}.first", f"names {name}, of which {finding['cause']} is not true"
        yield from self._of_classes(at, finding)

    def _of_classes(self, at, finding):
        for number, entry in enumerate(finding.get("classes") or []):
            if entry["objects"] <= 0:
                yield f"{at}.classes[{number}]", f"is {entry}"

    def _form(self, at, finding):
        if self.forms is not None and self.forms.get(finding["cause"]) != finding["count"]:
            yield f"{at}.count", f"is {finding['count']} of {finding['cause']}, the conversion counts {self.forms.get(finding['cause'])}"


def seconds(text):
    """A time of JSON, exactly."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)(\.\d+)?Z", text)
    if found is None:
        return float("nan")
    return calendar.timegm(tuple(map(int, found.groups()[:6]))) + float(found[7] or 0)


def unhexed(text):
    try:
        return int(text, 16).to_bytes(8, "big")
    except (ValueError, OverflowError):
        return None


# Blindness.

def leaves(value, path=""):
    """Yield path and container, key of every number, text and truth value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        at = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".lstrip(".")
        if isinstance(part, (dict, list)):
            yield from leaves(part, at)
        else:
            yield at, value, key


def lists(value, path=""):
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        at = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".lstrip(".")
        if isinstance(part, list):
            yield at, part
        if isinstance(part, (dict, list)):
            yield from lists(part, at)


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if value is None:
        return 1
    if re.fullmatch(r"(0x)?[0-9a-f]+", value):
        return value[:-1] + ("1" if value[-1] != "1" else "2")
    if found := re.fullmatch(r"(.*T\d\d:\d\d:)(\d\d)(.*)", value):
        return f"{found[1]}{(int(found[2]) + 1) % 60:02}{found[3]}"
    return value + "x"


def judged(path):
    return not any(re.fullmatch(pattern, path) for pattern in NOT_JUDGED)


def blindness(judge, report):
    """Change one thing after the other; return how many were changed and which were not seen."""
    number, unseen = 0, []
    report = copy.deepcopy(report)
    for path, container, key in list(leaves(report)):
        if not judged(path):
            continue
        kept = container[key]
        container[key] = changed(kept)
        number += 1
        if next(judge.differences(report), None) is None:
            unseen.append(f"{path}: {kept!r} became {container[key]!r}")
        container[key] = kept
    for path, entries in list(lists(report)):
        if not entries or not judged(path) or not judged(path + "[0]"):
            continue
        last = entries.pop()
        number += 1
        if next(judge.differences(report), None) is None:
            unseen.append(f"{path}: the last entry went")
        entries.append(last)
    return number, unseen
