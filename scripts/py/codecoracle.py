"""Judge the codec by the released Python reader.

    codecoracle.py generate COUNT SEED   JSON lines with record_hex, made by real picklers
    codecoracle.py vectors FILE          the same from the recorded vectors
    codecoracle.py examples              the same: one for each special form, with its text in Python
    codecoracle.py losses                the same: one for each thing that the released codec loses
    codecoracle.py selftest              proves that differences are seen
    codecoracle.py check [--old]         the same lines with what internal/encoderecords adds
    codecoracle.py database OUT.fs       puts such lines into a FileStorage, and gives them an oid
    codecoracle.py stored DSN [--strict] [--rejects FILE]
                                         the same lines, whose objects are in a database

check passes each state through json.loads, the storage's own clean-up and
encode_zodb_record, executes the record that comes out and the original one
without importing a class, and compares the two graphs. A reject counts as
right only where the corpus says why it was to be expected.

With --old the reader is zodb-json-codec 1.6.1: rows marked new_codec are left
out, all others have to be right there too.

stored lets the real storage load each object from PostgreSQL and compares in
the same way; ZODB's own unpickler loads both as well, and the objects are compared;
refs has to name the objects that a pack must not remove. It prints the lines again with the verdict, and with the columns
of the row. A line with "reject" has to be missing, and so has one that FILE names. With --strict copies of
shared parts are differences, too.
"""

import _compat_pickle
import codecs
import collections
import copyreg
import datetime
import decimal
import fractions
import functools
import importlib
import io
import ipaddress
import json
import pickle
import random
import struct
import sys
import types
import uuid
import zlib
import zoneinfo

sys.setrecursionlimit(20000)
sys.set_int_max_str_digits(0)

# ---------------------------------------------------------------- executing


class OldStr(str):
    """A str of Python 2 that is ASCII."""


class OldBytes(bytes):
    """A str of Python 2 that is not."""


class Stub:
    """A global. Calling it makes an Obj, unless the call is known to be pure."""

    def __init__(self, module, name):
        self.__dict__.update(module=module, name=name)
        self.__dict__["__new__"] = lambda cls, *args, **kw: made(cls, args, kw)

    def path(self):
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(self.module, self.module)
        return module + "." + self.name

    def __call__(self, *args):
        pure = PURE.get(self.path())
        if pure is not None:
            try:
                return pure(*args)
            except Impure:
                pass
        if self.path().startswith("datetime.") and args and isinstance(args[0], (OldStr, OldBytes)):
            args = (oid_bytes(args[0]),) + args[1:]
        return Obj("call", self, args)


class Impure(Exception):
    pass


def made(cls, args, kw):
    if kw:
        return Obj("newobjex", cls, (args, kw))
    return Obj("newobj", cls, args)


class Obj:
    def __init__(self, how, callable, args):
        self.how, self.callable, self.args = how, callable, args
        self.states, self.pairs, self.list = [], [], []

    def __call__(self, *args):
        return Obj("call", self, args)

    def __setstate__(self, state):
        self.states.append(state)

    def __setitem__(self, key, value):
        self.pairs.append((key, value))

    def extend(self, items):
        self.list.extend(items)

    def append(self, item):
        self.list.append(item)


class Ref:
    def __init__(self, pid):
        self.pid = normal_pid(pid)

    def __setstate__(self, state):
        raise ValueError("state on a reference")

    def target(self):
        """The oid, as a pack looks for it: neither weak references nor those to other databases keep anything alive."""
        oid = self.pid[0] if isinstance(self.pid, tuple) and self.pid else self.pid
        return [int.from_bytes(oid, "big", signed=True)] if isinstance(oid, bytes) and len(oid) == 8 else []


def oid_bytes(value):
    if isinstance(value, OldStr):
        return value.encode("ascii")
    return bytes(value) if isinstance(value, OldBytes) else value


def normal_pid(pid):
    if isinstance(pid, tuple) and pid:
        return (oid_bytes(pid[0]),) + pid[1:]
    if isinstance(pid, list) and len(pid) == 1:
        return [oid_bytes(pid[0])]
    if isinstance(pid, list) and len(pid) == 2 and isinstance(pid[1], tuple):
        at = 1 if pid[0] in ("m", "n") else 0
        return [pid[0], tuple(oid_bytes(v) if i == at else v for i, v in enumerate(pid[1]))]
    return oid_bytes(pid)


class Span(collections.namedtuple("Span", "days seconds microseconds")):
    pass


def need(condition):
    if not condition:
        raise Impure


def pure_float(text):
    need(isinstance(text, str))
    return float(text)


def pure_encode(text, encoding, *errors):
    need(isinstance(text, str))
    return text.encode(encoding, *errors)


def pure_decode(data, encoding, *errors):
    need(isinstance(data, bytes))
    return bytes(data).decode(encoding, *errors)


def pure_span(*args):
    need(all(type(a) is int for a in args))
    try:
        d = datetime.timedelta(*args)
    except OverflowError:
        raise Impure from None
    return Span(d.days, d.seconds, d.microseconds)


def pure_dict(*args):
    need(len(args) < 2 and not any(isinstance(a, Obj) for a in args))
    return dict(*args)


def pure_iterable(kind):
    def call(*args):
        need(len(args) < 2 and all(type(a) in (list, tuple, set, frozenset) for a in args))
        return kind(*args)

    return call


def pure_bytearray(*args):
    need(all(isinstance(a, (bytes, str)) for a in args))
    return bytearray(*args)


def pure_bytes(*args):
    need(not args or len(args) == 1 and type(args[0]) is list)
    return bytes(*args)


def pure_newobj(cls, *args):
    return made(cls, args, {})


def pure_newobj_ex(cls, args, kw):
    if isinstance(cls, Stub) and cls.path() == "functools.partial" and kw.keys() == {"buffers"}:
        loads, = args
        need(loads.path() == "pickle.loads")
        return Loads(kw["buffers"])
    return made(cls, tuple(args), dict(kw))


class Loads:
    """functools.partial(pickle.loads, buffers=[...])"""

    def __init__(self, buffers):
        self.buffers = buffers

    def __call__(self, data):
        buffers = iter(self.buffers)
        value = Executor(io.BytesIO(data), encoding="ASCII", buffers=buffers).load()
        if next(buffers, self) is not self:
            raise ValueError("a buffer is left over")
        return value


def pure_inflate(data):
    need(isinstance(data, bytes))
    return zlib.decompress(data)


def pure_item(values, at):
    need(type(values) is tuple)
    return values[at]


PURE = {
    "builtins.set": pure_iterable(set),
    "builtins.frozenset": pure_iterable(frozenset),
    "builtins.list": pure_iterable(list),
    "builtins.dict": pure_dict,
    "builtins.float": pure_float,
    "builtins.bytearray": pure_bytearray,
    "builtins.bytes": pure_bytes,
    "_codecs.encode": pure_encode,
    "_codecs.decode": pure_decode,
    "datetime.timedelta": pure_span,
    "copyreg.__newobj__": pure_newobj,
    "copyreg.__newobj_ex__": pure_newobj_ex,
    "_operator.getitem": pure_item,
    "zlib.decompress": pure_inflate,
    "_struct.unpack": lambda f, b: struct.unpack(f, b),
}


class Executor(pickle._Unpickler):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.refs = set()

    def find_class(self, module, name):
        return Stub(module, name)

    def persistent_load(self, pid):
        ref = Ref(pid)
        self.refs.update(ref.target())
        return ref

    def _decode_string(self, value):
        try:
            return OldStr(value.decode("ascii"))
        except UnicodeDecodeError:
            return OldBytes(value)

    def _instantiate(self, klass, args):
        self.append(Obj("call", klass, tuple(args)) if args else made(klass, (), {}))

    def load_string(self):
        """As the unpickler in C: blanks behind the quote do not matter."""
        line = self.readline().rstrip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise pickle.UnpicklingError("not quoted")
        self.append(self._decode_string(codecs.escape_decode(line[1:-1])[0]))

    def load_persid(self):
        """As ZODB's unpickler: the id is bytes."""
        self.append(self.persistent_load(self.readline()[:-1]))

    def load_pop(self):
        """A call whose result is dropped was made for what it does to its argument."""
        if self.stack:
            dropped = self.stack[-1]
            if isinstance(dropped, Obj) and dropped.how == "call" and dropped.args and isinstance(dropped.args[0], Obj):
                dropped.args[0].states.append(dropped)
        super().load_pop()

    def get_extension(self, code):
        self.append(Stub("extension", str(code)))

    dispatch = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.STRING[0]] = load_string
    dispatch[pickle.PERSID[0]] = load_persid
    dispatch[pickle.POP[0]] = load_pop


