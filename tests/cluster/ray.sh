#!/usr/bin/env bash
# A multirun on a Ray of this machine alone. By hand: it takes 400 MB, and Ray listens on all
# interfaces while it runs.
#
#   bash tests/cluster/ray.sh              three minutes on two processors, one of them to install
#
# Exit code 77: Ray cannot be had here; it comes from PyPI, into an environment that is then deleted.
# Shows: four jobs by launcher=ray, all completed and bit for bit as they are in one process; one of
# them is killed on the way, which Ray starts again and which goes on at its last checkpoint.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source=tests/cluster/common.sh
. "$here/common.sh"
ours=$work/environment/bin/python
launcher=

fail() {
    tail -n 30 "$work"/*.log >&2 2> /dev/null || true
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
finish() {
    local code=$?
    trap - EXIT
    [ -z "$launcher" ] || kill "$launcher" 2> /dev/null || true
    # of Ray, and what it started
    end_processes_with "RAY_TMPDIR=$work/ray" || { echo "FAILED: processes of Ray are left" >&2; code=1; }
    rm -rf "$work"
    exit "$code"
}
begin

say "an environment with Ray, on top of the project's"
"$python" -m venv "$work/environment"
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$purelib" > "$("$ours" -c "$purelib")/below.pth"
"$ours" -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ray]' \
    > "$work/pip.out" 2>&1 || { tail -n 3 "$work/pip.out" >&2; cannot "pip does not install genlab[ray]"; }
"$ours" -c 'import ray; print("ray", ray.__version__)'
du -sh "$work/environment" | cut -f 1

settings=("model.kl_weight=0,1,4,30" experiment=vae/kl_weight trainer.max_epochs=14 group=sweep
    trainer.log_every_n_steps=1 callbacks=none forecast=false logger=none)
say "the four runs, in one process"
"$python" train.py -m "${settings[@]}" runs_dir="$work/undisturbed" > "$work/undisturbed.log" 2>&1 \
    || fail "they do not train"

say "four jobs of Ray, two at once"
SECONDS=0
# its token goes into the folder, too
HOME=$work RAY_TMPDIR=$work/ray RAY_DEDUP_LOGS=0 "$ours" train.py -m "${settings[@]}" runs_dir="$work/runs" \
    launcher=ray hydra.launcher.ray.init.num_cpus=2 > "$work/multirun.log" 2>&1 &
launcher=$!
directory() { echo "$work"/runs/sweep/*-kl_weight_4-*; }
until grep -qs '"step": 200,' "$(directory)/metrics.jsonl"; do
    kill -0 "$launcher" || fail "the multirun ended by itself"
    [ "$SECONDS" -lt 120 ] || fail "the third job does not train"
    sleep 0.2
done
victim=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$(directory)/status.json")
kill -s KILL "$victim"
echo "killed: the process of kl_weight=4, at step $(tail -n 1 "$(directory)/metrics.jsonl" \
    | grep -o '"step": [0-9]*' | cut -d ' ' -f 2)"
wait "$launcher" || fail "the multirun ended with $?"
launcher=
echo "$SECONDS s"
grep -q "(going on)" "$work/multirun.log" || fail "the killed job did not go on"
"$python" "$here/runs.py" "$work/runs" "$work/undisturbed" --runs 4 \
    || fail "the runs differ from those in one process"
say "all of it holds"
