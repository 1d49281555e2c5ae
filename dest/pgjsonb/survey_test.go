package pgjsonb_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/desttest"
	"github.com/zodb-convert/zodb-convert/dest/pgjsonb"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
	"github.com/zodb-convert/zodb-convert/internal/pgtest"
)

// surveyOf asks for a survey, which must be fit to be shown.
func surveyOf(t *testing.T, d dest.Destination, workers int) *dest.Survey {
	t.Helper()
	got := d.Survey(t.Context(), workers)
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "-secret") || strings.Contains(string(text), "null") {
		t.Errorf("there is a password, or a list that is none, in %s", text)
	}
	for _, s := range slices.Concat(got.Advice, got.Notes) {
		if !strings.HasSuffix(s, ".") || strings.Contains(s, "..") || strings.ToUpper(s[:1]) != s[:1] || strings.Contains(s, "\n") {
			t.Errorf("%q is no sentence", s)
		}
	}
	return got
}

func survey(t *testing.T, config pgjsonb.Config, workers int) *dest.Survey {
	t.Helper()
	d, err := pgjsonb.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return surveyOf(t, d, workers)
}

func settingOf(t *testing.T, s *dest.Survey, name string) dest.Setting {
	t.Helper()
	for _, set := range s.Settings {
		if set.Name == name {
			return set
		}
	}
	t.Fatalf("%s is not among the settings", name)
	return dest.Setting{}
}

func rightOf(t *testing.T, s *dest.Survey, begins string) dest.Right {
	t.Helper()
	for _, r := range s.Rights {
		if strings.HasPrefix(r.Name, begins) {
			return r
		}
	}
	t.Fatalf("%q is not among the rights %v", begins, s.Rights)
	return dest.Right{}
}

func says(t *testing.T, what string, texts []string, want ...string) {
	t.Helper()
	all := strings.Join(texts, "\n")
	for _, w := range want {
		if !strings.Contains(all, w) {
			t.Errorf("%s do not say %q:\n%s", what, w, all)
		}
	}
}

// statement finds the SQL in advice.
var statement = regexp.MustCompile(`\((ALTER (?:[^()]|\([^()]*\))*)\)`)

// follow does what advice says, as a superuser.
func follow(t *testing.T, s *pgtest.Server, dsn, advice string) {
	t.Helper()
	sql := statement.FindStringSubmatch(advice)
	if sql == nil {
		t.Fatalf("there is no statement in %q", advice)
	}
	s.Exec(t, dsn, strings.TrimSuffix(sql[1], ", then a restart"))
	s.Reload(t)
}

