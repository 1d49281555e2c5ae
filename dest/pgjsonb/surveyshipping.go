package pgjsonb

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/watermark"
)

// shipping is where the write-ahead log goes besides the server's own disk.
type shipping struct {
	archive   bool
	failing   bool // the archive has not taken the latest file
	receivers int
	slots     []slot
}

// slot keeps the write-ahead log for somebody.
type slot struct {
	name   string
	active bool
	lost   bool // it keeps nothing any more
	kept   int64
}

func (s *shipping) any() bool { return s.archive || s.receivers > 0 || len(s.slots) > 0 }

// readShipping asks for it. Whatever a release does not have is left out.
func readShipping(ctx context.Context, q watermark.Querier) (s shipping, err error) {
	err = q.QueryRow(ctx, `SELECT current_setting('archive_mode') <> 'off',
			coalesce((SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_catalog.pg_stat_archiver), false),
			(SELECT count(*)::int FROM pg_catalog.pg_stat_replication)`).Scan(&s.archive, &s.failing, &s.receivers)
	if err != nil {
		return s, err
	}
	rows, err := q.Query(ctx, `SELECT slot_name::text, active, coalesce(to_jsonb(r)->>'wal_status' = 'lost', false) OR restart_lsn IS NULL,
			coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::int8
		FROM pg_catalog.pg_replication_slots r WHERE NOT temporary ORDER BY slot_name`)
	if err != nil {
		return s, err
	}
	s.slots, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (x slot, err error) {
		return x, row.Scan(&x.name, &x.active, &x.lost, &x.kept)
	})
	return s, err
}

// general is advice that is not about one setting.
func (s *surveyor) general(c *conditions) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var system, restart bool
	for _, set := range s.out.Settings {
		if strings.Contains(set.Load+set.After, "ALTER SYSTEM SET") {
			system = true
			restart = restart || strings.Contains(set.Load+set.After, "then a restart")
		}
	}
	if system {
		text := "ALTER SYSTEM is for superusers; what it sets takes effect after SELECT pg_reload_conf()"
		if restart {
			text += ", and after a restart where that is said"
		}
		say("%s. Hosted servers have a page for settings instead.", text)
	}
	if c.settings != nil {
		s.note("How much memory and how much free disk the server has cannot be asked by SQL: what is said of settings holds for 4 GB of memory or more.")
	}
	s.fewConnections(c)
	ship := &c.shipping
	if ship.archive {
		say("The write-ahead log is archived (archive_mode), and a load makes about as much of it as the database will take: see that the archive has room for it.")
	}
	if ship.archive && ship.failing {
		say("The archive has not taken the latest file of the write-ahead log (pg_stat_archiver): as long as that lasts all of it stays in pg_wal, and a load would fill its disk. Mend that first.")
	}
	if n := ship.receivers; n > 0 {
		say("%s the write-ahead log of the server at this moment: the load goes to them, too. See that their disks have room for the database and that they keep up.", receive(n))
	}
	keep := c.settings["max_slot_wal_keep_size"]
	for _, slot := range ship.slots {
		switch {
		case slot.lost:
		case !slot.active && (keep == nil || keep.number() < 0):
			say("Nobody reads the replication slot %q, for which the server keeps %s of its write-ahead log now and would keep all of that of the load: start its reader, or give it up with SELECT pg_drop_replication_slot('%s').",
				slot.name, roughly(slot.kept), strings.ReplaceAll(slot.name, "'", "''"))
		case !slot.active:
			say("Nobody reads the replication slot %q: the server keeps up to %s of its write-ahead log for it, and a load makes more, after which the slot is lost and its reader, a standby for example, has to be made anew.", slot.name, keep)
		}
	}
	return out
}

// fewConnections tells how many workers there can be, and how to allow more.
func (s *surveyor) fewConnections(c *conditions) {
	have := s.out.Connections
	missing := have.Needed - have.Free
	if missing <= 0 {
		return
	}
	raise := "raise max_connections"
	switch most := c.settings["max_connections"]; {
	case have.Limit == roleLimit:
		raise = fmt.Sprintf("raise it (ALTER ROLE %s CONNECTION LIMIT %d)", quote(s.server.login), have.Max+missing)
	case have.Limit == databaseLimit:
		raise = fmt.Sprintf("raise it (ALTER DATABASE %s CONNECTION LIMIT %d)", quote(s.d.connect.config.Database), have.Max+missing)
	case most != nil:
		raise = "raise it to " + c.system(most, strconv.FormatInt(most.number()+int64(missing), 10))
	}
	less := "end other sessions"
	if workers := s.workers - missing; workers > 0 {
		less = fmt.Sprintf("use -w %d", workers)
	}
	s.recommend("%s connections and %s leaves %d: %s, or %s.", takes(s.workers, have.Needed), have.Limit, have.Free, less, raise)
}

func takes(workers, connections int) string {
	if workers == 1 {
		return fmt.Sprintf("One worker takes %d", connections)
	}
	return fmt.Sprintf("%d workers take %d", workers, connections)
}

func receive(n int) string {
	if n == 1 {
		return "One standby, or another client, receives"
	}
	return fmt.Sprintf("%d standbys, or other clients, receive", n)
}

// roughly is a size for people.
func roughly(n int64) string {
	for _, name := range []string{"TB", "GB", "MB"} {
		if n >= units[name] {
			return fmt.Sprintf("%.3g %s", float64(n)/float64(units[name]), name)
		}
	}
	return "less than 1 MB"
}
