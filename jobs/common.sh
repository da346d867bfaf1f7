# Sourced by the job scripts, which call `train`. What to change for your cluster stands in the README.
# shellcheck shell=bash

# How srun and the MPI library find each other: pmi2, pmix, or mpirun where srun speaks neither of the library's languages.
launcher() {
    local library languages
    library=$(python -c 'from mpi4py import MPI; print(MPI.Get_library_version())')
    languages=$(srun --mpi=list 2>&1)
    case $library in
        *"Open MPI"*) [[ $languages == *pmix* ]] && echo pmix && return ;;
        *) [[ $languages == *pmi2* ]] && echo pmi2 && return ;;
    esac
    echo mpirun
}

# train RUN ARGUMENTS…: starts runs/RUN or goes on with it. When Slurm says that time is running out, the run is asked to
# stop, writes a checkpoint, and the job puts itself back into the queue.
train() {
    local run=$1 how code=0 started
    shift
    started=$(mktemp)
    how=${DIALS_MPI_LAUNCHER:-$(launcher)}
    local command=(python -m dials_mpi --resume auto --name "$run" "$@")
    if ((SLURM_NTASKS < 2)); then
        echo "dials_mpi: --ntasks=$SLURM_NTASKS leaves no rank for the agents; ask for at least 2" >&2
        exit 2
    fi
    case $how in
        mpirun) command=(mpirun -n "$SLURM_NTASKS" "${command[@]}") ;;
        *) command=(srun --mpi="$how" --kill-on-bad-exit=1 "${command[@]}") ;;
    esac
    # A file rather than a signal: it reaches the run through every launcher.
    trap 'mkdir -p "runs/$run" && touch "runs/$run/STOP"' USR1
    "${command[@]}" &
    local pid=$!
    while true; do
        code=0
        wait "$pid" || code=$?
        kill -0 "$pid" 2>/dev/null || break # else a signal has interrupted the wait
    done
    # srun may end the last ranks while they are leaving with 75, and then reports that instead: ask the run itself.
    if ((code > 128)) && [[ runs/$run/run.json -nt $started ]] && grep -q '"state": "stopped"' "runs/$run/run.json"; then
        code=75
    fi
    rm "$started"
    if ((code == 75)); then
        echo "dials_mpi: unfinished; back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
