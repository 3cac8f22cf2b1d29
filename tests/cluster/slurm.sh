#!/usr/bin/env bash
# A multirun on a real SLURM cluster of two nodes, on this machine alone.
#
#   bash tests/cluster/slurm.sh            two minutes on two processors
#
# Exit code 77: SLURM cannot be had here; it takes Debian's packages, without installing them.
# Shows: four jobs by launcher=slurm. One is preempted within a grace time, where SLURM leaves it to
# the job to queue itself again; one without any, where SLURM does so. Each of the four ends once,
# bit for bit as it does undisturbed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source=tests/cluster/common.sh
. "$here/common.sh"
cluster=$work/cluster
launcher=

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    grep -hv sacct "$work/multirun.log" | tail -n 20 >&2
    tail -n 5 "$work"/runs/sweep/.submitit/*/*_log.err 2> /dev/null >&2
    exit 1
}
finish() {
    local code=$?
    trap - EXIT
    [ -z "$launcher" ] || kill "$launcher" 2> /dev/null || true
    cluster_down || { echo "FAILED: processes of the cluster are left" >&2; code=1; }
    rm -rf "$work"
    exit "$code"
}

# shellcheck source=tests/cluster/slurm_cluster.sh
. "$here/slurm_cluster.sh"
begin
unset "${!SLURM_@}" "${!SUBMITIT_@}"

weights=(0 1 4 30)
settings=(experiment=vae/kl_weight "model.kl_weight=$(IFS=, && echo "${weights[*]}")"
    trainer.max_epochs=14 trainer.log_every_n_steps=1 callbacks=none forecast=false logger=none group=sweep)
train() { "$python" train.py -m "${settings[@]}" "$@"; }

say "SLURM"
cluster_fetch || cannot "SLURM: Debian's packages slurmctld, slurmd, slurm-client and munge"

say "the four runs, undisturbed"
train launcher=process hydra.launcher.slots=2 hydra.launcher.threads=1 \
    runs_dir="$work/undisturbed" > "$work/multirun.log" 2>&1 || fail "they do not train"

say "four jobs on two nodes"
mkdir -p "$cluster"
cluster_up 2 || { tail -n 5 "$cluster"/log/* >&2; fail "the cluster does not come up"; }
sinfo
SECONDS=0
train launcher=slurm hydra.launcher.partition=normal hydra.launcher.cpus_per_task=1 \
    hydra.launcher.timeout_min=20 runs_dir="$work/runs" > "$work/multirun.log" 2>&1 &
launcher=$!

# Of the job with this number in the array: its run directory, its node, a field of scontrol's.
directory() { echo "$work"/runs/sweep/*-kl_weight_"${weights[$1]}"-*; }
node() { squeue --noheader --states running --format '%K %N' | sed -n "s/^$1 //p"; }
id() { squeue --noheader --states all --array --format '%K %A' | sed -n "s/^$1 //p" | head -n 1; }
field() { scontrol --oneliner show job "$1" | grep -o " $2=[^ ]*" | cut -d = -f 2; }
trains() { [ "$(grep -cs train/loss "$(directory "$1")/metrics.jsonl")" -ge 30 ]; }
is_over() { ! kill -0 "$1"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }

preempt() { # NUMBER
    local job urgent
    within 90 trains "$1" || fail "job $1 does not train"
    job=$(id "$1")
    urgent=$(sbatch --parsable --partition urgent --nodelist "$(node "$1")" --output /dev/null \
        --wrap "sleep 1")
    within 30 is "$job" Restarts 1 || fail "job $1 was not queued again: $(field "$job" JobState)"
    within 30 is "$urgent" JobState COMPLETED || fail "the urgent job did not get the node"
    grep -q '"preempted"' "$(directory "$1")/status.json" || fail "its status is not preempted"
    echo "job $1 was preempted at step $(tail -n 1 "$(directory "$1")/metrics.jsonl" \
        | grep -o '"step": [0-9]*' | cut -d ' ' -f 2) and is queued again"
    within 10 is "$job" JobState PENDING || fail "it is $(field "$job" JobState)"
    scontrol update JobId="$job" StartTime=now # and not in two minutes
}

say "with a grace time of 60 seconds"
preempt 0

say "without a grace time"
scontrol update PartitionName=normal GraceTime=0
preempt 2

say "all end"
within 180 is_over "$launcher" || fail "the launcher still waits"
wait "$launcher" || fail "the multirun ended with $?"
launcher=
echo "four jobs, two of them preempted: $SECONDS s"
for number in 0 2; do
    count=$(grep -c "(going on)" "$work"/runs/sweep/.submitit/*_"$number"/*_log.out)
    [ "$count" = 1 ] || fail "job $number went on $count times where once was expected"
done
"$python" "$here/runs.py" "$work/runs" "$work/undisturbed" --runs 4 \
    || fail "the runs differ from the undisturbed ones"
say "all of it holds"
