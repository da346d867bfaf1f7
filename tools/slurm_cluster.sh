#!/usr/bin/env bash
# A small Slurm cluster on this machine, for tests: two nodes on one host. Needs root and Debian's slurm-wlm and munge.
#     tools/slurm_cluster.sh up FOLDER      then: export SLURM_CONF=FOLDER/slurm.conf
#     tools/slurm_cluster.sh down FOLDER
set -euo pipefail
usage() {
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
}
(($# == 2)) || usage
folder=$(realpath -m "$2")

up() {
    for program in slurmctld slurmd munged mungekey; do
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || {
            echo "slurm_cluster: no $program; apt-get install slurm-wlm munge" >&2
            exit 1
        }
    done
    export PATH=$PATH:/usr/sbin SLURM_CONF=$folder/slurm.conf
    mkdir -p "$folder"/{state,log,spool/n1,spool/n2}
    install -d -o munge -g munge -m 755 /run/munge
    [[ -f /etc/munge/munge.key ]] || su munge -s /bin/sh -c 'mungekey --create'
    local host cpus=64
    host=$(hostname -s)
    cat >"$SLURM_CONF" <<EOF
ClusterName=test
SlurmctldHost=$host
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=pmi2
KillWait=10
NodeName=n[1-2] NodeHostname=$host Port=[17001-17002] CPUs=$cpus RealMemory=60000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    echo CgroupPlugin=autodetect >"$folder/cgroup.conf"
    if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
        su munge -s /bin/sh -c 'munged --force'
        pgrep -u munge -x munged >"$folder/munged.pid"
    fi
    slurmctld
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        [[ $(sinfo --noheader --format=%T 2>/dev/null | sort -u) == idle ]] && echo "$SLURM_CONF" && return
        sleep 0.5
    done
    echo "slurm_cluster: the nodes do not come up; see $folder/log" >&2
    exit 1
}

down() {
    local file
    for file in "$folder"/{n1,n2,slurmctld,munged}.pid; do
        [[ -f $file ]] && kill "$(cat "$file")" 2>/dev/null
    done
    return 0
}

case $1 in
    up) up ;;
    down) down ;;
    *) usage ;;
esac
