#!/usr/bin/env bash
# Sees to what the build needs beside Rust: a C compiler and make, which two
# crates compile C with, curl, which the demo shows HTTP with, openssl, and what looks at
# metrics and pages: Prometheus and Chromium. Installs them
# from Debian where it may, else says what to install. Go is seen to by build.sh.
set -euo pipefail

packages=()
command -v cc >/dev/null || packages+=(gcc libc6-dev)
command -v make >/dev/null || packages+=(make)
command -v curl >/dev/null || packages+=(curl)
# The TLS tests speak to the proxy with a client that is not rustls.
command -v openssl >/dev/null || packages+=(openssl)
# The unit file is judged by systemd's own tool, and the package made by dpkg's.
command -v systemd-analyze >/dev/null || packages+=(systemd)
command -v dpkg-deb >/dev/null || packages+=(dpkg)
# Alerts are tested with promtool, the dashboard with a Prometheus, the status page with a browser.
{ command -v promtool && command -v prometheus; } >/dev/null || packages+=(prometheus)
command -v chromium >/dev/null || packages+=(chromium)
# With `ip`, etcd's suites run several tests at a time; without, one.
command -v ip >/dev/null || [[ $(id -u) != 0 ]] || packages+=(iproute2)

if [[ ${#packages[@]} -gt 0 ]]; then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "prerequisites: installing Debian's ${packages[*]}" >&2
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
  else
    echo "prerequisites: please install ${packages[*]} (Debian: apt install ${packages[*]})" >&2
    exit 1
  fi
fi

if ! command -v cargo >/dev/null; then
  echo "prerequisites: please install Rust; rust-version in Cargo.toml names the oldest that serves" >&2
  exit 1
fi
