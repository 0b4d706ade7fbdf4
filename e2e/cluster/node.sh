#!/usr/bin/env bash
# The node's first process, in namespaces of its own; up.sh starts it. It starts
# containerd, the control plane, kubelet, kube-proxy and DNS, says what it does, and
# then only reaps what others leave behind. All ends with it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
folder=$FOLDER
export KUBECACHEDIR=$folder/kubectl
PATH=$KUBERNETES:$ETCD:$PATH

NODE=node
outer=10.243.$NUMBER.1
address=10.243.$NUMBER.2
pods=10.244.$NUMBER.0/24
services=10.245.$NUMBER.0/24
first_service=10.245.$NUMBER.1
dns=10.245.$NUMBER.10
server=https://$address:6443
socket=$folder/containerd.sock
cgroup=etcd-proxy-$NUMBER
log=$folder/log
pki=$folder/pki

# start NAME COMMAND...: leaves it running, with its log in NAME.log.
start() {
  local name=$1
  shift
  "$@" >"$log/$name.log" 2>&1 </dev/null &
  echo $! >"$folder/$name.pid"
}

# --- a machine of its own

# What programs keep in places that cannot be chosen stays in here.
mount --make-rslave /
for place in /run /var/lib /var/log; do
  # This folder may lie below one of them.
  [[ "$folder/" != "$place/"* ]] || die "the cluster's folder must not lie below $place, which the node has for itself; set ETCD_PROXY_CLUSTER"
done
for place in /run /var/lib /var/log; do
  mount -t tmpfs -o mode=755 tmpfs "$place"
done
# The device list of this network namespace; kubelet and CNI plugins read it. Cgroups stay those of the machine.
mkdir -p /run/lock /run/netns /var/lib/kubelet
mount --make-rshared /
ip link set lo up
: >"$folder/waiting"
await "the interface" ip link show eth0
ip addr add "$address/30" dev eth0
ip link set eth0 up
ip route add default via "$outer"
echo 1 >/proc/sys/net/ipv4/ip_forward
for hierarchy in /sys/fs/cgroup/*/; do
  [[ ! -e $hierarchy/cgroup.procs || $hierarchy == */unified/ ]] || mkdir -p "$hierarchy$cgroup"
done
if [[ -e /sys/fs/cgroup/cpuset/$cgroup ]]; then
  # Of the first version: no process enters a set without processors and memory.
  cat /sys/fs/cgroup/cpuset/cpuset.cpus >"/sys/fs/cgroup/cpuset/$cgroup/cpuset.cpus"
  cat /sys/fs/cgroup/cpuset/cpuset.mems >"/sys/fs/cgroup/cpuset/$cgroup/cpuset.mems"
