#!/usr/bin/env bash
# What the scripts of this folder share: where the cluster's files are, and how they speak.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# One cluster in each folder; several may run at a time.
folder=${ETCD_PROXY_CLUSTER:-$root/target/cluster}

# kubectl would keep what it learns of a cluster below the home of who runs it, and there take it for the next one's.
export KUBECACHEDIR=$folder/kubectl

# Every wait for something to come up; on two loaded cores the slowest takes a minute.
PATIENCE_SECONDS=180

say() { echo "cluster: $*" >&2; }

die() {
  say "$*"
  exit 1
}

# await WHAT COMMAND...: until COMMAND succeeds.
await() {
  local what=$1 deadline=$((SECONDS + PATIENCE_SECONDS))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "$what did not come within $PATIENCE_SECONDS s; the logs are in $folder/log"
    sleep 0.2
  done
}
