#!/usr/bin/env bash
# Many watchers on what one writer writes, through etcd's own gRPC proxy and through
# ours, in one run on one machine, into docs/fanout.md and the plots beside it.
#
# usage: e2e/fanout/run.sh     (or: make fanout)
#   SECONDS_EACH=N   how long each load is measured
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
each=${SECONDS_EACH:-2}
# Whether ours has carried every load.
status=0

# A measurement that takes longer than this has hung.
RUN_SECONDS=45

say() { echo "fanout: $*" >&2; }
die() {
  say "$*"
  exit 1
}

etcd=$("$root/tools/build.sh" etcd-3.7)
say "building etcd-proxy and the watchers"
(cd "$root" && cargo build --quiet --locked --release -p etcd-proxy-fanout)
fanout=${CARGO_TARGET_DIR:-$root/target}/release/fanout
if [[ -z "${ETCD_PROXY_BIN:-}" ]]; then
  (cd "$root" && cargo build --quiet --locked --release -p etcd-proxy)
  ETCD_PROXY_BIN=${CARGO_TARGET_DIR:-$root/target}/release/etcd-proxy
fi
ours_bin=$ETCD_PROXY_BIN
for name in ${!ETCD*}; do
  unset "$name"
done

# A descriptor for each connection, here and in the proxy.
ulimit -n "$(ulimit -Hn)"

