"""What each method is and what it needs, by mode. Imports no torch, so that `--help` and rank 0 can ask early.

A method is a module with a function `train(session)`, which every rank calls, in step with all others, and an entry
here.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from dials_mpi.errors import UserError
from dials_mpi.influence.settings import DatasetSettings, PredictorSettings
from dials_mpi.learning.settings import (
    DPPO_STATISTICS,
    PPO_STATISTICS,
    DPPOSettings,
    FeedForwardPolicySettings,
    PolicySettings,
    PPOSettings,
)
from dials_mpi.settings import Settings


@dataclass(frozen=True, eq=False)
class Method:
    """What the rest of the package knows of a method."""

    name: str
    """As the papers have it; in legends."""
    summary: str
    """For `--help`."""
    module: str
    """Where its `train` is."""
    family: str
    """Its values in a configuration FILE.yaml stand in FILE_FAMILY.yaml, those for all methods in FILE.yaml."""
    sections: Mapping[str, type[Settings]]
    """Of the configuration, beside those that all methods have."""
    statistics: tuple[str, ...]
    """Names of what learning says of itself, a number per agent and segment."""
    experience: Callable[[Any, int], tuple[int, int]] = lambda c, horizon: (c.ppo.rollout_length, c.ppo.copies)
    """Configuration and horizon → steps per copy, and copies, that an update learns from."""
    actor: str = "dials_mpi.learning.rollout:independent_players"
    """`module:function` that makes a `JointActor` of configuration, domain and the rows that owners publish, [N, P]
    float32 by name. Needs no MPI library."""
    learns_on_gs: bool = False
    """Whether the joint policy acts on the GS for every update; owners then learn from their rows of that."""
    needs_influence: bool = False
    """Whether domains have to declare influence sources."""
    plain_actions: bool = False
    """Whether it knows neither continuous actions nor masks of available ones."""
    needs_graph: bool = False
    """Whether domains have to say who is near whom."""
    rounds: str | None = None
    """The setting that says how many steps per agent lie between two rounds of collecting episodes of the joint policy,
    which the section `dataset` describes; None for methods without. What they return is an evaluation if one is due."""
    modelled: bool = False
    """Whether the model of `scaling` knows what it costs."""
    files: str | None = None
    """The module that knows the files which rounds leave in a run directory: `check_files` and `cut_files`."""
    unused: tuple[str, ...] = ()
    """Settings, or beginnings of them, of its sections that it does not look at."""

    def load(self) -> ModuleType:
        """Its module, with torch, MPI and all that it needs."""
        return importlib.import_module(self.module)

    def joint_actor(self, configuration, domain, rows):
        """What `actor` makes."""
        module, _, function = self.actor.partition(":")
        return getattr(importlib.import_module(module), function)(configuration, domain, rows)

    def check(self, mode: str, domain) -> None:
        """Raises UserError if the domain lacks what the method needs."""
        if self.needs_influence and domain.influence is None:
            raise UserError(f"mode: {mode} needs a domain with influence sources; try --mode gs")
        if self.plain_actions and (domain.action_size or domain.masks_actions):
            kind = "continuous" if domain.action_size else "not always available"
            raise UserError(f"mode: {mode} does not know actions that are {kind}; try --mode gs")
        if self.needs_graph and domain.graph is None:
            raise UserError(f"mode: {mode} needs a domain with a graph of its agents; try --mode gs")


_DIALS = Method(
    name="DIALS",
    summary="local simulators with trained influence predictors",
    module="dials_mpi.algorithms.dials",
    family="dials",
    sections={
        "dataset": DatasetSettings,
        "predictor": PredictorSettings,
        "policy": PolicySettings,
        "ppo": PPOSettings,
    },
    statistics=PPO_STATISTICS,
    needs_influence=True,
    rounds="predictor.interval",
    modelled=True,
    files="dials_mpi.influence.dataset",
)
METHODS: dict[str, Method] = {
    "dials": _DIALS,
    "untrained-dials": replace(
        _DIALS,
        name="untrained-DIALS",
        summary="with untrained ones",
        rounds=None,
        files=None,
        unused=(
            "dataset.",
            *(f"predictor.{key}" for key in ("interval", "learning_rate", "epochs", "minibatch_size", "patience")),
        ),
    ),
    "gs": Method(
        name="GS",
        summary="the global simulator, the baseline",
        module="dials_mpi.algorithms.global_ppo",
        family="gs",
        sections={"policy": PolicySettings, "ppo": PPOSettings},
        statistics=PPO_STATISTICS,
        learns_on_gs=True,
        modelled=True,
    ),
    "dppo": Method(
        name="DPPO",
        summary="critics that see the agent's neighbourhood, on the global simulator",
        module="dials_mpi.algorithms.dppo",
        family="dppo",
        sections={"policy": FeedForwardPolicySettings, "dppo": DPPOSettings},
        statistics=DPPO_STATISTICS,
        experience=lambda c, horizon: (horizon, c.dppo.episodes),
        actor="dials_mpi.learning.neighbourhood_policy:NeighbourhoodPlayers",
        learns_on_gs=True,
        plain_actions=True,
        needs_graph=True,
    ),
}
"""By mode, in the order in which they are offered; the first is the default."""


def owners(section: str) -> list[str]:
    """Modes that have a section of the configuration."""
    return [mode for mode, method in METHODS.items() if section in method.sections]
