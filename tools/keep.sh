# shellcheck shell=bash
# What tools/build.sh and e2e/clients/setup.sh share: where programs are kept, and how two callers at once make
# something once. To be sourced after here= and LOCK_SECONDS= and with the functions say and die.

# kept FALLBACK: the folder that is kept from run to run; FALLBACK without a home that can be written to.
kept() {
  if [[ -n "${ETCD_PROXY_TOOLS:-}" ]]; then
    echo "$ETCD_PROXY_TOOLS"
  elif [[ -n "${XDG_CACHE_HOME:-}" ]]; then
    echo "$XDG_CACHE_HOME/etcd-proxy"
  elif [[ -w "${HOME:-}" ]]; then
    echo "$HOME/.cache/etcd-proxy"
  else
    echo "$1"
  fi
}

# newer_or_equal A B: whether version A is B or later.
newer_or_equal() { [[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -n 1)" == "$1" ]]; }

# lock NAME: until unlock, nobody else makes NAME. Whoever waited must look again whether it is there.
lock() {
  mkdir -p "$cache"
  exec 9>"$cache/.lock-$1"
  if command -v flock >/dev/null && ! flock -n 9; then
    say "another process makes $1; waiting for it"
    flock -w "$LOCK_SECONDS" 9 || die "waited $LOCK_SECONDS s for the other that makes $1; is it stuck? Its lock is $cache/.lock-$1"
  fi
}

unlock() { exec 9>&-; }

# beside NAME: makes an empty folder in which NAME can be made, and sets temporary to it; it is gone if this process ends
# before it was put in its place.
beside() {
  temporary=$(mktemp -d "$cache/.$1.XXXXXX")
  chmod 755 "$temporary"
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$temporary'" EXIT
}

# in_place FOLDER: what was made becomes FOLDER, at once and as a whole.
in_place() {
  mkdir -p "$(dirname "$1")"
  mv -T "$temporary" "$1"
  trap - EXIT
}