def execute(record):
    file = io.BytesIO(record)
    executor = Executor(file, encoding="ASCII")
    found_class = executor.load()
    memo = executor.memo
    executor = Executor(file, encoding="ASCII")
    executor.memo = memo
    load = executor.load()
    return found_class, load, executor.refs


def class_names(value):
    if isinstance(value, tuple) and len(value) == 2 and (value[1] is None or value[1] == ()):
        value = value[0]
    if isinstance(value, Stub):
        return (value.module, value.name)
    return tuple(str(v) for v in value)


# ---------------------------------------------------------------- comparing

IMMUTABLE = ("datetime.", "decimal.", "uuid.", "fractions.", "pytz.", "zoneinfo.", "ipaddress.")
IMMUTABLE_BUILTINS = {"builtins." + n for n in "complex range slice bytes int str float type object getattr xrange unicode long".split()}


def is_mutable(v):
    if isinstance(v, (list, dict, set, bytearray)):
        return True
    if isinstance(v, Obj):
        if isinstance(v.callable, Obj):
            return is_mutable(v.callable)
        path = v.callable.path() if isinstance(v.callable, Stub) else ""
        return not path.startswith(IMMUTABLE) and path not in IMMUTABLE_BUILTINS
    return False


class Difference(Exception):
    pass


class Walk:
    def __init__(self, sharing):
        self.sharing, self.left, self.right, self.keep = sharing, {}, {}, []
        self.met = set()  # a second meeting needs no second look, and ends cycles
        self.within = 0  # immutable objects: their states are theirs alone

    def is_mutable(self, v):
        return is_mutable(v)

    def kind(self, v):
        return str if isinstance(v, str) else bytes if isinstance(v, bytes) else type(v)

    def name(self, v, depth=0):
        """A text that equal values share; good enough to pair keys."""
        if depth > 50:
            return "..."
        if isinstance(v, float):
            return "f" + struct.pack(">d", v).hex()
        if v is None or isinstance(v, (bool, int)):
            return type(v).__name__ + repr(v)
        if isinstance(v, str):
            return "s" + v
        if isinstance(v, (bytes, bytearray)):
            return "b" + bytes(v).hex()
        if isinstance(v, (list, tuple)):
            return type(v).__name__ + "(" + ",".join(self.name(x, depth + 1) for x in v) + ")"
        if isinstance(v, (set, frozenset)):
            return type(v).__name__ + "{" + ",".join(sorted(self.name(x, depth + 1) for x in v)) + "}"
        if isinstance(v, dict):
            return "{" + ",".join(sorted(self.name(k, depth + 1) + ":" + self.name(x, depth + 1) for k, x in v.items())) + "}"
        if isinstance(v, Stub):
            return "c" + v.module + ":" + v.name
        if isinstance(v, Ref):
            return "r" + self.name(v.pid, depth + 1)
        if isinstance(v, Obj):
            return "o%s(%s;%s;%s;%s;%s)" % (
                v.how, self.name(v.callable, depth + 1), self.name(v.args, depth + 1),
                self.name(v.states, depth + 1), self.name(v.pairs, depth + 1), self.name(v.list, depth + 1))
        return repr(v)

    def same(self, a, b, path):
        if self.kind(a) is not self.kind(b):
            raise Difference("%s: %s became %s" % (path, type(a).__name__, type(b).__name__))
        if self.is_mutable(a):
            if self.sharing and not self.within:
                if self.left.get(id(a), id(b)) != id(b) or self.right.get(id(b), id(a)) != id(a):
                    raise Difference("%s: sharing differs" % path)
                if id(a) in self.left:
                    return
                self.left[id(a)], self.right[id(b)] = id(b), id(a)
            elif (id(a), id(b)) in self.met:
                return
            self.met.add((id(a), id(b)))
            self.keep.append((a, b))
        self.parts(a, b, path)

    def parts(self, a, b, path):
        if isinstance(a, float):
            if struct.pack(">d", a) != struct.pack(">d", b):
                raise Difference("%s: %r became %r" % (path, a, b))
        elif isinstance(a, (list, tuple)):
            if len(a) != len(b):
                raise Difference("%s: %d elements became %d" % (path, len(a), len(b)))
            for i, (x, y) in enumerate(zip(a, b)):
                self.same(x, y, "%s[%d]" % (path, i))
        elif isinstance(a, (set, frozenset)):
            x, y = sorted(a, key=self.name), sorted(b, key=self.name)
            self.parts(x, y, path + ".set")
        elif isinstance(a, dict):
            x = {self.name(k): (k, v) for k, v in a.items()}
            y = {self.name(k): (k, v) for k, v in b.items()}
            if x.keys() != y.keys():
                raise Difference("%s: keys differ: %.200s" % (path, sorted(x.keys() ^ y.keys())))
            for k in x:
                self.same(x[k][0], y[k][0], path + ".key")
                self.same(x[k][1], y[k][1], "%s[%.40r]" % (path, k))
        elif isinstance(a, Stub):
            if (a.module, a.name) != (b.module, b.name):
                raise Difference("%s: %s became %s" % (path, a.path(), b.path()))
        elif isinstance(a, Ref):
            self.within += 1  # what the id is made of is gone once it is resolved
            self.same(a.pid, b.pid, path + ".pid")
            self.within -= 1
        elif isinstance(a, Obj):
            if a.how != b.how:
                raise Difference("%s: %s became %s" % (path, a.how, b.how))
            alone = not self.is_mutable(a)
            self.within += alone
            for part in ("callable", "args", "pairs", "list", "states"):
                x, y = getattr(a, part), getattr(b, part)
                if part in ("pairs", "list", "states"):
                    self.parts(x, y, path + "." + part)
                else:
                    self.same(x, y, path + "." + part)
            self.within -= alone
        elif a != b:
            raise Difference("%s: %.100r became %.100r" % (path, a, b))


# ---------------------------------------------------------------- really loading

# The Executor above sees through every call, but it is written here. So the real
# unpickler of ZODB loads both records as well, and makes real objects of all that
# is not of the application.


class Made(datetime.tzinfo):
    """An instance of a class that is not there. It keeps what it is given.

    Dates take nothing but a tzinfo, and any class may be that of a time zone."""

    def __new__(cls, *args, **kw):
        made = datetime.tzinfo.__new__(cls)
        made.__dict__.update(how="newobj", args=args, kw=kw, states=[], pairs=[], list=[])
        return made

    def __init__(self, *args, **kw):
        self.__dict__["how"] = "call"

    def __call__(self, *args, **kw):
        return type(self)(self, args, kw)

    def __setstate__(self, state):
        self.__dict__["states"].append(state)

    def __setitem__(self, key, value):
        self.__dict__["pairs"].append((key, value))

    def extend(self, items):
        self.__dict__["list"].extend(items)

    def append(self, item):
        self.__dict__["list"].append(item)

    def utcoffset(self, when):
        return datetime.timedelta(0)

    def seen(self):
        return self.how, self.args, self.kw, self.states, self.pairs, self.list

    def __reduce_ex__(self, protocol):
        """As an application pickles it. It has one state by then."""
        made = (type(self), self.args) if self.how == "call" else (copyreg.__newobj__, (type(self), *self.args))
        if self.kw:
            made = copyreg.__newobj_ex__, (type(self), self.args, self.kw)
        if self.how == "reconstructed":
            made = copyreg._reconstructor, self.args
        return *made, self.states[-1] if self.states else None, iter(self.list) if self.list else None, iter(self.pairs) if self.pairs else None


def reconstructor(cls, base, state):
    made = Made.__new__(cls if issubclass(cls, Made) else Made, cls, base, state)
    made.how = "reconstructed"
    return made


