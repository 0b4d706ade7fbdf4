#!/usr/bin/env bash
# Takes the cluster of up.sh away without a trace. Killing its first process ends
# all others, and with them go their mounts, interfaces, routes and packet filters;
# cgroups and files are left, and removed here.
#
# usage: e2e/cluster/down.sh      (or: make cluster-down)
#   ETCD_PROXY_CLUSTER  the cluster's folder; target/cluster
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ -e "$folder" ]] || {
  say "no cluster is in $folder"
  exit 0
}
[[ $(id -u) == 0 ]] || die "the cluster was made by root, and only root can take it away; run make cluster-down as root"

if [[ -r "$folder/pid" ]]; then
  read -r pid born <"$folder/pid"
  # An id that was used again belongs to somebody else.
  alive() { [[ "$(cut -d ' ' -f 22 "/proc/$pid/stat" 2>/dev/null)" == "$born" ]]; }
  if alive; then
    say "ending the node"
    kill -KILL "$pid"
    deadline=$((SECONDS + PATIENCE_SECONDS))
    while alive; do
      ((SECONDS < deadline)) || die "the node's first process $pid does not end"
      sleep 0.1
    done
  fi
fi
if [[ -r "$folder/number" ]]; then
  number=$(cat "$folder/number")
  # Gone with the node, unless that never came up.
  ip link delete "epx$number" 2>/dev/null || true
  # The kernel gives the cgroups free a moment after the last process.
  deadline=$((SECONDS + PATIENCE_SECONDS))
  for group in /sys/fs/cgroup/etcd-proxy-$number /sys/fs/cgroup/*/etcd-proxy-$number; do
    while [[ -d $group ]]; do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [[ -d $group ]] || break
      ((SECONDS < deadline)) || die "the cgroup $group is still in use"
      sleep 0.1
    done
  done
fi
if [[ -r "$folder/sysctls" ]]; then
  while read -r name value; do
    [[ "$(cat "/proc/sys/$name")" == "$value" ]] || echo "$value" >"/proc/sys/$name" || say "could not set $name back to $value"
  done <"$folder/sysctls"
fi
rm -rf "$folder"
say "gone: processes, interfaces, mounts, cgroups and $folder"
