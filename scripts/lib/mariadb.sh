# A throwaway MariaDB: its own folder, its own unix socket, no TCP port. Nothing
# of an installed server is touched. Sourced after env.sh and postgres.sh;
# scratch must have been called, its trap stops the server, and set_up mariadb,
# which says where the server's binaries are.

# maria_program NAME prints the path of a program beside the server.
maria_program() {
    local dir
    for dir in "$MARIADB_BINDIR" "$MARIADB_BINDIR/../bin" "$MARIADB_BINDIR/../scripts"; do
        if [ -x "$dir/$1" ]; then
            echo "$dir/$1"
            return
        fi
    done
    command -v "$1" || die "$1 is missing; run scripts/setup mariadb"
}

# maria_start [OPTION ...] starts the server. MARIADB_SOCKET is then where it
# listens; the user root needs no password. A folder of root belongs to root,
# and so does the server.
maria_start() {
    local dir try
    dir=$(mktemp -d "$SCRATCH/maria.XXXXXX")
    "$(maria_program mariadb-install-db)" --no-defaults --user="$(id -un)" --datadir="$dir/data" --auth-root-authentication-method=normal \
        --skip-test-db >"$dir/install.log" 2>&1 || { cat "$dir/install.log" >&2; die "mariadb-install-db failed"; }
    export MARIADB_SOCKET=$dir/socket
    "$MARIADB_BINDIR/mariadbd" --no-defaults --user="$(id -un)" --datadir="$dir/data" --socket="$MARIADB_SOCKET" --pid-file="$dir/server.pid" \
        --skip-networking --innodb-flush-log-at-trx-commit=0 --skip-log-bin --max-allowed-packet=64M "$@" >"$dir/log" 2>&1 &
    echo $! >"$dir/pid"
    for try in $(seq 300); do
        kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        if maria -e 'SELECT 1' >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    cat "$dir/log" >&2
    die "MariaDB does not start"
}

# maria [ARGUMENT ...] is the client.
maria() { "$(maria_program mariadb)" --no-defaults --socket="$MARIADB_SOCKET" --user=root --batch --skip-column-names "$@"; }

# maria_stop stops every server that was started in the scratch folder.
maria_stop() {
    local pid try
    for pid in "$SCRATCH"/maria.*/pid; do
        [ -e "$pid" ] || continue
        kill "$(cat "$pid")" 2>/dev/null || continue
        for try in $(seq 200); do
            kill -0 "$(cat "$pid")" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$(cat "$pid")" 2>/dev/null || true
    done
}
