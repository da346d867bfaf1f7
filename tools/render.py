#!/usr/bin/env python3
"""Pictures of an episode: a PNG of one step, or a GIF of many. No display needed.

    python tools/render.py runs/NAME --out episode.gif                      the run's policies on the global simulator
    python tools/render.py runs/NAME --simulator ls --agent 3 --out 3.gif   agent 3 in its local simulator
    python tools/render.py --env traffic --agents 25 --controller actuated --at 120 --out grid.png
    python tools/render.py --env warehouse --controller random --out robots.gif

The local simulator is fed with the influence sources of an episode on the global one, played first. A run's policy
acts on what it sees in the local simulator; of a hand-coded controller the actions of the global episode are repeated
(in the warehouse the items of the two differ, so such a robot walks to items that are not there).
"""

import argparse
import os
import sys
from pathlib import Path

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dials_mpi.cli import at_least  # noqa: E402
from dials_mpi.config import load_yaml, resolve, stored_layer  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.extras import extra  # noqa: E402
from dials_mpi.simulators.actions import available_actions, random_actions  # noqa: E402
from dials_mpi.simulators.interface import Domain  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import streams  # noqa: E402


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, nargs="?", help="run directory: its configuration, and its policies")
    p.add_argument("--env", help="domain, without a run; of a run only where it is your own, package.module:ClassName")
    p.add_argument("--agents", type=at_least(1), help="number of agents, without a run (4)")
    p.add_argument("--controller", help="random or a hand-coded one, instead of the run's policies")
    p.add_argument("--simulator", choices=("gs", "ls"), default="gs", help="global or local (gs)")
    p.add_argument("--agent", type=at_least(0), default=0, help="whose local simulator (0)")
    p.add_argument("--seed", type=at_least(0), default=0, help="of the episode (0)")
    p.add_argument("--first", type=at_least(0), help="first step of a GIF (0)")
    p.add_argument("--steps", type=at_least(1), help="steps of a GIF (120, or what is left of the episode)")
    p.add_argument("--at", type=at_least(0), help="step of a PNG (120, or the episode's last)")
    p.add_argument("--fps", type=at_least(1), default=8, help="frames per second of a GIF (8)")
    p.add_argument("--out", type=Path, required=True, help="file to write, .png or .gif")
    return p


def main() -> int:
    arguments = parser().parse_args()
    try:
        render(arguments)
    except (UserError, NotImplementedError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"render: {arguments.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


def render(arguments: argparse.Namespace) -> None:
    with extra("plots", "pictures"):
        import matplotlib as mpl

        mpl.use("Agg")

        import matplotlib.pyplot as plt
        from matplotlib.animation import PillowWriter

    kind = arguments.out.suffix.lower()
    others = {".png": ("first", "steps"), ".gif": ("at",)}
    if kind not in others:
        raise UserError(f"--out: {arguments.out}: its name must end with .png or .gif")
    for option in others[kind]:
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option}: of no use for a {kind}; a PNG has --at, a GIF --first and --steps")
    domain, act = _players(arguments)
    shown = _steps(arguments, kind, domain.horizon)

    wide = 6.4 if arguments.simulator == "ls" or domain.n_agents <= 9 else 12.8
    figure, axes = plt.subplots(figsize=(wide, 0.875 * wide), dpi=100, layout="constrained")
    arguments.out.touch()  # before the work, if it cannot be written
    writer = PillowWriter(fps=arguments.fps)
    if kind == ".gif":
        writer.setup(figure, arguments.out)

    def show(simulator, step):
        if step in shown:
            axes.clear()
            colours, label = domain.draw(simulator, axes)
            if len(figure.axes) == 1:
                figure.colorbar(colours, ax=axes, label=label, shrink=0.7)
            if kind == ".gif":
                writer.grab_frame()

    play = _play_local if arguments.simulator == "ls" else _play_global
    play(arguments, domain, act, shown[-1], show)
    if kind == ".gif":
        writer.finish()
    else:
        figure.savefig(arguments.out)
    print(arguments.out)