# What there is without the application. Everything else is made up.
REAL = {
    "builtins": "object type int float complex str bytes bytearray bool list dict tuple set frozenset range slice getattr Ellipsis NotImplemented "
                "Exception ValueError KeyError",
    "_codecs": "encode decode", "copyreg": "__newobj__ __newobj_ex__", "collections": "OrderedDict defaultdict deque Counter",
    "functools": "partial", "pickle": "loads", "zlib": "decompress", "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal", "uuid": "UUID SafeUUID", "fractions": "Fraction", "zoneinfo": "ZoneInfo", "_operator": "getitem", "_struct": "unpack",
    "types": "NoneType SimpleNamespace", "app": "Extended",
}


@functools.cache
def real_class(module, name):
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    if (module, name) == ("copyreg", "_reconstructor"):
        return reconstructor
    if name in REAL.get(module, "").split():
        return getattr(importlib.import_module(module), name)
    return type(name, (Made,), {"__module__": module})


class RealRef(Ref):
    """A persistent object, which may be called. ZODB makes bytes again of an oid that came as text."""

    def __init__(self, pid):
        oid = lambda v: OldStr(v) if isinstance(v, str) and v.isascii() and len(v) == 8 else v
        super().__init__((oid(pid[0]),) + pid[1:] if isinstance(pid, tuple) and pid else oid(pid))

    def __call__(self, *args, **kw):
        return Made(self, args, kw)


class Newer(pickle.Unpickler):
    """For the protocols above 3, which ZODB's unpickler does not know."""

    find_class = staticmethod(real_class)
    persistent_load = staticmethod(RealRef)


def really_load(record):
    """What the unpickler of ZODB makes of a record."""
    import ZODB._compat

    loader = ZODB._compat.Unpickler(io.BytesIO(record))
    loader.find_global, loader.persistent_load = real_class, RealRef
    try:
        loader.load()
        return loader.load()
    except (ValueError, OverflowError) as e:
        # The latter is what it makes of opcodes that it does not know.
        if isinstance(e, ValueError) and "unsupported pickle protocol" not in str(e):
            raise
    loader = Newer(io.BytesIO(record))
    loader.load()
    return loader.load()


PLAIN = (dict, list, tuple, set, frozenset, bytes, bytearray, str, int, float, bool, type(None))
UNCHANGING = PLAIN[2:3] + PLAIN[4:6] + PLAIN[7:] + (
    complex, range, slice, type, type(Ellipsis), type(NotImplemented), types.FunctionType, types.BuiltinFunctionType, types.MethodType, datetime.date,
    datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal, uuid.UUID, uuid.SafeUUID, zoneinfo.ZoneInfo, fractions.Fraction, Ref)


class RealWalk(Walk):
    """Compares real objects."""

    def is_mutable(self, v):
        if isinstance(v, Made):
            return not type(v).__module__.startswith(tuple(m.rstrip(".") for m in IMMUTABLE))
        return not isinstance(v, UNCHANGING)

    def kind(self, v):
        return type(v)

    def name(self, v, depth=0):
        if depth > 50 or type(v) in PLAIN or isinstance(v, Ref):
            return super().name(v, depth)
        if isinstance(v, type):
            return "c" + v.__module__ + ":" + v.__name__
        if isinstance(v, Made):
            return "o" + self.name(type(v)) + self.name(v.seen(), depth + 1)
        if isinstance(v, UNCHANGING):
            return repr(v)
        return "o" + self.name(self.reduced(v), depth + 1)

    def reduced(self, v):
        """What the object is made of by its own account."""
        parts = v.__reduce_ex__(4)
        return parts if isinstance(parts, str) else tuple(list(p) if i > 2 and p is not None else p for i, p in enumerate(parts))

    def parts(self, a, b, path):
        if type(a) in PLAIN or isinstance(a, Ref):
            super().parts(a, b, path)
        elif isinstance(a, (type, types.FunctionType, types.BuiltinFunctionType)):
            if a != b:
                raise Difference("%s: %r became %r" % (path, a, b))
        elif isinstance(a, types.MethodType):
            self.parts([a.__self__, a.__func__], [b.__self__, b.__func__], path)
        else:
            # What these are made of is made anew each time.
            made = isinstance(a, Made)
            x, y = (a.seen(), b.seen()) if made else (self.reduced(a), self.reduced(b))
            self.keep.append((x, y))
            if isinstance(x, str) or len(x) != len(y):
                if x != y:
                    raise Difference("%s: %r became %r" % (path, a, b))
                return
            alone = not self.is_mutable(a)
            self.within += alone
            for i, (p, q) in enumerate(zip(x, y)):
                (self.parts if type(p) is type(q) is list else self.same)(p, q, "%s.%d" % (path, i))
            self.within -= alone


def really_compare(source, record, shared):
    """Compare what the real unpickler makes of two records."""
    try:
        a = really_load(source)
    except Exception as e:
        try:
            really_load(record)
        except Exception:
            return "neither loads"
        return "only the new one loads: " + type(e).__name__
    RealWalk(not shared).same(a, really_load(record), "")
    return "same"


def check_real(line, real):
    """Whatever a pickler of Python 3 writes can be loaded, but for what only looks like Python 2."""
    if "protocol" in line and real not in ("same", "only the new one loads: UnicodeDecodeError"):
        raise Difference("really loaded: " + real)


# ---------------------------------------------------------------- checking


def as_jsonb(text):
    """What psycopg gives for a state: numbers without digits behind the point are int."""

    def number(s):
        d = decimal.Decimal(s)
        if d.as_tuple().exponent >= 0:
            return int(d)
        return 0.0 if d == 0 else float(s)

    return json.loads(text, parse_float=number)


def expected_reject(line):
    if line.get("may_reject"):
        return "reject"
    raise Difference("rejected: " + line["reject"])


def check_line(line, encode, unsanitize, old):
    if "reject" in line:
        return expected_reject(line)
    if old and line["new_codec"]:
        return "new"
    text = line["state"]
    if "\\u0000" in text.replace("\\\\", ""):
        raise Difference("a NUL in the state")
    state = unsanitize(as_jsonb(text))
    record = encode({"@cls": [line["class_mod"], line["class_name"]], "@s": state})
    return compare(bytes.fromhex(line["record_hex"]), record, "shared-copied" in line["forms"])


def compare(source, record, shared):
    """Compare two records; where parts of the source are shared they may be copies."""
    try:
        a = execute(source)
    except (TypeError, ValueError) as e:
        # Nobody can load it, and so it has to be with what was made of it.
        try:
            execute(record)
        except type(e):
            return "unloadable"
        raise
    b = execute(record)
    if class_names(a[0]) != class_names(b[0]):
        raise Difference("class %s became %s" % (class_names(a[0]), class_names(b[0])))
    Walk(not shared).same(a[1], b[1], "")
    return "shared" if shared else "same"


def check(old):
    import zodb_json_codec
    from zodb_pgjsonb.serialization import _unsanitize_from_pg

    counts, bad = collections.Counter(), 0
    forms = collections.Counter()
    for text in sys.stdin:
        line = json.loads(text)
        forms.update(line.get("forms", {}))
        try:
            counts[check_line(line, zodb_json_codec.encode_zodb_record, _unsanitize_from_pg, old)] += 1
        except Exception as e:
            bad += 1
            if bad <= 10:
                print("%s: %s: %s\n  %.600s\n  %.300s" % (
                    line.get("id", "?"), type(e).__name__, e, line.get("state", ""), line["record_hex"]))
    print("codec: %d records, %d wrong; %s" % (sum(counts.values()) + bad, bad, dict(counts)))
    print("forms: %s" % dict(sorted(forms.items())))
    return 1 if bad or not counts["same"] else 0


# ---------------------------------------------------------------- generating


def module(name, **classes):
    m = sys.modules.get(name) or types.ModuleType(name)
    sys.modules[name] = m
    for key, cls in classes.items():
        cls.__module__ = name
        cls.__qualname__ = cls.__name__ = key
        setattr(m, key, cls)
    return m


class Plain:
    pass


class Slots:
    __slots__ = ("a", "b")


class Args:
    def __new__(cls, *args):
        return object.__new__(cls)

    def __getnewargs__(self):
        return self.args


class ArgsEx(Args):
    def __getnewargs_ex__(self):
        return self.args, {"kw": 7}


class DictSub(dict):
    pass


class ListSub(list):
    pass


class SetSub(set):
    pass


class StrSub(str):
    pass


class IntSub(int):
    pass


class FloatSub(float):
    pass


class TupleSub(tuple):
    pass


class Extended:
    pass


