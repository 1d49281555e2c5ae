"""Judges the report of an inspection by what the real ZODB counts.

Every number of the report has to be right, but for those of which nobody knows
what is: NOT_JUDGED names what no tool of ZODB tells, and Judge.judges leaves out
special forms and records for a newer codec as far as they were neither planted nor
counted by a conversion. blindness proves that for all others: it changes one
number, name or entry after the other, and each change has to be seen.
"""

import calendar
import collections
import copy
import datetime
import json
import re

from . import destination
from .counts import UNKNOWN, Classes, Graph, class_of, state_pickle

Known = collections.namedtuple("Known", "count names pairs classes", defaults=(None, None, None))

VERSION = 1
TOP = 20               # classes that are listed
FIRST = 10             # oids and classes of a finding, and largest records, at most

# What no tool of ZODB tells. Each is a pattern of paths.
NOT_JUDGED = {
    r"source\.name": "a name",
    r"source\.(tail|damage)": "a sentence; whether there is one is judged",
    r"(altered|notable)\[\d+\]\.(text|reasons.*)": "sentences",
    r"destination(\..*)?": "what the server says of itself; its tests are those of package dest",
    r"estimate(\..*)?": "an estimate; how far it is off is told beside",
    r"notes(\[.*)?": "sentences",
}

# Which records have a special form only the encoder knows, unless they were planted; how many values have it, a
# conversion counts.

NEW_CODEC = "new-codec"

# What does not arrive unchanged. All others are worth knowing only.
ALTERED = {"rejected", NEW_CODEC, "escaped-metadata", "missing-blob", "blob-too-large", "shared-copied"}
DANGLING = {"dangling-reference", "dangling-weak-reference"}
# With a history its order is that of the tids.
ALTERED_HISTORY = ALTERED | {"falling-tid"}


def hexed(number):
    return "0x" + number.hex()