def _steps(arguments: argparse.Namespace, kind: str, horizon: int) -> range:
    """The steps of the episode that are drawn."""
    first = arguments.first or 0
    if kind == ".png":
        first = min(120, horizon) if arguments.at is None else arguments.at
        last = first
    else:
        last = min(first + 120, horizon) if arguments.steps is None else first + arguments.steps
    if last > horizon or first > horizon:
        raise UserError(f"step {last}: an episode of this domain ends after step {horizon}")
    return range(first, last + 1)


def _players(arguments: argparse.Namespace):
    """The domain, and what acts as `JointActor.act` does; None where the GS has a controller."""
    if arguments.run is None and arguments.env is None:
        raise UserError("give a run directory or --env")
    if arguments.run:
        if arguments.agents is not None:
            raise UserError("--agents: the run has its own number; leave it out")
        layers = [stored_layer(arguments.run / "config.yaml", load_yaml(arguments.run / "config.yaml"))]
    else:
        layers = [("--env", {"env": arguments.env, "agents": arguments.agents or 4})]
    c = resolve(layers, 4, arguments.env)
    domain = make_domain(c.env, c.agents, c.domain)
    if arguments.agent >= c.agents:
        raise UserError(f"--agent: {arguments.agent} is none of 0 to {c.agents - 1}")
    known = ("random", *domain.controllers)
    if arguments.controller and arguments.controller not in known:
        raise UserError(f"--controller: {arguments.controller!r} is none of {', '.join(known)}")
    if arguments.controller == "random" or (arguments.controller is None and arguments.run is None):
        generator = np.random.default_rng(arguments.seed)
        return domain, lambda _, available: random_actions(domain, generator, (c.agents, 1), available)
    if arguments.controller:
        return domain, None

    from dials_mpi.training.evaluation import load_actor

    # Two episodes at most: one on the GS, and for the LS another one.
    players = [load_actor(arguments.run, c, domain, 1, seed) for seed in (arguments.seed, arguments.seed + 1)]
    return domain, [player.act for player in players]


def _play_global(arguments, domain: Domain, act, last: int, show, record=None) -> None:
    first_act = act[0] if isinstance(act, list) else act
    with domain.global_simulator(1, None if act else arguments.controller) as simulator:
        simulator.seed(streams(arguments.seed, "evaluate/simulator", [0]))
        observations = simulator.reset()
        show(simulator, 0)
        for step in tqdm(range(1, last + 1), "episode", leave=False):
            actions = first_act(observations, available_actions(domain, simulator)) if act else None
            observations = simulator.step(actions).observations
            if record is not None:
                record.append((None if act else simulator.actions().copy(), simulator.influence_sources().copy()))
            show(simulator, step)


def _play_local(arguments, domain: Domain, act, last: int, show) -> None:
    if domain.influence is None:
        raise UserError(f"domain {domain.name} has no local simulators: it declares no influence")
    record = []
    _play_global(arguments, domain, act, last, lambda simulator, step: None, record)
    act = act[1] if isinstance(act, list) else act
    mine = slice(arguments.agent, arguments.agent + 1)
    with domain.local_simulator([arguments.agent], 1) as simulator:
        simulator.seed(streams(arguments.seed, "evaluate/simulator", [1]))
        observations = simulator.reset()
        show(simulator, 0)
        for step, (actions, sources) in enumerate(record, 1):
            if actions is None:
                # The other agents' rows are filled with the same; each policy has its own memory.
                seen = observations, available_actions(domain, simulator)
                actions = act(*(None if rows is None else np.repeat(rows, domain.n_agents, axis=0) for rows in seen))
            observations = simulator.step(actions[mine], sources[mine]).observations
            show(simulator, step)


if __name__ == "__main__":
    sys.exit(main())