class Setter:
    """Its state is set by a call that is made for that alone."""

    def __reduce__(self):
        return (Plain, (), self.state, None, None, put_state)


def put_state(obj, state):
    raise NotImplementedError


class AnyState:
    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        pass


class ByCall:
    def __reduce__(self):
        return self.reduced


class Zone(datetime.tzinfo):
    def __reduce__(self):
        return (sys.modules["pytz"]._p, self.args)

    def utcoffset(self, when):
        return datetime.timedelta(0)


class UTC(datetime.tzinfo):
    def __reduce__(self):
        return (sys.modules["pytz"]._UTC, ())

    def utcoffset(self, when):
        return datetime.timedelta(0)


class Persistent:
    """Something with an oid; its pid is made by the pickler."""

    def __init__(self, pid):
        self.pid = pid


def _p(*args):
    raise NotImplementedError


def _UTC(*args):
    raise NotImplementedError


module("app", Plain=Plain, Slots=Slots, Args=Args, ArgsEx=ArgsEx, DictSub=DictSub, ListSub=ListSub, SetSub=SetSub,
       Extended=Extended, put_state=put_state, StrSub=StrSub, IntSub=IntSub, FloatSub=FloatSub, TupleSub=TupleSub, AnyState=AnyState, ByCall=ByCall)
module("pytz", _p=_p, _UTC=_UTC)
copyreg.add_extension("app", "Extended", 0x1234)
POINT = collections.namedtuple("Point", "x y")
module("app", Point=POINT)
CLASSES = [Plain, DictSub, decimal.Decimal, POINT]

MARKERS = ("@t @b @bi @d @set @fset @ref @pkl @dt @date @time @td @dec @uuid @cls @reduce @inst @ns @kv @ks @children "
           "@first @next @s @args @state @items @appends @newobj @tz @unknown @ns:YQ== @ns: callable").split()
TEXTS = ["", "a", "title", "Über uns", "日本語", "\U0001f600", "a\x00b", "\x00", 'quo"te', "back\\slash", "\n\r\t\x01\x1f\x7f\u2028",
         "\\u0000", "@ns:YQ==", "\ud800", "x\udfffy", "YQ==", "0000000000000005", "m.C", "2020-01-02T03:04:05", "nan", "1.5", "é" * 40]
