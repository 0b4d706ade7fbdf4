#!/usr/bin/env bash
# Makes one image for several processors of the images that oci.sh made for each:
# an OCI layout in a tar whose index names a manifest for every platform, from
# which containerd, and whoever copies it to a registry, takes what fits. The same
# images give the same bytes.
#
# usage: deploy/image/join.sh OUT IMAGE...
set -euo pipefail

[[ $# -ge 2 ]] || {
  echo "usage: deploy/image/join.sh OUT IMAGE..." >&2
  exit 64
}
out=$1
shift
epoch=${SOURCE_DATE_EPOCH:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/blobs/sha256" "$work/one"

manifests= names=
for image in "$@"; do
  rm -rf "$work/one" && mkdir "$work/one"
  tar -xf "$image" -C "$work/one"
  cp "$work/one"/blobs/sha256/* "$work/blobs/sha256/"
  # Of the index, the one descriptor without the name, which the whole has now.
  descriptor=$(sed 's/.*"manifests":\[\(.*\)\]}$/\1/; s/,"annotations":{[^}]*}//' "$work/one/index.json")
  name=$(sed 's/.*"io.containerd.image.name":"\([^"]*\)".*/\1/' "$work/one/index.json")
  [[ $descriptor == *'"platform"'* && -n $name ]] || {
    echo "join: $image is no image of oci.sh" >&2
    exit 1
  }
  manifests+="${manifests:+,}$descriptor"
  names+="$name"$'\n'
done
[[ $(sort -u <<<"${names%$'\n'}" | wc -l) == 1 ]] || {
  echo "join: these images have different names: $names" >&2
  exit 1
}

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$manifests" >"$work/index"
digest=$(sha256sum "$work/index" | cut -d ' ' -f 1)
size=$(stat -c %s "$work/index")
mv "$work/index" "$work/blobs/sha256/$digest"
name=${names%%$'\n'*}
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
  "$digest" "$size" "$name" "${name##*:}" >"$work/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
chmod -R u=rwX,go=rX "$work"
tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$epoch" -C "$work" -cf "$out.new" oci-layout index.json blobs
mv "$out.new" "$out"
echo "join: $name in $out for $# platforms, digest sha256:$digest" >&2
