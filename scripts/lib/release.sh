# What scripts/release is made of, and the check of what it makes. Sourced after
# env.sh; the check after steps.sh, too.

ALL_PLATFORMS="linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64"
NFPM=v2.44.0

# A clone that belongs to somebody else is read as well.
git_here() { git -c safe.directory="$ROOT" -C "$ROOT" "$@"; }

# release_identify says what of COMMIT is built: VERSION, the whole COMMIT and
# SOURCE_DATE_EPOCH.
release_identify() {
    local tag at named=$COMMIT
    COMMIT=$(git_here rev-parse --verify -q "$named^{commit}") || die "no commit $named in this folder: a release is built from a commit of a clone"
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git_here log -1 --format=%ct "$COMMIT")}
    [[ $SOURCE_DATE_EPOCH =~ ^[0-9]+$ ]] || die "SOURCE_DATE_EPOCH is $SOURCE_DATE_EPOCH, and not a number of seconds"
    if [ -z "$VERSION" ]; then
        tag=$(git_here describe --tags --exact-match --match 'v[0-9]*' "$COMMIT" 2>/dev/null) || true
        VERSION=${tag#v}
    elif at=$(git_here rev-parse -q --verify "refs/tags/v$VERSION^{commit}") && [ "$at" != "$COMMIT" ]; then
        die "the tag v$VERSION is another commit: name it with --commit, or name another version"
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

# What the check wants besides Go, as Debian's packages bring it.
RELEASE_CHECKERS=(zsh:zsh fish:fish man:man-db groff:groff-base mandoc:mandoc rpm:rpm
    qemu-aarch64-static:qemu-user-static /usr/share/bash-completion/bash_completion:bash-completion)

# release_checkers installs them.
release_checkers() {
    local pair missing=()
    for pair in "${RELEASE_CHECKERS[@]}"; do
        command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "apt-get install ${missing[*]} (log: $CACHE/log/apt-release.log)"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y --no-install-recommends "${missing[@]}" >"$CACHE/log/apt-release.log" 2>&1 ||
            { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$CACHE/log/apt-release.log" 2>&1 ||
            tail -5 "$CACHE/log/apt-release.log"
    fi
    for pair in "${RELEASE_CHECKERS[@]}"; do
        if ! command -v "${pair%%:*}" >/dev/null && ! [ -e "${pair%%:*}" ]; then
            echo "${pair%%:*} is missing; install ${pair#*:}"
            return 1
        fi
    done
}

# check_release [OS/ARCH ...] makes a release and tries what came of it. Without
# platforms all are built.
check_release() {
    local platforms="${*:-$ALL_PLATFORMS}" made=$SCRATCH/release
    # Once and for all: somebody may commit meanwhile.
    VERSION= COMMIT=HEAD
    release_identify >/dev/null
    RELEASE=$made
    RELEASED="zodb-convert $VERSION (commit ${COMMIT:0:12}, $(go env GOVERSION)"
    checked release_checkers
    scripts/release --platforms "$platforms" --commit "$COMMIT" --out "$made" || return 1
    checked release_whole "$platforms"
    checked release_repeats "$platforms"
    checked release_bills_right
    checked release_archives_right
    case " $platforms " in *" linux/amd64 "*)
        checked release_deb
        checked release_rpm
        ;;
    esac
    case " $platforms " in *" linux/arm64 "*) checked release_arm64 ;; esac
}

