package storage

// datatype is how the value of a key is read.
type datatype int

const (
	text datatype = iota
	boolean
	integer
	float
	byteSize
	interval
	dirPath // existing-dirpath: ~ is expanded and the directory has to exist
	dotted
	address
	mountPoint
)

// effect is what a key does to a conversion.
type effect int

const (
	// acts: the conversion is done by it, or is refused because of it.
	acts effect = iota
	// idle: it has none, for the reason that the key gives.
	idle
)

// key is a key of a type of section.
type key struct {
	name     string
	is       datatype
	required bool
	multi    bool
	// preset is the value, as written, of a key that is not given. "" stands for
	// none but with presetEmpty.
	preset      string
	presetEmpty bool
	effect      effect
	why         string // why it has no effect
}

// class is what a section may stand for in another one.
type class int

const (
	none class = iota
	aStorage
	anAdapter // a database of RelStorage
	pragmas
	ssl
	aDatabase
)

// sectionType describes the sections of one type.
type sectionType struct {
	name  string
	class class
	keys  []key
	// anyKey: other keys are taken as they are.
	anyKey bool
	// inner is what may stand in the section, at least and at most so often.
	inner    class
	min, max int
	// other are names that are written for those of keys here and there.
	other map[string]string
	// former are keys of releases that nobody should have any more, and what to do
	// about them.
	former map[string]string
}

const many = 1 << 30

// Why keys have no effect.
const (
	forSite  = "it matters to a running site only"
	forCache = "it sizes a cache of a running site"
	forPack  = "it matters to packing only"
	unwrites = "the source is never written to"
	forConns = "it matters to the connections of a running site only"
	newInRun = "a run has its own connections to S3, and repeats what fails"
	label    = "it is a label in the site's own messages"
)

// WithoutWriting is why keys about the source have no effect.
const WithoutWriting = unwrites

// k makes a key that acts.
func k(name string, is datatype) key { return key{name: name, is: is} }

func needed(name string, is datatype) key { return key{name: name, is: is, required: true} }

// preset makes a key that acts, with the value that it has if it is not given.
func preset(name string, is datatype, value string) key {
	return key{name: name, is: is, preset: value, presetEmpty: value == ""}
}

// idleKeys makes keys without effect. Each is written "name datatype preset".
func idleKeys(why string, keys ...key) []key {
	for i := range keys {
		keys[i].effect, keys[i].why = idle, why
	}
	return keys
}

