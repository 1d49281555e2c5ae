# Steps that are counted: the frame of scripts/test and scripts/soak. Sourced
# after env.sh, postgres.sh and s3.sh.
#
# A step is a shell function. It runs in a subshell, its output is shown and
# kept in .cache/log. A step that runs tests tells its counts through count;
# one that does not counts as one pass or one failure.

PASSED=0
FAILED=0
STEPS=()

# count PASSED FAILED adds to the counts of the step that is running.
count() { echo "$1 $2" >>"$COUNTS"; }

# checked COMMAND ... runs one check within a step and counts it. The step goes
# on after a failure.
checked() {
    if "$@"; then
        count 1 0
    else
        echo "FAILED: $*"
        count 0 1
    fi
}

# go_test ARGUMENT ... runs go test and counts its tests.
go_test() {
    local status=0
    # -p 2: the packages' servers and builds share few cores.
    go test -json -p 2 "$@" | "$ZODB_PYTHON" "$ROOT/scripts/lib/tally.py" "$COUNTS.tally" || status=$?
    read -r -a tally <"$COUNTS.tally"
    count "${tally[@]}"
    # A run that ended badly without a test to blame is a failure of its own.
    if [ "$status" != 0 ] && [ "${tally[1]}" = 0 ]; then return 1; fi
    return 0
}

# stop_servers stops what the step that is running has started.
stop_servers() {
    pg_stop
    s3_stop
    if declare -F maria_stop >/dev/null; then maria_stop; fi
}

# step NAME FUNCTION [ARGUMENT ...]
step() {
    local name=$1 start=$SECONDS
    shift
    say "$name"
    # Not as part of an || list: bash ignores -e within it.
    set +e
    perform "$name" "$@"
    settle "$name" $? $((SECONDS - start))
    set -e
}

# aside NAME FUNCTION [ARGUMENT ...] is a step that runs beside those behind it, for
# one that waits more than it computes. beside shows what it said.
aside() {
    say "$1: runs beside what follows"
    ASIDE=$1
    # A folder of its own: a step stops all servers of its folder when it ends.
    mkdir -p "$SCRATCH/aside"
    chmod 711 "$SCRATCH"
    set -m # a process group of its own, that can be ended as a whole
    (SCRATCH=$SCRATCH/aside; perform "$@") >"$SCRATCH/aside.out" 2>&1 &
    ASIDE_PID=$!
    set +m
    ASIDE_START=$SECONDS
}

# beside waits for the step of aside, if there is one.
beside() {
    local status=0
    [ -n "${ASIDE_PID:-}" ] || return 0
    wait "$ASIDE_PID" || status=$?
    ASIDE_PID=
    say "$ASIDE"
    cat "$SCRATCH/aside.out"
    settle "$ASIDE" "$status" $((SECONDS - ASIDE_START))
}

# stop_aside ends the step of aside and its servers.
stop_aside() {
    if [ -n "${ASIDE_PID:-}" ]; then
        kill -TERM -- "-$ASIDE_PID" 2>/dev/null || true
        wait "$ASIDE_PID" 2>/dev/null || true
        (SCRATCH=$SCRATCH/aside; stop_servers)
    fi
}

# log_of NAME is where a step's output is kept; its counts are beside it.
log_of() { echo "$CACHE/log/${1//[^A-Za-z0-9]/-}"; }

# perform NAME FUNCTION [ARGUMENT ...] runs a step; its status is the step's.
perform() {
    local name=$1
    shift
    COUNTS=$(log_of "$name").counts
    : >"$COUNTS"
    (set -euo pipefail; trap stop_servers EXIT; "$@") </dev/null 2>&1 | tee "$(log_of "$name").log"
}

# settle NAME STATUS SECONDS counts a step that has ended.
settle() {
    local name=$1 status=$2 passed=0 failed=0 p f
    while read -r p f; do
        passed=$((passed + p))
        failed=$((failed + f))
    done <"$(log_of "$name").counts"
    if [ "$status" != 0 ]; then
        failed=$((failed + 1))
        echo "FAILED: $name (exit code $status)"
    elif [ "$((passed + failed))" = 0 ]; then
        passed=1
    fi
    PASSED=$((PASSED + passed))
    FAILED=$((FAILED + failed))
    STEPS+=("$(printf '%-34s %6d passed %4d failed %6d s' "$name" "$passed" "$failed" "$3")")
}

# summary prints the table and the closing line, and ends the script.
summary() {
    echo
    printf '%s\n' "${STEPS[@]}"
    echo
    echo "$PASSED passed, $FAILED failed"
    [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]
    exit
}

# wanted NAME tells whether the part is among those that the user named; all
# are if none was.
wanted() {
    [ ${#PARTS[@]} = 0 ] && return 0
    local part
    for part in "${PARTS[@]}"; do [ "$part" = "$1" ] && return 0; done
    return 1
}

# parts KNOWN ... -- NAME ... sets PARTS and refuses unknown names.
parts() {
    local known=() name
    while [ "$1" != -- ]; do known+=("$1"); shift; done
    shift
    PARTS=("$@")
    for name in "$@"; do
        [[ " ${known[*]} " == *" $name "* ]] || die "unknown part $name; the parts are: ${known[*]}"
    done
}
