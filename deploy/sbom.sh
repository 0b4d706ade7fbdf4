#!/usr/bin/env bash
# Prints what the programs are made of, as CycloneDX in JSON: every crate that is
# compiled into them, with its licence, and the checksum that Cargo.lock pins.
# The same lock gives the same bytes.
#
# usage: deploy/sbom.sh [TARGET]     TARGET as rustc names it; this machine's
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

# Dependencies of tests are in Cargo.lock too, and not in the programs; so cargo is asked for the others.
crates=$(cargo tree --locked --target "$target" --edges normal,build --prefix none --no-dedupe \
  -p etcd-proxy -p etcd-proxy-operator --format '{p}|{l}' | sed 's/ ([^|]*)|/|/' | grep -v '^$' | LC_ALL=C sort -u)
awk -v version="$version" -v target="$target" '
  # First Cargo.lock, then the crates.
  FNR == NR {
    gsub(/"/, "")
    if ($1 == "name") name = $3
    if ($1 == "version") number = $3
    if ($1 == "source") source[name " " number] = $3
    if ($1 == "checksum") sum[name " " number] = $3
    next
  }
  {
    split($0, part, "|"); split(part[1], word, " ")
    sub(/^v/, "", word[2])
    key = word[1] " " word[2]
    if (key in seen) next
    seen[key] = 1
    # Version numbers with a plus sign would be read as a blank.
    number = word[2]; gsub(/\+/, "%2B", number)
    purl = "pkg:cargo/" word[1] "@" number
    line = "    {\"type\":\"library\",\"bom-ref\":\"" purl "\",\"name\":\"" word[1] "\",\"version\":\"" word[2] "\",\"purl\":\"" purl "\""
    licence = part[2]; gsub(/\//, " OR ", licence)
    if (licence != "") line = line ",\"licenses\":[{\"expression\":\"" licence "\"}]"
    if (key in sum) line = line ",\"hashes\":[{\"alg\":\"SHA-256\",\"content\":\"" sum[key] "\"}]"
    lines = lines (lines == "" ? "" : ",\n") line "}"
  }
  END {
    print "{\n  \"bomFormat\":\"CycloneDX\",\n  \"specVersion\":\"1.5\",\n  \"version\":1,"
    print "  \"metadata\":{\"component\":{\"type\":\"application\",\"bom-ref\":\"etcd-proxy\",\"name\":\"etcd-proxy\",\"version\":\"" version "\","
    print "    \"licenses\":[{\"expression\":\"Apache-2.0\"}],\"properties\":[{\"name\":\"rust:target\",\"value\":\"" target "\"}]}},"
    print "  \"components\":[\n" lines "\n  ]\n}"
  }
' Cargo.lock - <<<"$crates"
