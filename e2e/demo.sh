#!/usr/bin/env bash
# A short session that a person can follow: three etcd members, two proxies with a
# namespace each, and what clients see through them. Every command is printed
# before it runs, its output is real, and this fails if it is not what it should be.
#
# usage: e2e/demo.sh      (or: make demo)
#   KEEP=1           leaves etcd and the proxies running, and says how to reach and stop them
#   PROXY_CMD="..."  another proxy than ours, such as "etcd grpc-proxy start"
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Nothing here takes longer than an election of etcd, which is a few seconds.
PATIENCE_SECONDS=30

bold=$(tput bold 2>/dev/null || true)
plain=$(tput sgr0 2>/dev/null || true)
[[ -t 1 ]] || bold= plain=

pids=()
folder=$(mktemp -d "${TMPDIR:-/tmp}/etcd-proxy-demo.XXXXXX")

clean() {
  local status=$? pid
  trap - EXIT
  if [[ $status == 0 && -n "${KEEP:-}" ]]; then
    return
  fi
  if [[ $status != 0 ]]; then
    for log in "$folder"/*.log; do
      [[ -s "$log" ]] && { echo "--- the end of $(basename "$log")"; tail -n 15 "$log"; } >&2
    done
    echo "demo: failed: ${failure:-a command ended with $status}" >&2
  fi
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -KILL "$pid" 2>/dev/null && while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
  done
  rm -rf "$folder"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

# --- what a person reads

title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }

fail() {
  failure=$*
  exit 1
}

# expect WANTED COMMAND...: prints the command, runs it, prints its output, and
# fails unless the whole output matches the extended regular expression WANTED.
expect() {
  local wanted=$1 output status=0
  shift
  show "$(quoted "$@")"
  output=$("$@" 2>&1) || status=$?
  [[ -z "$output" ]] || printf '%s\n' "$output"
  [[ $status == 0 ]] || fail "the command above failed with code $status"
  [[ "$output" =~ ^($wanted)$ ]] || fail "the output above should have matched: $wanted"
}

quoted() {
  local word text=
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,+@?-]+$ ]] || word="'$word'"
    text+="${text:+ }$word"
  done
  echo "$text"
}

# start NAME COMMAND...: prints the command and leaves it running, with its output
# in NAME.out and its log in NAME.log; its process id is then $started.
start() {
  local name=$1
  shift
  show "$(quoted "$@") &"
  launch "$name" "$@"
}

launch() {
  local name=$1
  shift
  "$@" >"$folder/$name.out" 2>"$folder/$name.log" </dev/null &
  started=$!
  pids+=("$started")
  # Else bash reports each one that is killed, in the middle of the session.
  disown "$started"
}

# await WHAT COMMAND...: until COMMAND succeeds.
await() {
  local what=$1 deadline=$((SECONDS + PATIENCE_SECONDS))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$what did not happen within $PATIENCE_SECONDS seconds"
    sleep 0.05
  done
}

# await_output NAME WANTED: until the output of NAME matches, then prints it.
await_output() {
  await "the output of $1 that matches $2" grep -qE "$2" "$folder/$1.out"
  cat "$folder/$1.out"
}

# --- ports

port=23700

# next_port: a port that nobody listens on, in $port.
next_port() {
  while port=$((port + 1)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    ((port < 24700)) || fail "no free port between 23700 and 24700"
  done
}

# --- the programs

bin=$("$root/tools/build.sh" etcd-3.7)
if [[ -z "${PROXY_CMD:-}" ]]; then
  if [[ -z "${ETCD_PROXY_BIN:-}" ]]; then
    echo "demo: building etcd-proxy (the first time takes a few minutes)"
    (cd "$root" && cargo build -p etcd-proxy)
    ETCD_PROXY_BIN=${CARGO_TARGET_DIR:-$root/target}/debug/etcd-proxy
  fi
  mkdir "$folder/bin"
  ln -s "$ETCD_PROXY_BIN" "$folder/bin/etcd-proxy"
  PROXY_CMD="etcd-proxy grpc-proxy start"
fi
export PATH=$folder/bin:$bin:$PATH
for name in ${!ETCD*}; do
  # Variables like ETCDCTL_ENDPOINTS would change what the commands below mean.
  unset "$name"
done

# --- the session

title "1. An etcd cluster of three"
clients=() cluster=
for index in 0 1 2; do
  next_port && clients+=("127.0.0.1:$port")
  next_port && peers[index]="http://127.0.0.1:$port"
  cluster+="${cluster:+,}m$index=${peers[index]}"
done
# member M: starts member M, on data that it may have from before.
member() {
  local member=$1
  launch "m$member" etcd --name="m$member" --data-dir="$folder/m$member" --log-level=warn \
    --listen-client-urls="http://${clients[member]}" --advertise-client-urls="http://${clients[member]}" \
    --listen-peer-urls="${peers[member]}" --initial-advertise-peer-urls="${peers[member]}" \
    --initial-cluster="$cluster" --unsafe-no-fsync
  members[member]=$started
}
for index in 0 1 2; do
  member "$index"
done
etcd=$(IFS=,; echo "${clients[*]}")
await "a healthy cluster" etcdctl --endpoints="$etcd" endpoint health
expect '(.* is healthy.*[[:space:]]*){3}' etcdctl --endpoints="$etcd" endpoint health

serving() { grep -q 'started gRPC proxy' "$folder/$1.log"; }
serving_or_dead() { serving "$1" || ! kill -0 "$2"; }

title "2. Two proxies in front of it, each with a namespace"
for tenant in alpha beta; do
  next_port
  declare "$tenant=127.0.0.1:$port"
  # shellcheck disable=SC2086 # PROXY_CMD is a command with arguments.
  start "$tenant" $PROXY_CMD --endpoints="$etcd" --listen-addr="${!tenant}" --advertise-client-url="${!tenant}" --namespace="$tenant/"
  await "a serving proxy" serving_or_dead "$tenant" "$started"
  serving "$tenant" || fail "the proxy ended instead of serving"
done

title "3. One name, two values: tenants do not see each other"
expect OK etcdctl --endpoints="$alpha" put greeting hello
expect '' etcdctl --endpoints="$beta" get greeting
expect OK etcdctl --endpoints="$beta" put greeting 'good day'
expect $'greeting\nhello' etcdctl --endpoints="$alpha" get greeting
expect $'greeting\ngood day' etcdctl --endpoints="$beta" get greeting
echo "Everything that alpha can see, and what etcd itself holds:"
expect $'greeting' etcdctl --endpoints="$alpha" get '' --from-key --keys-only
expect $'alpha/greeting\n+beta/greeting' etcdctl --endpoints="$etcd" get '' --from-key --keys-only

title "4. A watch through one proxy sees its own namespace only"
start watch etcdctl --endpoints="$alpha" watch news --rev=1
watch=$started
expect OK etcdctl --endpoints="$beta" put news 'not for alpha'
expect OK etcdctl --endpoints="$alpha" put news first
expect OK etcdctl --endpoints="$alpha" put news second
await "both events" grep -q second "$folder/watch.out"
expect $'PUT\nnews\nfirst\nPUT\nnews\nsecond' cat "$folder/watch.out"
echo "Three more clients watch the same key; etcd still serves one watch:"
for client in 2 3 4; do
  start "watch$client" etcdctl --endpoints="$alpha" watch news --rev=1
  watch+=" $started"
  await "both events" grep -q second "$folder/watch$client.out"
done
watches() {
  local client sum=0
  for client in "${clients[@]}"; do
    sum=$((sum + $(curl --silent "http://$client/metrics" | sed -n 's/^etcd_debugging_mvcc_watcher_total //p')))
  done
  echo "etcd_debugging_mvcc_watcher_total, all members: $sum"
}
one_watch() { [[ $(watches) == *": 1" ]]; }
# etcd's own proxy does not get there.
[[ $PROXY_CMD != etcd-proxy* ]] || await "one watch for four clients" one_watch
watches
# shellcheck disable=SC2086 # Several process ids.
kill $watch

title "5. A lock: the second client waits for the first"
start holder etcdctl --endpoints="$alpha" lock mutex
holder=$started
await_output holder '^mutex/'
start waiter etcdctl --endpoints="$alpha" lock mutex
waiter=$started
two_wait() { [[ $(etcdctl --endpoints="$alpha" get mutex/ --prefix --count-only --write-out=fields | grep -c '"Count" : 2') == 1 ]]; }
await "a second key of the lock" two_wait
[[ ! -s "$folder/waiter.out" ]] || fail "the second client has the lock while the first holds it"
show "kill $holder   # the first client lets go"
kill "$holder"
await_output waiter '^mutex/'
kill "$waiter"

title "6. An election"
start candidate etcdctl --endpoints="$alpha" elect boss anna
candidate=$started
await_output candidate '^anna$'
start observer etcdctl --endpoints="$alpha" elect boss --listen
observer=$started
await_output observer '^anna$'
kill "$candidate" "$observer"

title "7. A lease, kept alive"
show "etcdctl --endpoints=$beta lease grant 60"
granted=$(etcdctl --endpoints="$beta" lease grant 60)
echo "$granted"
lease=$(sed -n 's/^lease \([0-9a-f]*\) granted with TTL(60s)$/\1/p' <<<"$granted")
[[ -n "$lease" ]] || fail "that is no lease of 60 seconds"
expect OK etcdctl --endpoints="$beta" put session anna --lease="$lease"
expect "lease $lease keepalived with TTL\(60\)" etcdctl --endpoints="$beta" lease keep-alive --once "$lease"
expect "lease $lease granted with TTL\(60s\), remaining\([0-9]+s\), attached keys\(\[session\]\)" \
  etcdctl --endpoints="$beta" lease timetolive --keys "$lease"
expect "lease $lease revoked" etcdctl --endpoints="$beta" lease revoke "$lease"
expect '' etcdctl --endpoints="$beta" get session

title "8. What an operator looks at"
expect '.*started.*' etcdctl --endpoints="$alpha" member list --write-out=simple
expect '\{"health":"true".*' curl --silent --show-error "http://$alpha/health"
show "curl --silent http://$alpha/proxy/metrics | grep '^etcd_grpc_proxy_.*_total'"
curl --silent --show-error "http://$alpha/proxy/metrics" >"$folder/metrics"
grep '^etcd_grpc_proxy_.*_total' "$folder/metrics" || fail "the proxy has no metrics of its own"

title "9. A member of etcd dies, and clients do not notice"
show "kill -9 ${members[0]}   # etcd m0"
kill -KILL "${members[0]}"
elected() { etcdctl --endpoints="${clients[1]}" --command-timeout=1s get any; }
await "a leader among the other two" elected
expect OK etcdctl --endpoints="$alpha" put greeting 'still here'
expect $'greeting\nstill here' etcdctl --endpoints="$alpha" get greeting
echo "The member comes back, with what it missed:"
member 0
await "a healthy m0" etcdctl --endpoints="${clients[0]}" endpoint health
expect $'alpha/greeting\nstill here' etcdctl --endpoints="${clients[0]}" get alpha/greeting

title "All as it should be."
if [[ -n "${KEEP:-}" ]]; then
  running=
  for pid in "${pids[@]}"; do
    kill -0 "$pid" 2>/dev/null && running+=" $pid"
  done
  cat <<EOF

Left running (KEEP=1), logs in $folder:
  etcd    $etcd
  alpha   $alpha
  beta    $beta

Try it:
  export PATH=$bin:\$PATH
  etcdctl --endpoints=$alpha get '' --from-key
  etcdctl --endpoints=$beta  put colour blue
  etcdctl --endpoints=$etcd get '' --from-key

Stop it:
  kill$running; rm -rf $folder
EOF
fi
