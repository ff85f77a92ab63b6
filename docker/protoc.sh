#!/bin/sh
# Prints the path of a protoc, the Protocol Buffers compiler that the etcd client's build needs.
#
# Order: $PROTOC, PATH, one made earlier under target/, one from a crate (no root needed), Debian's package (as root).
set -eu
cd "$(dirname "$0")/.."
kept=$PWD/target/protoc/bin/protoc

if [ -n "${PROTOC:-}" ] && [ -x "$PROTOC" ]; then echo "$PROTOC"; exit 0; fi
if command -v protoc 2>/dev/null; then exit 0; fi
if [ -x "$kept" ] && [ -d target/protoc/include ]; then echo "$kept"; exit 0; fi

echo "protoc.sh: no protoc here: taking one from the crate protoc-bin-vendored" >&2
work=$PWD/target/protoc/build
mkdir -p "$work/src"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "fetch-protoc"
version = "0.0.0"
edition = "2021"
[dependencies]
protoc-bin-vendored = "3"
[workspace]
TOML
cat > "$work/src/main.rs" <<'RUST'
fn main() {
    let program = protoc_bin_vendored::protoc_bin_path().expect("a protoc for this platform");
    let types = protoc_bin_vendored::include_path().expect("Google's own types");
    println!("{}\n{}", program.display(), types.display());
}
RUST
if paths=$(cd "$work" && env -u CARGO_TARGET_DIR cargo run --quiet 2>"$work/log"); then
    # protoc finds Google's types in ../include, and the etcd client's files import some.
    mkdir -p "$(dirname "$kept")"
    rm -rf "$PWD/target/protoc/include"
    cp -R "$(echo "$paths" | tail -n 1)" "$PWD/target/protoc/include"
    cp "$(echo "$paths" | head -n 1)" "$kept"
    chmod +x "$kept"
    rm -rf "$work"
    echo "$kept"
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    echo "protoc.sh: not to be had there: installing Debian's package" >&2
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends protobuf-compiler >&2
    command -v protoc
    exit 0
fi
tail -5 "$work/log" >&2
echo "protoc.sh: install the package protobuf-compiler, or set PROTOC" >&2
exit 1
