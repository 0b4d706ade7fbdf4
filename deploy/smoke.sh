#!/usr/bin/env bash
# Starts the programs of a release before they are packed, for another processor
# under an emulator: what they say of themselves, the kinds that the operator
# prints, and a put, a get and a watch through the proxy before a real etcd, over
# TLS, so that cryptography, memory and threads of that build have been at work.
#
# usage: deploy/smoke.sh FOLDER [EMULATOR]
#   FOLDER    holds etcd-proxy and etcd-proxy-operator
#   EMULATOR  such as qemu-aarch64-static
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $# == 1 || $# == 2 ]] || {
  echo "usage: deploy/smoke.sh FOLDER [EMULATOR]" >&2
  exit 64
}
from=$(cd "$1" && pwd)
run=(${2:+"$2"})
# An emulated proxy on a loaded machine takes some seconds to make its certificate.
PATIENCE_SECONDS=120

folder=$(mktemp -d)
pids=()
clean() {
  local status=$? pid
  trap - EXIT
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -KILL "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true
  done
  [[ $status == 0 ]] || tail -n 20 "$folder"/*.log >&2 || true
  rm -rf "$folder"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

die() {
  echo "smoke: $*" >&2
  exit 1
}

# await WHAT COMMAND...: until COMMAND succeeds.
await() {
  local what=$1 deadline=$((SECONDS + PATIENCE_SECONDS))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "$what did not come within $PATIENCE_SECONDS s"
    sleep 0.1
  done
}

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
said=$("${run[@]}" "$from/etcd-proxy" --version | tr '\n' ' ')
[[ $said == *"$version"* ]] || die "etcd-proxy --version says $said and not $version"
"${run[@]}" "$from/etcd-proxy-operator" crd | cmp -s - "$root/deploy/crds/etcdproxy.dev.yaml" ||
  die "etcd-proxy-operator crd prints other kinds than deploy/crds has"

etcd=$("$root/tools/build.sh" etcd-3.7)
export ETCDCTL_ENDPOINTS=unixs://$folder/proxy.sock ETCDCTL_INSECURE_SKIP_TLS_VERIFY=true
# Sockets in a folder of our own: no port can be taken.
(cd "$folder" && exec "$etcd/etcd" --data-dir=data --listen-client-urls=unix://localhost:1 --advertise-client-urls=unix://localhost:1 \
  --listen-peer-urls=unix://localhost:2 --initial-advertise-peer-urls=unix://localhost:2 --initial-cluster=default=unix://localhost:2 \
  >etcd.log 2>&1) &
pids+=($!)
"${run[@]}" "$from/etcd-proxy" grpc-proxy start --endpoints="unix://$folder/localhost:1" --listen-addr="unix://$folder/proxy.sock" \
  --auto-tls --data-dir="$folder/proxy" --namespace=smoke/ >"$folder/proxy.log" 2>&1 &
proxy=$!
pids+=("$proxy")
await "the proxy" "$etcd/etcdctl" put first one
"$etcd/etcdctl" watch --prefix "" >"$folder/watched.log" 2>/dev/null &
pids+=($!)
put_until_watched() { "$etcd/etcdctl" put greeting hello && grep -q '^greeting$' "$folder/watched.log"; }
await "an event" put_until_watched
got=$("$etcd/etcdctl" get greeting --print-value-only)
[[ $got == hello ]] || die "the proxy answered '$got' and not hello"
kill -TERM "$proxy"
wait "$proxy" || die "the proxy ended with code $? on SIGTERM"
echo "smoke: $said${2:+under $2 }did put, get and watch over TLS, and drained" >&2
