# Sourced by the other scripts: a virtual environment in .venv with this checkout, and an MPI if the machine has none.
# Takes the extras to install as its first argument, for example "tests".
# shellcheck shell=bash

environment() {
    local extras=$1 python=${PYTHON:-python3}
    if [[ ! -x .venv/bin/python ]]; then
        "$python" -m venv .venv
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
    if ! command -v mpirun >/dev/null || ! python -c 'from mpi4py import MPI' 2>/dev/null; then
        echo "no usable MPI on this machine: installing the mpich wheel into .venv"
        pip install --quiet --constraint constraints.txt --editable '.[mpi]'
    fi
    # More ranks than cores is what a laptop has; Open MPI wants to be told so, and root is what containers run as.
    export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
}
