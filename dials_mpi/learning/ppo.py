"""Proximal policy optimisation (Schulman et al., 2017) of A learners in one batched update."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.networks import mean_per_agent
from dials_mpi.learning.optimiser import Adam
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Rollout
from dials_mpi.learning.settings import PPOSettings


class PPO:
    """The learner of a block of agents.

    Args:
        policy: updated in place.
        settings: the `ppo:` section of the configuration.
        horizon: steps per episode.
        mean: of rows [A, P] over all agents, [P] float32: what a policy that is shared learns from. None: every agent
            learns from its own gradient.
        absorbing_reward: of the domain.
    """

    def __init__(
        self,
        policy: Policy,
        settings: PPOSettings,
        horizon: int,
        mean: Callable[[np.ndarray], np.ndarray] | None = None,
        absorbing_reward: float | None = None,
    ):
        self.policy = policy
        self._mean = mean
        self.optimiser = Adam(policy.network)
        self._settings = settings
        self._horizon = horizon
        # Of the state that an agent is in for ever, where its episode was over: c (1 + γ + γ² + …).
        c = settings.reward_scale * (absorbing_reward or 0.0)
        self._absorbing_value = c / (1 - settings.discount) if c else 0.0

    def update(
        self, rollout: Rollout, first_step: int, progress: float, permutations: np.random.Generator
    ) -> dict[str, Tensor]:
        """One PPO update on one rollout.

        Steps of an agent whose episode was over before count for nothing, here and in the statistics; the one that ends
        it bootstraps from what the absorbing state is worth.

        Args:
            rollout: [A, T, B, …] of the policies as they are.
            first_step: steps that the episode had run when the rollout began.
            progress: share of the annealing that is done, 0 … 1.
            permutations: the stream that shuffles sequences into minibatches, shared by all agents.

        Returns:
            `PPO_STATISTICS` by name, each [A] float32: losses, entropy, approximate KL divergence, clip fraction and
            gradient norm averaged over the last epoch's minibatches, as many of their steps as count; explained
            variance of the values that acted; mean undiscounted return per `horizon` steps in the simulator that was
            learned from, all steps included.
        """
        s = self._settings
        remaining = 1.0 - progress
        learning_rate = s.learning_rate * (remaining if s.anneal else 1.0)
        clip = s.clip * (remaining if s.anneal_clip else 1.0)
        entropy_coefficient = s.entropy_coefficient * (remaining if s.anneal_entropy else 1.0)

        length = rollout.rewards.shape[1]
        starts = episode_starts(first_step, length, self._horizon)
        next_values, counts = rollout.next_values, None
        if rollout.over is not None:
            counts = ~rollout.over[:, :-1] | starts.to(rollout.over.device)[:, None]
            next_values = torch.where(rollout.over[:, 1:], self._absorbing_value, next_values)
        advantages = generalised_advantages(
            rollout.rewards * s.reward_scale, rollout.values, next_values, starts, s.discount, s.gae_lambda, counts
        )
        returns = advantages + rollout.values

        # Sequences of L steps side by side: [A, L, S, …] with S = T / L · B, the same order for all agents.
        def sequences(x: Tensor) -> Tensor:
            a, _, b = x.shape[:3]
            chunks = x.reshape(a, length // s.sequence_length, s.sequence_length, b, *x.shape[3:])
            return chunks.transpose(1, 2).flatten(2, 3)

        observations, actions, old_log_probabilities, old_values, advantages_, returns_ = map(
            sequences,
            (rollout.observations, rollout.actions, rollout.log_probabilities, rollout.values, advantages, returns),
        )
        available = None if rollout.available is None else sequences(rollout.available)
        counts_ = None if counts is None else sequences(counts)
        states = rollout.states.flatten(1, 2)
        keep = sequences(1.0 - starts.float()[None, :, None].expand(1, -1, rollout.rewards.shape[2]))[0]

        n_sequences = observations.shape[2]
        per_minibatch = min(n_sequences, s.minibatch_size // s.sequence_length)
        sums: dict[str, Tensor] = {}
        for epoch in range(s.epochs):
            order = torch.from_numpy(permutations.permutation(n_sequences))
            minibatches = order.split(per_minibatch) if per_minibatch < n_sequences else (slice(None),)
            for batch in minibatches:
                kept = keep[:, batch]
                counted = None if counts_ is None else counts_[:, :, batch]
                mean = functools.partial(mean_per_agent, counts=counted)
                outputs, values = self.policy.unroll(
                    observations[:, :, batch],
                    states[:, batch] if states.shape[-1] else None,
                    None if kept.all() else kept.to(self.policy.device),
                )
                distribution = self.policy.distribution(outputs, None if available is None else available[:, :, batch])
                log_ratio = distribution.log_probability(actions[:, :, batch]) - old_log_probabilities[:, :, batch]
                ratio = log_ratio.exp()
                advantage = normalise(advantages_[:, :, batch], counted)
                unclipped = ratio * advantage
                clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
                policy_loss = -mean(torch.min(unclipped, clipped))

                value_error = (values - returns_[:, :, batch]).square()
                if s.clip_values:
                    before = old_values[:, :, batch]
                    near = before + (values - before).clamp(-clip, clip)
                    value_error = torch.max(value_error, (near - returns_[:, :, batch]).square())
                value_loss = 0.5 * mean(value_error)

                entropy = mean(distribution.entropy())

                losses = policy_loss + s.value_coefficient * value_loss - entropy_coefficient * entropy
                self.policy.network.backward(losses.sum())  # a sum, so that agents do not share a learning rate
                if self._mean:
                    self.policy.network.share_gradients(self._mean)
                gradient_norm = self.optimiser.step(learning_rate, s.max_gradient_norm)

                if epoch == s.epochs - 1:
                    with torch.no_grad():
                        last = {
                            "policy_loss": policy_loss,
                            "value_loss": value_loss,
                            "entropy": entropy,
                            "approx_kl": mean(ratio - 1 - log_ratio),
                            "clip_fraction": mean(((ratio - 1).abs() > clip).float()),
                            "gradient_norm": gradient_norm,
                        }
                        share = len(minibatches) if counts is None else _number(counts).clamp(min=1) / _number(counted)
                        for name, value in last.items():
                            sums[name] = sums.get(name, 0) + value.detach() / share
        unexplained = variance_per_agent(returns - rollout.values, counts)
        explained = 1 - unexplained / variance_per_agent(returns, counts).clamp(min=1e-8)
        sums["explained_variance"] = explained
        sums["training_return"] = mean_per_agent(rollout.rewards) * self._horizon
        return sums


def episode_starts(first_step: int, length: int, horizon: int) -> Tensor:
    """[T] bool: steps of a rollout before which an episode began, its first step included if one begins there."""
    return (first_step + torch.arange(length)) % horizon == 0


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    starts: Tensor,
    discount: float,
    gae_lambda: float,
    counts: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016), [A, T, B].

    At the horizon an episode is cut off, not over: δ_t bootstraps from V(h_{t+1}) there as everywhere, and only the sum
    over later δ stops.

    Args:
        rewards, values, next_values: [A, T, B]; `next_values` as in `Rollout`.
        starts: [T] bool, as `episode_starts`.
        counts: [A, T, B] bool, false for steps after the agent's episode was over, whose advantage is 0; None: there
            are none.
    """
    deltas = rewards + discount * next_values - values
    if counts is not None:
        deltas = torch.where(counts, deltas, 0.0)
    advantages = torch.empty_like(deltas)
    ends = [*starts[1:].tolist(), True]
    running = torch.zeros_like(deltas[:, 0])
    for t in range(len(ends) - 1, -1, -1):
        running = deltas[:, t] if ends[t] else torch.add(deltas[:, t], running, alpha=discount * gae_lambda)
        advantages[:, t] = running
    return advantages


def normalise(advantages: Tensor, counts: Tensor | None = None) -> Tensor:
    """Zero mean and unit variance for each agent of [A, L, S], of those that count."""
    mean, deviation = mean_per_agent(advantages, counts), variance_per_agent(advantages, counts).sqrt()
    return (advantages - mean[:, None, None]) / (deviation[:, None, None] + 1e-8)


def variance_per_agent(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """[A] variances of [A, L, S], of these values and not of what they are a sample of: one value has variance 0."""
    return mean_per_agent((x - mean_per_agent(x, counts)[:, None, None]).square(), counts)


def _number(counts: Tensor) -> Tensor:
    """[A] of those that count."""
    return counts.flatten(1).sum(dim=1)
