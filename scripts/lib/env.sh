# Where the scripts work, and with what. Sourced by the programs in scripts/;
# every one of them runs from a fresh clone.
#
# Everything that is built or downloaded goes into folders that git ignores:
# .cache/ and .venv/. A home directory is used where there is one (for the
# caches of Go and pip), and not needed.

set -euo pipefail

CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=$ROOT/.cache
export PATH="$CACHE/bin:$PATH"
cd "$ROOT"
mkdir -p "$CACHE/bin" "$CACHE/log"

STATICCHECK=v0.8.2

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

writable() { mkdir -p "$1" 2>/dev/null && [ -w "$1" ]; }

# Without a usable home directory the caches move into the clone.
if [ -z "${HOME:-}" ] || ! writable "$HOME"; then
    export HOME="$CACHE/home"
    mkdir -p "$HOME"
fi
command -v go >/dev/null || die "Go is missing; install it (the version stands in go.mod) and put it into PATH"
writable "$(go env GOCACHE)" || export GOCACHE="$CACHE/go-build"
writable "$(go env GOMODCACHE)" || export GOMODCACHE="$CACHE/go-mod"

# A clone that belongs to somebody else is one that git tells nothing about.
if ! git rev-parse --verify -q HEAD >/dev/null 2>&1; then
    export GOFLAGS="${GOFLAGS:-} -buildvcs=false"
fi

# build puts the tool into .cache/bin.
build() {
    go build -o "$CACHE/bin/" ./cmd/zodb-convert || die "the tool does not build"
}

# set_up installs what the scripts need besides Go: database servers by the
# package manager, the real ZODB and its relatives from PyPI. It sets
# PGTEST_BINDIR, MARIADB_BINDIR and ZODB_PYTHON, which the tests know, too.
set_up() {
    local places
    "$ROOT/scripts/setup" "$@" || die "scripts/setup failed"
    places=$("$ROOT/scripts/setup" --env)
    eval "$places"
    [ -n "${PGTEST_BINDIR:-}" ] || die "scripts/setup left no PostgreSQL"
    [ -n "${ZODB_PYTHON:-}" ] || die "scripts/setup left no Python with ZODB"
}

# scratch makes a private folder, named SCRATCH, that goes when the script ends.
# It is in /tmp because the path of a unix socket has room for about 100 bytes.
scratch() {
    SCRATCH=$(mktemp -d /tmp/zodb-convert.XXXXXX)
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local code=$?
    trap - EXIT
    if declare -F stop_aside >/dev/null; then stop_aside; fi
    if declare -F pg_stop >/dev/null; then pg_stop; fi
    if declare -F maria_stop >/dev/null; then maria_stop; fi
    if declare -F s3_stop >/dev/null; then s3_stop; fi
    rm -rf "$SCRATCH"
    exit "$code"
}
