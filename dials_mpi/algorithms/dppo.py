"""DPPO: decentralised PPO whose critics see the neighbourhood; DMPO without its model, specified with it.

    for each iteration
        play episodes with the joint policy on the GS                                             rank 0
        V_j(s_{N_j^k}) and δ_j = r_j + γ V_j' - V_j at every step; A_j = Σ_l (γλ)^l δ_j^{t+l}     owners, halo of states
        Ã_i = Σ_{j ∈ N_i^k} A_j                                                                   owners, halo of A
        for some epochs, while the mean KL divergence is below 1.5 of its target
            π_i(a_i | s_{N_i}) by PPO's clipped objective with Ã_i; V_i towards A_i + V_i         owners

Neighbours tell each other what they observe and their advantages, and nothing else; with `policy.shared` their mean
gradients as well. CPPO is a setting of it: `dppo.critic_radius: null`, critics that see everybody.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.config import Configuration
from dials_mpi.learning.distributions import Categorical
from dials_mpi.learning.neighbourhood_policy import neighbourhood_critic, neighbourhood_policy, side_by_side
from dials_mpi.learning.networks import StackedNetwork, mean_per_agent
from dials_mpi.learning.optimiser import Adam
from dials_mpi.learning.ppo import episode_starts, generalised_advantages, normalise, variance_per_agent
from dials_mpi.learning.transitions import Transitions, collect_transitions
from dials_mpi.parallel.neighbours import Neighbours
from dials_mpi.simulators.interface import Domain
from dials_mpi.streams import stream
from dials_mpi.training.session import Session

_STOP_AT = 1.5
"""Times the target of the KL divergence."""


def train(session: Session) -> None:
    """Runs the method on this rank, in step with all others."""
    c, clock = session.configuration, session.clock
    with clock("start"):
        actors_see, critics_see = session.neighbours(c.dppo.policy_radius), session.neighbours(c.dppo.critic_radius)
        learner = Learner(c, session.domain, session.agents, actors_see, critics_see, session.mean, session.device)
        session.publish("policy", learner.policy.parameters, learner.policy.shapes)
        session.checkpoints.keep("critic", learner.critic.parameters)
        session.checkpoints.keep_optimiser(learner.policy_optimiser, "policy_optimiser")
        session.checkpoints.keep_optimiser(learner.critic_optimiser, "critic_optimiser")
    session.begin()
    for segment in session.segments():
        for number, steps in session.units(segment):
            for step in steps:
                if step > segment.start:  # `end_segment` has gathered those that a segment starts with
                    session.gather()
                data = play(session, step)
                if session.agents:
                    with clock("ppo_update"):
                        permutations = stream(c.seed, "train/minibatches", round_=number)
                        session.statistics.add(learner.update(data, c.dppo.annealed(step), permutations))
                session.tick(step + steps.step)
        session.end_segment(segment)


def play(session: Session, step: int) -> Transitions:
    """Episodes of the joint policy on the GS; every owner receives the rows of its agents."""
    c = session.configuration
    data = Transitions.empty(len(session.agents), c.dppo.episodes, session.domain)
    with session.evaluator.joint_episodes(step, "train") as episodes:
        for members, mine in session.evaluator.turns([range(c.dppo.episodes)]):
            seen = {}
            if mine:
                with session.clock("simulate"):
                    seen = collect_transitions(episodes, *mine).arrays()
            session.exchange.deal_columns([(seen.get(name), into) for name, into in data.arrays().items()], members)
    return data


class Learner:
    """Policies and critics of a block of agents.

    Args:
        configuration, domain: of the run.
        agents: ids of the block.
        actors_see, critics_see: halos of the radii that policies and critics see.
        mean: as of `PPO`.
        device: where it computes.
    """

    def __init__(
        self,
        configuration: Configuration,
        domain: Domain,
        agents: Sequence[int],
        actors_see: Neighbours,
        critics_see: Neighbours,
        mean: Callable[[np.ndarray], np.ndarray] | None = None,
        device: str = "cpu",
    ):
        c = configuration
        self._settings = s = c.dppo
        self._absorbing_value = s.reward_scale * (domain.absorbing_reward or 0.0) / (1 - s.discount)
        self._actors_see = actors_see
        self._critics_see = critics_see
        self._mean = mean
        self._device = device
        size = domain.observation_size
        inputs = actors_see.ids.shape[1] * size
        self.policy = neighbourhood_policy(agents, inputs, domain.n_actions, c.policy, c.seed, device)
        self.critic = neighbourhood_critic(agents, critics_see.ids.shape[1] * size, c.policy, c.seed, device)
        self.policy_optimiser = Adam(self.policy)
        self.critic_optimiser = Adam(self.critic)

    def update(self, data: Transitions, progress: float, permutations: np.random.Generator) -> dict[str, Tensor]:
        """Learns from episodes that the policies as they are have played.

        Args:
            data: of this block.
            progress: share of the annealing that is done, 0 … 1.
            permutations: the stream that shuffles steps into minibatches, shared by all agents.

        Returns:
            `DPPO_STATISTICS` by name, each [A] float32; losses, entropy, KL divergence and gradient norm are means over
            the minibatches of the last epoch that the policy learned in.
        """
        s = self._settings
        remaining = 1.0 - progress if s.anneal else 1.0
        a, episodes, length = data.actions.shape
        observations = data.observations.reshape(a, -1, data.observations.shape[-1])  # [A, E (T + 1), O]
        seen = self._here(side_by_side(self._critics_see.gather(observations)))
        values = self.critic.step(seen, None)[0][..., 0].view(a, episodes, length + 1)
        over, counts = self._here(data.terminated), self._here(~_before(data.terminated))
        # V of what the last observation shows follows the horizon, the absorbing reward for ever an early end.
        following = torch.where(over, self._absorbing_value, values[..., 1:])
        rewards = self._here(data.rewards)
        by_time = (x.transpose(1, 2) for x in (rewards * s.reward_scale, values[..., :-1], following))
        starts = episode_starts(0, length, length)
        advantages = generalised_advantages(*by_time, starts, s.discount, s.gae_lambda, counts.transpose(1, 2))
        advantages = advantages.transpose(1, 2).contiguous()
        whole = torch.zeros_like(advantages)
        for of_neighbour in self._here(self._critics_see.gather(advantages.cpu().numpy())).unbind(1):
            whole += of_neighbour

        # Steps at which somebody's episode was going on, side by side: [A, 1, M, …], the same for all agents.
        going_on = self._here(~_before(data.all_over[:1])[0]).flatten().nonzero().ravel()

        def at_work(x: Tensor) -> Tensor:
            return x.flatten(1, 2)[:, None, going_on]

        by_policy = self._here(side_by_side(self._actors_see.gather(observations)))
        steps = (a, episodes, length + 1, -1)
        by_policy, seen = (at_work(x.view(steps)[:, :, :-1]) for x in (by_policy, seen))
        actions, targets = at_work(self._here(data.actions).long()), at_work(advantages + values[..., :-1])
        counts = at_work(counts)
        normalised = normalise(at_work(whole), counts)
        with torch.no_grad():
            before = Categorical(self.policy.unroll(by_policy, None)).log_probability(actions)

        learning = torch.ones(a, dtype=torch.bool, device=self._device)
        found: dict[str, Tensor] = {}
        epochs = torch.zeros(a, device=self._device)
        count = max(1, round(len(going_on) / s.minibatch_size))
        for _ in range(s.epochs):
            sums: dict[str, Tensor] = {}
            for batch in np.array_split(permutations.permutation(len(going_on)), count):
                mean = functools.partial(mean_per_agent, counts=counts[:, :, batch])
                distribution = Categorical(self.policy.unroll(by_policy[:, :, batch], None))
                log_ratio = distribution.log_probability(actions[:, :, batch]) - before[:, :, batch]
                ratio, advantage = log_ratio.exp(), normalised[:, :, batch]
                policy_loss = -mean(torch.min(ratio * advantage, ratio.clamp(1 - s.clip, 1 + s.clip) * advantage))
                entropy = mean(distribution.entropy())
                self.policy.backward((policy_loss - s.entropy_coefficient * entropy).sum())
                norm = self._step(self.policy_optimiser, self.policy, s.policy_learning_rate * remaining, learning)

                error = (self.critic.unroll(seen[:, :, batch], None)[..., 0] - targets[:, :, batch]).square()
                value_loss = 0.5 * mean(error)
                self.critic.backward(value_loss.sum())
                self._step(self.critic_optimiser, self.critic, s.critic_learning_rate * remaining)

                with torch.no_grad():
                    kl = mean(ratio - 1 - log_ratio)
                values_ = (policy_loss, value_loss, entropy, kl, norm)
                names = ("policy_loss", "value_loss", "entropy", "approx_kl", "gradient_norm")
                for name, value in zip(names, values_, strict=True):
                    sums[name] = sums.get(name, 0) + value.detach() / count
            for name, value in sums.items():
                found[name] = torch.where(learning, value, found[name]) if name in found else value
            epochs += learning
            if s.target_kl is not None:
                learning = learning & (self._over_agents(sums["approx_kl"]) <= _STOP_AT * s.target_kl)
        unexplained = variance_per_agent(at_work(advantages), counts)
        return {
            **found,
            "explained_variance": 1 - unexplained / variance_per_agent(targets, counts).clamp(min=1e-8),
            "epochs": epochs,
            "training_return": mean_per_agent(rewards) * length,
        }

    def _here(self, x: np.ndarray | Tensor) -> Tensor:
        """Where this block computes."""
        return torch.as_tensor(x, device=self._device)

    def _step(
        self, optimiser: Adam, network: StackedNetwork, learning_rate: float, learning: Tensor | None = None
    ) -> Tensor:
        """A step of the optimiser, of a shared policy along the mean gradient.

        Agents that do not learn take none, though Adam's clock goes on for them as well: it is the block's.
        """
        if self._mean:
            network.share_gradients(self._mean)
        kept = network.parameters, optimiser.first_moment, optimiser.second_moment
        rests = None if learning is None or learning.all() else (~learning).nonzero().ravel()
        rows = [] if rests is None else [x[rests].clone() for x in kept]
        norms = optimiser.step(learning_rate, self._settings.max_gradient_norm)
        for x, row in zip(kept, rows, strict=False):
            x[rests] = row
        return norms

    def _over_agents(self, kl: Tensor) -> Tensor:
        """[A] what decides whether an agent goes on learning: of a shared policy the mean of all agents."""
        if not self._mean:
            return kl
        return self._here(self._mean(kl.cpu().numpy()[:, None])).expand(len(kl))


def _before(over: np.ndarray) -> np.ndarray:
    """[…, T] whether it was over before each step."""
    before = np.zeros_like(over)
    before[..., 1:] = over[..., :-1]
    return before
