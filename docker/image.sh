#!/bin/sh
# Builds an image: image.sh howdah [tag] from the release binary, image.sh consul|etcd|haproxy|kubernetes|zookeeper [tag] from what
# Debian packages.
# PG_MAJOR chooses PostgreSQL and its Debian.
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
options=
case $what in
    howdah) ;;
    kubernetes)
        # The release that has its source. Minutes of compilation: other containers come first, the host's processes count as much as it.
        suite=bookworm
        recipe=$(sha256sum docker/kubernetes/Dockerfile | cut -c 1-12)
        options="--cpu-shares=2 --label howdah.recipe=$recipe"
        # Too dear for the builder's own cache, which goes when somebody clears unused images away.
        built=$(docker image inspect -f '{{index .Config.Labels "howdah.recipe"}}' "${2:-howdah-kubernetes}" 2>/dev/null || true)
        [ "$built" != "$recipe" ] || exit 0
        ;;
    *) suite=trixie ;;
esac
base=${BASE:-$(docker/base.sh "$suite")}

if [ "$what" != howdah ]; then
    # shellcheck disable=SC2086  # no options mean no argument
    docker build --quiet $options --build-arg "BASE=$base" -t "${2:-howdah-$what}" "docker/$what"
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
