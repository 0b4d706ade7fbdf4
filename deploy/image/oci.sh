#!/usr/bin/env bash
# Makes an image of a folder without a registry, a daemon or root: an OCI layout
# in a tar, which containerd (ctr images import), podman and docker (load) take.
# The same folder gives the same bytes, whoever makes it and when.
#
# usage: deploy/image/oci.sh [--label KEY=VALUE]... [--user USER] [--architecture ARCH] --name NAME:TAG --entrypoint PROGRAM FOLDER OUT
#
# Prints the digest of the image's manifest.
set -euo pipefail

die() {
  echo "oci: $*" >&2
  exit 1
}

# Nothing in the image tells when it was made, unless the caller wants so.
epoch=${SOURCE_DATE_EPOCH:-0}
name= entrypoint= user=0:0 architecture=amd64 labels=
while [[ ${1:-} == --* ]]; do
  [[ $# -ge 2 ]] || die "$1 wants a value"
  [[ "$2" != *[\"\\]* ]] || die "$1: a quote or a backslash in $2 would end the text that it stands in"
  case $1 in
    --name) name=$2 ;;
    --entrypoint) entrypoint=$2 ;;
    --user) user=$2 ;;
    --architecture) architecture=$2 ;;
    --label) labels+="${labels:+,}\"${2%%=*}\":\"${2#*=}\"" ;;
    *) die "unknown flag $1" ;;
  esac
  shift 2
done
[[ $# == 2 && -n "$name" && -n "$entrypoint" && -d "$1" ]] ||
  die "usage: oci.sh [--label KEY=VALUE]... [--user USER] [--architecture ARCH] --name NAME:TAG --entrypoint PROGRAM FOLDER OUT"
folder=$1 out=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
blobs=$work/blobs/sha256
mkdir -p "$blobs"

# What tar would take from the file system is fixed: order, owners and times. Modes are the folder's own.
pack() {
  tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$epoch" -C "$1" -cf "$2" "${@:3}"
}

# blob FILE: keeps FILE under the name of its digest, and prints a descriptor's two fields.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  mv "$1" "$blobs/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$blobs/$digest")"
}

digest_of() { sed 's/.*sha256:\([0-9a-f]*\).*/\1/' <<<"$1"; }

pack "$folder" "$work/layer" .
unpacked=$(sha256sum "$work/layer" | cut -d ' ' -f 1)
# -n leaves name and time out.
gzip -n -6 <"$work/layer" >"$work/layer.gz"
rm "$work/layer"
layer=$(blob "$work/layer.gz")

created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
printf '{"created":"%s","architecture":"%s","os":"linux","config":{"User":"%s","Env":["PATH=/usr/bin:/bin"],"Entrypoint":["%s"],"WorkingDir":"/","Labels":{%s}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"deploy/image/oci.sh"}]}' \
  "$created" "$architecture" "$user" "$entrypoint" "$labels" "$unpacked" "$created" >"$work/config"
config=$(blob "$work/config")

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",%s}]}' \
  "$config" "$layer" >"$work/manifest"
manifest=$(blob "$work/manifest")

# Two names of the same kind: the specification's is the tag, and containerd wants the whole.
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
  "$manifest" "$architecture" "$name" "${name##*:}" >"$work/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
# Docker before 25 reads this instead of the index.
printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]' \
  "$(digest_of "$config")" "$name" "$(digest_of "$layer")" >"$work/manifest.json"

mkdir -p "$(dirname "$out")"
chmod -R u=rwX,go=rX "$work"
pack "$work" "$out.new" oci-layout index.json manifest.json blobs
mv "$out.new" "$out"
echo "sha256:$(digest_of "$manifest")"
