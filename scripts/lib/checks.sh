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

# run_suite [FLAG ...] runs all tests, those of the kills included: their
# counts are in the environment.
run_suite() {
    go_test -count=1 -timeout 30m "$@" ./...
    # Packages that have tests only in the build that can be struck.
    go_test -count=1 -timeout 30m "$@" -tags faults ./internal/fault/...
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
