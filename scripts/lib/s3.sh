# A throwaway S3 server: versitygw on a folder of its own, at a random port of
# the loopback device. Sourced after env.sh; scratch must have been called, its
# trap stops the server, and set_up s3, which installs it.

# s3_start starts the server. Afterwards everything that uses Amazon's
# libraries has the keys, and S3_ENDPOINT is where to go.
s3_start() {
    local dir port try
    command -v versitygw >/dev/null || die "versitygw is missing; run scripts/setup s3"
    export AWS_ACCESS_KEY_ID=AKeyOfOurOwn AWS_SECRET_ACCESS_KEY=AKeyThatNobodyMaySee AWS_DEFAULT_REGION=us-east-1 AWS_REGION=us-east-1
    unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_CA_BUNDLE
    dir=$(mktemp -d "$SCRATCH/s3.XXXXXX")
    S3_DIR=$dir/buckets
    mkdir "$S3_DIR"
    for try in 1 2 3 4 5; do
        port=$(free_port)
        ROOT_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID ROOT_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY \
            versitygw --quiet --keep-alive --port "127.0.0.1:$port" posix "$S3_DIR" >"$dir/log" 2>&1 &
        echo $! >"$dir/pid"
        S3_ENDPOINT=http://127.0.0.1:$port
        export S3_ENDPOINT
        if s3_wait "$dir/pid" "$port"; then return; fi
    done
    cat "$dir/log" >&2
    die "versitygw does not start"
}

# s3_wait PIDFILE PORT waits until the server answers; false if it has ended.
s3_wait() {
    local try
    for try in $(seq 200); do
        kill -0 "$(cat "$1")" 2>/dev/null || return 1
        if (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then return 0; fi
        sleep 0.05
    done
    return 1
}

free_port() {
    "$ZODB_PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# s3_bucket NAME makes an empty bucket.
s3_bucket() {
    "$ZODB_PYTHON" -c 'import boto3, sys; boto3.client("s3", endpoint_url=sys.argv[1]).create_bucket(Bucket=sys.argv[2])' "$S3_ENDPOINT" "$1"
}

# s3_same NAME NAME tells whether two buckets hold the same objects. The server
# keeps an object as a file, and uploads that are under way in .sgwtmp.
s3_same() { diff -r -q -x .sgwtmp "$S3_DIR/$1" "$S3_DIR/$2"; }

# s3_count NAME prints how many objects a bucket holds.
s3_count() { find "$S3_DIR/$1" -path '*/.sgwtmp' -prune -o -type f -print | wc -l; }

# s3_drop NAME removes a bucket and all that is in it.
s3_drop() { rm -rf "${S3_DIR:?}/$1"; }

# s3_stop stops every server that was started in the scratch folder.
s3_stop() {
    local file
    for file in "$SCRATCH"/s3.*/pid; do
        [ -e "$file" ] || continue
        kill "$(cat "$file")" 2>/dev/null || true
        rm -f "$file"
    done
}
