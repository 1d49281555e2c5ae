"""Databases of values that are rare, but that somebody has."""

import array
import collections
import datetime
import decimal
import fractions
import functools
import io
import operator
import pickle
import random as random_module
import uuid
import zoneinfo

import pytz
import zodbpickle
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from ZODB.utils import p64, u64, z64
from zodbpickle import binary

from . import classes as c
from .log import Link, link

UTC = datetime.timezone.utc
MOMENT = datetime.datetime(1999, 12, 31, 23, 59, 59, 999999)
VIENNA = pytz.timezone("Europe/Vienna")


def _thing(**attributes):
    thing = c.Thing()
    thing.__dict__.update(attributes)
    return thing


def _filled(cls, *items, **attributes):
    obj = cls(items[0]) if items else cls()
    obj.__dict__.update(attributes)
    return obj


def _reduced_items():
    obj = c.ReducedItems("argument")
    obj.listed += [1, [2], "drei"]
    obj.keyed.update({"a": 1, ("b",): {"c": 2}})
    return obj


def _slots():
    obj = c.Slots()
    obj.a, obj.b = 1, ["two"]
    return obj


def _lmt():
    # Before 1893 clocks in Vienna were 65 minutes and 21 seconds ahead.
    return datetime.timezone(datetime.timedelta(hours=1, minutes=5, seconds=21, microseconds=7), "LMT")


