"""Values of records, compared as graphs.

Both records are executed by the unpickler that ZODB itself uses. Classes and
functions of the standard library are the real ones, so that different ways to
make the same value (a call with other arguments, a pickle in a pickle) give the
same value. Every other class is a stand-in that remembers how its instances
were made. Nothing of an application is imported or run.

Equal means: the same types throughout (a bool is no int, an int no float);
floats by their bits, apart from the many NaNs; dicts and sets in any order,
everything else in order; references by what they refer to; objects by class,
how they were made, arguments, state and items. Whether a mutable value that
stands in two places is one object or two is not compared; a value that contains
itself is not equal to one that does not.
"""

import copyreg
import importlib
import io
import struct
import types

from ZODB._compat import PersistentUnpickler

# Modules whose classes and functions are real. What some of their functions
# could do is no concern of a comparison, and must not happen.
_REAL = {
    "builtins", "copyreg", "copy", "collections", "datetime", "decimal", "fractions", "uuid", "functools", "operator", "_codecs", "zlib",
    "pickle", "_pickle", "zodbpickle", "zoneinfo", "pytz", "array", "_operator", "_collections", "_decimal",
}
_FORBIDDEN = {("builtins", name) for name in (
    "eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "exit", "quit", "help", "print", "setattr", "delattr",
    "globals", "locals", "vars", "memoryview",
)} | {("pickle", "load"), ("pickle", "dump"), ("pickle", "Unpickler"), ("pickle", "Pickler")}
_PYTHON2 = {
    "__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg", "UserDict": "collections",
}
_PYTHON2_NAMES = {
    ("builtins", "unicode"): ("builtins", "str"), ("builtins", "long"): ("builtins", "int"), ("builtins", "xrange"): ("builtins", "range"),
}
MISSING = object()


class _Meta(type):
    def __call__(cls, *args, **kwargs):
        return _made(cls, "called", args, kwargs)

    def __repr__(cls):
        return ".".join(cls.origin)


def _made(cls, how, args, kwargs):
    obj = object.__new__(cls)
    obj.how, obj.args, obj.kwargs = how, args, kwargs
    obj.states, obj.listed, obj.keyed, obj.content = [], [], [], None
    return obj


class StandIn(metaclass=_Meta):
    """An instance of a class that was not imported."""

    __slots__ = ("how", "args", "kwargs", "states", "listed", "keyed", "content")
    origin = ("", "")

    def __new__(cls, *args, **kwargs):
        return _made(cls, "new", args, kwargs)

    def __setstate__(self, state):
        self.states.append(state)

    def append(self, item):
        self.listed.append(item)

    def extend(self, items):
        self.listed.extend(items)

    def __setitem__(self, key, value):
        self.keyed.append((key, value))

    def __repr__(self):
        return f"<{type(self)!r}>"

    def contents(self):
        """What an instance holds besides its state, and its other arguments, however it came to it.

        Protocols 0 and 1 give the content of a subclass of a builtin type as
        an argument, protocol 2 as items (dict, list) or as an argument.
        """
        if self.content is not None:
            return self.content, self.args
        if self.how == "reconstructed":
            return self.args[1], ()
        if self.keyed:
            return dict(self.keyed), self.args
        if self.listed:
            return self.listed, self.args
        return None, self.args

    @property
    def state(self):
        """What all calls of __setstate__ come to where that updates a __dict__."""
        if len(self.states) > 1 and all(type(s) is dict for s in self.states):
            return [{k: v for s in self.states for k, v in s.items()}]
        return self.states


class Reference:
    """A persistent reference: kind, oid, name of the database, class."""

    __slots__ = ("kind", "oid", "database", "cls")

    def __init__(self, pid):
        self.database = self.cls = None
        if isinstance(pid, bytes):
            self.kind, self.oid = "object", bytes(pid)
        elif type(pid) is tuple and len(pid) == 2 and isinstance(pid[0], bytes):
            self.kind, self.oid, self.cls = "object", bytes(pid[0]), pid[1]
        elif type(pid) is list and len(pid) == 1:
            self.kind, self.oid = "weak", pid[0]  # as ZODB wrote it long ago
        elif type(pid) is list and len(pid) == 2 and pid[0] == "w":
            self.kind, self.oid = "weak", pid[1][0]
            if len(pid[1]) > 1:
                self.database = pid[1][1]
        elif type(pid) is list and len(pid) == 2 and pid[0] == "n":
            self.kind, (self.database, self.oid) = "other", pid[1]
        elif type(pid) is list and len(pid) == 2 and pid[0] == "m":
            self.kind, (self.database, self.oid, self.cls) = "other", pid[1]
        else:
            self.kind, self.oid = "unknown", repr(pid)
        if isinstance(self.oid, bytes):
            self.oid = bytes(self.oid)

    def key(self):
        return self.kind, type(self.oid), self.oid, self.database, self.cls

    def __repr__(self):
        oid = self.oid.hex() if isinstance(self.oid, bytes) else self.oid
        return f"<{self.kind} {oid} {self.database or ''} {self.cls!r}>"


