"""One update of DPPO as the specification writes it, in float64: what the product's is compared with.

Agents stand in a line. Loops over agents, episodes and steps; it shares nothing with the product but the settings.
"""

import numpy as np
import torch
from reference_ppo import Agent


def near(agent: int, n_agents: int, radius: int | None) -> list[int]:
    """The agent, then the others within the radius by id."""
    others = [j for j in range(n_agents) if j != agent and (radius is None or abs(j - agent) <= radius)]
    return [agent, *others]


def seen(observations, agent: int, radius: int | None):
    """[E, T + 1, K · O] of [N, E, T + 1, O], zeros where nobody is."""
    n_agents = len(observations)
    places = max(len(near(i, n_agents, radius)) for i in range(n_agents))
    parts = [observations[j] for j in near(agent, n_agents, radius)]
    return torch.cat([*parts, *[torch.zeros_like(parts[0])] * (places - len(parts))], dim=-1)


def own_advantages(rewards, values, terminated, s, absorbing_reward):
    """[E, T], of one agent; 0 when its episode is over."""
    result = torch.zeros_like(rewards)
    for e in range(len(rewards)):
        for t in reversed(range(rewards.shape[1])):
            if t and terminated[e, t - 1]:
                continue
            follows = absorbing_reward * s.reward_scale / (1 - s.discount) if terminated[e, t] else values[e, t + 1]
            delta = s.reward_scale * rewards[e, t] + s.discount * follows - values[e, t]
            last = terminated[e, t] or t + 1 == rewards.shape[1]
            result[e, t] = delta + (0 if last else s.discount * s.gae_lambda * result[e, t + 1])
    return result


def normalised(advantages):
    return (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)


def update(policies: list[Agent], critics: list[Agent], data: dict, s, absorbing_reward, progress, permutations):
    """Learns from episodes; returns the statistics of each agent by name.

    Args:
        policies, critics: of the N agents.
        data: arrays by the names of `Transitions`, [N, E, T, …].
        s: `DPPOSettings`.
    """
    n_agents = len(policies)
    observations = torch.tensor(data["observations"], dtype=torch.float64)
    rewards = torch.tensor(data["rewards"], dtype=torch.float64)
    actions = torch.tensor(data["actions"].astype(np.int64))
    remaining = 1 - progress if s.anneal else 1
    by_critic = [seen(observations, i, s.critic_radius) for i in range(n_agents)]
    by_policy = [seen(observations, i, s.policy_radius)[:, :-1] for i in range(n_agents)]
    values = [critics[i].network(by_critic[i], None)[0][..., 0].detach() for i in range(n_agents)]
    own = [own_advantages(rewards[i], values[i], data["terminated"][i], s, absorbing_reward) for i in range(n_agents)]
    over = data["terminated"].all(axis=0)
    places = [(e, t) for e in range(over.shape[0]) for t in range(over.shape[1]) if not (t and over[e, t - 1])]
    order = [np.array_split(permutations.permutation(len(places)), max(1, round(len(places) / s.minibatch_size)))]
    order += [np.array_split(permutations.permutation(len(places)), len(order[0])) for _ in range(s.epochs - 1)]
    statistics = []
    for i in range(n_agents):
        whole = sum(own[j] for j in near(i, n_agents, s.critic_radius))
        e, t = torch.tensor(places).T
        alive = torch.tensor([not (b and data["terminated"][i][a, b - 1]) for a, b in places])
        advantages = torch.zeros(len(places), dtype=torch.float64)
        advantages[alive] = normalised(whole[e, t][alive])
        targets = (own[i] + values[i][:, :-1])[e, t]
        x_policy, x_critic, a = by_policy[i][e, t], by_critic[i][:, :-1][e, t], actions[i][e, t]

        def log_probability(batch, i=i, x=x_policy, a=a):
            distribution = torch.log_softmax(policies[i].network(x[batch], None)[0], -1)
            return distribution, distribution.gather(-1, a[batch, None])[:, 0]

        before = log_probability(torch.arange(len(places)))[1].detach()
        learning, epochs, found = True, 0, None
        for minibatches in order:
            facts = []
            for batch in map(torch.from_numpy, minibatches):
                batch = batch[alive[batch]]
                if learning:
                    distribution, chosen = log_probability(batch)
                    log_ratio = chosen - before[batch]
                    ratio = log_ratio.exp()
                    gain = torch.minimum(
                        ratio * advantages[batch], ratio.clamp(1 - s.clip, 1 + s.clip) * advantages[batch]
                    ).mean()
                    entropy = -(distribution.exp() * distribution).sum(-1).mean()
                    norm = policies[i].descend(
                        -gain - s.entropy_coefficient * entropy, s.policy_learning_rate * remaining, s.max_gradient_norm
                    )
                    facts.append([-gain.item(), entropy.item(), (ratio - 1 - log_ratio).mean().item(), norm])
                else:
                    policies[i].wait()
                error = (critics[i].network(x_critic[batch], None)[0][:, 0] - targets[batch]) ** 2
                critics[i].descend(0.5 * error.mean(), s.critic_learning_rate * remaining, s.max_gradient_norm)
            if learning:
                epochs += 1
                found = np.mean(facts, axis=0)
                learning = s.target_kl is None or found[2] <= 1.5 * s.target_kl
        unexplained = own[i][e, t][alive].var(unbiased=False) / targets[alive].var(unbiased=False)
        names = ("policy_loss", "entropy", "approx_kl", "gradient_norm")
        statistics.append(
            {
                **dict(zip(names, found, strict=True)),
                "explained_variance": float(1 - unexplained),
                "epochs": epochs,
                "training_return": float(rewards[i].sum(-1).mean()),
            }
        )
    return statistics
