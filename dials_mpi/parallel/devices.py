"""Where a rank computes: on its core, or on one of its machine's GPUs."""

from dials_mpi.errors import UserError
from dials_mpi.parallel.waiting import barrier


def device_of_rank(comm, kind: str) -> str:
    """The device of this rank's networks and rollouts; the ranks of a machine take its GPUs in turn.

    Args:
        comm: an MPI communicator of all ranks.
        kind: `cpu` or `cuda`.

    Returns:
        As torch names it, for example `cuda:1`.

    Raises:
        UserError: on all ranks alike; some machine has no GPU that torch can use.
    """
    if kind == "cpu":
        return kind
    import torch
    from mpi4py import MPI

    from dials_mpi.parallel.shared_rows import ranks_of_this_machine

    machine = ranks_of_this_machine(comm)
    local_rank = machine.rank
    machine.Free()
    mine = torch.cuda.device_count() if torch.cuda.is_available() else 0
    barrier(comm)
    lacking = sorted({host for host, count in comm.allgather((MPI.Get_processor_name(), mine)) if not count})
    if lacking:
        raise UserError(
            f"--device cuda: torch {torch.__version__} finds no GPU on {', '.join(lacking)}; install a build of torch "
            "for CUDA and ask Slurm for GPUs (--gres=gpu:1), or leave --device out"
        )
    return f"cuda:{local_rank % mine}"
