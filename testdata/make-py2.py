# -*- coding: utf-8 -*-
"""Writes the databases of Python 2 (py2-*.fs) and the dumps beside them.

    python2.7 -m pip install virtualenv==20.15.1
    python2.7 -m virtualenv /tmp/py2
    /tmp/py2/bin/pip install ZODB==5.8.1 pytz==2022.1
    /tmp/py2/bin/python testdata/make-py2.py testdata

For each database three files are written: NAME.fs; NAME.dump.jsonl with the raw
transactions, in the form of the other dumps; NAME.values.jsonl with the value
of every record as Python 2.7's own ZODB and pickle load it. A line of the last
holds oid, tid, class, references and the value as a tagged list:

    ["none"] ["bool", 0|1] ["int", "12"] ["float", "hexadecimal"]
    ["str", base64] ["unicode", base64 of UTF-8]
    ["list", [...]] ["tuple", [...]] ["set", [...]] ["frozenset", [...]]
    ["dict", [[key, value], ...]]
    ["inst", module, name, state or null, arguments or null, content or null]
    ["class", module, name]
    ["datetime", payload in hex, timezone or null] ["date", hex]
    ["time", hex, timezone or null] ["timedelta", days, seconds, microseconds]
    ["decimal", text] ["uuid", hex] ["complex", "real", "imaginary"]
    ["object", oid, class or null] ["weak", oid, database or null]
    ["other", database, oid, class or null]

"content" is what an instance of a subclass of dict, list, str, unicode, int or
tuple holds besides its state.
"""

import base64
import binascii
import cPickle
import cStringIO
import datetime
import decimal
import json
import os
import sys
import types
import uuid

import persistent
import pytz
import transaction
import ZODB
import ZODB._compat
import ZODB.serialize
from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree
from BTrees.OIBTree import OIBTree
from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from persistent.wref import WeakRef
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage.FileStorage import FileIterator, FileStorage
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64


# Classes of the application. Their pickles say "shop.models".
class Address:                     # old-style
    def __init__(self, **kw):
        self.__dict__.update(kw)


class Initial:                     # old-style, with arguments in the pickle
    def __init__(self, a, b="b"):
        self.a, self.b = a, b

    def __getinitargs__(self):
        return (self.a, self.b)


class Hidden:                      # old-style, with its own state
    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return (1, self.value)

    def __setstate__(self, state):
        self.value = state[1]


class Plain(object):
    def __init__(self, **kw):
        self.__dict__.update(kw)


class Table(dict):
    pass


class Series(list):
    pass


class Money(str):
    pass


class Title(unicode):
    pass


class Level(int):
    pass


class Product(persistent.Persistent):
    def __init__(self, **kw):
        self.__dict__.update(kw)


def function():
    pass


def register():
    shop = sys.modules["shop"] = types.ModuleType("shop")
    models = shop.models = sys.modules["shop.models"] = types.ModuleType("shop.models")
    for thing in (Address, Initial, Hidden, Plain, Table, Series, Money, Title, Level, Product, function):
        thing.__module__ = "shop.models"
        setattr(models, thing.__name__, thing)


class Storage(FileStorage):
    """Transactions have fixed tids."""

    tick = u64(TimeStamp(2009, 10, 25, 0, 59, 7.5).raw())

    def tpc_begin(self, txn, tid=None, status=" "):
        if tid is None:
            self.tick += (1 << 32) + 0x01234567
            tid = p64(self.tick)
        FileStorage.tpc_begin(self, txn, tid, status)


class Link(object):
    def __init__(self, pid):
        self.pid = pid


def record(described, state, protocol):
    """A record as cPickle writes it, in one of the protocols that ZODB has used."""
    out = cStringIO.StringIO()
    pickler = cPickle.Pickler(out, protocol)
    # Protocol 0 has a text form of persistent ids, which ZODB never used.
    if protocol:
        pickler.inst_persistent_id = lambda obj: obj.pid if isinstance(obj, Link) else None
    pickler.dump(described)
    pickler.dump(state)
    return out.getvalue()


