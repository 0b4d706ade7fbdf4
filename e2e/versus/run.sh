#!/usr/bin/env bash
# Direct, through etcd's own gRPC proxy, and through ours: etcd's benchmark program
# in one run on one machine, the three taking turns, into docs/versus.md.
#
# usage: e2e/versus/run.sh     (or: make versus)
#   ROUNDS=N     how often each is measured; the table has the median
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
rounds=${ROUNDS:-3}

# A measurement that takes longer than this has hung.
BENCH_SECONDS=120

say() { echo "versus: $*" >&2; }
die() {
  say "$*"
  exit 1
}

benchmark=$("$root/tools/build.sh" benchmark)/benchmark
# shellcheck source=rig.sh
source "$here/rig.sh"

# One member without fsync, so that etcd's disk does not hide what a proxy costs.
launch etcd "$etcd/etcd" --data-dir="$folder/data" --unsafe-no-fsync --listen-peer-urls=http://127.0.0.1:24702 \
  --listen-client-urls=http://127.0.0.1:24701 --advertise-client-urls=http://127.0.0.1:24701
await etcd 'ready to serve client requests'
launch theirs "$etcd/etcd" grpc-proxy start --endpoints=http://127.0.0.1:24701 --listen-addr=127.0.0.1:24703 \
  --advertise-client-url=127.0.0.1:24703
theirs_pid=$started
launch ours "$ours_bin" grpc-proxy start --endpoints=http://127.0.0.1:24701 --listen-addr=127.0.0.1:24704 \
  --advertise-client-url=127.0.0.1:24704
ours_pid=$started
await theirs 'started gRPC proxy'
await ours 'started gRPC proxy'

declare -A address=([direct]=127.0.0.1:24701 [theirs]=127.0.0.1:24703 [ours]=127.0.0.1:24704)
declare -A process=([theirs]=$theirs_pid [ours]=$ours_pid)

# cpu WHO: CPU time of a proxy so far, in milliseconds; the kernel counts in hundredths of a second.
cpu() {
  [[ -n "${process[$1]:-}" ]] || { echo 0 && return; }
  awk '{ sub(/.*\) /, ""); print ($12 + $13) * 10 }' "/proc/${process[$1]}/stat"
}

# measure NAME WHO REQUESTS ARGUMENTS...: one run; appends "name who per_second p50 p99 cpu_us_per_request".
measure() {
  local name=$1 who=$2 requests=$3 before
  shift 3
  before=$(cpu "$who")
  timeout "$BENCH_SECONDS" "$benchmark" --endpoints="${address[$who]}" "$@" >"$folder/run.log" 2>&1 ||
    die "$name, $who: benchmark failed or took too long: $(tail -c 200 "$folder/run.log")"
  # Benchmarks of watches print several summaries; the last is that of the events.
  awk -v name="$name" -v who="$who" -v ms=$(($(cpu "$who") - before)) -v requests="$requests" '
    /Requests\/sec:/ { rate = $2 }
    /^ *50% in/ { p50 = $3 * 1000 }
    /^ *99% in/ { p99 = $3 * 1000 }
    END { printf "%s\t%s\t%.0f\t%.2f\t%.2f\t%.1f\n", name, who, rate, p50, p99, ms * 1000 / requests }
  ' "$folder/run.log" >>"$folder/results.tsv"
}

names=("put, 1 client" "put, 64 clients" "linearizable get, 64 clients" "serializable get, 64 clients"
  "txn of one put, 64 clients" "lease keepalive, 16 clients" "watch: 200 watchers, events" "watch latency: 100 watchers, 200 puts/s"
  "linearizable range of 1,000 keys, 16 clients")

# A thousand keys of the same size for the last row; etcd takes 128 operations in a transaction.
for first in $(seq 0 100 900); do
  {
    echo
    for number in $(seq "$first" $((first + 99))); do
      printf 'put thousand/%011d %0100d\n' "$number" "$number"
    done
    printf '\n\n'
  } | "$etcd/etcdctl" --endpoints=http://127.0.0.1:24701 txn >/dev/null
