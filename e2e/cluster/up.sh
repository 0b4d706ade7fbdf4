#!/usr/bin/env bash
# Brings a whole Kubernetes up on this machine: etcd, kube-apiserver,
# controller-manager, scheduler, kubelet, containerd, CNI, kube-proxy and DNS, with
# an etcd for tenants and the operator from this tree. No registry, no internet.
#
# The node lives in process, network and mount namespaces of its own, joined to
# this machine by one pair of virtual interfaces. So nothing of it shows outside,
# and all of it goes when its first process does.
#
# usage: e2e/cluster/up.sh      (or: make cluster)
#   ETCD_PROXY_CLUSTER  the cluster's folder; target/cluster
#   IMAGE               a tar from deploy/image/build.sh; made from PROGRAMS if it is not given
#   PROGRAMS            the folder of etcd-proxy and etcd-proxy-operator; target/debug
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"$root/tools/node-prerequisites.sh"
[[ ! -e "$folder/pid" ]] || die "a cluster is in $folder already; take it away with make cluster-down"
started=$SECONDS

kubernetes=$("$root/tools/build.sh" kubernetes)
etcd=$("$root/tools/build.sh" etcd-3.7)
rm -rf "$folder"
mkdir -p "$folder"/{log,images,pki,manifests}
folder=$(cd "$folder" && pwd)
# Sockets' names may have 107 bytes, and kubelet's are the longest.
[[ ${#folder} -le 60 ]] || die "the path $folder is too long for the sockets in it; set ETCD_PROXY_CLUSTER to a folder with a short name"
trap 'status=$?; [[ $status == 0 ]] || { say "it did not come up; the logs were: $(tail -qn 2 "$folder"/log/*.log 2>/dev/null | tail -n 20)"; "$root/e2e/cluster/down.sh"; }' EXIT
trap 'exit 130' INT TERM

# --- images

version=$(basename "$(dirname "$etcd")" | sed 's/.*-//')
say "making images"
if [[ -n "${IMAGE:-}" ]]; then
  cp "$IMAGE" "$folder/images/etcd-proxy.tar"
else
  "$root/deploy/image/build.sh" "${PROGRAMS:-$root/target/debug}" "$folder/images/etcd-proxy.tar"
fi
image=$(tar -xOf "$folder/images/etcd-proxy.tar" index.json | sed 's/.*"io.containerd.image.name":"\([^"]*\)".*/\1/')
make_image() {
  local name=$1 entrypoint=$2 rootfs=$folder/rootfs applet
  shift 2
  mkdir -p "$rootfs"/{bin,usr/bin,etc,tmp}
  chmod 1777 "$rootfs/tmp"
  cp /bin/busybox "$rootfs/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [[ $applet == busybox ]] || ln -s busybox "$rootfs/bin/$applet"
  done
  [[ $# == 0 ]] || cp -L "$@" "$rootfs/usr/bin/"
  printf '#!/bin/sh\n# Holds the namespaces of a pod.\ntrap "exit 0" TERM INT\nsleep 2147483647 &\nwait\n' >"$rootfs/bin/pause"
  chmod 755 "$rootfs/bin/pause"
  "$root/deploy/image/oci.sh" --name "$name" --entrypoint "$entrypoint" "$rootfs" "$folder/images/${name//[\/:]/-}.tar" >/dev/null
  rm -rf "$rootfs"
}
make_image localhost/pause:1 /bin/pause
# A shell and etcdctl, for applications in tests and for people who play.
make_image "localhost/etcd:$version" /usr/bin/etcd "$etcd/etcd" "$etcd/etcdctl"

# --- the node's first process, and the way to it

say "starting the node"
# kubelet writes these, and they are the whole machine's.
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [[ ! -r /proc/sys/$name ]] || echo "$name $(cat "/proc/sys/$name")"
done >"$folder/sysctls"
number=0
until ip link add "epx$number" type veth peer name "epx$number-node" 2>/dev/null; do
  number=$((number + 1))
  [[ $number -lt 250 ]] || die "no virtual interface could be made; see ip link"
done
echo "$number" >"$folder/number"
NUMBER=$number FOLDER=$folder KUBERNETES=$kubernetes ETCD=$etcd \
  setsid unshare --mount --net --pid --fork --mount-proc --kill-child "$root/e2e/cluster/node.sh" \
  >"$folder/log/node.log" 2>&1 </dev/null &
parent=$!
disown
# The child's id as this machine sees it.
first() { cut -d ' ' -f 1 "/proc/$parent/task/$parent/children"; }
await "the node's first process" test -e "$folder/waiting"
pid=$(first)
# With its start time, since ids are used again.
echo "$pid $(cut -d ' ' -f 22 "/proc/$pid/stat")" >"$folder/pid"
ip link set "epx$number-node" netns "$pid" name eth0
ip addr add "10.243.$number.1/30" dev "epx$number"
ip link set "epx$number" up
ip route add "10.244.$number.0/24" via "10.243.$number.2"
ip route add "10.245.$number.0/24" via "10.243.$number.2"

# Its progress is shown until it is ready.
shown=0
deadline=$((SECONDS + PATIENCE_SECONDS))
while :; do
  lines=$(wc -l <"$folder/log/node.log")
  sed -n "$((shown + 1)),${lines}p" "$folder/log/node.log" | { grep '^cluster: ' || true; } >&2
  shown=$lines
  [[ ! -e "$folder/ready" ]] || break
  kill -0 "$pid" 2>/dev/null || die "the node ended while it started: $(tail -n 5 "$folder/log/node.log")"
  ((SECONDS < deadline)) || die "the node is not ready after $PATIENCE_SECONDS s"
  sleep 0.2
done

# --- what runs on it

export KUBECONFIG=$folder/kubeconfig KUBECACHEDIR=$folder/kubectl
PATH=$kubernetes:$PATH
"$root/e2e/cluster/etcd.sh" "$folder" "localhost/etcd:$version"
say "installing the operator"
kubectl apply --server-side -f "$root/deploy/crds" >>"$folder/log/kubectl.log"
sed "s|IMAGE_OF_THE_OPERATOR|$image|; s|IMAGE_OF_THE_PROXY|$image|" "$root/deploy/operator.yaml" | kubectl apply -f - >>"$folder/log/kubectl.log"
kubectl apply -f "$root/deploy/rbac" >>"$folder/log/kubectl.log"
kubectl create secret generic etcd-client -n etcd-proxy-system --type=kubernetes.io/tls \
  --from-file=tls.crt="$folder/pki/etcd-client.crt" --from-file=tls.key="$folder/pki/etcd-client.key" \
  --from-file=ca.crt="$folder/pki/etcd-ca.crt" >>"$folder/log/kubectl.log"
kubectl rollout status -n etcd statefulset/etcd --timeout="${PATIENCE_SECONDS}s" >>"$folder/log/kubectl.log" || die "etcd did not become ready: $(kubectl get pods -A)"
kubectl rollout status -n etcd-proxy-system deployment/etcd-proxy-operator --timeout="${PATIENCE_SECONDS}s" >>"$folder/log/kubectl.log" || die "the operator did not become ready: $(kubectl get pods -A)"

cat >"$folder/env" <<END
export KUBECONFIG=$folder/kubeconfig KUBECACHEDIR=$folder/kubectl
export PATH=$kubernetes:\$PATH
END
say "ready after $((SECONDS - started)) s. To use it:"
say "  source $folder/env && kubectl get pods -A"
say "To take it away: make cluster-down"
trap - EXIT
