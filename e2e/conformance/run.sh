#!/usr/bin/env bash
# Runs etcd's own end-to-end suites, unmodified, against a foreign gRPC proxy and
# gateway, one test per process, and writes what passed into docs/conformance.md.
#
# usage: e2e/conformance/run.sh       (or: make conformance)
#   SUBSET=all       every test of the three suites; writes docs/conformance.md
#   SUBSET=fast      the tests named in fast.tsv, about five minutes; writes no file
#   SUBSET=table     runs nothing, writes docs/conformance.md from the last results
#   RESUME=1         goes on where an interrupted run of all stopped
#   ONLY=REGEX       only tests whose name matches; writes no file
#   PROXY=etcd       etcd's own proxy and gateway instead of ours; its results go to baseline.tsv
#   JOBS=N           tests at once, where the kernel lets each have its own network
#
# The suites, as tools/build.sh compiles them from etcd's module:
#   e2e       tests/e2e with -tags cluster_proxy: what etcd runs for its own proxy
#   common    tests/common with -tags e2e,cluster_proxy: the same tests that etcd runs
#             against members and in process, here through a proxy
#   no_proxy  those tests of tests/e2e that etcd leaves out for its own proxy
#
# The suites measure time, so a test that fails beside another is run once more,
# alone; that is told, here and in docs/conformance.md. A test that does not pass
# then and is not explained in known.tsv makes this fail.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
subset=${SUBSET:-all}
proxy=${PROXY:-ours}
only=${ONLY:-.}

# The slowest test of the suites takes about two minutes on two cores; one that
# takes longer than this hangs, and is counted as failed.
TEST_SECONDS=${TEST_SECONDS:-300}

# Tests wait more than they compute, but they also measure time.
JOBS=${JOBS:-$(nproc)}

say() { echo "conformance: $*" >&2; }
die() {
  say "$*"
  exit 1
}

[[ $proxy == ours || $proxy == etcd ]] || die "PROXY is '$proxy'; it must be ours or etcd"
[[ $subset == all || $subset == fast || $subset == table ]] || die "SUBSET is '$subset'; it must be all, fast or table"

target=${CARGO_TARGET_DIR:-$root/target}
work=$target/conformance/$proxy
results=$work/results.tsv
# Those that passed at the second try, with what they said at the first.
retried=$work/retried.tsv

# --- the programs under the names that the suites expect

prepare() {
  local newest last
  newest=$("$root/tools/build.sh" etcd-3.7)
  last=$("$root/tools/build.sh" etcd-3.6)
  suites=$("$root/tools/build.sh" conformance)
  if [[ $proxy == ours && -z "${ETCD_PROXY_BIN:-}" ]]; then
    say "building etcd-proxy"
    (cd "$root" && cargo build --quiet --release -p etcd-proxy)
    ETCD_PROXY_BIN=$target/release/etcd-proxy
  fi
  [[ -n "${RESUME:-}" ]] || rm -rf "$work"
  rm -rf "$work/bin"
  mkdir -p "$work/bin" "$work/logs"
  ln -s "$newest/etcdctl" "$newest/etcdutl" "$work/bin"
  wrap "$work/bin/etcd" "$newest/etcd"
  wrap "$work/bin/etcd-last-release" "$last/etcd"
  # To etcd every client of a proxy is the proxy, unless a rule says which user a certificate's name is.
  cat >"$work/users.yaml" <<EOF
client-identity:
- name: example.com
  identities: [{common-name: example.com}]
  api-profile: full
  cert: $suites/fixtures/server.crt
  key: $suites/fixtures/server.key.insecure
- name: root
  identities: [{common-name: root}]
  api-profile: full
  cert: $suites/fixtures/CommonName-root.crt
  key: $suites/fixtures/CommonName-root.key
EOF
}

# wrap FILE REAL: FILE acts as REAL, except that `grpc-proxy` and `gateway` are the
# ones under test. `exec` keeps the process id, which the suites signal.
wrap() {
  if [[ $proxy == etcd ]]; then
    ln -s "$2" "$1"
    return
  fi
  cat >"$1" <<EOF
#!/bin/sh
case "\$1" in
  grpc-proxy | gateway) exec "$ETCD_PROXY_BIN" "\$@" ;;
