"""Classes for the pickles of test databases.

A pickle holds no more of a class than its name, so these stand in for classes
of Zope and Plone that nobody needs to install. Each is registered as an
importable module under the name that it has in real databases.
"""

import collections
import enum
import sys
import types

import persistent


def _module(dotted):
    """Return the module of that name, made together with its parents."""
    if dotted not in sys.modules:
        module = sys.modules[dotted] = types.ModuleType(dotted)
        module.__path__ = []
        parent, _, name = dotted.rpartition(".")
        if parent:
            setattr(_module(parent), name, module)
    return sys.modules[dotted]


def _standin(dotted, *bases, **body):
    module, _, name = dotted.rpartition(".")
    cls = type(name, bases, {"__module__": module, **body})
    setattr(_module(module), name, cls)
    return cls


def _stateful(names):
    """__getstate__ and __setstate__ with a tuple of attributes."""

    def getstate(self):
        return tuple(getattr(self, n) for n in names)

    def setstate(self, state):
        for name, value in zip(names, state):
            setattr(self, name, value)

    return {"__getstate__": getstate, "__setstate__": setstate}


class _Plain:
    """A base that takes attributes as keyword arguments."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class _PersistentPlain(persistent.Persistent):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


# Content and its parts.
Document = _standin("plone.app.contenttypes.content.Document", _PersistentPlain)
NewsItem = _standin("plone.app.contenttypes.content.NewsItem", _PersistentPlain)
Event = _standin("plone.app.contenttypes.content.Event", _PersistentPlain)
Folder = _standin("plone.app.contenttypes.content.Folder", _PersistentPlain)
Site = _standin("Products.CMFPlone.Portal.PloneSite", _PersistentPlain)
Comment = _standin("plone.app.discussion.comment.Comment", _PersistentPlain)
Registry = _standin("plone.registry.registry.Registry", _PersistentPlain)
Catalog = _standin("Products.ZCatalog.Catalog.Catalog", _PersistentPlain)
Lexicon = _standin("Products.ZCTextIndex.PipelineFactory.Lexicon", _PersistentPlain)
Entry = _standin("shop.orders.Entry", _PersistentPlain)
Node = _standin("shop.orders.Node", _PersistentPlain)
RichTextValue = _standin("plone.app.textfield.value.RichTextValue", _Plain)
RawValueHolder = _standin("plone.app.textfield.value.RawValueHolder", _PersistentPlain)
NamedBlobFile = _standin("plone.namedfile.file.NamedBlobFile", _PersistentPlain)
DateTime = _standin("DateTime.DateTime.DateTime", _Plain, **_stateful(("_micros", "_timezone_naive", "_tz")))
RelationValue = _standin("z3c.relationfield.relation.RelationValue", _PersistentPlain)

# Persistent classes with habits of their own.
WithNewargs = _standin(
    "shop.odd.WithNewargs",
    persistent.Persistent,
    __new__=lambda cls, *args: persistent.Persistent.__new__(cls),
    __getnewargs__=lambda self: getattr(self, "newargs", ()),
)
Odd = _standin("shop.odd.Odd", _PersistentPlain)
TupleState = _standin("shop.odd.TupleState", _PersistentPlain, **_stateful(("a", "b", "c")))
ListState = _standin(
    "shop.odd.ListState",
    _PersistentPlain,
    __getstate__=lambda self: self.items,
    __setstate__=lambda self, state: setattr(self, "items", state),
)


def _resolve(self, old, saved, new):
    return {"n": saved["n"] + new["n"] - old["n"]}


# An object whose conflicts can be resolved, so that an undo writes new data.
Counter = _standin("shop.orders.Counter", _PersistentPlain, _p_resolveConflict=_resolve)


# Values within a state.
class Colour(enum.Enum):
    RED = "red"
    GREEN = 2


class Rights(enum.IntFlag):
    READ = 4
    WRITE = 2


class Weekday(enum.IntEnum):
    MONDAY = 0


class Point(collections.namedtuple("Point", "x y")):
    __slots__ = ()


class Money(str):
    pass


class Level(int):
    pass


class Raw(bytes):
    pass


class Series(list):
    pass


class Table(dict):
    pass


class Labels(set):
    pass


class Frozen(frozenset):
    pass


class Pair(tuple):
    pass


class Keyed(collections.OrderedDict):
    pass


class Slots:
    __slots__ = ("a", "b")


class Reduced:
    """Pickled by a call with a state."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return Reduced, self.args, {"note": "set later"}


class ReducedItems:
    """Pickled by a call with list items and dict items."""

    def __init__(self, *args):
        self.args = args
        self.listed = []
        self.keyed = {}

    def append(self, item):
        self.listed.append(item)

    def extend(self, items):
        self.listed.extend(items)

    def __setitem__(self, key, value):
        self.keyed[key] = value

    def __reduce__(self):
        return ReducedItems, self.args, None, iter(self.listed), iter(self.keyed.items())


class Thing(_Plain):
    pass


class Stateless:
    pass


class NoState:
    """An instance whose state is None in the pickle."""

    def __reduce__(self):
        return NoState, ()


def factory():
    return "made by factory"


_values = (
    Colour, Rights, Weekday, Point, Money, Level, Raw, Series, Table, Labels, Frozen, Pair, Keyed,
    Slots, Reduced, ReducedItems, Thing, Stateless, NoState, factory,
)
for _value in _values:
    _value.__module__ = "shop.values"
    setattr(_module("shop.values"), _value.__name__, _value)
