#!/usr/bin/env bash
# Makes the clients of e2e/clients ready to run: builds what is built, and fetches
# the libraries that each one's lock file pins, with the ordinary package clients.
#
# usage: e2e/clients/setup.sh [NAME...]      NAME: go rust jetcd node python; all without one
#
# Prints, for each NAME, what the tests run it with, on stdout: the programs of go and
# rust, the folder of the libraries of jetcd and node, and the Python that has those of
# python; all else goes to stderr. What is ready is not made again, and two callers at once make it once. All
# is kept below $ETCD_PROXY_TOOLS, else $XDG_CACHE_HOME/etcd-proxy, else
# ~/.cache/etcd-proxy, else, without a home that can be written to, target/tools.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Cold, the slowest takes about a minute; callers queue behind one another.
LOCK_SECONDS=900

# The oldest versions that the libraries work with.
GO_NEEDED=1.26.0
JAVA_NEEDED=17
NODE_NEEDED=18
PYTHON_NEEDED=3.10

say() { echo "clients: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# shellcheck source=tools/keep.sh
source "$here/../../tools/keep.sh"
cache=$(kept "$(cd "$here/../.." && pwd)/target/tools")/clients

# want PURPOSE PACKAGES COMMAND...: sees to it that COMMANDs are there; root gets
# Debian's PACKAGES, others are told to install them.
want() {
  local purpose=$1 packages=$2 command missing=
  shift 2
  for command in "$@"; do
    command -v "$command" >/dev/null || missing+=" $command"
  done
  [[ -n "$missing" ]] || return 0
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say "missing for $purpose:$missing; installing Debian's $packages"
    # shellcheck disable=SC2086 # packages are words
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages ca-certificates; } >&2
    hash -r
  fi
  for command in "$@"; do
    command -v "$command" >/dev/null || die "$purpose needs $command, which is missing.
  Remedy: install it (Debian: apt install $packages)."
  done
}

# too_old PURPOSE PROGRAM VERSION NEEDED PACKAGE: says so and ends.
too_old() {
  die "$1 needs $2 $4 or newer, and this one is $3.
  Remedy: install a newer $2 (Debian 12 and newer: apt install $5)."
}

# quietly COMMAND...: its output is shown only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 9>&- || status=$?
  [[ $status == 0 ]] || cat "$log" >&2
  rm -f "$log"
  return $status
}

# once FOLDER COMMAND...: runs COMMAND with an empty folder as last argument, which
# then becomes FOLDER; not if FOLDER is there already.
once() {
  local folder=$1 temporary
  shift
  [[ ! -d "$folder" ]] || return 0
  lock "$(basename "$folder")"
  # The one before us may have made it meanwhile.
  if [[ ! -d "$folder" ]]; then
    beside making
    "$@" "$temporary" || die "making $folder failed; the lines above say why"
    in_place "$folder"
  fi
  unlock
}

# of FILE...: a short name for the contents of these files.
of() { cat "$@" | sha256sum | cut -c 1-16; }

# --- Go