// TestAdviceHoldsAndIsLeftOutOnceItIsFollowed changes one thing at a time, does
// what is said for the load and then what is said for afterwards.
func TestAdviceHoldsAndIsLeftOutOnceItIsFollowed(t *testing.T) {
	s := pgtest.Start(t, pgtest.Setting("fsync", "on"), pgtest.Setting("full_page_writes", "on"))
	s.NewRole(t, "zope", "zope-secret")
	for name, c := range map[string]struct {
		set     string // DB is the database
		setting string
		workers int
		value   string
		load    string // "" if there is to be no advice
		after   string
		back    string // the value once both were followed
	}{
		"shared buffers as installed":      {setting: "shared_buffers", value: "128MB", load: "1GB (ALTER SYSTEM SET shared_buffers = '1GB', then a restart)", after: "leave it"},
		"write-ahead log as installed":     {setting: "max_wal_size", value: "1GB", load: "a checkpoint begins after each 539 MB", after: "back to 1GB (ALTER SYSTEM RESET max_wal_size)", back: "1GB"},
		"write-ahead log set before":       {set: "ALTER SYSTEM SET max_wal_size = '2GB'", setting: "max_wal_size", value: "2GB", load: "8GB (ALTER SYSTEM SET max_wal_size = '8GB')", after: "back to 2GB (ALTER SYSTEM SET max_wal_size = '2GB')", back: "2GB"},
		"write-ahead log that is enough":   {set: "ALTER SYSTEM SET max_wal_size = '4GB'", setting: "max_wal_size", value: "4GB"},
		"checkpoints as installed":         {setting: "checkpoint_timeout", value: "5min", load: "30min (ALTER SYSTEM", after: "back to 5min", back: "5min"},
		"checkpoints once in two hours":    {set: "ALTER SYSTEM SET checkpoint_timeout = '2h'", setting: "checkpoint_timeout", value: "2h", after: "15min (ALTER SYSTEM", back: "15min"},
		"checkpoints that are well":        {set: "ALTER SYSTEM SET checkpoint_timeout = '20min'", setting: "checkpoint_timeout", value: "20min"},
		"memory for builds as installed":   {setting: "maintenance_work_mem", workers: 4, value: "64MB", load: "2GB of memory for that, because 4 indexes are built at a time: now a conversion gives each 128MB", after: "RESET", back: "64MB"},
		"memory for builds of the role":    {set: "ALTER ROLE zope IN DATABASE DB SET maintenance_work_mem = '256MB'", setting: "maintenance_work_mem", workers: 1, value: "256MB", load: "one index is built at a time", after: "back to 256MB", back: "256MB"},
		"memory for builds of the db":      {set: "ALTER DATABASE DB SET maintenance_work_mem = '300MB'", setting: "maintenance_work_mem", workers: 20, value: "300MB", load: "3GB of memory for that, because 6 indexes", after: "RESET", back: "300MB"},
		"memory for builds that is enough": {set: "ALTER DATABASE DB SET maintenance_work_mem = '512MB'", setting: "maintenance_work_mem", workers: 4, value: "512MB"},
		"memory for builds in excess":      {set: "ALTER DATABASE DB SET maintenance_work_mem = '4GB'", setting: "maintenance_work_mem", workers: 4, value: "4GB", load: "unless the server has 16GB of memory to spare", after: "back to 4GB", back: "4GB"},
		"no help for builds":               {set: "ALTER DATABASE DB SET max_parallel_maintenance_workers = 0", setting: "max_parallel_maintenance_workers", value: "0", load: "2 (ALTER ROLE", after: "back to 0", back: "0"},
		"nothing that takes the log":       {setting: "wal_compression", value: "off"},
		"commits that do not wait":         {set: "ALTER DATABASE DB SET synchronous_commit = off", setting: "synchronous_commit", value: "off", after: "on (ALTER ROLE", back: "on"},
		"commits that wait":                {setting: "synchronous_commit", value: "on"},
		"no fsync":                         {set: "ALTER SYSTEM SET fsync = off", setting: "fsync", value: "on"}, // the command line comes before
		"a planner without memory":         {set: "ALTER DATABASE DB SET effective_cache_size = '128MB'", setting: "effective_cache_size", value: "128MB", after: "384MB (ALTER DATABASE", back: "384MB"},
		"a planner without, by the role":   {set: "ALTER ROLE zope SET effective_cache_size = '128MB'", setting: "effective_cache_size", value: "128MB", after: "384MB (ALTER ROLE \"zope\" SET", back: "384MB"},
		"a planner without, by both":       {set: "ALTER ROLE zope IN DATABASE DB SET effective_cache_size = '128MB'", setting: "effective_cache_size", value: "128MB", after: "384MB (ALTER ROLE \"zope\" IN DATABASE", back: "384MB"},
		"a planner without, for all roles": {set: "ALTER ROLE ALL SET effective_cache_size = '128MB'", setting: "effective_cache_size", value: "128MB", after: "384MB (ALTER ROLE ALL", back: "384MB"},
		"a planner without, on the server": {set: "ALTER SYSTEM SET effective_cache_size = '128MB'", setting: "effective_cache_size", value: "128MB", after: "384MB (ALTER SYSTEM", back: "384MB"},
		"sorts that are limited":           {set: "ALTER DATABASE DB SET temp_file_limit = '1GB'", setting: "temp_file_limit", value: "1GB", load: "-1 (ALTER ROLE", after: "back to 1GB", back: "1GB"},
		"read-only by the database":        {set: "ALTER DATABASE DB SET default_transaction_read_only = on", setting: "default_transaction_read_only", value: "on", load: "off (ALTER DATABASE", after: "leave it off", back: "off"},
		"read-only by the role":            {set: "ALTER ROLE zope SET default_transaction_read_only = on", setting: "default_transaction_read_only", value: "on", load: "off (ALTER ROLE", after: "leave it off", back: "off"},
		"statements of a minute":           {set: "ALTER DATABASE DB SET statement_timeout = '1min'", setting: "statement_timeout", value: "1min", after: "a pack has statements", back: "0"},
		"statements of an hour":            {set: "ALTER DATABASE DB SET statement_timeout = '1h'", setting: "statement_timeout", value: "1h"},
		"locks of a second":                {set: "ALTER ROLE zope SET lock_timeout = '1500ms'", setting: "lock_timeout", value: "1500ms", after: "commits wait", back: "0"},
		"idle in a transaction":            {set: "ALTER DATABASE DB SET idle_in_transaction_session_timeout = '1min'", setting: "idle_in_transaction_session_timeout", value: "1min"},
		"idle sessions":                    {set: "ALTER DATABASE DB SET idle_session_timeout = '1min'", setting: "idle_session_timeout", value: "1min", after: "0 (ALTER ROLE", back: "0"},
		"compression by pglz":              {setting: "default_toast_compression", value: "pglz"},
	} {
		check := func(t *testing.T, grant, after string) {
			super := s.NewDatabase(t, "OWNER zope")
			db := super[strings.Index(super, "dbname=")+len("dbname="):]
			config := pgjsonb.Config{DSN: strings.Replace(super, "user=postgres", "user=zope", 1)}
			super = s.DSN("postgres") // where nothing is set
			t.Cleanup(func() {
				s.Exec(t, super, "ALTER SYSTEM RESET ALL")
				s.Exec(t, super, "ALTER ROLE zope RESET ALL")
				s.Exec(t, super, "ALTER ROLE ALL RESET ALL")
				s.Reload(t)
			})
			if c.set != "" {
				s.Exec(t, super, strings.ReplaceAll(c.set, "DB", db))
				s.Reload(t)
			}
			s.Exec(t, super, grant)
			got := settingOf(t, survey(t, config, c.workers), c.setting)
			if got.Value != c.value || (got.Load == "") != (c.load == "") || (got.After == "") != (after == "") ||
				!strings.Contains(got.Load, c.load) || !strings.Contains(got.After, after) {
				t.Fatalf("%+v", got)
			}
			if c.load != "" && !strings.Contains(got.Load, "restart") {
				follow(t, s, super, got.Load)
				if now := settingOf(t, survey(t, config, c.workers), c.setting); now.Load != "" {
					t.Errorf("once it is followed there is still %+v", now)
				}
			}
			if c.back != "" {
				if statement.MatchString(got.After) {
					follow(t, s, super, got.After)
				}
				if now := settingOf(t, survey(t, config, c.workers), c.setting); now.Value != c.back || c.load == "" && now.After != "" {
					t.Errorf("afterwards there is %+v", now)
				}
			}
		}
		// Where a setting of the system stands is shown to some only. What stands in a
		// file that is not known is set, so that it is not lost.
		t.Run(name, func(t *testing.T) { check(t, "GRANT pg_read_all_settings TO zope", c.after) })
		t.Run(name+", to a plain role", func(t *testing.T) {
			check(t, "REVOKE pg_read_all_settings FROM zope", strings.Replace(c.after, "RESET max_wal_size", "SET max_wal_size = '1GB'", 1))
		})
	}
}

