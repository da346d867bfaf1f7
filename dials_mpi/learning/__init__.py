"""π: agent-stacked networks, rollouts and PPO."""