def values():
    """Name and value of everything that is stored as an attribute of an object."""
    floats = {
        "nan": float("nan"), "inf": float("inf"), "minus inf": float("-inf"), "minus zero": -0.0, "zero": 0.0, "one": 1.0,
        "1e15": 1e15, "1e16": 1e16, "2**53+2": 9007199254740994.0, "2**63": 2.0**63, "1e22": 1e22, "1e300": 1e300, "max": 1.7976931348623157e308,
        "-1e17": -1e17, "tiny": 5e-324, "1e-7": 1e-7, "third": 1 / 3, "pi": 3.141592653589793,
    }
    ints = [0, -1, 255, 256, 65535, -32768, 2**31, -2**31 - 1, 2**53 + 1, 2**63 - 1, -2**63, 2**63, -2**63 - 1, 2**64, 10**40, -10**40]
    texts = [
        "", "NUL\x00inside", "\x00", "\x01\x1f\x7f\x80\x9f", "tab\tnewline\nreturn\r", 'quote " backslash \\', "\u2028\u2029", "\ufeff",
        "\U0001f600 \U0010ffff", "\ufffd\ufffe\uffff", "e\u0301 é", "0x12", "null", "@ns:AA==", "@ref", "x" * 10_000,
    ]
    markers = [
        {"@t": [1]}, {"@b": "AA=="}, {"@ns": "AA=="}, {"@ns": 5}, {"@cls": ["os", "system"]}, {"@cls": ["a", "b"], "@s": {"x": 1}},
        {"@cls": ["a"], "@s": 1}, {"@dt": "2020-01-01T00:00:00"}, {"@dt": "x", "@tz": {}}, {"@date": "2020-01-01"}, {"@time": "1"},
        {"@td": [1, 2, 3]}, {"@dec": "1.5"}, {"@uuid": "0" * 32}, {"@bi": "12"}, {"@d": [[1, 2]]}, {"@set": [1]}, {"@fset": []},
        {"@ref": "0000000000000001"}, {"@ref": ["0000000000000001", "a.b"]}, {"@pkl": "gAMu"}, {"@reduce": {"callable": 1}},
        {"@inst": {"@obj": 1, "@state": 2}}, {"@kv": [[1, 2]]}, {"@ks": [1]}, {"@children": [], "@first": None}, {"@unknown": 1},
        {"@args": (1,), "@state": 2}, {"@t": [1], "x": 2}, {"@cls": ["a", "b"], "x": 1, "y": 2, "z": 3}, {"a": {"@t": [{"@b": "!"}]}},
        {"@ns:AA==": 1, "@ns:": 2, "@ns:!": 3}, {"NUL\x00key": 1, "\x00": 2}, {"": 1, "@": 2},
    ]
    dates = [
        MOMENT, datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59), MOMENT.replace(tzinfo=UTC),
        MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))), MOMENT.replace(tzinfo=_lmt()),
        MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=-1))), MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2), "MESZ")),
        MOMENT.replace(tzinfo=pytz.utc), VIENNA.localize(MOMENT), VIENNA.localize(datetime.datetime(2015, 7, 1)), MOMENT.replace(tzinfo=VIENNA),
        MOMENT.replace(tzinfo=pytz.FixedOffset(90)), MOMENT.replace(tzinfo=zoneinfo.ZoneInfo("Europe/Vienna")),
        MOMENT.replace(tzinfo=zoneinfo.ZoneInfo.no_cache("Asia/Kolkata")), datetime.date(2000, 2, 29), datetime.date.min,
        datetime.time(23, 59, 59, 1), datetime.time(0), datetime.time(12, tzinfo=UTC), datetime.time(12, tzinfo=pytz.utc),
        datetime.time(12, 30, tzinfo=VIENNA), datetime.time(12, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna")),
        datetime.timedelta(-1, 86399, 999999), datetime.timedelta(999999999), datetime.timedelta(0), UTC, pytz.utc, VIENNA,
        zoneinfo.ZoneInfo("UTC"), c.DateTime(_micros=1_700_000_000_000_001, _timezone_naive=True, _tz="Europe/Vienna"),
    ]
    numbers = [
        decimal.Decimal("1.10"), decimal.Decimal("-0"), decimal.Decimal("NaN"), decimal.Decimal("sNaN12"), decimal.Decimal("Infinity"),
        decimal.Decimal("1E+400"), fractions.Fraction(22, 7), complex(1, -0.0), complex(float("nan"), float("inf")), range(1, 10, 3), slice(1, None, 2),
    ]
    uuids = [uuid.UUID(int=0), uuid.UUID(int=5), uuid.UUID(int=2**127 + 12345), uuid.UUID(int=77, is_safe=uuid.SafeUUID.safe)]
    raw = [b"", b"\x00\xff", bytes(range(256)), bytearray(b"mutable\x00"), binary(b"zodbpickle binary"), array.array("d", [1.5, -0.0])]
    containers = [
        [], (), {}, set(), frozenset(), [[]], ((),), {"a": {}}, {1, "a", None, (1, 2)}, frozenset([1.5, b"x"]), [1, [2, [3, (4, {5: {6}})]]],
        {1: "int", "1": "str", 1.5: "float", None: "none", (1, "t"): "tuple", b"b": "bytes", frozenset([1]): "fset", True: "replaces int 1"},
        {b"only": 1, b"bytes": 2}, {i: i for i in range(30)}, {float("inf"): 1, -1.5: 2}, {c.Colour.RED: 1, c.Point(1, 2): 2},
        collections.OrderedDict([("z", 1), ("a", 2), ("m", [3])]), collections.OrderedDict(), collections.defaultdict(list, {"a": [1]}),
        collections.defaultdict(None, {"x": 1}), collections.defaultdict(c.factory), collections.Counter("hello"), collections.deque([1, 2, 3], maxlen=3),
        collections.deque(), collections.ChainMap({"a": 1}, {"b": 2}),
        {c.Colour.RED, c.Colour.GREEN}, {(1, float("inf")): {"@t": 1}},
    ]
    objects = [
        c.Colour.RED, c.Colour.GREEN, c.Rights.READ, c.Rights.READ | c.Rights.WRITE, c.Weekday.MONDAY, c.Point(1, [2]), c.Money("12 €"), c.Level(7), c.Raw(b"\xff"),
        _filled(c.Money, "with attribute", currency="EUR"), _filled(c.Level, 8, note="x"), _filled(c.Series, [1, [2]]), _filled(c.Series, [1], a=1),
        _filled(c.Series), _filled(c.Table, {"a": 1, 2: [3]}), _filled(c.Table, {"k": "v"}, attribute={"x": 1}), _filled(c.Table, {"@t": [1]}), _filled(c.Table),
        _filled(c.Labels, {1, "a"}), _filled(c.Labels, {2}, note="set"), _filled(c.Frozen, {3}), _filled(c.Pair, (1, 2)), _filled(c.Pair, (1,), note="t"),
        _filled(c.Keyed, [("b", 1), ("a", 2)]), _filled(c.Keyed, [("b", 1)], note="ordered"),
        _slots(), c.Reduced(), c.Reduced(1, "zwei"), _reduced_items(), c.Stateless(), c.NoState(), _thing(), _thing(a=1, b=_thing(c=[_thing()])),
        _thing(**{"@cls": ["a", "b"]}), _thing(**{"@args": (1,), "@state": {"x": 1}}), _thing(**{"@ns": "x"}), _thing(**{"ü": 1, "": 2, "\x00": 3}),
        c.RichTextValue(raw="<p>", _mimeType="text/html"),
    ]
    functions = [
        len, c.factory, c.Thing, c.Document, int, type(None), Ellipsis, NotImplemented, functools.partial(int, base=8), operator.itemgetter(1, "a"),
        operator.attrgetter("a.b"), operator.methodcaller("strip", chars="x"), datetime.datetime, ValueError("message", 2), KeyError(),
        random_module.Random(5).getstate()[1][:5],
    ]
    yield "none", None
    yield "booleans", [True, False, {"t": True}]
    yield "floats", floats
    for name, value in floats.items():
        yield "float " + name, value
    yield "ints", ints
    yield "texts", texts
    yield "surrogates", ["\ud800", "a\udcffb", {"\udfff": 1}, ("\udbff\udfff",)]
    for group, members in (
        ("marker", markers), ("date", dates), ("number", numbers), ("uuid", uuids), ("raw", raw), ("container", containers),
        ("object", objects), ("function", functions),
    ):
        for i, value in enumerate(members):
            yield f"{group} {i}", value
    yield "all markers in a set path", {1: markers, (2,): [{"@d": markers}]}
    yield "all together", [floats, ints, texts, markers, dates, numbers, uuids, raw, objects]




