# shellcheck shell=bash
# A SLURM cluster on this machine alone, in the folder $cluster. To be sourced after common.sh.
#
#   cluster_fetch    unpack Debian's packages there; not 0 where they cannot be had
#   cluster_up N     start N nodes of one processor each; not 0 if they do not come up
#   cluster_down     end all jobs, all daemons and whatever else was started on the cluster
#
# Nothing is installed, no root is needed, and it listens on 127.0.0.1, on ports that were free. There
# are two partitions: `normal`, and `urgent`, whose jobs take the nodes of those in `normal` away, which
# have ${grace:-60} seconds to leave.
: "${cluster:?}" "${python:?}"
cluster_daemons=()

cluster_fetch() {
    command -v apt-get > /dev/null || return 1
    local names=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2) needed deb
    [ "$(id -u)" != 0 ] || apt-get update > /dev/null 2>&1
    needed=$(apt-get install --simulate --no-install-recommends "${names[@]}" 2> /dev/null \
        | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    mkdir -p "$cluster"/{debs,root}
    # shellcheck disable=SC2086  # names, one a word
    (cd "$cluster/debs" && apt-get download "${names[@]}" $needed > ../download.log 2>&1) || return 1
    for deb in "$cluster"/debs/*.deb; do
        dpkg-deb --extract "$deb" "$cluster/root" || return 1
    done
    plugins=$(dirname "$(find "$cluster/root" -name select_cons_tres.so)")
    export PATH="$cluster/root/usr/bin:$cluster/root/usr/sbin:$PATH"
    export LD_LIBRARY_PATH="$plugins:${plugins%/*}"
    export SLURM_CONF="$cluster/slurm.conf"
    slurmctld-wlm -V
}

cluster_settings() {
    local ports host me node
    read -r -a ports < <("$python" -c "
import socket
found = [socket.create_server(('127.0.0.1', 0)) for _ in range($1 + 1)]
print(*(one.getsockname()[1] for one in found))")
    host=$(hostname -s)
    me=$(id -un)
    cat << CONF
ClusterName=genlab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
PluginDir=$plugins
AuthType=auth/munge
AuthInfo=socket=$cluster/munge/socket
CredType=cred/munge
SlurmUser=$me
SlurmdUser=$me
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool/%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.%n.pid
SlurmctldLogFile=$cluster/log/slurmctld
SlurmdLogFile=$cluster/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 GraceTime=${grace:-60}
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
CONF
    for node in $(seq "$1"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=1"
    done
}

cluster_daemon() {
    "$@" > "$cluster/log/${1%%-*}.$BASHPID" 2>&1 &
    cluster_daemons+=($!)
    disown $!
}

cluster_idle() { [ "$(sinfo --noheader --partition normal --states idle --format %D)" = "$1" ]; }

cluster_up() {
    local node
    mkdir -p "$cluster"/{munge,state,spool,log}
    cluster_settings "$1" > "$SLURM_CONF"
    chmod 700 "$cluster/munge"
    head -c 1024 /dev/urandom > "$cluster/munge/key"
    chmod 400 "$cluster/munge/key"
    cluster_daemon munged --foreground --force --key-file="$cluster/munge/key" \
        --socket="$cluster/munge/socket" --pid-file="$cluster/munge/pid" \
        --log-file="$cluster/log/munged" --seed-file="$cluster/munge/seed"
    within 10 test -S "$cluster/munge/socket" || return 1
    cluster_daemon slurmctld-wlm -D -c
    for node in $(seq "$1"); do
        cluster_daemon slurmd-wlm -D -N "n$node" -d "$cluster/root/usr/sbin/slurmstepd-wlm"
    done
    within 30 cluster_idle "$1"
}

cluster_down() {
    if [ ${#cluster_daemons[@]} -gt 0 ]; then
        timeout 10 scancel --partition normal,urgent > /dev/null 2>&1 || true
        kill "${cluster_daemons[@]}" 2> /dev/null || true
    fi
    # all that was started with this cluster's settings in its environment
    end_processes_with "SLURM_CONF=$cluster/slurm.conf"
}
