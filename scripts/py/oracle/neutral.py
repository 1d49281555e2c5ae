"""A source of Python 2, as testdata/make-py2.py dumped its values.

The rule for its strings: ASCII is text, anything else bytes. Names of classes
are text; oids and what datetimes are made of are bytes.
"""

import base64
import collections
import datetime
import decimal
import json
import uuid

from .expected import Expected
from .values import Reference, StandIn, _made


class Record:
    """Stands for the record's bytes: the size is that of the pickles, the rest comes from the dump."""

    def __init__(self, size, entry):
        self._size = size
        self.cls = tuple(entry["class"])
        self.references = {int(oid, 16) for oid in entry["references"]}
        self._value = entry["value"]

    def __len__(self):
        return self._size

    def state(self, universe):
        return value(self._value, universe)


def read(path, blob_dir=None):
    """Return what is expected from NAME.values.jsonl and NAME.dump.jsonl beside it."""
    entries = {}
    with open(path) as f:
        for line in f:
            entry = json.loads(line)
            # Of several records of an oid in one transaction the last counts.
            entries.setdefault((entry["oid"], entry["tid"]), collections.deque()).append(entry)
    with open(path.removesuffix(".values.jsonl") + ".dump.jsonl") as f:
        return Expected(_transactions(f, entries), blob_dir=blob_dir)


def _transactions(lines, entries):
    for line in lines:
        txn = json.loads(line)
        records = []
        for r in txn["records"]:
            data = None
            if r["data"] is not None:
                data = Record(len(base64.b64decode(r["data"])), entries[r["oid"], r["tid"]].popleft())
            records.append({"oid": bytes.fromhex(r["oid"]), "tid": bytes.fromhex(r["tid"]), "data": data})
        yield {
            "tid": bytes.fromhex(txn["tid"]), "user": base64.b64decode(txn["user"]), "description": base64.b64decode(txn["description"]),
            "extension": base64.b64decode(txn["extension"]), "records": records,
        }


def string(raw):
    return raw.decode("ascii") if raw.isascii() else raw


def value(tagged, u):
    """The value as the destination must give it."""
    tag, *rest = tagged
    return _MAKERS[tag](u, *rest)


def _instance(u, module, name, state, args, content):
    cls = u.find_class(module, name)
    arguments = () if args is None else value(args, u)
    if not isinstance(cls, type) or not issubclass(cls, StandIn):
        return cls(*arguments)  # pytz
    obj = _made(cls, "new", arguments, {})
    if state is not None:
        obj.states.append(value(state, u))
    if content is not None:
        obj.content = value(content, u)
    return obj


def _class(u, module, name):
    return u.find_class(module, name)


def _moment(cls):
    def make(u, payload, zone=None):
        args = [bytes.fromhex(payload)]
        if zone is not None:
            args.append(value(zone, u))
        return cls(*args)
    return make


_MAKERS = {
    "none": lambda u: None,
    "bool": lambda u, v: bool(v),
    "int": lambda u, v: int(v),
    "float": lambda u, v: float.fromhex(v),
    "complex": lambda u, re, im: complex(float.fromhex(re), float.fromhex(im)),
    "str": lambda u, v: string(base64.b64decode(v)),
    "unicode": lambda u, v: base64.b64decode(v).decode("utf-8"),
    "list": lambda u, v: [value(x, u) for x in v],
    "tuple": lambda u, v: tuple(value(x, u) for x in v),
    "set": lambda u, v: {value(x, u) for x in v},
    "frozenset": lambda u, v: frozenset(value(x, u) for x in v),
    "dict": lambda u, v: {value(k, u): value(x, u) for k, x in v},
    "timedelta": lambda u, *v: datetime.timedelta(*v),
    "datetime": _moment(datetime.datetime),
    "date": _moment(datetime.date),
    "time": _moment(datetime.time),
    "decimal": lambda u, v: decimal.Decimal(v),
    "uuid": lambda u, v: uuid.UUID(hex=v),
    "inst": _instance,
    "class": _class,
    "object": lambda u, oid, cls: Reference((bytes.fromhex(oid), value(cls, u)) if cls else bytes.fromhex(oid)),
    "weak": lambda u, oid, db: Reference(["w", (bytes.fromhex(oid), db)] if db else ["w", (bytes.fromhex(oid),)]),
    "other": lambda u, db, oid, cls: Reference(
        ["m", (db, bytes.fromhex(oid), value(cls, u))] if cls else ["n", (db, bytes.fromhex(oid))]),
}
