#!/usr/bin/env bash
# Runs the tests on a real node where this machine can be one, and says in one
# sentence why not where it cannot.
#
# usage: e2e/cluster/test.sh
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What the prerequisites answer where no package helps.
IMPOSSIBLE=3

"$root/tools/node-prerequisites.sh"
status=$?
if [[ $status == "$IMPOSSIBLE" ]]; then
  say "the tests on a real node were left out, for the reason above"
  exit 0
fi
[[ $status == 0 ]] || exit "$status"
cd "$root" && exec cargo test --locked --workspace --test node -- --nocapture
