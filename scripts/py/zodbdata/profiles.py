"""What each database contains.

A profile is a function of a Log, a seeded Random and the options of mkdata.
"""

import BTrees
import BTrees.Length
import persistent.list
import persistent.mapping
from persistent.mapping import PersistentMapping
from ZODB.utils import p64, z64

from . import classes as c, planted
from .blobs import history as blobs, many as many_blobs
from .content import Content, WORDS
from .edges import edges
from .log import link
from .odd import broken, cyclic, odd, oids  # noqa: F401  (profiles, too)

FAMILIES = (
    "OO OI OL OU OQ IO II IF IU LO LL LF LQ UO UU UF UI QO QQ QF QL fs"
).split()


def key_of(letter, n, random):
    if letter == "O":
        return f"{random.choice(WORDS)}-{n:05d}"
    return n if letter in "UQ" else n - 100


def value_of(letter, n, random):
    return {
        "O": lambda: random.choice((f"value {n}", n, (n, "x"), None, n / 8)),
        "I": lambda: -n, "L": lambda: -n * (1 << 33), "U": lambda: n * 3, "Q": lambda: n << 33,
        "F": lambda: random.choice((n / 4, -0.5, 1e-3, 16777216.0)),
    }[letter]()


def fill(family, count, random):
    """A tree, a bucket, a tree set and a set of one family."""
    module = __import__(f"BTrees.{family}BTree", fromlist=["*"])
    made = []
    for kind, n in (("BTree", count), ("Bucket", min(count, 25)), ("TreeSet", count), ("Set", min(count, 25))):
        obj = getattr(module, family + kind)()
        for i in range(n):
            if family == "fs":
                key, value = i.to_bytes(2, "big"), (i * i).to_bytes(6, "big")
            else:
                key, value = key_of(family[0], i, random), value_of(family[1], i, random)
            if kind.endswith("Set"):
                obj.add(key)
            else:
                obj[key] = value
        made.append((kind, obj))
    return made


def btrees(log, random, options):
    """Every family; trees that are empty, one bucket, and split; keys removed."""
    from BTrees.OOBTree import OOBTree, OOTreeSet
    for family in FAMILIES:
        holder = log.root[family] = PersistentMapping()
        for kind, obj in fill(family, options.objects or 150, random):
            holder[kind] = obj
        for kind, obj in fill(family, 3, random):
            holder["small " + kind] = obj
        for kind, obj in fill(family, 0, random):
            holder["empty " + kind] = obj
        log.commit("admin", f"BTrees of family {family}")
    tree = log.root["OO"]["BTree"]
    for key in list(tree)[10:60]:
        del tree[key]
    log.root["odd keys"] = OOBTree({("a", 1): 1, ("a", 2): {"@kv": [1]}, ("b", None): b"\x00\xff"})
    log.root["words"] = OOTreeSet(WORDS)
    log.root["nested"] = OOBTree({i: OOBTree({"leaf": i}) for i in range(40)})
    log.root["length"] = BTrees.Length.Length(12345678901234)
    log.commit("admin", "keys removed, odd keys, trees in trees")


