#!/usr/bin/env bash
# Installs into .venv and runs every check: style, the tests in one process, and their MPI part on five ranks.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
environment tests,traffic,envs,plots
ruff check .
ruff format --check .
# A file's tests stay together: some share a run that takes a while to make, or a Slurm.
python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile "$@"
mpirun -n 5 python -m pytest --with-mpi