folder=$(mktemp -d /tmp/etcd-fanout.XXXXXX)
declare -A process=()
end() {
  local pid=${process[$1]:-}
  unset "process[$1]"
  [[ -z $pid ]] || { kill -KILL "$pid" 2>/dev/null && while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done; } || true
}
clean() {
  local status=$? name
  trap - EXIT
  for name in "${!process[@]}"; do
    end "$name"
  done
  [[ $status == 0 ]] || tail -n 5 "$folder"/*.log >&2 || true
  rm -rf "$folder"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

launch() {
  local name=$1
  shift
  # Emptied here, since what the last one of that name said must not be taken for the new one's words.
  : >"$folder/$name.log"
  "$@" >"$folder/$name.log" 2>&1 </dev/null &
  process[$name]=$!
  disown "$!"
}

# await NAME TEXT: until the log of NAME contains TEXT.
await() {
  local deadline=$((SECONDS + 30))
  until grep -q "$2" "$folder/$1.log"; do
    ((SECONDS < deadline)) || die "$1 did not start"
    sleep 0.002
  done
}

etcd_address=127.0.0.1:24711
declare -A address=([theirs]=127.0.0.1:24713 [ours]=127.0.0.1:24714)
declare -A program=([theirs]=$etcd/etcd [ours]=$ours_bin)

# Whether clients come with TLS, for which each proxy makes itself a certificate.
tls=false
# fresh WHO: a proxy that has done nothing yet.
fresh() {
  end "$1"
  launch "$1" "${program[$1]}" grpc-proxy start --endpoints="http://$etcd_address" --listen-addr="${address[$1]}" \
    --advertise-client-url="${address[$1]}" --auto-tls="$tls" --data-dir="$folder/$1-data"
  await "$1" 'started gRPC proxy'
}

resident() { awk '/^VmRSS:/ { printf "%.1f", $2 / 1024 }' "/proc/${process[$1]}/status"; }

# run KIND NAME WHO ARGUMENTS...: appends "KIND NAME WHO events/s ns/event cores sink-cores bytes/watch events/message",
# or what went wrong.
run() {
  local kind=$1 name=$2 who=$3 result
  shift 3
  if result=$(timeout "$RUN_SECONDS" "$fanout" --etcd "$etcd_address" --proxy "${address[$who]}" \
    --tls "$tls" --process "${process[$who]}" --seconds "$each" "$@" 2>&1); then
    # Where nothing came while it was measured, the machine was too busy for a number.
    ((${result%%$'\t'*} > 100)) || [[ $kind == memory ]] || result=failed
    printf '%s\t%s\t%s\t%s\n' "$kind" "$name" "$who" "$result" >>"$folder/results.tsv"
  else
    [[ $who != ours ]] || status=1
    printf '%s\t%s\t%s\tfailed\n' "$kind" "$name" "$who" >>"$folder/results.tsv"
    say "$name, $who: $result"
    # It may still be busy with what nobody reads any more.
    fresh "$who"
  fi
  say "$(tail -n 1 "$folder/results.tsv" | tr '\t' ' ')"
}

# both KIND NAME ARGUMENTS...
both() {
  local kind=$1 name=$2 who
  shift 2
  for who in theirs ours; do
    run "$kind" "$name" "$who" "$@"
  done
}

launch etcd "$etcd/etcd" --data-dir="$folder/data" --unsafe-no-fsync --listen-peer-urls=http://127.0.0.1:24712 \
  --listen-client-urls="http://$etcd_address" --advertise-client-urls="http://$etcd_address" \
  --quota-backend-bytes=8000000000 --auto-compaction-retention=5000 --auto-compaction-mode=revision
await etcd 'ready to serve client requests'

# === start-up and memory ===
for who in theirs ours; do
  for _ in 1 2 3 4 5; do
    before=$(date +%s%N)
    fresh "$who"
    echo $((($(date +%s%N) - before) / 1000000)) >>"$folder/start-$who"
  done
  sort -n "$folder/start-$who" | sed -n 3p >"$folder/started-$who"
  # A program that has just begun holds what only its start has used.
  sleep 2
  resident "$who" >"$folder/idle-$who"
done
memory() {
  local name=$1 who
  shift
  for who in theirs ours; do
    fresh "$who"
    run memory "$name" "$who" "$@" --rate 5
  done
}
memory "1,000 connections with a watch each" --connections 1000
memory "10,000 watches, a stream each, on 10 connections" --connections 10 --streams 1000
memory "10,000 watches on 10 streams" --connections 10 --watchers 1000
tls=true
memory "1,000 connections with a watch each, with TLS" --connections 1000
tls=false

# === the loads ===
fresh theirs
fresh ours
for puts in 1 16; do
  name="one put at a time"
  [[ $puts == 1 ]] || name="transactions of $puts puts"
  load=(--puts "$puts" --depth $((puts == 1 ? 64 : 16)))
  both load "1,000 streams on 10 connections, $name" --connections 10 --streams 100 "${load[@]}"
  both load "1,000 streams on 100 connections, $name" --connections 100 --streams 10 "${load[@]}"
  both load "10 streams of 100 watchers, $name" --connections 10 --watchers 100 "${load[@]}"
done
run load "100,000 streams on 100 connections, one put at a time" ours --connections 100 --streams 1000 --depth 4
run load "100,000 streams on 100 connections, 10 puts a second" ours --connections 100 --streams 1000 --rate 10
both load "100 watchers on 10 connections, 500 puts a second" --connections 10 --watchers 10 --rate 500
tls=true
fresh theirs
fresh ours
both load "1,000 streams on 10 connections, one put at a time, with TLS" --connections 10 --streams 100 --puts 1 --depth 64
both load "1,000 streams on 10 connections, transactions of 16 puts, with TLS" --connections 10 --streams 100 --puts 16 --depth 16
both load "100 watchers on 10 connections, 500 puts a second, with TLS" --connections 10 --watchers 10 --rate 500
tls=false
fresh theirs
fresh ours

# === growth ===
for watchers in 1 10 100 1000 10000 100000; do
  load=(--connections $((watchers < 10 ? 1 : 10)) --streams $((watchers < 10 ? watchers : watchers / 10)) --depth 16)
  if ((watchers <= 1000)); then both watchers $watchers "${load[@]}"; else run watchers $watchers ours "${load[@]}"; fi
done
for connections in 1 10 100 1000; do
  both connections $connections --connections $connections --streams $((1000 / connections)) --depth 16
done
run connections 10000 ours --connections 10000 --depth 16
for keys in 1 10 100 1000 10000 100000; do
  both keys $keys --connections 10 --streams 10 --keys $keys --depth 16
done
for size in 10 100 1000 10000 100000 1000000; do
  both "value size" $size --connections 10 --streams 10 --value-size $size --depth 4
done

# === the page ===
# cell KIND NAME WHO COLUMN
cell() {
  awk -F'\t' -v kind="$1" -v name="$2" -v who="$3" -v column="$4" '
    $1 == kind && $2 == name && $3 == who { found = $4 == "failed" ? "failed" : $column }
    END { print found == "" ? "-" : found }
  ' "$folder/results.tsv"
}
names() { awk -F'\t' -v kind="$1" '$1 == kind && !seen[$2]++ { print $2 }' "$folder/results.tsv"; }
rows() {
  local kind=$1 name theirs ours ratio
  shift
  names "$kind" | while read -r name; do
    printf '| %s |' "$name"
    for column in "$@"; do
      printf ' %s | %s |' "$(cell "$kind" "$name" theirs "$column")" "$(cell "$kind" "$name" ours "$column")"
    done
    theirs=$(cell "$kind" "$name" theirs 5) ours=$(cell "$kind" "$name" ours 5)
    ratio=$(awk -v theirs="$theirs" -v ours="$ours" 'BEGIN { if (theirs + 0 > 0 && ours + 0 > 0) printf "%.3f", ours / theirs; else print "-" }')
    printf ' %s |\n' "$ratio"
  done
}
# plot KIND: CPU for each event as it grows, into docs/fanout-KIND.svg.
plot() {
  awk -F'\t' -v kind="$1" '$1 == kind && $4 != "failed" { print $2, $3, $5 }' "$folder/results.tsv" |
    awk -v title="proxy CPU for each event, by $1" -f "$here/plot.awk" >"$root/docs/fanout-${1// /-}.svg"
}

version=$("$etcd/etcd" --version | sed -n 's/^etcd Version: //p')
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
  cat <<PAGE
# Many watchers on one prefix

\`make fanout\` wrote this file on $(date -u +%F), on $(nproc) CPUs ($machine), kernel $(uname -r), over loopback: one member
of etcd $version without fsync, one writer that writes straight to it, and watchers that count frames and decode nothing,
through \`etcd grpc-proxy start\` $version and through etcd-proxy. Etcd, writer, proxy and watchers share the CPUs, so
what is delivered in a second is what is left for the proxy; CPU for each event is its own. Keys of 20 bytes, values of
100. Each event reached each watcher, or there would be no number: where it says "failed", watches were ended, which is
what etcd's proxy does to those that lag, or events did not come in time.

| load | etcd's proxy events/s | ours events/s | etcd's proxy ns each | ours ns each | etcd's proxy cores | ours cores | ratio of CPU each |
|---|---|---|---|---|---|---|---|
PAGE
  rows load 4 5 6
  cat <<PAGE

## Memory and start

| | etcd's proxy | ours |
|---|---|---|
| from start to the line that says so, ms, median of 5 | $(cat "$folder/started-theirs") | $(cat "$folder/started-ours") |
| resident without clients, two seconds later, MiB | $(cat "$folder/idle-theirs") | $(cat "$folder/idle-ours") |
PAGE
  names memory | while read -r name; do
    echo "| bytes of its own for each watch: $name | $(cell memory "$name" theirs 8) | $(cell memory "$name" ours 8) |"
  done
  for kind in watchers connections keys "value size"; do
    cat <<PAGE

## CPU for each event, by $kind

![ns of CPU for each event](fanout-${kind// /-}.svg)

| $kind | etcd's proxy events/s | ours events/s | etcd's proxy ns each | ours ns each | ratio of CPU each |
|---|---|---|---|---|---|
PAGE
    rows "$kind" 4 5
    plot "$kind"
  done
  cat <<PAGE

By watchers: a stream each on 10 connections. By connections: 1,000 streams of one watcher on so many, and 10,000 on
10,000. By keys, which are written in turn, and by value size: 100 streams on 10 connections. One put at a time in all of
them; a dash is a load that etcd's proxy was not given.
PAGE
} >"$folder/page.md"
cp "$folder/page.md" "$root/docs/fanout.md"
say "wrote docs/fanout.md in $SECONDS s"
((status == 0)) || die "ours did not carry every load"