def catalog(log, content, random, count):
    """A site with the trees of a catalog, through a real connection."""
    from BTrees.IIBTree import IITreeSet
    from BTrees.IOBTree import IOBTree
    from BTrees.OIBTree import OIBTree
    from BTrees.OOBTree import OOBTree
    site = log.root["site"] = c.Site(
        id="site", title="Gemeinde Straß \u2013 Ελλάδα", folders=OOBTree(), settings=PersistentMapping(),
        keywords=persistent.list.PersistentList(sorted(WORDS)), visits=BTrees.Length.Length(0),
    )
    log.commit("admin", "/site  created")
    site = log.root["site"]
    catalog = site.catalog = c.Catalog(
        uids=OOBTree(), paths=IOBTree(), data=IOBTree(), _length=BTrees.Length.Length(), indexes=OOBTree(), schema={"Title": 0, "rank": 1},
    )
    log.commit("admin", "catalog installed", request_type="POST", nested={"a": [1, 2.5, None, True, "ü"]})
    subjects = catalog.indexes["Subject"] = OOBTree()
    for rid in range(count):
        path = f"/site/{content.sentence(12)}/{rid}"
        catalog.uids[path] = rid
        catalog.paths[rid] = path
        catalog.data[rid] = (content.sentence(20), rid / 8, content.date_time(), None)
        for word in random.sample(WORDS, 2):
            subjects.setdefault(word, IITreeSet()).insert(rid)
        catalog._length.change(1)
        if rid % 1000 == 999:
            log.commit("admin", f"catalogued up to {rid}")
    families = catalog.families = OOBTree()
    for family in FAMILIES:
        families[family] = PersistentMapping(fill(family, 40, random))
    catalog.lexicon = c.Lexicon(wids=OIBTree({w: i for i, w in enumerate(WORDS)}), words=IOBTree(dict(enumerate(WORDS))))
    site.registry = c.Registry(records=OOBTree({f"plone.{w}.{i}": v for i, w in enumerate(WORDS) for v in [
        random.choice((None, i, True, w, (w, i), [w, {"k": w}], {w: i}, frozenset([i])))]}))
    log.commit("/site admin", "catalog complete")