esac
exec "$2" "\$@"
EOF
  chmod +x "$1"
}

# --- the tests

list() {
  local suite
  if [[ $subset == fast ]]; then
    grep -v '^#' "$here/fast.tsv"
    return
  fi
  for suite in e2e common; do
    names "$suite" | sed "s/^/$suite\t/"
  done
  # no_proxy.test holds the tests of e2e.test too.
  comm -13 <(names e2e | sort) <(names no_proxy | sort) | sed 's/^/no_proxy\t/'
}

names() { "$suites/$1.test" -test.list . | grep '^Test'; }

# The suites use fixed ports. In a network and process namespace of its own a
# test disturbs nobody, and nothing that it started outlives it. The address and
# route beside 127.0.0.1 are for the one test that asks which address the machine
# has towards the world; no packet leaves the namespace. A name server would be
# out of reach behind it, and asked in vain for the IPv6 address of localhost.
isolated() {
  unshare --user --map-root-user --net --pid --fork --kill-child --mount-proc \
    sh -c 'ip link set lo up && ip addr add 192.0.2.1/24 dev lo && ip route add default dev lo src 192.0.2.1 &&
      mount --bind /dev/null /etc/resolv.conf && exec "$@"' sh "$@"
}

# one SUITE TEST: runs it and prints "suite test result seconds".
one() {
  local suite=$1 test=$2 folder log started=$SECONDS result status=0
  # A short path, since members listen on Unix sockets below it.
  folder=$(mktemp -d /tmp/etcd-suite.XXXXXX)
  log=$work/logs/$suite-$test.log
  mkdir -p "$folder/tests/$suite"
  ln -s "$suites/fixtures" "$folder/tests/fixtures"
  cd "$folder/tests/$suite"
  # For the tests of users by Common Name. To etcd's own proxy the variable is nothing.
  [[ $test != TestCtlV3AuthCertCN* ]] || export ETCD_PROXY_CONFIG_FILE=$work/users.yaml
  # Its member has a certificate of another authority than the one that the framework names to the proxy.
  [[ $test != *WithConcurrentOperation ]] || export ETCD_PROXY_INSECURE_SKIP_TLS_VERIFY=true
  TMPDIR=$folder $isolate timeout --kill-after=10 "$TEST_SECONDS" "$suites/$suite.test" \
    -test.v -test.run "^$test\$" -bin-dir "$work/bin" >"$log" 2>&1 </dev/null || status=$?
  result=$(sed -n "s/^--- \([A-Z]*\): $test (.*/\1/p" "$log" | tail -n 1)
  # A test without a verdict ran out of time, or took the whole program with it.
  [[ -n "$result" ]] || { [[ $status == 124 || $status == 137 ]] && result=HANG || result=PANIC; }
  printf '%s\t%s\t%s\t%s\n' "$suite" "$test" "$result" $((SECONDS - started))
  [[ -n "$isolate" ]] || sweep "$folder"
  rm -rf "$folder"
}

# sweep FOLDER: kills what a test that hung left behind: members and proxies
# have their data below the test's own folder.
sweep() {
  local process
  for process in $(grep -lsF "$1" /proc/[0-9]*/cmdline | tr -dc '0-9\n'); do
    kill -KILL "$process" 2>/dev/null || true
  done
}

