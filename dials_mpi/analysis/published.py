"""Figures published with DIALS (Suau et al., NeurIPS 2022), to lay beside one's own.

Returns are means over 10 seeds (5 for 100 agents) after 4M steps per agent, read off the paper's figure 3; the AIPs of
DIALS were retrained every 1M steps in traffic and trained once in the warehouse. Runtimes are from its appendix G.
"""

STEPS = 4_000_000

FINAL_RETURN = {
    "traffic": {
        "gs": {4: 200.5, 25: 214.0, 49: 212.0, 100: 190.0},
        "dials": {4: 214.0, 25: 214.5, 49: 212.5, 100: 208.0},
        "untrained-dials": {4: 172.0, 25: 163.0, 49: 158.5, 100: 149.0},
    },
    "warehouse": {
        "gs": {4: 8.1, 25: 11.4, 49: 10.2, 100: 9.5},
        "dials": {4: 13.25, 25: 13.2, 49: 13.15, 100: 13.2},
        "untrained-dials": {4: 4.3, 25: 3.75, 49: 3.4, 100: 3.2},
    },
}
"""[domain][mode][agents]; the GS with 100 agents had a week, not 4M steps."""

_SECONDS_PER_100K_STEPS = {
    "traffic": {
        "gs": {4: 651.76, 25: 4226.5, 49: 9487.3, 100: 23495.7},
        "dials": {4: 133.68, 25: 173.88, 49: 242.67, 100: 333.13},
    },
    "warehouse": {
        "gs": {4: 1335.46, 25: 8733.8, 49: 18736.6, 100: 42161.4},
        "dials": {4: 192.04, 25: 230.23, 49: 287.42, 100: 499.66},
    },
}
_SECONDS_PER_ROUND = {
    "traffic": {4: 59.60, 25: 336.73, 49: 773.73, 100: 2014.49},
    "warehouse": {4: 118.66, 25: 640.07, 49: 1367.52, 100: 4090.42},
}
"""Collecting the datasets and training the AIPs on them, once."""


def runtime_hours(domain: str, mode: str, agents: int, steps: int, interval: int | None) -> float | None:
    """What training for `steps` per agent took there, with AIPs retrained every `interval` steps; None if unknown.

    Untrained DIALS is DIALS without its rounds.
    """
    table = _SECONDS_PER_100K_STEPS.get(domain, {})
    per_100k = table.get({"untrained-dials": "dials"}.get(mode, mode), {}).get(agents)
    if per_100k is None:
        return None
    rounds = -(-steps // interval) if mode == "dials" and interval else 0
    return (steps / 100_000 * per_100k + rounds * _SECONDS_PER_ROUND[domain][agents]) / 3600
