#!/usr/bin/env bash
# Turns the outcome of run.sh into docs/conformance.md: what of etcd's own suites
# passes through our proxy, beside what passes through etcd's own.
#
# usage: table.sh EXPLAINED RETRIED   lines of "suite test result seconds why" and "suite test why"; prints to stdout
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
explained=$1 retried=$2

version() { sed -n "s|.*$2 v\([^ ]*\).*|\1|p" "$root/tools/$1/go.mod" | head -n 1; }
etcd=$(version etcd-3.7 go.etcd.io/etcd/server/v3)
last=$(version etcd-3.6 go.etcd.io/etcd/server/v3)
ours=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")

cat <<EOF
# etcd's own test suites through the proxy

\`make conformance\` wrote this file on $(date -u +%F). It runs etcd's end-to-end suites, unmodified, from the module
\`go.etcd.io/etcd/tests/v3\` $etcd, with etcd-proxy $ours wherever they start a gRPC proxy: one in front of each member of
each cluster. Members are etcd $etcd; tests of mixed versions and of upgrades take etcd $last besides.

The four tests of users by Common Name (\`TestCtlV3AuthCertCN...\`) find a file for \`--config-file\` with a rule that maps the
client's certificate to that user; without one every client of a proxy is the proxy to etcd.

| suite | what it is |
|---|---|
| e2e | \`tests/e2e\` with \`-tags cluster_proxy\`: what etcd runs for its own proxy |
| common | \`tests/common\` with \`-tags e2e,cluster_proxy\`: etcd runs these against members and in process, but not through a proxy |
| no_proxy | the tests of \`tests/e2e\` that etcd leaves out for its own proxy (\`//go:build !cluster_proxy\`), with only that line dropped |

EOF

awk -F'\t' '
  FILENAME == ARGV[1] { base[$1 FS $2] = $3; next }
  {
    total[$1]++; n[$1 FS $3]++
    if (base[$1 FS $2] == "PASS") theirs[$1]++
  }
  END {
    print "| suite | tests | pass | skip themselves | fail | pass with etcd'"'"'s own proxy |"
    print "|---|---|---|---|---|---|"
    split("e2e common no_proxy", order, " ")
    for (i = 1; i <= 3; i++) {
      s = order[i]
      fail = total[s] - n[s FS "PASS"] - n[s FS "SKIP"]
      printf "| %s | %d | %d | %d | %d | %d |\n", s, total[s], n[s FS "PASS"], n[s FS "SKIP"], fail, theirs[s]
    }
  }' "$here/baseline.tsv" "$explained"

cat <<'EOF'

## What does not pass, and why

| suite | test | ours | etcd's own proxy | why |
|---|---|---|---|---|
EOF
awk -F'\t' '
  FILENAME == ARGV[1] { base[$1 FS $2] = $3; next }
  $3 != "PASS" { printf "| %s | %s | %s | %s | %s |\n", $1, $2, tolower($3), tolower(base[$1 FS $2]), $5 }
' "$here/baseline.tsv" "$explained"

if [[ -s $retried ]]; then
  cat <<'EOF'

## What passed at the second try only

These failed beside another test, and passed when they were run once more, alone.

| suite | test | what it said at first |
|---|---|---|
EOF
  awk -F'\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$retried"
fi

cat <<'EOF'

## What passes with ours and not with etcd's own proxy

| suite | test | etcd's own proxy |
|---|---|---|
EOF
awk -F'\t' '
  FILENAME == ARGV[1] { base[$1 FS $2] = $3; next }
  $3 == "PASS" && base[$1 FS $2] != "PASS" { printf "| %s | %s | %s |\n", $1, $2, tolower(base[$1 FS $2]) }
' "$here/baseline.tsv" "$explained"

cat <<'EOF'

## The tests that etcd leaves out for its own proxy

| test | ours | etcd's own proxy |
|---|---|---|
EOF
awk -F'\t' '
  FILENAME == ARGV[1] { base[$1 FS $2] = $3; next }
  $1 == "no_proxy" { printf "| %s | %s | %s |\n", $2, tolower($3), tolower(base[$1 FS $2]) }
' "$here/baseline.tsv" "$explained"