elif [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
  mkdir -p "/sys/fs/cgroup/$cgroup"
fi

# --- containerd

say "containerd"
mkdir -p "$folder/cni" "$folder/containerd"
cat >"$folder/containerd.toml" <<END
version = 2
root = "$folder/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "$socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# Without CAP_SYS_RESOURCE no process may be protected from the kernel's memory killer more than we are.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$folder/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
END
# Each pod has a pair of interfaces of its own, so that every packet passes the node's filters, also between neighbours.
cat >"$folder/cni/10-pods.conflist" <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
]}
END
start containerd containerd --config "$folder/containerd.toml"
await containerd ctr -a "$socket" version
for archive in "$folder"/images/*.tar; do
  ctr -a "$socket" -n k8s.io images import "$archive" >>"$log/images.log"
done

# --- who is who

say "certificates"
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=$2" -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}
# certificate NAME AUTHORITY SUBJECT USAGE [SAN]
certificate() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$3" -keyout "$pki/$1.key" -out "$pki/$1.csr" 2>/dev/null
  printf 'extendedKeyUsage=%s\n%s\n' "$4" "${5:+subjectAltName=$5}" |
    openssl x509 -req -in "$pki/$1.csr" -CA "$pki/$2.crt" -CAkey "$pki/$2.key" -CAcreateserial -days 30 -extfile /dev/stdin -out "$pki/$1.crt" 2>/dev/null
}
authority ca kubernetes
certificate apiserver ca /CN=kube-apiserver serverAuth "IP:$address,IP:$first_service,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
certificate apiserver-kubelet ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate kubelet ca "/CN=$NODE" serverAuth "IP:$address,DNS:$NODE"
authority etcd-ca etcd
certificate etcd-server etcd-ca /CN=etcd serverAuth,clientAuth "DNS:etcd.etcd.svc,DNS:*.etcd.etcd.svc,DNS:etcd.etcd.svc.cluster.local,DNS:*.etcd.etcd.svc.cluster.local,DNS:localhost,IP:127.0.0.1"
# Without a common name: etcd would take every client for a user of that name.
certificate etcd-client etcd-ca /O=proxies clientAuth
openssl ecparam -name prime256v1 -genkey -noout -out "$pki/accounts.key"
openssl ec -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>/dev/null
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
account() {
  local token
  token=$(secret)
  printf '%s,%s,%s,"%s"\n' "$token" "$2" "$1" "$3" >>"$pki/tokens.csv"
  cat >"$folder/$4" <<END
apiVersion: v1
kind: Config
clusters: [{name: cluster, cluster: {server: "$server", certificate-authority-data: $(base64 -w 0 <"$pki/ca.crt")}}]
users: [{name: $1, user: {token: $token}}]
contexts: [{name: cluster, context: {cluster: cluster, user: $1}}]
current-context: cluster
END
  chmod 600 "$folder/$4"
}
(umask 077 && : >"$pki/tokens.csv")
account admin admin system:masters kubeconfig
account controllers system:kube-controller-manager system:masters controllers.kubeconfig
account scheduler system:kube-scheduler "" scheduler.kubeconfig
account kube-proxy system:kube-proxy "" kube-proxy.kubeconfig
account kubelet "system:node:$NODE" system:nodes kubelet.kubeconfig

# --- the control plane

say "etcd and kube-apiserver"
start etcd etcd --data-dir="$folder/etcd" --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
  --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=default=http://127.0.0.1:2380 \
  --unsafe-no-fsync --heartbeat-interval=50 --election-timeout=500
start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --advertise-address="$address" \
  --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --token-auth-file="$pki/tokens.csv" \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/accounts.pub" --service-account-signing-key-file="$pki/accounts.key" \
  --service-cluster-ip-range="$services" --cert-dir="$folder/apiserver" \
  --kubelet-client-certificate="$pki/apiserver-kubelet.crt" --kubelet-client-key="$pki/apiserver-kubelet.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP
export KUBECONFIG=$folder/kubeconfig
await kube-apiserver kubectl get --raw=/readyz
say "kube-controller-manager and kube-scheduler"
start kube-controller-manager kube-controller-manager --kubeconfig="$folder/controllers.kubeconfig" --leader-elect=false --secure-port=0 \
  --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials=false
start kube-scheduler kube-scheduler --kubeconfig="$folder/scheduler.kubeconfig" --leader-elect=false --secure-port=0

# --- the node

say "kubelet and kube-proxy"
printf 'nameserver %s\n' "$dns" >"$folder/resolv.conf"
cat >"$folder/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet.crt
tlsPrivateKeyFile: $pki/kubelet.key
containerRuntimeEndpoint: unix://$socket
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
clusterDNS: [$dns]
clusterDomain: cluster.local
resolvConf: $folder/resolv.conf
podLogsDir: $log/pods
# Changed Secrets reach their files by this; the default is a minute.
syncFrequency: 5s
# A small machine is nearly full at all times.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
END
mkdir -p "$folder/kubelet"
start kubelet kubelet --config="$folder/kubelet.yaml" --kubeconfig="$folder/kubelet.kubeconfig" --root-dir="$folder/kubelet" \
  --hostname-override=$NODE --node-ip="$address"
# The settings of connection tracking are the machine's, and stay as they are.
start kube-proxy kube-proxy --kubeconfig="$folder/kube-proxy.kubeconfig" --hostname-override=$NODE --proxy-mode=iptables --cluster-cidr="$pods" \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --metrics-bind-address=127.0.0.1:10249
say "DNS"
start cluster-dns cluster-dns --kubeconfig="$folder/kubeconfig" --listen="$address:5353"
kubectl apply -f - >>"$log/kubectl.log" <<END
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: $dns, ports: [{name: dns, port: 53, targetPort: 5353, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: ["$address"]}]
ports: [{name: dns, port: 5353, protocol: UDP}]
END
await "the node" kubectl wait --for=condition=Ready "node/$NODE" --timeout=5s
await "the default ServiceAccount" kubectl get serviceaccount default
: >"$folder/ready"
say "the node is ready"

# Whatever lost its parent is this process's child now.
while :; do
  wait -n 2>/dev/null || sleep 1
done
