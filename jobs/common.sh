# Sourced by the job scripts, which call `train`. What to change for your cluster stands in docs/running.md.
# shellcheck shell=bash

# launcher HOW: sets LAUNCHER, the words that start a command on all ranks. HOW is mpirun, a plugin of srun's (pmi2, pmix,
# …), or srun for the one that the site has chosen.
launcher() {
    # Not --kill-on-bad-exit: the first rank to leave with 75 would end those that are still leaving, and srun would
    # report that. A rank that dies alone ends all of them none the less: --wait kills who is still there 8 s later.
    LAUNCHER=(srun --kill-on-bad-exit=0 --wait=8)
    case $1 in
        mpirun) LAUNCHER=(mpirun -n "$SLURM_NTASKS") ;;
        srun) ;;
        *) LAUNCHER+=(--mpi="$1") ;;
    esac
}

# Sets LAUNCHER to the first way that connects all ranks: srun where it and the MPI library understand each other, else
# mpirun. Tried rather than read from `srun --mpi=list`, which also names plugins that cannot be loaded.
find_launcher() {
    local how probe='import os, sys; from mpi4py import MPI; sys.exit(MPI.COMM_WORLD.size != int(os.environ["SLURM_NTASKS"]))'
    for how in srun pmi2 pmix; do
        launcher "$how"
        timeout 120 "${LAUNCHER[@]}" python -c "$probe" &>/dev/null && return
    done
    launcher mpirun
}

# Two things go wrong in MPI_Init of the MPICH wheel (which has the devices "ucx ofi") when srun starts it. Segments in
# /dev/shm are named after the job and its step: what a killed start has left is taken for its own by the next start of
# the same job. And addresses of UCX come close to the longest line that pmi2 reads; those of OFI are short.
steady_mpich() {
    local version='import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())'
    if [[ $(python -c "$version") == *"ch4:ucx ofi"* ]]; then
        export MPIR_CVAR_NOLOCAL=${MPIR_CVAR_NOLOCAL:-1} MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi}
    fi
}

# train NAME ARGUMENTS…: starts the run of that name or goes on with it. When Slurm says that time is running out, the run
# is asked to stop, writes a checkpoint, and the job puts itself back into the queue. A run that a person stops, with a
# file STOP or --max-hours, stays stopped.
train() {
    local name=$1 runs=runs asked='' code=0 reason facts before pid i
    shift
    if ((SLURM_NTASKS < 2)); then
        echo "dials_mpi: --ntasks=$SLURM_NTASKS leaves no rank for the agents; ask for at least 2" >&2
        exit 2
    fi
    for ((i = 1; i <= $#; i++)); do
        case ${!i} in
            --runs=*) runs=${!i#--runs=} ;;
            --runs) ((i < $#)) && ((i++)) && runs=${!i} ;;
        esac
    done
    facts=$runs/$name/run.json
    trap 'asked=yes' USR1
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun takes it from nowhere else since Slurm 22.05
    steady_mpich
    if [[ -n ${DIALS_MPI_LAUNCHER:-} ]]; then launcher "$DIALS_MPI_LAUNCHER"; else find_launcher; fi
    echo "dials_mpi: $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST, started by ${LAUNCHER[*]}"

    before=$(version "$facts")
    "${LAUNCHER[@]}" python -m dials_mpi --resume auto --name "$name" "$@" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        # A file rather than a signal: it reaches the run through every launcher. Not before this start of the run has
        # written its facts, until when there is no folder yet, or an older REQUEUE is taken away.
        if [[ -n $asked && $(version "$facts") != "$before" ]]; then
            touch "$runs/$name/REQUEUE"
            asked=''
        fi
        sleep 1
    done
    wait "$pid" || code=$?
    # A launcher that has killed a rank on its way out reports that instead: ask the run itself.
    if ((code > 128)) && [[ $(version "$facts") != "$before" ]]; then
        case $(grep '"state"' "$facts") in
            *stopped*) code=75 ;;
            *finished*) code=0 ;;
        esac
    fi
    if ((code == 75)); then
        # By its place in the array, if it is in one: one of an array's tasks has the id of the whole array.
        local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
        job=${job:-$SLURM_JOB_ID}
        reason=$(sed -n 's/^ *"stopped_by": "\(.*\)",\?$/\1/p' "$facts")
        [[ ! -e $runs/$name/STOP ]] || reason="the file STOP"
        case $reason in
            SIGTERM | SIGUSR1 | "the file REQUEUE")
                echo "dials_mpi: unfinished; back into the queue"
                scontrol requeue "$job" || echo "dials_mpi: not possible; submit the job again" >&2
                ;;
            *)
                echo "dials_mpi: unfinished, and stays so: stopped by $reason. To go on: rm -f $runs/$name/STOP;" \
                    "scontrol requeue $job"
                ;;
        esac
    fi
    exit "$code"
}

# version FILE: changes whenever the file is replaced; nothing as long as there is none.
version() {
    stat --format='%i %y' "$1" 2>/dev/null || true
}
