#!/usr/bin/env bash
# One training on two hosts, as two network namespaces of this machine joined by a cable.
#
#   bash tests/cluster/two_hosts.sh        one minute on two processors
#
# Exit code 77: no namespaces can be had here; it takes root, and `ip` of iproute2.
# Shows: torchrun with one process on each host and gloo between them; its metrics and weights are
# those of one process but for rounding, and the gradients went over the cable.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source=tests/cluster/common.sh
. "$here/common.sh"
hosts=("genlab-$$-1" "genlab-$$-2")
addresses=(10.77.0.1 10.77.0.2)

fail() {
    tail -n 20 "$work"/*.log >&2 2> /dev/null || true
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
finish() {
    local code=$? host signal
    trap - EXIT
    for host in "${hosts[@]}"; do
        [ -e "/run/netns/$host" ] || continue
        for signal in TERM KILL; do
            # shellcheck disable=SC2046  # process ids, one a word
            kill -s "$signal" $(ip netns pids "$host") 2> /dev/null && sleep 2
        done
        ip netns delete "$host" || code=1
    done
    rm -rf "$work"
    exit "$code"
}
begin

[ "$(id -u)" = 0 ] || cannot "network namespaces are root's"
if ! command -v ip > /dev/null; then
    { apt-get update && apt-get install --yes --no-install-recommends iproute2; } > /dev/null 2>&1 \
        || cannot "ip: install iproute2"
fi
say "two hosts and a cable"
for i in 0 1; do
    ip netns add "${hosts[i]}" 2> /dev/null || cannot "no network namespaces may be made here"
done
ip -n "${hosts[0]}" link add cable type veth peer name cable netns "${hosts[1]}" 2> /dev/null \
    || cannot "no pair of network devices may be made here"
for i in 0 1; do
    ip -n "${hosts[i]}" address add "${addresses[i]}/24" dev cable
    ip -n "${hosts[i]}" link set lo up
    ip -n "${hosts[i]}" link set cable up
done
for host in "${hosts[@]}"; do ip -n "$host" -brief -4 address show cable; done

settings=(model.net.encoder.hidden='[64]' model.net.decoder.hidden='[64]' data.binarisation=dynamic
    data.batch_size=32 data.train_images=960 data.val_images=150 data.eval_batch_size=100
    trainer.max_epochs=3 trainer.limit_test_batches=3 trainer.log_every_n_steps=1 ema_decay=0.9
    forecast=false logger=none trainer=ddp trainer.accelerator=cpu trainer.precision=32-true)

say "one process"
"$python" train.py "${settings[@]}" trainer.devices=1 runs_dir="$work/one" > "$work/one.log" 2>&1 \
    || fail "it does not train"

say "a process on each host"
SECONDS=0
pids=()
for i in 0 1; do
    GLOO_SOCKET_IFNAME=cable timeout 180 ip netns exec "${hosts[i]}" "$python" -m \
        torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d \
        --rdzv-endpoint "${addresses[0]}:29500" --rdzv-conf "is_host=$((1 - i))" \
        --local-addr "${addresses[i]}" train.py "${settings[@]}" trainer.devices=1 \
        trainer.num_nodes=2 runs_dir="$work/two" > "$work/host$i.log" 2>&1 &
    pids+=($!)
done
for i in 0 1; do
    wait "${pids[i]}" || fail "host $i ended with $?"
done
sent() { ip netns exec "$1" cat /sys/class/net/cable/statistics/tx_bytes; }
echo "$SECONDS s; sent: $(sent "${hosts[0]}") and $(sent "${hosts[1]}") bytes"

# ninety gradients of some hundred thousand numbers, each at least once over the cable
parameters=$(grep -o '[0-9,]* parameters' "$work/one.log" | tr -d ', a-z')
for host in "${hosts[@]}"; do
    [ "$(sent "$host")" -gt $((90 * 4 * parameters / 2)) ] || fail "the gradients went another way"
done
"$python" "$here/runs.py" "$work/two" "$work/one" --runs 1 --within 2e-4 \
    || fail "the run on two hosts is another"
say "all of it holds"