FLOATS = [0.0, -0.0, 1.0, -1.5, 0.1, 1e15, 1e16, -1e16, 9007199254740993.0, 1e22, 1.7976931348623157e308, 5e-324, 1e-5, 1e-6,
          9.999e-6, 1e-300, 123456.789, 2.0**63, float("inf"), float("-inf"), float("nan"), -float("nan"),
          struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0]]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.pool = []
        self.room = 0
        self.may_reject = None
        self.only_old = []

    def int(self):
        r = self.r
        return r.choice([r.randrange(-2, 300), r.randrange(-2**31, 2**31), r.randrange(-2**63, 2**63), r.getrandbits(r.randrange(1, 300)),
                         -r.getrandbits(90), 255, 256, 65535, 65536, 2**31 - 1, 2**31, -2**31 - 1, 2**63 - 1, 2**63, -2**63, -2**63 - 1])

    def text(self):
        r = self.r
        return r.choice(TEXTS) if r.random() < 0.5 else "".join(r.choice("abc xyz-_.@0é\"\\") for _ in range(r.randrange(20)))

    def atom(self):
        r = self.r
        return r.choice([
            lambda: None, lambda: r.random() < 0.5, self.int, self.text, self.text,
            lambda: r.choice(FLOATS) if r.random() < 0.5 else r.uniform(-1e6, 1e6),
            lambda: struct.unpack("<d", r.randbytes(8))[0],
            lambda: r.randbytes(r.choice([0, 1, 3, 4, 8, 10, 300])),
            lambda: r.choice(CLASSES), self.when, self.known, self.old,
        ])()

    def old(self):
        r = self.r
        return Old(r.choice([b"", b"abc", b"a\0b", b"@t", b"x" * 200] + self.only_old))

    def zone(self):
        r = self.r
        if r.random() < 0.4:
            return None
        zone = r.choice([
            lambda: datetime.timezone.utc,
            lambda: datetime.timezone(datetime.timedelta(minutes=r.randrange(-1439, 1440))),
            lambda: datetime.timezone(datetime.timedelta(seconds=r.randrange(-86399, 86400), microseconds=r.choice([0, 0, 5]))),
            lambda: datetime.timezone(datetime.timedelta(hours=1), "CET"),
            lambda: zoneinfo.ZoneInfo("Europe/Vienna"),
            lambda: zoneinfo.ZoneInfo.no_cache("UTC"),
            UTC, Zone,
        ])()
        if isinstance(zone, Zone):
            zone.args = r.choice([("Europe/Vienna", 3600, 0, "CET"), ("UTC",), ("X", None), ("A\0B", 1), ("x", 1.5), (1, "x")])
        return zone

    def when(self):
        r = self.r
        us = r.choice([0, 0, 5, 999999, 120000])
        return r.choice([
            lambda: datetime.datetime(r.randrange(1, 10000), r.randrange(1, 13), r.randrange(1, 29), r.randrange(24), r.randrange(60),
                                      r.randrange(60), us, self.zone(), fold=r.choice([0, 0, 0, 1])),
            lambda: datetime.date(r.randrange(1, 10000), r.randrange(1, 13), r.randrange(1, 29)),
            lambda: datetime.time(r.randrange(24), r.randrange(60), r.randrange(60), us, self.zone(), fold=r.choice([0, 0, 0, 1])),
            lambda: datetime.timedelta(r.randrange(-9999, 9999), r.randrange(86400), us),
        ])()

    def known(self):
        import zodbpickle

        r = self.r
        return r.choice([
            lambda: decimal.Decimal(r.choice(["1.5", "NaN", "-Infinity", "1E+400", "0"])),
            lambda: uuid.UUID(int=r.choice([0, 1, 2**63, 2**128 - 1, r.getrandbits(128)]), is_safe=r.choice(list(uuid.SafeUUID))),
            lambda: complex(r.choice(FLOATS[:6]), 1.0), lambda: range(3), lambda: slice(1, None), lambda: Ellipsis,
            lambda: bytearray(r.randbytes(5)), lambda: datetime.timezone.utc, lambda: fractions.Fraction(r.randrange(-9, 9), 7),
            lambda: ipaddress.ip_address(r.getrandbits(32)), lambda: r.choice(list(uuid.SafeUUID)), lambda: NotImplemented, lambda: type(None),
            lambda: ValueError(self.text(), 1), lambda: types.SimpleNamespace(a=self.int()), lambda: zodbpickle.binary(r.randbytes(4)),
            lambda: collections.Counter("abca"), lambda: OSError(2, self.text()), lambda: zoneinfo.ZoneInfo("Europe/Vienna"),
        ])()

    def key(self):
        r = self.r
        return r.choice([self.text, self.text, self.int, lambda: r.choice(MARKERS), lambda: (1, "a"), lambda: None,
                         lambda: r.randbytes(4), lambda: r.choice(FLOATS), lambda: frozenset([1]), lambda: True, self.old])()

    def dict(self, depth):
        r = self.r
        n = r.choice([0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 12])
        style = r.random()
        if style < 0.5:
            keys = ["".join(r.choice("abcdefg_é") for _ in range(r.randrange(1, 9))) for _ in range(n)]
        elif style < 0.8:
            keys = [r.choice(MARKERS) if r.random() < 0.5 else self.text() for _ in range(n)]
        else:
            keys = [self.key() for _ in range(n)]
        return {k: self.value(depth - 1) if r.random() < 0.8 else self.marker_value(depth - 1) for k in keys}

    def marker_value(self, depth):
        """What might stand beside a marker."""
        r = self.r
        return r.choice([lambda: ["a", "B"], lambda: "YQ==", lambda: [1, 2, 3], lambda: [[1, 2]], lambda: "2020-01-02T03:04:05",
                         lambda: {"callable": ["a"], "args": (1,)}, lambda: {"@obj": 1, "@state": 2}, lambda: (self.value(depth),),
                         lambda: "0000000000000005", lambda: ["0000000000000005", "m.C"], lambda: {"zoneinfo": "UTC"}, lambda: False])()

    def reference(self):
        r = self.r
        oid = struct.pack(">q", r.choice([1, 5, 255, 2**40, 2**62, 0x3031323334353637]))
        return Persistent(r.choice([
            (oid, r.choice(CLASSES[:2])), (oid, r.choice(CLASSES[:2])), oid, ["w", (oid,)], ["w", (oid, "main")], ["n", ("db", oid)],
            ["m", ("db", oid, Plain)], [oid], (oid, None), (b"\0\5", Plain), (oid, ("app", "Plain")), ["a", "b"], ["0000000000000005", None],
            ["0000000000000005", "x.y"]]))

    def object(self, depth):
        r, v = self.r, lambda: self.value(depth - 1)
        how = r.randrange(18) if r.random() < 0.2 else r.randrange(16)
        if how < 4:
            o = Plain()
            state = self.dict(depth)
            o.__dict__.update({k: x for k, x in state.items() if type(k) is str})
        elif how == 4:
            o = Slots()
            o.a = v()
        elif how in (5, 6):
            o = (Args if how == 5 else ArgsEx)()
            o.args = (v(), 1)[: r.randrange(3)]
            if r.random() < 0.5:
                o.x = v()
        elif how in (7, 8):
            o = r.choice([DictSub, collections.OrderedDict])(self.dict(depth))
            if r.random() < 0.5:
                o.x = v()
        elif how == 9:
            o = r.choice([ListSub, collections.deque, functools.partial(SetSub)])([self.int(), 2])
            if r.random() < 0.5 and not isinstance(o, collections.deque):
                o.x = v()
        elif how == 10:
            o = r.choice([StrSub(self.text()), IntSub(5), FloatSub(r.choice(FLOATS)), TupleSub((v(), 2)), POINT(v(), 1)])
            if r.random() < 0.5 and not isinstance(o, POINT):
                o.x = v()
        elif how == 11:
            o = collections.defaultdict(list, {"a": v()})
        elif how == 12:
            o = r.choice([lambda: functools.partial(int, v(), base=8), lambda: collections.deque([v()], r.choice([None, 3])), lambda: self.library(v),
                          lambda: self.library(v)])()
        elif how in (13, 14):
            o = AnyState()
            o.state = r.choice([v, lambda: {"@args": (1,), "@state": v()}, lambda: {"@args": {"@args": (1,), "@kwargs": {}}, "@state": 1},
                                lambda: {"@t": [1]}, lambda: ({"a": v()}, None), lambda: True])()
        elif how == 16:
            o = Extended()
            o.x = v()
        elif how == 17:
            o = Setter()
            o.state = {"x": v()}
        else:
            o = ByCall()
            o.reduced = r.choice([
                lambda: (Plain, ()), lambda: (Plain, (v(),)), lambda: (Plain, (), v()), lambda: (Plain, (1,), v()),
                lambda: (Plain, (), v(), iter([v(), 1])), lambda: (Plain, (), None, None, iter([(self.text(), v())])),
                lambda: (functools.partial(Plain), (v(),)), lambda: (Plain, (self.reference(),)),
            ])()
        return o

    def value(self, depth):
        r = self.r
        self.room -= 1
        if depth <= 0 or self.room <= 0 or r.random() < 0.35:
            return self.atom()
        if self.pool and r.random() < 0.02:
            return r.choice(self.pool)
        v = lambda: self.value(depth - 1)
        size = r.choice([0, 1, 2, 3, 5])
        made = r.choice([
            lambda: [v() for _ in range(size)], lambda: tuple(v() for _ in range(size)), lambda: self.dict(depth), lambda: self.dict(depth),
            lambda: {self.key() for _ in range(size)}, lambda: frozenset(self.key() for _ in range(size)),
            self.reference, lambda: self.object(depth), lambda: self.object(depth),
        ])()
        if r.random() < 0.006:
            made = self.rare(made)
        self.pool.append(made)
        return made

    def rare(self, value):
        """Something that has no form but a pickle."""
        r = self.r
        style = r.randrange(8)
        if style < 5:
            return self.tie(value)
        for _ in range(25 if style == 5 else r.randrange(500, 900)):
            value = [value, value] if style == 5 else r.choice([lambda: [value], lambda: (value,), lambda: {"k": value}])()
        return value

    def tie(self, value):
        """A value that contains itself."""
        r = self.r
        if isinstance(value, list):
            value.append(r.choice([lambda: value, lambda: (value, 1), lambda: {"up": value}])())
        elif isinstance(value, dict):
            value["self"] = r.choice([lambda: value, lambda: [value], lambda: (1, 2, 3, value)])()
        elif isinstance(value, tuple):
            knot = []
            value = r.choice([lambda: (knot,), lambda: (*value, knot, 1, 2)])()
            knot.append(value)
        elif isinstance(value, Plain):
            child = Plain()
            child.parent, value.children = value, [child, child]
        else:
            holder = Plain()
            holder.me, holder.value = holder, value
            return holder
        return value

    def library(self, v):
        """An object of ZODB's own classes that is no object of its own in the database."""
        from BTrees import IFBTree, IOBTree, Length, LOBTree, OOBTree
        from persistent.list import PersistentList
        from persistent.mapping import PersistentMapping

        r = self.r
        n = r.choice([0, 1, 3, 100])
        return r.choice([
            lambda: OOBTree.OOBTree({"k%d" % i: i for i in range(n)}), lambda: IOBTree.IOBTree({i: v() for i in range(n % 5)}),
            lambda: LOBTree.LOBucket({self.r.randrange(2**40): v()}), lambda: OOBTree.OOTreeSet("abc"[:n]), lambda: IOBTree.IOSet(range(n)),
            lambda: IFBTree.IFBTree({i: r.choice(FLOATS) for i in range(n % 4)}), lambda: Length.Length(n),
            lambda: PersistentMapping(self.dict(1)), lambda: PersistentList([v(), n]), lambda: IFBTree.IFBucket({1: float("nan")}),
        ])()

    def btree(self, depth):
        """Module, name and state of a node of a BTree."""
        r = self.r
        family = r.choice(["OO", "IO", "OI", "II", "LO", "OL", "LL", "LF", "IF", "UU", "QQ", "fs"])
        is_set, tree = r.random() < 0.4, r.random() < 0.5
        name = family + {(True, True): "TreeSet", (True, False): "Set", (False, True): "BTree", (False, False): "Bucket"}[is_set, tree]
        n = r.randrange(4)
        v = lambda: self.value(depth - 1)
        items = tuple(x for _ in range(n) for x in ([self.int()] if is_set else [self.key(), v()]))
        if r.random() < 0.05:
            items += (1,)
        next = self.reference()
        if tree:
            state = r.choice([(((items,),),), (((items,),),), ((self.reference(), 5, self.reference()), next), ((v(), 5), next), None])
        else:
            state = r.choice([(items,), (items, next), (items, None)])
        if r.random() < 0.1:
            state = r.choice([self.dict(depth), {"@kv": [1]}, {"@ks": v()}, {"@children": [], "@first": None}, (1, 2, 3), [1], (([],),)])
        return "BTrees.%sBTree" % family, name, state

    def record(self):
        r = self.r
        self.pool, self.room, self.may_reject = [], r.choice([5, 20, 60, 200]), None
        # What Python 3 does not load at all is not in every record, so that the others are really loaded.
        self.only_old = [b"\xff\0", "é".encode()] if r.random() < 0.1 else []
        if r.random() < 0.15:
            module, name, state = self.btree(4)
        else:
            module, name = r.choice([("app", "Plain"), ("persistent.mapping", "PersistentMapping"), ("a.b", "C.D"), ("mödül", "X")])
            state = self.dict(6) if r.random() < 0.8 else self.value(6)
        protocol = r.choice([0, 1, 2, 3, 3, 3, 3, 4, 5])
        if r.random() < 0.05:
            cls = (Old(module.encode()), Old(name.encode())) if module.isascii() else Class(module, name)
            return self.pickles(protocol, lambda c: (cls, None), module, name, state)
        if r.random() < 0.005:
            self.may_reject = "constructor arguments"
            return self.pickles(protocol, r.choice([lambda c: (c, (1,)), lambda c: ((module, name), ("a", None))]), module, name, state)
        shape = r.choice([lambda c: c, lambda c: (c, None), lambda c: (c, ()), lambda c: ((module, name), None)])
        return self.pickles(protocol, shape, module, name, state)

    def pickles(self, protocol, shape, module, name, state):
        cls = Class(module, name)
        kind = pickle._Pickler
        if protocol == 3 and self.r.random() < 0.5:
            import zodbpickle.pickle_3

            kind = zodbpickle.pickle_3._Pickler
        out = io.BytesIO()

        class Pickler(kind):
            def persistent_id(self, obj):
                return obj.pid if isinstance(obj, Persistent) else None

            dispatch = dict(kind.dispatch)

        def save_class(pickler, obj):
            pickler.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")
            pickler.memoize(obj)

        def save_old(pickler, obj):
            if id(obj) in pickler.memo:
                pickler.write(pickler.get(pickler.memo[id(obj)][0]))
                return
            if protocol == 0:
                pickler.write(b"S" + repr(bytes(obj))[1:].encode() + b"\n")
            else:
                pickler.write(b"U" + bytes([len(obj)]) + obj)
            pickler.memoize(obj)

        Pickler.dispatch[Class] = save_class
        Pickler.dispatch[Old] = save_old
        pickler = Pickler(out, protocol)
        pickler.dump(shape(cls))
        pickler.dump(state)
        return out.getvalue(), protocol


