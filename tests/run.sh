#!/bin/bash
# Every test, tier by tier; `make test`. One result line per tier, and one at the end that counts everything.
#
# Installs what is missing when it may (root, Debian). Leaves no container, network or volume behind, also when it fails.
# TIERS="unit pid1" runs only those; FOLLOW=1 shows what they say while they run.
#
# All tests are compiled at once. Then those that mostly wait (for elections, leases, servers) have the machine, and what only
# needs a processor goes on beside them at the lowest priority: the checks of form, the images, the simulator, Kubernetes' API server.
set -u
cd "$(dirname "$0")/.."

export HOWDAH_TEST_RUN=${HOWDAH_TEST_RUN:-run$$}
label=howdah.test=$HOWDAH_TEST_RUN
export logs=target/test-logs
mkdir -p "$logs"
rm -f "$logs"/*.ended
total_passed=0
total_failed=0
broken=

running=
beside=
cleanup() {
    [ -z "$running" ] || { kill "$running" && wait "$running"; } 2>/dev/null
    for job in $beside; do kill -- "-$job" 2>/dev/null; done
    command -v docker >/dev/null || return 0
    docker ps -aq --filter "label=$label" | xargs -r docker rm -fv >/dev/null 2>&1
    docker network ls -q --filter "label=$label" | xargs -r docker network rm >/dev/null 2>&1
    docker volume ls -q --filter "label=$label" | xargs -r docker volume rm -f >/dev/null 2>&1
    # The demos are compose's, which knows no such label.
    docker ps -aq --filter "name=$HOWDAH_TEST_RUN-demo" | xargs -r docker rm -fv >/dev/null 2>&1
    docker network ls -q --filter "name=$HOWDAH_TEST_RUN-demo" | xargs -r docker network rm >/dev/null 2>&1
    docker volume ls -q --filter "name=$HOWDAH_TEST_RUN-demo" | xargs -r docker volume rm -f >/dev/null 2>&1
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
    timeout --kill-after=20 "$limit" bash -c "$*" >"$log" 2>&1 </dev/null &
    running=$!
    if [ -n "${FOLLOW:-}" ]; then tail -n +1 -f --pid="$running" "$log" & fi
    wait "$running"
    status=$?
    running=
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
        grep -E '^(test .*FAILED|error|---- |Diff in)' "$log" | head -20
        # What each of them said first of all; the members' own logs may follow for pages.
        grep -A 12 -E 'panicked at' "$log" | cut -c 1-400 | head -120 | sed 's/^/    /'
        tail -n 24 "$log" | cut -c 1-600 | sed 's/^/    /'
    fi
}

# wanted TIER…: whether one of these is to run.
wanted() {
    local name
    for name; do case " ${TIERS:-$name} " in *" $name "*) return 0 ;; esac done
    return 1
}

# Jobs beside the tiers.

# Patroni, and the systems below the images: minutes of network, and little processor.
fetch() {
    ! wanted interop || tests/interop/fetch.sh || return 1
    ! wanted e2e chaos || for suite in trixie bookworm forky; do docker/base.sh "$suite" || return 1; done
}

form() {
    cargo fmt --check && cargo clippy --all-targets --locked --quiet -- -D warnings || return 1
    # One store alone, and none: what stands in for the others in tests.
    for store in consul etcd etcd3 kubernetes raft zookeeper ""; do
        cargo clippy --locked --quiet --no-default-features --features "$store" --lib --bins --test dcs -- -D warnings \
            || { echo "error: with the feature \"$store\" alone"; return 1; }
    done
}

image() {
    ended fetch && cargo build --release --locked --bin howdah || return 1
    for server in consul etcd haproxy zookeeper; do docker/image.sh $server || return 1; done
    for major in 15 17 18; do PG_MAJOR=$major QUIET=1 docker/image.sh howdah || return 1; done
}

# Kubernetes' API server is compiled once on each machine. Without it its stores are reported as not run, and all others run.
kubernetes() {
    tests/dcs/kubernetes.sh
}

# The simulated stores need no store's client: much need not be compiled.
sim() {
    HOWDAH_SIM_SEEDS="${HOWDAH_SIM_SEEDS:-10000}" cargo test --locked --profile fast --no-default-features --test sim
}

# do_beside JOB…: one after the other, behind whatever else wants the processor. Each leaves its log and its status.
do_beside() {
    set -m
    nice -n 19 bash -c '
        for job; do
            timeout --foreground --kill-after=20 40m bash -c "$job" >"$logs/beside-$job.log" 2>&1 </dev/null
            echo $? >"$logs/$job.status"
            mv "$logs/$job.status" "$logs/$job.ended"
        done' beside "$@" &
    beside="$beside $!"
    set +m
}

# ended JOB: waits for a job beside; says and returns what it did.
ended() {
    until [ -e "$logs/$1.ended" ]; do sleep 0.2; done
    cat "$logs/beside-$1.log"
    return "$(cat "$logs/$1.ended")"
}

# tests_of NAME: runs the test program that was compiled for a tier, or the two of the crate itself.
tests_of() {
    local name=$1 program failed=0 found=
    shift
    for program in $(sed -n "s,^ *Executable .*(\(.*/deps/$name-[0-9a-f]*\))\$,\1,p" "$logs/build.log"); do
        found=yes
        "$program" "$@" || failed=1
    done
    [ -n "$found" ] && return $failed
}

