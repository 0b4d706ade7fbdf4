#!/usr/bin/env bash
# Makes the image of the proxy and the operator from programs that are built: no
# base, no shell, a user without a name or rights.
#
# usage: deploy/image/build.sh FOLDER OUT
#   FOLDER  holds etcd-proxy and etcd-proxy-operator
#   OUT     the tar to write
#   IMAGE_NAME          localhost/etcd-proxy:VERSION
#   IMAGE_ARCHITECTURE  amd64 or arm64; that of this machine
#   IMAGE_REVISION      the commit, for the label; git's answer, where git is
#
# Programs that are not static are tests' debug builds: the libraries that they
# were linked with go into the image as well, which only serves on machines like
# this one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[[ $# == 2 ]] || {
  echo "usage: deploy/image/build.sh FOLDER OUT" >&2
  exit 64
}
from=$1 out=$2
# What images without a distribution commonly run as; the operator writes the same number into pods.
USER_ID=65532

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
name=${IMAGE_NAME:-localhost/etcd-proxy:$version}
revision=${IMAGE_REVISION:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)}
case ${IMAGE_ARCHITECTURE:-$(uname -m)} in
  x86_64 | amd64) architecture=amd64 ;;
  aarch64 | arm64) architecture=arm64 ;;
  *)
    echo "image: no images are made for $(uname -m); IMAGE_ARCHITECTURE may be amd64 or arm64" >&2
    exit 64
    ;;
esac

rootfs=$(mktemp -d)
trap 'rm -rf "$rootfs"' EXIT
chmod 755 "$rootfs"
umask 022
mkdir -p "$rootfs/usr/bin" "$rootfs/etc" "$rootfs/tmp"
chmod 1777 "$rootfs/tmp"
printf 'etcd-proxy:x:%s:%s::/:/\n' $USER_ID $USER_ID >"$rootfs/etc/passwd"
printf 'etcd-proxy:x:%s:\n' $USER_ID >"$rootfs/etc/group"

strip=strip
[[ $architecture == arm64 && $(uname -m) != aarch64 ]] && strip=aarch64-linux-gnu-strip
for program in etcd-proxy etcd-proxy-operator; do
  [[ -x "$from/$program" ]] || {
    echo "image: no $from/$program; run make image, which builds it" >&2
    exit 1
  }
  install -m 755 "$from/$program" "$rootfs/usr/bin/$program"
  # Names of functions stay, for traces; lines do not, since an image is shipped.
  ! command -v $strip >/dev/null || $strip --strip-debug "$rootfs/usr/bin/$program" 2>/dev/null || true
  # A static program has no interpreter, and ldd says so by failing.
  if libraries=$(ldd "$from/$program" 2>/dev/null) && grep -q '=>' <<<"$libraries"; then
    echo "image: $program is not static; this image serves for tests on this machine only" >&2
    for library in $(grep -o '/[^ ]*' <<<"$libraries"); do
      install -D -m 755 "$(readlink -f "$library")" "$rootfs$library"
    done
  fi
done

digest=$("$root/deploy/image/oci.sh" \
  --label org.opencontainers.image.title=etcd-proxy \
  --label "org.opencontainers.image.description=A gRPC proxy for etcd, and the operator that deploys it" \
  --label "org.opencontainers.image.version=$version" \
  --label "org.opencontainers.image.revision=$revision" \
  --label org.opencontainers.image.licenses=Apache-2.0 \
  --user $USER_ID:$USER_ID --architecture "$architecture" \
  --name "$name" --entrypoint /usr/bin/etcd-proxy "$rootfs" "$out")
echo "image: $name in $out, $(($(stat -c %s "$out") / 1024)) KiB, digest $digest" >&2
