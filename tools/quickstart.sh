#!/usr/bin/env bash
# Installs into .venv, trains four warehouse robots on five ranks, and says how to go on. Arguments go to dials_mpi and
# come last: `tools/quickstart.sh --env traffic` trains four traffic lights.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
extras=plots
[[ " $* " == *" --env traffic "* || " $* " == *" --env=traffic "* ]] && extras+=,traffic
environment "$extras"

said=$(mktemp)
trap 'rm -f "$said"' EXIT
code=0
# tee lives through Ctrl-C, which asks the run to stop: it has more to say.
mpirun -n 5 python -m dials_mpi --env warehouse "$@" | tee -i "$said" || code=$?
run=$(sed -n 's/^results in //p' "$said")
if ((code)) || [[ -z $run ]]; then
    exit "$code"
fi
domain=$(sed -n 's/^env: //p' "$run/config.yaml")
[[ $domain == *:* ]] && domain=" --env $domain" || domain=
printf -v run %q "$run"
cat <<END

Next, in $PWD:
  source .venv/bin/activate
  python -m dials_mpi evaluate $run$domain
  python tools/report.py $run$domain
  python tools/plot_learning.py $run
END