def _reconstructor(cls, base, state):
    """copyreg._reconstructor, as protocols 0 and 1 make instances with it."""
    if isinstance(cls, _Meta):
        if base is object and state is None:
            return _made(cls, "new", (), {})
        return _made(cls, "reconstructed", (base, state), {})
    return copyreg._reconstructor(cls, base, state)


class Universe:
    """The classes of both sides."""

    def __init__(self):
        self._classes = {}
        self._names_only = False

    def find_class(self, module, name):
        module = _PYTHON2.get(module, module)
        module, name = _PYTHON2_NAMES.get((module, name), (module, name))
        if not self._names_only and module in _REAL and (module, name) not in _FORBIDDEN:
            if (module, name) == ("copyreg", "_reconstructor"):
                return _reconstructor
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part, MISSING)
            if found is not MISSING:
                return found
        return self.standin(module, name)

    def standin(self, module, name):
        key = (module, name)
        if key not in self._classes:
            self._classes[key] = _Meta(name.replace("\0", "?") or "_", (StandIn,), {"origin": key, "__slots__": ()})
        return self._classes[key]

    def record(self, data):
        """Return class (module, name) and state of a record."""
        if not isinstance(data, bytes):
            return data.cls, data.state(self)
        name, unpickler = self._opened(data)
        return name, unpickler.load()

    def class_of(self, data):
        """Return the class (module, name) of a record."""
        return self._opened(data)[0] if isinstance(data, bytes) else data.cls

    def _opened(self, data):
        unpickler = PersistentUnpickler(self.find_class, Reference, io.BytesIO(data))
        self._names_only = True
        try:
            return class_name(unpickler.load()), unpickler
        finally:
            self._names_only = False


class NoClass(ValueError):
    """The class description has no form in the destination."""


def class_name(described):
    """Module and name of a class description of any age, without arguments."""
    if isinstance(described, tuple) and len(described) == 2:
        described, args = described
        if args not in (None, ()):
            raise NoClass(f"constructor arguments {args!r}")
        if isinstance(described, tuple) and len(described) == 2 and all(isinstance(x, str) for x in described):
            return described
    if isinstance(described, _Meta):
        return described.origin
    raise NoClass(f"class description {described!r}")


_SCALARS = {int, str, bytes, bool, type(None)}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def _float_key(value):
    return "nan" if value != value else struct.pack(">d", value)