def odd(log, random, options):
    """Every odd value as an attribute, as a whole state, as an item; odd references."""
    from BTrees.IFBTree import IFBTree
    from BTrees.LFBTree import LFBTree
    from BTrees.OOBTree import OOBTree
    root = log.root
    tree = root["values"] = OOBTree()
    for name, value in values():
        tree[name] = c.Odd(value=value)
    log.commit("tester", "attributes")
    tree = log.root["values"]
    items = log.root["items"] = PersistentMapping()
    for number, (name, value) in enumerate(values()):
        items[name] = value
        if isinstance(value, dict) and all(type(k) is str for k in value) and type(value) is dict:
            # The value as the __dict__ of an object.
            obj = tree["state " + name] = c.Odd()
            obj.__dict__.update({k: v for k, v in value.items() if k})
        if number % 25 == 24:
            items = log.root[f"items {number}"] = PersistentMapping()
    log.root["floats"] = IFBTree({1: float("nan"), 2: float("inf"), 3: -0.0, 4: 1e20, 5: 1.5})
    log.root["long floats"] = LFBTree({2**62: float("-inf"), -2**62: 3e38})
    log.root["float keys"] = OOBTree({"a": float("nan"), "b": 1e17, "c": {"@t": [1]}})
    log.commit("tester", "items")
    references(log)
    whole_states(log)
    sharing(log)
    protocols(log)


def references(log):
    """References of every kind that ZODB writes or used to write."""
    root = log.root
    root["target"] = c.Odd(name="target")
    root["newargs"] = c.WithNewargs()
    root["newargs"].note = "referred to by oid alone"
    log.commit("tester", "targets")
    target, newargs = log.root["target"]._p_oid, log.root["newargs"]._p_oid
    far = p64(0x1234567890ABCDEF)
    pids = {
        "plain": (binary(target), c.Odd), "bare": binary(newargs), "weak": ["w", (binary(target),)], "weak elsewhere": ["w", (binary(far), "other")],
        "legacy weak": [binary(target)], "other database": ["m", ("other", binary(far), c.Odd)], "other database, bare": ["n", ("other", binary(far))],
        "dangling": (binary(p64(0x7000000000000001)), c.Odd),
    }
    state = {name: Link(pid) for name, pid in pids.items()}
    state["in containers"] = [Link(pids["plain"]), {"a": Link(pids["bare"])}, (Link(pids["weak"]),), {1: Link(pids["plain"])}]
    state["in an object"] = _thing(child=Link(pids["plain"]))
    state["in a call"] = c.Reduced(Link(pids["plain"]), Link(pids["bare"]))
    state["as keys"] = {Link(pids["plain"]): 1}
    state["ordered"] = collections.OrderedDict([("a", Link(pids["plain"]))])
    oid = log.new_oid()
    with log.transaction(b"tester", b"references") as t:
        t.store(oid, c.Odd, state)
    log.root["references"] = log.connection.get(oid)
    log.commit("tester", "references linked")


