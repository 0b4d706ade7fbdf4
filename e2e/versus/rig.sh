# What the comparisons of this folder share: programs in the background, their logs, and the end of it all. To be
# sourced after say, die and root exist; sets etcd (its folder of programs), ours_bin, target, folder.
# shellcheck shell=bash

# The programs of the run, built if they are missing.
etcd=$("$root/tools/build.sh" etcd-3.7)
target=${CARGO_TARGET_DIR:-$root/target}
if [[ -z "${ETCD_PROXY_BIN:-}" ]]; then
  say "building etcd-proxy"
  (cd "$root" && cargo build --quiet --release -p etcd-proxy)
  ETCD_PROXY_BIN=$target/release/etcd-proxy
fi
ours_bin=$ETCD_PROXY_BIN
# Flags of the caller's own etcd or proxy are not for those that are measured.
for name in ${!ETCD*}; do
  unset "$name"
done

folder=$(mktemp -d /tmp/etcd-versus.XXXXXX)
pids=()
clean() {
  local status=$? pid
  trap - EXIT
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -KILL "$pid" 2>/dev/null && while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
  done
  if [[ $status != 0 ]]; then
    tail -n 5 "$folder"/*.log >&2 || true
  fi
  rm -rf "$folder"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

# launch NAME COMMAND...: in the background, its log under NAME, its process in $started.
launch() {
  local name=$1
  shift
  "$@" >"$folder/$name.log" 2>&1 </dev/null &
  started=$!
  pids+=("$started")
  disown "$started"
}

# await NAME TEXT: until the log of NAME contains TEXT.
await() {
  local deadline=$((SECONDS + 30))
  until grep -q "$2" "$folder/$1.log"; do
    ((SECONDS < deadline)) || die "$1 did not start"
    sleep 0.05
  done
}