def _parts(value):
    """What an object of the standard library is made of."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return (reduced,)
    func, args, *rest = reduced
    state, listed, keyed, *_ = (*rest, None, None, None)
    return (func, args, state, None if listed is None else list(listed), None if keyed is None else [tuple(p) for p in keyed])


def canonical(value, above=()):
    """Something hashable that is equal for equal values: for the members of sets and the keys of dicts."""
    kind = type(value)
    if kind in _SCALARS:
        return kind.__name__, value
    if kind is float:
        return "float", _float_key(value)
    if id(value) in above:
        return "cycle", len(above) - above.index(id(value))
    above = (*above, id(value))
    if kind in (list, tuple):
        return kind.__name__, tuple(canonical(v, above) for v in value)
    if kind in (set, frozenset):
        return kind.__name__, frozenset(_counted(canonical(v, above) for v in value).items())
    if kind is dict:
        return "dict", frozenset(_counted((canonical(k, above), canonical(v, above)) for k, v in value.items()).items())
    if kind is Reference:
        return "reference", value.key()
    if isinstance(value, StandIn):
        return "instance", kind, value.how, canonical(value.args, above), canonical(value.kwargs, above), canonical(value.state, above), \
            canonical(value.listed, above), canonical(value.keyed, above)
    if isinstance(value, _FUNCTIONS):
        return "function", value
    return "object", kind, canonical(_parts(value), above)


def _counted(keys):
    counts = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return counts


class Comparison:
    """Compares two graphs; difference names the first place where they differ."""

    def __init__(self, ignore_making=False):
        # A dump of Python 2 tells what an instance holds, not how it was made.
        self._ignore_making = ignore_making
        self._seen = {}

    def difference(self, a, b, path=""):
        """Return None, or a text."""
        if a is b and not isinstance(a, (list, dict, set)):
            return None
        kind = type(a)
        if kind is not type(b):
            return f"{path or '.'}: {_shown(a)} became {_shown(b)}"
        if kind in _SCALARS:
            return None if a == b else f"{path or '.'}: {_shown(a)} became {_shown(b)}"
        if kind is float:
            return None if _float_key(a) == _float_key(b) else f"{path or '.'}: {a!r} became {b!r}"
        pair = id(a), id(b)
        if pair in self._seen:
            return None  # being compared, or found equal; a cycle on both sides ends here
        self._seen[pair] = (a, b)
        if kind in (list, tuple):
            return self._sequence(a, b, path)
        if kind is dict:
            return self._mapping(a, b, path)
        if kind in (set, frozenset):
            return self._set(a, b, path)
        if kind is Reference:
            return None if a.key() == b.key() else f"{path or '.'}: {a!r} became {b!r}"
        if isinstance(a, StandIn):
            return self._instance(a, b, path)
        if isinstance(a, _FUNCTIONS):
            return None if a == b else f"{path or '.'}: {a!r} became {b!r}"
        return self.difference(_kept(self._seen, _parts(a)), _kept(self._seen, _parts(b)), f"{path}<{kind.__name__}>")

    def _sequence(self, a, b, path):
        if len(a) != len(b):
            return f"{path or '.'}: {len(a)} elements became {len(b)}"
        for i, (x, y) in enumerate(zip(a, b)):
            if found := self.difference(x, y, f"{path}[{i}]"):
                return found
        return None

    def _mapping(self, a, b, path):
        if len(a) != len(b):
            return f"{path or '.'}: {len(a)} keys became {len(b)}"
        others = {}
        for key, value in b.items():
            others.setdefault(canonical(key), []).append(value)
        for key, value in a.items():
            found = others.get(canonical(key))
            if not found:
                return f"{path or '.'}: the key {_shown(key)} is missing; there are {', '.join(_shown(k) for k in list(b)[:5])}"
            if text := self.difference(value, found.pop(0), f"{path}[{_shown(key)}]"):
                return text
        return None

    def _set(self, a, b, path):
        left, right = (_counted(canonical(v) for v in s) for s in (a, b))
        if left == right:
            return None
        return f"{path or '.'}: the set {_shown(a)} became {_shown(b)}"

    def _instance(self, a, b, path):
        path = f"{path}<{type(a)!r}>"
        if self._ignore_making:
            return self._loosely(a, b, path)
        if a.how != b.how:
            return f"{path}: {a.how} became {b.how}"
        if found := self.difference(a.args, b.args, path + ".args") or self.difference(a.kwargs, b.kwargs, path + ".kwargs"):
            return found
        return self._states(a, b, path) or \
            self.difference(a.listed, b.listed, path + ".items") or self.difference(a.keyed, b.keyed, path + ".keyed")


    def _states(self, a, b, path):
        return self.difference(_kept(self._seen, a.state), _kept(self._seen, b.state), path + ".state")

    def _loosely(self, a, b, path):
        (held, left), (found, right) = a.contents(), b.contents()
        if held is not None and found is None and len(right) == 1:
            found, right = right[0], ()
        if not held and found is None and isinstance(held, (dict, list)):
            found = type(held)()
        # Protocol 2 gives an instance without attributes an empty dict, the others give it none.
        if a.state in ([], [{}]) and b.state in ([], [{}]):
            state = None
        else:
            state = self._states(a, b, path)
        return state or self.difference(_kept(self._seen, left), _kept(self._seen, right), path + ".args") or \
            self.difference(_kept(self._seen, held), _kept(self._seen, found), path + ".content")


def _kept(seen, value):
    """Keep a value that was made here: another one must not get its id."""
    seen["kept", id(value)] = value
    return value


def _shown(value):
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 120 else text[:117] + "..."
