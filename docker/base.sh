#!/bin/sh
# Makes sure a base image exists: base.sh [trixie|bookworm|forky]; prints its name on standard output.
#
# Order: an image that is already here; `docker pull` where a registry answers quickly; else an equivalent one made
# with debootstrap from Debian's packages (needs root, downloads about 40 MB). Everything else goes to standard error.
set -eu

suite=${1:-trixie}
# Empty: debootstrap's own default.
mirror=${DEBIAN_MIRROR:-}
official="debian:$suite-slim"
ours="howdah-base:$suite"

say() { echo "base.sh: $*" >&2; }

case $suite in
    trixie|bookworm|forky) ;;
    *) say "no such Debian release here: $suite (trixie, bookworm and forky are known)"; exit 64 ;;
esac

for image in "$official" "$ours"; do
    if docker image inspect "$image" >/dev/null 2>&1; then
        echo "$image"
        exit 0
    fi
done

say "$official is not here yet: asking the registry"
if timeout "${PULL_TIMEOUT:-120}" docker pull --quiet "$official" >&2 2>/dev/null; then
    echo "$official"
    exit 0
fi

say "no registry answers: building $ours from Debian's packages (two minutes)"
if [ "$(id -u)" != 0 ]; then
    say "that needs root: run 'sudo docker/base.sh $suite' once, or 'docker load' an image named $official"
    exit 1
fi
if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap"
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >&2
fi

# Two calls at once must not build the same thing twice.
exec 9>"/tmp/howdah-base-$suite.lock"
flock 9
if docker image inspect "$ours" >/dev/null 2>&1; then
    echo "$ours"
    exit 0
fi

root=$(mktemp -d "${TMPDIR:-/tmp}/howdah-base.XXXXXX")
trap 'rm -rf "$root"' EXIT
# A release younger than the installed debootstrap bootstraps like any other Debian release.
script=
if [ ! -e "/usr/share/debootstrap/scripts/$suite" ]; then
    script=/usr/share/debootstrap/scripts/sid
    # A script can only be named behind a mirror: the one a known release came from.
    [ -n "$mirror" ] || mirror=$(docker run --rm "$("$0" trixie)" cat /etc/apt/sources.list | awk '/^deb / { print $2; exit }')
fi
chmod 755 "$root"
# shellcheck disable=SC2086  # no mirror and no script mean no argument
if ! debootstrap --variant=minbase "$suite" "$root" $mirror $script >"$root.log" 2>&1; then
    tail -5 "$root.log" >&2
    say "debootstrap failed; the whole log is $root.log"
    exit 1
fi
rm -f "$root.log"

# What the official slim images leave out as well; licences stay.
printf 'path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\npath-exclude /usr/share/info/*\npath-exclude /usr/share/lintian/*\n' \
    > "$root/etc/dpkg/dpkg.cfg.d/slim"
printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' > "$root/etc/apt/apt.conf.d/slim"
# The release in preparation: a mirror that lags a few days is no attack.
[ "$suite" != forky ] || echo 'Acquire::Check-Valid-Until "false";' > "$root/etc/apt/apt.conf.d/in-preparation"
# debootstrap has written where it took the packages from; updates and security fixes come from beside it.
mirror=$(awk '/^deb / { print $2; exit }' "$root/etc/apt/sources.list")
{
    echo "deb $mirror $suite main"
    if [ "$suite" != forky ]; then
        echo "deb $mirror $suite-updates main"
        echo "deb ${DEBIAN_SECURITY_MIRROR:-$mirror-security} $suite-security main"
    fi
} > "$root/etc/apt/sources.list.new"
mv "$root/etc/apt/sources.list.new" "$root/etc/apt/sources.list"
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -depth -type d -empty -delete
rm -rf "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/usr/share/info/* "$root"/usr/share/lintian/* \
    "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/*

tar --numeric-owner -C "$root" -c . | docker import --change 'CMD ["bash"]' - "$ours" >/dev/null
say "built $ours"
echo "$ours"
