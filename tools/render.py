#!/usr/bin/env python3
"""Pictures of an episode: a PNG of one step, or a GIF of many. No display needed.

    python tools/render.py runs/NAME --out episode.gif                      the run's policies on the global simulator
    python tools/render.py runs/NAME --simulator ls --agent 3 --out 3.gif   agent 3 in its local simulator
    python tools/render.py --env traffic --agents 25 --controller actuated --at 120 --out grid.png
    python tools/render.py --env warehouse --controller random --out robots.gif

The local simulator is fed with the influence sources of an episode on the global one, played first with the same
policies, and its agent takes the actions it took there: what differs between the two pictures is the abstraction.
"""

import argparse
import os
import sys
from pathlib import Path

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.animation import PillowWriter  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dials_mpi.config import load_yaml, resolve  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.simulators.interface import Domain  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import streams  # noqa: E402


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, nargs="?", help="run directory: its configuration, and its policies")
    p.add_argument("--env", help="domain, without a run")
    p.add_argument("--agents", type=int, default=4, help="number of agents, without a run (4)")
    p.add_argument("--controller", help="random or a hand-coded one, instead of the run's policies")
    p.add_argument("--simulator", choices=("gs", "ls"), default="gs", help="global or local (gs)")
    p.add_argument("--agent", type=int, default=0, help="whose local simulator (0)")
    p.add_argument("--seed", type=int, default=0, help="of the episode (0)")
    p.add_argument("--first", type=int, default=0, help="first step of a GIF (0)")
    p.add_argument("--steps", type=int, default=120, help="steps of a GIF (120)")
    p.add_argument("--at", type=int, help="step of a PNG (the last of the GIF)")
    p.add_argument("--fps", type=int, default=8, help="frames per second of a GIF (8)")
    p.add_argument("--out", type=Path, required=True, help="file to write, .png or .gif")
    return p


def main() -> int:
    arguments = parser().parse_args()
    try:
        render(arguments)
    except (UserError, NotImplementedError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 2
    return 0


def render(arguments: argparse.Namespace) -> None:
    domain, act = _players(arguments)
    kind = arguments.out.suffix.lower()
    if kind not in (".png", ".gif"):
        raise UserError(f"--out: {arguments.out}: its name must end with .png or .gif")
    if not arguments.out.resolve().parent.is_dir():
        raise UserError(f"--out: the folder {arguments.out.resolve().parent} does not exist")
    last = arguments.at if arguments.at is not None and kind == ".png" else arguments.first + arguments.steps
    last = min(last, domain.horizon)
    shown = {last} if kind == ".png" else set(range(arguments.first, last + 1))
    if arguments.first < 0 or last < 0 or not shown:
        raise UserError(f"an episode has the steps 0 to {domain.horizon}")

    wide = 6.4 if arguments.simulator == "ls" or domain.n_agents <= 9 else 12.8
    figure, axes = plt.subplots(figsize=(wide, 0.875 * wide), dpi=100, layout="constrained")
    writer = PillowWriter(fps=arguments.fps)
    if kind == ".gif":
        writer.setup(figure, arguments.out)

    def show(simulator, step):
        if step in shown:
            for artist in [*axes.patches, *axes.lines, *axes.texts, *axes.collections]:
                artist.remove()
            domain.draw(simulator, axes)
            if kind == ".gif":
                writer.grab_frame()

    play = _play_local if arguments.simulator == "ls" else _play_global
    play(arguments, domain, act, last, show)
    if kind == ".gif":
        writer.finish()
    else:
        figure.savefig(arguments.out)
    print(arguments.out)


def _players(arguments: argparse.Namespace):
    """The domain, and observations [N, 1, O] → actions [N, 1]; None where the GS has a controller."""
    if (arguments.run is None) == (arguments.env is None):
        raise UserError("give a run directory or --env, and not both")
    if arguments.run:
        layers = [(str(arguments.run / "config.yaml"), load_yaml(arguments.run / "config.yaml"))]
    else:
        layers = [("--env", {"env": arguments.env, "agents": arguments.agents})]
    c = resolve(layers, arguments.agents)
    domain = make_domain(c.env, c.agents, c.domain)
    if not 0 <= arguments.agent < c.agents:
        raise UserError(f"--agent: {arguments.agent} is none of 0 to {c.agents - 1}")
    known = ("random", *domain.controllers)
    if arguments.controller and arguments.controller not in known:
        raise UserError(f"--controller: {arguments.controller!r} is none of {', '.join(known)}")
    if arguments.controller == "random" or (arguments.controller is None and arguments.run is None):
        generator = np.random.default_rng(arguments.seed)
        return domain, lambda _: generator.integers(domain.n_actions, size=(c.agents, 1))
    if arguments.controller:
        return domain, None

    from dials_mpi.algorithms.evaluation import load_player

    return domain, load_player(arguments.run, c, domain, 1, arguments.seed).act


def _play_global(arguments, domain: Domain, act, last: int, show, record=None) -> None:
    with domain.global_simulator(1, None if act else arguments.controller) as simulator:
        simulator.seed(streams(arguments.seed, "evaluate/simulator", [0]))
        observations = simulator.reset()
        show(simulator, 0)
        for step in tqdm(range(1, last + 1), "episode", leave=False):
            actions = act(observations) if act else None
            observations, _ = simulator.step(actions)
            if record is not None:
                record.append((actions, simulator.influence_sources().copy()))
            show(simulator, step)


def _play_local(arguments, domain: Domain, act, last: int, show) -> None:
    if act is None:
        raise UserError("--simulator ls needs the agent's actions; take a run's policies or --controller random")
    if domain.influence is None:
        raise UserError(f"domain {domain.name} has no local simulators: it declares no influence")
    record = []
    _play_global(arguments, domain, act, last, lambda simulator, step: None, record)
    mine = slice(arguments.agent, arguments.agent + 1)
    with domain.local_simulator([arguments.agent], 1) as simulator:
        simulator.seed(streams(arguments.seed, "evaluate/simulator", [1]))
        simulator.reset()
        show(simulator, 0)
        for step, (actions, sources) in enumerate(record, 1):
            simulator.step(actions[mine], sources[mine])
            show(simulator, step)


if __name__ == "__main__":
    sys.exit(main())
