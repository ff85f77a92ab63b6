#!/bin/bash
# Every test, tier by tier; `make test`. One result line per tier, and one at the end that counts everything.
#
# Installs what is missing when it may (root, Debian). Leaves no container, network or volume behind, also when it fails.
# TIERS="unit pid1" runs only those; FOLLOW=1 shows what they say while they run.
set -u
cd "$(dirname "$0")/.."

export HOWDAH_TEST_RUN=${HOWDAH_TEST_RUN:-run$$}
label=howdah.test=$HOWDAH_TEST_RUN
logs=target/test-logs
mkdir -p "$logs"
total_passed=0
total_failed=0
broken=

running=
cleanup() {
    [ -z "$running" ] || { kill "$running" && wait "$running"; } 2>/dev/null
    command -v docker >/dev/null || return 0
    docker ps -aq --filter "label=$label" | xargs -r docker rm -fv >/dev/null 2>&1
    docker network ls -q --filter "label=$label" | xargs -r docker network rm >/dev/null 2>&1
    docker volume ls -q --filter "label=$label" | xargs -r docker volume rm -f >/dev/null 2>&1
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# needs COMMAND PACKAGE: sees to it that a command exists.
updated=
needs() {
    [ -n "$(command -v "$1")" ] && return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests need $1: install the package $2" >&2
        return 0
    fi
    echo "installing $2"
    [ -n "$updated" ] || { apt-get update -qq && updated=yes; } >>"$logs/apt.log" 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >>"$logs/apt.log" 2>&1 \
        || echo "could not install $2, see $logs/apt.log" >&2
}

# tier NAME LIMIT COMMAND…: runs it, counts its tests, prints one line. A tier that cannot be counted is one failure.
tier() {
    local name=$1 limit=$2 log=$logs/$1.log started=$SECONDS passed failed status
    shift 2
    case " ${TIERS:-$name} " in *" $name "*) ;; *) return 0 ;; esac
    # Waited for in the background: a signal must not have to wait, too.
    timeout --kill-after=20 "$limit" "$@" >"$log" 2>&1 </dev/null &
    running=$!
    if [ -n "${FOLLOW:-}" ]; then tail -n +1 -f --pid="$running" "$log" & fi
    wait "$running"
    status=$?
    running=
    wait
    # The harness of Rust, and the stores' own table.
    read -r passed failed < <(awk '
        /^test result: / { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
        /^[0-9]+ cases, [0-9]+ failed$/ { p += $1 - $3; f += $3 }
        END { print p + 0, f + 0 }' "$log")
    case $name in form) [ $status = 0 ] && passed=1 ;; esac
    if [ $status != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
    if [ $status = 0 ] && [ "$passed" = 0 ]; then failed=1; echo "tier $name ran no test" >>"$log"; fi
    [ $status = 124 ] && echo "tier $name: not finished after $limit" >>"$log"
    total_passed=$((total_passed + passed))
    total_failed=$((total_failed + failed))
    echo "tier $name: $passed passed, $failed failed ($((SECONDS - started)) s)"
    if [ "$failed" != 0 ]; then
        broken="$broken $name"
        grep -E '^(test .*FAILED|error|.* FAILED |---- |Diff in)' "$log" | head -20
        tail -n 40 "$log" | sed 's/^/    /'
    fi
}

form() {
    cargo fmt --check && cargo clippy --all-targets --locked --quiet -- -D warnings
}

image() {
    cargo build --release --locked --bin howdah && docker/image.sh etcd || return 1
    for major in 15 17 18; do PG_MAJOR=$major QUIET=1 docker/image.sh howdah || return 1; done
}

# with_image NAME LIMIT COMMAND…: a tier that needs Docker and the images; without them it fails rather than passes in silence.
images=
with_image() {
    case " ${TIERS:-$1} " in *" $1 "*) ;; *) return 0 ;; esac
    has "$1" || return 0
    if [ -z "$images" ]; then
        # For the systems below the images.
        wait
        needs docker docker.io
        needs debootstrap debootstrap
        if timeout 20m bash -c image >"$logs/image.log" 2>&1; then images=built; else
            images=missing
            tail -n 30 "$logs/image.log"
        fi
    fi
    if [ "$images" = built ]; then
        tier "$@"
    else
        echo "tier $1: 0 passed, 1 failed (the image could not be built)"
        broken="$broken $1"
        total_failed=$((total_failed + 1))
    fi
}

# A test target is declared in Cargo.toml, or a folder with a main.rs that cargo finds by itself.
has() { [ -e "tests/$1/main.rs" ]; }

needs etcd etcd-server
needs unshare util-linux
[ -x /usr/lib/postgresql/15/bin/postgres ] || { mkdir -p /etc/postgresql-common 2>/dev/null
    grep -qs create_main_cluster /etc/postgresql-common/createcluster.conf || echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf 2>/dev/null
    needs /usr/lib/postgresql/15/bin/postgres postgresql-15; }
if ! PROTOC=$(docker/protoc.sh); then exit 1; fi
export PROTOC

# The systems below the images take minutes of network and little processor: they come while the first tiers compile.
bases() {
    needs docker docker.io
    needs debootstrap debootstrap
    for suite in trixie bookworm forky; do docker/base.sh "$suite" || return 1; done
}
case " ${TIERS:-e2e} " in *" e2e "*) bases >"$logs/bases.log" 2>&1 & ;; esac

export -f form image
tier form 15m bash -c form
tier unit 15m cargo test --locked --lib --bins
has tidy && tier tidy 5m cargo test --locked --test tidy
has stories && tier stories 5m cargo test --locked --test stories
has sim && tier sim 20m env HOWDAH_SIM_SEEDS="${HOWDAH_SIM_SEEDS:-600}" cargo test --locked --profile fast --test sim
has pid1 && tier pid1 10m cargo test --locked --test pid1
has dcs && tier dcs 15m cargo test --locked --test dcs
has postgres && tier postgres 15m cargo test --locked --test postgres
has agent && tier agent 10m cargo test --locked --test agent
with_image e2e 25m env RUST_TEST_THREADS="${E2E_THREADS:-2}" cargo test --locked --test e2e
minutes=${HOWDAH_CHAOS_MINUTES:-2.5}
with_image chaos $((${minutes%%.*} + 15))m cargo test --locked --test chaos -- --nocapture

[ -z "$broken" ] || echo "failed tiers:$broken; their output is in $logs"
echo "$total_passed passed, $total_failed failed"
[ "$total_failed" = 0 ]
