#!/usr/bin/env bash
# Builds the foreign programs that tests, demo and comparisons run: etcd,
# etcdctl, etcdutl, etcd's benchmark, etcd's own test suites, Kubernetes
# (control plane, kubectl, what runs on a node, and a small DNS), Helm and
# kubeconform, each at the version that the go.mod of the same name pins.
#
# usage: tools/build.sh NAME...
#   NAME: etcd-3.7 etcd-3.6 etcd-3.5 benchmark conformance kubernetes kubernetes-1.33 helm-3 helm-4 kubeconform
#
# Prints, for each NAME, the folder that holds its programs, on stdout; all
# else goes to stderr. What is already built is not built again, and two callers
# at once build once. Programs are kept below $ETCD_PROXY_TOOLS, else
# $XDG_CACHE_HOME/etcd-proxy, else ~/.cache/etcd-proxy, else, without a home that
# can be written to, target/tools.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The Go version of etcd 3.7's go.mod; all modules here ask for the same one.
GO_NEEDED=1.26.0

NAMES="etcd-3.7 etcd-3.6 etcd-3.5 benchmark conformance kubernetes kubernetes-1.33 helm-3 helm-4 kubeconform"

# A build that hangs must not hang its callers for ever. A cold build on two
# slow cores takes about five minutes, Kubernetes' seventeen, and callers queue
# behind one another.
LOCK_SECONDS=1800

say() { echo "tools: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# shellcheck source=tools/keep.sh
source "$here/keep.sh"
cache=$(kept "$(dirname "$here")/target/tools")

# pinned NAME: the version in NAME's go.mod, without the v.
pinned() {
  local module
  case $1 in
    etcd-*) module=go.etcd.io/etcd/server/v3 ;;
    benchmark) module=go.etcd.io/etcd/v3 ;;
    conformance) module=go.etcd.io/etcd/tests/v3 ;;
    kubernetes*) module=k8s.io/kubernetes ;;
    helm-3) module=helm.sh/helm/v3 ;;
    helm-4) module=helm.sh/helm/v4 ;;
    kubeconform) module=github.com/yannh/kubeconform ;;
    *) die "unknown name '$1'; known are $NAMES" ;;
  esac
  sed -n "s|^\(require \)\{0,1\}[[:space:]]*$module v\([^ ]*\).*|\2|p" "$here/$1/go.mod" | head -n 1
}

# programs NAME: the files that NAME's folder must hold to count as built.
programs() {
  case $1 in
    etcd-*) echo etcd etcdctl etcdutl ;;
    benchmark) echo benchmark ;;
    conformance) echo e2e.test common.test no_proxy.test ;;
    kubernetes) echo kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet kube-proxy cluster-dns ;;
    kubernetes-*) echo kube-apiserver kube-controller-manager kube-scheduler ;;
    helm-*) echo helm ;;
    kubeconform) echo kubeconform ;;
  esac
}

complete() {
  local bin=$1 program
  shift
  for program in "$@"; do
    [[ -x "$bin/$program" ]] || return 1
  done
}

# use_installed BIN: links etcd 3.7 or newer from PATH into BIN, if it is there.
use_installed() {
  local program version
  for program in etcd etcdctl etcdutl; do
    command -v "$program" >/dev/null || return 1
  done
  version=$(etcd --version 2>/dev/null | sed -n 's/^etcd Version: //p')
  [[ -n "$version" ]] && newer_or_equal "$version" 3.7.0 || return 1
  version=$(etcdctl version 2>/dev/null | sed -n 's/^etcdctl version: //p')
  [[ -n "$version" ]] && newer_or_equal "$version" 3.7.0 || return 1
  mkdir -p "$1"
  for program in etcd etcdctl etcdutl; do
    ln -sfn "$(command -v "$program")" "$1/$program"
  done
  say "using etcd $version from PATH"
}

# want_go NAME: leaves a usable `go` on PATH, or says what to do.
want_go() {
  if ! command -v go >/dev/null && [[ -x /usr/local/go/bin/go ]]; then
    PATH=$PATH:/usr/local/go/bin
  fi
  if ! command -v go >/dev/null && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say "Go is missing; installing Debian's package golang-go"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends golang-go ca-certificates; } >&2 || true
  fi
  command -v go >/dev/null || die "$1 $(pinned "$1") is built from its Go module, and Go is missing.
  Remedy: install Go $GO_NEEDED or newer (Debian: apt install golang-go, which fetches that
  version by itself), or, for etcd-3.7 alone, put etcd, etcdctl and etcdutl 3.7 on PATH.
  Debian's own etcd packages are older than 3.6 and do not serve.
  Without it 'make build' and the tests of the crates proto, proxy and operator work;
  'make demo', 'make conformance', 'make versus' and the tests in e2e do not."

  local version
  version=$(go env GOVERSION | sed 's/^go//; s/[ -].*//')
  if newer_or_equal "$version" "$GO_NEEDED"; then
    export GOTOOLCHAIN=local
  else
    say "Go is $version; it will fetch Go $GO_NEEDED for this build"
    export GOTOOLCHAIN=go$GO_NEEDED+auto
  fi
  # The caller's settings must not change what is pinned.
  export GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0
  if [[ ! -w "${HOME:-}" ]]; then
    export GOPATH=${GOPATH:-$cache/go} GOCACHE=${GOCACHE:-$cache/go-build}
  fi
}

