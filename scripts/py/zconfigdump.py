"""Tells what the real ZConfig makes of configuration files.

usage: zconfigdump.py CORPUS

CORPUS is a folder like testdata/config. Every *.conf directly in one of its
folders is read with the schema that the folder stands for:

  convert  that of zodb-convert and RelStorage's zodbconvert
  nested   the same, where <source> and <destination> may stand around a storage
  zope     that of Zope
  legacy   that of Zope for the databases, whatever stands around them

One line of JSON for each file goes to stdout: whether the file is taken and, if
so, every section with its keys, those with a default too, under "sections".
Values have gone through ZConfig's own datatypes. Directories that do not start
with /nonexistent are taken for existing, so that files may name those that
sites have.
"""

import contextlib
import io
import json
import os
import sys

import ZConfig
import ZConfig.datatypes
import ZConfig.loader
import ZConfig.matcher

ENVIRONMENT = {
    "HOME": "/home/zope",
    "USER_NAME": "zope",
    "PGPASSWORD": "post$gres",
    "MYSQL_PASSWORD": "my sql",
    "S3_KEY": "access",
    "S3_SECRET": "secret/=+",
    "SITE_ROOT": "/srv/site",
}

STORAGES = ["ZODB", "relstorage"]

CONVERT = """
<schema>
  {imports}
  <section type="ZODB.storage" name="source" attribute="source"/>
  <section type="ZODB.storage" name="destination" attribute="destination"/>
</schema>
"""

NESTED = """
<schema>
  {imports}
  <sectiontype name="source">
    <section type="ZODB.storage" name="*" attribute="storage" required="yes"/>
  </sectiontype>
  <sectiontype name="destination">
    <section type="ZODB.storage" name="*" attribute="storage" required="yes"/>
  </sectiontype>
  <section type="source" name="*" attribute="nested_source"/>
  <section type="destination" name="*" attribute="nested_destination"/>
  <section type="ZODB.storage" name="source" attribute="source"/>
  <section type="ZODB.storage" name="destination" attribute="destination"/>
</schema>
"""


class Paths:
    """os.path, on a machine where nearly every directory exists."""

    def __getattr__(self, name):
        return getattr(os.path, name)

    def isdir(self, path):
        return not path.startswith("/nonexistent")


class System:
    path = Paths()
    sep = os.sep


def conversion(schema):
    def sections(path):
        text = schema.format(imports="".join(f'<import package="{p}"/>' for p in STORAGES))
        config, _ = ZConfig.loadConfig(ZConfig.loadSchemaFile(io.StringIO(text)), path)
        found = {}
        for end in ("source", "destination"):
            outer = getattr(config, "nested_" + end, None)
            direct = getattr(config, end)
            if outer is not None and direct is not None:
                raise ZConfig.ConfigurationError(f"two sections for {end}")
            if outer is not None:
                direct = outer.storage
            if direct is not None:
                found[end] = node(direct)
        return found

    return sections


def zope_schema():
    import Zope2.Startup

    return ZConfig.loadSchema(os.path.join(os.path.dirname(Zope2.Startup.__file__), "wsgischema.xml"))


def zope(path):
    config, _ = ZConfig.loadConfig(zope_schema(), path)
    return {d.config.getSectionName(): node(d) for d in config.databases}


class Ignored:
    """A section that is nobody's business."""

    def addValue(self, key, value, position):
        pass


class Outside(ZConfig.matcher.SchemaMatcher):
    def addValue(self, key, value, position):
        with contextlib.suppress(ZConfig.ConfigurationError):
            super().addValue(key, value, position)


class LegacyLoader(ZConfig.loader.ConfigLoader):
    """Checks the databases and nothing else, as sites of Zope 2 have directives
    that no schema of today knows."""

    def __init__(self, schema):
        super().__init__(schema)
        self.databases = {}

    def loadResource(self, resource):
        self._parse_resource(Outside(self.schema), resource)
        return self.databases

    def importSchemaComponent(self, pkgname):
        with contextlib.suppress(ZConfig.SchemaResourceError):
            super().importSchemaComponent(pkgname)

    def startSection(self, parent, type_, name):
        if isinstance(parent, Ignored):
            return Ignored()
        if isinstance(parent, Outside) and type_ not in ("zodb_db", "zodb"):
            return Ignored()
        return super().startSection(parent, type_, name)

    def endSection(self, parent, type_, name, matcher):
        if isinstance(matcher, Ignored):
            return
        if isinstance(parent, Outside):
            self.databases[name] = matcher.finish()
            return
        super().endSection(parent, type_, name, matcher)


def legacy(path):
    return {name: node(d) for name, d in LegacyLoader(zope_schema()).loadURL(path).items()}


SCHEMAS = {"convert": conversion(CONVERT), "nested": conversion(NESTED), "zope": zope, "legacy": legacy}


def node(factory):
    """A section with its values, by the names of the keys."""
    section = getattr(factory, "config", factory)
    values, inner = {}, []
    for key, info in section.getSectionDefinition():
        value = getattr(section, info.attribute)
        if info.issection():
            inner += [node(s) for s in (value if isinstance(value, list) else [value]) if s is not None]
        elif info.name == "+":
            values.update(value)
        elif value is not None:
            values[key] = plain(value)
    return {"type": section.getSectionType(), "name": section.getSectionName() or "", "values": values, "sections": inner}


def plain(value):
    """A value as JSON has it."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, ZConfig.datatypes.SocketAddress):
        return "an address"
    return value


def main(corpus):
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    ZConfig.datatypes.os = System
    for folder, read in SCHEMAS.items():
        for name in sorted(os.listdir(os.path.join(corpus, folder))):
            if not name.endswith(".conf"):
                continue
            result = {"file": f"{folder}/{name}", "taken": True}
            try:
                result["sections"] = read(os.path.join(corpus, folder, name))
            except (ZConfig.ConfigurationError, ZConfig.SchemaError, ValueError, RecursionError) as e:
                result["taken"] = False
                if "-v" in sys.argv:
                    result["error"] = str(e)
            print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
