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

# A folder of testdata/ whose records the destination cannot hold, some or all.
REJECTED=" rejects cyclic "
REFUSED=" blobs "

# oracle_one DATA HISTORY [FLAG ...] converts a database into a new one and lets
# the real ZODB compare them. HISTORY is true or false.
oracle_one() {
    local data=$1 history=$2 name base code=0 expected=0
    shift 2
    base=$(basename "$data" .fs)
    name=oracle_${base//[^a-z0-9]/_}_$history
    local config=$SCRATCH/$name.toml rejects=$SCRATCH/$name.rejects dsn="dbname=$name user=$PGUSER host=$PGHOST port=$PGPORT"
    psql -X -q -d postgres -c "CREATE DATABASE $name" || return 1
    cat >"$config" <<TOML
[source]
type = "filestorage"
path = "$data"

[destination]
type = "pgjsonb"
dsn = "$dsn"
history-preserving = $history
TOML
    [[ "$REJECTED" != *" $base "* ]] || expected=3
    [[ "$REFUSED" != *" $base "* ]] || expected=1
    zodb-convert -q -w 2 --rejects "$rejects" "$config" >"$SCRATCH/$name.log" 2>&1 || code=$?
    if [ "$code" != "$expected" ]; then
        cat "$SCRATCH/$name.log"
        echo "exit code $code instead of $expected"
        return 1
    fi
    if [ "$code" = 1 ]; then
        cat "$SCRATCH/$name.log"
        return 0
    fi
    local flags=("$@")
    [ "$history" = false ] || flags+=(--history)
    [ "$code" = 0 ] || flags+=(--rejects "$rejects")
    if [ "$(head -c 4 "$data")" = FS21 ]; then
        flags+=(--neutral "${data%.fs}.values.jsonl")
    else
        flags+=(--source "$data")
    fi
    scripts/oracle compare --dsn "$dsn" "${flags[@]}" || return 1
    psql -X -q -d postgres -c "DROP DATABASE $name"
}

# both DATA [FLAG ...] compares history-free and history-preserving.
both() {
    local data=$1 history
    shift
    for history in false true; do
        echo "-- $(basename "$data"), history-preserving = $history"
        checked oracle_one "$data" "$history" "$@"
    done
}

oracle_testdata() {
    local data
    pg_start
    s3_start
    psql -X -q -d postgres -c "CREATE DATABASE selftest"
    checked scripts/oracle selftest --dsn "dbname=selftest user=$PGUSER host=$PGHOST port=$PGPORT" --s3-endpoint-url "$S3_ENDPOINT"
    for data in "$ROOT"/testdata/*.fs; do both "$data" --exercise; done
}

# oracle_large OBJECTS SEED
oracle_large() {
    pg_start
    scripts/mkdata --objects "$1" --seed "$2" "$SCRATCH/large.fs"
    both "$SCRATCH/large.fs" --exercise
    rm "$SCRATCH/large.fs"
}

# resume_cost OBJECTS SEED kills a conversion after half of its chunks and
# compares what the resume takes with a whole run. Each is done three times, in
# turn; the best counts.
resume_cost() {
    local tool=$SCRATCH/zodb-convert-faults data=$SCRATCH/resume.fs config=$SCRATCH/resume.toml half round start whole="" rest="" took
    pg_start
    scripts/mkdata --objects "$1" --seed "$2" "$data"
    go build -tags faults -o "$tool" ./cmd/zodb-convert
    half=$(($(stat -c %s "$data") / 2097152 / 2)) # a chunk has 2 MiB
    cat >"$config" <<TOML
[source]
type = "filestorage"
path = "$data"

[destination]
type = "pgjsonb"
dsn = "dbname=resume user=$PGUSER host=$PGHOST port=$PGPORT"
TOML
    for round in 1 2 3; do
        psql -X -q -d postgres -c "DROP DATABASE IF EXISTS resume" -c "CREATE DATABASE resume" -c CHECKPOINT
        start=$(date +%s%N)
        "$tool" -q -w 4 "$config" || return 1
        took=$((($(date +%s%N) - start) / 1000000))
        [ -n "$whole" ] && [ "$whole" -le "$took" ] || whole=$took
        psql -X -q -d postgres -c "DROP DATABASE resume" -c "CREATE DATABASE resume" -c CHECKPOINT
        ! ZODB_CONVERT_FAULT="chunk.committed:$half:kill9" "$tool" -q -w 4 "$config" || { echo "was not killed"; return 1; }
        start=$(date +%s%N)
        "$tool" -q -w 4 --incremental "$config" || return 1
        took=$((($(date +%s%N) - start) / 1000000))
        [ -n "$rest" ] && [ "$rest" -le "$took" ] || rest=$took
    done
    rm "$data"
    echo "a whole run takes $whole ms, the resume after a kill at half of it $rest ms: $((100 * rest / whole)) %"
    [ $((100 * rest)) -le $((60 * whole)) ]
}

# on_version VERSION [OBJECTS SEED] tests the destination on another PostgreSQL.
on_version() {
    pg_binaries "$1"
    export PGTEST_BINDIR=$PG_BINARIES
    go_test -count=1 -timeout 30m ./dest/...
    pg_start
    for data in plone history odd; do both "$ROOT/testdata/$data.fs" --exercise; done
    if [ $# = 3 ]; then
        scripts/mkdata --objects "$2" --seed "$3" "$SCRATCH/large.fs"
        both "$SCRATCH/large.fs" --exercise
        rm "$SCRATCH/large.fs"
    fi
}

# fuzz_all TIME runs every fuzz target for a time. What is found lands in the
# target's testdata/fuzz, where every later test run tries it again.
fuzz_all() {
    local file target targets=0
    while IFS=: read -r file target; do
        echo "-- $target in $(dirname "$file")"
        checked fuzz_one "$1" "$target" "./$(dirname "$file")"
        targets=$((targets + 1))
    done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')
    echo "$targets targets"
    [ "$targets" -gt 0 ]
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
    local log=$SCRATCH/demo.log sum="" folder process
    [ $# = 0 ] || sum=$(sha256sum "$1"; stat -c '%s %Y %Z' "$1"; ls "$(dirname "$1")")
    scripts/demo "$@" 2>&1 | tee "$log"
    folder=$(grep -oE '/tmp/zodb-convert\.[A-Za-z0-9]+' "$log" | sort -u)
    [ "$(wc -l <<<"$folder")" = 1 ] || { echo "the demo's folder is not told"; return 1; }
    [ ! -e "$folder" ] || { echo "the demo left $folder"; return 1; }
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm" 2>/dev/null)" = postgres ] && tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -qF "$folder"; then
            echo "the demo left a server (process ${process#/proc/})"
            return 1
        fi
    done
    [ $# = 0 ] || [ "$sum" = "$(sha256sum "$1"; stat -c '%s %Y %Z' "$1"; ls "$(dirname "$1")")" ] || { echo "the demo changed $1"; return 1; }
}
