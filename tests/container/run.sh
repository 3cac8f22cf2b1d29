#!/usr/bin/env bash
# Builds the image and runs it, as a person without Docker would: buildah and podman, as root.
#
#   bash tests/container/run.sh            everything, a quarter of an hour at the first time
#   BASE_IMAGE=python:3.12-slim bash ...   with an image from a registry instead of a local one
#
# Exit code 77: the tools for it are not here and cannot be installed.
# Shows: the build, the sweep on the embedded data as another user, without network and with a
# read-only root; SIGTERM ends with 143 and a checkpoint; a second run on the same volume finishes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
base=${BASE_IMAGE:-localhost/genlab-base:bookworm}
image=localhost/genlab:test-$$ # another run of this script may go on beside it
stopped=genlab-stopped-$$
work=$(mktemp -d)
trap 'rm -rf "$work"; buildah rmi "$image" > /dev/null 2>&1' EXIT
uid=4242

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
cannot() { printf 'not tried: %s\n' "$*" >&2; exit 77; }

need() {
    local missing=()
    for tool in buildah podman runc debootstrap; do
        command -v "$tool" > /dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        cannot "${missing[*]}: install these packages, or run this as root where apt-get can"
    fi
    apt-get update > /dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        buildah podman runc debootstrap netavark iptables uidmap > /dev/null \
        || cannot "${missing[*]}: apt-get does not install them"
}

# Where the package index stands behind a proxy, pip's settings, the certificates and folders that
# they name are lent to the build, and do not stay in the image.
setting() { pip config list | sed -n "s/.*\.$1='\(.*\)'/\1/p" | head -n 1; }

lent() {
    command -v pip > /dev/null || return 0
    local cert links
    cert=$(setting cert)
    links=$(setting find-links)
    [ -n "$cert$links" ] || return 0
    {
        echo "[global]"
        [ -z "$cert" ] || echo "cert = /etc/ssl/certs/ca-certificates.crt"
        [ -z "$links" ] || echo "find-links = $links"
    } > "$work/pip.conf"
    arguments+=(--secret "id=pipconf,src=$work/pip.conf")
    [ -z "$cert" ] || arguments+=(--volume "$cert:/etc/ssl/certs/ca-certificates.crt:ro")
    [ -z "$links" ] || arguments+=(--volume "$links:$links:ro" --build-arg TORCH_INDEX=)
}

run() {
    CONTAINERS_CONF="$here/containers.conf" podman --runtime runc run --network none --read-only \
        --tmpfs /tmp --cap-drop all --user "$uid:$uid" --volume "${runs:-$work/runs}:/app/runs" "$@"
}

need
if [ "$base" = localhost/genlab-base:bookworm ] && ! buildah inspect "$base" > /dev/null 2>&1; then
    say "base image (debootstrap)"
    bash "$here/base_image.sh" "$base" || cannot "there is no base image, and none can be made"
fi

say "build"
arguments=(--layers --isolation chroot --build-arg "BASE_IMAGE=$base" --build-arg "UID=$uid"
    --build-arg "GID=$uid" --build-arg "REVISION=$(git -C "$project" rev-parse HEAD)")
lent
SECONDS=0
buildah bud "${arguments[@]}" --tag "$image" "$project" > "$work/build.log" 2>&1 \
    || { tail -n 40 "$work/build.log"; fail "the image does not build"; }
size=$(buildah inspect --type image --format '{{.FromImage}}' "$image" > /dev/null \
    && podman image inspect --format '{{.Size}}' "$image")
echo "built in $SECONDS s, $((size / 1000000)) MB"
mkdir --mode=0755 "$work/runs" && chown "$uid:$uid" "$work/runs"

say "nothing of the build's settings is in the image"
run --rm --entrypoint sh "$image" -c \
    'test ! -s /etc/pip.conf && ! find / -xdev -name "torch-*.whl" 2> /dev/null | grep .' \
    || fail "the image holds what was lent to its build"

say "the sweep on the embedded data: no network, read-only, user $uid"
SECONDS=0
run --rm "$image" -m experiment=vae/kl_weight model.kl_weight=0,30 trainer.max_epochs=2 \
    launcher=process logger=none
echo "swept in $SECONDS s"
[ "$(find "$work/runs" -name result.json | wc -l)" = 2 ] || fail "two results were expected"
[ -z "$(find "$work/runs" -not -uid "$uid")" ] || fail "files of another user in runs/"

say "SIGTERM ends with 143 and a checkpoint; the same command goes on"
settings=(experiment=vae/kl_weight group=stopped trainer.max_epochs=30 logger=none
    checkpoint_every_n_steps=50)
run --detach --name "$stopped" "$image" "${settings[@]}" > /dev/null
until grep -qs train/loss "$work"/runs/stopped/*/metrics.jsonl; do
    [ "$(podman inspect --format '{{.State.Running}}' "$stopped")" = true ] \
        || { podman logs "$stopped"; fail "the training ended by itself"; }
    sleep 0.2
done
podman --runtime runc kill --signal TERM "$stopped" > /dev/null
code=$(podman wait "$stopped")
podman rm "$stopped" > /dev/null
[ "$code" = 143 ] || fail "exit code $code where 143 was expected"
grep -q '"preempted"' "$work"/runs/stopped/*/status.json || fail "the status is not preempted"
ls "$work"/runs/stopped/*/checkpoints/last.ckpt
run --rm "$image" "${settings[@]}" | tail -n 3
grep -q '"completed"' "$work"/runs/stopped/*/status.json || fail "the second run did not finish"

say "a folder of another user is refused in one sentence"
mkdir --mode=0755 "$work/of-root"
code=0
runs="$work/of-root" run --rm "$image" trainer=smoke logger=none > "$work/refused" 2>&1 || code=$?
tail -n 1 "$work/refused"
[ "$code" = 2 ] || fail "exit code $code where 2 was expected"
grep -q "cannot be written" "$work/refused" || fail "the sentence is another"

if command -v hadolint > /dev/null; then
    say "hadolint"
    hadolint --failure-threshold warning "$project/Dockerfile"
fi
say "all of it holds"
