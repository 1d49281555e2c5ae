package pgjsonb

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/watermark"
)

// setting is a setting as a session of the role begins with it.
type setting struct {
	name  string
	raw   string // in units
	unit  string
	kind  string // vartype
	where string // source: default, configuration file, command line, database, user, ...
	// file is where it stands, if the role may see that.
	file    string
	choices []string
	// restart: only a restart of the server changes it.
	restart bool
}

// settingNames are those that matter, in the order in which they are shown. Not
// every release has all of them.
var settingNames = []string{
	"shared_buffers", "max_wal_size", "checkpoint_timeout", "maintenance_work_mem", "max_parallel_maintenance_workers",
	"wal_compression", "wal_level", "archive_mode", "synchronous_standby_names", "max_slot_wal_keep_size",
	"synchronous_commit", "fsync", "full_page_writes",
	"autovacuum", "track_counts", "autovacuum_vacuum_scale_factor",
	"default_toast_compression", "effective_cache_size", "temp_file_limit", "default_transaction_read_only",
	"statement_timeout", "lock_timeout", "transaction_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
}

// readSettings reads them. The value is that which a new session gets: this one
// may be that of a pooler, for which somebody has set something.
func readSettings(ctx context.Context, q watermark.Querier) (map[string]*setting, error) {
	rows, err := q.Query(ctx, `SELECT name, reset_val, coalesce(unit, ''), vartype, source, coalesce(sourcefile, ''),
			coalesce(enumvals, '{}'), context = 'postmaster'
		FROM pg_catalog.pg_settings WHERE name = ANY($1::text[]) OR name IN ('checkpoint_completion_target', 'max_connections')`, settingNames)
	if err != nil {
		return nil, err
	}
	found := map[string]*setting{}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		s := new(setting)
		err := row.Scan(&s.name, &s.raw, &s.unit, &s.kind, &s.where, &s.file, &s.choices, &s.restart)
		found[s.name] = s
		return struct{}{}, err
	})
	return found, err
}

// units are what PostgreSQL counts in, by what it calls them.
var units = map[string]int64{
	"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40,
	"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000,
}

// number is the value in bytes or milliseconds, or without a unit; negative ones
// have a meaning of their own, and so has 0.
func (s *setting) number() int64 {
	n, err := strconv.ParseInt(s.raw, 10, 64)
	if err != nil || n <= 0 || s.unit == "" {
		return n
	}
	digits := len(s.unit) - len(strings.TrimLeft(s.unit, "0123456789")) // "8kB"
	if digits > 0 {
		many, _ := strconv.ParseInt(s.unit[:digits], 10, 64)
		n *= many
	}
	return n * units[s.unit[digits:]]
}

// is tells whether a setting that is there has one of the values.
func (s *setting) is(values ...string) bool { return s != nil && slices.Contains(values, s.raw) }

// String shows the value as PostgreSQL does: in the largest unit that is exact.
func (s *setting) String() string {
	n := s.number()
	switch {
	case s.kind != "integer" || n <= 0 || s.unit == "":
		return s.raw
	case strings.HasSuffix(s.unit, "B"):
		return sizeText(n)
	}
	return inUnit(n, "d", "h", "min", "s", "ms")
}

func sizeText(n int64) string { return inUnit(n, "TB", "GB", "MB", "kB", "B") }

func inUnit(n int64, names ...string) string {
	for _, name := range names {
		if n%units[name] == 0 {
			return strconv.FormatInt(n/units[name], 10) + name
		}
	}
	return strconv.FormatInt(n, 10)
}

// conditions are what advice depends on.
type conditions struct {
	*surveyor
	settings map[string]*setting
	shipping shipping
}

// advice is what to do about a setting: for the load, and for afterwards.
type advice func(c *conditions, s *setting) (load, after string)