def whole_states(log):
    """States that are no dict."""
    states = [
        None, 0, 12345678901234567890, 1.5, float("nan"), 1e17, "text", "with\x00NUL", b"bytes", [], [1, 2], (), (1, "a"), {"@t": [1]}, {"@ns": "AA=="},
        {"@cls": ["a", "b"], "@s": 1}, {1: 2}, True, {1, 2}, MOMENT, c.Point(1, 2), _thing(a=1), ({"a": 1}, {"b": 2}), {"@kv": [[1, 2]]}, {}, {"@d": []},
        {"@args": (1,), "@state": {}}, collections.OrderedDict(a=1),
    ]
    oids = []
    with log.transaction(b"tester", b"whole states") as t:
        for state in states:
            oids.append(log.new_oid())
            t.store(oids[-1], c.Odd, state)
        from BTrees.OOBTree import OOBTree, OOBucket, OOSet, OOTreeSet
        for cls in (OOBTree, OOBucket, OOTreeSet, OOSet):
            for state in (None, (("k", 1),)) if cls is OOBucket else (None, None):
                oids.append(log.new_oid())
                t.store(oids[-1], cls, state)
    holder = log.new_oid()
    with log.transaction(b"tester", b"whole states linked") as t:
        t.store(holder, c.Odd, {"list": [link(oid, c.Odd) for oid in oids]})
    log.root["whole states"] = log.connection.get(holder)
    log.commit("tester", "whole states linked")


def sharing(log):
    """One mutable object in two places: it becomes two."""
    shared, text = [1, 2], "shared text " * 3
    point = _thing(x=1)
    log.root["sharing"] = c.Odd(a=shared, b=shared, c={"d": shared}, t1=text, t2=text, p=[point, point], empty=[[]] * 3, d=[MOMENT] * 3)
    log.commit("tester", "shared")




def protocols(log):
    """Records in the older protocols 0, 1 and 2."""
    value = {
        "text": "ü\n\\u0041 \x00", "list": [1, 2.5, None, True, 2**70, -5], "tuple": (1, (2, 3, 4, 5)), "long": 10**30,
        "thing": _thing(a=1), "colour": c.Colour.RED, "ordered": collections.OrderedDict([("b", 1), ("a", 2)]), "bytes": b"\x00\xff", "set": {1},
        "table": _filled(c.Table, {"x": 1}, attribute=2), "date": MOMENT, "money": _filled(c.Money, "x", y=1), "slots": c.Reduced(5),
    }
    oids = []
    with log.transaction(b"tester", b"protocols") as t:
        for protocol in (0, 1, 2, 3):
            file = io.BytesIO()
            pickler = zodbpickle.pickle.Pickler(file, protocol)
            state = {k: v for k, v in value.items() if not (protocol < 2 and k == "bytes")}
            pickler.dump(c.Odd)
            pickler.dump(state)
            oids.append(log.new_oid())
            t.put(oids[-1], file.getvalue())
        # Class descriptions of other forms, all without arguments.
        state = zodbpickle.pickle.dumps({"form": "old"}, 3)
        for described in ((c.Odd, None), (c.Odd, ()), (("shop.odd", "Odd"), None), (("shop.odd", "Odd"), ())):
            oids.append(log.new_oid())
            t.put(oids[-1], zodbpickle.pickle.dumps(described, 3) + state)
        # What follows the second pickle belongs to nobody.
        oids.append(log.new_oid())
        t.put(oids[-1], zodbpickle.pickle.dumps(c.Odd, 3) + state + b"trailing bytes")
    holder = log.new_oid()
    with log.transaction(b"tester", b"protocols linked") as t:
        t.store(holder, c.Odd, {"list": [link(oid, c.Odd) for oid in oids]})
    log.root["protocols"] = log.connection.get(holder)
    log.commit("tester", "protocols linked")


