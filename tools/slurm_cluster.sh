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
export PATH=$PATH:/usr/sbin SLURM_CONF=$folder/slurm.conf

fail() {
    echo "slurm_cluster: $*" >&2
    exit 1
}

up() {
    local program host socket=$folder/munge/socket ports
    for program in slurmctld slurmd sbatch munged python3; do
        command -v "$program" >/dev/null || fail "there is no $program; apt-get install slurm-wlm munge python3"
    done
    ((EUID == 0)) || fail "Slurm's daemons want root"
    [[ ! -e $SLURM_CONF ]] || fail "$folder has a cluster already; take it down and remove the folder"
    mkdir -p "$folder"/{state,log,munge,spool/n{1,2},tmp/n{1,2}}
    trap '(($? == 0)) || down' EXIT
    # Below the ports that the system gives to outgoing connections, any of which may take one in the meantime.
    ports=$(python3 -c '
import contextlib, random, socket
free = []
with contextlib.ExitStack() as stack:
    for port in random.sample(range(10000, 32000), 100):
        with contextlib.suppress(OSError):
            stack.enter_context(socket.socket()).bind(("", port))
            free.append(port)
print(*free[:3])')
    read -r -a ports <<<"$ports"
    host=$(hostname -s)
    # cred_expire: a requeued job waits until the credential of its last start has expired, by default for two minutes, at
    # least for 5 s.
    # FirstJobId: MPI libraries name what they share in a host's memory after the job, also of two such clusters.
    # TmpFS: plugins put things there under names that only differ between hosts.
    # sched_interval: the scheduler looks for jobs whose time has come that often, by default every minute.
    cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
FirstJobId=$((RANDOM * 1000 + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
TmpFS=$folder/tmp/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
NodeName=n1 NodeHostname=$host Port=${ports[1]} CPUs=64 RealMemory=60000 State=UNKNOWN
NodeName=n2 NodeHostname=$host Port=${ports[2]} CPUs=64 RealMemory=60000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    echo CgroupPlugin=autodetect >"$folder/cgroup.conf"
    # A munged of its own: that of the system, if there is one, is not ours to start and to stop.
    (umask 077 && head --bytes=128 /dev/urandom >"$folder/munge/key")
    # --force: folders that only root may enter will do.
    munged --force --socket="$socket" --key-file="$folder/munge/key" --log-file="$folder/log/munged" \
        --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" 2>>"$folder/log/munged" ||
        fail "munged does not start: $(tail -n 1 "$folder/log/munged")"
    slurmctld || fail "slurmctld does not start: $(tail -n 1 "$folder/log/slurmctld")"
    slurmd -N n1 || fail "slurmd does not start: $(tail -n 1 "$folder/log/n1")"
    slurmd -N n2 || fail "slurmd does not start: $(tail -n 1 "$folder/log/n2")"
    for _ in $(seq 60); do
        [[ $(timeout 5 sinfo --noheader --Node --format=%T 2>/dev/null | xargs) == "idle idle" ]] && echo "$SLURM_CONF" && return
        sleep 0.5
    done
    tail -n 5 "$folder"/log/* >&2
    fail "the nodes do not come up; see $folder/log"
}

# processes [NAME…]: ids of the daemons that have a log of this cluster open, only those of these names if any are given.
processes() {
    local pid name
    for pid in $(find /proc/[0-9]*/fd -lname "$folder/log/*" 2>/dev/null | cut -d/ -f3 | sort -u); do
        name=$(cat "/proc/$pid/comm" 2>/dev/null) || continue
        [[ " ${*:-slurmctld slurmscriptd slurmd slurmstepd munged} " == *" $name "* ]] && echo "$pid"
    done
    return 0
}

# gone SECONDS [NAME…]: waits until those processes have ended, at most that long.
gone() {
    local end=$((SECONDS + $1))
    shift
    while [[ -n $(processes "$@") ]]; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

down() {
    local pid
    if [[ -n $(processes slurmctld) ]]; then
        timeout 10 squeue --noheader --format=%A 2>/dev/null | sort -u | xargs --no-run-if-empty timeout 10 scancel || true
    fi
    # Longer than KillWait, after which jobs that do not listen are killed.
    if ! gone 20 slurmstepd; then
        for pid in $(processes slurmstepd); do
            ps --no-headers -o pgid= --ppid "$pid" | sed 's/^ */-/' | xargs --no-run-if-empty kill -KILL -- || true
            kill -KILL "$pid" || true
        done
    fi
    processes slurmctld slurmd | xargs --no-run-if-empty kill
    gone 20 slurmctld slurmd || true
    processes munged | xargs --no-run-if-empty kill
    if ! gone 5; then
        processes | xargs --no-run-if-empty kill -KILL
        gone 5 || fail "these processes do not end: $(processes | xargs)"
    fi
}

case $1 in
    up) up ;;
    down) down ;;
    *) usage ;;
esac
