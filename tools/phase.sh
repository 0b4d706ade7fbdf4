#!/usr/bin/env bash
# Runs one phase of a long job and says how long it took, so that a slow CI run
# shows where its time went.
#
# usage: tools/phase.sh NAME COMMAND...
set -uo pipefail
name=$1
shift
echo "== $name" >&2
"$@"
status=$?
echo "== $name: $([[ $status == 0 ]] && echo done || echo "FAILED ($status)") after $SECONDS s" >&2
exit "$status"
