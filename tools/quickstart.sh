#!/usr/bin/env bash
# Installs into .venv and trains four warehouse robots on five ranks. Arguments go to dials_mpi and come last:
# `tools/quickstart.sh --env traffic` trains four traffic lights.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
extras=
[[ " $* " == *" --env traffic "* || " $* " == *" --env=traffic "* ]] && extras=traffic
environment "$extras"
exec mpirun -n 5 python -m dials_mpi --env warehouse "$@"