// TestAdviceOnAServerThatIsTunedForSpeed is about what only a start of the server
// sets, and on its command line.
func TestAdviceOnAServerThatIsTunedForSpeed(t *testing.T) {
	s := pgtest.Start(t, pgtest.Setting("wal_level", "minimal"), pgtest.Setting("max_wal_senders", "0"), pgtest.Setting("autovacuum", "off"),
		pgtest.Setting("track_counts", "off"), pgtest.Setting("shared_buffers", "600MB"), pgtest.Setting("effective_cache_size", "1GB"),
		pgtest.Setting("max_wal_size", "2GB"), pgtest.Setting("checkpoint_timeout", "30min"))
	got := survey(t, pgjsonb.Config{DSN: s.NewDatabase(t)}, 2)
	for name, want := range map[string]struct{ load, after string }{
		"fsync":                {"on (-c fsync=on where the server is started", "and then run sync on the server"},
		"full_page_writes":     {"convert anew with --clear", "unless the file system"},
		"autovacuum":           {"", "on (-c autovacuum=on"},
		"track_counts":         {"", "without it autovacuum does nothing"},
		"wal_level":            {"", "replica (-c wal_level=replica"},
		"effective_cache_size": {"", "1800MB (-c effective_cache_size=1800MB"},
		"shared_buffers":       {"", ""},
		"checkpoint_timeout":   {"", ""},
		"max_wal_size":         {"8GB (-c max_wal_size=8GB where", "back to 2GB, or"},
	} {
		set := settingOf(t, got, name)
		if (set.Load == "") != (want.load == "") || (set.After == "") != (want.after == "") || !strings.Contains(set.Load, want.load) || !strings.Contains(set.After, want.after) {
			t.Errorf("%+v", set)
		}
	}
}

