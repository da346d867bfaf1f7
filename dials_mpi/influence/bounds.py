"""What the paper's theory promises when the influence predictors are out of date (section 4.1.2).

All of it is worst case: over every policy and every history, with rewards as large as they can be.
"""


def value_difference(distance: float, reward_bound: float, horizon: int, step: int = 0) -> float:
    """Lemma 2: how much the values Q of two IALMs can differ at time `step`, for every policy, history and action.

    Args:
        distance: ξ, the largest Σ_u |I¹(u|l) - I²(u|l)| over histories.
        reward_bound: R̄, the largest |reward| of a step.
        horizon: H, steps per episode.
        step: t.
    """
    left = horizon - step
    return reward_bound * left * (left + 1) / 2 * distance


def trivial_difference(reward_bound: float, horizon: int, step: int = 0) -> float:
    """By how much values can differ at all if rewards lie between 0 and R̄: where Lemma 2 says no more than that, it
    says nothing.
    """
    return reward_bound * (horizon - step)


def share_optimal_policy(action_gap: float, difference: float) -> bool:
    """Theorem 1: whether two IALMs are sure to have the same optimal policy. If not, they may have it all the same.

    Args:
        action_gap: between the best and the second best action in one of them, the smallest over histories.
        difference: Δ, the most by which their values differ, for example from `value_difference`.
    """
    return action_gap > 2 * difference


def distance_to_promise(action_gap: float, reward_bound: float, horizon: int, step: int = 0) -> float:
    """ξ below which Lemma 2 and Theorem 1 together promise the same optimal policy for a given action gap."""
    return action_gap / (2 * value_difference(1.0, reward_bound, horizon, step))