def plone(log, random, options):
    """A site: a catalog, folders with documents, edits, undos and deletions."""
    total = options.objects or 400
    content = Content(random, options.record_size)
    catalog(log, content, random, max(60, min(total // 20, 5000)))
    per_folder = options.folder_size or max(10, min(100, total // 20))
    made, folders, number = [], [], 0
    left = total - len(log.file)
    while left > 0:
        with log.transaction(*metadata(random, content, number)) as t:
            left -= folder(log, t, content, number, min(per_folder, max(1, left - 1)), made, folders)
        number += 1
    if options.big_transaction:
        with log.transaction(b"admin", b"import of everything at once") as t:
            for _ in range(0, options.big_transaction, 1000):
                folder(log, t, content, number, 1000, made, folders)
                number += 1
    tree = log.root["site"].folders
    for name, oid in folders:
        tree[name] = log.connection.get(oid)
    log.commit("admin", "folders put into the site")
    edits(log, random, content, made, options.keep_all)


def metadata(random, content, number):
    """User, description and extension of one transaction, as bytes and dict."""
    user = f" /site/acl_users {random.choice(('admin', 'jürgen', 'sofía'))}".encode()
    extension = (None, {"request_type": "PUT", "n": number}, {"note": content.sentence(20), "tags": ["ü", 1, None]}, None)[number % 4]
    return user, f"/site/folder-{number}/edit\n\n{content.sentence(30)}".encode(), extension


def folder(log, t, content, number, count, made, folders):
    """One folder with its documents; a few have annotations. Returns the number of objects."""
    oid, items, stored = log.new_oid(), {}, 1
    parent = link(oid, c.Folder)
    for i in range(count):
        doc, notes = log.new_oid(), None
        if i % 10 == 9:
            target = log.new_oid()
            t.store(target, PersistentMapping, {"data": {"plone.tags": [content.sentence(15)], "n": i}})
            notes = link(target, PersistentMapping)
            stored += 1
        cls, state = content.document(number * 10_000 + i, parent, notes)
        t.store(doc, cls, state)
        items[state["id"]] = link(doc, cls)
        made.append((doc, parent))
        stored += 1
    t.store(oid, c.Folder, {"id": f"folder-{number}", "title": content.sentence(30), "items": items, "order": list(items)})
    folders.append((f"folder-{number}", oid))
    return stored


def edits(log, random, content, made, keep_all):
    """Several revisions, some undone, a few objects deleted."""
    sample = random.sample(made, max(1, min(len(made) // 20, 2000)))
    tids = []
    for start in range(0, len(sample), 20):
        with log.transaction(b"editor", f"edited {start}".encode()) as t:
            for oid, parent in sample[start:start + 20]:
                t.store(oid, *content.document(random.randrange(10**6), parent, None))
        tids.append(t.tid)
        if start % 60 == 0:
            with log.transaction(b"editor", b"Undo", {"undone": True}) as u:
                u.undo(t.tid)
    if keep_all:
        return
    with log.transaction(b"admin", b"orphans removed") as t:
        for oid, _ in sample[-3:]:
            t.delete(oid)


def small_records(log, random, options):
    """Many records of about 300 bytes."""
    total = options.objects or 2000
    texts = [" ".join(random.choices(WORDS, k=18)) for _ in range(5000)]
    stored, nodes = 1, []
    log.commit_empty_root()
    serialize = log.serialize
    while stored < total:
        node, entries = log.new_oid(), []
        owner = link(node, c.Node)
        with log.transaction(b"system", f"batch {len(nodes)}".encode()) as t:
            for i in range(min(1000, max(1, total - stored - 1))):
                oid = log.new_oid()
                t.put(oid, serialize(c.Entry, {
                    "number": stored + i, "title": texts[(stored * 7 + i) % 5000][:60], "price": i * 0.25, "paid": i % 3 == 0,
                    "lines": [i, i + 1, None], "note": texts[(stored + i * 31) % 5000][:10 + i % 50], "order": owner,
                }))
                entries.append(link(oid, c.Entry))
            t.store(node, c.Node, {"entries": entries})
        stored += len(entries) + 1
        nodes.append(node)
    from BTrees.IOBTree import IOBTree
    log.root["nodes"] = IOBTree({i: log.connection.get(oid) for i, oid in enumerate(nodes)})
    log.commit("system", "linked")


def huge(log, random, options):
    """A few records of several MB: long text, bytes, many small parts."""
    content = Content(random, 3300)
    sizes = [options.record_size] if options.record_size != 3300 else [1 << 20, 4 << 20, 8 << 20, 15 << 20]
    log.commit_empty_root()
    for number in range(options.objects or len(sizes)):
        size = sizes[number % len(sizes)]
        text = " ".join(random.choices(WORDS, k=size // 9))
        # The Python codec refuses records in which more than 100,000 parts
        # could be shared.
        parts = min(size // 100, 30_000)
        states = (
            {"text": text[:size // 2], "title": "long text"},
            {"title": "bytes", "data": random.randbytes(size)},
            {"title": "many parts", "rows": [{"n": i, "name": content.sentence(size // parts - 40), "ratio": i / 7} for i in range(parts)]},
            {"title": "many keys", "index": {f"key {i}": (i, None, content.sentence(size // parts - 40)) for i in range(parts)}},
        )
        log.root[f"huge {number}"] = c.RawValueHolder(**states[number % len(states)])
        log.commit("admin", f"upload of {size} bytes")


def scattered(log, random, options):
    """Small records whose oids lie anywhere below 2^63."""
    total = options.objects or 1000
    entries = []
    log.commit_empty_root()
    for start in range(0, total, 1000):
        with log.transaction(b"tool", b"scattered") as t:
            for i in range(start, min(total, start + 1000)):
                oid = p64(random.randrange(1, (1 << 63) - (1 << 33)))
                t.store(oid, c.Entry, {"number": i, "title": random.choice(WORDS)})
                entries.append(link(oid, c.Entry))
    with log.transaction(b"tool", b"root") as t:
        t.store(z64, PersistentMapping, {"data": {"entries": entries}})


def history(log, random, options):
    """Revisions, undos, chains of back pointers, deletions, empty transactions."""
    content = Content(random, 900)
    log.root["list"] = persistent.list.PersistentList([1])
    log.root["counter"] = c.Counter(n=0)
    log.root["doc"] = c.Document(**content.document(1, None, None)[1])
    log.root["gone"] = c.Document(title="will be deleted")
    log.root["kept"] = PersistentMapping({"a": 1})
    log.commit("admin", "five objects")
    doc, gone, counter = (log.root[k]._p_oid for k in ("doc", "gone", "counter"))

    def edit(**changes):
        for name, value in changes.items():
            setattr(log.root["doc"], name, value)
        return log.commit("editor", "edited", changes=len(changes))

    def undo(*tids, user=b"editor"):
        with log.transaction(user, b"Undo", {"undone": [t.hex() for t in tids]}) as t:
            for tid in tids:
                t.undo(tid)
        return t.tid

    first = edit(title="second title")
    undone = undo(first)                      # a back pointer
    redone = undo(undone)                     # undo of the undo
    undo(redone)                              # and again: a chain
    for i in range(12):
        edit(title=f"title {i}", number=i)
    last = edit(title="newest"), edit(title="newest of all", text="Ünïcödé")
    undo(*reversed(last))                     # two transactions undone in one
    with log.transaction(b"", b"") as t:      # no user, no description, no record
        pass
    with log.transaction(b"cron", b"nothing was changed", {"note": "empty"}):
        pass

    # Created, and the creation undone: a record without data.
    log.root["short-lived"] = c.Document(title="short-lived")
    created = log.commit("admin", "created by mistake")
    uncreated = undo(created, user=b"admin")
    log.root["short-lived two"] = c.Document(title="short-lived, revived")
    created = log.commit("admin", "created by mistake, again")
    uncreated = undo(created, user=b"admin")
    undo(uncreated, user=b"admin")            # the undo of it brings the object back

    # Deleted the way that garbage collectors from outside do it.
    del log.root["gone"]
    log.commit("admin", "unlinked")
    with log.transaction(b"zc.zodbdgc", b"garbage") as t:
        t.delete(gone)

    # Deleted and written again.
    again = log.new_oid()
    with log.transaction(b"admin", b"one") as t:
        t.store(again, c.Document, {"title": "first life"})
    with log.transaction(b"admin", b"two") as t:
        t.delete(again)
    with log.transaction(b"admin", b"three") as t:
        t.store(again, c.Document, {"title": "second life"})

    # An undo that needs conflict resolution stores new data.
    log.root["counter"].n = 10
    tid = log.commit("shop", "ten")
    log.root["counter"].n = 15
    log.commit("shop", "five more")
    if log.merges_undo:
        undo(tid, user=b"shop")

    # The same object twice in one transaction: the last counts.
    with log.transaction(b"tool", b"stored twice") as t:
        t.store(doc, c.Document, {"title": "not this one"})
        t.store(doc, c.Document, {"title": "this one", "counter": link(counter, c.Counter)})

    # Metadata as nobody wants to meet it.
    odd_metadata = (
        (b"\xfcser", b"Latin-1: \xe4\xf6\xfc\xdf", None),
        (b"nul\x00user", b"nul \x00 in the middle\x00", {"nul": "\x00"}),
        (b"\xff\xfe\xfd", b"\x80" * 300, {"text": "\x00"}),
        ("ユーザー".encode(), "/\u2028\t\r\n\\x41 ' \" \U0001f600".encode(), {"emoji": "\U0001f600", "ключ": {"deep": [[["x"]]]}}),
        (b"long", b"d" * 65535, None),
        (b" /", b"bytes in the extension", {"raw": b"\x00\xff", "tuple": (1, 2)}),
        (b"", b"keys that are no text", {1: "one", None: "none", "t": {2.5: ()}}),
        (b"", b"numbers", {"nan": float("nan"), "inf": float("inf"), "zero": -0.0, "big": 1e300, "int": 1 << 80}),
        (b"", b"a date in the extension", {"when": content.moment()}),
        (b"", b"a class in the extension", {"cls": c.Document, "point": c.Point(1, 2)}),
        (b"", b"a set", {"set": {1, 2}, "frozen": frozenset("a")}),
        (b"", b"an empty dict", b"\x80\x03}q\x00."),
        (b"", b"no dict", b"\x80\x03]q\x00K\x01a."),
        (b"", b"no pickle", b"this is not a pickle \xff\x00"),
        (b"", b"protocol 1", b"}q\x01(U\x04nameq\x02U\x05valueq\x03u."),
        (b"", b"protocol 2, not ASCII", b"\x80\x02}q\x01U\x04nameq\x02U\x02\xc3\xbcs."),
        (b"", b"bool and empty", {"yes": True, "no": False, "none": None, "list": [], "dict": {}, "text": ""}),
        (b"", b"at-keys", {"@cls": ["a", "b"], "@ns": "AA==", "": 0}),
    )
    for number, (user, description, extension) in enumerate(odd_metadata):
        with log.transaction(user, description, extension) as t:
            t.store(doc, c.Document, {"title": f"metadata {number}"})
    for _ in range(3):
        edit(end=random.random())


def packed(log, random, options):
    """A history packed in its middle, edited and undone after that, packed again."""
    content = Content(random, 700)
    for i in range(40):
        log.root[f"doc-{i}"] = c.Document(**content.document(i, None, None)[1])
    log.commit("admin", "forty objects")
    for i in range(60):
        log.root[f"doc-{i % 7}"].title = content.sentence(20)
        tid = log.commit("editor", f"edit {i}", n=i)
        if i % 9 == 8:
            with log.transaction(b"editor", b"Undo") as t:
                t.undo(tid)
    for i in range(30, 36):
        del log.root[f"doc-{i}"]
    log.commit("admin", "six unlinked")
    log.root["doc-1"].title = "before the pack"
    log.commit("editor", "before the pack")
    log.root["doc-1"].title = "after the pack"
    after = log.commit("editor", "after the pack")
    log.pack(after)
    with log.transaction(b"editor", b"Undo") as t:
        t.undo(after)                         # points into the packed part
    for i in range(10):
        log.root[f"doc-{i}"].title = f"life goes on {i}"
        log.commit("editor", "life goes on")
    zombie = log.root["doc-39"]._p_oid
    with log.transaction(b"gc", b"deleted, but still referred to") as t:
        t.delete(zombie)
    log.root["doc-2"].title = "before the second pack"
    log.commit("editor", "before the second pack")
    log.root["doc-2"].title = "after the second pack"
    after = log.commit("editor", "after the second pack")
    log.pack(after, gc=False)
    with log.transaction(b"editor", b"Undo") as t:
        t.undo(after)


def zlib(log, random, options):
    """Records of zc.zlibstorage: large ones compressed, small ones not."""
    content = Content(random, 2500)
    for i in range(options.objects or 60):
        log.root[f"doc-{i}"] = c.Document(**content.document(i, None, None)[1])
        log.root[f"small-{i}"] = c.Entry(n=i)
        if i % 6 == 5:
            tid = log.commit("admin", f"compressed {i}")
    log.root["doc-3"].title = "x" * 5000
    tid = log.commit("editor", "very compressible")
    with log.transaction(b"editor", b"Undo") as t:
        t.undo(tid)
    gone = log.root["doc-5"]._p_oid
    del log.root["doc-5"]
    log.commit("admin", "unlinked")
    with log.transaction(b"gc", b"garbage") as t:
        t.delete(gone)


def torn(log, random, options):
    """A history whose last transaction is cut off in the middle."""
    content = Content(random, 700)
    for i in range(12):
        log.root[f"doc-{i}"] = c.Document(**content.document(i, None, None)[1])
        log.commit("admin", f"doc {i}")
    log.after_close = lambda path: cut(path, 333)


def cut(path, length):
    with open(path, "r+b") as f:
        f.truncate(f.seek(0, 2) - length)


def empty(log, random, options):
    """The four bytes of the magic, nothing else."""


PROFILES = {
    "plone": plone, "small-records": small_records, "huge": huge, "scattered": scattered, "history": history, "packed": packed,
    "zlib": zlib, "btrees": btrees, "odd": odd, "cyclic": cyclic, "rejects": broken, "oids": oids, "torn": torn, "empty": empty,
    "blobs": blobs, "many-blobs": many_blobs, "edges": edges,
    "planted-blobs": planted.blobs, "planted-revisions": planted.revisions, "planted-mixed": planted.mixed,
}
