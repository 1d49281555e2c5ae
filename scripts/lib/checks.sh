# The checks that scripts/test and scripts/soak are made of. Sourced after
# env.sh, postgres.sh, mariadb.sh, s3.sh and steps.sh.

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

# run_suite [FLAG ...] runs all tests but those of struck.
run_suite() {
    go_test -count=1 -timeout 30m "$@" ./...
}

# short_suite is run_suite in about two thirds of the time: with the race detector,
# but for the packages that mostly wait for what others compute, and large blobs
# into S3 in one of the two kinds of destination.
short_suite() {
    local waiting='/(cmd/zodb-convert|source/relstorage)$'
    local all
    mapfile -t all < <(go list ./... | grep -vE "$waiting")
    go_test -count=1 -timeout 30m -race -skip '^TestContractOfBlobsInS3$/^HistoryFree$' "${all[@]}"
    go_test -count=1 -timeout 30m ./cmd/zodb-convert ./source/relstorage
}

# struck [FLAG ...] runs the tests that need the build that can be struck; how
# many kills and server stops there are is in the environment.
struck() {
    go_test -count=1 -timeout 60m "$@" -tags faults ./e2e/... ./internal/fault/...
}

# run_kills KILLS STOPS runs the tests that strike, with more strikes.
run_kills() {
    ZODB_CONVERT_KILLS=$1 ZODB_CONVERT_STOPS=$2 go_test -count=1 -timeout 12h -tags faults ./e2e/...
}

# Databases of testdata/ some of whose records the destination cannot hold, and
# such of whose blobs the files are missing.
REJECTED=" rejects "
MISSING=" "

# blob_dir DATA prints the folder of a database's blobs, if there is one.
blob_dir() {
    local dir=${1%.fs}.blobs
    [ ! -d "$dir" ] || echo "$dir"
}

# The ways that blobs may take.
WAYS=${WAYS:-bytea inline background deferred}

# oracle_one DATA HISTORY WAY THRESHOLD [FLAG ...] converts a database into a new
# one and lets the real ZODB compare them. HISTORY is true or false; from
# THRESHOLD bytes on blobs go to S3, but for WAY bytea.
oracle_one() {
    local data=$1 history=$2 way=$3 threshold=$4 name base blobs code=0 expected=0
    shift 4
    base=$(basename "$data" .fs)
    blobs=$(blob_dir "$data")
    name=oracle_${base//[^a-z0-9]/_}_${history}_$way
    local config=$SCRATCH/$name.toml rejects=$SCRATCH/$name.rejects manifest=$SCRATCH/$name.tsv bucket=${name//_/-}
    local dsn="dbname=$name user=$PGUSER host=$PGHOST port=$PGPORT" options=(-q -w 2 --rejects "$rejects") flags=("$@")
    psql -X -q -d postgres -c "CREATE DATABASE $name" || return 1
    {
        printf '[source]\ntype = "filestorage"\npath = "%s"\n' "$data"
        [ -z "$blobs" ] || printf 'blob-dir = "%s"\n' "$blobs"
        printf '\n[destination]\ntype = "pgjsonb"\ndsn = "%s"\nhistory-preserving = %s\n' "$dsn" "$history"
        if [ "$way" != bytea ]; then
            s3_bucket "$bucket"
            printf 'blob-threshold = %s\ns3-bucket-name = "%s"\ns3-endpoint-url = "%s"\ns3-prefix = "site/one"\n' "$threshold" "$bucket" "$S3_ENDPOINT"
            flags+=(--s3-endpoint-url "$S3_ENDPOINT" --s3-bucket "$bucket" --s3-prefix site/one --blob-threshold "$threshold")
        fi
    } >"$config"
    case $way in
        background) options+=(--background-blobs) ;;
        deferred) options+=(--deferred-blobs "$manifest") ;;
    esac
    if [[ "$REJECTED" == *" $base "* ]]; then expected=3; fi
    if [[ "$MISSING" == *" $base "* ]]; then
        expected=3
        options+=(--allow-missing-blobs)
    fi
    zodb-convert "${options[@]}" "$config" >"$SCRATCH/$name.log" 2>&1 || code=$?
    if [ "$code" = "$expected" ] && [ "$way" = deferred ]; then
        code=0
        zodb-convert --upload-blobs "$manifest" -w 3 "$config" >>"$SCRATCH/$name.log" 2>&1 || code=$?
        [ "$code" != 0 ] || code=$expected
    fi
    if [ "$code" != "$expected" ]; then
        cat "$SCRATCH/$name.log"
        echo "exit code $code instead of $expected"
        return 1
    fi
    if [ -n "${AWS_SECRET_ACCESS_KEY:-}" ] && grep -F -e "$AWS_SECRET_ACCESS_KEY" -e "$AWS_ACCESS_KEY_ID" "$SCRATCH/$name.log"; then
        echo "the keys of S3 were printed"
        return 1
    fi
    [ "$history" = false ] || flags+=(--history)
    [ ! -s "$rejects" ] || flags+=(--rejects "$rejects")
    [ -z "$blobs" ] || flags+=(--blob-dir "$blobs")
    if [ "$(head -c 4 "$data")" = FS21 ]; then
        flags+=(--neutral "${data%.fs}.values.jsonl")
    else
        flags+=(--source "$data")
    fi
    scripts/oracle compare --dsn "$dsn" "${flags[@]}" || return 1
    psql -X -q -d postgres -c "DROP DATABASE $name"
    [ "$way" = bytea ] || s3_drop "$bucket"
}

