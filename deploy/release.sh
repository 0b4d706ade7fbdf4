#!/usr/bin/env bash
# Makes everything that a release consists of, with checksums: for each platform
# the static programs, the image and the Debian package; one image for all; the
# chart; what the programs are made of. Programs are started before they are packed.
#
# usage: deploy/release.sh OUT [ARCHITECTURE...]    amd64 arm64; both
#
# Programs are built by cargo with the release profile, for another processor by
# Debian's cross compiler, and there started under Debian's qemu-user-static. The same commit and toolchain give the same bytes.
# RELEASE_PROFILE=dev tries the recipe in a fraction of the time.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $# -ge 1 ]] || {
  echo "usage: deploy/release.sh OUT [ARCHITECTURE...]" >&2
  exit 64
}
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
[[ $# -gt 0 ]] || set -- amd64 arm64
cd "$root"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
target=${CARGO_TARGET_DIR:-$root/target}
profile=${RELEASE_PROFILE:-release}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}

# What tar would take from the file system is fixed.
pack() {
  tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --dereference \
    --mode=u=rwX,go=rX -C "$1" -c "${@:2}" | gzip -n -9
}

# ready_for TRIPLE: what a build for another processor needs, or what is missing.
ready_for() {
  rustup target list --installed 2>/dev/null | grep -q "^$1$" || rustup target add "$1" >&2 || {
    echo "release: Rust's library for $1 is missing; rustup target add $1 installs it" >&2
    exit 1
  }
  [[ $1 == "$(uname -m)"-* ]] && return
  local cross=${1/-unknown/} name=${1//-/_}
  command -v "$cross-gcc" >/dev/null || {
    echo "release: $cross-gcc is missing (Debian: apt install gcc-${cross//_/-} libc6-dev-arm64-cross)" >&2
    exit 1
  }
  export "CARGO_TARGET_$(tr a-z A-Z <<<"$name")_LINKER=$cross-gcc" "CC_$name=$cross-gcc" "AR_$name=$cross-ar"
  # Machines of this kind have pages of 4, 16 or 64 KiB, and the allocator has to know the largest.
  export JEMALLOC_SYS_WITH_LG_PAGE=16
}

# emulator_for TRIPLE: what starts its programs here, nothing if they start by themselves; or what is missing.
emulator_for() {
  [[ $1 == "$(uname -m)"-* ]] && return
  command -v "qemu-${1%%-*}-static" || {
    echo "release: qemu-${1%%-*}-static is missing, and no program is packed that was not started (Debian: apt install qemu-user-static)" >&2
    exit 1
  }
}

images=()
for architecture in "$@"; do
  case $architecture in
    amd64) triple=x86_64-unknown-linux-gnu ;;
    arm64) triple=aarch64-unknown-linux-gnu ;;
    *)
      echo "release: unknown architecture $architecture; known are amd64 and arm64" >&2
      exit 64
      ;;
  esac
  emulator=$(emulator_for $triple)
  (
    ready_for $triple
    # No path of this machine may stand in the programs.
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$root=etcd-proxy --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
      cargo build --locked --profile "$profile" --target $triple -p etcd-proxy -p etcd-proxy-operator
  )
  # cargo keeps what the profile dev builds in a folder of another name.
  built=$target/$triple/${profile/#dev/debug}
  deploy/smoke.sh "$built" ${emulator:+"$emulator"}
  name=etcd-proxy-$version-linux-$architecture
  stage=$(mktemp -d)
  mkdir "$stage/$name"
  cp "$built/etcd-proxy" "$built/etcd-proxy-operator" README.md CHANGELOG.md LICENSE deploy/debian/etcd-proxy.service \
    deploy/debian/config.yaml "$stage/$name"
  pack "$stage" "$name" >"$out/$name.tar.gz"
  rm -rf "$stage"
  DEB_ARCHITECTURE=$architecture deploy/debian/build.sh "$built/etcd-proxy" "$out/etcd-proxy_${version}_$architecture.deb"
  images+=("$out/etcd-proxy-$version-image-$architecture.tar")
  IMAGE_ARCHITECTURE=$architecture deploy/image/build.sh "$built" "${images[-1]}"
  deploy/sbom.sh $triple >"$out/etcd-proxy-$version-$architecture.cdx.json"
done
deploy/image/join.sh "$out/etcd-proxy-$version-image.tar" "${images[@]}"
pack deploy/helm --exclude=ci etcd-proxy >"$out/etcd-proxy-chart-$version.tgz"
cp deploy/crds/etcdproxy.dev.yaml "$out/etcd-proxy-$version-crds.yaml"
rm -f "$out/SHA256SUMS"
sums=$(cd "$out" && sha256sum -- *)
echo "$sums" >"$out/SHA256SUMS"
echo "release: $version in $out:" >&2
cat "$out/SHA256SUMS" >&2