go_ready() {
  command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
  want "the Go client" "golang-go" go
  export GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0
  if newer_or_equal "$(go env GOVERSION | sed 's/^go//; s/[ -].*//')" "$GO_NEEDED"; then
    export GOTOOLCHAIN=local
  else
    export GOTOOLCHAIN=go$GO_NEEDED+auto
  fi
  if [[ ! -w "${HOME:-}" ]]; then
    export GOPATH=${GOPATH:-$cache/gopath} GOCACHE=${GOCACHE:-$cache/gocache}
  fi
  local folder
  folder=$cache/go-$(of "$here"/go/go.mod "$here"/go/go.sum "$here"/go/*.go)
  once "$folder" go_build
  echo "$folder/go-client"
}

go_build() {
  say "building the Go client"
  (cd "$here/go" && quietly go build -trimpath -o "$1/go-client" .)
}

# --- Rust

rust_ready() {
  command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin
  command -v cargo >/dev/null || die "the Rust client needs cargo, which is missing.
  Remedy: install Rust; rust-version in Cargo.toml names the oldest that serves."
  local folder
  folder=$cache/rust-$(of "$here"/rust/Cargo.toml "$here"/rust/Cargo.lock "$here"/rust/*.rs)
  once "$folder" rust_build
  echo "$folder/rust-client"
}

rust_build() {
  # etcd-client makes its messages of .proto files when it is built; Debian keeps those that protoc brings in a
  # package of their own.
  want "the Rust client" "protobuf-compiler libprotobuf-dev" protoc
  if ! protoc_imports && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends libprotobuf-dev; } >&2
  fi
  protoc_imports || die "the Rust client needs google/protobuf/descriptor.proto, which protoc does not find.
  Remedy: install it beside protoc (Debian: apt install libprotobuf-dev)."
  say "building the Rust client"
  # The target folder is kept, so that a change of the program builds nothing else anew.
  quietly env -u RUSTFLAGS CARGO_TARGET_DIR="$cache/rust-target" cargo build --locked --manifest-path "$here/rust/Cargo.toml" &&
    cp "$cache/rust-target/debug/rust-client" "$1"
}

# protoc_imports: whether protoc finds the .proto files that belong to it.
protoc_imports() {
  local folder status=0
  folder=$(mktemp -d)
  printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\nextend google.protobuf.FieldOptions { bool x = 50000; }\n' >"$folder/probe.proto"
  protoc --proto_path="$folder" --descriptor_set_out=/dev/null "$folder/probe.proto" 2>/dev/null || status=$?
  rm -rf "$folder"
  return $status
}

# --- Java

jetcd_ready() {
  want "jetcd" "default-jdk-headless maven" java javac mvn
  local version folder
  version=$(javac -version 2>&1 | sed 's/^javac //')
  newer_or_equal "$version" "$JAVA_NEEDED" || too_old jetcd Java "$version" "$JAVA_NEEDED" default-jdk-headless
  folder=$cache/jetcd-$(of "$here/jetcd/pom.xml")
  once "$folder" jetcd_fetch
  echo "$folder"
}

jetcd_fetch() {
  local repository=()
  [[ -w "${HOME:-}" ]] || repository=("-Dmaven.repo.local=$cache/maven")
  say "fetching jetcd"
  quietly mvn -q -B ${repository[@]+"${repository[@]}"} -f "$here/jetcd/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$1"
}

# --- Node

node_ready() {
  want "the client for Node" "nodejs npm" node npm
  local version folder
  version=$(node --version | sed 's/^v//')
  newer_or_equal "$version" "$NODE_NEEDED" || too_old "the client for Node" Node "$version" "$NODE_NEEDED" nodejs
  folder=$cache/node-$(of "$here/node/package.json" "$here/node/package-lock.json")
  once "$folder" node_fetch
  echo "$folder/node_modules"
}

node_fetch() {
  [[ -w "${HOME:-}" ]] || export npm_config_cache=$cache/npm
  say "fetching the client for Node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$1"
  (cd "$1" && quietly npm ci --ignore-scripts --no-audit --no-fund)
}

# --- Python

python_ready() {
  want "the Python client" "python3 python3-venv" python3
  local version folder
  version=$(python3 -c 'import platform; print(platform.python_version())')
  newer_or_equal "$version" "$PYTHON_NEEDED" || too_old "the Python client" Python "$version" "$PYTHON_NEEDED" python3
  folder=$cache/python-$version-$(of "$here/python/requirements.txt")
  once "$folder" python_fetch
  echo "$folder/bin/python3"
}

python_fetch() {
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian keeps these apart from Python itself.
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; } >&2
    fi
    python3 -c 'import ensurepip, venv' 2>/dev/null || die "the Python client needs Python's venv, which is missing.
  Remedy: install it (Debian: apt install python3-venv)."
  fi
  [[ -w "${HOME:-}" ]] || export PIP_CACHE_DIR=$cache/pip
  say "fetching the Python client"
  quietly python3 -m venv "$1" &&
    quietly "$1/bin/python3" -m pip install --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
      -r "$here/python/requirements.txt"
}

[[ $# -gt 0 ]] || set -- go rust jetcd node python
for name in "$@"; do
  case $name in
    go | rust | jetcd | node | python) "${name}_ready" ;;
    *) die "unknown client '$name'; known are go rust jetcd node python" ;;
  esac
done