# watched TEXT COMMAND...: runs COMMAND, says every 20 seconds that it still
# runs, and how long it took; its output is shown only when it fails. Ticks are
# awaited in the foreground, so that no child outlives us holding a lock or a pipe.
watched() {
  local text=$1 log started=$SECONDS next=20 job status=0
  shift
  log=$(mktemp)
  say "$text"
  "$@" >"$log" 2>&1 9>&- &
  job=$!
  while kill -0 "$job" 2>/dev/null; do
    sleep 1
    if ((SECONDS - started >= next)); then
      say "  still at it, $((SECONDS - started)) s"
      next=$((next + 20))
    fi
  done
  wait "$job" || status=$?
  if [[ $status != 0 ]]; then
    cat "$log" >&2
    rm -f "$log"
    die "that failed after $((SECONDS - started)) s; the last lines above say why"
  fi
  rm -f "$log"
  say "  done in $((SECONDS - started)) s"
}

compile() {
  local name=$1 out=$2
  cd "$here/$name" || return
  case $name in
    etcd-*)
      go build -trimpath -ldflags='-s -w' -o "$out/etcd" go.etcd.io/etcd/server/v3 &&
        go build -trimpath -ldflags='-s -w' -o "$out/etcdctl" go.etcd.io/etcd/etcdctl/v3 &&
        go build -trimpath -ldflags='-s -w' -o "$out/etcdutl" go.etcd.io/etcd/etcdutl/v3
      ;;
    benchmark)
      go build -trimpath -ldflags='-s -w' -o "$out/benchmark" go.etcd.io/etcd/v3/tools/benchmark
      ;;
    conformance)
      compile_suites "$out"
      ;;
    kubernetes)
      # Without a version of their own the programs call themselves v0.0.0, and clients refuse that.
      go build -trimpath -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v$(pinned kubernetes)" \
        -o "$out/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl,kubelet,kube-proxy} ./cluster-dns
      ;;
    kubernetes-*)
      go build -trimpath -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v$(pinned "$name")" \
        -o "$out/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler}
      ;;
    helm-*)
      # helm-3's go.mod raises Kubernetes' modules to helm-4's, so that both builds share what takes longest.
      compile_helm "helm.sh/helm/v${name#helm-}" "v$(pinned "$name")" "$out/helm"
      ;;
    kubeconform)
      go build -trimpath -ldflags='-s -w' -o "$out/kubeconform" github.com/yannh/kubeconform/cmd/kubeconform
      ;;
  esac
}

# compile_helm MODULE VERSION OUT: Helm, which without a cluster takes the Kubernetes of its modules for the cluster's.
# Helm 3 does not find that out by itself, and would then say 1.20; Helm 4 has no such variables.
compile_helm() {
  local minor rules chart
  minor=$(go list -m -f '{{.Version}}' k8s.io/client-go | cut -d . -f 2) && [[ -n "$minor" ]] || return
  rules=$1/pkg/lint/rules chart=$1/pkg/chartutil
  go build -trimpath -o "$3" -ldflags="-s -w -X $1/internal/version.version=$2 \
    -X $rules.k8sVersionMajor=1 -X $rules.k8sVersionMinor=$minor -X $chart.k8sVersionMajor=1 -X $chart.k8sVersionMinor=$minor" \
    "$1/cmd/helm"
}

# compile_suites OUT: etcd's end-to-end suites as test programs, with their
# certificates beside them. no_proxy.test holds in addition the tests that etcd
# leaves out for its own proxy: it is made from a copy of the module in which that
# one build constraint is dropped.
compile_suites() {
  local out=$1 tests=go.etcd.io/etcd/tests/v3 source copy status=0
  go mod download $tests && source=$(go list -m -f '{{.Dir}}' $tests) && [[ -n "$source" ]] || return
  cp -r "$source/fixtures" "$out/fixtures" && chmod -R u+w "$out/fixtures" || return
  go test -c -trimpath -tags cluster_proxy -o "$out/e2e.test" $tests/e2e &&
    go test -c -trimpath -tags e2e,cluster_proxy -o "$out/common.test" $tests/common || return

  copy=$(mktemp -d) || return
  cp -r "$source" "$copy/tests" && chmod -R u+w "$copy/tests" && cp go.mod go.sum "$copy" &&
    sed -i '/^\/\/go:build !cluster_proxy$/d' "$copy"/tests/e2e/*_test.go &&
    go mod edit -replace "$tests=$copy/tests" "$copy/go.mod" &&
    go test -c -trimpath -modfile "$copy/go.mod" -tags cluster_proxy -o "$out/no_proxy.test" $tests/e2e || status=$?
  rm -rf "$copy"
  return $status
}

build() {
  local name=$1 version bin temporary minutes="1 to 4"
  [[ $name != kubernetes* ]] || minutes="6 to 17"
  version=$(pinned "$name")
  [[ -n "$version" ]] || die "$here/$name/go.mod pins no version"
  bin=$cache/${name%-3.?}-$version/bin

  if ! complete "$bin" $(programs "$name"); then
    lock "$name"
    # The one before us may have built it meanwhile.
    if ! complete "$bin" $(programs "$name"); then
      rm -rf "$bin"
      if [[ $name != etcd-3.7 ]] || ! use_installed "$bin"; then
        want_go "$name"
        beside "$name"
        watched "building $name ($version) from its Go module, $minutes minutes" compile "$name" "$temporary"
        in_place "$bin"
      fi
    fi
    unlock
  fi
  echo "$bin"
}

[[ $# -gt 0 ]] || die "usage: tools/build.sh NAME...   with NAME one of $NAMES"
for name in "$@"; do
  build "$name"
done
