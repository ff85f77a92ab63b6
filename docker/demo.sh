#!/bin/sh
# The demo cluster: demo.sh up|down [raft|consul|etcd|etcd2|zookeeper]. Starts it, waits visibly until it is healthy, and says how to use it.
set -eu
cd "$(dirname "$0")/.."
action=${1:-up}
flavour=${2:-raft}
secrets=${DEMO_SECRETS:-target/demo.env}
project=${DEMO_PROJECT:-howdah-demo}
if [ ! -e "compose/$flavour.yml" ]; then
    echo "demo: there is no demo of $flavour; these there are: $(cd compose && ls -- *.yml | sed 's/\.yml$//' | paste -sd' ' -)" >&2
    exit 64
fi
export HOWDAH_PRIMARY_PORT="${HOWDAH_PRIMARY_PORT:-5000}" HOWDAH_REPLICA_PORT="${HOWDAH_REPLICA_PORT:-5001}" HOWDAH_STATS_PORT="${HOWDAH_STATS_PORT:-7000}"

compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose -p "$project" --env-file "$secrets" -f "compose/$flavour.yml" "$@"
    elif command -v docker-compose >/dev/null; then
        docker-compose -p "$project" --env-file "$secrets" -f "compose/$flavour.yml" "$@"
    else
        echo "demo: neither 'docker compose' nor 'docker-compose' is installed" >&2
        exit 1
    fi
}

password() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }

# The volumes belong to the machine, the passwords to this checkout: another one's demo must not get ours.
if [ ! -e "$secrets" ] && [ -n "$(docker volume ls -q --filter "label=com.docker.compose.project=$project")" ]; then
    echo "demo: a demo of another checkout is on this machine (project $project), and its passwords are there." >&2
    echo "demo: run 'make demo-down' in that checkout first, or choose another DEMO_PROJECT and HOWDAH_{PRIMARY,REPLICA,STATS}_PORT" >&2
    exit 1
fi
# Made once, kept until `make demo-down`.
mkdir -p target
(umask 077; touch "$secrets")
for user in SUPERUSER REPLICATION RAFT; do
    grep -q "^PATRONI_${user}_PASSWORD=" "$secrets" || echo "PATRONI_${user}_PASSWORD=$(password)" >> "$secrets"
done

if [ "$action" = down ]; then
    compose down --volumes --remove-orphans
    # Those of a store that only another demo has.
    docker volume ls -q --filter "label=com.docker.compose.project=$project" | xargs -r docker volume rm >/dev/null
    rm -f "$secrets"
    exit 0
fi

compose up -d
member() { compose ps -q "howdah$1"; }

echo
start=$(date +%s)
leader=1
while :; do
    states=
    healthy=0
    for n in 1 2 3; do
        state=starting
        if docker exec "$(member $n)" howdah healthcheck primary >/dev/null 2>&1; then
            state=primary
            leader=$n
        elif docker exec "$(member $n)" howdah healthcheck replica >/dev/null 2>&1; then
            state=replica
        fi
        states="$states  howdah$n: $state"
        [ "$state" = starting ] || healthy=$((healthy + 1))
    done
    seconds=$(($(date +%s) - start))
    printf '\r%3d s%s          ' "$seconds" "$states"
    if [ "$healthy" = 3 ]; then
        case $states in *primary*) break ;; esac
    fi
    if [ "$seconds" -gt "${DEMO_TIMEOUT:-180}" ]; then
        echo
        echo "demo: not healthy after $seconds s; the members' last words:" >&2
        compose logs --tail 20 >&2
        exit 1
    fi
    sleep 1
done
echo
echo
docker exec "$(member 1)" patronictl list
. "$(realpath "$secrets")"
cat <<TEXT

Connect (the proxy follows the primary):
  read-write  postgres://postgres:$PATRONI_SUPERUSER_PASSWORD@localhost:$HOWDAH_PRIMARY_PORT/postgres
  read-only   postgres://postgres:$PATRONI_SUPERUSER_PASSWORD@localhost:$HOWDAH_REPLICA_PORT/postgres
  proxy       http://localhost:$HOWDAH_STATS_PORT/

Try next:
  docker exec $(member 1 | cut -c1-12) patronictl list
  docker exec -it $(member 1 | cut -c1-12) patronictl switchover
  docker kill $(member "$leader" | cut -c1-12)      # the leader; and watch the others take over
  make demo-down
TEXT