done

bench() {
  local who=$2 few=("--conns=1" "--clients=1") many=("--conns=8" "--clients=64")
  local value=(--key-size=20 --val-size=100)
  case $1 in
    0) measure "${names[0]}" "$who" 5000 "${few[@]}" put --total=5000 --key-space-size=10000 "${value[@]}" ;;
    1) measure "${names[1]}" "$who" 50000 "${many[@]}" put --total=50000 --key-space-size=10000 "${value[@]}" ;;
    2) measure "${names[2]}" "$who" 50000 "${many[@]}" range a-key --consistency=l --total=50000 ;;
    3) measure "${names[3]}" "$who" 50000 "${many[@]}" range a-key --consistency=s --total=50000 ;;
    4) measure "${names[4]}" "$who" 30000 "${many[@]}" txn-put --total=30000 "${value[@]}" ;;
    5)
      # etcd's proxy answers a keepalive after half a second; as many as the others get would take hours.
      local total=20000
      [[ $who != theirs ]] || total=32
      measure "${names[5]}" "$who" $total --conns=4 --clients=16 lease-keepalive --total=$total
      ;;
    6) measure "${names[6]}" "$who" 200000 --conns=10 --clients=10 watch --streams=20 --watch-per-stream=10 --put-total=1000 --put-rate=0 ;;
    7) measure "${names[7]}" "$who" 100000 --conns=10 --clients=10 watch-latency --streams=10 --watchers-per-stream=10 --put-total=1000 --put-rate=200 ;;
    8) measure "${names[8]}" "$who" 3000 --conns=4 --clients=16 range thousand/ thousand0 --consistency=l --total=3000 ;;
  esac
}

for round in $(seq "$rounds"); do
  for index in "${!names[@]}"; do
    for who in direct theirs ours; do
      bench "$index" "$who"
      say "round $round of $rounds: $(tail -n 1 "$folder/results.tsv" | tr '\t' ' ')"
    done
  done
done

resident() { awk '/^VmRSS:/ { printf "%.0f", $2 / 1024 }' "/proc/$1/status"; }

# median NAME WHO COLUMN
median() {
  awk -F'\t' -v name="$1" -v who="$2" -v column="$3" '$1 == name && $2 == who { print $column }' "$folder/results.tsv" |
    sort -n | sed -n "$(((rounds + 1) / 2))p"
}

{
  version=$("$etcd/etcd" --version | sed -n 's/^etcd Version: //p')
  cat <<EOF
# Direct, through etcd's proxy, through ours

\`make versus\` wrote this file on $(date -u +%F): etcd's own \`benchmark\` program against one member of etcd $version
without fsync, directly, through \`etcd grpc-proxy start\` $version, and through etcd-proxy, all on one machine with
$(nproc) CPUs ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)) over loopback. Client, proxy and member share those CPUs, so a proxy's cost shows twice: in its own time and in
what it takes from the others. Each cell is the median of $rounds rounds in which the three took turns.

| load | direct/s | etcd's proxy/s | ours/s | direct p50 ms | etcd's proxy p50 ms | ours p50 ms | direct p99 ms | etcd's proxy p99 ms | ours p99 ms | etcd's proxy CPU µs each | ours CPU µs each |
|---|---|---|---|---|---|---|---|---|---|---|---|
EOF
  for name in "${names[@]}"; do
    printf '| %s |' "$name"
    for column in 3 4 5; do
      for who in direct theirs ours; do
        printf ' %s |' "$(median "$name" "$who" $column)"
      done
    done
    for who in theirs ours; do
      printf ' %s |' "$(median "$name" "$who" 6)"
    done
    echo
  done
  cat <<EOF

A serializable get of one key is answered by etcd's proxy from its cache, without asking etcd and without regard to
who asks. Resident memory at the end: etcd's proxy $(resident "$theirs_pid") MiB, ours $(resident "$ours_pid") MiB.
EOF
} >"$root/docs/versus.md"
say "wrote docs/versus.md"
