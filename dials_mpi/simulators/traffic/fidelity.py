"""What the traffic LS keeps of the GS, in figures."""

import numpy as np

from dials_mpi.simulators.replay import Replay


def agreement(replayed: Replay, lanes: int) -> dict[str, np.ndarray]:
    """Figures by name, each [N].

    `bits`: share of the local state's bits that agree. `occupied`: share of the GS's occupied cells that are occupied
    in the LS. `queue error` and `reward error`: mean absolute difference per step, of the occupied cells seen on a lane
    and of the reward; `queue correlation`, `reward correlation` over steps, copies and lanes. `return`, `LS return`.

    Args:
        lanes: incoming lanes per intersection, U.
    """
    states, local_states = (episode.local_states[:, 1:] for episode in replayed)  # roads are empty at the start
    rewards, local_rewards = (episode.rewards for episode in replayed)
    cells = states.reshape(*states.shape[:3], lanes, -1)
    local_cells = local_states.reshape(cells.shape)
    queues, local_queues = cells.sum(axis=-1, dtype=np.float64), local_cells.sum(axis=-1, dtype=np.float64)
    over = (1, 2, 3)
    return {
        "bits": (states == local_states).mean(axis=over),
        "occupied": (states & local_states).sum(axis=over) / np.maximum(states.sum(axis=over), 1),
        "queue error": abs(queues - local_queues).mean(axis=over),
        "queue correlation": _correlations(queues, local_queues),
        "reward error": abs(rewards - local_rewards).mean(axis=(1, 2)),
        "reward correlation": _correlations(rewards, local_rewards),
        "return": rewards.sum(axis=1).mean(axis=1),
        "LS return": local_rewards.sum(axis=1).mean(axis=1),
    }


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)])
