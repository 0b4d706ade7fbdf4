#!/usr/bin/env bash
# A relay of bytes three ways: etcd's own gateway, ours, and HAProxy in TCP mode,
# under the same load in one run on one machine, taking turns, into
# docs/versus-gateway.md.
#
# usage: e2e/versus/gateway.sh     (or: make versus-gateway)
#   ROUNDS=N     how often each is measured; the table has the median
#   SECONDS_EACH=N  how long each measurement takes
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
rounds=${ROUNDS:-3}
each=${SECONDS_EACH:-4}
idle=10000

say() { echo "versus-gateway: $*" >&2; }
die() {
  say "$*"
  exit 1
}

if ! command -v haproxy >/dev/null; then
  [[ $(id -u) == 0 ]] || die "please install haproxy (Debian: apt install haproxy)"
  say "installing Debian's haproxy"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy; } >&2
fi
# shellcheck source=rig.sh
source "$here/rig.sh"
# One file that needs nothing but the standard library.
load=$target/relay_load
mkdir -p "$target"
rustc --edition 2024 -O -o "$load" "$here/relay_load.rs"
# Ours and HAProxy need two descriptors for each connection; etcd's needs six, and ends when it has none left.
limit=$(ulimit -Hn)
if [[ $limit != unlimited && $limit -lt $((idle * 6 + 2000)) ]]; then
  idle=$(((limit - 2000) / 6))
  say "ulimit -n is $limit, so only $idle silent connections are held"
fi
ulimit -n "$limit"

declare -A address=([direct]=127.0.0.1:24711 [theirs]=127.0.0.1:24712 [ours]=127.0.0.1:24713 [haproxy]=127.0.0.1:24714)
declare -A process=()

# HAProxy as fast as it goes here: a thread for each core, and splice where it thinks that worth it.
cat >"$folder/haproxy.cfg" <<EOF
global
  maxconn $((idle + 100))
  maxpipes 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-auto
  option clitcpka
  option srvtcpka
frontend in
  bind ${address[haproxy]}
  default_backend out
backend out
  server one ${address[direct]}
EOF

# start WHO: a fresh process, so that what one load leaves behind is not counted for the next.
start() {
  case $1 in
    direct) return ;;
    theirs) launch theirs "$etcd/etcd" gateway start --endpoints="${address[direct]}" --listen-addr="${address[theirs]}" ;;
    ours) launch ours "$ours_bin" gateway start --endpoints="${address[direct]}" --listen-addr="${address[ours]}" ;;
    haproxy) launch haproxy haproxy -db -f "$folder/haproxy.cfg" ;;
  esac
  process[$1]=$started
  reachable "${address[$1]}"
}

# stop PID: and waits for its end.
stop() {
  kill -KILL "$1" 2>/dev/null || true
  while kill -0 "$1" 2>/dev/null; do sleep 0.01; done
}

reachable() {
  local deadline=$((SECONDS + 30))
  until (exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null; do
    ((SECONDS < deadline)) || die "nobody listens on $1"
    sleep 0.05
  done
}

# cpu WHO: CPU time of a relay so far, in milliseconds; the kernel counts in hundredths of a second.
cpu() {
  [[ -n "${process[$1]:-}" ]] || { echo 0 && return; }
  awk '{ sub(/.*\) /, ""); print ($12 + $13) * 10 }' "/proc/${process[$1]}/stat"
}

resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"; }

# measure LOAD WHO: appends "load who per_second cpu_us_each".
measure() {
  local before counted seconds
  start "$2"
  before=$(cpu "$2")
  read -r counted seconds < <(timeout $((each + 60)) "$load" "$1" "${address[$2]}" "$each") || die "$1, $2: the load failed"
  awk -v load="$1" -v who="$2" -v n="$counted" -v s="$seconds" -v ms=$(($(cpu "$2") - before)) \
    'BEGIN { printf "%s\t%s\t%.0f\t%.1f\n", load, who, n / s, ms * 1000 / n }' >>"$folder/results.tsv"
  [[ $2 == direct ]] || stop "${process[$2]}"
}

# measure_idle WHO: appends "idle who kib_each".
measure_idle() {
  local before after
  start "$1"
  before=$(resident "${process[$1]}")
  # What the last one wrote must not be taken for what this one writes.
  rm -f "$folder/idle.log"
  launch idle "$load" idle "${address[$1]}" $idle
  local deadline=$((SECONDS + 60)) holder=$started
  until [[ -s "$folder/idle.log" ]]; do
    ((SECONDS < deadline)) || die "idle, $1: the connections were not made"
    sleep 0.1
  done
  grep -q "^$idle " "$folder/idle.log" || die "idle, $1: $(head -n 1 "$folder/idle.log")"
  # Allocators give memory back some time after.
  sleep 2
  after=$(resident "${process[$1]}")
  awk -v who="$1" -v kib=$((after - before)) -v n=$idle 'BEGIN { printf "idle\t%s\t%.3f\t0\n", who, kib / n }' >>"$folder/results.tsv"
  stop "$holder"
  stop "${process[$1]}"
}

launch server "$load" serve "${address[direct]}"
reachable "${address[direct]}"
for round in $(seq "$rounds"); do
  for kind in stream small connect; do
    for who in direct theirs haproxy ours; do
      measure $kind $who
      say "round $round of $rounds: $(tail -n 1 "$folder/results.tsv" | tr '\t' ' ')"
    done
  done
  for who in theirs haproxy ours; do
    measure_idle $who
    say "round $round of $rounds: $(tail -n 1 "$folder/results.tsv" | tr '\t' ' ')"
  done
done

# median LOAD WHO COLUMN
median() {
  awk -F'\t' -v load="$1" -v who="$2" -v column="$3" '$1 == load && $2 == who { print $column }' "$folder/results.tsv" |
    sort -n | sed -n "$(((rounds + 1) / 2))p"
}

# row TITLE LOAD
row() {
  local who line="| $1 "
  for who in direct theirs haproxy ours; do
    line+="| $(median "$2" $who 3) "
  done
  for who in theirs haproxy ours; do
    line+="| $(median "$2" $who 4) "
  done
  echo "$line|"
}

{
  cat <<EOF
# The gateway beside etcd's and HAProxy

\`make versus-gateway\` wrote this file on $(date -u +%F): one server of bytes behind etcd's gateway
$("$etcd/etcd" --version | sed -n 's/^etcd Version: //p'), HAProxy $(haproxy -v | sed -n 's/^HAProxy version \([^ -]*\).*/\1/p') in TCP mode (a thread for each core, \`option splice-auto\`) and
etcd-proxy's gateway, all on one machine with $(nproc) CPUs over loopback. Load, relay and server share those CPUs, so a
relay's cost shows twice: in its own time and in what it takes from the others. Each cell is the median of $rounds rounds of
$each seconds in which they took turns.

| load | direct | etcd's | HAProxy | ours | etcd's CPU µs each | HAProxy CPU µs each | ours CPU µs each |
|---|---|---|---|---|---|---|---|
EOF
  row "4 streams of 1 MiB messages, per second" stream
  row "32 clients, 128 bytes there and back, per second" small
  row "16 clients, connect, 128 bytes, close, per second" connect
  echo
  echo "Resident memory of $idle connections that have spoken once and are silent, each: etcd's" \
    "$(median idle theirs 3) KiB, HAProxy $(median idle haproxy 3) KiB, ours $(median idle ours 3) KiB."
} >"$root/docs/versus-gateway.md"
say "wrote docs/versus-gateway.md"