# both DATA [FLAG ...] compares history-free and history-preserving, with all
# blobs in PostgreSQL.
both() {
    local data=$1 history
    shift
    for history in false true; do
        echo "-- $(basename "$data"), history-preserving = $history"
        checked oracle_one "$data" "$history" bytea 0 "$@"
    done
}

# all_ways DATA THRESHOLD [FLAG ...] does so for every way that blobs may take.
all_ways() {
    local data=$1 threshold=$2 history way
    shift 2
    for history in false true; do
        for way in $WAYS; do
            echo "-- $(basename "$data"), history-preserving = $history, blobs $way"
            checked oracle_one "$data" "$history" "$way" "$threshold" "$@"
        done
    done
}

# with_blobs prints the databases of testdata/ that have blobs.
with_blobs() {
    local data
    for data in "$ROOT"/testdata/*.fs; do
        [ -z "$(blob_dir "$data")" ] || echo "$data"
    done
}

# oracle_blobs takes every database with blobs through every way.
oracle_blobs() {
    local data
    pg_start
    s3_start
    for data in $(with_blobs); do all_ways "$data" 300 --exercise; done
}

# manifest_exchange lets each tool upload what the other has listed, and compares
# the buckets.
manifest_exchange() {
    pg_start
    s3_start
    make_blobs "$SCRATCH/exchange.fs" "0,1KB,99KB,102399,102400,$(seq -s, 110000 7000 200000),9MB" || return 1
    checked manifest_of_python
    checked manifest_of_ours
    rm -rf "$SCRATCH"/exchange*
}

# upload_both MANIFEST NAME makes the buckets NAME-ours and NAME-python of it.
upload_both() {
    local manifest=$1 name=$2 code=0
    s3_bucket "$name-ours"
    [ -d "$S3_DIR/$name-python" ] || s3_bucket "$name-python"
    zodb-convert --upload-blobs "$manifest" -w 4 --s3-bucket "$name-ours" --s3-endpoint-url "$S3_ENDPOINT" --s3-region us-east-1 || code=$?
    [ "$code" = 0 ] || { echo "our upload: exit code $code"; return 1; }
    "${ZODB_PYTHON%/*}/zodb-convert" --upload-blobs "$manifest" -w 4 --s3-bucket "$name-python" --s3-endpoint-url "$S3_ENDPOINT" || code=$?
    [ "$code" = 0 ] || { echo "upload by the Python tool: exit code $code"; return 1; }
    s3_same "$name-ours" "$name-python" || return 1
    [ "$(s3_count "$name-ours")" = "$(wc -l <"$manifest")" ] || { echo "$(wc -l <"$manifest") lines, $(s3_count "$name-ours") objects"; return 1; }
    [ "$(s3_count "$name-ours")" -gt 10 ]
}

manifest_of_python() {
    local config=$SCRATCH/exchange.conf manifest=$SCRATCH/exchange-python.tsv
    psql -X -q -d postgres -c "CREATE DATABASE exchange_python"
    mkdir "$SCRATCH/exchange.tmp"
    s3_bucket exchange-unused
    cat >"$config" <<CONF
%import zodb_pgjsonb
<filestorage source>
  path $SCRATCH/exchange.fs
  blob-dir $SCRATCH/exchange.blobs
</filestorage>
<pgjsonb destination>
  dsn dbname=exchange_python user=$PGUSER host=$PGHOST port=$PGPORT
  cache-warm-pct 0
  blob-temp-dir $SCRATCH/exchange.tmp
  s3-bucket-name exchange-unused
  s3-endpoint-url $S3_ENDPOINT
</pgjsonb>
CONF
    "${ZODB_PYTHON%/*}/zodb-convert" -w 2 --deferred-blobs "$manifest" "$config" || return 1
    [ "$(s3_count exchange-unused)" = 0 ] || { echo "the Python tool did not defer"; return 1; }
    upload_both "$manifest" exchange-theirs
}

manifest_of_ours() {
    local config=$SCRATCH/exchange.toml manifest=$SCRATCH/exchange-ours.tsv dsn="dbname=exchange_ours user=$PGUSER host=$PGHOST port=$PGPORT"
    psql -X -q -d postgres -c "CREATE DATABASE exchange_ours"
    s3_bucket exchange-ours-python
    cat >"$config" <<TOML
[source]
type = "filestorage"
path = "$SCRATCH/exchange.fs"
blob-dir = "$SCRATCH/exchange.blobs"

[destination]
type = "pgjsonb"
dsn = "$dsn"
s3-bucket-name = "exchange-ours-python"
s3-endpoint-url = "$S3_ENDPOINT"
TOML
    zodb-convert -q -w 2 --deferred-blobs "$manifest" "$config" || return 1
    upload_both "$manifest" exchange-ours || return 1
    scripts/oracle compare --source "$SCRATCH/exchange.fs" --blob-dir "$SCRATCH/exchange.blobs" --dsn "$dsn" \
        --s3-endpoint-url "$S3_ENDPOINT" --s3-bucket exchange-ours-python
}

# make_blobs OUT.fs SIZES makes one blob of each size, in OUT.blobs.
make_blobs() { scripts/mkdata --profile many-blobs --blob-size "$2" --blob-dir "${1%.fs}.blobs" "$1"; }

# blob_sizes takes blobs around every boundary through every way. The largest
# that a site can read back from PostgreSQL goes there; a larger one is refused
# without S3, and with it goes there whatever the threshold.
blob_sizes() {
    local data=$SCRATCH/sizes.fs
    pg_start max_wal_size=1GB
    s3_start
    make_blobs "$data" 0,1,102399,102400,102401,5000000,5MB,5242881,300MB || return 1
    all_ways "$data" 102400 --exercise
    rm -rf "$data" "$SCRATCH/sizes.blobs"
    data=$SCRATCH/largest.fs
    make_blobs "$data" 500MB,536869888 || return 1
    checked oracle_one "$data" false bytea 0
    rm -rf "$data" "$SCRATCH/largest.blobs"
    data=$SCRATCH/toolarge.fs
    make_blobs "$data" 500MB,512MB || return 1
    checked refused_without_s3 "$data"
    checked oracle_one "$data" false inline 1073741824
    rm -rf "$data" "$SCRATCH/toolarge.blobs"
}

# refused_without_s3 DATA lets the tool say, before it writes anything, which
# blob is too large for PostgreSQL.
refused_without_s3() {
    local log=$SCRATCH/toolarge.log config=$SCRATCH/toolarge.toml code=0
    psql -X -q -d postgres -c "CREATE DATABASE toolarge"
    cat >"$config" <<TOML
[source]
type = "filestorage"
path = "$1"
blob-dir = "$(blob_dir "$1")"

[destination]
type = "pgjsonb"
dsn = "dbname=toolarge user=$PGUSER host=$PGHOST port=$PGPORT"
TOML
    zodb-convert "$config" >"$log" 2>&1 || code=$?
    cat "$log"
    [ "$code" = 1 ] || { echo "exit code $code instead of 1"; return 1; }
    [ "$(psql -X -At -d toolarge -c "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")" = 0 ] ||
        { echo "something was written"; return 1; }
    grep -q 536870912 "$log" || grep -qE '512(\.0)? ?M' "$log" || { echo "the size is not told"; return 1; }
    psql -X -q -d postgres -c "DROP DATABASE toolarge"
}

oracle_testdata() {
    local data
    pg_start
    s3_start
    psql -X -q -d postgres -c "CREATE DATABASE selftest"
    checked scripts/oracle selftest --dsn "dbname=selftest user=$PGUSER host=$PGHOST port=$PGPORT" --s3-endpoint-url "$S3_ENDPOINT"
    for data in "$ROOT"/testdata/*.fs; do both "$data" --exercise; done
}

# inspect_judged NAME HISTORY CONFIG [FLAG ...] inspects what a configuration names,
# converts it, and lets the real ZODB judge what was told, besides the rows that
# came of it. SOURCE is what names the source to scripts/oracle.
inspect_judged() {
    local name=$1 history=$2 config=$3 code=0 expected=0 flags
    shift 3
    local report=$SCRATCH/$name.json log=$SCRATCH/$name.log rejects=$SCRATCH/$name.rejects
    local dsn="dbname=$name user=$PGUSER host=$PGHOST port=$PGPORT"
    psql -X -q -d postgres -c "CREATE DATABASE $name" || return 1
    printf '\n[destination]\ntype = "pgjsonb"\ndsn = "%s"\nhistory-preserving = %s\n' "$dsn" "$history" >>"$config"
    zodb-convert inspect --json -w 2 "$@" "$config" >"$report" 2>"$log" || code=$?
    [ "$(psql -X -At -d "$name" -c "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")" = 0 ] ||
        { echo "the inspection wrote to the destination"; return 1; }
    "$ZODB_PYTHON" -c 'import json, sys; sys.exit(bool(json.load(open(sys.argv[1]))["altered"]))' "$report" || expected=3
    if [ "$code" != "$expected" ]; then
        cat "$log"
        echo "exit code $code instead of $expected"
        return 1
    fi
    code=0
    zodb-convert -w 2 --log-format json --allow-missing-blobs --rejects "$rejects" "$config" >"$log" 2>&1 || code=$?
    case $code in 0 | 3) ;; *) cat "$log"; return 1 ;; esac
    flags=("${SOURCE[@]}" --report "$report" --log "$log" --dsn "$dsn")
    [ "$history" = false ] || flags+=(--history)
    [ ! -s "$rejects" ] || flags+=(--rejects "$rejects")
    [[ " $* " != *" --no-reachability "* ]] || flags+=(--no-reachability)
    scripts/oracle inspect "${flags[@]}" --blind || return 1
    psql -X -q -d postgres -c "DROP DATABASE $name"
    rm -f "$config" "$report" "$log" "$rejects"
}

# inspect_one DATA HISTORY [FLAG ...] judges the inspection of a database.
inspect_one() {
    local data=$1 history=$2 name base blobs planted
    shift 2
    base=$(basename "$data" .fs)
    blobs=$(blob_dir "$data")
    planted=${data%.fs}.planted.json
    name=inspect_${base//[^a-z0-9]/_}_$history
    {
        printf '[source]\ntype = "filestorage"\npath = "%s"\n' "$data"
        [ -z "$blobs" ] || printf 'blob-dir = "%s"\n' "$blobs"
    } >"$SCRATCH/$name.toml"
    SOURCE=(--source "$data")
    [ -z "$blobs" ] || SOURCE+=(--blob-dir "$blobs")
    [ ! -f "$planted" ] || SOURCE+=(--planted "$planted")
    inspect_judged "$name" "$history" "$SCRATCH/$name.toml" "$@"
}

# inspect_both DATA [FLAG ...] judges what is told for each kind of destination.
inspect_both() {
    local data=$1 history
    shift
    for history in false true; do
        echo "-- inspect $(basename "$data") $*, history-preserving = $history"
        checked inspect_one "$data" "$history" "$@"
    done
}

# inspect_testdata judges the inspection of every database of testdata/.
inspect_testdata() {
    local data
    pg_start
    for data in "$ROOT"/testdata/*.fs; do inspect_both "$data"; done
    inspect_both "$ROOT/testdata/plone.fs" --no-reachability
}

# inspect_relational_one LABEL HISTORY judges the inspection of the RelStorage in PLACE.
inspect_relational_one() {
    local name=rs_inspect_$1_$2
    {
        printf '[source]\ntype = "relstorage"\n'
        [ -z "${BLOBS:-}" ] || printf 'blob-dir = "%s"\nshared-blob-dir = true\n' "$BLOBS"
        printf '%s\n' "$SECTION"
    } >"$SCRATCH/$name.toml"
    SOURCE=(--relstorage "$PLACE")
    [ -z "${BLOBS:-}" ] || SOURCE+=(--shared-blob-dir "$BLOBS")
    inspect_judged "$name" "$2" "$SCRATCH/$name.toml"
}

# inspect_relational ENGINE [NAME ...] judges the inspection of databases of
# testdata/relstorage (all, or those named), with and without history.
inspect_relational() {
    local engine=$1 base label history
    shift
    pg_start
    if [ "$engine" = mysql ]; then maria_start; fi
    for base in ${*:-$(relational_names)}; do
        for base in "$base-hp" "$base-hf"; do
            label=${engine}_${base//-/_}
            relational_place "$engine" "$label" || return 1
            relational_fill "$engine" "$label" "$base" || return 1
            BLOBS=
            [ ! -d "testdata/relstorage/$base.blobs" ] || BLOBS=$ROOT/testdata/relstorage/$base.blobs
            for history in false true; do
                case $label in *_hf) [ "$history" = false ] || continue ;; esac
                echo "-- inspect $label, history-preserving = $history"
                checked inspect_relational_one "$label" "$history"
            done
            relational_drop "$engine" "$label"
        done
    done
}

# inspect_planted OBJECTS SEED PROFILE ... judges it on databases of so many
# objects into which a known number of everything is planted.
inspect_planted() {
    local objects=$1 seed=$2 profile data
    shift 2
    pg_start max_wal_size=4GB
    for profile; do
        data=$SCRATCH/planted-$profile.fs
        scripts/mkdata --profile "planted-$profile" --objects "$objects" --seed "$seed" --blob-dir "${data%.fs}.blobs" "$data" || return 1
        inspect_both "$data"
        rm -rf "$data" "${data%.fs}.blobs" "${data%.fs}.planted.json"
    done
}

# oracle_large OBJECTS SEED
oracle_large() {
    pg_start
    scripts/mkdata --objects "$1" --seed "$2" "$SCRATCH/large.fs"
    both "$SCRATCH/large.fs" --exercise
    rm "$SCRATCH/large.fs"
}

# relational_place ENGINE NAME makes an empty database for a RelStorage. PLACE is
# its name for scripts/mkdata and scripts/oracle, SECTION that for the tool.
relational_place() {
    case $1 in
        postgresql)
            psql -X -q -d postgres -c "CREATE DATABASE $2" || return 1
            PLACE="postgresql:dbname=$2 user=$PGUSER host=$PGHOST port=$PGPORT"
            SECTION=$(printf '[source.postgresql]\ndsn = "%s"' "${PLACE#*:}")
            ;;
        mysql)
            maria -e "CREATE DATABASE $2" || return 1
            PLACE="mysql:unix_socket=$MARIADB_SOCKET,user=root,db=$2"
            SECTION=$(printf '[source.mysql]\nunix_socket = "%s"\nuser = "root"\ndb = "%s"' "$MARIADB_SOCKET" "$2")
            ;;
        sqlite)
            mkdir "$SCRATCH/$2"
            PLACE="sqlite:$SCRATCH/$2"
            SECTION=$(printf '[source.sqlite3]\ndata-dir = "%s"' "$SCRATCH/$2")
            ;;
    esac
}

# relational_drop ENGINE NAME
relational_drop() {
    case $1 in
        postgresql) psql -X -q -d postgres -c "DROP DATABASE $2" ;;
        mysql) maria -e "DROP DATABASE $2" ;;
        sqlite) rm -r "${SCRATCH:?}/$2" ;;
    esac
}

# relational_fill ENGINE NAME BASE loads a database of testdata/relstorage.
relational_fill() {
    case $1 in
        postgresql) gzip -dc "$ROOT/testdata/relstorage/$3.pg.sql.gz" | psql -X -q -v ON_ERROR_STOP=1 -d "$2" >"$SCRATCH/fill.log" || return 1 ;;
        mysql) gzip -dc "$ROOT/testdata/relstorage/$3.maria.sql.gz" | maria "$2" || return 1 ;;
        sqlite) gzip -dc "$ROOT/testdata/relstorage/$3.sqlite3.gz" >"$SCRATCH/$2/main.sqlite3" || return 1 ;;
    esac
}

# relational_one NAME HISTORY [FLAG ...] converts the RelStorage in PLACE and lets
# the real RelStorage and the real zodb-pgjsonb compare. BLOBS is its shared blob
# directory, if it has one.
relational_one() {
    local name=rs_$1 history=$2 code=0 expected=0
    shift 2
    local config=$SCRATCH/$name.toml rejects=$SCRATCH/$name.rejects dsn="dbname=$name user=$PGUSER host=$PGHOST port=$PGPORT" flags=("$@")
    psql -X -q -d postgres -c "CREATE DATABASE $name" || return 1
    {
        printf '[source]\ntype = "relstorage"\n'
        [ -z "${BLOBS:-}" ] || printf 'blob-dir = "%s"\nshared-blob-dir = true\n' "$BLOBS"
        printf '%s\n[destination]\ntype = "pgjsonb"\ndsn = "%s"\nhistory-preserving = %s\n' "$SECTION" "$dsn" "$history"
    } >"$config"
    case $name in *_rejects_*) expected=3 ;; esac
    zodb-convert -q -w 2 --rejects "$rejects" "$config" >"$SCRATCH/$name.log" 2>&1 || code=$?
    if [ "$code" != "$expected" ]; then
        cat "$SCRATCH/$name.log"
        echo "exit code $code instead of $expected"
        return 1
    fi
    [ "$history" = false ] || flags+=(--history)
    [ ! -s "$rejects" ] || flags+=(--rejects "$rejects")
    [ -z "${BLOBS:-}" ] || flags+=(--shared-blob-dir "$BLOBS")
    scripts/oracle compare --relstorage "$PLACE" --dsn "$dsn" "${flags[@]}" || return 1
    psql -X -q -d postgres -c "DROP DATABASE $name"
}

# relational_both LABEL compares the database in PLACE history-free and, where it has a history
# or EACH_WAY is set, history-preserving.
relational_both() {
    local label=$1 histories="false true" history
    case $label in *_hf) [ -n "${EACH_WAY:-}" ] || histories=false ;; esac
    for history in $histories; do
        echo "-- $label, history-preserving = $history"
        checked relational_one "${label}_$history" "$history" --exercise
    done
}

# relational_names lists the databases of testdata/relstorage, but for those of
# RelStorage 2: the present one would change them before it reads them.
relational_names() { (cd testdata/relstorage && ls *.dump.jsonl.gz | sed 's/-h[pf]\..*//' | grep -v release21 | sort -u); }

# oracle_relational ENGINE OBJECTS SEED [NAME ...] takes the databases of
# testdata/relstorage (all, or those named), and one of so many objects with and
# without history. Those of RelStorage 2 are none that the present one reads
# without changing them.
oracle_relational() {
    local engine=$1 objects=$2 seed=$3 base label names
    shift 3
    names=${*:-$(relational_names)}
    pg_start
    if [ "$engine" = mysql ]; then maria_start; fi
    for base in $names; do
        for base in "$base-hp" "$base-hf"; do
            label=${engine}_${base//-/_}
            relational_place "$engine" "$label" || return 1
            relational_fill "$engine" "$label" "$base" || return 1
            BLOBS=
            [ ! -d "testdata/relstorage/$base.blobs" ] || BLOBS=$ROOT/testdata/relstorage/$base.blobs
            relational_both "$label"
            relational_drop "$engine" "$label"
        done
    done
    BLOBS=
    for label in "${engine}_large_hp" "${engine}_large_hf"; do
        relational_place "$engine" "$label" || return 1
        if [[ "$label" = *_hf ]]; then
            scripts/mkdata --relstorage "$PLACE" --history-free --objects "$objects" --seed "$seed" || return 1
        else
            scripts/mkdata --relstorage "$PLACE" --objects "$objects" --seed "$seed" || return 1
        fi
        relational_both "$label"
        relational_drop "$engine" "$label"
    done
}

# oracle_graphs COUNT SEED takes random values of every kind, pickled by Python's
# own picklers, through PostgreSQL, with and without shared parts. What the real
# zodb-pgjsonb loads, what ZODB's own unpickler and our reader make of it, and what
# a pack would look at, has to be what went in; verify has to say the same. COUNT
# is done in parts of 10,000, whose seeds follow SEED.
oracle_graphs() {
    local left=$1 seed=$2 part
    pg_start
    go build -o "$SCRATCH/comparerecords" ./internal/comparerecords
    while [ "$left" -gt 0 ]; do
        part=$((left < 10000 ? left : 10000))
        echo "-- $part graphs, seed $seed"
        "$ZODB_PYTHON" scripts/py/codecoracle.py generate "$part" "$seed" |
            "$ZODB_PYTHON" scripts/py/codecoracle.py database "$SCRATCH/graphs.fs" >"$SCRATCH/graphs.jsonl" || return 1
        checked graphs_stored
        checked graphs_stored --preserve-sharing
        rm -f "$SCRATCH"/graphs.*
        left=$((left - part))
        seed=$((seed + 1))
    done
}

# graphs_stored [--preserve-sharing] converts and compares one part.
graphs_stored() {
    local dsn="dbname=graphs user=$PGUSER host=$PGHOST port=$PGPORT" strict="" code=0 rejects=$SCRATCH/graphs.rejects
    [ $# = 0 ] || strict=--strict
    psql -X -q -d postgres -c "CREATE DATABASE graphs" || return 1
    printf '[source]\ntype = "filestorage"\npath = "%s"\n[destination]\ntype = "pgjsonb"\ndsn = "%s"\n' "$SCRATCH/graphs.fs" "$dsn" >"$SCRATCH/graphs.toml"
    rm -f "$rejects"
    zodb-convert -w 2 --rejects "$rejects" "$@" "$SCRATCH/graphs.toml" >"$SCRATCH/graphs.log" 2>&1 || [ $? = 3 ] || { cat "$SCRATCH/graphs.log"; return 1; }
    [ -e "$rejects" ] || : >"$rejects"
    "$ZODB_PYTHON" scripts/py/codecoracle.py stored "$dsn" $strict --rejects "$rejects" <"$SCRATCH/graphs.jsonl" >"$SCRATCH/graphs.rows" || code=1
    [ "$code" = 0 ] || grep -m 10 '"difference"' "$SCRATCH/graphs.rows" | cut -c1-600
    "$SCRATCH/comparerecords" <"$SCRATCH/graphs.rows" || code=1
    zodb-convert verify -q -w 2 "$SCRATCH/graphs.toml" >"$SCRATCH/graphs.log" 2>&1 || { cat "$SCRATCH/graphs.log"; code=1; }
    grep -E '^(compared|differences)' "$SCRATCH/graphs.log" || code=1
    psql -X -q -d postgres -c "DROP DATABASE graphs"
    return "$code"
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
    # To S3 it is all the same.
    go_test -count=1 -timeout 30m -skip 'TestContractOfBlobsInS3' ./dest/pgjsonb
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

# fuzz_one TIME TARGET PACKAGE tries again where go test takes the end of its own
# time for a failure, as it does now and then before Go 1.27 (go.dev/issue/75804).
# For an input that fails it writes a file.
fuzz_one() {
    local log=$SCRATCH/fuzz.log
    for _ in 1 2 3; do
        if go test -run '^$' -fuzz "^$2\$" -fuzztime "$1" -timeout 0 "$3" >"$log" 2>&1; then
            grep -E '^fuzz: elapsed' "$log" | tail -1
            # Without a line of progress the target did not run.
            grep -qE '^fuzz: elapsed' "$log"
            return
        fi
        if grep -q 'Failing input written to' "$log" || ! grep -qx ' *context deadline exceeded' "$log"; then break; fi
    done
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