class Writer(object):
    def __init__(self, path):
        self.path = path
        self.storage = Storage(path, create=True, pack_keep_old=False)
        self.manager = transaction.TransactionManager()
        self.db = ZODB.DB(self.storage)
        self.connection = self.db.open(self.manager)

    def commit(self, user=u"", description=u"", **extension):
        txn = self.manager.get()
        txn.user, txn.description = user, description
        for key, value in extension.items():
            txn.setExtendedInfo(key, value)
        self.manager.commit()
        return self.storage.lastTransaction()

    def raw(self, user, description, extension, records, undo=()):
        """A transaction below the connection; records are (oid, bytes), None deletes."""
        meta = TransactionMetaData(user, description, extension)
        self.storage.tpc_begin(meta)
        for oid, data in records:
            try:
                old = self.storage.load(oid)[1]
            except KeyError:
                old = z64
            if data is None:
                self.storage.deleteObject(oid, old, meta)
            else:
                self.storage.store(oid, old, data, "", meta)
        for tid in undo:
            self.storage.undo(base64.encodestring(tid).rstrip(), meta)
        self.storage.tpc_vote(meta)
        self.storage.tpc_finish(meta)
        return self.storage.lastTransaction()

    def close(self):
        self.manager.abort()
        self.connection.close()
        self.db.close()
        for suffix in (".lock", ".tmp", ".index", ".old"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)


MOMENT = datetime.datetime(2009, 10, 25, 1, 30, 59, 128)
VIENNA = pytz.timezone("Europe/Vienna")


def values(protocol):
    yield "strings", [
        "", "ASCII", "with\x00NUL", "Latin-1 \xe4\xf6\xfc", "UTF-8 \xc3\xbc", "\x80\x03K\x01.", "line\nbreak '\" \\ \\u1234", "x" * 300, "\xff" * 300,
        "\x7f", "\x80", intern("interned"), "@ns:AA==",
    ]
    yield "unicode", [u"", u"ASCII", u"\xfc\u20ac", u"with\x00NUL", u"\U0001f600", u"back\\slash \\u1234 \n\r\t", u"\u2028", u"x" * 300]
    yield "keys", {"plain": 1, u"unicode": 2, u"\xfc": 3, "caf\xe9": 4, 5: "five", ("t", u"u"): 6, None: 7, 2.5: 8}
    yield "only str keys", {"a": "A", "b": "\xc3\xb6"}
    yield "one key that is no ASCII", {"a": 1, "\xe4": 2}
    yield "numbers", [0, -1, 255, 65536, 2**31 - 1, -2**31, 2**31, 2**62, 10L, 10**30, -10**30, 1.5, 1e17, -0.0, float("inf"), float("nan"), True, False, 1 + 2j]
    yield "containers", [(), (1,), (1, "b"), (1, 2, 3), (1, 2, 3, 4), [], {}, {"d": {"d": [({},)]}}, set(["a", 1]), frozenset([u"\xfc"]), set()]
    yield "dates", [
        MOMENT, datetime.datetime(1, 1, 1), datetime.datetime(2128, 8, 8, 8, 8, 8, 8), datetime.date(2010, 1, 31), datetime.time(1, 2, 3, 4),
        datetime.timedelta(-1, 5, 6), MOMENT.replace(tzinfo=pytz.utc), VIENNA.localize(datetime.datetime(2010, 7, 1, 12)),
        datetime.datetime(127, 12, 31), datetime.time(12, 0, tzinfo=pytz.utc), datetime.time(23, 59, 59, 999999), datetime.date(255, 2, 3),
    ]
    yield "things", [decimal.Decimal("1.50"), uuid.UUID(int=3), uuid.UUID(int=2**120), pytz.utc, VIENNA]
    yield "old-style", [
        Address(street="Stra\xdfe", city=u"K\xf6ln", zip="1010"), Address(), Initial("a"), Initial("\xe4", {"b": 1}), Hidden("state \xff"),
        Address(nested=Address(n=1)), Address(**{"@cls": ["a", "b"]}),
    ]
    yield "new-style", [Plain(a=1, b="\xfc"), Plain(), Table(a=1), Series([1, "a"]), Money("12.50"), Money("12 \x80"), Title(u"\xfc"), Level(5)]
    table, money = Table({"k": [1]}), Money("5")
    table.note, money.currency = "attribute", "EUR"
    yield "new-style with attributes", [table, money]
    yield "classes", [Address, Plain, function, len, int, dict]
    yield "markers", [{"@t": [1]}, {"@cls": ["os", "system"]}, {"@ns": "AA=="}, {"@b": "\xff"}]
    text, number = "shared text", [1]
    yield "shared", [text, text, (text, {text: text}), number, number]


