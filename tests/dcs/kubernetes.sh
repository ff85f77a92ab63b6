#!/bin/sh
# Puts Kubernetes' API server where tests on this machine find it: kubernetes.sh [find]
#
# Prints the folder it lies in. The image is built where there is none yet, which takes minutes; `find` only looks, for a test that
# must not.
set -eu
cd "$(dirname "$0")/../.."

say() { echo "kubernetes.sh: $*" >&2; }

# As the image, by content: another recipe is another server.
recipe=$(sha256sum docker/kubernetes/Dockerfile | cut -c 1-12)
folder=${CARGO_TARGET_DIR:-target}/servers/kubernetes-$recipe
if [ -x "$folder/kube-apiserver" ]; then
    (cd "$folder" && pwd)
    exit 0
fi
if [ "${1:-}" = find ]; then
    say "there is no kube-apiserver under target/ yet: tests/dcs/kubernetes.sh builds one, once, in some ten minutes"
    exit 1
fi

mkdir -p "$folder"
# Two calls at once must not build the same thing twice.
exec 9>"$folder/lock"
flock 9
[ -x "$folder/kube-apiserver" ] && { (cd "$folder" && pwd); exit 0; }

docker info >/dev/null 2>&1 || { say "Docker does not answer, and the server is built in a container"; exit 1; }
say "building the image howdah-kubernetes, which takes some ten minutes where it is not here yet"
docker/image.sh kubernetes >&2 || {
    say "no image: it needs Debian's mirror with the source of bookworm's package kubernetes; what failed is above"
    exit 1
}
container=$(docker create howdah-kubernetes)
trap 'docker rm -f "$container" >/dev/null' EXIT
docker cp "$container:/usr/local/bin/kube-apiserver" "$folder/copy" >&2
mv "$folder/copy" "$folder/kube-apiserver"
(cd "$folder" && pwd)
