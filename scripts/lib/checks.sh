# The checks that scripts/test and scripts/soak are made of. Sourced after
# env.sh, postgres.sh and steps.sh.

check_format() {
    local bad
    bad=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
    [ -z "$bad" ] || { printf 'not formatted as gofmt does it:\n%s\n' "$bad"; return 1; }
}

# The tag "faults" is the build in which a run can be struck at named places.
check_vet() {
    checked go vet ./...
    checked go vet -tags faults ./...
}

check_staticcheck() {
    if ! staticcheck -version 2>/dev/null | grep -qF "(${STATICCHECK#v})"; then
        say "go install staticcheck $STATICCHECK"
        GOBIN="$CACHE/bin" go install "honnef.co/go/tools/cmd/staticcheck@$STATICCHECK"
    fi
    checked staticcheck ./...
    checked staticcheck -tags faults ./...
}

# run_suite [FLAG ...] runs all tests; how many kills and server stops there are
# is in the environment.
run_suite() {
    go_test -count=1 -timeout 30m "$@" ./...
    # Those that need the build that can be struck.
    go_test -count=1 -timeout 30m "$@" -tags faults ./e2e/... ./internal/fault/...
}

# run_kills KILLS STOPS runs the tests that strike, with more strikes.
run_kills() {
    ZODB_CONVERT_KILLS=$1 ZODB_CONVERT_STOPS=$2 go_test -count=1 -timeout 12h -tags faults ./e2e/...
}

# convert_to DATABASE DATA HISTORY writes migrate-DATABASE.toml and converts
# into a new database. Exit code 3 (done, with accepted rejects) is a failure,
# too: what the real ZODB wrote for these tests has a form.
convert_to() {
    local database=$1 data=$2 history=$3 config=$SCRATCH/migrate-$1.toml
    psql -X -q -d postgres -c "CREATE DATABASE $database"
    cat >"$config" <<TOML
[source]
type = "filestorage"
path = "$data"

[destination]
type = "pgjsonb"
dsn = "dbname=$database user=$PGUSER host=$PGHOST port=$PGPORT"
history-preserving = $history
TOML
    zodb-convert -q -w 2 "$config"
}

# fuzz_all TIME runs every fuzz target for a time. What is found lands in the
# target's testdata/fuzz, where every later test run tries it again.
fuzz_all() {
    local file target line
    while IFS=: read -r file line; do
        target=$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' <<<"$line")
        echo "-- $target in $(dirname "$file")"
        checked fuzz_one "$1" "$target" "./$(dirname "$file")"
    done < <(grep -rE '^func Fuzz[A-Za-z0-9_]*\(' --include='*_test.go' --exclude-dir='.*' . | sed 's|^\./||')
}

fuzz_one() {
    local log=$SCRATCH/fuzz.log
    if go test -run '^$' -fuzz "^$2\$" -fuzztime "$1" -timeout 0 "$3" >"$log" 2>&1; then
        grep -E '^fuzz: elapsed' "$log" | tail -1
        # Without a line of progress the target did not run.
        grep -qE '^fuzz: elapsed' "$log"
        return
    fi
    cat "$log"
    return 1
}

# run_demo [Data.fs] runs the demonstration as a newcomer does. It has to leave
# the user's file as it was, and neither a server nor a file behind.
run_demo() {
    local log=$SCRATCH/demo.log sum="" folder
    [ $# = 0 ] || sum=$(sha256sum "$1"; stat -c '%s %Y %Z' "$1"; ls "$(dirname "$1")")
    scripts/demo "$@" 2>&1 | tee "$log"
    folder=$(grep -oE '/tmp/zodb-convert\.[A-Za-z0-9]+' "$log" | sort -u)
    [ "$(wc -l <<<"$folder")" = 1 ] || { echo "the demo's folder is not told"; return 1; }
    [ ! -e "$folder" ] || { echo "the demo left $folder"; return 1; }
    if grep -lF "$folder" /proc/[0-9]*/cmdline 2>/dev/null | grep -v "/proc/$$/"; then
        echo "the demo left a server"
        return 1
    fi
    [ $# = 0 ] || [ "$sum" = "$(sha256sum "$1"; stat -c '%s %Y %Z' "$1"; ls "$(dirname "$1")")" ] || { echo "the demo changed $1"; return 1; }
}