class Truth:
    """The counts in the form of the report."""

    def __init__(self, counted, history, reachability=True):
        self.counted, self.history = counted, history
        self.classes = Classes(counted)
        self.states = {oid: state_pickle(c.data) for oid, c in counted.current.items()}
        self.graph = Graph(counted)
        every, now = counted.blob_records()
        self.source = self._source(every, now)
        self.findings = self._findings(every, reachability)

    def _source(self, every, now):
        c = self.counted
        times = c.times() or [seconds("0001-01-01T00:00:00Z")] * 2
        made = {
            "kind": c.kind, "bytes": c.bytes, "transactions": len(c.tids), "falling_tids": len(c.falling()),
            "first_tid": hexed(c.tids[0]) if c.tids else "", "last_tid": hexed(c.tids[-1]) if c.tids else "",
            "first_time": times[0], "last_time": times[1],
            "highest_oid": hexed(max(c.oids)) if c.oids else "",
            "records": c.records, "objects": len(c.oids), "current": len(c.current), "deleted": len(c.oids) - len(c.current),
            "back_pointers": c.back, "compressed": c.compressed, "most_revisions": max(c.oids.values(), default=0), "revisions": c.histogram(),
            "cut_off": False, "unreadable_records": 0,  # the real storage reads it to its end
            "packed_transactions": c.statuses["p"], "data_bytes": c.data_bytes(self.history),
            "python2_strings": sum(s.old_strings for oid, s in self.states.items() if (oid, c.current[oid].tid) not in c.rejects),
            "blobs.place": c.place, "blobs.records": len(every), "blobs.current": len(now), "blobs.found": len(c.files),
            "blobs.bytes": sum(c.files.values()), "blobs.current_bytes": sum(c.files[k] for k in now if k in c.files),
            "blobs.missing": len(every - set(c.files)) if c.place else 0, "blobs.orphaned": len(c.orphans),
            "history_free": c.rows(False)._asdict(), "history_preserving": c.rows(True, self._known())._asdict(),
        }
        made["python2"] = c.python2 or made["python2_strings"] > 0
        if c.kind == "relstorage" and not c.history:
            made["packed"], made["packed_transactions"] = "unknown", 0
        else:
            made["packed"] = "yes" if made["packed_transactions"] else "no" if c.tids else "unknown"
        return made

    def _known(self):
        """The rejects that are known: which older records are rejected is known only if they were decoded."""
        c = self.counted
        return set(c.rejects) if self.history else set(c.rejects) & {(oid, current.tid) for oid, current in c.current.items()}

    def _findings(self, every, reachability):
        """{cause: Known}: how many, what may be named (oids or tids), or what refers to what, and whether classes are told."""
        c, g = self.counted, self.graph
        wanted = set(c.revisions) if self.history else {(oid, current.tid) for oid, current in c.current.items()}
        rejected = set(c.rejects) & wanted
        missing = (every & wanted) - set(c.files)

        def references(pairs):
            if not reachability:  # who refers to them is not kept then
                targets = {pair[1] for pair in pairs}
                return Known(len(targets), None, {(None, oid) for oid in targets})
            oids = {pair[0] for pair in pairs}
            return Known(len(oids), None, pairs, self.names((oid, c.current[oid].tid) for oid in oids))

        if not c.place and not missing and (self.history or c.kind == "filestorage"):
            missing = every  # a conversion asks for their place although it writes none
        crossing = {pair[0] for pair in g.abroad}
        made = {
            "rejected": Known(len(rejected), {oid for oid, _ in rejected}, None, self.names(rejected)),
            "dangling-reference": references(g.dangling), "dangling-weak-reference": references(g.weak_dangling),
            "cross-database": Known(len(crossing), None, g.abroad, self.names((oid, c.current[oid].tid) for oid in crossing)),
            "escaped-metadata": Known(len(c.escaped), set(c.escaped)),
            "missing-blob": Known(len(missing), {oid for oid, _ in missing}, None, self.names(missing)),
            "orphaned-blob": Known(len(c.orphans)),
            "falling-tid": Known(len(c.falling()), set(c.falling()) if len(c.falling()) <= FIRST else None),
            "torn-tail": Known(int(bool(c.tail))),
            "no-root": Known(int(bool(c.current) and bytes(8) not in c.current)),
        }
        if reachability:
            made["unreachable"] = Known(len(g.unreachable), g.unreachable, None, self.names((oid, c.current[oid].tid) for oid in g.unreachable))
        return made


    def names(self, keys):
        """{class: (records, their bytes)}."""
        made = {}
        for oid, tid in keys:
            data = self.counted.revisions[oid, tid]
            name = self.classes.of.get(oid) if self.counted.current.get(oid, (None,))[0] == tid else class_of(data)
            number, size = made.get(name, (0, 0))
            made[name] = number + 1, size + len(data)
        return made


def planted(truth, path):
    """What was planted has to be what is counted: who judges is judged, too."""
    with open(path) as f:
        wanted = json.load(f)
    for cause, number in wanted["findings"].items():
        assert truth.findings[cause].count == number, f"{number} of {cause} were planted, {truth.findings[cause].count} are counted"
    for field, value in wanted["source"].items():
        assert truth.source[field] == value, f"{field} is {value} by what was planted, {truth.source[field]} is counted"
    return wanted["forms"]


def summary(path):
    """The last line of a conversion's log in JSON."""
    with open(path) as f:
        return [line for line in map(json.loads, filter(lambda line: line.startswith("{"), f)) if "special_forms" in line][-1]


def conversion(path):
    """The values with special forms, and the records for a new codec, that a conversion has counted."""
    last = summary(path)
    return {**last["special_forms"], **({NEW_CODEC: last["new_codec"]} if last["new_codec"] else {})}


def rows(dsn, history):
    """What a destination holds that was converted."""
    (objects,), = destination.rows(dsn, "SELECT count(*) FROM object_state")
    (transactions,), = destination.rows(dsn, "SELECT count(*) FROM transaction_log")
    (blobs, size), = destination.rows(dsn, "SELECT count(*), coalesce(sum(blob_size), 0)::bigint FROM blob_state")
    made = {"transactions": transactions, "objects": objects, "blobs": blobs, "blob_bytes": size}
    if history:
        made["history"], = destination.rows(dsn, "SELECT count(*) FROM object_history")[0]
    return made


def check_rows(report, dsn, history):
    """Yield where the report says otherwise than a destination that was converted."""
    wanted = rows(dsn, history)
    told = report["source"]["history_preserving" if history else "history_free"]
    found = {key: told[key] for key in wanted if key != "history"}
    if history:  # a deletion and a reject have a row there
        found["history"] = told["revisions"] + told["deleted"] + told["rejected"]
    for key, value in wanted.items():
        if found[key] != value:
            yield f"source.history_{'preserving' if history else 'free'}.{key}", f"is {found[key]}, the destination holds {value}"