// advices has no entry for settings that are shown only.
var advices = map[string]advice{
	"shared_buffers":                      adviseBuffers,
	"max_wal_size":                        adviseWALSize,
	"checkpoint_timeout":                  adviseCheckpoints,
	"maintenance_work_mem":                adviseBuildMemory,
	"max_parallel_maintenance_workers":    adviseBuildWorkers,
	"wal_compression":                     adviseCompression,
	"wal_level":                           adviseWALLevel,
	"synchronous_standby_names":           adviseStandbys,
	"synchronous_commit":                  adviseCommit,
	"fsync":                               adviseSync,
	"full_page_writes":                    advisePages,
	"autovacuum":                          adviseVacuum,
	"track_counts":                        adviseCounts,
	"autovacuum_vacuum_scale_factor":      adviseScale,
	"effective_cache_size":                adviseCache,
	"temp_file_limit":                     adviseTempFiles,
	"default_transaction_read_only":       adviseReadOnly,
	"statement_timeout":                   adviseTimeout,
	"lock_timeout":                        adviseTimeout,
	"transaction_timeout":                 adviseTimeout,
	"idle_in_transaction_session_timeout": adviseTimeout,
	"idle_session_timeout":                adviseTimeout,
}

// advise goes through the settings.
func (c *conditions) advise() []dest.Setting {
	var out []dest.Setting
	for _, name := range settingNames {
		s := c.settings[name]
		if s == nil {
			continue
		}
		shown := dest.Setting{Name: name, Value: s.String()}
		if fn := advices[name]; fn != nil {
			shown.Load, shown.After = fn(c, s)
		}
		out = append(out, shown)
	}
	return out
}

// bytes is a size that is there in all releases.
func (c *conditions) bytes(name string) int64 {
	if s := c.settings[name]; s != nil {
		return s.number()
	}
	return 0
}

// system is a value, and how a superuser sets it for all, or where what is set for
// some comes before that.
func (c *conditions) system(s *setting, value string) string {
	switch s.where {
	case "client", "user", "database user":
		return c.own(s, value)
	case "database":
		return fmt.Sprintf("%s (ALTER DATABASE %s SET %s = '%s')", value, quote(c.d.connect.config.Database), s.name, value)
	case "global":
		return fmt.Sprintf("%s (ALTER ROLE ALL SET %s = '%s')", value, s.name, value)
	}
	switch {
	case s.where == "command line":
		return fmt.Sprintf("%s (-c %s=%s where the server is started, which comes before ALTER SYSTEM)", value, s.name, value)
	case s.restart:
		return fmt.Sprintf("%s (ALTER SYSTEM SET %s = '%s', then a restart)", value, s.name, value)
	}
	return fmt.Sprintf("%s (ALTER SYSTEM SET %s = '%s')", value, s.name, value)
}

// back is the value of now, and how a superuser sets it again. Where it stands is
// told to some only; to reset what stands in postgresql.auto.conf would be to lose it.
func (c *conditions) back(s *setting) string {
	switch {
	case s.where == "command line":
		return fmt.Sprintf("back to %s", s)
	case path.Base(s.file) == "postgresql.auto.conf", s.file == "" && s.where == "configuration file":
		return fmt.Sprintf("back to %s (ALTER SYSTEM SET %s = '%s')", s, s.name, s)
	}
	return fmt.Sprintf("back to %s (ALTER SYSTEM RESET %s)", s, s.name)
}

// own is a value, and how it is set for the role. What comes before that has to be
// changed where it is.
func (c *conditions) own(s *setting, value string) string {
	role, database := quote(c.server.login), quote(c.d.connect.config.Database)
	switch s.where {
	case "client":
		return fmt.Sprintf("%s (in the options of the dsn, which set it)", value)
	case "database user":
		return fmt.Sprintf("%s (ALTER ROLE %s IN DATABASE %s SET %s = '%s')", value, role, database, s.name, value)
	}
	return fmt.Sprintf("%s (ALTER ROLE %s SET %s = '%s')", value, role, s.name, value)
}

