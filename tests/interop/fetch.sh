#!/bin/bash
# Installs the Patroni that the tier `interop` runs beside ours, from the Python package index, below target/.
#
# With the system's Python: the members run as another user, who may not see one in somebody's home.
set -eu
cd "$(dirname "$0")/../.."

place=target/interop/patroni
wanted='patroni[etcd3,psycopg3]==4.1.*'
[ -x "$place/bin/patroni" ] && [ "$(cat "$place/wanted" 2>/dev/null)" = "$wanted" ] && exit 0

python=/usr/bin/python3
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "the tests need Python with venv: install the package python3-venv" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
fi
rm -rf "$place"
"$python" -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check "$wanted"
echo "$wanted" >"$place/wanted"
