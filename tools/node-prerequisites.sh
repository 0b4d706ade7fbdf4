#!/usr/bin/env bash
# Sees to what a real Kubernetes node needs beside the programs of build.sh: root,
# namespaces, cgroups that can be written, and Debian's containerd, runc, CNI
# plugins, iptables and busybox. Installs what lacks where it may, else says what to install.
#
# usage: tools/node-prerequisites.sh
# Exit code 3: this machine cannot run a node, and the sentence says why.
set -euo pipefail

die() {
  echo "node: $1" >&2
  exit "${2:-1}"
}

[[ $(id -u) == 0 ]] || die "a real node mounts, makes network namespaces and writes packet filters, so it needs root; run it as root (sudo make ...)" 3
[[ $(uname -s) == Linux ]] || die "a real node needs Linux" 3

packages=()
want() { [[ -e "$1" ]] || packages+=("$2"); }
want_program() { command -v "$1" >/dev/null || packages+=("$2"); }
want_program containerd containerd
want_program ctr containerd
want_program runc runc
want_program iptables iptables
want_program ip iproute2
want_program unshare util-linux
want_program openssl openssl
want /usr/lib/cni/ptp containernetworking-plugins
want /bin/busybox busybox-static
if [[ ${#packages[@]} -gt 0 ]]; then
  if command -v apt-get >/dev/null; then
    echo "node: installing Debian's ${packages[*]}" >&2
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >&2 ||
      die "please install ${packages[*]} (apt install ${packages[*]}); apt-get's own words are above"
  else
    die "please install ${packages[*]} (as Debian calls them)"
  fi
fi
# Pods' images hold this program alone.
[[ -z "$(ldd /bin/busybox 2>/dev/null | grep '=>' || true)" ]] || die "/bin/busybox is not static; please install busybox-static"

unshare --mount --net --pid --fork true 2>/dev/null ||
  die "this machine makes no mount, network and process namespaces (unshare fails); run it on a machine or in a container with CAP_SYS_ADMIN" 3
unshare --net iptables -t nat -L >/dev/null 2>&1 ||
  die "iptables cannot list the table nat of a new network namespace; the kernel needs nf_tables or ip_tables with NAT" 3
unshare --net sh -c 'ip link add name one type veth peer name two' 2>/dev/null ||
  die "this kernel makes no veth pairs; it needs CONFIG_VETH" 3
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
mkdir "$probe"/{lower,upper,work,merged}
unshare --mount mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null ||
  die "overlayfs cannot be mounted on ${TMPDIR:-/tmp}; set TMPDIR to a folder on ext4, xfs or tmpfs" 3
for hierarchy in /sys/fs/cgroup/memory /sys/fs/cgroup; do
  [[ -d $hierarchy ]] || continue
  { mkdir "$hierarchy/etcd-proxy-probe-$$" && rmdir "$hierarchy/etcd-proxy-probe-$$"; } 2>/dev/null ||
    die "$hierarchy cannot be written; a container needs its cgroups mounted read-write" 3
  break
done