func TestStorageParametersThatSwitchAutovacuumOffAreFound(t *testing.T) {
	for value, off := range map[string]bool{"off": true, "false": true, "0": true, "no": true, "f": true, "on": false, "1": false} {
		d := newDatabase(t)
		convert(t, d, desttest.NewBuilder(), false)
		d.exec(t, "ALTER TABLE object_state SET (autovacuum_enabled = '"+value+"', toast.autovacuum_enabled = '"+value+"', fillfactor = 90)")
		got := survey(t, pgjsonb.Config{DSN: d.dsn}, 1)
		for _, name := range []string{"object_state.autovacuum_enabled", "object_state.toast.autovacuum_enabled"} {
			set := settingOf(t, got, name)
			if set.Value != value || set.Load != "" || (set.After != "") != off {
				t.Errorf("%+v", set)
			}
			if off {
				follow(t, d.server, d.server.DSN(d.name()), set.After)
			}
		}
		if off && slices.ContainsFunc(survey(t, pgjsonb.Config{DSN: d.dsn}, 1).Settings, func(s dest.Setting) bool { return strings.Contains(s.Name, "autovacuum_enabled") }) {
			t.Error("once it is followed there is still advice")
		}
	}
}

// TestManyObjectsAreEstimatedAndVacuumedSooner lets PostgreSQL take a table for
// larger than it is.
func TestManyObjectsAreEstimatedAndVacuumedSooner(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.NewBuilder(), false)
	super := d.server.DSN(d.name())
	d.exec(t, "INSERT INTO transaction_log (tid) VALUES (1)")
	d.exec(t, "INSERT INTO object_state SELECT n, 1, 'm', 'c', '{}', 2 FROM generate_series(1, 100001) n")
	d.exec(t, "ALTER TABLE object_state SET (autovacuum_enabled = off)") // it would correct the estimate
	d.server.Exec(t, super, "UPDATE pg_class SET reltuples = 2e6 WHERE oid = 'object_state'::regclass")
	config := pgjsonb.Config{DSN: d.dsn}
	got := survey(t, config, 1)
	if got.Objects != 2_000_000 {
		t.Errorf("there are %d objects", got.Objects)
	}
	says(t, "the notes", got.Notes, "The number of objects is PostgreSQL's estimate.")
	set := settingOf(t, got, "autovacuum_vacuum_scale_factor")
	if set.Load != "" || !strings.Contains(set.After, "after some 400000 changes") {
		t.Fatalf("%+v", set)
	}
	follow(t, d.server, super, set.After)
	if set = settingOf(t, survey(t, config, 1), set.Name); set.After != "" {
		t.Errorf("once it is followed there is still %+v", set)
	}
}