class Old(bytes):
    """Pickled as a str of Python 2."""


class Class:
    def __init__(self, module, name):
        self.module, self.name = module, name


def generate(count, seed):
    import zodbpickle.pickle_3

    refused = (pickle.PicklingError, zodbpickle.pickle_3.PicklingError, TypeError, UnicodeEncodeError, AttributeError, RecursionError, ValueError)
    maker = Maker(seed)
    made = 0
    while made < count:
        try:
            record, protocol = maker.record()
        except refused:
            continue  # what this pickler or protocol cannot write
        line = {"id": "%d/%d" % (seed, made), "record_hex": record.hex(), "protocol": protocol}
        if maker.may_reject:
            line["may_reject"] = maker.may_reject
        print(json.dumps(line))
        made += 1


def vectors(path):
    with open(path) as lines:
        for text in lines:
            v = json.loads(text)
            if v["dir"] == "fwd":
                line = {"id": v["id"], "record_hex": v["record_hex"]}
                if v["roundtrip"] != "ok" or any(ref < 0 for ref in v["refs"]):
                    line["may_reject"] = v.get("note") or "it is an error"
                print(json.dumps(line))


# ---------------------------------------------------------------- examples

def pickled(text, protocol=3):
    """The example is what the text evaluates to, as the attribute x of an object."""
    return text, Maker(0).pickles(protocol, lambda c: c, "app", "Item", {"x": eval(text, EXAMPLE_NAMES)})[0]


def written(text, state, cls=b"capp\nItem\n."):
    """The example is what no pickler of Python 3 writes."""
    return text, cls + state


EXAMPLE_NAMES = {"datetime": datetime, "uuid": uuid, "bytearray": bytearray}


def nested(depth):
    value = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def doubled(levels):
    value = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def parent_and_child():
    parent, child = Plain(), Plain()
    parent.child, child.parent = child, parent
    return parent


def oid(number):
    return number.to_bytes(8, "big")


def stated(state):
    o = AnyState()
    o.state = state
    return o


def extended():
    o = Extended()
    o.x = 1
    return o


def by_setter():
    o = Setter()
    o.state = {"x": 1}
    return o


def called_with(ref):
    o = ByCall()
    o.reduced = (functools.partial(Plain, ref), ())
    return o


EXAMPLE_NAMES.update(nested=nested, doubled=doubled, parent_and_child=parent_and_child, stated=stated, extended=extended, by_setter=by_setter)


def example_table():
    """Kind and example: the text for people, and the record."""
    zone = Zone()
    zone.args = ("A\0B", 3600, 0, "X")
    shared = [1]
    return [
        ("float-special", pickled("float('nan')")),
        ("float-large", pickled("1e16")),
        ("dict-pairs", pickled("{'@t': [1]}")),
        ("dict-call", ("an object whose state is {'@args': (1,), '@state': 2}", pickled("stated({'@args': (1,), '@state': 2})")[1])),
        ("python2-text", written("'title', a str of Python 2", b"}X\1\0\0\0xU\5titles.")),
        ("python2-bytes", written("'M\\xfcller', a str of Python 2", b"}X\1\0\0\0xU\6M\xfcllers.")),
        ("python2-class", ("an object, its class by names that are str of Python 2", b"(U\3appU\4ItemtN\x86.}X\1\0\0\0xK\1s.")),
        ("surrogates", pickled("'\\ud800'")),
        ("nul-text", ("a time in the pytz zone 'A\\0B'", Maker(0).pickles(3, lambda c: c, "app", "Item", {
            "x": datetime.datetime(2020, 1, 2, tzinfo=zone)})[0])),
        ("datetime-generic", ("a time whose offset is 1:02:05", Maker(0).pickles(3, lambda c: c, "app", "Item", {
            "x": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(seconds=3725)))})[0])),
        ("known-generic", pickled("uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe)")),
        ("btree-generic", ("the state of an IOBTree with a key too many", b"cBTrees.IOBTree\nIOBTree\n.((K\1X\1\0\0\0aK\2t\x85\x85\x85.")),
        ("ref-generic", ("a reference to an object of the class app.Outer.Inner", written(
            "", b"}X\1\0\0\0xC\x08\0\0\0\0\0\0\0\5X\3\0\0\0appX\x0b\0\0\0Outer.Inner\x93\x86Qs.")[1])),
        ("ref-in-callable", ("a call of functools.partial(Plain, another persistent object)", Maker(0).pickles(3, lambda c: c, "app", "Item", {
            "x": called_with(Persistent((oid(5), Plain)))})[0])),
        ("old-instance", written("an instance of an old-style class", b"}X\1\0\0\0x(iapp\nOld\n}X\1\0\0\0aK\1sbs.")),
        ("bytearray", pickled("bytearray(b'ab')", 5)),
        ("int-text", written("2 ** 64, by protocol 0", b"}X\1\0\0\0xI18446744073709551616\ns.")),
        ("shared-copied", ("[a, a], where a is a list", Maker(0).pickles(3, lambda c: c, "app", "Item", {"x": [shared, shared]})[0])),
        ("items-reordered", written("a subclass of list, its items pickled after its state", b"}X\1\0\0\0xcapp\nListSub\n)\x81}X\1\0\0\0aK\1sb(K\1K\2es.")),
        ("capsule-cycle", ("a parent and a child that refer to each other", pickled("parent_and_child()")[1])),
        ("capsule-state", ("an object whose state a call of a function sets", pickled("by_setter()", 5)[1])),
        ("capsule-depth", ("1,100 lists, each in the next", pickled("nested(1100)")[1])),
        ("capsule-expansion", ("a list that holds a list twice, and so on 40 times", pickled("doubled(40)")[1])),
        ("capsule-size", ("an integer of 70,000 bytes", pickled("1 << 560000")[1])),
        ("capsule-extension", ("an object whose class is in copyreg's extension registry", pickled("extended()")[1])),
    ]


def of_item(value, protocol=3):
    """The record of an object whose attribute x is the value."""
    return Maker(0).pickles(protocol, lambda c: c, "app", "Item", {"x": value})[0]


def with_state(state):
    """The record of an object whose state is written by hand."""
    return b"capp\nItem\n." + state


def marked_object():
    o = Plain()
    o.__dict__.update({"@dt": "2020-01-02T03:04:05", "@tz": 1})
    return o


def knotted_list():
    knot = []
    knot.append(knot)
    return knot


def knotted_tuple():
    knot = []
    knot.append((knot, 1, 2, 3))
    return knot[0]


def knotted_dict():
    knot = {"x": 1}
    knot.update(self=knot, y=2)
    return knot


def twice(value):
    return [value, value]


def in_zone(zone):
    return datetime.datetime(2020, 1, 2, 3, tzinfo=zone)


def pytz_zone(*args):
    zone = Zone()
    zone.args = args
    return zone