# release_whole PLATFORMS: every file is there, and the checksums fit.
release_whole() (
    cd "$RELEASE"
    for platform in $1; do
        for file in "$(release_name "$platform")".{tar.gz,zip}; do [ ! -s "$file" ] || continue 2; done
        echo "no archive for $platform"
        exit 1
    done
    case $1 in *linux/*) ls *.deb *.rpm *_container.tar.gz >/dev/null || exit 1 ;; esac
    [ "$(wc -l <SHA256SUMS)" = "$(ls | grep -vc '^SHA256SUMS$')" ] || { echo "not every file has a checksum"; exit 1; }
    sha256sum --check --quiet SHA256SUMS
)

# release_repeats PLATFORMS: at another place, with other habits, the bytes are
# the same.
release_repeats() {
    (
        umask 077
        export TZ=Pacific/Auckland LC_ALL=C GOAMD64=v3 GOFLAGS=-tags=another
        scripts/release --platforms "$1" --commit "$COMMIT" --out "$RELEASE.again" >"$RELEASE.log" 2>&1
    ) || { cat "$RELEASE.log"; return 1; }
    diff -r "$RELEASE" "$RELEASE.again" || return 1
    rm -rf "$RELEASE.again"
}

# release_bills_right: each bill is of its binary and names what Go says.
release_bills_right() {
    local bill archive
    for bill in "$RELEASE"/*.cdx.json; do
        archive=${bill%.cdx.json}
        rm -rf "$SCRATCH/bill" && mkdir "$SCRATCH/bill"
        if [ -e "$archive.zip" ]; then
            (cd "$SCRATCH/bill" && "$ZODB_PYTHON" -m zipfile -e "$archive.zip" .)
        else
            tar -xzf "$archive.tar.gz" -C "$SCRATCH/bill"
        fi
        go version -m "$SCRATCH"/bill/*/zodb-convert* >"$SCRATCH/bill/modules" || return 1
        "$ZODB_PYTHON" - "$bill" "$SCRATCH/bill/modules" "$SCRATCH"/bill/*/zodb-convert* <<'PYTHON' || { echo "$bill"; return 1; }
import hashlib, json, sys
bill, modules, binary = sys.argv[1:]
bill = json.load(open(bill))
assert bill["bomFormat"] == "CycloneDX" and bill["specVersion"] == "1.6", bill
mine = bill["metadata"]["component"]
assert mine["hashes"][0]["content"] == hashlib.sha256(open(binary, "rb").read()).hexdigest(), "of another binary"
want = {tuple(line.split()[1:3]) for line in open(modules) if line.split()[0] == "dep"}
have = {(c["name"], c["version"]) for c in bill["components"]}
assert len(want) > 10 and want == {c for c in have if c[0] != "std"}, want ^ have
assert all(c["licenses"] for c in bill["components"])
PYTHON
    done
}

# release_archives_right: the archives hold what they should, the binary needs no
# library, and what runs here says what it is.
release_archives_right() {
    local archive name list wanted
    for archive in "$RELEASE"/*_{linux,darwin,windows}_*.{tar.gz,zip}; do
        [ -e "$archive" ] || continue
        name=$(basename "$archive")
        name=${name%.zip}
        name=${name%.tar.gz}
        case $archive in
            *.zip) list=$("$ZODB_PYTHON" -m zipfile -l "$archive" | awk 'NR > 1 { print $1 }') ;;
            *) list=$(tar -tzf "$archive") ;;
        esac
        for wanted in README.md LICENSE THIRD_PARTY_LICENSES.txt docs/reference.md man/zodb-convert.1 completions/zodb-convert.bash \
            completions/_zodb-convert completions/zodb-convert.fish; do
            grep -qxF "$name/$wanted" <<<"$list" || { echo "$archive has no $wanted"; return 1; }
        done
    done
    name=$(release_name linux/amd64)
    [ -e "$RELEASE/$name.tar.gz" ] || return 0
    tar -xzf "$RELEASE/$name.tar.gz" -C "$SCRATCH"
    ! readelf -l "$SCRATCH/$name/zodb-convert" | grep -q INTERP || { echo "the binary is not static"; return 1; }
    release_says "linux/amd64" "$SCRATCH/$name/zodb-convert"
}

# release_says OS/ARCH COMMAND ...: --version tells this release.
release_says() {
    local platform=$1 said
    shift
    said=$("$@" --version) || return 1
    [ "$said" = "$RELEASED $platform)" ] || { echo "--version says: $said, and not: $RELEASED $platform)"; return 1; }
}

# Where packages put things.
INSTALLED_MAN=/usr/share/man/man1/zodb-convert.1.gz
INSTALLED_BASH=/usr/share/bash-completion/completions/zodb-convert
INSTALLED_FISH=/usr/share/fish/vendor_completions.d/zodb-convert.fish

# release_left prints what is installed of the tool.
release_left() { find /usr /etc /var/lib/dpkg/info /opt -xdev -name '*zodb-convert*' -not -path '*/.cache/*' -not -path '/usr/local/*' 2>/dev/null || true; }

# release_deb installs the package on this machine, tries it and removes it.
release_deb() {
    local deb status=0
    if [ "$(id -u)" != 0 ] || ! command -v dpkg >/dev/null; then
        echo "NOT CHECKED: only root can install a .deb, and only where dpkg is"
        [ "${CI:-}" != true ]
        return
    fi
    [ -z "$(release_left)" ] || { echo "zodb-convert is installed on this machine: $(release_left)"; return 1; }
    deb=$(echo "$RELEASE"/*_amd64.deb)
    # Images of containers often tell dpkg to leave documentation out.
    dpkg --path-include='/usr/share/*' -i "$deb" || return 1
    release_deb_tried || status=1
    dpkg -r zodb-convert || return 1
    [ -z "$(release_left)" ] || { echo "after dpkg -r there is still: $(release_left)"; return 1; }
    ! dpkg -s zodb-convert >/dev/null 2>&1 || { echo "dpkg still knows the package"; return 1; }
    return $status
}

release_deb_tried() {
    local zsh=/usr/share/zsh/vendor-completions/_zodb-convert page
    release_says linux/amd64 /usr/bin/zodb-convert || return 1
    [ -z "$(dpkg -V zodb-convert)" ] || { dpkg -V zodb-convert; return 1; }
    [ -s /usr/share/doc/zodb-convert/copyright ] && [ -s /usr/share/doc/zodb-convert/docs/reference.md ] || { echo "no documentation"; return 1; }
    release_silent bash -n "$INSTALLED_BASH" && release_silent zsh -n "$zsh" && release_silent fish -n "$INSTALLED_FISH" || return 1
    page=$SCRATCH/zodb-convert.1
    gzip -dc "$INSTALLED_MAN" >"$page" || return 1
    release_silent mandoc -T lint -W style "$page" && release_silent groff -man -ww -z -T utf8 "$page" || return 1
    man zodb-convert >"$page.txt" || return 1
    grep -q -e '--incremental' "$page.txt" || { echo "man shows another page"; return 1; }
    release_completes
}

# release_silent COMMAND ... succeeds if the command does and says nothing.
release_silent() {
    local said
    said=$("$@" 2>&1) && [ -z "$said" ] || { echo "$*: $said"; return 1; }
}

# release_completes: the shells complete as their users see it.
release_completes() {
    local got
    mkdir -p "$SCRATCH/completes" && touch "$SCRATCH/completes/site.toml"
    got=$(cd "$SCRATCH/completes" && bash --norc <<'BASH'
source /usr/share/bash-completion/bash_completion
complete_line() { # as readline calls it
    COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9 COMPREPLY=()
    __start_zodb-convert
    echo "${COMPREPLY[*]}"
}
compopt() { :; } # wants readline
_completion_loader zodb-convert
complete_line zodb-convert --rej
complete_line zodb-convert s
complete_line zodb-convert completion z
BASH
    ) || return 1
    [ "$(sed 's/ *$//' <<<"$got")" = $'--rejects\nsite.toml status\nzsh' ] || [ "$(sed 's/ *$//' <<<"$got")" = $'--rejects\nstatus site.toml\nzsh' ] ||
        { echo "bash completes: $got"; return 1; }
    got=$(fish --no-config -c "source $INSTALLED_FISH; complete -C 'zodb-convert --rej'") || return 1
    grep -q '^--rejects' <<<"$got" || { echo "fish completes: $got"; return 1; }
}

# release_rpm installs the package into a folder.
release_rpm() {
    local rpm root=$SCRATCH/rpm file
    rpm=$(echo "$RELEASE"/*.x86_64.rpm)
    if [ "$(id -u)" != 0 ]; then
        echo "NOT CHECKED: only root can install an .rpm"
        [ "${CI:-}" != true ]
        return
    fi
    mkdir -p "$root"
    rpm --root "$root" --dbpath /var/lib/rpm --initdb && rpm --root "$root" --dbpath /var/lib/rpm -i --nodeps "$rpm" || return 1
    for file in /usr/bin/zodb-convert "$INSTALLED_MAN" "$INSTALLED_BASH" "$INSTALLED_FISH" /usr/share/zsh/site-functions/_zodb-convert \
        /usr/share/licenses/zodb-convert/LICENSE /usr/share/doc/zodb-convert/docs/reference.md; do
        [ -s "$root$file" ] || { echo "the .rpm brings no $file"; return 1; }
    done
    release_says linux/amd64 "$root/usr/bin/zodb-convert" || return 1
    rpm --root "$root" --dbpath /var/lib/rpm -e zodb-convert || return 1
    file=$(find "$root" -name '*zodb-convert*')
    [ -z "$file" ] || { echo "after rpm -e there is still: $file"; return 1; }
}

# release_arm64 runs the binary for another processor.
release_arm64() {
    local name
    name=$(release_name linux/arm64)
    tar -xzf "$RELEASE/$name.tar.gz" -C "$SCRATCH"
    release_says linux/arm64 qemu-aarch64-static "$SCRATCH/$name/zodb-convert"
}