def strings(path):
    """Values in the protocols 0, 1 and 2, through records made by cPickle."""
    w = Writer(path)
    root = w.connection.root()
    for protocol in (0, 1, 2):
        holder = root["protocol %d" % protocol] = OOBTree()
        for name, value in values(protocol):
            holder[name] = Product(name=name)
        w.commit(u"admin", u"objects for protocol %d" % protocol)
        oids = dict((name, product._p_oid) for name, product in holder.items())
        records = [(oids[name], record(Product, {"name": name, "value": value}, protocol)) for name, value in values(protocol)]
        w.raw("admin", "values in protocol %d" % protocol, {"protocol": protocol, u"text": u"\xfc"}, records)
    described = [
        Product, (Product, None), (Product, ()), (("shop.models", "Product"), None), (("shop.models", "Product"), ()), ((u"shop.models", u"Product"), None),
    ]
    made = []
    for protocol in (0, 1, 2):
        for number, description in enumerate(described):
            made.append((w.storage.new_oid(), record(description, {"number": number}, protocol)))
    for protocol in (0, 1, 2):  # a state that is no dict
        for state in ("text", "\xe4", ("t", u"u"), None, 12L, [MOMENT]):
            made.append((w.storage.new_oid(), record(Product, state, protocol)))
    w.raw("admin", "class descriptions and whole states", None, made)
    w.close()


def site(path):
    """A site as Plone 3 left it: references, catalog, history; protocol 1, as ZODB 3 wrote it."""
    ZODB.serialize._protocol = 1
    ZODB.serialize.binary = str
    w = Writer(path)
    root = w.connection.root()
    root["app"] = app = PersistentMapping()
    app["list"] = PersistentList(["a", u"b", "\xe4"])
    app["products"] = OOBTree()
    for i in range(150):
        p = app["products"]["product-%03d" % i] = Product(
            id="product-%03d" % i, title=u"T\xfcr %d" % i, description="Beschreibung \xfc" if i % 3 == 0 else "description",
            price=decimal.Decimal("12.%02d" % i), created=MOMENT + datetime.timedelta(i, i), tags=set(["a", "b%d" % (i % 5)]), address=Address(n=i, street="s"),
        )
        p.weak = WeakRef(app["list"])
    w.commit(u"/ admin", u"products")
    app["words"] = OIBTree(dict(("word %d" % i, i) for i in range(200)))
    app["paths"] = IOBTree(dict((i, "/path/%d" % i) for i in range(200)))
    app["unicode"] = OOBTree(dict((u"w\xf6rt %d" % i, (i, "s", u"u")) for i in range(80)))
    app["bytes"] = OOBTree(dict(("\xff%03d" % i, None) for i in range(40)))
    app["set"] = OOTreeSet(["x", "y", "\xe4"])
    app["longs"] = LOBTree({2**40: "a", -2**40: u"b"})
    w.commit(u"K\xf6nig", u"catalog \u20ac", request_type="GET", note="\xe4 in bytes", text=u"\xe4 in text")
    target, far = app["list"]._p_oid, p64(0xFEDCBA98)
    pids = {
        "plain": (target, PersistentList), "bare": target, "weak": ["w", (target,)], "weak elsewhere": ["w", (far, "other")], "legacy": [target],
        "other": ["m", ("other", far, PersistentList)], "other bare": ["n", ("other", far)], "high byte": (p64(0xFF80), PersistentList),
    }
    references = []
    for protocol in (1, 2):
        references.append((w.storage.new_oid(), record(PersistentMapping, {"data": dict((k, Link(v)) for k, v in pids.items())}, protocol)))
    w.raw("tool", "references", None, references)
    doc = app["products"]["product-003"]._p_oid
    tids = []
    for number in range(4):
        tids.append(w.raw("editor \xe4", "edit %d \x00" % number, None, [(doc, record(Product, {"title": "edit %d" % number, "text": "\xfc" * number}, 1))]))
    undone = w.raw("editor", "undo", {"undone": True}, [], undo=[tids[-1]])
    w.raw("editor", "undo of the undo", None, [], undo=[undone])
    gone = app["products"]["product-004"]._p_oid
    w.raw("gc", "deleted", None, [(gone, None)])
    w.raw("\xff\xfe", "", "}q\x01(U\x01aq\x02U\x01\xe4q\x03u.", [(doc, record(Product, {"title": "last"}, 2))])
    w.raw("", "not a pickle in the extension", "\xff\x00nothing", [])
    w.close()


# The dump.