func join(lists ...[]key) []key {
	var all []key
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// sectionTypes are those that ZODB, RelStorage, zodb-pgjsonb, zodb-s3blobs,
// zc.zlibstorage, zc.beforestorage, tempstorage, ZEO and Zope bring for
// storages and databases, with the presets that they have there.
var sectionTypes = []sectionType{
	{
		name: "filestorage", class: aStorage,
		keys: join(
			[]key{needed("path", dirPath), k("blob-dir", dirPath), k("create", boolean)},
			idleKeys(unwrites, k("read-only", boolean), k("quota", byteSize)),
			idleKeys(forPack, k("packer", text), preset("pack-gc", boolean, "true"), preset("pack-keep-old", boolean, "true"))),
	},
	{
		name: "pgjsonb", class: aStorage,
		keys: join(
			[]key{
				needed("dsn", text), preset("history-preserving", boolean, "false"),
				preset("blob-threshold", byteSize, "100KB"), k("s3-bucket-name", text), preset("s3-prefix", text, ""),
				k("s3-endpoint-url", text), k("s3-region", text), k("s3-access-key", text), k("s3-secret-key", text),
				preset("s3-use-ssl", boolean, "true"),
			},
			idleKeys(label, preset("name", text, "pgjsonb")),
			idleKeys(newInRun, k("s3-connect-timeout", float), k("s3-read-timeout", float), k("s3-download-connect-timeout", float),
				k("s3-download-read-timeout", float), k("s3-download-max-attempts", integer)),
			idleKeys(forSite, k("blob-temp-dir", text), k("blob-cache-dir", text), preset("blob-cache-size", byteSize, "1GB")),
			idleKeys(forConns, preset("pool-size", integer, "1"), preset("pool-max-size", integer, "10"), preset("pool-timeout", float, "30.0")),
			idleKeys(forCache, k("cache-local-mb", integer), preset("cache-shared-mb", integer, "256"),
				preset("cache-per-connection-mb", integer, "16"), preset("cache-warm-pct", integer, "10"),
				preset("cache-warm-decay", float, "0.8"), preset("cache-warm-delay", integer, "15"),
				preset("cache-warm-jitter", integer, "30"), preset("cache-warm-concurrency", integer, "2"),
				preset("cache-warm-wait-max", integer, "300"), preset("cache-warm-batch-size", integer, "500"),
				preset("cache-warm-batch-pause", float, "0.5"))),
	},
	{
		name: "relstorage", class: aStorage, inner: anAdapter, max: 1,
		keys: join(
			[]key{
				preset("keep-history", boolean, "true"), k("blob-dir", text), preset("shared-blob-dir", boolean, "false"),
				k("replica-conf", text), k("ro-replica-conf", text),
			},
			idleKeys(unwrites, preset("read-only", boolean, "false"), preset("create-schema", boolean, "true"),
				k("blob-chunk-size", byteSize), k("commit-lock-timeout", integer), k("commit-lock-id", integer)),
			idleKeys(label, k("name", text)),
			idleKeys(forConns, preset("replica-timeout", float, "600.0"), preset("revert_when_stale", boolean, "false"), k("poll-interval", float)),
			idleKeys(forPack, preset("pack-gc", boolean, "true"), preset("pack-prepack-only", boolean, "false"),
				preset("pack-skip-prepack", boolean, "false"), k("pack-batch-timeout", float), k("pack-commit-busy-delay", float)),
			idleKeys(forCache, k("blob-cache-size", byteSize), k("blob-cache-size-check", integer),
				preset("blob-cache-size-check-external", boolean, "false"), k("cache-servers", text), k("cache-module-name", text),
				k("cache-prefix", text), k("cache-local-mb", integer), k("cache-local-storage", dotted), k("cache-local-dir", text),
				k("cache-local-dir-count", integer), k("cache-local-dir-read-count", integer), k("cache-local-dir-compress", boolean),
				k("cache-local-dir-write-max-size", byteSize), k("cache-local-object-max", byteSize),
				k("cache-local-compression", text), k("cache-delta-size-limit", integer))),
		other: map[string]string{"replica-revert-when-stale": "revert_when_stale", "revert-when-stale": "revert_when_stale"},
	},
	{
		name: "postgresql", class: anAdapter,
		keys: join([]key{preset("dsn", text, "")}, idleKeys(pythonOnly, preset("driver", text, "auto"))),
	},
	{
		name: "mysql", class: anAdapter,
		keys: join(
			[]key{
				k("host", text), k("user", text), k("passwd", text), k("db", text), k("port", integer), k("unix_socket", text),
				k("connect_timeout", integer), k("compress", boolean), k("named_pipe", boolean),
				k("read_default_file", text), k("read_default_group", text),
			},
			idleKeys(pythonOnly, preset("driver", text, "auto"))),
	},
	{
		name: "oracle", class: anAdapter,
		keys: join([]key{needed("user", text), needed("password", text), needed("dsn", text)},
			idleKeys(pythonOnly, preset("driver", text, "auto"))),
	},
	{
		name: "sqlite3", class: anAdapter, inner: pragmas, max: 1,
		keys: join([]key{needed("data-dir", dirPath)},
			idleKeys(pythonOnly, preset("driver", text, "auto"), k("gevent_yield_interval", integer))),
		other: map[string]string{"data_dir": "data-dir", "gevent-yield-interval": "gevent_yield_interval"},
		former: map[string]string{"path": "it is a key of RelStorage 3.0b1: " +
			"move the file, with those that begin with its name, into a directory, call it main.sqlite3, and name the directory as data-dir"},
	},
	{
		name: "pragmas", class: pragmas, anyKey: true,
		keys: idleKeys(unwrites, k("page_size", byteSize), k("mmap_size", byteSize), k("max_page_count", integer), k("threads", integer),
			k("cache_size", byteSize), k("wal_autocheckpoint", integer), k("soft_heap_limit", byteSize)),
	},
	{
		name: "blobstorage", class: aStorage, inner: aStorage, max: 1,
		keys: []key{needed("blob-dir", text)},
	},
	{
		name: "s3blobstorage", class: aStorage, inner: aStorage, max: 1,
		keys: []key{
			needed("bucket-name", text), preset("s3-prefix", text, ""), k("s3-endpoint-url", text), k("s3-region", text),
			k("s3-access-key", text), k("s3-secret-key", text), preset("s3-use-ssl", boolean, "true"),
			preset("s3-addressing-style", text, "auto"), k("s3-sse-customer-key", text),
			preset("s3-connect-timeout", float, "60"), preset("s3-read-timeout", float, "300"),
			preset("s3-download-connect-timeout", float, "5"), preset("s3-download-read-timeout", float, "10"),
			preset("s3-download-max-attempts", integer, "2"), needed("cache-dir", text), preset("cache-size", byteSize, "1GB"),
		},
	},
	{
		name: "zlibstorage", class: aStorage, inner: aStorage, min: 1, max: 1,
		keys: idleKeys(unwrites, k("compress", boolean)),
	},
	{
		name: "serverzlibstorage", class: aStorage, inner: aStorage, min: 1, max: 1,
		keys: idleKeys(unwrites, k("compress", boolean)),
	},
	{
		name: "before", class: aStorage, inner: aStorage, min: 1, max: 1,
		keys: []key{k("before", text), k("before-from-file", text)},
	},
	{
		name: "demostorage", class: aStorage, inner: aStorage, max: many,
		keys: []key{k("name", text)},
	},
	{name: "mappingstorage", class: aStorage, keys: []key{preset("name", text, "Mapping Storage")}},
	{name: "temporarystorage", class: aStorage, keys: []key{preset("name", text, "Temporary Storage")}},
	{name: "fullstorage", class: aStorage, keys: berkeley},
	{name: "minimalstorage", class: aStorage, keys: berkeley},
	{
		name: "zeoclient", class: aStorage,
		keys: []key{
			{name: "server", is: address, required: true, multi: true}, k("blob-dir", text), preset("shared-blob-dir", boolean, "no"),
			k("blob-cache-size", byteSize), k("blob-cache-size-check", integer), preset("storage", text, "1"),
			preset("cache-size", byteSize, "20MB"), preset("name", text, ""), k("client", text), k("var", text),
			preset("min-disconnect-poll", integer, "5"), preset("max-disconnect-poll", integer, "300"), preset("wait", boolean, "on"),
			preset("read-only", boolean, "off"), preset("read-only-fallback", boolean, "off"), k("username", text),
			k("password", text), k("realm", text), preset("drop-cache-rather-verify", boolean, "off"), k("client-label", text),
		},
	},
	{
		name: "clientstorage", class: aStorage, inner: ssl, max: 1,
		keys: []key{
			{name: "server", is: address, required: true, multi: true}, preset("cache-size", byteSize, "20MB"), k("cache-path", text),
			k("blob-dir", text), preset("shared-blob-dir", boolean, "no"), k("blob-cache-size", byteSize), k("blob-cache-size-check", integer),
			preset("read-only", boolean, "off"), preset("read-only-fallback", boolean, "off"), preset("server-sync", boolean, "off"),
			preset("wait-timeout", integer, "30"), k("client-label", text), preset("storage", text, "1"), preset("name", text, ""),
		},
	},
	{
		name: "ssl", class: ssl,
		keys: []key{
			needed("certificate", dirPath), k("key", dirPath), k("password-function", text), k("authenticate", dirPath),
			preset("check-hostname", boolean, "true"), k("server-hostname", text),
		},
	},
	{name: "zodb", class: aDatabase, inner: aStorage, max: 1, keys: database},
	{
		name: "zodb_db", class: aDatabase, inner: aStorage, max: 1,
		keys: join(database, idleKeys(forSite, key{name: "mount-point", is: mountPoint, required: true, multi: true},
			k("connection-class", text), k("container-class", text),
			// Of ZODB before 3.9.
			k("version-pool-size", integer), k("version-cache-size", integer))),
	},
}

const pythonOnly = "it matters to Python only"

var berkeley = []key{
	needed("envdir", text), preset("interval", interval, "2m"), preset("kbyte", integer, "0"), preset("min", integer, "0"), k("logdir", text),
	preset("cachesize", byteSize, "128MB"), preset("frequency", interval, "0"), preset("packtime", interval, "4h"),
	preset("gcpack", integer, "0"), preset("read-only", boolean, "off"),
}

var database = idleKeys(forSite,
	preset("cache-size", integer, "5000"), preset("cache-size-bytes", byteSize, "0"), preset("large-record-size", byteSize, "16MB"),
	preset("pool-size", integer, "7"), k("pool-timeout", interval), preset("historical-pool-size", integer, "3"),
	preset("historical-cache-size", integer, "1000"), preset("historical-cache-size-bytes", byteSize, "0"),
	preset("historical-timeout", interval, "5m"), k("database-name", text), k("allow-implicit-cross-references", boolean),
	k("class-factory", text))

// otherTypes are names that are written for those of types here and there.
var otherTypes = map[string]string{"pragma": "pragmas"}

// packages are those whose %import brings types that are known here, and some
// that bring none that a storage is made of.
var packages = []string{
	"ZODB", "relstorage", "zc.zlibstorage", "zc.beforestorage", "zodb_pgjsonb", "zodb_s3blobs", "tempstorage", "ZEO",
	"Products.TemporaryFolder", "mailinglogger", "ZConfig.components.logger", "ZConfig.components.basic", "zope.app.server",
}