// ownBack is the value of now, and how it is set for the role again.
func (c *conditions) ownBack(s *setting) string {
	role, database := quote(c.server.login), quote(c.d.connect.config.Database)
	switch s.where {
	case "client":
		return fmt.Sprintf("back to %s", s)
	case "database user":
		return fmt.Sprintf("back to %s (ALTER ROLE %s IN DATABASE %s SET %s = '%s')", s, role, database, s.name, s)
	case "user":
		return fmt.Sprintf("back to %s (ALTER ROLE %s SET %s = '%s')", s, role, s.name, s)
	}
	return fmt.Sprintf("back to %s (ALTER ROLE %s RESET %s)", s, role, s.name)
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

func adviseBuffers(c *conditions, s *setting) (load, after string) {
	if s.number() >= 512*mib {
		return "", ""
	}
	return c.system(s, "1GB") + ", or a quarter of the server's memory: tables and indexes are written and read through it",
		"leave it there, the site reads through it"
}

// enoughWAL is how much write-ahead log between checkpoints is worth no word.
const enoughWAL = 4 * gib

func adviseWALSize(c *conditions, s *setting) (load, after string) {
	if s.number() >= enoughWAL {
		return "", ""
	}
	target := 0.5
	if t := c.settings["checkpoint_completion_target"]; t != nil {
		if f, err := strconv.ParseFloat(t.raw, 64); err == nil {
			target = f
		}
	}
	each := int64(float64(s.number()) / (1 + target))
	return fmt.Sprintf("%s, if the disk of pg_wal has that much free: now a checkpoint begins after each %s of write-ahead log, and a load writes about as much of it as the database will take",
		c.system(s, "8GB"), roughly(each)), c.back(s) + ", or whatever the disk has room for"
}

func adviseCheckpoints(c *conditions, s *setting) (load, after string) {
	const minute = 60_000
	switch n := s.number(); {
	case n < 15*minute:
		return c.system(s, "30min") + ", together with a higher max_wal_size: with fewer checkpoints less is written twice",
			c.back(s) + ": the longer, the longer the server takes to start after a crash"
	case n > 60*minute:
		return "", c.system(s, "15min") + ": the longer, the longer the server takes to start after a crash"
	}
	return "", ""
}

// mostBuildMemory is what a run gives an index build of its own accord at most:
// see buildMemory.
const mostBuildMemory = 512 * mib

func adviseBuildMemory(c *conditions, s *setting) (load, after string) {
	builds := int64(min(max(c.workers, 1), len(neededIndexes(c.d.config.HistoryPreserving))))
	have := max(s.number(), min(c.bytes("shared_buffers"), mostBuildMemory))
	how := "one index is built at a time"
	if builds > 1 {
		how = fmt.Sprintf("%d indexes are built at a time", builds)
	}
	switch {
	case have < mostBuildMemory:
		return fmt.Sprintf("%s, if the server has %s of memory for that, because %s: now a conversion gives each %s, the greater of this and shared_buffers",
			c.own(s, "512MB"), sizeText(builds*mostBuildMemory), how, sizeText(have)), c.ownBack(s)
	case have > mostBuildMemory && builds > 1 && have*builds > 4*c.bytes("shared_buffers"):
		return fmt.Sprintf("%s, unless the server has %s of memory to spare, because %s and each may take %s", c.own(s, "512MB"), sizeText(have*builds), how, sizeText(have)),
			c.ownBack(s)
	}
	return "", ""
}

func adviseBuildWorkers(c *conditions, s *setting) (load, after string) {
	if s.number() > 0 {
		return "", ""
	}
	return c.own(s, "2") + ", if the server has more than two cores: several of them then build an index together", c.ownBack(s)
}

func adviseCompression(c *conditions, s *setting) (load, after string) {
	if !s.is("off") || !c.shipping.any() {
		return "", ""
	}
	value := "on"
	if slices.Contains(s.choices, "lz4") {
		value = "lz4"
	}
	return c.system(s, value) + ": the write-ahead log is archived or sent, and that of index builds becomes smaller",
		"leave it there, unless the processors are busy"
}

func adviseWALLevel(c *conditions, s *setting) (load, after string) {
	if !s.is("minimal") {
		return "", ""
	}
	return "", c.system(s, "replica") + ", if there is to be a standby, or a backup from which one can go on to any moment: with minimal there are dumps only"
}

func adviseStandbys(_ *conditions, s *setting) (load, after string) {
	if s.raw == "" {
		return "", ""
	}
	return "see that these standbys are up and keep up: the end of the load, each index and each transaction that is caught up wait for them", ""
}

func adviseCommit(c *conditions, s *setting) (load, after string) {
	// The load itself does not wait for the disk, whatever is set, and makes
	// everything durable at its end.
	if !s.is("off") {
		return "", ""
	}
	return "", c.own(s, "on") + ": a crash of the server could lose what the site has been told is stored"
}

const anew = "; or else, if the machine crashes meanwhile, convert anew with --clear and not with --incremental"

func adviseSync(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return c.system(s, "on") + anew + ": what is noted as done may not be on the disk",
		c.system(s, "on") + " before the site starts, and then run sync on the server: a crash of the machine can destroy the database"
}

func advisePages(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	const unless = ", unless the file system never leaves half a page, as ZFS"
	return c.system(s, "on") + unless + anew, c.system(s, "on") + unless + ": a crash of the machine can destroy pages"
}

func adviseVacuum(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "", c.system(s, "on") + " before the site starts: without it tables grow with each change, and statistics grow old"
}

func adviseCounts(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "", c.system(s, "on") + " before the site starts: without it autovacuum does nothing"
}

// manyObjects is from how many rows on a fifth of them is many dead ones.
const manyObjects = 1_000_000

func adviseScale(c *conditions, s *setting) (load, after string) {
	factor, err := strconv.ParseFloat(s.raw, 64)
	if c.out.Objects < manyObjects || err != nil || factor <= 0.1 || c.stored(s.name) {
		return "", ""
	}
	return "", fmt.Sprintf("0.05 for object_state (ALTER TABLE %s SET (%s = 0.05)): with %s it is vacuumed after some %d changes only",
		c.layout.name(objectState), s.name, s.raw, int64(factor*float64(c.out.Objects)))
}

func adviseCache(c *conditions, s *setting) (load, after string) {
	buffers := c.bytes("shared_buffers")
	if s.number() >= 2*buffers {
		return "", ""
	}
	return "", c.system(s, sizeText(3*buffers/mib*mib)) + ", if shared_buffers is a quarter of the server's memory, so that it is three quarters: it takes no memory, and the planner judges indexes by it"
}

func adviseTempFiles(c *conditions, s *setting) (load, after string) {
	if s.number() < 0 {
		return "", ""
	}
	return fmt.Sprintf("%s, by a superuser: now the build of an index that sorts more than %s fails", c.own(s, "-1"), s), c.ownBack(s)
}

func adviseReadOnly(c *conditions, s *setting) (load, after string) {
	if !s.is("on") {
		return "", ""
	}
	how := c.own(s, "off")
	if s.where == "database" {
		how = fmt.Sprintf("off (ALTER DATABASE %s RESET %s)", quote(c.d.connect.config.Database), s.name)
	}
	return how + ": nothing can be written", "leave it off, the site writes"
}

// timeouts are those by which a site would be hurt. It sets
// idle_in_transaction_session_timeout itself.
var timeouts = map[string]struct {
	enough int64 // ms
	hurts  string
}{
	"statement_timeout":    {600_000, "a pack has statements that take minutes"},
	"lock_timeout":         {30_000, "commits wait for each other by a lock, and would fail"},
	"transaction_timeout":  {600_000, "a request reads in one transaction, and a pack is one that takes minutes"},
	"idle_session_timeout": {3_600_000, "connections that wait for the next request are ended"},
}

// adviseTimeout knows that a conversion switches all of them off for its own
// sessions.
func adviseTimeout(c *conditions, s *setting) (load, after string) {
	n := s.number()
	if n <= 0 {
		return "", ""
	}
	if c.pooled {
		load = c.own(s, "0") + ", or connect to the server itself: a conversion switches it off for its sessions, and those of a pooler may be anybody's"
	}
	if t, known := timeouts[s.name]; known && n < t.enough {
		after = c.own(s, "0") + " for the role of the site: " + t.hurts
	}
	return load, after
}