run() {
  local total
  touch "$results" "$retried"
  list | awk -F'\t' -v only="$only" 'FILENAME == ARGV[1] { ran[$1 FS $2] = 1; next } $2 ~ only && !(($1 FS $2) in ran)' \
    "$results" - >"$work/tests.tsv"
  total=$(wc -l <"$work/tests.tsv")
  [[ $total -gt 0 ]] || die "no test matches '$only'"
  if isolated true 2>/dev/null; then
    isolate=isolated
  else
    say "the kernel refuses us namespaces: one test at a time, on the ports that the suites name"
    isolate=
    JOBS=1
  fi
  say "$total tests, $JOBS at a time, logs in $work/logs"
  export -f one isolated sweep
  export work suites isolate TEST_SECONDS
  local done_=0 suite test result seconds
  while IFS=$'\t' read -r suite test result seconds; do
    done_=$((done_ + 1))
    printf '%s\t%s\t%s\t%s\n' "$suite" "$test" "$result" "$seconds" >>"$results"
    say "$(printf '%3d/%d %-5s %4s s  %s %s' $done_ "$total" "$result" "$seconds" "$suite" "$test")"
  done < <(tr '\t' '\n' <"$work/tests.tsv" | xargs -P "$JOBS" -n 2 bash -c 'one "$@"' one)
  LC_ALL=C sort -o "$results" "$results"
  again
}

# again: one by one, what failed and is not explained in known.tsv.
again() {
  local suite test result seconds why
  while IFS=$'\t' read -r suite test result seconds why; do
    [[ $why == '?'* && $result != SKIP ]] || continue
    say "once more, alone: $suite $test: $why"
    seconds=$(one "$suite" "$test")
    [[ $(cut -f 3 <<<"$seconds") == PASS ]] || continue
    printf '%s\t%s\t%s\n' "$suite" "$test" "${why#\? }" >>"$retried"
    awk -F'\t' -v suite="$suite" -v test="$test" -v line="$seconds" \
      '{ print $1 == suite && $2 == test ? line : $0 }' "$results" >"$work/results.new"
    mv "$work/results.new" "$results"
  done < <(explain)
}

# --- the verdict

# explain: "suite test result seconds why" for each test, with an empty last
# column for what passed. What known.tsv does not explain is told in the test's
# own words, marked with a question mark.
explain() {
  local suite test result seconds why
  while IFS=$'\t' read -r suite test result seconds; do
    why=
    if [[ $result != PASS ]]; then
      why=$(awk -F'\t' -v suite="$suite" -v test="$test" '$1 == suite && $2 == test { print $3 }' "$here/known.tsv")
      [[ -n "$why" ]] || why="? $(complaint "$suite" "$test")"
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$suite" "$test" "$result" "$seconds" "$why"
  done <"$results"
}

# The first complaint in a test's log: a panic, else an assertion with the two
# lines that say what was wrong, else the last line that the test itself logged.
complaint() {
  local log=$work/logs/$1-$2.log
  {
    grep -m 1 -E '^panic: |^fatal error: ' "$log" ||
      grep -m 1 -A 2 -E '^[[:space:]]+Error: ' "$log" ||
      grep -E '^[[:space:]]+[a-z_0-9]+\.go:[0-9]+: ' "$log" | grep -vE 'logger\.go|working directory' | tail -n 1 ||
      tail -n 1 "$log"
  } | tr -s '[:space:]' ' ' | tr '|' '/' | cut -c 1-300 || true
}

verdict() {
  say "$(awk -F'\t' '{ n[$3]++ } END { for (r in n) printf "%s %d  ", r, n[r] }' "$results")"
  [[ ! -s $retried ]] || say "passed at the second try, alone: $(cut -f 2 "$retried" | tr '\n' ' ')"
  local bad
  bad=$(awk -F'\t' '$5 ~ /^\?/ { printf "  %s %s %s: %s\n", $3, $1, $2, $5 }' "$work/explained.tsv")
  [[ -n "$bad" ]] || return 0
  say "not passed, and not explained in known.tsv:"
  echo "$bad" >&2
  return 1
}

main() {
  [[ $subset == table ]] || { prepare && run; }
  explain >"$work/explained.tsv"
  local status=0
  verdict || status=$?
  if [[ $only == . && $subset != fast ]]; then
    if [[ $proxy == etcd ]]; then
      cut -f 1-3 "$results" >"$here/baseline.tsv"
      say "wrote baseline.tsv"
    else
      "$here/table.sh" "$work/explained.tsv" "$retried" >"$root/docs/conformance.md"
      say "wrote docs/conformance.md"
    fi
  fi
  # What etcd's own proxy fails is its baseline, and no failure of ours.
  [[ $proxy == etcd ]] || return $status
}

main
exit
