#!/usr/bin/env bash
# Makes the Debian package of the proxy from a program that is built: the same
# input gives the same bytes, whoever makes it and when.
#
# usage: deploy/debian/build.sh PROGRAM OUT
#   PROGRAM           etcd-proxy, static
#   OUT               the .deb to write
#   DEB_ARCHITECTURE  amd64 or arm64; that of this machine
#   DEB_COMPRESSION   xz; none is quicker for tests
#   SOURCE_DATE_EPOCH the time of the files within, 0
set -euo pipefail

[[ $# == 2 && -x $1 ]] || {
  echo "usage: deploy/debian/build.sh PROGRAM OUT, with a PROGRAM that is built (make deb does so)" >&2
  exit 64
}
command -v dpkg-deb >/dev/null || {
  echo "deb: dpkg-deb is missing; it is part of Debian's package dpkg, which other systems have too" >&2
  exit 1
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
program=$1 out=$2
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
# Debian sorts 1.0.0~rc.1 before 1.0.0, and 1.0.0-rc.1 after it.
version=${version/-/\~}
case ${DEB_ARCHITECTURE:-$(uname -m)} in
  x86_64 | amd64) architecture=amd64 ;;
  aarch64 | arm64) architecture=arm64 ;;
  *)
    echo "deb: no packages are made for $(uname -m); DEB_ARCHITECTURE may be amd64 or arm64" >&2
    exit 64
    ;;
esac

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
umask 022
install -D -m 755 "$program" "$tree/usr/bin/etcd-proxy"
strip=strip
[[ $architecture == arm64 && $(uname -m) != aarch64 ]] && strip=aarch64-linux-gnu-strip
# Names of functions stay, for traces; lines do not.
! command -v $strip >/dev/null || $strip --strip-debug "$tree/usr/bin/etcd-proxy"
install -D -m 644 "$here/etcd-proxy.service" "$tree/usr/lib/systemd/system/etcd-proxy.service"
install -D -m 644 "$here/config.yaml" "$tree/etc/etcd-proxy/config.yaml"
doc=$tree/usr/share/doc/etcd-proxy
install -D -m 644 "$root/docs/flags.md" "$doc/flags.md"
install -m 644 "$root/docs/metrics.md" "$root/CHANGELOG.md" "$doc/"
{
  echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
  printf '\nFiles: *\nCopyright: the authors of etcd-proxy\nLicense: Apache-2.0\n'
  printf ' On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.\n'
} >"$doc/copyright"

mkdir "$tree/DEBIAN"
for script in postinst prerm postrm; do
  install -m 755 "$here/$script" "$tree/DEBIAN/$script"
done
echo /etc/etcd-proxy/config.yaml >"$tree/DEBIAN/conffiles"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: etcd-proxy
Version: $version
Architecture: $architecture
Maintainer: etcd-proxy <etcd-proxy@localhost>
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f 1)
Depends: adduser
Section: net
Priority: optional
Description: gRPC proxy for etcd
 A drop-in for "etcd grpc-proxy start": the whole etcd v3 API through one static
 program, with namespaces, shared watches, TLS on both sides with hot reload,
 endpoint failover and discovery. It also stands in for "etcd gateway start".
CONTROL
(cd "$tree" && find usr etc -type f | LC_ALL=C sort | xargs md5sum) >"$tree/DEBIAN/md5sums"
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
# Not zstd, which Debian 11 does not read.
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$tree" "$out" >/dev/null
echo "deb: $out, $(($(stat -c %s "$out") / 1024)) KiB, sha256 $(sha256sum "$out" | cut -d ' ' -f 1)" >&2
