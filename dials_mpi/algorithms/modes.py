"""Which algorithm a mode stands for. Every rank runs the same function."""

from collections.abc import Callable

from dials_mpi.algorithms import dials, global_ppo
from dials_mpi.training.session import Session

BY_MODE: dict[str, Callable[[Session], None]] = {
    "dials": dials.train,
    "untrained-dials": dials.train,
    "gs": global_ppo.train,
}
