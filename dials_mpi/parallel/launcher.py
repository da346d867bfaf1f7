"""What the launcher says about this process, read from its environment without starting MPI."""

import os
from collections.abc import Mapping

from dials_mpi.errors import UserError

# Set by Hydra and other PMI launchers, by Open MPI, and by srun for its steps. The first that is there counts: mpirun
# inside a Slurm job leaves Slurm's variables of the whole job in place.
_LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as the launcher says, 0 without one. For who speaks before MPI is up."""
    return next((int(environment[rank]) for rank, _ in _LAUNCHERS if rank in environment), 0)


def launched_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes the launcher has started, 1 without one."""
    return next((int(environment[size]) for _, size in _LAUNCHERS if size in environment), 1)


def check_size(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses a communicator that is not as large as the launcher says: N jobs of one rank instead of one of N ranks.

    Raises:
        UserError: naming both sizes.
    """
    for _, variable in _LAUNCHERS:
        if variable in environment:
            if int(environment[variable]) != size:
                raise UserError(
                    f"the launcher started {environment[variable]} processes ({variable}) but MPI connects {size}: "
                    "mpirun or srun belongs to another MPI library than mpi4py uses; start with that library's mpirun, "
                    "or srun --mpi=pmi2 or --mpi=pmix"
                )
            return