def neutral(value):
    if value is None:
        return ["none"]
    kind = type(value)
    if kind is bool:
        return ["bool", int(value)]
    if kind in (int, long):
        return ["int", str(value)]
    if kind is float:
        return ["float", value.hex()]
    if kind is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if kind is str:
        return ["str", base64.b64encode(value)]
    if kind is unicode:
        return ["unicode", base64.b64encode(value.encode("utf-8"))]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [neutral(v) for v in value]]
    if kind is dict:
        return ["dict", [[neutral(k), neutral(v)] for k, v in value.items()]]
    if kind is Reference:
        return value.neutral()
    if kind is datetime.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if kind in (datetime.datetime, datetime.time, datetime.date):
        args = value.__reduce__()[1]
        tagged = [kind.__name__, binascii.hexlify(args[0])]
        return tagged if kind is datetime.date else tagged + [neutral(args[1]) if len(args) > 1 else None]
    if kind is decimal.Decimal:
        return ["decimal", str(value)]
    if kind is uuid.UUID:
        return ["uuid", value.hex]
    if isinstance(value, (type, types.ClassType, types.FunctionType, types.BuiltinFunctionType)):
        return ["class", value.__module__, value.__name__]
    if isinstance(value, datetime.tzinfo):
        function, args = value.__reduce__()
        return ["inst", function.__module__, function.__name__, None, neutral(tuple(args)), None]
    cls = value.__class__
    getstate = getattr(value, "__getstate__", None)
    state = getstate() if getstate else value.__dict__
    args = getattr(value, "__getinitargs__", None)
    content = None
    for base in (dict, list, unicode, str, int, tuple):
        if isinstance(value, base):
            content = neutral(base(value))
            break
    # A new-style instance without attributes is pickled without a state.
    stateless = isinstance(value, object) and kind is not types.InstanceType and not state
    return ["inst", cls.__module__, cls.__name__, None if stateless else neutral(state), neutral(tuple(args())) if args else None, content]


class Reference(object):
    def __init__(self, pid):
        self.pid = pid

    def neutral(self):
        pid = self.pid
        if isinstance(pid, str):
            return ["object", binascii.hexlify(pid), None]
        if isinstance(pid, tuple):
            return ["object", binascii.hexlify(pid[0]), neutral(pid[1])]
        if len(pid) == 1:
            return ["weak", binascii.hexlify(pid[0]), None]
        kind, args = pid
        if kind == "w":
            return ["weak", binascii.hexlify(args[0]), args[1] if len(args) > 1 else None]
        return ["other", args[0], binascii.hexlify(args[1]), neutral(args[2]) if len(args) > 2 else None]


def load(data):
    # cPickle does not know protocol 3, which ZODB 5 writes under Python 2, too.
    unpickler = ZODB._compat.PersistentUnpickler(None, Reference, cStringIO.StringIO(data))
    return unpickler.load(), unpickler.load()


def class_name(described):
    if isinstance(described, tuple):
        described, args = described
        assert not args
    if isinstance(described, tuple):
        return [str(x) for x in described]
    return [described.__module__, described.__name__]


def dump(path):
    name = path[:-len(".fs")]
    with open(name + ".dump.jsonl", "w") as raw, open(name + ".values.jsonl", "w") as loaded:
        for txn in FileIterator(path):
            records = []
            for r in txn:
                records.append({
                    "oid": binascii.hexlify(r.oid), "tid": binascii.hexlify(r.tid), "data": r.data and base64.b64encode(r.data),
                    "data_txn": r.data_txn and binascii.hexlify(r.data_txn),
                })
                if r.data is None:
                    continue
                described, state = load(r.data)
                loaded.write(json.dumps({
                    "oid": binascii.hexlify(r.oid), "tid": binascii.hexlify(r.tid), "class": class_name(described),
                    "references": sorted(binascii.hexlify(oid) for oid in set(referencesf(r.data))), "value": neutral(state),
                }, sort_keys=True) + "\n")
            raw.write(json.dumps({
                "tid": binascii.hexlify(txn.tid), "status": txn.status, "user": base64.b64encode(txn.user),
                "description": base64.b64encode(txn.description), "extension": base64.b64encode(txn.extension_bytes), "records": records,
            }, sort_keys=True) + "\n")


def main(folder):
    register()
    for name, make in (("py2-values.fs", strings), ("py2-site.fs", site)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            sys.exit("%s exists; it is not overwritten" % path)
        make(path)
        dump(path)


main(*sys.argv[1:])
