#!/usr/bin/env bash
# A local base image from a Debian root file system, where no registry of images can be reached.
# usage: base_image.sh TAG        needs root, buildah and debootstrap; Python 3.11
set -euo pipefail
tag=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root/fs"
rm -rf "$root"/fs/var/cache/apt/archives/*.deb "$root"/fs/usr/share/{doc,man,locale}/*
container=$(buildah from scratch)
buildah add --quiet "$container" "$root/fs" / > /dev/null
buildah config --env LANG=C.UTF-8 --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$tag"
