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
		FROM pg_catalog.pg_settings WHERE name = ANY($1::text[]) OR name = 'checkpoint_completion_target'`, settingNames)
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

// system is how a superuser sets what is the same for all.
func (c *conditions) system(s *setting, value string) string {
	if s.where == "command line" {
		return fmt.Sprintf("change it where the server is started: -c %s on its command line comes before ALTER SYSTEM", s.name)
	}
	sql := fmt.Sprintf("ALTER SYSTEM SET %s = '%s'", s.name, value)
	if s.restart {
		return sql + ", then restart the server"
	}
	return sql
}

// back is how a superuser undoes that.
func (c *conditions) back(s *setting) string {
	text := fmt.Sprintf("back to %s", s)
	switch {
	case s.where == "command line":
		return text
	case path.Base(s.file) == "postgresql.auto.conf":
		return fmt.Sprintf("%s: ALTER SYSTEM SET %s = '%s'", text, s.name, s)
	}
	return fmt.Sprintf("%s: ALTER SYSTEM RESET %s", text, s.name)
}

// own is how the role sets something for itself. It needs no superuser.
func (c *conditions) own(s *setting, value string) string {
	switch s.where {
	case "client":
		return fmt.Sprintf("take %s out of the options of the connection string, or give it as %s there", s.name, value)
	case "database user":
		return fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET %s = '%s'", quote(c.server.login), quote(c.d.connect.config.Database), s.name, value)
	}
	return fmt.Sprintf("ALTER ROLE %s SET %s = '%s'", quote(c.server.login), s.name, value)
}

// ownBack is how the role undoes that.
func (c *conditions) ownBack(s *setting) string {
	text := fmt.Sprintf("back to %s", s)
	switch s.where {
	case "client":
		return text
	case "database user":
		return fmt.Sprintf("%s: ALTER ROLE %s IN DATABASE %s SET %s = '%s'", text, quote(c.server.login), quote(c.d.connect.config.Database), s.name, s)
	case "user":
		return fmt.Sprintf("%s: ALTER ROLE %s SET %s = '%s'", text, quote(c.server.login), s.name, s)
	}
	return fmt.Sprintf("%s: ALTER ROLE %s RESET %s", text, quote(c.server.login), s.name)
}

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func adviseBuffers(c *conditions, s *setting) (load, after string) {
	if s.number() >= 512*mib {
		return "", ""
	}
	return "about a quarter of the server's memory, 1GB where there are 4: indexes are built and found in it. " + c.system(s, "1GB"),
		"leave it there: the site reads through it"
}

// enoughWAL is how much may be written between two checkpoints before they are
// worth a word; a load writes about as much as the database will take.
const enoughWAL, goodWAL = 4, 8

func adviseWALSize(c *conditions, s *setting) (load, after string) {
	if s.number() >= enoughWAL*gib {
		return "", ""
	}
	target := 0.5
	if t := c.settings["checkpoint_completion_target"]; t != nil {
		if f, err := strconv.ParseFloat(t.raw, 64); err == nil {
			target = f
		}
	}
	each := int64(float64(s.number()) / (1 + target) / float64(mib))
	return fmt.Sprintf("%dGB, if the disk of pg_wal has that much free: now a checkpoint begins after each %dMB of write-ahead log, of which a load makes about as much as the database will take. %s",
		goodWAL, each, c.system(s, fmt.Sprintf("%dGB", goodWAL))), c.back(s) + "; a higher one is well, too, where the disk has room for it"
}

func adviseCheckpoints(c *conditions, s *setting) (load, after string) {
	const minute = 60_000
	switch n := s.number(); {
	case n < 15*minute:
		return "30min, together with max_wal_size: fewer checkpoints write less twice. " + c.system(s, "30min"),
			c.back(s) + ": after a crash the server repeats what came since the last checkpoint"
	case n > 60*minute:
		return "", "15min: after a crash the server repeats what came since the last checkpoint, which takes long after " + s.String() + ". " + c.system(s, "15min")
	}
	return "", ""
}

// mostBuildMemory is what a run gives an index build of its own accord.
const mostBuildMemory = 512 * mib

func adviseBuildMemory(c *conditions, s *setting) (load, after string) {
	builds := min(max(c.workers, 1), len(neededIndexes(c.d.config.HistoryPreserving)))
	have := max(s.number(), min(c.bytes("shared_buffers"), mostBuildMemory))
	switch {
	case have < mostBuildMemory:
		return fmt.Sprintf("512MB, if the server has %s for it, as %s at once: a conversion gives each %s, the greater of this and shared_buffers. %s",
				sizeText(int64(builds)*mostBuildMemory), buildsText(builds), sizeText(have), c.own(s, "512MB")),
			c.ownBack(s)
	case have > mostBuildMemory && builds > 1 && have*int64(builds) > 4*c.bytes("shared_buffers"):
		return fmt.Sprintf("512MB, unless the server has %s to spare: %s at once, and each may take %s. %s",
			sizeText(have*int64(builds)), buildsText(builds), sizeText(have), c.own(s, "512MB")), c.ownBack(s)
	}
	return "", ""
}

func buildsText(n int) string {
	if n == 1 {
		return "one index is built"
	}
	return fmt.Sprintf("%d indexes are built", n)
}

func adviseBuildWorkers(c *conditions, s *setting) (load, after string) {
	if s.number() > 0 {
		return "", ""
	}
	return "2, if the server has more than two cores: each build of a B-tree then uses several of them. " + c.own(s, "2"), c.ownBack(s)
}

func adviseCompression(c *conditions, s *setting) (load, after string) {
	if !s.is("off") || !c.shipping.any() {
		return "", ""
	}
	value := "on"
	if slices.Contains(s.choices, "lz4") {
		value = "lz4"
	}
	return fmt.Sprintf("%s: the write-ahead log is archived or sent, and that of the index builds becomes smaller. %s", value, c.system(s, value)),
		"leave it there, unless the processors are busy"
}

func adviseWALLevel(c *conditions, s *setting) (load, after string) {
	if s.is("minimal") {
		return "", "replica, if there will be a standby, or backups from which one can go on to a moment: with minimal there is pg_dump only. " + c.system(s, "replica")
	}
	return "", ""
}

func adviseStandbys(c *conditions, s *setting) (load, after string) {
	if s.raw == "" {
		return "", ""
	}
	return "see that these standbys are up and keep up: the end of the load, each index and each transaction that is caught up waits for them", ""
}

func adviseCommit(c *conditions, s *setting) (load, after string) {
	// The load itself does not wait for the disk, whatever is set, and makes
	// everything durable at its end.
	if s.is("off") {
		return "", "on: what the site has acknowledged could be lost in a crash. " + c.own(s, "on")
	}
	return "", ""
}

func adviseSync(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "on; or else, after a crash of the machine, make the database anew and do not go on with --incremental: what a run has noted as done may be lost. " + c.system(s, "on"),
		"on, before the site starts: a crash of the machine can destroy the database. Then run CHECKPOINT and, on the server, sync. " + c.system(s, "on")
}

func advisePages(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "on, unless the file system never writes a part of a page (ZFS does not); or else, after a crash of the machine, make the database anew and do not go on with --incremental. " + c.system(s, "on"),
		"on, unless the file system never writes a part of a page (ZFS does not). " + c.system(s, "on")
}

func adviseVacuum(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "", "on, before the site starts: without it tables grow with each change and statistics grow old. " + c.system(s, "on")
}

func adviseCounts(c *conditions, s *setting) (load, after string) {
	if !s.is("off") {
		return "", ""
	}
	return "", "on, before the site starts: without it autovacuum does nothing. " + c.system(s, "on")
}

// manyObjects is from how many rows on a fifth of them is many dead ones.
const manyObjects = 1_000_000

func adviseScale(c *conditions, s *setting) (load, after string) {
	factor, err := strconv.ParseFloat(s.raw, 64)
	if c.out.Objects < manyObjects || err != nil || factor <= 0.1 || c.stored("autovacuum_vacuum_scale_factor") {
		return "", ""
	}
	return "", fmt.Sprintf("0.05 for object_state: with %s it is vacuumed only after %d rows were changed. ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.05)",
		s.raw, int64(factor*float64(c.out.Objects)), c.layout.name(objectState))
}

func adviseCache(c *conditions, s *setting) (load, after string) {
	buffers := c.bytes("shared_buffers")
	if s.number() >= 2*buffers {
		return "", ""
	}
	want := sizeText(3 * buffers / mib * mib)
	return "", fmt.Sprintf("about three quarters of the server's memory, %s if shared_buffers is a quarter of it: by this the planner decides whether an index is worth it; it takes no memory. %s", want, c.system(s, want))
}

func adviseTempFiles(c *conditions, s *setting) (load, after string) {
	if s.number() < 0 {
		return "", ""
	}
	return fmt.Sprintf("-1: an index build that sorts more than %s ends with an error. As a superuser: %s", s, c.own(s, "-1")), c.ownBack(s)
}

func adviseReadOnly(c *conditions, s *setting) (load, after string) {
	if !s.is("on") {
		return "", ""
	}
	how := c.own(s, "off")
	if s.where == "database" {
		how = fmt.Sprintf("ALTER DATABASE %s RESET %s", quote(c.d.connect.config.Database), s.name)
	}
	return "off: nothing can be written. " + how, "leave it off: the site writes"
}

// timeouts tell what one of them does to a site. A conversion switches all of
// them off for its own sessions. A site does so with idle_in_transaction_session_timeout.
var timeouts = map[string]struct {
	below int64 // ms; 0: any
	does  string
}{
	"statement_timeout":    {600_000, "a pack has statements that take minutes, and would be ended by it"},
	"lock_timeout":         {30_000, "commits of a site wait for each other by a lock, and would fail by it"},
	"transaction_timeout":  {0, "a site reads in one transaction as long as a request takes, and a pack takes longer; it ends their connections"},
	"idle_session_timeout": {0, "a site keeps connections for the next request, and it ends them"},
}

func adviseTimeout(c *conditions, s *setting) (load, after string) {
	n := s.number()
	if n <= 0 {
		return "", ""
	}
	if c.pooled {
		load = "0: a conversion switches it off for its sessions, but behind a pooler they are not its own. Connect to the server itself, or " + c.own(s, "0")
	}
	if t, known := timeouts[s.name]; known && (t.below == 0 || n < t.below) {
		after = fmt.Sprintf("0 for the role of the site: %s. %s", t.does, c.own(s, "0"))
	}
	return load, after
}
