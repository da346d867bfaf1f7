"""Who is near whom: the agents that are at most so many hops away in a graph."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Graph = Mapping[int, Iterable[int]] | Sequence[Iterable[int]]
"""`graph[i]` iterates over the agents that i is joined with: a networkx graph, or a list of lists."""


def neighbourhoods(graph: Graph | None, radius: int | None, n_agents: int) -> np.ndarray:
    """[N, K] int64: every agent, after it the others at most `radius` hops away by ascending id, then -1.

    Args:
        graph: undirected, of the agents 0 … N-1; not looked at for a radius of 0 or None.
        radius: hops. 0: every agent alone; N or more: all that can be reached; None: all N, connected or not.
    """
    everybody = range(n_agents)
    near = [set(everybody) if radius is None else _reached(graph, agent, radius) for agent in everybody]
    ids = np.full((n_agents, max(map(len, near))), -1, np.int64)
    for agent in everybody:
        ids[agent, : len(near[agent])] = [agent, *sorted(near[agent] - {agent})]
    return ids


def _reached(graph: Graph | None, agent: int, radius: int) -> set[int]:
    reached = front = {agent}
    for _ in range(radius):
        front = {neighbour for place in front for neighbour in graph[place]} - reached
        if not front:
            break
        reached = reached | front
    return reached