compile() {
    local name targets=
    wanted unit && targets="--lib --bins"
    for name in tidy stories pid1 dcs postgres agent interop page e2e chaos; do
        wanted $name && targets="$targets --test $name"
    done
    [ -z "$targets" ] || cargo test --locked --no-run $targets
}

dcs() {
    ended kubernetes
    tests_of dcs
}

interop() {
    ended fetch && ended kubernetes && tests_of interop
}

e2e() {
    ended image && RUST_TEST_THREADS="${E2E_THREADS:-2}" tests_of e2e
}

chaos() {
    ended image && tests_of chaos --nocapture
}

export TIERS=${TIERS:-} E2E_THREADS=${E2E_THREADS:-}
[ -n "$TIERS" ] || unset TIERS
[ -n "$E2E_THREADS" ] || unset E2E_THREADS
export -f wanted fetch form image kubernetes sim ended tests_of compile dcs interop e2e chaos

needs etcd etcd-server
# ZooKeeper, and what makes the certificates that it reads.
needs java default-jre-headless
needs openssl openssl
[ -e /usr/share/java/zookeeper.jar ] || needs /usr/share/java/zookeeper.jar libzookeeper-java
needs unshare util-linux
[ -x /usr/lib/postgresql/15/bin/postgres ] || { mkdir -p /etc/postgresql-common 2>/dev/null
    grep -qs create_main_cluster /etc/postgresql-common/createcluster.conf || echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf 2>/dev/null
    needs /usr/lib/postgresql/15/bin/postgres postgresql-15; }
! wanted interop || needs /usr/sbin/haproxy haproxy
! wanted page || needs chromium chromium
if wanted dcs interop e2e chaos; then
    needs docker docker.io
    needs debootstrap debootstrap
fi
if wanted e2e chaos; then
    docker compose version >/dev/null 2>&1 || needs docker-compose docker-compose
fi
if ! PROTOC=$(docker/protoc.sh); then exit 1; fi
export PROTOC

do_beside fetch
! wanted dcs interop || do_beside kubernetes
if ! compile >"$logs/build.log" 2>&1; then
    grep -E -A 12 '^error' "$logs/build.log" | head -60
    echo "0 passed, 1 failed: the tests do not compile; $logs/build.log"
    exit 1
fi
echo "compiled ($SECONDS s)"
jobs=
wanted form && jobs="$jobs form"
wanted e2e chaos && jobs="$jobs image"
wanted sim && jobs="$jobs sim"
do_beside $jobs

tier unit 15m tests_of howdah
tier tidy 5m tests_of tidy
tier stories 5m tests_of stories
tier pid1 10m tests_of pid1
tier postgres 15m tests_of postgres
tier agent 15m tests_of agent
tier page 5m tests_of page
# Behind those that need no Kubernetes: on a machine where it is not compiled yet, that takes a while.
tier dcs 55m dcs
tier interop 20m interop
tier form 40m ended form
tier e2e 50m e2e
minutes=${HOWDAH_CHAOS_MINUTES:-2.5}
tier chaos $((${minutes%%.*} + 50))m chaos
tier sim 40m ended sim

[ -z "$broken" ] || echo "failed tiers:$broken; their output is in $logs"
echo "$total_passed passed, $total_failed failed ($SECONDS s)"
[ "$total_failed" = 0 ]