def cyclic(log, random, options):
    """Values that refer to themselves, share exponentially, or are nested deeply."""
    def nested(make, depth):
        value = "bottom"
        for _ in range(depth):
            value = make(value)
        return value

    own = [1]
    own.append(own)
    mapping = {"x": 1}
    mapping["self"] = mapping
    mapping["y"] = 2
    thing = _thing(a=1)
    thing.me = thing
    left, right = _thing(name="left"), _thing(name="right")
    left.other, right.other = right, left
    knot = ([],)
    knot[0].append(knot)
    double = [0]
    for _ in range(18):
        double = [double, double]
    values = {
        "list": own, "dict": mapping, "thing": thing, "pair": [left, right], "tuple": knot, "doubling": double,
        "parent": _thing(children=[_thing(n=i) for i in range(3)]),
        "lists 200": nested(lambda v: [v], 200), "tuples 200": nested(lambda v: (v,), 200), "dicts 200": nested(lambda v: {"k": v}, 200),
        "lists 600": nested(lambda v: [v], 600), "tuples 400": nested(lambda v: (v,), 400),
    }
    for child in values["parent"].children:
        child.parent = values["parent"]
    for name, value in values.items():
        log.root[name] = c.Odd(value=value)
    log.commit("tester", "cycles")
    target = log.root["list"]._p_oid
    oid = log.new_oid()
    ring = [Link((binary(target), c.Odd))]
    ring.append(ring)
    with log.transaction(b"tester", b"a cycle with references") as t:
        t.store(oid, c.Odd, {"ring": ring, "thing": thing, "weak": Link(["w", (binary(target),)])})
    log.root["references"] = log.connection.get(oid)
    log.commit("tester", "linked")


def broken(log, random, options):
    """Records that have no form in the destination, between some that have one."""
    log.root["good"] = c.Odd(name="good")
    log.commit("tester", "good")
    good = log.root["good"]._p_oid
    dumps = lambda value: zodbpickle.pickle.dumps(value, 3)  # noqa: E731
    state = dumps({"a": 1})
    good_class = dumps(c.Odd)
    persistent_class = good_class[:-1].replace(b"cshop.odd\nOdd\n", b"C\x08\0\0\0\0\0\0\0\x07Q") + b"."
    records = {
        "class with arguments": dumps((c.WithNewargs, (1, "a"))) + state,
        "class by name with arguments": dumps((("shop.odd", "WithNewargs"), (1,))) + state,
        "class is a persistent object": persistent_class + state,
        "class is a number": dumps(5) + state,
        "class is None": dumps(None) + state,
        "empty record": b"\x80\x03.",
        "one pickle only": good_class,
        "state cut off": good_class + state[:-3],
        "unknown opcode": good_class + b"\x80\x03\xff.",
        "stack empty": good_class + b"\x80\x03.",
        "memo missing": good_class + b"\x80\x03h\x63.",
        "extension registry": good_class + b"\x80\x03\x82\x01.",
        "length beyond the record": good_class + b"\x80\x03B\xff\xff\xff\x7fabc.",
        "NUL in the class name": good_class.replace(b"Odd\n", b"O\x00d\n") + state,
    }
    for name, record in records.items():
        oid = log.new_oid()
        with log.transaction(b"tester", name.encode()) as t:
            t.put(oid, record)
    # A newest revision without a form must not let the older one take its place.
    twice = log.new_oid()
    with log.transaction(b"tester", b"good at first") as t:
        t.store(twice, c.Odd, {"revision": 1})
    with log.transaction(b"tester", b"then without a form") as t:
        t.put(twice, records["class with arguments"])
    once = log.new_oid()
    with log.transaction(b"tester", b"without a form at first") as t:
        t.put(once, records["class with arguments"])
    with log.transaction(b"tester", b"then good") as t:
        t.store(once, c.Odd, {"revision": 2, "good": link(good, c.Odd)})


def oids(log, random, options):
    """oids up to the highest that has a place, and a highest tid in the future."""
    log.commit_empty_root()
    entries = []
    for number in (1, 255, 2**31, 2**32 + 1, 2**48, 2**62, 2**63 - 2**33 - 5):
        entries.append(link(p64(number), c.Entry))
        with log.transaction(b"tool", b"oid %d" % number) as t:
            t.store(p64(number), c.Entry, {"number": number})
    log.file.tick = u64(TimeStamp(2070, 1, 1).raw())
    with log.transaction(b"tool", b"root, by a clock that was wrong") as t:
        t.store(z64, PersistentMapping, {"data": {"entries": entries}})
