"""What a run holds in memory at the very least: refuses what cannot be, before anything of it is built.

Counted are the arrays whose sizes a configuration fixes. Libraries, simulators and what a gradient step needs for a
moment come on top; `measuring` looks at all of it. Imports no torch, so that rank 0 can ask early.
"""

import math

from dials_mpi.config import Configuration
from dials_mpi.learning.parameters import parameter_shapes, policy_shapes, predictor_outputs
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.machines import Machines
from dials_mpi.simulators.interface import Domain

MIB = 1 << 20
_FLOAT = 4
_REMEDIES = {
    "networks": "smaller networks (policy, predictor), more ranks on more machines",
    "rollouts": "fewer ppo.copies, a shorter ppo.rollout_length, more ranks on more machines",
    "datasets": "fewer dataset.steps, more ranks on more machines",
    "the joint policies": "a smaller policy network, machines with more memory",
    "the joint rollout": "fewer ppo.copies, a shorter ppo.rollout_length, machines with more memory",
}


def owners_memory(configuration: Configuration, domain: Domain) -> dict[str, float]:
    """MiB that the owner of an agent holds for it, by what it is."""
    c, influence = configuration, domain.influence
    parts = {"networks": 0.0}
    if "policy" in c.sections:
        parts["networks"] = 4 * _policy(c, domain)  # with gradients and two moments
    if "ppo" in c.sections:
        parts["rollouts"] = _rollout(c, domain)
    if "predictor" in c.sections:
        inputs = influence.local_state_size + (domain.n_actions if c.predictor.sees_actions else 0)
        outputs = predictor_outputs(influence.sources, influence.classes)
        predictor = _parameters(parameter_shapes(inputs, c.predictor.recurrent_size, c.predictor.hidden_sizes, outputs))
        parts["networks"] += (5 if c.method.rounds else 1) * predictor  # and the best so far
    if c.method.rounds:
        parts["datasets"] = -(-c.dataset.steps // domain.horizon) * episode_memory(domain)
    return parts


def joint_memory(configuration: Configuration, domain: Domain) -> dict[str, float]:
    """MiB per agent of the system that a machine holds on which the joint policy acts."""
    parts = {"the joint policies": _policy(configuration, domain) if "policy" in configuration.sections else 0.0}
    if configuration.method.learns_on_gs and "ppo" in configuration.sections:
        parts["the joint rollout"] = _rollout(configuration, domain)
    return parts


def episode_memory(domain: Domain) -> float:
    """MiB of an agent's share of an episode in a dataset; a domain with influence."""
    action = _FLOAT * domain.action_size or 1
    return domain.horizon * (domain.influence.local_state_size + domain.influence.sources + action) / MIB


def lacking(
    configuration: Configuration, domain: Domain, layout: Layout, machines: Machines, device: str = "cpu"
) -> str | None:
    """In words, which machine cannot hold what the layout puts there, and what to do about it; None if all can.

    Args:
        device: where the agents learn, as torch names it; on a GPU their networks and rollouts are in its memory.
    """
    each, joint = owners_memory(configuration, domain), joint_memory(configuration, domain)
    if device != "cpu":
        each = {"datasets": each.get("datasets", 0.0)}
    counts = layout.counts()
    for host, memory in machines.memory.items():
        ranks = [rank for rank, where in enumerate(machines.hosts) if where == host]
        agents = sum(counts[rank] for rank in ranks)
        parts = {part: agents * mib for part, mib in each.items()}
        if set(ranks) & set(layout.collectors):
            parts |= {part: layout.n_agents * mib for part, mib in joint.items()}
        need = sum(parts.values())
        if need > memory:
            most = max(parts, key=parts.__getitem__)
            return (
                f"agents: {layout.n_agents:,} agents need at least {need / 1024:,.1f} GiB of memory on {host}, "
                f"{parts[most] / 1024:,.1f} of them for {most}, and {memory / 1024:,.1f} are there; "
                f"take {_REMEDIES[most]}, or fewer agents"
            )
    return None


def _policy(c: Configuration, domain: Domain) -> float:
    return _parameters(policy_shapes(domain, c.policy))


def _parameters(shapes: dict[str, tuple[int, int]]) -> float:
    """MiB of an agent's parameters."""
    return sum(map(math.prod, shapes.values())) * _FLOAT / MIB


def _rollout(c: Configuration, domain: Domain) -> float:
    """MiB of an agent's `Rollout`: observations, per step four numbers, an action, masks, ends; memories."""
    s = c.ppo
    masks = domain.n_actions if domain.masks_actions else 0
    action = _FLOAT * domain.action_size or 8
    steps = s.rollout_steps * (_FLOAT * (domain.observation_size + 4) + action + masks)
    ends = 0 if domain.absorbing_reward is None else (s.rollout_length + 1) * s.copies
    memories = s.rollout_length // s.sequence_length * s.copies * c.policy.recurrent_size * _FLOAT
    return (steps + ends + memories) / MIB