def check_estimate(report, log, dsn):
    """Yield where the estimate is not what a conversion came to: all blobs in PostgreSQL, text of so many bytes, and about so much disk."""
    estimate, last = report["estimate"], summary(log)
    for field, wanted in (("state_bytes", last["state_bytes"]), ("blob_bytes", last["blob_bytes"]), ("s3_bytes", 0)):
        if estimate[field] != wanted:
            yield f"estimate.{field}", f"is {estimate[field]}, the conversion counts {wanted}"
    size = size_of(dsn)
    print(f"tables and indexes take {size / 1e6:,.1f} MB, {estimate['disk_bytes'] / size:.2f} times as much was estimated")
    if size >= 20 << 20 and not 0.8 <= estimate["disk_bytes"] / size <= 1.5:  # of smaller ones empty pages are a large part
        yield "estimate.disk_bytes", f"is {estimate['disk_bytes']}, the destination takes {size}"


def size_of(dsn):
    """What the tables and indexes of a destination take."""
    return destination.rows(dsn, "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")[0][0]


class Judge:
    """forms are the special ones: {name: oids}, as they were planted, and {name: values}, as a conversion counts them; None: nobody knows."""

    def __init__(self, truth, forms=None, values=None):
        self.truth, self.forms, self.values = truth, forms or {}, values
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
                if abs(seconds(found) - wanted) > 2e-6:
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
            wanted[state.protocol] = wanted.get(state.protocol, 0) + 1
        found = {entry["protocol"]: entry["records"] for entry in source["protocols"] or []}
        if found != wanted or len(found) != len(source["protocols"] or []):
            yield "source.protocols", f"is {source['protocols']} instead of {wanted}"

    def _largest(self, source):
        listed, current = source["largest"] or [], self.truth.counted.current
        sizes = [entry["bytes"] for entry in listed]
        if sizes != self._sizes[:FIRST]:
            yield "source.largest", f"have {sizes[:5]} ... bytes instead of {self._sizes[:5]} ..."
        if len({entry["oid"] for entry in listed}) < len(listed):
            yield "source.largest", "has an object twice"
        for number, entry in enumerate(listed):
            oid = unhexed(entry["oid"])
            c = current.get(oid)
            if c is None:
                yield f"source.largest[{number}]", f"{entry['oid']} is no current object"
                continue
            wanted = {"oid": entry["oid"], "tid": hexed(c.tid), "class": self.truth.classes.of[oid], "bytes": len(c.data)}
            if entry != wanted:
                yield f"source.largest[{number}]", f"is {entry} instead of {wanted}"

    def _sentences(self, source):
        if bool(source["tail"]) != bool(self.truth.counted.tail):
            yield "source.tail", f"is {source['tail']!r}, {self.truth.counted.tail} bytes stand behind the last transaction"
        if source["damage"]:
            yield "source.damage", f"is {source['damage']!r}, the real storage reads it to its end"

    def _findings(self, report):
        wanted = {cause: found for cause, found in self.truth.findings.items() if found.count}
        seen = set()
        altered = ALTERED_HISTORY if self.truth.history else ALTERED
        for part in ("altered", "notable"):
            for number, finding in enumerate(report[part] or []):
                cause, at = finding["cause"], f"{part}[{number}]"
                if cause in seen:
                    yield at, f"{cause} is there twice"
                seen.add(cause)
                if (cause in altered) != (part == "altered"):
                    yield at, f"{cause} does not belong there"
                if cause in wanted:
                    yield from self._finding(at, finding, wanted[cause])
                elif cause in self.truth.findings:
                    yield at, f"{cause} is told {finding['count']} times, there is none"
                else:
                    yield from self._form(at, finding)
        for cause, known in wanted.items():
            if cause not in seen:
                yield "altered", f"{cause} is not told, there are {known.count}"
        for cause in {*self.forms, *(self.values or ())} - seen:
            yield "notable", f"{cause} is not told"

    def _finding(self, at, finding, known):
        if finding["count"] != known.count:
            yield f"{at}.count", f"is {finding['count']} of {finding['cause']} instead of {known.count}"
        absent = len({pair[1] for pair in known.pairs}) if finding["cause"] in DANGLING else None
        if finding.get("missing") != absent:
            yield f"{at}.missing", f"is {finding.get('missing')} of {finding['cause']} instead of {absent}"
        first, targets = finding.get("first") or [], finding.get("targets") or []
        if known.pairs is not None:
            lowest = {}
            for pair in sorted(known.pairs, key=lambda pair: (pair[0] or b"", *pair[1:])):
                lowest.setdefault(pair[0] or pair[1], pair)  # one of each record
            wanted = list(lowest.values())[:FIRST]
            if first != [hexed(pair[0]) for pair in wanted if pair[0]]:
                yield f"{at}.first", f"is {first} instead of {[hexed(pair[0]) for pair in wanted]}"
            wanted = [" in ".join((hexed(pair[1]), *(f'"{name}"' for name in pair[2:]))) for pair in wanted]
            if targets != wanted:
                yield f"{at}.targets", f"is {targets} instead of {wanted}"
        elif known.names is not None and first != [hexed(name) for name in sorted(known.names)[:FIRST]]:
            yield f"{at}.first", f"is {first} instead of {[hexed(name) for name in sorted(known.names)[:FIRST]]}"
        if known.classes is not None:
            yield from self._of_classes(at, finding, known.classes)
        elif finding.get("classes"):
            yield f"{at}.classes", f"are {finding['classes']}, though it is not about objects"

    def _of_classes(self, at, finding, wanted):
        """Classes, of which the most frequent come first."""
        found = [(entry["class"], (entry["objects"], entry["bytes"])) for entry in finding.get("classes") or []]
        if [number for _, (number, _) in found] != sorted((number for number, _ in wanted.values()), reverse=True)[:FIRST]:
            yield f"{at}.classes", f"are {found}, by what is true {wanted}"
        for name, numbers in found:
            if wanted.get(name) != numbers:
                yield f"{at}.classes", f"has {name} with {numbers} instead of {wanted.get(name)}"

    def _form(self, at, finding):
        cause = finding["cause"]
        if cause in self.forms:
            oids = {unhexed(oid) for oid in self.forms[cause]}
            keys = ((oid, self.truth.counted.current[oid].tid) for oid in oids)
            yield from self._finding(at, finding, Known(len(oids), oids, None, self.truth.names(keys)))
        member = "count" if cause == NEW_CODEC else "values"
        if self.values is not None and self.values.get(cause) != finding.get(member):
            yield f"{at}.{member}", f"is {finding.get(member)} of {cause}, a conversion counts {self.values.get(cause)}"
        if finding["count"] > finding.get("values", finding["count"]):
            yield f"{at}.count", f"is {finding['count']} records with {finding['values']} values"

    def judges(self, report, path):
        """Whether a part of the report is judged."""
        if any(re.fullmatch(pattern, path) for pattern in NOT_JUDGED):
            return False
        if found := re.match(r"(altered|notable)\[(\d+)\]\.", path):
            cause = report[found[1]][int(found[2])]["cause"]
            if cause in self.truth.findings or cause in self.forms:
                return True
            return self.values is not None and path.endswith((".cause", ".count" if cause == NEW_CODEC else ".values"))
        if path in ("altered", "notable") and self.values is None and any(f["cause"] not in self.truth.findings for f in report[path] or []):
            return False
        return True


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


def blindness(judge, report):
    """Change one thing after the other; return how many were changed and which were not seen."""
    number, unseen = 0, []
    report = copy.deepcopy(report)
    for path, container, key in list(leaves(report)):
        if not judge.judges(report, path):
            continue
        kept = container[key]
        container[key] = changed(kept)
        number += 1
        if next(judge.differences(report), None) is None:
            unseen.append(f"{path}: {kept!r} became {container[key]!r}")
        container[key] = kept
    for path, entries in list(lists(report)):
        if not entries or not judge.judges(report, path) or not judge.judges(report, path + "[0]"):
            continue
        last = entries.pop()
        number += 1
        if next(judge.differences(report), None) is None:
            unseen.append(f"{path}: the last entry went")
        entries.append(last)
    return number, unseen
