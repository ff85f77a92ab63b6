#!/bin/sh
# The demo cluster: demo.sh up|down [raft|etcd]. Starts it, waits visibly until it is healthy, and says how to use it.
set -eu
cd "$(dirname "$0")/.."
action=${1:-up}
flavour=${2:-raft}
secrets=target/demo.env

compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose -p howdah-demo --env-file "$secrets" -f "compose/$flavour.yml" "$@"
    elif command -v docker-compose >/dev/null; then
        docker-compose -p howdah-demo --env-file "$secrets" -f "compose/$flavour.yml" "$@"
    else
        echo "demo: neither 'docker compose' nor 'docker-compose' is installed" >&2
        exit 1
    fi
}

password() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }

if [ ! -e "$secrets" ]; then
    mkdir -p target
    (umask 077; printf 'PATRONI_SUPERUSER_PASSWORD=%s\nPATRONI_REPLICATION_PASSWORD=%s\n' "$(password)" "$(password)" > "$secrets")
fi

if [ "$action" = down ]; then
    compose down --volumes --remove-orphans
    rm -f "$secrets"
    exit 0
fi

compose up -d
member() { compose ps -q "howdah$1"; }

echo
start=$(date +%s)
while :; do
    states=
    healthy=0
    for n in 1 2 3; do
        state=$(docker inspect -f '{{.State.Status}}/{{if .State.Health}}{{.State.Health.Status}}{{end}}' "$(member $n)" 2>/dev/null || echo missing)
        states="$states  howdah$n: ${state#running/}"
        [ "$state" = running/healthy ] && healthy=$((healthy + 1))
    done
    seconds=$(($(date +%s) - start))
    printf '\r%3d s%s          ' "$seconds" "$states"
    if [ "$healthy" = 3 ] && docker exec "$(member 1)" patronictl list >/dev/null 2>&1; then
        break
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
. "./$secrets"
cat <<TEXT

Connect (the proxy follows the primary):
  read-write  postgres://postgres:$PATRONI_SUPERUSER_PASSWORD@localhost:5000/postgres
  read-only   postgres://postgres:$PATRONI_SUPERUSER_PASSWORD@localhost:5001/postgres
  proxy       http://localhost:7000/

Try next:
  docker exec $(member 1 | cut -c1-12) patronictl list
  docker exec -it $(member 1 | cut -c1-12) patronictl switchover
  docker kill $(member 1 | cut -c1-12)      # and watch the others take over
  make demo-down
TEXT