def loss_table():
    """Everything of which it is known that the released codec loses it: what it is, a record, and why it may be rejected."""
    seconds = datetime.timezone(datetime.timedelta(hours=1, seconds=20))
    arguments, no_class = "arguments", "no class"
    return [
        ("not-a-number and infinities", of_item([float("nan"), float("inf"), float("-inf")])),
        ("the same in a BTree of floats", b"cBTrees.IFBTree\nIFBucket\n.(K\1G\x7f\xf8\0\0\0\0\0\0t\x85."),
        ("floats from 1e16 on", of_item([1e16, -1.5e300])),
        ("floats from 2<sup>63</sup> on", of_item(2.0**63)),
        ("negative zero", of_item(-0.0)),
        ("the dict `{'@ns': 'YQ=='}`", of_item({"@ns": "YQ=="})),
        ("other dicts with the key of a marker", of_item([{m: v} for m, v in [
            ("@t", [1]), ("@b", "YQ=="), ("@bi", "5"), ("@d", [[1, 2]]), ("@set", [1]), ("@fset", [1]), ("@ref", "0000000000000005"), ("@pkl", "YQ=="),
            ("@dt", "2020-01-02T03:04:05"), ("@date", "2020-01-02"), ("@time", "03:04:05"), ("@td", [1, 2, 3]), ("@dec", "1.5"), ("@uuid", "0" * 32),
            ("@cls", ["a", "B"]), ("@reduce", {"callable": 1, "args": (1,)}), ("@inst", {"@obj": 1, "@state": 2})]])),
        ("dicts with several such keys", of_item([{"@cls": ["a", "B"], "@s": {}, "x": 1}, {"@dt": "2020-01-02T03:04:05", "@tz": 1},
                                                  {"@cls": ["a", "B"], "@s": 1, "@newobj": False, "@items": [[1, 2]], "@appends": [1]}])),
        ("dicts with one such key, inside a set, a dict with keys that are no text and the like", of_item({1: {"@t": [1], "x": 2}, 2: {"@time": "03:04:05", "@tz": 1}})),
        ("objects with such attributes", of_item(marked_object())),
        ("the state of a BTree that is a dict with such keys", b"cBTrees.OOBTree\nOOBTree\n.}X\3\0\0\0@kv]K\1as."),
        ("`str` of Python 2, ASCII", with_state(b"}U\1xU\5titles.")),
        ("`str` of Python 2, other", with_state(b"}U\1xU\6M\xfcllers.")),
        ("`str` of Python 2, followed by blanks", with_state(b"}S'x'  \nS'title' \ns.")),
        ("lone surrogates", of_item({"a": "x\ud800", "\udfff": 1})),
        ("NUL in the name of a time zone", of_item(in_zone(pytz_zone("A\0B", 3600, 0, "X")))),
        ("integers beyond 64 bits, as text", with_state(b"}X\1\0\0\0xI18446744073709551616\ns.")),
        ("integers of more than 10,000 digits, as text", of_item(10**10001, 0)),
        ("instances of old-style classes", with_state(b"}X\1\0\0\0x((iapp\nOld\n}X\1\0\0\0aK\1sb(capp\nOld\no(K\1iapp\nOld\nts.")),
        ("codes of the extension registry", of_item(extended())),
        ("`bytearray` of protocol 5", of_item(bytearray(b"ab"), 5)),
        ("UUIDs that are known to be safe", of_item(uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe))),
        ("the second 2:30 in the night in which summer time ends (`fold`)", of_item(datetime.datetime(2024, 10, 27, 2, 30, fold=1), 4)),
        ("time zones with seconds", of_item(in_zone(seconds))),
        ("`pytz.utc`", of_item(in_zone(UTC()))),
        ("`ZoneInfo.no_cache`", of_item(in_zone(zoneinfo.ZoneInfo.no_cache("UTC")))),
        ("zones of pytz with an argument that is neither text nor an integer", of_item(in_zone(pytz_zone("X", 1.5, 0, "Y")))),
        ("times of day with a zone of pytz or zoneinfo", of_item([datetime.time(1, tzinfo=pytz_zone("Europe/Vienna", 3600, 0, "CET")),
                                                                 datetime.time(1, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna"))])),
        ("one list, dict, set or object twice", of_item([twice([1]), twice({"a": 1}), twice({1}), twice(Plain())])),
        ("a list that contains itself", of_item(knotted_list())),
        ("a dict that contains itself", of_item(knotted_dict())),
        ("a tuple that contains itself", of_item(knotted_tuple())),
        ("objects that refer to each other", of_item(parent_and_child())),
        ("more than 100,000 parts", of_item([str(i) for i in range(100_050)])),
        ("700 levels of lists and tuples", of_item(nested_tuples(350))),
        ("more than 1,000 levels", of_item(nested(1100))),
        ("shared parts that would fill gigabytes", of_item(doubled(40)), "", "endless"),
        ("an object whose state is a dict with just `@args` and `@state`", of_item(stated({"@args": (1,), "@state": 2}))),
        ("an object whose state a call of a function sets", of_item(by_setter(), 5)),
        ("an object that gets two states", with_state(b"}X\1\0\0\0xcapp\nPlain\n)\x81}X\1\0\0\0aK\1sb}X\1\0\0\0bK\1sbs.")),
        ("a class with constructor arguments, in the record itself", b"(capp\nItem\n(K\1tt.}.", arguments),
        ("the same, by its names", b"((X\3\0\0\0appX\4\0\0\0Itemt(K\1tt.}.", arguments),
        ("a class by names that are `str` of Python 2", b"(U\3appU\4ItemtN\x86.}."),
        ("a class that is a persistent object", b"C\x08\0\0\0\0\0\0\0\5Q.}.", no_class),
        ("a class without a name", b"N.}.", no_class),
        ("a class with NUL in its name", b"X\3\0\0\0appX\5\0\0\0It\0em\x93.}.", no_class),
        ("references inside a callable", of_item(called_with(Persistent((oid(5), Plain))))),
        ("references to an object of a nested class", with_state(b"}X\1\0\0\0xC\x08\0\0\0\0\0\0\0\5X\3\0\0\0appX\x0b\0\0\0Outer.Inner\x93\x86Qs.")),
        ("references by text", with_state(b"}X\1\0\0\0xP0000000000000005\ns.")),
        ("references to an oid beyond 2<sup>63</sup>", of_item(Persistent((b"\xff" * 8, Plain))), "oid"),
    ]


def nested_tuples(depth):
    value = "bottom"
    for _ in range(depth):
        value = [(value,)]
    return value


def selftest():
    """Both comparisons see each of these differences, and none where there is none."""
    one, child = [1], Plain()
    late = lambda fold: datetime.datetime(2024, 10, 27, 2, 30, fold=fold)
    ordered = collections.OrderedDict
    mine = lambda **state: setattr_all(Plain(), state)
    pairs = [
        (float("nan"), None), (float("nan"), FLOATS[-1]), (0.0, -0.0), (1, 1.0), (1, True), (0, False), (2**64, 2**64 + 1), (1e16, 10**16), ("a", b"a"),
        (b"a", bytearray(b"a")), ("a\ud800", "a\ufffd"), ([1], (1,)), ({1}, frozenset({1})), ({1: 2}, {1: 3}), ({1: 2}, {1.0: 2}), ({"1": 2}, {1: 2}), ({}, ordered()),
        (ordered(a=1, b=2), ordered(b=2, a=1)), ({1, 2}, {1, 3}), ({1}, {1.0}), ([one, one], [[1], [1]]), (twice({}), [{}, {}]), (knotted_list(), [[]]),
        (knotted_dict(), {"x": 1, "self": {}, "y": 2}), (knotted_tuple(), (([],), 1, 2, 3)), (late(0), late(1)), (in_zone(UTC()), in_zone(datetime.timezone.utc)),
        (in_zone(None), in_zone(datetime.timezone.utc)), (decimal.Decimal("1.5"), decimal.Decimal("1.50")), (mine(a=1), mine(a=2)), (mine(a=1), DictSub()),
        (mine(a=child, b=child), mine(a=Plain(), b=Plain())), (DictSub(a=1), DictSub()), (ListSub([1, 2]), ListSub([2, 1])), (ListSub([1]), [1]),
        (uuid.UUID(int=5), uuid.UUID(int=6)), (uuid.UUID(int=5), uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe)), (Plain, DictSub), (StrSub("a"), "a"),
        (collections.deque([1]), collections.deque([1], 3)), (functools.partial(int, base=8), functools.partial(int, base=9)),
        (Persistent((oid(5), Plain)), Persistent((oid(6), Plain))), (Persistent((oid(5), Plain)), Persistent((oid(5), DictSub))), (Persistent(oid(5)), oid(5)),
        (Persistent(["w", (oid(5),)]), Persistent(["n", ("db", oid(5))])), (datetime.timedelta(1), datetime.timedelta(2)), (complex(1, 0.0), complex(1, -0.0)),
    ]
    for a, b in pairs:
        protocol = 4 if isinstance(a, datetime.datetime) and a.fold != b.fold else 3
        a, b = of_item(a, protocol), of_item(b, protocol)
        for judge in (lambda x, y: compare(x, y, False), lambda x, y: really_compare(x, y, False)):
            for x in (a, b):
                assert judge(x, x) == "same", x
            for x, y in ((a, b), (b, a)):
                try:
                    judge(x, y)
                except Difference:
                    continue
                raise AssertionError("no difference between %r and %r" % (x, y))
    print("%d differences are seen" % len(pairs))


def setattr_all(o, state):
    o.__dict__.update(state)
    return o


def losses():
    for i, (text, record, *more) in enumerate(loss_table()):
        line = {"id": "loss-%d" % i, "loss": text, "record_hex": record.hex()}
        if more and more[0]:
            line["may_reject"] = more[0]
        if more[1:]:
            line["endless"] = True
        print(json.dumps(line))


def examples():
    for kind, (text, record) in example_table():
        print(json.dumps({"id": "example-" + kind, "form": kind, "python": text, "record_hex": record.hex()}))


# ---------------------------------------------------------------- in PostgreSQL

def database(path):
    """Put the records of the lines into a FileStorage."""
    import transaction
    from persistent.mapping import PersistentMapping
    from ZODB.Connection import TransactionMetaData
    from ZODB.FileStorage import FileStorage
    from ZODB.serialize import ObjectWriter
    from ZODB.utils import p64, z64

    storage = FileStorage(path)

    def commit(records):
        meta = TransactionMetaData("tester", "records")
        storage.tpc_begin(meta)
        for oid, data in records:
            storage.store(p64(oid), z64, data, "", meta)
        storage.tpc_vote(meta)
        storage.tpc_finish(meta)

    commit([(0, ObjectWriter().serialize(PersistentMapping()))])
    waiting, oid = [], 0
    for text in sys.stdin:
        line = json.loads(text)
        oid += 1
        line["oid"] = oid
        waiting.append((oid, bytes.fromhex(line["record_hex"])))
        print(json.dumps(line))
        if len(waiting) == 500:
            commit(waiting)
            waiting = []
    if waiting:
        commit(waiting)
    transaction.abort()
    storage.close()


def rejects(args):
    """What the tool has listed as rejected, by oid."""
    if "--rejects" not in args:
        return {}
    with open(args[args.index("--rejects") + 1]) as lines:
        return {int(r["oid"], 16): r["reason"] for r in map(json.loads, lines)}


def stored(dsn, strict, rejected):
    """Compare what the real storage loads with the records of the lines."""
    import psycopg
    from ZODB.POSException import POSKeyError
    from ZODB.utils import p64
    from zodb_pgjsonb.storage import PGJsonbStorage

    storage = PGJsonbStorage(dsn, cache_warm_pct=0)
    instance = storage.new_instance()
    instance.poll_invalidations()
    rows = psycopg.connect(dsn, autocommit=True)
    bad, real = 0, collections.Counter()
    for text in sys.stdin:
        line = json.loads(text)
        source = bytes.fromhex(line["record_hex"])
        if line["oid"] in rejected:
            line["reject"] = rejected[line["oid"]]
        try:
            row = rows.execute("SELECT class_mod, class_name, state::text, refs FROM object_state WHERE zoid = %s", (line["oid"],)).fetchone()
            if row:
                line["class_mod"], line["class_name"], line["state"], line["refs"] = row
            if "loss" in line:
                line["codec"] = by_codec(line, rows)
            try:
                record = usually_deep(lambda: instance.load(p64(line["oid"]))[0])
            except POSKeyError:
                record = None
            if (record is None) != ("reject" in line):
                raise Difference("it is there although it was rejected" if record else "it is missing")
            line["verdict"] = expected_reject(line) if record is None else sharing_compared(source, record, strict)
            if record is not None and "form" in line:
                again = {"record_hex": saved_again(record).hex()} if line["form"] != "capsule-expansion" else {"endless": True}
                line["next"] = by_codec(again, rows)
            if record is not None:
                line["real"] = really_compare(source, record, line["verdict"] == "shared")
                check_real(line, line["real"])
                real[line["real"]] += 1
                compare_refs(source, set(line["refs"]))
        except Exception as e:
            bad += 1
            line["verdict"], line["difference"] = "wrong", "%s: %s" % (type(e).__name__, e)
        print(json.dumps(line))
    rows.close()
    instance.release()
    storage.close()
    print("the real unpickler: %s; %d wrong" % (dict(real), bad), file=sys.stderr)
    return 1 if bad or not real["same"] else 0


def by_codec(line, rows):
    """What the released codec makes of a record, with the same PostgreSQL between its two halves."""
    import psycopg
    import zodb_json_codec
    from zodb_pgjsonb.serialization import _unsanitize_from_pg

    if line.get("endless"):
        return "takes all memory"
    source = bytes.fromhex(line["record_hex"])
    try:
        module, name, text, refs = zodb_json_codec.decode_zodb_record_for_pg_json(source)
        state, *_ = rows.execute("SELECT %s::jsonb, %s::text, %s::text", (text, module, name)).fetchone()
    except (ValueError, psycopg.Error):
        return "refuses it"
    try:
        record = usually_deep(lambda: zodb_json_codec.encode_zodb_record({"@cls": [module, name], "@s": _unsanitize_from_pg(state)}))
        if not module or not name:
            raise ValueError("no class")
    except (ValueError, TypeError, OverflowError, RecursionError):
        return "cannot load it"
    try:
        compare(source, record, False)
        compare_refs(source, set(refs))
    except Difference as e:
        return "copies it" if "sharing differs" in str(e) else "loses it in a pack" if str(e).startswith("refs ") else "alters it"
    except (ValueError, TypeError):
        return "cannot load it"
    return "refuses its object" if any(ref < 0 for ref in refs) else "keeps it"


def usually_deep(load):
    """Calls load as deep in the stack as an application may be."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        return load()
    finally:
        sys.setrecursionlimit(limit)


def saved_again(record):
    """The record that an application writes of an object that it has loaded."""
    import zodbpickle.pickle_3

    class Pickler(zodbpickle.pickle_3._Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, RealRef) else None

        def save_global(self, obj, name=None, **_):
            if obj is reconstructor:
                obj = copyreg._reconstructor
            code = copyreg._extension_registry.get((obj.__module__, obj.__qualname__))
            if code:
                self.write(pickle.EXT2 + code.to_bytes(2, "little"))
                return
            self.write(b"c" + obj.__module__.encode() + b"\n" + obj.__qualname__.encode() + b"\n")
            self.memoize(obj)

        dispatch = dict(zodbpickle.pickle_3._Pickler.dispatch)
        dispatch[type] = dispatch[types.FunctionType] = dispatch[types.BuiltinFunctionType] = save_global

    out = io.BytesIO()
    module, name = class_names(execute(record)[0])
    pickler = Pickler(out, 3)
    pickler.write(b"\x80\x03c" + module.encode() + b"\n" + name.encode() + b"\n.")
    pickler.dump(really_load(record))
    return out.getvalue()


def compare_refs(source, refs):
    """A pack removes what is not among the refs."""
    try:
        want = execute(source)[2]
    except (TypeError, ValueError):
        return
    if refs != want:
        raise Difference("refs %s are %s" % (sorted(want), sorted(refs)))


def sharing_compared(source, record, strict):
    try:
        return compare(source, record, False)
    except Difference as e:
        if strict or "sharing differs" not in str(e):
            raise
    return compare(source, record, True)


if __name__ == "__main__":
    if sys.argv[1] == "vectors":
        vectors(sys.argv[2])
    elif sys.argv[1] == "generate":
        generate(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "examples":
        examples()
    elif sys.argv[1] == "selftest":
        selftest()
    elif sys.argv[1] == "losses":
        losses()
    elif sys.argv[1] == "database":
        database(sys.argv[2])
    elif sys.argv[1] == "stored":
        sys.exit(stored(sys.argv[2], "--strict" in sys.argv, rejects(sys.argv)))
    else:
        sys.exit(check("--old" in sys.argv))