func TestRightsThatARoleLacksAreNamedWithTheStatementThatGivesThem(t *testing.T) {
	s := postgres.Server(t)
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	super := s.DSN(d.name())
	s.NewRole(t, "reader", "reader-secret")
	s.Exec(t, super, fmt.Sprintf("REVOKE TEMPORARY ON DATABASE %s FROM PUBLIC; REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; "+
		"REVOKE EXECUTE ON FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) FROM PUBLIC", d.name()))
	config := pgjsonb.Config{DSN: s.DSNAs(d.name(), "reader")}

	got := survey(t, config, 1)
	if !strings.Contains(got.Problem, "may not create tables") || got.Role != "reader" || got.Condition != "" || got.Bytes == 0 || len(got.Settings) < 20 {
		t.Errorf("the survey of a role without rights is %+v", got)
	}
	says(t, "the notes", got.Notes, "GRANT SELECT ON ALL TABLES IN SCHEMA")
	says(t, "the advice", got.Advice, "There is another problem", "does not own table")
	for _, r := range got.Rights {
		if r.Granted || r.Hint == "" {
			t.Errorf("%+v", r)
		}
	}

	s.Exec(t, super, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader; GRANT SELECT ON SEQUENCE zoid_seq TO reader")
	got = survey(t, config, 1)
	if got.Condition != dest.Filled || got.Objects == 0 || len(got.Faults) > 0 || slices.ContainsFunc(got.Notes, func(s string) bool { return strings.Contains(s, "GRANT") }) {
		t.Errorf("the survey of a role that may read is %+v", got)
	}

	for _, r := range got.Rights {
		var grants []string
		for _, part := range regexp.MustCompile(`; | for the time|, or `).Split(r.Hint, -1) {
			if strings.HasPrefix(part, "GRANT ") && !strings.Contains(part, "the role of its owner") || strings.HasPrefix(part, "ALTER TABLE ") {
				grants = append(grants, part)
			}
		}
		if strings.HasPrefix(r.Name, "use the language") { // a language that everybody may use is there by now
			grants = grants[len(grants)-1:]
		}
		if len(grants) == 0 {
			t.Errorf("there is no statement in %q", r.Hint)
		}
		for _, sql := range grants {
			s.Exec(t, super, sql)
		}
	}
	got = survey(t, config, 1)
	for _, r := range got.Rights {
		if !r.Granted || r.Hint != "" {
			t.Errorf("%+v", r)
		}
	}
	if got.Problem != "" {
		t.Error(got.Problem)
	}
}

func TestRowLevelSecurityIsARightThatIsMissing(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	d.exec(t, "ALTER TABLE object_state ENABLE ROW LEVEL SECURITY; ALTER TABLE object_state FORCE ROW LEVEL SECURITY")
	got := survey(t, pgjsonb.Config{DSN: d.dsn}, 1)
	if r := rightOf(t, got, "see all rows of the table object_state"); r.Granted || !r.Needed {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(got.Problem, "row-level security") {
		t.Error(got.Problem)
	}
}

func TestConnectionsAreThoseOfTheTightestLimit(t *testing.T) {
	s := postgres.Server(t)
	d := newDatabase(t)
	super := s.DSN(d.name())
	s.NewRole(t, "few", "few-secret")
	s.Exec(t, super, "GRANT CREATE ON SCHEMA public TO few")
	config := pgjsonb.Config{DSN: s.DSNAs(d.name(), "few")}
	watch, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close(context.Background())
	// A session ends a moment after its connection was closed, and of a vacuum a role
	// does not see that it is no client.
	look := func(workers, sessions int) *dest.Survey {
		t.Helper()
		for stop := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			var n int
			if err := watch.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_backend_pid()").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if n == sessions {
				return survey(t, config, workers)
			}
			if time.Now().After(stop) {
				t.Fatalf("%d sessions besides that of the test, not %d", n, sessions)
			}
		}
	}
	check := func(what string, sessions int, want dest.Connections) {
		t.Helper()
		if diff := cmp.Diff(want, look(4, sessions).Connections); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("no limit", 0, dest.Connections{Limit: "max_connections", Max: 57, Used: 1, Free: 56, Needed: 5})
	s.Exec(t, super, "ALTER ROLE few CONNECTION LIMIT 7")
	check("a limit of the role", 0, dest.Connections{Limit: "the limit of the role", Max: 7, Free: 7, Needed: 5})
	s.Exec(t, super, "ALTER DATABASE "+d.name()+" CONNECTION LIMIT 6")
	held, err := pgx.Connect(t.Context(), s.DSNAs(d.name(), "few"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close(context.Background())
	check("a limit of the database, and a session", 1, dest.Connections{Limit: "the limit of the database", Max: 6, Used: 1, Free: 5, Needed: 5})
	s.Exec(t, super, "ALTER DATABASE "+d.name()+" CONNECTION LIMIT 2")
	if got := look(4, 1); got.Connections.Free != 1 || !strings.Contains(got.Problem, "1 free connections, 5 are needed") {
		t.Errorf("%+v, %q", got.Connections, got.Problem)
	} else {
		says(t, "the advice", got.Advice, "4 workers take 5 connections and the limit of the database leaves 1: end other sessions, or raise it (ALTER DATABASE")
		follow(t, s, super, got.Advice[slices.IndexFunc(got.Advice, func(a string) bool { return strings.Contains(a, "4 workers") })])
		if got = look(4, 1); got.Problem != "" || got.Connections.Free != 5 {
			t.Errorf("%+v, %q", got.Connections, got.Problem)
		}
	}
	says(t, "the advice", look(6, 1).Advice, "6 workers take 7 connections and the limit of the database leaves 5: use -w 4, or raise it (ALTER DATABASE")
	says(t, "the advice", survey(t, pgjsonb.Config{DSN: super}, 100).Advice, "or raise it to ", "(-c max_connections=")
	if got := survey(t, pgjsonb.Config{DSN: super}, 4); got.Connections.Limit != "max_connections" || got.Connections.Max != 60 || got.Problem != "" {
		t.Errorf("a superuser has %+v, %q", got.Connections, got.Problem)
	}
	s.Exec(t, super, "ALTER DATABASE "+d.name()+" CONNECTION LIMIT 1")
	if got := look(4, 1); !strings.Contains(got.Problem, "too many connections") || got.Server != "" {
		t.Errorf("of a database that is full it says %+v", got)
	}
}

func TestSurveyOfAnInterruptedRun(t *testing.T) {
	d := newDatabase(t)
	dst := d.Open(t, false)
	defer dst.Close()
	l, err := begin(t, dst, desttest.Sample(false), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(5); err != nil {
		t.Fatal(err)
	}
	got := surveyOf(t, dst, 1)
	says(t, "the advice", got.Advice, "A conversion is at work")
	if err := l.session.Close(); err != nil {
		t.Fatal(err)
	}
	got = surveyOf(t, dst, 1)
	if got.Condition != dest.Interrupted || got.Problem != "" || got.Objects == 0 || len(got.Faults) > 0 {
		t.Errorf("%+v", got)
	}
	says(t, "the advice", got.Advice, "--incremental", "--abort")
}

func TestSurveyOfAFilledDestination(t *testing.T) {
	modes(t, func(t *testing.T, history bool) {
		d := newDatabaseWithS3(t)
		b := desttest.BlobSample(history)
		convert(t, d, b, history)
		dst := d.Open(t, history)
		defer dst.Close()
		before, objects := d.server.Snapshot(t, d.dsn), d.s3.Snapshot(t, d.bucket)
		got := surveyOf(t, dst, 2)
		if diff := cmp.Diff(before, d.server.Snapshot(t, d.dsn)); diff != "" {
			t.Errorf("the survey has changed the database (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(objects, d.s3.Snapshot(t, d.bucket)); diff != "" {
			t.Errorf("the survey has changed the bucket (-before +after):\n%s", diff)
		}
		want := map[string]dest.BlobTier{}
		for _, blob := range b.Want(history).Blobs {
			name := "postgresql"
			if blob.Size >= desttest.BlobThreshold {
				name = "s3"
			}
			tier := want[name]
			want[name] = dest.BlobTier{Tier: name, Blobs: tier.Blobs + 1, Bytes: tier.Bytes + blob.Size, Largest: max(tier.Largest, blob.Size)}
		}
		tiers := slices.SortedFunc(maps.Values(want), func(a, b dest.BlobTier) int { return strings.Compare(a.Tier, b.Tier) })
		if diff := cmp.Diff(tiers, got.BlobTiers); diff != "" {
			t.Errorf("blobs (-want +got):\n%s", diff)
		}
		estimate, err := pgjsonb.EstimateBlobs(t.Context(), dst.(*pgjsonb.Destination))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tiers, estimate.BlobTiers); diff != "" { // of all pages, there are so few
			t.Errorf("estimated blobs (-want +got):\n%s", diff)
		}
		says(t, "the notes", estimate.Notes, "estimated from 1e+02% of their rows")
		says(t, "the advice", got.Advice, "holds data already")
		says(t, "the notes", got.Notes, "s3:PutObject")
		if got.Problem != "" || got.Condition != dest.Filled || got.Objects != int64(len(b.Want(history).Current)) || got.Bytes < 8192 || len(got.Faults) > 0 {
			t.Errorf("%+v", got)
		}
		if !rightOf(t, got, "read objects of s3://").Granted || !rightOf(t, got, "list the objects of s3://").Granted {
			t.Errorf("%+v", got.Rights)
		}

		d.exec(t, "DROP INDEX idx_object_refs; ALTER TABLE transaction_log DISABLE TRIGGER trg_notify_commit; SELECT setval('zoid_seq', 1)")
		content, err := dst.Content(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		faults, err := content.Schema(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		got = surveyOf(t, dst, 2)
		if diff := cmp.Diff(faults, got.Faults); diff != "" || len(faults) != 3 {
			t.Errorf("faults (-verify +survey):\n%s", diff)
		}

		// With a key that is there one may read without being allowed to list.
		key, secret := d.s3.NewUser(t)
		d.s3.Allow(t, d.bucket, key, "s3:GetObject")
		reader := d.open(t, pgjsonb.Config{HistoryPreserving: history, S3: d.store(t, func(c *s3blob.Config) { c.AccessKey, c.SecretKey = key, secret })})
		defer reader.Close()
		if got := surveyOf(t, reader, 1); !rightOf(t, got, "read objects of s3://").Granted || rightOf(t, got, "list the objects of s3://").Granted {
			t.Errorf("%+v", got.Rights)
		}

		// What --incremental would not take.
		other := d.open(t, pgjsonb.Config{HistoryPreserving: !history, S3: d.store(t, func(c *s3blob.Config) { c.Prefix = "elsewhere" })})
		defer other.Close()
		told := surveyOf(t, other, 1).Advice
		says(t, "the advice", told, "--incremental would be refused: ", "the configuration says history-", "has none of the first")
		none := d.open(t, pgjsonb.Config{HistoryPreserving: history})
		defer none.Close()
		says(t, "the advice", surveyOf(t, none, 1).Advice, "--incremental would be refused: ", "the configuration names no bucket")
	})
}

func TestSurveyOfABucket(t *testing.T) {
	d := newDatabaseWithS3(t)
	d.s3.Put(t, d.bucket, prefix+"/blobs/0000000000000001/0000000000000001.blob", []byte("blob"), nil)
	key, secret := d.s3.NewUser(t)
	ask := func(change func(*s3blob.Config)) *dest.Survey {
		dst := d.open(t, pgjsonb.Config{S3: d.store(t, change)})
		defer dst.Close()
		return surveyOf(t, dst, 1)
	}
	as := func(c *s3blob.Config) { c.AccessKey, c.SecretKey = key, secret }

	for name, c := range map[string]struct {
		change func(*s3blob.Config)
		says   string
	}{
		"no bucket":       {func(c *s3blob.Config) { c.Bucket = "no-such-bucket" }, "there is no bucket no-such-bucket"},
		"nobody listens":  {func(c *s3blob.Config) { c.EndpointURL, c.Wait = "http://127.0.0.1:1", time.Second }, "127.0.0.1:1"},
		"a wrong secret":  {func(c *s3blob.Config) { c.SecretKey = "wrong-secret" }, "the secret key is not that of the access key"},
		"an unknown user": {func(c *s3blob.Config) { c.AccessKey = "nobody" }, "does not know the access key"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ask(c.change)
			if !strings.Contains(got.Problem, "cannot be used: ") || !strings.Contains(got.Problem, c.says) {
				t.Errorf("the problem is %q", got.Problem)
			}
			if got.Server == "" || got.Condition != dest.Absent {
				t.Errorf("nothing is told of the server: %+v", got)
			}
			says(t, "the advice", got.Advice, "--deferred-blobs")
		})
	}
	for name, c := range map[string]struct {
		actions    []string
		list, read string // "yes", "no", "unknown"
	}{
		"everything":   {[]string{"s3:GetObject", "s3:ListBucket"}, "yes", "yes"},
		"only reading": {[]string{"s3:GetObject"}, "no", "unknown"},
		"only listing": {[]string{"s3:ListBucket"}, "yes", "no"},
		"nothing":      {[]string{"s3:PutObject"}, "no", "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			d.s3.Allow(t, d.bucket, key, c.actions...)
			got := ask(as)
			found := map[string]string{"list": "unknown", "read": "unknown"}
			for _, r := range got.Rights {
				if what, _, ok := strings.Cut(r.Name, " "); ok && strings.Contains(r.Name, "s3://") {
					found[what] = map[bool]string{true: "yes", false: "no"}[r.Granted]
					if !r.Granted && !strings.Contains(r.Hint, "allow s3:") {
						t.Errorf("%+v", r)
					}
				}
			}
			if diff := cmp.Diff(map[string]string{"list": c.list, "read": c.read}, found); diff != "" {
				t.Errorf("rights (-want +got):\n%s\n%v", diff, got.Notes)
			}
			if got.Problem != "" {
				t.Error(got.Problem)
			}
		})
	}
}

func TestSurveyThroughAPoolerChangesNothingOfItsSessions(t *testing.T) {
	s := postgres.Server(t)
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	super := s.DSN(d.name())
	s.Exec(t, super, "ALTER DATABASE "+d.name()+" SET statement_timeout = '1h'; ALTER DATABASE "+d.name()+" SET lock_timeout = '7s'")
	bouncer := s.PgBouncer(t, "transaction", 1, d.name())
	show := "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE source NOT IN ('default', 'configuration file', 'command line', 'override') AND name <> 'application_name'"
	shown := func() string {
		conn, err := pgx.Connect(t.Context(), bouncer+" default_query_exec_mode=exec")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		var text string
		if err := conn.QueryRow(t.Context(), show).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := shown()
	got := survey(t, pgjsonb.Config{DSN: bouncer}, 2)
	if after := shown(); after != before || !strings.Contains(before, "statement_timeout=3600000") {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	if got.Problem != "" || got.Condition != dest.Filled || got.Objects == 0 || len(got.Faults) > 0 {
		t.Errorf("%+v", got)
	}
	says(t, "the advice", got.Advice, "through a pooler")
	for name, value := range map[string]string{"statement_timeout": "1h", "lock_timeout": "7s"} {
		if set := settingOf(t, got, name); set.Value != value || !strings.Contains(set.Load, "connect to the server itself") {
			t.Errorf("%+v", set)
		}
	}
}

func TestSurveyOfAStandbyAndItsPrimary(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Setting("archive_mode", "on"), pgtest.Setting("archive_command", "false archive-secret"))
	dsn := primary.NewDatabase(t)
	standby := primary.Standby(t)
	primary.Exec(t, dsn, "SELECT pg_create_physical_replication_slot('left_behind', true)")
	primary.Exec(t, dsn, "SELECT pg_switch_wal()")
	primary.CatchUp(t, standby)
	deadline := time.Now().Add(time.Minute)
	for primary.Query(t, dsn, "SELECT failed_count > 0 FROM pg_stat_archiver")[0] != "t" {
		if time.Now().After(deadline) {
			t.Fatal("the archive does not fail")
		}
		time.Sleep(50 * time.Millisecond)
	}
	got := survey(t, pgjsonb.Config{DSN: dsn}, 2)
	says(t, "the advice", got.Advice, "is archived", "has not taken the latest file", "One standby", `replication slot "left_behind"`, "pg_drop_replication_slot('left_behind')")
	if set := settingOf(t, got, "wal_compression"); !strings.HasPrefix(set.Load, "lz4 (ALTER SYSTEM") || set.After == "" {
		t.Errorf("%+v", set)
	}
	if got.Problem != "" {
		t.Error(got.Problem)
	}
	primary.Exec(t, dsn, "ALTER SYSTEM SET synchronous_standby_names = 'someone'")
	primary.Exec(t, dsn, "ALTER SYSTEM SET synchronous_commit = local")
	primary.Exec(t, dsn, "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
	primary.Reload(t)
	got = survey(t, pgjsonb.Config{DSN: dsn}, 2)
	says(t, "the advice", got.Advice, "keeps up to 1GB")
	if set := settingOf(t, got, "synchronous_standby_names"); !strings.Contains(set.Load, "keep up") {
		t.Errorf("%+v", set)
	}

	got = survey(t, pgjsonb.Config{DSN: standby.DSN(dsn[strings.Index(dsn, "dbname=")+len("dbname="):])}, 2)
	if !strings.Contains(got.Problem, "is a standby") || got.Condition != dest.Absent || len(got.Settings) < 20 || len(got.Rights) < 4 {
		t.Errorf("the survey of a standby is %+v", got)
	}
}

func TestSurveyIsBrokenOffInASentence(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	holder, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	dst := d.Open(t, false)
	defer dst.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got := dst.Survey(ended, 1); !strings.Contains(got.Problem, "was not asked to the end: context canceled") {
		t.Errorf("the problem is %q", got.Problem)
	}
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE object_state IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(t.Context(), time.Second) // less than it waits for a lock
	defer cancel()
	begun := time.Now()
	got := dst.Survey(limited, 1)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if !strings.Contains(got.Problem, "was not asked to the end: ") || !strings.Contains(got.Problem, "deadline exceeded") || got.Server == "" {
		t.Errorf("%+v", got)
	}
}

func TestTablesThatSomebodyHasLockedAreNotWaitedFor(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	holder, err := pgx.Connect(t.Context(), d.dsn+" application_name=vacuuming")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE object_state IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	got := survey(t, pgjsonb.Config{DSN: d.dsn}, 1)
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	if got.Problem != "" || got.Condition != "" {
		t.Errorf("%+v", got)
	}
	says(t, "the notes", got.Notes, "what the tables hold: the tables are locked by process", `application "vacuuming"`)
}

func TestConnectionThatIsLostWithinASurvey(t *testing.T) {
	d := newDatabase(t)
	convert(t, d, desttest.Sample(false), false)
	holder, err := pgx.Connect(t.Context(), d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	// While it waits for this lock it can be met.
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE object_state IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- terminate(t.Context(), d.dsn, "application_name = 'zodb-convert inspect' AND wait_event_type = 'Lock' AND datname = current_database()")
	}()
	got := survey(t, pgjsonb.Config{DSN: d.dsn}, 1)
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("nobody has waited for the lock: %+v", got)
	}
	if !strings.Contains(got.Problem, "terminating connection") || got.Server == "" {
		t.Errorf("%+v", got)
	}
}

// terminate waits for a session like that and ends it.
func terminate(ctx context.Context, dsn, which string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for n := 0; n == 0; {
		if err := conn.QueryRow(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "+which).Scan(&n); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
