# What scripts/release is made of, and the check of what it makes. Sourced after
# env.sh; the check after steps.sh, too.

ALL_PLATFORMS="linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64"
NFPM=v2.44.0

# A clone that belongs to somebody else is read as well.
git_here() { git -c safe.directory="$ROOT" -C "$ROOT" "$@"; }

# release_identify says what is built: VERSION, COMMIT, SOURCE_DATE_EPOCH.
release_identify() {
    local tag at
    COMMIT=$(git_here rev-parse --verify -q HEAD) || die "this is no clone with a commit: a release is built from one"
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git_here log -1 --format=%ct)}
    [[ $SOURCE_DATE_EPOCH =~ ^[0-9]+$ ]] || die "SOURCE_DATE_EPOCH is $SOURCE_DATE_EPOCH, and not a number of seconds"
    if [ -z "$VERSION" ]; then
        tag=$(git_here describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null) || true
        VERSION=${tag#v}
    elif at=$(git_here rev-parse -q --verify "refs/tags/v$VERSION^{commit}") && [ "$at" != "$COMMIT" ]; then
        die "the tag v$VERSION is another commit: check it out, or name another version"
    fi
    VERSION=${VERSION:-0.0.0-dev.$(release_date %Y%m%d).g${COMMIT:0:12}}
    [[ $VERSION =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || die "the version $VERSION is not like 1.2.0 or 1.2.0-rc.1"
    if [ -n "$(git_here status --porcelain)" ]; then
        say "Changes that are not committed are no part of it"
    fi
    MAINTAINER=${MAINTAINER:-zodb-convert maintainers}
}

# release_date [FORMAT] prints the time of the release.
release_date() {
    local format=${1:-%Y-%m-%dT%H:%M:%SZ}
    date -u -d "@$SOURCE_DATE_EPOCH" "+$format" 2>/dev/null || date -u -r "$SOURCE_DATE_EPOCH" "+$format"
}

# release_export writes the files of the commit to SOURCE.
release_export() {
    SOURCE=$SCRATCH/source
    OUT=$SCRATCH/dist
    mkdir -p "$SOURCE" "$OUT" "$SCRATCH/tools"
    git_here archive --format=tar "$COMMIT" | tar -xf - -C "$SOURCE"
}

# release_go OS ARCH ARGUMENT ... runs go on SOURCE, whatever the user has set.
release_go() (
    cd "$SOURCE"
    unset GOEXPERIMENT GOAMD64 GOARM64 GODEBUG
    export GOOS=$1 GOARCH=$2 CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false -mod=readonly -p=${BUILD_JOBS:-1}" GOWORK=off
    shift 2
    go "$@"
)

release_host() { go env GOHOSTOS GOHOSTARCH | tr '\n' ' '; }

# release_tools builds what packs, and prints its name and version.
release_tools() {
    local host
    read -r -a host <<<"$(release_host)"
    release_go "${host[@]}" build -o "$SCRATCH/tools/" ./packaging/archive ./packaging/sbom || die "the tools that pack do not build"
    if [ "$(go version -m "$CACHE/bin/nfpm" 2>/dev/null | awk '$1 == "mod" { print $3 }')" != "$NFPM" ]; then
        GOBIN=$CACHE/bin GOFLAGS=-p=${BUILD_JOBS:-1} go install "github.com/goreleaser/nfpm/v2/cmd/nfpm@$NFPM" >"$CACHE/log/nfpm.log" 2>&1 ||
            { cat "$CACHE/log/nfpm.log" >&2; die "nfpm $NFPM cannot be installed"; }
    fi
    echo "$(go env GOVERSION), nfpm $NFPM"
}

# release_compile OS ARCH FILE builds the binary.
release_compile() {
    release_go "$1" "$2" build -ldflags "-s -w -X main.release=$VERSION -X main.commit=$COMMIT" -o "$3" ./cmd/zodb-convert ||
        die "the tool does not build for $1/$2"
}

# release_describe lets the tool write its manual page and completions.
release_describe() {
    local tool=$SCRATCH/tools/zodb-convert host
    read -r -a host <<<"$(release_host)"
    release_compile "${host[@]}" "$tool"
    COMMON=$SCRATCH/common
    mkdir -p "$COMMON/man" "$COMMON/completions"
    cp -R "$SOURCE/README.md" "$SOURCE/LICENSE" "$SOURCE/docs" "$COMMON"
    "$tool" man >"$COMMON/man/zodb-convert.1"
    "$tool" completion bash >"$COMMON/completions/zodb-convert.bash"
    "$tool" completion zsh >"$COMMON/completions/_zodb-convert"
    "$tool" completion fish >"$COMMON/completions/zodb-convert.fish"
}

# release_name OS/ARCH prints what files of the platform begin with.
release_name() { echo "zodb-convert_${VERSION}_${1/\//_}"; }

release_program() { if [[ $1 == windows/* ]]; then echo zodb-convert.exe; else echo zodb-convert; fi; }

release_build() {
    release_compile "${1%/*}" "${1#*/}" "$SCRATCH/build/$1/$(release_program "$1")"
}

# release_bills OS/ARCH ... lists what the binaries are made of.
release_bills() {
    local platform pairs=()
    for platform in "$@"; do
        pairs+=("$SCRATCH/build/$platform/$(release_program "$platform")=$OUT/$(release_name "$platform").cdx.json")
    done
    # In the module: its own licence, and go.sum to check the others by.
    (cd "$SOURCE" && "$SCRATCH/tools/sbom" -version "$VERSION" -commit "$COMMIT" -time "$SOURCE_DATE_EPOCH" \
        -licences "$COMMON/THIRD_PARTY_LICENSES.txt" "${pairs[@]}") || die "what the binaries are made of is not known"
}

# release_archive FILE DIRECTORY
release_archive() { "$SCRATCH/tools/archive" -time "$SOURCE_DATE_EPOCH" "$@" || die "$1 cannot be packed"; }

# release_pack OS/ARCH makes the archive, for Linux also the packages.
release_pack() {
    local name dir kind=tar.gz
    name=$(release_name "$1")
    dir=$SCRATCH/pack/$name
    mkdir -p "$dir"
    cp -R "$COMMON/." "$dir"
    cp "$SCRATCH/build/$1/$(release_program "$1")" "$dir"
    case $1 in windows/*) kind=zip ;; esac
    release_archive "$OUT/$name.$kind" "$dir"
    case $1 in linux/*) release_packages "${1#*/}" "$dir" ;; esac
}

# release_packages ARCH DIRECTORY makes .deb and .rpm of what is packed.
release_packages() (
    cd "$2"
    gzip -9n man/zodb-convert.1
    # What is packed has its own time in an .rpm.
    find . -exec touch -d "$(release_date)" {} +
    export ARCH=$1 VERSION MAINTAINER
    for packager in deb rpm; do
        "$CACHE/bin/nfpm" package --config "$SOURCE/packaging/nfpm.yaml" --packager "$packager" --target "$OUT" >"$CACHE/log/nfpm.log" 2>&1 ||
            { cat "$CACHE/log/nfpm.log" >&2; die "the .$packager for $1 cannot be made"; }
    done
)

# release_container OS/ARCH ... packs the binaries for Linux with the
# Containerfile.
release_container() {
    local name=zodb-convert_${VERSION}_container platform found=
    local dir=$SCRATCH/pack/$name
    for platform in "$@"; do
        case $platform in linux/*) ;; *) continue ;; esac
        mkdir -p "$dir/$platform"
        cp "$SCRATCH/build/$platform/zodb-convert" "$dir/$platform/"
        found=yes
    done
    [ -n "$found" ] || return 0
    cp "$SOURCE/packaging/Containerfile" "$COMMON/LICENSE" "$COMMON/THIRD_PARTY_LICENSES.txt" "$dir"
    release_archive "$OUT/$name.tar.gz" "$dir"
}

# release_place refuses a folder that holds something else: it will be emptied.
release_place() {
    [ -e "$DIST" ] || return 0
    [ -d "$DIST" ] || die "$DIST is no folder"
    [ -z "$(ls -A "$DIST")" ] || [ -e "$DIST/SHA256SUMS" ] || die "$DIST holds what is no release; name another folder"
}

# release_finish writes the checksums and puts everything in place.
release_finish() {
    (
        cd "$OUT"
        export LC_ALL=C
        if command -v sha256sum >/dev/null; then sha256sum -- *; else shasum -a 256 -- *; fi >"$SCRATCH/SHA256SUMS"
        mv "$SCRATCH/SHA256SUMS" .
    )
    rm -rf "$DIST"
    mkdir -p "$(dirname "$DIST")"
    mv "$OUT" "$DIST"
}
