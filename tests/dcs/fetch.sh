#!/bin/sh
# Unpacks a Debian package of another release, which cannot be installed beside this one's: fetch.sh RELEASE PACKAGE
#
# Prints the folder it lies in. Downloads once, from the mirror this machine already uses, checked by Debian's signature.
set -eu

release=$1
package=$2
folder=${CARGO_TARGET_DIR:-$(dirname "$0")/../../target}/servers/$release-$package
if [ -e "$folder/done" ]; then
    (cd "$folder" && pwd)
    exit 0
fi

say() { echo "fetch.sh: $*" >&2; }
mkdir -p "$folder"
# Two calls at once must not unpack the same thing twice.
exec 9>"$folder/lock"
flock 9
[ -e "$folder/done" ] && { (cd "$folder" && pwd); exit 0; }

mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v security | head -n 1)
[ -n "$mirror" ] || { say "no mirror of Debian is set up here; needed for $package of $release"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::State::Status=/dev/null -o Dir::Cache="$work" -o APT::Sandbox::User=root \
        -o Acquire::Check-Valid-Until=false "$@"
}
say "downloading $package of $release"
apt update >&2
(cd "$work" && apt download "$package" >&2)
dpkg -x "$work/$package"_*.deb "$folder"
touch "$folder/done"
(cd "$folder" && pwd)
