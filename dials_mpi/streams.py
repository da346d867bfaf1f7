"""Named random streams: every random number of a run comes from one of these.

A stream is identified by (seed, purpose, agent or copy, round) and by nothing else. In particular it does not know
which rank draws from it, so a run gives the same numbers on 1, 3 or 26 ranks, and a segment of a run can be repeated
without the history before it.
"""

import zlib

import numpy as np

PURPOSES = frozenset(
    {
        "policy/initialise",
        "critic/initialise",
        "predictor/initialise",
        "predictor/minibatches",
        "train/simulator",
        "train/actions",
        "train/influence",
        "train/minibatches",
        "evaluate/simulator",
        "evaluate/actions",
    }
)


def seed_sequence(seed: int, purpose: str, member: int = 0, round_: int = 0) -> np.random.SeedSequence:
    """The seed of one named stream.

    Args:
        seed: the run's seed, a non-negative integer.
        purpose: one of `PURPOSES`.
        member: agent id for an agent's stream, copy number for a copy's stream, 0 for a stream shared by all.
        round_: how often this purpose has come up before (retraining round, segment, evaluation).

    Raises:
        KeyError: for a purpose that is not listed; a misspelt one would silently be another stream.
    """
    if purpose not in PURPOSES:
        raise KeyError(f"unknown random stream {purpose!r}")
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), member, round_))


def stream(seed: int, purpose: str, member: int = 0, round_: int = 0) -> np.random.Generator:
    """The generator of one named stream; arguments as in `seed_sequence`."""
    return np.random.default_rng(seed_sequence(seed, purpose, member, round_))


def streams(seed: int, purpose: str, members, round_: int = 0) -> list[np.random.Generator]:
    """One generator for each of `members`."""
    return [stream(seed, purpose, int(member), round_) for member in members]


def torch_seed(seed: int, purpose: str, member: int = 0, round_: int = 0) -> int:
    """A 64-bit seed for `torch.Generator.manual_seed`."""
    return int(seed_sequence(seed, purpose, member, round_).generate_state(1, np.uint64)[0] >> np.uint64(1))
