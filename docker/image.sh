#!/bin/sh
# Builds an image from the release binary: image.sh howdah|etcd|haproxy [tag]. PG_MAJOR chooses PostgreSQL and its Debian.
set -eu
cd "$(dirname "$0")/.."
what=${1:-howdah}
major=${PG_MAJOR:-17}
case $major in
    15) suite=bookworm ;;
    17) suite=trixie ;;
    18) suite=forky ;;
    *) echo "image.sh: PG_MAJOR=$major is not packaged in a Debian release known here: 15, 17 and 18 are" >&2; exit 64 ;;
esac
[ "$what" = howdah ] || suite=trixie
base=${BASE:-$(docker/base.sh "$suite")}

if [ "$what" != howdah ]; then
    docker build --quiet --build-arg "BASE=$base" -t "${2:-howdah-$what}" "docker/$what"
    exit 0
fi

# A context of its own: the builder must not be sent the whole target directory.
context=$(mktemp -d "${TMPDIR:-/tmp}/howdah-image.XXXXXX")
trap 'rm -rf "$context"' EXIT
cp docker/Dockerfile "$context/"
cp "${BINARY:-target/release/howdah}" "$context/howdah"
chmod 755 "$context/howdah"
# The builder's cache goes by content and mode, not by time.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
# Whoever asks the default tag gets the default major; each major has its own tag besides.
set -- "${2:-howdah:pg$major}"
docker build ${QUIET:+--quiet} --build-arg "BASE=$base" --build-arg "PG_MAJOR=$major" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision" -t "$1" "$context"
if [ "$1" = howdah:pg17 ]; then docker tag "$1" howdah:latest; fi
echo "built $1"
