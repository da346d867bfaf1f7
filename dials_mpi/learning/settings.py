"""The sections of a configuration that say what agents learn with. Imports no torch, so that rank 0 can ask early."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dials_mpi.errors import UserError
from dials_mpi.settings import Settings

PPO_STATISTICS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "gradient_norm",
    "explained_variance",
    "training_return",
)
"""What an update of PPO says of itself."""


DPPO_STATISTICS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "gradient_norm",
    "explained_variance",
    "epochs",
    "training_return",
)
"""What an update of DPPO says of itself."""


class NetworkSettings(Settings):
    recurrent_size: int = Field(0, ge=0, le=4096, description="width of the GRU; 0: feed-forward, no memory")
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (128, 128), description="widths of the hidden layers behind the GRU or input"
    )
    activation: Literal["tanh", "relu"] = Field("tanh", description="after each hidden layer")


class PolicySettings(NetworkSettings):
    initial_logits: tuple[float, ...] | None = Field(
        None, description="of the actions, one each, before anything is learned; null: all alike"
    )
    initial_log_deviation: float = Field(
        -0.5,
        ge=-20,
        le=20,
        description="logarithm of the standard deviation of continuous actions, before anything is learned",
    )
    gradient_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of matrix products in the backward pass; bfloat16 is faster for wide GRUs (published: 256) on "
        "processors that compute with it, and slow on others",
    )

    shared: bool = Field(
        False, description="one policy for all agents: each learns from the mean of all agents' gradients"
    )

    def check(self, domain) -> None:
        if self.shared and len(set(domain.kinds or ())) > 1:
            raise UserError(
                f"policy.shared: agents of domain {domain.name} are of different kinds and cannot share a policy; "
                "leave it out"
            )
        if self.initial_logits is not None and domain.action_size:
            raise UserError(
                f"policy.initial_logits: actions of domain {domain.name} are continuous; leave it out, or set "
                "policy.initial_log_deviation"
            )
        if self.initial_logits is not None and len(self.initial_logits) != domain.n_actions:
            raise UserError(
                f"policy.initial_logits: {len(self.initial_logits)} numbers for {domain.n_actions} actions; give one "
                "for each action"
            )


class FeedForwardPolicySettings(PolicySettings):
    recurrent_size: Literal[0] = Field(0, description="this method's policies have no memory")


_ANNEAL_STEPS = Field(
    None, ge=1, description="steps per agent until they are 0; null: the run's steps, as when it was made"
)


class AnnealedSettings(Settings):
    """Of learners whose learning rates fall to 0: `anneal`, whether they do, and `anneal_steps`, until when."""

    settled: ClassVar[tuple[str, ...]] = ("anneal_steps",)

    def annealed(self, step: int) -> float:
        """Share of the annealing that is done after that many steps per agent, 0 … 1."""
        return min(1.0, step / self.anneal_steps)

    def remark(self, section: str, steps: int) -> str | None:
        if not self.anneal or steps <= self.anneal_steps:
            return None
        return (
            f"from step {self.anneal_steps:,} on, {section}.anneal_steps since the run was made, the learning rate is "
            "0 and nothing more is learned"
        )


class PPOSettings(AnnealedSettings):
    copies: int = Field(8, ge=1, le=100_000, description="copies of the simulator per agent")
    rollout_length: int = Field(100, ge=1, le=1_000_000, description="steps per copy between two updates")
    sequence_length: int = Field(100, ge=1, description="steps of backpropagation through time; 1 without memory")
    minibatch_size: int = Field(800, ge=2, description="samples per agent and gradient step, at most a rollout")
    epochs: int = Field(4, ge=1, description="passes over a rollout")
    learning_rate: float = Field(2e-3, gt=0, le=1)
    discount: float = Field(0.99, ge=0, le=1, description="γ")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ")
    clip: float = Field(0.2, gt=0, lt=1, description="ε: how far the probability ratio counts")
    clip_values: bool = Field(False, description="clip the value's change, too")
    value_coefficient: float = Field(0.5, ge=0)
    entropy_coefficient: float = Field(0.01, ge=0)
    max_gradient_norm: float | None = Field(0.5, gt=0, description="per agent; null: no limit")
    reward_scale: float = Field(1.0, gt=0, description="factor on rewards in learning; returns are reported unscaled")
    anneal: bool = Field(True, description="learning rate falls linearly to 0")
    anneal_clip: bool = Field(False, description="clip falls linearly to 0")
    anneal_entropy: bool = Field(False, description="entropy_coefficient falls linearly to 0")
    anneal_steps: int | None = _ANNEAL_STEPS

    def check(self, domain) -> None:
        if self.discount == 1 and domain.absorbing_reward:
            raise UserError(
                f"ppo.discount: 1 has no value for an agent of domain {domain.name} whose episode was over early, "
                f"{domain.absorbing_reward:g} at every step for ever; take less than 1"
            )

    @property
    def rollout_steps(self) -> int:
        """Steps per agent in one rollout, T · B."""
        return self.rollout_length * self.copies

    @model_validator(mode="after")
    def _whole_sequences(self):
        if self.rollout_length % self.sequence_length:
            raise ValueError(f"sequence_length {self.sequence_length} must divide rollout_length {self.rollout_length}")
        if self.minibatch_size % self.sequence_length:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} must be a multiple of sequence_length {self.sequence_length}"
            )
        if self.rollout_steps > self.minibatch_size and self.rollout_steps % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} must divide rollout_length times copies, {self.rollout_steps}"
            )
        return self


class DPPOSettings(AnnealedSettings):
    episodes: int = Field(2, ge=1, le=100_000, description="played side by side, that an update learns from")
    policy_radius: int = Field(1, ge=0, description="hops that an agent sees when it acts")
    critic_radius: int | None = Field(
        2, ge=0, description="k, hops that its critic sees and whose advantages count; null: everybody, as in CPPO"
    )
    epochs: int = Field(5, ge=1, description="passes over the episodes, at most")
    minibatch_size: int = Field(300, ge=2, description="joint steps per gradient step, about")
    policy_learning_rate: float = Field(3e-3, gt=0, le=1)
    critic_learning_rate: float = Field(3e-3, gt=0, le=1)
    discount: float = Field(0.95, ge=0, lt=1, description="γ")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ")
    clip: float = Field(0.2, gt=0, lt=1, description="ε: how far the probability ratio counts")
    target_kl: float | None = Field(
        0.02,
        gt=0,
        description="a policy whose KL divergence is over 1.5 times that waits for the next update; null: no limit",
    )
    entropy_coefficient: float = Field(0.0, ge=0)
    max_gradient_norm: float | None = Field(0.5, gt=0, description="per agent and network; null: no limit")
    reward_scale: float = Field(1.0, gt=0, description="factor on rewards in learning; returns are reported unscaled")
    anneal: bool = Field(True, description="learning rates fall linearly to 0")
    anneal_steps: int | None = _ANNEAL_STEPS
